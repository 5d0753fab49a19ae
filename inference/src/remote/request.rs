//! What is sent to a provider: the client's own bytes with the fewest possible changes, and none of the client's headers.

use super::providers::{Auth, Endpoint, NEW_FIELD, OLD_FIELD, Row, StreamUsage};
use crate::reply::Call;
use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use http::{Method, Request as HttpRequest};
use http_body_util::Full;
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;
use tollkeeper_config::Provider;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::passthrough::{rename, splice, top_level};
use tollkeeper_protocol::{DecodeError, Operation, Request};

/// How one configured provider is asked.
#[derive(Debug)]
pub(super) struct Manner {
    pub(super) row: &'static Row,
    pub(super) endpoint: Endpoint,
    headers: HeaderMap,
}

impl Manner {
    /// Reads a provider's configuration.
    ///
    /// # Errors
    /// Something in it cannot be sent; the text says what.
    pub(super) fn new(row: &'static Row, provider: &Provider) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("tollkeeper/", env!("CARGO_PKG_VERSION"))));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(key) = &provider.api_key {
            let (name, value) = match row.auth {
                Auth::Bearer => (AUTHORIZATION, format!("Bearer {}", key.expose())),
                Auth::ApiKey => (HeaderName::from_static("api-key"), key.expose().to_owned()),
            };
            headers.insert(name, secret(&value).ok_or("the api_key holds characters that cannot be sent")?);
        }
        for (name, value) in &provider.headers {
            let unusable = || format!("the header `{name}` cannot be sent");
            let key = HeaderName::try_from(name).map_err(|_| unusable())?;
            headers.insert(key, secret(value.expose()).ok_or_else(unusable)?);
        }
        Ok(Self { row, endpoint: Endpoint::new(row, provider)?, headers })
    }

    /// The request to send for a call.
    ///
    /// # Errors
    /// The client's bytes cannot be changed as needed.
    pub(super) fn request(&self, model: &str, call: &Call) -> Result<HttpRequest<Full<Bytes>>, ProviderFault> {
        let bad_request = |message: String| ProviderFault::new(FaultKind::BadRequest, message);
        let uri = self
            .endpoint
            .uri(call.operation, model)
            .map_err(|_| bad_request(format!("the model name `{model}` cannot be part of a URL")))?;
        if let Some(field) = self.row.other_models.iter().find(|field| call.request.extra(field).is_some()) {
            return Err(bad_request(format!(
                "`{field}` would have the provider answer with, and bill, other models than `{model}`: name them as targets of an alias instead"
            )));
        }
        let original = self.in_its_words(call).map_err(|error| bad_request(error.message))?;
        let changes = self.changes(model, call, &original)?;
        let body = splice(&original, &changes).map_err(|error| bad_request(error.message))?;
        let mut request = HttpRequest::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        let accept = if shape(&call.request).stream { "text/event-stream" } else { "application/json" };
        request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static(accept));
        Ok(request)
    }

    /// A question about the server itself: a `GET` of a path below its root.
    ///
    /// # Errors
    /// The path makes no address.
    pub(super) fn question(&self, path: &str) -> Result<HttpRequest<Full<Bytes>>, http::uri::InvalidUri> {
        let mut request = HttpRequest::new(Full::default());
        *request.uri_mut() = self.endpoint.below_root(path)?;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().remove(CONTENT_TYPE);
        request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        Ok(request)
    }

    /// The client's bytes, with the limit of the answer named as the provider knows it: one that passed over it would generate, and bill, more
    /// than was leased.
    fn in_its_words(&self, call: &Call) -> Result<Bytes, DecodeError> {
        let body = &call.original;
        // A look at the bytes saves most bodies from being read for this.
        let foreign =
            self.output_field(call.operation) == OLD_FIELD && memmem::find(body, NEW_FIELD.as_bytes()).is_some();
        if !foreign || top_level(body, OLD_FIELD).is_some() {
            return Ok(body.clone());
        }
        rename(body, NEW_FIELD, OLD_FIELD)
    }

    /// The field that limits an answer.
    fn output_field(&self, operation: Operation) -> &'static str {
        if operation == Operation::Chat { self.row.output_field } else { OLD_FIELD }
    }

    /// The top-level fields that must differ from what the client sent.
    fn changes(
        &self,
        model: &str,
        call: &Call,
        original: &Bytes,
    ) -> Result<Vec<(&'static str, String)>, ProviderFault> {
        let mut changes = vec![("model", serde_json::Value::from(model).to_string())];
        let shape = shape(&call.request);
        let wants_usage = shape.stream && !shape.include_usage && self.row.stream_usage == StreamUsage::Asked;
        let refused_usage = shape.include_usage && self.row.stream_usage == StreamUsage::Unasked;
        let limit = limit_of_each(call, &shape);
        if !wants_usage && !refused_usage && limit.is_none() {
            return Ok(changes);
        }
        let sent: Sent<'_> = serde_json::from_slice(original).map_err(|error| {
            ProviderFault::new(FaultKind::BadRequest, format!("the body is not a valid request: {error}"))
        })?;
        if wants_usage {
            changes.push(("stream_options", with_usage(sent.stream_options)));
        } else if refused_usage {
            changes.push(("stream_options", "null".to_owned()));
        }
        if let Some(limit) = limit {
            self.limit_output(limit, call.operation, &sent, &mut changes);
        }
        Ok(changes)
    }

    /// Lowers the limits that the client sent, and sets the one that the provider reads if there is none, so that no answer has more than
    /// `limit` tokens. Fields that the provider does not read are lowered too: it may learn to read them.
    fn limit_output(
        &self,
        limit: u64,
        operation: Operation,
        sent: &Sent<'_>,
        changes: &mut Vec<(&'static str, String)>,
    ) {
        let fields = [(OLD_FIELD, sent.max_tokens), (NEW_FIELD, sent.max_completion_tokens)];
        let own = self.output_field(operation);
        // Who reads the new field reads the old one as well.
        let is_read = fields.iter().any(|(name, value)| value.is_some() && (*name == own || own == NEW_FIELD));
        if !is_read {
            changes.push((own, limit.to_string()));
        }
        let set = fields.iter().filter_map(|(name, value)| Some((*name, (*value)?)));
        changes.extend(set.map(|(name, value)| (name, (value as u64).min(limit).to_string())));
    }
}

/// The most tokens that one answer may have: what the client asked for, as it was leased, and what its budgets can pay.
fn limit_of_each(call: &Call, shape: &Shape) -> Option<u64> {
    let answers = shape.answers?;
    // Together they have at most `output_limit`, of which there is at least one for each.
    let affordable = call.output_limit.map(|limit| (limit / answers.max(1)).max(1));
    call.request.max_tokens().map(u64::from).into_iter().chain(affordable).min()
}

/// A header value that is never printed.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The client's fields that may have to change. Limits are whole numbers of 32 bits, but may be written as `5.0`.
#[derive(Deserialize)]
struct Sent<'a> {
    #[serde(borrow, default)]
    stream_options: Option<&'a RawValue>,
    #[serde(default)]
    max_tokens: Option<f64>,
    #[serde(default)]
    max_completion_tokens: Option<f64>,
}

/// The client's stream options, with the usage asked for.
fn with_usage(options: Option<&RawValue>) -> String {
    let asked = [("include_usage", "true".to_owned())];
    options
        .and_then(|options| splice(&Bytes::copy_from_slice(options.get().as_bytes()), &asked).ok())
        .and_then(|options| String::from_utf8(options.to_vec()).ok())
        .unwrap_or_else(|| r#"{"include_usage":true}"#.to_owned())
}

/// What of a request decides how it is sent.
pub(super) struct Shape {
    pub(super) stream: bool,
    include_usage: bool,
    /// How many answers it asks for; `None` when nothing is generated.
    answers: Option<u64>,
}

pub(super) fn shape(request: &Request) -> Shape {
    let answers = Some(request.written_answers()).filter(|_| request.operation().generates());
    Shape { stream: request.stream(), include_usage: request.include_usage(), answers }
}
