//! What is learned of tiers, in simulated worlds: bounds, convergence, recovery, and how much is tried out.

use crate::{candidate, chat, price};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use tollkeeper_config::{Learning, Strategy as Order};
use tollkeeper_router::learning::{Choice, Evidence, MOST_EVIDENCE, Outcome, choose};
use tollkeeper_router::{Rules, Wishes, plan, plan_from};

const TIERS: [u8; 3] = [0, 1, 2];
const SECOND: i64 = 1000;
const DAY: i64 = 86_400 * SECOND;

fn rules() -> Learning {
    Learning { reach: 2, ..Learning::default() }
}

/// A number in [0, 1) that follows from another one.
fn chance(of: u64) -> f64 {
    let mut mixed = of.wrapping_add(0x1234_5678).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^= mixed >> 29;
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

/// A gateway that learns from somebody's word about every answer.
struct World {
    rules: Learning,
    said: u8,
    known: BTreeMap<u8, Evidence>,
    seed: u64,
    now: i64,
}

impl World {
    fn new(said: u8, seed: u64) -> Self {
        Self { rules: rules(), said, known: BTreeMap::new(), seed, now: 0 }
    }

    /// Requests ten minutes apart, whose answers are good with the chance of their tier. Returns how many each tier answered, and how many were tried.
    fn live(&mut self, requests: u64, good: [f64; 3]) -> ([u64; 3], u64) {
        let (mut answered, mut explored) = ([0; 3], 0);
        for _ in 0..requests {
            self.seed += 1;
            self.now += 600 * SECOND;
            let choice = self.choice(Some(self.seed)).unwrap();
            let tier = usize::from(choice.tier);
            answered[tier] += 1;
            explored += u64::from(choice.explored);
            let score = f64::from(u8::from(chance(self.seed) < good[tier]));
            let outcome = Outcome { score, weight: 1.0, at_ms: self.now };
            self.known.entry(choice.tier).or_default().add(outcome, self.rules.half_life);
        }
        (answered, explored)
    }

    fn choice(&self, seed: Option<u64>) -> Option<Choice> {
        let known = |tier| {
            let evidence: Evidence = self.known.get(&tier).copied().unwrap_or_default();
            evidence.aged(self.now, self.rules.half_life)
        };
        choose(&TIERS, self.said, known, &self.rules, seed)
    }
}

fn settings() -> impl Strategy<Value = Learning> {
    (50u16..=990, 0u16..=1000, 0u16..=1000, 1u8..4).prop_map(|(wanted, one, other, reach)| Learning {
        wanted,
        explore: one.min(other),
        explore_most: one.max(other),
        reach,
        ..Learning::default()
    })
}

fn evidence() -> impl Strategy<Value = BTreeMap<u8, Evidence>> {
    let one = (0.0..100.0f64, 0.0..100.0f64).prop_map(|(good, bad)| Evidence { good, bad, at_ms: 0 });
    prop::collection::btree_map(0u8..6, one, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_choice_is_a_tier_that_can_answer_within_reach_and_always_the_same(
        ready in prop::collection::btree_set(0u8..6, 0..6), said in 0u8..6, known in evidence(), rules in settings(), seed: Option<u64>,
    ) {
        let ready = Vec::from_iter(ready);
        let known = |tier| known.get(&tier).copied().unwrap_or_default();
        let Some(choice) = choose(&ready, said, known, &rules, seed) else {
            prop_assert!(ready.is_empty());
            return Ok(());
        };
        let place = ready.iter().position(|tier| *tier == choice.tier);
        prop_assert!(place.is_some(), "{choice:?} is none of {ready:?}");
        let home = ready.iter().position(|tier| *tier >= said).unwrap_or(ready.len() - 1);
        prop_assert!(place.unwrap().abs_diff(home) <= usize::from(rules.reach));
        prop_assert_eq!(choice.moved, place != Some(home));
        prop_assert!(!choice.explored || (seed.is_some() && ready.len() > 1));
        prop_assert_eq!(choose(&ready, said, known, &rules, seed), Some(choice));
    }

    #[test]
    fn whatever_was_learned_the_same_backends_are_tried(
        tiers in prop::collection::vec(0u8..6, 0..8), known in evidence(), learning in settings(), seed: u64, said in 0u8..6,
        min_tier in prop::option::of(0u8..4), max_tier in prop::option::of(0u8..6), max_cost in prop::option::of(0i64..3_000_000),
    ) {
        let make = |(place, tier): (usize, &u8)| candidate(&format!("m{place}"), *tier, price(u64::from(*tier), 1 + u64::from(*tier)));
        let candidates = Vec::from_iter(tiers.iter().enumerate().map(make));
        let wishes = Wishes { min_tier, max_tier, max_cost: max_cost.map(tollkeeper_config::Usd), ..Wishes::default() };
        let rules = Rules { wishes, start_tier: said, ..Order::Pyramid.into() };
        let known = |tier| known.get(&tier).copied().unwrap_or_default();
        let plain = plan(&chat(100, Some(100)), candidates.clone(), rules.clone(), seed);
        let learned = plan_from(&chat(100, Some(100)), candidates, rules, seed, |ready| {
            choose(ready, said, known, &learning, Some(seed)).map_or(said, |choice| choice.tier)
        });
        prop_assert_eq!(&plain.rejected, &learned.rejected);
        let mut ids = [&plain, &learned].map(|plan| Vec::from_iter(plan.attempts.iter().map(|attempt| attempt.id.to_string())));
        ids.iter_mut().for_each(|ids| ids.sort());
        prop_assert_eq!(&ids[0], &ids[1]);
        if let Some(first) = learned.attempts.first() {
            prop_assert!(min_tier.is_none_or(|min| first.why.tier >= min) && max_tier.is_none_or(|max| first.why.tier <= max));
            prop_assert_eq!(first.why.tier, first.why.start.max(first.why.tier), "it begins where it was told to, or above");
        }
    }

    #[test]
    fn what_is_taken_back_was_never_there(
        first in (0.0..=1.0f64, 0.0..=1.0f64), other in (0.0..=1.0f64, 0.0..=1.0f64), days in 0i64..40, more in 0i64..40,
    ) {
        let half_life = Duration::from_secs(14 * 86_400);
        let outcome = |(score, weight), at_ms| Outcome { score, weight, at_ms };
        let (mut with, mut without) = (Evidence::default(), Evidence::default());
        with.add(outcome(first, 0), half_life);
        for evidence in [&mut with, &mut without] {
            evidence.add(outcome(other, days * DAY), half_life);
        }
        with.take_back(outcome(first, 0), (days + more) * DAY, half_life);
        let without = without.aged((days + more) * DAY, half_life);
        prop_assert!((with.good - without.good).abs() < 1e-9 && (with.bad - without.bad).abs() < 1e-9);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn it_comes_to_the_cheapest_tier_that_is_good_enough_and_follows_when_that_changes(
        said in 0u8..3, seed in any::<u32>(), bad in 0.2..0.65f64, good in 0.9..1.0f64, right in 0usize..3, later in 0usize..3,
    ) {
        let mut world = World::new(said, u64::from(seed) << 20);
        for right in [right, later] {
            let chances = std::array::from_fn(|tier| if tier < right { bad } else { good });
            world.live(12_000, chances);
            let (answered, explored) = world.live(1000, chances);
            prop_assert!(answered[right] >= 850, "of 1000 requests {answered:?} by tier instead of {right}");
            // A share of 0.02 to 0.1, and what chance adds to it (four standard deviations).
            prop_assert!((3..=138).contains(&explored), "{explored}");
            prop_assert_eq!(world.choice(None), Some(Choice {
                tier: TIERS[right], moved: TIERS[right] != said, explored: false,
            }));
        }
    }
}

#[test]
fn at_least_the_floor_and_at_most_the_cap_is_tried() {
    // Nothing is known of the others, and the tier that the difficulty says is nearly not good enough: samples would go elsewhere often.
    for (explore, explore_most) in [(0, 0), (20, 100), (100, 100), (0, 300)] {
        let rules = Learning { explore, explore_most, ..rules() };
        let known = |tier| if tier == 1 { Evidence { good: 8.1, bad: 2.0, at_ms: 0 } } else { Evidence::default() };
        let choices: Vec<Choice> =
            (0..20_000).map(|seed| choose(&TIERS, 1, known, &rules, Some(seed)).unwrap()).collect();
        let share = |is: fn(&Choice) -> bool| choices.iter().filter(|choice| is(choice)).count() as f64 / 20.0;
        let explored = share(|choice| choice.explored);
        let (least, most) = (f64::from(explore), f64::from(explore_most));
        assert!(explored >= least * 0.9 && explored <= most * 1.1, "{explored} of 1000 are not {least} to {most}");
        // Both sides, and what is tried is always another tier than the one that is believed in.
        if explore > 0 {
            assert!(
                share(|choice| choice.tier == 0) >= least * 0.65 && share(|choice| choice.tier == 2) >= least * 0.2
            );
        }
        assert!(choices.iter().all(|choice| choice.explored == (choice.tier != 1)));
    }
}

#[test]
fn without_evidence_the_difficulty_decides() {
    for said in TIERS {
        let choice = choose(&TIERS, said, |_| Evidence::default(), &rules(), None);
        assert_eq!(choice, Some(Choice { tier: said, moved: false, explored: false }));
    }
    // A tier that is not there is as the next one up, else as the highest.
    assert_eq!(choose(&[0, 3], 1, |_| Evidence::default(), &rules(), None).unwrap().tier, 3);
    assert_eq!(choose(&[0, 3], 9, |_| Evidence::default(), &rules(), None).unwrap().tier, 3);
    assert_eq!(choose(&[], 0, |_| Evidence::default(), &rules(), Some(1)), None);
}

#[test]
fn what_is_not_heard_of_again_fades_to_what_the_difficulty_says() {
    let mut world = World::new(0, 1);
    world.live(500, [0.2, 0.95, 0.95]);
    assert_eq!(world.choice(None).unwrap().tier, 1);
    world.now += 200 * DAY;
    assert_eq!(world.choice(None), Some(Choice { tier: 0, moved: false, explored: false }));
}

#[test]
fn evidence_is_bounded_and_halves() {
    let half_life = Duration::from_secs(86_400);
    let mut evidence = Evidence::default();
    for _ in 0..100_000 {
        evidence.add(Outcome { score: 0.75, weight: 1.0, at_ms: 0 }, half_life);
    }
    assert!((evidence.all() - MOST_EVIDENCE).abs() < 1e-6 && evidence.is_plausible());
    assert!((evidence.good / evidence.all() - 0.75).abs() < 1e-9);
    assert!((evidence.aged(DAY, half_life).all() - MOST_EVIDENCE / 2.0).abs() < 1e-6);
    assert_eq!(evidence.aged(-DAY, half_life), evidence, "a clock that goes back makes nothing grow");
}
