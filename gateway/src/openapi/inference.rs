//! What inference takes and answers, for the OpenAPI document: OpenAI's forms as the gateway reads and writes them.
//!
//! They are read by hand and passed on byte by byte, so there are no types to make this of; `tests/it/openapi.rs` holds real requests and
//! answers to it. What is not named here goes to a provider as it is.

use super::Form;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};
use tollkeeper_protocol::Operation;

/// The body, the whole answer, and the events of a streamed one.
pub(super) fn forms(operation: Operation) -> (Form, Form, Option<Form>) {
    match operation {
        Operation::Chat => (chat_request, chat_answer, Some(chat_chunk)),
        Operation::TextCompletion => (completion_request, completion_answer, Some(completion_chunk)),
        Operation::Embeddings => (embedding_request, embedding_answer, None),
        Operation::Rerank => (rerank_request, rerank_answer, None),
    }
}

macro_rules! named {
    ($($form:ident = $name:literal;)*) => {
        $(fn $form(_: &mut SchemaGenerator) -> Schema {
            json_schema!({"$ref": concat!("#/components/schemas/", $name)})
        })*
    };
}

named! {
    chat_request = "ChatRequest";
    chat_answer = "ChatAnswer";
    chat_chunk = "ChatChunk";
    completion_request = "CompletionRequest";
    completion_answer = "CompletionAnswer";
    completion_chunk = "CompletionChunk";
    embedding_request = "EmbeddingRequest";
    embedding_answer = "EmbeddingAnswer";
    rerank_request = "RerankRequest";
    rerank_answer = "RerankAnswer";
}

/// Adds the schemas that [`forms`] names.
pub(super) fn define(schemas: &mut Map<String, Value>) {
    let all = [
        ("ChatRequest", asked(&["model", "messages"], [sampling(), generation(), chat()])),
        ("Message", message()),
        ("CompletionRequest", asked(&["model", "prompt"], [sampling(), generation(), completion()])),
        ("EmbeddingRequest", asked(&["model", "input"], [embedding(), json!({}), json!({})])),
        ("RerankRequest", asked(&["model", "query", "documents"], [rerank(), json!({}), json!({})])),
        ("Prompts", prompts()),
        ("ChatAnswer", answer("chat.completion", &["message"], json!({"message": reply()}))),
        ("ChatChunk", answer("chat.completion.chunk", &["delta"], json!({"delta": reply()}))),
        ("CompletionAnswer", answer("text_completion", &["text"], json!({"text": {"type": "string"}}))),
        ("CompletionChunk", answer("text_completion", &["text"], json!({"text": {"type": "string"}}))),
        ("EmbeddingAnswer", embedded()),
        ("RerankAnswer", ranked()),
        ("Usage", usage()),
        ("Tollkeeper", tollkeeper()),
    ];
    schemas.extend(all.map(|(name, schema)| (name.to_owned(), schema)));
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// A value that may be null, which is as if it were not there.
fn may(mut schema: Value) -> Value {
    if let Some(kind) = schema.get("type").cloned() {
        let mut kinds = if let Value::Array(kinds) = kind { kinds } else { vec![kind] };
        kinds.push("null".into());
        schema["type"] = kinds.into();
        schema
    } else {
        json!({"anyOf": [schema, {"type": "null"}]})
    }
}

fn number(least: f64, most: f64) -> Value {
    may(json!({"type": "number", "minimum": least, "maximum": most}))
}

fn whole(least: i64, most: i64) -> Value {
    may(json!({"type": "integer", "minimum": least, "maximum": most}))
}

fn flag() -> Value {
    may(json!({"type": "boolean"}))
}

fn text() -> Value {
    may(json!({"type": "string"}))
}

/// A body with these fields, and any others.
fn asked(required: &[&str], parts: [Value; 3]) -> Value {
    let mut properties = json!({
        "model": {"type": "string", "minLength": 1, "description": "A model or an alias; `GET /v1/models` lists them."},
    });
    for (name, schema) in parts.iter().filter_map(Value::as_object).flatten() {
        properties[name] = schema.clone();
    }
    json!({
        "type": "object",
        "description": "Fields that are not named here go to a provider as they are; a local model refuses or leaves them out.",
        "required": required,
        "properties": properties,
    })
}

fn sampling() -> Value {
    json!({
        "temperature": number(0.0, 2.0),
        "top_p": number(0.0, 1.0),
        "top_k": whole(-1, u32::MAX.into()),
        "min_p": number(0.0, 1.0),
        "typical_p": number(0.0, 1.0),
        "seed": may(json!({"type": "integer"})),
        "frequency_penalty": number(-2.0, 2.0),
        "presence_penalty": number(-2.0, 2.0),
        "repeat_penalty": number(0.0, 100.0),
        "repetition_penalty": number(0.0, 100.0),
        "logit_bias": may(json!({
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        })),
        "xtc_probability": number(0.0, 1.0),
        "xtc_threshold": number(0.0, 1.0),
        "dry_multiplier": number(0.0, 100.0),
        "dry_base": number(1.0, 100.0),
        "dry_allowed_length": whole(0, u32::MAX.into()),
        "dry_penalty_last_n": whole(-1, u32::MAX.into()),
        "dry_sequence_breakers": may(json!({"type": "array", "maxItems": 64, "items": {"type": "string"}})),
    })
}

fn generation() -> Value {
    let stops = json!({"type": "array", "maxItems": 16, "items": {"type": "string"}});
    json!({
        "max_tokens": whole(0, u32::MAX.into()),
        "max_completion_tokens": whole(0, u32::MAX.into()),
        "n": whole(1, 16),
        "stop": may(json!({"anyOf": [{"type": "string"}, stops]})),
        "stream": flag(),
        "stream_options": may(json!({"type": "object", "properties": {"include_usage": flag()}})),
        "service_tier": may(json!({"description": "`flex`: may wait for others, at a lower price where there is one."})),
    })
}

fn chat() -> Value {
    let function = json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string"},
            "description": text(),
            "parameters": may(json!({"type": ["object", "boolean"], "description": "A JSON schema."})),
            "strict": flag(),
        },
    });
    let named = json!({"type": "object", "properties": {"function": {"type": "object", "required": ["name"]}}});
    json!({
        "messages": {"type": "array", "minItems": 1, "items": reference("Message")},
        "max_tokens": whole(1, u32::MAX.into()),
        "max_completion_tokens": whole(1, u32::MAX.into()),
        "tools": may(json!({"type": "array", "items": {
            "type": "object",
            "description": "A function, or a provider's own tool.",
            "properties": {"type": {"type": "string"}, "function": function},
        }})),
        "tool_choice": may(json!({"anyOf": [{"enum": ["auto", "none", "required", "any"]}, named]})),
        "parallel_tool_calls": flag(),
        "response_format": may(json!({
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"enum": ["text", "json_object", "json_schema"]},
                "json_schema": may(json!({"type": "object"})),
            },
        })),
        "logprobs": may(json!({"type": ["boolean", "integer"]})),
        "top_logprobs": whole(0, 20),
    })
}

fn completion() -> Value {
    json!({
        "prompt": reference("Prompts"),
        "suffix": text(),
        "echo": flag(),
        "logprobs": whole(0, 20),
    })
}

fn embedding() -> Value {
    json!({
        "input": reference("Prompts"),
        "encoding_format": may(json!({"type": "string", "pattern": "^(float|base64)$"})),
        "dimensions": whole(1, u32::MAX.into()),
    })
}

fn rerank() -> Value {
    let document = json!({"anyOf": [
        {"type": "string"},
        {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}},
    ]});
    json!({
        "query": {"type": "string", "minLength": 1},
        "documents": {"type": "array", "minItems": 1, "maxItems": 2048, "items": document},
        "top_n": whole(1, u32::MAX.into()),
        "return_documents": flag(),
    })
}

fn prompts() -> Value {
    let tokens = json!({"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}});
    json!({
        "description": "A text, texts, the ids of one text's tokens, or such lists.",
        "anyOf": [
            {"type": "string"},
            {"type": "array", "minItems": 1, "maxItems": 2048, "items": {"type": "string"}},
            tokens,
            {"type": "array", "minItems": 1, "maxItems": 2048, "items": tokens},
        ],
    })
}

fn message() -> Value {
    let part = json!({"anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"type": "string", "description": "`text`, `image_url`, or one of a provider's."},
                "text": {"type": "string"},
                "image_url": {"anyOf": [{"type": "string"}, {"type": "object", "required": ["url"]}]},
            },
        },
    ]});
    json!({
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
            "content": may(json!({"anyOf": [{"type": "string"}, {"type": "array", "items": part}]})),
            "name": text(),
            "tool_calls": may(json!({"type": "array", "items": call()})),
            "tool_call_id": text(),
            "reasoning_content": text(),
        },
    })
}

fn call() -> Value {
    json!({
        "type": "object",
        "properties": {
            "id": text(),
            "index": may(json!({"type": "integer"})),
            "type": text(),
            "function": may(json!({
                "type": "object",
                "properties": {"name": text(), "arguments": {"type": ["string", "object", "null"], "description": "JSON."}},
            })),
        },
    })
}

/// A message as it is answered, whole or in pieces.
fn reply() -> Value {
    json!({
        "type": "object",
        "properties": {
            "role": text(),
            "content": text(),
            "refusal": text(),
            "reasoning_content": text(),
            "tool_calls": may(json!({"type": "array", "items": call()})),
        },
    })
}

/// A whole answer or a piece of one.
fn answer(object: &str, required: &[&str], own: Value) -> Value {
    let mut choice = json!({
        "index": {"type": "integer", "minimum": 0},
        "finish_reason": text(),
        "logprobs": may(json!({"type": "object"})),
    });
    for (name, schema) in own.as_object().into_iter().flatten() {
        choice[name] = schema.clone();
    }
    json!({
        "type": "object",
        "description": "A provider's answer is passed on as it is, and may have more fields.",
        "required": ["choices"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": object},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": {"type": "object", "required": required, "properties": choice}},
            "usage": may(reference("Usage")),
            "tollkeeper": reference("Tollkeeper"),
        },
    })
}

fn embedded() -> Value {
    let vector = json!({"anyOf": [
        {"type": "array", "items": {"type": "number"}},
        {"type": "string", "description": "Little-endian f32 in base64."},
    ]});
    let one = json!({
        "type": "object",
        "required": ["embedding"],
        "properties": {"index": {"type": "integer", "minimum": 0}, "embedding": vector},
    });
    json!({
        "type": "object",
        "required": ["data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": one},
            "model": {"type": "string"},
            "usage": may(reference("Usage")),
            "tollkeeper": reference("Tollkeeper"),
        },
    })
}

fn ranked() -> Value {
    let one = json!({
        "type": "object",
        "required": ["index", "relevance_score"],
        "properties": {
            "index": {"type": "integer", "minimum": 0},
            "relevance_score": {"type": "number"},
            "document": may(json!({"type": ["object", "string"]})),
        },
    });
    json!({
        "type": "object",
        "required": ["results"],
        "properties": {
            "id": {"type": "string"},
            "model": {"type": "string"},
            "results": {"type": "array", "items": one},
            "usage": may(reference("Usage")),
            "tollkeeper": reference("Tollkeeper"),
        },
    })
}

fn usage() -> Value {
    let count = || json!({"type": "integer", "minimum": 0});
    json!({
        "type": "object",
        "properties": {
            "prompt_tokens": count(),
            "completion_tokens": count(),
            "total_tokens": count(),
            "prompt_tokens_details": may(json!({"type": "object", "properties": {"cached_tokens": may(count())}})),
            "completion_tokens_details": may(json!({"type": "object", "properties": {"reasoning_tokens": may(count())}})),
            "cost_usd": {"type": "string", "description": "What the answer cost, exact; in the usage chunk of streams."},
        },
    })
}

fn tollkeeper() -> Value {
    json!({
        "type": "object",
        "description": "What the gateway adds where it knows it: who answered, what it cost, and why it ended before its end.",
        "required": ["backend", "cost_usd"],
        "properties": {
            "backend": {"type": "string"},
            "cost_usd": {"type": "string"},
            "stopped": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    })
}
