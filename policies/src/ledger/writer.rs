//! Turns jobs into hash-chained rows and has the store append them, all that are queued in one transaction.

use super::Status;
use super::attempt::Intent;
use super::queue::Job;
use super::row::{Kind, Row};
use super::status::PATIENCE;
use crate::store::{StateChange, Store, StoreError, Tail};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long to wait before settlements that could not be written are tried again; a new admission tries them at once.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// A store that takes longer for a batch is slow,
pub(super) const SLOW: Duration = Duration::from_millis(20);
/// and is taken to be for so long.
const REST: Duration = Duration::from_secs(1);

/// The one writer of a store.
pub(super) struct Writer {
    store: Box<dyn Store>,
    chain: Chain,
    /// Jobs that are not recorded yet: those of this batch, after those that the store failed on.
    jobs: Vec<Job>,
    rows: Vec<Row>,
    state: Vec<StateChange>,
    buffer: Vec<u8>,
    /// A batch that the store may have or not: it is given again as it was until that is known.
    doubtful: Option<Box<Doubtful>>,
    /// The store was slow: nobody who admits is to wait for it until then.
    slow_until: Option<Instant>,
    status: Arc<Status>,
    stopping: Vec<oneshot::Sender<()>>,
}

/// A batch of which it is not known whether it was written.
struct Doubtful {
    jobs: Vec<Job>,
    rows: Vec<Row>,
    state: Vec<StateChange>,
    /// Where the chain ends with it.
    tail: Tail,
    since: Instant,
}

impl Doubtful {
    /// Whoever still waits for a change waits no longer, although it may have been made.
    fn send_away(&mut self) {
        for job in &mut self.jobs {
            if let Job::Change { answer, .. } = job {
                // A dropped sender tells the one who waits.
                *answer = oneshot::channel().0;
            }
        }
    }
}

/// The end of the hash chain, and which attempts are open.
struct Chain {
    tail: Tail,
    open: BTreeSet<i64>,
}

impl Writer {
    pub(super) fn new(mut store: Box<dyn Store>, status: Arc<Status>) -> Result<Self, StoreError> {
        let chain = Chain { tail: store.tail()?, open: BTreeSet::new() };
        let (jobs, rows, state, buffer) = Default::default();
        Ok(Self {
            store,
            chain,
            jobs,
            rows,
            state,
            buffer,
            doubtful: None,
            slow_until: None,
            status,
            stopping: Vec::new(),
        })
    }

    /// Appends rows that belong to no job. For start-up only: the attempts they close count as not open.
    pub(super) fn append(&mut self, mut rows: Vec<Row>) -> Result<(), StoreError> {
        let tail = self.chain.seal(&mut rows, &mut self.buffer);
        self.store.append(&rows, &[])?;
        self.chain.commit(tail, &rows);
        Ok(())
    }

    pub(super) fn store(&mut self) -> &mut dyn Store {
        &mut *self.store
    }

    /// Whether there can be times at which the store is quick.
    pub(super) fn may_be_shared(&self) -> bool {
        self.store.may_be_quick()
    }

    /// Whether everything that it was given is recorded or refused, and it was not told to stop.
    pub(super) fn is_well(&self) -> bool {
        self.jobs.is_empty() && self.doubtful.is_none() && self.stopping.is_empty()
    }

    /// Whether the next batch will probably be written at once.
    pub(super) fn is_quick(&self) -> bool {
        self.is_well() && self.store.is_quick() && self.slow_until.is_none_or(|until| until <= Instant::now())
    }

    /// Between batches, on a thread that nobody waits for.
    pub(super) fn upkeep(&mut self) {
        self.store.upkeep();
    }

    /// Gives up what cannot be written.
    pub(super) fn stop(mut self) -> Vec<oneshot::Sender<()>> {
        let doubtful = self.doubtful.as_ref().map_or(0, |batch| batch.jobs.len());
        if !self.jobs.is_empty() || doubtful > 0 {
            tracing::error!(
                rows = self.jobs.len() + doubtful,
                "stopped with settlements that the ledger could not record; they become unknown charges at the next start"
            );
        }
        std::mem::take(&mut self.stopping)
    }

    /// Records a batch, in which nobody is left waiting. When the store fails, its intents are refused, and everything
    /// else is kept for the next time. Returns whether it was told to stop.
    pub(super) fn write(&mut self, batch: &mut Vec<Job>) -> bool {
        self.jobs.append(batch);
        if !self.ends_doubt() {
            self.fail_jobs();
            return !self.stopping.is_empty();
        }
        self.rows.clear();
        self.state.clear();
        let tail = self.chain.tail;
        for job in &mut self.jobs {
            if let Job::Change { state, .. } = job {
                self.state.extend_from_slice(state);
            }
            self.rows.extend(row_of(job, tail.seq + 1 + i64::try_from(self.rows.len()).unwrap_or(i64::MAX)));
        }
        let tail = self.chain.seal(&mut self.rows, &mut self.buffer);
        let written = if self.rows.is_empty() && self.state.is_empty() { Ok(()) } else { self.append_rows() };
        match written {
            Ok(()) => {
                self.chain.commit(tail, &self.rows);
                self.status.written(self.jobs.len());
                for job in self.jobs.drain(..) {
                    recorded(job, &mut *self.store, &mut self.stopping);
                }
            }
            Err(_) if self.store.in_doubt() => self.doubt(tail),
            Err(_) => self.fail_jobs(),
        }
        !self.stopping.is_empty()
    }

    fn fail_jobs(&mut self) {
        for job in std::mem::take(&mut self.jobs) {
            self.jobs.extend(failed(job, &self.status, &mut self.stopping));
        }
    }

    /// The store may have this batch or not. Who waits to be admitted is refused at once.
    fn doubt(&mut self, tail: Tail) {
        let mut jobs = Vec::new();
        for job in std::mem::take(&mut self.jobs) {
            match job {
                Job::Intent(attempt) => {
                    attempt.set_refused();
                    jobs.push(Job::Intent(attempt));
                }
                Job::Flush(_) | Job::Sums { .. } | Job::Stop(_) => {
                    jobs.extend(failed(job, &self.status, &mut self.stopping))
                }
                Job::Extension { ref attempt, .. } => {
                    attempt.wake();
                    jobs.push(job);
                }
                Job::Close { .. } | Job::Undo(_) | Job::Change { .. } => jobs.push(job),
            }
        }
        let (rows, state) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.state));
        self.doubtful = Some(Box::new(Doubtful { jobs, rows, state, tail, since: Instant::now() }));
    }

    /// Gives a batch that is in doubt again as it was. Returns whether none is in doubt any more.
    fn ends_doubt(&mut self) -> bool {
        let Some(mut batch) = self.doubtful.take() else { return true };
        self.status.begins();
        let written = self.store.append(&batch.rows, &batch.state);
        self.status.ended(written.as_ref().err());
        if written.is_err() && self.store.in_doubt() {
            if batch.since.elapsed() >= PATIENCE {
                batch.send_away();
            }
            self.doubtful = Some(batch);
            return false;
        }
        let since = std::mem::take(&mut self.jobs);
        if written.is_err() {
            self.jobs = batch.jobs;
            self.fail_jobs();
            self.jobs.extend(since);
            return false;
        }
        self.chain.commit(batch.tail, &batch.rows);
        for job in batch.jobs {
            self.status.written(1);
            match job {
                // It is on record, but was refused: it is to be released, unless the same batch did that.
                Job::Intent(attempt) if self.chain.open.contains(&attempt.number()) => {
                    self.status.queued();
                    self.jobs.push(Job::Undo(attempt));
                }
                Job::Intent(_) => {}
                job => recorded(job, &mut *self.store, &mut self.stopping),
            }
        }
        self.jobs.extend(since);
        true
    }

    fn append_rows(&mut self) -> Result<(), StoreError> {
        let begun = self.status.begins();
        let written = self.store.append(&self.rows, &self.state);
        self.status.ended(written.as_ref().err());
        let took = begun.elapsed();
        if took >= SLOW {
            self.slow_until = Some(begun + took + REST);
        }
        written
    }
}

impl Drop for Writer {
    /// Nobody is left waiting, not even by a panic.
    fn drop(&mut self) {
        refuse(&self.jobs);
    }
}

/// Tells whoever waits for these jobs that they will not be recorded.
pub(super) fn refuse(jobs: &[Job]) {
    for job in jobs {
        match job {
            Job::Intent(attempt) => attempt.set_refused(),
            Job::Extension { attempt, .. } => attempt.wake(),
            // A dropped sender tells the one who waits.
            Job::Close { .. } | Job::Undo(_) | Job::Change { .. } | Job::Flush(_) | Job::Sums { .. } | Job::Stop(_) => {
            }
        }
    }
}

impl Chain {
    /// Numbers and hashes rows as the next of the chain. Nothing changes until they are committed.
    fn seal(&self, rows: &mut [Row], buffer: &mut Vec<u8>) -> Tail {
        let oldest_open = self.open.first().copied().unwrap_or(self.tail.seq + 1);
        seal(Tail { oldest_open, ..self.tail }, rows, buffer)
    }

    fn commit(&mut self, tail: Tail, rows: &[Row]) {
        self.tail = tail;
        for row in rows {
            match (row.kind, row.intent) {
                (Kind::Intent, _) => _ = self.open.insert(row.seq),
                (kind, Some(intent)) if kind.closes() => _ = self.open.remove(&intent),
                _ => {}
            }
        }
    }
}

/// Numbers and hashes rows as the next of a chain that ends with `tail`; returns its new end.
pub(crate) fn seal(mut tail: Tail, rows: &mut [Row], buffer: &mut Vec<u8>) -> Tail {
    for row in rows {
        tail.seq += 1;
        (row.seq, row.oldest_open, row.prev_hash) = (tail.seq, tail.oldest_open, tail.hash);
        tail.hash = row.digest(buffer);
        row.hash = tail.hash;
    }
    tail
}

/// The row of a job, `seq` being its number; none for an attempt whose intent was refused, of which the ledger knows
/// nothing.
fn row_of(job: &mut Job, seq: i64) -> Option<Row> {
    match job {
        Job::Intent(attempt) => Some(attempt.intent_row(seq)),
        Job::Extension { attempt, at, covered } => {
            *covered = attempt.begin_extension();
            Some(attempt.covering_row(Kind::Extension, *at, *covered))
        }
        Job::Close { attempt, end, .. } => (attempt.intent() != Intent::Refused).then(|| attempt.closing_row(end)),
        Job::Undo(attempt) => Some(attempt.undoing_row()),
        Job::Change { row, .. } => row.as_deref().cloned(),
        Job::Flush(_) | Job::Sums { .. } | Job::Stop(_) => None,
    }
}

/// Tells whoever waits for a job that it is recorded, and frees the place of an attempt that ended.
fn recorded(job: Job, store: &mut dyn Store, stopping: &mut Vec<oneshot::Sender<()>>) {
    match job {
        Job::Intent(attempt) => attempt.set_recorded(attempt.granted),
        Job::Extension { attempt, covered, .. } => attempt.set_recorded(covered),
        Job::Close { place, .. } => drop(place),
        Job::Undo(_) => {}
        // Whoever asked may have gone.
        Job::Change { answer, .. } | Job::Flush(answer) => _ = answer.send(()),
        Job::Sums { now, answer } => match store.settled(now) {
            Ok(sums) => _ = answer.send(sums),
            // A dropped sender tells the one who waits.
            Err(error) => tracing::error!(%error, "what is settled cannot be read from the ledger"),
        },
        Job::Stop(answer) => stopping.push(answer),
    }
}

/// Keeps a job that the store failed on, or tells whoever waits for it that it is not recorded.
fn failed(job: Job, status: &Status, stopping: &mut Vec<oneshot::Sender<()>>) -> Option<Job> {
    match &job {
        Job::Extension { attempt, .. } => {
            attempt.wake();
            return Some(job);
        }
        Job::Close { attempt, .. } if attempt.intent() != Intent::Refused => return Some(job),
        Job::Undo(_) => return Some(job),
        _ => status.written(1),
    }
    match job {
        Job::Intent(attempt) => attempt.set_refused(),
        Job::Stop(answer) => stopping.push(answer),
        // A dropped sender tells the one who waits.
        Job::Change { .. }
        | Job::Flush(_)
        | Job::Sums { .. }
        | Job::Extension { .. }
        | Job::Close { .. }
        | Job::Undo(_) => {}
    }
    None
}
