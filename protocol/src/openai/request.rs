//! Decodes request bodies.

use crate::{DecodeError, Operation, Request};

/// Decodes the body of a request.
pub fn decode_request(_op: Operation, _body: &[u8]) -> Result<Request, DecodeError> {
    todo!()
}
