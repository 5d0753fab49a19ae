//! How long something takes, learned from how long it took: what was seen lately counts most, and is forgotten when nothing new is seen.

use std::time::Duration;

/// How long until half of what was special lately is forgotten.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// Share of a new time in the recent mean, as a divisor.
const RECENT: u64 = 5;
/// The same for the usual one, once so many were seen; before that it is the mean of all.
const USUAL: u64 = 64;

/// A smoothed time. With nothing new seen it goes back to what is usual: a backend that was slow for a while is not asked meanwhile, so nobody
/// would ever learn that it is well again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recent {
    /// Microseconds.
    recent: u64,
    /// Microseconds.
    usual: u64,
    count: u64,
    /// When it was seen last, since any fixed start.
    seen: Duration,
}

impl Recent {
    /// It took so long; `now` is the time since any fixed start.
    pub fn saw(&mut self, now: Duration, took: Duration) {
        let new = u64::try_from(took.as_micros()).unwrap_or(u64::MAX / 2).max(1);
        let weigh = |old: u64, share: u64| old - old / share + new / share;
        self.recent = self.micros(now).map_or(new, |old| weigh(old, RECENT));
        self.count = (self.count + 1).min(USUAL);
        self.usual = weigh(self.usual, self.count);
        self.seen = now;
    }

    /// How long it will probably take; `None` before anything was seen.
    pub fn at(&self, now: Duration) -> Option<Duration> {
        self.micros(now).map(Duration::from_micros)
    }

    fn micros(&self, now: Duration) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let age = now.saturating_sub(self.seen).as_secs_f64() / HALF_LIFE.as_secs_f64();
        let (recent, usual) = (self.recent as f64, self.usual as f64);
        Some((usual + (recent - usual) * (-age).exp2()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_new_counts_and_is_forgotten() {
        let mut ttft = Recent::default();
        assert_eq!(ttft.at(seconds(0)), None);
        for second in 0..100 {
            ttft.saw(seconds(second), Duration::from_millis(500));
        }
        let at = |ttft: &Recent, second| ttft.at(seconds(second)).unwrap().as_millis();
        assert!((495..=500).contains(&at(&ttft, 100)), "{}", at(&ttft, 100));
        // Trouble shows at once, and in full after a few answers.
        ttft.saw(seconds(100), seconds(5));
        assert!(at(&ttft, 100) > 1300, "{}", at(&ttft, 100));
        for _ in 0..8 {
            ttft.saw(seconds(101), seconds(5));
        }
        assert!(at(&ttft, 101) > 4000, "{}", at(&ttft, 101));
        // Nobody asks it then. What is usual has moved a little only.
        assert!((2000..3500).contains(&at(&ttft, 161)), "{}", at(&ttft, 161));
        assert!(at(&ttft, 1000) < 1200, "{}", at(&ttft, 1000));
    }

    #[test]
    fn what_is_always_slow_stays_so() {
        let mut slow = Recent::default();
        for second in 0..10 {
            slow.saw(seconds(second), seconds(9));
        }
        assert!(slow.at(seconds(100_000)).unwrap() > Duration::from_millis(8900), "{slow:?}");
        slow.saw(seconds(100_000), Duration::MAX);
        assert!(slow.at(seconds(100_000)).unwrap() > seconds(1_000_000));
    }
}
