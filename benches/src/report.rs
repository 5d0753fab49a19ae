//! Markdown tables of what was measured.

use crate::load::Measure;
use crate::servers::CHUNKS;
use hdrhistogram::Histogram;
use std::fmt::Write as _;

/// One target's figures.
pub type Row<'a> = (&'a str, &'a Measure, u64);

/// The closed loop of unary requests: throughput, latency, cost in CPU. Rows: (name, measure, RSS in KiB); the second row is the bare passthrough.
pub fn unary_closed(rows: &[Row<'_>]) -> String {
    let mut table =
        head(&["", "requests/s", "of bare", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "CPU µs/request", "RSS MiB"]);
    for (name, measure, rss) in rows {
        let share = measure.rate() / rows[1].1.rate();
        let cpu = measure.cpu.as_secs_f64() * 1e6 / measure.whole.len() as f64;
        let latency = quantiles(&measure.whole);
        writeln!(table, "| {name} | {:.0} | {share:.2} | {latency} | {cpu:.0} | {} |", measure.rate(), mib(*rss))
            .unwrap();
    }
    table
}

/// An open loop of unary requests: latency at a constant rate, and what is added to the direct way.
pub fn unary_open(rows: &[Row<'_>]) -> String {
    let mut table = head(&[
        "",
        "requests/s",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p99.9 ms",
        "added p50 ms",
        "added p99 ms",
        "CPU µs/request",
    ]);
    for (name, measure, _) in rows {
        let added = |quantile| {
            millis(measure.whole.value_at_quantile(quantile)) - millis(rows[0].1.whole.value_at_quantile(quantile))
        };
        let cpu = measure.cpu.as_secs_f64() * 1e6 / measure.whole.len() as f64;
        let latency = quantiles(&measure.whole);
        writeln!(
            table,
            "| {name} | {:.0} | {latency} | {:.2} | {:.2} | {cpu:.0} |",
            measure.rate(),
            added(0.5),
            added(0.99)
        )
        .unwrap();
    }
    table
}

/// The closed loop of streams: chunks a second and CPU a chunk.
pub fn stream_closed(rows: &[Row<'_>]) -> String {
    let mut table =
        head(&["", "streams/s", "chunks/s", "of bare", "stream p50 ms", "stream p99 ms", "CPU µs/chunk", "RSS MiB"]);
    for (name, measure, rss) in rows {
        let share = measure.rate() / rows[1].1.rate();
        let chunks = measure.rate() * f64::from(CHUNKS);
        let cpu = measure.cpu.as_secs_f64() * 1e6 / (measure.whole.len() as f64 * f64::from(CHUNKS));
        let [p50, p99] = [0.5, 0.99].map(|quantile| millis(measure.whole.value_at_quantile(quantile)));
        writeln!(
            table,
            "| {name} | {:.0} | {chunks:.0} | {share:.2} | {p50:.2} | {p99:.2} | {cpu:.1} | {} |",
            measure.rate(),
            mib(*rss)
        )
        .unwrap();
    }
    table
}

/// The open loop of streams: time to the first token, and what is added to the direct way.
pub fn stream_open(rows: &[Row<'_>]) -> String {
    let mut table = head(&[
        "",
        "streams/s",
        "TTFT p50 ms",
        "TTFT p90 ms",
        "TTFT p99 ms",
        "TTFT p99.9 ms",
        "added p50 ms",
        "added p99 ms",
        "whole p99 ms",
    ]);
    for (name, measure, _) in rows {
        let added = |quantile| {
            millis(measure.first.value_at_quantile(quantile)) - millis(rows[0].1.first.value_at_quantile(quantile))
        };
        let whole = millis(measure.whole.value_at_quantile(0.99));
        let ttft = quantiles(&measure.first);
        writeln!(
            table,
            "| {name} | {:.0} | {ttft} | {:.2} | {:.2} | {whole:.2} |",
            measure.rate(),
            added(0.5),
            added(0.99)
        )
        .unwrap();
    }
    table
}

/// A table of names and memory sizes in KiB.
pub fn memory(column: &str, rows: &[(String, u64)]) -> String {
    let mut table = head(&[column, "RSS MiB"]);
    for (name, rss) in rows {
        writeln!(table, "| {name} | {} |", mib(*rss)).unwrap();
    }
    table
}

fn head(columns: &[&str]) -> String {
    let rule: String = columns.iter().enumerate().map(|(at, _)| if at == 0 { "|---|" } else { "---:|" }).collect();
    format!("| {} |\n{rule}\n", columns.join(" | "))
}

fn quantiles(histogram: &Histogram<u64>) -> String {
    [0.5, 0.9, 0.99, 0.999].map(|quantile| format!("{:.2}", millis(histogram.value_at_quantile(quantile)))).join(" | ")
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}
