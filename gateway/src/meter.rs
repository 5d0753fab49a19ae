//! The account of one request from its admission to its last byte: lease, tokens, times, outcome. Whatever way a request ends, dropping its
//! meter settles the lease and writes the one log line and the metrics.

use crate::app::App;
use crate::stack::Arrival;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tollkeeper_config::{BackendId, Price, Usd};
use tollkeeper_inference::{Reply, ReplyBody};
use tollkeeper_policies::{Agent, Charge, Denied, Lease, Outcome, RateGuard, Settlement};
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::event::ChatEvent;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::usage::Usage;
use tollkeeper_router::TimeEstimate;

/// Text bytes per token when nobody counted: fewer than real tokenisers need for English (about four), so that an estimate is not too low.
const BYTES_PER_TOKEN: u64 = 3;

/// A whole answer of a provider, on its way.
pub(crate) type Pending = Pin<Box<dyn Future<Output = Result<Reply, ProviderFault>> + Send>>;

/// One attempt at one backend, while it runs.
pub(crate) struct Running {
    pub(crate) lease: Lease,
    pub(crate) backend: Arc<str>,
    pub(crate) provider: &'static str,
    pub(crate) price: Price,
    pub(crate) id: BackendId,
    /// What it was expected to take.
    pub(crate) predicted: Predicted,
    /// Prompt tokens, as leased.
    pub(crate) input_tokens: u64,
    /// Whether tokens are seen as they are made, because the backend streams to us; or that there are none.
    pub(crate) seen: bool,
    pub(crate) started: Instant,
}

/// What an attempt was expected to take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Predicted {
    pub(crate) time: TimeEstimate,
    pub(crate) cost: Usd,
}

/// The account of one request.
pub(crate) struct Meter {
    app: Arc<App>,
    operation: Operation,
    agent: Arc<Agent>,
    alias: Arc<str>,
    id: Arc<str>,
    arrived: Instant,
    streamed: bool,
    running: Option<Running>,
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
    output: Seen,
    /// What the backend reported, and what had been seen when it did.
    usage: Option<(Usage, u64)>,
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

/// Output as it was seen go by.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Tokens that the backend counted.
    tokens: u64,
    /// Bytes and frames of what it did not count.
    bytes: u64,
    frames: u64,
}

impl Seen {
    fn tokens(self) -> u64 {
        self.tokens + self.bytes.div_ceil(BYTES_PER_TOKEN).max(self.frames)
    }
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
            running: None,
            pending: None,
            abandoned: Arc::default(),
            backend: "".into(),
            provider: "",
            attempts: 0,
            attempt_duration: Duration::ZERO,
            waited: Duration::ZERO,
            first_token: None,
            output: Seen::default(),
            usage: None,
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
        self.output = Seen::default();
        self.usage = None;
        self.running = Some(running);
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

    /// The attempt failed before anything of it reached the client. What an unseen answer may have cost is charged; else nothing.
    pub(crate) fn failed(&mut self, fault: &ProviderFault) {
        let outcome = Outcome::Fault(fault.kind);
        if may_have_cost(fault) {
            if let Some(running) = self.running.as_mut().filter(|_| fault.status.is_some_and(|status| status >= 400)) {
                // It has said that there is no answer.
                running.seen = true;
            }
            self.close(outcome);
        } else if let Some(running) = self.running.take() {
            self.attempt_duration = running.started.elapsed();
            self.app.metrics.attempt(&running.backend, outcome.name());
            running.lease.release(outcome);
        }
    }

    /// Content is on its way to the client.
    pub(crate) fn first_content(&mut self) {
        if self.first_token.is_none() {
            self.first_token = Some(self.arrived.elapsed());
        }
    }

    /// The backend's own count; the last one holds.
    pub(crate) fn reported(&mut self, usage: Usage) {
        self.usage = Some((usage, self.output.tokens()));
    }

    /// Tokens and text of a local engine's event. Before it is delivered, [`poll_paid`](Self::poll_paid).
    pub(crate) fn event(&mut self, event: &ChatEvent) {
        let tokens = match event {
            ChatEvent::Text { tokens, .. }
            | ChatEvent::Reasoning { tokens, .. }
            | ChatEvent::ToolCall { tokens, .. } => *tokens,
            ChatEvent::Usage(usage) => return self.reported(*usage),
            ChatEvent::Finish { .. } => return,
        };
        self.first_content();
        self.output.tokens += u64::from(tokens);
    }

    /// Text of a remote frame. Before it is delivered, [`poll_paid`](Self::poll_paid).
    pub(crate) fn text(&mut self, bytes: usize) {
        if bytes > 0 {
            self.first_content();
            self.output.bytes += bytes as u64;
            self.output.frames += 1;
        }
    }

    /// Text of a whole answer whose tokens nobody counted.
    pub(crate) fn whole_text(&mut self, bytes: usize) {
        if let Some(running) = &mut self.running {
            running.seen = true;
        }
        self.output.bytes += bytes as u64;
    }

    /// Ready when all that was seen is paid for, or cannot be. Pending only while other gateways are asked, which share a
    /// budget.
    pub(crate) fn poll_paid(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Denied>> {
        let tokens = self.output.tokens();
        let Some(running) = self.running.as_mut() else { return Poll::Ready(Ok(())) };
        let paid = ready!(running.lease.poll_cover(cx, tokens));
        if paid.is_err() {
            // What is not paid for is not delivered, and so not charged.
            self.output = Seen { tokens: running.lease.covered(), ..Seen::default() };
        }
        Poll::Ready(paid)
    }

    /// What the answer has used: as reported, else as estimated. A report that an answer has outgrown before it broke off is not the last word.
    pub(crate) fn usage(&self, whole: bool) -> (Usage, bool) {
        let Some((usage, seen)) = self.usage else {
            let running = self.running.as_ref();
            let input = running.map_or(0, |running| running.input_tokens);
            let mut output = self.output.tokens();
            if let Some(running) = running.filter(|running| !running.seen && output == 0) {
                // Nobody knows how much of the answer there was, and the provider may bill all of it.
                output = running.lease.covered();
            }
            return (Usage { input, output, ..Usage::default() }, true);
        };
        let tokens = self.output.tokens();
        if whole || tokens <= seen {
            return (usage, false);
        }
        (Usage { output: usage.output.max(tokens), ..usage }, true)
    }

    /// The backend of the last attempt; empty when there was none.
    pub(crate) fn backend(&self) -> &str {
        &self.backend
    }

    /// Whether the backend has reported what the answer used.
    pub(crate) fn is_reported(&self) -> bool {
        self.usage.is_some()
    }

    /// What the request costs, as far as it is known now, all attempts together.
    pub(crate) fn cost(&self, whole: bool) -> Usd {
        let running = self.running.as_ref().map_or(Usd::ZERO, |running| running.price.charge(&self.usage(whole).0));
        self.charged.saturating_add(running)
    }

    /// How fast the backend wrote, and how good the estimate was.
    fn learn(&self, id: &BackendId, predicted: Predicted, tokens: u64, cost: Usd) {
        let first = self.first_token.filter(|_| self.streamed);
        if let (BackendId::Remote { .. }, Some(first)) = (id, first) {
            self.app.paces.saw(id, tokens, self.attempt_duration.saturating_sub(first));
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
        let running = self.running.take()?;
        self.attempt_duration = running.started.elapsed();
        self.outcome = Some(outcome.name());
        self.app.metrics.attempt(&running.backend, outcome.name());
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
        // After a fault another attempt may follow, for which the estimate still stands.
        if !matches!(outcome, Outcome::Fault(_)) {
            self.count_tokens();
        }
        if !estimated {
            self.app.metrics.estimated(running.provider, running.input_tokens, usage.input);
        }
        if outcome == Outcome::Done {
            self.learn(&running.id, running.predicted, usage.output, charge.cost);
        }
        self.last_usage = usage;
        self.charged = self.charged.saturating_add(charge.cost);
        self.ended_after = Some(self.arrived.elapsed());
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
        self.app.metrics.ended(&ended);
        log(&ended, &self.id, self.attempts);
    }
}

/// Whether a backend may have generated, and billed, what never arrived: the time ran out, or an answer that had begun broke off.
fn may_have_cost(fault: &ProviderFault) -> bool {
    match fault.kind {
        FaultKind::Timeout => true,
        FaultKind::Connection | FaultKind::Malformed => fault.status.is_some_and(|status| (200..300).contains(&status)),
        _ => false,
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
