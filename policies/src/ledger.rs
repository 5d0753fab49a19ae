//! The ledger: what was admitted, granted, charged and released, in an append-only, hash-chained table that outlives the process.
//!
//! An intent is on record before its attempt is dispatched. Extensions and closing rows are handed over without waiting. One thread writes all
//! that is queued in one transaction, so that many requests share a commit. When the store fails, nothing is admitted; what was handed over is
//! kept and tried again until it is written, and it is bounded because each open attempt holds a place.

pub(crate) mod attempt;
mod queue;
pub(crate) mod row;
mod status;
mod writer;

use crate::denied::Denied;
use crate::store::{Store, StoreError};
use attempt::{Attempt, Closing, Intent};
use queue::{Job, Queue};
use row::{Kind, Row};
use status::Status;
use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use writer::Writer;

/// A handle to the writer.
pub(crate) struct Ledger {
    places: Arc<Semaphore>,
    status: Arc<Status>,
    hands: Hands,
}

/// Whose thread writes.
enum Hands {
    /// One of its own: for stores that take time.
    Writer { queue: Arc<Queue>, thread: Mutex<Option<JoinHandle<()>>> },
    /// The caller's: for stores that answer at once.
    Caller(Mutex<Option<Writer>>),
}

/// A ledger that is open but not yet written to by requests.
pub(crate) struct Opened {
    writer: Writer,
    status: Arc<Status>,
}

impl Opened {
    pub(crate) fn new(store: Box<dyn Store>) -> Result<Self, StoreError> {
        let status = Arc::new(Status::default());
        Ok(Self { writer: Writer::new(store, status.clone())?, status })
    }

    /// Closes the attempts that an earlier process left open, at what they hold. Returns the rows written.
    pub(crate) fn recover(&mut self, now: i64) -> Result<Vec<Row>, StoreError> {
        let from = self.writer.store().tail()?.oldest_open;
        let open = self.writer.store().open_attempts(from)?;
        let unknown = |row: Row| Row {
            at: now,
            kind: Kind::Unknown,
            intent: row.intent.or(Some(row.seq)),
            cost: row.leased,
            outcome: Some(Cow::Borrowed("unknown")),
            ..row
        };
        let rows: Vec<Row> = open.into_iter().map(unknown).collect();
        if !rows.is_empty() {
            self.writer.append(rows.clone())?;
        }
        Ok(rows)
    }

    pub(crate) fn store(&mut self) -> &mut dyn Store {
        self.writer.store()
    }

    /// Starts to take jobs, of at most `places` open attempts at a time.
    pub(crate) fn start(self, places: usize, own_thread: bool) -> Result<Ledger, StoreError> {
        let hands = if own_thread {
            let (queue, writer) = (Arc::new(Queue::default()), self.writer);
            let jobs = queue.clone();
            let run = move || writer.run(&jobs).into_iter().for_each(|answer| _ = answer.send(()));
            let thread = std::thread::Builder::new().name("ledger".into()).spawn(run);
            let thread = thread.map_err(|cause| StoreError(format!("no thread for the ledger: {cause}").into()))?;
            Hands::Writer { queue, thread: Mutex::new(Some(thread)) }
        } else {
            Hands::Caller(Mutex::new(Some(self.writer)))
        };
        let places = Arc::new(Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS)));
        Ok(Ledger { places, status: self.status, hands })
    }
}

impl Ledger {
    /// A place for an attempt, which bounds everything that is kept in memory for it until its closing row is written. Waits while the writer
    /// is behind; is refused while the store is failing or hangs.
    pub(crate) async fn place(&self) -> Result<OwnedSemaphorePermit, Denied> {
        if let Some(reason) = self.status.hangs() {
            return Err(Denied::StoreDown { reason });
        }
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let mut failed = std::pin::pin!(self.status.failed());
        failed.as_mut().enable();
        if !self.is_up() {
            return Err(self.down());
        }
        tokio::select! {
            place = self.places.clone().acquire_owned() => place.map_err(|_| self.down()),
            () = failed => Err(self.down()),
        }
    }

    /// Records the intent, and returns when it is durable.
    pub(crate) async fn intend(&self, attempt: &Arc<Attempt>) -> Result<(), Denied> {
        if !self.push(Job::Intent(attempt.clone())) {
            attempt.set_refused();
            return Err(Denied::StoreDown { reason: "the ledger is closed".into() });
        }
        loop {
            match attempt.intent() {
                Intent::Recorded => return Ok(()),
                Intent::Refused => return Err(self.down()),
                Intent::Waiting => attempt.changed().await,
            }
        }
    }

    /// Has an extension recorded.
    pub(crate) fn extend(&self, attempt: &Arc<Attempt>, at: i64, covered: u64) {
        if attempt.extend(covered) {
            self.push(Job::Extension { attempt: attempt.clone(), at, covered });
        }
    }

    /// Returns when rows that cover so many tokens are durable; refused when the store fails first.
    pub(crate) async fn recorded(&self, attempt: &Attempt, covered: u64) -> Result<(), Denied> {
        while !attempt.is_recorded(covered) {
            if !self.is_up() {
                return Err(self.down());
            }
            attempt.changed().await;
        }
        Ok(())
    }

    /// Has the end of an attempt recorded; its place is free once it is.
    pub(crate) fn close(&self, attempt: &Arc<Attempt>, end: Closing, place: OwnedSemaphorePermit) {
        if attempt.intent() == Intent::Refused {
            return;
        }
        if !self.push(Job::Close { attempt: attempt.clone(), end, place }) {
            tracing::error!(
                request_id = &*attempt.spend.request_id,
                "a lease outlived the ledger; it becomes an unknown charge at the next start"
            );
        }
    }

    /// Returns when all that was handed over before is durable, or false when the store failed on it.
    pub(crate) async fn flush(&self) -> bool {
        let (answer, done) = oneshot::channel();
        self.push(Job::Flush(answer)) && done.await.is_ok()
    }

    /// Writes what is queued and closes the store; returns when that is done. A second call returns at once.
    pub(crate) async fn stop(&self) {
        let (answer, done) = oneshot::channel();
        if self.push(Job::Stop(answer)) {
            // An error means that the writer is gone, which is what was asked for.
            _ = done.await;
        }
    }

    /// Rows that wait to be written.
    pub(crate) fn depth(&self) -> usize {
        self.status.depth()
    }

    /// Whether the store took the last rows it was given.
    pub(crate) fn is_up(&self) -> bool {
        self.status.is_up()
    }

    pub(crate) fn down(&self) -> Denied {
        Denied::StoreDown { reason: self.status.reason() }
    }

    /// Hands a job over; false when the writer has stopped.
    fn push(&self, job: Job) -> bool {
        self.status.queued();
        let taken = match &self.hands {
            Hands::Writer { queue, .. } => queue.push(job),
            Hands::Caller(writer) => {
                let mut writer = lock(writer);
                let stop = writer.as_mut().map(|open| open.write(&mut vec![job]));
                if stop == Some(true) {
                    writer.take().map(Writer::stop).into_iter().flatten().for_each(|answer| _ = answer.send(()));
                }
                stop.is_some()
            }
        };
        if !taken {
            self.status.written(1);
        }
        taken
    }
}

impl Drop for Ledger {
    /// Whoever drops the last handle without stopping first waits here until the last settlements are on record.
    fn drop(&mut self) {
        self.push(Job::Stop(oneshot::channel().0));
        if let Hands::Writer { thread, .. } = &self.hands
            && let Some(thread) = lock(thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the ledger's writer panicked");
        }
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("status", &self.status).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
