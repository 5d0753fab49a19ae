//! What is wrong with an answer as anybody can see, without knowing a better one.

use serde_json::Value;
use tollkeeper_config::Flaw;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, Choice, FinishReason, ResponseFormat, ToolChoice};

/// How refusals and admissions of ignorance begin, in small letters and with plain apostrophes.
const REFUSALS: [&str; 28] = [
    "as an ai",
    "i am not able to",
    "i am sorry, but",
    "i am unable",
    "i apologize, but",
    "i can not",
    "i can't",
    "i cannot",
    "i do not have enough",
    "i do not have the ability",
    "i do not know",
    "i don't have enough",
    "i don't have the ability",
    "i don't know",
    "i'm afraid i",
    "i'm not able to",
    "i'm not sure",
    "i'm sorry, but",
    "i'm sorry, i",
    "i'm unable",
    "i won't be able",
    "sorry, but i",
    "sorry, i",
    "unfortunately, i am",
    "unfortunately, i can",
    "unfortunately, i do",
    "unfortunately, i'm",
    "i must decline",
];

/// Refusals begin early.
const BEGINNING: usize = 160;

/// The first flaw of an answer; of one that has not `ended`, only how it begins can be judged.
pub(super) fn flaw(request: &Request, answer: &Choice, ended: bool) -> Option<Flaw> {
    // One that was cut at a limit of the client's would be cut elsewhere too.
    let cut = answer.finish == Some(FinishReason::Length) && is_limited(request);
    let whole = ended && !cut;
    if whole && answer.text.trim().is_empty() && answer.tool_calls.is_empty() {
        return Some(Flaw::Empty);
    }
    if let (Request::Chat(chat), true) = (request, whole) {
        if !calls_fit(chat, answer) {
            return Some(Flaw::Calls);
        }
        // An answer that only calls has no form.
        if answer.tool_calls.is_empty() && !has_form(&chat.response_format, &answer.text) {
            return Some(Flaw::Form);
        }
    }
    refuses(&answer.text).then_some(Flaw::Refusal)
}

fn is_limited(request: &Request) -> bool {
    match request {
        Request::Chat(chat) => chat.max_tokens.is_some(),
        Request::Completion(completion) => completion.max_tokens.is_some(),
        Request::Embedding(_) | Request::Rerank(_) => false,
    }
}

/// Whether all calls can be carried out, and there is one where there must be.
fn calls_fit(chat: &ChatRequest, answer: &Choice) -> bool {
    let wanted = match &chat.tool_choice {
        ToolChoice::Required => !answer.tool_calls.is_empty(),
        ToolChoice::Named(name) => answer.tool_calls.iter().any(|call| call.name == *name),
        ToolChoice::Auto | ToolChoice::None => true,
    };
    // A call that nobody could read as one stays in the text.
    let unread = !chat.tools.is_empty() && answer.tool_calls.is_empty() && answer.text.contains("<tool_call>");
    wanted && !unread && answer.tool_calls.iter().all(|call| call_fits(chat, &call.name, &call.arguments))
}

/// Whether there is such a tool, and it takes such arguments.
pub(crate) fn call_fits(chat: &ChatRequest, name: &str, arguments: &str) -> bool {
    let Some(tool) = chat.tools.iter().find(|tool| tool.name == name) else { return false };
    // No arguments at all are none.
    let arguments = if arguments.trim().is_empty() { "{}" } else { arguments };
    let Ok(arguments @ Value::Object(_)) = serde_json::from_str::<Value>(arguments) else { return false };
    tool.parameters.as_ref().is_none_or(|schema| follows(schema, &arguments))
}

/// Whether a text has the form that was asked for.
pub(crate) fn has_form(form: &ResponseFormat, text: &str) -> bool {
    let parsed = || serde_json::from_str::<Value>(text);
    match form {
        ResponseFormat::Text => true,
        ResponseFormat::JsonObject => parsed().is_ok_and(|value| value.is_object()),
        ResponseFormat::JsonSchema(format) => {
            parsed().is_ok_and(|value| format.get("schema").is_none_or(|schema| follows(schema, &value)))
        }
    }
}

/// Whether a value follows a schema; of a schema that is none, nothing can be said.
fn follows(schema: &Value, value: &Value) -> bool {
    jsonschema::validator_for(schema).map_or(true, |schema| schema.is_valid(value))
}

fn refuses(text: &str) -> bool {
    let beginning: String = text.trim_start().chars().take(BEGINNING).collect::<String>().to_lowercase();
    let beginning = beginning.replace('\u{2019}', "'");
    // What comes before it, such as "Hmm, " or "Well, ", is short.
    let mut sentences = beginning.split_inclusive(['.', '!', '\n']).take(2);
    sentences.any(|sentence| REFUSALS.iter().any(|refusal| sentence.trim_start().starts_with(refusal)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tollkeeper_protocol::Operation;
    use tollkeeper_protocol::chat::ToolCall;
    use tollkeeper_protocol::openai::decode_request;

    fn asked(rest: Value) -> Request {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
        body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        decode_request(Operation::Chat, body.to_string().as_bytes()).unwrap()
    }

    fn said(text: &str) -> Choice {
        Choice { text: text.into(), finish: Some(FinishReason::Stop), ..Choice::default() }
    }

    fn called(name: &str, arguments: &str) -> Choice {
        let call = ToolCall { id: "c".into(), name: name.into(), arguments: arguments.into() };
        Choice { tool_calls: vec![call], finish: Some(FinishReason::ToolCalls), ..Choice::default() }
    }

    #[test]
    fn answers_are_judged_by_what_was_asked() {
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
        let form = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}});
        let object = json!({"response_format": {"type": "json_object"}});
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": schema}});
        let tools = json!({"tools": [tool]});
        let must = json!({"tools": [tool], "tool_choice": "required"});
        let cut = |text: &str| Choice { finish: Some(FinishReason::Length), ..said(text) };
        let cut_call = || Choice { finish: Some(FinishReason::Length), ..called("f", "{\"n\"") };
        let short_tools = json!({"tools": [tool], "tool_choice": "required", "max_tokens": 3});
        let limited = json!({"response_format": {"type": "json_object"}, "max_tokens": 3});
        let table = [
            (json!({}), said("Paris."), None),
            (json!({}), said(" \n"), Some(Flaw::Empty)),
            (json!({}), said("I\u{2019}m sorry, but I can\u{2019}t help with that."), Some(Flaw::Refusal)),
            (json!({}), said("Hmm. I do not know that."), Some(Flaw::Refusal)),
            (json!({}), said("They say: I cannot. But that is a quotation, and no refusal."), None),
            (form.clone(), said("{\"n\": 1}"), None),
            (form.clone(), said("{\"n\": \"1\"}"), Some(Flaw::Form)),
            (form.clone(), cut("{\"n\": "), Some(Flaw::Form)),
            (form, said("n is 1"), Some(Flaw::Form)),
            (object.clone(), said("[1]"), Some(Flaw::Form)),
            (object, said("{}"), None),
            (limited.clone(), cut("{\"n\""), None),
            (limited, cut(" "), None),
            (tools.clone(), called("f", "{\"n\": 1}"), None),
            (tools.clone(), called("f", "{\"n\": \"x\"}"), Some(Flaw::Calls)),
            (tools.clone(), called("f", "{\"n\": 1"), Some(Flaw::Calls)),
            (tools.clone(), called("g", "{\"n\": 1}"), Some(Flaw::Calls)),
            (tools.clone(), called("f", "[1]"), Some(Flaw::Calls)),
            (tools.clone(), cut_call(), Some(Flaw::Calls)),
            (short_tools, cut_call(), None),
            (tools.clone(), said("<tool_call>{\"name\": f}"), Some(Flaw::Calls)),
            (tools, said("No tool is needed."), None),
            (must, said("No tool is needed."), Some(Flaw::Calls)),
        ];
        for (rest, answer, expected) in table {
            assert_eq!(flaw(&asked(rest.clone()), &answer, true), expected, "{rest} {answer:?}");
        }
    }

    #[test]
    fn of_an_answer_that_goes_on_only_the_beginning_is_judged() {
        let object = asked(json!({"response_format": {"type": "json_object"}}));
        assert_eq!(flaw(&object, &said("{\"n\""), false), None);
        assert_eq!(flaw(&object, &said(""), false), None);
        assert_eq!(flaw(&asked(json!({})), &said("I cannot answer"), false), Some(Flaw::Refusal));
    }
}
