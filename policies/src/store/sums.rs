//! Sums as stores give them, as reports tell them.

use super::StoreError;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use tollkeeper_config::Usd;

/// A sum of tokens.
pub(super) fn tokens(sum: i128) -> Result<u64, StoreError> {
    u64::try_from(sum).map_err(|_| StoreError("a sum of tokens does not fit 64 bits".into()))
}

/// A sum of nano-dollars.
pub(super) fn usd(sum: i128) -> Result<Usd, StoreError> {
    i64::try_from(sum).map(Usd).map_err(|_| StoreError("a sum of money does not fit 64 bits".into()))
}

/// The date of a day, counted from 1970 in UTC.
pub(super) fn date(day: i64) -> Option<String> {
    let midnight = Timestamp::UNIX_EPOCH.checked_add((day.saturating_mul(24)).hours());
    midnight.map(|midnight| TimeZone::UTC.to_datetime(midnight).date().to_string()).ok()
}
