//! `tollkeeper ledger verify`: proves the ledger from its file alone.

use super::{FileArg, say};
use tollkeeper_policies::report::{AgentTotals, verify};

/// Checks all of it and says what it holds.
///
/// # Errors
/// The first row that is wrong, and what of it.
pub(super) fn verify_file(file: &FileArg) -> Result<(), String> {
    let config = file.load()?;
    let report = verify(&config.store.path).map_err(|error| error.to_string())?;
    say(&format!("{}: good", config.store.path.display()));
    let lines = [
        ("rows", report.rows.to_string()),
        ("intents", report.intents.to_string()),
        ("extensions", report.extensions.to_string()),
        ("settlements", report.settlements.to_string()),
        ("releases", report.releases.to_string()),
        ("unknown", report.unknown.to_string()),
        ("changes", report.changes.to_string()),
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
