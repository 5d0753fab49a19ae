//! The double entry: what each row moves between an agent's accounts.
//!
//! Every agent has three: what is available, what is leased, and what is spent. All begin at zero, and what one receives
//! another gives: so available goes below zero by what is leased and spent, and the three always sum to zero. The view
//! `postings` of the SQLite file says the same.

use super::row::{Kind, Row};
use std::collections::BTreeMap;
use std::sync::Arc;
use tollkeeper_config::Usd;

/// Where an agent's money can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Account {
    Available,
    Leased,
    Spent,
}

impl Account {
    /// The name in the view.
    #[cfg(test)]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Leased => "leased",
            Self::Spent => "spent",
        }
    }
}

/// An amount that moves from one account to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Posting {
    /// Receives.
    pub(crate) debit: Account,
    /// Gives.
    pub(crate) credit: Account,
    pub(crate) amount: Usd,
}

/// What a row moves; `held` is what its attempt held before, zero for an intent and for rows of no attempt.
pub(crate) fn postings(row: &Row, held: Usd) -> impl Iterator<Item = Posting> {
    use Account::{Available, Leased, Spent};
    let none = (Available, Available, Usd::ZERO);
    let moves = match row.kind {
        Kind::Intent | Kind::Extension => [(Leased, Available, row.leased.saturating_sub(held)), none],
        Kind::Settlement | Kind::Release | Kind::Unknown if row.cost <= held => {
            [(Spent, Leased, row.cost), (Available, Leased, held.saturating_sub(row.cost))]
        }
        Kind::Settlement | Kind::Release | Kind::Unknown => {
            [(Spent, Leased, held), (Spent, Available, row.cost.saturating_sub(held))]
        }
        Kind::Summary => [(Spent, Available, row.cost), none],
        Kind::Change | Kind::Checkpoint => [none, none],
    };
    let moves = moves.into_iter().filter(|(_, _, amount)| *amount != Usd::ZERO);
    moves.map(|(debit, credit, amount)| Posting { debit, credit, amount })
}

/// An agent's accounts, in nano-dollars.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Balances {
    pub(crate) available: i128,
    pub(crate) leased: i128,
    pub(crate) spent: i128,
}

impl Balances {
    pub(crate) fn post(&mut self, posting: Posting) {
        let nano = i128::from(posting.amount.0);
        *self.account(posting.debit) += nano;
        *self.account(posting.credit) -= nano;
    }

    fn account(&mut self, account: Account) -> &mut i128 {
        match account {
            Account::Available => &mut self.available,
            Account::Leased => &mut self.leased,
            Account::Spent => &mut self.spent,
        }
    }
}

/// The accounts of all agents.
#[derive(Debug, Default)]
pub(crate) struct Book(pub(crate) BTreeMap<Arc<str>, Balances>);

impl Book {
    pub(crate) fn post(&mut self, row: &Row, held: Usd) {
        if !self.0.contains_key(&row.agent) {
            self.0.insert(row.agent.clone(), Balances::default());
        }
        if let Some(balances) = self.0.get_mut(&row.agent) {
            postings(row, held).for_each(|posting| balances.post(posting));
        }
    }
}
