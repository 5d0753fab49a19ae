//! Same dialect on both sides: bytes go through as they came, single fields are spliced, usage is peeked.

pub(crate) mod read;

use crate::DecodeError;
use crate::chat::FinishReason;
use crate::fault::ProviderFault;
use crate::openai::decode_error;
use crate::usage::Usage;
use bytes::{Bytes, BytesMut};
use read::Answer;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::ops::Range;

/// What the gateway needs to know of a stream's chunk.
#[derive(Debug, Clone, Default)]
pub struct ChunkPeek {
    /// Token counts, when this chunk reports them (a report of zero is a report). The last report of a stream holds.
    pub usage: Option<Usage>,
    /// There are no choices: a chunk of usage, when it has one, and else a note (Azure's `prompt_filter_results`).
    pub no_choices: bool,
    /// Bytes of generated text: content, reasoning, refusal, names and arguments of tool calls.
    pub text_bytes: usize,
    /// Some choice has ended.
    pub finished: bool,
    /// The chunk is an error.
    pub error: Option<ProviderFault>,
}

/// What the gateway needs to know of a whole answer.
#[derive(Debug, Clone, Default)]
pub struct BodyPeek {
    /// Token counts, when reported.
    pub usage: Option<Usage>,
    /// Bytes of generated text, as in [`ChunkPeek::text_bytes`]; 0 for embeddings.
    pub text_bytes: usize,
    /// Why the first choice ended.
    pub finish: Option<FinishReason>,
    /// The body is an error, whatever its HTTP status said.
    pub error: Option<ProviderFault>,
}

/// Reads a `chat.completion.chunk` or `text_completion` chunk without copying its texts.
///
/// # Errors
/// The data is not a JSON object. Unknown or ill-typed fields are no error: they are passed over.
pub fn peek_chunk(data: &[u8]) -> Result<ChunkPeek, DecodeError> {
    let answer = read_answer(data)?;
    Ok(ChunkPeek {
        usage: answer.usage(),
        no_choices: answer.choices.count == 0,
        text_bytes: answer.choices.text_bytes,
        finished: answer.choices.finish.is_some(),
        error: answer.is_error().then(|| decode_error(200, None, data)),
    })
}

/// Reads a unary chat, completion or embeddings answer without copying its texts.
///
/// # Errors
/// The body is not a JSON object. Unknown or ill-typed fields are no error: they are passed over.
pub fn peek_body(body: &[u8]) -> Result<BodyPeek, DecodeError> {
    let answer = read_answer(body)?;
    Ok(BodyPeek {
        usage: answer.usage(),
        text_bytes: answer.choices.text_bytes,
        finish: answer.choices.finish,
        error: answer.is_error().then(|| decode_error(200, None, body)),
    })
}

pub(crate) fn read_answer(json: &[u8]) -> Result<Answer, DecodeError> {
    // A list is read too: Gemini puts its errors into one.
    if !matches!(json.trim_ascii_start().first(), Some(b'{' | b'[')) {
        return Err(DecodeError::new("the provider sent something that is not a JSON object"));
    }
    read::from_slice(json).map_err(|error| DecodeError::new(format!("the provider sent broken JSON: {error}")))
}

/// Whether these bytes are anywhere in a body, be it in a key, a value or a text.
pub fn mentions(body: &[u8], word: &str) -> bool {
    memchr::memmem::find(body, word.as_bytes()).is_some()
}

/// Whether a frame's data is the end marker `[DONE]`.
pub fn is_done(data: &[u8]) -> bool {
    data.trim_ascii() == b"[DONE]"
}

/// Sets top-level fields of a JSON object to raw JSON values. Every other byte stays as it came: a field that is there is
/// replaced in place (each time it is there, so that no reader can see another value), one that is not is put before the
/// final brace.
///
/// ```
/// # use tollkeeper_protocol::passthrough::splice;
/// let body = bytes::Bytes::from_static(br#"{ "model": "fast", "n":1 }"#);
/// let spliced = splice(&body, &[("model", r#""gpt-5""#.into()), ("stream", "true".into())])?;
/// assert_eq!(spliced, r#"{ "model": "gpt-5", "n":1 ,"stream":true}"#);
/// # Ok::<(), tollkeeper_protocol::DecodeError>(())
/// ```
///
/// # Errors
/// The body is not a JSON object.
pub fn splice(body: &Bytes, changes: &[(&str, String)]) -> Result<Bytes, DecodeError> {
    let names: Vec<&str> = changes.iter().map(|(name, _)| *name).collect();
    let Fields { found, is_empty } = fields(body, &names)?;
    if changes.is_empty() {
        return Ok(body.clone());
    }
    let added: usize = changes.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    let mut out = BytesMut::with_capacity(body.len() + added);
    let mut at = 0;
    for Found { field, value, .. } in &found {
        out.extend_from_slice(&body[at..value.start]);
        out.extend_from_slice(changes[*field].1.as_bytes());
        at = value.end;
    }
    let brace = body.trim_ascii_end().len() - 1;
    out.extend_from_slice(&body[at..brace]);
    let mut comma = !is_empty;
    for (change, (name, value)) in changes.iter().enumerate() {
        if found.iter().all(|found| found.field != change) {
            let comma = if std::mem::replace(&mut comma, true) { "," } else { "" };
            out.extend_from_slice(format!("{comma}{}:{value}", serde_json::Value::from(*name)).as_bytes());
        }
    }
    out.extend_from_slice(&body[brace..]);
    Ok(out.freeze())
}

/// Gives a top-level field of a JSON object another name; its value, and every other byte, stays as it came. Where there is no such field, or
/// its name is written with escapes, nothing changes.
///
/// # Errors
/// The body is not a JSON object.
pub fn rename(body: &Bytes, from: &str, to: &str) -> Result<Bytes, DecodeError> {
    let mut out = BytesMut::with_capacity(body.len() + to.len());
    let mut at = 0;
    for name in fields(body, &[from])?.found.into_iter().filter_map(|found| found.name) {
        out.extend_from_slice(&body[at..name.start]);
        out.extend_from_slice(to.as_bytes());
        at = name.end;
    }
    out.extend_from_slice(&body[at..]);
    Ok(out.freeze())
}

/// The raw value of a top-level field; the last one, where there are several. `None` also when the text is no JSON object.
pub fn top_level<'a>(json: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let found = fields(json, &[name]).ok()?.found.pop()?;
    Some(&json[found.value])
}

/// Where the wanted top-level fields of an object are.
struct Fields {
    /// In the order of the text.
    found: Vec<Found>,
    /// The object has no field at all.
    is_empty: bool,
}

struct Found {
    /// Index into the wanted names.
    field: usize,
    /// The bytes of its name, unless they hold escapes.
    name: Option<Range<usize>>,
    /// The bytes of its value.
    value: Range<usize>,
}

fn fields(json: &[u8], wanted: &[&str]) -> Result<Fields, DecodeError> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    FieldFinder { base: json.as_ptr().addr(), wanted }
        .deserialize(&mut reader)
        .and_then(|fields| reader.end().map(|()| fields))
        .map_err(|error| DecodeError::new(format!("the body is not a valid JSON object: {error}")))
}

struct FieldFinder<'n> {
    /// Address of the text's first byte; the values are slices of the text, so their addresses are their places.
    base: usize,
    wanted: &'n [&'n str],
}

impl<'de> DeserializeSeed<'de> for FieldFinder<'_> {
    type Value = Fields;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Fields, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldFinder<'_> {
    type Value = Fields;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields { found: Vec::new(), is_empty: true };
        let place = |text: &str| {
            let start = text.as_ptr().addr() - self.base;
            start..start + text.len()
        };
        while let Some(key) = map.next_key::<read::Key<'de>>()? {
            fields.is_empty = false;
            let value = map.next_value::<&RawValue>()?.get();
            if let Some(field) = self.wanted.iter().position(|name| *name == key.0) {
                let name = match key.0 {
                    Cow::Borrowed(name) => Some(place(name)),
                    Cow::Owned(_) => None,
                };
                fields.found.push(Found { field, name, value: place(value) });
            }
        }
        Ok(fields)
    }
}
