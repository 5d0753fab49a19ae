//! A local engine: turns in which every answer gets a token and prompts are read in shares, slots, kept prompts; and what it shows of itself,
//! which is as old as its last turn.

use super::Micros;
use super::fleet::Local;
use std::collections::VecDeque;

/// Tokens of an answer before any was seen.
const EXPECTED_ANSWER: f64 = 128.0;
/// Most tokens of a batch.
const BATCH: u64 = 512;
/// Fewest prompt tokens of a batch while others write, and how long those may wait for it, in seconds.
const SMALLEST_CHUNK: u64 = 32;
const STALL: f64 = 0.1;
/// Sizes of batches that are told apart.
const SIZES: usize = 8;
/// Requests that may wait.
const QUEUE: usize = 64;

/// A request for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) request: usize,
    pub(super) arrived: Micros,
    pub(super) input: u64,
    pub(super) session: u64,
    pub(super) shared: u64,
    pub(super) output: u64,
    /// The longest answer that it was asked for, as far as that was said.
    pub(super) limit: u64,
}

/// An answer that is being written, or its prompt read.
#[derive(Debug, Clone, Copy)]
struct Running {
    job: Job,
    unread: u64,
    written: u64,
    first: Micros,
}

/// When an answer began and ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) request: usize,
    pub(super) first: Micros,
    pub(super) end: Micros,
}

/// What it shows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reading {
    pub(super) running: u32,
    pub(super) queue_tokens: u64,
    pub(super) unread: u64,
    pub(super) prefill: f64,
    pub(super) overall: f64,
    decode: [f64; SIZES],
}

impl Reading {
    /// Tokens of one answer of so many in a second; 0 where nothing is known.
    pub(super) fn decode_of_one(&self, writers: u32) -> f64 {
        let known = self.decode[..=writers_like(writers)].iter().rev().find(|rate| **rate > 0.0);
        known.copied().unwrap_or(0.0) / f64::from(writers.max(1))
    }
}

/// The engine. Nothing happens in it but when it is moved on in time.
#[derive(Debug, Clone)]
pub(super) struct Engine<'a> {
    spec: &'a Local,
    /// The end of its last turn.
    now: Micros,
    /// When its model is in memory; `None` before anybody wanted it.
    ready_at: Option<Micros>,
    inbox: VecDeque<Job>,
    waiting: VecDeque<Job>,
    running: Vec<Running>,
    /// Sessions and how much of them needs not be read again, longest unused first.
    kept: VecDeque<(u64, u64)>,
    answer_tokens: Option<f64>,
    reading: Reading,
    pub(super) done: Vec<Done>,
}

impl<'a> Engine<'a> {
    pub(super) fn new(spec: &'a Local) -> Self {
        Self {
            spec,
            now: 0,
            ready_at: if spec.load_ms.is_none() { Some(0) } else { None },
            inbox: VecDeque::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            kept: VecDeque::new(),
            answer_tokens: None,
            reading: Reading::default(),
            done: Vec::new(),
        }
    }

    pub(super) fn slots(&self) -> u32 {
        self.spec.slots
    }

    pub(super) fn reading(&self) -> Reading {
        self.reading
    }

    /// Requests that it has, those included that it has not seen yet.
    pub(super) fn taken(&self) -> u32 {
        u32::try_from(self.inbox.len() + self.waiting.len() + self.running.len()).unwrap_or(u32::MAX)
    }

    /// How long until its model is in memory; `None` if it is.
    pub(super) fn absent_for(&self, now: Micros) -> Option<Micros> {
        match self.ready_at {
            Some(at) => at.checked_sub(now).filter(|left| *left > 0),
            None => Some(self.spec.load_ms.unwrap_or(0) * 1000),
        }
    }

    /// Its model is wanted.
    pub(super) fn load(&mut self, now: Micros) {
        self.ready_at.get_or_insert(now + self.spec.load_ms.unwrap_or(0) * 1000);
    }

    /// How much of a prompt was read before.
    pub(super) fn known(&self, session: u64, shared: u64) -> u64 {
        let held = self.kept.iter().find(|(kept, _)| *kept == session);
        held.map_or(0, |(_, tokens)| shared.min(*tokens))
    }

    /// Takes a request; `false` if too many wait.
    pub(super) fn push(&mut self, job: Job) -> bool {
        if self.inbox.len() + self.waiting.len() >= QUEUE {
            return false;
        }
        self.load(job.arrived);
        self.inbox.push_back(job);
        true
    }

    /// Ends every turn that ends until then.
    pub(super) fn advance(&mut self, to: Micros) {
        let Some(ready_at) = self.ready_at else { return };
        loop {
            let mut start = self.now.max(ready_at);
            if self.running.is_empty() && self.waiting.is_empty() {
                let Some(next) = self.inbox.front() else { return };
                start = start.max(next.arrived);
            }
            if start > to {
                return;
            }
            self.fill(start);
            if !self.turn(start, to) {
                return;
            }
        }
    }

    fn fill(&mut self, start: Micros) {
        let come = self.inbox.partition_point(|job| job.arrived <= start);
        self.waiting.extend(self.inbox.drain(..come));
        while self.running.len() < self.spec.slots as usize
            && let Some(job) = self.waiting.pop_front()
        {
            // At least one token is read again.
            let unread = job.input - self.known(job.session, job.shared).min(job.input.saturating_sub(1));
            self.running.push(Running { job, unread, written: 0, first: 0 });
        }
    }

    /// Runs the next turn, or many that are alike, if it ends in time.
    fn turn(&mut self, start: Micros, to: Micros) -> bool {
        let writers = self.running.iter().filter(|running| running.unread == 0).count() as u32;
        let shares = self.shares(writers);
        let reads: u64 = shares.iter().sum();
        let writing = if writers > 0 { f64::from(writers) / self.rate_of(writers) } else { 0.0 };
        let seconds = reads as f64 / self.spec.prefill + writing;
        let took = ((seconds * 1e6) as Micros).max(1);
        // Turns in which all only write are alike until one has ended, or somebody comes.
        let left = |running: &Running| running.job.output.saturating_sub(running.written).max(1);
        let alike = if reads > 0 { 1 } else { self.running.iter().map(left).min().unwrap_or(1) };
        let comes = self.inbox.front().map_or(u64::MAX, |job| (job.arrived - start).div_ceil(took).max(1));
        let turns = alike.min(comes).min((to - start) / took);
        if turns == 0 {
            return false;
        }
        self.now = start + turns * took;
        self.step(&shares, turns);
        self.learn(writers, reads, seconds, turns);
        self.publish();
        true
    }

    /// Prompt tokens that each may read: fair shares of a batch that the others need not wait for too long.
    fn shares(&self, writers: u32) -> Vec<u64> {
        let mut unread: Vec<(usize, u64)> = (0..).zip(self.running.iter().map(|running| running.unread)).collect();
        unread.retain(|(_, unread)| *unread > 0);
        let mut waiting = unread.len() as u64;
        let most = if writers > 0 && self.reading.prefill > 0.0 {
            let stall = STALL * (waiting as f64 / f64::from(writers)).max(1.0);
            ((self.reading.prefill * stall) as u64).clamp(SMALLEST_CHUNK, BATCH)
        } else {
            BATCH
        };
        let mut left = most.min(BATCH - u64::from(writers).min(BATCH));
        let mut shares = vec![0; self.running.len()];
        unread.sort_by_key(|(_, unread)| *unread);
        for (at, unread) in unread {
            shares[at] = unread.min(left.div_ceil(waiting.max(1)));
            left -= shares[at];
            waiting -= 1;
        }
        shares
    }

    /// Writers write so many tokens each, readers read their shares.
    fn step(&mut self, shares: &[u64], turns: u64) {
        let mut held = Vec::new();
        for (running, share) in self.running.iter_mut().zip(shares) {
            if running.unread == 0 {
                running.written += turns;
                continue;
            }
            running.unread -= share;
            if running.unread == 0 {
                // What reads the last token of a prompt writes the first of its answer.
                (running.first, running.written) = (self.now, 1);
                held.push((running.job.session, running.job.input));
            }
        }
        let is_whole = |running: &Running| running.unread == 0 && running.written >= running.job.output.max(1);
        for Running { job, first, .. } in self.running.extract_if(.., |running| is_whole(running)) {
            self.done.push(Done { request: job.request, first, end: self.now });
            let seen = job.output as f64;
            self.answer_tokens = Some(self.answer_tokens.map_or(seen, |old| old + (seen - old) / 5.0));
            held.push((job.session, job.input + job.output));
        }
        held.into_iter().for_each(|(session, tokens)| self.keep(session, tokens));
    }

    fn keep(&mut self, session: u64, tokens: u64) {
        let held = self.kept.iter().position(|(kept, _)| *kept == session);
        let before = held.and_then(|at| self.kept.remove(at)).map_or(0, |(_, tokens)| tokens);
        self.kept.push_back((session, tokens.max(before)));
        while self.kept.len() > self.spec.kept {
            self.kept.pop_front();
        }
    }

    /// Tokens of so many answers together in a second.
    fn rate_of(&self, writers: u32) -> f64 {
        let decode = &self.spec.decode;
        let above = decode.partition_point(|(answers, _)| *answers < writers);
        match (above.checked_sub(1).map(|below| decode[below]), decode.get(above)) {
            (Some((low, slow)), Some((high, fast))) => {
                slow + (fast - slow) * f64::from(writers - low) / f64::from(high - low)
            }
            (Some((_, rate)), None) => rate,
            (None, Some((answers, rate))) => rate * f64::from(writers) / f64::from(*answers),
            (None, None) => 1.0,
        }
    }

    fn learn(&mut self, writers: u32, reads: u64, seconds: f64, turns: u64) {
        let rate = (u64::from(writers) + reads) as f64 / seconds.max(1e-6);
        let old = 0.8_f64.powf(turns as f64);
        let smooth = |value: &mut f64| *value = if *value > 0.0 { rate + (*value - rate) * old } else { rate };
        if reads == 0 {
            smooth(&mut self.reading.decode[writers_like(writers)]);
        }
        if reads >= SMALLEST_CHUNK {
            smooth(&mut self.reading.prefill);
        }
        smooth(&mut self.reading.overall);
    }

    fn publish(&mut self) {
        let expected = self.answer_tokens.unwrap_or(EXPECTED_ANSWER) as u64;
        let answer = |job: &Job| job.limit.min(expected);
        let waiting = self.waiting.iter().map(|job| job.input + answer(job));
        let running =
            self.running.iter().map(|running| running.unread + answer(&running.job).saturating_sub(running.written));
        self.reading.queue_tokens = waiting.chain(running).sum();
        let unread = self.waiting.iter().map(|job| job.input).chain(self.running.iter().map(|running| running.unread));
        self.reading.unread = unread.sum();
        self.reading.running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
    }
}

/// The place among [`SIZES`] of a batch with so many writers.
fn writers_like(writers: u32) -> usize {
    (writers.max(1).next_power_of_two().ilog2() as usize).min(SIZES - 1)
}
