//! Decodes answers, whole and streamed, into neutral events.
//!
//! Tool calls are told apart whatever the provider makes of `index`: some leave it out, send -1, or give all calls of a turn
//! the same one; some leave the id out, or repeat id and name in each part; Gemini ends a turn of calls with `stop`.

use super::fault::decode_error;
use crate::chat::{ChatResponse, FinishReason};
use crate::event::{ChatEvent, Folder, TokenLogprob};
use crate::fault::{FaultKind, ProviderFault};
use crate::passthrough::read_answer;
use serde_json::Value;
use std::collections::BTreeMap;

/// Most choices and calls that are kept apart; no provider gives as many.
const MAX_INDEX: usize = 4096;

/// Decodes the chunks of one stream.
#[derive(Debug, Default)]
pub struct StreamDecoder {
    calls: BTreeMap<u32, Calls>,
}

/// The tool calls of one choice so far.
#[derive(Debug, Default)]
struct Calls {
    /// The ids, by our own index.
    ids: Vec<String>,
    /// Our index of the latest call, by the provider's index.
    by_wire: BTreeMap<u64, usize>,
}

impl StreamDecoder {
    /// Appends the events of a chunk's data (`chat.completion.chunk`, `text_completion`; a whole answer is understood too).
    ///
    /// # Errors
    /// The data is an error object, or no JSON object.
    pub fn decode(&mut self, data: &[u8], events: &mut Vec<ChatEvent>) -> Result<(), ProviderFault> {
        let malformed = |message: String| ProviderFault::new(FaultKind::Malformed, message);
        let peeked = read_answer(data).map_err(|error| malformed(error.message))?;
        if peeked.is_error() {
            return Err(decode_error(200, None, data));
        }
        let mut chunk: Value = serde_json::from_slice(data)
            .map_err(|error| malformed(format!("the provider sent broken JSON: {error}")))?;
        if let Value::Array(choices) = take(&mut chunk, "choices") {
            for (place, choice) in choices.into_iter().enumerate() {
                self.choice(place, choice, events);
            }
        }
        events.extend(peeked.usage().map(ChatEvent::Usage));
        Ok(())
    }

    fn choice(&mut self, place: usize, mut value: Value, events: &mut Vec<ChatEvent>) {
        let index = value["index"].as_u64().unwrap_or(place as u64);
        let choice = u32::try_from(index.min(MAX_INDEX as u64)).unwrap_or(0);
        let logprobs = logprobs(&value["logprobs"]);
        let mut said = match take(&mut value, "delta") {
            Value::Null => take(&mut value, "message"),
            delta => delta,
        };
        let thinking = thinking(&said["content"]);
        let reasoning = [take(&mut said, "reasoning_content"), take(&mut said, "reasoning")].map(text);
        let reasoning = reasoning.into_iter().find(|text| !text.is_empty()).unwrap_or(thinking);
        if !reasoning.is_empty() {
            events.push(ChatEvent::Reasoning { choice, text: reasoning, tokens: 0 });
        }
        let content = [take(&mut said, "content"), take(&mut said, "refusal"), take(&mut value, "text")];
        let content: String = content.into_iter().map(text).collect();
        if !content.is_empty() || !logprobs.is_empty() {
            events.push(ChatEvent::Text { choice, text: content, tokens: 0, logprobs });
        }
        let calls = self.calls.entry(choice).or_default();
        if let Value::Array(parts) = take(&mut said, "tool_calls") {
            events.extend(parts.into_iter().filter_map(|part| calls.part(choice, part)));
        }
        let finish = value["finish_reason"].as_str().filter(|reason| !reason.is_empty()).map(FinishReason::from_name);
        events.extend(finish.map(|reason| match reason {
            FinishReason::Stop if !calls.ids.is_empty() => {
                ChatEvent::Finish { choice, reason: FinishReason::ToolCalls }
            }
            reason => ChatEvent::Finish { choice, reason },
        }));
    }
}

impl Calls {
    fn part(&mut self, choice: u32, mut part: Value) -> Option<ChatEvent> {
        let wire = part["index"].as_u64();
        let id = text(take(&mut part, "id"));
        let mut function = take(&mut part, "function");
        let name = text(take(&mut function, "name"));
        let arguments = match take(&mut function, "arguments") {
            arguments @ Value::Object(_) => arguments.to_string(),
            arguments => text(arguments),
        };
        let known = match wire {
            Some(wire) => self.by_wire.get(&wire).copied(),
            None => self.ids.len().checked_sub(1),
        };
        let known = match known {
            _ if id.is_empty() => known.filter(|_| wire.is_some() || name.is_empty()),
            Some(call) if self.ids[call] == id => known,
            _ => self.ids.iter().position(|known| *known == id),
        };
        let is_new = known.is_none();
        let call = known.unwrap_or(self.ids.len());
        let says_nothing = id.is_empty() && name.is_empty() && arguments.is_empty();
        if call > MAX_INDEX || (says_nothing && is_new) {
            return None;
        }
        if let Some(wire) = wire {
            self.by_wire.insert(wire, call);
        }
        let index = u32::try_from(call).ok()?;
        if !is_new {
            return Some(ChatEvent::ToolCall { choice, index, id: None, name: None, arguments, tokens: 0 });
        }
        let id = if id.is_empty() { format!("call_{choice}_{call}") } else { id };
        self.ids.push(id.clone());
        Some(ChatEvent::ToolCall { choice, index, id: Some(id), name: Some(name), arguments, tokens: 0 })
    }
}

/// Decodes a whole chat or text completion.
///
/// # Errors
/// The body is an error object, or no JSON object.
pub fn decode_answer(body: &[u8]) -> Result<ChatResponse, ProviderFault> {
    let mut events = Vec::new();
    StreamDecoder::default().decode(body, &mut events)?;
    let mut folder = Folder::default();
    events.into_iter().for_each(|event| folder.push(event));
    Ok(folder.finish())
}

/// Takes a field's value; null where there is none.
fn take(value: &mut Value, name: &str) -> Value {
    value.get_mut(name).map(Value::take).unwrap_or_default()
}

/// A text, or the texts of a list of parts.
fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Array(parts) => parts.into_iter().map(|mut part| text(take(&mut part, "text"))).collect(),
        _ => String::new(),
    }
}

/// The thinking in a list of parts: Mistral puts it there.
fn thinking(content: &Value) -> String {
    let parts = content.as_array().into_iter().flatten();
    parts.map(|part| text(part["thinking"].clone())).collect()
}

/// Log-probabilities in the form of chats or of text completions.
fn logprobs(value: &Value) -> Vec<TokenLogprob> {
    if let Some(content) = value["content"].as_array() {
        return content.iter().map(chat_logprob).collect();
    }
    let list = |name: &str| value[name].as_array().map_or(&[][..], Vec::as_slice);
    let tokens = list("tokens").iter().zip(list("token_logprobs")).enumerate();
    let tops = list("top_logprobs");
    let logprob = |(place, (token, logprob)): (usize, (&Value, &Value))| {
        let token = token.as_str().unwrap_or_default().to_owned();
        let top = tops.get(place).and_then(Value::as_object).into_iter().flatten();
        let top = top.map(|(token, logprob)| (token.clone(), token.clone().into_bytes(), as_f32(logprob)));
        let logprob = logprob.as_f64().map(|logprob| logprob as f32);
        TokenLogprob { bytes: token.clone().into_bytes(), token, logprob, top: top.collect() }
    };
    tokens.map(logprob).collect()
}

fn chat_logprob(value: &Value) -> TokenLogprob {
    let one = |value: &Value| {
        let token = value["token"].as_str().unwrap_or_default().to_owned();
        let bytes = match value["bytes"].as_array() {
            Some(bytes) => bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect(),
            None => token.clone().into_bytes(),
        };
        (token, bytes, as_f32(&value["logprob"]))
    };
    let (token, bytes, logprob) = one(value);
    let top = value["top_logprobs"].as_array().map_or(&[][..], Vec::as_slice).iter().map(one).collect();
    TokenLogprob { token, bytes, logprob: Some(logprob), top }
}

fn as_f32(value: &Value) -> f32 {
    value.as_f64().unwrap_or(0.0) as f32
}
