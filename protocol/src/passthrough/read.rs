//! Reads what matters of an OpenAI-shaped answer in one pass, without copying, whatever else is in it.
//!
//! Providers add fields, leave fields out and change types. So nothing here can fail but broken JSON: a value of another
//! type than expected reads as the default, and of a field given twice the last one holds.

use crate::chat::FinishReason;
use crate::usage::{ServiceTier, Usage};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::marker::PhantomData;

/// Something read from JSON by the pieces it cares for.
pub(crate) trait Read: Default {
    /// Reads the value of an object's field with [`next`], or passes over it with [`skip`].
    fn field<'de, A: MapAccess<'de>>(&mut self, _name: &str, map: &mut A) -> Result<(), A::Error> {
        skip(map)
    }
    /// Reads the next element of a list; `false` when there is none.
    fn element<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        Ok(list.next_element::<IgnoredAny>()?.is_some())
    }
    /// Takes a text.
    fn text(&mut self, _text: &str) {}
    /// Takes a number; negative ones are given as 0, fractions are cut off.
    fn number(&mut self, _number: u64) {}
}

/// Reads a whole JSON text.
pub(crate) fn from_slice<T: Read>(json: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice::<Lenient<T>>(json).map(|read| read.0)
}

fn next<'de, T: Read, A: MapAccess<'de>>(map: &mut A) -> Result<T, A::Error> {
    map.next_value::<Lenient<T>>().map(|read| read.0)
}

fn next_element<'de, T: Read, A: SeqAccess<'de>>(list: &mut A) -> Result<Option<T>, A::Error> {
    Ok(list.next_element::<Lenient<T>>()?.map(|read| read.0))
}

fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

struct Lenient<T>(T);

impl<'de, T: Read> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(LenientVisitor(PhantomData))
    }
}

struct LenientVisitor<T>(PhantomData<T>);

impl<'de, T: Read> Visitor<'de> for LenientVisitor<T> {
    type Value = Lenient<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Lenient<T>, A::Error> {
        let mut value = T::default();
        while let Some(key) = map.next_key::<Key<'de>>()? {
            value.field(&key.0, &mut map)?;
        }
        Ok(Lenient(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Lenient<T>, A::Error> {
        let mut value = T::default();
        while value.element(&mut list)? {}
        Ok(Lenient(value))
    }
    fn visit_str<E>(self, text: &str) -> Result<Lenient<T>, E> {
        let mut value = T::default();
        value.text(text);
        Ok(Lenient(value))
    }
    fn visit_u64<E>(self, number: u64) -> Result<Lenient<T>, E> {
        let mut value = T::default();
        value.number(number);
        Ok(Lenient(value))
    }
    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Lenient<T>, E> {
        self.visit_u64(u64::try_from(number).unwrap_or(0))
    }
    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Lenient<T>, E> {
        self.visit_u64(number as u64) // saturates; 0 for NaN and below
    }
    fn visit_bool<E>(self, _: bool) -> Result<Lenient<T>, E> {
        Ok(Lenient(T::default()))
    }
    fn visit_unit<E>(self) -> Result<Lenient<T>, E> {
        Ok(Lenient(T::default()))
    }
}

/// A key, borrowed from the text unless it has escapes.
pub(crate) struct Key<'de>(pub(crate) Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        reader.deserialize_str(KeyVisitor)
    }
}

/// A chunk or a whole answer of a chat, a completion or embeddings.
#[derive(Default)]
pub(crate) struct Answer {
    pub(crate) choices: Choices,
    usage: UsageFields,
    groq: Groq,
    tier: Tier,
    error: Given,
    object: Word,
}

impl Answer {
    /// The reported usage; Groq's and Moonshot's own places for it only count when the usual one is empty.
    pub(crate) fn usage(&self) -> Option<Usage> {
        let usage = [&self.usage, &self.groq.usage, &self.choices.usage].into_iter().find_map(UsageFields::usage)?;
        // OpenAI names the tariff beside the usage, Anthropic in it.
        let tier = if usage.tier == ServiceTier::Standard { self.tier.0 } else { usage.tier };
        Some(Usage { tier, ..usage })
    }

    pub(crate) fn is_error(&self) -> bool {
        self.error.0 || self.groq.error.0 || self.choices.is_error || self.object.is_error
    }
}

impl Read for Answer {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "choices" => self.choices = next(map)?,
            "usage" | "usageMetadata" => self.usage = next(map)?,
            "service_tier" => self.tier = next(map)?,
            "x_groq" => self.groq = next(map)?,
            "error" => self.error = next(map)?,
            "object" => self.object = next(map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
    fn element<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        Ok(next_element(list)?.map(|answer| *self = answer).is_some())
    }
}

/// Groq's extension: usage in the last chunk, and a word on why a stream broke off.
#[derive(Default)]
struct Groq {
    usage: UsageFields,
    error: Given,
}

impl Read for Groq {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "usage" => self.usage = next(map)?,
            "error" => self.error = next(map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// The sum over all choices.
#[derive(Default)]
pub(crate) struct Choices {
    pub(crate) count: usize,
    pub(crate) text_bytes: usize,
    /// Why the first choice that ended did.
    pub(crate) finish: Option<FinishReason>,
    /// Some choice is an error (OpenRouter has put errors there).
    is_error: bool,
    usage: UsageFields,
}

impl Read for Choices {
    fn element<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(choice) = next_element::<Choice, A>(list)? else { return Ok(false) };
        self.count += 1;
        self.text_bytes += choice.text_bytes();
        self.finish = self.finish.or(choice.finish.reason);
        self.is_error |= choice.error.0;
        self.usage = choice.usage;
        Ok(true)
    }
}

#[derive(Default)]
struct Choice {
    delta: Option<Said>,
    message: Said,
    text: TextBytes,
    finish: Word,
    error: Given,
    usage: UsageFields,
}

impl Choice {
    /// Some providers repeat the whole message so far beside each delta: then only the delta is new.
    fn text_bytes(&self) -> usize {
        self.delta.as_ref().unwrap_or(&self.message).bytes() + self.text.0
    }
}

impl Read for Choice {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "delta" => self.delta = Some(next(map)?),
            "message" => self.message = next(map)?,
            "text" => self.text = next(map)?,
            "finish_reason" => self.finish = next(map)?,
            "error" => self.error = next(map)?,
            "usage" => self.usage = next(map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// A delta or message.
#[derive(Default)]
struct Said {
    content: TextBytes,
    refusal: TextBytes,
    reasoning: TextBytes,
    reasoning_content: TextBytes,
    tool_calls: Calls,
    function_call: Calls,
}

impl Said {
    fn bytes(&self) -> usize {
        // The two spellings of reasoning carry the same text where both are sent.
        let reasoning = self.reasoning.0.max(self.reasoning_content.0);
        self.content.0 + self.refusal.0 + reasoning + self.tool_calls.bytes + self.function_call.bytes
    }
}

impl Read for Said {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "content" => self.content = next(map)?,
            "refusal" => self.refusal = next(map)?,
            "reasoning" => self.reasoning = next(map)?,
            "reasoning_content" => self.reasoning_content = next(map)?,
            "tool_calls" => self.tool_calls = next(map)?,
            "function_call" => self.function_call = next(map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// Bytes of a text, or of the texts in a list of parts (Mistral's thinking models send those).
#[derive(Default)]
struct TextBytes(usize);

impl Read for TextBytes {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "text" | "thinking" => self.0 += next::<Self, A>(map)?.0,
            _ => skip(map)?,
        }
        Ok(())
    }
    fn element<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        Ok(next_element::<Self, A>(list)?.map(|part| self.0 += part.0).is_some())
    }
    fn text(&mut self, text: &str) {
        self.0 = text.len();
    }
}

/// Bytes of the names and arguments of tool calls: a list of calls, one call, or its `function`.
#[derive(Default)]
struct Calls {
    bytes: usize,
}

impl Read for Calls {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "name" | "arguments" => self.bytes += next::<TextBytes, A>(map)?.0,
            "function" => self.bytes += next::<Self, A>(map)?.bytes,
            _ => skip(map)?,
        }
        Ok(())
    }
    fn element<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        Ok(next_element::<Self, A>(list)?.map(|call| self.bytes += call.bytes).is_some())
    }
}

/// A word with a meaning: a finish reason, an object's type.
#[derive(Default)]
struct Word {
    /// The word as a finish reason; `None` for no or an empty word.
    reason: Option<FinishReason>,
    is_error: bool,
}

impl Read for Word {
    fn text(&mut self, text: &str) {
        self.reason = (!text.is_empty()).then(|| FinishReason::from_name(text));
        self.is_error = text == "error";
    }
}

/// Whether something is there: not null, and not an empty text, object or list.
#[derive(Default)]
struct Given(bool);

impl Read for Given {
    fn field<'de, A: MapAccess<'de>>(&mut self, _name: &str, map: &mut A) -> Result<(), A::Error> {
        self.0 = true;
        skip(map)
    }
    fn element<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let more = list.next_element::<IgnoredAny>()?.is_some();
        self.0 |= more;
        Ok(more)
    }
    fn text(&mut self, text: &str) {
        self.0 = !text.is_empty();
    }
    fn number(&mut self, number: u64) {
        self.0 = number != 0;
    }
}

/// A usage object in any of the spellings providers use.
#[derive(Default)]
pub(crate) struct UsageFields {
    prompt: Count,
    completion: Count,
    total: Count,
    cached: Count,
    cache_write: Count,
    cache_write_1h: Count,
    reasoning: Count,
    /// Of the prompt when this is the details of one, and so on.
    audio: Count,
    audio_input: Count,
    audio_output: Count,
    /// Prompt tokens that are in no other count: Gemini's of tools.
    more_prompt: Count,
    tier: Tier,
    /// The input was told as `input_tokens`, and caches beside it: in Anthropic's and Bedrock's way the input is then
    /// without what was read from or written to them.
    named_input: bool,
    beside: bool,
}

/// A tariff by its name.
#[derive(Default)]
struct Tier(ServiceTier);

impl Read for Tier {
    fn text(&mut self, text: &str) {
        self.0 = ServiceTier::from_name(text);
    }
}

/// Gemini's counts by modality.
#[derive(Default)]
struct Modalities {
    is_audio: bool,
    count: Count,
    audio: Count,
}

impl Read for Modalities {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "modality" => self.is_audio = next::<Modality, A>(map)?.0,
            "tokenCount" => self.count = next(map)?,
            _ => skip(map)?,
        }
        Ok(())
    }
    fn element<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(part) = next_element::<Self, A>(list)? else { return Ok(false) };
        if part.is_audio {
            self.audio.or(part.count);
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Modality(bool);

impl Read for Modality {
    fn text(&mut self, text: &str) {
        self.0 = text == "AUDIO";
    }
}

impl UsageFields {
    /// OpenAI's way of counting, made of what was given; `None` when no count was.
    pub(crate) fn usage(&self) -> Option<Usage> {
        let (prompt, completion, total) = (self.prompt.0, self.completion.0, self.total.0);
        prompt.or(completion).or(total)?;
        let mut output = completion.unwrap_or(0);
        let (cached, written) = (self.cached.0.unwrap_or(0), self.cache_write.0.unwrap_or(0));
        let mut input = prompt.unwrap_or_else(|| total.unwrap_or(0).saturating_sub(output));
        input = input.saturating_add(self.more_prompt.0.unwrap_or(0));
        let whole = total.is_some_and(|total| total == input.saturating_add(output));
        if self.named_input && self.beside && !whole {
            input = input.saturating_add(cached).saturating_add(written);
        }
        let reasoning = self.reasoning.0.unwrap_or(0);
        // xAI and Gemini leave reasoning out of `completion_tokens`, Gemini without saying how much it was; it is in the
        // total, and paid for as output.
        output = output.max(total.unwrap_or(0).saturating_sub(input));
        if reasoning > output {
            output = output.saturating_add(reasoning);
        }
        let cached_input = cached.min(input);
        let cache_write = written.min(input - cached_input);
        Some(Usage {
            input,
            cached_input,
            cache_write,
            output,
            reasoning,
            cache_write_1h: self.cache_write_1h.0.unwrap_or(0).min(cache_write),
            audio_input: self.audio_input.0.unwrap_or(0).min(input),
            audio_output: self.audio_output.0.unwrap_or(0).min(output),
            tier: self.tier.0,
        })
    }
}

impl Read for UsageFields {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "prompt_tokens" | "promptTokenCount" => self.prompt = next(map)?,
            "input_tokens" | "inputTokens" => (self.named_input, self.prompt) = (true, next(map)?),
            "completion_tokens" | "output_tokens" | "candidatesTokenCount" | "outputTokens" => {
                self.completion = next(map)?;
            }
            "total_tokens" | "totalTokenCount" | "totalTokens" => self.total = next(map)?,
            // The details of OpenAI, and DeepSeek's, Moonshot's, Anthropic's and Perplexity's own fields.
            "prompt_tokens_details"
            | "input_tokens_details"
            | "completion_tokens_details"
            | "output_tokens_details" => {
                let details: Self = next(map)?;
                self.cached.or(details.cached);
                self.cache_write.or(details.cache_write);
                self.reasoning.or(details.reasoning);
                let of_prompt = name.starts_with("prompt") || name.starts_with("input");
                if of_prompt { &mut self.audio_input } else { &mut self.audio_output }.or(details.audio);
            }
            "promptTokensDetails" => self.audio_input.or(next::<Modalities, A>(map)?.audio),
            "candidatesTokensDetails" => self.audio_output.or(next::<Modalities, A>(map)?.audio),
            "audio_tokens" => self.audio = next(map)?,
            "toolUsePromptTokenCount" => self.more_prompt = next(map)?,
            "cached_tokens" | "prompt_cache_hit_tokens" | "cachedContentTokenCount" => self.cached.or(next(map)?),
            "cache_read_input_tokens" | "cacheReadInputTokens" => {
                self.beside = true;
                self.cached.or(next(map)?);
            }
            "cache_write_tokens" | "cache_creation_tokens" => self.cache_write.or(next(map)?),
            "cache_creation_input_tokens" | "cacheWriteInputTokens" => {
                self.beside = true;
                self.cache_write.or(next(map)?);
            }
            "cache_creation" => {
                let Self { cache_write: minutes, cache_write_1h: hour, .. } = next(map)?;
                self.beside = true;
                self.cache_write_1h.or(hour);
                self.cache_write.or(Count(
                    minutes.0.or(hour.0).map(|_| minutes.0.unwrap_or(0).saturating_add(hour.0.unwrap_or(0))),
                ));
            }
            "ephemeral_5m_input_tokens" => self.cache_write = next(map)?,
            "ephemeral_1h_input_tokens" => self.cache_write_1h = next(map)?,
            "service_tier" => self.tier = next(map)?,
            "reasoning_tokens" | "thoughtsTokenCount" => self.reasoning.or(next(map)?),
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// A number of tokens; `None` when there was no number.
#[derive(Default, Clone, Copy)]
struct Count(Option<u64>);

impl Count {
    /// Takes another place's count when that says more: providers that fill two places leave one at 0.
    fn or(&mut self, other: Self) {
        self.0 = self.0.max(other.0);
    }
}

impl Read for Count {
    fn number(&mut self, number: u64) {
        self.0 = Some(number);
    }
}
