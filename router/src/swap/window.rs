//! What came in lately, and by that what will come in: a sliding window of two halves.

/// Amounts of the last while.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    /// When counting began.
    since: Option<u64>,
    /// Which half the present one is.
    half: u64,
    present: i64,
    last: i64,
}

impl Window {
    /// So much came in; halves are so long, in milliseconds.
    pub(super) fn add(&mut self, half_ms: u64, now_ms: u64, amount: i64) {
        self.since.get_or_insert(now_ms);
        let half = now_ms / half_ms.max(1);
        if half != self.half {
            self.last = if half == self.half + 1 { self.present } else { 0 };
            (self.half, self.present) = (half, 0);
        }
        self.present = self.present.saturating_add(amount);
    }

    /// About how much will come in so long if it goes on as it did lately.
    pub(super) fn expected(&self, half_ms: u64, now_ms: u64, within_ms: u64) -> i64 {
        let Some(since) = self.since else { return 0 };
        let half_ms = half_ms.max(1);
        let (into, half) = (now_ms % half_ms, now_ms / half_ms);
        let (present, last) = match half.saturating_sub(self.half) {
            0 => (self.present, self.last),
            1 => (0, self.present),
            _ => (0, 0),
        };
        // Of the half before as much as is not older than one length of a half.
        let whole = i128::from(present) + i128::from(last) * i128::from(half_ms - into) / i128::from(half_ms);
        let seen = now_ms.saturating_sub(since).clamp(within_ms.clamp(1, half_ms), half_ms);
        i64::try_from(whole * i128::from(within_ms) / i128::from(seen)).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u64 = 300_000;

    #[test]
    fn a_steady_flow_is_expected_to_go_on_and_an_old_one_is_not() {
        let mut window = Window::default();
        assert_eq!(window.expected(HALF, 0, 20_000), 0);
        for second in 0..1000 {
            window.add(HALF, second * 1000, 7);
        }
        let expected = window.expected(HALF, 1_000_000, 20_000);
        assert!((130..=150).contains(&expected), "{expected} of 140");
        assert_eq!(window.expected(HALF, 5_000_000, 20_000), 0);
    }

    #[test]
    fn the_first_amount_is_not_taken_for_a_flood() {
        let mut window = Window::default();
        window.add(HALF, 500, 9);
        // It was seen once in what a swap takes, at most.
        assert_eq!(window.expected(HALF, 501, 20_000), 9);
    }
}
