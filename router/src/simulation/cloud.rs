//! A model of a provider: what it does is drawn, what is known of it is learned from its answers.

use super::Micros;
use super::dice::Dice;
use super::fleet::Cloud;
use super::trace::Request;
use crate::candidate::{Health, Strain};
use crate::recent::Recent;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

const SECOND: Micros = 1_000_000;
/// A limit's refusal takes so long.
const REFUSAL: Micros = 100_000;
/// How long a provider keeps what it has read.
const CACHED_FOR: Micros = 300 * SECOND;
/// Answers shorter than this say nothing of the rate.
const SHORTEST: u64 = 16;
/// Failures in a row after which it is left alone.
const THRESHOLD: u32 = 3;

/// What becomes of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fate {
    /// Until the first token, or the failure.
    pub(super) first: Micros,
    /// Until the last token.
    pub(super) whole: Micros,
    pub(super) fails: bool,
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Failure {
    /// It broke.
    Broken,
    /// Too many in a minute; there is room again after so long.
    Limited(Micros),
}

/// The model, and what is known of it.
#[derive(Debug, Clone)]
pub(super) struct Provider<'a> {
    spec: &'a Cloud,
    /// Requests of the last minute.
    recent: VecDeque<Micros>,
    /// When a session was last read, and how much of it.
    cache: HashMap<u64, (Micros, u64)>,
    pub(super) in_flight: u32,
    ttft: Recent,
    /// From one token to the next.
    token: Recent,
    failures: u32,
    cooling_until: Micros,
    /// Smoothed share of failures, in thousandths, and when it was changed last.
    failing: (f64, Micros),
    /// Requests that were left when it last told, and until when that holds.
    told: Option<(u64, Micros)>,
}

impl<'a> Provider<'a> {
    pub(super) fn new(spec: &'a Cloud) -> Self {
        Self {
            spec,
            recent: VecDeque::new(),
            cache: HashMap::new(),
            in_flight: 0,
            ttft: Recent::default(),
            token: Recent::default(),
            failures: 0,
            cooling_until: 0,
            failing: (0.0, 0),
            told: None,
        }
    }

    /// What would become of a request now. It depends on the request's draws and the time, not on what else there is.
    pub(super) fn fate(&self, dice: Dice, row: &Request, now: Micros) -> Fate {
        let slow = self.spec.slow.filter(|slow| (slow.from_s..slow.until_s).contains(&(now / SECOND)));
        let factor = slow.map_or(1.0, |slow| slow.factor);
        let unread = row.input.saturating_sub(self.known(row.session, row.shared, now));
        let idle = self.spec.ttft_ms * 1e3 + unread as f64 / self.spec.prefill * 1e6;
        let first = idle * dice.of(1).factor(self.spec.spread) * factor;
        let rate = self.spec.rate * dice.of(2).factor(self.spec.spread) / factor;
        let first = first as Micros;
        Fate {
            first,
            whole: first + (row.output as f64 / rate * 1e6) as Micros,
            fails: dice.of(3).happens(self.spec.errors_permille),
        }
    }

    /// Takes a request; or refuses it, and says after how long.
    pub(super) fn begin(&mut self, now: Micros) -> Result<(), (Micros, Failure)> {
        self.in_flight += 1;
        let past = self.recent.partition_point(|at| at + 60 * SECOND <= now);
        self.recent.drain(..past);
        if self.spec.per_minute.is_some_and(|most| self.recent.len() >= most as usize) {
            let wait = self.recent.front().map_or(0, |oldest| oldest + 60 * SECOND - now);
            return Err((REFUSAL, Failure::Limited(wait)));
        }
        self.recent.push_back(now);
        Ok(())
    }

    /// How much of a prompt it need not read again.
    pub(super) fn known(&self, session: u64, shared: u64, now: Micros) -> u64 {
        let held = self.cache.get(&session).filter(|(at, _)| at + CACHED_FOR > now);
        held.map_or(0, |(_, tokens)| shared.min(*tokens))
    }

    /// The first token has come.
    pub(super) fn saw_first(&mut self, now: Micros, after: Micros) {
        self.ttft.saw(Duration::from_micros(now), Duration::from_micros(after));
        if let Some(most) = self.spec.per_minute {
            let refilled = self.recent.front().map_or(now, |oldest| oldest + 60 * SECOND);
            self.told = Some((u64::from(most).saturating_sub(self.recent.len() as u64), refilled));
        }
    }

    /// The answer is whole.
    pub(super) fn saw_end(&mut self, now: Micros, session: u64, tokens: (u64, u64), wrote_for: Micros) {
        let (input, output) = tokens;
        self.in_flight = self.in_flight.saturating_sub(1);
        self.failures = 0;
        self.failing = (self.failing(now) * 7.0 / 8.0, now);
        self.cache.insert(session, (now, input + output));
        if output >= SHORTEST {
            self.token.saw(Duration::from_micros(now), Duration::from_micros(wrote_for / output));
        }
    }

    /// The request has failed.
    pub(super) fn saw_failure(&mut self, now: Micros, failure: Failure) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.failing = (self.failing(now) * 7.0 / 8.0 + 125.0, now);
        let cooling = match failure {
            Failure::Limited(wait) => wait,
            Failure::Broken => {
                self.failures += 1;
                let Some(doublings) = self.failures.checked_sub(THRESHOLD) else { return };
                SECOND << doublings.min(5)
            }
        };
        self.cooling_until = self.cooling_until.max(now + cooling);
    }

    /// Until the first token, in milliseconds, as it seems.
    pub(super) fn ttft_ms(&self, now: Micros) -> Option<u64> {
        self.ttft.at(Duration::from_micros(now)).map(|ttft| u64::try_from(ttft.as_millis()).unwrap_or(u64::MAX))
    }

    /// Tokens of an answer in a second, as it seems.
    pub(super) fn rate(&self, now: Micros) -> Option<u32> {
        let rate = |token: Duration| u32::try_from(1_000_000 / token.as_micros().max(1)).unwrap_or(u32::MAX);
        self.token.at(Duration::from_micros(now)).map(rate)
    }

    /// As a gateway's health forgives: half in a minute.
    fn failing(&self, now: Micros) -> f64 {
        let (failing, since) = self.failing;
        failing * (-(now.saturating_sub(since) as f64 / 60e6)).exp2()
    }

    pub(super) fn strain(&self, now: Micros) -> Strain {
        Strain {
            failing_permille: self.failing(now) as u16,
            requests_left: self.told.filter(|(_, until)| *until > now).map(|(left, _)| left),
            tokens_left: None,
        }
    }

    pub(super) fn health(&self, now: Micros) -> Health {
        if self.cooling_until > now { Health::Cooling { until_ms: self.cooling_until / 1000 } } else { Health::Ready }
    }
}
