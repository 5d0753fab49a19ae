//! The commands that ask a running gateway, as people and scripts use them: the real binary, a real gateway, tables and JSON.

use serde_json::{Value, json};
use std::process::Output;
use tollkeeper_tests::asks::{CHAT, chat};
use tollkeeper_tests::client::Client;
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::process::run;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::{Script, Upstream};

/// A model whose answers of ten tokens cost 0.00001 USD.
const FLAT: &str = "[prices.\"up/flat\"]\ninput = \"0\"\noutput = \"1\"\nabilities = [\"chat\"]\n";

/// A gateway, and a shell beside it.
struct Shell {
    gateway: Gateway,
    _upstream: Upstream,
}

impl Shell {
    async fn start() -> Self {
        let upstream = Upstream::always(Script::words(10)).await;
        let setup = Setup::with(&upstream).raw(FLAT).alias("team/auto", &["up/flat"]);
        Self { gateway: Gateway::start(setup).await, _upstream: upstream }
    }

    /// Runs `tollkeeper` with these arguments; those that ask a gateway ask this one.
    async fn output(&self, arguments: &[&str]) -> Output {
        let folder = self.gateway.setup().folder();
        let (file, url) = (folder.join("tollkeeper.toml"), format!("http://{}", self.gateway.addr()));
        let mut all = arguments.to_vec();
        all.extend(["-c", file.to_str().unwrap()]);
        if !["spend", "ledger"].contains(&arguments[0]) {
            all.extend(["--url", &url]);
        }
        run(folder, &all).await
    }

    /// What it says to people.
    async fn says(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says to programs.
    async fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        serde_json::from_str(&self.says(&all).await).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    /// The rows of a list, of which the table shows these fields too.
    async fn list(&self, arguments: &[&str], fields: &[&str]) -> Vec<Value> {
        let rows = self.json(arguments).await["data"].as_array().unwrap().clone();
        let table = self.says(arguments).await;
        let lines: Vec<&str> = table.lines().skip(1).collect();
        assert_eq!(lines.len(), rows.len(), "one line each under the titles:\n{table}");
        for (row, line) in rows.iter().zip(lines) {
            for field in fields {
                let value = row[field].as_str().map_or_else(|| row[field].to_string(), str::to_owned);
                assert!(line.contains(&value), "{field} {value} is not in the line\n{line}");
            }
        }
        rows
    }

    /// What it complains of; nothing else is said.
    async fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.output(arguments).await;
        assert_eq!((output.status.code(), &*output.stdout), (Some(code), &b""[..]), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// The status of a request with this key, and the code of its error.
    async fn asks(&self, key: &str) -> (u16, Value) {
        let mut ask = chat("team/auto");
        ask["max_tokens"] = json!(10);
        let answer = Client::new(self.gateway.addr()).key(key).post_json(CHAT, &ask).await;
        let code = if answer.status == 200 { Value::Null } else { answer.error()["code"].clone() };
        (answer.status, code)
    }
}

/// The secret in what was said.
fn secret(said: &str) -> String {
    let line = said.lines().find_map(|line| line.strip_prefix("key, shown this once: "));
    line.unwrap_or_else(|| panic!("no secret in\n{said}")).to_owned()
}

const OK: (u16, Value) = (200, Value::Null);

#[tokio::test]
async fn agents_and_their_keys() {
    let shell = Shell::start().await;
    let said = shell.says(&["agents", "create", "miner", "--team", "red", "--model", "team/*"]).await;
    assert!(said.starts_with("agent") && said.contains("miner") && said.contains("red"), "{said}");
    let first = secret(&said);
    assert_eq!(shell.asks(&first).await, OK);
    let agents = shell.list(&["agents"], &["name", "source", "priority"]).await;
    let names: Vec<_> = agents.iter().map(|agent| (&agent["name"], &agent["source"])).collect();
    assert_eq!(names, [(&json!("miner"), &json!("api")), (&json!("scout"), &json!("file"))]);
    assert!(!shell.says(&["agents", "show", "miner"]).await.contains(&first), "a secret is shown once");

    let changed = shell.json(&["agents", "change", "miner", "--parallel", "3", "--unset", "team"]).await;
    assert_eq!(
        (&changed["parallel"], &changed["team"], &changed["models"]),
        (&json!(3), &Value::Null, &json!(["team/*"]))
    );
    assert!(shell.says(&["agents", "disable", "miner"]).await.contains("disabled"));
    assert_eq!(shell.asks(&first).await, (401, json!("key_disabled")));
    shell.says(&["agents", "enable", "miner"]).await;
    assert_eq!(shell.asks(&first).await, OK);

    let keys = shell.list(&["keys", "miner"], &["id", "prefix", "status"]).await;
    let id = keys[0]["id"].as_str().unwrap();
    let made = shell.json(&["keys", "miner", "rotate", id, "--overlap", "1h"]).await;
    let second = made["key"].as_str().unwrap().to_owned();
    assert_eq!((&made["replaces"]["id"], shell.asks(&second).await, shell.asks(&first).await), (&json!(id), OK, OK));
    shell.says(&["keys", "miner", "disable", id]).await;
    assert_eq!(shell.asks(&first).await, (401, json!("key_disabled")));
    let runs_only = secret(&shell.says(&["keys", "miner", "create", "--scope", "runs", "--expires", "90d"]).await);
    assert_eq!(shell.asks(&runs_only).await, (403, json!("scope_missing")));
    assert!(shell.says(&["keys", "miner", "remove", id]).await.contains("is gone"));
    assert_eq!(shell.list(&["keys", "miner"], &["id", "status"]).await.len(), 2);

    assert_eq!(shell.json(&["agents", "remove", "miner"]).await, json!({"done": true}));
    assert_eq!(shell.asks(&second).await, (401, json!("invalid_api_key")));
    for (wrong, code, why) in [
        (&["agents", "show", "miner"][..], 1, "there is no agent `miner`"),
        (&["agents", "change", "scout", "--parallel", "1"], 1, "the configuration file defines"),
        (&["keys", "scout", "rotate", "key_x"], 1, "the configuration file defines"),
        (&["keys", "miner", "rotate"], 2, "required"),
        (&["agents", "fly"], 2, "unrecognized"),
    ] {
        let said = shell.refused(wrong, code).await;
        assert!(said.contains(why), "{wrong:?}: {said}");
    }
}

#[tokio::test]
async fn budgets() {
    let shell = Shell::start().await;
    let key = secret(&shell.says(&["agents", "create", "miner"]).await);
    assert_eq!(shell.asks(&key).await, OK);
    let create = ["budgets", "create", "--agent", "miner", "--window", "day", "--limit-usd", "0.00002"];
    let made = shell.json(&create).await;
    assert_eq!(
        (&made["spent"], &made["remaining"], &made["source"]),
        (&json!("0.00001"), &json!("0.00001"), &json!("api"))
    );
    assert_eq!(shell.asks(&key).await, OK);
    assert_eq!(shell.asks(&key).await, (402, json!("budget_exceeded")));
    let id = made["id"].as_str().unwrap();
    let everything = shell.json(&["budgets", "create", "--window", "month", "--limit-tokens", "1000000"]).await;
    let budgets = shell.list(&["budgets"], &["scope", "window", "measure", "limit", "remaining", "id"]).await;
    let scopes: Vec<_> = budgets.iter().map(|budget| &budget["scope"]).collect();
    assert_eq!(scopes, ["everything", "agent"]);
    let changed = shell.says(&["budgets", "change", id, "--limit-usd", "0.00003", "--on-limit", "degrade"]).await;
    assert!(changed.contains("0.00003") && changed.contains("degrade"), "{changed}");
    assert_eq!(shell.asks(&key).await, OK);
    assert!(shell.says(&["budgets", "remove", id]).await.contains("is gone"));
    assert_eq!(shell.json(&["budgets", "remove", everything["id"].as_str().unwrap()]).await, json!({"done": true}));
    assert_eq!(shell.list(&["budgets"], &[]).await, [] as [Value; 0]);
    for (wrong, why) in [
        (&["budgets", "create", "--agent", "nobody", "--window", "day", "--limit-usd", "1"][..], "nobody"),
        (&["budgets", "create", "--window", "fortnight", "--limit-usd", "1"], "`window` must be"),
        (&["budgets", "create", "--window", "day"], "a budget needs a limit"),
        (&["budgets", "remove", id], "there is no budget"),
    ] {
        let said = shell.refused(wrong, 1).await;
        assert!(said.contains(why), "{wrong:?}: {said}");
    }
}

#[tokio::test]
async fn runs() {
    let shell = Shell::start().await;
    let said = shell
        .says(&["runs", "create", "--agent", "scout", "--label", "fix tests", "--usd", "0.00001", "--wall", "30m"])
        .await;
    assert!(said.contains("fix tests") && said.contains("active"), "{said}");
    let key = secret(&said);
    assert_eq!(shell.asks(&key).await, OK);
    assert_eq!(shell.asks(&key).await, (402, json!("budget_exceeded")));
    let runs = shell.list(&["runs"], &["id", "agent", "label", "status"]).await;
    let id = runs[0]["id"].as_str().unwrap();
    assert_eq!((runs.len(), &runs[0]["spent"]["usd"]), (1, &json!("0.00001")));
    assert!(shell.says(&["runs", "show", id]).await.contains("0.00001/0.00001"));
    let more = shell.json(&["runs", "extend", id, "--usd", "0.00001"]).await;
    assert_eq!(more["limits"]["usd"], "0.00002");
    assert_eq!(shell.asks(&key).await, OK);
    let child = shell.json(&["runs", "create", "--agent", "scout", "--parent", id, "--calls", "1"]).await;
    assert_eq!((&child["parent"], child["key"].is_string()), (&json!(id), true));
    assert!(shell.says(&["runs", "cancel", id]).await.contains("cancelled"));
    for key in [&key, child["key"].as_str().unwrap()] {
        assert_eq!(shell.asks(key).await, (403, json!("run_cancelled")));
    }
    assert!(shell.refused(&["runs", "extend", id, "--usd", "1"], 1).await.contains("has ended"));
    assert!(shell.refused(&["runs", "show", "run_x"], 1).await.contains("there is no run `run_x`"));
}

#[tokio::test]
async fn pauses() {
    let shell = Shell::start().await;
    let key = secret(&shell.says(&["agents", "create", "miner", "--team", "red"]).await);
    let paused = (403, json!("paused"));
    let cases = [
        vec!["agent", "miner"],
        vec!["team:red"],
        vec!["model:up/flat"],
        vec!["provider", "up"],
        vec!["alias:team/auto"],
        vec!["everything"],
    ];
    for whom in cases {
        let with = |command: &'static str| [&[command], &whom[..]].concat();
        let said = shell.says(&[with("pause"), vec!["--reason", "looks odd"]].concat()).await;
        assert!(said.contains("looks odd"), "{said}");
        assert_eq!(shell.asks(&key).await, paused, "{whom:?}");
        let shown = shell.list(&["pause"], &["scope", "reason"]).await;
        assert_eq!((shown.len(), &shown[0]["reason"]), (1, &json!("looks odd")));
        let said = shell.says(&with("resume")).await;
        assert!(said.trim_end().ends_with("goes on"), "{said}");
        assert_eq!(shell.asks(&key).await, OK, "{whom:?}");
        assert_eq!(shell.json(&with("resume")).await["was_paused"], false);
    }
    for (wrong, why) in [
        (&["pause", "spaceship", "x"][..], "cannot be paused"),
        (&["pause", "model"], "name the model"),
        (&["pause", "model:"], "name the model"),
        (&["pause", "model:nobody/x"], "there is no model `nobody/x`"),
        (&["pause", "team", "blue"], "there is no team `blue`"),
        (&["resume"], "name who or what may go on"),
    ] {
        let said = shell.refused(wrong, 1).await;
        assert!(said.contains(why), "{wrong:?}: {said}");
    }
}

#[tokio::test]
async fn spend_and_the_ledger_are_read_beside_the_gateway() {
    let shell = Shell::start().await;
    let key = secret(&shell.says(&["agents", "create", "miner", "--team", "red"]).await);
    for key in [&key, &key, tollkeeper_tests::setup::KEY] {
        assert_eq!(shell.asks(key).await, OK);
    }
    shell.gateway.settled().await;
    // What was just settled is on record within milliseconds; a change waits for it.
    shell.says(&["pause", "agent", "scout"]).await;
    let spend = shell.json(&["spend"]).await;
    let row = |row: &Value| [&row["agent"], &row["backend"], &row["attempts"], &row["cost_usd"]].map(Value::clone);
    let rows: Vec<_> = spend["rows"].as_array().unwrap().iter().map(row).collect();
    let expected =
        |agent: &str, attempts: u64, usd: &str| [json!(agent), json!("up/flat"), json!(attempts), json!(usd)];
    assert_eq!(rows, [expected("miner", 2, "0.00002"), expected("scout", 1, "0.00001")]);
    assert_eq!(spend["total_usd"], "0.00003");
    let table = shell.says(&["spend", "--group", "team,model", "--since", "1h"]).await;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["team", "backend", "attempts", "unknown", "input", "output", "usd"]);
    assert!(
        lines.iter().any(|line| line[..3] == ["red", "up/flat", "2"] && line.last() == Some(&"0.00002")),
        "{table}"
    );
    assert_eq!(lines.last().unwrap()[..], ["total", "0.00003"], "{table}");
    assert!(shell.refused(&["spend", "--group", "moon"], 2).await.contains("group by"));

    let verified = shell.says(&["ledger", "verify"]).await;
    let figure = |name: &str| verified.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    assert_eq!((figure("settlements"), figure("open"), figure("cost usd")), (Some("3"), Some("0"), Some("0.00003")));
    let csv = shell.says(&["ledger", "export", "--agent", "miner"]).await;
    let lines = shell.says(&["ledger", "export", "--agent", "miner", "--format", "jsonl"]).await;
    let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(csv.lines().count(), rows.len() + 1, "the same rows under a header");
    assert!(rows.iter().all(|row| row["agent"] == "miner") && rows.len() >= 4, "{rows:?}");
}

#[tokio::test]
async fn a_plan_is_explained_and_a_trace_simulated() {
    let shell = Shell::start().await;
    let ask =
        ["route", "explain", "Why is the sky blue?", "--model", "team/auto", "--key", tollkeeper_tests::setup::KEY];
    let table = shell.says(&ask).await;
    assert!(table.contains("model team/auto, strategy ordered") && table.contains("ordered;rank=1"), "{table}");
    let plan = shell.json(&ask).await;
    assert_eq!((&plan["attempts"][0]["backend"], &plan["task_type"]), (&json!("up/flat"), &json!("chat")));
    let wished = [&ask[..], &["--wish", "max-cost-usd=0"]].concat();
    let table = shell.says(&wished).await;
    assert!(table.contains("not up/flat: it is expected to cost") && table.contains("refused: no backend"), "{table}");
    let request = shell.gateway.setup().folder().join("request.json");
    std::fs::write(&request, chat("team/auto").to_string()).unwrap();
    let from_file =
        ["route", "explain", "--request", request.to_str().unwrap(), "--key", tollkeeper_tests::setup::KEY, "--json"];
    let plan: Value = serde_json::from_str(&shell.says(&from_file).await).unwrap();
    assert_eq!(plan["model"], "team/auto");
    let bad = shell.refused(&["route", "explain", "x", "--key", "tk-nobody"], 1).await;
    assert!(bad.contains("key"), "{bad}");

    let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/routing"));
    let (trace, fleet) = (folder.join("prefix.csv"), folder.join("fleet.csv"));
    let files = ["--trace", trace.to_str().unwrap(), "--fleet", fleet.to_str().unwrap(), "--runs", "1"];
    let output = run(folder, &[&["route", "simulate"][..], &files].concat()).await;
    let said = String::from_utf8_lossy(&output.stdout);
    for who in ["static order", "random of two", "fastest", "cheapest", "balanced", "oracle, time"] {
        assert!(said.lines().any(|line| line.starts_with(who)), "{who} is missing in\n{said}");
    }
    let output = run(folder, &["route", "simulate", "--trace", "fleet.csv", "--fleet", "fleet.csv"]).await;
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn a_gateway_that_is_not_there_or_not_ours_is_named() {
    let shell = Shell::start().await;
    let folder = shell.gateway.setup().folder();
    let nobody = format!("http://{}", Upstream::refusing().await);
    for command in ["agents", "budgets", "runs", "pause"] {
        let output = run(folder, &[command, "--url", &nobody, "-c", "tollkeeper.toml"]).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), said.contains("no gateway answers at")),
            (Some(1), true),
            "{command}: {said}"
        );
    }
    let wrong =
        std::fs::read_to_string(folder.join("tollkeeper.toml")).unwrap().replace("tk-admin-key", "tk-other-key");
    std::fs::write(folder.join("other.toml"), wrong).unwrap();
    let url = format!("http://{}", shell.gateway.addr());
    let output = run(folder, &["agents", "--url", &url, "-c", "other.toml"]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.contains("operator's key")), (Some(1), true), "{said}");
}
