//! Tables as CSV with a first line of names.

use serde::de::DeserializeOwned;
use thiserror::Error;

/// What is wrong with a table.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TableError {
    /// A row cannot be read.
    #[error("line {line}: {what}")]
    Row {
        /// The line on which the row begins, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// There is nothing in it.
    #[error("there are no rows in it")]
    Empty,
}

/// Reads all rows, each with the line that it begins on. Lines that begin with `#` say nothing.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<Vec<(u64, T)>, TableError> {
    let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).trim(csv::Trim::All).from_reader(bytes);
    let bad = |error: &csv::Error, at: u64| TableError::Row {
        line: error.position().map_or(at, csv::Position::line),
        what: match error.kind() {
            csv::ErrorKind::Deserialize { err, .. } => err.to_string(),
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("there are {len} fields where the first line has {expected_len}")
            }
            _ => error.to_string(),
        },
    };
    let names = reader.headers().map_err(|error| bad(&error, 1))?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| bad(&error, 0))?;
        let line = record.position().map_or(0, csv::Position::line);
        rows.push((line, record.deserialize(Some(&names)).map_err(|error| bad(&error, line))?));
    }
    if rows.is_empty() { Err(TableError::Empty) } else { Ok(rows) }
}
