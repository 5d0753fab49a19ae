//! Who gets a slot, and whose is taken back.

use super::{Model, Worker};
use crate::local::answer::Answer;
use crate::local::engine::{Engine, EngineError};
use crate::local::guess::Streak;
use crate::local::guide::Guide;
use crate::local::kv_store::SHORTEST;
use crate::local::output::Output;
use crate::local::sampler::{Sampler, logprob};
use crate::local::slots::{Guest, Running, Sequence, Slot, Waiting, Worth, common_prefix, keep, place, reusable};
use std::collections::BTreeMap;
use tollkeeper_config::Priority;
use tollkeeper_protocol::chat::FinishReason;
use tollkeeper_protocol::event::TokenLogprob;

impl Worker {
    /// Gives free slots to waiting sequences, first come first served within their class. A sequence whose beginning another one is
    /// reading right now lets others go first: it will share that KV.
    pub(super) fn fill_slots(&mut self, model: &mut Model<'_>) -> Result<(), EngineError> {
        while !self.waiting.is_empty() {
            let yields = match self.slots.iter().any(|slot| slot.running.is_none()) {
                true => None,
                false => match self.who_yields() {
                    None => return Ok(()),
                    slot => slot,
                },
            };
            let (slots, answers, shares) = (&self.slots, &self.answers, model.engine.limits().rewinds);
            let ready = |sequence: &Sequence| !(shares && is_being_read(slots, answers, sequence));
            let next = match yields {
                None => self.waiting.next(ready),
                Some(_) => self.waiting.next_interactive(ready),
            };
            let Some(next) = next else { return Ok(()) };
            if let Some(at) = yields {
                self.set_aside(at, model.engine);
            }
            match next {
                Waiting::New(sequence) => {
                    if let Some(sequence) = self.with_measured_pictures(sequence, model)? {
                        self.begin(sequence, model);
                    }
                }
                Waiting::Parked(running) => self.resume(*running, model),
            }
        }
        Ok(())
    }

    /// The slot of a sequence that may take its time and has not yielded before, if its KV can be kept meanwhile: the one that came last.
    fn who_yields(&self) -> Option<usize> {
        self.shelf.as_ref()?;
        let may = |running: &&Running| {
            running.sequence.priority == Priority::Batch && !running.yielded && running.scored.is_none()
        };
        let running = |at: &usize| self.slots[*at].running.as_ref().filter(may);
        (0..self.slots.len()).filter_map(|at| Some((running(&at)?.sequence.answer, at))).max().map(|(_, at)| at)
    }

    /// Takes a sequence out of its slot; it goes on as the next of its class.
    fn set_aside(&mut self, at: usize, engine: &mut dyn Engine) {
        let slot = &mut self.slots[at];
        if let Some(shelf) = &self.shelf {
            keep(shelf, slot, at as u32, Worth::All, engine);
        }
        if let Some(running) = slot.running.take() {
            self.waiting.push_first(Running { yielded: true, ..running }.park(&slot.cached));
        }
    }

    fn begin(&mut self, mut sequence: Sequence, model: &mut Model<'_>) {
        let rules = sequence.rules.clone();
        let expected = self.expected_answer();
        let Some(answer) = self.answers.get_mut(&sequence.answer) else { return };
        let mut output = Output::new(sequence.choice, &rules.stop, rules.layout.clone());
        output.echo(sequence.echo.take().unwrap_or_default(), &mut |event| answer.say(event));
        if sequence.leads {
            answer.usage.input += sequence.prompt.len() as u64;
        }
        if sequence.limit == 0 && !rules.scores_prompt {
            output.finish(FinishReason::Length, 0, &mut |event| answer.say(event));
            return answer.close_one();
        }
        let guest = Guest {
            prompt: reusable(&sequence.prompt, rules.scores_prompt),
            answer: u64::from(sequence.limit.min(expected)),
        };
        let Some((slot, reused)) = place(&mut self.slots, &guest, model.engine, self.shelf.as_ref(), self.turns) else {
            return;
        };
        if sequence.leads {
            answer.usage.cached_input += reused as u64;
        }
        let constraint = rules.guide.as_ref().map(Guide::start);
        if let (true, Some(first)) = (rules.scores_prompt, sequence.prompt.first()) {
            let logprob = TokenLogprob { logprob: None, top: Vec::new(), ..logprob(&[], *first, 0, model.tokenizer) };
            output.scored(&logprob.bytes.clone(), logprob, &mut |event| answer.say(event));
        }
        let sampler = Sampler::new(&rules.sampling, sequence.choice, &sequence.prompt, model.tokenizer, constraint);
        self.slots[slot].running = Some(Running {
            sequence,
            sampler,
            output,
            generated: 0,
            next: None,
            streak: Streak::default(),
            scored: rules.scores_prompt.then_some(1),
            yielded: false,
        });
    }

    /// Goes on with what was parked: all that was read and written is read again, and nothing is said twice. Its sampler and its
    /// grammar know no engine, and have stayed where they were.
    fn resume(&mut self, running: Running, model: &mut Model<'_>) {
        let guest = Guest {
            prompt: reusable(&running.sequence.prompt, running.scored.is_some()),
            answer: running.remaining(running.sequence.prompt.len(), self.expected_answer()),
        };
        if let Some((slot, _)) = place(&mut self.slots, &guest, model.engine, self.shelf.as_ref(), self.turns) {
            self.slots[slot].running = Some(running);
        }
    }
}

/// Whether another sequence is reading so much of the same beginning that waiting for it, and sharing its KV, saves work.
fn is_being_read(slots: &[Slot], answers: &BTreeMap<u64, Answer>, sequence: &Sequence) -> bool {
    let wanted = reusable(&sequence.prompt, sequence.rules.scores_prompt);
    let there = slots.iter().map(|slot| slot.shared_prefix(wanted)).max().unwrap_or(0);
    slots.iter().any(|slot| {
        let Some(other) = slot.running.as_ref().map(|running| &running.sequence) else { return false };
        let reads = slot.cached.len() < other.prompt.len();
        // Who cannot go on, because its client does not read what it echoes, is not waited for.
        let goes_on = answers.get(&other.answer).is_some_and(Answer::is_clear);
        let worth = if other.answer == sequence.answer { 1 } else { SHORTEST };
        reads && goes_on && common_prefix(&other.prompt, wanted).min(wanted.len().saturating_sub(1)) >= there + worth
    })
}
