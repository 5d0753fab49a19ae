//! One admitted attempt, as its lease and the ledger's writer share it.

use super::row::{Kind, Row};
use crate::lease::{Payer, Spend};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use tokio::sync::Notify;
use tollkeeper_config::Usd;
use tollkeeper_protocol::usage::Usage;

/// What an attempt's rows have in common, and how far they are recorded.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) payer: Arc<Payer>,
    pub(crate) spend: Spend,
    /// Microseconds since 1970.
    pub(crate) admitted: i64,
    /// Output tokens that the intent covers.
    pub(super) granted: u64,
    /// Output tokens that the lease covers now; the writer reads it when it makes an extension's row.
    covered: AtomicU64,
    /// Whether an extension waits to be made a row: then the next one only needs to raise `covered`. This bounds an
    /// attempt's share of the queue.
    extending: AtomicBool,
    /// Number of the intent's row; 0 until the writer gave it one. The writer's own.
    seq: AtomicI64,
    /// Output tokens that committed rows cover.
    recorded: AtomicU64,
    intent: AtomicU8,
    changed: Notify,
}

/// What became of the intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Intent {
    Waiting,
    Recorded,
    Refused,
}

/// How an attempt ended: what its closing row says beyond what all rows say.
#[derive(Debug, Clone)]
pub(crate) struct Closing {
    pub(crate) at: i64,
    pub(crate) kind: Kind,
    pub(crate) usage: Usage,
    pub(crate) estimated: bool,
    pub(crate) leased: Usd,
    pub(crate) cost: Usd,
    pub(crate) overrun: Usd,
    pub(crate) outcome: &'static str,
    pub(crate) ttft: Option<Duration>,
    pub(crate) duration: Duration,
}

impl Attempt {
    pub(crate) fn new(payer: Arc<Payer>, spend: Spend, admitted: i64, granted: u64) -> Self {
        Self {
            payer,
            spend,
            admitted,
            granted,
            covered: granted.into(),
            extending: false.into(),
            seq: 0.into(),
            recorded: 0.into(),
            intent: (Intent::Waiting as u8).into(),
            changed: Notify::new(),
        }
    }

    /// Raises what is covered. Returns whether the writer must be told, because no extension waits that would tell it.
    pub(crate) fn extend(&self, covered: u64) -> bool {
        self.covered.store(covered, SeqCst);
        !self.extending.swap(true, SeqCst)
    }

    pub(crate) fn intent(&self) -> Intent {
        match self.intent.load(SeqCst) {
            0 => Intent::Waiting,
            1 => Intent::Recorded,
            _ => Intent::Refused,
        }
    }

    /// Whether committed rows cover so many tokens.
    pub(crate) fn is_recorded(&self, covered: u64) -> bool {
        self.intent() == Intent::Recorded && self.recorded.load(SeqCst) >= covered
    }

    /// Waits until the writer did something about this attempt. One waiter at a time; what happened before it waits is
    /// not missed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The writer's: wakes whoever waits.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    /// The writer's: rows that cover so many tokens are committed.
    pub(crate) fn set_recorded(&self, covered: u64) {
        self.recorded.fetch_max(covered, SeqCst);
        self.intent.store(Intent::Recorded as u8, SeqCst);
        self.wake();
    }

    /// The writer's: the intent was not recorded and never will be.
    pub(crate) fn set_refused(&self) {
        self.intent.store(Intent::Refused as u8, SeqCst);
        self.wake();
    }

    /// The writer's: the intent's row, numbered `seq`.
    pub(crate) fn intent_row(&self, seq: i64) -> Row {
        self.seq.store(seq, SeqCst);
        Row { intent: None, ..self.covering_row(Kind::Intent, self.admitted, self.granted) }
    }

    /// The writer's: the number of the intent's row; 0 before it has one.
    pub(super) fn number(&self) -> i64 {
        self.seq.load(SeqCst)
    }

    /// The writer's: the row that ends an attempt which was refused after its intent was recorded. It used nothing.
    pub(super) fn undoing_row(&self) -> Row {
        let leased = self.spend.price.charge(&self.spend.worst_usage(self.granted));
        self.closing_row(&Closing {
            at: self.admitted,
            kind: Kind::Release,
            usage: Usage::default(),
            estimated: false,
            leased,
            cost: Usd::ZERO,
            overrun: Usd::ZERO,
            outcome: "cancelled",
            ttft: None,
            duration: Duration::ZERO,
        })
    }

    /// The writer's: tokens covered now, for an extension's row. An extension from now on needs another row.
    pub(crate) fn begin_extension(&self) -> u64 {
        self.extending.store(false, SeqCst);
        self.covered.load(SeqCst)
    }

    /// The writer's: a row that says what is covered, not what was used.
    pub(crate) fn covering_row(&self, kind: Kind, at: i64, covered: u64) -> Row {
        let usage = self.spend.worst_usage(covered);
        self.row((kind, at), usage, self.spend.price.charge(&usage))
    }

    fn row(&self, (kind, at): (Kind, i64), usage: Usage, leased: Usd) -> Row {
        Row {
            seq: 0,
            at,
            kind,
            intent: Some(self.seq.load(SeqCst)),
            admitted: self.admitted,
            request_id: self.spend.request_id.clone(),
            attempt: self.spend.attempt,
            agent: self.payer.agent.clone(),
            operation: Cow::Borrowed(self.spend.operation.name()),
            alias: self.spend.alias.clone(),
            backend: self.spend.backend.clone(),
            usage,
            estimated: true,
            leased,
            rates: *self.spend.price.rates_of(&usage),
            catalog: self.spend.catalog_version.clone(),
            cost: Usd::ZERO,
            overrun: Usd::ZERO,
            outcome: None,
            ttft_ms: None,
            duration_ms: None,
            oldest_open: 0,
            prev_hash: [0; 32],
            hash: [0; 32],
            team: self.payer.team.clone(),
            run: self.payer.run.clone(),
            task: self.payer.task.clone(),
            note: None,
            sums: None,
        }
    }

    /// The writer's: the row that ends it.
    pub(crate) fn closing_row(&self, end: &Closing) -> Row {
        let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Row {
            estimated: end.estimated,
            cost: end.cost,
            overrun: end.overrun,
            outcome: Some(Cow::Borrowed(end.outcome)),
            ttft_ms: end.ttft.map(millis),
            duration_ms: Some(millis(end.duration)),
            ..self.row((end.kind, end.at), end.usage, end.leased)
        }
    }
}
