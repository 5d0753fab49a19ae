//! Checks `[shared]`.

use super::Check;
use crate::file::RawShared;
use crate::shared::SharedStore;
use std::time::Duration;

/// The lease ages that make sense: shorter ones take a busy gateway for dead, longer ones hold budgets up.
const AGES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(600));

impl Check<'_> {
    pub(super) fn shared(&mut self, raw: RawShared) -> Option<SharedStore> {
        let age = raw.lease_age.value;
        if !(AGES.0..=AGES.1).contains(&age) {
            self.problems.add(&raw.lease_age.span, "`lease_age` must be from 2s to 10m");
        }
        for (name, time) in [("connect_timeout", &raw.connect_timeout), ("answer_timeout", &raw.answer_timeout)] {
            if time.value.is_zero() || time.value > age.max(AGES.0) / 4 {
                let message = format!(
                    "`{name}` must be above 0 and at most a quarter of `lease_age`, in which a gateway says four times that it lives"
                );
                self.problems.add(&time.span, message);
            }
        }
        let url = raw.url?;
        let secret = match self.fetch(&url.value) {
            Ok(secret) => secret,
            Err(why) => {
                self.problems.add(&url.span, format!("`[shared]` has no address: {why}"));
                return None;
            }
        };
        if !["redis://", "rediss://", "redis+unix://", "unix://"]
            .iter()
            .any(|scheme| secret.expose().starts_with(scheme))
        {
            let message = "the address of `[shared]` must begin with `redis://`, `rediss://` or `redis+unix://`";
            self.problems.add(&url.span, message);
        }
        Some(SharedStore {
            prefix: raw.prefix.value.0,
            lease_age: age,
            connect: raw.connect_timeout.value,
            answer: raw.answer_timeout.value,
            ..SharedStore::new(secret.expose(), raw.gateway?.value.0)
        })
    }
}
