//! What became of the notices of one webhook.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tollkeeper_config::NoticeKind;

/// What becomes of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The receiver took it.
    Delivered,
    /// A try failed; there will be another.
    Retried,
    /// Written to the dead-letter file, or lost when that cannot be written.
    Dead,
    /// Left out because the same one was sent a short time ago.
    Suppressed,
    /// The queue was full.
    Dropped,
}

impl Fate {
    const ALL: [Self; 5] = [Self::Delivered, Self::Retried, Self::Dead, Self::Suppressed, Self::Dropped];

    /// The label in metrics.
    pub(super) fn name(self) -> &'static str {
        ["delivered", "retried", "dead", "suppressed", "dropped"][self as usize]
    }
}

/// Counters by kind and fate.
#[derive(Debug)]
pub(super) struct Counts(Vec<[AtomicU64; Fate::ALL.len()]>);

impl Default for Counts {
    fn default() -> Self {
        Self(NoticeKind::all().map(|_| Default::default()).collect())
    }
}

impl Counts {
    /// Counts one, and returns how many that makes.
    pub(super) fn add(&self, kind: NoticeKind, fate: Fate) -> u64 {
        self.0[kind as usize][fate as usize].fetch_add(1, Relaxed) + 1
    }

    /// Those that are not 0.
    pub(super) fn all(&self) -> impl Iterator<Item = (NoticeKind, Fate, u64)> {
        let rows = NoticeKind::all().zip(&self.0);
        let cells = rows.flat_map(|(kind, row)| Fate::ALL.into_iter().zip(row).map(move |(fate, n)| (kind, fate, n)));
        cells.map(|(kind, fate, n)| (kind, fate, n.load(Relaxed))).filter(|(.., n)| *n > 0)
    }
}
