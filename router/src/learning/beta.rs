//! The beta distribution: what is believed of a probability after so many good and bad outcomes.

use super::choice::Lots;

/// Digits enough for a report.
const HALVINGS: u32 = 40;

/// A belief about a probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beta {
    /// Good outcomes, those assumed included; more than 0.
    pub good: f64,
    /// Bad ones, likewise.
    pub bad: f64,
}

impl Beta {
    /// What is expected.
    pub fn mean(self) -> f64 {
        self.good / (self.good + self.bad)
    }

    /// The probability is below this with the probability `share` (0 to 1).
    pub fn quantile(self, share: f64) -> f64 {
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            if self.below(middle) < share {
                low = middle;
            } else {
                high = middle;
            }
        }
        f64::midpoint(low, high)
    }

    /// Draws a probability from what is believed: as the share of one gamma variate in two.
    pub(super) fn sample(self, lots: &mut Lots) -> f64 {
        let (good, bad) = (gamma(self.good, lots), gamma(self.bad, lots));
        let share = good / (good + bad);
        if share.is_finite() { share } else { self.mean() }
    }

    /// How probable it is that the probability is below `x`: the regularised incomplete beta function, by its continued fraction where that
    /// converges fast.
    fn below(self, x: f64) -> f64 {
        let (a, b) = (self.good, self.bad);
        if x <= 0.0 || x >= 1.0 {
            return x.clamp(0.0, 1.0);
        }
        let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp();
        if x < (a + 1.0) / (a + b + 2.0) {
            front * fraction(a, b, x) / a
        } else {
            1.0 - front * fraction(b, a, 1.0 - x) / b
        }
    }
}

/// The continued fraction of the incomplete beta function, by Lentz's method.
fn fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    const STEPS: u32 = 300;
    let kept = |value: f64| if value.abs() < TINY { TINY } else { value };
    let (mut c, mut d) = (1.0, 1.0 / kept(1.0 - (a + b) * x / (a + 1.0)));
    let mut value = d;
    for step in 1..STEPS {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = value;
        for term in [even, odd] {
            d = 1.0 / kept(1.0 + term * d);
            c = kept(1.0 + term / c);
            value *= c * d;
        }
        if (value - before).abs() <= value.abs() * 1e-12 {
            break;
        }
    }
    value
}

/// The logarithm of the gamma function of a positive number: Stirling's series, which is good for large ones, and so is used from 8 on.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut less) = (x, 0.0);
    while x < 8.0 {
        less += x.ln();
        x += 1.0;
    }
    let square = 1.0 / (x * x);
    let series = (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series - less
}

/// A gamma variate of this shape (Marsaglia and Tsang 2000).
fn gamma(shape: f64, lots: &mut Lots) -> f64 {
    if shape < 1.0 {
        return gamma(shape + 1.0, lots) * lots.unit().powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let normal = lots.normal();
        let v = (1.0 + c * normal).powi(3);
        if v > 0.0 && lots.unit().ln() < 0.5 * normal * normal + d * (1.0 - v + v.ln()) {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // 90 % intervals by an independent implementation (R's qbeta).
        for (good, bad, low, high) in
            [(1.0, 1.0, 0.05, 0.95), (2.0, 1.0, 0.223_607, 0.974_679), (8.0, 2.0, 0.570_863, 0.958_977)]
        {
            let belief = Beta { good, bad };
            let found = (belief.quantile(0.05), belief.quantile(0.95));
            assert!((found.0 - low).abs() < 1e-4 && (found.1 - high).abs() < 1e-4, "{good} {bad}: {found:?}");
        }
    }

    #[test]
    fn samples_spread_as_the_belief_says() {
        for (good, bad) in [(0.02, 3.98), (0.5, 0.5), (3.6, 0.4), (160.0, 40.0)] {
            let belief = Beta { good, bad };
            let mut lots = Lots::of(7);
            let all: Vec<f64> = (0..20_000).map(|_| belief.sample(&mut lots)).collect();
            assert!(all.iter().all(|one| (0.0..=1.0).contains(one)));
            let share = |below: f64| all.iter().filter(|one| **one < below).count() as f64 / 20_000.0;
            for wanted in [0.25, 0.5, 0.9] {
                let at = belief.quantile(wanted);
                // Half of a mass that lies nearer to 0 or 1 than numbers can say is not told apart.
                if (1e-9..1.0 - 1e-9).contains(&at) {
                    assert!((share(at) - wanted).abs() < 0.02, "{good} {bad} {wanted}: {}", share(at));
                }
            }
        }
    }
}
