//! Lays a provider's invoice beside the ledger, by day and model.

use super::invoice::{self, Billed, Invoice, InvoiceError};
use super::{ReportError, unreadable};
use crate::place::Place;
use crate::store::reader::Reader;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::ControlFlow;
use tollkeeper_config::{BackendId, Usd};

/// What to compare, and how exactly.
#[derive(Debug, Clone)]
pub struct Reconcile {
    /// The provider's name in the configuration.
    pub provider: String,
    /// Where a day begins: the provider's own, mostly UTC.
    pub zone: TimeZone,
    /// How much the costs of a line may differ.
    pub tolerance: Usd,
    /// How much its tokens may differ, input and output each.
    pub token_tolerance: u64,
}

/// One day and model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReconcileLine {
    /// The day.
    pub day: Date,
    /// The model as the invoice names it, or as the ledger does where the invoice has none; empty when the invoice tells
    /// no models.
    pub model: String,
    /// By the ledger.
    pub ledger: Figures,
    /// By the invoice.
    pub invoice: Figures,
    /// Whether they differ by more than is tolerated.
    pub differs: bool,
}

/// Tokens and money; `None` where an invoice does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Prompt tokens, cached ones included.
    pub input: Option<i128>,
    /// Generated tokens.
    pub output: Option<i128>,
    /// Money in nano-dollars, an invoice's rounded to them.
    pub nano: Option<i128>,
}

impl Figures {
    /// Invoice less ledger, where both are known.
    pub fn less(&self, other: &Self) -> Self {
        let less = |a: Option<i128>, b: Option<i128>| a.zip(b).map(|(a, b)| a - b);
        Self {
            input: less(self.input, other.input),
            output: less(self.output, other.output),
            nano: less(self.nano, other.nano),
        }
    }

    /// The sum, of what is known.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let plus = |a: Option<i128>, b: Option<i128>| a.map_or(b, |a| Some(a + b.unwrap_or(0)));
        Self {
            input: plus(self.input, other.input),
            output: plus(self.output, other.output),
            nano: plus(self.nano, other.nano),
        }
    }
}

/// Why the two could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The ledger could not be read.
    #[error(transparent)]
    Ledger(#[from] ReportError),
    /// The invoice could not be read.
    #[error(transparent)]
    Invoice(#[from] InvoiceError),
    /// A row holds what no gateway writes.
    #[error("row {seq} of the ledger is bad in column {field}; `tollkeeper ledger verify` tells more")]
    Row {
        /// Its number.
        seq: i64,
        /// The column.
        field: &'static str,
    },
}

/// Compares every day and model of the invoice, and of the ledger within the invoice's days. An invoice's model with a
/// date behind it (`gpt-5-mini-2025-08-07`) is the ledger's without one, when the ledger does not name it in full.
pub fn reconcile(
    place: impl Into<Place>,
    file: impl Read,
    how: &Reconcile,
) -> Result<Vec<ReconcileLine>, ReconcileError> {
    let invoice = invoice::read(file, &how.zone)?;
    let Some((first, last)) = days(&invoice) else { return Ok(Vec::new()) };
    let mut ledger = charged(&place.into(), how, (first, last))?;
    let tells_models = invoice.keys().any(|(_, model)| !model.is_empty());
    if !tells_models {
        let by_model = std::mem::take(&mut ledger);
        for ((day, _), figures) in by_model {
            let sum: &mut Figures = ledger.entry((day, String::new())).or_default();
            *sum = sum.plus(&figures);
        }
    }
    let known: BTreeSet<String> = ledger.keys().map(|(_, model)| model.clone()).collect();
    let mut lines: BTreeMap<(Date, String), (Figures, Figures)> = BTreeMap::new();
    for ((day, model), billed) in invoice {
        let model = match undated(&model) {
            Some(short) if !known.contains(&model) && known.contains(short) => short.to_owned(),
            _ => model,
        };
        let sum = &mut lines.entry((day, model)).or_default().1;
        *sum = sum.plus(&figures(billed));
    }
    // What the file never tells is not known of a day without a line either; what it tells of some is nothing there.
    let tells = lines.values().fold(Figures::default(), |all, (_, invoice)| all.plus(invoice)).zeroed();
    for (key, figures) in ledger {
        lines.entry(key).or_default().0 = figures;
    }
    let none = Figures { input: Some(0), output: Some(0), nano: Some(0) };
    let line = |((day, model), (ledger, invoice)): ((Date, String), (Figures, Figures))| {
        let (ledger, invoice) = (none.plus(&ledger), tells.plus(&invoice));
        let differs = how.differs(&invoice.less(&ledger));
        ReconcileLine { day, model, ledger, invoice, differs }
    };
    Ok(lines.into_iter().map(line).collect())
}

impl Figures {
    fn zeroed(self) -> Self {
        let zero = |figure: Option<i128>| figure.map(|_| 0);
        Self { input: zero(self.input), output: zero(self.output), nano: zero(self.nano) }
    }
}

impl Reconcile {
    fn differs(&self, difference: &Figures) -> bool {
        let above = |figure: Option<i128>, most: u128| figure.is_some_and(|figure| figure.unsigned_abs() > most);
        above(difference.nano, self.tolerance.0.max(0).unsigned_abs().into())
            || above(difference.input, self.token_tolerance.into())
            || above(difference.output, self.token_tolerance.into())
    }
}

/// The invoice's first and last day.
fn days(invoice: &Invoice) -> Option<(Date, Date)> {
    Some((invoice.first_key_value()?.0.0, invoice.last_key_value()?.0.0))
}

fn figures(billed: Billed) -> Figures {
    let nano = |femto: i128| (femto + 500_000_i128 * femto.signum()) / 1_000_000;
    Figures { input: billed.input, output: billed.output, nano: billed.femto.map(nano) }
}

/// A model's name without the date behind it, `-2025-08-07` or `-20250807`.
fn undated(model: &str) -> Option<&str> {
    let shape = |end: &str| {
        end.bytes().map(|byte| if byte.is_ascii_digit() { '0' } else { char::from(byte) }).collect::<String>()
    };
    ["-0000-00-00", "-00000000"].iter().find_map(|dated| {
        let at = model.len().checked_sub(dated.len()).filter(|at| *at > 0)?;
        (shape(model.get(at..)?) == *dated).then(|| model.split_at(at).0)
    })
}

/// What the ledger's closed attempts at the provider come to, by day of admission and model.
fn charged(
    place: &Place,
    how: &Reconcile,
    (first, last): (Date, Date),
) -> Result<BTreeMap<(Date, String), Figures>, ReconcileError> {
    let unreadable = unreadable(place);
    let mut sums: BTreeMap<(Date, String), Figures> = BTreeMap::new();
    let mut bad = None;
    let mut ledger = Reader::open(place).map_err(unreadable)?;
    ledger.hold_still().map_err(unreadable)?;
    for chain in ledger.chains().map_err(unreadable)? {
        let read = ledger.rows(&chain, |row| {
            let row = match row {
                Ok(row) => row,
                Err((seq, field)) => {
                    bad = Some(ReconcileError::Row { seq, field });
                    return ControlFlow::Break(());
                }
            };
            let (true, BackendId::Remote { provider, model }) = (row.outcome.is_some(), &row.backend) else {
                return ControlFlow::Continue(());
            };
            let day = Timestamp::from_microsecond(row.admitted).map(|at| how.zone.to_datetime(at).date());
            if let Ok(day) = day
                && **provider == *how.provider
                && (first..=last).contains(&day)
            {
                let more = Figures {
                    input: Some(row.usage.input.into()),
                    output: Some(row.usage.output.into()),
                    nano: Some(row.cost.0.into()),
                };
                let sum = sums.entry((day, model.to_lowercase())).or_default();
                *sum = sum.plus(&more);
            }
            ControlFlow::Continue(())
        });
        read.map_err(unreadable)?;
    }
    bad.map_or(Ok(sums), Err)
}
