//! The account of one request from its admission to its last byte: lease, tokens, times, outcome. Whatever way a request ends, dropping its
//! meter settles the lease and writes the one log line and the metrics.

mod account;

pub(crate) use account::{Predicted, Running};

use crate::app::App;
use crate::cascade::Cause;
use crate::stack::Arrival;
use account::{Account, Seen, made};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tollkeeper_config::{BackendId, Price, Usd};
use tollkeeper_inference::{Reply, ReplyBody};
use tollkeeper_policies::{Agent, Charge, Denied, Outcome, RateGuard, Settlement};
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::event::ChatEvent;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::usage::Usage;

/// A whole answer of a provider, on its way.
pub(crate) type Pending = Pin<Box<dyn Future<Output = Result<Reply, ProviderFault>> + Send>>;

/// The account of one request.
pub(crate) struct Meter {
    app: Arc<App>,
    operation: Operation,
    agent: Arc<Agent>,
    alias: Arc<str>,
    id: Arc<str>,
    arrived: Instant,
    streamed: bool,
    /// Of the attempt that runs, or ran last.
    account: Account,
    /// Of an answer that is held back until it is known whether there is a better one.
    aside: Option<Account>,
    /// What the running attempt waits for, when it is a whole answer of a provider.
    pending: Option<Pending>,
    /// Set when the client has left, for whoever would try again.
    abandoned: Arc<AtomicBool>,
    backend: Arc<str>,
    provider: &'static str,
    attempts: u32,
    attempt_duration: Duration,
    waited: Duration,
    first_token: Option<Duration>,
    last_usage: Usage,
    /// All attempts together.
    charged: Usd,
    ended_after: Option<Duration>,
    outcome: Option<&'static str>,
    /// What it holds of rate limits, once it is let in.
    rate: Option<RateGuard>,
    /// Tokens that all attempts together were charged for.
    used: u64,
    _place: OwnedSemaphorePermit,
    _alive: Arc<()>,
}

/// What metrics and the log need of a request that ended.
pub(crate) struct Ended<'a> {
    pub(crate) operation: Operation,
    pub(crate) agent: &'a str,
    pub(crate) alias: &'a str,
    pub(crate) backend: &'a str,
    pub(crate) provider: &'a str,
    pub(crate) outcome: &'a str,
    pub(crate) streamed: bool,
    pub(crate) duration: Duration,
    pub(crate) attempt_duration: Duration,
    pub(crate) first_token: Option<Duration>,
    pub(crate) usage: Usage,
    pub(crate) cost: Usd,
}

impl Meter {
    pub(crate) fn new(
        app: &Arc<App>,
        operation: Operation,
        agent: Arc<Agent>,
        arrival: &Arrival,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            app: app.clone(),
            operation,
            agent,
            alias: "unknown".into(),
            id: arrival.id.clone(),
            arrived: arrival.at,
            streamed: false,
            account: Account::default(),
            aside: None,
            pending: None,
            abandoned: Arc::default(),
            backend: "".into(),
            provider: "",
            attempts: 0,
            attempt_duration: Duration::ZERO,
            waited: Duration::ZERO,
            first_token: None,
            last_usage: Usage::default(),
            charged: Usd::ZERO,
            ended_after: None,
            outcome: None,
            rate: None,
            used: 0,
            _place: place,
            _alive: arrival.alive.clone(),
        }
    }

    /// The request names a model that is configured, and wants a stream or not.
    pub(crate) fn names(&mut self, alias: Arc<str>, streamed: bool) {
        self.alias = alias;
        self.streamed = streamed;
    }

    /// Rate limits let the request in; its places are free again when the last byte is gone.
    pub(crate) fn let_in(&mut self, rate: RateGuard) {
        self.rate = Some(rate);
    }

    /// What the client called the model, if it is configured.
    pub(crate) fn alias(&self) -> &Arc<str> {
        &self.alias
    }

    /// Rate limits count what was used instead of what was estimated.
    fn count_tokens(&mut self) {
        if let Some(rate) = &mut self.rate {
            rate.correct(self.used);
        }
    }

    /// The request ends with an error instead of an answer.
    /// An attempt that is still running then was cut by its run's end, or has run out of time.
    pub(crate) fn refused(&mut self, outcome: &'static str, is_cut: bool) {
        self.close(if is_cut { Outcome::Stopped } else { Outcome::Fault(FaultKind::Timeout) });
        self.count_tokens();
        self.outcome = Some(outcome);
    }

    /// An attempt begins.
    pub(crate) fn begin(&mut self, running: Running) {
        if self.attempts > 0 {
            self.app.metrics.fallback(&self.backend, &running.backend);
        }
        self.attempts += 1;
        self.outcome = None;
        self.backend = running.backend.clone();
        self.provider = running.provider;
        self.account = Account { running: Some(running), ..Account::default() };
    }

    /// The running attempt's answer was looked at before it is shown; the target above would have charged its own price.
    pub(crate) fn looked(&mut self, cause: Cause, above: &Price) {
        self.app.metrics.cascade.looked(&self.alias, cause.name());
        if cause == Cause::Fit {
            self.account.spares = Some(above.clone());
        }
    }

    /// The running attempt's answer is held back while another is asked for a better one. Returns what an older one cost, which is not wanted any
    /// more.
    pub(crate) fn set_aside(&mut self) -> Option<Usd> {
        let older = self.give_up();
        self.aside = Some(std::mem::take(&mut self.account));
        older
    }

    /// There is no better answer than the one that was set aside.
    pub(crate) fn resume(&mut self) {
        let Some(aside) = self.aside.take() else { return };
        if let Some(running) = &aside.running {
            self.backend = running.backend.clone();
            self.provider = running.provider;
        }
        self.outcome = None;
        self.account = aside;
    }

    /// There is a better answer than the one that was set aside, which is charged for what was made of it. Returns what that was.
    pub(crate) fn give_up(&mut self) -> Option<Usd> {
        self.close_aside(Outcome::Escalated)
    }

    fn close_aside(&mut self, how: Outcome) -> Option<Usd> {
        let aside = self.aside.take()?;
        let current = std::mem::replace(&mut self.account, aside);
        let (backend, outcome) = (self.backend.clone(), self.outcome);
        let before = self.charged;
        self.close(how);
        (self.account, self.backend, self.outcome) = (current, backend, outcome);
        Some(self.charged.saturating_sub(before))
    }

    /// Waits for a whole answer of a provider. When the wait is dropped the answer is still on its way, and can be [awaited](Self::outlive).
    pub(crate) async fn whole(&mut self, answer: Pending) -> Result<Reply, ProviderFault> {
        let sent = self.pending.insert(answer).await;
        self.pending = None;
        sent
    }

    /// Whether a provider works on a whole answer.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Becomes true when the client has left.
    pub(crate) fn abandoned(&self) -> Arc<AtomicBool> {
        self.abandoned.clone()
    }

    /// The client has left while a provider works on a whole answer, which it will bill whoever reads it: waits for it, so that it is charged as
    /// the provider counted it; or until there was `enough` waiting, and it is charged at what was leased.
    pub(crate) async fn outlive(mut self, enough: impl Future<Output = ()>) {
        self.abandoned.store(true, Relaxed);
        let Some(answer) = self.pending.take() else { return };
        let answered = tokio::select! {
            answered = answer => answered,
            () = enough => return,
        };
        match answered {
            Ok(Reply { body: ReplyBody::Bytes { peek, .. }, .. }) => {
                match peek.usage {
                    Some(usage) => self.reported(usage),
                    None => self.whole_text(peek.text_bytes),
                }
                self.close(Outcome::ClientGone);
            }
            // Nothing else comes whole from a provider.
            Ok(_) => {}
            Err(fault) => self.failed(&fault),
        }
    }

    /// An attempt has begun to answer: what was not spent on waiting until now was spent here.
    pub(crate) fn answered(&self) {
        self.app.metrics.overhead(self.operation, self.arrived.elapsed().saturating_sub(self.waited));
    }

    /// So long was spent waiting for the client's body or for the backend.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// The attempt failed before anything of it reached the client. What was made of an answer that was held back, and what an unseen one may have
    /// cost, is charged; else nothing.
    pub(crate) fn failed(&mut self, fault: &ProviderFault) {
        let outcome = Outcome::Fault(fault.kind);
        if fault.worked || fault.kind == FaultKind::Timeout || self.account.output.tokens() > 0 {
            let is_refused = !fault.worked && fault.status.is_some_and(|status| status >= 400);
            if let Some(running) = self.account.running.as_mut().filter(|_| is_refused) {
                // It has said that there is no answer.
                running.seen = true;
            }
            self.close(outcome);
        } else if let Some(running) = self.account.running.take() {
            self.attempt_duration = running.started.elapsed();
            self.app.metrics.attempt(&running.backend, outcome.name());
            running.lease.release(outcome);
        }
    }

    /// Content is on its way to the client.
    pub(crate) fn first_content(&mut self) {
        self.first_token.get_or_insert_with(|| self.arrived.elapsed());
        if let Some(Running { id, started, .. }) = &self.account.running
            && self.streamed
            && self.account.begun.is_none()
        {
            let first = started.elapsed();
            self.account.begun = Some(first);
            if let BackendId::Remote { .. } = id {
                self.app.paces.began(id, first);
            }
        }
    }

    /// The backend's own count; the last one holds.
    pub(crate) fn reported(&mut self, usage: Usage) {
        self.account.usage = Some((usage, self.account.output.tokens()));
    }

    /// Tokens and text of a local engine's event on its way to the client. Before it is delivered, [`poll_paid`](Self::poll_paid).
    pub(crate) fn event(&mut self, event: &ChatEvent) {
        if let ChatEvent::Usage(usage) = event {
            return self.reported(*usage);
        }
        let Some(tokens) = made(event) else { return };
        self.first_content();
        match self.account.ahead.checked_sub(1) {
            Some(ahead) => self.account.ahead = ahead,
            None => self.account.output.tokens += tokens,
        }
    }

    /// Counts an event that is held back; it is not counted again when it goes to the client.
    ///
    /// # Errors
    /// It cannot be paid for: then it does count again, and is refused again.
    pub(crate) async fn held(&mut self, event: &ChatEvent) -> Result<(), Denied> {
        let Some(tokens) = made(event) else { return Ok(()) };
        self.account.begun =
            self.account.begun.or(self.account.running.as_ref().map(|running| running.started.elapsed()));
        self.account.output.tokens += tokens;
        poll_fn(|cx| self.poll_paid(cx)).await?;
        self.account.ahead += 1;
        Ok(())
    }

    /// Text of a remote frame. Before it is delivered, [`poll_paid`](Self::poll_paid).
    pub(crate) fn text(&mut self, bytes: usize) {
        if bytes > 0 {
            self.first_content();
            self.account.output.bytes += bytes as u64;
            self.account.output.frames += 1;
        }
    }

    /// Text of a whole answer whose tokens nobody counted.
    pub(crate) fn whole_text(&mut self, bytes: usize) {
        if let Some(running) = &mut self.account.running {
            running.seen = true;
        }
        self.account.output.bytes += bytes as u64;
    }

    /// Ready when all that was seen is paid for, or cannot be. Pending only while other gateways are asked, which share a
    /// budget.
    pub(crate) fn poll_paid(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Denied>> {
        let tokens = self.account.output.tokens();
        let Some(running) = self.account.running.as_mut() else { return Poll::Ready(Ok(())) };
        let paid = ready!(running.lease.poll_cover(cx, tokens));
        if paid.is_err() {
            // What is not paid for is not delivered, and so not charged.
            self.account.output = Seen { tokens: running.lease.covered(), ..Seen::default() };
        }
        Poll::Ready(paid)
    }

    /// What the answer has used: as reported, else as estimated. A report that an answer has outgrown before it broke off is not the last word.
    pub(crate) fn usage(&self, whole: bool) -> (Usage, bool) {
        self.account.usage(whole)
    }

    /// The backend of the last attempt; empty when there was none.
    pub(crate) fn backend(&self) -> &str {
        &self.backend
    }

    /// Whether the backend has reported what the answer used.
    pub(crate) fn is_reported(&self) -> bool {
        self.account.usage.is_some()
    }

    /// What the request costs, as far as it is known now, all attempts together.
    pub(crate) fn cost(&self, whole: bool) -> Usd {
        let accounts = std::iter::once(&self.account).chain(&self.aside);
        accounts.fold(self.charged, |sum, account| sum.saturating_add(account.cost(whole)))
    }

    /// How fast the backend wrote, and how good the estimate was.
    fn learn(&self, id: &BackendId, predicted: Predicted, tokens: u64, cost: Usd) {
        // The attempt's own: what others took before it, and what was held back before the client saw it, is none of its pace.
        let first = self.account.begun;
        if let BackendId::Remote { .. } = id {
            // A whole answer does not say when it began: what was expected of that is taken off, but half of all at most.
            let expected = Duration::from_millis(predicted.time.ttft_ms).min(self.attempt_duration / 2);
            // Of a stream the time since its first token says how fast that was written which was seen since then; it may have reasoned before.
            let written = if first.is_some() { tokens.min(self.account.output.tokens()) } else { tokens };
            let first = first.unwrap_or(expected);
            self.app.paces.wrote(id, written, self.attempt_duration.saturating_sub(first));
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let time = predicted.time;
        let pairs = [
            ("ttft", first.map(millis), time.ttft_ms),
            ("duration", Some(millis(self.attempt_duration)), time.duration_ms),
            ("cost", u64::try_from(cost.0).ok(), u64::try_from(predicted.cost.0).unwrap_or(0)),
        ];
        for (what, was, expected) in pairs {
            if let Some(was) = was.filter(|_| expected > 0) {
                self.app.metrics.predicted(what, was, expected);
            }
        }
    }

    /// Ends the attempt and charges it.
    pub(crate) fn close(&mut self, outcome: Outcome) -> Option<Charge> {
        // Nobody waits for it any more.
        self.pending = None;
        let (usage, estimated) = self.usage(outcome == Outcome::Done);
        let running = self.account.running.take()?;
        self.attempt_duration = running.started.elapsed();
        self.outcome = Some(outcome.name());
        self.app.metrics.attempt(&running.backend, outcome.name());
        let stake = running.stake;
        let charge = running.lease.settle(Settlement {
            usage,
            estimated,
            outcome,
            ttft: self.first_token,
            duration: self.attempt_duration,
        });
        if charge.overrun > Usd::ZERO {
            tracing::warn!(request_id = %self.id, backend = %self.backend, overrun_usd = %charge.overrun, "the answer cost more than was leased");
        }
        self.used = self.used.saturating_add(usage.input).saturating_add(usage.output);
        // After a fault another attempt may follow, and what was given up has another one running: for that the estimate still stands.
        if !matches!(outcome, Outcome::Fault(_) | Outcome::Escalated) {
            self.count_tokens();
        }
        if !estimated {
            self.app.metrics.estimated(running.provider, running.input_tokens, usage.input);
        }
        if outcome == Outcome::Done {
            self.learn(&running.id, running.predicted, usage.output, charge.cost);
            if let Some(above) = self.account.spares.take() {
                self.app.metrics.cascade.saved(&self.alias, above.charge(&usage).saturating_sub(charge.cost));
            }
        }
        self.last_usage = usage;
        self.charged = self.charged.saturating_add(charge.cost);
        self.ended_after = Some(self.arrived.elapsed());
        // What was given up for another answer was worth nothing.
        if !matches!(outcome, Outcome::Fault(_) | Outcome::Escalated) {
            self.app.economics.charged(&self.app, &stake, &usage, charge.cost);
        }
        let labels = [self.operation.name(), running.provider, &*self.agent.name, &*running.backend];
        self.app.metrics.charged(labels, &usage, charge.cost);
        Some(Charge { cost: self.charged, ..charge })
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let gone = if std::thread::panicking() {
            Outcome::Fault(FaultKind::Internal)
        } else if self.app.draining.load(Relaxed) {
            Outcome::Drained
        } else {
            Outcome::ClientGone
        };
        self.close_aside(gone);
        self.close(gone);
        self.count_tokens();
        let duration = self.ended_after.unwrap_or_else(|| self.arrived.elapsed());
        let ended = Ended {
            operation: self.operation,
            agent: &self.agent.name,
            alias: &self.alias,
            backend: &self.backend,
            provider: self.provider,
            outcome: self.outcome.unwrap_or(gone.name()),
            streamed: self.streamed,
            duration,
            attempt_duration: self.attempt_duration,
            first_token: self.first_token,
            usage: self.last_usage,
            cost: self.charged,
        };
        if self.attempts > 0 {
            self.app.left(self.arrived.elapsed());
        }
        if ended.outcome == Outcome::Done.name() {
            self.app.ended(&self.id);
        }
        self.app.metrics.ended(&ended);
        log(&ended, &self.id, self.attempts);
    }
}

/// The one line of a request. Never its text, never its key.
fn log(ended: &Ended<'_>, id: &str, attempts: u32) {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(
        request_id = id,
        operation = ended.operation.name(),
        agent = ended.agent,
        alias = ended.alias,
        backend = ended.backend,
        outcome = ended.outcome,
        status = if ended.outcome == "client_gone" { Some(499) } else { None },
        stream = ended.streamed,
        attempts,
        input_tokens = ended.usage.input,
        cached_tokens = ended.usage.cached_input,
        output_tokens = ended.usage.output,
        cost_usd = %ended.cost,
        ttft_ms = ended.first_token.map(milliseconds),
        duration_ms = milliseconds(ended.duration),
        "request"
    );
}
