//! llama.cpp as an [`Engine`]: this file and its folder are the only ones that call into `llama_cpp_2`.
//!
//! The binding is safe Rust over C++ that aborts the process when it is misused. What aborts, or is undefined, is checked before
//! the call: a batch larger than the context's, more sequence ids than a batch row has room for (always one here), token ids outside
//! the vocabulary, partial copies in a cache that is not unified (it always is here), and a model without a tokenizer. Sampling is
//! ours, and so are grammars.
//! A failed load says `NullResult` and nothing else; the reason is in the log, see [`super::load_log`].

mod places;
#[cfg(feature = "vision")]
mod projector;
#[cfg(not(feature = "vision"))]
#[path = "llama_cpp/no_projector.rs"]
mod projector;
mod vocabulary;

use super::engine::{Compute, Engine, EngineError, Limits, LoadError, LoadPlan, Row, Token, Tokenizer};
use super::load_log;
use super::model_file::check_gguf;
use super::picture::Picture;
#[cfg(all(feature = "vulkan", not(feature = "cuda")))]
use llama_cpp_2::LlamaBackendDeviceType;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::context::session::LlamaStateSeqFlags;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel};
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::{DecodeError, LogOptions};
use places::Places;
use projector::Projector;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use tollkeeper_config::{KvType, LoraAdapter, Pooling};
use vocabulary::Vocabulary;

/// Tokens of the first decode.
const CANARY: u32 = 2;
/// Rows of a batch; also what one call computes at a time, so that a cancelled answer stops after at most so many tokens.
const BATCH: u32 = 512;
/// Inputs embedded in one call.
const EMBEDDING_SEQUENCES: u32 = 32;
/// An embedding input must fit one batch, whose memory grows with its square: models not made for embeddings get no more.
const CHAT_MODEL_EMBEDDING: u32 = 2048;
/// Files below this size run on one thread: the others would wait for each other longer than they compute.
const ONE_THREAD_BYTES: u64 = 64 << 20;
/// Moving a token's KV out and back in moves some four times the bytes that a batch of one row reads of it; a batch of many rows also
/// computes with it. So after this many rows of others an idle sequence has cost more than its move.
const IDLE_ROWS: u32 = 32;
/// The same where the way to the host is a hundred times narrower than the card's own memory.
const IDLE_ROWS_ON_A_CARD: u32 = 4096;

/// The pooling type, as files write it, of models with a classifier head.
const RANK: &str = "4";

/// Reads the vocabulary alone.
pub(crate) fn tokenizer(plan: &LoadPlan) -> Result<Arc<dyn Tokenizer>, LoadError> {
    let path = &plan.model.path;
    check_gguf(path)?;
    let backend = backend()?;
    let (vocabulary, _) = load(path, "reading its vocabulary", || {
        // No devices: asking one for its memory would leave a context of some hundred MB on it for the life of this process.
        let params = LlamaModelParams::default().with_devices(&[]).map_err(|error| error.to_string())?;
        LlamaModel::load_from_file(backend, path, &params.with_vocab_only(true)).map_err(|error| error.to_string())
    })?;
    Ok(Arc::new(Vocabulary::of(vocabulary, &plan.model)?))
}

/// Loads the model and computes.
pub(crate) fn compute(plan: &LoadPlan, compute: Compute<'_>) -> Result<(), LoadError> {
    let path = &plan.model.path;
    let bytes = check_gguf(path)?;
    let backend = backend()?;
    let (mut model, weights) = load(path, "loading it", || {
        let (stop, progress) = (plan.stop.clone(), plan.progress.clone());
        let gpu = backend.supports_gpu_offload();
        let mut params = LlamaModelParams::default().with_use_mmap(!gpu);
        if let Some(layers) = plan.model.gpu_layers {
            params = params.with_n_gpu_layers(layers);
        }
        LlamaModel::load_from_file(
            backend,
            path,
            &params.with_progress_callback(move |done| {
                progress.set(Some(done));
                !stop.load(Ordering::Relaxed)
            }),
        )
    })?;
    let (adapter, added) = match plan.model.lora.first() {
        Some(lora) => adapter(&mut model, lora).map(|(adapter, bytes)| (Some((adapter, lora.scale)), bytes))?,
        None => (None, 0),
    };
    let threads = plan.model.threads.unwrap_or_else(|| default_threads(bytes));
    let (mut engine, buffers) =
        load(path, "making room for its context", || LlamaEngine::new(&model, backend, plan, threads, adapter))?;
    let mut memory = weights + added + buffers;
    if let Some(file) = &plan.model.mmproj {
        let (projector, bytes) = Projector::load(file, &model, engine.threads, backend.supports_gpu_offload())?;
        engine.limits.sees = engine.limits.generates;
        engine.projector = Some(projector);
        memory += bytes;
    }
    engine.memory = Some(memory).filter(|bytes| *bytes > 0);
    compute(&mut engine);
    Ok(())
}

/// The memory of all graphics cards together, in bytes; `None` where there is none. Not for CUDA: there the question would leave a context
/// on each card, and [`super::nvml`] answers it too.
#[cfg(all(feature = "vulkan", not(feature = "cuda")))]
pub(crate) fn card_memory() -> Option<u64> {
    let backend = backend().ok()?;
    if !backend.supports_gpu_offload() {
        return None;
    }
    let cards = llama_cpp_2::list_llama_ggml_backend_devices().into_iter();
    let cards = cards.filter(|device| device.device_type == LlamaBackendDeviceType::Gpu);
    Some(cards.map(|card| card.memory_total as u64).sum()).filter(|bytes| *bytes > 0)
}

/// The backend, once per process; llama.cpp's log goes to tracing.
fn backend() -> Result<&'static LlamaBackend, LoadError> {
    static BACKEND: OnceLock<Result<LlamaBackend, String>> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        llama_cpp_2::send_logs_to_tracing(LogOptions::default());
        LlamaBackend::init().map_err(|error| error.to_string())
    });
    backend.as_ref().map_err(|error| LoadError(format!("llama.cpp cannot be initialised: {error}")))
}

/// An adapter, and the bytes that it takes. It lives as long as the model.
fn adapter(model: &mut LlamaModel, lora: &LoraAdapter) -> Result<(LlamaLoraAdapter, u64), LoadError> {
    let path = &lora.path;
    let named = |LoadError(why)| LoadError(format!("its LoRA adapter {} cannot be used: {why}", path.display()));
    check_gguf(path).map_err(named)?;
    load(path, "loading the adapter", || model.lora_adapter_init(path)).map_err(named)
}

fn default_threads(bytes: u64) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if bytes < ONE_THREAD_BYTES { 1 } else { u32::try_from(cores).unwrap_or(1) }
}

/// Runs a step of loading, and gives back the bytes that llama.cpp took for it; a failure tells what it logged.
fn load<T, E: std::fmt::Display>(
    path: &Path,
    doing: &str,
    step: impl FnOnce() -> Result<T, E>,
) -> Result<(T, u64), LoadError> {
    let (result, said) = load_log::capture(step);
    let memory = said.memory().unwrap_or(0);
    let mut lines = said.complaints;
    result.map(|loaded| (loaded, memory)).map_err(|error| {
        tracing::debug!(?path, ?lines, "llama.cpp failed");
        lines.retain(|line| !line.contains("failed to load model"));
        lines.dedup();
        let said = if lines.is_empty() { error.to_string() } else { lines.join("; ") };
        LoadError(format!("llama.cpp failed while {doing}: {said}"))
    })
}

fn llama(token: Token) -> LlamaToken {
    LlamaToken(i32::try_from(token).unwrap_or(-1))
}

/// A model with the context that writes and, once needed, the one that embeds.
struct LlamaEngine<'m> {
    model: &'m LlamaModel,
    backend: &'static LlamaBackend,
    context: Option<LlamaContext<'m>>,
    embedder: Option<(LlamaContext<'m>, LlamaBatch<'static>)>,
    batch: LlamaBatch<'static>,
    projector: Option<Projector>,
    /// Of each sequence.
    places: Vec<Places>,
    /// Which rows of the last batch have logits.
    outputs: Vec<bool>,
    limits: Limits,
    pooling: LlamaPoolingType,
    adapter: Option<(LlamaLoraAdapter, f32)>,
    /// Whether what the classifier head gives is a logit and has to become a relevance from 0 to 1.
    squashes: bool,
    threads: i32,
    kv: KvCacheType,
    /// Bytes of weights, KV and buffers, as llama.cpp logged them.
    memory: Option<u64>,
}

impl<'m> LlamaEngine<'m> {
    fn new(
        model: &'m LlamaModel,
        backend: &'static LlamaBackend,
        plan: &LoadPlan,
        threads: u32,
        adapter: Option<(LlamaLoraAdapter, f32)>,
    ) -> Result<Self, String> {
        let wanted = &plan.model;
        let architecture = model.meta_val_str("general.architecture").unwrap_or_default();
        if architecture.starts_with("t5") {
            return Err(format!("models of the architecture `{architecture}` are not supported"));
        }
        let own_pooling = model.meta_val_str(&format!("{architecture}.pooling_type")).ok();
        let made_for_embeddings = own_pooling.is_some();
        let sees_all =
            model.meta_val_str(&format!("{architecture}.attention.causal")).is_ok_and(|causal| causal == "false");
        let embeds_only = made_for_embeddings || sees_all;
        let trained = model.n_ctx_train().max(1);
        if wanted.context > trained {
            tracing::warn!(
                model = wanted.name,
                configured = wanted.context,
                trained,
                "the context is cut to what the model was trained for"
            );
        }
        let context = wanted.context.clamp(1, trained);
        let sequences = wanted.slots.max(1);
        let on_card = backend.supports_gpu_offload() && wanted.gpu_layers != Some(0);
        let limits = Limits {
            context,
            sequences,
            batch: BATCH.max(sequences),
            vocabulary: u32::try_from(model.n_vocab()).unwrap_or(0),
            rewinds: !model.is_recurrent() && !model.is_hybrid(),
            idle_rows: Some(if on_card { IDLE_ROWS_ON_A_CARD } else { IDLE_ROWS }),
            generates: !embeds_only,
            embedding_context: match wanted.pooling {
                Some(Pooling::None) => 0,
                _ if made_for_embeddings => context,
                _ => context.min(CHAT_MODEL_EMBEDDING),
            },
            ranks: wanted.pooling.is_none() && own_pooling.as_deref() == Some(RANK),
            embedding_width: u32::try_from(model.n_embd_out()).unwrap_or(0),
            sees: false,
        };
        let mut engine = Self {
            model,
            backend,
            context: None,
            embedder: None,
            batch: LlamaBatch::new(limits.batch as usize, 1),
            projector: None,
            places: vec![Places::default(); sequences as usize],
            outputs: Vec::new(),
            pooling: pooling(wanted.pooling, own_pooling.as_deref()),
            adapter,
            // llama.cpp has made a probability of these models' answer ("yes" or "no") itself.
            squashes: !architecture.starts_with("qwen3"),
            threads: i32::try_from(threads.max(1)).unwrap_or(1),
            kv: match wanted.kv {
                KvType::F16 => KvCacheType::F16,
                KvType::Q8_0 => KvCacheType::Q8_0,
                KvType::Q4_0 => KvCacheType::Q4_0,
            },
            memory: None,
            limits,
        };
        if !embeds_only {
            let cells = context.checked_mul(sequences).ok_or("`context` times `slots` is too large")?;
            let params = engine.params(cells, engine.limits.batch, sequences);
            let context = model.new_context(backend, params).map_err(|error| error.to_string())?;
            engine.context = Some(adapted(context, &mut engine.adapter)?);
        }
        Ok(engine)
    }

    fn params(&self, cells: u32, batch: u32, sequences: u32) -> LlamaContextParams {
        LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(cells))
            .with_n_batch(batch)
            .with_n_ubatch(batch)
            .with_n_seq_max(sequences)
            .with_kv_unified(true)
            .with_type_k(self.kv)
            .with_type_v(self.kv)
            .with_n_threads(self.threads)
            .with_n_threads_batch(self.threads)
    }

    /// Whether a batch is within all bounds; llama.cpp aborts or overruns a buffer otherwise.
    fn check(&self, rows: &[Row]) -> Result<(), EngineError> {
        let limits = &self.limits;
        let fits = |row: &Row| {
            row.token < limits.vocabulary && row.sequence < limits.sequences && row.position < limits.context
        };
        if rows.is_empty() || rows.len() > limits.batch as usize || !rows.iter().all(fits) {
            return Err(broken(format!("a batch out of bounds ({} rows)", rows.len())));
        }
        Ok(())
    }

    fn embed_some(&mut self, inputs: &[&[Token]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let room = self.limits.embedding_context;
        let (context, batch) = match &mut self.embedder {
            Some(embedder) => embedder,
            None => {
                let params =
                    self.params(room, room, EMBEDDING_SEQUENCES).with_embeddings(true).with_pooling_type(self.pooling);
                let (context, said) = load_log::capture(|| self.model.new_context(self.backend, params));
                let context = context.map_err(|error| {
                    broken(format!("no context for embeddings: {error} {}", said.complaints.join("; ")))
                })?;
                let context = adapted(context, &mut self.adapter).map_err(broken)?;
                self.embedder.insert((context, LlamaBatch::new(room as usize, 1)))
            }
        };
        context.clear_kv_cache();
        batch.clear();
        for (sequence, input) in (0..).zip(inputs) {
            for (position, token) in (0..).zip(input.iter()) {
                batch.add(llama(*token), position, &[sequence], true).map_err(|error| broken(error.to_string()))?;
            }
        }
        context.decode(batch).map_err(|error| broken(error.to_string()))?;
        let vectors = (0..).zip(inputs).map(|(sequence, _)| context.embeddings_seq_ith(sequence).map(<[f32]>::to_vec));
        vectors.map(|vector| vector.map_err(|error| broken(error.to_string()))).collect()
    }
}

/// The context with the adapter in use.
fn adapted<'m>(
    mut context: LlamaContext<'m>,
    adapter: &mut Option<(LlamaLoraAdapter, f32)>,
) -> Result<LlamaContext<'m>, String> {
    if let Some((adapter, scale)) = adapter {
        context
            .lora_adapter_set(adapter, *scale)
            .map_err(|error| format!("the LoRA adapter cannot be set: {error}"))?;
    }
    Ok(context)
}

/// How embeddings come from tokens: as configured, else as the file says (by number), else the mean. A file that says 0 has no
/// way of its own.
fn pooling(wanted: Option<Pooling>, own: Option<&str>) -> LlamaPoolingType {
    match (wanted, own) {
        (Some(Pooling::Mean | Pooling::None), _) | (None, None | Some("0")) => LlamaPoolingType::Mean,
        (Some(Pooling::Cls), _) => LlamaPoolingType::Cls,
        (Some(Pooling::Last), _) => LlamaPoolingType::Last,
        (None, Some(_)) => LlamaPoolingType::Unspecified,
    }
}

fn broken(reason: String) -> EngineError {
    EngineError::Broken(reason)
}

impl Engine for LlamaEngine<'_> {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn decode(&mut self, rows: &[Row]) -> Result<(), EngineError> {
        self.check(rows)?;
        let Some(context) = &mut self.context else { return Err(broken("this model only embeds".into())) };
        self.batch.clear();
        self.outputs.clear();
        for row in rows {
            let position = self.places[row.sequence as usize].position(row.position) as i32;
            let sequence = row.sequence as i32;
            self.batch
                .add(llama(row.token), position, &[sequence], row.output)
                .map_err(|error| broken(error.to_string()))?;
        }
        context.decode(&mut self.batch).map_err(|error| match error {
            DecodeError::NoKvCacheSlot => EngineError::NoRoom,
            error => broken(format!("llama.cpp could not decode: {error}")),
        })?;
        self.outputs.extend(rows.iter().map(|row| row.output));
        Ok(())
    }

    fn logits(&self, row: usize) -> &[f32] {
        match (&self.context, self.outputs.get(row)) {
            (Some(context), Some(true)) => context.get_logits_ith(row as i32),
            _ => &[],
        }
    }

    fn truncate(&mut self, sequence: u32, keep: u32) -> bool {
        let Some(context) = &mut self.context else { return true };
        let places = &mut self.places[sequence as usize];
        let from = (keep > 0).then_some(places.position(keep));
        places.truncate(keep);
        context.clear_kv_cache_seq(Some(sequence), from, None).unwrap_or(false)
    }

    fn share(&mut self, from: u32, to: u32, length: u32) {
        if let Some(context) = &mut self.context {
            let mut places = self.places[from as usize].clone();
            places.truncate(length);
            let end = places.position(length);
            let copied = context.copy_kv_cache_seq(from as i32, to as i32, Some(0), Some(end));
            self.places[to as usize] = places;
            debug_assert!(copied.is_ok(), "positions fit an i32");
        }
    }

    #[expect(unsafe_code, reason = "llama.cpp writes into a buffer; it is as long as llama.cpp says that the state is")]
    fn save(&mut self, sequence: u32) -> Option<Vec<u8>> {
        let context = self.context.as_ref()?;
        let flags = LlamaStateSeqFlags::empty();
        let mut state = vec![0; context.state_seq_get_size_ext(sequence as i32, flags)];
        // SAFETY: the buffer has the length that llama.cpp asks for.
        let written = unsafe { context.state_seq_get_data_ext(state.as_mut_ptr(), sequence as i32, flags) };
        if written != state.len() || written == 0 {
            return None;
        }
        if self.projector.is_some() {
            self.places[sequence as usize].write(&mut state);
        }
        Some(state)
    }

    #[expect(
        unsafe_code,
        reason = "llama.cpp reads a state; it is one that it wrote, for this model and with these settings"
    )]
    fn restore(&mut self, sequence: u32, state: &[u8], length: u32) -> bool {
        let Some(context) = &mut self.context else { return false };
        let (state, places) = match &self.projector {
            None => (state, Places::default()),
            Some(_) => match Places::read(state) {
                Some(read) => read,
                None => return false,
            },
        };
        // SAFETY: the store gives back only what `save` of a model with this fingerprint made, whole and unchanged; and llama.cpp
        // checks layers, types and lengths itself.
        let read = unsafe { context.state_seq_set_data_ext(state, sequence as i32, LlamaStateSeqFlags::empty()) };
        let whole = read && context.kv_cache_seq_pos_max(sequence as i32) == places.position(length) as i32 - 1;
        self.places[sequence as usize] = places;
        if !whole {
            self.truncate(sequence, 0);
        }
        whole
    }

    fn memory(&self) -> Option<u64> {
        self.memory
    }

    /// A few fixed tokens: a model whose probabilities are not numbers is not used.
    fn warm_up(&mut self) -> Result<(), EngineError> {
        if self.context.is_none() {
            return Ok(());
        }
        let last = self.limits.vocabulary.min(CANARY).min(self.limits.context);
        let rows: Vec<Row> =
            (0..last).map(|at| Row { token: at, position: at, sequence: 0, output: at + 1 == last }).collect();
        self.decode(&rows)?;
        let sound = self.logits(rows.len() - 1).iter().all(|logit| logit.is_finite());
        self.truncate(0, 0);
        if sound {
            Ok(())
        } else {
            Err(broken("its probabilities are not numbers: the file or the memory is damaged".into()))
        }
    }

    fn measure(&mut self, picture: &Picture) -> Result<u32, EngineError> {
        let projector = self.projector.as_mut().ok_or_else(|| EngineError::Unfit("this model cannot see".into()))?;
        Ok(projector.measure(picture, self.limits.batch)?.0)
    }

    fn show(&mut self, picture: &Picture, sequence: u32, position: u32) -> Result<(), EngineError> {
        let (Some(projector), Some(context)) = (&mut self.projector, &mut self.context) else {
            return Err(EngineError::Unfit("this model cannot see".into()));
        };
        let Limits { context: room, sequences, batch, .. } = self.limits;
        let (tokens, positions) = projector.measure(picture, batch)?;
        if sequence >= sequences || position.saturating_add(tokens) >= room {
            return Err(broken(format!("a picture of {tokens} tokens out of bounds (behind {position})")));
        }
        self.outputs.clear();
        let at = self.places[sequence as usize].position(position);
        let shown = projector.show(picture, context, sequence, at, batch);
        match shown {
            Ok(()) => self.places[sequence as usize].add(position, tokens, positions),
            Err(_) => drop(self.truncate(sequence, position)),
        }
        shown
    }

    fn embed(&mut self, inputs: &[&[Token]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let fits = |input: &&[Token]| !input.is_empty() && input.iter().all(|token| *token < self.limits.vocabulary);
        let total: usize = inputs.iter().map(|input| input.len()).sum();
        if total > self.limits.embedding_context as usize || !inputs.iter().all(fits) {
            return Err(broken(format!("embedding inputs out of bounds ({total} tokens)")));
        }
        let mut vectors = Vec::with_capacity(inputs.len());
        for some in inputs.chunks(EMBEDDING_SEQUENCES as usize) {
            vectors.extend(self.embed_some(some)?);
        }
        if self.limits.ranks {
            // A head with several labels says the relevant one first.
            vectors.iter_mut().for_each(|labels| labels.truncate(1));
        }
        if self.limits.ranks && self.squashes {
            vectors.iter_mut().flatten().for_each(|logit| *logit = 1.0 / (1.0 + (-*logit).exp()));
        }
        Ok(vectors)
    }
}
