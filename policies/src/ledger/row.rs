//! One row of the ledger: its columns, and the canonical form that its hash covers.

use crate::lease::Payer;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;
use tollkeeper_config::{BackendId, PicoUsd, Rates, Usd};
use tollkeeper_protocol::usage::{ServiceTier, Usage};

/// A SHA-256.
pub(crate) type Hash = [u8; 32];

/// What a row says. The order of an attempt's rows: intent, any extensions, one of settlement, release and unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It was admitted and holds a lease; written before it is dispatched.
    Intent,
    /// Its lease grew; tokens and amount are the new totals.
    Extension,
    /// It ended and is charged for what it used.
    Settlement,
    /// It ended having used nothing.
    Release,
    /// A crash left it open: charged what it had leased.
    Unknown,
    /// No attempt: somebody changed what is allowed. `agent` is who did it, `alias` what of, `note` what it is now.
    Change,
    /// The closed attempts of a day that were removed, added up; a checkpoint follows.
    Summary,
    /// Stands for the rows that were removed: its `note` holds the hash that the chain had reached.
    Checkpoint,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Intent,
        Self::Extension,
        Self::Settlement,
        Self::Release,
        Self::Unknown,
        Self::Change,
        Self::Summary,
        Self::Checkpoint,
    ];

    /// The name in the ledger.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Extension => "extension",
            Self::Settlement => "settlement",
            Self::Release => "release",
            Self::Unknown => "unknown",
            Self::Change => "change",
            Self::Summary => "summary",
            Self::Checkpoint => "checkpoint",
        }
    }

    /// Whether it is an attempt's last row. Exactly these rows, and summaries of them, have an outcome.
    pub(crate) fn closes(self) -> bool {
        matches!(self, Self::Settlement | Self::Release | Self::Unknown)
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its number, counted from 1 without gaps.
    pub(crate) seq: i64,
    /// When it came about, microseconds since 1970.
    pub(crate) at: i64,
    pub(crate) kind: Kind,
    /// The number of the attempt's intent; `None` in the intent itself.
    pub(crate) intent: Option<i64>,
    /// When the attempt was admitted, microseconds since 1970: decides in which windows it counts.
    pub(crate) admitted: i64,
    pub(crate) request_id: Arc<str>,
    pub(crate) attempt: u32,
    pub(crate) agent: Arc<str>,
    pub(crate) operation: Cow<'static, str>,
    pub(crate) alias: Arc<str>,
    pub(crate) backend: BackendId,
    /// Used tokens in a settlement; covered tokens (the worst case) in the others.
    pub(crate) usage: Usage,
    /// Whether the tokens are not the backend's own count.
    pub(crate) estimated: bool,
    /// What the attempt holds.
    pub(crate) leased: Usd,
    /// The rates that apply to `usage`.
    pub(crate) rates: Rates,
    pub(crate) catalog: Arc<str>,
    pub(crate) cost: Usd,
    /// The cost above `leased`.
    pub(crate) overrun: Usd,
    /// How the attempt ended; in closing rows only.
    pub(crate) outcome: Option<Cow<'static, str>>,
    pub(crate) ttft_ms: Option<i64>,
    pub(crate) duration_ms: Option<i64>,
    /// No attempt before this number was open when the row was written: where a restart begins to look for open ones.
    pub(crate) oldest_open: i64,
    /// The hash of the row before; zeros in the first.
    pub(crate) prev_hash: Hash,
    /// SHA-256 of all other columns, see [`Row::digest`].
    pub(crate) hash: Hash,
    /// The payer's team, run and task.
    pub(crate) team: Option<Arc<str>>,
    pub(crate) run: Option<Arc<str>>,
    pub(crate) task: Option<Arc<str>>,
    /// JSON; of rows that belong to no attempt.
    pub(crate) note: Option<Arc<str>>,
    /// How many attempts a summary stands for.
    pub(crate) sums: Option<Counts>,
}

/// Numbers of attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// All of them.
    pub(crate) attempts: i64,
    /// Those that a crash left open.
    pub(crate) unknowns: i64,
    /// Those that used nothing.
    pub(crate) releases: i64,
}

/// Where the hash stands among the columns. The columns before it are those of version 1.
pub(crate) const HASH: usize = 30;

/// The columns, in the order of the table and of the hash.
pub(crate) const COLUMNS: [&str; 45] = [
    "seq",
    "at_us",
    "kind",
    "intent",
    "admitted_us",
    "request_id",
    "attempt",
    "agent",
    "operation",
    "alias",
    "backend",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "estimated",
    "leased_nano",
    "input_pico",
    "cached_input_pico",
    "cache_write_pico",
    "output_pico",
    "catalog",
    "cost_nano",
    "overrun_nano",
    "outcome",
    "ttft_ms",
    "duration_ms",
    "oldest_open",
    "prev_hash",
    "hash",
    "team",
    "run",
    "task",
    "note",
    "attempts",
    "unknowns",
    "releases",
    "audio_input_tokens",
    "audio_output_tokens",
    "cache_write_1h_tokens",
    "tier",
    "audio_input_pico",
    "audio_output_pico",
    "cache_write_1h_pico",
];

/// The value of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Null,
    Int(i64),
    Text(Cow<'a, str>),
    Blob(&'a [u8]),
}

impl Row {
    /// The values of [`COLUMNS`].
    pub(crate) fn values(&self) -> [Value<'_>; COLUMNS.len()] {
        let text = |text| Value::Text(Cow::Borrowed(text));
        let optional = |value: Option<i64>| value.map_or(Value::Null, Value::Int);
        fn maybe(text: Option<&Arc<str>>) -> Value<'_> {
            text.map_or(Value::Null, |text| Value::Text(Cow::Borrowed(text)))
        }
        let tokens = |count: u64| Value::Int(count.cast_signed());
        let rate = |rate: PicoUsd| Value::Int(rate.0.cast_signed());
        // What few answers have is null in the others.
        let some = |count: u64| if count == 0 { Value::Null } else { tokens(count) };
        let extra = |known: Option<PicoUsd>| known.map_or(Value::Null, rate);
        [
            Value::Int(self.seq),
            Value::Int(self.at),
            text(self.kind.name()),
            optional(self.intent),
            Value::Int(self.admitted),
            text(&self.request_id),
            Value::Int(self.attempt.into()),
            text(&self.agent),
            text(&self.operation),
            text(&self.alias),
            match &self.backend {
                BackendId::Local(name) => text(name),
                // As it is displayed, which takes longer.
                BackendId::Remote { provider, model } => Value::Text(Cow::Owned([&**provider, "/", model].concat())),
            },
            tokens(self.usage.input),
            tokens(self.usage.cached_input),
            tokens(self.usage.cache_write),
            tokens(self.usage.output),
            tokens(self.usage.reasoning),
            Value::Int(self.estimated.into()),
            Value::Int(self.leased.0),
            rate(self.rates.input),
            rate(self.rates.cached_input),
            rate(self.rates.cache_write),
            rate(self.rates.output),
            text(&self.catalog),
            Value::Int(self.cost.0),
            Value::Int(self.overrun.0),
            self.outcome.as_deref().map_or(Value::Null, text),
            optional(self.ttft_ms),
            optional(self.duration_ms),
            Value::Int(self.oldest_open),
            Value::Blob(&self.prev_hash),
            Value::Blob(&self.hash),
            maybe(self.team.as_ref()),
            maybe(self.run.as_ref()),
            maybe(self.task.as_ref()),
            maybe(self.note.as_ref()),
            optional(self.sums.map(|sums| sums.attempts)),
            optional(self.sums.map(|sums| sums.unknowns)),
            optional(self.sums.map(|sums| sums.releases)),
            some(self.usage.audio_input),
            some(self.usage.audio_output),
            some(self.usage.cache_write_1h),
            match self.usage.tier {
                ServiceTier::Standard => Value::Null,
                tier => text(tier.name()),
            },
            extra(self.rates.audio_input),
            extra(self.rates.audio_output),
            extra(self.rates.cache_write_1h),
        ]
    }

    /// The hash that this row should have: SHA-256 over the columns before `hash` in order, and then over those after it
    /// that are not null, each behind one byte with its place (31 for the first). A value is one byte of kind (0 null,
    /// 1 integer, 2 text, 3 bytes), then an integer as 8 bytes, or a text or bytes as their length in 8 bytes and then
    /// themselves; all big-endian. `buffer` is scratch space.
    pub(crate) fn digest(&self, buffer: &mut Vec<u8>) -> Hash {
        buffer.clear();
        for (place, value) in (0..).zip(self.values()) {
            match usize::from(place).cmp(&HASH) {
                Ordering::Less => {}
                Ordering::Greater if value != Value::Null => buffer.push(place),
                _ => continue,
            }
            value.encode(buffer);
        }
        Sha256::digest(buffer).into()
    }
}

impl Value<'_> {
    fn encode(&self, buffer: &mut Vec<u8>) {
        let (kind, bytes) = match self {
            Self::Null => return buffer.push(0),
            Self::Int(number) => {
                buffer.push(1);
                return buffer.extend_from_slice(&number.to_be_bytes());
            }
            Self::Text(text) => (2, text.as_bytes()),
            Self::Blob(bytes) => (3, *bytes),
        };
        buffer.push(kind);
        buffer.extend_from_slice(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        buffer.extend_from_slice(bytes);
    }
}

impl Row {
    /// How many attempts it closes, and how.
    pub(crate) fn counts(&self) -> Counts {
        self.sums.unwrap_or(Counts {
            attempts: i64::from(self.kind.closes()),
            unknowns: i64::from(self.kind == Kind::Unknown),
            releases: i64::from(self.kind == Kind::Release),
        })
    }

    /// Who pays for its attempt.
    pub(crate) fn payer(&self) -> Payer {
        Payer { agent: self.agent.clone(), team: self.team.clone(), run: self.run.clone(), task: self.task.clone() }
    }

    /// A row that belongs to no attempt: only the time, who acted, what on, and what is to be said of it.
    pub(crate) fn note(kind: Kind, at: i64, actor: &str, subject: &str, note: Arc<str>) -> Self {
        Self {
            seq: 0,
            at,
            kind,
            intent: None,
            admitted: at,
            request_id: "".into(),
            attempt: 0,
            agent: actor.into(),
            operation: Cow::Borrowed("admin"),
            alias: subject.into(),
            backend: BackendId::Local("".into()),
            usage: Usage::default(),
            estimated: false,
            leased: Usd::ZERO,
            rates: Rates::default(),
            catalog: "".into(),
            cost: Usd::ZERO,
            overrun: Usd::ZERO,
            outcome: None,
            ttft_ms: None,
            duration_ms: None,
            oldest_open: 0,
            prev_hash: [0; 32],
            hash: [0; 32],
            team: None,
            run: None,
            task: None,
            note: Some(note),
            sums: None,
        }
    }
}

/// The backend that displays as this text.
pub(crate) fn backend(text: &str) -> BackendId {
    match text.split_once('/') {
        Some((provider, model)) => BackendId::Remote { provider: provider.into(), model: model.into() },
        None => BackendId::Local(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row as version 1 wrote it. The hashes below were computed apart from this code, from the documented form.
    fn row() -> Row {
        let mut prev_hash = Hash::default();
        (0..).zip(&mut prev_hash).for_each(|(place, byte)| *byte = place);
        Row {
            seq: 7,
            at: 1_772_600_767_500_000,
            kind: Kind::Settlement,
            intent: Some(3),
            admitted: 1_772_600_767_000_000,
            request_id: "req-1".into(),
            attempt: 2,
            agent: "scout".into(),
            operation: "chat".into(),
            alias: "cloud/fast".into(),
            backend: backend("openai/small"),
            usage: Usage { input: 10, cached_input: 4, cache_write: 2, output: 6, reasoning: 5, ..Usage::default() },
            leased: Usd(20),
            rates: Rates {
                input: PicoUsd(1_500),
                cached_input: PicoUsd(150),
                cache_write: PicoUsd(1_875),
                output: PicoUsd(700),
                ..Rates::default()
            },
            catalog: "2026-01-01".into(),
            cost: Usd(18),
            outcome: Some("done".into()),
            ttft_ms: Some(3),
            duration_ms: Some(40),
            oldest_open: 3,
            prev_hash,
            note: None,
            ..Row::note(Kind::Settlement, 0, "", "", "".into())
        }
    }

    fn hex(row: &Row) -> String {
        row.digest(&mut Vec::new()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn hashes_are_those_of_the_documented_form() {
        let old = row();
        assert_eq!(hex(&old), "f3d6731240589580a9dce2d5fd5a456b952ba1cbd37dac03dffe7c7ce689d3da");
        let usage = Usage { tier: ServiceTier::Flex, ..old.usage };
        let rates = Rates { cache_write_1h: Some(PicoUsd(6)), ..old.rates };
        let new = Row { team: Some("red".into()), task: Some("t".into()), usage, rates, ..old };
        assert_eq!(hex(&new), "14496e99cd2ac745301746168b1f084627821435baf6eb5d65c6939fd2ef1df4");
    }
}
