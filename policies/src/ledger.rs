//! The ledger: what was admitted, granted, charged and released, in an append-only, hash-chained table that outlives
//! the process.
//!
//! An intent is on record before its attempt is dispatched. Extensions and closing rows are handed over without
//! waiting. All that is queued is written in one transaction, so that many requests share a commit: by a thread, or by
//! who admits while the store is quick. When the
//! store fails, nothing is admitted; what was handed over is kept and tried again until it is written, and it is
//! bounded because each open attempt holds a place.

pub(crate) mod attempt;
pub(crate) mod compaction;
mod desk;
pub(crate) mod postings;
mod queue;
pub(crate) mod read;
pub(crate) mod row;
mod status;
pub(crate) mod writer;

use crate::denied::Denied;
use crate::store::settled::Settled;
use crate::store::{StateChange, Store, StoreError};
use attempt::{Attempt, Closing, Intent};
use desk::Desk;
use queue::Job;
use row::{Kind, Row};
use status::{PATIENCE, Status};
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
    /// One of its own, for stores that take time; those who admit help while the store is quick.
    Writer { desk: Arc<Desk>, thread: Mutex<Option<JoinHandle<()>>> },
    /// The caller's: for stores that answer at once.
    Caller(Box<Mutex<Option<Writer>>>),
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
            let desk = Arc::new(Desk::new(self.writer, self.status.clone()));
            let run = {
                let desk = desk.clone();
                move || desk.run().into_iter().for_each(|answer| _ = answer.send(()))
            };
            let thread = std::thread::Builder::new().name("ledger".into()).spawn(run);
            let thread = thread.map_err(|cause| StoreError(format!("no thread for the ledger: {cause}").into()))?;
            Hands::Writer { desk, thread: Mutex::new(Some(thread)) }
        } else {
            Hands::Caller(Box::new(Mutex::new(Some(self.writer))))
        };
        let places = Arc::new(Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS)));
        Ok(Ledger { places, status: self.status, hands })
    }
}

impl Ledger {
    /// A place for an attempt, which bounds everything that is kept in memory for it until its closing row is written.
    /// Waits while the writer is behind; is refused while the store is failing or hangs.
    pub(crate) async fn place(&self) -> Result<OwnedSemaphorePermit, Denied> {
        if let Some(reason) = self.status.hangs(PATIENCE) {
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

    /// Puts an administrative change on record together with the state that it leaves, all or nothing, and returns when
    /// that is durable. `actor` did it, at `now` (microseconds since 1970), to `subject` (such as "agent/scout"); `note`
    /// is JSON and must hold no secrets. When the store fails, nothing was changed; when it gives no answer for so long that
    /// nobody can be made wait for it, that is known at the next start.
    pub(crate) async fn change(
        &self,
        now: i64,
        (actor, subject): (&str, &str),
        note: Arc<str>,
        state: Vec<StateChange>,
    ) -> Result<(), Denied> {
        self.record(Some(Box::new(Row::note(Kind::Change, now, actor, subject, note))), state).await
    }

    /// Keeps state that the gateway itself came to, which is nobody's change; returns when it is durable.
    pub(crate) async fn keep(&self, state: Vec<StateChange>) -> Result<(), Denied> {
        self.record(None, state).await
    }

    async fn record(&self, row: Option<Box<Row>>, state: Vec<StateChange>) -> Result<(), Denied> {
        if let Some(reason) = self.status.hangs(PATIENCE) {
            return Err(Denied::StoreDown { reason });
        }
        let (answer, done) = oneshot::channel();
        if self.push(Job::Change { row, state, answer }) && done.await.is_ok() { Ok(()) } else { Err(self.down()) }
    }

    /// Returns when all that was handed over before is durable, or false when the store failed on it.
    pub(crate) async fn flush(&self) -> bool {
        let (answer, done) = oneshot::channel();
        self.push(Job::Flush(answer)) && done.await.is_ok()
    }

    /// What is settled, by who pays and by time of admission as of `now`. All rows are read for it, and nothing is written meanwhile.
    pub(crate) async fn settled(&self, now: i64) -> Result<Vec<Settled>, Denied> {
        let (answer, sums) = oneshot::channel();
        let sums = if self.push(Job::Sums { now, answer }) { sums.await.ok() } else { None };
        sums.ok_or_else(|| self.down())
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

    /// Whether the store has not answered for longer than anybody waits.
    pub(crate) fn hangs(&self) -> bool {
        self.status.hangs(PATIENCE).is_some()
    }

    pub(crate) fn down(&self) -> Denied {
        Denied::StoreDown { reason: self.status.reason() }
    }

    /// Hands a job over; false when the writer has stopped.
    fn push(&self, job: Job) -> bool {
        self.status.queued();
        let taken = match &self.hands {
            Hands::Writer { desk, .. } => desk.push(job),
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

#[cfg(test)]
mod tests {
    use crate::Policies;
    use crate::denied::Denied;
    use crate::lease::{Lease, Outcome, OutputBound};
    use crate::ledger::row::{Kind, Row};
    use crate::setup::{clock, config, growing, nano_per_token, own, scout, spend, used};
    use crate::store::memory::Memory;
    use crate::store::settled::Settled;
    use crate::store::{Kept, StateChange, Store, StoreError, Tail};
    use crate::{NewRun, RunLimits};
    use std::future::Future;
    use std::pin::pin;
    use std::sync::{Arc, Condvar, Mutex};
    use std::task::{Context, Poll, Waker};
    use tollkeeper_config::{Price, Usd, Window};

    /// A store in memory that a test can make fail, or make wait.
    #[derive(Clone, Default)]
    struct Moody(Arc<(Mutex<Mood>, Condvar)>);

    #[derive(Default)]
    struct Mood {
        memory: Memory,
        fails: bool,
        waits: bool,
        panics: bool,
        is_quick: bool,
        /// The next answer is lost, and the batch is there or not.
        loses: Option<bool>,
        doubt: Option<bool>,
    }

    impl Moody {
        fn set(&self, change: impl FnOnce(&mut Mood)) {
            change(&mut self.0.0.lock().unwrap());
            self.0.1.notify_all();
        }

        fn kinds(&self) -> Vec<Kind> {
            self.rows().iter().map(|row| row.kind).collect()
        }

        fn rows(&self) -> Vec<Row> {
            self.0.0.lock().unwrap().memory.rows.clone()
        }
    }

    impl Store for Moody {
        fn tail(&mut self) -> Result<Tail, StoreError> {
            self.0.0.lock().unwrap().memory.tail()
        }

        fn append(&mut self, rows: &[Row], state: &[StateChange]) -> Result<(), StoreError> {
            let mood = self.0.0.lock().unwrap();
            let mut mood = self.0.1.wait_while(mood, |mood| mood.waits).unwrap();
            assert!(!mood.panics, "the store has a bug");
            if let Some(there) = mood.loses.take() {
                if there {
                    mood.memory.append(rows, state)?;
                }
                mood.doubt = Some(there);
                return Err(StoreError("no answer".into()));
            }
            if !mood.fails && mood.doubt.take() == Some(true) {
                assert_eq!(mood.memory.rows.last(), rows.last(), "it is given again as it was");
                return Ok(());
            }
            if mood.fails { Err(StoreError("the disk is full".into())) } else { mood.memory.append(rows, state) }
        }

        fn in_doubt(&self) -> bool {
            self.0.0.lock().unwrap().doubt.is_some()
        }

        fn may_be_quick(&self) -> bool {
            self.0.0.lock().unwrap().is_quick
        }

        fn state(&mut self, kind: &str) -> Result<Kept, StoreError> {
            self.0.0.lock().unwrap().memory.state(kind)
        }

        fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError> {
            self.0.0.lock().unwrap().memory.open_attempts(seq)
        }

        fn settled(&mut self, now: i64) -> Result<Vec<Settled>, StoreError> {
            self.0.0.lock().unwrap().memory.settled(now)
        }
    }

    /// Who writes.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Hand {
        Caller,
        Thread,
        Either,
    }

    fn open(hand: Hand) -> (Policies, Moody) {
        let store = Moody::default();
        store.set(|mood| mood.is_quick = hand == Hand::Either);
        let own_thread = hand != Hand::Caller;
        let config = config(&[(Window::Day, 1000)]);
        let clock = clock("2026-03-04T05:06:07Z").0;
        let (policies, _) = Policies::start(&config, clock, Box::new(store.clone()), own_thread).unwrap();
        (policies, store)
    }

    async fn admit(policies: &Policies, bound: OutputBound) -> Result<Lease, Denied> {
        policies.admit(&scout(policies), spend(nano_per_token(), 10, bound)).await
    }

    fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// (spent, reserved) of the one budget.
    fn state(policies: &Policies) -> (i64, i64) {
        let budget = own(policies, &scout(policies))[0];
        (budget.spent.0, budget.reserved.0)
    }

    #[tokio::test]
    async fn a_batch_whose_answer_was_lost_is_written_once() {
        let hands = [Hand::Caller, Hand::Thread, Hand::Either];
        for (hand, there) in hands.into_iter().flat_map(|hand| [(hand, false), (hand, true)]) {
            let (policies, store) = open(hand);
            let kept = admit(&policies, OutputBound::Whole(5)).await.unwrap();
            store.set(|mood| (mood.loses, mood.fails) = (Some(there), true));
            // Refused at once, although it may be on record; meanwhile nothing else is written.
            assert!(matches!(admit(&policies, OutputBound::Whole(5)).await, Err(Denied::StoreDown { .. })));
            assert_eq!(state(&policies), (0, 15));
            kept.settle(used(10, 3));
            assert!(!policies.flush().await);
            assert!(matches!(admit(&policies, OutputBound::Whole(5)).await, Err(Denied::StoreDown { .. })));
            store.set(|mood| mood.fails = false);
            // It was there, or it is now; whichever, the refused attempt ends.
            assert!(policies.flush().await && policies.store_up());
            let ends = [Kind::Release, Kind::Settlement];
            assert_eq!(store.kinds(), [&[Kind::Intent; 2][..], &ends].concat(), "{hand:?} {there}");
            let rows = store.rows();
            assert_eq!((rows[2].intent, rows[3].intent), (Some(2), Some(1)));
            assert_eq!((rows[2].cost, rows[2].leased, rows[3].cost), (Usd::ZERO, Usd(15), Usd(13)));
            assert!(rows.windows(2).all(|pair| pair[1].prev_hash == pair[0].hash && pair[1].seq == pair[0].seq + 1));
            assert_eq!((state(&policies), policies.queue_depth()), ((13, 0), 0));
            assert_eq!(rows[3].oldest_open, 1);
            admit(&policies, OutputBound::Whole(5)).await.unwrap().settle(used(10, 1));
            assert!(policies.flush().await);
            assert_eq!(store.rows()[4].oldest_open, 5, "nothing stays open");
        }
    }

    #[tokio::test]
    async fn a_failing_store_admits_nothing_and_loses_nothing() {
        for hand in [Hand::Caller, Hand::Thread, Hand::Either] {
            let (policies, store) = open(hand);
            let whole = admit(&policies, OutputBound::Whole(5)).await.unwrap();
            let mut stream = admit(&policies, growing(4)).await.unwrap();
            let mut free = policies.admit(&scout(&policies), spend(Price::free(), 10, growing(4))).await.unwrap();
            store.set(|mood| mood.fails = true);
            // Refused by the store, with its words; the budget has everything back.
            let denied = admit(&policies, OutputBound::Whole(5)).await.unwrap_err();
            assert!(matches!(&denied, Denied::StoreDown { reason } if &**reason == "the disk is full"), "{denied}");
            assert!(!policies.store_up());
            assert_eq!((policies.open_leases(), state(&policies)), (3, (0, 15 + 14)));
            // What was granted is honoured, more is not granted; what costs nothing needs no store.
            stream.cover(4).unwrap();
            assert!(matches!(stream.cover(5), Err(Denied::StoreDown { .. })));
            free.cover(500).unwrap();
            // Settlements are kept, however often the store is tried in vain.
            whole.settle(used(10, 3));
            stream.settle(used(10, 4));
            for _ in 0..3 {
                assert!(admit(&policies, OutputBound::Whole(5)).await.is_err());
                assert!(!policies.flush().await);
            }
            assert_eq!((policies.queue_depth(), state(&policies)), (2, (27, 0)), "{hand:?}");
            assert_eq!(store.kinds(), [Kind::Intent; 3]);
            // The next admission finds the store well again and brings everything up to date.
            store.set(|mood| mood.fails = false);
            admit(&policies, OutputBound::Whole(5)).await.unwrap().release(Outcome::Done);
            assert!(policies.flush().await && policies.store_up());
            assert_eq!(policies.queue_depth(), 0);
            let settled: Vec<_> =
                store.rows().iter().filter(|row| row.kind == Kind::Settlement).map(|row| row.cost).collect();
            assert_eq!(settled, [Usd(13), Usd(14)]);
            free.release(Outcome::Done);
        }
    }

    #[tokio::test]
    async fn settlements_are_tried_again_without_a_new_admission() {
        for hand in [Hand::Thread, Hand::Either] {
            let (policies, store) = open(hand);
            let lease = admit(&policies, OutputBound::Whole(5)).await.unwrap();
            store.set(|mood| mood.fails = true);
            lease.settle(used(10, 3));
            assert!(admit(&policies, OutputBound::Whole(5)).await.is_err());
            store.set(|mood| mood.fails = false);
            while policies.queue_depth() > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(store.kinds(), [Kind::Intent, Kind::Settlement]);
        }
    }

    #[tokio::test]
    async fn an_extension_that_was_not_recorded_is_told_and_kept() {
        let (policies, store) = open(Hand::Thread);
        let mut stream = admit(&policies, growing(4)).await.unwrap();
        store.set(|mood| mood.waits = true);
        stream.cover(5).unwrap();
        let mut secured = Box::pin(stream.secured());
        assert!(poll_once(secured.as_mut()).is_pending(), "not before it is on record");
        store.set(|mood| (mood.waits, mood.fails) = (false, true));
        assert!(matches!(secured.await, Err(Denied::StoreDown { .. })));
        store.set(|mood| mood.fails = false);
        stream.settle(used(10, 5));
        while policies.queue_depth() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.kinds(), [Kind::Intent, Kind::Extension, Kind::Settlement]);
        assert_eq!(store.rows()[1].leased, Usd(18));
    }

    #[tokio::test]
    async fn extensions_in_quick_succession_share_a_row() {
        let (policies, store) = open(Hand::Thread);
        let mut stream = admit(&policies, growing(1)).await.unwrap();
        store.set(|mood| mood.waits = true);
        for tokens in 2..500 {
            stream.cover(tokens).unwrap();
        }
        assert!(policies.queue_depth() <= 2, "{} rows wait", policies.queue_depth());
        store.set(|mood| mood.waits = false);
        stream.secured().await.unwrap();
        let last = store.rows().pop().unwrap();
        assert_eq!((last.kind, last.usage.output, last.leased), (Kind::Extension, 499, Usd(509)));
        drop(stream);
        assert!(policies.flush().await);
        assert_eq!(state(&policies), (509, 0));
    }

    #[tokio::test]
    async fn an_admission_that_is_cancelled_costs_nothing() {
        for fails in [false, true] {
            let (policies, store) = open(Hand::Thread);
            store.set(|mood| mood.waits = true);
            let agent = scout(&policies);
            let mut cancelled = Box::pin(policies.admit(&agent, spend(nano_per_token(), 10, OutputBound::Whole(5))));
            assert!(poll_once(cancelled.as_mut()).is_pending());
            assert_eq!((policies.open_leases(), state(&policies)), (1, (0, 15)));
            drop(cancelled);
            assert_eq!((policies.open_leases(), state(&policies)), (0, (0, 0)));
            store.set(|mood| (mood.waits, mood.fails) = (false, fails));
            policies.flush().await;
            let expected: &[Kind] = if fails { &[] } else { &[Kind::Intent, Kind::Release] };
            assert_eq!(store.kinds(), expected);
            assert_eq!(policies.queue_depth(), 0, "the end of an attempt that was never recorded is not waited for");
        }
    }

    #[tokio::test]
    async fn open_attempts_are_bounded_by_places() {
        let store = Moody::default();
        let mut config = config(&[]);
        config.server.max_in_flight = 0; // leaves the reserve of 64 places
        let clock = clock("2026-03-04T05:06:07Z").0;
        let (policies, _) = Policies::start(&config, clock, Box::new(store.clone()), false).unwrap();
        let mut leases = Vec::new();
        for _ in 0..64 {
            leases.push(admit(&policies, growing(1)).await.unwrap());
        }
        let mut next = pin!(admit(&policies, growing(1)));
        assert!(poll_once(next.as_mut()).is_pending(), "waits for a place");
        leases.pop();
        next.await.unwrap().release(Outcome::Done);
        // While the store fails, a settlement keeps its place, and nobody is left waiting for one.
        let mut waiting = pin!(async {
            let _last = admit(&policies, growing(1)).await?;
            admit(&policies, growing(1)).await
        });
        assert!(poll_once(waiting.as_mut()).is_pending());
        store.set(|mood| mood.fails = true);
        leases.pop().unwrap().settle(used(1, 1));
        assert!(matches!(waiting.await, Err(Denied::StoreDown { .. })));
        assert!(matches!(admit(&policies, growing(1)).await, Err(Denied::StoreDown { .. })));
        store.set(|mood| mood.fails = false);
    }

    #[tokio::test]
    async fn a_panic_of_the_writer_leaves_nobody_waiting() {
        let (policies, store) = open(Hand::Thread);
        let mut stream = admit(&policies, growing(4)).await.unwrap();
        store.set(|mood| mood.panics = true);
        assert!(matches!(admit(&policies, growing(4)).await, Err(Denied::StoreDown { .. })));
        assert!(matches!(admit(&policies, growing(4)).await, Err(Denied::StoreDown { .. })));
        assert!(stream.cover(5).is_err() && !policies.store_up() && !policies.flush().await);
        stream.settle(used(10, 4));
        assert_eq!(state(&policies), (14, 0));
        policies.close().await;
    }

    #[tokio::test]
    async fn a_run_ends_also_while_that_cannot_be_recorded_and_grows_only_on_record() {
        let (policies, store) = open(Hand::Caller);
        let limits = RunLimits { usd: Some(Usd(100)), ..RunLimits::default() };
        let new = |parent| NewRun { parent, limits, ..NewRun::default() };
        let (parent, _) = policies.create_run("ops", "scout", new(None)).await.unwrap();
        let more = RunLimits { usd: Some(Usd(50)), ..RunLimits::default() };
        store.set(|mood| mood.fails = true);
        for _ in 0..2 {
            assert!(policies.extend_run("ops", &parent.run, &more).await.is_err());
            assert!(policies.create_run("ops", "scout", new(Some(parent.run.clone()))).await.is_err());
        }
        let view = policies.run(&parent.run.id).unwrap();
        assert_eq!((view.limits.usd, view.reserved, policies.open_runs()), (Some(Usd(100)), Usd::ZERO, 1));
        assert!(policies.cancel_run("ops", &parent.run).await.is_err());
        assert!(policies.run(&parent.run.id).unwrap().ended.is_some(), "it has ended all the same");
        store.set(|mood| mood.fails = false);
        policies.tick().await;
        let kept = store.0.0.lock().unwrap().memory.state("run").unwrap();
        assert!(kept.len() == 1 && kept[0].1.contains("\"cancelled\":true"), "{kept:?}");
    }

    #[tokio::test]
    async fn a_change_and_its_state_are_recorded_together_or_not_at_all() {
        for hand in [Hand::Caller, Hand::Thread, Hand::Either] {
            let (policies, store) = open(hand);
            let put = |body: Option<&str>| {
                let body = body.map(Into::into);
                vec![StateChange { kind: "agent", id: "digger".into(), body, changed: 7 }]
            };
            let change = |state| policies.0.ledger.change(7, ("ops", "agent/digger"), r#"{"made":true}"#.into(), state);
            let kept = || store.0.0.lock().unwrap().memory.state("agent").unwrap();
            store.set(|mood| mood.fails = true);
            assert!(matches!(change(put(Some("{}"))).await, Err(Denied::StoreDown { .. })));
            store.set(|mood| mood.fails = false);
            assert!(policies.flush().await);
            assert_eq!((store.rows().len(), kept().len(), policies.queue_depth()), (0, 0, 0), "not even later");
            change(put(Some("{}"))).await.unwrap();
            assert_eq!(kept(), [("digger".into(), "{}".into())]);
            change(put(None)).await.unwrap();
            let rows = store.rows();
            assert_eq!((rows[0].kind, &*rows[0].agent, &*rows[0].alias), (Kind::Change, "ops", "agent/digger"));
            assert_eq!((rows.len(), rows[0].note.as_deref(), kept().len()), (2, Some(r#"{"made":true}"#), 0));
            // A change is no attempt: a restart charges nothing for it.
            policies.close().await;
            let (_, recovered) =
                Policies::start(&config(&[]), clock("2026-03-04T05:06:07Z").0, Box::new(store.clone()), false).unwrap();
            assert_eq!(recovered.unknown, 0);
            assert!(change(put(None)).await.is_err(), "the ledger is closed");
        }
    }

    #[tokio::test]
    async fn closing_with_a_failing_store_ends() {
        let (policies, store) = open(Hand::Thread);
        let lease = admit(&policies, OutputBound::Whole(5)).await.unwrap();
        store.set(|mood| mood.fails = true);
        lease.settle(used(10, 3));
        policies.close().await;
        assert!(matches!(admit(&policies, growing(1)).await, Err(Denied::StoreDown { .. })));
        // A restart finds it open.
        store.set(|mood| mood.fails = false);
        drop(policies);
        let (config, clock) = (config(&[]), clock("2026-03-04T05:06:07Z").0);
        let (_, recovered) = Policies::start(&config, clock, Box::new(store), false).unwrap();
        assert_eq!((recovered.unknown, recovered.amount), (1, Usd(15)));
    }
}
