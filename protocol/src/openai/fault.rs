//! Error bodies, ours and the providers'.

use crate::fault::ProviderFault;
use bytes::Bytes;
use std::time::Duration;

/// An error as OpenAI's clients read it.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorBody {
    /// What happened and what to do.
    pub message: String,
    /// The class, e.g. `invalid_request_error`.
    pub r#type: String,
    /// The exact case, e.g. `model_not_found`.
    pub code: Option<String>,
    /// The request field at fault.
    pub param: Option<String>,
    /// The budget that refused, an extension.
    pub budget: Option<serde_json::Value>,
}

impl ErrorBody {
    /// `{"error":{…}}`.
    pub fn to_json(&self) -> Bytes {
        todo!()
    }
}

/// Reads any provider's error answer.
pub fn decode_error(_status: u16, _retry_after: Option<Duration>, _body: &[u8]) -> ProviderFault {
    todo!()
}
