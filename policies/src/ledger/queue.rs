//! Jobs for the ledger's writer thread.
//!
//! Bounded by construction: every job but the few that flush, stop or change what is allowed belongs to an attempt that holds a place (see
//! [`super::Ledger::place`]), and an attempt has at most one intent, one extension and one closing job in here. So
//! handing a job over never waits and never fails for want of room, which is what lets a lease be settled from a
//! destructor.

use super::attempt::{Attempt, Closing};
use super::row::Row;
use crate::store::StateChange;
use crate::store::settled::Settled;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// How long settlements may wait for company. An intent, which somebody waits for, ends the wait at once, and so under
/// load settlements ride along in the next intent's transaction. A crash within this time turns them into unknown
/// charges at what was leased, never into nothing.
const LINGER: Duration = Duration::from_millis(5);

/// Work for the writer.
#[derive(Debug)]
pub(super) enum Job {
    /// Record that an attempt was admitted.
    Intent(Arc<Attempt>),
    /// Record that its lease grew to cover so many tokens; the writer fills the number in.
    Extension { attempt: Arc<Attempt>, at: i64, covered: u64 },
    /// Record how it ended, and free its place.
    Close { attempt: Arc<Attempt>, end: Closing, place: OwnedSemaphorePermit },
    /// Record that an attempt ended which was refused, but whose intent is on record. The writer's own: the intent's answer
    /// was lost.
    Undo(Arc<Attempt>),
    /// Record what changed, with its row if somebody did it on purpose, and answer when that is done.
    Change { row: Option<Box<Row>>, state: Vec<StateChange>, answer: oneshot::Sender<()> },
    /// Answer when all before is recorded.
    Flush(oneshot::Sender<()>),
    /// Answer with the sums of what is settled, as of that time, once all before is recorded.
    Sums { now: i64, answer: oneshot::Sender<Vec<Settled>> },
    /// Record what is queued, stop, and answer when the store is closed.
    Stop(oneshot::Sender<()>),
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: Vec<Job>,
    /// Whether somebody waits for one of the jobs.
    urgent: bool,
    writer: Writer,
    closed: bool,
}

/// What the writer does: a wake-up costs a system call, so it is made only when needed.
#[derive(Debug, Default, PartialEq, Eq)]
enum Writer {
    #[default]
    Busy,
    /// Waits for an urgent job until its time is up, and then takes all.
    Lingering,
    /// Waits for any job.
    Asleep,
}

impl Queue {
    /// Hands a job over. Returns false, and drops it, when the writer has stopped.
    pub(super) fn push(&self, job: Job) -> bool {
        let mut inner = self.lock();
        if inner.closed {
            return false;
        }
        let urgent = !matches!(job, Job::Close { .. });
        inner.urgent |= urgent;
        inner.jobs.push(job);
        let wake = match inner.writer {
            Writer::Busy => false,
            Writer::Lingering => urgent,
            Writer::Asleep => true,
        };
        if wake {
            inner.writer = Writer::Busy;
            drop(inner);
            self.ready.notify_one();
        }
        true
    }

    /// The writer's: takes all jobs into the empty `jobs`. Waits until there are some, but no longer than `at_most`.
    pub(super) fn take(&self, jobs: &mut Vec<Job>, at_most: Option<Duration>) {
        let mut inner = self.lock();
        if !inner.urgent {
            inner.writer = Writer::Lingering;
            inner = wait(&self.ready, inner, LINGER, |inner| !inner.urgent);
        }
        if inner.jobs.is_empty() {
            inner.writer = Writer::Asleep;
            let empty = |inner: &mut Inner| inner.jobs.is_empty();
            inner = match at_most {
                Some(at_most) => wait(&self.ready, inner, at_most, empty),
                None => self.ready.wait_while(inner, empty).unwrap_or_else(PoisonError::into_inner),
            };
        }
        inner.writer = Writer::Busy;
        inner.urgent = false;
        std::mem::swap(&mut inner.jobs, jobs);
    }

    /// The writer's: closes the queue unless jobs came in the meantime. Returns whether it is closed.
    pub(super) fn close_if_empty(&self) -> bool {
        let mut inner = self.lock();
        inner.closed |= inner.jobs.is_empty();
        inner.closed
    }

    /// Closes the queue whatever is in it, and gives that back.
    pub(super) fn close(&self) -> Vec<Job> {
        let mut inner = self.lock();
        inner.closed = true;
        std::mem::take(&mut inner.jobs)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wait<'a>(
    ready: &Condvar,
    inner: MutexGuard<'a, Inner>,
    at_most: Duration,
    condition: impl FnMut(&mut Inner) -> bool,
) -> MutexGuard<'a, Inner> {
    ready.wait_timeout_while(inner, at_most, condition).unwrap_or_else(PoisonError::into_inner).0
}
