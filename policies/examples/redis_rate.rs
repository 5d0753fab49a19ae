//! How long an admission, an extension and a settlement take when the counters are in Redis, and how many round trips
//! each of them is, as Redis counts them.
//!
//! `cargo run --release -p tollkeeper-policies --example redis_rate` starts a `redis-server` of its own.

#![expect(clippy::print_stdout, reason = "prints its figures")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollkeeper_config::SharedStore;
use tollkeeper_policies::Clock;
use tollkeeper_policies::shared::{Counter, Extend, Restore, Rolls, SharedAccounts, SharedError, Take, Want};

const LENGTH: Duration = Duration::from_secs(3);
const TASKS: [u32; 3] = [1, 16, 64];
const LIMIT: i128 = 1 << 62;
const NANO: i64 = 2_500_000;

/// The server, ended with this.
struct Redis {
    child: Child,
    socket: PathBuf,
}

impl Redis {
    fn start(folder: &Path) -> Result<Self, Box<dyn Error>> {
        let socket = folder.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "yes", "--dir"]).arg(folder);
        let child = command.arg("--unixsocket").arg(&socket).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        Ok(Self { child, socket })
    }

    /// Calls of scripts so far, and microseconds that they took inside the server.
    fn scripts(&self) -> Result<(u64, u64), Box<dyn Error>> {
        let output = Command::new("redis-cli").arg("-s").arg(&self.socket).args(["INFO", "commandstats"]).output()?;
        let text = String::from_utf8(output.stdout)?;
        let line = text.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
        let value =
            |name: &str| line.split([':', ',']).find_map(|part| part.strip_prefix(name)?.parse().ok()).unwrap_or(0);
        Ok((value("calls="), value("usec=")))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir_in(".")?;
    let server = Redis::start(folder.path())?;
    let settings = SharedStore::new(format!("redis+unix://{}", server.socket.display()), "bench");
    let gateway = SharedAccounts::new(&settings, Clock::system())?;
    while gateway.beat().await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    gateway.restore(&Restore::default()).await?;
    println!(
        "five counters a lease, append-only file on\n\
         tasks   requests/s   take p50     p99   extend p50     p99   settle p50     p99 (µs)   calls each   µs in Redis"
    );
    for tasks in TASKS {
        let (before, start) = (server.scripts()?, Instant::now());
        let running: Vec<_> =
            (0..tasks).map(|task| tokio::spawn(one_client(gateway.clone(), tasks, task, start))).collect();
        let mut times: [Vec<Duration>; 3] = Default::default();
        for task in running {
            for (all, some) in times.iter_mut().zip(task.await??) {
                all.extend(some);
            }
        }
        let count = u64::try_from(times[0].len())?.max(1);
        let rate = u128::from(count) * 1000 / start.elapsed().as_millis();
        let after = server.scripts()?;
        let calls = (after.0 - before.0) * 100 / count;
        let inside = (after.1 - before.1) / (after.0 - before.0).max(1);
        let [take, extend, settle] = times.map(|mut times| {
            times.sort_unstable();
            [500, 990].map(|per_mille| times.get(times.len() * per_mille / 1000).map_or(0, Duration::as_micros))
        });
        println!(
            "{tasks:5} {rate:12} {:10} {:7} {:12} {:7} {:12} {:7} {:>14}.{:02} {inside:13}",
            take[0],
            take[1],
            extend[0],
            extend[1],
            settle[0],
            settle[1],
            calls / 100,
            calls % 100
        );
    }
    Ok(())
}

/// Takes, extends and settles one lease after another; returns how long each of it took.
async fn one_client(
    gateway: SharedAccounts,
    tasks: u32,
    task: u32,
    start: Instant,
) -> Result<[Vec<Duration>; 3], SharedError> {
    let mut times: [Vec<Duration>; 3] = Default::default();
    let mut count = 0;
    while start.elapsed() < LENGTH {
        count += 1;
        let lease: Arc<str> = format!("{tasks}-{task}-{count}").into();
        let now = 1_772_582_400_000_000;
        let memo = r#"{"agent":"scout","alias":"cloud/fast","backend":"openai/gpt-4o-mini","input":1000}"#.into();
        let take =
            Take { lease: lease.clone(), now, memo, marks: vec!["pause:agent:scout".into()], wants: wants(NANO) };
        let begin = Instant::now();
        gateway.take(&take).await?;
        times[0].push(begin.elapsed());
        let begin = Instant::now();
        gateway.extend(&Extend { lease: lease.clone(), step: 1, now, wants: wants(2 * NANO) }).await?;
        times[1].push(begin.elapsed());
        let begin = Instant::now();
        gateway.settle(&lease, now, &[NANO; 5]).await?;
        times[2].push(begin.elapsed());
    }
    Ok(times)
}

/// Money of an agent by day and in total, of its team by month, of a model over a rolling hour, and of everything.
fn wants(amount: i64) -> Vec<Want> {
    let counter = |key: &str, rolls| Counter { key: key.into(), ends: None, rolls };
    let hour = Some(Rolls::over(Duration::from_secs(3600)));
    let counters = [
        counter("agent:scout:usd:day", None),
        counter("agent:scout:usd:total", None),
        counter("team:field:usd:month", None),
        counter("model:openai/gpt-4o-mini:usd:rolling", hour),
        counter("everything::usd:day", None),
    ];
    counters.into_iter().map(|counter| Want { counter, limit: LIMIT, least: amount, most: amount }).collect()
}
