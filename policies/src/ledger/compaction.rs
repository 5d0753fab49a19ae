//! Retention: old rows are replaced by their sums, and a checkpoint stands for them in the chain.
//!
//! What goes is the beginning of the chain, up to the last row before a date, but for the rows of attempts that were
//! open there, and administrative changes and older checkpoints, which are kept. What comes, at the chain's end, is a
//! summary for each day, payer, alias, backend and catalogue, and a checkpoint that holds the hash up to which rows went
//! and a digest of those that were kept among them.

use super::row::{Counts, Hash, Kind, Row};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tollkeeper_config::{Rates, Usd};
use tollkeeper_protocol::usage::{ServiceTier, Usage};

/// Microseconds.
pub(crate) const DAY: i64 = 86_400_000_000;

/// What a compaction did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Replaced {
    pub(crate) removed: u64,
    pub(crate) summaries: u64,
    /// The hash that the chain had reached where rows went, in hexadecimal.
    pub(crate) head: String,
}

/// What an old part of the ledger holds.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// The last row that belongs to it, and its hash.
    pub(crate) through: i64,
    pub(crate) head: Hash,
    rows: u64,
    /// Whether an attempt closed in it, rather than being a sum already.
    fresh: bool,
    /// Rows that are kept whatever their age, with their hashes.
    kept: BTreeMap<i64, Hash>,
    /// Rows of the attempts that are open, by their intents.
    open: BTreeMap<i64, Vec<(i64, Hash)>>,
    groups: BTreeMap<Key, Group>,
}

/// What a summary adds up over.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    day: i64,
    agent: Arc<str>,
    team: Option<Arc<str>>,
    run: Option<Arc<str>>,
    alias: Arc<str>,
    backend: String,
    catalog: Arc<str>,
    operation: Cow<'static, str>,
    estimated: bool,
}

#[derive(Debug)]
struct Group {
    first: Row,
    totals: Totals,
}

/// Sums of closed attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) counts: Counts,
    pub(crate) cost: i128,
    pub(crate) overrun: i128,
    pub(crate) tokens: [i128; TOKENS],
}

/// How many kinds of tokens are counted.
const TOKENS: usize = 8;

fn tokens(usage: &Usage) -> [u64; TOKENS] {
    let Usage { input, cached_input, cache_write, output, reasoning, .. } = *usage;
    let Usage { cache_write_1h, audio_input, audio_output, .. } = *usage;
    [input, cached_input, cache_write, output, reasoning, cache_write_1h, audio_input, audio_output]
}

fn usage(tokens: [u64; TOKENS]) -> Usage {
    let [input, cached_input, cache_write, output, reasoning, cache_write_1h, audio_input, audio_output] = tokens;
    let tier = ServiceTier::Standard;
    Usage { input, cached_input, cache_write, output, reasoning, cache_write_1h, audio_input, audio_output, tier }
}

impl Totals {
    /// Adds a closed attempt, or a summary of some.
    pub(crate) fn add(&mut self, row: &Row) {
        let counts = row.counts();
        self.counts.attempts += counts.attempts;
        self.counts.unknowns += counts.unknowns;
        self.counts.releases += counts.releases;
        self.cost += i128::from(row.cost.0);
        self.overrun += i128::from(row.overrun.0);
        for (sum, more) in self.tokens.iter_mut().zip(tokens(&row.usage)) {
            *sum += i128::from(more);
        }
    }

    fn json(&self) -> Value {
        let text = |sum: i128| sum.to_string();
        json!({
            "attempts": self.counts.attempts, "unknowns": self.counts.unknowns, "releases": self.counts.releases,
            "cost_nano": text(self.cost), "overrun_nano": text(self.overrun), "tokens": self.tokens.map(text),
        })
    }

    /// Takes off as much as one row can hold.
    fn take(&mut self) -> (Counts, Usd, Usd, Usage) {
        let counts = std::mem::take(&mut self.counts);
        let most = |sum: &mut i128| {
            let taken = i64::try_from(*sum).unwrap_or(i64::MAX);
            *sum -= i128::from(taken);
            taken
        };
        let overrun = most(&mut self.overrun);
        let cost = most(&mut self.cost);
        (counts, Usd(cost), Usd(overrun), usage(self.tokens.each_mut().map(|sum| most(sum).unsigned_abs())))
    }
}

impl Scan {
    /// Takes the next row; false once it is one that stays: later rows stay too.
    pub(crate) fn see(&mut self, row: &Row, before: i64) -> bool {
        if row.at >= before {
            return false;
        }
        (self.through, self.head) = (row.seq, row.hash);
        self.rows += 1;
        let this = (row.seq, row.hash);
        match (row.kind, row.intent) {
            (Kind::Change | Kind::Checkpoint, _) => _ = self.kept.insert(row.seq, row.hash),
            (Kind::Summary, _) => self.add(row),
            (_, None) => _ = self.open.insert(row.seq, vec![this]),
            (kind, Some(intent)) if kind.closes() => {
                self.open.remove(&intent);
                self.fresh = true;
                self.add(row);
            }
            (_, Some(intent)) => self.open.entry(intent).or_default().push(this),
        }
        true
    }

    fn add(&mut self, row: &Row) {
        let key = Key {
            day: row.admitted.div_euclid(DAY) * DAY,
            agent: row.agent.clone(),
            team: row.team.clone(),
            run: row.run.clone(),
            alias: row.alias.clone(),
            backend: row.backend.to_string(),
            catalog: row.catalog.clone(),
            operation: row.operation.clone(),
            estimated: row.estimated,
        };
        let group = self.groups.entry(key).or_insert_with(|| Group { first: row.clone(), totals: Totals::default() });
        group.totals.add(row);
    }

    /// The rows up to `through` that stay.
    pub(crate) fn kept(&self) -> BTreeMap<i64, Hash> {
        self.kept.iter().map(|(seq, hash)| (*seq, *hash)).chain(self.open.values().flatten().copied()).collect()
    }

    /// Whether there is anything that can be replaced: closed attempts that are not sums already.
    pub(crate) fn is_worth_it(&self) -> bool {
        self.fresh
    }

    /// How many rows go.
    pub(crate) fn goes(&self) -> u64 {
        self.rows - u64::try_from(self.kept().len()).unwrap_or(u64::MAX)
    }

    /// What was done when so many rows came in their place.
    pub(crate) fn replaced(&self, rows: usize) -> Replaced {
        Replaced {
            removed: self.goes(),
            summaries: u64::try_from(rows.saturating_sub(1)).unwrap_or(u64::MAX),
            head: hex(&self.head),
        }
    }

    /// The rows that come in their place, not yet numbered and hashed.
    pub(crate) fn replacement(&self, now: i64, before: i64) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut all = Totals::default();
        for (key, group) in &self.groups {
            let mut left = group.totals;
            while left != Totals::default() {
                let (counts, cost, overrun, usage) = left.take();
                let summary = Row {
                    at: now,
                    kind: Kind::Summary,
                    intent: None,
                    admitted: key.day,
                    request_id: "".into(),
                    attempt: 0,
                    usage,
                    leased: Usd::ZERO,
                    rates: Rates::default(),
                    cost,
                    overrun,
                    outcome: Some(Cow::Borrowed("summary")),
                    ttft_ms: None,
                    duration_ms: None,
                    task: None,
                    sums: Some(counts),
                    ..group.first.clone()
                };
                all.add(&summary);
                rows.push(summary);
            }
        }
        let kept = self.kept();
        let note = json!({
            "through": self.through, "head": hex(&self.head), "before_us": before, "removed": self.goes(),
            "kept": kept.len(), "kept_digest": hex(&digest(&kept)), "totals": all.json(),
        });
        rows.push(Row::note(Kind::Checkpoint, now, "tollkeeper", "ledger", note.to_string().into()));
        rows
    }
}

/// What a checkpoint says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Rows up to here went.
    pub(crate) through: i64,
    head: String,
    kept_digest: String,
    totals: Value,
}

impl Checkpoint {
    /// Reads its note.
    pub(crate) fn read(row: &Row) -> Option<Self> {
        let mut note: Value = serde_json::from_str(row.note.as_deref()?).ok()?;
        let text = |name: &str| note[name].as_str().map(str::to_owned);
        let (head, kept_digest) = (text("head")?, text("kept_digest")?);
        Some(Self { through: note["through"].as_i64()?, head, kept_digest, totals: note["totals"].take() })
    }

    /// The hash up to which rows went.
    pub(crate) fn head(&self) -> Option<Hash> {
        let mut hash = Hash::default();
        let digits = self.head.as_bytes();
        for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        (digits.len() == 64).then_some(hash)
    }

    /// Whether these are the rows that were kept.
    pub(crate) fn keeps(&self, kept: &BTreeMap<i64, Hash>) -> bool {
        self.kept_digest == hex(&digest(kept))
    }

    /// Whether these are the sums of the summaries before it.
    pub(crate) fn sums(&self, totals: &Totals) -> bool {
        self.totals == totals.json()
    }
}

fn digest(kept: &BTreeMap<i64, Hash>) -> Hash {
    let mut digest = Sha256::new();
    for (seq, hash) in kept {
        digest.update(seq.to_be_bytes());
        digest.update(hash);
    }
    digest.finalize().into()
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The stretches of numbers up to `through` between those that are kept, ends included.
pub(crate) fn gaps(through: i64, kept: &BTreeSet<i64>) -> Vec<(i64, i64)> {
    let mut from = i64::MIN;
    let mut gaps = Vec::new();
    for seq in kept {
        gaps.push((from, seq - 1));
        from = seq + 1;
    }
    gaps.push((from, through));
    gaps
}
