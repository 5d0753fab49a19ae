//! What a chat template does not tell the model is told as text: the tools in the system message, calls and results in their turns.

use super::formats::Format;
use super::template::{content_text, is_system, tool_json};
use serde_json::json;
use std::borrow::Cow;
use tollkeeper_protocol::chat::{ChatRequest, Message, Part, Role, Tool, ToolCall};

/// The name of the tool in [`probe`].
pub(super) const PROBE_TOOL: &str = "probe_tool";
/// What a template that shows calls and results writes for [`probe`].
pub(super) const PROBE_WORDS: [&str; 2] = ["probe_value", "probe_result"];

/// A conversation with a tool, a call and its result.
pub(super) fn probe() -> ChatRequest {
    let arguments = json!({"probe_key": "probe_value"}).to_string();
    let call = ToolCall { id: "probe1234".into(), name: PROBE_TOOL.into(), arguments };
    let schema = json!({"type": "object", "properties": {"probe_key": {"type": "string", "description": "x"}}, "required": ["probe_key"]});
    let (name, description) = (PROBE_TOOL.into(), Some("x".into()));
    ChatRequest {
        messages: vec![
            plain(Role::User, "x".into()),
            Message { content: Vec::new(), tool_calls: vec![call], ..plain(Role::Assistant, String::new()) },
            Message { tool_call_id: Some("probe1234".into()), ..plain(Role::Tool, "probe_result".into()) },
        ],
        tools: vec![Tool { name, description, parameters: Some(schema), strict: None }],
        ..ChatRequest::default()
    }
}

/// The conversation with its tools, or its calls and results, as text.
pub(super) fn tell<'a>(request: &'a ChatRequest, tools: bool, calls: bool, format: &Format) -> Cow<'a, ChatRequest> {
    if !tools && !calls {
        return Cow::Borrowed(request);
    }
    let mut messages: Vec<Message> = Vec::new();
    for message in &request.messages {
        let told = if calls { told(message, format) } else { message.clone() };
        match messages.last_mut() {
            // Templates want the user and the assistant to take turns.
            Some(last) if calls && last.role == Role::User && told.role == Role::User => {
                last.content.extend(told.content)
            }
            _ => messages.push(told),
        }
    }
    if tools {
        let explained = explanation(request, format);
        match messages.first_mut() {
            Some(first) if is_system(first.role) => {
                let text = format!("{}\n\n{explained}", content_text(&first.content));
                first.content = vec![Part::Text(text)];
            }
            _ => messages.insert(0, plain(Role::System, explained)),
        }
    }
    Cow::Owned(ChatRequest { messages, ..request.clone() })
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

fn explanation(request: &ChatRequest, format: &Format) -> String {
    let mut text = String::from("These tools can be called, each given as JSON:\n");
    for tool in &request.tools {
        text.push_str(&tool_json(tool).to_string());
        text.push('\n');
    }
    text.push_str("To call one, write ");
    text.push_str(&format.write(&[("its name", "its arguments")]));
    text
}

fn told(message: &Message, format: &Format) -> Message {
    if message.role == Role::Tool {
        let result = format!("<tool_response>\n{}\n</tool_response>", content_text(&message.content));
        return plain(Role::User, result);
    }
    let mut told = message.clone();
    let calls = std::mem::take(&mut told.tool_calls);
    if !calls.is_empty() {
        let calls: Vec<(&str, &str)> = calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect();
        told.content.push(Part::Text(format.write(&calls)));
    }
    told
}

fn plain(role: Role, text: String) -> Message {
    let content = vec![Part::Text(text)];
    Message { role, content, name: None, tool_calls: Vec::new(), tool_call_id: None, reasoning: None }
}
