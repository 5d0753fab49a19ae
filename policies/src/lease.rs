//! The right to spend up to an amount, held while one attempt runs.
//!
//! What is leased is in the budgets at once, and on record soon: the intent before the attempt may be dispatched, each
//! extension with the next commit. So a crash can forget of a stream only what the extensions of its last few
//! milliseconds granted; [`Lease::secured`] waits for even those, for who must never deliver a token that is not on
//! record.

use crate::accounts::{Cover, amount};
use crate::agent::Caller;
use crate::amounts::Amounts;
use crate::denied::{Denied, Stop};
use crate::event::What;
use crate::ledger::attempt::{Attempt, Closing, Intent};
use crate::ledger::row::Kind;
use crate::metering::{Charge, Pieces, recordable, worst_case};
use crate::sharing::{Line, Part, Sharing, tighter};
use crate::watches::Turn;
use crate::{Policies, Shared};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tollkeeper_config::{BackendId, Billable, BudgetConfig, Price, Scope, Usd};
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::fault::FaultKind;
use tollkeeper_protocol::usage::Usage;

/// More tokens than this are counted as this many: the ledger's columns are signed.
const MOST_TOKENS: u64 = i64::MAX.unsigned_abs();

/// Who pays for an attempt, as the ledger names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payer {
    /// The agent.
    pub agent: Arc<str>,
    /// The team that the agent belonged to when the attempt was admitted.
    pub team: Option<Arc<str>>,
    /// The run whose key was used.
    pub run: Option<Arc<str>>,
    /// The client's own name for what it works on.
    pub task: Option<Arc<str>>,
}

impl Payer {
    /// An agent alone.
    pub fn agent(name: impl Into<Arc<str>>) -> Self {
        Self { agent: name.into(), team: None, run: None, task: None }
    }
}

/// What one attempt of one request wants to spend.
#[derive(Debug, Clone)]
pub struct Spend {
    /// The request's id.
    pub request_id: Arc<str>,
    /// Which attempt of the request; each has a lease of its own.
    pub attempt: u32,
    /// The kind of work.
    pub operation: Operation,
    /// What the client named.
    pub alias: Arc<str>,
    /// Who will do it.
    pub backend: BackendId,
    /// At what price.
    pub price: Price,
    /// The catalogue that the price comes from.
    pub catalog_version: Arc<str>,
    /// Prompt tokens: exact, or an estimate padded upwards.
    pub input_tokens: u64,
    /// How many answers are asked for: each needs at least one token. 0 counts as 1.
    pub answers: u64,
    /// How much output to lease.
    pub output: OutputBound,
    /// What is left of the request's own limit, its earlier attempts taken off.
    pub request_left: Option<Usd>,
    /// Whether it is an answer without tools, which may use what budgets keep for wrapping up.
    pub final_answer: bool,
    /// The client's own name for what it works on.
    pub task: Option<Arc<str>>,
    /// A hash of what is asked, by which a loop is noticed.
    pub signature: Option<u64>,
    /// In which ways it may be billed.
    pub billable: Billable,
}

impl Spend {
    /// The dearest way in which the input and so many output tokens can be billed.
    pub(crate) fn worst_usage(&self, output: u64) -> Usage {
        worst_case(&self.price, &self.billable, self.input_tokens, output)
    }

    /// What that costs.
    pub(crate) fn worst(&self, output: u64) -> Usd {
        self.price.charge(&self.worst_usage(output))
    }
}

/// How much output a lease covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputBound {
    /// This many tokens at once (unary calls to the cloud, embeddings with 0), or as many as the budgets afford, at
    /// least one for each answer.
    Whole(u64),
    /// Start with a slice, or with what is affordable but at least one token for each answer, and extend with
    /// [`Lease::cover`].
    Growing {
        /// Tokens per extension; 0 counts as 1.
        slice: u64,
        /// No more than this is leased ahead of need.
        max: Option<u64>,
    },
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered in full.
    Done,
    /// The client left.
    ClientGone,
    /// The backend failed.
    Fault(FaultKind),
    /// A budget could not pay for more.
    BudgetStop,
    /// Its run was cancelled or its time is up.
    Stopped,
    /// The gateway was drained.
    Drained,
    /// It was given up for the answer of a model above it.
    Escalated,
}

impl Outcome {
    /// The name in logs, metrics and the ledger; a fault goes by its kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::ClientGone => "client_gone",
            Self::Fault(kind) => kind.name(),
            Self::BudgetStop => "budget_stop",
            Self::Stopped => "stopped",
            Self::Drained => "drained",
            Self::Escalated => "escalated",
        }
    }
}

/// What an attempt used.
#[derive(Debug, Clone, Copy)]
pub struct Settlement {
    /// Its tokens.
    pub usage: Usage,
    /// Whether they were estimated, because the backend did not report them.
    pub estimated: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// Time to the first token.
    pub ttft: Option<Duration>,
    /// Time to the end.
    pub duration: Duration,
}

/// The right to spend on one attempt. End it with [`settle`](Self::settle) or [`release`](Self::release); dropped
/// without, it is charged as "aborted": its input and what [`cover`](Self::cover) was told.
#[must_use = "a lease that is dropped charges its input"]
pub struct Lease {
    shared: Arc<Shared>,
    caller: Caller,
    /// The accounts that it counts in.
    covers: Box<[Cover]>,
    attempt: Arc<Attempt>,
    /// Freed by the writer when the closing row is on record; gone once the lease is closed.
    place: Option<OwnedSemaphorePermit>,
    stage: Stage,
    /// What the budgets of this gateway hold for it, and the tokens that this pays for.
    held: Amounts,
    covered: u64,
    /// What of `covered` the ledger was told; more costs nothing more.
    logged: u64,
    /// The most that [`Lease::cover`] was told.
    told: u64,
    /// What it holds of budgets that other gateways share.
    part: Option<Part>,
    /// While those are asked for more.
    growth: Option<Growth>,
    /// They had no more when they were asked ahead of need.
    is_full: bool,
    /// Whether a budget's refusal to let it grow was told of.
    cut: bool,
}

/// How far a lease has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Other gateways are asked.
    Asked,
    /// The intent is being recorded.
    Intended,
    /// The attempt may have been dispatched.
    Admitted,
}

/// What was taken from the budgets of this gateway, and is given back if others have no room.
#[derive(Debug, Clone, Copy)]
struct Growth {
    /// Tokens that all pay for already.
    paid: u64,
    /// When, microseconds since 1970.
    at: i64,
}

impl Lease {
    /// Takes the lease from the budgets, and has the intent recorded. Whoever drops the future of this gives everything
    /// back.
    pub(crate) async fn admit(shared: &Arc<Shared>, caller: &Caller, mut spend: Spend) -> Result<Self, Denied> {
        spend.input_tokens = spend.input_tokens.min(MOST_TOKENS);
        // Later attempts of a request are the same call.
        let is_call = spend.attempt <= 1;
        let mut counted = !is_call;
        if is_call {
            let (turn, changed) = shared.watches.turn(caller, shared.now(), spend.signature);
            shared.tell_velocity(changed);
            if let Turn::After(delay) = turn.map_err(|denied| lasting(shared, caller, denied))? {
                counted = true;
                tokio::time::sleep(delay).await;
                let stopped = shared.watches.is_stopped(caller, shared.now());
                stopped.map_err(|denied| lasting(shared, caller, denied))?;
            }
        }
        let place = Some(shared.ledger.place().await?);
        shared.pauses.check(caller.owners())?;
        shared.pauses.check_target(Some(&spend.backend), Some(&*spend.alias))?;
        let (now, covers, grant, lines) = {
            let mut accounts = shared.accounts();
            let now = accounts.now(&shared.clock);
            if let Some(stopped) = caller.run.as_ref().and_then(|run| run.stopped(now)) {
                return Err(stopped);
            }
            let covers = accounts.covers(caller, &spend);
            let grant = accounts.take(&covers, now, &spend)?;
            let lines = shared.sharing.as_ref().map(|_| accounts.lines(&covers, now, &spend));
            (now, covers, grant, lines.unwrap_or_default())
        };
        shared.open_leases.begin();
        if !counted {
            shared.tell_velocity(shared.watches.admitted(caller, now, spend.signature));
        }
        let payer = caller.payer(spend.task.clone());
        let attempt = Arc::new(Attempt::new(payer.into(), spend, now, grant.tokens));
        let mut lease = Self {
            shared: shared.clone(),
            caller: caller.clone(),
            covers,
            attempt,
            place,
            stage: Stage::Asked,
            held: grant.amount,
            covered: grant.tokens,
            logged: grant.tokens,
            told: 0,
            part: None,
            growth: None,
            is_full: false,
            cut: false,
        };
        if let Some(sharing) = shared.sharing.as_ref().filter(|_| !lines.is_empty()) {
            lease.enter(sharing, lines).await?;
        }
        lease.stage = Stage::Intended;
        shared.ledger.intend(&lease.attempt).await?;
        lease.stage = Stage::Admitted;
        Ok(lease)
    }

    /// Takes the lease from the budgets that other gateways share; where they have room for less, it covers less.
    async fn enter(&mut self, sharing: &Arc<Sharing>, lines: Vec<Line>) -> Result<(), Denied> {
        let spend = &self.attempt.spend;
        let least = self.covered.min(spend.answers.max(1));
        let bounds = (least, self.covered);
        let (part, tokens) = sharing.enter(&self.caller, spend, self.attempt.admitted, lines, bounds).await?;
        self.part = Some(part);
        if tokens < self.covered {
            self.shrink(tokens, self.attempt.admitted);
            let payer = self.attempt.payer.clone();
            self.attempt = Arc::new(Attempt::new(payer, self.attempt.spend.clone(), self.attempt.admitted, tokens));
            self.logged = tokens;
        }
        Ok(())
    }

    /// Holds no more of this gateway's budgets than these tokens cost.
    fn shrink(&mut self, tokens: u64, now: i64) {
        let times = (self.attempt.admitted, now);
        let mut accounts = self.shared.accounts();
        // What needs less than is held always fits.
        if let Ok(grant) = accounts.extend(&self.covers, times, &self.attempt.spend, self.held, (tokens, tokens)) {
            (self.held, self.covered) = (grant.amount, grant.tokens);
        }
    }

    /// `Some(n)`: the answer must be limited to `n` tokens because the budgets afford no more than that of an
    /// [`OutputBound::Whole`].
    pub fn output_limit(&self) -> Option<u64> {
        match self.attempt.spend.output {
            OutputBound::Whole(tokens) => (self.covered < tokens).then_some(self.covered),
            OutputBound::Growing { .. } => None,
        }
    }

    /// Makes sure that so many output tokens in all are paid for, extending the lease when needed: call it before
    /// tokens are delivered.
    ///
    /// The lease grows by whole slices while the budgets afford them, then by what they have left. Refused are exactly
    /// the tokens that they cannot pay; the lease then stays as it was. While the ledger cannot be written, and once its
    /// run has ended, no lease grows.
    ///
    /// Pending only with budgets that other gateways share: they are asked for the next slice while half of the last one
    /// is left, so that no token waits for them unless they are slow.
    pub fn poll_cover(&mut self, cx: &mut Context<'_>, output_tokens: u64) -> Poll<Result<(), Denied>> {
        let tokens = output_tokens.min(MOST_TOKENS);
        let asks = self.part.as_ref().is_some_and(|part| !part.is_alone());
        let done = if asks { ready!(self.poll_part(cx, tokens)) } else { self.extend_to(tokens) };
        match &done {
            Ok(()) => self.told = self.told.max(tokens),
            Err(denied) => self.cut_short(denied),
        }
        Poll::Ready(done)
    }

    /// The same for who cannot wait: what other gateways have not answered yet is refused.
    ///
    /// # Errors
    /// See there.
    pub fn cover(&mut self, output_tokens: u64) -> Result<(), Denied> {
        match self.poll_cover(&mut Context::from_waker(Waker::noop()), output_tokens) {
            Poll::Ready(done) => done,
            Poll::Pending => Err(Denied::SharedDown { reason: "other gateways are still being asked".into() }),
        }
    }

    fn extend_to(&mut self, tokens: u64) -> Result<(), Denied> {
        if tokens <= self.covered {
            return Ok(());
        }
        let want = self.want(tokens);
        let now = self.extend((tokens, want))?;
        self.log(now);
        Ok(())
    }

    /// What follows when the answer ends here because a budget refuses: the same as when it refuses an attempt.
    fn cut_short(&mut self, denied: &Denied) {
        if let Denied::Budget(blocked) = denied
            && !std::mem::replace(&mut self.cut, true)
        {
            let held = self.held.of(blocked.limit);
            Policies(self.shared.clone()).cut_short(&self.caller, blocked, held);
        }
    }

    /// Asks the budgets that other gateways share ahead of need, and waits for them when there is nothing left.
    fn poll_part(&mut self, cx: &mut Context<'_>, tokens: u64) -> Poll<Result<(), Denied>> {
        loop {
            let is_paid = tokens <= self.covered();
            match self.poll_growth(cx) {
                Poll::Pending if is_paid => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(denied)) if !is_paid => return Poll::Ready(Err(denied)),
                // It is needed later, and asked for again then.
                Poll::Ready(Err(_)) => self.is_full = true,
                Poll::Ready(Ok(())) => {}
            }
            if tokens <= self.covered() && !self.runs_out(tokens) {
                return Poll::Ready(Ok(()));
            }
            let is_paid = tokens <= self.covered();
            let least = tokens.max(self.covered.saturating_add(1));
            match self.grow(least) {
                Ok(()) => {}
                Err(denied) if !is_paid => return Poll::Ready(Err(denied)),
                Err(_) => self.is_full = true,
            }
        }
    }

    /// Whether it is time to ask for the next slice.
    fn runs_out(&self, tokens: u64) -> bool {
        match self.attempt.spend.output {
            OutputBound::Whole(_) => false,
            OutputBound::Growing { slice, max } => {
                let left = self.covered.saturating_sub(tokens);
                !self.is_full
                    && self.growth.is_none()
                    && max.is_none_or(|max| self.covered < max)
                    && left < slice.max(1).div_ceil(2)
            }
        }
    }

    /// Takes more of this gateway's budgets, for at least so many tokens in all, and asks the others'.
    fn grow(&mut self, least: u64) -> Result<(), Denied> {
        let paid = self.covered;
        let at = self.extend((least, self.want(least)))?;
        if let Some(part) = &mut self.part {
            let rules: Vec<BudgetConfig> = self.shared.accounts().rules(&self.covers).cloned().collect();
            part.grow(&rules, &self.attempt.spend, at, (least, self.covered));
            self.growth = Some(Growth { paid, at });
        }
        Ok(())
    }

    /// The others' answer: what they have no room for is given back here too.
    fn poll_growth(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Denied>> {
        let (Some(part), Some(growth)) = (&mut self.part, self.growth) else { return Poll::Ready(Ok(())) };
        let grown = ready!(part.poll_grown(cx, &self.attempt.spend));
        self.growth = None;
        let affords = grown.as_ref().map_or(growth.paid, |tokens| *tokens).max(growth.paid);
        if affords < self.covered {
            self.shrink(affords, growth.at);
        }
        self.log(growth.at);
        Poll::Ready(grown.map(drop))
    }

    /// Has the ledger record what is covered, if that costs more than it knows of.
    fn log(&mut self, now: i64) {
        let spend = &self.attempt.spend;
        if self.covered > self.logged && spend.worst(self.covered) != spend.worst(self.logged) {
            self.logged = self.covered;
            self.shared.ledger.extend(&self.attempt, now, self.covered);
        }
    }

    /// As many tokens as are to be covered, if they can be, so that at least `tokens` are.
    fn want(&self, tokens: u64) -> u64 {
        match self.attempt.spend.output {
            OutputBound::Whole(_) => tokens,
            OutputBound::Growing { slice, max } => {
                let slices = tokens.saturating_sub(self.covered).div_ceil(slice.max(1));
                let whole = self.covered.saturating_add(slices.saturating_mul(slice.max(1))).min(MOST_TOKENS);
                whole.min(max.unwrap_or(MOST_TOKENS)).max(tokens)
            }
        }
    }

    /// Takes more of this gateway's budgets; returns when.
    fn extend(&mut self, (tokens, want): (u64, u64)) -> Result<i64, Denied> {
        let spend = &self.attempt.spend;
        if spend.worst(want) != self.amount() && !self.shared.ledger.is_up() {
            return Err(self.shared.ledger.down());
        }
        let (now, grant) = {
            let mut accounts = self.shared.accounts();
            let now = accounts.now(&self.shared.clock);
            if let Some(stopped) = self.caller.run.as_ref().and_then(|run| run.stopped(now)) {
                return Err(stopped);
            }
            let times = (self.attempt.admitted, now);
            (now, accounts.extend(&self.covers, times, spend, self.held, (tokens, want))?)
        };
        (self.held, self.covered) = (grant.amount, grant.tokens);
        Ok(now)
    }

    /// Output tokens that are paid for so far.
    pub fn covered(&self) -> u64 {
        self.growth.map_or(self.covered, |growth| growth.paid)
    }

    /// What the lease holds of every budget in USD.
    pub fn amount(&self) -> Usd {
        amount(self.held.nano)
    }

    /// Returns when everything that is covered is on record, which it mostly is already: a token delivered after this
    /// is not forgotten even by a crash. Refused when the ledger fails first.
    pub async fn secured(&self) -> Result<(), Denied> {
        self.shared.ledger.recorded(&self.attempt, self.logged).await
    }

    /// Charges what was used and hands the row to the ledger, without waiting.
    pub fn settle(mut self, s: Settlement) -> Charge {
        let usage = recordable(&s.usage);
        if s.outcome == Outcome::Done && !s.estimated {
            self.shared.answers.saw(&self.caller.agent.name, &self.attempt.spend.backend, usage.output);
        }
        self.close(Kind::Settlement, usage, s.estimated, s.outcome.name(), (s.ttft, s.duration))
    }

    /// Nothing was used: costs nothing, and is recorded.
    pub fn release(mut self, outcome: Outcome) {
        let duration = self.age();
        self.close(Kind::Release, Usage::default(), false, outcome.name(), (None, duration));
    }

    fn close(
        &mut self,
        kind: Kind,
        usage: Usage,
        estimated: bool,
        outcome: &'static str,
        (ttft, duration): (Option<Duration>, Duration),
    ) -> Charge {
        if let Some(growth) = self.growth.take() {
            // Nobody will hear the answer.
            self.shrink(growth.paid, growth.at);
        }
        let price = &self.attempt.spend.price;
        let cost = price.charge(&usage);
        let leased = self.amount();
        let overrun = cost.saturating_sub(leased).max(Usd::ZERO);
        let used = if kind == Kind::Release { Amounts::ZERO } else { Amounts::used(cost, &usage) };
        let (at, remaining, crossed) = {
            let mut accounts = self.shared.accounts();
            let now = accounts.now(&self.shared.clock);
            let mut crossed = accounts.close(&self.covers, (self.attempt.admitted, now), self.held, used);
            let mut left = accounts.remaining(&self.covers, now);
            if let Some(part) = &mut self.part {
                left = tighter(left, part.end(&self.caller, used));
                // Of budgets that others share too, whoever ends the lease there tells.
                crossed.retain(|(owner, _)| part.is_alone() || owner.scope == Scope::Run);
            }
            (now, left, crossed)
        };
        self.shared.open_leases.end();
        self.shared.overruns.count(overrun);
        let backend = &self.attempt.spend.backend;
        for (_, crossed) in crossed {
            let spent = crossed.period.settled.of(crossed.rule.limit);
            let what = What::Threshold { rule: crossed.rule, percent: crossed.percent, spent };
            self.shared.tell(&self.caller, what);
        }
        if overrun > Usd::ZERO {
            self.shared.tell(&self.caller, What::Overrun { backend: backend.clone(), amount: overrun });
        }
        if kind != Kind::Release {
            let tokens = usage.input.saturating_add(usage.output);
            self.shared.tell_velocity(self.shared.watches.spent(&self.caller, at, cost, tokens));
            self.shared.tell(&self.caller, What::Charged { backend: backend.clone(), usage, cost });
        }
        let end = Closing { at, kind, usage, estimated, leased, cost, overrun, outcome, ttft, duration };
        if let Some(place) = self.place.take() {
            self.shared.ledger.close(&self.attempt, end, place);
        }
        Charge { cost, overrun, remaining, pieces: Pieces::of(price.rates_of(&usage), &usage) }
    }

    /// How long ago the attempt was admitted.
    fn age(&self) -> Duration {
        let now = self.shared.accounts().now(&self.shared.clock);
        Duration::from_micros(u64::try_from(now.saturating_sub(self.attempt.admitted)).unwrap_or(0))
    }
}

/// What refuses a caller that is too fast: a stop that ends by itself, or one that will still hold then.
fn lasting(shared: &Shared, caller: &Caller, denied: Denied) -> Denied {
    if !matches!(denied, Denied::Stopped { stop: Stop::Velocity { until: Some(_) }, .. }) {
        return denied;
    }
    let ended = || caller.run.as_ref().and_then(|run| run.stopped(shared.now()));
    shared.pauses.check(caller.owners()).err().or_else(ended).unwrap_or(denied)
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.place.is_none() {
            return;
        }
        let duration = self.age();
        if self.stage == Stage::Asked {
            // The ledger knows nothing of it, and needs not.
            self.attempt.set_refused();
        }
        let (kind, usage, outcome) = match (self.stage, self.attempt.intent()) {
            // Never dispatched: the admission was cancelled, or refused by the store.
            (Stage::Asked | Stage::Intended, _) | (_, Intent::Refused) => {
                (Kind::Release, Usage::default(), "cancelled")
            }
            _ => (Kind::Settlement, self.attempt.spend.worst_usage(self.told), "aborted"),
        };
        self.close(kind, usage, true, outcome, (None, duration));
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("attempt", &self.attempt).field("held", &self.held).finish_non_exhaustive()
    }
}
