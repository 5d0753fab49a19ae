//! How fast remote models write, learned from their answers.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;
use tollkeeper_config::BackendId;

/// Models beyond so many are not remembered: clients can name any model of some providers.
const MOST: usize = 1024;
/// Shorter answers say more of the network than of the model.
const SHORTEST: u64 = 16;

/// Tokens in a second by model, smoothed.
#[derive(Debug, Default)]
pub(crate) struct Paces(RwLock<HashMap<BackendId, u32>>);

impl Paces {
    /// An answer of so many tokens took so long from its first token to its last.
    pub(crate) fn saw(&self, backend: &BackendId, tokens: u64, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let Some(rate) = tokens.saturating_mul(1000).checked_div(millis).filter(|_| tokens >= SHORTEST) else { return };
        let rate = u32::try_from(rate).unwrap_or(u32::MAX).max(1);
        let mut paces = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = paces.get_mut(backend) {
            // Keeps seven eighths of the old mean.
            *known = u32::try_from((u64::from(*known) * 7 + u64::from(rate)) / 8).unwrap_or(u32::MAX).max(1);
        } else if paces.len() < MOST {
            paces.insert(backend.clone(), rate);
        }
    }

    /// Tokens in a second; `None` before the first answer.
    pub(crate) fn of(&self, backend: &BackendId) -> Option<u32> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(backend).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_follows_what_is_seen_and_short_answers_say_nothing() {
        let paces = Paces::default();
        let id = BackendId::Remote { provider: "p".into(), model: "m".into() };
        paces.saw(&id, 15, Duration::from_secs(1));
        paces.saw(&id, 100, Duration::ZERO);
        assert_eq!(paces.of(&id), None);
        paces.saw(&id, 100, Duration::from_secs(1));
        assert_eq!(paces.of(&id), Some(100));
        for _ in 0..60 {
            paces.saw(&id, 400, Duration::from_secs(2));
        }
        assert!((190..=200).contains(&paces.of(&id).unwrap()), "{:?}", paces.of(&id));
    }
}
