//! With which tier a pyramid begins, by what is believed of its tiers: Thompson sampling (1933) within bounds.

use super::{Beta, Evidence};
use tollkeeper_config::Learning;

/// Of what is tried out, such a share goes to the tier below, where money might be saved; the rest says where to go if the present one gets worse.
const BELOW: f64 = 0.75;

/// Where a pyramid begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The tier.
    pub tier: u8,
    /// Whether that is another one than the difficulty says.
    pub moved: bool,
    /// Whether it was tried to learn something of it, rather than because it is believed to be the cheapest that is good enough.
    pub explored: bool,
}

/// Chooses among the tiers that can answer now (`ready`, ascending): `None` when there is none. `said` is the tier that the difficulty says, and
/// `known` what is known of each tier now. Without a seed nothing is tried out, and the cheapest tier is taken that is believed to be good enough.
///
/// With one, a share of `rules.explore` goes to a neighbour of that tier, so that its evidence does not run dry, and of a share of
/// `rules.explore_most` (those included) it is not the mean that decides but a sample of what is believed: a tier of which little is known is
/// tried as often as it may be good enough.
pub fn choose(
    ready: &[u8],
    said: u8,
    known: impl Fn(u8) -> Evidence,
    rules: &Learning,
    seed: Option<u64>,
) -> Option<Choice> {
    let last = ready.len().checked_sub(1)?;
    let home = ready.iter().position(|tier| *tier >= said).unwrap_or(last);
    let reach = usize::from(rules.reach);
    let within = &ready[home.saturating_sub(reach)..=home.saturating_add(reach).min(last)];
    let wanted = f64::from(rules.wanted) / 1000.0;
    let beliefs: Vec<Beta> = within.iter().map(|tier| known(*tier).belief(wanted, *tier >= ready[home])).collect();
    let believed = first_good(beliefs.iter().map(|belief| belief.mean()), wanted);
    let tried = seed.and_then(|seed| tried(&beliefs, believed, rules, &mut Lots::of(seed)));
    let tier = within[tried.unwrap_or(believed)];
    Some(Choice { tier, moved: tier != ready[home], explored: tried.is_some() })
}

/// Another place than the one that is believed to be right, if one is to be tried.
fn tried(beliefs: &[Beta], believed: usize, rules: &Learning, lots: &mut Lots) -> Option<usize> {
    let lot = lots.unit() * 1000.0;
    if lot < f64::from(rules.explore) {
        let above = Some(believed + 1).filter(|place| *place < beliefs.len());
        return match (believed.checked_sub(1), above) {
            (Some(below), Some(above)) => Some(if lots.unit() < BELOW { below } else { above }),
            (below, above) => below.or(above),
        };
    }
    if lot >= f64::from(rules.explore_most) {
        return None;
    }
    let samples: Vec<f64> = beliefs.iter().map(|belief| belief.sample(lots)).collect();
    let wanted = f64::from(rules.wanted) / 1000.0;
    Some(first_good(samples.into_iter(), wanted)).filter(|place| *place != believed)
}

/// The first that is as good as is wanted, else the best.
fn first_good(chances: impl Iterator<Item = f64> + Clone, wanted: f64) -> usize {
    let good = chances.clone().position(|chance| chance >= wanted);
    good.unwrap_or_else(|| {
        let best = |best: (usize, f64), one: (usize, f64)| if one.1 > best.1 { one } else { best };
        chances.enumerate().fold((0, f64::NEG_INFINITY), best).0
    })
}

/// Numbers that look like chance and follow from a seed (SplitMix64).
#[derive(Debug)]
pub(super) struct Lots(u64);

impl Lots {
    pub(super) fn of(seed: u64) -> Self {
        // Apart from the lots that strategies draw by the same seed.
        Self(seed ^ 0x6C65_6172_6E69_6E67)
    }

    /// In (0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        // 53 bits fill a double.
        ((mixed >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// A standard normal variate (Box and Muller 1958; the second one of the pair is not used).
    pub(super) fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.unit(), self.unit());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}
