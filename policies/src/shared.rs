//! Money counters that several gateways share, kept in Redis.
//!
//! [`SharedAccounts`] answers the same questions as the accounts of one gateway: may so much be leased from all of these
//! counters at once, may a lease grow, what did it cost. Each question is one round trip and one atomic script.
//! `docs/redis.md` says what is kept there and what happens when something fails.
//!
//! `sharing.rs` is how a gateway uses it.

mod accounts;
mod counter;
mod restore;

pub use accounts::SharedAccounts;
pub use counter::{Counter, Rolls};
pub use restore::{OpenLease, Restore, Share};

use std::sync::Arc;

/// What is wanted of one counter, in the measure of its limit. Amounts below zero count as zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The counter.
    pub counter: Counter,
    /// What settled and leased may be in all.
    pub limit: i128,
    /// Refused with less than this. In an extension, what the lease holds in all.
    pub least: i64,
    /// No more than this. In an extension, what the lease holds in all.
    pub most: i64,
}

/// A lease to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Take {
    /// Its id: never used for another lease.
    pub lease: Arc<str>,
    /// Now, microseconds since 1970: its time of admission.
    pub now: i64,
    /// What whoever has to record it as unknown is told of it.
    pub memo: Arc<str>,
    /// Marks that stop it.
    pub marks: Vec<Arc<str>>,
    /// All counters that it counts in, each once; those in which nothing is leased but something will be settled too.
    pub wants: Vec<Want>,
}

/// A change of what a lease holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extend {
    /// The lease's id.
    pub lease: Arc<str>,
    /// 1 for the first change, then one more each; a step that was made already is not made again.
    pub step: u32,
    /// Now, microseconds since 1970.
    pub now: i64,
    /// The counters of [`Take::wants`], in the same order. With `most` below what is held, the rest is given back.
    pub wants: Vec<Want>,
}

/// How one counter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// What this lease holds of it, or held when it was settled.
    pub held: i128,
    /// Settled by all gateways.
    pub settled: i128,
    /// Leased by all gateways.
    pub leased: i128,
}

/// A lease has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The gateway that had charged what the lease held, taking its holder for dead; the counters were put right by the
    /// difference. Its ledger has that charge, so this one's is to have the difference.
    pub charged_by: Option<Arc<str>>,
    /// Its counters, in the order of [`Take::wants`].
    pub tallies: Vec<Tally>,
}

/// A gateway that died held this, and it has been charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The lease's id.
    pub lease: Arc<str>,
    /// Who held it.
    pub gateway: Arc<str>,
    /// When it was admitted, microseconds since 1970.
    pub admitted: i64,
    /// [`Take::memo`].
    pub memo: Arc<str>,
    /// Keys of counters, and what was charged there.
    pub charged: Vec<(Arc<str>, i128)>,
}

/// What a heartbeat brings back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Whether leases can be taken: all counters are known to be whole.
    pub live: bool,
    /// How often marks have changed.
    pub marks: u64,
    /// The gateways that are alive.
    pub gateways: Vec<Arc<str>>,
}

/// Why it was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SharedError {
    /// Some counters cannot pay: their places in [`Take::wants`], and how all of them stand.
    #[error("budgets shared with other gateways cannot pay")]
    Refused {
        /// The places of those that cannot.
        short: Vec<usize>,
        /// All, in the order of [`Take::wants`].
        tallies: Vec<Tally>,
    },
    /// A mark stops it.
    #[error("stopped by {mark}: {reason}")]
    Stopped {
        /// The mark.
        mark: Arc<str>,
        /// Why it was set.
        reason: Arc<str>,
    },
    /// The lease has ended or was charged as unknown, or there was none.
    #[error("there is no such lease any more")]
    Gone,
    /// There was no answer in time. Whether it was done is not known; to ask again is safe.
    #[error("the store that gateways share their budgets in did not answer: {0}")]
    NoAnswer(Arc<str>),
    /// It was not asked, because it cannot be reached.
    #[error("the store that gateways share their budgets in cannot be reached: {0}")]
    Unreachable(Arc<str>),
    /// The store has forgotten, or never knew, what this gateway spent: call [`SharedAccounts::restore`].
    #[error("the store that gateways share their budgets in has to be told what was spent")]
    Lost,
    /// It waits for what the other gateways spent, at most for the lease age.
    #[error("the store that gateways share their budgets in waits for what other gateways have spent")]
    Waiting,
    /// Another process has taken over this gateway's name; it stays so.
    #[error("another gateway uses the name `{0}`")]
    Replaced(Arc<str>),
    /// It cannot be used as it is configured.
    #[error("the store that gateways share their budgets in cannot be used: {0}")]
    Unfit(Arc<str>),
}
