//! `tollkeeper route certainty`: from how sure a local model was of answers to how probably they are good.

use super::say;
use clap::Args;
use std::path::PathBuf;
use tollkeeper_router::confidence::{Case, Curve, cross_validate, separation};
use tollkeeper_router::difficulty::measure::Calibration;

/// Parts of the cross-validation.
const FOLDS: usize = 5;
/// The least confidences that are shown.
const LEAST: [f64; 7] = [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95];

/// Arguments of `certainty`.
#[derive(Debug, Args)]
pub(super) struct Certainty {
    /// Answers: CSV with the columns logprob, entropy (as `x-tollkeeper-why` shows them) and good (0 or 1)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
}

impl Certainty {
    pub(super) fn run(self) -> Result<(), String> {
        let path = self.data.display();
        let bytes = std::fs::read(&self.data).map_err(|error| format!("{path}: {error}"))?;
        let cases = Case::read_csv(&bytes).map_err(|error| format!("{path}: {error}"))?;
        let one_sided = || format!("{path}: there must be good and bad answers, several of each");
        let curve = Curve::fit(&cases).ok_or_else(one_sided)?;
        let unseen = cross_validate(&cases, FOLDS).ok_or_else(one_sided)?;
        say(&format!("certainty = [{:.3}, {:.3}, {:.3}]", curve.base, curve.logprob, curve.entropy));
        let good = cases.iter().filter(|case| case.good).count();
        say(&format!(
            "\n{} answers, {:.1} % good; by curves that had not seen them:",
            cases.len(),
            percent(good, cases.len())
        ));
        let by = |value: &dyn Fn(usize) -> f64| {
            separation(&(0..cases.len()).map(|at| (value(at), cases[at].good)).collect::<Vec<_>>()).unwrap_or(0.5)
        };
        say(&format!(
            "  a good answer has more confidence than a bad one in {:.1} % of pairs (log-probability alone {:.1} %, entropy alone {:.1} %)",
            100.0 * by(&|at| unseen[at]),
            100.0 * by(&|at| cases[at].logprob),
            100.0 * by(&|at| -cases[at].entropy),
        ));
        let said: Vec<(f32, bool)> = unseen.iter().zip(&cases).map(|(said, case)| (*said as f32, case.good)).collect();
        if let Some(calibration) = Calibration::of(&said) {
            say(&format!("  Brier {:.4} (a constant: {:.4})", calibration.brier, calibration.brier_constant));
        }
        say("\n  min_confidence   goes above   of the bad ones   of the good ones   good among those shown");
        for least in LEAST {
            let above = |which: Option<bool>| {
                let all = || cases.iter().zip(&unseen).filter(|(case, _)| which.is_none_or(|good| case.good == good));
                percent(all().filter(|(_, said)| **said < least).count(), all().count())
            };
            let shown = || cases.iter().zip(&unseen).filter(|(_, said)| **said >= least);
            let kept = percent(shown().filter(|(case, _)| case.good).count(), shown().count());
            say(&format!(
                "  {least:<14.2} {:>9.1} % {:>15.1} % {:>16.1} % {kept:>20.1} %",
                above(None),
                above(Some(false)),
                above(Some(true)),
            ));
        }
        Ok(())
    }
}

fn percent(part: usize, of: usize) -> f64 {
    100.0 * part as f64 / of.max(1) as f64
}
