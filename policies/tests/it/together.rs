//! Two gateways with ledgers of their own and one budget in a real Redis: random interleavings of admissions, streams, ends,
//! new limits and a Redis that forgets. The invariant holds at every instant, nothing leaks, and the counters say what the
//! ledgers say.

use crate::setup::{config, growing, nano_per_token, scout, spend, used};
use proptest::prelude::*;
use proptest::test_runner::{Config as Settings, TestCaseError, TestRunner};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tollkeeper_config::{Config, Limit, Owner, Scope, SharedStore, Usd, Window};
use tollkeeper_policies::report::{self, SpendQuery};
use tollkeeper_policies::{Clock, Denied, Lease, OutputBound, Policies};
use tollkeeper_servers::{Proxy, RedisServer};

const LIMIT: i64 = 1000;
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
enum Step {
    Admit {
        gate: usize,
        input: u64,
        slice: u64,
        stream: bool,
    },
    Cover {
        which: usize,
        more: u64,
    },
    Settle {
        which: usize,
        share: u64,
    },
    Drop {
        which: usize,
    },
    /// Both gateways learn of another limit.
    Limit(i64),
    Forget,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = || 0..8_usize;
    let step = prop_oneof![
        12 => (0..2_usize, 1..60_u64, 1..50_u64, any::<bool>())
            .prop_map(|(gate, input, slice, stream)| Step::Admit { gate, input, slice, stream }),
        10 => (which(), 1..80_u64).prop_map(|(which, more)| Step::Cover { which, more }),
        8 => (which(), 0..=100_u64).prop_map(|(which, share)| Step::Settle { which, share }),
        2 => which().prop_map(|which| Step::Drop { which }),
        1 => (LIMIT / 4..LIMIT * 2).prop_map(Step::Limit),
        1 => Just(Step::Forget),
    ];
    proptest::collection::vec(step, 10..60)
}

struct Open {
    lease: Lease,
    input: u64,
    told: u64,
}

impl Open {
    /// What all budgets pay for, at one nano-dollar a token.
    fn holds(&self) -> i64 {
        i64::try_from(self.input + self.lease.covered()).unwrap()
    }
}

struct Together<'a> {
    server: &'a RedisServer,
    configs: [Config; 2],
    gates: Vec<Policies>,
    open: Vec<Open>,
    settled: i64,
    limit: i64,
    /// What was granted or asked for when the limit last changed.
    granted: i64,
    keepers: Vec<JoinHandle<()>>,
    _folders: [TempDir; 2],
}

fn limited(mut config: Config, limit: i64) -> Config {
    let owner = Owner::new(Scope::Agent, "scout");
    let total = crate::setup::budget(owner.clone(), Window::Total, Limit::Usd(Usd(limit)));
    let rolling = crate::setup::budget(owner, Window::Rolling(Duration::from_secs(3600)), Limit::Tokens(100_000));
    config.budgets = vec![total, rolling];
    config
}

impl<'a> Together<'a> {
    async fn start(server: &'a RedisServer, prefix: String) -> Self {
        Self::through(server, [server.url(), server.url()], prefix).await
    }

    /// Each by its own way to the server.
    async fn through(server: &'a RedisServer, urls: [String; 2], prefix: String) -> Self {
        let folders = [(); 2].map(|()| TempDir::new().unwrap());
        let mut names = ["left", "right"].into_iter().zip(urls);
        let configs = folders.each_ref().map(|folder| {
            let (name, url) = names.next().unwrap();
            let store = SharedStore {
                prefix: prefix.clone(),
                lease_age: Duration::from_secs(4),
                ..SharedStore::new(url, name)
            };
            let mut config = limited(config(&[]), LIMIT);
            config.store.path = folder.path().join("ledger.db");
            config.shared = Some(store);
            config
        });
        let gates: Vec<Policies> =
            configs.iter().map(|config| Policies::open(config, Clock::system()).unwrap().0).collect();
        let keepers = gates.iter().map(keeper).collect();
        let together = Self {
            server,
            configs,
            gates,
            open: Vec::new(),
            settled: 0,
            limit: LIMIT,
            granted: 0,
            keepers,
            _folders: folders,
        };
        together.usable().await;
        together
    }

    async fn usable(&self) {
        for gate in &self.gates {
            until("the store", async || gate.shared().unwrap().trouble.is_none()).await;
        }
    }

    async fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Admit { gate, input, slice, stream } => {
                let bound = if stream { growing(slice) } else { OutputBound::Whole(slice) };
                let gate = &self.gates[gate];
                match gate.admit(&scout(gate), spend(nano_per_token(), input, bound)).await {
                    Ok(lease) => self.open.push(Open { lease, input, told: 0 }),
                    Err(Denied::Budget(_)) => {}
                    Err(Denied::SharedDown { .. }) => self.usable().await,
                    Err(other) => return Err(TestCaseError::fail(other.to_string())),
                }
            }
            Step::Cover { which, more } => {
                let Some(open) = self.at(which) else { return Ok(()) };
                let tokens = open.told + more;
                let covered = std::future::poll_fn(|cx| open.lease.poll_cover(cx, tokens)).await;
                if covered.is_ok() {
                    open.told = tokens;
                    prop_assert!(open.lease.covered() >= tokens);
                }
            }
            Step::Settle { which, share } => {
                if self.at(which).is_none() {
                    return Ok(());
                }
                let place = which % self.open.len();
                let Open { lease, input, .. } = self.open.swap_remove(place);
                let output = lease.covered() * share / 100;
                let charge = lease.settle(used(input, output));
                prop_assert_eq!(charge.overrun, Usd::ZERO);
                self.settled += charge.cost.0;
            }
            Step::Drop { which } => {
                if self.at(which).is_none() {
                    return Ok(());
                }
                let place = which % self.open.len();
                let Open { lease, input, told } = self.open.swap_remove(place);
                drop(lease);
                self.settled += i64::try_from(input + told).unwrap();
            }
            Step::Limit(limit) => {
                for (gate, config) in self.gates.iter().zip(&self.configs) {
                    gate.reload(&limited(config.clone(), limit));
                }
                self.limit = limit;
                // What was asked for under the old limit may still be granted.
                let asked: i64 = self.open.iter().map(|open| open.lease.amount().0).sum();
                self.granted = self.settled + asked;
            }
            Step::Forget => _ = self.server.cli(&["FLUSHALL"]),
        }
        Ok(())
    }

    fn at(&mut self, which: usize) -> Option<&mut Open> {
        let count = self.open.len();
        (count > 0).then(|| &mut self.open[which % count])
    }

    fn taken(&self) -> i64 {
        self.settled + self.open.iter().map(Open::holds).sum::<i64>()
    }

    /// Everything has ended: the counters, the ledgers and this book say the same.
    async fn agree(mut self) -> Result<(), TestCaseError> {
        for open in std::mem::take(&mut self.open) {
            self.settled += open.lease.settle(used(open.input, open.told)).cost.0;
        }
        let owner = Owner::new(Scope::Agent, "scout");
        for gate in &self.gates {
            let due = (i128::from(self.settled), 0);
            until(&format!("a counter of {due:?}"), async || {
                let view = gate.budgets(&owner)[0].clone();
                (view.spent, view.reserved) == due
            })
            .await;
        }
        let mut recorded = 0;
        for (gate, config) in self.gates.drain(..).zip(&self.configs) {
            gate.close().await;
            prop_assert_eq!(report::verify(&config.store.path).unwrap().open, 0);
            let rows = report::spend_by(&config.store.path, &SpendQuery::default()).unwrap();
            recorded += rows.iter().map(|row| row.cost.0).sum::<i64>();
        }
        prop_assert_eq!(recorded, self.settled);
        Ok(())
    }
}

fn keeper(gate: &Policies) -> JoinHandle<()> {
    let gate = gate.clone();
    tokio::spawn(async move { gate.keep_shared().await })
}

async fn until(what: &str, so: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < PATIENCE, "hang: {what} did not come within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn two_gateways_never_spend_more_than_one_may() {
    let server = RedisServer::start(false);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner = TestRunner::new(Settings { cases: 12, failure_persistence: None, ..Settings::default() });
    let count = std::cell::Cell::new(0);
    let outcome = runner.run(&steps(), |steps| {
        count.set(count.get() + 1);
        runtime.block_on(async {
            let mut together = Together::start(&server, format!("t{}", count.get())).await;
            for step in steps {
                let before = together.taken();
                together.step(step.clone()).await?;
                let taken = together.taken();
                // Under a lowered limit nothing new is taken.
                prop_assert!(
                    taken <= together.limit.max(before).max(together.granted),
                    "{step:?}: {taken} of {}",
                    together.limit
                );
            }
            together.agree().await
        })
    });
    outcome.unwrap();
}

#[test]
fn a_gateway_that_finds_others_gone_on_after_a_loss_of_memory_tells_what_it_had_spent() {
    let server = RedisServer::start(false);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut together = Together::start(&server, "late".to_owned()).await;
        together.step(Step::Admit { gate: 1, input: 24, slice: 13, stream: false }).await.unwrap();
        together.step(Step::Settle { which: 0, share: 100 }).await.unwrap();
        until("the end of the lease", async || together.gates[1].shared().unwrap().ending == 0).await;
        // It does not look for a while, and meanwhile the store forgets and the other one goes on.
        together.keepers[1].abort();
        together.step(Step::Forget).await.unwrap();
        let begun = Instant::now();
        while together.open.is_empty() {
            assert!(begun.elapsed() < PATIENCE, "hang: the other gateway does not go on");
            together.step(Step::Admit { gate: 0, input: 10, slice: 10, stream: false }).await.unwrap();
        }
        together.keepers[1] = keeper(&together.gates[1]);
        // Nobody asks it for anything, and yet the counters come to what the ledgers say.
        together.agree().await.unwrap();
    });
}

#[test]
fn who_leaves_while_too_much_is_given_back_leaves_nothing_open() {
    let server = RedisServer::start(false);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let proxy = Proxy::start(&server).await;
        let mut together = Together::through(&server, [server.url(), proxy.url()], "leaves".to_owned()).await;
        // The second gateway is not told what the first one takes, and so asks for more than there is.
        together.keepers.iter().for_each(JoinHandle::abort);
        let slice = u64::try_from(LIMIT).unwrap() * 3 / 5;
        together.step(Step::Admit { gate: 0, input: 0, slice, stream: false }).await.unwrap();
        assert_eq!(together.open.len(), 1);
        proxy.delay(Duration::from_millis(150));
        let (gate, before) = (together.gates[1].clone(), server.calls("evalsha"));
        let asking = tokio::spawn(async move {
            let _lease = gate.admit(&scout(&gate), spend(nano_per_token(), 0, OutputBound::Whole(slice))).await;
            std::future::pending::<()>().await;
        });
        // It has taken a lease, and is about to hear that it holds less of it.
        until("the second request", async || server.calls("evalsha") >= before + 2).await;
        asking.abort();
        assert!(asking.await.unwrap_err().is_cancelled());
        proxy.delay(Duration::ZERO);
        let keepers = together.gates.iter().map(keeper).collect();
        together.keepers = keepers;
        together.agree().await.unwrap();
    });
}
