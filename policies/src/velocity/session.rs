//! How fast the present session is: what is normal for the agent, narrowed by what it has done since it last rested.

/// A rest of so long ends a session, in microseconds.
const REST: i64 = 60_000_000;
/// What came is looked at in steps of so long, and counts only after one more of them: what begins now is no excuse for itself.
const STEP: i64 = 30_000_000;
/// What came counts for less with time: for 1/e after so many seconds.
const MEMORY: f64 = 600.0;
/// The busiest that a session may be is at most so many times what it may be before it begins: a loop that goes on must not
/// excuse itself.
const MOST: f64 = 1.25;
/// And at least so many times: what looks like one session may be the end of a slow one and a fast one.
const LEAST: f64 = 0.5;
/// Standard deviations above the mean of the logarithm at which the busiest sessions are: one session in 740.
const BUSIEST: f64 = 3.0;

/// Rates of sessions: log-normal with this mean (per second) and this standard deviation of the logarithm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    pub(super) mean: f64,
    pub(super) spread: f64,
}

impl Rates {
    /// The rate per second of the busiest sessions.
    pub(super) fn busiest(self) -> f64 {
        self.mean * (BUSIEST * self.spread - self.spread * self.spread / 2.0).exp()
    }
}

/// What has come one by one in this session.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Session {
    last: i64,
    step: i64,
    /// In the present step, and in the one before.
    fresh: Came,
    waiting: Came,
    counted: Came,
}

#[derive(Debug, Clone, Copy, Default)]
struct Came {
    count: f64,
    seconds: f64,
}

impl Session {
    /// Counts one. Returns whether it is another session, or more of it counts than before.
    pub(super) fn add(&mut self, now: i64) -> bool {
        let begins = now.saturating_sub(self.last) >= REST;
        let steps = now.saturating_sub(self.step) >= STEP;
        if begins {
            *self = Self { step: now, ..Self::default() };
        } else if steps {
            let seconds = now.saturating_sub(self.step) as f64 / 1e6;
            let left = (-seconds / MEMORY).exp();
            self.counted.count = self.counted.count * left + self.waiting.count;
            self.counted.seconds = self.counted.seconds * left + self.waiting.seconds;
            self.waiting = Came { seconds, ..self.fresh };
            (self.fresh, self.step) = (Came::default(), now);
        }
        self.last = now;
        self.fresh.count += 1.0;
        begins || steps
    }

    /// What is known of this session's rate: the posterior of a Gamma-distributed rate (the conjugate prior of a Poisson count,
    /// with the mean and variance of `rates`), told as a log-normal one.
    pub(super) fn narrow(&self, rates: Rates) -> Rates {
        let shape = 1.0 / (rates.spread * rates.spread).exp_m1().max(1e-6);
        let Came { count, seconds } = self.counted;
        let mean = (shape + count) / (shape / rates.mean + seconds);
        Rates { mean, spread: (1.0 / (shape + count)).ln_1p().sqrt() }
    }

    /// The rate per second that this session may come to by chance.
    pub(super) fn busiest(&self, rates: Rates) -> f64 {
        let before = rates.busiest();
        self.narrow(rates).busiest().clamp(LEAST * before, MOST * before)
    }
}
