//! The places of one owner's parallel requests, and the two queues before them: those for which somebody waits go first, but of four places
//! that both want one goes to the batch class.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;
use tokio::sync::oneshot::{self, Receiver, Sender};
use tollkeeper_config::Priority;

/// Of so many places given away while both classes wait, one is for the batch class: it waits, but does not starve.
const SHARE_OF_BATCH: u32 = 4;

/// Bounds of how long somebody is told to stay away from a full queue.
const STAY_AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Places and who waits for them. Whenever somebody waits, all places are taken.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// How many places there are; any number without it.
    limit: Option<NonZeroU32>,
    /// How many may wait, of each class.
    room: usize,
    held: u32,
    interactive: VecDeque<Waiter>,
    batch: VecDeque<Waiter>,
    /// Places given away while both classes waited.
    contested: u32,
    /// A smoothed mean of how long places were held, in nanoseconds; 0 when none has been.
    pace: u64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    granted: Sender<()>,
}

/// How a gate is found.
#[derive(Debug)]
pub(super) enum Entry {
    /// There was a place.
    In,
    /// There will be one when this says so. Until then [`Gate::forget`] leaves the queue.
    Waits(Receiver<()>),
    /// The queue of this class is full; so long it takes, as far as can be told, until somebody leaves it.
    Full(Duration),
}

impl Gate {
    /// Takes a place, or waits for one under this id.
    pub(super) fn enter(&mut self, id: u64, class: Priority) -> Entry {
        if self.has_place() {
            self.held += 1;
            return Entry::In;
        }
        if self.waiting(class) >= self.room {
            return Entry::Full(self.until_room(class));
        }
        let (granted, grant) = oneshot::channel();
        self.class(class).push_back(Waiter { id, granted });
        Entry::Waits(grant)
    }

    /// A place is free again after it was held so long.
    pub(super) fn leave(&mut self, after: Duration) {
        let nanos = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX / 16).min(u64::MAX / 16);
        self.pace = if self.pace == 0 { nanos } else { self.pace - self.pace / 16 + nanos / 16 }.max(1);
        self.free();
    }

    /// A place that was granted is given back unused.
    pub(super) fn free(&mut self) {
        self.held = self.held.saturating_sub(1);
        self.grant();
    }

    /// Leaves the queue. False when there was nothing to leave: the place is granted.
    pub(super) fn forget(&mut self, id: u64, class: Priority) -> bool {
        let queue = self.class(class);
        // Ids grow from arrival to arrival, but who comes here from another gate may be older.
        let place = queue.iter().position(|waiter| waiter.id == id);
        place.is_some_and(|place| queue.remove(place).is_some())
    }

    /// Another number of places, and another room to wait in. Whoever waits keeps waiting, or gets a place that is new.
    pub(super) fn change(&mut self, limit: Option<NonZeroU32>, room: u32) {
        self.limit = limit;
        self.room = usize::try_from(room).unwrap_or(usize::MAX);
        self.grant();
    }

    /// How many of a class wait.
    pub(super) fn waiting(&self, class: Priority) -> usize {
        match class {
            Priority::Interactive => self.interactive.len(),
            Priority::Batch => self.batch.len(),
        }
    }

    /// How many places there are.
    pub(super) fn limit(&self) -> Option<NonZeroU32> {
        self.limit
    }

    /// How many places are taken.
    #[cfg(test)]
    pub(super) fn held(&self) -> u32 {
        self.held
    }

    fn has_place(&self) -> bool {
        self.limit.is_none_or(|limit| self.held < limit.get())
    }

    fn grant(&mut self) {
        while self.has_place() {
            let Some(waiter) = self.next() else { return };
            self.held += 1;
            // Whoever waits leaves the queue before it drops its end, so somebody hears this.
            _ = waiter.granted.send(());
        }
    }

    fn next(&mut self) -> Option<Waiter> {
        if self.interactive.is_empty() || self.batch.is_empty() {
            return self.interactive.pop_front().or_else(|| self.batch.pop_front());
        }
        self.contested = self.contested.wrapping_add(1);
        let queue = if self.contested.is_multiple_of(SHARE_OF_BATCH) { &mut self.batch } else { &mut self.interactive };
        queue.pop_front()
    }

    /// With all places taken, one is left every (mean time / places); the other class may get it.
    fn until_room(&self, class: Priority) -> Duration {
        let places = self.limit.map_or(1, |limit| u64::from(limit.get()));
        let each = Duration::from_nanos(self.pace / places);
        let share = match class {
            Priority::Batch if !self.interactive.is_empty() => each.saturating_mul(SHARE_OF_BATCH),
            Priority::Interactive if !self.batch.is_empty() => {
                each.saturating_mul(SHARE_OF_BATCH) / (SHARE_OF_BATCH - 1)
            }
            _ => each,
        };
        share.clamp(STAY_AWAY.0, STAY_AWAY.1)
    }

    fn class(&mut self, class: Priority) -> &mut VecDeque<Waiter> {
        match class {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        }
    }
}

#[cfg(test)]
mod tests;
