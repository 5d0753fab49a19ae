//! What can be told of an answer at its end: whether it is the JSON that was asked for, and whether its calls can be carried out.

use crate::app::App;
use crate::cascade::{call_fits, has_form};
use serde::Deserialize;
use std::borrow::Cow;
use std::sync::Arc;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, FinishReason, ResponseFormat};
use tollkeeper_protocol::event::{ChatEvent, Folder};

/// Longer answers are not looked at, in bytes.
const LONGEST: usize = 256 << 10;

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Message<'a>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<Call<'a>>>,
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow, default)]
    function: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    arguments: Option<Cow<'a, str>>,
}

/// Whether an answer in OpenAI's form has the form that was asked for: its text is JSON by the schema, its calls name tools that there are, with
/// arguments by theirs. `None` where no form was asked for, or where nobody can be blamed: the answer was cut at its limit or by a filter, or
/// declined in words.
pub(super) fn passes(request: &Request, body: &[u8]) -> Option<bool> {
    let chat = with_form(request).filter(|_| body.len() <= LONGEST)?;
    let answer: Answer<'_> = serde_json::from_slice(body).ok()?;
    let verdicts = answer.choices.iter().filter_map(|choice| {
        let finish = choice.finish_reason.as_deref().filter(|finish| ["stop", "tool_calls"].contains(finish));
        let calls = choice.message.tool_calls.as_deref().unwrap_or_default();
        let functions = calls.iter().filter_map(|call| call.function.as_ref());
        let calls = functions.map(|call| (&*call.name, call.arguments.as_deref().unwrap_or_default()));
        finish.and_then(|_| verdict(chat, choice.message.content.as_deref(), calls))
    });
    verdicts.reduce(|one, other| one && other)
}

/// A request that asks for a form.
fn with_form(request: &Request) -> Option<&ChatRequest> {
    let Request::Chat(chat) = request else { return None };
    (chat.response_format != ResponseFormat::Text || !chat.tools.is_empty()).then_some(chat)
}

fn verdict<'a>(
    chat: &ChatRequest,
    content: Option<&str>,
    calls: impl Iterator<Item = (&'a str, &'a str)>,
) -> Option<bool> {
    let called = calls.map(|(name, arguments)| call_fits(chat, name, arguments)).reduce(|one, other| one && other);
    called.or_else(|| {
        let content = content.filter(|_| chat.response_format != ResponseFormat::Text)?;
        Some(has_form(&chat.response_format, content))
    })
}

/// Gathers a local answer that is streamed, and tells at its end whether it has the form that was asked for.
pub(crate) struct Streamed {
    app: Arc<App>,
    id: Arc<str>,
    request: Arc<Request>,
    folder: Folder,
    bytes: usize,
}

impl Streamed {
    /// `None` where nothing is learned, or no form was asked for.
    pub(crate) fn of(app: &Arc<App>, id: &Arc<str>, request: &Arc<Request>) -> Option<Self> {
        app.config.load().learning.as_ref()?;
        with_form(request)?;
        let (app, id, request) = (app.clone(), id.clone(), request.clone());
        Some(Self { app, id, request, folder: Folder::default(), bytes: 0 })
    }

    /// A piece of it, on its way to the client.
    pub(crate) fn push(&mut self, event: &ChatEvent) {
        let event = match event {
            ChatEvent::Text { choice, text, .. } => {
                self.bytes += text.len();
                ChatEvent::Text { choice: *choice, text: text.clone(), tokens: 0, logprobs: Vec::new() }
            }
            ChatEvent::ToolCall { arguments, .. } => {
                self.bytes += arguments.len();
                event.clone()
            }
            ChatEvent::Finish { .. } => event.clone(),
            ChatEvent::Reasoning { .. } | ChatEvent::Certainty { .. } | ChatEvent::Usage(_) => return,
        };
        if self.bytes <= LONGEST {
            self.folder.push(event);
        }
    }

    /// All of it has come.
    pub(crate) fn end(self) {
        let Self { app, id, request, folder, bytes } = self;
        let Some(chat) = with_form(&request).filter(|_| bytes <= LONGEST) else { return };
        let choices = folder.finish().choices;
        let verdicts = choices.iter().filter_map(|choice| {
            let calls = choice.tool_calls.iter().map(|call| (&*call.name, &*call.arguments));
            let is_whole = matches!(choice.finish, Some(FinishReason::Stop | FinishReason::ToolCalls));
            is_whole.then(|| verdict(chat, Some(&choice.text), calls)).flatten()
        });
        if let Some(passed) = verdicts.reduce(|one, other| one && other) {
            app.checked(&id, passed);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tollkeeper_protocol::{Operation, openai};

    fn passes(more: Value, message: &Value, finish: &str) -> Option<bool> {
        let mut ask = json!({"model": "m", "messages": [{"role": "user", "content": "go"}]});
        for (key, value) in more.as_object().into_iter().flatten() {
            ask[key] = value.clone();
        }
        let request = openai::decode_request(Operation::Chat, ask.to_string().as_bytes()).unwrap();
        let answer = json!({"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": finish}]});
        super::passes(&request, answer.to_string().as_bytes())
    }

    #[test]
    fn json_is_json_or_fails_unless_it_was_cut() {
        let wanted = || json!({"response_format": {"type": "json_object"}});
        let said = |content: &str| json!({"role": "assistant", "content": content});
        assert_eq!(passes(wanted(), &said("{\"a\": [1, \"zwölf\\n\"]}"), "stop"), Some(true));
        assert_eq!(passes(wanted(), &said("Sure! {\"a\": 1}"), "stop"), Some(false));
        assert_eq!(passes(wanted(), &said(""), "stop"), Some(false));
        assert_eq!(passes(wanted(), &said("[1]"), "stop"), Some(false), "an object was asked for");
        assert_eq!(passes(wanted(), &said("{\"a\": "), "length"), None);
        assert_eq!(passes(wanted(), &said("no"), "content_filter"), None);
        assert_eq!(passes(wanted(), &json!({"role": "assistant", "content": null, "refusal": "no"}), "stop"), None);
        assert_eq!(passes(json!({}), &said("Sure!"), "stop"), None, "nothing was asked for");
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
        let form =
            || json!({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}});
        assert_eq!(passes(form(), &said("{\"n\": 1}"), "stop"), Some(true));
        assert_eq!(passes(form(), &said("{\"n\": \"x\"}"), "stop"), Some(false));
    }

    #[test]
    fn calls_name_tools_that_there_are_with_objects_for_arguments() {
        let tools = || {
            json!({"tools": [{"type": "function", "function": {"name": "read", "parameters": {
                "type": "object", "properties": {"path": {"type": "string"}}
            }}}]})
        };
        let call = |name: &str, arguments: &str| {
            let call = json!({"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}});
            json!({"role": "assistant", "content": null, "tool_calls": [call]})
        };
        assert_eq!(passes(tools(), &call("read", "{\"path\": \"a\"}"), "tool_calls"), Some(true));
        assert_eq!(passes(tools(), &call("read", ""), "tool_calls"), Some(true));
        assert_eq!(passes(tools(), &call("read", "{\"path\": "), "tool_calls"), Some(false));
        assert_eq!(passes(tools(), &call("read", "[1]"), "stop"), Some(false));
        assert_eq!(passes(tools(), &call("read", "{\"path\": 1}"), "tool_calls"), Some(false));
        assert_eq!(passes(tools(), &call("write", "{}"), "tool_calls"), Some(false));
        assert_eq!(passes(tools(), &json!({"role": "assistant", "content": "Done."}), "stop"), None);
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        let ask = json!({"model": "m", "messages": [{"role": "user", "content": "go"}], "response_format": {"type": "json_object"}});
        let request = openai::decode_request(Operation::Chat, ask.to_string().as_bytes()).unwrap();
        for body in ["", "{}", "{\"choices\": 1}", "{\"choices\": []}"] {
            assert_eq!(super::passes(&request, body.as_bytes()), None, "{body}");
        }
    }
}
