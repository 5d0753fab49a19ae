//! The ledger for other programs: exports that prove themselves, and invoices laid beside it.

use crate::setup::{clock, growing, nano_per_token, scout, spend, stored, used};
use std::path::{Path, PathBuf};
use tollkeeper_config::{BackendId, Usd};
use tollkeeper_policies::report::{
    ExportFilter, Exported, Figures, Format, Reconcile, ReconcileLine, export, reconcile, verify,
};
use tollkeeper_policies::{Outcome, OutputBound, Policies, Spend};

/// One agent's work on two days at two models: 16 and 11 nano-dollars on the first, 20 on the second, nothing local.
async fn worked(folder: &Path) -> PathBuf {
    let config = stored(folder, &[]);
    let (clock, hand) = clock("2026-03-04T23:00:00Z");
    let (policies, _) = Policies::open(&config, clock).unwrap();
    let agent = scout(&policies);
    let to = |model: &str| Spend {
        backend: BackendId::Remote { provider: "openai".into(), model: model.into() },
        alias: "a, \"b\"\r\nc".into(),
        ..spend(nano_per_token(), 10, OutputBound::Whole(10))
    };
    policies.admit(&agent, to("small")).await.unwrap().settle(used(10, 6));
    policies.admit(&agent, to("large")).await.unwrap().settle(used(10, 1));
    hand.set("2026-03-05T01:00:00Z");
    let mut stream = policies.admit(&agent, Spend { output: growing(4), ..to("small") }).await.unwrap();
    stream.cover(9).unwrap();
    stream.secured().await.unwrap();
    stream.settle(used(10, 10));
    let local = Spend { backend: BackendId::Local("small".into()), ..to("small") };
    policies.admit(&agent, local).await.unwrap().release(Outcome::Done);
    policies.close().await;
    config.store.path
}

fn exported(path: &Path, filter: &ExportFilter, format: Format) -> (Exported, String) {
    let mut out = Vec::new();
    let exported = export(path, filter, format, &mut out).unwrap();
    (exported, String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn an_export_has_every_row_and_balances_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let path = worked(folder.path()).await;
    let report = verify(&path).unwrap();
    let (all, csv) = exported(&path, &ExportFilter::default(), Format::Csv);
    assert_eq!((all.rows, all.head), (report.rows, report.head));
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let header = reader.headers().unwrap().clone();
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 9);
    let column = |name: &str| header.iter().position(|column| column == name).unwrap();
    let sum = |name: &str| rows.iter().map(|row| row[column(name)].parse::<i64>().unwrap()).sum::<i64>();
    assert_eq!((sum("cost_nano"), sum("to_spent_nano"), sum("to_leased_nano")), (47, 47, 0));
    assert_eq!((&rows[0][column("alias")], &rows[0][column("team")]), ("a, \"b\"\r\nc", ""));
    assert_eq!((&rows[0][column("at")], &rows[0][column("leased_usd")]), ("2026-03-04T23:00:00.000000Z", "0.00000002"));
    assert!(rows.windows(2).all(|pair| pair[1][column("prev_hash")] == pair[0][column("hash")]));

    let (_, lines) = exported(&path, &ExportFilter::default(), Format::JsonLines);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), rows.len());
    for (line, row) in lines.iter().zip(&rows) {
        for (name, text) in header.iter().zip(row) {
            let value = match &line[name] {
                serde_json::Value::Null => String::new(),
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(value, text, "{name}");
        }
    }
}

#[tokio::test]
async fn an_export_can_be_of_a_time_or_an_agent() {
    let folder = tempfile::tempdir().unwrap();
    let path = worked(folder.path()).await;
    let midnight = Some("2026-03-05T00:00:00Z".parse().unwrap());
    let rows = |filter| exported(&path, &filter, Format::JsonLines).0.rows;
    assert_eq!(rows(ExportFilter { since: midnight, ..ExportFilter::default() }), 5);
    assert_eq!(rows(ExportFilter { until: midnight, ..ExportFilter::default() }), 4);
    assert_eq!(rows(ExportFilter { agent: Some("digger".into()), ..ExportFilter::default() }), 0);
    assert_eq!(rows(ExportFilter { agent: Some("scout".into()), ..ExportFilter::default() }), 9);
}

fn compare(path: &Path, invoice: &str, tolerance: i64) -> Vec<ReconcileLine> {
    let how = Reconcile {
        provider: "openai".into(),
        zone: jiff::tz::TimeZone::UTC,
        tolerance: Usd(tolerance),
        token_tolerance: 0,
    };
    reconcile(path, invoice.as_bytes(), &how).unwrap()
}

#[tokio::test]
async fn an_invoice_is_compared_by_day_and_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = worked(folder.path()).await;
    let invoice = "day,model,input_tokens,output_tokens,cost_usd\n\
        2026-03-04,small-2025-08-07,10,6,0.000000016\n\
        2026-03-05,small-20250807,10,11,0.000000021\n";
    let told = |nano, tolerance| {
        let lines = compare(&path, &invoice.replace("0.000000021", nano), tolerance);
        let of = |line: &ReconcileLine| {
            (line.day.to_string(), line.model.clone(), line.invoice.less(&line.ledger), line.differs)
        };
        lines.iter().map(of).collect::<Vec<_>>()
    };
    let figures = |input, output, nano| Figures { input: Some(input), output: Some(output), nano: Some(nano) };
    let line = |day: &str, model: &str, figures, differs| (day.to_owned(), model.to_owned(), figures, differs);
    assert_eq!(
        told("0.000000021", 0),
        [
            line("2026-03-04", "large", figures(-10, -1, -11), true),
            line("2026-03-04", "small", figures(0, 0, 0), false),
            line("2026-03-05", "small", figures(0, 1, 1), true),
        ]
    );
    // Costs alone, and models not told: the days' sums.
    let costs = "start_time_iso,amount_value,amount_currency,line_item\n\
        2026-03-04T00:00:00+00:00,0.000000027,usd,\n2026-03-05T00:00:00+00:00,0.0000000254,usd,\n";
    let lines = compare(&path, costs, 5);
    let differences: Vec<_> = lines.iter().map(|line| (line.invoice.less(&line.ledger), line.differs)).collect();
    let nano = |nano| Figures { input: None, output: None, nano: Some(nano) };
    assert_eq!(differences, [(nano(0), false), (nano(5), false)]);
    assert!(compare(&path, costs, 4)[1].differs);
    assert_eq!(compare(&path, "day,cost\n", 0), []);
}
