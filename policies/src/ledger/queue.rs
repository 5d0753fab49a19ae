//! Jobs for the ledger's writer.
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

/// How long settlements may wait for company, or twice as long while others write. An intent, which somebody waits for, ends the wait at once, and so under
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
    /// Whether one of the jobs is for the thread alone.
    slow: bool,
    /// Whether the thread is to look, whatever there is.
    called: bool,
    /// How often jobs were taken.
    taken: u64,
    thread: Thread,
    closed: bool,
}

impl Inner {
    fn add(&mut self, job: Job) {
        self.urgent |= job.is_urgent();
        self.slow |= job.is_slow();
        self.jobs.push(job);
    }

    fn take(&mut self, jobs: &mut Vec<Job>) {
        (self.urgent, self.slow) = (false, false);
        self.taken = self.taken.wrapping_add(1);
        std::mem::swap(&mut self.jobs, jobs);
    }

    /// Whether the thread may wait a little longer.
    fn is_calm(&self) -> bool {
        !(self.urgent || self.called || self.closed)
    }

    /// Whether the thread goes on waiting. What it was woken for may have been taken by others: then it must be woken again.
    fn is_still(&mut self, thread: Thread, waits: impl Fn(&Self) -> bool) -> bool {
        let waits = waits(self);
        if waits {
            self.thread = thread;
        }
        waits
    }
}

/// What the writer's thread does: a wake-up costs a system call, so it is made only when needed.
#[derive(Debug, Default, PartialEq, Eq)]
enum Thread {
    #[default]
    Busy,
    /// Waits for an urgent job until its time is up, and then takes all.
    Lingering,
    /// Waits for any job.
    Asleep,
}

impl Job {
    /// Whether somebody waits for it.
    fn is_urgent(&self) -> bool {
        !matches!(self, Self::Close { .. })
    }

    /// Whether it may take long, or ends the writer.
    fn is_slow(&self) -> bool {
        matches!(self, Self::Change { .. } | Self::Flush(_) | Self::Sums { .. } | Self::Stop(_))
    }
}

impl Queue {
    /// Hands a job over to the thread. Returns false, and drops it, when the writer has stopped.
    pub(super) fn push(&self, job: Job) -> bool {
        let mut inner = self.lock();
        if inner.closed {
            return false;
        }
        let wake = match inner.thread {
            Thread::Busy => false,
            Thread::Lingering => job.is_urgent(),
            Thread::Asleep => true,
        };
        inner.add(job);
        if wake {
            self.wake(inner);
        }
        true
    }

    /// The same without a word to the thread: for who then writes it, or [calls](Self::call) the thread.
    pub(super) fn push_unheard(&self, job: Job) -> bool {
        let mut inner = self.lock();
        if !inner.closed {
            inner.add(job);
        }
        !inner.closed
    }

    /// Whether somebody waits for a job that nobody has taken.
    pub(super) fn is_urgent(&self) -> bool {
        self.lock().urgent
    }

    /// Has the thread look, now or as soon as it has done what it does.
    pub(super) fn call(&self) {
        let mut inner = self.lock();
        inner.called = true;
        if inner.thread != Thread::Busy {
            self.wake(inner);
        }
    }

    fn wake(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.thread = Thread::Busy;
        drop(inner);
        self.ready.notify_one();
    }

    /// The thread's: waits until there are jobs, but no longer than `at_most`, or until it is called.
    pub(super) fn wait(&self, at_most: Option<Duration>) {
        let mut inner = self.lock();
        // While others take the jobs, those that are left are new.
        let mut taken = inner.taken.wrapping_sub(1);
        while inner.is_calm() && inner.taken != taken {
            taken = inner.taken;
            inner = wait(&self.ready, inner, LINGER, |inner| inner.is_still(Thread::Lingering, Inner::is_calm));
        }
        let idle = |inner: &mut Inner| inner.is_still(Thread::Asleep, |inner| inner.is_calm() && inner.jobs.is_empty());
        inner = match at_most {
            Some(at_most) => wait(&self.ready, inner, at_most, idle),
            None => self.ready.wait_while(inner, idle).unwrap_or_else(PoisonError::into_inner),
        };
        (inner.thread, inner.called) = (Thread::Busy, false);
    }

    /// For who holds the writer: takes all jobs into the empty `jobs`.
    pub(super) fn take(&self, jobs: &mut Vec<Job>) {
        self.lock().take(jobs);
    }

    /// The same for others than the thread; returns false, and takes none, when one of them is for the thread alone.
    pub(super) fn take_quick(&self, jobs: &mut Vec<Job>) -> bool {
        let mut inner = self.lock();
        if !inner.slow {
            inner.take(jobs);
        }
        !inner.slow
    }

    /// The writer's: closes the queue unless jobs came in the meantime. Returns whether it is closed.
    pub(super) fn close_if_empty(&self) -> bool {
        let mut inner = self.lock();
        inner.closed |= inner.jobs.is_empty();
        inner.closed
    }

    /// Closes the queue whatever is in it, and gives that back; the thread is to see it.
    pub(super) fn close(&self) -> Vec<Job> {
        let mut inner = self.lock();
        inner.closed = true;
        let jobs = std::mem::take(&mut inner.jobs);
        self.wake(inner);
        jobs
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
