//! Walks a plan: leases each attempt at its own price, sends it, and moves on when it fails before its first byte.

use crate::app::App;
use crate::error::{ApiError, BudgetStatus};
use crate::meter::{Meter, Running};
use crate::stack::Arrival;
use bytes::Bytes;
use std::sync::Arc;
use tokio::time::Instant;
use tollkeeper_config::{BackendId, Config, Priority, Resolved};
use tollkeeper_inference::{BackendHealth, BackendState, Call, Reply};
use tollkeeper_policies::{Agent, OutputBound, Spend};
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::{Operation, Request};
use tollkeeper_router::{Ask, Attempt, Candidate, Health, Plan, Rules, ask, estimate, plan};

/// Larger prompts (in bytes; a query counts with each of its documents) are estimated instead of counted, since counting keeps a thread from serving others.
const LONGEST_COUNTED: u64 = 64 << 10;

/// Output tokens that a stream's lease grows by.
const SLICE: u64 = 512;

/// A whole answer without a limit of its own may lease so much of what is left of a budget: then several can run at once, and none locks the
/// budget up. Its answer is limited to what was leased.
const SHARE: i64 = 8;

/// Output tokens that a whole answer may lease whatever its share is.
const SMALLEST_BOUND: u64 = 4096;

/// One request, decoded.
pub(crate) struct Job<'a> {
    pub(crate) app: &'a Arc<App>,
    pub(crate) config: &'a Arc<Config>,
    pub(crate) agent: &'a Arc<Agent>,
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
    /// The answer's id where the gateway makes one.
    pub(crate) id: Arc<str>,
    /// Unix seconds.
    pub(crate) created: u64,
}

impl Job<'_> {
    /// Plans who should answer.
    ///
    /// # Errors
    /// Nobody can.
    pub(crate) fn plan(&self, resolved: Resolved) -> Result<(Ask, Plan), ApiError> {
        let ask = ask(&self.request);
        let candidates = resolved.targets.into_iter().filter_map(|(id, tier)| self.candidate(id, tier)).collect();
        let patience_ms = u64::try_from(self.config.local.swap.patience.as_millis()).unwrap_or(u64::MAX);
        let rules = Rules { strategy: resolved.strategy, patience_ms };
        let plan = plan(&ask, candidates, rules, self.arrival.seed);
        self.note_missed(&plan);
        match plan.refusal() {
            Some((kind, why)) => Err(ApiError::NoBackend(kind, why)),
            None => Ok((ask, plan)),
        }
    }

    /// Says which local models would have come before the first attempt had they been in memory.
    fn note_missed(&self, plan: &Plan) {
        if plan.attempts.first().is_some_and(|first| !first.why.absent) {
            for missed in plan.attempts.iter().filter(|attempt| attempt.why.absent) {
                self.app.fleet.missed(&missed.id);
            }
        }
    }

    fn candidate(&self, id: BackendId, tier: u8) -> Option<Candidate> {
        let facts = self.config.facts(&id)?;
        let BackendState { health, in_flight, queue_tokens, .. } = self.app.fleet.snapshot(&id);
        let health = match health {
            BackendHealth::Ready => Health::Ready,
            BackendHealth::Absent { ready_in } => {
                Health::Absent { ready_in_ms: u64::try_from(ready_in.as_millis()).unwrap_or(u64::MAX) }
            }
            BackendHealth::Cooling { until } => Health::Cooling { until_ms: self.unix_ms(until) },
            BackendHealth::Unavailable(why) => Health::Unavailable(why),
        };
        Some(Candidate { id, tier, facts, health, in_flight, queue_tokens })
    }

    fn unix_ms(&self, moment: Instant) -> u64 {
        let now = u64::try_from(self.app.clock.now().as_millisecond()).unwrap_or(0);
        now + u64::try_from(moment.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(0)
    }

    /// What one attempt wants to spend, and the limit that its answer must have because of that.
    fn spend(&self, number: u32, ask: &Ask, attempt: &Attempt) -> (Spend, Option<u64>) {
        let local = matches!(attempt.id, BackendId::Local(_));
        let bytes = ask.input_tokens.saturating_mul(ask::BYTES_PER_TOKEN).max(self.original.len() as u64);
        let counted = if local && bytes <= LONGEST_COUNTED {
            self.app.fleet.input_tokens(&attempt.id, &self.request)
        } else {
            None
        };
        let (output, limit) = if !self.operation.generates() {
            (OutputBound::Whole(0), None)
        } else if local {
            (OutputBound::Growing { slice: SLICE, max: ask.max_output }, None)
        } else if ask.stream {
            (OutputBound::Growing { slice: SLICE, max: ask.max_output }, self.affordable(ask, attempt))
        } else {
            self.whole(ask, attempt)
        };
        let spend = Spend {
            request_id: self.arrival.id.clone(),
            attempt: number,
            operation: self.operation,
            alias: self.request.model().into(),
            backend: attempt.id.clone(),
            price: attempt.facts.price.clone(),
            catalog_version: self.config.catalog.version.as_str().into(),
            input_tokens: counted.unwrap_or(ask.input_tokens),
            answers: ask.answers,
            output,
        };
        (spend, limit)
    }

    /// The bound of a whole answer from a provider: what was asked for, else what the model can, but no more than its share of the budget.
    fn whole(&self, ask: &Ask, attempt: &Attempt) -> (OutputBound, Option<u64>) {
        let wanted = ask.max_output.unwrap_or_else(|| longest(ask, attempt));
        let remaining = self.app.policies.remaining(self.agent);
        let price = attempt.facts.price.rates(ask.input_tokens).output.0;
        let (Some(remaining), true, None) = (remaining, price > 0, ask.max_output) else {
            return (OutputBound::Whole(wanted), None);
        };
        let share = u64::try_from(remaining.0 / SHARE).unwrap_or(0).saturating_mul(1000) / price;
        let bound = wanted.min(share.max(SMALLEST_BOUND));
        (OutputBound::Whole(bound), (bound < wanted).then_some(bound))
    }

    /// The limit of a stream of a model whose reasoning is billed without being seen, when the budget could not pay its longest answer: the
    /// provider itself must stop there.
    fn affordable(&self, ask: &Ask, attempt: &Attempt) -> Option<u64> {
        if !attempt.facts.abilities.reasoning {
            return None;
        }
        let price = u128::from(attempt.facts.price.rates(ask.input_tokens).output.0);
        let remaining = self.app.policies.remaining(self.agent)?.0.saturating_sub(attempt.cost.input.0);
        let pico = u128::try_from(remaining).unwrap_or(0).saturating_mul(1000);
        let tokens = u64::try_from(pico.checked_div(price)?).unwrap_or(u64::MAX).max(ask.answers.max(1));
        (tokens < ask.max_output.unwrap_or_else(|| longest(ask, attempt))).then_some(tokens)
    }

    fn call(&self, output_limit: Option<u64>) -> Call {
        Call {
            request: self.request.clone(),
            original: self.original.clone(),
            operation: self.operation,
            output_limit,
            priority: if self.request.is_flexible() { Priority::Batch } else { self.agent.priority },
            request_id: self.arrival.id.clone(),
            deadline: self.deadline,
        }
    }
}

/// The most tokens that the model can answer with.
fn longest(ask: &Ask, attempt: &Attempt) -> u64 {
    attempt.facts.max_output.unwrap_or(estimate::UNKNOWN_OUTPUT).saturating_mul(ask.answers.max(1))
}

/// What the caller should hear of when several attempts failed: the fault that waiting may cure.
fn tells_more(new: FaultKind, old: FaultKind) -> bool {
    let operators = |kind| matches!(kind, FaultKind::Auth | FaultKind::Unavailable | FaultKind::NotFound);
    !operators(new) || operators(old)
}

/// Tries the plan's attempts in order until one answers.
///
/// # Errors
/// The budget refuses, the request itself is at fault, or every attempt failed: then the last fault that is not the operator's, if any.
pub(crate) async fn walk(job: &Job<'_>, (ask, plan): (Ask, Plan), meter: &mut Meter) -> Result<Answer, ApiError> {
    let mut last: Option<(FaultKind, ApiError)> = None;
    for (number, attempt) in (1u32..).zip(&plan.attempts) {
        match one(job, number, &ask, attempt, meter).await? {
            Ok(answer) => return Ok(answer),
            Err(fault) => {
                meter.failed(&fault);
                let backend = attempt.id.to_string();
                tracing::debug!(request_id = %job.arrival.id, %backend, error.r#type = fault.kind.name(), status = fault.status, "attempt failed");
                let kind = fault.kind;
                if !kind.is_retryable() {
                    return Err(ApiError::Provider { backend, fault });
                }
                if last.as_ref().is_none_or(|(old, _)| tells_more(kind, *old)) {
                    last = Some((kind, ApiError::Provider { backend, fault }));
                }
            }
        }
    }
    // A plan without a refusal has an attempt.
    Err(last.map_or_else(|| ApiError::NotReady("the plan is empty".into()), |(_, error)| error))
}

async fn one(
    job: &Job<'_>,
    number: u32,
    ask: &Ask,
    attempt: &Attempt,
    meter: &mut Meter,
) -> Result<Result<Answer, ProviderFault>, ApiError> {
    let (spend, share) = job.spend(number, ask, attempt);
    let input_tokens = spend.input_tokens;
    let seen = matches!(spend.output, OutputBound::Growing { .. });
    let status = BudgetStatus(job.config.server.budget_status);
    let lease = job.app.policies.admit(job.agent, spend).await.map_err(|denied| ApiError::Denied(denied, status))?;
    let limit = [lease.output_limit(), share].into_iter().flatten().min();
    let backend: Arc<str> = attempt.id.to_string().into();
    let started = Instant::now();
    meter.begin(Running {
        lease,
        backend: job.app.labels.of(job.config, &backend),
        provider: job.app.fleet.peer(&attempt.id).map_or("tollkeeper", |peer| peer.provider_name),
        price: attempt.facts.price.clone(),
        input_tokens,
        seen,
        started,
    });
    let sent = job.app.fleet.send(&attempt.id, job.call(limit)).await;
    meter.waited(started.elapsed());
    Ok(sent.map(|reply| Answer {
        reply,
        backend,
        why: attempt.why.to_string(),
        id: job.arrival.id.clone(),
        created: u64::try_from(job.app.clock.now().as_second()).unwrap_or(0),
    }))
}
