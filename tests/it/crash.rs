//! What must not lose a charge: a killed gateway, a full disk, two gateways on one ledger.

use http::Method;
use nix::sys::signal::Signal;
use serde_json::json;
use std::path::Path;
use tokio::process::Command;
use tollkeeper_config::Usd;
use tollkeeper_protocol::usage::Usage;
use tollkeeper_tests::asks::{CHAT, chat, streamed};
use tollkeeper_tests::client::Client;
use tollkeeper_tests::gateway::Ledger;
use tollkeeper_tests::metrics::Samples;
use tollkeeper_tests::process::{Process, binary, run};
use tollkeeper_tests::setup::{Setup, cost, due};
use tollkeeper_tests::upstream::{End, Fault, Script, Served, Upstream};
use tollkeeper_tests::wait::eventually;

#[tokio::test]
async fn kill_9_forgets_no_request() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream).budgets(&[("total", "1.00")]);
    let process = Process::start(&setup).await;
    // Twenty whole answers, and three streams that are killed in the middle.
    let mut asks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let client = process.client();
        asks.spawn(async move { client.post_json(CHAT, &chat("up/plain")).await.status });
    }
    assert_eq!(asks.join_all().await, [200; 20]);
    let mut open = Vec::new();
    for _ in 0..3 {
        upstream.next(Script::fault(Fault::StallAfter(4)));
        let mut stream = process.client().stream(CHAT, &streamed("up/plain")).await;
        for _ in 0..4 {
            stream.next_event().await.unwrap().unwrap();
        }
        open.push(stream);
    }
    process.kill().await;

    let process = Process::start(&setup).await;
    let metrics = Samples::parse(&Client::new(process.addr()).get("/metrics").await.text());
    let unknown = metrics.sum("tollkeeper_recovered_unknown_total", &[]);
    assert!(unknown >= 3.0, "only {unknown} requests were found open");
    process.wait_for_output("left requests open").await;
    let spent = metrics.sum("tollkeeper_budget_spent", &[("owner", "scout")]);
    let (status, _) = process.terminate().await;
    assert!(status.success());

    let ledger = Ledger::read(setup);
    assert_eq!((ledger.attempts("up/plain"), ledger.report.open), (23, 0));
    assert_eq!(ledger.report.unknown as f64, unknown);
    let delivered = due(&upstream).0 + 3 * cost(&Usage { output: 3, ..Usage::default() }).0;
    assert!(ledger.total() >= Usd(delivered), "{} charged, at least {} delivered", ledger.total(), Usd(delivered));
    assert!((spent * 1e9 - ledger.total().0 as f64).abs() < 1.0, "the budget begins with what was spent");
}

/// The steps of a request at which the gateway is killed, as they can be told from outside.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Anywhere between the first connection and the first request at the provider.
    Admission,
    /// The provider has the request; the intent must be on record.
    Dispatch,
    /// Tokens are on their way.
    Flow,
    /// The provider has answered; the settlement may be on record or not.
    Settlement,
}

const STEPS: [Step; 4] = [Step::Admission, Step::Dispatch, Step::Flow, Step::Settlement];

/// Kills a gateway under load, round after round on one ledger, and then proves that nothing was forgotten.
async fn killed_at_every_step(rounds: usize) {
    let upstream = Upstream::always(Script::words(40)).await;
    let setup = Setup::with(&upstream).budgets(&[("total", "1000.00")]);
    for round in 0..rounds {
        let mut process = Process::start(&setup).await;
        let before = upstream.received().len();
        let mut load = tokio::task::JoinSet::new();
        for number in 0..8 {
            let client = process.client();
            let ask = if number % 2 == 0 { streamed("up/plain") } else { chat("up/plain") };
            load.spawn(async move {
                while let Ok(open) = client.try_open(Method::POST, CHAT, ask.to_string()).await {
                    open.rest().await;
                }
            });
        }
        let nth = 1 + round / STEPS.len() * 3 % 23;
        match STEPS[round % STEPS.len()] {
            Step::Admission => {
                for _ in 0..nth * 40 {
                    tokio::task::yield_now().await;
                }
            }
            Step::Dispatch => upstream.wait_for_requests(before + nth).await,
            Step::Flow => {
                let sent = |all: &[Served]| all[before..].iter().map(|one| one.tokens_sent).sum::<u64>();
                upstream.wait_until("tokens to flow", |all| sent(all) as usize >= nth * 7).await;
            }
            Step::Settlement => {
                let whole = |all: &[Served]| all[before..].iter().filter(|one| one.end == End::Complete).count();
                upstream.wait_until("answers to end", |all| whole(all) >= nth).await;
            }
        }
        process.signal(Signal::SIGKILL);
        process.wait().await;
        load.abort_all();
    }
    // The last one finds what was left open.
    let (status, _) = Process::start(&setup).await.terminate().await;
    assert!(status.success());
    let ledger = Ledger::read(setup);
    let served = upstream.served();
    assert_eq!(ledger.report.open, 0);
    assert!(
        ledger.attempts("up/plain") as usize >= served.len(),
        "{} of {}",
        ledger.attempts("up/plain"),
        served.len()
    );
    let sent = |one: &Served| cost(&Usage { input: one.usage.input, output: one.tokens_sent, ..Usage::default() }).0;
    let due = Usd(served.iter().map(sent).sum());
    assert!(ledger.total() >= due, "{} charged, {due} sent", ledger.total());
    assert!(ledger.report.unknown > 0, "nothing was in flight when it was killed");
}

#[tokio::test]
async fn killed_two_hundred_times_at_every_step_it_forgets_nothing() {
    killed_at_every_step(200).await;
}

#[tokio::test]
async fn budgets_survive_a_restart() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream).budgets(&[("total", "0.00001")]);
    let first = Process::start(&setup).await;
    while first.client().post_json(CHAT, &chat("up/plain")).await.status == 200 {}
    first.kill().await;
    let second = Process::start(&setup).await;
    assert_eq!(second.client().post_json(CHAT, &chat("up/plain")).await.status, 402);
}

#[tokio::test]
async fn two_gateways_on_one_ledger_are_refused() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream);
    let first = Process::start(&setup).await;
    let refused = Process::try_start(&setup, &[]).await.expect_err("a second gateway started on the same ledger");
    assert_eq!(refused.status.code(), Some(1), "{}", refused.output);
    for part in ["tollkeeper.db", &first.pid().to_string()] {
        assert!(refused.output.contains(part), "it does not name {part}: {}", refused.output);
    }
    assert_eq!(first.client().post_json(CHAT, &chat("up/plain")).await.status, 200, "the first one is not disturbed");
    first.kill().await;
    // A killed gateway holds no lock.
    let second = Process::start(&setup).await;
    assert_eq!(second.client().post_json(CHAT, &chat("up/plain")).await.status, 200);
}

/// Starts the gateway so that a file size limit makes writes fail instead of killing it, and its output is not limited.
async fn start_with_limitable_disk(setup: &Setup) -> Process {
    let mut command = Command::new("bash");
    let script = r#"trap "" XFSZ; exec "$0" serve -c "$1" > >(cat) 2>&1"#;
    command.arg("-c").arg(script).arg(binary()).arg(setup.write()).current_dir(setup.folder());
    Process::spawn(command).await.unwrap_or_else(|refusal| panic!("{}", refusal.output))
}

/// Files of the process can grow to so many bytes from now on: a disk that is full.
async fn limit_disk(process: &Process, bytes: &str) {
    let limit = format!("--fsize={bytes}:unlimited");
    let limited = Command::new("prlimit").args(["--pid", &process.pid().to_string(), &limit]).status().await;
    assert!(limited.expect("prlimit is a part of util-linux").success());
}

#[tokio::test]
async fn a_full_disk_refuses_paid_requests_until_there_is_room() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream);
    let process = start_with_limitable_disk(&setup).await;
    assert_eq!(process.client().post_json(CHAT, &chat("up/plain")).await.status, 200);

    limit_disk(&process, "1").await;
    // Settlements that were still to be written come first; then every intent must be refused.
    let refused = eventually("a refusal", async || {
        let answer = process.client().post_json(CHAT, &chat("up/plain")).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.error()["message"].as_str().unwrap().contains("ledger"), "{}", refused.text());
    assert!(refused.error().get("code").is_some_and(|code| code != &json!("overloaded")));
    let asked = upstream.received().len();
    for ask in [chat("up/plain"), streamed("up/plain")] {
        assert_eq!(process.client().post_json(CHAT, &ask).await.status, 503);
    }
    assert_eq!(upstream.received().len(), asked, "nothing is sent that cannot be recorded");
    let anybody = Client::new(process.addr());
    assert_eq!(anybody.get("/health/live").await.status, 200);
    assert_eq!(Samples::parse(&anybody.get("/metrics").await.text()).sum("tollkeeper_ledger_up", &[]), 0.0);

    limit_disk(&process, "unlimited").await;
    eventually("room on the disk", async || {
        (process.client().post_json(CHAT, &chat("up/plain")).await.status == 200).then_some(())
    })
    .await;
    let (status, output) = process.terminate().await;
    assert!(status.success(), "{output}");
    assert_eq!(Ledger::read(setup).total(), due(&upstream), "what was answered is charged, before and after");
}

#[tokio::test]
async fn a_disk_that_fills_up_in_the_middle_of_a_stream_loses_no_charge() {
    let gate = tollkeeper_tests::upstream::Gate::default();
    let hold = tollkeeper_tests::upstream::Hold::Frames(gate.clone());
    let upstream = Upstream::always(Script::default().with_hold(hold)).await;
    let setup = Setup::with(&upstream);
    let process = start_with_limitable_disk(&setup).await;
    gate.open(2);
    let mut open = process.client().stream(CHAT, &streamed("up/plain")).await;
    open.next_event().await.unwrap().unwrap();
    limit_disk(&process, "1").await;
    gate.open_wide();
    assert_eq!(open.rest().await.events().last().unwrap(), "[DONE]", "what is paid for is delivered");
    limit_disk(&process, "unlimited").await;
    let (status, output) = process.terminate().await;
    assert!(status.success(), "{output}");
    assert_eq!(Ledger::read(setup).total(), due(&upstream));
}

#[tokio::test]
async fn a_ledger_that_cannot_be_opened_is_refused_at_start() {
    let setup = Setup::new();
    std::fs::create_dir(setup.path("data")).unwrap();
    std::fs::write(
        setup.ledger(),
        "this is no database, and it is longer than a header of a hundred bytes would be: ".repeat(20),
    )
    .unwrap();
    let refused = Process::try_start(&setup, &[]).await.unwrap_err();
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.output.contains("tollkeeper.db"), "{}", refused.output);
}

/// A subcommand's output; panics when it fails.
async fn said(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn spend_and_verify_tell_what_the_provider_counted() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream).agent("other", "tk-other", &[]);
    let process = Process::start(&setup).await;
    for number in 0..30 {
        upstream.next(Script::words(number));
        let client = if number % 3 == 0 { Client::new(process.addr()).key("tk-other") } else { process.client() };
        let ask = if number % 2 == 0 { chat("up/plain") } else { streamed("up/plain") };
        assert_eq!(client.post_json(CHAT, &ask).await.status, 200);
    }
    let config = setup.path("tollkeeper.toml");
    let config = config.to_str().unwrap().to_owned();
    let served = upstream.served();
    let due = |other: bool| {
        let mine = served.iter().enumerate().filter(|(number, _)| (number % 3 == 0) == other);
        Usd(mine.map(|(_, one)| cost(&one.usage).0).sum())
    };
    // While the gateway runs, once what was answered is written.
    eventually("the spend of both agents", async || {
        let spend = said(setup.folder(), &["spend", "-c", &config]).await;
        (spend.contains(&due(false).to_string()) && spend.contains(&due(true).to_string())).then_some(())
    })
    .await;
    let one = said(setup.folder(), &["spend", "-c", &config, "--agent", "other"]).await;
    assert!(one.contains(&due(true).to_string()) && !one.contains("scout"), "{one}");
    assert!(
        !said(setup.folder(), &["spend", "-c", &config, "--since", "2100-01-01"])
            .await
            .contains(&due(true).to_string())
    );
    process.terminate().await;
    said(setup.folder(), &["ledger", "verify", "-c", &config]).await;

    // One changed byte is found.
    let ledger = std::fs::read(setup.ledger()).unwrap();
    let at = ledger.windows(8).rposition(|window| window == b"up/plain").unwrap();
    let mut forged = ledger;
    forged[at + 3] = b'P';
    std::fs::write(setup.ledger(), forged).unwrap();
    let verdict = run(setup.folder(), &["ledger", "verify", "-c", &config]).await;
    assert_eq!(verdict.status.code(), Some(1), "{}", String::from_utf8_lossy(&verdict.stdout));
}
