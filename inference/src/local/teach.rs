//! Tools for models whose chat template knows none: they are explained in the system message, and what was called is told as text.

use super::template::{content_text, is_system, tool_json};
use serde_json::Value;
use tollkeeper_protocol::chat::{ChatRequest, Message, Part, Role};

/// Whether a conversation has anything that such a template cannot say.
pub(super) fn concerns(request: &ChatRequest, tools: bool) -> bool {
    tools || request.messages.iter().any(|message| message.role == Role::Tool || !message.tool_calls.is_empty())
}

/// The conversation with its tools, calls and results as text.
pub(super) fn tools(request: &ChatRequest, tools: bool) -> ChatRequest {
    let mut messages: Vec<Message> = Vec::new();
    for message in &request.messages {
        let told = told(message);
        match messages.last_mut() {
            // Templates want the user and the assistant to take turns.
            Some(last) if last.role == Role::User && told.role == Role::User => last.content.extend(told.content),
            _ => messages.push(told),
        }
    }
    if tools {
        let explained = explanation(request);
        match messages.first_mut() {
            Some(first) if is_system(first.role) => {
                let text = format!("{}\n\n{explained}", content_text(&first.content));
                first.content = vec![Part::Text(text)];
            }
            _ => messages.insert(0, plain(Role::System, explained)),
        }
    }
    ChatRequest { messages, ..request.clone() }
}

/// The conversation with what the system message says at the beginning of the user's first.
pub(super) fn without_system(mut request: ChatRequest) -> ChatRequest {
    if request.messages.first().is_some_and(|first| is_system(first.role)) {
        let system = request.messages.remove(0);
        match request.messages.iter_mut().find(|message| message.role == Role::User) {
            Some(user) => user.content = [system.content, std::mem::take(&mut user.content)].concat(),
            None => request.messages.insert(0, Message { role: Role::User, ..system }),
        }
    }
    request
}

fn explanation(request: &ChatRequest) -> String {
    let mut text = String::from("These tools can be called, each given as JSON:\n");
    for tool in &request.tools {
        text.push_str(&tool_json(tool).to_string());
        text.push('\n');
    }
    text.push_str("To call one, write <tool_call>{\"name\": its name, \"arguments\": its arguments}</tool_call>.");
    text
}

fn told(message: &Message) -> Message {
    if message.role == Role::Tool {
        let result = format!("<tool_response>\n{}\n</tool_response>", content_text(&message.content));
        return plain(Role::User, result);
    }
    let mut told = message.clone();
    for call in std::mem::take(&mut told.tool_calls) {
        let name = Value::from(call.name);
        told.content.push(Part::Text(format!("<tool_call>{{\"name\": {name}, \"arguments\": {}}}</tool_call>", call.arguments)));
    }
    told
}

fn plain(role: Role, text: String) -> Message {
    let content = vec![Part::Text(text)];
    Message { role, content, name: None, tool_calls: Vec::new(), tool_call_id: None, reasoning: None }
}
