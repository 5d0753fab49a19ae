//! The same prompt or tool call again and again.

use super::gauge::STAGES;

/// Signatures remembered at once. A loop through more different prompts than this is seen by its rate only.
const ENTRIES: usize = 16;

/// How often each of the commonest signatures came of late: buckets that drain by one an interval, so that polling leaves
/// nothing behind. When all are taken, the one with the least in it makes room, as in the Space-Saving algorithm
/// (Metwally, Agrawal, El Abbadi 2005), but without its inheritance: a newcomer must not look like a loop.
#[derive(Debug, Clone)]
pub(super) struct Repeats {
    /// Repeats for the first stage; each later one needs twice as many.
    first: Option<f64>,
    interval: f64,
    entries: [Entry; ENTRIES],
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    signature: u64,
    count: f64,
    last: i64,
}

impl Repeats {
    /// `interval` in microseconds.
    pub(super) fn new(first: Option<f64>, interval: f64) -> Self {
        let entry = Entry { signature: 0, count: 0.0, last: i64::MIN };
        Self { first, interval: interval.max(1.0), entries: [entry; ENTRIES] }
    }

    /// Counts a signature. Returns a bit for each stage that it comes often enough for, and how often it came.
    pub(super) fn see(&mut self, now: i64, signature: u64) -> (u8, f64) {
        let Some(first) = self.first else { return (0, 0.0) };
        let interval = self.interval;
        let left = |entry: &Entry| {
            let passed = now.saturating_sub(entry.last).max(0) as f64;
            (entry.count - passed / interval).max(0.0)
        };
        let (mut place, mut least) = (0, f64::INFINITY);
        for (at, entry) in self.entries.iter().enumerate() {
            let left = left(entry);
            if entry.signature == signature && left > 0.0 {
                (place, least) = (at, left);
                break;
            }
            if left < least {
                (place, least) = (at, left);
            }
        }
        let entry = &mut self.entries[place];
        let known = entry.signature == signature;
        let highest = first * f64::from(1_u32 << (STAGES - 1));
        let count = if known { least + 1.0 } else { 1.0 }.min(highest);
        *entry = Entry { signature, count, last: now };
        let often = |stage: &usize| count >= first * f64::from(1_u32 << stage);
        ((0..STAGES).filter(often).fold(0, |bits, stage| bits | 1 << stage), count)
    }

    pub(super) fn clear(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.count = 0.0);
    }
}
