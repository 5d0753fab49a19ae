//! What a provider says of its rate limits beside an answer: how much more it takes, and for how long that is worth knowing.

use http::HeaderMap;
use jiff::Timestamp;
use std::time::Duration;

/// Limits fill up again bit by bit: what was left is not believed for longer.
const BELIEVED: Duration = Duration::from_secs(60);

/// What is left of a limit, and for how long that is worth knowing.
pub(crate) type Left = (u64, Duration);

/// What an answer told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) requests: Option<Left>,
    pub(crate) tokens: Option<Left>,
}

/// What is left of rate limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Headroom {
    /// Requests; `None` if it does not tell.
    pub requests: Option<u64>,
    /// Tokens; `None` if it does not tell.
    pub tokens: Option<u64>,
}

/// The headers of a kind of limit: what is left, and when that is over (as a length such as `6m0s`, or as a time).
type Names = (&'static str, &'static str);

const REQUESTS: &[Names] = &[
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
];

const TOKENS: &[Names] = &[
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
];

/// Reads what is left, and how long to believe it: each limit fills up in its own time. `None` if nothing is told.
pub(super) fn read(headers: &HeaderMap, now: Timestamp) -> Option<Told> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let of = |kinds: &[Names]| {
        kinds.iter().find_map(|(left, reset)| {
            let left = text(left)?.parse::<u64>().ok()?;
            Some((left, text(reset).and_then(|reset| until(reset, now)).unwrap_or(BELIEVED).min(BELIEVED)))
        })
    };
    let told = Told { requests: of(REQUESTS), tokens: of(TOKENS) };
    (told != Told::default()).then_some(told)
}

/// How long until then: `1s`, `6m0s`, `20ms`, or a time by RFC 3339.
fn until(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO));
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|sign: char| !sign.is_ascii_digit() && sign != '.')?;
        let (number, behind) = rest.split_at(digits);
        let unit = behind.find(|sign: char| sign.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        let unit = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = behind;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pairs: &[(&'static str, &str)]) -> Option<Told> {
        let headers = pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
        read(&headers.collect(), "2026-11-21T12:00:00Z".parse().unwrap())
    }

    #[test]
    fn both_ways_of_telling_are_read() {
        assert_eq!(told(&[("x-request-id", "1")]), None);
        let openai = told(&[
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-reset-requests", "1s"),
            ("x-ratelimit-remaining-tokens", "149984"),
            ("x-ratelimit-reset-tokens", "6m0s"),
        ]);
        let second = Duration::from_secs(1);
        assert_eq!(openai, Some(Told { requests: Some((59, second)), tokens: Some((149_984, BELIEVED)) }));
        let anthropic = told(&[
            ("anthropic-ratelimit-requests-remaining", "0"),
            ("anthropic-ratelimit-requests-reset", "2026-11-21T12:00:12Z"),
        ]);
        assert_eq!(anthropic, Some(Told { requests: Some((0, Duration::from_secs(12))), tokens: None }));
        assert_eq!(told(&[("x-ratelimit-remaining-requests", "many")]), None);
    }

    #[test]
    fn lengths_of_time_are_read() {
        let read = |text| until(text, Timestamp::UNIX_EPOCH).map(|time| time.as_millis());
        assert_eq!(read("20ms"), Some(20));
        assert_eq!(read("1m2.5s"), Some(62_500));
        assert_eq!(read("1h0m3s"), Some(3_603_000));
        for bad in ["1", "s", "1x", "1s-", "-1s"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(read("1969-12-31T00:00:00Z"), Some(0), "over");
    }
}
