//! Whether guessing pays: measured, for each number of answers at once, and measured again now and then.
//!
//! A guess that costs no time cannot hurt; a draft's do, and so does every row of a batch on a machine without much to spare. What is
//! compared are tokens a second of turns with guesses and of turns without. The better way runs for a while, then the other one is
//! tried for a few turns: the longer the winner stays the same, the rarer. So a bad draft costs a few turns in some thousand.

use std::time::Duration;

/// Turns of a trial.
const TRIAL: u32 = 8;
/// Turns until the other way is tried for the first time, and at most.
const SOON: u32 = 256;
const SELDOM: u32 = 4096;
/// What a turn still counts when the next has come.
const FADE: f64 = 0.95;

/// What was learnt.
#[derive(Debug, Default)]
pub(crate) struct Worth {
    /// By the binary logarithm of how many answers are written.
    places: Vec<Place>,
}

/// Tokens and seconds of the last turns.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    tokens: f64,
    seconds: f64,
}

impl Rate {
    fn note(&mut self, tokens: usize, took: Duration) {
        self.tokens = self.tokens * FADE + tokens as f64;
        self.seconds = self.seconds * FADE + took.as_secs_f64();
    }

    /// Tokens a second.
    fn get(self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.tokens / self.seconds)
    }
}

#[derive(Debug, Clone)]
struct Place {
    with: Rate,
    without: Rate,
    /// The way that runs now, and for how many turns yet.
    guessing: bool,
    left: u32,
    /// Whether it is only tried.
    trial: bool,
    /// How long the winner runs.
    span: u32,
}

impl Default for Place {
    fn default() -> Self {
        Self { with: Rate::default(), without: Rate::default(), guessing: true, left: TRIAL, trial: true, span: SOON }
    }
}

impl Worth {
    /// Whether to guess while so many answers are written.
    pub(crate) fn allows(&mut self, answers: usize) -> bool {
        self.place(answers).guessing
    }

    /// Notes a turn that wrote so many tokens of so many answers, with guesses or without.
    pub(crate) fn note(&mut self, answers: usize, guessed: bool, tokens: usize, took: Duration) {
        if took.is_zero() {
            return;
        }
        let place = self.place(answers);
        let rate = if guessed { &mut place.with } else { &mut place.without };
        rate.note(tokens, took);
        // Where there was nothing to guess, a turn without guesses says nothing about the way with them.
        if guessed == place.guessing {
            place.left = place.left.saturating_sub(1);
            if place.left == 0 {
                place.next();
            }
        }
    }

    fn place(&mut self, answers: usize) -> &mut Place {
        let at = answers.max(1).ilog2() as usize;
        if self.places.len() <= at {
            self.places.resize(at + 1, Place::default());
        }
        &mut self.places[at]
    }
}

impl Place {
    fn next(&mut self) {
        let rates = if self.trial { self.with.get().zip(self.without.get()) } else { None };
        let Some((with, without)) = rates else { return self.try_other() };
        let better = with > without;
        self.span = if better == self.guessing { SOON } else { (self.span * 2).min(SELDOM) };
        (self.guessing, self.trial, self.left) = (better, false, self.span);
    }

    fn try_other(&mut self) {
        (self.guessing, self.trial, self.left) = (!self.guessing, true, TRIAL);
        *(if self.guessing { &mut self.with } else { &mut self.without }) = Rate::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many turns of which those with guesses write `gain` tokens for `cost` ms, the others one token for 10 ms. Returns the turns that
    /// guessed.
    fn run(worth: &mut Worth, answers: usize, turns: usize, gain: usize, cost: u64) -> usize {
        let turn = |_: &usize| {
            let guesses = worth.allows(answers);
            let (tokens, millis) = if guesses { (gain, cost) } else { (1, 10) };
            worth.note(answers, guesses, tokens, Duration::from_millis(millis));
            guesses
        };
        (0..turns).filter(turn).count()
    }

    #[test]
    fn what_pays_stays_on_and_what_does_not_goes_off() {
        for (gain, cost, pays) in [(3, 20, true), (1, 11, false), (1, 30, false), (2, 19, true), (2, 21, false)] {
            let mut worth = Worth::default();
            run(&mut worth, 1, 64, gain, cost);
            let guessed = run(&mut worth, 1, 10_000, gain, cost);
            let share = if pays { 10_000 - guessed } else { guessed };
            assert!((10..200).contains(&share), "{share} turns the other way for {gain} tokens in {cost} ms");
        }
    }

    #[test]
    fn it_notices_a_change() {
        let mut worth = Worth::default();
        run(&mut worth, 1, 1000, 3, 20);
        run(&mut worth, 1, 9000, 1, 20);
        assert!(run(&mut worth, 1, 1000, 1, 20) < 100);
        run(&mut worth, 1, 9000, 3, 20);
        assert!(run(&mut worth, 1, 1000, 3, 20) > 900);
    }

    #[test]
    fn each_number_of_answers_has_a_verdict_of_its_own() {
        let mut worth = Worth::default();
        for _ in 0..40 {
            run(&mut worth, 1, 100, 3, 20);
            run(&mut worth, 8, 100, 1, 20);
        }
        assert!(run(&mut worth, 1, 100, 3, 20) > 80 && run(&mut worth, 8, 100, 1, 20) < 20);
        assert_eq!(run(&mut worth, 4, 5, 1, 20), 5, "it is tried where nothing is known");
    }

    #[test]
    fn turns_with_nothing_to_guess_end_no_trial_and_no_time_says_nothing() {
        let mut worth = Worth::default();
        for _ in 0..1000 {
            worth.note(1, false, 1, Duration::from_millis(10));
            worth.note(1, true, 1, Duration::ZERO);
        }
        assert!(worth.allows(1));
    }
}
