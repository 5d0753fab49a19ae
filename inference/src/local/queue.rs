//! The sequences that wait for a slot, in two classes: those for which somebody waits, and those that may take their time.

use super::slots::{Sequence, Waiting};
use std::collections::VecDeque;
use tollkeeper_config::Priority;

/// Of so many sequences that get a slot while both classes wait, one is of the batch class: it waits, but does not starve.
const SHARE_OF_BATCH: u32 = 4;

/// The queue of a model.
#[derive(Default)]
pub(crate) struct Queue {
    interactive: VecDeque<Waiting>,
    batch: VecDeque<Waiting>,
    /// Sequences given a slot while both classes waited.
    contested: u32,
}

impl Queue {
    /// Waits behind all others of its class.
    pub(crate) fn push(&mut self, waiting: Waiting) {
        self.class(waiting.sequence().priority).push_back(waiting);
    }

    /// Waits in front of all others of its class.
    pub(crate) fn push_first(&mut self, waiting: Waiting) {
        self.class(waiting.sequence().priority).push_front(waiting);
    }

    /// Takes out what is to get the next slot; what is not `ready` lets others go first.
    pub(crate) fn next(&mut self, ready: impl Fn(&Sequence) -> bool) -> Option<Waiting> {
        let first = |class: &VecDeque<Waiting>| class.iter().position(|waiting| ready(waiting.sequence()));
        match (first(&self.interactive), first(&self.batch)) {
            (Some(interactive), Some(batch)) => {
                self.contested += 1;
                if self.contested.is_multiple_of(SHARE_OF_BATCH) {
                    self.batch.remove(batch)
                } else {
                    self.interactive.remove(interactive)
                }
            }
            (Some(interactive), None) => self.interactive.remove(interactive),
            (None, batch) => self.batch.remove(batch?),
        }
    }

    /// Takes out the first that somebody waits for and that is `ready`.
    pub(crate) fn next_interactive(&mut self, ready: impl Fn(&Sequence) -> bool) -> Option<Waiting> {
        let first = self.interactive.iter().position(|waiting| ready(waiting.sequence()))?;
        self.interactive.remove(first)
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.interactive.is_empty() && self.batch.is_empty()
    }

    /// Everything that waits.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.interactive.iter().chain(&self.batch)
    }

    /// The sequences of an answer.
    pub(crate) fn of_mut(&mut self, answer: u64) -> impl Iterator<Item = &mut Sequence> {
        let all = self.interactive.iter_mut().chain(&mut self.batch).map(Waiting::sequence_mut);
        all.filter(move |sequence| sequence.answer == answer)
    }

    /// Takes an answer's sequences out.
    pub(crate) fn forget(&mut self, answer: u64) {
        for class in [&mut self.interactive, &mut self.batch] {
            class.retain(|waiting| waiting.sequence().answer != answer);
        }
    }

    fn class(&mut self, priority: Priority) -> &mut VecDeque<Waiting> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        }
    }
}
