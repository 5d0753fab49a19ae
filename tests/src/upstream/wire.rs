//! The wire format of an OpenAI-compatible provider: what a request asks, and the JSON of the answers. Pure.

use super::script::{Content, Script, ToolForm, UsageRule, Vendor};
use base64::Engine as _;
use serde_json::{Value, json};
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::usage::Usage;

/// What a request asks, as far as a provider's answer depends on it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) operation: Operation,
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) limit: Option<u64>,
    pub(super) n: u64,
    pub(super) base64: bool,
    pub(super) dimensions: usize,
    /// Tokens of each input text: one for every four bytes begun.
    pub(super) inputs: Vec<u64>,
}

/// One event of a stream and the completion tokens it carries.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) json: String,
    pub(super) tokens: u64,
}

impl Asked {
    /// Reads a request's body; `Err` says what is wrong with it.
    pub(super) fn read(operation: Operation, body: &[u8]) -> Result<Self, String> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| format!("We could not parse the JSON body of your request: {error}"))?;
        let number = |name: &str| body.get(name).and_then(Value::as_u64);
        let model = body.get("model").and_then(Value::as_str).ok_or("you must provide a model parameter")?.to_owned();
        let inputs = match operation {
            Operation::Chat => {
                vec![body["messages"].as_array().ok_or("'messages' is missing")?.iter().map(text_bytes).sum()]
            }
            Operation::TextCompletion => texts(&body["prompt"]),
            Operation::Embeddings => texts(&body["input"]),
            Operation::Rerank => texts(&body["documents"]),
        };
        Ok(Self {
            operation,
            model,
            stream: body["stream"].as_bool().unwrap_or(false),
            include_usage: body["stream_options"]["include_usage"].as_bool().unwrap_or(false),
            limit: number("max_completion_tokens").or_else(|| number("max_tokens")),
            n: number("n").unwrap_or(1),
            base64: body["encoding_format"] == "base64",
            dimensions: usize::try_from(number("dimensions").unwrap_or(8)).unwrap(),
            inputs: inputs.into_iter().map(|bytes: u64| bytes.div_ceil(4).max(1)).collect(),
        })
    }

    fn prompt_tokens(&self) -> u64 {
        self.inputs.iter().sum()
    }

    /// Answers asked for: `n` for each prompt.
    fn choices(&self) -> u64 {
        if self.operation == Operation::Chat { self.n } else { self.n * self.inputs.len() as u64 }
    }
}

/// Bytes of all strings under `content`, `text` and `arguments` of a message.
fn text_bytes(message: &Value) -> u64 {
    match message {
        Value::String(text) => text.len() as u64,
        Value::Array(parts) => parts.iter().map(text_bytes).sum(),
        Value::Object(fields) => ["content", "text", "tool_calls", "function", "arguments"]
            .iter()
            .filter_map(|name| fields.get(*name))
            .map(text_bytes)
            .sum(),
        _ => 0,
    }
}

/// Bytes of each input; a token id counts as four.
fn texts(input: &Value) -> Vec<u64> {
    match input {
        Value::Array(inputs) if inputs.iter().all(Value::is_number) => vec![4 * inputs.len() as u64],
        Value::Array(inputs) => inputs.iter().flat_map(texts).collect(),
        other => vec![text_bytes(other)],
    }
}

/// The `index`th word of an answer: four bytes, so that one word is one token for anybody who counts four bytes a token.
pub fn word(index: u64) -> String {
    format!("{:03} ", index % 1000)
}

/// The deltas of one choice, in order, each with its tokens; lazily, for answers without end.
fn deltas(asked: &Asked, content: &Content) -> Box<dyn Iterator<Item = (Value, u64)> + Send> {
    let limit = asked.limit.unwrap_or(u64::MAX);
    let words = |count: u64, field: &'static str| (0..count).map(move |at| (json!({ field: word(at) }), 1));
    match content {
        Content::Words(count) | Content::Filtered(count) => Box::new(words(limit.min(u64::from(*count)), "content")),
        Content::Endless => Box::new(words(limit, "content")),
        Content::Refusal(count) => Box::new(words(limit.min(u64::from(*count)), "refusal")),
        Content::Reasoning(thought, said) => {
            let (thought, said) = (u64::from(*thought).min(limit), u64::from(*said));
            Box::new(words(thought, "reasoning_content").chain(words(said.min(limit - thought), "content")))
        }
        Content::Tools(form) => {
            Box::new(tool_deltas(*form).into_iter().map(|calls| (json!({"content": null, "tool_calls": calls}), 1)))
        }
        Content::Verbatim(..) => Box::new(std::iter::empty()),
    }
}

fn finish(asked: &Asked, content: &Content) -> &'static str {
    let limit = asked.limit.unwrap_or(u64::MAX);
    match content {
        Content::Tools(_) => "tool_calls",
        Content::Filtered(_) => "content_filter",
        Content::Endless => "length",
        Content::Words(count) | Content::Refusal(count) if u64::from(*count) > limit => "length",
        Content::Reasoning(thought, said) if u64::from(thought + said) > limit => "length",
        _ => "stop",
    }
}

/// What the arguments of the first and the second call are in all [`ToolForm`]s.
pub const ARGUMENTS: [&str; 2] = [r#"{"city":"Paris","unit":"°C"}"#, r#"{"city":"Zürich"}"#];

fn tool_deltas(form: ToolForm) -> Vec<Value> {
    let open = |index: i64, call: usize| json!([{"index": index, "id": format!("call_{call}"), "type": "function", "function": {"name": "get_weather", "arguments": ""}}]);
    let part = |index: i64, text: &str| json!([{"index": index, "function": {"arguments": text}}]);
    let halves = |call: usize| ARGUMENTS[call].split_at(9);
    let one = |index: i64| vec![open(index, 0), part(index, halves(0).0), part(index, halves(0).1)];
    let without = |field: &str, mut deltas: Vec<Value>| {
        for delta in &mut deltas {
            delta[0].as_object_mut().unwrap().remove(field);
        }
        deltas
    };
    match form {
        ToolForm::One => one(0),
        ToolForm::NegativeIndex => one(-1),
        ToolForm::NoId => without("id", one(0)),
        ToolForm::NoIndex => without("index", one(0)),
        ToolForm::NoName => {
            let mut deltas = one(0);
            deltas[0][0]["function"].as_object_mut().unwrap().remove("name");
            deltas
        }
        ToolForm::ArgumentsAtEnd => {
            vec![
                json!([{"index": 0, "id": "call_0", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS[0]}}]),
            ]
        }
        ToolForm::Interleaved => {
            let ((a, b), (c, d)) = (halves(0), halves(1));
            vec![open(0, 0), open(1, 1), part(0, a), part(1, c), part(1, d), part(0, b)]
        }
    }
}

/// The true token counts of a whole answer.
pub(super) fn usage(asked: &Asked, script: &Script) -> Usage {
    if let Content::Verbatim(_, counted) = &script.content {
        return Usage { input: counted.input, output: counted.output, ..Usage::default() };
    }
    let input = asked.prompt_tokens();
    let output = match (asked.operation, &script.content) {
        (Operation::Embeddings | Operation::Rerank, _) => 0,
        (_, Content::Endless) if asked.limit.is_none() => 0,
        (_, content) => asked.choices() * deltas(asked, content).map(|(_, tokens)| tokens).sum::<u64>(),
    };
    let reasoning = match script.content {
        Content::Reasoning(thought, _) => asked.choices() * u64::from(thought).min(asked.limit.unwrap_or(u64::MAX)),
        _ => 0,
    };
    Usage { input, cached_input: script.cached.min(input), output, reasoning, ..Usage::default() }
}

/// The `usage` object in the vendor's way.
fn usage_json(usage: &Usage, script: &Script) -> Value {
    let zero = script.usage == UsageRule::Zero;
    let [input, cached, output, reasoning] =
        [usage.input, usage.cached_input, usage.output, usage.reasoning].map(|tokens| if zero { 0 } else { tokens });
    match script.vendor {
        Vendor::DeepSeek => json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
            "prompt_tokens_details": {"cached_tokens": cached}, "prompt_cache_hit_tokens": cached, "prompt_cache_miss_tokens": input - cached}),
        Vendor::Groq => {
            json!({"queue_time": 0.018, "prompt_tokens": input, "prompt_time": 0.002, "completion_tokens": output,
            "completion_time": 0.03, "total_tokens": input + output, "total_time": 0.032})
        }
        Vendor::OpenAi | Vendor::Azure => {
            json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0, "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0}})
        }
    }
}

/// An error body in OpenAI's shape.
pub(super) fn error(message: &str, kind: &str, code: Option<&str>) -> String {
    serde_json::to_string_pretty(&json!({"error": {"message": message, "type": kind, "param": null, "code": code}}))
        .unwrap()
}

/// A whole answer, pretty-printed as OpenAI does.
pub(super) fn body(asked: &Asked, script: &Script) -> String {
    if let Content::Verbatim(bodies, _) = &script.content {
        return bodies.first().cloned().unwrap_or_default();
    }
    let mut body = match asked.operation {
        Operation::Embeddings => embeddings(asked),
        Operation::Rerank => ranking(asked),
        operation => json!({
            "id": "chatcmpl-upstream", "object": if operation == Operation::Chat { "chat.completion" } else { "text_completion" },
            "created": 1_760_000_000, "model": format!("{}-2025-08-07", asked.model),
            "choices": (0..asked.choices()).map(|index| choice(asked, script, index)).collect::<Vec<_>>(),
        }),
    };
    if script.usage != UsageRule::Missing {
        let usage = usage(asked, script);
        body["usage"] = match asked.operation {
            Operation::Embeddings => json!({"prompt_tokens": usage.input, "total_tokens": usage.input}),
            // Jina says no more.
            Operation::Rerank => json!({"total_tokens": usage.input}),
            _ => usage_json(&usage, script),
        };
    }
    body["service_tier"] = json!("default");
    body["system_fingerprint"] = json!("fp_50cad350e4");
    serde_json::to_string_pretty(&body).unwrap()
}

fn choice(asked: &Asked, script: &Script, index: u64) -> Value {
    let gather = |field: &str| {
        let text: String = deltas(asked, &script.content)
            .filter_map(|(delta, _)| Some(delta.get(field)?.as_str()?.to_owned()))
            .collect();
        (!text.is_empty()).then_some(text)
    };
    let finish = finish(asked, &script.content);
    if asked.operation == Operation::TextCompletion {
        return json!({"text": gather("content").unwrap_or_default(), "index": index, "logprobs": null, "finish_reason": finish});
    }
    let mut message =
        json!({"role": "assistant", "content": gather("content"), "refusal": gather("refusal"), "annotations": []});
    if let Some(thought) = gather("reasoning_content") {
        message["reasoning_content"] = json!(thought);
    }
    if let Content::Tools(form) = script.content {
        let calls = if form == ToolForm::Interleaved { 2 } else { 1 };
        let call = |at: usize| json!({"id": format!("call_{at}"), "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS[at]}});
        message["tool_calls"] = (0..calls).map(call).collect();
    }
    json!({"index": index, "message": message, "logprobs": null, "finish_reason": finish})
}

fn embeddings(asked: &Asked) -> Value {
    let vector = |index: usize| (0..asked.dimensions).map(move |at| (index * asked.dimensions + at) as f32 / 8.0);
    let written = |index: usize| {
        if asked.base64 {
            let bytes: Vec<u8> = vector(index).flat_map(f32::to_le_bytes).collect();
            json!(base64::engine::general_purpose::STANDARD.encode(bytes))
        } else {
            json!(vector(index).collect::<Vec<_>>())
        }
    };
    let data: Vec<Value> = (0..asked.inputs.len())
        .map(|index| json!({"object": "embedding", "index": index, "embedding": written(index)}))
        .collect();
    json!({"object": "list", "data": data, "model": asked.model})
}

/// As Jina answers: the last document is the best.
fn ranking(asked: &Asked) -> Value {
    let result = |index: usize| json!({"index": index, "relevance_score": (index + 1) as f32 / 8.0});
    let results: Vec<Value> = (0..asked.inputs.len()).rev().map(result).collect();
    json!({"model": asked.model, "results": results})
}

/// The events of a stream up to, not including, `[DONE]`.
pub(super) fn pieces(asked: &Asked, script: &Script) -> Box<dyn Iterator<Item = Piece> + Send> {
    if let Content::Verbatim(frames, counted) = &script.content {
        let mut tokens = counted.output;
        return Box::new(
            frames.clone().into_iter().map(move |json| Piece { json, tokens: std::mem::take(&mut tokens) }),
        );
    }
    let usage = usage(asked, script);
    let reports = script.usage != UsageRule::Missing;
    let said = reports.then(|| usage_json(&usage, script));
    let chunk = Chunk {
        chat: asked.operation == Operation::Chat,
        model: asked.model.clone(),
        null_usage: asked.include_usage && reports,
    };
    let (choices, finish) = (asked.choices(), finish(asked, &script.content));

    let mut head = Vec::new();
    if script.vendor == Vendor::Azure {
        let mut filter = chunk.json(vec![], None);
        filter["prompt_filter_results"] =
            json!([{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": false, "severity": "safe"}}}]);
        head.push(filter);
    }
    if chunk.chat {
        head.extend((0..choices).map(|index| {
            chunk.json(
                vec![chunk.choice(index, &json!({"role": "assistant", "content": "", "refusal": null}), None)],
                None,
            )
        }));
    }
    let mut tail: Vec<Value> =
        (0..choices).map(|index| chunk.json(vec![chunk.choice(index, &json!({}), Some(finish))], None)).collect();
    match (script.vendor, said) {
        (_, None) => {}
        (Vendor::DeepSeek, Some(said)) => tail.last_mut().unwrap()["usage"] = said,
        (vendor, Some(said)) => {
            if vendor == Vendor::Groq {
                tail.last_mut().unwrap()["x_groq"] = json!({"id": "req_01", "usage": said});
            }
            if asked.include_usage {
                tail.push(chunk.json(vec![], Some(said)));
            }
        }
    }
    let content = script.content.clone();
    let middle = deltas(asked, &content)
        .flat_map(move |(delta, tokens)| (0..choices).map(move |index| (index, delta.clone(), tokens)))
        .map(move |(index, delta, tokens)| Piece {
            json: chunk.json(vec![chunk.choice(index, &delta, None)], None).to_string(),
            tokens,
        });
    let plain = |json: Value| Piece { json: json.to_string(), tokens: 0 };
    Box::new(head.into_iter().map(plain).chain(middle).chain(tail.into_iter().map(plain)))
}

/// What all chunks of one stream share.
struct Chunk {
    chat: bool,
    model: String,
    null_usage: bool,
}

impl Chunk {
    fn json(&self, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let mut chunk = json!({"id": "chatcmpl-upstream", "object": if self.chat { "chat.completion.chunk" } else { "text_completion" },
            "created": 1_760_000_000, "model": format!("{}-2025-08-07", self.model), "service_tier": "default",
            "system_fingerprint": "fp_50cad350e4", "choices": choices});
        if usage.is_some() || self.null_usage {
            chunk["usage"] = usage.unwrap_or(Value::Null);
        }
        chunk["obfuscation"] = json!("x9Qd");
        chunk
    }

    fn choice(&self, index: u64, delta: &Value, finish: Option<&str>) -> Value {
        if self.chat {
            json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish})
        } else {
            json!({"text": delta["content"].as_str().unwrap_or(""), "index": index, "logprobs": null, "finish_reason": finish})
        }
    }
}
