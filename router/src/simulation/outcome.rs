//! What came of a simulation.

use super::{Chooser, Micros, Setup};
use std::fmt::Write;
use tollkeeper_config::{BackendId, Usd};

/// What became of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Served {
    /// Who answered; `None` if nobody did.
    pub(super) backend: Option<usize>,
    pub(super) arrived: Micros,
    pub(super) first: Micros,
    pub(super) end: Micros,
    pub(super) cost: Usd,
    /// How much longer the first choice would take than the best, if nothing else came.
    pub(super) regret: Micros,
    /// How much more it would cost than the cheapest.
    pub(super) regret_usd: Usd,
}

/// The figures of a run, or of several together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Who decided.
    pub chooser: Chooser,
    /// Requests that came.
    pub requests: usize,
    /// What all answers cost.
    pub cost: Usd,
    /// Until the first token, in milliseconds, of answers, shortest first.
    pub ttft_ms: Vec<u64>,
    /// Until the last.
    pub duration_ms: Vec<u64>,
    /// Answers by tier, from 0.
    pub tiers: Vec<usize>,
    /// Answers of local models.
    pub local: usize,
    /// Answers of a tier that is good enough.
    pub sufficed: usize,
    /// Requests with a deadline, and how many of them missed it.
    pub deadlines: (usize, usize),
    /// Requests that nobody answered.
    pub failed: usize,
    /// How much longer first choices took than the best would have, all together, in milliseconds: each as it stood when it was made.
    pub regret_ms: u64,
    /// How much more they cost than the cheapest would have.
    pub regret: Usd,
}

impl Outcome {
    pub(super) fn of(setup: &Setup<'_>, chooser: Chooser, served: &[Served]) -> Self {
        let mut outcome = Self {
            chooser,
            requests: served.len(),
            cost: Usd::ZERO,
            ttft_ms: Vec::new(),
            duration_ms: Vec::new(),
            tiers: Vec::new(),
            local: 0,
            sufficed: 0,
            deadlines: (0, 0),
            failed: 0,
            regret_ms: 0,
            regret: Usd::ZERO,
        };
        for (row, served) in setup.trace.iter().zip(served) {
            let took = served.end.saturating_sub(served.arrived) / 1000;
            if let Some(deadline) = row.deadline_ms {
                outcome.deadlines.0 += 1;
                outcome.deadlines.1 += usize::from(served.backend.is_none() || took > deadline);
            }
            let Some(backend) = served.backend else {
                outcome.failed += 1;
                continue;
            };
            let model = &setup.fleet.models[backend];
            let tier = usize::from(model.tier);
            outcome.tiers.resize(outcome.tiers.len().max(tier + 1), 0);
            outcome.tiers[tier] += 1;
            outcome.local += usize::from(matches!(model.id, BackendId::Local(_)));
            outcome.sufficed += usize::from(model.tier >= row.needs_tier);
            outcome.cost = outcome.cost.saturating_add(served.cost);
            outcome.ttft_ms.push(served.first.saturating_sub(served.arrived) / 1000);
            outcome.duration_ms.push(took);
            outcome.regret_ms += served.regret / 1000;
            outcome.regret = outcome.regret.saturating_add(served.regret_usd);
        }
        outcome.ttft_ms.sort_unstable();
        outcome.duration_ms.sort_unstable();
        outcome
    }

    /// With the figures of another run: all requests as if they were of one.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.requests += other.requests;
        self.cost = self.cost.saturating_add(other.cost);
        self.ttft_ms.extend(other.ttft_ms);
        self.duration_ms.extend(other.duration_ms);
        self.ttft_ms.sort_unstable();
        self.duration_ms.sort_unstable();
        self.tiers.resize(self.tiers.len().max(other.tiers.len()), 0);
        self.tiers.iter_mut().zip(other.tiers).for_each(|(mine, theirs)| *mine += theirs);
        self.local += other.local;
        self.sufficed += other.sufficed;
        self.deadlines = (self.deadlines.0 + other.deadlines.0, self.deadlines.1 + other.deadlines.1);
        self.failed += other.failed;
        self.regret_ms += other.regret_ms;
        self.regret = self.regret.saturating_add(other.regret);
        self
    }

    /// A figure by its name in files of expected bands: `usd`, `ttft_p50_ms`, `ttft_p95_ms`, `p50_ms`, `p95_ms`, `missed`, `failed`,
    /// `sufficed_percent`, `local_percent`, `regret_ms` (a request), `regret_usd`.
    pub fn figure(&self, name: &str) -> Option<f64> {
        let percent = |count: usize| 100.0 * count as f64 / self.requests.max(1) as f64;
        Some(match name {
            "usd" => dollars(self.cost),
            "ttft_p50_ms" => percentile(&self.ttft_ms, 50) as f64,
            "ttft_p95_ms" => percentile(&self.ttft_ms, 95) as f64,
            "p50_ms" => percentile(&self.duration_ms, 50) as f64,
            "p95_ms" => percentile(&self.duration_ms, 95) as f64,
            "missed" => self.deadlines.1 as f64,
            "failed" => self.failed as f64,
            "sufficed_percent" => percent(self.sufficed),
            "local_percent" => percent(self.local),
            "regret_ms" => self.regret_ms as f64 / self.requests.max(1) as f64,
            "regret_usd" => dollars(self.regret),
            _ => return None,
        })
    }

    /// So many of a hundred answers were whole within this, in milliseconds.
    pub fn duration_percentile(&self, percent: usize) -> u64 {
        percentile(&self.duration_ms, percent)
    }
}

fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(0)
}

fn dollars(usd: Usd) -> f64 {
    usd.0 as f64 / 1e9
}

/// A table of outcomes, one line each.
pub fn table(outcomes: &[Outcome]) -> String {
    let tiers = outcomes.iter().map(|outcome| outcome.tiers.len()).max().unwrap_or(0);
    let shares = (0..tiers).map(|tier| format!("tier {tier}")).collect::<Vec<_>>().join("  ");
    let mut table = format!(
        "{:<14} {:>9}  {:>8} {:>8}  {:>8} {:>8}  {shares}  {:>8} {:>7} {:>6}  {:>9} {:>10}\n",
        "", "USD", "TTFT p50", "p95 s", "whole p50", "p95 s", "sufficed", "missed", "failed", "regret s", "regret USD"
    );
    for outcome in outcomes {
        let figure = |name| outcome.figure(name).unwrap_or(0.0);
        let seconds = |name| figure(name) / 1000.0;
        let share = |tier: usize| {
            let count = outcome.tiers.get(tier).copied().unwrap_or(0);
            format!("{:>4.0} %", 100.0 * count as f64 / outcome.requests.max(1) as f64)
        };
        let shares = (0..tiers).map(share).collect::<Vec<_>>().join("  ");
        let (wanted, missed) = outcome.deadlines;
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{:<14} {:>9.4}  {:>8.2} {:>8.2}  {:>9.2} {:>8.2}  {shares}  {:>6.1} % {:>7} {:>6}  {:>8.2} {:>11.4}",
            outcome.chooser.name(),
            figure("usd"),
            seconds("ttft_p50_ms"),
            seconds("ttft_p95_ms"),
            seconds("p50_ms"),
            seconds("p95_ms"),
            figure("sufficed_percent"),
            if wanted == 0 { "-".to_owned() } else { missed.to_string() },
            outcome.failed,
            seconds("regret_ms"),
            figure("regret_usd"),
        );
    }
    table
}
