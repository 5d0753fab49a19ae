//! Scenario files of swaps (`tests/scenarios/swaps`), each replayed on the simulator's own clock and held against the bands that it expects.

use serde::Deserialize;
use std::ops::Range;
use std::path::Path;
use tollkeeper_config::Usd;
use tollkeeper_router::swap::Rules;
use tollkeeper_router::swap::simulation::{Arrival, Device, Foresight, Outcome, Policy, optimum, run};

/// Seeds that no constant was chosen by.
const SEEDS: Range<u64> = 3000..3010;
const SECOND: u64 = 1000;
const HOUR: u64 = 3600 * SECOND;

/// A file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// What it is like.
    about: String,
    hours: u64,
    /// Of a hundred requests so many must not go to the cloud.
    #[serde(default)]
    local_only_percent: u64,
    device: Machine,
    /// They run beside each other.
    flows: Vec<Flow>,
    expect: Expect,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    swap_s: u64,
    energy_usd: String,
    min_residency_s: u64,
}

/// Requests that come at random, so long after each other in the mean, for these models in turn.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Flow {
    models: Vec<usize>,
    every_s: u64,
    bursts: Option<Bursts>,
    phases: Option<Phases>,
    by_day: Option<ByDay>,
}

/// So many at once, then a pause.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bursts {
    requests: [u64; 2],
    pause_s: u64,
}

/// One model for so long in the mean, with so many of a hundred for the next one; then another.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Phases {
    mean_s: u64,
    others_percent: u64,
}

/// The second model's share of a hundred: least at six in the morning of a day that begins at midnight, most twelve hours later.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct ByDay {
    least_percent: u64,
    most_percent: u64,
}

/// What must come of it, over all seeds together.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// The most that it may cost, of what it costs at least when models come only when they are asked for.
    percent_of_optimum: i64,
    /// At least so much below swapping always, and never.
    below_always_percent: Option<i64>,
    below_never_percent: Option<i64>,
    /// For each seed.
    most_swaps: Option<u64>,
    most_wait_s: Option<u64>,
}

/// Numbers that look random (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }

    fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }

    /// A time until the next of events that come independently, in milliseconds.
    fn gap(&mut self, mean: u64) -> u64 {
        let even = (self.below(1 << 30) + 1) as f64 / (1_u64 << 30) as f64;
        (-even.ln() * mean as f64) as u64
    }
}

impl Flow {
    fn play(&self, dice: &mut Dice, until: u64, mut came: impl FnMut(&mut Dice, u64, usize)) {
        let (mut at, mut turn, mut phase, mut phase_ends) = (0, 0, 0, 0);
        let mut left = 0;
        loop {
            match self.bursts {
                Some(Bursts { requests: [least, most], pause_s }) if left == 0 => {
                    at += dice.gap(pause_s * SECOND);
                    left = least + dice.below(most - least);
                }
                _ => at += dice.gap(self.every_s * SECOND),
            }
            left = left.saturating_sub(1);
            if at >= until {
                return;
            }
            let count = self.models.len();
            let place = if let Some(Phases { mean_s, others_percent }) = self.phases {
                while phase_ends <= at {
                    phase_ends += dice.gap(mean_s * SECOND);
                    phase += 1 + dice.below(count as u64 - 1) as usize;
                }
                phase + usize::from(dice.percent(others_percent))
            } else if let Some(ByDay { least_percent: least, most_percent: most }) = self.by_day {
                let angle = at as f64 / (24 * HOUR) as f64 * std::f64::consts::TAU;
                let share = (most + least) as f64 / 2.0 - (most - least) as f64 / 2.0 * angle.sin();
                usize::from(dice.percent(share as u64))
            } else {
                turn += 1;
                turn - 1
            };
            came(dice, at, self.models[place % count]);
        }
    }
}

impl Scenario {
    fn trace(&self, seed: u64) -> Vec<Arrival> {
        let mut dice = Dice(seed);
        let mut trace = Vec::new();
        for flow in &self.flows {
            flow.play(&mut dice, self.hours * HOUR, |dice, at_ms, model| {
                // 0.1 to 0.9 cents.
                let cloud = Usd(1_000_000 + dice.below(8_000_000).cast_signed());
                let local_only = dice.percent(self.local_only_percent);
                trace.push(Arrival { at_ms, model, cloud, local_only });
            });
        }
        trace.sort_by_key(|arrival| arrival.at_ms);
        trace
    }

    /// Everything that is not as expected.
    fn faults(&self) -> Vec<String> {
        let device = Device {
            swap_ms: self.device.swap_s * SECOND,
            energy: Usd::parse_decimal(&self.device.energy_usd).unwrap(),
            min_residency_ms: self.device.min_residency_s * SECOND,
        };
        let traces: Vec<_> = SEEDS.map(|seed| self.trace(seed)).collect();
        let play = |policy| -> Vec<Outcome> { traces.iter().map(|trace| run(trace, device, policy)).collect() };
        let cost = |outcomes: &[Outcome]| outcomes.iter().map(|outcome| outcome.cost.0).sum::<i64>();
        let pays = play(Policy::Pays(Rules::default()));
        let (ours, always, never) = (cost(&pays), cost(&play(Policy::Always)), cost(&play(Policy::Never)));
        let best: i64 = traces.iter().map(|trace| optimum(trace, device, Foresight::OnDemand).0).sum();
        let swaps = pays.iter().map(|outcome| outcome.swaps).max().unwrap();
        let wait_ms = pays.iter().filter_map(|outcome| outcome.waits_ms.last()).max().copied().unwrap_or(0);
        let Expect { percent_of_optimum, below_always_percent, below_never_percent, most_swaps, most_wait_s } =
            &self.expect;
        let below =
            |percent: Option<i64>, other: i64| percent.is_none_or(|percent| ours * 100 <= other * (100 - percent));
        let bands = [
            (ours * 100 <= best * percent_of_optimum, "times the optimum"),
            (below(*below_always_percent, always), "beside always"),
            (below(*below_never_percent, never), "beside never"),
            (most_swaps.is_none_or(|most| swaps <= most), "swaps"),
            (most_wait_s.is_none_or(|most| wait_ms <= most * SECOND), "waits"),
        ];
        let figures =
            format!("{ours} (best {best}, always {always}, never {never}), {swaps} swaps, {wait_ms} ms waited");
        bands.iter().filter(|(good, _)| !good).map(|(_, what)| format!("{what}: {figures}")).collect()
    }
}

fn files() -> Vec<(String, Scenario)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios/swaps");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let scenario = toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()));
            (name, scenario.unwrap())
        })
        .collect();
    files.sort_by(|one, other| one.0.cmp(&other.0));
    files
}

#[test]
fn every_scenario_file_keeps_within_its_bands() {
    let files = files();
    assert!(files.len() >= 6, "{}", files.len());
    let faults: Vec<String> = files
        .iter()
        .flat_map(|(name, scenario)| {
            scenario.faults().into_iter().map(move |fault| format!("{name}: {} {fault}", scenario.about))
        })
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_band_that_is_too_narrow_is_told() {
    let mut scenario = files().into_iter().find(|(name, _)| name == "steady").unwrap().1;
    scenario.expect = Expect {
        percent_of_optimum: 90,
        below_always_percent: Some(10),
        below_never_percent: Some(100),
        most_swaps: Some(0),
        most_wait_s: Some(0),
    };
    let faults = scenario.faults();
    assert_eq!(faults.len(), 4, "nobody waits in it: {}", faults.join("\n"));
}
