//! `tollkeeper budgets`, `runs`, `pause` and `resume`: what a running gateway allows, and stopping it.

use super::agents::{print, said, seconds, without};
use super::say;
use super::table::{Column, rows, shown, table, time};
use super::talk::{At, in_path};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

const BUDGETS: &str = "/admin/v1/budgets";
const RUNS: &str = "/admin/v1/runs";

/// Arguments of `budgets`.
#[derive(Debug, Args)]
pub(super) struct Budgets {
    #[command(flatten)]
    at: At,
    #[command(subcommand)]
    command: Option<BudgetsCommand>,
}

#[derive(Debug, Subcommand)]
enum BudgetsCommand {
    /// All budgets as they stand, of the file and made at run time (the default)
    List,
    /// Make one; what was spent in its window counts
    Create(Rule),
    /// Change one that was made at run time; what is not named stays
    Change {
        id: String,
        #[command(flatten)]
        rule: Rule,
        /// Take a setting away, such as `limit-usd`
        #[arg(long, value_name = "SETTING")]
        unset: Vec<String>,
    },
    /// Take one away that was made at run time
    Remove { id: String },
}

/// A budget, of everything unless one of the first five is named.
#[derive(Debug, Args)]
struct Rule {
    /// The agent whose spending it caps
    #[arg(long)]
    agent: Option<String>,
    /// The team
    #[arg(long)]
    team: Option<String>,
    /// The alias
    #[arg(long)]
    alias: Option<String>,
    /// The model
    #[arg(long)]
    model: Option<String>,
    /// The provider
    #[arg(long)]
    provider: Option<String>,
    /// `minute`, `hour`, `day`, `week`, `month`, `total`, or `"rolling 24h"`
    #[arg(long)]
    window: Option<String>,
    /// Where calendar windows begin and end; UTC unless said
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// The cap in USD; or one of the next two
    #[arg(long, value_name = "USD")]
    limit_usd: Option<String>,
    /// The cap in tokens
    #[arg(long, value_name = "N")]
    limit_tokens: Option<u64>,
    /// The cap in requests
    #[arg(long, value_name = "N")]
    limit_requests: Option<u64>,
    /// Percentages of the cap that are worth a notice
    #[arg(long, value_name = "PERCENT", value_delimiter = ',')]
    notify_at: Vec<u8>,
    /// `deny`, `degrade` or `ask`
    #[arg(long, value_name = "POLICY")]
    on_limit: Option<String>,
    /// Percentage of the cap that only a final answer without tools may use
    #[arg(long, value_name = "PERCENT")]
    wrap_up_pct: Option<u8>,
    /// While the store that gateways share their budgets in cannot be reached: `deny`, or `local`
    #[arg(long, value_name = "POLICY")]
    on_shared_down: Option<String>,
}

impl Rule {
    fn body(self) -> Value {
        let notify_at = (!self.notify_at.is_empty()).then_some(self.notify_at);
        said([
            ("agent", json!(self.agent)),
            ("team", json!(self.team)),
            ("alias", json!(self.alias)),
            ("model", json!(self.model)),
            ("provider", json!(self.provider)),
            ("window", json!(self.window)),
            ("time_zone", json!(self.time_zone)),
            ("limit_usd", json!(self.limit_usd)),
            ("limit_tokens", json!(self.limit_tokens)),
            ("limit_requests", json!(self.limit_requests)),
            ("notify_at", json!(notify_at)),
            ("on_limit", json!(self.on_limit)),
            ("wrap_up_pct", json!(self.wrap_up_pct)),
            ("on_shared_down", json!(self.on_shared_down)),
        ])
    }
}

impl Budgets {
    pub(super) fn run(self) -> Result<(), String> {
        let gateway = self.at.gateway()?;
        let path = |id: &str| format!("{BUDGETS}/{}", in_path(id));
        let budget = match self.command.unwrap_or(BudgetsCommand::List) {
            BudgetsCommand::List => {
                let all = gateway.ask(&Method::GET, BUDGETS, None)?;
                return print(self.at.json, &all, |all| budgets_table(rows(all)));
            }
            BudgetsCommand::Create(rule) => gateway.ask(&Method::POST, BUDGETS, Some(&rule.body()))?,
            BudgetsCommand::Change { id, rule, unset } => {
                gateway.ask(&Method::PATCH, &path(&id), Some(&without(rule.body(), &unset)))?
            }
            BudgetsCommand::Remove { id } => {
                let done = gateway.ask(&Method::DELETE, &path(&id), None)?;
                return print(self.at.json, &done, |_| say(&format!("budget {id} is gone")));
            }
        };
        print(self.at.json, &budget, |budget| budgets_table(std::slice::from_ref(budget)))
    }
}

fn budgets_table(budgets: &[Value]) {
    let columns = [
        Column("scope", |budget| shown(&budget["scope"])),
        Column("owner", |budget| if budget["scope"] == "everything" { String::new() } else { shown(&budget["owner"]) }),
        Column("window", |budget| shown(&budget["window"])),
        Column("measure", |budget| shown(&budget["measure"])),
        Column("limit", |budget| shown(&budget["limit"])),
        Column("spent", |budget| shown(&budget["spent"])),
        Column("reserved", |budget| shown(&budget["reserved"])),
        Column("remaining", |budget| shown(&budget["remaining"])),
        Column("resets", |budget| time(&budget["resets_at"])),
        Column("at the limit", |budget| shown(&budget["on_limit"])),
        Column(
            "from",
            |budget| if budget["shadowed"] == true { "api, shadowed".to_owned() } else { shown(&budget["source"]) },
        ),
        Column("id", |budget| shown(&budget["id"])),
    ];
    table(&columns, budgets);
}

/// Arguments of `runs`.
#[derive(Debug, Args)]
pub(super) struct Runs {
    #[command(flatten)]
    at: At,
    #[command(subcommand)]
    command: Option<RunsCommand>,
}

#[derive(Debug, Subcommand)]
enum RunsCommand {
    /// Runs that are open or ended within a day, the newest first (the default)
    List,
    /// One of them
    Show { id: String },
    /// Make one; its key is shown this once
    Create {
        /// Whose it is
        #[arg(long)]
        agent: String,
        /// The run above it
        #[arg(long, value_name = "RUN")]
        parent: Option<String>,
        /// For people
        #[arg(long)]
        label: Option<String>,
        #[command(flatten)]
        limits: Limits,
        /// `deny`, `degrade` or `ask`
        #[arg(long, value_name = "POLICY")]
        on_limit: Option<String>,
        /// Only local models may answer
        #[arg(long)]
        local_only: bool,
        /// Percentage of the limits that only a final answer without tools may use
        #[arg(long, value_name = "PERCENT", default_value_t = 0)]
        wrap_up_pct: u8,
    },
    /// Add to its limits
    Extend {
        id: String,
        #[command(flatten)]
        limits: Limits,
    },
    /// End it and all below it at once
    Cancel { id: String },
}

#[derive(Debug, Args)]
struct Limits {
    /// Money
    #[arg(long)]
    usd: Option<String>,
    /// Tokens of prompts and answers together
    #[arg(long)]
    tokens: Option<u64>,
    /// Attempts
    #[arg(long)]
    calls: Option<u64>,
    /// Time from its creation, such as 30m
    #[arg(long, value_name = "DURATION")]
    wall: Option<String>,
}

impl Limits {
    fn body(self) -> Result<Value, String> {
        let wall = self.wall.as_deref().map(seconds).transpose()?;
        Ok(said([
            ("usd", json!(self.usd)),
            ("tokens", json!(self.tokens)),
            ("calls", json!(self.calls)),
            ("wall_s", json!(wall)),
        ]))
    }
}

impl Runs {
    pub(super) fn run(self) -> Result<(), String> {
        let gateway = self.at.gateway()?;
        let path = |id: &str| format!("{RUNS}/{}", in_path(id));
        let run = match self.command.unwrap_or(RunsCommand::List) {
            RunsCommand::List => {
                let all = gateway.ask(&Method::GET, RUNS, None)?;
                return print(self.at.json, &all, |all| runs_table(rows(all)));
            }
            RunsCommand::Show { id } => gateway.ask(&Method::GET, &path(&id), None)?,
            RunsCommand::Create { agent, parent, label, limits, on_limit, local_only, wrap_up_pct } => {
                let mut body = said([("parent", json!(parent)), ("label", json!(label))]);
                body["agent"] = agent.into();
                body["limits"] = limits.body()?;
                body["policy"] = json!({"local_only": local_only, "wrap_up_pct": wrap_up_pct, "on_limit": on_limit});
                gateway.ask(&Method::POST, RUNS, Some(&body))?
            }
            RunsCommand::Extend { id, limits } => {
                gateway.ask(&Method::POST, &format!("{}/extend", path(&id)), Some(&limits.body()?))?
            }
            RunsCommand::Cancel { id } => gateway.ask(&Method::POST, &format!("{}/cancel", path(&id)), None)?,
        };
        print(self.at.json, &run, |run| {
            runs_table(std::slice::from_ref(run));
            if let Some(key) = run["key"].as_str() {
                say(&format!("key, shown this once: {key}"));
            }
        })
    }
}

fn runs_table(runs: &[Value]) {
    let columns = [
        Column("run", |run| shown(&run["id"])),
        Column("agent", |run| shown(&run["agent"])),
        Column("label", |run| shown(&run["label"])),
        Column("status", |run| shown(&run["status"])),
        Column("usd", |run| of(&run["spent"]["usd"], &run["limits"]["usd"])),
        Column("tokens", |run| of(&run["spent"]["tokens"], &run["limits"]["tokens"])),
        Column("calls", |run| of(&run["spent"]["calls"], &run["limits"]["calls"])),
        Column("created", |run| time(&run["created_at"])),
        Column("ends", |run| time(if run["ended_at"].is_null() { &run["ends_at"] } else { &run["ended_at"] })),
        Column("below", |run| shown(&run["parent"])),
    ];
    table(&columns, runs);
}

/// What was spent of a limit.
fn of(spent: &Value, limit: &Value) -> String {
    if limit.is_null() { shown(spent) } else { format!("{}/{}", shown(spent), shown(limit)) }
}

/// What can be paused, and where.
const PAUSABLE: [(&str, &str); 6] = [
    ("agent", "agents"),
    ("team", "teams"),
    ("run", "runs"),
    ("alias", "aliases"),
    ("model", "models"),
    ("provider", "providers"),
];

/// Somebody, or something: `agent miner`, or `agent:miner` in one word; or `everything`.
#[derive(Debug, Args)]
struct Whom {
    /// agent, team, run, alias, model, provider, or everything; `model:NAME` names it in one word
    what: Option<String>,
    /// Its name
    name: Option<String>,
}

impl Whom {
    /// The path that stands for it; `None` when nobody is named.
    fn path(self) -> Result<Option<String>, String> {
        let Some(what) = self.what else { return Ok(None) };
        let (what, name) = match (what.split_once(':'), self.name) {
            (Some((what, name)), None) => (what.to_owned(), Some(name.to_owned())),
            (_, name) => (what, name),
        };
        if what == "everything" && name.is_none() {
            return Ok(Some("/admin/v1".to_owned()));
        }
        let kinds = || PAUSABLE.map(|(kind, _)| kind).join(", ");
        let known = PAUSABLE.iter().find(|(kind, _)| *kind == what);
        let (_, folder) =
            known.ok_or_else(|| format!("`{what}` cannot be paused; name one of {}, or everything", kinds()))?;
        let name =
            name.filter(|name| !name.is_empty()).ok_or_else(|| format!("name the {what}, such as {what}:NAME"))?;
        Ok(Some(format!("/admin/v1/{folder}/{}", in_path(&name))))
    }
}

/// Arguments of `pause`.
#[derive(Debug, Args)]
pub(super) struct Pause {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    whom: Whom,
    /// Why, for whoever is refused
    #[arg(long)]
    reason: Option<String>,
}

impl Pause {
    pub(super) fn run(self) -> Result<(), String> {
        let gateway = self.at.gateway()?;
        let Some(path) = self.whom.path()? else {
            let all = gateway.ask(&Method::GET, "/admin/v1/pauses", None)?;
            return print(self.at.json, &all, |all| pauses_table(rows(all)));
        };
        let body = said([("reason", json!(self.reason))]);
        let paused = gateway.ask(&Method::POST, &format!("{path}/pause"), Some(&body))?;
        print(self.at.json, &paused, |paused| pauses_table(std::slice::from_ref(paused)))
    }
}

fn pauses_table(pauses: &[Value]) {
    let columns = [
        Column("paused", |pause| shown(&pause["scope"])),
        Column("name", |pause| if pause["scope"] == pause["owner"] { String::new() } else { shown(&pause["owner"]) }),
        Column("reason", |pause| shown(&pause["reason"])),
    ];
    table(&columns, pauses);
}

/// Arguments of `resume`.
#[derive(Debug, Args)]
pub(super) struct Resume {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    whom: Whom,
}

impl Resume {
    pub(super) fn run(self) -> Result<(), String> {
        let gateway = self.at.gateway()?;
        let path = self.whom.path()?.ok_or("name who or what may go on; `tollkeeper pause` lists the pauses")?;
        let resumed = gateway.ask(&Method::POST, &format!("{path}/resume"), None)?;
        print(self.at.json, &resumed, |resumed| {
            let before = if resumed["was_paused"] == true { "goes on" } else { "was not paused" };
            let (scope, owner) = (shown(&resumed["scope"]), shown(&resumed["owner"]));
            let whom = if scope == owner { scope } else { format!("{scope} {owner}") };
            say(&format!("{whom} {before}"));
        })
    }
}
