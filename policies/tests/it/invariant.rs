//! For every budget, at every instant, under any interleaving: settled + leased stays within the limit. Checked against
//! a naive book.

use crate::setup::{Hand, clock, config, own, price, scout, spend, used};
use proptest::prelude::*;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;
use tollkeeper_config::{Config, Price, Secret, Usd, Window};
use tollkeeper_policies::report::verify;
use tollkeeper_policies::{Caller, Clock, Denied, Lease, Outcome, OutputBound, Place, Policies, Recovered};
use tollkeeper_servers::PostgresServer;

#[derive(Debug, Clone)]
enum Step {
    Admit { input: u64, bound: OutputBound, free: bool },
    Cover { which: usize, more: u64 },
    Settle { which: usize, input: u64, output: u64 },
    Release { which: usize },
    Drop { which: usize },
    Advance { seconds: u64 },
    Rewind { seconds: i64 },
    Limits { minute: i64, hour: i64, total: i64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bound = prop_oneof![
        (0..200_u64).prop_map(OutputBound::Whole),
        (0..40_u64, proptest::option::of(0..100_u64)).prop_map(|(slice, max)| OutputBound::Growing { slice, max }),
    ];
    let which = 0..8_usize;
    let step = prop_oneof![
        4 => (0..200_u64, bound, proptest::bool::weighted(0.2)).prop_map(|(input, bound, free)| Step::Admit { input, bound, free }),
        5 => (which.clone(), 0..50_u64).prop_map(|(which, more)| Step::Cover { which, more }),
        3 => (which.clone(), 0..250_u64, 0..250_u64).prop_map(|(which, input, output)| Step::Settle { which, input, output }),
        1 => which.clone().prop_map(|which| Step::Release { which }),
        1 => which.prop_map(|which| Step::Drop { which }),
        1 => (0..90_u64).prop_map(|seconds| Step::Advance { seconds }),
        1 => (0..5000_i64).prop_map(|seconds| Step::Rewind { seconds }),
        1 => (0..1500_i64, 0..2500_i64, 0..5000_i64).prop_map(|(minute, hour, total)| Step::Limits { minute, hour, total }),
    ];
    proptest::collection::vec(step, 1..120)
}

const WINDOWS: [(Window, i64); 3] = [(Window::Minute, 60), (Window::Hour, 3600), (Window::Total, i64::MAX)];

/// What the naive book knows of an attempt.
struct Entry {
    admitted: i64,
    /// Leased while open, then settled.
    amount: i64,
    told: u64,
    input: u64,
    price: Price,
    lease: Option<Lease>,
}

struct World {
    policies: Policies,
    agent: Caller,
    hand: Hand,
    limits: [i64; 3],
    /// Seconds since an hour's edge; what the hand shows, and the latest that it showed.
    shown: i64,
    latest: i64,
    book: Vec<Entry>,
}

fn cost(price: &Price, input: u64, output: u64) -> i64 {
    let pico = input * price.base.input.0 + output * price.base.output.0;
    i64::try_from(pico.div_ceil(1000)).unwrap()
}

/// What limits begin with.
const LIMITS: [i64; 3] = [1000, 2000, 4000];

impl World {
    fn new(open: impl FnOnce(Clock) -> Policies) -> Self {
        let (clock, hand) = clock("2026-03-04T00:00:00Z");
        let policies = open(clock);
        let agent = scout(&policies);
        Self { policies, agent, hand, limits: LIMITS, shown: 0, latest: 0, book: Vec::new() }
    }

    /// Takes steps, and then ends every attempt that is open.
    async fn walk(&mut self, steps: Vec<Step>) {
        for step in steps {
            self.step(step).await;
        }
        while self.nth_open(0).is_some() {
            self.step(Step::Drop { which: 0 }).await;
        }
    }

    fn config(limits: [i64; 3]) -> tollkeeper_config::Config {
        config(&std::array::from_fn::<_, 3, _>(|at| (WINDOWS[at].0, limits[at])))
    }

    /// (settled, leased) of the window that holds `at`.
    fn sums(&self, length: i64, at: i64) -> (i64, i64) {
        let same = self.book.iter().filter(|entry| entry.admitted / length == at / length);
        same.fold((0, 0), |(settled, leased), entry| match entry.lease {
            None => (settled + entry.amount, leased),
            Some(_) => (settled, leased + entry.amount),
        })
    }

    /// The room left for an attempt admitted at that time.
    fn room(&self, at: i64) -> i64 {
        let room = |(limit, (_, length)): (&i64, &(Window, i64))| {
            let (settled, leased) = self.sums(*length, at);
            limit - settled - leased
        };
        self.limits.iter().zip(&WINDOWS).map(room).min().unwrap()
    }

    fn nth_open(&mut self, which: usize) -> Option<&mut Entry> {
        let open: Vec<_> = self.book.iter_mut().filter(|entry| entry.lease.is_some()).collect();
        let count = open.len();
        open.into_iter().nth(which % count.max(1))
    }

    fn set_clock(&mut self, shown: i64) {
        let start: jiff::Timestamp = "2026-03-04T00:00:00Z".parse().unwrap();
        self.hand.set(&start.checked_add(jiff::SignedDuration::from_secs(shown)).unwrap().to_string());
        self.shown = shown;
        self.latest = self.latest.max(shown);
    }

    async fn admit(&mut self, input: u64, bound: OutputBound, free: bool) {
        let price = if free { Price::free() } else { price(1_500, 700) };
        let want = match bound {
            OutputBound::Whole(tokens) => tokens,
            OutputBound::Growing { slice, max } => slice.max(1).min(max.unwrap_or(u64::MAX)),
        };
        let room = self.room(self.latest);
        let least = cost(&price, input, want.min(1));
        match self.policies.admit(&self.agent, spend(price.clone(), input, bound)).await {
            Ok(lease) => {
                let amount = cost(&price, input, lease.covered());
                assert_eq!(lease.amount(), Usd(amount));
                assert!(amount == 0 || amount <= room, "{amount} leased of {room}");
                assert!(
                    lease.covered() == want || cost(&price, input, lease.covered() + 1) > room,
                    "less than affordable"
                );
                let entry = Entry { admitted: self.latest, amount, told: 0, input, price, lease: Some(lease) };
                self.book.push(entry);
            }
            Err(Denied::Budget(blocked)) => {
                let estimate = Usd(i64::try_from(blocked.estimate).unwrap());
                assert!(estimate == Usd(least) && least > room, "{least} refused of {room}")
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn cover(&mut self, which: usize, more: u64) {
        let Some(at) = self.nth_open(which).map(|entry| entry.admitted) else { return };
        let room = self.room(at);
        let Some(entry) = self.nth_open(which) else { return };
        let Some(lease) = &mut entry.lease else { return };
        let tokens = lease.covered() + more;
        let needed = cost(&entry.price, entry.input, tokens) - entry.amount;
        match lease.cover(tokens) {
            Ok(()) => {
                let amount = cost(&entry.price, entry.input, lease.covered());
                let grown = amount - entry.amount;
                assert!(lease.covered() >= tokens && (grown == 0 || grown <= room), "{grown} leased of {room}");
                (entry.amount, entry.told) = (amount, entry.told.max(tokens));
            }
            Err(denied) => assert!(needed > 0 && needed > room, "{needed} refused of {room}: {denied}"),
        }
        assert_eq!(lease.amount(), Usd(entry.amount), "a refusal changes nothing");
    }

    fn end(&mut self, which: usize, end: impl FnOnce(Lease, &Entry) -> i64) {
        let Some(entry) = self.nth_open(which) else { return };
        let Some(lease) = entry.lease.take() else { return };
        entry.amount = end(lease, entry);
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Admit { input, bound, free } => self.admit(input, bound, free).await,
            Step::Cover { which, more } => self.cover(which, more),
            Step::Settle { which, input, output } => self.end(which, |lease, entry| {
                let charge = lease.settle(used(input, output));
                assert_eq!(charge.cost, Usd(cost(&entry.price, input, output)));
                assert_eq!(charge.overrun.0, (charge.cost.0 - entry.amount).max(0));
                charge.cost.0
            }),
            Step::Release { which } => self.end(which, |lease, _| {
                lease.release(Outcome::Done);
                0
            }),
            Step::Drop { which } => self.end(which, |lease, entry| {
                drop(lease);
                cost(&entry.price, entry.input, entry.told)
            }),
            Step::Advance { seconds } => self.set_clock(self.shown + i64::try_from(seconds).unwrap()),
            Step::Rewind { seconds } => self.set_clock(self.shown - seconds),
            Step::Limits { minute, hour, total } => {
                self.limits = [minute, hour, total];
                self.policies.reload(&Self::config(self.limits));
            }
        }
        self.compare();
    }

    /// The counters say what the book says.
    fn compare(&self) {
        for (view, (window, length)) in own(&self.policies, &self.agent).iter().zip(WINDOWS) {
            assert_eq!((view.spent.0, view.reserved.0), self.sums(length, self.latest), "{window:?}");
            assert_eq!(view.remaining.0, (view.limit.0 - view.spent.0 - view.reserved.0).max(0));
        }
        assert_eq!(self.policies.open_leases(), self.book.iter().filter(|entry| entry.lease.is_some()).count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn settled_and_leased_stay_within_every_limit(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(|clock| Policies::in_memory(&World::config(LIMITS), clock));
            world.walk(steps).await;
            world.hand.advance(Duration::from_secs(1));
            prop_assert_eq!(world.policies.open_leases(), 0);
            prop_assert_eq!(world.policies.queue_depth(), 0);
            prop_assert!(own(&world.policies, &world.agent).iter().all(|budget| budget.reserved == Usd::ZERO));
            Ok(())
        })?;
    }
}

/// A ledger of its own in a database that all cases share.
fn in_database(config: &mut Config) {
    static URL: OnceLock<String> = OnceLock::new();
    static NAMES: AtomicU32 = AtomicU32::new(0);
    config.store.url = Some(Secret::new(URL.get_or_init(|| PostgresServer::shared().database())));
    config.store.gateway = Some(format!("g{}", NAMES.fetch_add(1, SeqCst)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn the_same_on_disk_and_the_ledger_has_the_same_sums(steps in steps(), database in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut config = World::config(LIMITS);
        config.store.path = folder.path().join("tollkeeper.db");
        if database {
            in_database(&mut config);
        }
        runtime.block_on(async {
            let mut world = World::new(|clock| Policies::open(&config, clock).unwrap().0);
            world.walk(steps).await;
            let spent = |policies: &Policies| -> Vec<_> {
                own(policies, &scout(policies)).iter().map(|budget| (budget.spent, budget.reserved)).collect()
            };
            world.set_clock(world.latest);
            prop_assert!(world.policies.flush().await);
            prop_assert_eq!((world.policies.open_leases(), world.policies.queue_depth()), (0, 0));
            let before = spent(&world.policies);
            world.policies.close().await;
            let report = verify(Place::own(&config.store)).unwrap();
            let cost: i64 = world.book.iter().map(|entry| entry.amount).sum();
            prop_assert_eq!((report.cost, report.open, report.unknown), (Usd(cost), 0, 0));
            prop_assert_eq!(report.intents, u64::try_from(world.book.len()).unwrap());
            // A restart counts the same.
            let limits = World::config(world.limits).budgets;
            let (policies, recovered) = Policies::open(&Config { budgets: limits, ..config.clone() }, world.hand.clock()).unwrap();
            prop_assert_eq!(recovered, Recovered::default());
            prop_assert_eq!(spent(&policies), before);
            Ok(())
        })?;
    }
}
