//! `tollkeeper reconcile`: a provider's invoice beside the ledger.

use super::place::LedgerArg;
use super::say;
use clap::Args;
use jiff::tz::TimeZone;
use std::fs::File;
use std::path::PathBuf;
use tollkeeper_config::Usd;
use tollkeeper_policies::report::{Figures, Reconcile, ReconcileLine, reconcile};

/// Its arguments.
#[derive(Debug, Args)]
pub(super) struct ReconcileCommand {
    #[command(flatten)]
    ledger: LedgerArg,
    /// The provider, by its name in the configuration
    #[arg(long, value_name = "NAME")]
    provider: String,
    /// The invoice: a CSV file as the provider exports it, or with the columns day, model, input_tokens, output_tokens, cost_usd
    #[arg(value_name = "INVOICE")]
    invoice: PathBuf,
    /// The time zone of the invoice's days
    #[arg(long, value_name = "ZONE", default_value = "UTC", value_parser = zone)]
    day_zone: TimeZone,
    /// How much the costs of a day and model may differ, in USD
    #[arg(long, value_name = "USD", default_value = "0.01", value_parser = usd)]
    tolerance: Usd,
    /// How much their tokens may differ, input and output each
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    token_tolerance: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|error| error.to_string())
}

fn usd(text: &str) -> Result<Usd, String> {
    Usd::parse_decimal(text).map_err(|error| error.to_string())
}

impl ReconcileCommand {
    pub(super) fn run(self) -> Result<(), String> {
        let config = self.ledger.config()?;
        if !config.providers.contains_key(&self.provider) {
            let known: Vec<_> = config.providers.keys().map(String::as_str).collect();
            return Err(format!("there is no provider `{}`; there are {}", self.provider, known.join(", ")));
        }
        let invoice = File::open(&self.invoice).map_err(|error| format!("{}: {error}", self.invoice.display()))?;
        let how = Reconcile {
            provider: self.provider,
            zone: self.day_zone,
            tolerance: self.tolerance,
            token_tolerance: self.token_tolerance,
        };
        let lines = reconcile(self.ledger.to_read()?, invoice, &how).map_err(|error| error.to_string())?;
        let (ledger, invoice) =
            lines.iter().fold((Figures::default(), Figures::default()), |(ledger, invoice), line| {
                (ledger.plus(&line.ledger), invoice.plus(&line.invoice))
            });
        if self.json {
            let rows: Vec<_> = lines.iter().map(json).collect();
            let total = sides(&ledger, &invoice);
            say(&serde_json::json!({"lines": rows, "total": total}).to_string());
        } else {
            table(&lines, &ledger, &invoice);
        }
        let differ = lines.iter().filter(|line| line.differs).count();
        if differ == 0 {
            Ok(())
        } else {
            Err(format!("{differ} of {} lines differ by more than is tolerated", lines.len()))
        }
    }
}

fn table(lines: &[ReconcileLine], ledger: &Figures, invoice: &Figures) {
    let head = ["ledger usd", "invoice usd", "difference", "input diff", "output diff"];
    let [a, b, c, d, e] = head;
    say(&format!("{:<11}{:<36} {a:>16} {b:>16} {c:>16} {d:>12} {e:>12}", "day", "model"));
    let row = |day: &str, model: &str, ledger: &Figures, invoice: &Figures, mark: &str| {
        let less = invoice.less(ledger);
        let tokens = |figure: Option<i128>| figure.map_or_else(|| "-".to_owned(), |tokens| tokens.to_string());
        say(&format!(
            "{day:<11}{model:<36} {:>16} {:>16} {:>16} {:>12} {:>12}{mark}",
            money(ledger.nano),
            money(invoice.nano),
            money(less.nano),
            tokens(less.input),
            tokens(less.output)
        ));
    };
    for line in lines {
        let mark = if line.differs { "  differs" } else { "" };
        row(&line.day.to_string(), &line.model, &line.ledger, &line.invoice, mark);
    }
    row("", "total", ledger, invoice, "");
}

fn json(line: &ReconcileLine) -> serde_json::Value {
    let mut value = sides(&line.ledger, &line.invoice);
    value["day"] = line.day.to_string().into();
    value["model"] = line.model.as_str().into();
    value["differs"] = line.differs.into();
    value
}

fn sides(ledger: &Figures, invoice: &Figures) -> serde_json::Value {
    let figures = |figures: &Figures| {
        let tokens = |tokens: Option<i128>| tokens.and_then(|tokens| i64::try_from(tokens).ok());
        serde_json::json!({
            "input_tokens": tokens(figures.input),
            "output_tokens": tokens(figures.output),
            "cost_usd": figures.nano.map(|_| money(figures.nano)),
        })
    };
    serde_json::json!({
        "ledger": figures(ledger),
        "invoice": figures(invoice),
        "difference": figures(&invoice.less(ledger)),
    })
}

/// An exact decimal; `-` for what is not known.
fn money(nano: Option<i128>) -> String {
    nano.map_or_else(|| "-".to_owned(), |nano| Usd(i64::try_from(nano).unwrap_or(i64::MAX)).to_string())
}
