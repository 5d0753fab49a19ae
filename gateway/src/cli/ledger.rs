//! `tollkeeper ledger`: proves the ledger from its rows alone, hands them to other programs, and looks after its store.

use super::against::{self, Comparison, compare};
use super::place::LedgerArg;
use super::spend::moment;
use super::talk::Gateway;
use super::{complain, say};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::io::{BufWriter, ErrorKind, Write};
use tollkeeper_policies::Place;
use tollkeeper_policies::report::{
    AgentTotals, ExportError, ExportFilter, Format, VerifyReport, compact, export, ledgers, migrate, verify,
};

#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    /// Prove that the ledger is whole: hashes chain, every intent has its end, every cost follows from tokens and
    /// prices, the double entry balances, and counters would be restored to the sums of the rows; with `--against`, also
    /// that the counters of the running gateway are those sums
    Verify(Verify),
    /// Write the rows to standard output; on standard error, how many and the hash of the last
    Export(Export),
    /// Replace old attempts by sums of each day that count the same; refused while a gateway uses the ledger
    Compact(Compact),
    /// Bring the store's tables to another version, up or down; refused while a gateway uses them
    Migrate(Migrate),
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    ledger: LedgerArg,
    /// Lay the budgets of the running gateway beside its ledger, too; exit code 1 when one differs. The gateway's URL, or else
    /// `TOLLKEEPER_URL` or the address in the configuration; the operator's key is `TOLLKEEPER_ADMIN_KEY` or the configuration's
    #[arg(long, value_name = "URL")]
    against: Option<Option<String>>,
    /// JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// Arguments of `migrate`.
#[derive(Debug, Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    ledger: LedgerArg,
    /// The version; 0 leaves nothing. Without it the newest
    #[arg(long, value_name = "VERSION")]
    to: Option<i64>,
    /// Go down even if that loses rows, agents, keys, budgets, runs or pauses
    #[arg(long)]
    discard: bool,
}

/// Arguments of `compact`.
#[derive(Debug, Args)]
pub(super) struct Compact {
    #[command(flatten)]
    ledger: LedgerArg,
    /// Replace the days before this one (UTC); at least 33 days ago
    #[arg(long, value_name = "TIME", value_parser = moment)]
    before: Timestamp,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    ledger: LedgerArg,
    /// What to write
    #[arg(long, value_enum, default_value = "csv")]
    format: FormatArg,
    /// Only rows of this agent
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Only attempts admitted since then: a date (2026-11-21, UTC), a time (2026-11-21T08:00:00Z) or an age (90m, 24h, 7d)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only attempts admitted before then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// Only rows that `compact --before` would remove, to keep them elsewhere
    #[arg(long, value_name = "TIME", value_parser = moment)]
    before: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArg {
    /// RFC 4180, with a header
    Csv,
    /// One JSON object a line
    Jsonl,
}

impl LedgerCommand {
    pub(super) fn run(self) -> Result<(), String> {
        match self {
            Self::Verify(command) => command.run(),
            Self::Export(command) => command.run(),
            Self::Compact(command) => command.run(),
            Self::Migrate(command) => command.run(),
        }
    }
}

impl Compact {
    fn run(self) -> Result<(), String> {
        let place = self.ledger.to_change()?;
        let done = compact(place, self.before, Timestamp::now()).map_err(|error| error.to_string())?;
        say(&format!("{} rows replaced by {}, head {}", done.removed, done.summaries, done.head));
        Ok(())
    }
}

impl Migrate {
    fn run(self) -> Result<(), String> {
        let done = migrate(self.ledger.to_read()?, self.to, self.discard).map_err(|error| error.to_string())?;
        let lost = done.lost;
        say(&format!(
            "version {} is now {}, {} rows and {} kept things lost",
            done.from, done.to, lost.rows, lost.kept
        ));
        Ok(())
    }
}

impl Export {
    fn run(self) -> Result<(), String> {
        let place = self.ledger.to_read()?;
        let filter =
            ExportFilter { agent: self.agent, since: self.since, until: self.until, removable_before: self.before };
        let format = match self.format {
            FormatArg::Csv => Format::Csv,
            FormatArg::Jsonl => Format::JsonLines,
        };
        let mut out = BufWriter::new(std::io::stdout().lock());
        let exported = export(place, &filter, format, &mut out);
        let exported = match exported.and_then(|exported| Ok((exported, out.flush()?).0)) {
            Ok(exported) => exported,
            // A reader that left (`| head`) has what it wanted.
            Err(ExportError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        for (gateway, rows, head) in &exported.gateways {
            complain(&format!("{gateway}: {rows} rows, head {head}"));
        }
        if exported.gateways.is_empty() {
            complain(&format!("{} rows, head {}", exported.rows, exported.head));
        }
        Ok(())
    }
}

impl Verify {
    /// Checks every ledger that is asked for, and says what it holds.
    ///
    /// # Errors
    /// Of those that are not good: the first row that is wrong, and what of it. Counters are not the ledger's sums.
    fn run(self) -> Result<(), String> {
        let places = match self.against {
            None => ledgers(self.ledger.to_read()?).map_err(|error| error.to_string())?,
            Some(_) => vec![self.ledger.to_change()?],
        };
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for place in &places {
            match verify(place.clone()) {
                Ok(report) if self.json => good.push(json(place, &report)),
                Ok(report) => people(place, &report),
                Err(why) if place.gateway().is_some() => bad.push(format!("{place}: {why}")),
                Err(why) => bad.push(why.to_string()),
            }
        }
        if !bad.is_empty() {
            return Err(bad.join("\n"));
        }
        let comparison = match (self.against, places.first()) {
            (Some(url), Some(place)) => Some(compare(&Gateway::named(url, &self.ledger.file)?, place)?),
            _ => None,
        };
        if self.json {
            let budgets = comparison.as_ref().map(|comparison| &comparison.budgets);
            say(&json!({"ledgers": good, "budgets": budgets}).to_string());
        } else if let Some(comparison) = &comparison {
            say("");
            against::print(&comparison.budgets);
        }
        match comparison {
            Some(Comparison { differ, .. }) if differ > 0 => {
                Err(format!("{differ} counters of the gateway are not what the ledger says"))
            }
            Some(Comparison { compared: 0, .. }) => {
                complain("the gateway has no budget that could be compared");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The figures of a proof, by name.
fn figures(report: &VerifyReport) -> [(&'static str, u64); 10] {
    [
        ("rows", report.rows),
        ("intents", report.intents),
        ("extensions", report.extensions),
        ("settlements", report.settlements),
        ("releases", report.releases),
        ("unknown", report.unknown),
        ("changes", report.changes),
        ("summaries", report.summaries),
        ("compacted", report.compacted),
        ("open", report.open),
    ]
}

fn people(place: &Place, report: &VerifyReport) {
    say(&format!("{place}: good"));
    let texts = [
        ("cost usd", report.cost.to_string()),
        ("overrun usd", report.overrun.to_string()),
        ("head", report.head.clone()),
    ];
    let counts = figures(report).map(|(name, count)| (name, count.to_string()));
    for (name, value) in counts.into_iter().chain(texts) {
        say(&format!("{name:<12} {value}"));
    }
    say("");
    say(&format!("{:<24} {:>16} {:>16}", "agent", "spent usd", "leased usd"));
    for AgentTotals { agent, leased, spent } in &report.agents {
        say(&format!("{agent:<24} {:>16} {:>16}", spent.to_string(), leased.to_string()));
    }
}

fn json(place: &Place, report: &VerifyReport) -> Value {
    let agent = |AgentTotals { agent, leased, spent }: &AgentTotals| json!({"agent": &**agent, "spent_usd": spent.to_string(), "leased_usd": leased.to_string()});
    let mut shown = json!({
        "ledger": place.to_string(),
        "cost_usd": report.cost.to_string(),
        "overrun_usd": report.overrun.to_string(),
        "head": report.head,
        "agents": report.agents.iter().map(agent).collect::<Vec<_>>(),
    });
    for (name, count) in figures(report) {
        shown[name] = count.into();
    }
    shown
}
