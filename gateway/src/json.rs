//! JSON as this gateway's own endpoints take and show it: bodies, changes of parts, lists, and amounts of money.

use crate::app::App;
use crate::error::ApiError;
use crate::request_body;
use hyper::body::Incoming;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::borrow::Cow;
use tollkeeper_config::Usd;
use tollkeeper_protocol::DecodeError;

/// An amount in USD: a text such as "0.50" with at most 9 decimals, or a number. Shown as a text, exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Money(pub(crate) Usd);

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = match Value::deserialize(from)? {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            other => other.to_string(),
        };
        let read = Usd::parse_decimal(&text).ok().filter(|usd| *usd >= Usd::ZERO).map(Self);
        read.ok_or_else(|| {
            D::Error::custom(format!("{text} is no amount in USD such as \"0.50\", with at most 9 decimals"))
        })
    }
}

impl JsonSchema for Money {
    fn schema_name() -> Cow<'static, str> {
        "Usd".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An exact amount in USD with at most 9 decimals. Numbers are taken too; texts are shown.",
            "type": ["string", "number"],
            "pattern": "^[0-9]+(\\.[0-9]{1,9})?$",
            "minimum": 0,
            "examples": ["0.50"]
        })
    }
}

/// A list, in the form that OpenAI's lists have.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct List<T> {
    object: ListTag,
    data: Vec<T>,
}

/// What lists call themselves.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ListTag {
    List,
}

impl<T> List<T> {
    pub(crate) fn of(data: Vec<T>) -> Self {
        Self { object: ListTag::List, data }
    }
}

/// Reads a body; an empty one is an empty object.
///
/// # Errors
/// It does not arrive whole, or says something else than it may.
pub(crate) async fn read<T: DeserializeOwned>(app: &App, body: Incoming) -> Result<T, ApiError> {
    let config = app.config.load_full();
    let body = request_body::read(body, &config.server).await?;
    let body = if body.is_empty() { b"{}" } else { &body[..] };
    serde_json::from_slice(body).map_err(|cause| ApiError::BadRequest(DecodeError::new(cause.to_string())))
}

/// Lays a change over a value: what it does not name stays, and null takes away (RFC 7396, for one level of keys).
///
/// # Errors
/// The result says something that it may not.
pub(crate) fn changed<T: Serialize + DeserializeOwned>(value: &T, change: Value) -> Result<T, ApiError> {
    let wrong = |cause: serde_json::Error| ApiError::BadRequest(DecodeError::new(cause.to_string()));
    let Value::Object(change) = change else {
        return Err(bad("", "a change is a JSON object of what is to be changed"));
    };
    let mut whole = serde_json::to_value(value).map_err(wrong)?;
    if let Some(whole) = whole.as_object_mut() {
        for (key, value) in change {
            // What has a default is missing when it is taken away.
            if value.is_null() { _ = whole.remove(&key) } else { _ = whole.insert(key, value) }
        }
    }
    serde_json::from_value(whole).map_err(wrong)
}

/// A value that cannot be as it is.
pub(crate) fn bad(param: &str, message: impl Into<String>) -> ApiError {
    ApiError::BadRequest(if param.is_empty() { DecodeError::new(message) } else { DecodeError::at(param, message) })
}
