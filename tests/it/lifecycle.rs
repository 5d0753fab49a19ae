//! The real binary: start, command line, drain, reload.

use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use tollkeeper_config::Usd;
use tollkeeper_tests::asks::{CHAT, chat, streamed};
use tollkeeper_tests::client::Client;
use tollkeeper_tests::gateway::Ledger;
use tollkeeper_tests::metrics::Samples;
use tollkeeper_tests::process::{Process, run};
use tollkeeper_tests::setup::{Setup, due};
use tollkeeper_tests::upstream::{Fault, Gate, Hold, Script, Upstream};
use tollkeeper_tests::wait::eventually;

#[tokio::test]
async fn the_command_line_explains_itself() {
    let setup = Setup::new();
    let version = run(setup.folder(), &["--version"]).await;
    assert!(version.status.success());
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("tollkeeper 0."));
    let help = run(setup.folder(), &["--help"]).await;
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for command in ["serve", "check", "spend", "ledger"] {
        assert!(help.contains(command), "{command} is not in the help:\n{help}");
    }
    for wrong in [&["fly"][..], &["serve", "--wings"], &[]] {
        assert_eq!(run(setup.folder(), wrong).await.status.code(), Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_configuration_is_checked_with_all_its_problems() {
    let setup = Setup::new();
    let good = setup.write();
    let checked = run(setup.folder(), &["check", "-c", good.to_str().unwrap()]).await;
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    let bad = setup.path("bad.toml");
    fs::write(
        &bad,
        "[server]\nlisten = \"nowhere\"\nlissten = 1\n\n[[aliases]]\nname = \"a\"\ntargets = [\"nobody/model\"]\n",
    )
    .unwrap();
    for command in ["check", "serve"] {
        let refused = run(setup.folder(), &[command, "-c", bad.to_str().unwrap()]).await;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        for place in ["bad.toml:2:", "bad.toml:3:", "bad.toml:7:"] {
            assert!(said.contains(place), "{command} does not show {place}:\n{said}");
        }
        assert!(said.contains("`listen`"), "{command} does not suggest what was meant:\n{said}");
    }
    let missing = run(setup.folder(), &["serve", "-c", "nowhere.toml"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("nowhere.toml"));
}

#[tokio::test]
async fn the_address_can_be_given_and_a_taken_one_is_refused() {
    let setup = Setup::new().server("drain_timeout = \"1s\"");
    let first = Process::try_start(&setup, &["--listen", "127.0.0.1:0"]).await.unwrap();
    let address = first.addr().to_string();
    let refused = Process::try_start(&Setup::new(), &["--listen", &address]).await.unwrap_err();
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.output.contains(&address), "{}", refused.output);
}

#[tokio::test]
async fn a_drain_finishes_streams_and_settles_them() {
    let gate = Gate::default();
    let upstream = Upstream::always(Script::default().with_hold(Hold::Frames(gate.clone()))).await;
    let setup = Setup::with(&upstream);
    let mut process = Process::start(&setup).await;
    gate.open(3);
    let mut open = process.client().stream(CHAT, &streamed("up/plain")).await;
    for _ in 0..3 {
        open.next_event().await.unwrap().unwrap();
    }
    process.signal(Signal::SIGTERM);
    // From now on nobody new is let in.
    let newcomer = process.client();
    eventually("the end of new connections", async || {
        match newcomer.try_open(http::Method::GET, "/health/live", "").await {
            Err(_) => Some(()),
            Ok(open) => (open.status == 503).then_some(()),
        }
    })
    .await;
    gate.open_wide();
    let rest = open.rest().await;
    assert_eq!(rest.events().last().unwrap(), "[DONE]");
    let status = process.wait().await;
    assert!(status.success(), "{status}: {}", process.output());
    assert_eq!(Ledger::read(setup).total(), due(&upstream));
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_and_charges_what_was_delivered() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let upstream = Upstream::always(Script::fault(Fault::StallAfter(4))).await;
        let setup = Setup::with(&upstream).server("drain_timeout = \"300ms\"");
        let mut process = Process::start(&setup).await;
        let mut open = process.client().stream(CHAT, &streamed("up/plain")).await;
        for _ in 0..4 {
            open.next_event().await.unwrap().unwrap();
        }
        process.signal(signal);
        process.wait().await;
        let rest = open.rest().await;
        assert!(!rest.text().contains("[DONE]"), "a broken stream must not look finished");
        let ledger = Ledger::read(setup);
        assert_eq!(
            (ledger.report.open, ledger.report.unknown, ledger.attempts("up/plain")),
            (0, 0, 1),
            "it was settled, not lost"
        );
        assert!(ledger.total() > Usd(0));
    }
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once_and_loses_no_charge() {
    let upstream = Upstream::always(Script::fault(Fault::StallAfter(4))).await;
    let setup = Setup::with(&upstream).server("drain_timeout = \"1h\"");
    let mut process = Process::start(&setup).await;
    let mut open = process.client().stream(CHAT, &streamed("up/plain")).await;
    for _ in 0..4 {
        open.next_event().await.unwrap().unwrap();
    }
    process.signal(Signal::SIGTERM);
    process.wait_for_output("draining").await;
    process.signal(Signal::SIGTERM);
    process.wait().await;
    let ledger = Ledger::read(setup);
    assert_eq!((ledger.report.open, ledger.attempts("up/plain")), (0, 1));
    assert!(ledger.total() > Usd(0));
}

#[tokio::test]
async fn logs_that_go_to_a_file_have_no_colour() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream);
    let process = Process::start(&setup).await;
    process.client().post_json(CHAT, &chat("up/plain")).await;
    let (_, output) = process.terminate().await;
    assert!(!output.contains('\u{1b}'), "{output}");
}

fn models(answer: &tollkeeper_tests::client::Answer) -> Vec<String> {
    answer.json()["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_changed_file_is_taken_over_and_a_bad_one_changes_nothing() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream);
    let process = Process::start(&setup).await;
    let path = setup.path("tollkeeper.toml");
    let has = async |model: &str| models(&process.client().get("/v1/models").await).iter().any(|id| id == model);
    let appears =
        async |model: &str| eventually(&format!("{model} in the list"), async || has(model).await.then_some(())).await;
    let with_alias =
        |alias: &str| format!("{}\n[[aliases]]\nname = \"{alias}\"\ntargets = [\"up/plain\"]\n", setup.toml());

    // By the change of the file alone, and by replacing it as editors do.
    fs::write(&path, with_alias("first")).unwrap();
    appears("first").await;
    fs::write(setup.path("new"), with_alias("second")).unwrap();
    fs::rename(setup.path("new"), &path).unwrap();
    appears("second").await;
    assert!(!has("first").await);

    fs::write(&path, with_alias("third") + "mistake = true\n").unwrap();
    process.wait_for_output("mistake").await;
    assert!(has("second").await && !has("third").await);
    assert_eq!(process.client().post_json(CHAT, &chat("second")).await.status, 200);

    fs::write(&path, with_alias("fourth")).unwrap();
    process.signal(Signal::SIGHUP);
    appears("fourth").await;
    let metrics = Samples::parse(&Client::new(process.addr()).get("/metrics").await.text());
    assert!(metrics.sum("tollkeeper_config_reloads_total", &[]) >= 4.0);
}

#[tokio::test]
async fn a_reload_changes_keys_and_budgets_but_not_what_was_spent() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream).budgets(&[("total", "0.00001")]);
    let process = Process::start(&setup).await;
    let client = process.client();
    while client.post_json(CHAT, &chat("up/plain")).await.status == 200 {}
    let refused = client.post_json(CHAT, &chat("up/plain")).await;
    assert_eq!(refused.status, 402);
    let spent = refused.error()["budget"]["spent_usd"].clone();

    fs::write(setup.path("tollkeeper.toml"), setup.toml().replace("0.00001", "0.001")).unwrap();
    process.signal(Signal::SIGHUP);
    eventually("the new budget", async || {
        (client.post_json(CHAT, &chat("up/plain")).await.status == 200).then_some(())
    })
    .await;

    fs::write(setup.path("tollkeeper.toml"), setup.toml()).unwrap();
    process.signal(Signal::SIGHUP);
    let again = eventually("the old budget", async || {
        let answer = client.post_json(CHAT, &chat("up/plain")).await;
        (answer.status == 402).then_some(answer)
    });
    let again = again.await.error()["budget"]["spent_usd"].clone();
    let usd = |amount: &Value| Usd::parse_decimal(amount.as_str().unwrap()).unwrap();
    assert!(usd(&again) > usd(&spent), "{again} is not above {spent}");
    assert_eq!(process.terminate().await.0.code(), Some(0));
    assert_eq!(Ledger::read(setup).total(), usd(&again));
}

#[tokio::test]
async fn one_line_a_request_and_no_prompt_in_it() {
    let upstream = Upstream::start().await;
    let setup =
        Setup::with(&upstream).alias("team/fast", &["up/plain"]).raw("[log]\nformat = \"json\"\nfilter = \"trace\"\n");
    let process = Process::start(&setup).await;
    let mut ask = chat("team/fast");
    ask["messages"][0]["content"] = "the secret of the prompt".into();
    let answer = process.client().post_json(CHAT, &ask).await;
    let id = answer.header("x-tollkeeper-request-id").to_owned();
    let (status, output) = process.terminate().await;
    assert!(status.success());
    for secret in ["the secret of", "tk-scout-key", "sk-up", "000 001"] {
        assert!(!output.contains(secret), "{secret:?} is in the log, even at its most talkative");
    }
    let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let info: Vec<String> = lines.filter(|line| line["level"] == "INFO").map(|line| line.to_string()).collect();
    let mine: Vec<&String> = info.iter().filter(|line| line.contains(&id)).collect();
    assert_eq!(mine.len(), 1, "{mine:#?}");
    for part in ["scout", "team/fast", "up/plain", "cost", "ttft", "duration", "outcome"] {
        assert!(mine[0].contains(part), "{part} is not in {}", mine[0]);
    }
}
