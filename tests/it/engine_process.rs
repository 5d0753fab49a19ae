//! Engines in processes of their own, with the real binary: the same answers, and a death that costs what was running and no more.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tollkeeper_tests::asks::{CHAT, COMPLETIONS, EMBEDDINGS, chat, completion, embedding, streamed};
use tollkeeper_tests::client::Client;
use tollkeeper_tests::metrics::Samples;
use tollkeeper_tests::process::{Process, is_running};
use tollkeeper_tests::setup::{ADMIN_KEY, Setup};
use tollkeeper_tests::upstream::Upstream;
use tollkeeper_tests::wait::eventually;

const ADMIN: &str = "/admin/v1/models";

/// The set-up with one more scripted model whose engine has this host; `lines` are more keys of it.
fn model(setup: Setup, name: &str, host: &str, script: &Value, lines: &str) -> Setup {
    let path = setup.path(&format!("{name}.json"));
    std::fs::write(&path, script.to_string()).unwrap();
    setup.raw(&format!(
        "[[local.models]]\nname = \"{name}\"\npath = {path:?}\nengine = \"scripted\"\nhost = \"{host}\"\ncontext = 4096\n{lines}\n"
    ))
}

/// Says "hello" to everything, and never stops when asked to count.
fn script(step_millis: u64) -> Value {
    json!({"otherwise": "hello", "answers": {"count": null}, "step_millis": step_millis})
}

fn count(model: &str) -> Value {
    let mut ask = streamed(model);
    ask["messages"][0]["content"] = json!("count");
    ask
}

/// The one process of the one model, once it is there.
async fn engine(process: &Process) -> u32 {
    eventually("the engine's process", async || match process.children()[..] {
        [(pid, state)] if state != 'Z' => Some(pid),
        _ => None,
    })
    .await
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Ends a process by this signal. Rust's handler of SIGSEGV lets the first one pass, since a fault would come again at once.
async fn end(pid: u32, by: Signal) {
    eventually("the death of the process", async || {
        if !is_running(pid) {
            return Some(());
        }
        // It may be gone before the signal comes.
        let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), by);
        None
    })
    .await;
}

/// Waits until a metric of the model `m` has this value.
async fn metric(process: &Process, name: &str, value: f64) {
    let client = Client::new(process.addr());
    eventually(&format!("{name} {value}"), async || {
        let samples = Samples::parse(&client.get("/metrics").await.text());
        (samples.sum(name, &[("model_name", "m")]) == value).then_some(())
    })
    .await;
}

async fn state(process: &Process) -> String {
    let all = Client::new(process.addr()).key(ADMIN_KEY).get(ADMIN).await.json();
    all["models"][0]["state"].as_str().unwrap().to_owned()
}

async fn loaded(process: &Process) -> u32 {
    eventually("the model", async || (state(process).await == "ready").then_some(())).await;
    engine(process).await
}

/// What two models answer has to be the same but for these.
fn comparable(mut body: Value) -> Value {
    for own in ["id", "created", "model"] {
        body[own] = Value::Null;
    }
    body
}

#[tokio::test]
async fn answers_are_the_same_in_a_thread_and_in_a_process() {
    let script = json!({"otherwise": "hello", "answers": {"count": null}, "batch": 16});
    let setup = model(model(Setup::new(), "in", "thread", &script, ""), "out", "process", &script, "");
    let process = Process::start(&setup).await;
    let mut several = chat("");
    several["n"] = json!(3);
    let mut counting = chat("");
    counting["messages"][0]["content"] = json!("count");
    counting["max_tokens"] = json!(300);
    counting["logprobs"] = json!(true);
    let mut many = embedding("");
    many["input"] = json!(["a", "few", "texts"]);
    let asks = [(CHAT, chat("")), (CHAT, several), (CHAT, counting), (COMPLETIONS, completion("")), (EMBEDDINGS, many)];
    for (path, mut ask) in asks {
        let mut answers = Vec::new();
        for name in ["in", "out"] {
            ask["model"] = json!(name);
            let answer = process.client().post_json(path, &ask).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            answers.push(comparable(answer.json()));
        }
        assert_eq!(answers[0], answers[1]);
    }
    assert_eq!(process.children().len(), 1, "one of the two has a process");
    let engine = engine(&process).await;
    let (status, output) = process.terminate().await;
    assert!(status.success() && !is_running(engine), "{output}");
}

#[tokio::test]
async fn an_engine_sees_no_key_of_its_gateway() {
    let upstream = Upstream::start().await;
    let cloud = format!(
        "[[providers]]\nname = \"cloud\"\nkind = \"custom\"\nbase_url = {:?}\nprice = \"free\"",
        upstream.url()
    );
    let setup = model(Setup::new(), "m", "process", &script(0), "").raw(&format!("{cloud}\napi_key = \"env:CLOUD\""));
    let mut command = tokio::process::Command::new(tollkeeper_tests::process::binary());
    command.arg("serve").arg("-c").arg(setup.write()).current_dir(setup.folder());
    command.envs([("CLOUD", "sk-secret"), ("NVIDIA_API_KEY", "nv-secret"), ("GGML_FANCY", "yes")]);
    let process = Process::spawn(command).await.unwrap();
    let environment = |pid: u32| {
        let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let engine = loaded(&process).await;
    assert!(environment(process.pid()).contains("sk-secret"), "the gateway itself has it");
    let seen = environment(engine);
    assert!(!seen.contains("secret"), "{seen:?}");
    for name in ["PATH=", "GGML_FANCY=yes", "GOMP_SPINCOUNT=0", "GGML_NO_BACKTRACE=1"] {
        assert!(seen.split('\0').any(|line| line.starts_with(name)), "{name} in {seen:?}");
    }
}

#[cfg(feature = "llama-cpp")]
#[tokio::test]
async fn the_shipped_model_chooses_the_same_tokens_in_a_process() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/toll-tiny.gguf");
    let setup = ["thread", "process"].iter().fold(Setup::new(), |setup, host| {
        // More context than it was trained for: the engine warns, and that has to reach the gateway's log.
        setup.raw(&format!(
            "[[local.models]]\nname = \"{host}\"\npath = {path:?}\nhost = \"{host}\"\ncontext = 5000\nslots = 2\n"
        ))
    });
    let process = Process::start(&setup).await;
    for question in ["What is the capital of France?", "Who are you?", "Tell me a story."] {
        let mut answers = Vec::new();
        for name in ["thread", "process"] {
            let ask = json!({"model": name, "messages": [{"role": "user", "content": question}], "temperature": 0,
                "max_tokens": 100, "logprobs": true, "top_logprobs": 3});
            let answer = process.client().post_json(CHAT, &ask).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            answers.push(comparable(answer.json()));
        }
        assert!(answers[0]["usage"]["completion_tokens"].as_u64().unwrap() > 1);
        assert_eq!(answers[0], answers[1], "tokens, text and probabilities");
    }
    let output = process.output();
    let warned = |model: &str| output.lines().any(|line| line.contains("context is cut") && line.contains(model));
    assert!(warned("model=\"thread\"") && warned("model=\"process\""), "{output}");
}

#[tokio::test]
async fn a_death_under_load_fails_what_runs_and_keeps_what_waits() {
    for signal_sent in [Signal::SIGKILL, Signal::SIGSEGV] {
        let upstream = Upstream::start().await;
        let setup = model(Setup::with(&upstream), "m", "process", &script(5), "slots = 4");
        let process = Process::start(&setup).await;
        let first = loaded(&process).await;
        let over = Arc::new(AtomicBool::new(false));
        let cloud = tokio::spawn({
            let (client, over) = (process.client(), over.clone());
            async move {
                let mut answered = 0;
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(client.post_json(CHAT, &chat("up/plain")).await.status, 200);
                    answered += 1;
                }
                answered
            }
        });
        let mut running = Vec::new();
        for _ in 0..4 {
            let mut stream = process.client().stream(CHAT, &count("m")).await;
            stream.next_event().await.unwrap().unwrap();
            running.push(stream);
        }
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let client = process.client();
                tokio::spawn(async move { client.post_json(CHAT, &chat("m")).await })
            })
            .collect();
        metric(&process, "vllm:num_requests_waiting", 4.0).await;
        end(first, signal_sent).await;
        for stream in running {
            let answer = stream.rest().await;
            let text = answer.text();
            assert!(text.contains("\"error\"") && text.contains(signal_sent.as_str()), "{text}");
            assert!(text.contains("try again"), "{text}");
        }
        for answer in waiting {
            let answer = answer.await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.json()["choices"][0]["message"]["content"], "hello");
        }
        over.store(true, Ordering::Relaxed);
        assert!(cloud.await.unwrap() > 0);
        let second = engine(&process).await;
        assert_ne!(second, first);
        assert_eq!(process.children().len(), 1, "nothing is left of the first");
    }
}

#[tokio::test]
async fn who_has_not_heard_a_word_yet_is_answered_elsewhere() {
    let upstream = Upstream::start().await;
    // It reads four tokens a step: it is long busy before it says something.
    let slow = json!({"otherwise": "hello", "batch": 4, "step_millis": 20});
    let setup = model(Setup::with(&upstream).alias("either", &["m", "up/plain"]), "m", "process", &slow, "slots = 1");
    let process = Process::start(&setup).await;
    let first = loaded(&process).await;
    let client = process.client();
    let asked = tokio::spawn(async move {
        let mut ask = chat("either");
        ask["messages"][0]["content"] = json!("a long question ".repeat(150));
        client.post_json(CHAT, &ask).await
    });
    metric(&process, "vllm:num_requests_running", 1.0).await;
    signal(first, Signal::SIGKILL);
    let answer = asked.await.unwrap();
    assert_eq!((answer.status, answer.header("x-tollkeeper-backend")), (200, "up/plain"), "{}", answer.text());
}

#[tokio::test]
async fn a_process_that_does_not_move_is_replaced() {
    let setup = model(Setup::new(), "m", "process", &script(1), "");
    let process = Process::start(&setup).await;
    let first = loaded(&process).await;
    let mut stream = process.client().stream(CHAT, &count("m")).await;
    stream.next_event().await.unwrap().unwrap();
    signal(first, Signal::SIGSTOP);
    let text = stream.rest().await.text();
    assert!(text.contains("did not show life"), "{text}");
    assert_eq!(process.client().post_json(CHAT, &chat("m")).await.status, 200);
    assert_ne!(engine(&process).await, first);
    assert!(!is_running(first));
}

#[tokio::test]
async fn a_death_in_idleness_is_noticed_and_costs_nobody_anything() {
    let setup = model(Setup::new(), "m", "process", &script(0), "");
    let process = Process::start(&setup).await;
    let first = loaded(&process).await;
    signal(first, Signal::SIGKILL);
    eventually("its absence", async || (state(&process).await == "absent").then_some(())).await;
    assert!(process.children().is_empty());
    process.wait_for_output("SIGKILL").await;
    assert_eq!(process.client().post_json(CHAT, &chat("m")).await.status, 200);
}

#[tokio::test]
async fn no_process_outlives_its_model_or_its_gateway() {
    let setup = model(Setup::new(), "m", "process", &script(20), "");
    let process = Process::start(&setup).await;
    let operator = Client::new(process.addr()).key(ADMIN_KEY);
    let first = loaded(&process).await;
    assert_eq!(operator.post(&format!("{ADMIN}/m/unload"), "").await.status, 202);
    eventually("the end of the process", async || process.children().is_empty().then_some(())).await;
    assert!(!is_running(first));

    assert_eq!(process.client().post_json(CHAT, &chat("m")).await.status, 200);
    let second = engine(&process).await;
    // What a terminal or an init system sends to all processes is for the gateway to answer.
    for polite in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signal(second, polite);
    }
    assert_eq!(process.client().post_json(CHAT, &chat("m")).await.status, 200);
    assert_eq!(engine(&process).await, second);

    let mut stream = process.client().stream(CHAT, &count("m")).await;
    stream.next_event().await.unwrap().unwrap();
    process.kill().await;
    eventually("the end of the orphan", async || (!is_running(second)).then_some(())).await;
}

#[tokio::test]
async fn the_process_has_nothing_of_the_gateways_but_their_socket() {
    let setup = model(Setup::new(), "m", "process", &script(0), "");
    let process = Process::start(&setup).await;
    let pid = loaded(&process).await;
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open: BTreeSet<String> = entries
        .filter_map(|entry| Some(std::fs::read_link(entry.ok()?.path()).ok()?.to_string_lossy().into_owned()))
        .collect();
    // Pipes of whoever started the gateway may go through it; what the gateway itself has opened may not.
    let sockets = open.iter().filter(|target| target.starts_with("socket:")).count();
    let folder = setup.folder().to_string_lossy().into_owned();
    let others = open.iter().any(|target| target.contains(&folder) || target.starts_with("anon_inode"));
    assert!(sockets == 1 && !others, "{open:?}");
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    for wanted in ["GOMP_SPINCOUNT=0", "OMP_WAIT_POLICY=passive", "GGML_NO_BACKTRACE=1"] {
        assert!(environment.split('\0').any(|variable| variable == wanted), "{environment}");
    }
}
