//! Error bodies: ours as OpenAI's clients read them, and whatever providers answer.

use super::wire::to_json;
use crate::fault::{FaultDetail, FaultKind, ProviderFault};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// An error as OpenAI's clients read it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ErrorBody {
    /// What happened and what to do.
    pub message: String,
    /// The class, e.g. `invalid_request_error`.
    pub r#type: String,
    /// The request field at fault.
    pub param: Option<String>,
    /// The exact case, e.g. `model_not_found`.
    pub code: Option<String>,
    /// The budget that refused, an extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Value>,
}

impl ErrorBody {
    /// `{"error":{…}}`.
    pub fn to_json(&self) -> Bytes {
        #[derive(Serialize)]
        struct Outer<'a> {
            error: &'a ErrorBody,
        }
        to_json(&Outer { error: self })
    }
}

/// Most characters of a provider's message that are passed on.
const MAX_MESSAGE: usize = 1000;
/// Most bytes of an error that are read.
const MAX_BODY: usize = 64 * 1024;

/// Reads any provider's error answer: OpenAI's shape and its many variations, plain text, HTML or nothing.
///
/// `status` is the HTTP status; 200 for an error inside a stream or a body that was sent as a success. `retry_after` is what the
/// headers said. The message is cut to a bearable length, and words that look like keys are taken out of it.
pub fn decode_error(status: u16, retry_after: Option<Duration>, body: &[u8]) -> ProviderFault {
    let body = &body[..body.len().min(MAX_BODY)];
    let said = serde_json::from_slice(body).map_or_else(|_| Said::from_text(body), Said::from_json);
    let own_status = (400..=599).contains(&status).then_some(status);
    let status = own_status.or(said.status);
    let message = match scrub(&said.message) {
        message if message.is_empty() => match status {
            Some(status) => format!("the provider answered with status {status} and no explanation"),
            None => "the provider reported an error without an explanation".to_owned(),
        },
        message => message,
    };
    let detail = (said.detail != FaultDetail::default()).then(|| Box::new(said.detail.clone()));
    let retry_after = retry_after.or(said.retry_after);
    ProviderFault { status, retry_after, detail, ..ProviderFault::new(said.kind(status), message) }
}

/// What an error answer says.
#[derive(Debug, Default)]
struct Said {
    message: String,
    detail: FaultDetail,
    /// Google's word for the status.
    word: Option<String>,
    /// The HTTP status the body names.
    status: Option<u16>,
    retry_after: Option<Duration>,
}

impl Said {
    fn from_text(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let lower = text.to_ascii_lowercase();
        let is_html = lower.trim_start().starts_with('<');
        let message = match (lower.find("<title>"), lower.find("</title>")) {
            (Some(start), Some(end)) if is_html && start + 7 <= end => text[start + 7..end].to_owned(),
            _ if is_html => String::new(),
            _ => text.into_owned(),
        };
        Self { message, ..Self::default() }
    }

    fn from_json(value: Value) -> Self {
        let outer = match value {
            Value::Array(list) => list.into_iter().next().unwrap_or(Value::Null),
            other => other,
        };
        // The error itself, or what stands where it should.
        let places = [&outer["error"], &outer["choices"][0]["error"], &outer["x_groq"]["error"]];
        let error = places.into_iter().find(|error| !error.is_null()).unwrap_or(&outer);
        let message = [words(error), words(&outer["message"])].into_iter().find(|message| !message.is_empty());
        let text = |value: &Value| match value {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let code = text(&error["code"]);
        let status = [code.clone(), text(&error["status"]), text(&outer["status_code"]), text(&outer["statusCode"])];
        Self {
            message: message.unwrap_or_default(),
            word: text(&error["status"]),
            status: status
                .into_iter()
                .flatten()
                .filter_map(|code| code.parse().ok())
                .find(|code| (400..=599).contains(code)),
            retry_after: error["details"].as_array().into_iter().flatten().find_map(retry_delay),
            detail: FaultDetail { r#type: text(&error["type"]), code, param: text(&error["param"]) },
        }
    }

    fn kind(&self, status: Option<u16>) -> FaultKind {
        let words =
            [self.detail.code.as_deref(), self.detail.r#type.as_deref(), self.word.as_deref(), Some(&self.message)];
        let find = |table: &[(&str, FaultKind)]| {
            let kind =
                |word: &str| table.iter().find(|(name, _)| word.eq_ignore_ascii_case(name)).map(|(_, kind)| *kind);
            words.into_iter().flatten().find_map(kind)
        };
        let message = self.message.to_ascii_lowercase();
        let by_message = || MESSAGES.iter().find(|(part, _)| message.contains(part)).map(|(_, kind)| *kind);
        find(EXACT)
            .or_else(|| by_message().filter(|_| status.is_none_or(|status| matches!(status, 400 | 413 | 422 | 500))))
            .or_else(|| status.map(by_status))
            .or_else(|| find(GENERAL))
            .unwrap_or(FaultKind::Internal)
    }
}

/// Words that say more than the status they come with.
const EXACT: &[(&str, FaultKind)] = &[
    ("context_length_exceeded", FaultKind::ContextLength),
    ("exceed_context_size_error", FaultKind::ContextLength),
    ("insufficient_quota", FaultKind::Unavailable),
    ("billing_hard_limit_reached", FaultKind::Unavailable),
    ("billing_not_active", FaultKind::Unavailable),
    ("access_terminated", FaultKind::Unavailable),
    ("invalid_api_key", FaultKind::Auth),
    ("authentication_error", FaultKind::Auth),
    ("unauthenticated", FaultKind::Auth),
    ("model_not_found", FaultKind::NotFound),
    ("model_decommissioned", FaultKind::NotFound),
    ("deploymentnotfound", FaultKind::NotFound),
    ("rate_limit_exceeded", FaultKind::RateLimited),
    ("resource_exhausted", FaultKind::RateLimited),
    ("overloaded_error", FaultKind::Overloaded),
    ("over_capacity", FaultKind::Overloaded),
];

/// Words that count when there is no status to go by.
const GENERAL: &[(&str, FaultKind)] = &[
    ("invalid_request_error", FaultKind::BadRequest),
    ("badrequesterror", FaultKind::BadRequest),
    ("invalid_argument", FaultKind::BadRequest),
    ("content_filter", FaultKind::BadRequest),
    ("permission_error", FaultKind::Auth),
    ("permission_denied", FaultKind::Auth),
    ("not_found_error", FaultKind::NotFound),
    ("notfounderror", FaultKind::NotFound),
    ("not_found", FaultKind::NotFound),
    ("rate_limit_error", FaultKind::RateLimited),
    ("tokens", FaultKind::RateLimited),
    ("requests", FaultKind::RateLimited),
    ("unavailable", FaultKind::Overloaded),
    ("service_unavailable", FaultKind::Overloaded),
    ("overloaded", FaultKind::Overloaded),
    ("timeout", FaultKind::Timeout),
    ("deadline_exceeded", FaultKind::Timeout),
];

/// What providers write that have no word for it, in lower case; only believed where the status leaves it open.
const MESSAGES: &[(&str, FaultKind)] = &[
    ("maximum context length", FaultKind::ContextLength),
    ("context length exceeded", FaultKind::ContextLength),
    ("context_length_exceeded", FaultKind::ContextLength),
    ("available context size", FaultKind::ContextLength),
    ("context window", FaultKind::ContextLength),
    ("exceeds the context", FaultKind::ContextLength),
    ("exceeds the maximum number of tokens", FaultKind::ContextLength),
    ("prompt is too long", FaultKind::ContextLength),
    ("maximum prompt length", FaultKind::ContextLength),
    ("api key not valid", FaultKind::Auth),
    ("incorrect api key", FaultKind::Auth),
    ("insufficient balance", FaultKind::Unavailable),
];

fn by_status(status: u16) -> FaultKind {
    match status {
        401 | 403 | 407 => FaultKind::Auth,
        402 => FaultKind::Unavailable,
        404 | 410 => FaultKind::NotFound,
        408 => FaultKind::Timeout,
        409 | 424 | 425 => FaultKind::Internal,
        429 => FaultKind::RateLimited,
        // 498 is Groq's "flex tier capacity exceeded".
        498 | 503 | 529 => FaultKind::Overloaded,
        499 => FaultKind::Connection,
        400..=497 => FaultKind::BadRequest,
        _ => FaultKind::Internal,
    }
}

/// Google's `RetryInfo`: `"retryDelay":"17.5s"`.
fn retry_delay(detail: &Value) -> Option<Duration> {
    let seconds: f64 = detail["retryDelay"].as_str()?.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// The readable text of a message, whatever form it has.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let texts: Vec<String> = list.iter().take(4).map(words).filter(|text| !text.is_empty()).collect();
            texts.join("; ")
        }
        Value::Object(fields) => {
            let names = ["message", "detail", "msg", "error", "errors", "error_description"];
            names
                .iter()
                .filter_map(|name| fields.get(*name))
                .map(words)
                .find(|text| !text.is_empty())
                .unwrap_or_default()
        }
        _ => String::new(),
    }
}

/// One line of bearable length without words that look like keys.
fn scrub(message: &str) -> String {
    let mut clean = String::new();
    for word in message.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if clean.len() > MAX_MESSAGE {
            clean.push_str(" …");
            break;
        }
        if !clean.is_empty() {
            clean.push(' ');
        }
        if looks_like_key(word) {
            clean.push_str("[redacted]");
        } else {
            clean.extend(word.chars().take(MAX_MESSAGE));
        }
    }
    clean
}

fn looks_like_key(word: &str) -> bool {
    const PREFIXES: [&str; 8] = ["sk-", "gsk_", "xai-", "pplx-", "csk-", "AIza", "fw_", "tgp_"];
    let word = word.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    word.contains("***") || (word.len() >= 12 && PREFIXES.iter().any(|prefix| word.starts_with(prefix)))
}
