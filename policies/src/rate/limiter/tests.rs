//! What a limit promises, beside a plain account of everything that was taken.

use super::*;
use governor::middleware::StateInformationMiddleware;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;

fn limiter(limit: u32) -> Limiter {
    Limiter::new(NonZeroU32::new(limit).unwrap(), 0)
}

fn take(limiter: &mut Limiter, now: u64, cells: u64, id: u64) -> Result<(), Duration> {
    limiter.check(now, cells).map(|granted| limiter.take(granted, id))
}

fn remaining(limiter: &mut Limiter, now: u64) -> u32 {
    limiter.left(now).1
}

#[test]
fn a_minute_allows_the_limit_at_once_and_then_one_after_the_other() {
    let mut limiter = limiter(6);
    for id in 0..6 {
        assert_eq!(take(&mut limiter, 0, 1, id), Ok(()));
    }
    assert_eq!(take(&mut limiter, 0, 1, 6), Err(Duration::from_secs(10)));
    assert_eq!(limiter.left(0), (NonZeroU32::new(6).unwrap(), 0, Duration::from_secs(60)));
    assert!(take(&mut limiter, 10 * SECOND - 1, 1, 6).is_err());
    assert_eq!(take(&mut limiter, 10 * SECOND, 1, 6), Ok(()));
    assert_eq!(remaining(&mut limiter, 31 * SECOND), 2);
    assert_eq!(limiter.left(70 * SECOND), (NonZeroU32::new(6).unwrap(), 6, Duration::ZERO));
}

#[test]
fn what_was_estimated_too_high_is_given_back() {
    let mut limiter = limiter(600);
    take(&mut limiter, 0, 500, 1).unwrap();
    take(&mut limiter, 0, 100, 2).unwrap();
    assert_eq!(remaining(&mut limiter, 0), 0);
    limiter.correct(0, 1, 500, 20);
    assert_eq!(remaining(&mut limiter, 0), 480);
    // Corrected again, upwards, and then no more.
    limiter.correct(0, 1, 20, 30);
    limiter.settle(0, 1);
    assert_eq!(remaining(&mut limiter, 0), 470);
    limiter.correct(0, 2, 100, 0);
    assert_eq!(remaining(&mut limiter, 0), 570);
}

#[test]
fn what_time_has_given_back_is_not_given_back_again() {
    // Ten cells a second.
    let mut limiter = limiter(600);
    take(&mut limiter, 0, 100, 1).unwrap();
    // By now they are all back, and others are taken, of which none may be forgotten.
    take(&mut limiter, 20 * SECOND, 600, 2).unwrap();
    limiter.correct(20 * SECOND, 1, 100, 0);
    assert_eq!(remaining(&mut limiter, 20 * SECOND), 0);
}

#[test]
fn what_was_estimated_too_low_delays_the_next() {
    let mut limiter = limiter(600);
    take(&mut limiter, 0, 10, 1).unwrap();
    limiter.correct(0, 1, 10, 1800);
    assert_eq!(remaining(&mut limiter, 0), 0);
    assert_eq!(limiter.check(0, 1).unwrap_err(), Duration::from_millis(120_100));
    assert_eq!(remaining(&mut limiter, 121 * SECOND), 10);
}

#[test]
fn more_than_the_limit_needs_all_of_it() {
    let mut limiter = limiter(60);
    take(&mut limiter, 0, 1, 1).unwrap();
    assert_eq!(limiter.check(0, 1000).unwrap_err(), Duration::from_secs(1));
    take(&mut limiter, SECOND, 1000, 2).unwrap();
    assert_eq!(remaining(&mut limiter, SECOND), 0);
}

#[test]
fn another_limit_keeps_what_is_used() {
    let mut limiter = limiter(100);
    take(&mut limiter, 0, 40, 1).unwrap();
    limiter.change(0, NonZeroU32::new(1000).unwrap());
    assert_eq!(remaining(&mut limiter, 0), 960);
    // A taking from before gives nothing back, for it may have been paid off; more than it was is counted.
    limiter.correct(0, 1, 40, 10);
    assert_eq!(remaining(&mut limiter, 0), 960);
    limiter.correct(0, 1, 40, 50);
    assert_eq!(remaining(&mut limiter, 0), 950);
    limiter.change(0, NonZeroU32::new(20).unwrap());
    assert_eq!(remaining(&mut limiter, 0), 0);
    assert_eq!(limiter.check(0, 1).unwrap_err(), Duration::from_secs(93));
}

#[test]
fn absurd_amounts_do_not_overflow() {
    let mut limiter = limiter(1);
    take(&mut limiter, 0, u64::MAX, 1).unwrap();
    limiter.correct(0, 1, 1, u64::MAX);
    limiter.settle(u64::MAX / 2, 1);
    for id in 2..9 {
        limiter.correct(u64::MAX / 2, id, 0, u64::MAX);
    }
    assert!(limiter.check(u64::MAX / 2, 1).is_err());
    assert_eq!(remaining(&mut limiter, u64::MAX), 1);
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    /// Nanoseconds pass.
    Wait(u64),
    /// Cells are asked for.
    Take(u64),
    /// One of the open takings comes to so many cells.
    Correct(prop::sample::Index, u64),
    /// And is over.
    Settle(prop::sample::Index),
}

fn steps(most: u64) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => prop_oneof![0..SECOND, 0..30 * SECOND, Just(MINUTE)].prop_map(Step::Wait),
        4 => prop_oneof![1..=most, 1..=most.div_ceil(10)].prop_map(Step::Take),
        2 => (any::<prop::sample::Index>(), 0..=2 * most).prop_map(|(which, cells)| Step::Correct(which, cells)),
        2 => any::<prop::sample::Index>().prop_map(Step::Settle),
    ];
    prop::collection::vec(step, 1..120)
}

/// Everything that was ever taken: when, and how much of it is known now.
#[derive(Default)]
struct Books(Vec<(u64, u64, u64)>);

impl Books {
    /// The debt if exactly this had been taken.
    fn debt(&self, now: u64, cell: u64) -> u64 {
        let (mut debt, mut at) = (0u64, 0);
        for (_, when, cells) in &self.0 {
            debt = debt.saturating_sub(when - at) + cells * cell;
            at = *when;
        }
        debt.saturating_sub(now - at)
    }
}

proptest! {
    #[test]
    fn the_debt_is_always_what_it_would_be_had_everybody_taken_what_they_used(
        (limit, steps) in (1u32..5000).prop_flat_map(|limit| (Just(limit), steps(u64::from(limit))))
    ) {
        let mut limiter = limiter(limit);
        let (mut books, mut open, mut now, mut next) = (Books::default(), Vec::new(), 0, 0);
        for step in steps {
            match step {
                Step::Wait(nanos) => now += nanos,
                Step::Take(cells) => {
                    next += 1;
                    if take(&mut limiter, now, cells, next).is_ok() {
                        books.0.push((next, now, cells));
                        open.push((next, cells));
                    }
                }
                Step::Correct(which, cells) if !open.is_empty() => {
                    let place = which.index(open.len());
                    let (id, told) = &mut open[place];
                    limiter.correct(now, *id, *told, cells);
                    *told = cells;
                    let booked = books.0.iter_mut().find(|(booked, ..)| booked == id).unwrap();
                    booked.2 = cells;
                }
                Step::Settle(which) if !open.is_empty() => {
                    let (id, _) = open.swap_remove(which.index(open.len()));
                    limiter.settle(now, id);
                }
                Step::Correct(..) | Step::Settle(_) => {}
            }
            limiter.pay(now);
            prop_assert_eq!(limiter.debt, books.debt(now, limiter.cell));
            prop_assert_eq!(limiter.open.len(), open.len());
        }
    }

    #[test]
    fn no_minute_sees_more_than_the_limit_and_a_burst(
        (limit, steps) in (1u32..300).prop_flat_map(|limit| (Just(limit), steps(u64::from(limit))))
    ) {
        let mut limiter = limiter(limit);
        let (mut books, mut open, mut now, mut next) = (Books::default(), Vec::new(), 0, 0);
        for step in steps {
            match step {
                Step::Wait(nanos) => now += nanos,
                Step::Take(cells) => {
                    next += 1;
                    if take(&mut limiter, now, cells, next).is_ok() {
                        books.0.push((next, now, cells));
                        open.push((next, cells));
                    }
                }
                // Never more than was thought: then nothing that was used was ever uncounted.
                Step::Correct(which, cells) if !open.is_empty() => {
                    let (id, told) = open.swap_remove(which.index(open.len()));
                    let cells = cells.min(told);
                    limiter.correct(now, id, told, cells);
                    limiter.settle(now, id);
                    books.0.iter_mut().find(|(booked, ..)| *booked == id).unwrap().2 = cells;
                }
                _ => {}
            }
        }
        let most = u64::from(limit);
        for (_, begin, _) in &books.0 {
            let within = |length: u64| -> u64 {
                books.0.iter().filter(|(_, at, _)| (*begin..=begin + length).contains(at)).map(|(.., cells)| cells).sum()
            };
            prop_assert!(within(MINUTE) <= 2 * most);
            prop_assert!(within(0) <= most);
            prop_assert!(within(MINUTE / 2) <= most + most.div_ceil(2));
        }
    }

    #[test]
    fn what_is_said_to_remain_can_be_taken_and_not_one_more(
        (limit, steps) in (1u32..5000).prop_flat_map(|limit| (Just(limit), steps(u64::from(limit))))
    ) {
        let mut limiter = limiter(limit);
        let (mut now, mut next) = (0, 0);
        for step in steps {
            match step {
                Step::Wait(nanos) => now += nanos,
                Step::Take(cells) => {
                    next += 1;
                    if take(&mut limiter, now, cells, next).is_ok() {
                        limiter.correct(now, next, cells, cells / 2 + 1);
                    }
                }
                _ => {}
            }
            let (_, remaining, reset) = limiter.left(now);
            if remaining > 0 {
                prop_assert!(limiter.check(now, u64::from(remaining)).is_ok());
            }
            if remaining < limit {
                prop_assert!(limiter.check(now, u64::from(remaining) + 1).is_err());
                let full = now + u64::try_from(reset.as_nanos()).unwrap();
                // Not one cell less than all is left a moment earlier.
                let mut earlier = Limiter { open: VecDeque::new(), ..limiter };
                prop_assert!(earlier.debt > 0 && earlier.left(full - 1).2 > Duration::ZERO);
                prop_assert_eq!(earlier.left(full).1, limit);
                limiter = Limiter { open: VecDeque::new(), ..earlier };
                now = full;
            }
        }
    }

    #[test]
    fn the_time_that_a_refusal_names_is_exact(
        (limit, takes, wanted) in (1u32..5000)
            .prop_flat_map(|limit| (Just(limit), prop::collection::vec((0..2 * SECOND, 1..=u64::from(limit)), 1..20), 1..=u64::from(limit)))
    ) {
        let mut limiter = limiter(limit);
        let (mut now, mut next) = (0, 0);
        for (wait, cells) in takes {
            now += wait;
            next += 1;
            _ = take(&mut limiter, now, cells, next);
        }
        if let Err(wait) = limiter.check(now, wanted) {
            let then = now + u64::try_from(wait.as_nanos()).unwrap();
            prop_assert!(limiter.check(then - 1, wanted).is_err(), "it could have come earlier");
            prop_assert!(limiter.check(then, wanted).is_ok(), "it came too early");
        }
    }

    #[test]
    fn what_remains_is_what_governor_says(limit in 1u32..5000, takes in prop::collection::vec((0..SECOND, 1u32..50), 1..30)) {
        let mut limiter = limiter(limit);
        let clock = governor::clock::FakeRelativeClock::default();
        let other = RateLimiter::direct_with_clock(limiter.quota, clock.clone()).with_middleware::<StateInformationMiddleware>();
        let (mut now, mut next) = (0, 0);
        for (wait, cells) in takes {
            now += wait;
            next += 1;
            clock.advance(Duration::from_nanos(wait));
            let cells = cells.min(limit);
            let theirs = other.check_n(NonZeroU32::new(cells).unwrap()).unwrap();
            let ours = take(&mut limiter, now, u64::from(cells), next);
            prop_assert_eq!(theirs.is_ok(), ours.is_ok());
            if let Ok(snapshot) = theirs {
                prop_assert_eq!(snapshot.remaining_burst_capacity(), remaining(&mut limiter, now));
            }
        }
    }
}
