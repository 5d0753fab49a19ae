//! Greedy answers of the exported file itself, through candle, compared word for word with what was asked for.

use std::fs::File;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

use super::tokenizer::{END, Tokenizer};
use crate::data::{Dialogue, Kind, Split, is_story, sample};
use crate::rng::Rng;

/// Longest answer that is waited for, in tokens.
const LONGEST: usize = 160;

/// An error of candle or of the tokenizer.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Right and asked, of one kind.
#[derive(Clone, Debug)]
pub struct Score {
    /// The kind of task.
    pub kind: Kind,
    /// Answers that are exactly right.
    pub right: usize,
    /// Questions asked.
    pub asked: usize,
    /// Up to three wrong answers: the last question, the wanted and the given answer.
    pub wrong: Vec<(String, String, String)>,
}

/// A model loaded from the file that ships.
pub struct Loaded {
    weights: ModelWeights,
    device: Device,
}

impl Loaded {
    /// Loads `path` as any user of candle would.
    ///
    /// # Errors
    /// When candle refuses the file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut file = File::open(path)?;
        let device = Device::Cpu;
        let content = Content::read(&mut file)?;
        Ok(Self { weights: ModelWeights::from_gguf(content, &mut file, &device)?, device })
    }

    /// The most likely answer to `dialogue`.
    ///
    /// # Errors
    /// When candle or the tokenizer fails.
    pub fn answer(&mut self, tokenizer: &Tokenizer, dialogue: &Dialogue) -> Result<String, Error> {
        let (mut feed, _) = tokenizer.dialogue(dialogue, true)?;
        let (mut past, mut answer) = (0, Vec::new());
        self.weights.clear_kv_cache();
        while answer.len() < LONGEST {
            let input = Tensor::new(feed.as_slice(), &self.device)?.unsqueeze(0)?;
            let logits = self.weights.forward(&input, past)?.flatten_all()?;
            past += feed.len();
            let next = logits.argmax(0)?.to_scalar::<u32>()?;
            if next == END {
                break;
            }
            answer.push(next);
            feed = vec![next];
        }
        tokenizer.decode(&answer)
    }
}

/// Asks the model at `path` `count` held-out questions of each kind, shared out over `workers` threads.
///
/// # Errors
/// When the file does not load or does not run.
pub fn evaluate(
    path: &Path,
    tokenizer: &Tokenizer,
    count: usize,
    workers: usize,
    seed: u64,
) -> Result<Vec<Score>, Error> {
    let ask = |worker: usize| -> Result<Vec<Score>, Error> {
        let mut model = Loaded::open(path)?;
        let kinds = Kind::MIX.iter().enumerate().filter(|(i, _)| i % workers == worker);
        kinds.map(|(i, (kind, _, _))| score(&mut model, tokenizer, *kind, count, seed + i as u64)).collect()
    };
    let mut scores: Vec<Score> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|worker| scope.spawn(move || ask(worker))).collect();
        let joined = threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("an evaluation thread died".into())));
        joined.collect::<Result<Vec<_>, Error>>()
    })?
    .concat();
    scores.sort_by_key(|score| score.kind);
    Ok(scores)
}

fn score(model: &mut Loaded, tokenizer: &Tokenizer, kind: Kind, count: usize, seed: u64) -> Result<Score, Error> {
    let mut rng = Rng::new(seed);
    let mut score = Score { kind, right: 0, asked: count, wrong: Vec::new() };
    for _ in 0..count {
        let (question, wanted) = sample(kind, Split::Held, &mut rng).split_answer();
        let given = model.answer(tokenizer, &question)?;
        let right = if kind == Kind::Story { is_story(&given, &wanted) } else { given == wanted };
        score.right += usize::from(right);
        if !right && score.wrong.len() < 3 {
            let last = question.turns.last().map_or_else(String::new, |turn| format!("{turn:?}"));
            score.wrong.push((last, wanted, given));
        }
    }
    Ok(score)
}
