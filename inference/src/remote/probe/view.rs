//! What the last probe of a server saw, and what follows from it for a backend now.

use super::gauges::Gauges;
use super::lists::{Models, same};
use crate::backend::{BackendHealth, BackendState};
use crate::remote::questions::Names;
use std::sync::Arc;

/// Tokens that a waiting request stands for, since servers tell requests and not tokens.
const TOKENS_EACH: u64 = 512;
/// Names of models that a refusal shows.
const SHOWN_NAMES: usize = 8;

/// What the last probe saw.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    /// Whether the server was well; `None` before the first probe.
    pub(super) up: Option<bool>,
    /// Its models; `None` when it did not tell.
    pub(super) models: Option<Models>,
    /// Whether a model that is not among them is refused.
    strict: bool,
    /// How busy it was, by model where it tells that.
    pub(super) loads: Vec<(Option<Arc<str>>, Load)>,
    /// All of these together; `None` when it did not tell.
    pub(super) total: Option<Load>,
}

/// What a server said about its work.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Told {
    pub(super) gauges: Gauges,
    /// The most requests it can answer at once, if it says.
    pub(super) full: Option<u32>,
    /// Requests of ours that it had then, running or waiting.
    pub(super) own: u32,
}

/// How busy an engine was when it was asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Load {
    told: Told,
    /// Requests at which it has been seen to let others wait, if ever.
    full: Option<u32>,
}

impl Load {
    /// What was told now, after what was told before.
    pub(super) fn after(before: Option<Self>, told: Told) -> Self {
        let running = told.gauges.running;
        let seen = match before.and_then(|before| before.full) {
            _ if told.gauges.waiting > 0 => Some(running),
            // It has been seen to run more than was thought to be the most.
            Some(full) => Some(full.max(running)),
            None => None,
        };
        Self { told, full: told.full.or(seen) }
    }

    /// Requests that run and that wait now, when `own` of them are ours: what came and went since it was asked is counted, so that requests
    /// between two probes do not all go where the queue was shortest.
    fn now(&self, own: u32) -> (u32, u32) {
        let Gauges { running, waiting, .. } = self.told.gauges;
        let then = running.saturating_add(waiting);
        let others = then.saturating_sub(self.told.own);
        let total = others.saturating_add(own);
        let waiting = self.full.map_or(0, |full| total.saturating_sub(full));
        (total - waiting, waiting)
    }

    /// Requests that ran and waited when it was asked, and the share of its KV cache in use.
    pub(super) fn seen(&self) -> Gauges {
        self.told.gauges
    }
}

impl View {
    /// What a probe of a server that is well saw, after the last one.
    pub(super) fn well(
        before: &Self,
        names: Names,
        models: Option<Models>,
        told: Vec<(Option<Arc<str>>, Told)>,
    ) -> Self {
        let strict = match names {
            Names::Listed => true,
            Names::ListedByRouter => models.as_ref().is_some_and(Models::tell_loaded),
            Names::Any => false,
        };
        let known =
            |name: &Option<Arc<str>>| before.loads.iter().find(|(known, _)| known == name).map(|(_, load)| *load);
        let total = told.iter().map(|(_, told)| *told).reduce(|a, b| Told {
            gauges: Gauges {
                running: a.gauges.running.saturating_add(b.gauges.running),
                waiting: a.gauges.waiting.saturating_add(b.gauges.waiting),
                kv: [a.gauges.kv, b.gauges.kv].into_iter().flatten().reduce(f32::max),
            },
            full: a.full.zip(b.full).map(|(a, b)| a.saturating_add(b)),
            own: a.own.saturating_add(b.own),
        });
        let loads = told.into_iter().map(|(name, told)| (name.clone(), Load::after(known(&name), told))).collect();
        Self { up: Some(true), models, strict, loads, total: total.map(|told| Load::after(before.total, told)) }
    }

    /// The same server, away: what it has is still known, how busy it is not.
    pub(super) fn away(before: &Self) -> Self {
        Self { up: Some(false), models: before.models.clone(), strict: before.strict, ..Self::default() }
    }

    /// What is known of a model's backend, together with what is known by using it. `own` are our requests to the model, `all` those to the
    /// whole server.
    pub(super) fn of_model(&self, model: &str, state: BackendState, all: u32) -> BackendState {
        let own = self.loads.iter().find(|(name, _)| name.as_ref().is_some_and(|name| same(name, model)));
        let mut state = match own {
            Some((_, load)) => busy(load, state.in_flight, state),
            None => self.of_server(state, all),
        };
        if let Some(reason) = self.refusal(model).filter(|_| !matches!(state.health, BackendHealth::Unavailable(_))) {
            state.health = BackendHealth::Unavailable(reason.into());
        }
        state
    }

    /// The same for the server as a whole.
    pub(super) fn of_server(&self, state: BackendState, all: u32) -> BackendState {
        match &self.total {
            Some(total) => busy(total, all, state),
            None => state,
        }
    }

    /// Why a model cannot be had here.
    fn refusal(&self, model: &str) -> Option<String> {
        let models = self.models.as_ref().filter(|models| self.strict && models.lacks(model))?;
        let mut names: Vec<_> = models.all.iter().take(SHOWN_NAMES).map(|model| format!("`{}`", model.name)).collect();
        match models.all.len().saturating_sub(SHOWN_NAMES) {
            0 => {}
            more => names.push(format!("{more} more")),
        }
        let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Some(format!("the server has no model `{model}`; it has {has}: correct the name, or load the model there"))
    }
}

fn busy(load: &Load, own: u32, state: BackendState) -> BackendState {
    let (in_flight, waiting) = load.now(own);
    let queue_tokens = u64::from(waiting) * TOKENS_EACH;
    BackendState { in_flight, waiting, queue_tokens, kv_usage: load.told.gauges.kv, ..state }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn told(running: u32, waiting: u32, own: u32) -> Told {
        Told { gauges: Gauges { running, waiting, kv: None }, full: None, own }
    }

    #[test]
    fn what_came_and_went_since_the_probe_is_counted() {
        let fresh = Load::after(None, told(3, 0, 1));
        assert_eq!(fresh.now(1), (3, 0));
        assert_eq!(fresh.now(9), (11, 0), "nobody has seen it full");
        let full = Load::after(Some(fresh), told(4, 2, 5));
        assert_eq!([full.now(5), full.now(8), full.now(4), full.now(0)], [(4, 2), (4, 5), (4, 1), (1, 0)]);
        let idle = Load::after(Some(full), told(0, 0, 0));
        assert_eq!([idle.now(4), idle.now(7)], [(4, 0), (4, 3)], "it is remembered how many it could run");
        let more = Load::after(Some(idle), told(6, 0, 6));
        assert_eq!(more.now(7), (6, 1));
        let slots = Load::after(None, Told { full: Some(2), ..told(1, 0, 1) });
        assert_eq!(slots.now(5), (2, 3));
    }

    #[test]
    fn a_model_has_its_own_load_or_that_of_the_server() {
        let state = || BackendState { in_flight: 1, ..BackendState::idle(BackendHealth::Ready) };
        let both = vec![(Some("a".into()), told(5, 1, 1)), (Some("b".into()), told(2, 0, 0))];
        let view = View::well(&View::default(), Names::Listed, None, both);
        let seen = |state: BackendState| (state.in_flight, state.waiting, state.queue_tokens);
        assert_eq!(seen(view.of_model("a", state(), 1)), (5, 1, 512));
        assert_eq!(seen(view.of_model("b", state(), 1)), (3, 0, 0));
        assert_eq!(seen(view.of_model("c", state(), 1)), (7, 1, 512));
        assert_eq!(seen(view.of_server(state(), 1)), (7, 1, 512));
        let away = View::away(&view);
        assert_eq!((away.up, seen(away.of_model("a", state(), 1))), (Some(false), (1, 0, 0)));
    }

    #[test]
    fn only_servers_that_look_at_names_refuse_them() {
        let plain = Models::read(br#"{"data":[{"id":"a"}]}"#);
        let router = Models::read(br#"{"data":[{"id":"a","status":{"value":"loaded"}}]}"#);
        let cases = [
            (Names::Listed, plain.clone(), true),
            (Names::Listed, None, false),
            (Names::ListedByRouter, plain.clone(), false),
            (Names::ListedByRouter, router, true),
            (Names::Any, plain, false),
        ];
        for (names, models, refused) in cases {
            let view = View::well(&View::default(), names, models, Vec::new());
            for (view, when) in [(view.clone(), "well"), (View::away(&view), "away")] {
                let health = |model| view.of_model(model, BackendState::idle(BackendHealth::Ready), 0).health;
                assert_eq!(health("a"), BackendHealth::Ready);
                let no_b = "the server has no model `b`; it has `a`: correct the name, or load the model there";
                let expected = if refused { BackendHealth::Unavailable(no_b.into()) } else { BackendHealth::Ready };
                assert_eq!(health("b"), expected, "{names:?} {when}");
            }
        }
    }

    proptest! {
        /// Our own requests are all there, and none is invented or lost.
        #[test]
        fn requests_add_up(history in prop::collection::vec((0u32..50, 0u32..50, 0u32..50), 1..8), own in 0u32..200) {
            let load = history.into_iter().fold(None, |before, (running, waiting, own)| {
                Some(Load::after(before, told(running, waiting, own)))
            });
            let (running, waiting) = load.unwrap().now(own);
            prop_assert!(running + waiting >= own);
            let Told { gauges, own: then, .. } = load.unwrap().told;
            let others = (gauges.running + gauges.waiting).saturating_sub(then);
            prop_assert_eq!(running + waiting, others + own);
        }
    }
}
