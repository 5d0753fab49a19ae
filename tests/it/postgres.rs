//! The gateway with its ledger in PostgreSQL: killed, refused, cut off from its database, and asked by the command line.

use tollkeeper_servers::PostgresServer;
use tollkeeper_tests::asks::{CHAT, chat};
use tollkeeper_tests::process::{Process, run};
use tollkeeper_tests::setup::{Setup, due};
use tollkeeper_tests::upstream::Upstream;
use tollkeeper_tests::wait::eventually;

/// A subcommand's exit code and its output.
async fn said(setup: &Setup, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(setup.folder(), arguments).await;
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn a_fleet_in_one_database_loses_nothing() {
    let server = PostgresServer::start();
    let url = server.database();
    let upstream = Upstream::start().await;
    let [left, right] = ["left", "right"].map(|name| {
        let store = format!("url = {url:?}\ngateway = \"{name}\"\ntimeout = \"700ms\"");
        Setup::with(&upstream).store(&store).budgets(&[("total", "1.00")])
    });
    let (one, other) = (Process::start(&left).await, Process::start(&right).await);
    let ask = async |process: &Process| process.client().post_json(CHAT, &chat("up/plain")).await.status;
    for _ in 0..5 {
        assert_eq!((ask(&one).await, ask(&other).await), (200, 200));
    }
    let refused = Process::try_start(&left, &[]).await.unwrap_err();
    assert!(refused.output.contains("in use by another gateway"), "{}", refused.output);

    // The database stands still, and goes on.
    server.stop(true);
    assert_eq!((ask(&one).await, ask(&other).await), (503, 503));
    assert_eq!(upstream.served().len(), 10, "what is not on record is not sent");
    server.stop(false);
    for process in [&one, &other] {
        eventually("the database to be found again", async || (ask(process).await == 200).then_some(())).await;
    }
    // What was answered is written a moment later; a crash before would charge what was leased.
    let spend = [&["spend", "--json"][..], &["--store-url", &url]].concat();
    eventually("the last charge", async || {
        said(&left, &spend).await.1.contains(&format!("\"total_usd\":\"{}\"", due(&upstream))).then_some(())
    })
    .await;
    one.kill().await;
    let one = Process::start(&left).await;
    assert_eq!(ask(&one).await, 200);
    for process in [one, other] {
        assert!(process.terminate().await.0.success());
    }

    let all = ["--store-url", &url];
    let (code, verdict) = said(&left, &[&["ledger", "verify"][..], &all].concat()).await;
    assert!(code == Some(0) && verdict.matches(": good").count() == 2, "{verdict}");
    let (_, spent) = said(&left, &[&["spend", "--group", "gateway,agent", "--json"][..], &all].concat()).await;
    let spent: serde_json::Value = serde_json::from_str(&spent).unwrap();
    assert_eq!(spent["total_usd"], due(&upstream).to_string(), "{spent}");
    assert_eq!((&spent["rows"][0]["gateway"], &spent["rows"][1]["gateway"]), (&"left".into(), &"right".into()));
    let (code, rows) = said(&left, &[&["ledger", "export", "--gateway", "right"][..], &all].concat()).await;
    assert!(code == Some(0) && rows.contains(",right\r\n") && !rows.contains(",left\r\n"), "{rows}");
    let (code, refusal) = said(&left, &[&["ledger", "migrate", "--to", "0"][..], &all].concat()).await;
    assert!(code == Some(1) && refusal.contains("--discard"), "{refusal}");
    let (code, done) = said(&left, &[&["ledger", "migrate", "--to", "0", "--discard"][..], &all].concat()).await;
    assert!(code == Some(0) && done.contains("version 2 is now 0"), "{done}");
    let (code, _) = said(&left, &[&["ledger", "verify"][..], &all].concat()).await;
    assert_eq!(code, Some(1), "there is none any more");
}
