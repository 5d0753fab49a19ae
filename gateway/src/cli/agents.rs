//! `tollkeeper agents` and `tollkeeper keys`: who may use a running gateway, and what they open it with.

use super::say;
use super::table::{Column, rows, shown, table, time};
use super::talk::{At, Gateway, in_path};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Map, Value, json};
use tollkeeper_config::units::parse_duration;

const AGENTS: &str = "/admin/v1/agents";

/// Arguments of `agents`.
#[derive(Debug, Args)]
pub(super) struct Agents {
    #[command(flatten)]
    at: At,
    #[command(subcommand)]
    command: Option<AgentsCommand>,
}

#[derive(Debug, Subcommand)]
enum AgentsCommand {
    /// All agents, of the file and made at run time (the default)
    List,
    /// Everything about one
    Show { name: String },
    /// Make one, and its first key, whose secret is shown this once
    Create {
        name: String,
        #[command(flatten)]
        spec: Spec,
        /// No key yet
        #[arg(long)]
        no_key: bool,
    },
    /// Change one that was made at run time; what is not named stays
    Change {
        name: String,
        #[command(flatten)]
        spec: Spec,
        /// Take a setting away, such as `team`
        #[arg(long, value_name = "SETTING")]
        unset: Vec<String>,
    },
    /// Refuse all its keys
    Disable { name: String },
    /// Take its keys again
    Enable { name: String },
    /// Take one away that was made at run time, with its keys, budgets and pause
    Remove { name: String },
}

/// What an agent may do.
#[derive(Debug, Args)]
struct Spec {
    /// The team that it belongs to
    #[arg(long)]
    team: Option<String>,
    /// Aliases and models it may name; `*` stands for any run of characters; may come several times
    #[arg(long = "model", value_name = "PATTERN")]
    models: Vec<String>,
    /// `interactive` or `batch`
    #[arg(long)]
    priority: Option<String>,
    /// The most that one request may cost, all attempts together
    #[arg(long, value_name = "USD")]
    max_request_usd: Option<String>,
    /// Requests a minute
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u32>,
    /// Tokens a minute, input and output together
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<u32>,
    /// Requests that run at once
    #[arg(long, value_name = "N")]
    parallel: Option<u32>,
    /// Requests of each priority that may wait for that
    #[arg(long, value_name = "N")]
    queue: Option<u32>,
    /// The alias to fall back on when a budget sends its requests to cheaper targets
    #[arg(long, value_name = "ALIAS")]
    degrade_to: Option<String>,
    /// The type of its tasks where a request does not say one
    #[arg(long, value_name = "TYPE")]
    task_type: Option<String>,
}

impl Spec {
    fn body(self) -> Value {
        let models = (!self.models.is_empty()).then_some(self.models);
        said([
            ("team", json!(self.team)),
            ("models", json!(models)),
            ("priority", json!(self.priority)),
            ("max_request_usd", json!(self.max_request_usd)),
            ("requests_per_minute", json!(self.requests_per_minute)),
            ("tokens_per_minute", json!(self.tokens_per_minute)),
            ("parallel", json!(self.parallel)),
            ("queue", json!(self.queue)),
            ("degrade_to", json!(self.degrade_to)),
            ("task_type", json!(self.task_type)),
        ])
    }
}

/// What was said, as an object without the rest.
pub(super) fn said<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let said = fields.into_iter().filter(|(_, value)| !value.is_null());
    said.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>().into()
}

/// The same with these taken away.
pub(super) fn without(mut change: Value, names: &[String]) -> Value {
    for name in names {
        change[name.replace('-', "_")] = Value::Null;
    }
    change
}

impl Agents {
    pub(super) fn run(self) -> Result<(), String> {
        let gateway = self.at.gateway()?;
        let path = |name: &str| format!("{AGENTS}/{}", in_path(name));
        let patch = |name: &str, change: Value| gateway.ask(&Method::PATCH, &path(name), Some(&change));
        let agent = match self.command.unwrap_or(AgentsCommand::List) {
            AgentsCommand::List => {
                let all = gateway.ask(&Method::GET, AGENTS, None)?;
                return print(self.at.json, &all, |all| agents_table(rows(all)));
            }
            AgentsCommand::Show { name } => gateway.ask(&Method::GET, &path(&name), None)?,
            AgentsCommand::Create { name, spec, no_key } => {
                let mut body = spec.body();
                body["name"] = name.as_str().into();
                let made = gateway.ask(&Method::POST, AGENTS, Some(&body))?;
                if no_key {
                    made
                } else {
                    let key = gateway.ask(&Method::POST, &format!("{}/keys", path(&name)), None)?;
                    let mut agent = gateway.ask(&Method::GET, &path(&name), None)?;
                    agent["key"] = key["key"].clone();
                    agent
                }
            }
            AgentsCommand::Change { name, spec, unset } => patch(&name, without(spec.body(), &unset))?,
            AgentsCommand::Disable { name } => patch(&name, json!({"disabled": true}))?,
            AgentsCommand::Enable { name } => patch(&name, json!({"disabled": false}))?,
            AgentsCommand::Remove { name } => {
                let done = gateway.ask(&Method::DELETE, &path(&name), None)?;
                return print(self.at.json, &done, |_| say(&format!("agent {name} is gone")));
            }
        };
        print(self.at.json, &agent, |agent| {
            agents_table(std::slice::from_ref(agent));
            for note in [&agent["note"], &agent["paused"]] {
                if let Some(note) = note.as_str() {
                    say(&format!("    {note}"));
                }
            }
            if let Some(key) = agent["key"].as_str() {
                say(&format!("key, shown this once: {key}"));
            }
        })
    }
}

/// As JSON, or by a table.
pub(super) fn print(json: bool, answer: &Value, people: impl FnOnce(&Value)) -> Result<(), String> {
    if json {
        say(&answer.to_string())
    } else {
        people(answer)
    }
    Ok(())
}

fn agents_table(agents: &[Value]) {
    let columns = [
        Column("agent", |agent| shown(&agent["name"])),
        Column("from", |agent| shown(&agent["source"])),
        Column("team", |agent| shown(&agent["team"])),
        Column("state", |agent| {
            let states =
                [("shadowed", &agent["shadowed"]), ("disabled", &agent["disabled"]), ("paused", &agent["paused"])];
            let held = states.iter().find(|(_, value)| !matches!(value, Value::Null | Value::Bool(false)));
            held.map_or("active", |(name, _)| name).to_owned()
        }),
        Column("priority", |agent| shown(&agent["priority"])),
        Column("req/min", |agent| shown(&agent["requests_per_minute"])),
        Column("tok/min", |agent| shown(&agent["tokens_per_minute"])),
        Column("parallel", |agent| shown(&agent["parallel"])),
        Column("keys", |agent| agent["keys"].as_array().map_or(0, Vec::len).to_string()),
        Column("models", |agent| shown(&agent["models"])),
    ];
    table(&columns, agents);
}

/// Arguments of `keys`.
#[derive(Debug, Args)]
pub(super) struct Keys {
    #[command(flatten)]
    at: At,
    /// Whose keys
    agent: String,
    #[command(subcommand)]
    command: Option<KeysCommand>,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// All its keys (the default)
    List,
    /// Make one; its secret is shown this once
    Create {
        /// What it is good for: `infer`, `runs`; without it both
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
        /// When it expires: after a duration (12h, 90d) or at a time (2027-01-01T00:00:00Z)
        #[arg(long, value_name = "WHEN")]
        expires: Option<String>,
    },
    /// Make one in the place of another, and let the old one expire
    Rotate {
        id: String,
        /// How long both work
        #[arg(long, value_name = "DURATION", default_value = "1d")]
        overlap: String,
        /// When the new one expires
        #[arg(long, value_name = "WHEN")]
        expires: Option<String>,
    },
    /// Let one expire: after a duration, at a time, or `never`
    Expire { id: String, when: String },
    /// Refuse one
    Disable { id: String },
    /// Take one again
    Enable { id: String },
    /// Take one away
    Remove { id: String },
}

impl Keys {
    pub(super) fn run(self) -> Result<(), String> {
        let gateway: Gateway = self.at.gateway()?;
        let all = format!("{AGENTS}/{}/keys", in_path(&self.agent));
        let path = |id: &str| format!("{all}/{}", in_path(id));
        let patch = |id: &str, change: Value| gateway.ask(&Method::PATCH, &path(id), Some(&change));
        let key = match self.command.unwrap_or(KeysCommand::List) {
            KeysCommand::List => {
                let keys = gateway.ask(&Method::GET, &all, None)?;
                return print(self.at.json, &keys, |keys| keys_table(rows(keys)));
            }
            KeysCommand::Create { scopes, expires } => {
                let mut body = end(expires.as_deref())?;
                if !scopes.is_empty() {
                    body["scopes"] = json!(scopes);
                }
                gateway.ask(&Method::POST, &all, Some(&body))?
            }
            KeysCommand::Rotate { id, overlap, expires } => {
                let mut body = end(expires.as_deref())?;
                body["overlap_s"] = seconds(&overlap)?.into();
                gateway.ask(&Method::POST, &format!("{}/rotate", path(&id)), Some(&body))?
            }
            KeysCommand::Expire { id, when } => patch(&id, end(Some(&when))?)?,
            KeysCommand::Disable { id } => patch(&id, json!({"disabled": true}))?,
            KeysCommand::Enable { id } => patch(&id, json!({"disabled": false}))?,
            KeysCommand::Remove { id } => {
                let done = gateway.ask(&Method::DELETE, &path(&id), None)?;
                return print(self.at.json, &done, |_| say(&format!("key {id} is gone")));
            }
        };
        print(self.at.json, &key, |key| {
            let both: Vec<Value> = [key, &key["replaces"]].into_iter().filter(|key| key.is_object()).cloned().collect();
            keys_table(&both);
            if let Some(secret) = key["key"].as_str() {
                say(&format!("key, shown this once: {secret}"));
            }
        })
    }
}

fn keys_table(keys: &[Value]) {
    let columns = [
        Column("key", |key| shown(&key["id"])),
        Column("begins", |key| format!("{}…", shown(&key["prefix"]))),
        Column("status", |key| shown(&key["status"])),
        Column("scopes", |key| shown(&key["scopes"])),
        Column("created", |key| time(&key["created_at"])),
        Column(
            "expires",
            |key| if key["expires_at"].is_null() { "never".to_owned() } else { time(&key["expires_at"]) },
        ),
    ];
    table(&columns, keys);
}

/// The end of a key as its API takes it.
fn end(when: Option<&str>) -> Result<Value, String> {
    match when {
        None => Ok(json!({})),
        Some(text) => match parse_duration(text) {
            Some(after) => Ok(json!({"expires_in_s": after.as_secs()})),
            None => Ok(json!({"expires_at": text})),
        },
    }
}

pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let parsed = parse_duration(text).map(|duration| duration.as_secs());
    parsed.ok_or_else(|| format!("`{text}` is no duration such as 90s, 30m, 12h or 7d"))
}
