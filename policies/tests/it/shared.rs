//! Budgets of everybody at once: teams, models, providers, everything, rolling windows, tokens and requests, and runs that
//! carve from one another. Checked against a naive book, at every step and after a restart.

use crate::setup::{Hand, add_agent, budget, clock, price, spend, used};
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tollkeeper_config::{BackendId, Config, Limit, Owner, Scope, Usd, Window};
use tollkeeper_policies::{
    Caller, Clock, Denied, Lease, Maker, NewRun, OutputBound, Policies, Run, RunError, RunLimits, RunPolicy, Settlement,
};

const AGENTS: [&str; 2] = ["scout", "digger"];
const MODELS: [&str; 2] = ["up/small", "up/large"];
const START: &str = "2026-03-04T00:00:00Z";

#[derive(Debug, Clone)]
enum Step {
    Admit { agent: usize, model: usize, run: Option<usize>, input: u64, bound: OutputBound },
    Cover { which: usize, more: u64 },
    Settle { which: usize, share: u64 },
    Drop { which: usize },
    Advance { seconds: u64 },
    Run { agent: usize, parent: Option<usize>, usd: Option<i64>, tokens: Option<u64>, calls: Option<u64> },
    Extend { run: usize, usd: i64 },
    Cancel { run: usize },
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let bound = prop_oneof![
        (1..60_u64).prop_map(OutputBound::Whole),
        (1..20_u64).prop_map(|slice| OutputBound::Growing { slice, max: None }),
    ];
    let some = || proptest::option::weighted(0.6, 0..6_usize);
    let step = prop_oneof![
        8 => (0..2_usize, 0..2_usize, some(), 0..60_u64, bound)
            .prop_map(|(agent, model, run, input, bound)| Step::Admit { agent, model, run, input, bound }),
        8 => (0..8_usize, 0..40_u64).prop_map(|(which, more)| Step::Cover { which, more }),
        6 => (0..8_usize, 0..=100_u64).prop_map(|(which, share)| Step::Settle { which, share }),
        1 => (0..8_usize).prop_map(|which| Step::Drop { which }),
        2 => (0..400_u64).prop_map(|seconds| Step::Advance { seconds }),
        3 => (0..2_usize, some(), proptest::option::of(0..300_i64), proptest::option::of(0..400_u64), proptest::option::of(0..6_u64))
            .prop_map(|(agent, parent, usd, tokens, calls)| Step::Run { agent, parent, usd, tokens, calls }),
        1 => (0..6_usize, 0..100_i64).prop_map(|(run, usd)| Step::Extend { run, usd }),
        1 => (0..6_usize).prop_map(|run| Step::Cancel { run }),
    ];
    proptest::collection::vec(step, 1..most)
}

fn config(store: Option<&Path>) -> Config {
    let mut config = crate::setup::config(&[(Window::Hour, 1500)]);
    add_agent(&mut config, "digger", &[]);
    for agent in AGENTS {
        let mut changed = (*config.agents[agent]).clone();
        changed.team = Some("field".to_owned());
        config.agents.insert(agent.to_owned(), Arc::new(changed));
    }
    let usd = |nano| Limit::Usd(Usd(nano));
    config.budgets.extend([
        budget(Owner::everything(), Window::Day, usd(4000)),
        budget(Owner::new(Scope::Team, "field"), Window::Minute, Limit::Tokens(900)),
        budget(Owner::new(Scope::Team, "field"), Window::Total, usd(3500)),
        budget(Owner::new(Scope::Model, MODELS[1]), Window::Rolling(Duration::from_secs(600)), usd(700)),
        budget(Owner::new(Scope::Provider, "up"), Window::Total, Limit::Requests(40)),
        budget(Owner::new(Scope::Alias, "cloud/fast"), Window::Hour, Limit::Tokens(4000)),
    ]);
    if let Some(folder) = store {
        config.store.path = folder.join("tollkeeper.db");
    }
    config
}

/// One attempt.
struct Entry {
    agent: usize,
    model: usize,
    /// The run and those above it.
    chain: Vec<usize>,
    admitted: i64,
    input: u64,
    /// Output tokens leased while it is open, then used.
    output: u64,
    told: u64,
    lease: Option<Lease>,
}

impl Entry {
    fn nano(&self) -> i128 {
        i128::from(1 + self.model as u64) * i128::from(self.input + self.output)
    }

    fn tokens(&self) -> i128 {
        i128::from(self.input + self.output)
    }
}

struct Book {
    policies: Policies,
    hand: Hand,
    now: i64,
    entries: Vec<Entry>,
    runs: Vec<Task>,
    /// Seconds that a rolling window may count longer: it was restored by the minute.
    slack: i64,
}

/// One run.
struct Task {
    run: Arc<Run>,
    key: String,
    chain: Vec<usize>,
    usd: Option<i128>,
    ended: bool,
}

impl Book {
    fn new(policies: Policies, hand: Hand) -> Self {
        Self { policies, hand, now: 0, entries: Vec::new(), runs: Vec::new(), slack: 0 }
    }

    fn caller(&self, agent: usize, run: Option<usize>) -> Caller {
        let key = run.map_or_else(|| format!("{}-key", AGENTS[agent]), |run| self.runs[run].key.clone());
        self.policies.authenticate(&key).unwrap()
    }

    fn nth_open(&mut self, which: usize) -> Option<&mut Entry> {
        let open: Vec<_> = self.entries.iter_mut().filter(|entry| entry.lease.is_some()).collect();
        let count = open.len();
        open.into_iter().nth(which % count.max(1))
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Admit { agent, model, run, input, bound } => {
                let run = run.filter(|_| !self.runs.is_empty()).map(|run| run % self.runs.len());
                let caller = self.caller(agent, run);
                let agent = AGENTS.iter().position(|name| **name == *caller.agent.name).unwrap();
                let rate = 1000 * (1 + model as u64);
                let (provider, name) = MODELS[model].split_once('/').unwrap();
                let backend = BackendId::Remote { provider: provider.into(), model: name.into() };
                let wanted = tollkeeper_policies::Spend { backend, ..spend(price(rate, rate), input, bound) };
                let ended = run.is_some_and(|run| self.runs[run].chain.iter().any(|above| self.runs[*above].ended));
                match self.policies.admit(&caller, wanted).await {
                    Ok(lease) => {
                        assert!(!ended, "a run that has ended spends");
                        let chain = run.map_or_else(Vec::new, |run| self.runs[run].chain.clone());
                        let output = lease.covered();
                        let admitted = self.now;
                        self.entries.push(Entry {
                            agent,
                            model,
                            chain,
                            admitted,
                            input,
                            output,
                            told: 0,
                            lease: Some(lease),
                        });
                    }
                    Err(Denied::Stopped { .. }) => assert!(ended),
                    Err(Denied::Budget(blocked)) => {
                        assert!(
                            blocked.estimate > blocked.limit.units() - blocked.spent - blocked.reserved,
                            "{blocked}"
                        );
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            Step::Cover { which, more } => {
                let Some(entry) = self.nth_open(which) else { return };
                let Some(lease) = &mut entry.lease else { return };
                let tokens = lease.covered() + more;
                if lease.cover(tokens).is_ok() {
                    entry.told = entry.told.max(tokens);
                }
                entry.output = lease.covered();
            }
            Step::Settle { which, share } => {
                let Some(entry) = self.nth_open(which) else { return };
                let Some(lease) = entry.lease.take() else { return };
                entry.output = entry.output * share / 100;
                lease.settle(Settlement { ..used(entry.input, entry.output) });
            }
            Step::Drop { which } => {
                let Some(entry) = self.nth_open(which) else { return };
                drop(entry.lease.take());
                entry.output = entry.told;
            }
            Step::Advance { seconds } => {
                self.hand.advance(Duration::from_secs(seconds));
                self.now += i64::try_from(seconds).unwrap();
            }
            Step::Run { agent, parent, usd, tokens, calls } => {
                let parent = parent.filter(|_| !self.runs.is_empty()).map(|run| run % self.runs.len());
                self.run(agent, parent, RunLimits { usd: usd.map(Usd), tokens, calls, wall: None }).await;
            }
            Step::Extend { run, usd } => {
                if self.runs.is_empty() {
                    return;
                }
                let place = run % self.runs.len();
                let run = self.runs[place].run.clone();
                let more = RunLimits { usd: Some(Usd(usd)), ..RunLimits::default() };
                if self.policies.extend_run("test", &run, &more).await.is_ok() {
                    let task = &mut self.runs[place];
                    task.usd = task.usd.map(|had| had + i128::from(usd));
                }
            }
            Step::Cancel { run } => {
                if self.runs.is_empty() {
                    return;
                }
                let place = run % self.runs.len();
                let run = self.runs[place].run.clone();
                self.policies.cancel_run("test", &run).await.unwrap();
                self.runs.iter_mut().filter(|task| task.chain.contains(&place)).for_each(|task| task.ended = true);
            }
        }
        self.compare();
    }

    async fn run(&mut self, agent: usize, parent: Option<usize>, limits: RunLimits) {
        let above = parent.map(|parent| self.runs[parent].run.clone());
        let agent = above
            .as_ref()
            .map_or(AGENTS[agent], |above| AGENTS.into_iter().find(|name| **name == *above.agent).unwrap());
        let new = NewRun { parent: above, label: None, limits, policy: RunPolicy::default(), maker: Maker::default() };
        match self.policies.create_run("test", agent, new).await {
            Ok((view, key)) => {
                let mut chain = vec![self.runs.len()];
                chain.extend(parent.iter().flat_map(|parent| self.runs[*parent].chain.clone()));
                let usd = limits.usd.map(|usd| usd.0.into());
                self.runs.push(Task { run: view.run, key, chain, usd, ended: false });
            }
            Err(RunError::Unaffordable { left, wanted, .. }) => assert!(left < wanted),
            Err(RunError::Ended(_)) => assert!(
                parent.is_some_and(|parent| self.runs[parent].chain.iter().any(|above| self.runs[*above].ended))
            ),
            Err(RunError::TooDeep) => assert!(parent.is_some_and(|parent| self.runs[parent].chain.len() >= 8)),
            Err(other) => panic!("{other}"),
        }
    }

    /// (settled, leased) of these entries in a measure.
    fn sums(&self, limit: Limit, of: impl Fn(&Entry) -> bool) -> (i128, i128) {
        let measure = |entry: &Entry| match limit {
            Limit::Usd(_) => entry.nano(),
            Limit::Tokens(_) => entry.tokens(),
            Limit::Requests(_) => 1,
        };
        self.entries.iter().filter(|entry| of(entry)).fold((0, 0), |(settled, leased), entry| match entry.lease {
            None => (settled + measure(entry), leased),
            Some(_) => (settled, leased + measure(entry)),
        })
    }

    /// The nearest of the runs above that has a limit in USD.
    fn payer(&self, run: usize) -> Option<usize> {
        self.runs[run].chain[1..].iter().copied().find(|above| self.runs[*above].usd.is_some())
    }

    /// What a run holds in USD: its open leases, and what was carved from it.
    fn reserved(&self, run: usize) -> i128 {
        let carved: Vec<usize> = (0..self.runs.len())
            .filter(|child| self.runs[*child].usd.is_some() && self.payer(*child) == Some(run))
            .collect();
        let own = self.sums(Limit::Usd(Usd(0)), |entry| {
            entry.chain.contains(&run) && !carved.iter().any(|child| entry.chain.contains(child))
        });
        let shares = carved.iter().map(|child| {
            let spent = self.sums(Limit::Usd(Usd(0)), |entry| entry.chain.contains(child)).0;
            match self.runs[*child].ended {
                false => self.runs[*child].usd.unwrap() - spent,
                true => self.reserved(*child),
            }
        });
        own.1 + shares.sum::<i128>()
    }

    /// The counters say what the book says, and no budget is overspent.
    fn compare(&self) {
        for view in self.policies.all_budgets() {
            let rule = &view.rule;
            let owns = |entry: &Entry| match rule.owner.scope {
                Scope::Everything | Scope::Team | Scope::Provider | Scope::Alias => true,
                Scope::Model => *rule.owner.id == *MODELS[entry.model],
                Scope::Agent => *rule.owner.id == *AGENTS[entry.agent],
                Scope::Run => false,
            };
            // After a restart a rolling window counts for longer, and so for a while more than was spent within it.
            let exact = self.slack == 0 || !matches!(rule.window, Window::Rolling(_));
            assert!(!exact || view.spent + view.reserved <= rule.limit.units(), "overspent: {view:?}");
            let length = match rule.window {
                Window::Minute => 60,
                Window::Hour => 3600,
                Window::Day => 86_400,
                Window::Rolling(length) => {
                    let length = i64::try_from(length.as_secs()).unwrap();
                    // A charge counts up to a slot longer.
                    let slot = length / 64 + 1 + self.slack;
                    let sure = self.sums(rule.limit, |entry| owns(entry) && entry.admitted > self.now - length);
                    let most = self.sums(rule.limit, |entry| owns(entry) && entry.admitted > self.now - length - slot);
                    let leased = self.sums(rule.limit, owns).1;
                    assert!(
                        (sure.0..=most.0).contains(&view.spent) && view.reserved == leased,
                        "{view:?}, {sure:?} to {most:?}"
                    );
                    continue;
                }
                _ => i64::MAX,
            };
            let same = |entry: &Entry| owns(entry) && entry.admitted / length == self.now / length;
            assert_eq!((view.spent, view.reserved), self.sums(rule.limit, same), "{rule:?}");
        }
        for place in 0..self.runs.len() {
            let view = self.policies.run(&self.runs[place].run.id).unwrap();
            let within = |entry: &Entry| entry.chain.contains(&place);
            let spent = self.sums(Limit::Usd(Usd(0)), within).0;
            assert_eq!(
                (i128::from(view.spent.0), i128::from(view.tokens), i128::from(view.calls)),
                (spent, self.sums(Limit::Tokens(0), within).0, self.sums(Limit::Requests(0), within).0)
            );
            assert_eq!(i128::from(view.reserved.0), self.reserved(place), "run {place}");
            if let Some(usd) = self.runs[place].usd {
                assert!(spent + i128::from(view.reserved.0) <= usd, "run {place} is overspent");
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn every_budget_and_every_run_holds(steps in steps(100)) {
        runtime().block_on(async {
            let (clock, hand) = clock(START);
            let mut book = Book::new(Policies::in_memory(&config(None), clock), hand);
            for step in steps {
                book.step(step).await;
            }
            for entry in &mut book.entries {
                if let Some(lease) = entry.lease.take() {
                    drop(lease);
                    entry.output = entry.told;
                }
            }
            book.compare();
            prop_assert_eq!((book.policies.open_leases(), book.policies.queue_depth()), (0, 0));
            Ok(())
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn a_restart_forgets_no_cent_and_no_run(steps in steps(60)) {
        runtime().block_on(async {
            let folder = TempDir::new().unwrap();
            let config = config(Some(folder.path()));
            let (clock, hand) = clock(START);
            let open = |clock: Clock| Policies::open(&config, clock).unwrap().0;
            let mut book = Book::new(open(clock.clone()), hand);
            for step in steps {
                book.step(step).await;
            }
            for entry in &mut book.entries {
                if let Some(lease) = entry.lease.take() {
                    drop(lease);
                    entry.output = entry.told;
                }
            }
            let before = book.policies.all_budgets();
            book.policies.close().await;
            (book.policies, book.slack) = (open(clock), 60);
            book.compare();
            // Rolling windows are restored by the minute, everything else to the nano-dollar.
            for (before, after) in before.iter().zip(book.policies.all_budgets()) {
                let exact = !matches!(before.rule.window, Window::Rolling(_));
                prop_assert!(!exact || *before == after, "{:?} {:?}", before, after);
            }
            Ok(())
        })?;
    }
}
