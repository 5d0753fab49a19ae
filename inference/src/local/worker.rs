//! The worker: one engine, many answers. It takes requests in, gives them slots, reads and writes all of them in common batches,
//! and hands the text out, on one thread that nobody else can hold up.
//!
//! [`Worker::turn`] is one step of the loop and knows no thread: tests call it directly. Every turn takes commands, ends what is
//! late or left, fills free slots, runs one batch and one part of an embedding, and delivers. Requests that wait live through a
//! crash of the engine; those that run end with a fault ([`Worker::fail_running`]).

use super::answer::{Answer, Delivery, Permit, Sender};
use super::batch::{Demand, Pace, share, smooth};
use super::board::{Board, Reading};
use super::embedder::{EmbedJob, Embedder};
use super::engine::{Engine, EngineError, Row, Tokenizer};
use super::guess::{Guesser, Guesses, Source};
use super::known::Held;
use super::kv_store::Shelf;
use super::prepare::Generation;
use super::queue::Queue;
use super::sampler::{certainty, logprob};
use super::slots::{Rules, Sequence, Slot, Waiting, Worth, keep};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tollkeeper_protocol::chat::FinishReason;
use tollkeeper_protocol::event::ChatEvent;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// Tokens an answer is expected to take before any has ended.
const EXPECTED_ANSWER: f64 = 128.0;

/// What a worker is asked to do.
pub(crate) enum Command {
    /// Answer prompts.
    Generate { generation: Box<Generation>, sender: Sender, permit: Permit, submitted: Instant, deadline: Instant },
    /// Embed inputs.
    Embed(EmbedJob),
}

/// A loaded model, as a turn uses it.
pub(crate) struct Model<'a> {
    pub(crate) engine: &'a mut dyn Engine,
    pub(crate) tokenizer: &'a dyn Tokenizer,
}

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Something; there may be more.
    Worked,
    /// Nothing. Until a command comes, a client reads or leaves, or this moment comes, there is nothing to do.
    Idle(Option<Instant>),
}

/// The state of the loop.
pub(crate) struct Worker {
    commands: mpsc::Receiver<Command>,
    board: Arc<Board>,
    clock: Box<dyn Fn() -> Instant + Send>,
    answers: BTreeMap<u64, Answer>,
    next_answer: u64,
    waiting: Queue,
    slots: Vec<Slot>,
    embedder: Embedder,
    guesser: Guesser,
    /// Where KV is kept that has no slot; each model has its own.
    shelf: Option<Shelf>,
    /// Where it is shown what the slots hold.
    held: Arc<Held>,
    pace: Pace,
    ttft: Option<f64>,
    answer_tokens: Option<f64>,
    turns: u64,
}

impl Worker {
    pub(crate) fn new(
        commands: mpsc::Receiver<Command>,
        board: Arc<Board>,
        clock: Box<dyn Fn() -> Instant + Send>,
    ) -> Self {
        Self {
            commands,
            board,
            clock,
            answers: BTreeMap::new(),
            next_answer: 0,
            waiting: Queue::default(),
            slots: Vec::new(),
            embedder: Embedder::default(),
            guesser: Guesser::default(),
            shelf: None,
            held: Arc::default(),
            pace: Pace::default(),
            ttft: None,
            answer_tokens: None,
            turns: 0,
        }
    }

    /// Where guessed tokens come from, if they are guessed.
    pub(crate) fn guess(&mut self, source: Option<Source>) {
        self.guesser = Guesser::new(source);
    }

    /// Where it is shown what the slots hold.
    pub(crate) fn show(&mut self, held: Arc<Held>) {
        self.held = held;
    }

    /// Where the KV of the model that is loaded now is kept.
    pub(crate) fn keep_kv(&mut self, shelf: Option<Shelf>) {
        self.shelf = shelf;
    }

    /// One step of the loop.
    ///
    /// # Errors
    /// The engine is broken: see [`Worker::fail_running`].
    pub(crate) fn turn(&mut self, model: &mut Model<'_>) -> Result<Turn, EngineError> {
        self.turns += 1;
        self.slots.resize_with(model.engine.limits().sequences as usize, Slot::default);
        self.take_commands();
        self.sweep();
        self.fill_slots(model)?;
        self.deliver();
        let wrote = self.run_batch(model)? | self.show_picture(model)?;
        let embedded = self.embedder.step(model.engine)?;
        // First the state, then the answer: who has read the end of an answer must not find it still running.
        self.publish(model);
        self.deliver();
        Ok(if wrote || embedded { Turn::Worked } else { Turn::Idle(self.next_deadline()) })
    }

    /// The engine is gone, with all KV: ends every answer that has begun. Those that only wait stay.
    pub(crate) fn fail_running(&mut self, fault: &ProviderFault) {
        let waits = |id: u64| self.waiting.iter().filter(|waiting| waiting.sequence().answer == id).count();
        let begun: Vec<u64> = self
            .answers
            .iter()
            .filter(|(id, answer)| answer.open > 0 && waits(**id) != answer.admitted as usize)
            .map(|(id, _)| *id)
            .collect();
        for id in begun {
            self.end_answer(id, fault.clone());
        }
        self.slots.clear();
        self.embedder.fail_begun(fault);
        self.deliver();
        self.show_nothing();
    }

    /// The engine is to go, with all KV: what runs is set aside, first in the queue, and goes on with the next engine.
    pub(crate) fn park(&mut self, engine: &mut dyn Engine) {
        if let Some(shelf) = &self.shelf {
            for (sequence, slot) in (0..).zip(&self.slots) {
                let worth = if slot.running.is_some() { Worth::All } else { Worth::Long };
                keep(shelf, slot, sequence, worth, engine);
            }
        }
        let slots = std::mem::take(&mut self.slots).into_iter();
        let mut parked: Vec<Waiting> = slots.filter_map(|slot| Some(slot.running?.park(&slot.cached))).collect();
        parked.sort_by_key(|waiting| (waiting.sequence().answer, waiting.sequence().choice));
        parked.into_iter().rev().for_each(|waiting| self.waiting.push_first(waiting));
        self.show_nothing();
    }

    /// A turn without an engine: takes what comes, and ends what is late or left. Returns when to look again at the latest.
    pub(crate) fn rest(&mut self) -> Option<Instant> {
        self.take_commands();
        self.sweep();
        self.deliver();
        self.next_deadline()
    }

    /// Ends everything, and takes nothing more.
    pub(crate) fn close(&mut self, fault: &ProviderFault) {
        self.commands.close();
        self.fail_all(fault);
    }

    /// Ends everything that has come so far.
    pub(crate) fn fail_all(&mut self, fault: &ProviderFault) {
        self.take_commands();
        let all: Vec<u64> = self.answers.keys().copied().collect();
        for id in all {
            self.end_answer(id, fault.clone());
        }
        self.slots.clear();
        self.embedder.fail_all(fault);
        self.deliver();
        self.show_nothing();
    }

    fn take_commands(&mut self) {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Embed(job)) => self.embedder.add(job),
                Ok(Command::Generate { generation, sender, permit, submitted, deadline }) => {
                    self.enqueue(generation, sender, permit, submitted, deadline);
                }
                Err(_) => return,
            }
        }
    }

    fn enqueue(
        &mut self,
        generation: Box<Generation>,
        sender: Sender,
        permit: Permit,
        submitted: Instant,
        deadline: Instant,
    ) {
        let id = self.next_answer;
        self.next_answer += 1;
        let answers = generation.answers;
        let rules = Arc::new(Rules {
            sampling: generation.sampling,
            stop: generation.stop,
            top_logprobs: generation.top_logprobs,
            measured: generation.measured,
            scores_prompt: generation.scores_prompt,
            layout: generation.layout,
            guide: generation.guide,
        });
        let mut choice = 0;
        for prompt in generation.prompts {
            for index in 0..answers {
                self.waiting.push(Waiting::New(Sequence {
                    answer: id,
                    choice,
                    priority: permit.priority(),
                    leads: index == 0,
                    prompt: prompt.tokens.clone(),
                    pictures: prompt.pictures.clone(),
                    echo: prompt.echo.clone(),
                    limit: prompt.limit,
                    rules: rules.clone(),
                }));
                choice += 1;
            }
        }
        self.answers.insert(id, Answer::new(sender, permit, choice, deadline, submitted));
    }

    /// Delivers, and drops answers that are over, late or left.
    fn sweep(&mut self) {
        let now = (self.clock)();
        self.deliver();
        let late: Vec<u64> = self
            .answers
            .iter()
            .filter(|(_, answer)| answer.open > 0 && answer.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.end_answer(id, ProviderFault::new(FaultKind::Timeout, "the answer was not complete by its deadline"));
        }
        self.embedder.sweep(now);
    }

    fn deliver(&mut self) {
        let mut over = Vec::new();
        for (id, answer) in &mut self.answers {
            match answer.deliver() {
                Delivery::Gone => over.push(*id),
                Delivery::Done if answer.open == 0 => over.push(*id),
                Delivery::Done | Delivery::Full => {}
            }
        }
        for id in over {
            self.forget(id);
            self.answers.remove(&id);
        }
    }

    /// Takes an answer's sequences out of the queue and the slots. The KV stays for later prompts.
    fn forget(&mut self, id: u64) {
        self.waiting.forget(id);
        for slot in &mut self.slots {
            if slot.running.as_ref().is_some_and(|running| running.sequence.answer == id) {
                slot.running = None;
            }
        }
    }

    fn end_answer(&mut self, id: u64, fault: ProviderFault) {
        self.forget(id);
        if let Some(answer) = self.answers.get_mut(&id) {
            answer.fail(fault);
        }
    }

    fn run_batch(&mut self, model: &mut Model<'_>) -> Result<bool, EngineError> {
        let demands: Vec<Demand> = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| self.may_go_on(slot))
            .filter_map(|(at, slot)| slot.demand(at))
            .collect();
        let most = model.engine.limits().batch;
        let readers = demands.iter().filter(|demand| demand.prefill).count();
        let chunk = self.pace.chunk(demands.len() - readers, readers, most);
        let plan = share(&demands, most, chunk, self.turns as usize);
        if plan.is_empty() {
            return Ok(false);
        }
        let turn = (self.clock)();
        let expected = self.expected_answer();
        let guesses = self.guesser.guess(&plan, &mut self.slots, model.engine, expected)?;
        let (rows, outputs) = self.rows(&plan, &guesses);
        let began = Instant::now();
        match model.engine.decode(&rows) {
            Err(EngineError::NoRoom) => {
                self.make_room(model);
                return Ok(true);
            }
            done => done?,
        }
        let decoded = began.elapsed();
        let guessed: usize = guesses.values().map(Vec::len).sum();
        let writers = demands.iter().filter(|demand| !demand.prefill).count();
        let written = writers + guessed;
        for row in &rows {
            self.slots[row.sequence as usize].cached.push(row.token);
        }
        for (slot, row) in outputs {
            let behind = rows[row].position as usize + 1;
            // Rows behind a wrong guess say nothing.
            if behind <= self.slots[slot].cached.len() && self.score(slot, row, behind, model) {
                self.write(slot, row, model);
                self.check_guess(slot, behind, model);
            }
        }
        let (right, turned) = self.learn(&guesses, &rows, rows.len() == written, plan.len(), turn);
        // Guessing takes time as well, and what was guessed right is written.
        let took = if guesses.is_empty() { decoded } else { turned.max(decoded) };
        let tokens = rows.len() - guessed + right;
        self.pace.note(writers as u32, tokens as u32, (rows.len() - written) as u32, took);
        Ok(true)
    }

    /// Notes how guesses of a batch of so many answers went, and what the turn took. Returns how many were right, and that.
    fn learn(
        &mut self,
        guesses: &Guesses,
        rows: &[Row],
        pure: bool,
        answers: usize,
        began: Instant,
    ) -> (usize, Duration) {
        let checked = guesses.iter().map(|(slot, guessed)| {
            let read = self.slots[*slot].cached.len();
            let first = rows.iter().find(|row| row.sequence as usize == *slot);
            (*slot, guessed.len(), read - first.map_or(read, |row| row.position as usize + 1))
        });
        let checked: Vec<_> = checked.collect();
        self.board.guessed(&checked);
        let took = (self.clock)().saturating_duration_since(began);
        self.guesser.learn(&mut self.slots, &checked, answers, pure, took);
        (checked.iter().map(|(_, _, right)| right).sum(), took)
    }

    /// After a token was drawn that stands behind `behind` tokens: if it was guessed it is read already; if another one was, what was
    /// read of that is forgotten.
    fn check_guess(&mut self, at: usize, behind: usize, model: &mut Model<'_>) {
        let slot = &mut self.slots[at];
        let Some(guessed) = slot.cached.get(behind) else { return };
        match &mut slot.running {
            Some(running) if running.next == Some(*guessed) => running.next = None,
            _ => {
                model.engine.truncate(at as u32, behind as u32);
                slot.cached.truncate(behind);
            }
        }
    }

    fn may_go_on(&self, slot: &Slot) -> bool {
        slot.running
            .as_ref()
            .and_then(|running| self.answers.get(&running.sequence.answer))
            .is_some_and(Answer::is_clear)
    }

    /// Says a prompt token with its log-probability, where that was asked for and the row stands before one that was not said yet.
    /// Returns whether instead a token is to be drawn.
    fn score(&mut self, at: usize, row: usize, behind: usize, model: &Model<'_>) -> bool {
        let Some(running) = &mut self.slots[at].running else { return false };
        let Some(said) = running.scored else { return true };
        let Sequence { answer, limit, rules, prompt, .. } = &running.sequence;
        let Some(answer) = self.answers.get_mut(answer) else { return false };
        if let Some(token) = prompt.get(behind) {
            if behind >= said {
                let top = rules.top_logprobs.unwrap_or(0);
                let logprob = logprob(model.engine.logits(row), *token, top, model.tokenizer);
                running.output.scored(&logprob.bytes.clone(), logprob, &mut |event| answer.say(event));
                running.scored = Some(behind + 1);
            }
            return false;
        }
        running.scored = None;
        if *limit > 0 {
            return true;
        }
        running.output.finish(FinishReason::Length, 0, &mut |event| answer.say(event));
        answer.close_one();
        self.slots[at].running = None;
        false
    }

    /// The rows of a batch, and which of them end in logits: (slot, row).
    fn rows(&self, plan: &[(usize, u32)], guesses: &Guesses) -> (Vec<Row>, Vec<(usize, usize)>) {
        let mut rows = Vec::new();
        let mut outputs = Vec::new();
        for (at, count) in plan {
            let slot = &self.slots[*at];
            let (tokens, ends) = slot.upcoming(*count as usize);
            let all = slot.running.as_ref().is_some_and(|running| running.scored.is_some());
            for (offset, token) in tokens.iter().enumerate() {
                let output = all || (ends && offset + 1 == tokens.len());
                if output {
                    outputs.push((*at, rows.len()));
                }
                let position = (slot.cached.len() + offset) as u32;
                rows.push(Row { token: *token, position, sequence: *at as u32, output });
            }
            for (offset, token) in guesses.get(at).into_iter().flatten().enumerate() {
                outputs.push((*at, rows.len()));
                let position = (slot.cached.len() + tokens.len() + offset) as u32;
                rows.push(Row { token: *token, position, sequence: *at as u32, output: true });
            }
        }
        (rows, outputs)
    }

    /// Draws a sequence's next token and says it.
    fn write(&mut self, at: usize, row: usize, model: &mut Model<'_>) {
        let Some(mut running) = self.slots[at].running.take() else { return };
        let id = running.sequence.answer;
        let Some(answer) = self.answers.get_mut(&id) else { return };
        let logits = model.engine.logits(row);
        let token = match running.sampler.draw(logits, model.tokenizer) {
            Ok(token) => token,
            Err(reason) => return self.end_answer(id, ProviderFault::new(FaultKind::Internal, reason.to_string())),
        };
        running.generated += 1;
        running.next = Some(token);
        answer.usage.output += 1;
        if !std::mem::replace(&mut answer.spoken, true) {
            smooth(&mut self.ttft, (self.clock)().saturating_duration_since(answer.submitted).as_secs_f64());
        }
        let say = &mut |event| answer.say(event);
        if running.generated <= running.sequence.rules.measured {
            let (logprob, entropy) = certainty(logits, token);
            say(ChatEvent::Certainty { choice: running.sequence.choice, logprob, entropy });
        }
        let ended = if model.tokenizer.is_end(token) {
            running.output.finish(FinishReason::Stop, 1, say);
            true
        } else {
            let logprobs = running.sequence.rules.top_logprobs.map(|top| logprob(logits, token, top, model.tokenizer));
            let closed = running.output.token(&model.tokenizer.piece(token), logprobs.into_iter().collect(), say);
            let full = running.generated >= running.sequence.limit;
            if closed || full {
                running.output.finish(if closed { FinishReason::Stop } else { FinishReason::Length }, 0, say);
            }
            closed || full
        };
        if ended {
            smooth(&mut self.answer_tokens, f64::from(running.generated));
            answer.close_one();
        } else {
            self.slots[at].running = Some(running);
        }
    }

    /// The KV cache is full although every sequence has its share: forget what is only kept for later, or else end the answer
    /// that began last.
    fn make_room(&mut self, model: &mut Model<'_>) {
        let mut freed = false;
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if slot.running.is_none() && !slot.cached.is_empty() {
                if let Some(shelf) = &self.shelf {
                    keep(shelf, slot, at as u32, Worth::Long, model.engine);
                }
                model.engine.truncate(at as u32, 0);
                slot.cached.clear();
                freed = true;
            }
        }
        let youngest =
            self.slots.iter().filter_map(|slot| slot.running.as_ref().map(|running| running.sequence.answer)).max();
        if let (false, Some(id)) = (freed, youngest) {
            self.end_answer(
                id,
                ProviderFault::new(FaultKind::Overloaded, "the model's KV cache is full; try again later"),
            );
        }
    }

    /// Tokens that answers have taken lately.
    fn expected_answer(&self) -> u32 {
        self.answer_tokens.unwrap_or(EXPECTED_ANSWER) as u32
    }

    fn next_deadline(&self) -> Option<Instant> {
        let answers = self.answers.values().filter(|answer| answer.open > 0).map(|answer| answer.deadline);
        answers.chain(self.embedder.next_deadline()).min()
    }

    /// There is nothing to show but how fast it was.
    fn show_nothing(&self) {
        self.held.clear();
        self.board.write(Reading { rates: self.pace.rates(), ..Reading::default() });
    }

    /// Tokens of prompts still to be read.
    fn unread(&self) -> u64 {
        let waiting = self.waiting.iter().map(|waiting| waiting.tokens(0));
        let running = self.slots.iter().filter_map(|slot| Some(slot.running.as_ref()?.remaining(slot.cached.len(), 0)));
        waiting.chain(running).sum()
    }

    fn publish(&self, model: &Model<'_>) {
        // What cannot be rewound goes on from its end only, which no later prompt is sure to share.
        if model.engine.limits().rewinds {
            self.held.write(&self.slots);
        }
        let expected = self.expected_answer();
        let waiting: u64 = self.waiting.iter().map(|waiting| waiting.tokens(expected)).sum();
        let running: u64 = self
            .slots
            .iter()
            .filter_map(|slot| slot.running.as_ref().map(|running| running.remaining(slot.cached.len(), expected)))
            .sum();
        let cells = u64::from(model.engine.limits().context) * u64::from(model.engine.limits().sequences);
        let cached: u64 = self.slots.iter().map(|slot| slot.cached.len() as u64).sum();
        self.board.write(Reading {
            running: self.slots.iter().filter(|slot| slot.running.is_some()).count() as u32,
            queue_tokens: waiting + running + self.embedder.tokens(),
            unread: self.unread() + self.embedder.tokens(),
            ttft: self.ttft.map(Duration::from_secs_f64),
            kv_usage: if cells == 0 { 0.0 } else { (cached as f64 / cells as f64).min(1.0) as f32 },
            rates: self.pace.rates(),
        });
    }
}

mod placing;
mod seeing;
#[cfg(test)]
mod tests;
