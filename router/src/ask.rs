//! What a request needs of a backend.
//!
//! Input tokens are estimated from bytes and rather too high than too low, because money is leased and context is compared by
//! them: three bytes of text make a token (English has about four, code and other languages two and a half to three and a
//! half), or fewer where most of them are digits and signs, every message adds [`MESSAGE_TOKENS`] for its frame in the chat template, every tool [`TOOL_TOKENS`], every image
//! [`MEDIA_TOKENS`], every document to rank [`PAIR_TOKENS`]. Prompts of token ids are counted exactly.

use serde_json::Value;
use std::fmt::{Display, Write};
use tollkeeper_protocol::chat::{ChatRequest, Message, Part, ResponseFormat};
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_protocol::embedding::EmbeddingRequest;
use tollkeeper_protocol::rerank::RerankRequest;
use tollkeeper_protocol::{Operation, Request};

/// Bytes of text that are counted as one token.
pub const BYTES_PER_TOKEN: u64 = 3;
/// Tokens of a message's frame: role, separators, name.
pub const MESSAGE_TOKENS: u64 = 8;
/// Tokens of a tool's frame, beside its name, description and schema.
pub const TOOL_TOKENS: u64 = 16;
/// Tokens around and between a query and a document.
pub const PAIR_TOKENS: u64 = 4;
/// Tokens of an image whatever its size, and the most tokens of a part of an unknown kind (sound, files): a large picture takes
/// about as many with most providers.
pub const MEDIA_TOKENS: u64 = 1600;
/// Tokens of an image where the question is whether it fits a context: some models make so few of it, and each says itself what does not fit.
pub const FEWEST_IMAGE_TOKENS: u64 = 64;

/// What a request needs of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The kind of work.
    pub operation: Operation,
    /// Estimate of all input tokens, padded.
    pub input_tokens: u64,
    /// Estimate of the input tokens that must fit into a context at once: those of the longest prompt.
    pub longest_input: u64,
    /// Answers that are written in all: `n` or `best_of`, for each prompt; 0 for embeddings and reranking.
    pub answers: u64,
    /// Most tokens of all answers together, when the client set a limit; 0 for embeddings and reranking.
    pub max_output: Option<u64>,
    /// Tokens of one answer as they mostly are for whoever asks, where that was learned.
    pub usual_output: Option<u64>,
    /// Tools may be called.
    pub tools: bool,
    /// There are images in the prompt.
    pub vision: bool,
    /// How many.
    pub images: u64,
    /// Tokens that parts which are neither text nor image (files, sound) may have beyond what is estimated of them; without end where only their
    /// name is sent.
    pub unread: u64,
    /// The answer must follow a JSON schema.
    pub json_schema: bool,
    /// The answer is streamed.
    pub stream: bool,
}

impl Ask {
    /// Most tokens of one answer, when the client set a limit.
    pub fn max_output_each(&self) -> Option<u64> {
        self.max_output.map(|all| all.checked_div(self.answers).unwrap_or(0))
    }
}

/// Reads what a request needs.
pub fn ask(request: &Request) -> Ask {
    match request {
        Request::Chat(chat) => of_chat(request, chat),
        Request::Completion(completion) => of_completion(request, completion),
        Request::Embedding(embedding) => of_embedding(request, embedding),
        Request::Rerank(rerank) => of_rerank(request, rerank),
    }
}

fn of_chat(request: &Request, chat: &ChatRequest) -> Ask {
    let schema = match &chat.response_format {
        ResponseFormat::JsonSchema(schema) => Some(schema),
        ResponseFormat::Text | ResponseFormat::JsonObject => None,
    };
    // Tools of other kinds than functions.
    let other_tools = chat.extra.get("tools");
    let tools = chat.tools.iter().map(|tool| {
        let description = tool.description.as_deref().map_or(0, str::len);
        TOOL_TOKENS + tokens(tool.name.len() + description + tool.parameters.as_ref().map_or(0, written))
    });
    let rest = tools.chain([schema, other_tools].into_iter().flatten().map(|value| tokens(written(value))));
    let rest = rest.fold(0, u64::saturating_add);
    let messages = chat.messages.iter().map(of_message).fold(Size::default(), Size::and);
    let all = messages.and(Size { most: rest, least: rest });
    let parts = || chat.messages.iter().flat_map(|message| &message.content);
    let images = parts().filter(|part| matches!(part, Part::Image(_))).count() as u64;
    let unread = parts().map(|part| if let Part::Other(value) = part { unread(value) } else { 0 });
    Ask {
        tools: !chat.tools.is_empty() || other_tools.is_some(),
        vision: images > 0,
        images,
        unread: unread.fold(0, u64::saturating_add),
        json_schema: schema.is_some(),
        ..of_prompts(request, all.most, all.least)
    }
}

/// Tokens, for money at the most and for a context at the least.
#[derive(Clone, Copy, Default)]
struct Size {
    most: u64,
    least: u64,
}

impl Size {
    /// Whether it fits a context is asked of its bytes: who knows better says so.
    fn of(text: &str) -> Self {
        Self { most: text_tokens(text), least: tokens(text.len()) }
    }

    fn same(tokens: u64) -> Self {
        Self { most: tokens, least: tokens }
    }

    fn and(self, other: Self) -> Self {
        Self { most: self.most.saturating_add(other.most), least: self.least.saturating_add(other.least) }
    }
}

fn of_message(message: &Message) -> Size {
    let calls = message.tool_calls.iter();
    let calls = calls.map(|call| Size::same(tokens(call.id.len() + call.name.len())).and(Size::of(&call.arguments)));
    let texts = [&message.name, &message.tool_call_id, &message.reasoning];
    let texts = texts.into_iter().flatten().map(String::len);
    let parts = message.content.iter().map(|part| match part {
        Part::Text(text) => Size::of(text),
        Part::Image(_) => Size { most: MEDIA_TOKENS, least: FEWEST_IMAGE_TOKENS },
        Part::Other(value) => Size::same(tokens(written(value)).min(MEDIA_TOKENS)),
    });
    calls.chain(parts).fold(Size::same(MESSAGE_TOKENS + tokens(texts.sum())), Size::and)
}

fn of_completion(request: &Request, completion: &CompletionRequest) -> Ask {
    let suffix = completion.suffix.as_ref().map_or(0, |suffix| tokens(suffix.len()));
    let (all, longest) = sizes(&completion.prompts);
    let suffixes = suffix.saturating_mul(completion.prompts.len() as u64);
    of_prompts(request, all.saturating_add(suffixes), longest.saturating_add(suffix))
}

fn of_embedding(request: &Request, embedding: &EmbeddingRequest) -> Ask {
    let (all, longest) = sizes(&embedding.inputs);
    Ask { max_output: Some(0), ..of_prompts(request, all, longest) }
}

/// The query is read again with each document.
fn of_rerank(request: &Request, rerank: &RerankRequest) -> Ask {
    let frame = Size::same(tokens(rerank.query.len()) + PAIR_TOKENS);
    let (all, longest) = most_and_longest(rerank.documents.iter().map(|document| frame.and(Size::of(document))));
    Ask { max_output: Some(0), ..of_prompts(request, all, longest) }
}

fn of_prompts(request: &Request, input_tokens: u64, longest_input: u64) -> Ask {
    let answers = request.written_answers();
    Ask {
        operation: request.operation(),
        input_tokens,
        longest_input,
        answers,
        max_output: request.max_tokens().map(|each| u64::from(each).saturating_mul(answers)),
        usual_output: None,
        tools: false,
        vision: false,
        images: 0,
        unread: 0,
        json_schema: false,
        stream: request.stream(),
    }
}

/// Tokens of all prompts, and of the longest.
fn sizes(prompts: &[Prompt]) -> (u64, u64) {
    most_and_longest(prompts.iter().map(|prompt| match prompt {
        Prompt::Text(text) if text.is_empty() => Size::same(1),
        Prompt::Text(text) => Size::of(text),
        Prompt::Tokens(tokens) => Size::same(tokens.len() as u64),
    }))
}

fn most_and_longest(sizes: impl Iterator<Item = Size>) -> (u64, u64) {
    sizes.fold((0, 0), |(all, longest), size| (size.most.saturating_add(all), size.least.max(longest)))
}

/// Tokens of a text: a third of its bytes, or if that is more a quarter of its letters and spaces, two thirds of its signs and all of its
/// digits, since tables and lists of numbers have up to a token for each character.
fn text_tokens(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let digits = count(bytes, |byte| byte.is_ascii_digit());
    let words = count(bytes, |byte| byte.is_ascii_alphabetic() || byte == b' ');
    let foreign = count(bytes, |byte| !byte.is_ascii());
    let signs = bytes.len() as u64 - digits - words - foreign;
    let dense = (12 * digits + 8 * signs + 4 * foreign + 3 * words).div_ceil(12);
    tokens(bytes.len()).max(dense)
}

/// Counts in steps that fit a byte, which compilers turn into vector instructions.
fn count(bytes: &[u8], is: impl Fn(u8) -> bool) -> u64 {
    bytes.chunks(255).map(|chunk| u64::from(chunk.iter().map(|byte| u8::from(is(*byte))).sum::<u8>())).sum()
}

/// Tokens that a file or a sound may have beyond what is estimated of it.
fn unread(part: &Value) -> u64 {
    if is_named(part) {
        return u64::MAX;
    }
    let all = tokens(written(part));
    all - all.min(MEDIA_TOKENS)
}

/// Whether a part is only the name of what it is about: an id or an address.
fn is_named(part: &Value) -> bool {
    let fields = match part {
        Value::Object(fields) => fields,
        Value::Array(parts) => return parts.iter().any(is_named),
        _ => return false,
    };
    fields.iter().any(|(name, value)| match value {
        Value::String(text) => {
            name == "file_id" || ((name.ends_with("url") || name.ends_with("uri")) && !text.starts_with("data:"))
        }
        value => is_named(value),
    })
}

fn tokens(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(BYTES_PER_TOKEN)
}

/// How many bytes a JSON value takes, without writing it anywhere.
fn written(value: &impl Display) -> usize {
    struct Counter(usize);
    impl Write for Counter {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0 += text.len();
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // Counting cannot fail; should a value refuse to be written, what was counted stands.
    let _ = write!(counter, "{value}");
    counter.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tollkeeper_protocol::openai;

    fn asked(content: Value) -> Ask {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": content}]});
        ask(&openai::decode_request(Operation::Chat, body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn texts_of_numbers_have_more_tokens_than_prose() {
        let exact = |text: &str| bpe_openai::o200k_base().count(text) as u64;
        let digits: String = (0..5000).map(|number| format!("{},", number * 7 % 10)).collect();
        let table: String =
            (0..900).map(|number| format!("{{\"x\":{},\"y\":-{}.5}}\n", number % 90, number % 7)).collect();
        for text in [&digits, &table] {
            let (ours, exact) = (text_tokens(text), exact(text));
            assert!(ours * 5 >= exact * 4, "{ours} for {exact}");
        }
        let prose =
            "A fleet of agents that cannot overspend, not by a cent, nor by fifty calls at the last cent. ".repeat(40);
        assert_eq!(text_tokens(&prose), tokens(prose.len()));
        // Whether they fit a context is another question, for which too much is no better than too little.
        let ask = asked(json!(digits));
        assert_eq!(ask.longest_input, MESSAGE_TOKENS + tokens(digits.len()));
        assert!(ask.input_tokens > 2 * ask.longest_input, "{ask:?}");
    }

    #[test]
    fn what_is_only_named_may_be_of_any_size() {
        let text = json!({"type": "text", "text": "Read this."});
        let inline = |bytes: usize| json!({"type": "file", "file": {"file_data": format!("data:application/pdf;base64,{}", "A".repeat(bytes))}});
        let sound = json!({"type": "input_audio", "input_audio": {"data": "A".repeat(30_000), "format": "wav"}});
        let named = json!({"type": "file", "file": {"file_id": "file-abc"}});
        let far = json!({"type": "video_url", "video_url": {"url": "https://example.com/long.mp4"}});
        assert_eq!(asked(json!([text])).unread, 0);
        assert_eq!(asked(json!([text, inline(300)])).unread, 0, "small ones are in the estimate");
        let thought =
            json!({"type": "thinking", "thinking": [{"type": "text", "text": "Let me see: https://example.com"}]});
        assert_eq!(asked(json!([text, thought])).unread, 0);
        let one = asked(json!([text, inline(30_000)])).unread;
        assert!((8000..10_000).contains(&one), "{one}");
        assert!(asked(json!([inline(30_000), sound])).unread > 2 * 8000);
        for unknown in [named, far] {
            assert_eq!(asked(json!([text, unknown, inline(30_000)])).unread, u64::MAX);
        }
    }
}
