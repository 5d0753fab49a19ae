//! Money, prices and secrets as types.

/// An amount of money in nano-dollars (10^-9 USD). Displayed as an exact decimal, e.g. `0.000123456`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Usd(pub i64);

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Reads an exact decimal such as `5`, `5.00` or `-0.000000001`; at most nine decimals.
    pub fn parse_decimal(text: &str) -> Result<Self, BadDecimal> {
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let scaled = scaled_decimal(digits, 9).ok_or(BadDecimal { decimals: 9 })?;
        let signed = if negative { -i128::from(scaled) } else { i128::from(scaled) };
        i64::try_from(signed).map(Self).map_err(|_| BadDecimal { decimals: 9 })
    }

    /// The sum, or `None` when it does not fit.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, or `None` when it does not fit.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// The sum, or the nearest amount that fits.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or the nearest amount that fits.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl std::fmt::Display for Usd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nano = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        let fraction = format!("{:09}", nano % 1_000_000_000);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        write!(f, "{sign}{}{dot}{fraction}", nano / 1_000_000_000)
    }
}

/// A text that is not an exact decimal, or has too many decimals, or is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an exact decimal such as \"0.15\" with at most {decimals} decimals")]
pub struct BadDecimal {
    /// Most decimals that are kept exactly.
    pub decimals: u32,
}

/// `digits[.digits]` times 10^`decimals`, exactly.
fn scaled_decimal(text: &str, decimals: usize) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let all_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > decimals {
        return None;
    }
    format!("{whole}{fraction:0<decimals$}").parse().ok()
}

/// A price in pico-dollars per token: 1 USD per million tokens is 1,000,000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PicoUsd(pub u64);

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// The text itself; for sending and hashing only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}
