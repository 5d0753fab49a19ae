//! Checks `[velocity]` and what agents say of it.

use super::Check;
use super::server::small;
use crate::file::{RawOwnVelocity, RawVelocity};
use crate::problem::Span;
use crate::read::At;
use crate::units::Usd;
use crate::value::{Multiple, PauseTime};
use crate::velocity::{StageRule, VelocityConfig, VelocityFloor};
use std::time::Duration;

impl Check<'_> {
    /// What holds for an agent: the file's table with the agent's own laid over it. Without its own, for all of them.
    pub(super) fn velocity(&mut self, raw: &RawVelocity, own: Option<RawOwnVelocity>) -> VelocityConfig {
        let mut found = problems_of(raw);
        let mut raw = raw.clone();
        if let Some(own) = own {
            lay_over(&mut raw, own);
            // What is wrong with the file's own table is said once, there.
            let of_the_file = std::mem::replace(&mut found, problems_of(&raw));
            found.retain(|problem| !of_the_file.contains(problem));
        }
        for (span, message) in found {
            self.problems.add(&span, message);
        }
        let rule = |at: &At<Multiple>, cool_down| at.value.0.map(|at| StageRule { at, cool_down });
        let until = |time: &At<Duration>| Some(time.value);
        VelocityConfig {
            enabled: raw.enabled.value,
            notify: rule(&raw.trip, until(&raw.trip_cool_down)),
            throttle: rule(&raw.throttle, until(&raw.throttle_cool_down)),
            local: rule(&raw.local, until(&raw.local_cool_down)),
            pause: rule(
                &raw.pause,
                match raw.pause_cool_down.value {
                    PauseTime::For(time) => Some(time),
                    PauseTime::ByHand => None,
                },
            ),
            kill: rule(&raw.kill, None),
            drift: raw.drift.value.0,
            loop_repeats: raw.loop_repeats.value.0,
            loop_interval: raw.loop_interval.value,
            grace: raw.grace.value,
            floor: VelocityFloor {
                cap_percent: small(raw.floor_cap_percent.value.0),
                usd: raw.floor_usd.value,
                tokens: raw.floor_tokens.value.0,
                calls: small(raw.floor_calls.value.0),
            },
        }
    }
}

/// What does not fit together: a stage that begins no later than a milder one would hide it.
fn problems_of(raw: &RawVelocity) -> Vec<(Span, String)> {
    let stages = [
        ("trip", &raw.trip),
        ("throttle", &raw.throttle),
        ("local", &raw.local),
        ("pause", &raw.pause),
        ("kill", &raw.kill),
    ];
    let mut problems = Vec::new();
    let mut milder: Option<(&str, f64)> = None;
    for (name, at) in stages {
        let Some(multiple) = at.value.0 else { continue };
        if let Some((other, below)) = milder.filter(|(_, below)| multiple <= *below) {
            problems.push((at.span.clone(), format!("`{name}` must be more than `{other}`, which is {below}")));
        }
        milder = Some((name, multiple));
    }
    if raw.floor_usd.value <= Usd::ZERO {
        problems.push((raw.floor_usd.span.clone(), "`floor_usd` must be more than 0".to_owned()));
    }
    problems
}

/// Lays an agent's own keys over the file's.
fn lay_over(raw: &mut RawVelocity, own: RawOwnVelocity) {
    macro_rules! lay {
        ($($key:ident)+) => {
            $(if let Some(value) = own.$key.at {
                raw.$key = value;
            })+
        };
    }
    lay!(enabled trip trip_cool_down throttle throttle_cool_down local local_cool_down pause pause_cool_down kill drift);
    lay!(loop_repeats loop_interval grace floor_cap_percent floor_usd floor_tokens floor_calls);
}
