//! Measures the local engine through the whole gateway: beside llama-server with the same model and flags, and across swaps.
//!
//! Build the gateway first, in the same profile, and name llama-server with `--llama-server` (built from the same llama.cpp, outside of
//! this project). Both servers run all the time and are asked in turns. Random weights do for all of it: what is measured is arithmetic.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a program for people at a terminal"
)]

use clap::Parser;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tollkeeper_config::{EngineKind, LocalModel};
use tollkeeper_inference::local::engine::{self, LoadPlan};
use tollkeeper_tests::asks::COMPLETIONS;
use tollkeeper_tests::client::Client;
use tollkeeper_tests::process::Process;
use tollkeeper_tests::setup::{ADMIN_KEY, KEY, Setup};
use tollkeeper_tests::wait::eventually;

/// What to measure.
#[derive(Parser)]
struct Plan {
    /// The GGUF model, of at least 4096 tokens of context; `random-gguf` writes one
    #[arg(long)]
    model: PathBuf,
    /// A llama-server to compare with
    #[arg(long)]
    llama_server: Option<PathBuf>,
    /// Threads of each engine
    #[arg(long, default_value_t = 2)]
    threads: u32,
    /// Tokens of each answer when rates are measured
    #[arg(long, default_value_t = 64)]
    tokens: u32,
    /// Rounds, each of both servers; medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Swaps between two copies of the model
    #[arg(long, default_value_t = 0)]
    swaps: u64,
}

const SLOTS: u32 = 16;
const CONTEXT: u32 = 4096;

#[tokio::main]
async fn main() {
    let plan = Plan::parse();
    if plan.swaps > 0 {
        return swaps(&plan).await;
    }
    let setup = Setup::new().raw(&model("m", &plan.model, SLOTS, plan.threads, ""));
    let process = Process::start(&setup).await;
    let ours = Client::new(process.addr()).key(KEY);
    answers(&ours).await;
    let server = match &plan.llama_server {
        Some(path) => Some(LlamaServer::start(path, &plan).await),
        None => None,
    };
    let theirs = server.as_ref().map(|server| server.client.clone());
    rates(&plan, &ours, theirs.as_ref()).await;
    gaps(&plan, &ours, theirs.as_ref()).await;
    shared_beginnings(&plan, &ours, theirs.as_ref()).await;
    drop(server);
    process.kill().await;
    guesses(&plan).await;
    resumed(&plan).await;
}

fn model(name: &str, path: &Path, slots: u32, threads: u32, lines: &str) -> String {
    let path = path.canonicalize().unwrap();
    format!(
        "[[local.models]]\nname = \"{name}\"\npath = {path:?}\ncontext = {CONTEXT}\nslots = {slots}\nthreads = {threads}\n{lines}\n"
    )
}

/// Waits until the model serves.
async fn answers(client: &Client) {
    eventually("the first answer", async || {
        (client.post_json(COMPLETIONS, &ask("m", "hello", 1)).await.status == 200).then_some(())
    })
    .await;
}

/// A llama-server, stopped when it is dropped.
struct LlamaServer {
    client: Client,
    _child: Child,
}

impl LlamaServer {
    async fn start(path: &Path, plan: &Plan) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (slots, threads) = (SLOTS.to_string(), plan.threads.to_string());
        let child = Command::new(path)
            .arg("-m")
            .arg(&plan.model)
            .args(["-c", &(CONTEXT * SLOTS).to_string(), "-np", &slots, "-t", &threads, "-tb", &threads])
            .args(["-b", "512", "-ub", "512", "--kv-unified", "--port", &port.to_string(), "--log-disable"])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let client = Client::new(addr);
        eventually("llama-server", async || {
            let open = client.try_open(http::Method::GET, "/health", "").await.ok()?;
            (open.status == 200).then_some(())
        })
        .await;
        answers(&client).await;
        Self { client, _child: child }
    }
}

/// A completion without chance.
fn ask(model: &str, prompt: &str, tokens: u32) -> Value {
    json!({"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0})
}

/// So many letters, different for each seed from the first on.
fn text(seed: usize, letters: usize) -> String {
    let mut state = seed as u64 * 0x9E37_79B9_7F4A_7C15 + 1;
    let mut letter = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state % 26) as u8)
    };
    (0..letters).map(|_| letter()).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Both measured in turns, and the ratio of each pair.
async fn compare(
    rounds: usize,
    (ours, theirs): (&Client, Option<&Client>),
    mut measure: impl AsyncFnMut(&Client, usize) -> f64,
) -> (f64, Option<(f64, f64)>) {
    let (mut a, mut b, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        a.push(measure(ours, 2 * round).await);
        if let Some(theirs) = theirs {
            b.push(measure(theirs, 2 * round + 1).await);
            ratios.push(a[round] / b[round]);
        }
    }
    (median(a), theirs.map(|_| (median(b), median(ratios))))
}

fn row(name: &str, unit: &str, (ours, theirs): (f64, Option<(f64, f64)>)) {
    match theirs {
        Some((theirs, ratio)) => println!("| {name} | {ours:.1} | {theirs:.1} | {unit} | {ratio:.2} |"),
        None => println!("| {name} | {ours:.1} | - | {unit} | - |"),
    }
}

async fn rates(plan: &Plan, ours: &Client, theirs: Option<&Client>) {
    println!("| | tollkeeper | llama-server | | ratio |\n|---|---:|---:|---|---:|");
    for parallel in [1usize, 4, 8, 16] {
        let rate = compare(plan.rounds, (ours, theirs), async |client, seed| {
            let began = Instant::now();
            let streams = (0..parallel).map(|number| {
                let (client, tokens) = (client.clone(), plan.tokens);
                let prompt = text(seed * 1000 + number + parallel * 100_000, 64);
                tokio::spawn(async move {
                    let answer = client.post_json(COMPLETIONS, &ask("m", &prompt, tokens)).await;
                    answer.json()["usage"]["completion_tokens"].as_u64().unwrap()
                })
            });
            let streams: Vec<_> = streams.collect();
            let mut tokens = 0;
            for stream in streams {
                tokens += stream.await.unwrap();
            }
            tokens as f64 / began.elapsed().as_secs_f64()
        });
        row(&format!("{parallel} at once"), "tokens/s", rate.await);
    }
}

/// The longest waits between two tokens of four streams while a prompt of 3,000 tokens arrives.
async fn gaps(plan: &Plan, ours: &Client, theirs: Option<&Client>) {
    let p99 = compare(plan.rounds, (ours, theirs), async |client, seed| {
        let streams = (0..4).map(|number| {
            let client = client.clone();
            let mut ask = ask("m", &text(seed * 1000 + number + 7_000_000, 64), 300);
            ask["stream"] = json!(true);
            tokio::spawn(async move {
                let mut stream = client.stream(COMPLETIONS, &ask).await;
                let (mut gaps, mut last) = (Vec::new(), None);
                while let Ok(Some(_)) = stream.next_event().await {
                    let now = Instant::now();
                    gaps.extend(last.map(|last| now - last));
                    last = Some(now);
                }
                gaps
            })
        });
        let streams: Vec<_> = streams.collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.post_json(COMPLETIONS, &ask("m", &text(seed * 1000 + 8_000_000, 3000), 1)).await;
        let mut gaps: Vec<Duration> = Vec::new();
        for stream in streams {
            gaps.extend(stream.await.unwrap());
        }
        gaps.sort_unstable();
        gaps[gaps.len() * 99 / 100].as_secs_f64() * 1000.0
    });
    row("p99 between tokens, 3,000-token prompt arriving", "ms", p99.await);
}

/// The time to the only token of answers that begin with the same 1,000 tokens.
async fn shared_beginnings(plan: &Plan, ours: &Client, theirs: Option<&Client>) {
    let time = compare(plan.rounds, (ours, theirs), async |client, seed| {
        let system = text(9_000_000 + seed, 1000);
        client.post_json(COMPLETIONS, &ask("m", &system, 1)).await;
        let mut times = Vec::new();
        for number in 0..10 {
            let prompt = format!("{system}{}", text(seed * 1000 + number, 20));
            let began = Instant::now();
            client.post_json(COMPLETIONS, &ask("m", &prompt, 1)).await;
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        median(times)
    });
    row("first token after a shared beginning of 1,000", "ms", time.await);
}

/// One answer at a time with and without guessed tokens: one that repeats itself, and one drawn by chance, which never does.
async fn guesses(plan: &Plan) {
    let start = async |lines: &str| {
        let process = Process::start(&Setup::new().raw(&model("m", &plan.model, SLOTS, plan.threads, lines))).await;
        answers(&process.client()).await;
        process
    };
    let (with, without) = (start("speculate = \"lookup\"").await, start("").await);
    println!("\n| one answer at a time | guessing | not | | ratio |\n|---|---:|---:|---|---:|");
    let (guessing, plain) = (with.client(), without.client());
    for (name, temperature) in [("repeats itself", 0), ("never does", 1)] {
        let rate = compare(plan.rounds, (&guessing, Some(&plain)), async |client, seed| {
            let mut ask = ask("m", &text(15_000_000 + seed / 2, 64), 300);
            ask["temperature"] = json!(temperature);
            ask["seed"] = json!(seed / 2);
            let began = Instant::now();
            let answer = client.post_json(COMPLETIONS, &ask).await.json();
            answer["usage"]["completion_tokens"].as_f64().unwrap() / began.elapsed().as_secs_f64()
        });
        row(name, "tokens/s", rate.await);
    }
    with.kill().await;
    without.kill().await;
}

/// The set-up of two copies of the model, of which the memory holds one.
fn either(plan: &Plan, slots: u32, lines: &str) -> (Setup, PathBuf) {
    let half = "memory = \"600MiB\"\npreload = false";
    let setup = Setup::new().raw(&format!("[local]\nvram = \"1GiB\"\nkv_memory = \"2GiB\"\n{lines}\n"));
    let copy = setup.path("copy.gguf");
    std::fs::copy(&plan.model, &copy).unwrap();
    let setup = setup.raw(&model("m", &plan.model, slots, plan.threads, half)).raw(&model(
        "n",
        &copy,
        slots,
        plan.threads,
        half,
    ));
    (setup, copy)
}

/// A conversation of 2,000 tokens read again after a swap, beside one that is read for the first time.
async fn resumed(plan: &Plan) {
    let (setup, _) = either(plan, SLOTS, "min_residency = \"1ms\"\ndrain = \"1s\"");
    let process = Process::start(&setup).await;
    let client = process.client();
    let timed = async |prompt: &str| {
        let began = Instant::now();
        let answer = client.post_json(COMPLETIONS, &ask("m", prompt, 1)).await;
        let cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
        (began.elapsed().as_secs_f64() * 1000.0, cached)
    };
    let (mut fresh, mut again) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        timed("warm").await;
        let conversation = text(11_000_000 + round, 2000);
        fresh.push(timed(&conversation).await.0);
        client.post_json(COMPLETIONS, &ask("n", "other", 1)).await;
        // The model comes back for another prompt first, so that its load is not counted.
        timed("warm").await;
        let (time, cached) = timed(&format!("{conversation}{}", text(round, 10))).await;
        assert!(cached >= 1990, "only {cached} tokens came back");
        again.push(time);
    }
    let (fresh, again) = (median(fresh), median(again));
    println!(
        "\nA conversation of 2,000 tokens: read {fresh:.1} ms, brought back after a swap {again:.1} ms: {:.1} times sooner.",
        fresh / again
    );
    process.kill().await;
}

/// Two copies of a model swapped under 16 clients, whose answers are known.
async fn swaps(plan: &Plan) {
    // One slot, so that answers are comparable: in a batch with others, tokens come out otherwise that were nearly ties.
    let (setup, _) = either(plan, 1, "min_residency = \"1ms\"\ndrain = \"1ms\"");
    let process = Process::start(&setup).await;
    let client = process.client();
    let prompts: Vec<String> = (0..16).map(|number| text(13_000_000 + number, 40)).collect();
    let said = async |client: &Client, model: &str, prompt: &str| {
        let answer = client.post_json(COMPLETIONS, &ask(model, prompt, 24)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let mut expected = Vec::new();
    for prompt in &prompts {
        expected.push(said(&client, "m", prompt).await);
    }
    let before = rss(process.pid());
    let operator = Client::new(process.addr()).key(ADMIN_KEY);
    let (mut asked, mut wrong) = (0u64, 0u64);
    let began = Instant::now();
    loop {
        let round = prompts.iter().zip(&expected).enumerate().map(|(number, (prompt, expected))| {
            let (client, prompt, expected) = (client.clone(), prompt.clone(), expected.clone());
            let model = if number % 2 == 0 { "m" } else { "n" };
            tokio::spawn(async move { said(&client, model, &prompt).await == expected })
        });
        let round: Vec<_> = round.collect();
        for answer in round {
            asked += 1;
            wrong += u64::from(!answer.await.unwrap());
        }
        if loads(&client).await >= plan.swaps as f64 {
            break;
        }
    }
    println!(
        "{} loads in {:.0} s under 16 clients: {asked} answers, 0 lost, {wrong} other than without swaps.",
        loads(&client).await,
        began.elapsed().as_secs_f64()
    );
    println!("RSS {:.1} MiB before, {:.1} MiB after.", before / 1024.0, rss(process.pid()) / 1024.0);
    let last = operator.get("/admin/v1/models").await.json();
    let phase = |name: &str| {
        let swaps = last["swaps"].as_array().unwrap();
        median(swaps.iter().filter_map(|swap| swap["phases"][name].as_f64()).collect())
    };
    let phases = ["drain_ms", "save_ms", "unload_ms", "load_ms", "warm_up_ms"].map(|name| (name, phase(name)));
    let shown: Vec<String> = phases.iter().map(|(name, ms)| format!("{name} {ms:.2}")).collect();
    let swap: f64 = phases[1..].iter().map(|(_, ms)| ms).sum();
    println!("Median phases of the last swaps: {}.", shown.join(", "));
    process.kill().await;
    let bare = bare_load(plan);
    println!(
        "A swap without its drain takes {swap:.2} ms; the engine alone loads the model, makes its context and drops both in {bare:.2} ms: {:.2} times.",
        swap / bare
    );
}

/// What the engine alone takes to load the model, to make its context and to drop both again, in ms.
fn bare_load(plan: &Plan) -> f64 {
    let model = LocalModel {
        context: CONTEXT,
        slots: 1,
        threads: Some(plan.threads),
        ..LocalModel::plain("bare", EngineKind::LlamaCpp, &plan.model)
    };
    let load = LoadPlan::new(Arc::new(model));
    let timed = || {
        let began = Instant::now();
        engine::run(&load, &mut |_, _| {}).unwrap();
        began.elapsed().as_secs_f64() * 1000.0
    };
    // The first one reads the vocabulary, which swaps do not read again.
    timed();
    median((0..20).map(|_| timed()).collect())
}

async fn loads(client: &Client) -> f64 {
    let text = client.get("/metrics").await.text();
    tollkeeper_tests::metrics::Samples::parse(&text).sum("tollkeeper_swap_phases_total", &[("phase", "load")])
}

/// KiB of memory a process has.
fn rss(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap()
}
