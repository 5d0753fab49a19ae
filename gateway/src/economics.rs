//! What local models are worth in dollars: what their absence costs, whether a swap pays, and what their tokens cost in electricity.

use crate::app::App;
use crate::planning::Planned;
use arc_swap::ArcSwap;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_config::{BackendId, Config, ModelFacts, PicoUsd, SwapWhen, Usd};
use tollkeeper_inference::{LocalStatus, Way};
use tollkeeper_protocol::usage::Usage;
use tollkeeper_router::energy::{self, Work};
use tollkeeper_router::swap::{Book, Move, Verdict};
use tollkeeper_router::{Attempt, Candidate, Health, Plan};

/// What a machine draws of which nobody knows it.
const USUAL_WATTS: u64 = 300;
/// A card that computes at least so much of the time draws what computing takes; what it draws at rest says nothing.
const BUSY: f64 = 0.5;
/// A swap that pays is ordered for so long, and again at every look, so that it does not come any more when it was earned back meanwhile.
const ORDERED: Duration = Duration::from_secs(5);

/// The accounts of local models.
pub(crate) struct Economics {
    start: Instant,
    state: Mutex<State>,
    /// Facts of local models whose price is what they use.
    priced: ArcSwap<BTreeMap<Arc<str>, Priced>>,
    /// What the card drew when it was last seen at work.
    watts: AtomicU64,
}

/// A local model with the price that its computing has now.
struct Priced {
    facts: Arc<ModelFacts>,
    work: Work,
}

#[derive(Default)]
struct State {
    book: Book,
    /// Swaps that were found to pay, by model.
    paid: BTreeMap<Arc<str>, u64>,
    /// Tokens read and written, by model.
    tokens: BTreeMap<Arc<str>, u64>,
}

/// What of an attempt counts for local models.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stake {
    /// The local model that answers.
    local: Option<Arc<str>>,
    /// What it would cost where it would go without that.
    instead: Option<Arc<ModelFacts>>,
    /// The local model that would have answered it in place of a remote one.
    missed: Option<Arc<Missed>>,
}

impl Stake {
    /// Of an attempt of a plan.
    pub(crate) fn of(planned: &Planned, attempt: &Attempt) -> Self {
        let remote = |other: &&Attempt| matches!(other.id, BackendId::Remote { .. });
        match &attempt.id {
            BackendId::Local(name) => Self {
                local: Some(name.clone()),
                instead: planned.plan.attempts.iter().find(remote).map(|other| other.facts.clone()),
                missed: None,
            },
            BackendId::Remote { .. } => Self { missed: planned.basis.missed.clone(), ..Self::default() },
        }
    }
}

/// A local model that would have answered, had it been in memory; displayed as `missed=small;swap=0.0002/0.0006`: what its absence has cost,
/// and what its swap would cost, in USD.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Missed {
    model: Arc<str>,
    /// What its tokens cost.
    facts: Arc<ModelFacts>,
    /// What its absence has cost before this request, and what its swap would; `None` when it is on its way, or has none.
    swap: Option<(Usd, Usd)>,
}

impl Missed {
    /// The model, what its absence has cost, and what its swap would cost.
    pub(crate) fn parts(&self) -> (&str, Option<(Usd, Usd)>) {
        (&self.model, self.swap)
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "missed={}", self.model)?;
        self.swap.map_or(Ok(()), |(regret, price)| write!(f, ";swap={regret}/{price}"))
    }
}

/// What a local token costs, beside the cloud.
pub(crate) struct Compared {
    pub(crate) input: PicoUsd,
    pub(crate) output: PicoUsd,
    /// The cheapest other target of the aliases that the model is in, and its prices of input and output.
    pub(crate) cloud: Option<(BackendId, PicoUsd, PicoUsd)>,
    /// Tokens a second, all answers together, from which on the model's output costs no more than the cloud's.
    pub(crate) break_even: Option<f64>,
}

impl Economics {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            state: Mutex::default(),
            priced: ArcSwap::default(),
            watts: AtomicU64::new(USUAL_WATTS),
        }
    }

    fn enter(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        millis(self.start.elapsed())
    }

    /// What is known of a backend, with the price that its computing has now.
    pub(crate) fn facts(&self, config: &Config, id: &BackendId) -> Option<Arc<ModelFacts>> {
        if let (BackendId::Local(name), true) = (id, config.local.energy.is_some())
            && let Some(priced) = self.priced.load().get(name)
        {
            return Some(priced.facts.clone());
        }
        config.facts(id)
    }

    /// Sees where models are, and prices computing by what models and card were last seen to do.
    pub(crate) fn refresh(&self, app: &App, config: &Config) {
        self.look(app, config);
        let Some(tariff) = &config.local.energy else { return };
        if let Some(card) = app.fleet.card()
            && let (Some(watts), Some(true)) = (card.watts, card.busy.map(|busy| busy >= BUSY))
        {
            self.watts.store(watts.max(1.0) as u64, Relaxed);
        }
        let watts = self.watts(config);
        let swapping = swapping_ms(app);
        let state = self.enter();
        let mut priced = BTreeMap::new();
        for model in app.fleet.local_models() {
            let id = BackendId::Local(model.name.clone());
            let Some(facts) = config.facts(&id).filter(|facts| facts.price.is_free()) else { continue };
            let work = Work {
                swapping_ms: swapping.get(&*model.name).copied().unwrap_or(0),
                tokens: state.tokens.get(&model.name).copied().unwrap_or(0),
                ..work(&model)
            };
            let facts = ModelFacts { price: energy::price(tariff, watts, &work), ..ModelFacts::clone(&facts) };
            priced.insert(model.name, Priced { facts: Arc::new(facts), work });
        }
        self.priced.store(Arc::new(priced));
    }

    /// Closes the accounts of models that have come, whether or not anybody asks them, charges those whose load failed with their swap, and
    /// keeps the orders of others up as long as they stand.
    fn look(&self, app: &App, config: &Config) {
        if config.local.swap.when != SwapWhen::Pays {
            return;
        }
        let models = app.fleet.local_models();
        let mut state = self.enter();
        for model in &models {
            match model.state {
                "ready" | "draining" => state.book.came(&model.name),
                "failed" => state.book.failed(&model.name),
                _ => {}
            }
        }
        let ordered: Vec<_> = state.book.ordered().map(|(model, victims)| (model.clone(), victims.to_vec())).collect();
        drop(state);
        for (model, victims) in ordered {
            let absent = models.iter().any(|other| other.name == model && other.state == "absent");
            // Who others would go for now is weighed anew when it is missed again.
            if absent && app.fleet.way_for(&model).is_none_or(|way| way.victims == victims) {
                app.fleet.order(&model, ORDERED);
            }
        }
    }

    fn watts(&self, config: &Config) -> u64 {
        config.local.energy.and_then(|energy| energy.watts).unwrap_or_else(|| self.watts.load(Relaxed))
    }

    /// What a model's tokens cost, beside the cloud; `None` where computing has no price.
    pub(crate) fn compared(&self, config: &Config, model: &str) -> Option<Compared> {
        let tariff = config.local.energy.as_ref()?;
        let priced = self.priced.load();
        let Priced { facts, work } = priced.get(model)?;
        let rates = facts.price.base;
        let ours = |id: &BackendId| matches!(id, BackendId::Local(name) if &**name == model);
        let aliases = config.aliases.values().filter(|alias| alias.targets.iter().any(|(id, _)| ours(id)));
        let remote = aliases.flat_map(|alias| &alias.targets).filter(|(id, _)| matches!(id, BackendId::Remote { .. }));
        let clouds = remote.filter_map(|(id, _)| {
            let base = config.facts(id)?.price.base;
            Some((id.clone(), base.input, base.output))
        });
        let cloud = clouds.min_by_key(|(id, input, output)| (*output, *input, id.to_string()));
        let even =
            cloud.as_ref().and_then(|(.., output)| energy::break_even(tariff, self.watts(config), work, *output));
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let break_even = even.map(|rate| rate as f64 / 1000.0);
        Some(Compared { input: rates.input, output: rates.output, cloud, break_even })
    }

    /// The candidates as they would be were all models in memory; `None` if they are.
    pub(crate) fn as_if_loaded(candidates: &[Candidate]) -> Option<Vec<Candidate>> {
        let absent = |one: &Candidate| matches!(one.health, Health::Absent { .. });
        if !candidates.iter().any(absent) {
            return None;
        }
        let loaded = |one: &Candidate| Candidate {
            health: if absent(one) { Health::Ready } else { one.health.clone() },
            ..one.clone()
        };
        Some(candidates.iter().map(loaded).collect())
    }

    /// The local model that comes first in the plan that all models in memory would have, if a remote one comes first in the real one.
    /// It is one that this very request may use, by its agent, its alias, its needs and its wishes: all others were sorted out of both.
    /// `None` as well where models do not come by what pays.
    pub(crate) fn missed(&self, app: &App, config: &Config, wanted: &Plan, real: &Plan) -> Option<Arc<Missed>> {
        if config.local.swap.when != SwapWhen::Pays {
            return None;
        }
        let (wanted, real) = (wanted.attempts.first()?, real.attempts.first()?);
        let (BackendId::Local(model), BackendId::Remote { .. }) = (&wanted.id, &real.id) else { return None };
        let swap = app.fleet.way_for(model).map(|way| {
            let takes_ms = millis(way.takes);
            let what = Move { victims: &way.victims, takes_ms, energy: self.energy(config, takes_ms) };
            self.enter().book.standing(self.now_ms(), model, &what)
        });
        Some(Arc::new(Missed { model: model.clone(), facts: wanted.facts.clone(), swap }))
    }

    /// The local models that would come before who answers, were they in memory, and that shall come when what has to go is idle. Where swaps
    /// have to pay, a cloud is not given up for that.
    pub(crate) fn hinted(config: &Config, wanted: &Plan, real: &Plan) -> Vec<BackendId> {
        let Some(first) = real.attempts.first().filter(|first| !first.why.absent) else { return Vec::new() };
        if config.local.swap.when == SwapWhen::Pays && matches!(first.id, BackendId::Remote { .. }) {
            return Vec::new();
        }
        let absent = |id: &BackendId| real.attempts.iter().any(|real| real.id == *id && real.why.absent);
        let before = wanted.attempts.iter().map(|wanted| &wanted.id).take_while(|id| **id != first.id);
        before.filter(|id| absent(id)).cloned().collect()
    }

    /// How long until a model can answer. One that others would have to go for is not waited for by who need not: it comes when that pays.
    pub(crate) fn ready_in(&self, app: &App, config: &Config, id: &BackendId, ready_in: Duration) -> Duration {
        let swap = &config.local.swap;
        let BackendId::Local(model) = id else { return ready_in };
        if swap.when != SwapWhen::Pays || ready_in > swap.patience {
            return ready_in;
        }
        let others = app.fleet.way_for(model).is_some_and(|way| !way.victims.is_empty());
        if others { swap.patience.saturating_add(Duration::from_millis(1)) } else { ready_in }
    }

    /// An attempt was charged: who is in memory has earned something, or who is not is missed. Has a model loaded when that pays.
    pub(crate) fn charged(&self, app: &App, stake: &Stake, usage: &Usage, cost: Usd) {
        let config = app.config.load();
        let pays = config.local.swap.when == SwapWhen::Pays;
        if let Some(model) = &stake.local {
            if !pays && config.local.energy.is_none() {
                return;
            }
            let worth =
                stake.instead.as_ref().map_or(Usd::ZERO, |instead| instead.price.charge(usage).saturating_sub(cost));
            let mut state = self.enter();
            let tokens = state.tokens.entry(model.clone()).or_default();
            *tokens = tokens.saturating_add(usage.input).saturating_add(usage.output);
            if pays {
                state.book.served(self.now_ms(), model, worth);
            }
        } else if let (true, Some(missed)) = (pays, &stake.missed) {
            self.regret(app, &config, missed, cost.saturating_sub(missed.facts.price.charge(usage)));
        }
    }

    /// A model's absence has cost so much more: it is loaded when that has become as much as its swap costs.
    fn regret(&self, app: &App, config: &Config, Missed { model, .. }: &Missed, regret: Usd) {
        let Some(Way { victims, takes }) = app.fleet.way_for(model) else { return };
        let takes_ms = millis(takes);
        let what = Move { victims: &victims, takes_ms, energy: self.energy(config, takes_ms) };
        let mut state = self.enter();
        let verdict = state.book.missed(self.now_ms(), model, regret, &what);
        if verdict.first {
            *state.paid.entry(model.clone()).or_default() += 1;
        }
        drop(state);
        let Verdict { opened, swap, first, regret, price } = verdict;
        if first {
            tracing::info!(%model, regret_usd = %regret, swap_usd = %price, ?victims, "the swap pays, and is ordered");
        } else if opened && !swap {
            tracing::info!(%model, regret_usd = %regret, swap_usd = %price, ?victims, "a model is missed; its swap waits until it pays");
        }
        if swap {
            app.fleet.order(model, ORDERED);
        }
    }

    /// What the electricity and the hardware of so long cost; nothing where computing has no price.
    fn energy(&self, config: &Config, takes_ms: u64) -> Usd {
        let second = config.local.energy.as_ref().map_or(0, |tariff| energy::per_second(tariff, self.watts(config)));
        Usd(i64::try_from(second * u128::from(takes_ms) / 1_000_000).unwrap_or(i64::MAX))
    }

    /// Takes over a new configuration.
    pub(crate) fn reload(&self, app: &App, config: &Config) {
        let mut state = self.enter();
        state.book.keep(|model| config.local.models.contains_key(model));
        state.paid.retain(|model, _| config.local.models.contains_key(&**model));
        drop(state);
        self.refresh(app, config);
    }

    /// The regret of each model that is missed, and what its swap would cost.
    pub(crate) fn regrets(&self) -> Vec<(Arc<str>, Usd, Usd)> {
        let state = self.enter();
        state.book.regrets().map(|(model, regret, price)| (model.clone(), regret, price)).collect()
    }

    /// How often the swap of each model was found to pay.
    pub(crate) fn paid(&self) -> Vec<(Arc<str>, u64)> {
        self.enter().paid.iter().map(|(model, times)| (model.clone(), *times)).collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How long the swaps of each model took so far. Waiting for answers to end is no cost: they would have run anyway.
fn swapping_ms(app: &App) -> BTreeMap<String, u64> {
    let mut taken: BTreeMap<String, u64> = BTreeMap::new();
    for (model, phase, total) in app.fleet.swaps().totals {
        if phase != tollkeeper_inference::Phase::Drain {
            let taken = taken.entry(model).or_default();
            *taken = taken.saturating_add(millis(total.time));
        }
    }
    taken
}

/// How fast a model works, with one answer more than it writes now.
fn work(model: &LocalStatus) -> Work {
    let rate = |tokens: f64| (tokens * 1000.0) as u64;
    let answers = model.slots.1.saturating_add(1);
    let decode = model.decode_rates.iter().find(|(most, _)| *most >= answers).or(model.decode_rates.last());
    Work { prefill: model.prefill_rate.map(rate), decode: decode.map(|(_, tokens)| rate(*tokens)), ..Work::default() }
}
