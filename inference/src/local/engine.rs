//! The seam between the worker and an engine: what llama.cpp, candle and the scripted engine have to offer.
//!
//! An [`Engine`] only computes: it decodes batches of tokens of several sequences, hands out logits, and cuts, copies or
//! embeds sequences. Which request gets which sequence, what is drawn from the logits and what the client sees is the
//! worker's business and the same for every engine.

use super::card::Card;
use super::draft;
use super::picture::Picture;
use super::vocabulary::KeptVocabulary;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tollkeeper_config::{EngineHost, EngineKind, Speculate};

/// A token id of a model's vocabulary.
pub type Token = u32;

/// One token of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The token to read.
    pub token: Token,
    /// Its place in its sequence, from 0, without gaps.
    pub position: u32,
    /// Its sequence, below [`Limits::sequences`].
    pub sequence: u32,
    /// Whether the logits after this token are wanted.
    pub output: bool,
}

/// What an engine can hold and do; fixed while it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most tokens of one sequence, prompt and answer together.
    pub context: u32,
    /// Sequences at once.
    pub sequences: u32,
    /// Most rows of one batch; at least [`Limits::sequences`].
    pub batch: u32,
    /// Tokens of the vocabulary.
    pub vocabulary: u32,
    /// Whether the tail of a sequence can be cut off (not so for recurrent models).
    pub rewinds: bool,
    /// Rows read in other sequences after which it has paid to move an idle sequence's KV out, because every batch attends to all the
    /// KV there is; `None` where an idle sequence costs the others nothing.
    pub idle_rows: Option<u32>,
    /// Whether it generates text (embedding-only models do not).
    pub generates: bool,
    /// Most tokens of one embedding input; 0 when it cannot embed.
    pub embedding_context: u32,
    /// Whether it has a head that says how relevant a document is to a query. What [`Engine::embed`] gives is that, and no embedding.
    pub ranks: bool,
    /// Numbers of an embedding.
    pub embedding_width: u32,
    /// Whether pictures can be shown to it.
    pub sees: bool,
}

/// Why an engine could not do a step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum EngineError {
    /// No room in the KV cache; nothing changed, and freeing sequences helps.
    #[error("the KV cache has no room for the batch")]
    NoRoom,
    /// What it was given cannot be used; nothing changed.
    #[error("{0}")]
    Unfit(String),
    /// The engine is broken and must be loaded again.
    #[error("{0}")]
    Broken(String),
}

/// Why an engine could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// A sequence that is being written, as who guesses has to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished<'t> {
    /// The sequence, below [`Limits::sequences`].
    pub sequence: u32,
    /// The tokens that were read so far.
    pub read: &'t [Token],
    /// The token that was drawn last and will be read next.
    pub next: Token,
    /// Most tokens to guess behind it.
    pub most: u32,
    /// Most tokens that are worth reading for it before the first guess; where more are lacking there is none.
    pub reach: u32,
}

/// A model with its KV cache. It is built, used and dropped on one thread.
pub trait Engine {
    /// What it can hold.
    fn limits(&self) -> &Limits;

    /// Reads the rows, at most [`Limits::batch`] of them.
    ///
    /// # Errors
    /// [`EngineError::NoRoom`] leaves every sequence as it was.
    fn decode(&mut self, rows: &[Row]) -> Result<(), EngineError>;

    /// Computes something small, so that the first request does not pay for what happens once, and a model that computes nonsense is
    /// found out before it serves. The sequences are empty before and after.
    ///
    /// # Errors
    /// [`EngineError::Broken`].
    fn warm_up(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Whether it is still there; asked while nothing is to be computed.
    ///
    /// # Errors
    /// [`EngineError::Broken`].
    fn alive(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// The process that it runs in, if that is one of its own.
    fn process(&self) -> Option<u32> {
        None
    }

    /// Bytes that the model, its KV cache and its buffers take, if the engine knows.
    fn memory(&self) -> Option<u64> {
        None
    }

    /// The logits after row `row` of the last [`Engine::decode`], one for each token of the vocabulary. The row asked for them.
    fn logits(&self, row: usize) -> &[f32];

    /// Forgets the tokens of a sequence from position `keep` on. Returns whether it could; `keep` 0 always works.
    fn truncate(&mut self, sequence: u32, keep: u32) -> bool;

    /// Makes the empty sequence `to` begin with the first `length` tokens of `from`. Needs [`Limits::rewinds`].
    fn share(&mut self, from: u32, to: u32, length: u32);

    /// Guesses how sequences go on, each at most once: for each, in their order, tokens that may come behind its next one. None by default,
    /// and whenever guessing would take longer than a running answer should wait.
    ///
    /// # Errors
    /// [`EngineError::Broken`].
    fn guess(&mut self, unfinished: &[Unfinished<'_>]) -> Result<Vec<Vec<Token>>, EngineError> {
        Ok(vec![Vec::new(); unfinished.len()])
    }

    /// The KV of a whole sequence as bytes that [`Engine::restore`] of the same model understands; `None` if it cannot.
    fn save(&mut self, sequence: u32) -> Option<Vec<u8>> {
        let _ = sequence;
        None
    }

    /// Fills an empty sequence with `length` tokens of KV from [`Engine::save`]. Returns whether it could; the sequence is empty
    /// if not.
    fn restore(&mut self, sequence: u32, state: &[u8], length: u32) -> bool {
        let _ = (sequence, state, length);
        false
    }

    /// How many tokens of a sequence a picture takes: at least one, and always the same. Needs [`Limits::sees`].
    ///
    /// # Errors
    /// [`EngineError::Unfit`]: this model cannot be shown this picture.
    fn measure(&mut self, picture: &Picture) -> Result<u32, EngineError> {
        Err(EngineError::Unfit(format!("this engine cannot see {picture:?}")))
    }

    /// Reads a picture as the next tokens of a sequence that has `position` tokens. Needs [`Limits::sees`]. No sequence is cut inside of a picture
    /// afterwards, and none ends with one when logits are wanted.
    ///
    /// # Errors
    /// [`EngineError::NoRoom`] and [`EngineError::Unfit`] leave every sequence as it was.
    fn show(&mut self, picture: &Picture, sequence: u32, position: u32) -> Result<(), EngineError> {
        let _ = (sequence, position);
        Err(EngineError::Unfit(format!("this engine cannot see {picture:?}")))
    }

    /// One vector of [`Limits::embedding_width`] numbers for each input, not normalised; where [`Limits::ranks`] holds, one relevance
    /// from 0 to 1 for each. No input is empty or longer than
    /// [`Limits::embedding_context`], and all of them together are not longer either.
    ///
    /// # Errors
    /// [`EngineError::Broken`].
    fn embed(&mut self, inputs: &[&[Token]]) -> Result<Vec<Vec<f32>>, EngineError>;
}

/// Follows one answer and says which tokens may come next.
pub trait Constraint: Send {
    /// Whether this token may come next. The end token may when the text is complete.
    fn allows(&mut self, token: Token) -> bool;

    /// Removes the tokens that may not come next.
    fn filter(&mut self, candidates: &mut Vec<(Token, f32)>);

    /// Notes that this token (never an end token) came next.
    ///
    /// # Errors
    /// The token was not allowed.
    fn accept(&mut self, token: Token) -> Result<(), String>;
}

/// Text to tokens and back, for one model, from any thread.
pub trait Tokenizer: Send + Sync {
    /// Tokens of plain text. Names of control tokens in it are text. `whole` adds what the model wants around a whole text
    /// (a beginning-of-text token, or `[CLS]` and `[SEP]`).
    fn encode(&self, text: &str, whole: bool) -> Vec<Token>;

    /// The bytes of a token; they may cut a character. Control tokens have none.
    fn piece(&self, token: Token) -> Vec<u8>;

    /// Whether this token ends an answer.
    fn is_end(&self, token: Token) -> bool;

    /// Tokens of the vocabulary.
    fn vocabulary(&self) -> u32;

    /// The control tokens with their names, for templates.
    fn control_tokens(&self) -> Vec<ControlToken>;

    /// The token that must open every prompt.
    fn required_first(&self) -> Option<Token>;

    /// The model's own chat template (Jinja), if it has one.
    fn chat_template(&self) -> Option<String>;

    /// The names of the beginning-of-text and the end-of-text token; empty when there is none.
    fn edge_names(&self) -> (String, String);

    /// A query and a document as a model that ranks reads them.
    fn pair(&self, query: &str, document: &str) -> Vec<Token> {
        [self.encode(query, true), self.encode(document, false)].concat()
    }

    /// How the model is asked to fill a gap in a text, if it was trained to.
    fn infill(&self) -> Option<Infill> {
        None
    }
}

/// The control tokens that ask a model to write what belongs between two texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Infill {
    /// Stands in front of the text before the gap.
    pub before: Token,
    /// Stands in front of the text behind the gap.
    pub after: Token,
    /// Stands at the end of the prompt. Models without one (Codestral) read the text behind the gap first, and simply go on with the
    /// text before it.
    pub middle: Option<Token>,
}

impl Infill {
    /// The prompt for a gap between two texts; `first` is the token that must open every prompt.
    pub fn prompt(&self, first: Option<Token>, before: &[Token], after: &[Token]) -> Vec<Token> {
        let (before, after) = ([&[self.before], before].concat(), [&[self.after], after].concat());
        let parts = match self.middle {
            Some(middle) => [before, after, vec![middle]],
            None => [after, before, Vec::new()],
        };
        first.into_iter().chain(parts.concat()).collect()
    }
}

/// A token with a meaning of its own, such as `<|im_end|>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlToken {
    /// Its id.
    pub token: Token,
    /// How templates write it.
    pub name: String,
    /// Whether it swallows the whitespace before it.
    pub strips_left: bool,
    /// Whether it swallows the whitespace behind it.
    pub strips_right: bool,
}

/// How much of a load is done; written by the thread that loads and read by any.
#[derive(Debug, Default)]
pub(crate) struct Progress(AtomicU32);

impl Progress {
    /// Done so far, 0 to 1; `None` is not known.
    pub(crate) fn set(&self, done: Option<f32>) {
        // 0 is "not known".
        let thousandths = done.map_or(0, |done| (done.clamp(0.0, 1.0) * 1000.0) as u32 + 1);
        self.0.store(thousandths, Ordering::Relaxed);
    }

    /// As it was set, to a thousandth.
    pub(crate) fn get(&self) -> Option<f32> {
        let thousandths = self.0.load(Ordering::Relaxed);
        (thousandths > 0).then(|| (thousandths - 1) as f32 / 1000.0)
    }
}

/// What a loader needs to know.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// The model's configuration.
    pub model: Arc<tollkeeper_config::LocalModel>,
    /// Set when the model is not wanted any more: loading ends early.
    pub stop: Arc<AtomicBool>,
    /// The program that runs engines in processes of their own: `PROGRAM engine`. Without one, those that need not have a process run
    /// in threads.
    pub program: Option<Arc<Path>>,
    /// What the loads of this plan have in common.
    pub vocabulary: KeptVocabulary,
    /// The card that it is to use, in a process of its own.
    pub(crate) card: Option<Arc<Card>>,
    /// Where the loader shows how far it is, if it can tell.
    pub(crate) progress: Arc<Progress>,
}

impl LoadPlan {
    /// The plan for a model whose engine runs in a thread unless it must have a process.
    pub fn new(model: Arc<tollkeeper_config::LocalModel>) -> Self {
        let vocabulary = KeptVocabulary::default();
        Self { model, stop: Arc::default(), program: None, vocabulary, card: None, progress: Arc::default() }
    }

    /// The program whose process is to run the engine; `None` for a thread.
    fn process(&self) -> Result<Option<&Arc<Path>>, LoadError> {
        let on_gpu = cfg!(any(feature = "cuda", feature = "vulkan")) && self.model.engine == EngineKind::LlamaCpp;
        match (self.model.host, &self.program) {
            (EngineHost::Thread, _) => Ok(None),
            (EngineHost::Auto, program) => Ok(program.as_ref().filter(|_| on_gpu)),
            (EngineHost::Process, Some(program)) => Ok(Some(program)),
            (EngineHost::Process, None) => {
                Err(LoadError("this program runs engines in threads only; use `host = \"thread\"`".into()))
            }
        }
    }
}

/// What to do with a loaded engine; it ends when the engine is to be dropped.
pub type Serve<'a> = &'a mut dyn FnMut(Arc<dyn Tokenizer>, &mut dyn Engine);

/// The same, for who has no use of text.
pub(crate) type Compute<'a> = &'a mut dyn FnMut(&mut dyn Engine);

/// Loads an engine, here or in a process of its own, calls `serve` once with it, and drops it.
///
/// # Errors
/// The engine could not be loaded; `serve` was not called.
pub fn run(plan: &LoadPlan, serve: Serve<'_>) -> Result<(), LoadError> {
    if let Some(program) = plan.process()? {
        return super::process::run(program, plan, serve);
    }
    let tokenizer = tokenizer(plan)?;
    compute(plan, &mut |engine| serve(tokenizer.clone(), engine))
}

/// The tokenizer of a model, without its weights. A draft has to agree with it.
pub(crate) fn tokenizer(plan: &LoadPlan) -> Result<Arc<dyn Tokenizer>, LoadError> {
    plan.vocabulary.tokenizer(&plan.model.path, || {
        let read = loader(plan.model.engine)?.tokenizer;
        let tokenizer = read(plan)?;
        if let Speculate::Draft(path) = &plan.model.speculate {
            draft::agree(plan, path, read, &*tokenizer)?;
        }
        Ok(tokenizer)
    })
}

/// [`run`] in this process, and without a tokenizer.
pub(crate) fn compute(plan: &LoadPlan, compute: Compute<'_>) -> Result<(), LoadError> {
    let load = loader(plan.model.engine)?.compute;
    match &plan.model.speculate {
        Speculate::Draft(path) => draft::beside(plan, path, load, compute),
        Speculate::Off | Speculate::Lookup => load(plan, compute),
    }
}

/// Reads a model's vocabulary.
pub(crate) type ReadTokenizer = fn(&LoadPlan) -> Result<Arc<dyn Tokenizer>, LoadError>;
/// Loads a model, computes and drops it.
pub(crate) type Load = fn(&LoadPlan, Compute<'_>) -> Result<(), LoadError>;

/// The two halves of a model.
struct Loader {
    tokenizer: ReadTokenizer,
    compute: Load,
}

fn loader(engine: EngineKind) -> Result<Loader, LoadError> {
    use super::scripted;
    match engine {
        EngineKind::Scripted => Ok(Loader { tokenizer: scripted::tokenizer, compute: scripted::compute }),
        #[cfg(feature = "llama-cpp")]
        EngineKind::LlamaCpp => {
            use super::llama_cpp;
            Ok(Loader { tokenizer: llama_cpp::tokenizer, compute: llama_cpp::compute })
        }
        #[cfg(not(feature = "llama-cpp"))]
        EngineKind::LlamaCpp => {
            Err(LoadError("this build has no llama.cpp engine; build with `--features llama-cpp`".into()))
        }
        #[cfg(feature = "candle")]
        EngineKind::Candle => {
            use super::candle;
            Ok(Loader { tokenizer: candle::tokenizer, compute: candle::compute })
        }
        #[cfg(not(feature = "candle"))]
        EngineKind::Candle => {
            let advice = "use `engine = \"llama.cpp\"`, or build with `--features candle`";
            Err(LoadError(format!("this build has no candle engine; {advice}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn progress_is_shown_as_it_was_set() {
        let progress = Progress::default();
        assert_eq!(progress.get(), None);
        for (set, shown) in [(0.0, 0.0), (0.25, 0.25), (7.0, 1.0), (-1.0, 0.0), (f32::NAN, 0.0)] {
            progress.set(Some(set));
            assert_eq!(progress.get(), Some(shown));
        }
        progress.set(None);
        assert_eq!(progress.get(), None);
    }

    #[test]
    fn a_gap_is_asked_for_in_the_order_that_the_model_knows() {
        let infill = Infill { before: 101, after: 102, middle: Some(103) };
        assert_eq!(infill.prompt(Some(100), &[1, 2], &[3]), [100, 101, 1, 2, 102, 3, 103]);
        assert_eq!(infill.prompt(None, &[], &[3]), [101, 102, 3, 103]);
        let codestral = Infill { middle: None, ..infill };
        assert_eq!(codestral.prompt(Some(100), &[1, 2], &[3]), [100, 102, 3, 101, 1, 2]);
    }
}
