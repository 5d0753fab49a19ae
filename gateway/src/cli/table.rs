//! Tables for people: columns as wide as what is in them.

use super::say;
use serde_json::Value;

/// One column: its title, and what stands in it for a row.
pub(super) struct Column(pub(super) &'static str, pub(super) fn(&Value) -> String);

/// Prints rows under titles; numbers to the right.
pub(super) fn table(columns: &[Column], rows: &[Value]) {
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|Column(_, cell)| cell(row)).collect()).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|place| {
            let longest = cells.iter().map(|row| row[place].chars().count()).max().unwrap_or(0);
            longest.max(columns[place].0.chars().count())
        })
        .collect();
    let numbers: Vec<bool> = (0..columns.len()).map(|place| cells.iter().all(|row| is_number(&row[place]))).collect();
    let line = |cells: &[String]| {
        let padded =
            cells.iter().zip(&widths).zip(&numbers).map(|((cell, width), number)| {
                if *number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
        say(padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(&columns.iter().map(|Column(title, _)| (*title).to_owned()).collect::<Vec<_>>());
    cells.iter().for_each(|row| line(row));
}

fn is_number(cell: &str) -> bool {
    cell.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// A value as people read it: nothing for null, texts without quotes, lists with commas.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// A time without its fraction of a second.
pub(super) fn time(value: &Value) -> String {
    let text = shown(value);
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => text,
    }
}

/// The rows of a list.
pub(super) fn rows(list: &Value) -> &[Value] {
    list["data"].as_array().map_or(&[], Vec::as_slice)
}
