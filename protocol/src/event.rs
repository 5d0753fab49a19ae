//! The neutral stream: what an answer says piece by piece, whatever the dialect.

use crate::chat::{ChatResponse, FinishReason};
use crate::usage::Usage;

/// One piece of a streamed answer.
#[derive(Debug, Clone, PartialEq)]
pub enum ChatEvent {
    /// Generated text of one choice. `tokens` is how many tokens it took (exact for local engines, 0 when unknown).
    Text {
        /// Which of the `n` answers.
        choice: u32,
        /// Whole UTF-8 characters; may be empty when tokens were held back.
        text: String,
        /// Tokens newly generated with this piece.
        tokens: u32,
        /// Log-probabilities of those tokens, when asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// Reasoning text (`reasoning_content`).
    Reasoning {
        /// Which of the `n` answers.
        choice: u32,
        /// Whole UTF-8 characters.
        text: String,
        /// Tokens newly generated with this piece.
        tokens: u32,
    },
    /// A part of a tool call. The first part of an `index` carries `id` and `name`.
    ToolCall {
        /// Which of the `n` answers.
        choice: u32,
        /// Which of the calls of this answer, from 0.
        index: u32,
        /// The call's id, on its first part.
        id: Option<String>,
        /// The function's name, on its first part.
        name: Option<String>,
        /// The next piece of the JSON text of the arguments.
        arguments: String,
        /// Tokens newly generated with this piece.
        tokens: u32,
    },
    /// One choice has ended.
    Finish {
        /// Which of the `n` answers.
        choice: u32,
        /// Why it ended.
        reason: FinishReason,
    },
    /// Token counts of the whole answer; the last event of a complete stream.
    Usage(Usage),
}

/// One token's log-probability with its alternatives.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token's text; may hold the replacement character when it cuts a character.
    pub token: String,
    /// The token's exact bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most likely alternatives, best first: token, bytes, log-probability.
    pub top: Vec<(String, Vec<u8>, f32)>,
}

/// Puts the pieces of a streamed answer together.
#[derive(Debug, Default)]
pub struct Folder {
    answer: ChatResponse,
}

impl Folder {
    /// Takes the next event in.
    pub fn push(&mut self, _event: ChatEvent) {
        todo!()
    }

    /// The whole answer.
    pub fn finish(self) -> ChatResponse {
        self.answer
    }
}

/// Folds a stream into the whole answer.
pub fn fold(events: impl IntoIterator<Item = ChatEvent>) -> ChatResponse {
    let mut folder = Folder::default();
    events.into_iter().for_each(|event| folder.push(event));
    folder.finish()
}
