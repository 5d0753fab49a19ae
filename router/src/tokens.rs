//! How many tokens a request's input is by its model family's own tokenizer, where there is a public one: OpenAI's.
//!
//! Text is counted exactly. What the provider writes around it is not public for all models: each message is taken for three
//! tokens beside its role's, the start of the answer for three (as OpenAI's cookbook counts for chat models), a tool's
//! description for its JSON. A padding of 2 % and eight tokens covers the rest.
//!
//! The tokenizers are those of `bpe-openai`, whose time grows with the text's length alone, whatever the text is.

use crate::ask::{MEDIA_TOKENS, TOOL_TOKENS};
use bpe_openai::Tokenizer;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, Message, Part, ResponseFormat};
use tollkeeper_protocol::completion::Prompt;

/// Tokens around each message beside its texts: its start, its role, its end.
const FRAME: u64 = 4;
/// Tokens before the answer.
const START: u64 = 3;

/// The beginning of a model's name, and what reads its tokenizer in.
type Family = (&'static str, fn() -> &'static Tokenizer);

/// The longest beginning that fits counts.
const FAMILIES: &[Family] = &[
    ("gpt-3.5-turbo", bpe_openai::cl100k_base),
    ("gpt-4", bpe_openai::cl100k_base),
    ("text-embedding-3-", bpe_openai::cl100k_base),
    ("text-embedding-ada-002", bpe_openai::cl100k_base),
    ("gpt-4o", bpe_openai::o200k_base),
    ("gpt-4.1", bpe_openai::o200k_base),
    ("gpt-4.5", bpe_openai::o200k_base),
    ("gpt-5", bpe_openai::o200k_base),
    ("chatgpt-4o", bpe_openai::o200k_base),
    ("o1", bpe_openai::o200k_base),
    ("o3", bpe_openai::o200k_base),
    ("o4", bpe_openai::o200k_base),
];

/// The padded count of a request's input tokens at a model, such as `gpt-4o-mini` or `openai/gpt-4o-mini`; `None` for models
/// whose tokenizer is not public. Takes some microseconds for each kilobyte.
pub fn counted(request: &Request, model: &str) -> Option<u64> {
    let tokenizer = tokenizer_of(model)?;
    let exact = match request {
        Request::Chat(chat) => of_chat(chat, tokenizer),
        Request::Completion(completion) => of_prompts(&completion.prompts, tokenizer),
        Request::Embedding(embedding) => return Some(of_prompts(&embedding.inputs, tokenizer)),
        Request::Rerank(_) => return None,
    };
    Some(exact + exact / 50 + 8)
}

/// Reads the tokenizers of these models in, which takes some tenths of a second for each family, before a request needs them.
pub fn warm<'a>(models: impl IntoIterator<Item = &'a str>) {
    for tokenizer in models.into_iter().filter_map(tokenizer_of) {
        // Nobody wants the result.
        let _: usize = tokenizer.count("");
    }
}

fn tokenizer_of(model: &str) -> Option<&'static Tokenizer> {
    let name = model.rsplit('/').next().unwrap_or(model);
    let known = FAMILIES.iter().filter(|(prefix, _)| name.starts_with(prefix));
    known.max_by_key(|(prefix, _)| prefix.len()).map(|(_, tokenizer)| tokenizer())
}

fn of_chat(chat: &ChatRequest, tokenizer: &Tokenizer) -> u64 {
    let text = |text: &str| tokenizer.count(text) as u64;
    let json = |value: &dyn std::fmt::Display| text(&value.to_string());
    let messages = chat.messages.iter().map(|message| of_message(message, tokenizer));
    let tools = chat.tools.iter().map(|tool| {
        let described = tool.description.as_deref().map_or(0, text);
        TOOL_TOKENS + text(&tool.name) + described + tool.parameters.as_ref().map_or(0, |schema| json(schema))
    });
    let schema = match &chat.response_format {
        ResponseFormat::JsonSchema(schema) => json(schema),
        ResponseFormat::Text | ResponseFormat::JsonObject => 0,
    };
    // Tools of other kinds than functions.
    let others = chat.extra.get("tools").map_or(0, |tools| json(tools));
    START + messages.chain(tools).sum::<u64>() + schema + others
}

fn of_message(message: &Message, tokenizer: &Tokenizer) -> u64 {
    let text = |text: &str| tokenizer.count(text) as u64;
    let calls = message.tool_calls.iter().map(|call| FRAME + text(&call.name) + text(&call.arguments) + text(&call.id));
    let texts = [&message.name, &message.tool_call_id, &message.reasoning];
    let named = texts.into_iter().flatten().map(|name| 1 + text(name));
    let parts = message.content.iter().map(|part| match part {
        Part::Text(content) => text(content),
        Part::Image(_) => MEDIA_TOKENS,
        Part::Other(value) => text(&value.to_string()).min(MEDIA_TOKENS),
    });
    FRAME + calls.chain(named).chain(parts).sum::<u64>()
}

fn of_prompts(prompts: &[Prompt], tokenizer: &Tokenizer) -> u64 {
    let each = prompts.iter().map(|prompt| match prompt {
        Prompt::Text(text) => tokenizer.count(text).max(1) as u64,
        Prompt::Tokens(tokens) => tokens.len() as u64,
    });
    each.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tollkeeper_protocol::Operation;

    fn request(operation: Operation, body: &Value) -> Request {
        tollkeeper_protocol::openai::decode_request(operation, body.to_string().as_bytes()).unwrap()
    }

    fn chat(text: &str) -> Request {
        request(Operation::Chat, &json!({"model": "m", "messages": [{"role": "user", "content": text}]}))
    }

    #[test]
    fn text_counts_as_its_models_tokenizer_counts_it() {
        // "tiktoken is great!" is six tokens in both: tik, token, is, great, !, with "t" apart from "ik" in one.
        for (model, text) in [("gpt-4o", 6), ("gpt-4", 6), ("openai/gpt-4o-mini-2024-07-18", 6), ("o3-mini", 6)] {
            let exact = START + FRAME + text;
            assert_eq!(counted(&chat("tiktoken is great!"), model), Some(exact + exact / 50 + 8), "{model}");
        }
        let input = request(Operation::Embeddings, &json!({"model": "m", "input": ["tiktoken is great!", "a b c"]}));
        assert_eq!(counted(&input, "text-embedding-3-small"), Some(9));
    }

    #[test]
    fn models_without_a_public_tokenizer_are_not_counted() {
        for model in ["claude-sonnet-4-5", "gemini-2.5-pro", "gpt-oss-120b", "llama-3.3-70b", "mistral-large", ""] {
            assert_eq!(counted(&chat("hello"), model), None, "{model}");
        }
    }

    #[test]
    fn it_is_far_closer_than_bytes_and_never_below_the_text() {
        let code = include_str!("tokens.rs");
        let prose =
            "A fleet of agents that cannot overspend, not by a cent, nor by fifty calls at the last cent. ".repeat(40);
        for text in [code, &prose] {
            let exact = bpe_openai::o200k_base().count(text) as u64;
            let ours = counted(&chat(text), "gpt-4o").unwrap();
            let bytes = crate::ask(&chat(text)).input_tokens;
            assert!(ours > exact && ours < exact + exact / 20, "{ours} for {exact}");
            assert!(bytes > ours, "{bytes}");
        }
    }

    #[test]
    fn a_text_made_to_be_slow_is_not() {
        // A quadratic tokenizer would take minutes.
        let text = "a".repeat(1 << 20);
        assert!(counted(&chat(&text), "gpt-4o").unwrap() > 1 << 16);
    }
}
