//! The neutral stream: what an answer says piece by piece, whatever the dialect.

use crate::chat::{ChatResponse, Choice, FinishReason, ToolCall};
use crate::usage::Usage;
use std::collections::BTreeMap;

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
    /// How sure the model was of a token, in front of the token's own event. For who decides about the answer; clients never see it.
    Certainty {
        /// Which of the `n` answers.
        choice: u32,
        /// Natural logarithm of the token's probability.
        logprob: f32,
        /// Entropy in nats of the distribution that it was drawn from.
        entropy: f32,
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
    /// Natural logarithm of its probability; `None` for the first token of a prompt, which follows nothing.
    pub logprob: Option<f32>,
    /// The most likely alternatives, best first: token, bytes, log-probability.
    pub top: Vec<(String, Vec<u8>, f32)>,
}

/// Puts the pieces of a streamed answer together.
#[derive(Debug, Default)]
pub struct Folder {
    choices: BTreeMap<u32, Partial>,
    usage: Option<Usage>,
}

#[derive(Debug, Default)]
struct Partial {
    choice: Choice,
    calls: BTreeMap<u32, ToolCall>,
}

impl Folder {
    /// Takes the next event in.
    pub fn push(&mut self, event: ChatEvent) {
        match event {
            ChatEvent::Text { choice, text, logprobs, .. } => {
                let choice = &mut self.partial(choice).choice;
                choice.text.push_str(&text);
                choice.logprobs.extend(logprobs);
            }
            ChatEvent::Reasoning { choice, text, .. } => self.partial(choice).choice.reasoning.push_str(&text),
            ChatEvent::ToolCall { choice, index, id, name, arguments, .. } => {
                let new = || ToolCall { id: String::new(), name: String::new(), arguments: String::new() };
                let call = self.partial(choice).calls.entry(index).or_insert_with(new);
                call.id = id.unwrap_or_else(|| std::mem::take(&mut call.id));
                call.name = name.unwrap_or_else(|| std::mem::take(&mut call.name));
                call.arguments.push_str(&arguments);
            }
            ChatEvent::Finish { choice, reason } => self.partial(choice).choice.finish = Some(reason),
            ChatEvent::Certainty { .. } => {}
            ChatEvent::Usage(usage) => self.usage = Some(usage),
        }
    }

    /// The whole answer: the choices in the order of their index, the calls of each in the order of theirs.
    pub fn finish(self) -> ChatResponse {
        let whole = |Partial { choice, calls }| Choice { tool_calls: calls.into_values().collect(), ..choice };
        ChatResponse { choices: self.choices.into_values().map(whole).collect(), usage: self.usage }
    }

    fn partial(&mut self, choice: u32) -> &mut Partial {
        self.choices.entry(choice).or_default()
    }
}

/// Folds a stream into the whole answer.
pub fn fold(events: impl IntoIterator<Item = ChatEvent>) -> ChatResponse {
    let mut folder = Folder::default();
    events.into_iter().for_each(|event| folder.push(event));
    folder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(choice: u32, text: &str) -> ChatEvent {
        ChatEvent::Text { choice, text: text.into(), tokens: 1, logprobs: Vec::new() }
    }

    fn call(index: u32, id: Option<&str>, arguments: &str) -> ChatEvent {
        let name = id.map(|id| format!("name-{id}"));
        ChatEvent::ToolCall { choice: 0, index, id: id.map(Into::into), name, arguments: arguments.into(), tokens: 1 }
    }

    #[test]
    fn puts_interleaved_choices_and_calls_in_their_order() {
        let usage = Usage { input: 3, output: 9, ..Usage::default() };
        let answer = fold([
            text(1, "b"),
            text(0, "a"),
            call(1, Some("y"), "{"),
            call(0, Some("x"), ""),
            ChatEvent::Reasoning { choice: 1, text: "hm".into(), tokens: 1 },
            call(0, None, "{}"),
            call(1, None, "}"),
            text(1, "c"),
            ChatEvent::Finish { choice: 0, reason: FinishReason::ToolCalls },
            ChatEvent::Usage(Usage::default()),
            ChatEvent::Usage(usage),
        ]);
        let call = |id: &str, arguments: &str| ToolCall {
            id: id.into(),
            name: format!("name-{id}"),
            arguments: arguments.into(),
        };
        let first = Choice {
            text: "a".into(),
            tool_calls: vec![call("x", "{}"), call("y", "{}")],
            finish: Some(FinishReason::ToolCalls),
            ..Choice::default()
        };
        let second = Choice { text: "bc".into(), reasoning: "hm".into(), ..Choice::default() };
        assert_eq!(answer, ChatResponse { choices: vec![first, second], usage: Some(usage) });
    }
}
