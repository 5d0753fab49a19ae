//! A server process under load: where it listens, what CPU time it has used, how much memory it holds.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::process::Command;
use tollkeeper_tests::process::{Process, binary};
use tollkeeper_tests::setup::{KEY, Setup};

/// One of the servers that are compared.
#[derive(Debug)]
pub struct Target {
    /// Its name in the tables.
    pub name: &'static str,
    /// The model that requests to it name.
    pub model: &'static str,
    process: Process,
    _setup: Option<Setup>,
}

impl Target {
    /// The canned upstream, asked directly.
    pub async fn direct() -> Self {
        Self::own("direct", &["--serve", "upstream"]).await
    }

    /// The bare hyper passthrough in front of the upstream.
    pub async fn passthrough(upstream: SocketAddr) -> Self {
        Self::own("bare hyper passthrough", &["--serve", "passthrough", "--to", &upstream.to_string()]).await
    }

    /// Tollkeeper in front of the upstream, everything on: key, two budgets, lease, SQLite ledger, metrics, a log line a request.
    pub async fn tollkeeper(upstream: SocketAddr) -> Self {
        let url = format!("http://{upstream}/v1");
        let setup = Setup::new().provider("up", &url, "").budgets(&[("day", "1000000"), ("total", "9000000")]);
        let mut command = Command::new(binary());
        command.arg("serve").arg("-c").arg(setup.write()).current_dir(setup.folder());
        let process = Process::spawn(command).await.unwrap_or_else(|refusal| panic!("{}", refusal.output));
        Self { name: "Tollkeeper", model: "up/bench", process, _setup: Some(setup) }
    }

    async fn own(name: &'static str, arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(arguments);
        let process = Process::spawn(command).await.unwrap_or_else(|refusal| panic!("{}", refusal.output));
        Self { name, model: "bench", process, _setup: None }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.process.addr()
    }

    /// The key to show it.
    pub fn key(&self) -> &'static str {
        KEY
    }

    /// CPU time of all its threads so far, user and system; in steps of 10 ms.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.pid())).unwrap();
        // The second field is the program's name in parentheses; utime and stime are the 14th and 15th.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks = |index: usize| fields[index - 3].parse::<u64>().unwrap();
        Duration::from_millis(10 * (ticks(14) + ticks(15)))
    }

    /// Resident memory in KiB.
    pub fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}
