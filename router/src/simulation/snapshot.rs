//! What a gateway sees of a backend at a moment.

use super::Micros;
use super::cloud::Provider;
use super::engine::Engine;
use super::fleet::Model;
use super::trace::{Request, padded};
use crate::candidate::{Candidate, Health, Pace, Strain};

/// A backend at work.
#[derive(Debug, Clone)]
pub(super) enum Backend<'a> {
    Local(Engine<'a>),
    Cloud(Provider<'a>),
}

/// The candidate that a gateway would make of it.
pub(super) fn candidate(model: &Model, backend: &Backend<'_>, request: &Request, now: Micros) -> Candidate {
    let known = |rate: f64| Some(rate as u32).filter(|rate| *rate > 0);
    let strain = match backend {
        Backend::Local(_) => Strain::default(),
        Backend::Cloud(provider) => provider.strain(now),
    };
    let (health, in_flight, queue_tokens, pace) = match backend {
        Backend::Local(engine) => {
            let reading = engine.reading();
            let health = match engine.absent_for(now) {
                Some(left) => Health::Absent { ready_in_ms: left / 1000 },
                None => Health::Ready,
            };
            let pace = Pace {
                ttft_ms: None,
                prefill: known(reading.prefill),
                decode: known(reading.decode_of_one(reading.running + 1)),
                cached: padded(engine.known(request.session, request.shared)),
                unread: reading.unread,
                waiting: engine.taken().saturating_sub(reading.running),
                slots: Some(engine.slots()),
                overall: known(reading.overall),
            };
            (health, reading.running, reading.queue_tokens, pace)
        }
        Backend::Cloud(provider) => {
            let pace = Pace { ttft_ms: provider.ttft_ms(now), decode: provider.rate(now), ..Pace::default() };
            (provider.health(now), provider.in_flight, 0, pace)
        }
    };
    Candidate {
        id: model.id.clone(),
        tier: model.tier,
        facts: model.facts.clone(),
        health,
        in_flight,
        queue_tokens,
        pace,
        strain,
        weight: 1,
    }
}

/// Requests that it has, for those who look at nothing else.
pub(super) fn busy(backend: &Backend<'_>) -> u32 {
    match backend {
        Backend::Local(engine) => engine.taken(),
        Backend::Cloud(provider) => provider.in_flight,
    }
}
