//! What a request asks, as a number by which it is noticed that the same is asked again and again.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::discriminant;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, Message, Part, Role};

/// Of a long text, so many bytes at either end count, and its length.
const ENDS: usize = 2048;

/// A hash of the last message, or of the calls whose results it brings: an agent in a loop makes the same calls, whatever the
/// conversation has grown to. `None` for requests that are no conversation.
pub(crate) fn signature(request: &Request) -> Option<u64> {
    let Request::Chat(chat) = request else { return None };
    let last = chat.messages.last()?;
    let mut hasher = DefaultHasher::new();
    match calling(chat) {
        Some(calling) => called(calling, &mut hasher),
        None => said(last, &mut hasher),
    }
    Some(hasher.finish())
}

/// A hash of all that is asked, and of whom: of the whole conversation; of one that brings results, of how it began and of their calls. `None` for
/// requests that are no conversation.
pub(crate) fn question(request: &Request) -> Option<u64> {
    let Request::Chat(chat) = request else { return None };
    let mut hasher = DefaultHasher::new();
    request.model().hash(&mut hasher);
    if let Some(calling) = calling(chat) {
        conversation(request).hash(&mut hasher);
        called(calling, &mut hasher);
        return Some(hasher.finish());
    }
    for message in &chat.messages {
        discriminant(&message.role).hash(&mut hasher);
        said(message, &mut hasher);
        called(message, &mut hasher);
    }
    Some(hasher.finish())
}

/// The message with the calls whose results the request brings, if it does.
fn calling(chat: &ChatRequest) -> Option<&Message> {
    chat.messages.last().filter(|last| last.role == Role::Tool)?;
    let calling = chat.messages.iter().rev().find(|message| message.role != Role::Tool);
    calling.filter(|message| !message.tool_calls.is_empty())
}

fn called(message: &Message, hasher: &mut DefaultHasher) {
    for call in &message.tool_calls {
        call.name.hash(hasher);
        ends(&call.arguments).hash(hasher);
    }
}

/// A hash of how a conversation began: its instructions and the first thing that the user said.
pub(crate) fn conversation(request: &Request) -> Option<u64> {
    let Request::Chat(chat) = request else { return None };
    let mut hasher = DefaultHasher::new();
    for message in &chat.messages {
        said(message, &mut hasher);
        if message.role == Role::User {
            break;
        }
    }
    Some(hasher.finish())
}

fn said(message: &Message, hasher: &mut DefaultHasher) {
    for part in &message.content {
        match part {
            Part::Text(text) => ends(text).hash(hasher),
            Part::Image(url) => ends(url).hash(hasher),
            Part::Other(other) => ends(&other.to_string()).hash(hasher),
        }
    }
}

fn ends(text: &str) -> (usize, &[u8], &[u8]) {
    let bytes = text.as_bytes();
    let end = bytes.len().min(ENDS);
    (bytes.len(), &bytes[..end], &bytes[bytes.len() - end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tollkeeper_protocol::{Operation, openai};

    fn of(messages: &Value) -> Option<u64> {
        let body = json!({"model": "m", "messages": messages}).to_string();
        signature(&openai::decode_request(Operation::Chat, body.as_bytes()).unwrap())
    }

    fn user(text: &str) -> Value {
        json!({"role": "user", "content": text})
    }

    fn turn(id: &str, arguments: &str, result: &str) -> [Value; 2] {
        let call = json!({"id": id, "type": "function", "function": {"name": "run", "arguments": arguments}});
        [
            json!({"role": "assistant", "content": null, "tool_calls": [call]}),
            json!({"role": "tool", "tool_call_id": id, "content": result}),
        ]
    }

    #[test]
    fn the_same_call_is_the_same_whatever_came_before_it_and_out_of_it() {
        let [call, result] = turn("1", "{\"x\":1}", "failed");
        let [again, failed] = turn("2", "{\"x\":1}", "failed at 12:01");
        let once = of(&json!([user("go"), call, result]));
        let twice = of(&json!([user("go"), call, result, again, failed]));
        assert!(once.is_some() && once == twice);
        let [other, result] = turn("3", "{\"x\":2}", "failed");
        assert_ne!(once, of(&json!([user("go"), other, result])));
    }

    #[test]
    fn another_question_is_another_signature() {
        assert_eq!(of(&json!([user("a"), user("go")])), of(&json!([user("go")])));
        assert_ne!(of(&json!([user("go")])), of(&json!([user("stop")])));
        let long = "x".repeat(10_000);
        assert_ne!(of(&json!([user(&long)])), of(&json!([user(&long[1..])])));
    }

    #[test]
    fn embeddings_have_none() {
        let body = json!({"model": "m", "input": "a"}).to_string();
        assert_eq!(signature(&openai::decode_request(Operation::Embeddings, body.as_bytes()).unwrap()), None);
    }
}
