//! The sequences an engine holds at once: who writes in which, and what is still in their KV cache from before.
//!
//! What one client's prompt left in the cache serves every client of the model: the text is never shown to another, but the time
//! to the first token can tell that somebody sent the same beginning.

use super::batch::Demand;
use super::engine::{Engine, Token};
use super::guess::Streak;
use super::guide::Guide;
use super::kv_store::{SHORTEST, Shelf};
use super::output::Output;
use super::picture::{Picture, Pictures, count, is_picture, length_of_first, surely_common};
use super::prepare::Layout;
use super::sampler::Sampler;
use std::sync::Arc;
use tollkeeper_config::Priority;
use tollkeeper_protocol::chat::Sampling;

/// Prompt tokens that are scored in one batch: each has logits of the whole vocabulary, which take memory and time.
const SCORED: usize = 32;

/// A sequence of an answer that waits for a slot.
pub(crate) struct Sequence {
    /// The answer it belongs to.
    pub(crate) answer: u64,
    /// Its choice index in the answer.
    pub(crate) choice: u32,
    pub(crate) priority: Priority,
    /// Whether it is the first to read its prompt; the others wait for it and share its KV.
    pub(crate) leads: bool,
    pub(crate) prompt: Arc<[Token]>,
    pub(crate) pictures: Pictures,
    /// Text to repeat first.
    pub(crate) echo: Option<String>,
    /// Most tokens to generate.
    pub(crate) limit: u32,
    pub(crate) rules: Arc<Rules>,
}

impl Sequence {
    /// Tokens of text that stand in the prompt from there on, up to a picture or the end.
    fn text_from(&self, read: usize) -> usize {
        let unread = self.prompt.get(read..).unwrap_or_default();
        match self.pictures {
            Pictures::None => unread.len(),
            _ => unread.iter().take_while(|token| !is_picture(**token)).count(),
        }
    }

    /// The picture that stands there in the prompt.
    fn picture_at(&self, read: usize) -> Option<(Picture, &[Token])> {
        let Pictures::Measured(pictures) = &self.pictures else { return None };
        let (before, rest) = self.prompt.split_at_checked(read)?;
        let tokens = &rest[..length_of_first(rest)];
        Some((pictures.get(count(before)).filter(|_| !tokens.is_empty())?.clone(), tokens))
    }
}

/// What waits for a slot.
pub(crate) enum Waiting {
    /// A sequence that has not begun.
    New(Sequence),
    /// One that was running when the engine went; its prompt is now all that it has read and written.
    Parked(Box<Running>),
}

impl Waiting {
    pub(crate) fn sequence(&self) -> &Sequence {
        match self {
            Self::New(sequence) => sequence,
            Self::Parked(running) => &running.sequence,
        }
    }

    pub(crate) fn sequence_mut(&mut self) -> &mut Sequence {
        match self {
            Self::New(sequence) => sequence,
            Self::Parked(running) => &mut running.sequence,
        }
    }

    /// Tokens it will still read and write, if answers take `expected` tokens.
    pub(crate) fn tokens(&self, expected: u32) -> u64 {
        match self {
            Self::New(sequence) => sequence.prompt.len() as u64 + u64::from(sequence.limit.min(expected)),
            Self::Parked(running) => running.remaining(0, expected),
        }
    }
}

/// What holds for all sequences of an answer.
pub(crate) struct Rules {
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
    pub(crate) top_logprobs: Option<u8>,
    /// Of so many first tokens it is said how sure the model was.
    pub(crate) measured: u32,
    /// Whether the prompt's own tokens are said with their log-probabilities.
    pub(crate) scores_prompt: bool,
    pub(crate) layout: Option<Layout>,
    pub(crate) guide: Option<Guide>,
}

/// The part of a prompt that KV of an earlier one can stand for. Where its tokens are scored that is none.
pub(crate) fn reusable(prompt: &[Token], scored: bool) -> &[Token] {
    if scored { &prompt[..prompt.len().min(1)] } else { prompt }
}

/// A sequence that has a slot.
pub(crate) struct Running {
    pub(crate) sequence: Sequence,
    pub(crate) sampler: Sampler,
    pub(crate) output: Output,
    pub(crate) generated: u32,
    /// Drawn, but not yet read by the engine.
    pub(crate) next: Option<Token>,
    /// How well it can be guessed.
    pub(crate) streak: Streak,
    /// While the prompt's own tokens are said with their log-probabilities: how many were.
    pub(crate) scored: Option<usize>,
    /// Whether it gave up its slot once for an urgent one. It does not again.
    pub(crate) yielded: bool,
}

impl Running {
    /// Gets ready to wait for another engine, which will read again what this one has (`cached`).
    pub(crate) fn park(mut self, cached: &[Token]) -> Waiting {
        if let Some(next) = self.next.take() {
            self.sequence.prompt = cached.iter().copied().chain([next]).collect();
        }
        Waiting::Parked(Box::new(self))
    }

    /// Tokens still to be read or written, if the answer takes `expected` tokens.
    pub(crate) fn remaining(&self, cached: usize, expected: u32) -> u64 {
        let unread = self.sequence.prompt.len().saturating_sub(cached) as u64;
        unread + u64::from(self.sequence.limit.min(expected).saturating_sub(self.generated))
    }
}

/// One of the engine's sequences.
#[derive(Default)]
pub(crate) struct Slot {
    /// The tokens whose KV the engine holds.
    pub(crate) cached: Vec<Token>,
    pub(crate) running: Option<Running>,
    /// When it was last given away, in turns.
    pub(crate) used: u64,
    /// Rows that others were about to read while it stood idle.
    pub(crate) passed: u64,
}

impl Slot {
    /// What it has to read next.
    pub(crate) fn demand(&self, slot: usize) -> Option<Demand> {
        let running = self.running.as_ref()?;
        let unread = running.sequence.text_from(self.cached.len());
        match (unread, running.next) {
            // A picture is next, or there is nothing.
            (0, None) => None,
            (0, Some(_)) => Some(Demand { slot, tokens: 1, prefill: false }),
            (unread, _) if running.scored.is_some() => {
                Some(Demand { slot, tokens: unread.min(SCORED) as u32, prefill: true })
            }
            (unread, _) => Some(Demand { slot, tokens: u32::try_from(unread).unwrap_or(u32::MAX), prefill: true }),
        }
    }

    /// The picture that it has to be shown next, and the tokens that stand for it.
    pub(crate) fn next_picture(&self) -> Option<(Picture, &[Token])> {
        self.running.as_ref()?.sequence.picture_at(self.cached.len())
    }

    /// The next `count` tokens to read, and whether the logits after the last of them are wanted.
    pub(crate) fn upcoming(&self, count: usize) -> (&[Token], bool) {
        let Some(running) = &self.running else { return (&[], false) };
        let prompt = &running.sequence.prompt;
        let read = self.cached.len();
        if read < prompt.len() {
            let end = (read + count).min(prompt.len());
            (&prompt[read..end], end == prompt.len())
        } else {
            (running.next.as_slice(), true)
        }
    }

    /// How much of a prompt's beginning the engine holds here.
    pub(crate) fn shared_prefix(&self, prompt: &[Token]) -> usize {
        common_prefix(&self.cached, prompt)
    }
}

/// Tokens that two prompts have in common from the first on, in whole pictures.
pub(crate) fn common_prefix(one: &[Token], other: &[Token]) -> usize {
    surely_common(other, one.iter().zip(other).take_while(|(one, other)| one == other).count())
}

/// What a sequence that is given a slot brings with it.
pub(crate) struct Guest<'a> {
    /// What it is about to read, as far as KV of earlier prompts can stand for it.
    pub(crate) prompt: &'a [Token],
    /// Tokens it will write, as far as one can tell.
    pub(crate) answer: u64,
}

/// What a slot is worth keeping from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Worth {
    /// Everything: an answer goes on from here.
    All,
    /// What takes longer to read again than to find.
    Long,
}

/// Keeps what a sequence has read, if it is worth it and not kept yet. Returns whether the slot may forget it now.
pub(crate) fn keep(shelf: &Shelf, slot: &Slot, sequence: u32, worth: Worth, engine: &mut dyn Engine) -> bool {
    let shortest = if worth == Worth::All { 1 } else { SHORTEST };
    if slot.cached.len() < shortest || shelf.holds(&slot.cached) {
        return true;
    }
    engine.save(sequence).is_some_and(|state| shelf.put(&slot.cached, state))
}

/// Finds a free slot for a prompt, keeps, copies or brings back the longest beginning that was read before, and forgets the rest; what is
/// forgotten goes to the shelf. At least one token is left to read. Returns the slot and the number of tokens reused; `None` if no
/// slot is free.
pub(crate) fn place(
    slots: &mut [Slot],
    guest: &Guest<'_>,
    engine: &mut dyn Engine,
    shelf: Option<&Shelf>,
    now: u64,
) -> Option<(usize, usize)> {
    let prompt = guest.prompt;
    let rewinds = engine.limits().rewinds;
    let most = prompt.len().saturating_sub(1);
    let reuse = |slot: &Slot| if rewinds { slot.shared_prefix(prompt).min(most) } else { 0 };
    let free = |slot: &Slot| slot.running.is_none();
    let oldest = (0..slots.len())
        .filter(|at| free(&slots[*at]))
        .min_by_key(|at| (!slots[*at].cached.is_empty(), slots[*at].used))?;
    let best = (0..slots.len()).max_by_key(|at| (reuse(&slots[*at]), free(&slots[*at])))?;
    let reused = reuse(&slots[best]);
    // A slot that would lose more than half of what it has read is copied from instead.
    let keeps = free(&slots[best]) && reused > 0 && reused * 2 >= slots[best].cached.len();
    let target = if keeps { best } else { oldest };
    if let Some(shelf) = shelf
        && slots[target].cached.len() >= if target == best { reused + SHORTEST } else { SHORTEST }
    {
        keep(shelf, &slots[target], target as u32, Worth::Long, engine);
    }
    let mut reused = take_over(engine, target as u32, best as u32, reused as u32) as usize;
    if let Some(shelf) = shelf {
        // What most prompts begin with goes on serving others where it is.
        let serves = if reused >= SHORTEST { best } else { target };
        let rows = (prompt.len() - reused) as u64 + guest.answer;
        move_out_idle(slots, [target, serves], rows, engine, shelf);
        reused = restore(shelf, prompt, reused, target as u32, engine).unwrap_or(reused);
    }
    let slot = &mut slots[target];
    slot.cached.clear();
    slot.cached.extend_from_slice(&prompt[..reused]);
    slot.used = now;
    slot.passed = 0;
    Some((target, reused))
}

/// Leaves in the sequence `to` as much of its beginning as it is to reuse, or copies that from another one. Returns how much it has then.
fn take_over(engine: &mut dyn Engine, to: u32, from: u32, reused: u32) -> u32 {
    if to == from && engine.truncate(to, reused) {
        return reused;
    }
    engine.truncate(to, 0);
    if to == from || reused == 0 {
        return 0;
    }
    engine.share(from, to, reused);
    reused
}

/// Before others read `rows` more: moves out the idle sequences to which that costs more than their move does. Those that are `in_use`
/// stay, and so does what the shelf does not take.
fn move_out_idle(slots: &mut [Slot], in_use: [usize; 2], rows: u64, engine: &mut dyn Engine, shelf: &Shelf) {
    let Some(bearable) = engine.limits().idle_rows else { return };
    for (at, slot) in slots.iter_mut().enumerate() {
        if slot.running.is_some() || slot.cached.is_empty() || in_use.contains(&at) {
            continue;
        }
        slot.passed += rows;
        if slot.passed >= u64::from(bearable) && keep(shelf, slot, at as u32, Worth::Long, engine) {
            engine.truncate(at as u32, 0);
            slot.cached.clear();
            slot.passed = 0;
        }
    }
}

/// Brings back what the shelf has of a prompt, if that is worth more than what a slot has (`reused`). Returns the number of tokens that
/// the sequence has then; `None` if it was not touched.
fn restore(shelf: &Shelf, prompt: &[Token], reused: usize, sequence: u32, engine: &mut dyn Engine) -> Option<usize> {
    let most = prompt.len().saturating_sub(1);
    let found = shelf.find(prompt)?;
    let wanted = surely_common(prompt, found.common.min(most));
    let whole = wanted == found.length;
    if wanted < reused + if whole { 1 } else { SHORTEST } || !(whole || engine.limits().rewinds) {
        return None;
    }
    let state = shelf.take(found)?;
    engine.truncate(sequence, 0);
    if !engine.restore(sequence, &state, found.length as u32) {
        shelf.refuse(found);
        return Some(0);
    }
    if !whole && !engine.truncate(sequence, wanted as u32) {
        engine.truncate(sequence, 0);
        return Some(0);
    }
    shelf.restored(wanted - reused);
    Some(wanted)
}
