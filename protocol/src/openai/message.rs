//! Decodes the messages of a chat request.

use super::fields::{Fields, Place, mismatch, missing};
use super::request::unknown;
use crate::DecodeError;
use crate::chat::{Message, Part, Role, ToolCall};
use serde_json::Value;

/// Decodes the list of messages.
pub(super) fn messages(list: Vec<Value>) -> Result<Vec<Message>, DecodeError> {
    if list.is_empty() {
        return Err(DecodeError::at("messages", "`messages` must have at least one message"));
    }
    let message = |(index, value)| message(Fields::new(value, Place::Element("messages", index))?);
    list.into_iter().enumerate().map(message).collect()
}

fn message(mut fields: Fields) -> Result<Message, DecodeError> {
    let role = role(&mut fields)?;
    let mut tool_calls = Vec::new();
    for (index, call) in fields.list("tool_calls")?.unwrap_or_default().into_iter().enumerate() {
        let place = Place::At(format!("{}[{index}]", fields.path("tool_calls")));
        tool_calls.push(tool_call(Fields::new(call, place)?, index)?);
    }
    // The older way to call one function.
    if let Some(mut call) = fields.object("function_call")? {
        let name = call.required_text("name")?;
        tool_calls.push(ToolCall { id: String::new(), name, arguments: arguments(&mut call)? });
    }
    let content = content(&mut fields)?;
    if content.is_none() && matches!(role, Role::System | Role::Developer | Role::User) {
        return Err(missing(&fields.path("content"), "a string or an array of parts"));
    }
    let reasoning = fields.text("reasoning_content")?;
    Ok(Message {
        role,
        content: content.unwrap_or_default(),
        name: fields.text("name")?,
        tool_calls,
        tool_call_id: fields.text("tool_call_id")?,
        reasoning: reasoning.or(fields.text("reasoning")?),
    })
}

fn role(fields: &mut Fields) -> Result<Role, DecodeError> {
    match fields.required_text("role")?.as_str() {
        "system" => Ok(Role::System),
        "developer" => Ok(Role::Developer),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" | "function" => Ok(Role::Tool),
        other => Err(unknown(&fields.path("role"), "system, developer, user, assistant or tool", other)),
    }
}

/// `None` when there is no content; an empty list when it is empty.
fn content(fields: &mut Fields) -> Result<Option<Vec<Part>>, DecodeError> {
    match fields.take("content") {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(Some(Vec::new())),
        Some(Value::String(text)) => Ok(Some(vec![Part::Text(text)])),
        Some(Value::Array(parts)) => {
            let path = fields.path("content");
            let part = |(index, value)| part(value, Place::At(format!("{path}[{index}]")));
            parts.into_iter().enumerate().map(part).collect::<Result<_, _>>().map(Some)
        }
        Some(other) => Err(mismatch(&fields.path("content"), "a string or an array of parts", &other)),
    }
}

fn part(value: Value, place: Place) -> Result<Part, DecodeError> {
    match value["type"].as_str() {
        Some("text") => Ok(Part::Text(Fields::new(value, place)?.required_text("text")?)),
        Some("refusal") => Ok(Part::Text(Fields::new(value, place)?.required_text("refusal")?)),
        Some("image_url") => image(Fields::new(value, place)?),
        Some(_) => Ok(Part::Other(value)),
        None => match value {
            Value::String(text) => Ok(Part::Text(text)),
            Value::Object(_) => Err(missing(&format!("{place}.type"), "a string such as text or image_url")),
            other => Err(mismatch(&place.to_string(), "a part with a `type`", &other)),
        },
    }
}

/// `image_url` is an object with the URL, or (with some clients) the URL.
fn image(mut fields: Fields) -> Result<Part, DecodeError> {
    let path = fields.path("image_url");
    match fields.take("image_url") {
        Some(Value::String(url)) => Ok(Part::Image(url)),
        Some(image) => Ok(Part::Image(Fields::new(image, Place::At(path))?.required_text("url")?)),
        None => Err(missing(&path, "an object with `url`")),
    }
}

/// Clients that leave the id out get one by the call's place, so that templates which print it can.
fn tool_call(mut fields: Fields, index: usize) -> Result<ToolCall, DecodeError> {
    let id = fields.text("id")?.unwrap_or_else(|| format!("call_{index}"));
    let mut function =
        fields.object("function")?.ok_or_else(|| missing(&fields.path("function"), "an object with `name`"))?;
    Ok(ToolCall { id, name: function.required_text("name")?, arguments: arguments(&mut function)? })
}

/// JSON text; clients that send the JSON itself are understood too.
fn arguments(function: &mut Fields) -> Result<String, DecodeError> {
    match function.take("arguments") {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(object @ Value::Object(_)) => Ok(object.to_string()),
        Some(other) => Err(mismatch(&function.path("arguments"), "a string of JSON", &other)),
    }
}
