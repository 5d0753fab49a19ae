//! Reads what a provider says it billed: the CSV files that providers' consoles export, told apart by their headers.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, civil};
use std::collections::BTreeMap;
use std::io::Read;

/// What was billed for one model on one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Billed {
    /// Prompt tokens, cached ones included; `None` when the file does not say.
    pub(super) input: Option<i128>,
    /// Generated tokens.
    pub(super) output: Option<i128>,
    /// In femto-dollars (10^-15 USD): invoices have more decimals than the ledger.
    pub(super) femto: Option<i128>,
}

/// What was billed by day and model; the model is empty where the file tells none.
pub(super) type Invoice = BTreeMap<(Date, String), Billed>;

/// What is wrong with an invoice.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvoiceError {
    /// It is no CSV file, or could not be read.
    #[error("the invoice cannot be read: {0}")]
    Unreadable(String),
    /// A column is missing.
    #[error("the invoice has no column for {wanted}; known are {known}; it has {found}")]
    Column {
        /// What for.
        wanted: &'static str,
        /// Names that would be taken.
        known: String,
        /// The names it has.
        found: String,
    },
    /// A value cannot be understood.
    #[error("line {line} of the invoice: `{value}` in column `{column}` is not {wanted}")]
    Value {
        /// Counted from 1, the header included.
        line: u64,
        /// The column.
        column: String,
        /// What is there.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
}

/// Names of columns, best first. Those of OpenAI's usage and costs exports, of Anthropic's usage and cost exports, and
/// plain ones.
const DAY: &[&str] =
    &["day", "usage_date_utc", "start_time_iso", "start_time", "date", "timestamp", "aggregation_timestamp"];
const MODEL: &[&str] = &["model", "model_version", "snapshot_id", "line_item"];
const COST: &[&str] = &["cost_usd", "amount_value", "cost", "amount_usd"];
const CURRENCY: &[&str] = &["amount_currency", "currency"];
const INPUT: &[&str] = &["input_tokens", "n_context_tokens_total", "prompt_tokens"];
/// Parts that make up the input where no column has the whole.
const INPUT_PARTS: &[&str] = &[
    "usage_input_tokens_no_cache",
    "usage_input_tokens_cache_write_5m",
    "usage_input_tokens_cache_write_1h",
    "usage_input_tokens_cache_write",
    "usage_input_tokens_cache_read",
];
const OUTPUT: &[&str] = &["output_tokens", "n_generated_tokens_total", "completion_tokens", "usage_output_tokens"];

/// Where each figure stands.
struct Columns {
    names: Vec<String>,
    day: usize,
    model: Option<usize>,
    cost: Option<usize>,
    currency: Option<usize>,
    input: Vec<usize>,
    output: Option<usize>,
}

/// Reads a file; times are put into days of `zone`.
pub(super) fn read(file: impl Read, zone: &TimeZone) -> Result<Invoice, InvoiceError> {
    let unreadable = |error: csv::Error| InvoiceError::Unreadable(error.to_string());
    let mut lines = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(file);
    let header = lines.headers().map_err(unreadable)?;
    let columns =
        Columns::find(header.iter().map(|name| name.trim_start_matches('\u{feff}').to_lowercase()).collect())?;
    let mut invoice = Invoice::new();
    for (line, record) in (2..).zip(lines.records()) {
        let record = record.map_err(unreadable)?;
        let line = record.position().map_or(line, csv::Position::line);
        let Some((day, model, billed)) = columns.read(line, &record, zone)? else { continue };
        let sum = invoice.entry((day, model)).or_default();
        for (sum, more) in
            [(&mut sum.input, billed.input), (&mut sum.output, billed.output), (&mut sum.femto, billed.femto)]
        {
            *sum = more.map(|more| sum.unwrap_or(0).saturating_add(more)).or(*sum);
        }
    }
    Ok(invoice)
}

impl Columns {
    fn find(names: Vec<String>) -> Result<Self, InvoiceError> {
        let place = |known: &[&str]| known.iter().find_map(|known| names.iter().position(|name| name == known));
        let missing =
            |wanted, known: &[&str]| InvoiceError::Column { wanted, known: known.join(", "), found: names.join(", ") };
        let input = match place(INPUT) {
            Some(whole) => vec![whole],
            None => INPUT_PARTS.iter().filter_map(|part| names.iter().position(|name| name == part)).collect(),
        };
        let (output, cost) = (place(OUTPUT), place(COST));
        if cost.is_none() && (input.is_empty() || output.is_none()) {
            return Err(missing("costs or tokens", &[COST, INPUT, INPUT_PARTS, OUTPUT].concat()));
        }
        Ok(Self {
            day: place(DAY).ok_or_else(|| missing("days", DAY))?,
            model: place(MODEL),
            cost,
            currency: place(CURRENCY),
            input,
            output,
            names,
        })
    }

    /// A line's day, model and figures; `None` for a line that bills nothing, as exports have for days without use.
    fn read(
        &self,
        line: u64,
        record: &csv::StringRecord,
        zone: &TimeZone,
    ) -> Result<Option<(Date, String, Billed)>, InvoiceError> {
        let at = |column: usize| record.get(column).unwrap_or("");
        let bad = |column: usize, wanted| InvoiceError::Value {
            line,
            column: self.names[column].clone(),
            value: at(column).to_owned(),
            wanted,
        };
        let number = |column: usize| match at(column) {
            "" => Ok(None),
            text => decimal(text).map(Some).ok_or_else(|| bad(column, "a number")),
        };
        let tokens = |column: usize| Ok(number(column)?.map(|femto: i128| femto / FEMTO));
        let mut billed = Billed::default();
        for column in &self.input {
            billed.input = tokens(*column)?.map(|more| billed.input.unwrap_or(0) + more).or(billed.input);
        }
        billed.output = self.output.map_or(Ok(None), tokens)?;
        billed.femto = self.cost.map_or(Ok(None), number)?;
        if billed == Billed::default() {
            return Ok(None);
        }
        if let Some(column) = self.currency.filter(|column| !at(*column).is_empty())
            && !at(column).eq_ignore_ascii_case("usd")
        {
            return Err(bad(column, "USD, the only currency the ledger knows"));
        }
        let day = day(at(self.day), zone).ok_or_else(|| bad(self.day, "a day or a time"))?;
        // OpenAI's line items are "model, what of it".
        let model = self.model.map_or("", |column| at(column).split(", ").next().unwrap_or(""));
        Ok(Some((day, model.to_lowercase(), billed)))
    }
}

/// A dollar.
const FEMTO: i128 = 1_000_000_000_000_000;

/// The day of a date, of a time with an offset, or of seconds since 1970.
fn day(text: &str, zone: &TimeZone) -> Option<Date> {
    let local = |at: Timestamp| zone.to_datetime(at).date();
    if text.len() >= 9 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).map(local);
    }
    text.parse::<Timestamp>()
        .ok()
        .map(local)
        .or_else(|| text.parse::<civil::DateTime>().ok().map(civil::DateTime::date))
}

/// `-1,234.50`, `$0.25` or `1.5e-06` times 10^15, exactly; what is smaller than that is cut off.
fn decimal(text: &str) -> Option<i128> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let text = text.strip_prefix('$').unwrap_or(text).replace(',', "");
    let (digits, exponent) = match text.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
        None => (&*text, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all = format!("{whole}{fraction}");
    if all.is_empty() || all.len() > 30 || !all.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: i128 = all.parse().ok()?;
    let shift = exponent.checked_add(15)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let ten = |power: u32| 10_i128.checked_pow(power);
    let scaled = match u32::try_from(shift) {
        Ok(up) => value.checked_mul(ten(up)?)?,
        Err(_) => ten(shift.unsigned_abs()).map_or(0, |down| value / down),
    };
    Some(if negative { -scaled } else { scaled })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(String, String, Billed)> {
        let invoice = read(text.as_bytes(), &TimeZone::UTC).unwrap();
        invoice.into_iter().map(|((day, model), billed)| (day.to_string(), model, billed)).collect()
    }

    fn line(day: &str, model: &str, tokens: Option<(i128, i128)>, femto: Option<i128>) -> (String, String, Billed) {
        let (input, output) = (tokens.map(|tokens| tokens.0), tokens.map(|tokens| tokens.1));
        (day.to_owned(), model.to_owned(), Billed { input, output, femto })
    }

    #[test]
    fn exports_of_providers_are_told_by_their_headers() {
        let costs = "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item,project_id\n\
            1759622400,1759708800,2025-10-05T00:00:00+00:00,2025-10-06T00:00:00+00:00,0.8958740000000000,usd,\"gpt-5-mini-2025-08-07, input\",\n\
            1759622400,1759708800,2025-10-05T00:00:00+00:00,2025-10-06T00:00:00+00:00,1.5e-06,usd,\"gpt-5-mini-2025-08-07, output\",\n\
            1759968000,1760054400,2025-10-09T00:00:00+00:00,2025-10-10T00:00:00+00:00,,,,\n";
        let sum = 895_874_000_000_000 + 1_500_000_000;
        assert_eq!(lines(costs), [line("2025-10-05", "gpt-5-mini-2025-08-07", None, Some(sum))]);

        let usage = "\u{feff}start_time,end_time,start_time_iso,end_time_iso,num_model_requests,model,batch,service_tier,input_tokens,output_tokens,input_cached_tokens\r\n\
            1759708800,1759795200,2025-10-06T00:00:00+00:00,2025-10-07T00:00:00+00:00,2,gpt-5-mini-2025-08-07,False,default,1000,50,900\r\n\
            1759708800,1759795200,2025-10-06T00:00:00+00:00,2025-10-07T00:00:00+00:00,1,gpt-5-mini-2025-08-07,False,flex,10,5,0\r\n";
        assert_eq!(lines(usage), [line("2025-10-06", "gpt-5-mini-2025-08-07", Some((1010, 55)), None)]);

        let anthropic = "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,\
            usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens,web_search_count\n\
            2026-08-05,claude-opus-5,app,Default,standard,≤ 200k,100,20,3,4000,50,0\n";
        assert_eq!(lines(anthropic), [line("2026-08-05", "claude-opus-5", Some((4123, 50)), None)]);

        let plain =
            "Day,Model,Input_Tokens,Output_Tokens,Cost_USD\n2026-08-05,m,\"1,000\",5,$0.25\n2026-08-05,M,1,0,-0.05\n";
        assert_eq!(lines(plain), [line("2026-08-05", "m", Some((1001, 5)), Some(200_000_000_000_000))]);
    }

    #[test]
    fn times_count_on_the_day_of_the_zone() {
        let zone = TimeZone::get("Asia/Tokyo").unwrap();
        let text = "start_time,cost\n1759622400,1\n1759680000,2\n";
        let days: Vec<_> = read(text.as_bytes(), &zone).unwrap().into_keys().map(|(day, _)| day.to_string()).collect();
        assert_eq!(days, ["2025-10-05", "2025-10-06"]);
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        let cases = [
            ("day,model\n", "no column for costs or tokens"),
            ("model,cost\n", "no column for days; known are day, usage_date_utc"),
            ("day,cost\n2026-08-05,1\nsoon,1\n", "line 3 of the invoice: `soon` in column `day` is not a day"),
            ("day,cost\n2026-08-05,one\n", "line 2 of the invoice: `one` in column `cost` is not a number"),
            ("day,cost,currency\n2026-08-05,1,eur\n", "`eur` in column `currency` is not USD"),
            ("day,cost\n2026-08-05,1e99\n", "`1e99` in column `cost`"),
        ];
        for (text, told) in cases {
            let error = read(text.as_bytes(), &TimeZone::UTC).unwrap_err().to_string();
            assert!(error.contains(told), "{text:?}: {error}");
        }
    }
}
