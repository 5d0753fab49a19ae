//! Decodes the tools of a chat request and the choice among them.

use super::fields::{Fields, Place, mismatch, missing};
use super::request::unknown;
use crate::DecodeError;
use crate::chat::{Tool, ToolChoice};
use serde_json::{Map, Value};

/// Decodes `tools`. Those that are not functions (a provider's own search, say) are put into `kept`: they pass through to a
/// provider, and no other backend can run them.
pub(super) fn tools(fields: &mut Fields, kept: &mut Map<String, Value>) -> Result<Vec<Tool>, DecodeError> {
    let mut tools = Vec::new();
    let mut others = Vec::new();
    for (index, value) in fields.list("tools")?.unwrap_or_default().into_iter().enumerate() {
        if value["type"].as_str().is_some_and(|kind| kind != "function") {
            others.push(value);
            continue;
        }
        let mut outer = Fields::new(value, Place::Element("tools", index))?;
        let expected = "an object with `name` and `parameters`";
        let function = outer.object("function")?.ok_or_else(|| missing(&outer.path("function"), expected))?;
        tools.push(tool(function)?);
    }
    if !others.is_empty() {
        kept.insert("tools".into(), Value::Array(others));
    }
    Ok(tools)
}

fn tool(mut function: Fields) -> Result<Tool, DecodeError> {
    let name = function.required_text("name")?;
    let parameters = function.take("parameters");
    if let Some(other) = parameters.as_ref().filter(|value| !value.is_object() && !value.is_boolean()) {
        return Err(mismatch(&function.path("parameters"), "a JSON schema", other));
    }
    Ok(Tool { name, description: function.text("description")?, parameters, strict: function.flag("strict")? })
}

/// Decodes `tool_choice`. Kinds this gateway does not know are put into `kept`, and the model decides.
pub(super) fn tool_choice(
    fields: &mut Fields,
    kept: &mut Map<String, Value>,
    tools: &[Tool],
) -> Result<ToolChoice, DecodeError> {
    const EXPECTED: &str = "auto, none, required or {\"type\":\"function\",\"function\":{\"name\":…}}";
    let any_tools = !tools.is_empty() || kept.contains_key("tools");
    let choice = match fields.take("tool_choice") {
        None => return Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" | "any" => ToolChoice::Required,
            other => return Err(unknown("tool_choice", EXPECTED, other)),
        },
        Some(value @ Value::Object(_)) => {
            if value["type"].as_str().is_some_and(|kind| kind != "function") {
                kept.insert("tool_choice".into(), value);
                return Ok(ToolChoice::Auto);
            }
            let function = Fields::new(value, Place::At("tool_choice".into()))?.object("function")?;
            ToolChoice::Named(
                function.ok_or_else(|| missing("tool_choice.function", "an object"))?.required_text("name")?,
            )
        }
        Some(other) => return Err(mismatch("tool_choice", EXPECTED, &other)),
    };
    match &choice {
        ToolChoice::Required | ToolChoice::Named(_) if !any_tools => {
            Err(DecodeError::at("tool_choice", "`tool_choice` asks for a call, but there are no `tools`"))
        }
        ToolChoice::Named(name) if tools.iter().all(|tool| tool.name != *name) => {
            Err(unknown("tool_choice.function.name", "the name of one of the `tools`", name))
        }
        _ => Ok(choice),
    }
}

/// Decodes `functions` and `function_call`, the older spelling of tools.
pub(super) fn legacy_functions(
    fields: &mut Fields,
    tools: &mut Vec<Tool>,
    choice: &mut ToolChoice,
) -> Result<(), DecodeError> {
    for (index, value) in fields.list("functions")?.unwrap_or_default().into_iter().enumerate() {
        tools.push(tool(Fields::new(value, Place::Element("functions", index))?)?);
    }
    match fields.take("function_call") {
        None => {}
        Some(Value::String(word)) if word == "auto" => {}
        Some(Value::String(word)) if word == "none" => *choice = ToolChoice::None,
        Some(call @ Value::Object(_)) => {
            *choice = ToolChoice::Named(Fields::new(call, Place::At("function_call".into()))?.required_text("name")?);
        }
        Some(other) => return Err(mismatch("function_call", "auto, none or {\"name\":…}", &other)),
    }
    Ok(())
}
