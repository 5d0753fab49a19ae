//! Which tokens go into the next batch: one of every answer that is being written, then fair shares of the prompts that are being read.

use std::time::Duration;

/// What one sequence has to read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Demand {
    /// The sequence.
    pub(crate) slot: usize,
    /// Tokens it could read: 1 when it writes, the rest of its prompt before that.
    pub(crate) tokens: u32,
    /// Whether it is still reading its prompt.
    pub(crate) prefill: bool,
}

/// How many tokens each demand may read in a batch of at most `room`, of which at most `chunk` are prompt tokens. `turn` moves
/// the odd tokens around. Writers come first and always get their token; readers share the rest equally.
pub(crate) fn share(demands: &[Demand], room: u32, chunk: u32, turn: usize) -> Vec<(usize, u32)> {
    let mut plan: Vec<(usize, u32)> = Vec::with_capacity(demands.len());
    let mut room = room;
    for demand in demands.iter().filter(|demand| !demand.prefill) {
        if room > 0 {
            plan.push((demand.slot, 1));
            room -= 1;
        }
    }
    let mut left = room.min(chunk);
    let mut readers: Vec<Demand> =
        demands.iter().filter(|demand| demand.prefill && demand.tokens > 0).copied().collect();
    if !readers.is_empty() {
        let start = turn % readers.len();
        readers.rotate_left(start);
    }
    // Small demands first: what they leave over goes to the others.
    readers.sort_by_key(|demand| demand.tokens.min(left));
    let mut waiting = u32::try_from(readers.len()).unwrap_or(u32::MAX);
    for demand in readers {
        let fair = left.div_ceil(waiting.max(1));
        let tokens = demand.tokens.min(fair);
        if tokens > 0 {
            plan.push((demand.slot, tokens));
        }
        left -= tokens;
        waiting -= 1;
    }
    plan
}

/// Learns how fast the engine reads, so that writers wait a bounded time for readers.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Smoothed tokens a second of batches that read prompts.
    prefill: Option<f64>,
    /// Smoothed tokens a second of all batches.
    overall: Option<f64>,
    /// Smoothed tokens a second of batches that only write, by the number of writers: see [`writers_like`].
    decode: [Option<f64>; SIZES],
}

/// Sizes of batches that are told apart when it comes to how fast they write.
pub(crate) const SIZES: usize = 8;

/// The place among [`SIZES`] of a batch with so many writers: 1, 2, up to 4, up to 8 and so on; the last is for all larger ones.
fn writers_like(writers: u32) -> usize {
    (writers.max(1).next_power_of_two().ilog2() as usize).min(SIZES - 1)
}

/// How fast an engine is, in tokens a second; 0 where that is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Speeds {
    /// Reading and writing together, while busy.
    pub(crate) overall: f64,
    /// Batches that read prompts.
    pub(crate) prefill: f64,
    /// Batches that only write, all answers together, by how many there are: 1, 2, up to 4, and so on.
    pub(crate) decode: [f64; SIZES],
}

impl Speeds {
    /// Tokens of one answer of so many that are written together, in a second; 0 where nothing is known. Of batches that were not seen
    /// yet, what the next smaller one did altogether is shared out.
    pub(crate) fn decode_of_one(&self, writers: u32) -> f64 {
        let known = self.decode[..=writers_like(writers)].iter().rev().find(|rate| **rate > 0.0);
        known.copied().unwrap_or(0.0) / f64::from(writers.max(1))
    }
}

/// How long a batch with prompt tokens may take while at least as many answers are being written as prompts are read.
const STALL: Duration = Duration::from_millis(100);
/// Fewer prompt tokens a batch than this would slow reading down for nothing.
const SMALLEST_CHUNK: u32 = 32;

impl Pace {
    /// Most prompt tokens of the next batch. Large batches are quicker by the token, but all writers wait for them: the more readers
    /// wait for each writer, the longer they may.
    pub(crate) fn chunk(&self, writers: usize, readers: usize, batch: u32) -> u32 {
        match (writers, self.prefill) {
            (1.., Some(rate)) => {
                let stall = STALL.as_secs_f64() * (readers as f64 / writers as f64).max(1.0);
                ((rate * stall) as u32).clamp(SMALLEST_CHUNK.min(batch), batch)
            }
            _ => batch,
        }
    }

    /// Notes what a batch with so many writers took: of its `tokens`, `prefill` were prompts'. Those that were guessed right count, others not.
    pub(crate) fn note(&mut self, writers: u32, tokens: u32, prefill: u32, took: Duration) {
        let seconds = took.as_secs_f64().max(1e-6);
        if prefill == 0 {
            smooth(&mut self.decode[writers_like(writers)], f64::from(tokens) / seconds);
        }
        if prefill >= SMALLEST_CHUNK {
            smooth(&mut self.prefill, f64::from(tokens) / seconds);
        }
        smooth(&mut self.overall, f64::from(tokens) / seconds);
    }

    /// What was learned, in tokens a second; 0 where nothing was.
    pub(crate) fn rates(&self) -> Speeds {
        Speeds {
            overall: self.overall.unwrap_or(0.0),
            prefill: self.prefill.unwrap_or(0.0),
            decode: self.decode.map(|rate| rate.unwrap_or(0.0)),
        }
    }
}

/// Moves a smoothed value a fifth of the way to the new one.
pub(crate) fn smooth(value: &mut Option<f64>, new: f64) {
    *value = Some(value.map_or(new, |old| old + (new - old) / 5.0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn demand(slot: usize, tokens: u32, prefill: bool) -> Demand {
        Demand { slot, tokens, prefill }
    }

    #[test]
    fn cases() {
        type Case = (Vec<Demand>, u32, u32, Vec<(usize, u32)>);
        let table: Vec<Case> = vec![
            (vec![], 8, 8, vec![]),
            (vec![demand(0, 1, false), demand(1, 100, true)], 8, 8, vec![(0, 1), (1, 7)]),
            (vec![demand(0, 1, false), demand(1, 100, true)], 8, 4, vec![(0, 1), (1, 4)]),
            (
                vec![demand(0, 2, true), demand(1, 100, true), demand(2, 100, true)],
                10,
                10,
                vec![(0, 2), (1, 4), (2, 4)],
            ),
            (vec![demand(0, 100, true), demand(1, 100, true)], 3, 3, vec![(0, 2), (1, 1)]),
        ];
        for (demands, room, chunk, expected) in table {
            assert_eq!(share(&demands, room, chunk, 0), expected, "{demands:?}");
        }
    }

    proptest! {
        #[test]
        fn writers_always_get_their_token_and_nothing_is_left_over(
            kinds in prop::collection::vec((any::<bool>(), 1u32..300), 1..12),
            extra in 0u32..600,
            chunk in 1u32..600,
            turn in 0usize..100,
        ) {
            let demands: Vec<Demand> =
                kinds.iter().enumerate().map(|(slot, (prefill, tokens))| demand(slot, if *prefill { *tokens } else { 1 }, *prefill)).collect();
            let room = u32::try_from(kinds.len()).unwrap() + extra;
            let plan = share(&demands, room, chunk, turn);
            let total: u32 = plan.iter().map(|(_, tokens)| tokens).sum();
            let writers = u32::try_from(demands.iter().filter(|demand| !demand.prefill).count()).unwrap();
            let wanted: u32 = demands.iter().filter(|demand| demand.prefill).map(|demand| demand.tokens).sum();
            prop_assert_eq!(total, writers + wanted.min(chunk).min(room - writers));
            for demand in &demands {
                let given = plan.iter().find(|(slot, _)| *slot == demand.slot).map_or(0, |(_, tokens)| *tokens);
                prop_assert!(given <= demand.tokens);
                prop_assert!(demand.prefill || given == 1);
            }
            // Fair: who got less than another wanted no more.
            for (a, given_a) in plan.iter().filter(|(slot, _)| demands[*slot].prefill) {
                for (_, given_b) in plan.iter().filter(|(slot, _)| demands[*slot].prefill) {
                    prop_assert!(*given_a + 1 >= *given_b || demands[*a].tokens == *given_a);
                }
            }
        }
    }

    #[test]
    fn readers_are_slowed_down_only_for_writers() {
        let mut pace = Pace::default();
        assert_eq!(pace.chunk(1, 1, 512), 512);
        pace.note(0, 512, 512, Duration::from_secs(1));
        assert_eq!(pace.chunk(1, 1, 512), 51);
        assert_eq!(pace.chunk(4, 1, 512), 51);
        assert_eq!(pace.chunk(2, 7, 512), 179);
        assert_eq!(pace.chunk(1, 15, 512), 512);
        assert_eq!(pace.chunk(0, 3, 512), 512);
        pace.note(0, 512, 512, Duration::from_secs(100));
        assert!(pace.chunk(1, 1, 512) >= SMALLEST_CHUNK);
    }

    #[test]
    fn how_fast_is_written_is_learned_by_the_number_of_writers() {
        let mut pace = Pace::default();
        for (writers, rate) in [(1, 10.0), (3, 20.0), (4, 20.0), (5, 30.0), (1000, 40.0)] {
            pace.note(writers, writers, 0, Duration::from_secs_f64(f64::from(writers) / rate));
        }
        let rounded = pace.rates().decode.map(|rate| rate.round() as u32);
        assert_eq!(rounded, [10, 0, 20, 30, 0, 0, 0, 40]);
        assert!(pace.rates().prefill < 1.0);
        // With three of three guesses right an answer is four times as fast.
        pace.note(2, 8, 0, Duration::from_millis(100));
        assert_eq!(pace.rates().decode_of_one(2).round() as u32, 40);
    }
}
