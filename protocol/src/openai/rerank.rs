//! Rerank requests and answers. OpenAI has no such endpoint; this is the shape on which Cohere, Jina, vLLM and llama.cpp's server agree.

use super::fields::{Fields, Place, mismatch, missing};
use super::request::model;
use super::response::{AnswerMeta, Extension, UnaryUsage};
use super::wire::to_json;
use crate::DecodeError;
use crate::rerank::{RerankRequest, RerankResponse};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

/// Most documents of one request.
const MAX_DOCUMENTS: usize = 2048;
/// The query is read again with each document; that may come to so many bytes, lest a small body asks for hours of work.
const MAX_QUERY_BYTES: usize = 16 << 20;

/// Decodes a request.
pub(super) fn rerank(mut fields: Fields) -> Result<RerankRequest, DecodeError> {
    let model = model(&mut fields)?;
    let query = fields.required_text("query")?;
    let documents = documents(&mut fields)?;
    if query.is_empty() {
        return Err(DecodeError::at("query", "`query` must not be empty"));
    }
    if query.len() * documents.len() > MAX_QUERY_BYTES {
        let (bytes, count) = (query.len(), documents.len());
        let message = format!(
            "the query has {bytes} bytes and is read again with each of the {count} documents: that is more than {MAX_QUERY_BYTES} bytes; \
             shorten it, or split the documents into several requests"
        );
        return Err(DecodeError::at("query", message));
    }
    Ok(RerankRequest {
        model,
        query,
        documents,
        top_n: fields.integer("top_n", 1..=u32::MAX)?,
        return_documents: fields.flag("return_documents")?.unwrap_or(false),
    })
}

fn documents(fields: &mut Fields) -> Result<Vec<String>, DecodeError> {
    const NAME: &str = "documents";
    const EXPECTED: &str = "an array of strings or of objects with `text`";
    let list = fields.list(NAME)?.ok_or_else(|| missing(NAME, EXPECTED))?;
    if list.is_empty() {
        return Err(DecodeError::at(NAME, "`documents` must not be empty"));
    }
    if list.len() > MAX_DOCUMENTS {
        let message = format!("`documents` must have at most {MAX_DOCUMENTS} entries, got {}", list.len());
        return Err(DecodeError::at(NAME, message));
    }
    let document = |(index, value)| match value {
        Value::String(text) => Ok(text),
        object @ Value::Object(_) => Fields::new(object, Place::Element(NAME, index))?.required_text("text"),
        other => Err(mismatch(&format!("{NAME}[{index}]"), "a string or an object with `text`", &other)),
    };
    list.into_iter().enumerate().map(document).collect()
}

#[derive(Serialize)]
struct RerankBody<'a> {
    id: &'a str,
    object: &'static str,
    model: &'a str,
    results: Vec<ResultBody<'a>>,
    usage: UnaryUsage<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tollkeeper: Option<&'a Extension>,
}

#[derive(Serialize)]
struct ResultBody<'a> {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<DocumentBody<'a>>,
}

#[derive(Serialize)]
struct DocumentBody<'a> {
    text: &'a str,
}

/// A rerank body: the best documents first.
pub fn encode_rerank(
    meta: &AnswerMeta,
    asked: &RerankRequest,
    answer: &RerankResponse,
    extension: Option<&Extension>,
) -> Bytes {
    let result = |(index, relevance_score): (usize, f32)| {
        let text = asked.documents.get(index).filter(|_| asked.return_documents);
        ResultBody { index, relevance_score, document: text.map(|text| DocumentBody { text }) }
    };
    to_json(&RerankBody {
        id: &meta.id,
        object: "list",
        model: &meta.model,
        results: answer.ranked(asked.top_n).into_iter().map(result).collect(),
        usage: UnaryUsage::new(&answer.usage, extension),
        tollkeeper: extension,
    })
}
