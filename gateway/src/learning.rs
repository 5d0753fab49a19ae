//! What routes learn from their outcomes: answers are remembered for a while, what is said of them or can be told from outside is counted for the
//! tier that gave them, and pyramids begin where that says. `tollkeeper_router::learning` holds the arithmetic.

mod book;
mod check;
mod memory;

use crate::app::App;
use crate::body::Body;
use crate::dispatch::Answer;
use crate::error::ApiError;
use crate::signature::question;
use crate::stack::Arrival;
use book::Book;
use memory::{Memory, Remembered};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_config::{Config, Learning as Settings};
use tollkeeper_protocol::Request;
use tollkeeper_router::learning::{Choice, Evidence, Outcome};

pub(crate) use book::GroupView;
pub(crate) use check::Streamed;
pub(crate) use memory::{MOST_REMEMBERED, OLDEST};

/// Who asks the same again within this time was not content with the answer.
const RETRIED_WITHIN: Duration = Duration::from_secs(120);

/// How often what was learned is kept.
const KEPT_EVERY: Duration = Duration::from_secs(30);

/// Requests that are alike: outcomes of one say something of another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Group {
    /// What the client named: tiers of different aliases are different models.
    pub(crate) alias: Arc<str>,
    /// The type of the task; `other` for those that are neither built in nor configured.
    pub(crate) task: Arc<str>,
    /// The tier that the difficulty says: a hard request is no example for an easy one.
    pub(crate) said: u8,
}

/// Where a pyramid begins for a request, and for which requests that is learned.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Start {
    pub(crate) group: Arc<Group>,
    pub(crate) choice: Choice,
}

impl Start {
    /// The same with who answers.
    pub(crate) fn routed(&self, tier: u8, backend: Arc<str>) -> Routed {
        Routed { group: self.group.clone(), tier, backend, choice: self.choice }
    }
}

/// An answer's place in what is learned.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Routed {
    group: Arc<Group>,
    /// The tier of who answers.
    tier: u8,
    /// Who that is.
    backend: Arc<str>,
    /// Where the request began.
    choice: Choice,
}

/// What can be told of an answer without being told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// It was found unfit before its client saw it.
    Escalated,
    /// It was looked at for that, and was good enough.
    Accepted,
    /// It is not the JSON that was asked for, or calls what cannot be called so.
    CheckFailed,
    /// It is, and calls what can be.
    CheckPassed,
    /// The same agent asked the same again soon after.
    Retried,
    /// Nobody did, and nothing else is known.
    Quiet,
}

impl Signal {
    /// Its name in metrics, how good that is, and how much it says beside somebody's word. A check says the same whether it is passed or failed, so
    /// that it is their share which counts. That an answer is left at that says little, but it is said of most.
    fn meaning(self) -> (&'static str, f64, f64) {
        match self {
            Self::Escalated => ("escalated", 0.0, 0.25),
            Self::Accepted => ("accepted", 1.0, 0.25),
            Self::CheckFailed => ("check_failed", 0.0, 0.25),
            Self::CheckPassed => ("check_passed", 1.0, 0.25),
            Self::Retried => ("retried", 0.0, 0.25),
            Self::Quiet => ("quiet", 1.0, 0.05),
        }
    }
}

/// What was made of somebody's word.
pub(crate) struct Heard {
    pub(crate) routed: Routed,
    /// Whether something that was known of the answer before is replaced by it.
    pub(crate) replaced: bool,
}

impl Heard {
    pub(crate) fn task(&self) -> &str {
        &self.routed.group.task
    }

    pub(crate) fn alias(&self) -> &str {
        &self.routed.group.alias
    }

    pub(crate) fn tier(&self) -> u8 {
        self.routed.tier
    }

    pub(crate) fn backend(&self) -> &str {
        &self.routed.backend
    }
}

/// What is known of routes, and of which answers more may be heard.
#[derive(Default)]
pub(crate) struct Learning(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    book: Book,
    memory: Memory,
}

impl Learning {
    /// With what an earlier gateway kept.
    pub(crate) fn restore(kept: Vec<(Arc<str>, Arc<str>)>, config: &Config) -> Self {
        Self(Mutex::new(Inner { book: Book::restore(kept, config), memory: Memory::default() }))
    }

    /// What is known of the tiers for such requests, as of `now_ms`.
    pub(crate) fn known(&self, group: &Group, settings: &Settings, now_ms: i64) -> Vec<(u8, Evidence)> {
        self.lock().book.known(group, settings, now_ms)
    }

    /// Everything that was learned, by alias and task.
    pub(crate) fn report(&self, config: &Config, settings: &Settings, now_ms: i64) -> Vec<GroupView> {
        self.lock().book.report(config, settings, now_ms)
    }

    /// Answers that may still be heard of.
    pub(crate) fn remembered(&self) -> usize {
        self.lock().memory.len()
    }

    /// Forgets what was learned of tiers whose models are others now.
    pub(crate) fn reload(&self, config: &Config) {
        let mut inner = self.lock();
        let gone = inner.book.reload(config);
        inner.memory.forget(|routed| gone.contains(&(routed.group.clone(), routed.tier)));
    }

    /// Forgets what was learned of these. Returns of how many groups.
    fn forget(&self, which: impl Fn(&Group) -> bool) -> usize {
        let mut inner = self.lock();
        // What is said of an answer from before is heard as something new.
        inner.memory.unsay(|routed| which(&routed.group));
        inner.book.forget(which)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Counts what is told of a remembered answer, instead of what was told before if that says less, or as much but better. Returns where it
    /// was counted, and whether something was before; `None` when it is not remembered, cannot be counted, or more is known of it already.
    fn tell(
        &mut self,
        id: &str,
        outcome: Outcome,
        by_word: bool,
        settings: &Settings,
        config: &Config,
    ) -> Option<(Routed, bool)> {
        let answer = self.memory.get(id)?;
        let before = answer.told;
        if !by_word && before.is_some_and(|before| !gives_way(before, outcome)) {
            return None;
        }
        let tier = self.book.tier(&answer.routed, settings, config, outcome.at_ms)?;
        if let Some(before) = before {
            tier.take_back(before, outcome.at_ms, settings.half_life);
        }
        tier.add(outcome, settings.half_life);
        answer.told = Some(outcome);
        Some((answer.routed.clone(), before.is_some()))
    }
}

/// Whether what is told later of an answer takes the place of what was told before: sound JSON may still be a wrong answer.
fn gives_way(before: Outcome, later: Outcome) -> bool {
    later.weight > before.weight || (later.weight >= before.weight && later.score < before.score)
}

impl App {
    fn now_ms(&self) -> i64 {
        self.clock.now().as_millisecond()
    }

    /// Counts what is found of an answer before its client has any of it, besides what is told of it later.
    pub(crate) fn learn(&self, routed: &Routed, signal: Signal) {
        let config = self.config.load();
        let Some(settings) = &config.learning else { return };
        let (name, score, weight) = signal.meaning();
        let outcome = Outcome { score, weight, at_ms: self.now_ms() };
        if let Some(tier) = self.learning.lock().book.tier(routed, settings, &config, outcome.at_ms) {
            tier.add(outcome, settings.half_life);
            self.metrics.outcome(name, score);
        }
    }

    /// Counts what can be told of an answer that its client has.
    fn told(&self, id: &str, signal: Signal) {
        let config = self.config.load();
        let Some(settings) = &config.learning else { return };
        let (name, score, weight) = signal.meaning();
        let outcome = Outcome { score, weight, at_ms: self.now_ms() };
        if self.learning.lock().tell(id, outcome, false, settings, &config).is_some() {
            self.metrics.outcome(name, score);
        }
    }

    /// An answer begins: it is remembered, and the one before it to the same question was not good enough.
    pub(crate) fn answered(&self, arrival: &Arrival, agent: &Arc<str>, request: &Request, answer: &Answer) {
        let config = self.config.load();
        let (Some(settings), Some(routed)) = (&config.learning, &answer.routed) else { return };
        self.metrics.started(&routed.choice);
        let asked = question(request).map(|question| (agent.clone(), question));
        let now = Instant::now();
        let mut inner = self.learning.lock();
        let Inner { book, memory } = &mut *inner;
        let before = asked.as_ref().and_then(|asked| memory.asked(asked));
        // One that came after it had been answered is no parallel copy.
        let retried = before
            .filter(|(_, at)| *at < arrival.at && arrival.at.duration_since(*at) <= RETRIED_WITHIN)
            .map(|(id, _)| id);
        let quiet = memory.quiet(now, RETRIED_WITHIN);
        if let Some(tier) = book.tier(routed, settings, &config, self.now_ms()) {
            tier.answered += 1;
            tier.explored += u64::from(routed.choice.explored && routed.choice.tier == routed.tier);
        }
        memory.remember(
            arrival.id.clone(),
            asked,
            Remembered { agent: agent.clone(), routed: routed.clone(), at: now, ended: false, told: None },
        );
        drop(inner);
        for id in quiet {
            self.told(&id, Signal::Quiet);
        }
        if let Some(id) = retried {
            self.told(&id, Signal::Retried);
        }
    }

    /// An answer that is whole, as its client gets it.
    pub(crate) fn looked_at(&self, id: &str, request: &Request, body: &Body) {
        if self.config.load().learning.is_none() {
            return;
        }
        if let Body::Full(body) = body
            && let Some(passed) = check::passes(request, body)
        {
            self.checked(id, passed);
        }
    }

    fn checked(&self, id: &str, passed: bool) {
        self.told(id, if passed { Signal::CheckPassed } else { Signal::CheckFailed });
    }

    /// An answer has come to its end.
    pub(crate) fn ended(&self, id: &str) {
        if self.config.load().learning.is_some()
            && let Some(answer) = self.learning.lock().memory.get(id)
        {
            answer.ended = true;
        }
    }

    /// Somebody says how good an answer was, 0 to 1.
    ///
    /// # Errors
    /// Nothing is learned here, no such answer of the agent is remembered, or there is no place where it could be counted any more.
    pub(crate) fn heard(&self, agent: &str, id: &str, score: f64) -> Result<Heard, ApiError> {
        let config = self.config.load();
        let settings = config.learning.as_ref().ok_or(ApiError::NothingLearned)?;
        let outcome = Outcome { score, weight: 1.0, at_ms: self.now_ms() };
        let mut inner = self.learning.lock();
        let own = inner.memory.get(id).is_some_and(|answer| *answer.agent == *agent && answer.at.elapsed() <= OLDEST);
        if !own {
            return Err(ApiError::NoAnswer(id.chars().take(64).collect()));
        }
        let heard = inner.tell(id, outcome, true, settings, &config);
        drop(inner);
        let (routed, replaced) = heard.ok_or(ApiError::NotCounted)?;
        self.metrics.outcome("feedback", score);
        Ok(Heard { routed, replaced })
    }

    /// Forgets what was learned of these, also on record. Returns of how many groups.
    ///
    /// # Errors
    /// It cannot be recorded; it is forgotten all the same, and recorded when it can be.
    pub(crate) async fn unlearn(&self, which: impl Fn(&Group) -> bool) -> Result<usize, ApiError> {
        let gone = self.learning.forget(which);
        self.keep_learned().await.map_err(ApiError::denied)?;
        Ok(gone)
    }

    /// Keeps what was learned since the last time.
    ///
    /// # Errors
    /// It cannot be recorded; it is tried again the next time.
    pub(crate) async fn keep_learned(&self) -> Result<(), tollkeeper_policies::Denied> {
        let changed = self.learning.lock().book.changed();
        let ids: Vec<Arc<str>> = changed.iter().map(|(id, _)| id.clone()).collect();
        let kept = self.policies.keep_learned(changed).await;
        if kept.is_err() {
            self.learning.lock().book.unkept(&ids);
        }
        kept
    }
}

/// Keeps what is learned, until the gateway stops.
pub(crate) async fn keep(app: Arc<App>) {
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(KEPT_EVERY) => save(&app).await,
        }
    }
}

/// Keeps it now, or says that it could not.
pub(crate) async fn save(app: &App) {
    if let Err(denied) = app.keep_learned().await {
        tracing::warn!(%denied, "what was learned of routes could not be kept");
    }
}
