//! Rate limits at the edge: what a request is taken to need, and the headers that say what is left.

use crate::app::App;
use crate::error::ApiError;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;
use tollkeeper_config::Priority;
use tollkeeper_policies::{Agent, Left, RateAsk, RateGuard};
use tollkeeper_protocol::Request;
use tollkeeper_router::ask;

/// Output tokens of an answer that are counted before there are any, unless its client wants fewer. Clients ask for limits far above what they
/// get; counting those would block agents that are nowhere near theirs. What an answer really uses is counted when it has ended.
const FORESEEN: u64 = 512;

/// The names of the limit, of what remains of it, and of the time until all of it does.
type Names = [HeaderName; 3];

const REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: Names = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Waits until the limits of the agent and of what it names let the request in.
///
/// # Errors
/// They do not.
pub(crate) async fn admit(app: &App, agent: &Agent, request: &Request, can_wait: bool) -> Result<RateGuard, ApiError> {
    let priority = if can_wait || request.is_flexible() { Priority::Batch } else { agent.priority };
    let asked = RateAsk { agent: &agent.name, alias: request.model(), priority };
    let admitted = app.rates.admit(asked, || estimate(request)).await;
    admitted.map_err(|denied| {
        app.metrics.rate_limited(&agent.name, denied.what().name());
        ApiError::RateLimited(denied)
    })
}

/// Input, padded, and the output that is counted beforehand.
fn estimate(request: &Request) -> u64 {
    let ask = ask(request);
    let foreseen = ask.answers.saturating_mul(FORESEEN);
    ask.input_tokens.saturating_add(ask.max_output.map_or(foreseen, |most| most.min(foreseen)))
}

/// Says what is left of the limits of this agent and alias; nothing where there are none.
pub(crate) fn show(app: &App, agent: &Agent, alias: &str, headers: &mut HeaderMap) {
    let standing = app.rates.standing(&agent.name, alias);
    for (names, left) in [(REQUESTS, standing.requests), (TOKENS, standing.tokens)] {
        let Some(Left { limit, remaining, reset }) = left else { continue };
        let texts = [limit.to_string(), remaining.to_string(), duration(reset)];
        for (name, text) in names.into_iter().zip(texts) {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(name, value);
            }
        }
    }
}

/// A duration as OpenAI writes them: `1h2m3s`, `6m0s`, `1.5s`, `20ms`; rounded up to milliseconds.
fn duration(time: Duration) -> String {
    let all = time.as_nanos().div_ceil(1_000_000);
    let (minutes, millis) = (all / 60_000, all % 60_000);
    if all < 1000 {
        return if all == 0 { "0s".to_owned() } else { format!("{all}ms") };
    }
    let mut seconds = format!("{}.{:03}", millis / 1000, millis % 1000);
    seconds.truncate(seconds.trim_end_matches('0').trim_end_matches('.').len());
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_writes_them() {
        let cases = [
            (0, "0s"),
            (1, "1ms"),
            (20_000_000, "20ms"),
            (999_000_001, "1s"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (10_000_000_000, "10s"),
            (59_999_000_000, "59.999s"),
            (59_999_000_001, "1m0s"),
            (60_000_000_000, "1m0s"),
            (60_050_000_000, "1m0.05s"),
            (360_000_000_000, "6m0s"),
            (3_661_000_000_000, "1h1m1s"),
            (7_200_000_000_000, "2h0m0s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(duration(Duration::from_nanos(nanos)), text);
        }
    }
}
