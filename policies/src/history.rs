//! What an account spent and holds, by the time of admission: from it any window can be counted, also one that is
//! configured later.

use crate::amounts::Amounts;
use crate::store::settled::{MINUTE, QUARTER, edges};
use std::collections::VecDeque;

/// One account's past.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Everything before the first bucket.
    older: Sums,
    /// Ascending and without overlap; gaps are times when nothing was admitted.
    buckets: VecDeque<Bucket>,
}

/// What was admitted in a stretch of time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    start: i64,
    end: i64,
    sums: Sums,
}

/// What came of what was admitted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) settled: Amounts,
    pub(crate) leased: Amounts,
    /// Leases that are open.
    pub(crate) open: usize,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.settled += other.settled;
        self.leased += other.leased;
        self.open += other.open;
    }
}

impl History {
    /// Changes the sums of what was admitted at that time.
    pub(crate) fn at(&mut self, admitted: i64, change: impl Fn(&mut Sums)) {
        change(self.sums(admitted));
    }

    /// Adds what the ledger knows of the bucket that starts then, as [`crate::store::settled`] cuts them at `now`; to be
    /// called with ascending starts.
    pub(crate) fn restore(&mut self, start: i64, now: i64, settled: Amounts) {
        let length = if start >= edges(now).0 { MINUTE } else { QUARTER };
        if start != i64::MIN && self.buckets.back().is_none_or(|newest| newest.end <= start) {
            self.buckets.push_back(Bucket { start, end: start.saturating_add(length), sums: Sums::default() });
        }
        self.sums(start).settled += settled;
    }

    /// Forgets what was settled, which is about to be told anew; what is leased stays.
    pub(crate) fn unsettle(&mut self) {
        self.older.settled = Amounts::ZERO;
        self.buckets.iter_mut().for_each(|bucket| bucket.sums.settled = Amounts::ZERO);
    }

    /// Goes on with what was counted after it.
    pub(crate) fn follow(&mut self, later: Self) {
        self.older.add(&later.older);
        for bucket in later.buckets {
            match self.buckets.back() {
                Some(newest) if bucket.start < newest.end => self.sums(bucket.start).add(&bucket.sums),
                _ => self.buckets.push_back(bucket),
            }
        }
    }

    /// Opens a bucket for what is admitted now, and merges those that have grown old.
    pub(crate) fn roll(&mut self, now: i64) {
        let start = now - now.rem_euclid(MINUTE);
        if self.buckets.back().is_some_and(|newest| now < newest.end) {
            return;
        }
        self.buckets.push_back(Bucket { start, end: start + MINUTE, sums: Sums::default() });
        let (minutes, quarters) = edges(now);
        self.merge_minutes(minutes);
        while self.buckets.front().is_some_and(|oldest| oldest.end <= quarters) {
            if let Some(oldest) = self.buckets.pop_front() {
                self.older.add(&oldest.sums);
            }
        }
    }

    /// The sums of what was admitted at or after `start`; a bucket that straddles it counts whole.
    pub(crate) fn since(&self, start: i64) -> Sums {
        let first = self.buckets.partition_point(|bucket| bucket.end <= start);
        let mut sums = if start == i64::MIN { self.older } else { Sums::default() };
        self.buckets.range(first..).for_each(|bucket| sums.add(&bucket.sums));
        sums
    }

    /// What was settled in each bucket that reaches beyond `start`, with the last moment of the bucket.
    pub(crate) fn settled_since(&self, start: i64) -> impl Iterator<Item = (i64, Amounts)> {
        let first = self.buckets.partition_point(|bucket| bucket.end <= start);
        self.buckets.range(first..).map(|bucket| (bucket.end - 1, bucket.sums.settled))
    }

    fn sums(&mut self, admitted: i64) -> &mut Sums {
        let after = self.buckets.partition_point(|bucket| bucket.start <= admitted);
        match after.checked_sub(1) {
            Some(place) => &mut self.buckets[place].sums,
            None => &mut self.older,
        }
    }

    /// Merges minutes of quarters that ended before `before`. Buckets are added one at a time, so that few are ever due.
    fn merge_minutes(&mut self, before: i64) {
        let first = self.buckets.partition_point(|bucket| bucket.end - bucket.start > MINUTE);
        let last = self.buckets.partition_point(|bucket| bucket.end <= before);
        for place in (first..last).rev() {
            let minute = self.buckets[place];
            let start = minute.start - minute.start.rem_euclid(QUARTER);
            match place.checked_sub(1).map(|before| &mut self.buckets[before]) {
                Some(earlier) if earlier.end > start => {
                    earlier.sums.add(&minute.sums);
                    (earlier.start, earlier.end) = (start, start + QUARTER);
                    self.buckets.remove(place);
                }
                _ => (self.buckets[place].start, self.buckets[place].end) = (start, start + QUARTER),
            }
        }
    }
}
