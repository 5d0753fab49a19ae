//! Money, prices and secrets as types, and the text forms of money, durations and sizes.

use std::fmt;
use std::time::Duration;

/// An amount of money in nano-dollars (10^-9 USD). Displayed as an exact decimal, e.g. `0.000123456`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Usd(pub i64);

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Reads an exact decimal in USD such as `5`, `5.00` or `-0.000000001`; at most nine decimals.
    pub fn parse_decimal(text: &str) -> Result<Self, BadDecimal> {
        let bad = BadDecimal { decimals: 9 };
        let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
        let nano = i128::from(scaled_decimal(digits, 9).ok_or(bad)?);
        i64::try_from(sign * nano).map(Self).map_err(|_| bad)
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

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 < 0 { "-" } else { "" })?;
        decimal(f, self.0.unsigned_abs(), 9)
    }
}

/// A price in pico-dollars per token: 1 USD per million tokens is 1,000,000. Displayed in USD per million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PicoUsd(pub u64);

impl PicoUsd {
    /// Reads an exact decimal in USD per million tokens such as `0.15`; at most six decimals.
    pub fn parse_per_million(text: &str) -> Result<Self, BadDecimal> {
        scaled_decimal(text, 6).map(Self).ok_or(BadDecimal { decimals: 6 })
    }
}

impl fmt::Display for PicoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        decimal(f, self.0, 6)
    }
}

/// A text that is not an exact decimal, or has too many decimals, or is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an exact decimal with at most {decimals} decimals")]
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

/// Writes `scaled` divided by 10^`decimals`, without trailing zeros.
fn decimal(f: &mut fmt::Formatter<'_>, scaled: u64, mut decimals: u32) -> fmt::Result {
    let one = 10u64.pow(decimals);
    let (whole, mut fraction) = (scaled / one, scaled % one);
    if fraction == 0 {
        return write!(f, "{whole}");
    }
    while fraction % 10 == 0 {
        (fraction, decimals) = (fraction / 10, decimals - 1);
    }
    write!(f, "{whole}.{fraction:0>width$}", width = decimals as usize)
}

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

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

const DURATION_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a whole number of `ms`, `s`, `m`, `h` or `d`, such as `30s`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    measure(text, &DURATION_UNITS).map(Duration::from_millis)
}

const SIZE_UNITS: [(&str, u64); 8] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Reads a whole number of bytes with a unit, such as `32MiB`.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    measure(text, &SIZE_UNITS)
}

fn measure(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn money_is_read_and_written_exactly() {
        let cases = [
            ("0", 0, "0"),
            ("5.00", 5_000_000_000, "5"),
            ("0.00012", 120_000, "0.00012"),
            ("0.000000001", 1, "0.000000001"),
            ("-1.5", -1_500_000_000, "-1.5"),
            ("9223372036.854775807", i64::MAX, "9223372036.854775807"),
            ("-9223372036.854775808", i64::MIN, "-9223372036.854775808"),
            ("0.1000000000000", 100_000_000, "0.1"),
        ];
        for (text, nano, shown) in cases {
            assert_eq!(Usd::parse_decimal(text), Ok(Usd(nano)), "{text}");
            assert_eq!(Usd(nano).to_string(), shown);
        }
    }

    #[test]
    fn refuses_what_is_not_an_exact_decimal() {
        for text in
            ["", ".", "1.", ".5", "+1", "1e3", "1,000", " 1", "1_0", "0.0000000001", "9223372036.854775808", "$5"]
        {
            assert_eq!(Usd::parse_decimal(text), Err(BadDecimal { decimals: 9 }), "{text}");
        }
        assert_eq!(PicoUsd::parse_per_million("0.0000001"), Err(BadDecimal { decimals: 6 }));
        assert_eq!(PicoUsd::parse_per_million("-1"), Err(BadDecimal { decimals: 6 }));
        assert_eq!(PicoUsd::parse_per_million("0.0115"), Ok(PicoUsd(11_500)));
    }

    #[test]
    fn reads_durations_and_sizes() {
        let durations = [
            ("100ms", Some(100)),
            ("30s", Some(30_000)),
            ("5m", Some(300_000)),
            ("2h", Some(7_200_000)),
            ("1d", Some(86_400_000)),
        ];
        for (text, millis) in durations {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text}");
        }
        for text in ["", "s", "30", "-1s", "1.5s", "1w", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        assert_eq!(parse_size("24GiB"), Some(24 << 30));
        assert_eq!(parse_size("32 MiB"), Some(32 << 20));
        assert_eq!(parse_size("10MB"), Some(10_000_000));
        assert_eq!(parse_size("24 gigs"), None);
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert!(!format!("{:?}", Secret::new("sk-abc")).contains("abc"));
    }

    proptest! {
        #[test]
        fn money_survives_its_text(nano: i64) {
            prop_assert_eq!(Usd::parse_decimal(&Usd(nano).to_string()), Ok(Usd(nano)));
        }

        #[test]
        fn prices_survive_their_text(pico: u64) {
            prop_assert_eq!(PicoUsd::parse_per_million(&PicoUsd(pico).to_string()), Ok(PicoUsd(pico)));
        }

        #[test]
        fn reading_money_never_panics(text: String) {
            let _ = (Usd::parse_decimal(&text), PicoUsd::parse_per_million(&text), parse_duration(&text), parse_size(&text));
        }
    }
}
