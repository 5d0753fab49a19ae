//! Where the one writer of a store is kept for its thread and for those who admit: whoever finds it free writes all that
//! is queued, and nobody is woken for it.
//!
//! An admission queues its intent and tries to take the writer, never waiting for it. If it gets it, it writes; if not,
//! whoever holds it looks at the queue again after giving it back: a failed try comes after its job was queued, so that
//! look finds the job. The thread looks before it sleeps anyway. What takes long is left to the thread: stores that wait
//! for a disk or a network, batches that must be tried again, and jobs that read much.

use super::lock;
use super::queue::{Job, Queue};
use super::status::Status;
use super::writer::{RETRY, Writer, refuse};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use tokio::sync::oneshot;

/// How many batches an admission writes, its own and what others queued meanwhile, before it leaves that to the thread. The
/// thread would first have to be given a core.
const ROUNDS: usize = 16;

/// The queue, and the writer while it is open.
pub(super) struct Desk {
    queue: Queue,
    held: Mutex<Option<Held>>,
    status: Arc<Status>,
    /// Whether the store can be quick enough for an admission to write itself.
    is_shared: bool,
}

struct Held {
    writer: Writer,
    /// Jobs on their way from the queue; empty between batches.
    batch: Vec<Job>,
}

impl Desk {
    pub(super) fn new(writer: Writer, status: Arc<Status>) -> Self {
        let is_shared = writer.may_be_shared();
        let held = Mutex::new(Some(Held { writer, batch: Vec::new() }));
        Self { queue: Queue::default(), held, status, is_shared }
    }

    /// Hands a job over. Returns false, and drops it, when the writer has stopped.
    pub(super) fn push(&self, job: Job) -> bool {
        if self.is_shared && matches!(job, Job::Intent(_)) {
            let taken = self.queue.push_unheard(job);
            if taken {
                self.help();
            }
            return taken;
        }
        self.queue.push(job)
    }

    /// The thread: returns when it was told to stop, with what is then to be answered once the store is closed.
    pub(super) fn run(&self) -> Vec<oneshot::Sender<()>> {
        let _closes = Closes(self);
        let mut again = None;
        loop {
            self.queue.wait(again);
            let mut guard = lock(&self.held);
            let Some(Held { writer, batch }) = guard.as_mut() else { return Vec::new() };
            self.queue.take(batch);
            let stop = writer.write(batch);
            writer.upkeep();
            again = (!writer.is_well()).then_some(RETRY);
            if stop && self.queue.close_if_empty() {
                return guard.take().map(|held| held.writer.stop()).unwrap_or_default();
            }
        }
    }

    /// Writes what is queued, or sees to it that somebody does.
    fn help(&self) {
        for _ in 0..ROUNDS {
            let guard = match self.held.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::WouldBlock) => return,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            };
            if !self.write(guard) {
                break;
            }
            if !self.queue.is_urgent() {
                return;
            }
        }
        self.queue.call();
    }

    /// Writes what is queued and gives the writer back. Returns false when there is something for the thread to do.
    fn write(&self, mut guard: MutexGuard<'_, Option<Held>>) -> bool {
        // Closed: nobody is left in the queue.
        let Some(Held { writer, batch }) = guard.as_mut() else { return true };
        if !writer.is_quick() || !self.queue.take_quick(batch) {
            return false;
        }
        // A bug in the store must not end the request that happened to write.
        match catch_unwind(AssertUnwindSafe(|| writer.write(batch))) {
            Ok(_) => writer.is_well(),
            Err(_) => {
                tracing::error!("the ledger's writer panicked");
                *guard = None;
                self.close();
                false
            }
        }
    }

    /// Nobody writes any more, and nobody is left waiting.
    fn close(&self) {
        self.status.gone("the ledger is closed");
        refuse(&self.queue.close());
    }
}

/// Closes the desk when the thread ends, in whichever way.
struct Closes<'a>(&'a Desk);

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        *lock(&self.0.held) = None;
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use crate::Policies;
    use crate::denied::Denied;
    use crate::lease::{Lease, OutputBound};
    use crate::ledger::lock;
    use crate::ledger::row::{Kind, Row};
    use crate::ledger::writer::SLOW;
    use crate::setup::{clock, config, nano_per_token, own, scout, spend, used};
    use crate::store::memory::Memory;
    use crate::store::settled::Settled;
    use crate::store::{Kept, StateChange, Store, StoreError, Tail};
    use std::collections::{BTreeMap, HashSet};
    use std::future::Future;
    use std::sync::{Arc, Condvar, Mutex};
    use std::task::{Context, Waker};
    use std::time::Instant;
    use tollkeeper_config::Window;

    /// A store in memory that is quick unless a test says otherwise.
    #[derive(Clone, Default)]
    struct Quick(Arc<(Mutex<Mood>, Condvar)>);

    #[derive(Default)]
    struct Mood {
        memory: Memory,
        /// How many rows each batch had, and whether a thread of the ledger's own wrote it.
        batches: Vec<(usize, bool)>,
        waits: bool,
        waiting: bool,
        is_slow: bool,
        needs_thread: bool,
        panics: bool,
    }

    impl Quick {
        fn set(&self, change: impl FnOnce(&mut Mood)) {
            change(&mut lock(&self.0.0));
            self.0.1.notify_all();
        }

        /// Returns when somebody stands still in this store.
        fn until_waiting(&self) {
            drop(self.0.1.wait_while(lock(&self.0.0), |mood| !mood.waiting).unwrap());
        }

        fn rows(&self) -> Vec<Row> {
            lock(&self.0.0).memory.rows.clone()
        }

        fn batches(&self) -> Vec<(usize, bool)> {
            lock(&self.0.0).batches.clone()
        }
    }

    impl Store for Quick {
        fn tail(&mut self) -> Result<Tail, StoreError> {
            lock(&self.0.0).memory.tail()
        }

        fn append(&mut self, rows: &[Row], state: &[StateChange]) -> Result<(), StoreError> {
            let mut mood = lock(&self.0.0);
            mood.waiting = mood.waits;
            self.0.1.notify_all();
            let mut mood = self.0.1.wait_while(mood, |mood| mood.waits).unwrap();
            mood.waiting = false;
            assert!(!mood.panics, "the store has a bug");
            let begun = Instant::now();
            while mood.is_slow && begun.elapsed() < SLOW {}
            mood.batches.push((rows.len(), std::thread::current().name() == Some("ledger")));
            mood.memory.append(rows, state)
        }

        fn may_be_quick(&self) -> bool {
            true
        }

        fn is_quick(&self) -> bool {
            !lock(&self.0.0).needs_thread
        }

        fn upkeep(&mut self) {
            assert_eq!(std::thread::current().name(), Some("ledger"), "nobody who admits does this");
            lock(&self.0.0).needs_thread = false;
        }

        fn state(&mut self, kind: &str) -> Result<Kept, StoreError> {
            lock(&self.0.0).memory.state(kind)
        }

        fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError> {
            lock(&self.0.0).memory.open_attempts(seq)
        }

        fn settled(&mut self, now: i64) -> Result<Vec<Settled>, StoreError> {
            lock(&self.0.0).memory.settled(now)
        }
    }

    fn open() -> (Policies, Quick) {
        let store = Quick::default();
        let config = config(&[(Window::Day, 1_000_000_000)]);
        let clock = clock("2026-03-04T05:06:07Z").0;
        (Policies::start(&config, clock, Box::new(store.clone()), true).unwrap().0, store)
    }

    async fn admit(policies: &Policies) -> Result<Lease, Denied> {
        policies.admit(&scout(policies), spend(nano_per_token(), 10, OutputBound::Whole(5))).await
    }

    /// An admission on a thread of its own.
    fn elsewhere(policies: &Policies) -> std::thread::JoinHandle<Result<Lease, Denied>> {
        let policies = policies.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(admit(&policies))
        })
    }

    #[tokio::test]
    async fn who_admits_writes_and_takes_along_what_lingers() {
        let (policies, store) = open();
        let mut admitted = 0;
        while !store.batches().contains(&(2, false)) {
            assert!(admitted < 100_000, "{:?}", store.batches());
            admit(&policies).await.unwrap().settle(used(10, 3));
            admitted += 1;
        }
        // The last one is recorded without another admission.
        while store.rows().len() < 2 * admitted {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn every_intent_of_a_crowd_is_recorded_once_and_in_the_order_of_the_chain() {
        const EACH: usize = 500;
        let (policies, store) = open();
        std::thread::scope(|scope| {
            for thread in 0..16 {
                let policies = policies.clone();
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    runtime.block_on(async {
                        let agent = scout(&policies);
                        for number in 0..EACH {
                            let mut spend = spend(nano_per_token(), 10, OutputBound::Whole(5));
                            spend.request_id = format!("{thread}-{number}").into();
                            policies.admit(&agent, spend).await.unwrap().settle(used(10, 3));
                            // Others change what is kept, which is for the thread alone.
                            if number % 50 == thread {
                                assert!(policies.flush().await);
                            }
                        }
                    });
                });
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        assert!(runtime.block_on(policies.flush()));
        let rows = store.rows();
        assert_eq!((rows.len(), policies.queue_depth()), (2 * 16 * EACH, 0));
        assert!(rows.windows(2).all(|pair| pair[1].prev_hash == pair[0].hash && pair[1].seq == pair[0].seq + 1));
        let mut open: BTreeMap<i64, &str> = BTreeMap::new();
        let mut seen = HashSet::new();
        for row in &rows {
            match row.kind {
                Kind::Intent => {
                    assert!(seen.insert(&*row.request_id), "{} twice", row.request_id);
                    open.insert(row.seq, &row.request_id);
                }
                _ => assert_eq!(row.intent.and_then(|intent| open.remove(&intent)), Some(&*row.request_id)),
            }
        }
        assert!(open.is_empty() && seen.len() == 16 * EACH);
        let spent = i64::try_from(16 * EACH * 13).unwrap();
        assert_eq!(own(&policies, &scout(&policies))[0].spent.0, spent);
    }

    #[tokio::test]
    async fn who_finds_the_writer_taken_does_not_stand_still_and_is_not_forgotten() {
        let (policies, store) = open();
        store.set(|mood| mood.waits = true);
        let first = elsewhere(&policies);
        store.until_waiting();
        let mut late: Vec<_> = (0..10).map(|_| Box::pin(admit(&policies))).collect();
        for admission in &mut late {
            let polled = admission.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending(), "not before it is on record");
        }
        store.set(|mood| mood.waits = false);
        let mut leases = vec![first.join().unwrap().unwrap()];
        for admission in late {
            leases.push(admission.await.unwrap());
        }
        let batches: Vec<usize> = store.batches().iter().map(|batch| batch.0).collect();
        assert_eq!(batches, [1, 10], "they share a batch");
        leases.into_iter().for_each(|lease| _ = lease.settle(used(10, 3)));
        assert!(policies.flush().await);
        assert_eq!(store.rows().len(), 22);
    }

    #[tokio::test]
    async fn a_panic_of_one_who_writes_leaves_nobody_waiting() {
        let (policies, store) = open();
        let lease = admit(&policies).await.unwrap();
        store.set(|mood| (mood.waits, mood.panics) = (true, true));
        let first = elsewhere(&policies);
        store.until_waiting();
        let mut late = Box::pin(admit(&policies));
        assert!(late.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        store.set(|mood| mood.waits = false);
        assert!(matches!(first.join().unwrap(), Err(Denied::StoreDown { .. })), "it is refused and goes on");
        assert!(matches!(late.await, Err(Denied::StoreDown { .. })));
        assert!(matches!(admit(&policies).await, Err(Denied::StoreDown { .. })));
        assert!(!policies.store_up() && !policies.flush().await);
        lease.settle(used(10, 3));
        policies.close().await;
    }

    #[tokio::test]
    async fn a_store_that_was_slow_or_has_work_to_do_is_left_to_the_thread() {
        let (policies, store) = open();
        store.set(|mood| mood.needs_thread = true);
        let mut leases = vec![admit(&policies).await.unwrap()];
        assert_eq!(store.batches(), [(1, true)]);
        // Once that is done, those who admit write again.
        while store.batches().iter().all(|batch| batch.1) {
            leases.push(admit(&policies).await.unwrap());
        }
        store.set(|mood| mood.is_slow = true);
        leases.push(admit(&policies).await.unwrap());
        store.set(|mood| mood.is_slow = false);
        let before = store.batches().len();
        leases.push(admit(&policies).await.unwrap());
        assert_eq!(store.batches()[before..], [(1, true)]);
    }
}
