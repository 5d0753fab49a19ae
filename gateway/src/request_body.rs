//! Reads a request's body within its limits of size and time.

use crate::error::ApiError;
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;
use tollkeeper_config::settings::Server;

/// A body that is too large is read on, and thrown away, up to so many times its limit, so that the client gets to see the answer
/// instead of a broken connection.
const PATIENCE: usize = 4;

/// The whole body.
///
/// # Errors
/// It is larger than `body_limit`, takes longer than `body_timeout`, or breaks off.
pub(crate) async fn read(body: Incoming, limits: &Server) -> Result<Bytes, ApiError> {
    timeout(limits.body_timeout, collect(body, limits.body_limit)).await.unwrap_or(Err(ApiError::BodyTimeout))
}

async fn collect(mut body: Incoming, limit: usize) -> Result<Bytes, ApiError> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit.saturating_mul(PATIENCE) {
        return Err(ApiError::BodyTooLarge { limit });
    }
    let mut whole = BytesMut::new();
    let mut first: Option<Bytes> = None;
    let mut seen = 0usize;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ApiError::BodyBroken)?.into_data() else { continue };
        seen = seen.saturating_add(data.len());
        if seen > limit {
            whole = BytesMut::new();
            first = None;
            if seen > limit.saturating_mul(PATIENCE) {
                break;
            }
            continue;
        }
        // Most bodies come in one piece, which needs no copy.
        match first.take() {
            None if whole.is_empty() => first = Some(data),
            earlier => {
                whole.reserve(announced.min(limit).saturating_sub(whole.len()).max(data.len()));
                whole.extend_from_slice(&earlier.unwrap_or_default());
                whole.extend_from_slice(&data);
            }
        }
    }
    match first {
        _ if seen > limit => Err(ApiError::BodyTooLarge { limit }),
        Some(only) => Ok(only),
        None => Ok(whole.freeze()),
    }
}
