//! Checks the rate limits of agents and aliases.

use super::Check;
use crate::file::RawRateLimits;
use crate::read::{Maybe, Whole};
use crate::settings::RateLimits;
use std::num::NonZeroU32;

impl Check<'_> {
    pub(super) fn rates(&mut self, written: RawRateLimits) -> RateLimits {
        let RawRateLimits { requests_per_minute, tokens_per_minute, parallel, queue } = written;
        if let Some(queue) = queue.at.as_ref().filter(|_| !parallel.written) {
            self.problems.add(&queue.span, "`queue` is for requests that wait because `parallel` run; add `parallel`");
        }
        RateLimits {
            requests_per_minute: limit(requests_per_minute),
            tokens_per_minute: limit(tokens_per_minute),
            parallel: limit(parallel),
            queue: queue.at.map_or(RateLimits::QUEUE, |queue| u32::try_from(queue.value.0).unwrap_or(u32::MAX)),
        }
    }
}

fn limit<const MAX: u64>(written: Maybe<Whole<1, MAX>>) -> Option<NonZeroU32> {
    written.at.and_then(|at| NonZeroU32::new(u32::try_from(at.value.0).unwrap_or(u32::MAX)))
}
