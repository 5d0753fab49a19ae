//! `tollkeeper ledger`: proves the ledger from its rows alone, hands them to other programs, and looks after its store.

use super::place::LedgerArg;
use super::spend::moment;
use super::{complain, say};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use std::io::{BufWriter, ErrorKind, Write};
use tollkeeper_policies::Place;
use tollkeeper_policies::report::{
    AgentTotals, ExportError, ExportFilter, Format, compact, export, ledgers, migrate, verify,
};

#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    /// Prove that the ledger is whole: hashes chain, every intent has its end, every cost follows from tokens and
    /// prices, the double entry balances, and counters would be restored to the sums of the rows
    Verify(LedgerArg),
    /// Write the rows to standard output; on standard error, how many and the hash of the last
    Export(Export),
    /// Replace old attempts by sums of each day that count the same; refused while a gateway uses the ledger
    Compact(Compact),
    /// Bring the store's tables to another version, up or down; refused while a gateway uses them
    Migrate(Migrate),
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
            Self::Verify(ledger) => verify_all(&ledger),
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

/// Checks every ledger that is asked for, and says what it holds.
///
/// # Errors
/// Of those that are not good: the first row that is wrong, and what of it.
fn verify_all(ledger: &LedgerArg) -> Result<(), String> {
    let mut bad = Vec::new();
    for place in ledgers(ledger.to_read()?).map_err(|error| error.to_string())? {
        if let Err(why) = verify_one(&place) {
            bad.push(if place.gateway().is_some() { format!("{place}: {why}") } else { why });
        }
    }
    if bad.is_empty() { Ok(()) } else { Err(bad.join("\n")) }
}

fn verify_one(place: &Place) -> Result<(), String> {
    let report = verify(place).map_err(|error| error.to_string())?;
    say(&format!("{place}: good"));
    let lines = [
        ("rows", report.rows.to_string()),
        ("intents", report.intents.to_string()),
        ("extensions", report.extensions.to_string()),
        ("settlements", report.settlements.to_string()),
        ("releases", report.releases.to_string()),
        ("unknown", report.unknown.to_string()),
        ("changes", report.changes.to_string()),
        ("summaries", report.summaries.to_string()),
        ("compacted", report.compacted.to_string()),
        ("open", report.open.to_string()),
        ("cost usd", report.cost.to_string()),
        ("overrun usd", report.overrun.to_string()),
        ("head", report.head),
    ];
    for (name, value) in lines {
        say(&format!("{name:<12} {value}"));
    }
    say("");
    say(&format!("{:<24} {:>16} {:>16}", "agent", "spent usd", "leased usd"));
    for AgentTotals { agent, leased, spent } in &report.agents {
        say(&format!("{agent:<24} {:>16} {:>16}", spent.to_string(), leased.to_string()));
    }
    Ok(())
}
