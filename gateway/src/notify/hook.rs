//! One webhook: its settings, and what waits for it.

use super::counts::{Counts, Fate};
use super::queue::{Entry, Moment, Next, Parcel, Queue};
use super::repeats::Repeats;
use super::{Notice, Shared};
use arc_swap::ArcSwap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Notify as Bell;
use tokio_util::sync::CancellationToken;
use tollkeeper_config::Webhook;

/// A webhook and its queue, shared by those who send, who reload, and the task that delivers.
pub(super) struct Hook {
    pub(super) name: Arc<str>,
    pub(super) counts: Counts,
    settings: ArcSwap<Webhook>,
    state: Mutex<State>,
    bell: Bell,
    cut: CancellationToken,
    cut_because: OnceLock<&'static str>,
}

#[derive(Default)]
struct State {
    queue: Queue,
    repeats: Repeats,
    /// Notices of the parcel that is being sent.
    in_flight: usize,
    phase: Phase,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// What waits is tried once more.
    Closing,
    /// The task is gone.
    Closed,
}

impl Hook {
    pub(super) fn new(settings: Arc<Webhook>) -> Self {
        Self {
            name: settings.name.clone(),
            counts: Counts::default(),
            settings: ArcSwap::new(settings),
            state: Mutex::default(),
            bell: Bell::new(),
            cut: CancellationToken::new(),
            cut_because: OnceLock::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn settings(&self) -> Arc<Webhook> {
        self.settings.load_full()
    }

    /// Takes a notice that it wants and that is no repetition.
    pub(super) fn offer(&self, notice: &Arc<Notice>, id: &Arc<str>, now: Moment) {
        let settings = self.settings.load();
        let dropped = {
            let mut state = self.state();
            // It ends a stop for those too who want to hear of stops alone.
            state.repeats.happened(notice);
            if !settings.events.contains(&notice.kind) {
                return;
            }
            if state.phase == Phase::Closed {
                self.counts.add(notice.kind, Fate::Dropped);
                return;
            }
            let Some(left_out) = state.repeats.admit(notice, now.up, settings.repeat_after) else {
                self.counts.add(notice.kind, Fate::Suppressed);
                return;
            };
            let parcel = Parcel::new(id.clone(), Entry { notice: notice.clone(), left_out });
            state.queue.push(parcel, settings.queue)
        };
        for entry in dropped.iter().flat_map(|parcel| &parcel.entries) {
            let count = self.counts.add(entry.notice.kind, Fate::Dropped);
            // A flood is told of at 1, 2, 4, 8 ….
            if count.is_power_of_two() {
                let event = entry.notice.kind.name();
                tracing::warn!(webhook = %self.name, event, count, "the queue of a webhook is full: notices are dropped");
            }
        }
        self.bell.notify_one();
    }

    /// From now on these settings hold, for what waits too; if they are others, that is tried at once.
    pub(super) fn change(&self, settings: Arc<Webhook>) {
        if *self.settings.swap(settings.clone()) != *settings {
            // Whatever was wrong may be mended.
            self.state().queue.hurry();
        }
        self.bell.notify_one();
    }

    /// Asks for the end, after one more try of what waits.
    pub(super) fn close(&self) {
        let mut state = self.state();
        if state.phase == Phase::Open {
            state.phase = Phase::Closing;
        }
        drop(state);
        self.bell.notify_one();
    }

    /// Asks for the end at once.
    pub(super) fn cut(&self, because: &'static str) {
        // Only the first reason counts.
        let _ = self.cut_because.set(because);
        self.cut.cancel();
    }

    /// Returns when the end at once is asked for, with the reason.
    pub(super) async fn cut_off(&self) -> &'static str {
        self.cut.cancelled().await;
        self.cut_because.get().copied().unwrap_or_default()
    }

    /// Notices that are still to be delivered.
    pub(super) fn waiting(&self) -> usize {
        let state = self.state();
        state.queue.len() + state.in_flight
    }

    /// What its task does now; `None` is the end.
    pub(super) fn next(&self, shared: &Shared) -> Option<Next> {
        let (settings, now) = (self.settings.load(), shared.now());
        let quiet = settings.quiet_hours.as_ref();
        let mut state = self.state();
        state.in_flight = 0;
        if self.cut.is_cancelled() {
            return None;
        }
        let next = match state.phase {
            Phase::Open => state.queue.next(now, quiet, || shared.ids.next()),
            Phase::Closing => match state.queue.next_at_end(now, quiet) {
                // Nothing that comes after this look would be delivered.
                Next::Empty => {
                    state.phase = Phase::Closed;
                    return None;
                }
                next => next,
            },
            Phase::Closed => return None,
        };
        if let Next::Try(parcel) | Next::Bury(parcel) = &next {
            state.in_flight = parcel.entries.len();
        }
        Some(next)
    }

    /// Gives back a parcel whose try failed. Returns it when there will be no other.
    pub(super) fn again(&self, parcel: Parcel, due: Duration, silence: bool) -> Result<(), Parcel> {
        let mut state = self.state();
        if state.phase != Phase::Open || self.cut.is_cancelled() {
            return Err(parcel);
        }
        state.in_flight = 0;
        state.queue.again(parcel, due, silence);
        Ok(())
    }

    /// Waits until there may be something to do.
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }

    /// Closes it for good and returns what still waits.
    pub(super) fn bury(&self) -> Vec<Parcel> {
        let mut state = self.state();
        state.phase = Phase::Closed;
        state.in_flight = 0;
        state.queue.drain()
    }
}
