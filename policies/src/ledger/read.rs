//! Reads a row of the ledger back from the values of its columns, whichever store they come from.

use super::row::{COLUMNS, Counts, HASH, Hash, Kind, Row, Value, backend};
use std::sync::Arc;
use tollkeeper_config::{PicoUsd, Rates, Usd};
use tollkeeper_protocol::usage::{ServiceTier, Usage};

/// The number of a row and the column that no writer of ours can have written.
pub(crate) type Bad = (i64, &'static str);

/// The values of [`COLUMNS`].
pub(crate) struct Values<'a>(pub(crate) [Value<'a>; COLUMNS.len()]);

impl Values<'_> {
    /// The row that has these values.
    pub(crate) fn row(&self) -> Result<Row, Bad> {
        Ok(Row {
            seq: self.int(0)?,
            at: self.int(1)?,
            kind: Kind::ALL.into_iter().find(|known| self.text(2) == Ok(known.name())).ok_or(self.bad(2))?,
            intent: self.optional(3)?,
            admitted: self.int(4)?,
            request_id: self.text(5)?.into(),
            attempt: self.int(6)?.try_into().map_err(|_| self.bad(6))?,
            agent: self.text(7)?.into(),
            operation: self.text(8)?.to_owned().into(),
            alias: self.text(9)?.into(),
            backend: backend(self.text(10)?),
            usage: Usage {
                input: self.count(11)?,
                cached_input: self.count(12)?,
                cache_write: self.count(13)?,
                output: self.count(14)?,
                reasoning: self.count(15)?,
                audio_input: self.some(38)?,
                audio_output: self.some(39)?,
                cache_write_1h: self.some(40)?,
                tier: match self.maybe(41)? {
                    None => ServiceTier::Standard,
                    Some(name) => {
                        ServiceTier::ALL.into_iter().find(|tier| tier.name() == &*name).ok_or(self.bad(41))?
                    }
                },
            },
            estimated: [0, 1].contains(&self.int(16)?).then_some(self.int(16)? == 1).ok_or(self.bad(16))?,
            leased: Usd(self.int(17)?),
            rates: Rates {
                input: self.rate(18)?,
                cached_input: self.rate(19)?,
                cache_write: self.rate(20)?,
                output: self.rate(21)?,
                audio_input: self.extra(42)?,
                audio_output: self.extra(43)?,
                cache_write_1h: self.extra(44)?,
            },
            catalog: self.text(22)?.into(),
            cost: Usd(self.int(23)?),
            overrun: Usd(self.int(24)?),
            outcome: self.maybe(25)?.map(|name| name.to_string().into()),
            ttft_ms: self.optional(26)?,
            duration_ms: self.optional(27)?,
            oldest_open: self.int(28)?,
            prev_hash: self.hash(29)?,
            hash: self.hash(HASH)?,
            team: self.maybe(31)?,
            run: self.maybe(32)?,
            task: self.maybe(33)?,
            note: self.maybe(34)?,
            sums: match self.optional(35)? {
                None => None,
                Some(attempts) => Some(Counts { attempts, unknowns: self.int(36)?, releases: self.int(37)? }),
            },
        })
    }

    fn bad(&self, column: usize) -> Bad {
        let seq = if let Value::Int(seq) = self.0[0] { seq } else { 0 };
        (seq, COLUMNS[column])
    }

    fn int(&self, column: usize) -> Result<i64, Bad> {
        self.optional(column)?.ok_or(self.bad(column))
    }

    fn optional(&self, column: usize) -> Result<Option<i64>, Bad> {
        match &self.0[column] {
            Value::Null => Ok(None),
            Value::Int(number) => Ok(Some(*number)),
            Value::Text(_) | Value::Blob(_) => Err(self.bad(column)),
        }
    }

    fn text(&self, column: usize) -> Result<&str, Bad> {
        match &self.0[column] {
            Value::Text(text) => Ok(text),
            Value::Null | Value::Int(_) | Value::Blob(_) => Err(self.bad(column)),
        }
    }

    fn maybe(&self, column: usize) -> Result<Option<Arc<str>>, Bad> {
        if self.0[column] == Value::Null { Ok(None) } else { self.text(column).map(|text| Some(text.into())) }
    }

    fn hash(&self, column: usize) -> Result<Hash, Bad> {
        match &self.0[column] {
            Value::Blob(bytes) => (*bytes).try_into().map_err(|_| self.bad(column)),
            Value::Null | Value::Int(_) | Value::Text(_) => Err(self.bad(column)),
        }
    }

    fn count(&self, column: usize) -> Result<u64, Bad> {
        u64::try_from(self.int(column)?).map_err(|_| self.bad(column))
    }

    fn some(&self, column: usize) -> Result<u64, Bad> {
        self.optional(column)?.map_or(Ok(0), |count| u64::try_from(count).map_err(|_| self.bad(column)))
    }

    fn rate(&self, column: usize) -> Result<PicoUsd, Bad> {
        self.int(column).map(|rate| PicoUsd(rate.cast_unsigned()))
    }

    fn extra(&self, column: usize) -> Result<Option<PicoUsd>, Bad> {
        Ok(self.optional(column)?.map(|rate| PicoUsd(rate.cast_unsigned())))
    }
}
