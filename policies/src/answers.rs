//! How long the answers of an agent mostly are, by a model and by all of them, so that a lease begins with what will probably be needed and routes
//! are chosen by what will probably come.
//!
//! Each pair keeps a small histogram of the lengths of its answers that were generated to their end. Buckets grow by a
//! quarter of a power of two; when a histogram has seen many answers, all of them count half, so that it follows changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tollkeeper_config::BackendId;

/// Buckets of a power of two.
const STEPS: u32 = 4;
/// Enough for 2^24 tokens; longer answers count as that.
const BUCKETS: usize = 24 * STEPS as usize;
/// When so many answers are counted, each counts half.
const MOST: u32 = 256;
/// Fewer say nothing.
const LEAST: u32 = 8;
/// Pairs that are remembered; further ones are not learned until a restart.
const PAIRS: usize = 4096;
/// An agent, and a model; or all of them.
type Key = (Arc<str>, Option<BackendId>);

/// All histograms.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<HashMap<Key, Histogram>>);

#[derive(Debug)]
struct Histogram {
    counts: [u16; BUCKETS],
    total: u32,
}

impl Answers {
    /// An answer was generated to its end.
    pub(crate) fn saw(&self, agent: &Arc<str>, backend: &BackendId, tokens: u64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for backend in [Some(backend.clone()), None] {
            let room = all.len() < PAIRS;
            let key = (agent.clone(), backend);
            match all.get_mut(&key) {
                Some(known) => known.add(tokens),
                None if room => all.entry(key).or_default().add(tokens),
                None => {}
            }
        }
    }

    /// The length that so many of a hundred answers do not exceed, by this model or by any; `None` while too few were seen.
    pub(crate) fn percentile(&self, agent: &Arc<str>, backend: Option<&BackendId>, percent: u32) -> Option<u64> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&(agent.clone(), backend.cloned()))?.percentile(percent)
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    fn add(&mut self, tokens: u64) {
        self.counts[bucket(tokens)] += 1;
        self.total += 1;
        if self.total >= MOST {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().map(|count| u32::from(*count)).sum();
        }
    }

    fn percentile(&self, percent: u32) -> Option<u64> {
        if self.total < LEAST {
            return None;
        }
        let (mut seen, wanted) = (0, (self.total * percent).div_ceil(100));
        let found = self.counts.iter().position(|count| {
            seen += u32::from(*count);
            seen >= wanted
        });
        found.map(most_in)
    }
}

/// The bucket of a length: the first whose bound is not below it.
fn bucket(tokens: u64) -> usize {
    let (mut low, mut high) = (0, BUCKETS - 1);
    while low < high {
        let middle = usize::midpoint(low, high);
        if most_in(middle) < tokens { low = middle + 1 } else { high = middle }
    }
    low
}

/// The longest answer that a bucket counts.
fn most_in(bucket: usize) -> u64 {
    let steps = u64::from(STEPS);
    let (power, quarter) = (bucket as u64 / steps, bucket as u64 % steps);
    (1 << power) + ((1 << power) * quarter).div_ceil(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backend() -> BackendId {
        BackendId::Local("tiny".into())
    }

    #[test]
    fn nothing_is_expected_of_the_unknown() {
        let answers = Answers::default();
        for _ in 1..LEAST {
            answers.saw(&"scout".into(), &backend(), 10);
        }
        assert_eq!(answers.percentile(&"scout".into(), Some(&backend()), 90), None);
        answers.saw(&"scout".into(), &backend(), 10);
        assert_eq!(answers.percentile(&"scout".into(), Some(&backend()), 90), Some(10));
        assert_eq!(answers.percentile(&"digger".into(), Some(&backend()), 90), None);
        let other = BackendId::Local("other".into());
        (0..LEAST).for_each(|_| answers.saw(&"scout".into(), &other, 1000));
        let of = |backend: Option<&BackendId>, percent| answers.percentile(&"scout".into(), backend, percent).unwrap();
        assert_eq!((of(Some(&backend()), 95), of(None, 50)), (10, 10));
        assert!(of(None, 51) >= 1000, "all models together");
    }

    #[test]
    fn it_follows_what_changes() {
        let answers = Answers::default();
        (0..1000).for_each(|_| answers.saw(&"scout".into(), &backend(), 8000));
        (0..1500).for_each(|_| answers.saw(&"scout".into(), &backend(), 100));
        assert!(answers.percentile(&"scout".into(), Some(&backend()), 90).unwrap() <= 128);
    }

    proptest! {
        #[test]
        fn nine_of_ten_are_not_longer(lengths in proptest::collection::vec(0..3_000_000_u64, 8..200)) {
            let answers = Answers::default();
            lengths.iter().for_each(|length| answers.saw(&"scout".into(), &backend(), *length));
            let expected = answers.percentile(&"scout".into(), Some(&backend()), 90).unwrap();
            let within = lengths.iter().filter(|length| **length <= expected).count();
            prop_assert!(within * 10 >= lengths.len() * 9);
            // No further off than a bucket is wide.
            let mut sorted = lengths.clone();
            sorted.sort_unstable();
            let exact = sorted[(lengths.len() * 9).div_ceil(10) - 1];
            prop_assert!(expected <= exact + exact / 3 + 2, "{} for {}", expected, exact);
        }
    }
}
