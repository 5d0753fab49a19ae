//! A gateway that is killed in the middle of its work: nothing that was admitted is forgotten.

use crate::setup::{growing, nano_per_token, own, scout, spend, stored, stored_in, used};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use tollkeeper_config::{Config, Usd, Window};
use tollkeeper_policies::report::verify;
use tollkeeper_policies::{Clock, OutputBound, Place, Policies};
use tollkeeper_servers::PostgresServer;

/// A gateway whose ledger is in this folder or this database.
fn config(place: &str) -> Config {
    let budgets = [(Window::Total, 1_000_000)];
    if place.starts_with("postgres:") {
        stored_in(place, "victim", &budgets)
    } else {
        stored(Path::new(place), &budgets)
    }
}

/// The victim: run by the other tests in a process of its own, which tell it the place and kill it when it says so.
#[tokio::test]
#[ignore = "started by those below"]
async fn victim() {
    let mut place = String::new();
    std::io::stdin().read_line(&mut place).unwrap();
    if place.trim().is_empty() {
        return;
    }
    let (policies, _) = Policies::open(&config(place.trim()), Clock::system()).unwrap();
    let agent = scout(&policies);
    let mut kept = Vec::new();
    for round in 0..20 {
        let whole = policies.admit(&agent, spend(nano_per_token(), 10, OutputBound::Whole(10))).await.unwrap();
        let mut stream = policies.admit(&agent, spend(nano_per_token(), 10, growing(4))).await.unwrap();
        stream.cover(6).unwrap();
        stream.secured().await.unwrap();
        if round % 2 == 0 {
            whole.settle(used(10, 1));
            kept.push(stream);
        } else {
            kept.extend([whole, stream]);
        }
    }
    assert!(policies.flush().await);
    println!("ready to die");
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_line(&mut place).unwrap();
    unreachable!("this process is killed while it waits, its {} leases open", kept.len());
}

#[tokio::test]
async fn a_killed_gateway_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    killed_at(folder.path().to_str().unwrap()).await;
}

#[tokio::test]
async fn a_killed_gateway_forgets_nothing_in_postgres() {
    killed_at(&PostgresServer::shared().database()).await;
}

async fn killed_at(place: &str) {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::victim", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = victim.stdin.take().unwrap();
    writeln!(stdin, "{place}").unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready to die")), "the victim ended before it was killed");
    victim.kill().unwrap();
    victim.wait().unwrap();

    let config = config(place);
    let before = verify(Place::own(&config.store)).unwrap();
    assert_eq!((before.intents, before.settlements, before.open, before.cost), (40, 10, 30, Usd(110)));
    // The lock died with its holder. Ten leases were whole (20 each), twenty streams covered 8 tokens (18 each).
    let (policies, recovered) = Policies::open(&config, Clock::system()).unwrap();
    assert_eq!((recovered.unknown, recovered.amount), (30, Usd(10 * 20 + 20 * 18)));
    assert_eq!(own(&policies, &scout(&policies))[0].spent, Usd(110 + 560));
    policies.close().await;
    let after = verify(Place::own(&config.store)).unwrap();
    assert_eq!((after.unknown, after.open, after.cost), (30, 0, Usd(670)));
}
