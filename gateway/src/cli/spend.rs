//! `tollkeeper spend`: sums of the ledger, to the nano-dollar, also while a gateway runs.

use super::{FileArg, say};
use clap::Args;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tollkeeper_config::Usd;
use tollkeeper_policies::report::{SpendFilter, SpendRow, spend};

/// Its arguments.
#[derive(Debug, Args)]
pub(super) struct Spend {
    #[command(flatten)]
    file: FileArg,
    /// Only this agent
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Only charges since then: a date (2026-11-21, UTC), a time (2026-11-21T08:00:00Z) or an age (90m, 24h, 7d)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Only charges before then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// One line for each day (UTC)
    #[arg(long)]
    by_day: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Spend {
    pub(super) fn run(self) -> Result<(), String> {
        let config = self.file.load()?;
        let filter = SpendFilter {
            agent: self.agent,
            since: self.since,
            until: self.until,
            by_backend: true,
            by_day: self.by_day,
        };
        let rows = spend(&config.store.path, &filter).map_err(|error| error.to_string())?;
        let total = rows.iter().fold(Usd::ZERO, |sum, row| sum.saturating_add(row.cost));
        if self.json {
            let rows: Vec<_> = rows.iter().map(json).collect();
            say(&serde_json::json!({"rows": rows, "total_usd": total.to_string()}).to_string());
        } else {
            table(&rows, total, self.by_day);
        }
        Ok(())
    }
}

fn table(rows: &[SpendRow], total: Usd, by_day: bool) {
    let day =
        |row: &SpendRow| if by_day { row.day.map_or(String::new(), |day| day.to_string()) } else { String::new() };
    let line = |day: &str, agent: &str, backend: &str, figures: [&str; 5]| {
        let [attempts, unknown, input, output, cost] = figures;
        let day = if by_day { format!("{day:<11}") } else { String::new() };
        say(&format!("{day}{agent:<16} {backend:<36} {attempts:>9} {unknown:>8} {input:>12} {output:>12} {cost:>16}"));
    };
    line("day", "agent", "backend", ["attempts", "unknown", "input", "output", "usd"]);
    for row in rows {
        let figures = [row.attempts, row.unknown, row.input, row.output].map(|figure| figure.to_string());
        let [attempts, unknown, input, output] = figures.each_ref().map(String::as_str);
        let backend = row.backend.as_deref().unwrap_or("");
        line(&day(row), &row.agent, backend, [attempts, unknown, input, output, &row.cost.to_string()]);
    }
    line("", "total", "", ["", "", "", "", &total.to_string()]);
}

fn json(row: &SpendRow) -> serde_json::Value {
    serde_json::json!({
        "agent": row.agent,
        "backend": row.backend,
        "day": row.day.map(|day| day.to_string()),
        "attempts": row.attempts,
        "unknown": row.unknown,
        "input_tokens": row.input,
        "cached_input_tokens": row.cached_input,
        "cache_write_tokens": row.cache_write,
        "output_tokens": row.output,
        "reasoning_tokens": row.reasoning,
        "cost_usd": row.cost.to_string(),
        "overrun_usd": row.overrun.to_string(),
    })
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
