//! The requests most tests send.

use serde_json::{Value, json};

/// Where chats go.
pub const CHAT: &str = "/v1/chat/completions";
/// Where text completions go.
pub const COMPLETIONS: &str = "/v1/completions";
/// Where embeddings go.
pub const EMBEDDINGS: &str = "/v1/embeddings";

/// Where documents go to be ranked.
pub const RERANK: &str = "/v1/rerank";

/// A short chat, answered whole.
pub fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "Say something."}]})
}

/// The same, streamed.
pub fn streamed(model: &str) -> Value {
    let mut ask = chat(model);
    ask["stream"] = json!(true);
    ask
}

/// The same, streamed, with the usage chunk.
pub fn streamed_with_usage(model: &str) -> Value {
    let mut ask = streamed(model);
    ask["stream_options"] = json!({"include_usage": true});
    ask
}

/// A text completion, answered whole.
pub fn completion(model: &str) -> Value {
    json!({"model": model, "prompt": "Say something."})
}

/// An embedding.
pub fn embedding(model: &str) -> Value {
    json!({"model": model, "input": "Say something."})
}

/// Two documents to rank.
pub fn reranking(model: &str) -> Value {
    json!({"model": model, "query": "dogs", "documents": ["cats", {"text": "hot dogs"}]})
}
