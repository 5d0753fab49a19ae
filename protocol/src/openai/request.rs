//! Decodes request bodies: tolerant to unknown fields, exact about the known ones.

use super::fields::{Fields, Place, mismatch, missing, whole};
use super::message::messages;
use super::rerank::rerank;
use super::sampling::sampling;
use super::tool::{legacy_functions, tool_choice, tools};
use crate::chat::{ChatRequest, ResponseFormat};
use crate::completion::{CompletionRequest, Prompt};
use crate::embedding::{EmbeddingRequest, Encoding};
use crate::{DecodeError, Operation, Request};
use serde_json::{Map, Value};

/// Most inputs of one embeddings or completions request.
const MAX_INPUTS: usize = 2048;
/// Most stop texts.
const MAX_STOPS: usize = 16;
/// Most answers to one prompt.
const MAX_ANSWERS: u32 = 16;

/// Most values in a body, counted by the bytes that can begin one (in texts too): each takes up to some hundred bytes of memory,
/// many times of what it takes in the body.
const MAX_VALUES: usize = 1_000_000;

/// Decodes the body of a request.
///
/// # Errors
/// The body is not JSON, is made of too many values, or a known field is missing, of the wrong type or out of range: the message names the field and says
/// what it must be.
pub fn decode_request(op: Operation, body: &[u8]) -> Result<Request, DecodeError> {
    if body.trim_ascii().is_empty() {
        return Err(DecodeError::new("the request body is empty: send a JSON object"));
    }
    if body.len() > MAX_VALUES && body.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count() > MAX_VALUES {
        let message =
            format!("the request body has more than {MAX_VALUES} values: send less, or split it into several requests");
        return Err(DecodeError::new(message));
    }
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| DecodeError::new(format!("the request body is not valid JSON: {error}")))?;
    let fields = Fields::new(value, Place::Body)?;
    match op {
        Operation::Chat => chat(fields).map(Request::Chat),
        Operation::TextCompletion => completion(fields).map(Request::Completion),
        Operation::Embeddings => embedding(fields).map(Request::Embedding),
        Operation::Rerank => rerank(fields).map(Request::Rerank),
    }
}

fn chat(mut fields: Fields) -> Result<ChatRequest, DecodeError> {
    let model = model(&mut fields)?;
    let messages = messages(fields.list("messages")?.ok_or_else(|| missing("messages", "an array of messages"))?)?;
    let mut kept = Map::new();
    let mut tools = tools(&mut fields, &mut kept)?;
    let mut tool_choice = tool_choice(&mut fields, &mut kept, &tools)?;
    legacy_functions(&mut fields, &mut tools, &mut tool_choice)?;
    let request = ChatRequest {
        model,
        messages,
        tools,
        tool_choice,
        parallel_tool_calls: fields.flag("parallel_tool_calls")?,
        response_format: response_format(&mut fields)?,
        sampling: sampling(&mut fields)?,
        max_tokens: max_tokens(&mut fields, 1)?,
        stop: stop(&mut fields)?,
        n: fields.integer("n", 1..=MAX_ANSWERS)?.unwrap_or(1),
        stream: fields.flag("stream")?.unwrap_or(false),
        include_usage: include_usage(&mut fields)?,
        top_logprobs: top_logprobs(&mut fields)?,
        extra: Map::new(),
    };
    kept.extend(fields.rest());
    Ok(ChatRequest { extra: kept, ..request })
}

fn completion(mut fields: Fields) -> Result<CompletionRequest, DecodeError> {
    let request = CompletionRequest {
        model: model(&mut fields)?,
        prompts: prompts(&mut fields, "prompt")?,
        suffix: fields.text("suffix")?,
        echo: fields.flag("echo")?.unwrap_or(false),
        sampling: sampling(&mut fields)?,
        max_tokens: max_tokens(&mut fields, 0)?,
        stop: stop(&mut fields)?,
        n: fields.integer("n", 1..=MAX_ANSWERS)?.unwrap_or(1),
        best_of: fields.integer("best_of", 1..=MAX_ANSWERS)?,
        stream: fields.flag("stream")?.unwrap_or(false),
        include_usage: include_usage(&mut fields)?,
        logprobs: fields.integer("logprobs", 0..=20)?,
        extra: Map::new(),
    };
    Ok(CompletionRequest { extra: fields.rest(), ..request })
}

fn embedding(mut fields: Fields) -> Result<EmbeddingRequest, DecodeError> {
    Ok(EmbeddingRequest {
        model: model(&mut fields)?,
        inputs: prompts(&mut fields, "input")?,
        encoding: match fields.text("encoding_format")?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(other) => return Err(unknown("encoding_format", "float or base64", other)),
        },
        dimensions: fields.integer("dimensions", 1..=u32::MAX)?,
    })
}

/// The model that is asked for.
pub(super) fn model(fields: &mut Fields) -> Result<String, DecodeError> {
    let expected = "the name of a model or an alias (GET /v1/models lists them)";
    match fields.text("model")? {
        Some(model) if !model.is_empty() => Ok(model),
        _ => Err(missing("model", expected)),
    }
}

/// `max_completion_tokens` replaces the older `max_tokens`.
fn max_tokens(fields: &mut Fields, least: u32) -> Result<Option<u32>, DecodeError> {
    let older = fields.integer("max_tokens", least..=u32::MAX)?;
    Ok(fields.integer("max_completion_tokens", least..=u32::MAX)?.or(older))
}

/// One text or a list; empty ones would end every answer before it starts and are left out.
fn stop(fields: &mut Fields) -> Result<Vec<String>, DecodeError> {
    let stops = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(list)) => texts(list, "stop")?,
        Some(other) => return Err(mismatch("stop", "a string or an array of strings", &other)),
    };
    if stops.len() > MAX_STOPS {
        return Err(DecodeError::at(
            "stop",
            format!("`stop` must have at most {MAX_STOPS} texts, got {}", stops.len()),
        ));
    }
    Ok(stops.into_iter().filter(|stop| !stop.is_empty()).collect())
}

/// The texts of a list.
pub(super) fn texts(list: Vec<Value>, path: &str) -> Result<Vec<String>, DecodeError> {
    let text = |(index, value)| match value {
        Value::String(text) => Ok(text),
        other => Err(mismatch(&format!("{path}[{index}]"), "a string", &other)),
    };
    list.into_iter().enumerate().map(text).collect()
}

fn include_usage(fields: &mut Fields) -> Result<bool, DecodeError> {
    match fields.object("stream_options")? {
        None => Ok(false),
        Some(mut options) => Ok(options.flag("include_usage")?.unwrap_or(false)),
    }
}

fn top_logprobs(fields: &mut Fields) -> Result<Option<u8>, DecodeError> {
    let (wanted, least) = match fields.peek("logprobs") {
        // Some servers take the number of alternatives here.
        Some(Value::Number(_)) => (true, fields.integer("logprobs", 0..=20)?.unwrap_or(0)),
        _ => (fields.flag("logprobs")?.unwrap_or(false), 0),
    };
    match fields.integer("top_logprobs", 0..=20)? {
        top if wanted => Ok(Some(top.unwrap_or(least))),
        None | Some(0) => Ok(None),
        Some(_) => Err(DecodeError::at("top_logprobs", "`top_logprobs` needs `logprobs` to be true")),
    }
}

fn response_format(fields: &mut Fields) -> Result<ResponseFormat, DecodeError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(ResponseFormat::Text) };
    match format.required_text("type")?.as_str() {
        "text" => Ok(ResponseFormat::Text),
        // Some servers take a schema here.
        "json_object" => Ok(match format.take("schema") {
            Some(schema) => ResponseFormat::JsonSchema(serde_json::json!({ "schema": schema })),
            None => ResponseFormat::JsonObject,
        }),
        "json_schema" => match format.take("json_schema") {
            Some(schema @ Value::Object(_)) => Ok(ResponseFormat::JsonSchema(schema)),
            Some(other) => Err(mismatch("response_format.json_schema", "an object", &other)),
            None => Err(missing("response_format.json_schema", "an object with `name` and `schema`")),
        },
        other => Err(unknown("response_format.type", "text, json_object or json_schema", other)),
    }
}

/// One text, a list of texts, one list of token ids or a list of such lists.
fn prompts(fields: &mut Fields, name: &'static str) -> Result<Vec<Prompt>, DecodeError> {
    const EXPECTED: &str = "a string, an array of strings, an array of token ids or an array of such arrays";
    let list = match fields.take(name) {
        None => return Err(missing(name, EXPECTED)),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(mismatch(name, EXPECTED, &other)),
    };
    let prompts: Vec<Prompt> = match list.first() {
        None => return Err(DecodeError::at(name, format!("`{name}` must not be empty"))),
        Some(Value::String(_)) => texts(list, name)?.into_iter().map(Prompt::Text).collect(),
        Some(Value::Array(_)) => {
            let prompt = |(index, value)| {
                let path = format!("{name}[{index}]");
                match value {
                    Value::Array(list) if list.is_empty() => {
                        Err(DecodeError::at(&path, format!("`{path}` must not be empty")))
                    }
                    Value::Array(list) => tokens(&list, &path),
                    other => Err(mismatch(&path, "an array of token ids", &other)),
                }
            };
            list.into_iter().enumerate().map(prompt).collect::<Result<_, _>>()?
        }
        Some(_) => vec![tokens(&list, name)?],
    };
    if prompts.len() > MAX_INPUTS {
        let message = format!("`{name}` must have at most {MAX_INPUTS} entries, got {}", prompts.len());
        return Err(DecodeError::at(name, message));
    }
    Ok(prompts)
}

fn tokens(list: &[Value], path: &str) -> Result<Prompt, DecodeError> {
    let token = |(index, value)| {
        let token = whole(value).and_then(|token| u32::try_from(token).ok());
        token.ok_or_else(|| mismatch(&format!("{path}[{index}]"), "a token id (a whole number from 0)", value))
    };
    list.iter().enumerate().map(token).collect::<Result<_, _>>().map(Prompt::Tokens)
}

/// The error of a word that is none of those expected.
pub(super) fn unknown(path: &str, expected: &str, got: &str) -> DecodeError {
    let got: String = got.chars().take(64).collect();
    DecodeError::at(path, format!("`{path}` must be {expected}, got `{got}`"))
}
