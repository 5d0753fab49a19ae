//! What of one webhook's notices is sent when: stops first and always, reminders when it is not quiet, failed ones after a pause and after new ones.

use super::Notice;
use jiff::Timestamp;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::QuietHours;

/// The end of quiet hours is looked for again after this time: the clock on the wall may be set.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Most reminders sent together.
const MOST_GATHERED: usize = 100;

/// A moment by two clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// The one on the wall, for quiet hours.
    pub(super) wall: Timestamp,
    /// One that is never set, for pauses: the time since the start.
    pub(super) up: Duration,
}

/// A notice for one webhook.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) notice: Arc<Notice>,
    /// How many of the same were left out before it.
    pub(super) left_out: u64,
}

/// What is sent as one: a notice, or reminders that came together.
#[derive(Debug)]
pub(super) struct Parcel {
    /// The same in all tries.
    pub(super) id: Arc<str>,
    /// Never empty.
    pub(super) entries: Vec<Entry>,
    /// Tries that failed.
    pub(super) tries: u32,
    urgent: bool,
    due: Duration,
    /// Quiet hours began while it waited.
    held: bool,
}

impl Parcel {
    pub(super) fn new(id: Arc<str>, entry: Entry) -> Self {
        let urgent = entry.notice.urgent;
        Self { id, entries: vec![entry], tries: 0, urgent, due: Duration::ZERO, held: false }
    }
}

/// What to do now.
#[derive(Debug)]
pub(super) enum Next {
    /// Send this.
    Try(Parcel),
    /// Give this up: there will be no other time for it.
    Bury(Parcel),
    /// Nothing for so long, unless something comes.
    Wait(Duration),
    /// Nothing at all.
    Empty,
}

/// The parcels that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    parcels: VecDeque<Parcel>,
    /// Notices in them.
    len: usize,
    /// The receiver asked for silence until then.
    not_before: Duration,
}

impl Queue {
    /// Notices that wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a new parcel. Returns what had to go for it: the oldest reminder, or the oldest of all where there is none; or itself, when it
    /// is a reminder among nothing but stops.
    pub(super) fn push(&mut self, parcel: Parcel, limit: usize) -> Vec<Parcel> {
        let mut dropped = Vec::new();
        while self.len + parcel.entries.len() > limit {
            let oldest_reminder = self.parcels.iter().position(|waiting| !waiting.urgent);
            if oldest_reminder.is_none() && !parcel.urgent {
                dropped.push(parcel);
                return dropped;
            }
            let Some(oldest) = self.take(oldest_reminder.unwrap_or(0)) else { break };
            dropped.push(oldest);
        }
        self.len += parcel.entries.len();
        self.parcels.push_back(parcel);
        dropped
    }

    /// Takes back a parcel whose try failed, to be tried again at `due`. `silence`: until then nothing else is tried either.
    pub(super) fn again(&mut self, mut parcel: Parcel, due: Duration, silence: bool) {
        parcel.due = due;
        if silence {
            self.not_before = due;
        }
        self.len += parcel.entries.len();
        self.parcels.push_front(parcel);
    }

    /// Ends all pauses.
    pub(super) fn hurry(&mut self) {
        self.not_before = Duration::ZERO;
        self.parcels.iter_mut().for_each(|parcel| parcel.due = Duration::ZERO);
    }

    /// What to do now. `make_id` names reminders that are sent together.
    pub(super) fn next(&mut self, now: Moment, quiet: Option<&QuietHours>, make_id: impl FnMut() -> Arc<str>) -> Next {
        let quiet_until = quiet.and_then(|hours| hours.quiet_until(now.wall));
        if quiet_until.is_some() {
            self.parcels.iter_mut().filter(|parcel| !parcel.urgent).for_each(|parcel| parcel.held = true);
        } else {
            self.gather(make_id);
        }
        let may = |parcel: &Parcel| parcel.urgent || quiet_until.is_none();
        let silence = self.not_before.saturating_sub(now.up);
        if silence.is_zero() {
            let due = |parcel: &&Parcel| parcel.due <= now.up && may(parcel);
            let first = self
                .parcels
                .iter()
                .filter(due)
                .min_by_key(|parcel| (!parcel.urgent, parcel.tries))
                .map(|parcel| parcel.id.clone());
            let place = first.and_then(|id| self.parcels.iter().position(|parcel| parcel.id == id));
            if let Some(parcel) = place.and_then(|place| self.take(place)) {
                return Next::Try(parcel);
            }
        }
        let pauses = self
            .parcels
            .iter()
            .filter(|parcel| may(parcel))
            .map(|parcel| parcel.due.saturating_sub(now.up).max(silence));
        let held = self.parcels.iter().any(|parcel| !may(parcel));
        let quiet_end = quiet_until
            .filter(|_| held)
            .map(|end| Duration::try_from(end.duration_since(now.wall)).unwrap_or_default().min(LOOK_AGAIN));
        pauses.chain(quiet_end).min().map_or(Next::Empty, Next::Wait)
    }

    /// What to do now that the end is near: everything gets one more try at once, except what must not be sent in quiet hours.
    pub(super) fn next_at_end(&mut self, now: Moment, quiet: Option<&QuietHours>) -> Next {
        let place = self.parcels.iter().position(|parcel| parcel.urgent).unwrap_or(0);
        let Some(parcel) = self.take(place) else { return Next::Empty };
        let is_quiet = quiet.is_some_and(|hours| hours.quiet_until(now.wall).is_some());
        if is_quiet && !parcel.urgent { Next::Bury(parcel) } else { Next::Try(parcel) }
    }

    /// Everything that waits.
    pub(super) fn drain(&mut self) -> Vec<Parcel> {
        self.len = 0;
        self.parcels.drain(..).collect()
    }

    fn take(&mut self, place: usize) -> Option<Parcel> {
        let parcel = self.parcels.remove(place)?;
        self.len -= parcel.entries.len();
        Some(parcel)
    }

    /// Puts the reminders that quiet hours held together. Those that were tried stay as they are: the receiver may know their ids.
    fn gather(&mut self, mut make_id: impl FnMut() -> Arc<str>) {
        if !self.parcels.iter().any(|parcel| parcel.held) {
            return;
        }
        let (held, others): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.parcels).into_iter().partition(|parcel| parcel.held && parcel.tries == 0);
        self.parcels = others;
        self.parcels.iter_mut().for_each(|parcel| parcel.held = false);
        let single = held.iter().map(|parcel| parcel.id.clone()).next().filter(|_| held.len() == 1);
        let entries: Vec<_> = held.into_iter().flat_map(|parcel| parcel.entries).collect();
        for together in entries.chunks(MOST_GATHERED) {
            self.parcels.push_back(Parcel {
                id: single.clone().unwrap_or_else(&mut make_id),
                entries: together.to_vec(),
                tries: 0,
                urgent: false,
                due: Duration::ZERO,
                held: false,
            });
        }
    }
}

/// The pause before a try, after so many failed: random between nothing and its longest, which doubles each time, so that those who
/// failed together do not come back together. `share` is between 0 and 1.
pub(super) fn pause(first: Duration, longest: Duration, tries: u32, share: f64) -> Duration {
    let doubled = first.saturating_mul(1u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(longest).mul_f64(share.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
