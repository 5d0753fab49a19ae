//! Encodes streamed answers as chunks in server-sent events.

use super::fault::ErrorBody;
use super::response::{AnswerMeta, Extension};
use super::wire::{CallBody, ChatLogprobs, FunctionBody, TextLogprobs, UsageBody, finish_reason, to_json, write_json};
use crate::Operation;
use crate::chat::FinishReason;
use crate::event::{ChatEvent, TokenLogprob};
use crate::sse::write_data;
use crate::usage::Usage;
use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use std::collections::BTreeMap;

/// Writes neutral events as SSE frames: `chat.completion.chunk`s, or `text_completion`s.
///
/// A client that asked for usage gets `"usage":null` in every chunk and a last chunk without choices that carries it.
#[derive(Debug)]
pub struct StreamEncoder {
    /// `data: {"id":…,"choices":[`, the same for every chunk.
    head: Bytes,
    /// What closes a chunk after its choices.
    tail: &'static str,
    is_text: bool,
    include_usage: bool,
    usage: Option<Usage>,
    choices: BTreeMap<u32, ChoiceState>,
}

#[derive(Debug, Default)]
struct ChoiceState {
    role_sent: bool,
    /// Characters of the tokens written so far; for the `text_offset` of a text completion.
    offset: usize,
}

#[derive(Serialize)]
struct ChatChunk<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    #[serde(serialize_with = "finish_reason")]
    finish_reason: Option<FinishReason>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// `Some(None)` is written as null.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallBody<'a>; 1]>,
}

#[derive(Serialize)]
struct TextChunk<'a> {
    text: &'a str,
    index: u32,
    logprobs: Option<TextLogprobs<'a>>,
    #[serde(serialize_with = "finish_reason")]
    finish_reason: Option<FinishReason>,
}

impl StreamEncoder {
    /// An encoder of one answer to a chat or a text completion.
    pub fn new(op: Operation, meta: AnswerMeta, include_usage: bool) -> Self {
        let is_text = op == Operation::TextCompletion;
        let object = if is_text { "text_completion" } else { "chat.completion.chunk" };
        let head = to_json(&meta.head(object));
        let mut out = BytesMut::from("data: ");
        out.extend_from_slice(&head[..head.len() - 1]); // the brace stays open for the choices
        out.extend_from_slice(b",\"choices\":[");
        let tail = if include_usage { "],\"usage\":null}\n\n" } else { "]}\n\n" };
        Self { head: out.freeze(), tail, is_text, include_usage, usage: None, choices: BTreeMap::new() }
    }

    /// Appends the frames of this event; each choice begins with a frame that names the role. Usage is kept for
    /// [`Self::finish`], and a piece without any text writes nothing.
    pub fn encode(&mut self, event: &ChatEvent, out: &mut BytesMut) {
        match event {
            ChatEvent::Text { text, logprobs, .. } if text.is_empty() && logprobs.is_empty() => {}
            ChatEvent::Reasoning { text, .. } if text.is_empty() => {}
            ChatEvent::Certainty { .. } => {}
            ChatEvent::Usage(usage) => self.usage = Some(*usage),
            ChatEvent::Text { choice, text, logprobs, .. } if self.is_text => {
                self.text_chunk(*choice, text, logprobs, None, out);
            }
            // Text completions have no place of their own for reasoning and calls; their text is not lost.
            ChatEvent::Reasoning { choice, text, .. } | ChatEvent::ToolCall { choice, arguments: text, .. }
                if self.is_text =>
            {
                self.text_chunk(*choice, text, &[], None, out);
            }
            ChatEvent::Finish { choice, reason } if self.is_text => {
                self.text_chunk(*choice, "", &[], Some(*reason), out);
            }
            ChatEvent::Text { choice, text, logprobs, .. } => {
                let delta = Delta { content: Some(Some(text)), ..Delta::default() };
                self.chat_chunk(*choice, delta, logprobs, None, out);
            }
            ChatEvent::Reasoning { choice, text, .. } => {
                let delta = Delta { reasoning_content: Some(text), ..Delta::default() };
                self.chat_chunk(*choice, delta, &[], None, out);
            }
            ChatEvent::ToolCall { choice, index, id, name, arguments, .. } => {
                let call = CallBody {
                    index: Some(*index),
                    id: id.as_deref(),
                    kind: id.is_some().then_some("function"),
                    function: FunctionBody { name: name.as_deref(), arguments },
                };
                let delta = Delta { tool_calls: Some([call]), ..Delta::default() };
                self.chat_chunk(*choice, delta, &[], None, out);
            }
            ChatEvent::Finish { choice, reason } => {
                self.chat_chunk(*choice, Delta::default(), &[], Some(*reason), out);
            }
        }
    }

    /// Appends the frame that ends a choice which the gateway cut short, and says why.
    pub fn stop(&mut self, choice: u32, extension: &Extension, out: &mut BytesMut) {
        let before = out.len();
        self.encode(&ChatEvent::Finish { choice, reason: FinishReason::Length }, out);
        // The frame is an object whose brace is closed before the two line ends.
        if out.len() > before && out.ends_with(b"}\n\n") {
            out.truncate(out.len() - 3);
            out.extend_from_slice(b",\"tollkeeper\":");
            write_json(extension, out);
            out.extend_from_slice(b"}\n\n");
        }
    }

    /// Appends the usage chunk (when the client asked for it and the usage is known) and `[DONE]`.
    pub fn finish(&mut self, extension: Option<&Extension>, out: &mut BytesMut) {
        if let Some(usage) = self.usage.as_ref().filter(|_| self.include_usage) {
            out.extend_from_slice(&self.head);
            out.extend_from_slice(b"],\"usage\":");
            write_json(&UsageBody::new(usage, extension), out);
            if let Some(extension) = extension {
                out.extend_from_slice(b",\"tollkeeper\":");
                write_json(extension, out);
            }
            out.extend_from_slice(b"}\n\n");
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// Appends an error frame. The stream ends with it: no `[DONE]` may follow, so that no client takes the answer for whole.
    pub fn error(&mut self, body: &ErrorBody, out: &mut BytesMut) {
        write_data(&body.to_json(), out);
    }

    fn chat_chunk(
        &mut self,
        choice: u32,
        delta: Delta<'_>,
        logprobs: &[TokenLogprob],
        finish: Option<FinishReason>,
        out: &mut BytesMut,
    ) {
        let state = self.choices.entry(choice).or_default();
        if !std::mem::replace(&mut state.role_sent, true) {
            // Null content says that this answer is nothing but calls (so far).
            let content = delta.tool_calls.is_none().then_some("");
            let role = Delta { role: Some("assistant"), content: Some(content), ..Delta::default() };
            self.frame(&ChatChunk { index: choice, delta: role, logprobs: None, finish_reason: None }, out);
        }
        let logprobs = ChatLogprobs::new(logprobs);
        self.frame(&ChatChunk { index: choice, delta, logprobs, finish_reason: finish }, out);
    }

    fn text_chunk(
        &mut self,
        choice: u32,
        text: &str,
        logprobs: &[TokenLogprob],
        finish: Option<FinishReason>,
        out: &mut BytesMut,
    ) {
        let state = self.choices.entry(choice).or_default();
        let logprobs = TextLogprobs::new(logprobs, &mut state.offset);
        self.frame(&TextChunk { text, index: choice, logprobs, finish_reason: finish }, out);
    }

    fn frame(&self, choice: &impl Serialize, out: &mut BytesMut) {
        out.extend_from_slice(&self.head);
        write_json(choice, out);
        out.put_slice(self.tail.as_bytes());
    }
}
