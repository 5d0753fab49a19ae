//! A gateway that is killed in the middle of its work: nothing that was admitted is forgotten.

use crate::setup::{growing, nano_per_token, own, scout, spend, stored, used};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use tollkeeper_config::{Usd, Window};
use tollkeeper_policies::report::verify;
use tollkeeper_policies::{Clock, OutputBound, Policies};

/// The victim: run by the other test in a process of its own, which tells it the folder and kills it when it says so.
#[tokio::test]
#[ignore = "started by `a_killed_gateway_forgets_nothing`"]
async fn victim() {
    let mut folder = String::new();
    std::io::stdin().read_line(&mut folder).unwrap();
    if folder.trim().is_empty() {
        return;
    }
    let (policies, _) =
        Policies::open(&stored(Path::new(folder.trim()), &[(Window::Total, 1_000_000)]), Clock::system()).unwrap();
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
    std::io::stdin().read_line(&mut folder).unwrap();
    unreachable!("this process is killed while it waits, its {} leases open", kept.len());
}

#[tokio::test]
async fn a_killed_gateway_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::victim", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = victim.stdin.take().unwrap();
    writeln!(stdin, "{}", folder.path().display()).unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready to die")), "the victim ended before it was killed");
    victim.kill().unwrap();
    victim.wait().unwrap();

    let config = stored(folder.path(), &[(Window::Total, 1_000_000)]);
    let before = verify(&config.store.path).unwrap();
    assert_eq!((before.intents, before.settlements, before.open, before.cost), (40, 10, 30, Usd(110)));
    // The lock died with its holder. Ten leases were whole (20 each), twenty streams covered 8 tokens (18 each).
    let (policies, recovered) = Policies::open(&config, Clock::system()).unwrap();
    assert_eq!((recovered.unknown, recovered.amount), (30, Usd(10 * 20 + 20 * 18)));
    assert_eq!(own(&policies, &scout(&policies))[0].spent, Usd(110 + 560));
    policies.close().await;
    let after = verify(&config.store.path).unwrap();
    assert_eq!((after.unknown, after.open, after.cost), (30, 0, Usd(670)));
}
