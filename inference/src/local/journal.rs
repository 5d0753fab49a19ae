//! What became of the models: how long each phase of each swap took, and the last swaps one by one.

use super::swap::Moment;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Swaps kept one by one.
const KEPT: usize = 100;

/// A part of a swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Waiting for what runs to end.
    Drain,
    /// Setting aside what still runs, and its KV.
    Save,
    /// Giving the memory back.
    Unload,
    /// Reading the file and uploading it.
    Load,
    /// The first decode.
    WarmUp,
}

impl Phase {
    /// All of them, in the order in which they happen.
    pub const ALL: [Self; 5] = [Self::Drain, Self::Save, Self::Unload, Self::Load, Self::WarmUp];

    /// Its name in metrics and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Save => "save",
            Self::Unload => "unload",
            Self::Load => "load",
            Self::WarmUp => "warm_up",
        }
    }
}

/// One move of a model: into memory or out of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Swap {
    /// The model's name.
    pub model: String,
    /// When it began, since the engines were started.
    pub began: Duration,
    /// What it took, phase by phase.
    pub phases: Vec<(Phase, Duration)>,
}

/// How often a phase happened, and how long it took in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PhaseTotal {
    /// How often.
    pub count: u64,
    /// In all.
    pub time: Duration,
}

impl PhaseTotal {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.time += took;
    }
}

/// What the swaps since the start took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SwapReport {
    /// The last ones, oldest first.
    pub last: Vec<Swap>,
    /// By model and phase.
    pub totals: Vec<(String, Phase, PhaseTotal)>,
    /// How often the engine of each model crashed.
    pub crashes: BTreeMap<String, u64>,
    /// Requests that had to wait until their model was in memory, and those that waited in vain, with the time they waited.
    pub waits: BTreeMap<String, PhaseTotal>,
}

/// The record of all swaps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal {
    swaps: VecDeque<Swap>,
    totals: BTreeMap<(String, Phase), PhaseTotal>,
    crashes: BTreeMap<String, u64>,
    waits: BTreeMap<String, PhaseTotal>,
    draining: BTreeMap<String, Moment>,
    loading: BTreeMap<String, Moment>,
}

impl Journal {
    pub(crate) fn draining(&mut self, model: &str, now: Moment) {
        self.draining.insert(model.to_owned(), now);
    }

    pub(crate) fn drained(&mut self, model: &str, now: Moment) {
        let since = self.draining.remove(model).unwrap_or(now);
        self.begin(model, since);
        self.add(model, Phase::Drain, now - since);
    }

    pub(crate) fn loading(&mut self, model: &str, now: Moment) {
        self.loading.insert(model.to_owned(), now);
    }

    /// Phases that have ended now.
    pub(crate) fn phases(&mut self, model: &str, now: Moment, phases: &[(Phase, Duration)]) {
        if let Some(since) =
            self.loading.remove(model).filter(|_| phases.iter().any(|(phase, _)| *phase == Phase::Load))
        {
            self.begin(model, since.min(now));
        }
        phases.iter().for_each(|(phase, took)| self.add(model, *phase, *took));
    }

    pub(crate) fn crashed(&mut self, model: &str) {
        *self.crashes.entry(model.to_owned()).or_default() += 1;
    }

    pub(crate) fn waited(&mut self, model: &str, time: Duration) {
        self.waits.entry(model.to_owned()).or_default().add(time);
    }

    fn begin(&mut self, model: &str, began: Moment) {
        if self.swaps.len() == KEPT {
            self.swaps.pop_front();
        }
        self.swaps.push_back(Swap { model: model.to_owned(), began, phases: Vec::new() });
    }

    fn add(&mut self, model: &str, phase: Phase, took: Duration) {
        if let Some(swap) = self.swaps.iter_mut().rev().find(|swap| swap.model == model) {
            swap.phases.push((phase, took));
        }
        self.totals.entry((model.to_owned(), phase)).or_default().add(took);
    }

    /// All of it.
    pub(crate) fn report(&self) -> SwapReport {
        SwapReport {
            last: self.swaps.iter().cloned().collect(),
            totals: self.totals.iter().map(|((model, phase), total)| (model.clone(), *phase, *total)).collect(),
            crashes: self.crashes.clone(),
            waits: self.waits.clone(),
        }
    }
}
