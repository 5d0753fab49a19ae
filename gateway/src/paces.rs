//! How fast remote models begin and write, learned from their streams.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_config::BackendId;
use tollkeeper_router::Recent;

/// Models beyond so many are not remembered: clients can name any model of some providers.
const MOST: usize = 1024;
/// Shorter answers say more of the network than of the model.
const SHORTEST: u64 = 16;

/// What was learned, by model.
#[derive(Debug)]
pub(crate) struct Paces {
    epoch: Instant,
    known: RwLock<HashMap<BackendId, Pace>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    /// From the request to the first token.
    first: Recent,
    /// From one token to the next. Times have a mean that means something; rates have not.
    token: Recent,
}

impl Default for Paces {
    fn default() -> Self {
        Self { epoch: Instant::now(), known: RwLock::default() }
    }
}

impl Paces {
    /// The first token came so long after the request was sent.
    pub(crate) fn began(&self, backend: &BackendId, after: Duration) {
        self.learn(backend, |pace, now| pace.first.saw(now, after));
    }

    /// An answer of so many tokens took so long from its first token to its last.
    pub(crate) fn wrote(&self, backend: &BackendId, tokens: u64, time: Duration) {
        if tokens >= SHORTEST && !time.is_zero() {
            let each = time / u32::try_from(tokens).unwrap_or(u32::MAX);
            self.learn(backend, |pace, now| pace.token.saw(now, each));
        }
    }

    fn learn(&self, backend: &BackendId, note: impl FnOnce(&mut Pace, Duration)) {
        let now = self.epoch.elapsed();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(pace) = known.get_mut(backend) {
            note(pace, now);
        } else if known.len() < MOST {
            note(known.entry(backend.clone()).or_default(), now);
        }
    }

    /// The time to the first token, and tokens in a second; `None` before they were seen.
    pub(crate) fn of(&self, backend: &BackendId) -> (Option<Duration>, Option<u32>) {
        let now = self.epoch.elapsed();
        let pace = self.known.read().unwrap_or_else(PoisonError::into_inner).get(backend).copied().unwrap_or_default();
        let rate = |each: Duration| u32::try_from(1_000_000 / each.as_micros().max(1)).unwrap_or(u32::MAX).max(1);
        (pace.first.at(now), pace.token.at(now).map(rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pace_follows_what_is_seen_and_short_answers_say_nothing() {
        let paces = Paces::default();
        let id = BackendId::Remote { provider: "p".into(), model: "m".into() };
        paces.wrote(&id, 15, Duration::from_secs(1));
        paces.wrote(&id, 100, Duration::ZERO);
        assert_eq!(paces.of(&id), (None, None));
        paces.began(&id, Duration::from_millis(300));
        paces.wrote(&id, 100, Duration::from_secs(1));
        assert_eq!(paces.of(&id), (Some(Duration::from_millis(300)), Some(100)));
        for _ in 0..60 {
            paces.wrote(&id, 400, Duration::from_secs(2));
        }
        let rate = paces.of(&id).1.unwrap();
        assert!((195..=200).contains(&rate), "{rate}");
    }
}
