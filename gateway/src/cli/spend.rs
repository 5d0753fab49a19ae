//! `tollkeeper spend`: sums of the ledger, to the nano-dollar, also while a gateway runs.

use super::place::LedgerArg;
use super::say;
use super::table::{Column, shown, table};
use clap::Args;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use tollkeeper_config::Usd;
use tollkeeper_policies::report::{SpendGroup, SpendQuery, SpendSum, spend_by};

/// Its arguments.
#[derive(Debug, Args)]
pub(super) struct Spend {
    #[command(flatten)]
    ledger: LedgerArg,
    /// Only this agent
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Only charges since then: a date (2026-11-21, UTC), a time (2026-11-21T08:00:00Z) or an age (90m, 24h, 7d)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only charges before then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// One line for each combination of these: agent, team, model, alias, run, day (UTC), gateway
    #[arg(long, value_name = "GROUPS", default_value = "agent,model", value_parser = groups)]
    group: Groups,
    /// One line for each day as well
    #[arg(long)]
    by_day: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What is grouped by.
#[derive(Debug, Clone)]
struct Groups(Vec<SpendGroup>);

fn groups(text: &str) -> Result<Groups, String> {
    SpendGroup::list(text).map(Groups)
}

impl Spend {
    pub(super) fn run(self) -> Result<(), String> {
        let place = self.ledger.to_read()?;
        let Groups(mut groups) = self.group;
        if self.by_day && !groups.contains(&SpendGroup::Day) {
            groups.insert(1.min(groups.len()), SpendGroup::Day);
        }
        let query = SpendQuery { groups, agent: self.agent, since: self.since, until: self.until };
        let sums = spend_by(place, &query).map_err(|error| error.to_string())?;
        let total = sums.iter().fold(Usd::ZERO, |sum, row| sum.saturating_add(row.cost));
        let rows: Vec<Value> = sums.iter().map(|sum| json(&query, sum)).collect();
        if self.json {
            say(&json!({"rows": rows, "total_usd": total.to_string()}).to_string());
        } else {
            people(&query, rows, total);
        }
        Ok(())
    }
}

/// A table with a last line for the total.
fn people(query: &SpendQuery, mut rows: Vec<Value>, total: Usd) {
    let mut columns: Vec<Column> = query.groups.iter().map(|group| column(*group)).collect();
    columns.extend([
        Column("attempts", |row| shown(&row["attempts"])),
        Column("unknown", |row| shown(&row["unknown"])),
        Column("input", |row| shown(&row["input_tokens"])),
        Column("output", |row| shown(&row["output_tokens"])),
        Column("usd", |row| shown(&row["cost_usd"])),
    ]);
    let mut last = json!({"cost_usd": total.to_string()});
    if let Some(first) = query.groups.first() {
        last[key(*first)] = "total".into();
    }
    rows.push(last);
    table(&columns, &rows);
}

fn column(group: SpendGroup) -> Column {
    match group {
        SpendGroup::Agent => Column("agent", |row| shown(&row["agent"])),
        SpendGroup::Team => Column("team", |row| shown(&row["team"])),
        SpendGroup::Model => Column("backend", |row| shown(&row["backend"])),
        SpendGroup::Alias => Column("alias", |row| shown(&row["alias"])),
        SpendGroup::Run => Column("run", |row| shown(&row["run"])),
        SpendGroup::Day => Column("day", |row| shown(&row["day"])),
        SpendGroup::Gateway => Column("gateway", |row| shown(&row["gateway"])),
    }
}

/// The name of a group in the JSON.
fn key(group: SpendGroup) -> &'static str {
    if group == SpendGroup::Model { "backend" } else { group.name() }
}

fn json(query: &SpendQuery, sum: &SpendSum) -> Value {
    let mut row = Map::new();
    for (group, name) in query.groups.iter().zip(&sum.group) {
        row.insert(key(*group).to_owned(), name.as_deref().into());
    }
    let figures = json!({
        "attempts": sum.attempts,
        "unknown": sum.unknown,
        "input_tokens": sum.input,
        "cached_input_tokens": sum.cached_input,
        "cache_write_tokens": sum.cache_write,
        "output_tokens": sum.output,
        "reasoning_tokens": sum.reasoning,
        "cost_usd": sum.cost.to_string(),
        "overrun_usd": sum.overrun.to_string(),
    });
    if let Value::Object(figures) = figures {
        row.extend(figures);
    }
    row.into()
}

/// A moment as people write it.
pub(crate) fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Ok(date) = text.parse::<Date>() {
        return date.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp()).map_err(|error| error.to_string());
    }
    let age = text.char_indices().last().and_then(|(end, unit)| {
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return None,
        };
        text.get(..end)?.parse::<i64>().ok()?.checked_mul(seconds)
    });
    let age = age.ok_or("write a date (2026-11-21), a time (2026-11-21T08:00:00Z) or an age (90m, 24h, 7d)")?;
    Timestamp::now().checked_sub(SignedDuration::from_secs(age)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::moment;

    #[test]
    fn moments_are_written_in_three_ways() {
        assert_eq!(moment("2026-11-21").unwrap().to_string(), "2026-11-21T00:00:00Z");
        assert_eq!(moment("2026-11-21T08:00:00Z").unwrap().to_string(), "2026-11-21T08:00:00Z");
        let (older, newer) = (moment("7d").unwrap(), moment("90m").unwrap());
        assert!(older < newer && newer < jiff::Timestamp::now());
        for wrong in ["", "yesterday", "7y", "d", "1.5h", "99999999999999999d", "é"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }
}
