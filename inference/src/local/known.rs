//! How much of a prompt a model's engine has read before, told from its text: neither tokenised nor compared with what the engine holds.
//!
//! Two lists meet here. Of each prompt that was tokenised, hashes of its text's beginnings lead to hashes of its tokens, block by block, each
//! of which stands for all tokens up to its end. And of each sequence that an engine holds (a slot's, or one that is kept for later) there are the same
//! hashes of blocks. So a new request is looked up by its text, and what it shares with an earlier one by blocks: some microseconds, whatever
//! the engine does meanwhile. The answer is never more than what was read, but for two texts with one hash, and mostly a little less.

use super::engine::Token;
use super::kv_store::Shelf;
use super::slots::Slot;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, Message, Part};
use tollkeeper_protocol::completion::Prompt;

/// Tokens of a block.
const BLOCK: usize = 64;
/// Bytes of text after which a beginning is hashed, within one message.
const STEP: usize = 1024;
/// Text beyond this is not looked at, in bytes.
const LOOKED_AT: usize = 256 << 10;
/// Messages beyond so many are not looked at.
const MESSAGES: usize = 1024;
/// Of pictures and the like, so many bytes count.
const MEDIA: usize = 2048;
/// Prompts of a model that are remembered.
const PROMPTS: usize = 256;

fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

fn fold(hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(mix(hash, bytes.len() as u64), |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let last = rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let hash = mix(hash, last);
    hash ^ (hash >> 32)
}

/// Adds the hashes of all whole blocks that are not there yet.
pub(super) fn extend(blocks: &mut Vec<u64>, tokens: &[Token]) {
    for block in tokens.chunks_exact(BLOCK).skip(blocks.len()) {
        let before = blocks.last().copied().unwrap_or(0);
        let hash = block.iter().fold(before, |hash, token| mix(hash, u64::from(*token)));
        blocks.push(hash ^ (hash >> 32));
    }
}

/// The hashes of all whole blocks.
pub(super) fn blocks(tokens: &[Token]) -> Arc<[u64]> {
    let mut blocks = Vec::with_capacity(tokens.len() / BLOCK);
    extend(&mut blocks, tokens);
    blocks.into()
}

/// Tokens that two lists of blocks have in common from the first on. Since a block stands for all before it, halving finds the last.
pub(super) fn common(one: &[u64], other: &[u64]) -> usize {
    let (mut low, mut high) = (0, one.len().min(other.len()));
    while low < high {
        let middle = usize::midpoint(low, high);
        if one[middle] == other[middle] { low = middle + 1 } else { high = middle }
    }
    low * BLOCK
}

/// The blocks that an engine's slots hold, as of its last turn.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<Vec<Sequence>>);

#[derive(Debug, Default)]
struct Sequence {
    /// When its slot was given away last: what it held before is no beginning of what it holds now.
    used: u64,
    blocks: Vec<u64>,
}

impl Held {
    /// Takes over what the slots hold; only what is new is hashed.
    pub(super) fn write(&self, slots: &[Slot]) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.resize_with(slots.len(), Sequence::default);
        for (sequence, slot) in held.iter_mut().zip(slots) {
            if sequence.used != slot.used {
                *sequence = Sequence { used: slot.used, blocks: Vec::new() };
            }
            sequence.blocks.truncate(slot.cached.len() / BLOCK);
            extend(&mut sequence.blocks, &slot.cached);
        }
    }

    /// The slots hold nothing.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn common(&self, blocks: &[u64]) -> usize {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter().map(|sequence| common(&sequence.blocks, blocks)).max().unwrap_or(0)
    }
}

/// Hashes of a request's beginnings: after each message, and within long ones after each kilobyte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beginnings {
    /// Each with the bytes of text up to there, longest last.
    points: Vec<(u64, usize)>,
}

impl Beginnings {
    /// Those of a chat or of a completion's only prompt; other requests have none.
    pub fn of(request: &Request) -> Self {
        let mut hashing = Hashing::default();
        match request {
            Request::Chat(chat) => hashing.chat(chat),
            Request::Completion(completion) => {
                if let [Prompt::Text(text)] = &completion.prompts[..] {
                    hashing.text(text);
                }
            }
            Request::Embedding(_) | Request::Rerank(_) => {}
        }
        hashing.beginnings
    }

    fn bytes(&self) -> usize {
        self.points.last().map_or(0, |(_, bytes)| *bytes)
    }
}

#[derive(Default)]
struct Hashing {
    hash: u64,
    bytes: usize,
    beginnings: Beginnings,
}

impl Hashing {
    fn chat(&mut self, chat: &ChatRequest) {
        // Templates write tools before everything else.
        for tool in &chat.tools {
            let parameters = tool.parameters.as_ref().map(ToString::to_string).unwrap_or_default();
            for text in [&tool.name, tool.description.as_deref().unwrap_or(""), &parameters] {
                self.hash = fold(self.hash, text.as_bytes());
                // They are as much of the prompt as its messages are, but where they stand among those is the template's matter.
                self.bytes += text.len();
            }
        }
        for message in chat.messages.iter().take(MESSAGES) {
            self.message(message);
        }
    }

    fn message(&mut self, message: &Message) {
        self.hash = mix(self.hash, 1 + message.role as u64);
        for part in &message.content {
            match part {
                Part::Text(text) => self.text(text),
                Part::Image(url) => self.media(url),
                Part::Other(value) => self.media(&value.to_string()),
            }
        }
        for call in &message.tool_calls {
            self.text(&call.name);
            self.text(&call.arguments);
        }
        self.point();
    }

    fn media(&mut self, text: &str) {
        let bytes = text.as_bytes();
        self.hash = fold(mix(self.hash, bytes.len() as u64), &bytes[..bytes.len().min(MEDIA)]);
    }

    fn text(&mut self, text: &str) {
        for step in text.as_bytes().chunks(STEP) {
            self.hash = fold(self.hash, step);
            self.bytes += step.len();
            if step.len() == STEP {
                self.point();
            }
            if self.bytes > LOOKED_AT {
                return;
            }
        }
    }

    fn point(&mut self) {
        if self.bytes > self.beginnings.bytes() && self.bytes <= LOOKED_AT {
            self.beginnings.points.push((self.hash, self.bytes));
        }
    }
}

/// The prompts that a model was given lately.
#[derive(Debug, Default)]
pub(crate) struct Prompts(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// Which prompt each beginning leads to: the last that had it.
    points: HashMap<u64, u64>,
    prompts: BTreeMap<u64, Known>,
}

#[derive(Debug)]
struct Known {
    points: Vec<u64>,
    bytes: usize,
    tokens: usize,
    blocks: Arc<[u64]>,
}

impl Prompts {
    /// A request was tokenised.
    pub(crate) fn note(&self, beginnings: &Beginnings, tokens: &[Token]) {
        if beginnings.points.is_empty() || tokens.len() < BLOCK {
            return;
        }
        let known = Known {
            points: beginnings.points.iter().map(|(hash, _)| *hash).collect(),
            bytes: beginnings.bytes(),
            tokens: tokens.len(),
            blocks: blocks(tokens),
        };
        let mut inner = self.enter();
        let number = inner.next;
        inner.next += 1;
        inner.points.extend(known.points.iter().map(|point| (*point, number)));
        inner.prompts.insert(number, known);
        if inner.prompts.len() > PROMPTS
            && let Some((gone, known)) = inner.prompts.pop_first()
        {
            for point in known.points {
                if inner.points.get(&point) == Some(&gone) {
                    inner.points.remove(&point);
                }
            }
        }
    }

    /// How many bytes of a request's text need not be read again, if it comes now.
    pub(crate) fn cached(&self, beginnings: &Beginnings, held: &Held, shelf: Option<&Shelf>) -> u64 {
        let (shared, bytes, tokens, blocks) = {
            let inner = self.enter();
            let found = beginnings.points.iter().rev().find_map(|(hash, shared)| {
                let known = inner.prompts.get(inner.points.get(hash)?)?;
                Some((*shared, known.bytes, known.tokens, known.blocks.clone()))
            });
            let Some(found) = found else { return 0 };
            found
        };
        let read = held.common(&blocks).max(shelf.map_or(0, |shelf| shelf.common(&blocks)));
        // Of the text as much as of the tokens.
        let read = bytes as u128 * read as u128 / tokens as u128;
        u64::try_from(read).unwrap_or(u64::MAX).min(shared as u64)
    }

    fn enter(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use tollkeeper_protocol::{Operation, openai};

    fn request(messages: &[(&str, &str)]) -> Request {
        let messages: Vec<_> = messages.iter().map(|(role, text)| json!({"role": role, "content": text})).collect();
        let body = json!({"model": "m", "messages": messages}).to_string();
        openai::decode_request(Operation::Chat, body.as_bytes()).unwrap()
    }

    fn slot(used: u64, tokens: &[Token]) -> Slot {
        Slot { cached: tokens.to_vec(), used, ..Slot::default() }
    }

    /// A token for each four bytes, as a tokenizer would make them.
    fn tokens(request: &Request) -> Vec<Token> {
        let Request::Chat(chat) = request else { return Vec::new() };
        let texts = chat.messages.iter().flat_map(|message| &message.content);
        let bytes: Vec<u8> = texts
            .flat_map(|part| if let Part::Text(text) = part { text.clone().into_bytes() } else { Vec::new() })
            .collect();
        bytes.chunks(4).map(|four| four.iter().fold(0, |token, byte| token << 6 ^ Token::from(*byte))).collect()
    }

    #[test]
    fn the_next_turn_of_a_conversation_finds_the_last_and_loses_it_with_its_slot() {
        let (system, first) = ("You are terse. ".repeat(200), "What is a lease? ".repeat(30));
        let before = request(&[("system", &system), ("user", &first)]);
        let (held, prompts) = (Held::default(), Prompts::default());
        let cached = |request: &Request| prompts.cached(&Beginnings::of(request), &held, None) as usize;
        prompts.note(&Beginnings::of(&before), &tokens(&before));
        assert_eq!(cached(&before), 0, "no engine has read it yet");
        held.write(&[slot(1, &[]), slot(2, &tokens(&before))]);
        let all = system.len() + first.len();
        assert!((all - 4 * BLOCK..=all).contains(&cached(&before)), "{} of {all}", cached(&before));

        let next = request(&[("system", &system), ("user", &first), ("assistant", "A promise."), ("user", "More?")]);
        assert_eq!(cached(&next), cached(&before));
        let other = request(&[("system", &system), ("user", "Something else.")]);
        assert!((system.len() - STEP..=system.len()).contains(&cached(&other)), "{} of the system", cached(&other));
        let foreign = request(&[("system", "You are verbose."), ("user", &first)]);
        assert_eq!(cached(&foreign), 0);

        // Half of it is forgotten, then another takes the slot.
        held.write(&[slot(1, &[]), slot(2, &tokens(&before)[..BLOCK * 5])]);
        assert!((BLOCK * 4 * 4..=BLOCK * 4 * 5).contains(&cached(&next)), "{}", cached(&next));
        held.write(&[slot(1, &[]), slot(3, &vec![7; 2000])]);
        assert_eq!(cached(&next), 0);
    }

    #[test]
    fn tools_that_were_read_are_known_to_be() {
        let text = "Which of the tools is for this? ".repeat(90);
        let turn = |more: &[(&str, &str)]| {
            let mut all = vec![json!({"role": "user", "content": text})];
            all.extend(more.iter().map(|(role, text)| json!({"role": role, "content": text})));
            let describe = "It does what it is told, and says what came of it. ".repeat(600);
            let tool = json!({"type": "function", "function": {"name": "do", "description": describe, "parameters": {"type": "object"}}});
            let body = json!({"model": "m", "messages": all, "tools": [tool]}).to_string();
            openai::decode_request(Operation::Chat, body.as_bytes()).unwrap()
        };
        let (before, next) = (turn(&[]), turn(&[("assistant", "None."), ("user", "Why?")]));
        // As a template writes it: the tools, then the messages.
        let Request::Chat(chat) = &before else { panic!("a chat") };
        let whole = format!("{}{text}", chat.tools[0].description.as_deref().unwrap());
        let tokens: Vec<Token> =
            whole.as_bytes().chunks(4).map(|four| four.iter().map(|byte| Token::from(*byte)).sum()).collect();
        let (held, prompts) = (Held::default(), Prompts::default());
        prompts.note(&Beginnings::of(&before), &tokens);
        held.write(&[slot(1, &tokens)]);
        let cached = prompts.cached(&Beginnings::of(&next), &held, None) as usize;
        assert!(cached > whole.len() * 9 / 10 && cached <= whole.len() + 64, "{cached} of {}", whole.len());
    }

    #[test]
    fn a_long_first_message_is_found_by_its_beginning() {
        let document = "All work and no play makes a dull gateway. ".repeat(400);
        let (one, other) = (format!("{document}Who is dull?"), format!("{document}What is no work?"));
        let (one, other) = (request(&[("user", &one)]), request(&[("user", &other)]));
        let (held, prompts) = (Held::default(), Prompts::default());
        prompts.note(&Beginnings::of(&one), &tokens(&one));
        held.write(&[slot(1, &tokens(&one))]);
        let cached = prompts.cached(&Beginnings::of(&other), &held, None) as usize;
        assert!((document.len() - 2 * STEP..=document.len()).contains(&cached), "{cached} of {}", document.len());
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let prompts = Prompts::default();
        for number in 0..2 * PROMPTS {
            let request = request(&[("user", &format!("{number} ").repeat(200))]);
            prompts.note(&Beginnings::of(&request), &tokens(&request));
        }
        let inner = prompts.enter();
        assert_eq!(inner.prompts.len(), PROMPTS);
        assert!(inner.points.len() <= 2 * PROMPTS, "{}", inner.points.len());
        let long = Beginnings::of(&request(&[("user", &"x".repeat(10 * LOOKED_AT))]));
        assert!(long.points.len() <= LOOKED_AT / STEP);
    }

    proptest! {
        /// Never more is taken for common than is, and at most a block less.
        #[test]
        fn common_blocks_are_common_tokens(
            shared in prop::collection::vec(0u32..9, 0..600),
            one in prop::collection::vec(0u32..9, 0..200),
            other in prop::collection::vec(0u32..9, 0..200),
        ) {
            let [one, other] = [one, other].map(|rest| [shared.clone(), rest].concat());
            let true_common = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
            let found = common(&blocks(&one), &blocks(&other));
            prop_assert!(found <= true_common && true_common < found + BLOCK, "{} {}", found, true_common);
            // Hashing on gives the same as hashing anew.
            let mut grown = Vec::new();
            for end in [one.len() / 3, one.len() / 2, one.len()] {
                extend(&mut grown, &one[..end]);
            }
            prop_assert_eq!(&grown[..], &*blocks(&one));
        }
    }
}
