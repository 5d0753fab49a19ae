//! What a ledger says that the counters of its gateway must hold: sums by whose budget it is and when its window began.

use super::{ReportError, unreadable};
use crate::amounts::Amounts;
use crate::place::Place;
use crate::store::StoreError;
use crate::store::reader::Reader;
use crate::store::settled::{QUARTER, Settled};
use jiff::Timestamp;
use std::collections::HashMap;
use tollkeeper_config::{Limit, Owner};

/// A counter that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterQuery {
    /// Whose budget it is; nothing is found of runs.
    pub owner: Owner,
    /// When its calendar window began; `None` for a total.
    pub since: Option<Timestamp>,
}

/// The sums of the closed attempts that count there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CounterSum {
    /// Nano-dollars.
    pub nano: i128,
    /// Tokens of prompts and answers.
    pub tokens: i128,
    /// Attempts, those that used nothing left out.
    pub requests: i128,
}

impl CounterSum {
    /// The part in the measure of a limit.
    pub fn of(self, limit: Limit) -> i128 {
        let Self { nano, tokens, requests } = self;
        Amounts { nano, tokens, requests }.of(limit)
    }

    fn add(&mut self, amounts: Amounts) {
        self.nano += amounts.nano;
        self.tokens += amounts.tokens;
        self.requests += amounts.requests;
    }
}

/// Adds up one gateway's ledger as its counters do, by time of admission, in the order of what is asked. Reads one
/// instant of it; attempts in flight are not in it. Windows that began more than 32 days ago cannot be asked for.
///
/// # Errors
/// It cannot be read, or several gateways have written there and none is named.
pub fn counters(place: impl Into<Place>, asked: &[CounterQuery]) -> Result<Vec<CounterSum>, ReportError> {
    let place = place.into();
    let read = || -> Result<Vec<Settled>, StoreError> {
        let mut ledger = Reader::open(&place)?;
        let chain = ledger.only_chain()?;
        ledger.settled(&chain, cut(asked, Timestamp::now()))
    };
    let settled = read().map_err(unreadable(&place))?;
    let mut of_owner: HashMap<&Owner, Vec<usize>> = HashMap::new();
    for (number, counter) in asked.iter().enumerate() {
        of_owner.entry(&counter.owner).or_default().push(number);
    }
    let mut sums = vec![CounterSum::default(); asked.len()];
    for settled in &settled {
        for number in settled.owners().iter().filter_map(|owner| of_owner.get(owner)).flatten() {
            let counts = asked[*number].since.is_none_or(|since| settled.start >= since.as_microsecond());
            if counts {
                sums[*number].add(settled.amounts());
            }
        }
    }
    Ok(sums)
}

/// The moment as of which stretches of time are cut: now, but early enough for minutes to be told apart where a window
/// began at one, also when this machine's clock is ahead of the gateway's.
fn cut(asked: &[CounterQuery], now: Timestamp) -> i64 {
    let starts = asked.iter().filter_map(|counter| counter.since).map(Timestamp::as_microsecond);
    let minutes = starts.filter(|start| start.rem_euclid(QUARTER) != 0);
    minutes.fold(now.as_microsecond(), i64::min)
}
