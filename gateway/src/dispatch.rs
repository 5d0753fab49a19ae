//! Walks a plan: leases each attempt at its own price, sends it, and moves on when it fails before its first byte, or to a cheaper one when a
//! budget wants that.

use crate::app::App;
use crate::billable;
use crate::cascade::{Judge, Judged, Verdict};
use crate::economics::Stake;
use crate::error::{ApiError, BudgetStatus};
use crate::learning::Routed;
use crate::meter::{Meter, Predicted, Running};
use crate::planning::{Planned, Planner};
use crate::stack::Arrival;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_config::{BackendId, Config, OnLimit, PriceSource, Priority, Resolved, Usd};
use tollkeeper_inference::{Call, Reply, ReplyBody};
use tollkeeper_policies::{Caller, Denied, OutputBound, Spend, What};
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::{Operation, Request};
use tollkeeper_router::{Ask, Attempt, ask, estimate, pictures, tokens};

/// Larger prompts (in bytes; a query counts with each of its documents) are estimated instead of counted, since counting keeps a thread from serving others.
const LONGEST_COUNTED: u64 = 64 << 10;

/// Output tokens that a stream's lease grows by while nothing is known of the agent's answers by its model.
const SLICE: u64 = 512;

/// The least and the most of that.
const SLICES: (u64, u64) = (64, 4096);

/// A whole answer without a limit of its own may lease so much of what is left of a budget: then several can run at once, and none locks the
/// budget up. Its answer is limited to what was leased.
const SHARE: u64 = 8;

/// Tokens that a model may read whose context nobody knows.
const UNKNOWN_CONTEXT: u64 = 1_000_000;

/// Tokens a second that a model may reason unseen, while nobody knows how fast it writes: faster than most.
const UNSEEN_RATE: u64 = 300;
/// No model is taken to be faster.
const MOST_UNSEEN_RATE: u64 = 2000;

/// Output tokens that a whole answer may lease whatever its share is.
const SMALLEST_BOUND: u64 = 4096;

/// One request, decoded.
pub(crate) struct Job<'a> {
    pub(crate) app: &'a Arc<App>,
    pub(crate) config: &'a Arc<Config>,
    pub(crate) caller: &'a Caller,
    /// The client's own name for what it works on.
    pub(crate) task: Option<Arc<str>>,
    /// A hash of what is asked.
    pub(crate) signature: Option<u64>,
    pub(crate) planner: Planner<'a>,
    pub(crate) operation: Operation,
    pub(crate) arrival: &'a Arrival,
    pub(crate) deadline: Instant,
    pub(crate) request: Arc<Request>,
    pub(crate) original: Bytes,
}

/// An answer that has begun.
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) backend: Arc<str>,
    pub(crate) why: String,
    /// Why a cheaper target answers than would have, if one does.
    pub(crate) degraded: Option<&'static str>,
    /// The answer's id where the gateway makes one.
    pub(crate) id: Arc<str>,
    /// Unix seconds.
    pub(crate) created: u64,
    /// Its place in what is learned, if anything is.
    pub(crate) routed: Option<Routed>,
}

impl Job<'_> {
    /// What one attempt wants to spend, the limit that its answer must have because of that, and the input tokens that are charged where nobody
    /// reports them.
    fn spend(&self, number: u32, ask: &Ask, attempt: &Attempt, charged: Usd) -> (Spend, Option<u64>, u64) {
        let local = matches!(attempt.id, BackendId::Local(_));
        let bytes = ask.input_tokens.saturating_mul(ask::BYTES_PER_TOKEN).max(self.original.len() as u64);
        let counted = match &attempt.id {
            _ if bytes > LONGEST_COUNTED => None,
            id @ BackendId::Local(_) => self.app.fleet.input_tokens(id, &self.request),
            BackendId::Remote { model, .. } => tokens::counted(&self.request, model),
        };
        let read = counted.unwrap_or(ask.input_tokens);
        let mut spend = Spend {
            request_id: self.arrival.id.clone(),
            attempt: number,
            operation: self.operation,
            alias: self.request.model().into(),
            backend: attempt.id.clone(),
            price: attempt.facts.price.clone(),
            catalog_version: match attempt.facts.price.source {
                PriceSource::Energy => "energy".into(),
                _ => self.config.catalog.version.as_str().into(),
            },
            input_tokens: most_input(read, ask, attempt),
            answers: ask.answers,
            output: OutputBound::Whole(0),
            request_left: self.caller.agent.max_request.map(|most| most.saturating_sub(charged).max(Usd::ZERO)),
            final_answer: self.request.is_tool_free(),
            task: self.task.clone(),
            signature: self.signature,
            billable: billable::of(&self.request, &self.original),
        };
        let mut limit = None;
        if local || (ask.stream && !attempt.facts.abilities.reasoning) {
            spend.output = OutputBound::Growing { slice: self.slice(attempt), max: ask.max_output };
        } else if self.operation.generates() {
            let wanted = ask.max_output.unwrap_or_else(|| longest(ask, attempt));
            let bound = self.share(ask, attempt, &spend).map_or(wanted, |share| share.min(wanted));
            spend.output = OutputBound::Whole(bound);
            limit = (bound < wanted).then_some(bound);
        }
        (spend, limit, read)
    }

    /// What a stream's lease begins with and grows by: what nine of ten of the agent's answers by this model need.
    fn slice(&self, attempt: &Attempt) -> u64 {
        let expected = self.app.policies.expected_output(&self.caller.agent, &attempt.id);
        expected.map_or(SLICE, |tokens| tokens.clamp(SLICES.0, SLICES.1))
    }

    /// The most that an answer from a provider may lease whose tokens are not seen as they are made, so that several can run at once: its share
    /// of what all budgets over it can pay. That holds for whole answers without a limit of their own, and for streams of models that may reason
    /// unseen, for which clients mostly name a limit that is far off.
    fn share(&self, ask: &Ask, attempt: &Attempt, spend: &Spend) -> Option<u64> {
        if ask.max_output.is_some() && !ask.stream {
            return None;
        }
        let affords = self.app.policies.affords(self.caller, spend)?;
        // Twice what nine of ten answers need: rather too much than an answer cut short.
        let expected = self.app.policies.expected_output(&self.caller.agent, &attempt.id);
        let smallest =
            expected.map_or(SMALLEST_BOUND, |tokens| tokens.saturating_mul(2).clamp(SLICES.0, SMALLEST_BOUND));
        // What the client has it think comes on top: providers refuse a limit below that.
        Some((affords / SHARE).max(smallest.saturating_add(thinking(&self.request))))
    }

    /// How many tokens a second a provider's model may reason without anybody seeing it.
    fn unseen_rate(&self, attempt: &Attempt) -> Option<u64> {
        let reasons = attempt.facts.abilities.reasoning && matches!(attempt.id, BackendId::Remote { .. });
        // Twice what it was seen to write: rather too much than too little.
        let twice = |rate: u32| (2 * u64::from(rate)).min(MOST_UNSEEN_RATE);
        reasons.then(|| self.app.paces.of(&attempt.id).1.map_or(UNSEEN_RATE, twice))
    }

    fn call(&self, output_limit: Option<u64>, measured: u32, abandoned: Arc<AtomicBool>) -> Call {
        Call {
            request: self.request.clone(),
            original: self.original.clone(),
            operation: self.operation,
            output_limit,
            measured,
            priority: if self.request.is_flexible() || self.planner.asked.is_batch {
                Priority::Batch
            } else {
                self.caller.agent.priority
            },
            request_id: self.arrival.id.clone(),
            deadline: self.deadline,
            abandoned,
        }
    }
}

/// The most input tokens that a provider may bill, `read` being those of the texts and a guess of the rest: pictures as its model counts
/// large ones, and files no more than its context holds.
fn most_input(read: u64, ask: &Ask, attempt: &Attempt) -> u64 {
    let BackendId::Remote { model, .. } = &attempt.id else { return read };
    let each = pictures::most_tokens(model).saturating_sub(ask::MEDIA_TOKENS);
    let read = read.saturating_add(ask.images.saturating_mul(each));
    match ask.unread {
        0 => read,
        unread => read.saturating_add(unread).min(attempt.facts.context.unwrap_or(UNKNOWN_CONTEXT)).max(read),
    }
}

/// The most tokens that the model can answer with.
fn longest(ask: &Ask, attempt: &Attempt) -> u64 {
    attempt.facts.max_output.unwrap_or(estimate::UNKNOWN_OUTPUT).saturating_mul(ask.answers.max(1))
}

/// How many tokens the client has a model think: Anthropic's `thinking.budget_tokens`, OpenRouter's `reasoning.max_tokens`.
fn thinking(request: &Request) -> u64 {
    let said = [("thinking", "budget_tokens"), ("reasoning", "max_tokens")];
    said.into_iter().filter_map(|(object, field)| request.extra(object)?.get(field)?.as_u64()).max().unwrap_or(0)
}

/// What the caller should hear of when several attempts failed: the fault that waiting may cure.
fn tells_more(new: FaultKind, old: FaultKind) -> bool {
    let operators = |kind| matches!(kind, FaultKind::Auth | FaultKind::Unavailable | FaultKind::NotFound);
    !operators(new) || operators(old)
}

/// Finds an answer: plans who should give it, and tries them in order. Where a budget sends the request to cheaper targets and none of the
/// plan's is, those of the agent's `degrade_to` are tried.
///
/// # Errors
/// The budget refuses, the request itself is at fault, or every attempt failed.
pub(crate) async fn answer(job: &Job<'_>, resolved: Resolved, meter: &mut Meter) -> Result<Answer, ApiError> {
    if let Some(denied) = job.app.policies.paused_alias(job.request.model()) {
        return Err(ApiError::denied(denied));
    }
    let mut walk = Walk::default();
    let planned = job.planner.plan(job.planner.permitted(resolved)?)?;
    let refused = match walk.through(job, &planned, meter).await {
        Err(ApiError::Denied(denied @ Denied::Budget(_), status)) if walk.dearest.is_some() => {
            ApiError::Denied(denied, status)
        }
        other => return other,
    };
    let resolved = job.planner.last_resort().and_then(|resolved| job.planner.permitted(resolved).ok());
    let answered = match resolved.and_then(|resolved| job.planner.plan(resolved).ok()) {
        Some(planned) => walk.through(job, &planned, meter).await.ok(),
        None => None,
    };
    answered.ok_or_else(|| {
        if let ApiError::Denied(Denied::Budget(blocked), _) = &refused {
            job.app.policies.tell(job.caller, What::Denied(blocked.clone()));
        }
        refused
    })
}

/// The attempts of one request so far.
#[derive(Default)]
struct Walk {
    number: u32,
    tried: Vec<BackendId>,
    /// A budget refused a target that would have cost so much and wants a cheaper one.
    dearest: Option<Usd>,
    refused: Option<ApiError>,
    /// What is told if a cheaper one answers.
    degraded: Option<What>,
    /// What the caller should hear if nothing else: the last fault that is not the operator's, if any.
    fault: Option<(FaultKind, ApiError)>,
    /// An answer that is not shown if there is one from a higher tier.
    aside: Option<Aside>,
}

/// An answer that was held back and found unfit.
struct Aside {
    answer: Answer,
    verdict: Verdict,
    tier: u8,
    /// How long it took to find that out, from the beginning of its attempt.
    took: Duration,
}

impl Walk {
    /// Finds an answer: the first that is fit, else the last that is not. A doubtful answer is better than an error.
    async fn through(&mut self, job: &Job<'_>, planned: &Planned, meter: &mut Meter) -> Result<Answer, ApiError> {
        let walked = self.attempts(job, planned, meter).await;
        let Some(Aside { answer, verdict, took, .. }) = self.aside.take() else { return walked };
        let cascade = &job.app.metrics.cascade;
        match walked {
            Ok(better) => {
                let cost = meter.give_up().unwrap_or(Usd::ZERO);
                cascade.wasted(meter.alias(), cost, took);
                Ok(Answer { why: format!("{};{verdict}", better.why), ..better })
            }
            Err(error) => {
                meter.resume();
                cascade.looked(meter.alias(), "nobody_above");
                let degraded = matches!(error, ApiError::Denied(Denied::Budget(_), _)).then_some("budget");
                let why = format!("{};{verdict};above={}", answer.why, error.outcome());
                Ok(Answer { why, degraded: answer.degraded.or(degraded), ..answer })
            }
        }
    }

    /// Tries the plan's attempts in order until one answers and is fit to be shown.
    async fn attempts(&mut self, job: &Job<'_>, planned: &Planned, meter: &mut Meter) -> Result<Answer, ApiError> {
        for (at, attempt) in planned.plan.attempts.iter().enumerate() {
            let too_dear = self.dearest.is_some_and(|dearest| attempt.cost.expected >= dearest);
            let too_low = self.aside.as_ref().is_some_and(|aside| attempt.why.tier <= aside.tier);
            if too_dear || too_low || self.tried.contains(&attempt.id) {
                continue;
            }
            self.tried.push(attempt.id.clone());
            // What a budget refused was no attempt.
            let number = self.number + 1;
            let judge = Judge::of(job, planned, at);
            let began = Instant::now();
            let tried = one(job, number, planned, attempt, judge.as_ref(), meter).await;
            self.number += u32::from(tried.is_ok());
            let tried = match (tried, judge) {
                (Ok(Ok(answer)), Some(judge)) => self.judged(job, &judge, attempt, began, answer, meter).await,
                (Ok(tried), _) => Ok(tried.map(Some)),
                (Err(refused), _) => Err(refused),
            };
            match tried {
                // It is set aside.
                Ok(Ok(None)) => {}
                Ok(Ok(Some(mut answer))) => {
                    answer.degraded = match (self.dearest, job.planner.slowed) {
                        (Some(_), _) => Some("budget"),
                        (None, true) => Some("velocity"),
                        (None, false) => None,
                    };
                    if let Some(degraded) = self.degraded.take() {
                        job.app.policies.tell(job.caller, degraded);
                    }
                    return Ok(answer);
                }
                Ok(Err(fault)) => self.failed(job, attempt, fault, meter)?,
                Err(ApiError::Denied(Denied::Budget(blocked), status)) if blocked.on_limit == OnLimit::Degrade => {
                    let reason = blocked.to_string().into();
                    self.degraded.get_or_insert(What::Degraded { from: attempt.id.clone(), reason });
                    self.dearest = Some(attempt.cost.expected);
                    self.refused.get_or_insert(ApiError::Denied(Denied::Budget(blocked), status));
                }
                Err(refused) => return Err(self.refused.take().unwrap_or(refused)),
            }
        }
        let fault = self.fault.take().map(|(_, error)| error);
        // A plan without a refusal has an attempt.
        Err(self.refused.take().or(fault).unwrap_or_else(|| ApiError::NotReady("the plan is empty".into())))
    }

    /// Looks at the answer of an attempt that began then before it is shown; one that is not fit is set aside.
    async fn judged(
        &mut self,
        job: &Job<'_>,
        judge: &Judge,
        attempt: &Attempt,
        began: Instant,
        answer: Answer,
        meter: &mut Meter,
    ) -> Result<Result<Option<Answer>, ProviderFault>, ApiError> {
        let ReplyBody::Events(events) = answer.reply.body else { return Ok(Ok(Some(answer))) };
        let looking = Instant::now();
        let looked = judge.look(events, meter).await;
        meter.waited(looking.elapsed());
        let Judged { verdict, events } = match looked {
            Ok(judged) => judged,
            Err(fault) => return Ok(Err(fault)),
        };
        meter.looked(verdict.cause, &judge.above);
        if let (Some(routed), Some(signal)) = (&answer.routed, verdict.cause.signal()) {
            job.app.learn(routed, signal);
        }
        let answer = Answer { reply: Reply { body: ReplyBody::Events(events), ..answer.reply }, ..answer };
        if verdict.cause.is_shown() {
            return Ok(Ok(Some(Answer { why: format!("{};{verdict}", answer.why), ..answer })));
        }
        let cost = meter.set_aside();
        let aside = Aside { answer, verdict, tier: attempt.why.tier, took: began.elapsed() };
        if let (Some(older), Some(cost)) = (self.aside.replace(aside), cost) {
            job.app.metrics.cascade.wasted(meter.alias(), cost, older.took);
        }
        Ok(Ok(None))
    }

    /// Notes a fault that another attempt may get around, and returns any other.
    fn failed(
        &mut self,
        job: &Job<'_>,
        attempt: &Attempt,
        fault: ProviderFault,
        meter: &mut Meter,
    ) -> Result<(), ApiError> {
        meter.failed(&fault);
        let backend = attempt.id.to_string();
        tracing::debug!(request_id = %job.arrival.id, %backend, error.r#type = fault.kind.name(), status = fault.status, "attempt failed");
        let kind = fault.kind;
        let error = ApiError::Provider { backend, fault };
        if !kind.is_retryable() {
            return Err(error);
        }
        if self.fault.as_ref().is_none_or(|(old, _)| tells_more(kind, *old)) {
            self.fault = Some((kind, error));
        }
        Ok(())
    }
}

async fn one(
    job: &Job<'_>,
    number: u32,
    planned: &Planned,
    attempt: &Attempt,
    judge: Option<&Judge>,
    meter: &mut Meter,
) -> Result<Result<Answer, ProviderFault>, ApiError> {
    let (spend, share, input_tokens) = job.spend(number, &planned.ask, attempt, meter.cost(true));
    let seen = planned.ask.stream || matches!(spend.output, OutputBound::Growing { .. });
    let status = BudgetStatus(job.config.server.budget_status);
    let lease = job.app.policies.admit(job.caller, spend).await.map_err(|denied| ApiError::Denied(denied, status))?;
    let limit = [lease.output_limit(), share].into_iter().flatten().min();
    let backend: Arc<str> = attempt.id.to_string().into();
    let started = Instant::now();
    meter.begin(Running {
        lease,
        backend: job.app.labels.of(job.config, &backend),
        provider: job.app.fleet.peer(&attempt.id).map_or("tollkeeper", |peer| peer.provider_name),
        id: attempt.id.clone(),
        price: attempt.facts.price.clone(),
        predicted: Predicted { time: attempt.time, cost: attempt.cost.expected },
        stake: Stake::of(planned, attempt),
        input_tokens,
        seen,
        unseen_rate: job.unseen_rate(attempt).filter(|_| seen),
        started,
    });
    let call = job.call(limit, judge.map_or(0, Judge::measured), meter.abandoned());
    let (app, id) = (job.app.clone(), attempt.id.clone());
    // In a box, so that it can go on without the client, and does not take memory before.
    let answer = Box::pin(async move { app.fleet.send(&id, call).await });
    let is_seen = seen || matches!(attempt.id, BackendId::Local(_));
    let sent = if is_seen { answer.await } else { meter.whole(answer).await };
    meter.waited(started.elapsed());
    let routed = planned.basis.start.as_ref().map(|start| start.routed(attempt.why.tier, backend.clone()));
    Ok(sent.map(|reply| Answer {
        reply,
        backend,
        why: format!("{}{}", attempt.why, planned.basis),
        degraded: None,
        id: job.arrival.id.clone(),
        created: u64::try_from(job.app.clock.now().as_second()).unwrap_or(0),
        routed,
    }))
}
