//! The server is killed, stopped, emptied, set back or slow while two gateways work: no budget is overspent, nothing is
//! counted twice or forgotten, nobody waits for long.

use super::*;
use nix::sys::signal::Signal;
use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use tokio::task::JoinSet;
use tollkeeper_policies::shared::{OpenLease, Restore, Share, Tally};
use tollkeeper_servers::Proxy;

/// What may be spent in all, beyond what a double tells apart.
const LIMIT: i64 = (1 << 60) + 7;
/// What one lease holds.
const PRICE: i64 = (1 << 40) + 3;
/// So many leases may be open at once.
const SLOTS: i64 = 6;
const TASKS: usize = 8;
/// The most that one call may take: one connection and one answer, on a machine that is busy.
const SHORT: Duration = Duration::from_millis(1800);

/// A gateway: its ledger, and its way to the server.
struct Gate {
    accounts: SharedAccounts,
    book: Mutex<Book>,
    restoring: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Book {
    settled: i64,
    /// Leases, from before they are asked for until before they are ended.
    open: HashSet<String>,
    /// How often somebody read this to restore it.
    read: u64,
}

/// Both gateways at work.
struct World {
    gates: Vec<Arc<Gate>>,
    tasks: JoinSet<()>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    served: AtomicU64,
    failed: AtomicU64,
    open: AtomicI64,
    most_open: AtomicI64,
    longest_us: AtomicU64,
}

fn counters() -> [Counter; 2] {
    [total("money"), total("slots")]
}

impl Gate {
    fn snapshot(&self) -> Restore {
        let mut book = self.book.lock().unwrap();
        book.read += 1;
        let [money, slots] = counters();
        let share = |counter: &Counter, settled| Share { counter: counter.clone(), settled, admitted: 0 };
        let lease = |id: &String| OpenLease {
            lease: id.as_str().into(),
            admitted: 1_000_000,
            memo: "".into(),
            step: 0,
            held: vec![(money.clone(), PRICE), (slots.clone(), 1)],
        };
        let leases = book.open.iter().map(lease).collect();
        Restore { shares: vec![share(&money, book.settled), share(&slots, 0)], leases, ..nothing() }
    }

    async fn restore(&self) {
        let _one = self.restoring.lock().await;
        // Not told is not lost: who asks next finds out again.
        _ = self.accounts.restore(&self.snapshot()).await;
    }

    /// Ends a lease, however often that has to be said.
    async fn end(&self, id: &str, cost: i64, seen: &Seen) {
        {
            let mut book = self.book.lock().unwrap();
            book.open.remove(id);
            book.settled += cost;
        }
        let start = Instant::now();
        let mut turns = tokio::time::interval(Duration::from_millis(5));
        loop {
            turns.tick().await;
            match seen.time(self.accounts.settle(id, 1_000_000, &[cost, 0])).await {
                Ok(_) | Err(SharedError::Gone) => return,
                Err(SharedError::Lost) => self.restore().await,
                Err(SharedError::NoAnswer(_) | SharedError::Unreachable(_)) => {
                    assert!(start.elapsed() < PATIENCE, "hang: {id} cannot be ended")
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    async fn one_request(&self, id: String, seen: &Seen) {
        let [money, slots] = counters();
        let want = |counter, limit, amount| Want { counter, limit, least: amount, most: amount };
        let wants = vec![want(money, LIMIT.into(), PRICE), want(slots, SLOTS.into(), 1)];
        let ask = Take { wants, ..take(&id, &total("money"), 0, 0) };
        let read = {
            let mut book = self.book.lock().unwrap();
            book.open.insert(id.clone());
            book.read
        };
        match seen.time(self.accounts.take(&ask)).await {
            Ok(_) => {
                let open = seen.open.fetch_add(1, SeqCst) + 1;
                seen.most_open.fetch_max(open, SeqCst);
                tokio::task::yield_now().await;
                seen.open.fetch_sub(1, SeqCst);
                self.end(&id, PRICE - 1, seen).await;
                seen.served.fetch_add(1, SeqCst);
            }
            Err(SharedError::Refused { short, .. }) => {
                assert_eq!(short, [1], "there is money enough");
                let restored = {
                    let mut book = self.book.lock().unwrap();
                    book.open.remove(&id);
                    book.read != read
                };
                if restored {
                    self.end(&id, 0, seen).await;
                }
            }
            Err(error) => {
                seen.failed.fetch_add(1, SeqCst);
                if error == SharedError::Lost {
                    self.restore().await;
                }
                self.end(&id, 0, seen).await;
            }
        }
    }
}

impl Seen {
    /// Notes how long a call took.
    async fn time<T>(&self, call: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let output = call.await;
        self.longest_us.fetch_max(u64::try_from(start.elapsed().as_micros()).unwrap(), SeqCst);
        output
    }
}

impl World {
    async fn start(settings: impl Fn(&str) -> SharedStore) -> Self {
        let gates = ["left", "right"].map(|name| {
            let accounts = gateway(&settings(name));
            Arc::new(Gate { accounts, book: Mutex::default(), restoring: tokio::sync::Mutex::default() })
        });
        for gate in &gates {
            gate.accounts.beat().await.unwrap();
            gate.restore().await;
        }
        let mut world = Self { gates: gates.to_vec(), tasks: JoinSet::new(), seen: Arc::default() };
        for gate in &gates {
            gate.accounts.beat().await.unwrap();
            world.keep_alive(gate);
            (0..TASKS).for_each(|task| world.work(gate, task));
        }
        world.serves(200).await;
        world
    }

    fn keep_alive(&mut self, gate: &Arc<Gate>) {
        let (gate, seen) = (gate.clone(), self.seen.clone());
        self.tasks.spawn(async move {
            let mut turns = tokio::time::interval(Duration::from_millis(100));
            while !seen.stop.load(SeqCst) {
                turns.tick().await;
                _ = gate.accounts.beat().await;
                if gate.accounts.reap().await == Err(SharedError::Lost) {
                    gate.restore().await;
                }
            }
        });
    }

    fn work(&mut self, gate: &Arc<Gate>, task: usize) {
        let (gate, seen) = (gate.clone(), self.seen.clone());
        self.tasks.spawn(async move {
            let mut turns = tokio::time::interval(Duration::from_millis(2));
            turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut count = 0;
            while !seen.stop.load(SeqCst) {
                turns.tick().await;
                count += 1;
                let name = Arc::as_ptr(&gate) as usize;
                gate.one_request(format!("{name:x}-{task}-{count}"), &seen).await;
            }
        });
    }

    /// Waits until so many more requests have been served. Returns how long that took.
    async fn serves(&self, more: u64) -> Duration {
        let (start, before) = (Instant::now(), self.seen.served.load(SeqCst));
        eventually("requests that are served", async || (self.seen.served.load(SeqCst) >= before + more).then_some(()))
            .await;
        start.elapsed()
    }

    /// How many requests have failed.
    fn failed(&self) -> u64 {
        self.seen.failed.load(SeqCst)
    }

    /// Waits until more than those have failed.
    async fn fails(&self, before: u64) {
        eventually("requests that fail", async || (self.failed() > before).then_some(())).await;
    }

    /// Ends the work, and compares.
    async fn check(mut self) {
        self.seen.stop.store(true, SeqCst);
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
        let settled: i64 = self.gates.iter().map(|gate| gate.book.lock().unwrap().settled).sum();
        let served = i64::try_from(self.seen.served.load(SeqCst)).unwrap();
        assert_eq!(settled, served * (PRICE - 1));
        let tally = |settled: i64| Tally { held: 0, settled: settled.into(), leased: 0 };
        let standing = self.gates[0].accounts.standing(&counters(), 1_000_000).await.unwrap();
        assert_eq!(standing, [tally(settled), tally(0)], "counted twice, or not at all");
        assert!(self.seen.most_open.load(SeqCst) <= SLOTS, "more leases at once than there is room for");
        let longest = Duration::from_micros(self.seen.longest_us.load(SeqCst));
        assert!(longest < SHORT, "a call took {longest:?}");
        // What is left can be spent to the last unit, and not one more.
        let left = LIMIT - settled;
        let gate = &self.gates[1].accounts;
        assert!(matches!(
            gate.take(&take("more", &total("money"), LIMIT.into(), left + 1)).await,
            Err(SharedError::Refused { .. })
        ));
        gate.take(&take("rest", &total("money"), LIMIT.into(), left)).await.unwrap();
    }
}

/// Longer than the lease age and the time in which who is late comes forward, and short of a hang.
const BACK: Duration = Duration::from_secs(5);

fn on(server: &RedisServer) -> impl Fn(&str) -> SharedStore {
    let url = server.url();
    move |name| settings(url.clone(), "t", name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_started_again_with_what_is_on_disk() {
    let mut server = RedisServer::start(true);
    let world = World::start(on(&server)).await;
    for _ in 0..3 {
        let before = world.failed();
        server.kill();
        world.fails(before).await;
        server.restart();
        assert!(world.serves(100).await < BACK);
    }
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_started_again_empty() {
    let mut server = RedisServer::start(false);
    let world = World::start(on(&server)).await;
    for _ in 0..3 {
        server.kill();
        server.restart();
        assert!(world.serves(100).await < BACK);
    }
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_while_it_runs() {
    let server = RedisServer::start(false);
    let world = World::start(on(&server)).await;
    for _ in 0..5 {
        server.cli(&["FLUSHALL"]);
        assert!(world.serves(100).await < BACK);
    }
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_back_to_what_it_knew_earlier() {
    let mut server = RedisServer::start(false);
    let world = World::start(on(&server)).await;
    assert_eq!(server.cli(&["SAVE"]).trim(), "OK");
    world.serves(100).await;
    server.kill();
    server.restart();
    assert_ne!(server.cli(&["DBSIZE"]).trim(), "0", "it was to remember something");
    assert!(world.serves(100).await < BACK);
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_for_less_and_for_more_than_the_lease_age() {
    let server = RedisServer::start(false);
    let world = World::start(on(&server)).await;
    for length in [Duration::from_millis(700), Duration::from_millis(3200)] {
        let (before, stopped) = (world.failed(), Instant::now());
        server.signal(Signal::SIGSTOP);
        world.fails(before).await;
        eventually("time to pass", async || (stopped.elapsed() > length).then_some(())).await;
        server.signal(Signal::SIGCONT);
        assert!(world.serves(100).await < BACK);
    }
    for gate in &world.gates {
        assert_eq!(gate.accounts.unknown(&[]).await, Ok(Vec::new()), "nobody was dead");
    }
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_by_two_seconds() {
    let server = RedisServer::start(false);
    let proxy = Proxy::start(&server).await;
    let world = World::start(|name| settings(proxy.url(), "t", name)).await;
    let (before, slow) = (world.failed(), Instant::now());
    proxy.delay(Duration::from_secs(2));
    world.fails(before).await;
    eventually("time to pass", async || (slow.elapsed() > Duration::from_secs(3)).then_some(())).await;
    proxy.delay(Duration::ZERO);
    assert!(world.serves(100).await < BACK);
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_lost_with_their_connections() {
    let server = RedisServer::start(false);
    let proxy = Proxy::start(&server).await;
    let world = World::start(|name| settings(proxy.url(), "t", name)).await;
    for _ in 0..40 {
        proxy.cut();
        eventually("a cut", async || proxy.has_cut().then_some(())).await;
        world.serves(3).await;
    }
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_costs_one_short_wait() {
    let server = RedisServer::start(false);
    let slow_retry = SharedStore { retry: Duration::from_secs(60), ..settings(server.url(), "t", "left") };
    let gate = gateway(&slow_retry);
    gate.beat().await.unwrap();
    gate.restore(&nothing()).await.unwrap();
    server.signal(Signal::SIGSTOP);
    let start = Instant::now();
    let unreachable = |result| assert!(matches!(result, Err(SharedError::Unreachable(_))), "{result:?}");
    let first = gate.take(&take("first", &total("c"), 10, 1)).await;
    assert!(matches!(first, Err(SharedError::NoAnswer(_))), "{first:?}");
    for which in 0..10_000 {
        unreachable(gate.take(&take(&format!("l{which}"), &total("c"), 10, 1)).await);
    }
    assert!(start.elapsed() < SHORT, "{:?} for 10,000 refusals", start.elapsed());
    server.signal(Signal::SIGCONT);
}

#[tokio::test]
async fn a_request_that_was_given_up_is_not_done_later() {
    let server = RedisServer::start(false);
    let proxy = Proxy::start(&server).await;
    let gate = gateway(&settings(proxy.url(), "t", "left"));
    gate.beat().await.unwrap();
    gate.restore(&nothing()).await.unwrap();
    proxy.hold();
    assert!(matches!(gate.take(&take("a", &total("c"), 10, 1)).await, Err(SharedError::NoAnswer(_))));
    eventually("the next connection", async || match gate.release("a", 1_000_000).await {
        Err(SharedError::Gone) => Some(()),
        Err(SharedError::NoAnswer(_) | SharedError::Unreachable(_)) => None,
        other => panic!("{other:?}"),
    })
    .await;
    let before = server.calls("evalsha");
    proxy.let_go();
    eventually("the late request", async || (server.calls("evalsha") > before).then_some(())).await;
    let standing = gate.standing(&[total("c")], 0).await.unwrap();
    assert_eq!(standing, [Tally { held: 0, settled: 0, leased: 0 }]);
}
