//! `tollkeeper route explain`: the plan that a request would get of the running gateway, and why.

use crate::cli::agents::print;
use crate::cli::say;
use crate::cli::table::{Column, shown, table};
use crate::cli::talk::At;
use clap::Args;
use http::Method;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tollkeeper_config::environment;

const PATH: &str = "/v1/route/explain";

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(in crate::cli) struct Explain {
    #[command(flatten)]
    at: At,
    /// The user's message; or a whole request by the next
    #[arg(required_unless_present = "request", conflicts_with = "request")]
    prompt: Option<String>,
    /// A chat completion request as JSON; `-` is standard input
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// Instead of the request's model; without both, `auto`
    #[arg(long)]
    model: Option<String>,
    /// What it wants of its routing, as a header would say it without `x-tollkeeper-`: `strategy=fastest`, `deadline-ms=5000`, `max-cost-usd=0.01`
    #[arg(long, value_name = "NAME=VALUE", value_parser = wish)]
    wish: Vec<(String, String)>,
    /// The key of the agent that would ask: "env:NAME", "file:PATH" or the key itself
    #[arg(long, value_name = "KEY", default_value = "env:TOLLKEEPER_KEY")]
    key: String,
}

fn wish(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE, such as strategy=fastest")?;
    Ok((format!("x-tollkeeper-{}", name.trim_start_matches("x-tollkeeper-")), value.to_owned()))
}

impl Explain {
    pub(in crate::cli) fn run(self) -> Result<(), String> {
        let key = environment::secret(&self.key).map_err(|why| format!("--key: {why}"))?;
        let gateway = self.at.asking_with(key)?;
        let plan = gateway.ask(&Method::POST, PATH, Some(&self.body()?))?;
        print(self.at.json, &plan, show)
    }

    fn body(&self) -> Result<Value, String> {
        let mut body = match &self.request {
            Some(path) => read(path)?,
            None => json!({"messages": [{"role": "user", "content": self.prompt}]}),
        };
        let wrong = || "the request is no JSON object".to_owned();
        let fields = body.as_object_mut().ok_or_else(wrong)?;
        if let Some(model) = &self.model {
            fields.insert("model".to_owned(), json!(model));
        }
        fields.entry("model").or_insert_with(|| json!("auto"));
        if !self.wish.is_empty() {
            let metadata = fields.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
            let metadata = metadata.as_object_mut().ok_or("the request's `metadata` is no JSON object")?;
            metadata.extend(self.wish.iter().map(|(name, value)| (name.clone(), json!(value))));
        }
        Ok(body)
    }
}

fn read(path: &Path) -> Result<Value, String> {
    let text = match path.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(path),
    };
    let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn show(plan: &Value) {
    let facts = ["model", "strategy", "task_type", "difficulty", "start_tier", "input_tokens"];
    let facts = facts.map(|name| (name.replace('_', " "), shown(&plan[name])));
    let facts = facts.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| format!("{name} {value}"));
    say(&facts.collect::<Vec<_>>().join(", "));
    let rows = |name: &str| plan[name].as_array().cloned().unwrap_or_default();
    let attempts = rows("attempts");
    if !attempts.is_empty() {
        let columns = [
            Column("backend", |row| shown(&row["backend"])),
            Column("tier", |row| shown(&row["tier"])),
            Column("expected USD", |row| shown(&row["expected_usd"])),
            Column("p50", |row| shown(&row["p50_usd"])),
            Column("p95", |row| shown(&row["p95_usd"])),
            Column("worst", |row| shown(&row["worst_usd"])),
            Column("TTFT ms", |row| shown(&row["ttft_ms"])),
            Column("whole ms", |row| shown(&row["duration_ms"])),
            Column("cached", |row| shown(&row["cached_tokens"])),
            Column("loaded", |row| shown(&row["loaded"])),
            Column("why", |row| shown(&row["why"])),
        ];
        table(&columns, &attempts);
    }
    for rejected in rows("rejected") {
        say(&format!("not {}: it {}", shown(&rejected["backend"]), shown(&rejected["reason"])));
    }
    if let Some(refused) = plan["refused"].as_str() {
        say(&format!("refused: {refused}"));
    }
}
