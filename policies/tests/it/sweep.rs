//! Kills a gateway exactly at each step of a request, under load, round after round: whatever the moment, nothing that was
//! dispatched is forgotten, what was delivered is charged, and counters are the ledger's sums.
//!
//! The gateway is this program once more, which is told where to die and raises SIGKILL there. What the world outside saw
//! (requests at the provider, tokens that were delivered, charges that were confirmed) it writes to a journal, as it happens.

use crate::setup::{budget, growing, nano_per_token, spend, stored, stored_in, used};
use nix::sys::signal::{Signal, raise};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::future::poll_fn;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use tollkeeper_config::{Config, Limit, Owner, Scope, Usd, Window};
use tollkeeper_policies::report::{CounterQuery, ExportFilter, Format, VerifyReport, counters, export, verify};
use tollkeeper_policies::{Caller, Clock, Denied, Lease, Outcome, OutputBound, Place, Policies, Spend};
use tollkeeper_servers::PostgresServer;

/// Requests at once.
const TASKS: usize = 6;
/// Every prompt's length; a token costs a nano-dollar.
const INPUT: u64 = 10;
/// Tokens by which a stream's lease grows.
const SLICE: u64 = 4;
/// How often a stream's lease grows.
const EXTENSIONS: u64 = 3;

/// The boundaries between the steps of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing was asked for yet.
    Arrived,
    /// The budgets hold the lease, and the writer has the intent, which may be on record or not.
    IntentHandedOver,
    /// The intent is on record.
    Admitted,
    /// The provider has the request.
    Dispatched,
    /// The lease has grown, which may be on record or not.
    ExtensionHandedOver,
    /// It is on record, and what it pays for was delivered.
    Delivered,
    /// The request has ended (settled, released or dropped), which may be on record or not.
    EndHandedOver,
    /// That is on record.
    Flushed,
    /// The ledger is closed, with requests in flight.
    Closed,
}

const STEPS: [Step; 9] = [
    Step::Arrived,
    Step::IntentHandedOver,
    Step::Admitted,
    Step::Dispatched,
    Step::ExtensionHandedOver,
    Step::Delivered,
    Step::EndHandedOver,
    Step::Flushed,
    Step::Closed,
];

/// A gateway whose ledger is in this folder or this database, with budgets of all kinds of owners, measures and windows.
fn config(place: &str) -> Config {
    let total = [(Window::Total, i64::MAX)];
    let mut config = if place.starts_with("postgres:") {
        stored_in(place, "victim", &total)
    } else {
        stored(Path::new(place), &total)
    };
    let owners = [
        Owner::everything(),
        Owner::new(Scope::Agent, "scout"),
        Owner::new(Scope::Model, "openai/small"),
        Owner::new(Scope::Provider, "openai"),
        Owner::new(Scope::Alias, "cloud/fast"),
    ];
    for owner in owners {
        for limit in [Limit::Usd(Usd(i64::MAX)), Limit::Tokens(1 << 40), Limit::Requests(1 << 40)] {
            config.budgets.push(budget(owner.clone(), Window::Month, limit));
        }
        config.budgets.push(budget(owner, Window::Hour, Limit::Requests(1 << 40)));
    }
    for agent in config.agents.values_mut() {
        // It works as fast as it can.
        Arc::make_mut(agent).velocity.enabled = false;
    }
    config
}

/// The gateway that dies, and what the world outside sees of it.
struct Victim {
    policies: Policies,
    agent: Caller,
    journal: File,
    round: usize,
    last: Step,
    /// So many passes more over the last step.
    left: AtomicUsize,
    requests: AtomicUsize,
}

impl Victim {
    /// The end, if this is where it comes.
    fn step(&self, step: Step) {
        if step == self.last && self.left.fetch_sub(1, SeqCst) == 1 {
            raise(Signal::SIGKILL).unwrap();
        }
    }

    /// What the world outside saw. One write each, so that no line is torn.
    fn saw(&self, line: &str) {
        (&self.journal).write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Asks until the ledger is closed.
    async fn work(&self) {
        while self.request().await.is_ok() {}
    }

    async fn request(&self) -> Result<(), Denied> {
        let number = self.requests.fetch_add(1, SeqCst);
        let id = format!("{}-{number}", self.round);
        self.step(Step::Arrived);
        let is_stream = number % 4 != 1;
        let output = if is_stream { growing(SLICE) } else { OutputBound::Whole(20) };
        let mut lease =
            self.admit(Spend { request_id: id.as_str().into(), ..spend(nano_per_token(), INPUT, output) }).await?;
        self.step(Step::Admitted);
        self.saw(&format!("sent {id}"));
        self.step(Step::Dispatched);
        if number % 4 == 3 {
            lease.release(Outcome::Drained);
            self.step(Step::EndHandedOver);
            return Ok(());
        }
        let mut delivered = 0;
        for _ in 0..if is_stream { EXTENSIONS } else { 0 } {
            // The first slice is there already.
            let more = delivered + SLICE + 1;
            lease.cover(more)?;
            self.step(Step::ExtensionHandedOver);
            lease.secured().await?;
            delivered = more;
            self.saw(&format!("delivered {id} {delivered}"));
            self.step(Step::Delivered);
        }
        if number % 8 == 2 {
            // Nobody ended it: it is charged for what it was told of.
            drop(lease);
            self.step(Step::EndHandedOver);
            return Ok(());
        }
        let charge = lease.settle(used(INPUT, delivered + 1));
        self.step(Step::EndHandedOver);
        if self.policies.flush().await {
            self.saw(&format!("charged {id} {}", charge.cost.0));
            self.step(Step::Flushed);
        }
        if self.last == Step::Closed && self.left.fetch_sub(1, SeqCst) == 1 {
            self.policies.close().await;
            raise(Signal::SIGKILL).unwrap();
        }
        Ok(())
    }

    async fn admit(&self, spend: Spend) -> Result<Lease, Denied> {
        let mut admission = pin!(self.policies.admit(&self.agent, spend));
        let first = poll_fn(|cx| Poll::Ready(admission.as_mut().poll(cx))).await;
        self.step(Step::IntentHandedOver);
        match first {
            Poll::Ready(done) => done,
            Poll::Pending => admission.await,
        }
    }
}

/// Run by the tests below in a process of its own: it reads where its ledger and its journal are, the round, the step and at which pass to die.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by those below"]
async fn victim() {
    let mut orders = String::new();
    std::io::stdin().read_line(&mut orders).unwrap();
    let orders: Vec<&str> = orders.trim().split('\t').collect();
    let [place, journal, round, step, pass] = orders[..] else { return };
    let (policies, _) = Policies::open(&config(place), Clock::system()).unwrap();
    let victim = Arc::new(Victim {
        agent: policies.authenticate("scout-key").unwrap(),
        policies,
        journal: OpenOptions::new().create(true).append(true).open(journal).unwrap(),
        round: round.parse().unwrap(),
        last: STEPS[step.parse::<usize>().unwrap()],
        left: AtomicUsize::new(pass.parse().unwrap()),
        requests: AtomicUsize::new(0),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let victim = victim.clone();
        tasks.spawn(async move { victim.work().await });
    }
    tasks.join_all().await;
    // Those that were refused because the ledger is closed come here before the end does.
    std::future::pending::<()>().await;
}

/// What the journal says of a request.
#[derive(Debug, Default)]
struct Seen {
    is_sent: bool,
    delivered: i64,
    charged: Option<i64>,
}

fn seen(journal: &Path) -> HashMap<String, Seen> {
    let mut all: HashMap<String, Seen> = HashMap::new();
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let seen = all.entry(words[1].to_owned()).or_default();
        match words[0] {
            "sent" => seen.is_sent = true,
            "delivered" => seen.delivered = words[2].parse().unwrap(),
            "charged" => seen.charged = Some(words[2].parse().unwrap()),
            other => panic!("{other}"),
        }
    }
    all
}

/// The rows of one request that close an attempt: their kinds and costs; and how many intents there are.
#[derive(Debug, Default)]
struct Story {
    intents: usize,
    ends: Vec<(String, i64)>,
}

fn stories(place: &Place) -> HashMap<String, Story> {
    let mut lines = Vec::new();
    export(place.clone(), &ExportFilter::default(), Format::JsonLines, &mut lines).unwrap();
    let mut all: HashMap<String, Story> = HashMap::new();
    for line in String::from_utf8(lines).unwrap().lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let story = all.entry(row["request_id"].as_str().unwrap().to_owned()).or_default();
        match row["kind"].as_str().unwrap() {
            "intent" => story.intents += 1,
            kind @ ("settlement" | "release" | "unknown") => {
                story.ends.push((kind.to_owned(), row["cost_nano"].as_i64().unwrap()));
            }
            _ => {}
        }
    }
    all
}

/// Kills it at this step, and looks at what is left. Returns the ledger as the dead gateway left it.
async fn round(place: &str, journal: &Path, round: usize, step: Step) -> VerifyReport {
    let pass = 1 + round * 7 % 31;
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sweep::victim", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let orders = format!("{place}\t{}\t{round}\t{}\t{pass}\n", journal.display(), step as usize);
    victim.stdin.take().unwrap().write_all(orders.as_bytes()).unwrap();
    let status = victim.wait().unwrap();
    let at = format!("round {round}, {step:?}, pass {pass}");
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{at}: it did not come there");

    let config = config(place);
    let own = Place::own(&config.store);
    let left = verify(own.clone()).unwrap_or_else(|why| panic!("{at}: {why}"));
    let (policies, recovered) = Policies::open(&config, Clock::system()).unwrap();
    assert_eq!(recovered.unknown, left.open, "{at}");
    let views = policies.all_budgets();
    let queries: Vec<CounterQuery> =
        views.iter().map(|view| CounterQuery { owner: view.rule.owner.clone(), since: view.starts_at }).collect();
    let sums = counters(own.clone(), &queries).unwrap();
    for (view, sum) in views.iter().zip(sums) {
        assert_eq!((view.own_spent, view.reserved), (sum.of(view.rule.limit), 0), "{at}: {:?}", view.rule);
    }
    assert!(!views.is_empty());
    policies.close().await;
    let whole = verify(own).unwrap_or_else(|why| panic!("{at}: {why}"));
    assert_eq!((whole.open, whole.overrun), (0, Usd(0)), "{at}");
    assert_eq!(whole.intents, whole.settlements + whole.releases + whole.unknown, "{at}");
    left
}

/// That the ledger knows of everything that the world outside saw, and what it must have cost.
fn told(place: &Place, journal: &Path) -> HashMap<String, Seen> {
    let (seen, stories) = (seen(journal), stories(place));
    for (id, seen) in &seen {
        let story = stories.get(id).unwrap_or_else(|| panic!("{id} was dispatched and is forgotten: {seen:?}"));
        let [(kind, cost)] = &story.ends[..] else { panic!("{id} does not end once: {story:?}") };
        assert!(seen.is_sent && story.intents == 1, "{id}: {seen:?} {story:?}");
        match seen.charged {
            Some(charged) => assert_eq!((kind.as_str(), *cost), ("settlement", charged), "{id}: it was on record"),
            None if seen.delivered > 0 => {
                let due = i64::try_from(INPUT).unwrap() + seen.delivered;
                assert!(*cost >= due, "{id}: {cost} charged as {kind}, {due} delivered");
            }
            None => assert!(kind == "release" || *cost >= i64::try_from(INPUT).unwrap(), "{id}: {story:?}"),
        }
    }
    let sent = seen.values().filter(|seen| seen.is_sent).count();
    let attempts: usize = stories.values().map(|story| story.intents).sum();
    assert!(sent <= attempts, "the provider counted {sent}, the ledger {attempts}");
    seen
}

/// So many rounds on one ledger.
async fn sweep(place: &str, rounds: std::ops::Range<usize>) {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    for number in rounds {
        let step = STEPS[number % STEPS.len()];
        let left = round(place, &journal, number, step).await;
        if [Step::Admitted, Step::Dispatched, Step::ExtensionHandedOver, Step::Delivered].contains(&step) {
            assert!(left.open > 0, "round {number}: nothing was in flight at {step:?}");
        }
        let seen = told(&Place::own(&config(place).store), &journal);
        if ![Step::Arrived, Step::IntentHandedOver, Step::Admitted].contains(&step) {
            let of_round = format!("{number}-");
            assert!(
                seen.keys().any(|id| id.starts_with(&of_round)),
                "round {number}: nothing was dispatched by {step:?}"
            );
        }
    }
}

/// Rounds on one ledger, so that proving it does not take ever longer.
const ROUNDS_ON_ONE: usize = 10;

#[test]
fn killed_at_every_step_two_hundred_times_it_forgets_nothing() {
    // Two lanes, for both cores.
    std::thread::scope(|threads| {
        for lane in 0..2 {
            threads.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                for ledger in 0..10 {
                    let folder = tempfile::tempdir().unwrap();
                    let first = (lane * 10 + ledger) * ROUNDS_ON_ONE;
                    runtime.block_on(sweep(folder.path().to_str().unwrap(), first..first + ROUNDS_ON_ONE));
                }
            });
        }
    });
}

#[tokio::test]
async fn killed_at_every_step_it_forgets_nothing_in_postgres() {
    let url = PostgresServer::shared().database();
    sweep(&url, 0..2 * STEPS.len()).await;
}
