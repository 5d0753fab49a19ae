//! How hard a request is: the probability that a weak model fails, and what a strong one would gain.
//!
//! [`Difficulty::of`] reads a request's last question in a few microseconds, without network or clock. What it knows comes from weights
//! that ship with the program; [`Model::train`] makes them of [`Case`]s, and [`measure`] says how good they are.

mod cases;
mod features;
mod forest;
mod lexicon;
mod line;
pub mod measure;
mod model;
mod text;
mod words;

pub use cases::{Case, CasesError};
pub(crate) use line::solve;
pub use model::{Model, Reading, Settings};
pub use text::MOST_BYTES;
pub(crate) use text::boundary;

use std::sync::LazyLock;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, Part, ResponseFormat, Role};
use tollkeeper_protocol::completion::Prompt;

/// The weights that ship; `router/examples/train_difficulty.rs` makes them of `router/data/calibration.csv`.
pub const WEIGHTS: &[u8] = include_bytes!("../data/difficulty.bin");

static SHIPPED: LazyLock<Option<Model>> = LazyLock::new(|| Model::from_bytes(WEIGHTS));

/// How hard a request is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// What requests are sorted by, 0 to 1: half of 1 + what a strong model is expected to gain (its probability of being right less the weak one's).
    /// The share of requests above it is what `tollkeeper route calibrate` sets.
    pub value: f32,
    /// The probability that the weak tier fails, 0 to 1.
    pub weak_fails: f32,
}

/// The classifier that ships.
#[derive(Debug, Clone, Copy)]
pub struct Difficulty;

impl Difficulty {
    /// How hard a request is; none where nothing is generated (embeddings, reranking) and where there is no text to read.
    pub fn of(request: &Request) -> Option<Score> {
        match request {
            Request::Chat(chat) => of_chat(chat),
            // Of several prompts the hardest counts: one backend answers them all.
            Request::Completion(completion) => completion
                .prompts
                .iter()
                .filter_map(|prompt| match prompt {
                    Prompt::Text(text) => Self::of_text(text),
                    Prompt::Tokens(_) => None,
                })
                .max_by(|a, b| a.value.total_cmp(&b.value)),
            Request::Embedding(_) | Request::Rerank(_) => None,
        }
    }

    /// How hard a text is that is asked on its own, without tools or earlier turns; none when it is empty.
    pub fn of_text(text: &str) -> Option<Score> {
        if text.trim().is_empty() {
            return None;
        }
        SHIPPED.as_ref().map(|model| Score::from(model.read(text)))
    }
}

impl From<Reading> for Score {
    fn from(reading: Reading) -> Self {
        Self { value: (1.0 + reading.gain) / 2.0, weak_fails: reading.weak_fails }
    }
}

/// Whether something holds of a request.
type Holds = fn(&ChatRequest) -> bool;

/// What stands around the question. No data says what it is worth: these are small fixed steps in log-odds, so that among equal questions
/// the one that asks more of a model comes first. They never change the score of a plain question.
const AROUND: &[(Holds, f32)] = &[
    (|chat| !chat.tools.is_empty(), 0.10),
    (|chat| chat.tools.len() > 8, 0.10),
    (|chat| matches!(chat.response_format, ResponseFormat::JsonSchema(_)), 0.05),
    (|chat| chat.messages.len() > 8, 0.05),
    (|chat| chat.messages.len() > 32, 0.05),
    (|chat| chat.messages.iter().any(|message| message.role == Role::Tool), 0.05),
];

fn of_chat(chat: &ChatRequest) -> Option<Score> {
    let score = Difficulty::of_text(&question(chat)?)?;
    let step: f32 = AROUND.iter().filter(|(holds, _)| holds(chat)).map(|(_, step)| step).sum();
    Some(Score { value: moved(score.value, step), weak_fails: moved(score.weak_fails, step) })
}

/// What the user said last; when no user speaks, the last text of all.
pub(crate) fn question(chat: &ChatRequest) -> Option<String> {
    let text = |parts: &[Part]| {
        let texts = parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Image(_) | Part::Other(_) => None,
        });
        texts.collect::<Vec<_>>().join("\n")
    };
    let said = |only_user: bool| {
        let messages = chat.messages.iter().rev().filter(move |message| !only_user || message.role == Role::User);
        messages.map(|message| text(&message.content)).find(|text| !text.trim().is_empty())
    };
    said(true).or_else(|| said(false))
}

fn moved(share: f32, step: f32) -> f32 {
    if step == 0.0 || share <= 0.0 || share >= 1.0 {
        return share;
    }
    1.0 / (1.0 + (-((share / (1.0 - share)).ln() + step)).exp())
}
