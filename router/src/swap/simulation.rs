//! A device with room for one of several models, run over a trace: what it costs to swap always, never, when it pays, and at best.
//!
//! Time is that of the trace; nothing is measured and nothing is drawn by lot, so that the same trace gives the same figures. While
//! models are swapped nobody is answered by the device: who can go to the cloud goes there, and who can not waits. Such a waiting
//! request brings its model in under every policy, as soon as the one in memory has stayed for its time.

use super::{Book, Move, Rules};
use std::collections::VecDeque;
use std::sync::Arc;
use tollkeeper_config::Usd;

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// When it comes, in milliseconds since the trace's start.
    pub at_ms: u64,
    /// The model that it is for, from 0; model 0 is in memory at the start.
    pub model: usize,
    /// What the cloud would take for it.
    pub cloud: Usd,
    /// Whether it must not go to the cloud; it waits, and costs nothing.
    pub local_only: bool,
}

/// What holds for all of a device's models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// From the moment that a model begins to go until the next can serve, in milliseconds.
    pub swap_ms: u64,
    /// What the electricity for that costs.
    pub energy: Usd,
    /// A model stays at least so long, in milliseconds.
    pub min_residency_ms: u64,
}

/// When models are swapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// For every request whose model is not in memory.
    Always,
    /// Only for those that can not go to the cloud.
    Never,
    /// When it pays.
    Pays(Rules),
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What the cloud and the swaps cost.
    pub cost: Usd,
    /// How often models were swapped.
    pub swaps: u64,
    /// How long each request that must not go to the cloud waited, in milliseconds, shortest first.
    pub waits_ms: Vec<u64>,
}

impl Outcome {
    /// So many of a hundred waited no longer than this.
    pub fn wait_percentile(&self, percent: usize) -> u64 {
        let at = (self.waits_ms.len() * percent).div_ceil(100).saturating_sub(1);
        self.waits_ms.get(at).copied().unwrap_or(0)
    }
}

/// Runs a trace, in the order of its times, to its end.
pub fn run(trace: &[Arrival], device: Device, policy: Policy) -> Outcome {
    let models = trace.iter().map(|arrival| arrival.model + 1).max().unwrap_or(1);
    let names: Vec<Arc<str>> = (0..models).map(|model| model.to_string().into()).collect();
    let rules = if let Policy::Pays(rules) = policy { rules } else { Rules::default() };
    let mut card = Card {
        device,
        resident: Some(0),
        since: 0,
        loading: None,
        waiting: VecDeque::new(),
        wish: None,
        outcome: Outcome::default(),
    };
    let mut book = Book::new(rules);
    for arrival in trace {
        let now = arrival.at_ms;
        card.advance(now);
        let Arrival { model, cloud, local_only, .. } = *arrival;
        if card.resident == Some(model) {
            book.served(now, &names[model], if local_only { Usd::ZERO } else { cloud });
            if local_only {
                card.outcome.waits_ms.push(0);
            }
        } else if local_only {
            card.waiting.push_back((model, now));
            card.advance(now);
        } else {
            card.outcome.cost = card.outcome.cost.saturating_add(cloud);
            let is_coming = card.loading.is_some_and(|(coming, _)| coming == model);
            let instead = card.loading.map(|(coming, _)| coming).or(card.resident);
            let pays = match policy {
                _ if is_coming => false,
                Policy::Always => true,
                Policy::Never => false,
                Policy::Pays(_) => {
                    let victims: Vec<Arc<str>> = instead.map(|model| names[model].clone()).into_iter().collect();
                    let what = Move { victims: &victims, takes_ms: device.swap_ms, energy: device.energy };
                    book.missed(now, &names[model], cloud, &what).swap
                }
            };
            if pays && card.wish.is_none() {
                card.wish = Some((model, now));
                card.advance(now);
            }
        }
    }
    card.advance(u64::MAX);
    card.outcome.waits_ms.sort_unstable();
    card.outcome
}

/// What is in memory, and who waits.
struct Card {
    device: Device,
    resident: Option<usize>,
    since: u64,
    /// What is loaded, and when it is there.
    loading: Option<(usize, u64)>,
    /// Requests that must not go to the cloud: their models, and since when they wait.
    waiting: VecDeque<(usize, u64)>,
    /// What is to be loaded because that pays, and since when.
    wish: Option<(usize, u64)>,
    outcome: Outcome,
}

impl Card {
    /// Does what happens by itself until then.
    fn advance(&mut self, now: u64) {
        loop {
            if let Some((model, until)) = self.loading {
                if until > now {
                    return;
                }
                (self.resident, self.since, self.loading) = (Some(model), until, None);
                let waits = &mut self.outcome.waits_ms;
                self.waiting.retain(|(other, since)| {
                    if *other == model {
                        waits.push(until - since);
                    }
                    *other != model
                });
                self.wish.take_if(|(wished, _)| *wished == model);
            }
            // Who has waited longest decides.
            let wanted = self.waiting.front().into_iter().chain(&self.wish).min_by_key(|(_, since)| *since);
            let Some((model, since)) = wanted.copied() else { return };
            let start = since.max(self.since + self.device.min_residency_ms);
            if start > now {
                return;
            }
            self.loading = Some((model, start.saturating_add(self.device.swap_ms)));
            self.resident = None;
            self.outcome.swaps += 1;
            self.outcome.cost = self.outcome.cost.saturating_add(self.device.energy);
        }
    }
}

/// What somebody knows who knows all that will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foresight {
    /// Swaps, as every policy does, only when a request for the model has come.
    OnDemand,
    /// Swaps before the first request comes, so that the load costs nobody anything.
    Ahead,
}

/// The least that the trace can cost with foresight. No model has to stay for a time, and nobody who must wait brings one in, so that no
/// policy can do better.
pub fn optimum(trace: &[Arrival], device: Device, foresight: Foresight) -> Usd {
    let models = trace.iter().map(|arrival| arrival.model + 1).max().unwrap_or(1);
    let price = |arrival: &Arrival| if arrival.local_only { 0 } else { arrival.cloud.0 };
    // What all requests before each cost in the cloud.
    let mut before = vec![0i64];
    before.extend(trace.iter().scan(0i64, |sum, arrival| {
        *sum = sum.saturating_add(price(arrival));
        Some(*sum)
    }));
    // From each request on, by the model in memory before it.
    let mut least = vec![vec![0i64; models]; trace.len() + 1];
    for (at, arrival) in trace.iter().enumerate().rev() {
        let stay: Vec<i64> = (0..models)
            .map(|model| least[at + 1][model] + if model == arrival.model { 0 } else { price(arrival) })
            .collect();
        // Ahead it is best to begin right after the request before.
        let begun = match foresight {
            Foresight::OnDemand => arrival.at_ms,
            Foresight::Ahead => at.checked_sub(1).map_or(0, |last| trace[last].at_ms),
        };
        let there = at + trace[at..].partition_point(|later| later.at_ms < begun + device.swap_ms);
        let away = before[there] - before[at] + device.energy.0;
        let next = if there == at { &stay } else { &least[there] };
        let then = match foresight {
            Foresight::OnDemand => next.get(arrival.model),
            Foresight::Ahead => next.iter().min(),
        };
        let swapped = then.map_or(i64::MAX, |least| least + away);
        let of = |(model, stay): (usize, i64)| if model == arrival.model { stay } else { stay.min(swapped) };
        least[at] = match foresight {
            Foresight::OnDemand => stay.into_iter().enumerate().map(of).collect(),
            Foresight::Ahead => stay.into_iter().map(|stay| stay.min(swapped)).collect(),
        };
    }
    Usd(least[0][0])
}
