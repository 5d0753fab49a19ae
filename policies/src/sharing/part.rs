//! A lease's part in the shared store: taken with it, grown ahead of its need, ended after it.

use super::{Books, Debt, Ending, Held, Line, MOST_ENDED, Sharing, bounded, new_id};
use crate::agent::Caller;
use crate::amounts::Amounts;
use crate::control::{mark_of, owner_of_mark};
use crate::denied::{Denied, Stop};
use crate::lease::Spend;
use crate::shared::{Counter, Extend, SharedError, Take, Tally, Want};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tollkeeper_config::{BudgetConfig, Scope, Usd};

/// How long a stream waits until it asks again for a growth that was not answered.
const RETRY: Duration = Duration::from_millis(50);

/// A lease's part in shared budgets.
#[derive(Debug)]
pub(crate) struct Part {
    sharing: Arc<Sharing>,
    lease: Arc<str>,
    lines: Arc<[Line]>,
    /// How the counters stood when they were last asked.
    tallies: Vec<Tally>,
    step: u32,
    /// The store knows nothing of it.
    alone: bool,
    growing: Option<JoinHandle<Result<Answer, Denied>>>,
}

/// What the store says of a growth.
#[derive(Debug)]
enum Answer {
    Held {
        step: u32,
        tallies: Vec<Tally>,
    },
    /// Nothing; the budgets say that this gateway may then decide alone.
    Alone,
}

/// Ends a lease in the store that was asked for and is not known to have been refused.
struct Asking {
    sharing: Arc<Sharing>,
    lease: Arc<str>,
    is_open: bool,
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.is_open {
            self.sharing.end(Ending { lease: self.lease.clone(), costs: Vec::new(), told: None });
        }
    }
}

impl Sharing {
    /// Takes a lease that its own gateway has granted `want` output tokens. Returns for how many all others have room, at
    /// least `least`. Who drops the future of this leaves nothing open.
    ///
    /// # Errors
    /// A budget cannot pay, a pause stops it, or the store cannot be used and a budget does not do without.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        caller: &Caller,
        spend: &Spend,
        now: i64,
        lines: Vec<Line>,
        bounds: (u64, u64),
    ) -> Result<(Part, u64), Denied> {
        if self.books().ended.len() > MOST_ENDED {
            let reason = "too many leases wait to be ended in the store that gateways share their budgets in";
            return Err(Denied::SharedDown { reason: reason.into() });
        }
        let lines: Arc<[Line]> = lines.into();
        let take = Take {
            lease: new_id(),
            now,
            memo: memo(caller, spend),
            marks: caller.owners().filter(|owner| owner.scope != Scope::Run).map(mark_of).collect(),
            wants: lines.iter().map(|line| line.want(spend, bounds)).collect(),
        };
        let mut asking = Asking { sharing: self.clone(), lease: take.lease.clone(), is_open: true };
        let answer = self.take(&take).await;
        let part = |tallies, alone| Part {
            sharing: self.clone(),
            lease: take.lease.clone(),
            lines: lines.clone(),
            tallies,
            step: 0,
            alone,
            growing: None,
        };
        let tallies = match answer {
            Ok(tallies) => tallies,
            Err(SharedError::Refused { short, tallies }) => {
                asking.is_open = false;
                self.see(counters(&lines, &tallies), now);
                return Err(denied(&lines, &short, &tallies, &take.wants, spend));
            }
            Err(SharedError::Stopped { mark, reason }) => {
                asking.is_open = false;
                let who = owner_of_mark(&mark).ok_or_else(|| Denied::SharedDown { reason: reason.clone() })?;
                return Err(Denied::Stopped { who, stop: Stop::Paused { reason } });
            }
            Err(error) => {
                let refused = self.failed(&error);
                asking.is_open = matches!(error, SharedError::NoAnswer(_));
                let alone = lines.iter().all(Line::counts_alone);
                return if alone { Ok((part(Vec::new(), true), bounds.1)) } else { Err(refused) };
            }
        };
        self.see(counters(&lines, &tallies), now);
        let mut part = part(tallies, false);
        let tokens = part.affords(spend).min(bounds.1);
        if tokens < bounds.1 {
            // Who leaves meanwhile leaves nothing open either.
            part.give_back(spend, now, tokens).await;
        }
        asking.is_open = false;
        Ok((part, tokens))
    }

    /// Opens the lease there and writes it down here. An answer that the store may have forgotten is asked for again.
    async fn take(&self, take: &Take) -> Result<Vec<Tally>, SharedError> {
        loop {
            let read = self.books().read;
            let tallies = self.accounts.take(take).await?;
            let mut books = self.books();
            if books.read == read {
                let held = take.wants.iter().zip(&tallies);
                let held = held.map(|(want, tally)| (want.counter.clone(), bounded(tally.held))).collect();
                let held = Held { admitted: take.now, memo: take.memo.clone(), step: 0, held };
                books.open.insert(take.lease.clone(), held);
                return Ok(tallies);
            }
        }
    }

    /// Has a lease hold what is wanted, however long the store needs to answer, but not for ever.
    async fn grow(self: Arc<Self>, lines: Arc<[Line]>, mut ask: Extend, spend: Spend) -> Result<Answer, Denied> {
        let start = Instant::now();
        loop {
            let read = self.books().read;
            match self.accounts.extend(&ask).await {
                Ok(tallies) => {
                    let mut books = self.books();
                    if books.read == read && books.holds(&ask, &tallies) {
                        drop(books);
                        self.see(counters(&lines, &tallies), ask.now);
                        return Ok(Answer::Held { step: ask.step, tallies });
                    }
                    ask.step += 1;
                }
                Err(SharedError::Refused { short, tallies }) => {
                    self.see(counters(&lines, &tallies), ask.now);
                    return Err(denied(&lines, &short, &tallies, &ask.wants, &spend));
                }
                Err(error) => {
                    let refused = self.failed(&error);
                    if lines.iter().all(Line::counts_alone) {
                        return Ok(Answer::Alone);
                    }
                    let is_final = matches!(error, SharedError::Gone | SharedError::Replaced(_));
                    if is_final || start.elapsed() >= self.patience {
                        return Err(refused);
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Pays off what is owed; the store answers again.
    pub(super) async fn pay(&self, now: i64) -> Result<(), SharedError> {
        loop {
            let debt = self.books().next_debt();
            let Some(Debt { lease, costs }) = debt else { return Ok(()) };
            let want = |(counter, _): &(Counter, i64)| Want { counter: counter.clone(), limit: 0, least: 0, most: 0 };
            let wants = costs.iter().map(want).collect();
            // The store remembers for long that one with this memo was settled.
            let take = Take { lease: lease.clone(), now, memo: "owed".into(), marks: Vec::new(), wants };
            let settled = match self.accounts.take(&take).await {
                Ok(_) => {
                    let costs: Vec<i64> = costs.iter().map(|(_, cost)| *cost).collect();
                    self.accounts.settle(&lease, now, &costs).await.map(drop)
                }
                Err(error) => Err(error),
            };
            match settled {
                Ok(()) | Err(SharedError::Gone) => self.books().debt = None,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Books {
    /// Writes down what an open lease holds; false when it has ended.
    fn holds(&mut self, ask: &Extend, tallies: &[Tally]) -> bool {
        let Some(open) = self.open.get_mut(&ask.lease) else { return false };
        open.step = ask.step;
        for ((_, held), tally) in open.held.iter_mut().zip(tallies) {
            *held = bounded(tally.held);
        }
        true
    }

    /// What is being paid off, or what is to be paid next.
    fn next_debt(&mut self) -> Option<Debt> {
        if self.debt.is_none() && !self.owed.is_empty() {
            self.debt = Some(Debt { lease: new_id(), costs: self.owed.drain().collect() });
        }
        self.debt.clone()
    }
}

impl Part {
    /// How many output tokens it pays for.
    fn affords(&self, spend: &Spend) -> u64 {
        let each = self.lines.iter().zip(&self.tallies).map(|(line, tally)| line.affords(spend, bounded(tally.held)));
        each.map(|tokens| tokens.unwrap_or(0)).min().unwrap_or(u64::MAX)
    }

    /// Keeps no more than these tokens cost: other budgets pay for no more.
    async fn give_back(&mut self, spend: &Spend, now: i64, tokens: u64) {
        let ask = self.ask(spend, now, (tokens, tokens));
        // Unanswered, it holds more until it ends.
        if let Ok(tallies) = self.sharing.accounts.extend(&ask).await {
            self.sharing.books().holds(&ask, &tallies);
            self.tallies = tallies;
        }
        self.step = ask.step;
    }

    fn ask(&self, spend: &Spend, now: i64, bounds: (u64, u64)) -> Extend {
        let wants = self.lines.iter().map(|line| line.want(spend, bounds)).collect();
        Extend { lease: self.lease.clone(), step: self.step + 1, now, wants }
    }

    /// Whether nobody needs to be asked.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone
    }

    /// Under the budgets as they are now, asks the store to cover `want` output tokens in all, or fewer but at least `least`; see [`poll_grown`](Self::poll_grown).
    pub(crate) fn grow(&mut self, rules: &[BudgetConfig], spend: &Spend, now: i64, bounds: (u64, u64)) {
        self.lines = self.lines.iter().map(|line| line.renewed(rules)).collect();
        let ask = self.ask(spend, now, bounds);
        self.growing = Some(tokio::spawn(self.sharing.clone().grow(self.lines.clone(), ask, spend.clone())));
    }

    /// The answer to [`grow`](Self::grow): how many output tokens are covered now.
    pub(crate) fn poll_grown(&mut self, cx: &mut Context<'_>, spend: &Spend) -> Poll<Result<u64, Denied>> {
        let Some(growing) = &mut self.growing else { return Poll::Ready(Ok(0)) };
        let Poll::Ready(joined) = Pin::new(growing).poll(cx) else { return Poll::Pending };
        self.growing = None;
        let gone = || Denied::SharedDown { reason: "the gateway is being stopped".into() };
        Poll::Ready(match joined.map_err(|_| gone()).flatten() {
            Ok(Answer::Held { step, tallies }) => {
                (self.step, self.tallies) = (step, tallies);
                Ok(self.affords(spend))
            }
            Ok(Answer::Alone) => Ok(u64::MAX),
            Err(denied) => Err(denied),
        })
    }

    /// The lease has ended and has used this; the accounts are locked, and count it from now on. Returns what is left
    /// in USD for whoever is next, as far as is known.
    pub(crate) fn end(&mut self, caller: &Caller, used: Amounts) -> Option<Usd> {
        if let Some(growing) = self.growing.take() {
            growing.abort();
        }
        let cost = |line: &Line| bounded(used.of(line.rule.limit));
        let left =
            self.lines.iter().zip(&self.tallies).filter_map(|(line, tally)| line.left(tally, used.of(line.rule.limit)));
        let left = left.min();
        if self.alone {
            self.sharing.owe(self.lines.iter().map(|line| (line.counter.clone(), cost(line))));
        } else {
            let costs = self.lines.iter().map(cost).collect();
            let told = Some((caller.clone(), self.lines.clone()));
            self.sharing.end(Ending { lease: self.lease.clone(), costs, told });
        }
        left
    }
}

/// The refusal by the first budget that cannot pay.
fn denied(lines: &[Line], short: &[usize], tallies: &[Tally], wants: &[Want], spend: &Spend) -> Denied {
    let place = short.first().copied().unwrap_or(0);
    match (lines.get(place), tallies.get(place), wants.get(place)) {
        (Some(line), Some(tally), Some(want)) => line.denied(tally, spend, i128::from(want.least) - tally.held),
        _ => Denied::SharedDown {
            reason: "the store that gateways share their budgets in refuses without a reason".into(),
        },
    }
}

fn counters(lines: &[Line], tallies: &[Tally]) -> impl Iterator<Item = (Counter, Tally)> {
    lines.iter().map(|line| line.counter.clone()).zip(tallies.iter().copied())
}

/// What whoever has to look for a lost lease is told of it.
fn memo(caller: &Caller, spend: &Spend) -> Arc<str> {
    let agent = &caller.agent.name;
    let memo = serde_json::json!({"request": &*spend.request_id, "attempt": spend.attempt, "agent": &**agent, "model": spend.backend.to_string()});
    memo.to_string().into()
}
