//! DRY: makes a token less likely that would go on repeating what was said before, the more the longer the repetition already is.
//!
//! The penalty is `multiplier * base ^ (repeated - allowed_length)`, where `repeated` is how many of the latest tokens have stood in
//! front of that token before. Texts that break a sequence are looked for in the text and not among the tokens, so that it does not
//! matter how a model's vocabulary cuts them: no repetition counts that began before the last of them.

use super::engine::{Token, Tokenizer};
use memchr::memmem;
use tollkeeper_protocol::chat::Dry;

/// The largest penalty: out of any logit's reach, and far from infinity.
const MOST: f32 = 1e6;

/// What was said so far, and where it could repeat itself.
pub(crate) struct Repetitions {
    dry: Dry,
    /// The tokens looked at, latest last.
    said: Vec<Token>,
    /// Tokens behind the last text that breaks sequences.
    unbroken: usize,
    /// The end of the text so far, one byte shorter than the longest breaker.
    tail: Vec<u8>,
    /// Scratch: by how many tokens from the end on the sequence agrees with itself, moved by so many tokens.
    agrees: Vec<usize>,
}

impl Repetitions {
    /// Begins with the prompt said.
    pub(crate) fn new(dry: Dry, prompt: &[Token], tokenizer: &dyn Tokenizer) -> Self {
        let kept = dry.last_n.map_or(prompt.len(), |last| prompt.len().min(last as usize));
        let mut new = Self { dry, said: Vec::new(), unbroken: 0, tail: Vec::new(), agrees: Vec::new() };
        for token in &prompt[prompt.len() - kept..] {
            new.note(*token, tokenizer);
        }
        new
    }

    /// This token was said.
    pub(crate) fn note(&mut self, token: Token, tokenizer: &dyn Tokenizer) {
        self.said.push(token);
        self.unbroken += 1;
        // Forgetting one at a time would move all of them at every token.
        if let Some(last) = self.dry.last_n.map(|last| last as usize)
            && self.said.len() >= 2 * last.max(64)
        {
            self.said.drain(..self.said.len() - last);
        }
        let longest = self.dry.breakers.iter().map(String::len).max().unwrap_or(0);
        if longest == 0 {
            return;
        }
        self.tail.extend(tokenizer.piece(token));
        if self.dry.breakers.iter().any(|breaker| memmem::find(&self.tail, breaker.as_bytes()).is_some()) {
            self.unbroken = 0;
            // What was found once must not be found again.
            self.tail.clear();
        }
        self.tail.drain(..self.tail.len().saturating_sub(longest - 1));
    }

    /// Lowers the logits of the tokens that would go on with a repetition.
    pub(crate) fn penalise(&mut self, logits: &mut [f32]) {
        let last = self.dry.last_n.map_or(usize::MAX, |last| last as usize);
        let window = &self.said[self.said.len() - self.said.len().min(last)..];
        let allowed = self.dry.allowed_length as usize;
        if self.unbroken < allowed || window.len() < 2 {
            return;
        }
        agreements(window, &mut self.agrees);
        let mut repeated: Vec<(Token, usize)> = (1..window.len())
            .map(|back| (window[window.len() - back], self.agrees[back].min(self.unbroken)))
            .filter(|(_, length)| *length >= allowed)
            .collect();
        // The longest repetition first, then only the first of each token counts.
        repeated.sort_unstable_by_key(|(token, length)| (*token, std::cmp::Reverse(*length)));
        repeated.dedup_by_key(|(token, _)| *token);
        for (token, length) in repeated {
            if let Some(logit) = logits.get_mut(token as usize) {
                let power = i32::try_from(length - allowed).unwrap_or(i32::MAX);
                *logit -= (self.dry.multiplier * self.dry.base.powi(power)).min(MOST);
            }
        }
    }
}

/// For every `back` from 1: how many tokens the sequence without its last `back` tokens ends with that the whole sequence ends with
/// too. This is the Z-function of the reversed sequence, in time linear in its length.
fn agreements(said: &[Token], into: &mut Vec<usize>) {
    let count = said.len();
    let at = |place: usize| said[count - 1 - place];
    into.clear();
    into.resize(count, 0);
    let (mut left, mut right) = (0, 0);
    for place in 1..count {
        let mut length = if place < right { into[place - left].min(right - place) } else { 0 };
        while place + length < count && at(length) == at(place + length) {
            length += 1;
        }
        if place + length > right {
            (left, right) = (place, place + length);
        }
        into[place] = length;
    }
}

#[cfg(test)]
mod tests {
    use super::super::scripted::ScriptedTokenizer;
    use super::*;
    use proptest::prelude::*;

    fn dry(breakers: &[&str]) -> Dry {
        let breakers = breakers.iter().map(ToString::to_string).collect();
        Dry { multiplier: 1.0, base: 2.0, allowed_length: 2, last_n: None, breakers }
    }

    /// What is taken off each letter's logit after this text.
    fn penalties(dry: &Dry, text: &str) -> Vec<(char, f32)> {
        let tokens: Vec<Token> = text.bytes().map(Token::from).collect();
        let (prompt, answer) = tokens.split_at(tokens.len() / 2);
        let mut repetitions = Repetitions::new(dry.clone(), prompt, &ScriptedTokenizer);
        answer.iter().for_each(|token| repetitions.note(*token, &ScriptedTokenizer));
        let mut logits = vec![0.0f32; 128];
        repetitions.penalise(&mut logits);
        let lowered = (0u8..).zip(logits).filter(|(_, logit)| *logit < 0.0);
        lowered.map(|(letter, logit)| (char::from(letter), -logit)).collect()
    }

    #[test]
    fn what_goes_on_with_a_repetition_is_penalised_by_its_length() {
        type Case<'a> = (&'a str, Dry, &'a [(char, f32)]);
        let table: [Case<'_>; 10] = [
            ("abcd", dry(&[]), &[]),
            ("abcab", dry(&[]), &[('c', 1.0)]),
            ("xabcyabc", dry(&[]), &[('y', 2.0)]),
            ("abcdabceabc", dry(&[]), &[('d', 2.0), ('e', 2.0)]),
            ("aaaa", dry(&[]), &[('a', 2.0)]),
            ("abcab", Dry { allowed_length: 3, ..dry(&[]) }, &[]),
            ("abcab", Dry { last_n: Some(4), ..dry(&[]) }, &[]),
            ("ab:cab:c", dry(&[":"]), &[]),
            ("abc:abc", dry(&[":"]), &[(':', 2.0)]),
            ("ab<br>cdab<br>c", dry(&["<br>"]), &[]),
        ];
        for (text, dry, expected) in table {
            assert_eq!(penalties(&dry, text), expected, "{text} {dry:?}");
        }
    }

    #[test]
    fn a_long_repetition_takes_a_finite_penalty() {
        let text = "x".repeat(3000);
        assert_eq!(penalties(&dry(&[]), &text), [('x', MOST)]);
    }

    proptest! {
        #[test]
        fn agreements_are_those_found_by_comparing(said in prop::collection::vec(0u32..3, 0..40)) {
            let mut found = Vec::new();
            agreements(&said, &mut found);
            for (back, length) in found.iter().enumerate().skip(1) {
                let shorter = &said[..said.len() - back];
                let same = shorter.iter().rev().zip(said.iter().rev()).take_while(|(a, b)| a == b).count();
                prop_assert_eq!(*length, same, "{:?} moved by {}", &said, back);
            }
        }

        #[test]
        fn breakers_are_found_however_long_ago_the_text_began(
            text in "[ab:;]{0,30}",
        ) {
            let tokens: Vec<Token> = text.bytes().map(Token::from).collect();
            let repetitions = Repetitions::new(dry(&[":;", "b"]), &tokens, &ScriptedTokenizer);
            let ends = text.rfind(":;").map(|at| at + 2).max(text.rfind('b').map(|at| at + 1));
            prop_assert_eq!(repetitions.unbroken, text.len() - ends.unwrap_or(0));
        }
    }
}
