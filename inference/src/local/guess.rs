//! Guessed tokens: one batch checks several, and what the draw agrees with is read already.
//!
//! Guesses come from the text so far or from a draft; all else is the same for both. Checking a guess costs rows of a batch, and a wrong
//! one is wasted. So each answer guesses as many tokens as lately proved right, and pauses when none did ([`Streak`]), and for each
//! number of answers at once it is measured whether guessing pays at all ([`worth::Worth`]). The tokens that are said are drawn as ever.

mod lookup;
mod worth;

use super::engine::{Engine, EngineError, Limits, Token, Unfinished};
use super::slots::{Running, Slot};
use std::collections::BTreeMap;
use std::time::Duration;
use tollkeeper_config::Speculate;
use worth::Worth;

/// Rows of a batch that only writes and checks guesses: more would slow down all answers for the sake of one.
const MOST_CHECKED: usize = 16;
const MOST: u32 = 16;
const FIRST: u32 = 4;
/// Tokens without a guess after the last ones were wholly wrong. Each further time in a row it is twice as many, up to [`LONGEST_PAUSE`]: a
/// draft has to read what was written meanwhile before it can guess again.
const PAUSE: u32 = 32;
const LONGEST_PAUSE: u32 = 512;
/// Tokens that are worth reading by a draft for each that the answer may still have: reading is so much cheaper than writing.
const READ_FOR_ONE: u32 = 16;

/// Guesses by slot.
pub(crate) type Guesses = BTreeMap<usize, Vec<Token>>;

/// Where guesses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Lookup,
    Draft,
}

impl Source {
    pub(crate) fn of(speculate: &Speculate) -> Option<Self> {
        match speculate {
            Speculate::Off => None,
            Speculate::Lookup => Some(Self::Lookup),
            Speculate::Draft(_) => Some(Self::Draft),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Draft => "draft",
        }
    }
}

/// How well guesses went for one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Streak {
    length: u32,
    pause: u32,
    /// How long the next pause will be.
    next_pause: u32,
}

impl Default for Streak {
    fn default() -> Self {
        Self { length: FIRST, pause: 0, next_pause: PAUSE }
    }
}

impl Streak {
    /// How many tokens to guess next.
    fn wanted(&mut self) -> usize {
        if self.pause > 0 {
            self.pause -= 1;
            return 0;
        }
        self.length as usize
    }

    /// Learns from how many of the guessed tokens were right.
    fn learn(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        self.length = match right {
            all if all == guessed => (self.length + 2).min(MOST),
            0 => self.length / 2,
            some => some as u32 + 1,
        };
        if right > 0 {
            self.next_pause = PAUSE;
        }
        if self.length == 0 {
            let next_pause = (self.next_pause * 2).min(LONGEST_PAUSE);
            *self = Self { length: FIRST / 2, pause: self.next_pause, next_pause };
        }
    }
}

/// Who guesses for all answers of a model.
#[derive(Default)]
pub(crate) struct Guesser {
    source: Option<Source>,
    worth: Worth,
    /// Whether the draft did something in this turn.
    asked: bool,
}

impl Guesser {
    pub(crate) fn new(source: Option<Source>) -> Self {
        Self { source, ..Self::default() }
    }

    /// Guesses for the answers that are being written, as far as a batch without prompts has room for them. Answers are expected to take
    /// `expected` tokens.
    ///
    /// # Errors
    /// The engine is broken.
    pub(crate) fn guess(
        &mut self,
        plan: &[(usize, u32)],
        slots: &mut [Slot],
        engine: &mut dyn Engine,
        expected: u32,
    ) -> Result<Guesses, EngineError> {
        self.asked = false;
        let writes = |slot: &Slot| slot.running.as_ref().is_some_and(|running| running.next.is_some());
        let Some(source) = self.source else { return Ok(Guesses::new()) };
        let limits = engine.limits();
        if !limits.rewinds || !plan.iter().all(|(at, _)| writes(&slots[*at])) || !self.worth.allows(plan.len()) {
            return Ok(Guesses::new());
        }
        let room = MOST_CHECKED.min(limits.batch as usize).saturating_sub(plan.len());
        let mut wanted = Vec::with_capacity(plan.len());
        for (at, _) in plan {
            let most = most(&mut slots[*at], limits);
            wanted.extend((most > 0).then_some((*at, most)));
        }
        match source {
            Source::Lookup => Ok(from_text(&wanted, slots, room)),
            Source::Draft => {
                let share = shares(&wanted, room);
                self.asked = !share.is_empty();
                from_draft(&share, slots, engine, expected)
            }
        }
    }

    /// Learns from a batch in which `answers` answers were written: the guesses and how many of them were right, by slot, and what the batch
    /// took, guessing included. `pure`: nothing else was computed in it.
    pub(crate) fn learn(
        &mut self,
        slots: &mut [Slot],
        checked: &[(usize, usize, usize)],
        answers: usize,
        pure: bool,
        took: Duration,
    ) {
        for (at, guessed, right) in checked {
            if let Some(running) = &mut slots[*at].running {
                running.streak.learn(*guessed, *right);
            }
        }
        // A turn in which a draft only caught up says nothing about the turns that follow.
        if pure && self.source.is_some() && self.asked <= !checked.is_empty() {
            let right: usize = checked.iter().map(|(_, _, right)| right).sum();
            self.worth.note(answers, !checked.is_empty(), answers + right, took);
        }
    }
}

/// How many tokens may be guessed for an answer.
fn most(slot: &mut Slot, limits: &Limits) -> usize {
    let Some(running) = &mut slot.running else { return 0 };
    // What is drawn behind the last guess must have room in the context and in the answer too.
    let left = running.sequence.limit.saturating_sub(running.generated + 1) as usize;
    let context = (limits.context as usize).saturating_sub(slot.cached.len() + 2);
    running.streak.wanted().min(left).min(context)
}

/// The text seldom has a guess: who comes first takes what it can use.
fn from_text(wanted: &[(usize, usize)], slots: &[Slot], mut room: usize) -> Guesses {
    let mut guesses = Guesses::new();
    for (at, most) in wanted {
        let slot = &slots[*at];
        let Some(next) = slot.running.as_ref().and_then(|running| running.next) else { continue };
        let guessed = lookup::guess(&slot.cached, next, room.min(*most));
        if !guessed.is_empty() {
            room -= guessed.len();
            guesses.insert(*at, guessed);
        }
    }
    guesses
}

/// A draft always has one: the room is shared, and what one does not want goes to the others.
fn shares(wanted: &[(usize, usize)], mut room: usize) -> Vec<(usize, usize)> {
    let mut modest = wanted.to_vec();
    modest.sort_by_key(|(_, most)| *most);
    let mut left = modest.len();
    for (_, most) in &mut modest {
        *most = room.div_ceil(left).min(*most).min(room);
        room -= *most;
        left -= 1;
    }
    modest.retain(|(_, most)| *most > 0);
    modest
}

fn from_draft(
    share: &[(usize, usize)],
    slots: &[Slot],
    engine: &mut dyn Engine,
    expected: u32,
) -> Result<Guesses, EngineError> {
    let unfinished = |(at, most): &(usize, usize)| {
        let slot = &slots[*at];
        let Running { sequence, generated, next, .. } = slot.running.as_ref()?;
        let left = sequence.limit.saturating_sub(*generated).min(expected);
        let reach = left.saturating_mul(READ_FOR_ONE);
        Some(Unfinished { sequence: *at as u32, read: &slot.cached, next: (*next)?, most: *most as u32, reach })
    };
    let unfinished: Vec<Unfinished<'_>> = share.iter().filter_map(unfinished).collect();
    if unfinished.is_empty() {
        return Ok(Guesses::new());
    }
    let guessed = engine.guess(&unfinished)?;
    let guesses = unfinished.iter().zip(guessed).map(|(text, mut tokens)| {
        tokens.truncate(text.most as usize);
        (text.sequence as usize, tokens)
    });
    Ok(guesses.filter(|(_, tokens)| !tokens.is_empty()).collect())
}

#[cfg(test)]
mod tests;
