//! `tollkeeper route`: how good the router's classifier is, which threshold sends the share of requests to the strong tier that is wanted, what
//! becomes of a request, and what strategies make of a trace.

mod explain;
mod simulate;

use super::certainty::Certainty;
use super::say;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use tollkeeper_router::Difficulty;
use tollkeeper_router::difficulty::measure::{
    Calibration, Curve, Scored, Spread, Unseen, cross_validate, sampling_error, threshold,
};
use tollkeeper_router::difficulty::{Case, Settings};

/// What about the router.
#[derive(Debug, Subcommand)]
pub(super) enum RouteCommand {
    /// Cross-validate the difficulty model on cases: what it recovers of the gap between a weak and a strong model, beside length and chance
    Eval(Eval),
    /// The threshold that sends a share of these cases to the strong tier, and what that wins
    Calibrate(Calibrate),
    /// What makes a confidence of how sure a local model was of its answers, for cascades
    Certainty(Certainty),
    /// The plan that a request would get of the running gateway: who is tried in which order, why, for how much and how long
    Explain(explain::Explain),
    /// What strategies cost and how long they take on a trace, beside a static order, a random choice of two, and foresight
    Simulate(simulate::Simulate),
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub(super) struct Eval {
    /// Cases: CSV with the columns prompt, weak_correct, strong_correct (0 or 1) and, for groups, source
    #[arg(long, value_name = "FILE", default_value = "router/data/calibration.csv")]
    data: PathBuf,
    /// Parts of each cross-validation
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(2..=50))]
    folds: u8,
    /// Cross-validations with different parts
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
    repeats: u8,
}

/// Arguments of `calibrate`.
#[derive(Debug, Args)]
pub(super) struct Calibrate {
    /// Cases: CSV with the columns prompt, weak_correct, strong_correct (0 or 1) and, for groups, source
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The share of requests that go to the strong tier, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = share)]
    strong_share: f64,
}

/// APGR that is published for routers trained on other data (arXiv 2406.18665), by group.
const PUBLISHED: &[(&str, f64)] = &[("gsm8k", 0.62), ("mmlu", 0.60)];

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "this is no share from 0 to 1, such as 0.3".to_owned())
}

impl RouteCommand {
    pub(super) fn run(self) -> Result<(), String> {
        match self {
            Self::Eval(eval) => eval.run(),
            Self::Calibrate(calibrate) => calibrate.run(),
            Self::Certainty(certainty) => certainty.run(),
            Self::Explain(explain) => explain.run(),
            Self::Simulate(simulate) => simulate.run(),
        }
    }
}

fn cases(path: &Path) -> Result<Vec<Case>, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Case::read_csv(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

impl Eval {
    fn run(self) -> Result<(), String> {
        let cases = cases(&self.data)?;
        if cases.len() < 10 * usize::from(self.folds) {
            let (path, count) = (self.data.display(), cases.len());
            return Err(format!("{path}: {count} cases are too few: each of the {} parts wants ten", self.folds));
        }
        let unseen = cross_validate(&cases, &Settings::default(), self.folds.into(), self.repeats.into());
        say(&format!(
            "{} cases, {} cross-validations in {} parts; ± is the deviation between them, [±] that of drawing other cases",
            cases.len(),
            self.repeats,
            self.folds
        ));
        let mut groups: Vec<&str> = cases.iter().map(Case::group).collect();
        groups.sort_unstable();
        groups.dedup();
        for group in groups {
            let places: Vec<usize> = (0..cases.len()).filter(|place| cases[*place].group() == group).collect();
            report(group, &cases, &places, &unseen);
        }
        Ok(())
    }
}

fn scored(cases: &[Case], places: &[usize], score: impl Fn(usize) -> f32) -> Vec<Scored> {
    let one = |place: &usize| {
        let Case { weak, strong, .. } = cases[*place];
        Scored { score: score(*place), weak, strong }
    };
    places.iter().map(one).collect()
}

/// The share of cases that a model has right.
fn accuracy(cases: &[Scored], right: impl Fn(&Scored) -> bool) -> f64 {
    cases.iter().filter(|case| right(case)).count() as f64 / cases.len().max(1) as f64
}

fn report(group: &str, cases: &[Case], places: &[usize], unseen: &[Unseen]) {
    let by_length = scored(cases, places, |place| cases[place].prompt.len() as f32);
    let (weak, strong) = (accuracy(&by_length, |case| case.weak), accuracy(&by_length, |case| case.strong));
    say(&format!(
        "\n{group}: {} cases, right: weak {:.1} %, strong {:.1} %",
        places.len(),
        100.0 * weak,
        100.0 * strong
    ));
    let Some(length) = Curve::of(&by_length) else {
        say("  the strong model is not the better one: there is no gap to recover");
        return;
    };
    let rounds: Vec<Vec<Scored>> =
        unseen.iter().map(|round| scored(cases, places, |place| round[place].gain)).collect();
    let curves: Vec<Curve> = rounds.iter().filter_map(|round| Curve::of(round)).collect();
    let spread = |of: &dyn Fn(&Curve) -> f64| Spread::of(&curves.iter().map(of).collect::<Vec<_>>());
    let (apgr, half, most) =
        (spread(&Curve::apgr), spread(&|curve| curve.calls_for(0.5)), spread(&|curve| curve.calls_for(0.8)));
    let drawn = rounds.first().map_or(0.0, |round| sampling_error(round));
    say("                APGR                     CPT(50 %)        CPT(80 %)");
    say(&format!(
        "  classifier    {:.3} ± {:.3} [± {drawn:.3}]  {:.1} % ± {:.1}     {:.1} % ± {:.1}",
        apgr.mean,
        apgr.deviation,
        100.0 * half.mean,
        100.0 * half.deviation,
        100.0 * most.mean,
        100.0 * most.deviation
    ));
    say(&format!(
        "  length alone  {:.3}         [± {:.3}]  {:.1} %           {:.1} %",
        length.apgr(),
        sampling_error(&by_length),
        100.0 * length.calls_for(0.5),
        100.0 * length.calls_for(0.8)
    ));
    say("  random        0.500                    50.0 %           80.0 %");
    if let Some((_, published)) = PUBLISHED.iter().find(|(name, _)| *name == group) {
        say(&format!("  published     {published:.2}, trained on other data (arXiv 2406.18665)"));
    }
    let said: Vec<(f32, bool)> = unseen
        .iter()
        .flat_map(|round| places.iter().map(|place| (round[*place].weak_fails, !cases[*place].weak)))
        .collect();
    if let Some(calibration) = Calibration::of(&said) {
        say(&format!(
            "  probability that the weak model fails: Brier {:.4} (a constant: {:.4}), mean miscalibration {:.3}",
            calibration.brier, calibration.brier_constant, calibration.error
        ));
        let row = |of: fn(&tollkeeper_router::difficulty::measure::Bin) -> f64| {
            calibration.bins.iter().map(|bin| format!("{:.2}", of(bin))).collect::<Vec<_>>().join("  ")
        };
        say(&format!("    said      {}", row(|bin| bin.said)));
        say(&format!("    happened  {}", row(|bin| bin.happened)));
    }
}

impl Calibrate {
    fn run(self) -> Result<(), String> {
        let cases = cases(&self.data)?;
        let scores: Vec<f32> =
            cases.iter().map(|case| Difficulty::of_text(&case.prompt).map_or(0.0, |score| score.value)).collect();
        let (threshold, sent) = threshold(&scores, self.strong_share).ok_or_else(|| "there are no cases".to_owned())?;
        let places: Vec<usize> = (0..cases.len()).collect();
        let scored = scored(&cases, &places, |place| scores[place]);
        let routed = accuracy(&scored, |case| if case.score >= threshold { case.strong } else { case.weak });
        let (weak, strong) = (accuracy(&scored, |case| case.weak), accuracy(&scored, |case| case.strong));
        say(&format!("threshold     {threshold:.6}"));
        say(&format!(
            "strong share  {:.1} % of {} cases (wanted {:.1} %)",
            100.0 * sent,
            cases.len(),
            100.0 * self.strong_share
        ));
        say(&format!(
            "right         {:.1} % (all weak {:.1} %, all strong {:.1} %)",
            100.0 * routed,
            100.0 * weak,
            100.0 * strong
        ));
        Ok(())
    }
}
