//! BERT embeddings from a folder as model hubs serve it: `config.json`, `model.safetensors`, `tokenizer.json`, and how to pool.

use super::{broken, clamp_context, failed, said};
use crate::local::engine::{
    Compute, ControlToken, Engine, EngineError, Limits, LoadError, LoadPlan, Row, Token, Tokenizer,
};
use candle_core::{Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config, DTYPE};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use tokenizers::Tokenizer as Inner;

/// Reads the tokenizer of a folder.
pub(super) fn tokenizer(folder: &Path) -> Result<Arc<dyn Tokenizer>, LoadError> {
    let config = config(folder)?;
    let words = Words::of(&read(folder, "tokenizer.json")?)?;
    if words.size > config.vocab_size {
        return Err(LoadError(format!(
            "`tokenizer.json` has {} tokens, the model {}: they do not belong together",
            words.size, config.vocab_size
        )));
    }
    Ok(Arc::new(words))
}

/// Loads the folder and computes.
pub(super) fn compute(plan: &LoadPlan, compute: Compute<'_>) -> Result<(), LoadError> {
    let folder: &Path = &plan.model.path;
    let mut engine = BertEngine::load(folder, plan, &config(folder)?)?;
    // A folder that contradicts itself shows here and not in the first answer.
    engine.embed(&[&[0]]).map_err(|error| LoadError(format!("candle cannot compute with this folder: {error}")))?;
    compute(&mut engine);
    Ok(())
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>, LoadError> {
    std::fs::read(folder.join(name)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => LoadError(format!(
            "the folder has no `{name}`; a folder must hold a BERT as config.json, model.safetensors and tokenizer.json"
        )),
        _ => LoadError(format!("`{name}` cannot be read: {error}")),
    })
}

fn parse<T: serde::de::DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, LoadError> {
    serde_json::from_slice(bytes).map_err(|error| LoadError(format!("`{name}` is not as it should be: {error}")))
}

fn config(folder: &Path) -> Result<Config, LoadError> {
    let bytes = read(folder, "config.json")?;
    let fields: serde_json::Value = parse("config.json", &bytes)?;
    match fields.get("model_type").and_then(serde_json::Value::as_str) {
        Some("bert") => parse("config.json", &bytes),
        other => Err(LoadError(format!(
            "the candle engine embeds with models of the type `bert`, and this is `{}`",
            other.unwrap_or("unnamed")
        ))),
    }
}

/// Which of a text's vectors is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    /// The mean of all.
    Mean,
    /// The first one.
    First,
}

impl Pooling {
    /// What sentence-transformers' files in the folder say; the mean without them.
    fn of(folder: &Path) -> Result<Self, LoadError> {
        let known = ["Transformer", "Pooling", "Normalize"];
        if folder.join("modules.json").exists() {
            let modules: Vec<BTreeMap<String, serde_json::Value>> =
                parse("modules.json", &read(folder, "modules.json")?)?;
            for module in &modules {
                let kind = module.get("type").and_then(serde_json::Value::as_str).unwrap_or_default();
                if !known.contains(&kind.rsplit('.').next().unwrap_or_default()) {
                    return Err(LoadError(format!(
                        "`modules.json` asks for `{kind}`, which the candle engine does not do"
                    )));
                }
            }
        }
        let name = "1_Pooling/config.json";
        if !folder.join(name).exists() {
            return Ok(Self::Mean);
        }
        let fields: BTreeMap<String, serde_json::Value> = parse(name, &read(folder, name)?)?;
        let modes = fields.iter().filter(|(key, value)| key.starts_with("pooling_mode_") && **value == true);
        let modes: Vec<&str> = modes.map(|(key, _)| key.as_str()).collect();
        match modes.as_slice() {
            ["pooling_mode_mean_tokens"] => Ok(Self::Mean),
            ["pooling_mode_cls_token"] => Ok(Self::First),
            other => {
                Err(LoadError(format!("`{name}` asks for {other:?}; the candle engine pools by mean or first token")))
            }
        }
    }
}

/// A BERT in memory.
struct BertEngine {
    model: BertModel,
    pooling: Pooling,
    limits: Limits,
}

impl BertEngine {
    fn load(folder: &Path, plan: &LoadPlan, config: &Config) -> Result<Self, LoadError> {
        let pooling = Pooling::of(folder)?;
        let refuse = |error| LoadError(format!("candle failed while loading `model.safetensors`: {}", said(&error)));
        let weights = read(folder, "model.safetensors")?;
        let weights = VarBuilder::from_buffered_safetensors(weights, DTYPE, &Device::Cpu).map_err(refuse)?;
        // Files of a model with a head have the body under its name.
        let inside = weights.contains_tensor("bert.embeddings.word_embeddings.weight");
        let model = BertModel::load(if inside { weights.pp("bert") } else { weights }, config).map_err(refuse)?;
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let context = clamp_context(plan, number(config.max_position_embeddings), "what the model was trained for");
        let sequences = plan.model.slots.max(1);
        let limits = Limits {
            context,
            sequences,
            batch: sequences,
            vocabulary: number(config.vocab_size),
            rewinds: false,
            idle_rows: None,
            generates: false,
            ranks: false,
            embedding_context: context,
            embedding_width: number(config.hidden_size),
            sees: false,
        };
        Ok(Self { model, pooling, limits })
    }

    /// The vectors of inputs of one length.
    fn embed_alike(&self, inputs: &[&[Token]]) -> candle_core::Result<Vec<Vec<f32>>> {
        let ids = Tensor::new(inputs.concat(), &Device::Cpu)?.reshape((inputs.len(), ()))?;
        let states = self.model.forward(&ids, &ids.zeros_like()?, None)?;
        let pooled = match self.pooling {
            Pooling::Mean => states.mean(1)?,
            Pooling::First => states.i((.., 0))?,
        };
        pooled.to_vec2()
    }
}

impl Engine for BertEngine {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn decode(&mut self, _rows: &[Row]) -> Result<(), EngineError> {
        Err(broken("this model only embeds"))
    }

    fn logits(&self, _row: usize) -> &[f32] {
        &[]
    }

    fn truncate(&mut self, _sequence: u32, _keep: u32) -> bool {
        true
    }

    fn share(&mut self, _from: u32, _to: u32, _length: u32) {}

    fn embed(&mut self, inputs: &[&[Token]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let fits = |input: &&[Token]| !input.is_empty() && input.iter().all(|token| *token < self.limits.vocabulary);
        let total: usize = inputs.iter().map(|input| input.len()).sum();
        if total > self.limits.embedding_context as usize || !inputs.iter().all(fits) {
            return Err(broken(format!("embedding inputs out of bounds ({total} tokens)")));
        }
        // Inputs of one length go together: nothing is padded, so nobody's vector depends on the company.
        let mut alike: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, input) in inputs.iter().enumerate() {
            alike.entry(input.len()).or_default().push(at);
        }
        let mut vectors = vec![Vec::new(); inputs.len()];
        for places in alike.values() {
            let together: Vec<&[Token]> = places.iter().map(|at| inputs[*at]).collect();
            let found = self.embed_alike(&together).map_err(failed)?;
            places.iter().zip(found).for_each(|(at, vector)| vectors[*at] = vector);
        }
        Ok(vectors)
    }
}

/// The tokenizer of `tokenizer.json`.
struct Words {
    inner: Inner,
    size: usize,
    special: HashSet<Token>,
}

impl Words {
    fn of(json: &[u8]) -> Result<Self, LoadError> {
        let refuse = |error| LoadError(format!("`tokenizer.json` is not as it should be: {error}"));
        let mut inner = Inner::from_bytes(json).map_err(refuse)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(refuse)?;
        // Names of special tokens in a text are text.
        inner.set_encode_special_tokens(true);
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let size = inner.get_vocab_size(true);
        Ok(Self { inner, size, special })
    }
}

impl Tokenizer for Words {
    fn encode(&self, text: &str, whole: bool) -> Vec<Token> {
        match self.inner.encode_fast(text, whole) {
            Ok(encoding) => encoding.get_ids().to_vec(),
            Err(error) => {
                tracing::error!(%error, "text could not be read as tokens");
                Vec::new()
            }
        }
    }

    fn piece(&self, token: Token) -> Vec<u8> {
        let spoken = (!self.special.contains(&token)).then(|| self.inner.id_to_token(token)).flatten();
        spoken.unwrap_or_default().into_bytes()
    }

    fn is_end(&self, _token: Token) -> bool {
        false
    }

    fn vocabulary(&self) -> u32 {
        u32::try_from(self.size).unwrap_or(u32::MAX)
    }

    fn control_tokens(&self) -> Vec<ControlToken> {
        let named = self.special.iter().filter_map(|token| Some((*token, self.inner.id_to_token(*token)?)));
        let control = named.map(|(token, name)| ControlToken { token, name, strips_left: false, strips_right: false });
        control.collect()
    }

    fn required_first(&self) -> Option<Token> {
        None
    }

    fn chat_template(&self) -> Option<String> {
        None
    }

    fn edge_names(&self) -> (String, String) {
        Default::default()
    }
}
