//! What can be told cheaply of a whole answer: whether it is the JSON that was asked for, and whether its calls can be carried out.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::borrow::Cow;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, ResponseFormat};

/// Longer answers are not looked at, in bytes.
const LONGEST: usize = 1 << 20;

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

/// Whether an answer in OpenAI's form has the form that was asked for: its text is JSON (which schema is not looked at), its calls name tools that
/// there are, with JSON objects for arguments. `None` where no form was asked for, or where nobody can be blamed: the answer was cut at its limit or
/// by a filter, or declined in words.
pub(super) fn passes(request: &Request, body: &[u8]) -> Option<bool> {
    let Request::Chat(chat) = request else { return None };
    let wants_json = chat.response_format != ResponseFormat::Text;
    if (!wants_json && chat.tools.is_empty()) || body.len() > LONGEST {
        return None;
    }
    let answer: Answer<'_> = serde_json::from_slice(body).ok()?;
    let verdicts = answer.choices.iter().filter_map(|choice| verdict(chat, wants_json, choice));
    verdicts.reduce(|one, other| one && other)
}

fn verdict(chat: &ChatRequest, wants_json: bool, choice: &Choice<'_>) -> Option<bool> {
    if !matches!(choice.finish_reason.as_deref(), Some("stop" | "tool_calls")) {
        return None;
    }
    let calls = choice.message.tool_calls.as_deref().unwrap_or_default();
    if !calls.is_empty() {
        let functions = calls.iter().filter_map(|call| call.function.as_ref());
        return functions.map(|function| is_sound(chat, function)).reduce(|one, other| one && other);
    }
    let content = choice.message.content.as_deref().filter(|_| wants_json)?;
    Some(serde_json::from_str::<IgnoredAny>(content).is_ok())
}

fn is_sound(chat: &ChatRequest, function: &Function<'_>) -> bool {
    let arguments = function.arguments.as_deref().map_or("{}", str::trim);
    let is_object =
        arguments.is_empty() || (arguments.starts_with('{') && serde_json::from_str::<&RawValue>(arguments).is_ok());
    is_object && chat.tools.iter().any(|tool| tool.name == *function.name)
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
        assert_eq!(passes(wanted(), &said("{\"a\": "), "length"), None);
        assert_eq!(passes(wanted(), &said("no"), "content_filter"), None);
        assert_eq!(passes(wanted(), &json!({"role": "assistant", "content": null, "refusal": "no"}), "stop"), None);
        assert_eq!(passes(json!({}), &said("Sure!"), "stop"), None, "nothing was asked for");
    }

    #[test]
    fn calls_name_tools_that_there_are_with_objects_for_arguments() {
        let tools = || json!({"tools": [{"type": "function", "function": {"name": "read", "parameters": {}}}]});
        let call = |name: &str, arguments: &str| {
            let call = json!({"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}});
            json!({"role": "assistant", "content": null, "tool_calls": [call]})
        };
        assert_eq!(passes(tools(), &call("read", "{\"path\": \"a\"}"), "tool_calls"), Some(true));
        assert_eq!(passes(tools(), &call("read", ""), "tool_calls"), Some(true));
        assert_eq!(passes(tools(), &call("read", "{\"path\": "), "tool_calls"), Some(false));
        assert_eq!(passes(tools(), &call("read", "[1]"), "stop"), Some(false));
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
