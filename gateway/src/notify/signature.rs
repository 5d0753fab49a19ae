//! What tells a receiver that a notice is ours, and of now: an HMAC over the time and the body.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt::Write;
use tollkeeper_config::Secret;

/// The header's value, `t=<seconds since 1970>,v1=<HMAC-SHA256 of "<seconds>.<body>", hexadecimal>`.
pub(super) fn signature(secret: &Secret, unix_seconds: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes keys of every length");
    mac.update(unix_seconds.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    let mut header = format!("t={unix_seconds},v1=");
    for byte in mac.finalize().into_bytes() {
        // Writing to a String cannot fail.
        let _ = write!(header, "{byte:02x}");
    }
    header
}
