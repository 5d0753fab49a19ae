//! Prompt lookup: guesses how an answer goes on from where its last words stood before, so that one batch can check several tokens.
//!
//! Answers repeat what they were given: code that is edited, documents that are quoted, JSON that is filled in. The guess costs nothing; checking it
//! costs rows of a batch, and a wrong one is wasted. So each answer guesses as many tokens as lately proved right, and pauses when none did.
//! The tokens that are said are drawn as ever: a guess counts only if the draw agrees.

use super::engine::Token;

/// Tokens that must stand in the text already before what is guessed.
const MATCH: usize = 3;
/// So far back it is looked for.
const HORIZON: usize = 8192;
const MOST: u32 = 16;
const FIRST: u32 = 4;
/// Tokens without a guess after the last one was wholly wrong.
const PAUSE: u32 = 32;

/// How well guesses went for one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lookup {
    length: u32,
    pause: u32,
}

impl Default for Lookup {
    fn default() -> Self {
        Self { length: FIRST, pause: 0 }
    }
}

impl Lookup {
    /// At most `most` tokens that may follow after `read` and `next`.
    pub(crate) fn guess(&mut self, read: &[Token], next: Token, most: usize) -> Vec<Token> {
        if self.pause > 0 {
            self.pause -= 1;
            return Vec::new();
        }
        let wanted = most.min(self.length as usize);
        let Some(tail) = read.len().checked_sub(MATCH - 1).map(|from| &read[from..]).filter(|_| wanted > 0) else {
            return Vec::new();
        };
        let from = read.len().saturating_sub(HORIZON);
        let seen = &read[from..];
        let stands = |at: &usize| seen[*at + MATCH - 1] == next && seen[*at..].starts_with(tail);
        // The last place counts: a text resembles its neighbourhood most.
        let Some(at) = (0..seen.len().saturating_sub(MATCH)).rev().find(stands) else { return Vec::new() };
        // A text that repeats itself at a short distance runs on into what is guessed.
        let mut text: Vec<Token> = seen[at + MATCH..].to_vec();
        text.push(next);
        (0..wanted).for_each(|place| text.push(text[place]));
        text.truncate(wanted);
        text
    }

    /// Learns from how many of the guessed tokens were right.
    pub(crate) fn learn(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        self.length = match right {
            all if all == guessed => (self.length + 2).min(MOST),
            0 => self.length / 2,
            some => some as u32 + 1,
        };
        if self.length == 0 {
            *self = Self { length: FIRST / 2, pause: PAUSE };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guess(text: &str, most: usize) -> String {
        let tokens: Vec<Token> = text.bytes().map(Token::from).collect();
        let (next, read) = tokens.split_last().unwrap();
        let guessed = Lookup::default().guess(read, *next, most);
        guessed.into_iter().map(|token| char::from(token as u8)).collect()
    }

    #[test]
    fn what_followed_last_time_is_guessed() {
        let table = [
            ("the cat sat; the c", 9, "at s"),
            ("abcX abcY abc", 2, "Y "),
            ("abcabc", 9, "abca"),
            ("abcd", 9, ""),
            ("ab", 9, ""),
            ("aaaaaa", 2, "aa"),
            ("the cat sat; the c", 0, ""),
        ];
        for (text, most, expected) in table {
            assert_eq!(guess(text, most), expected, "{text:?}");
        }
    }

    #[test]
    fn wrong_guesses_become_rare_and_right_ones_long() {
        let mut lookup = Lookup::default();
        lookup.learn(4, 4);
        lookup.learn(6, 6);
        assert_eq!(lookup.length, 8);
        lookup.learn(8, 2);
        assert_eq!(lookup.length, 3);
        lookup.learn(3, 0);
        lookup.learn(1, 0);
        let read: Vec<Token> = vec![1, 2, 3, 1, 2];
        for _ in 0..PAUSE {
            assert!(lookup.guess(&read, 3, 9).is_empty());
        }
        assert_eq!(lookup.guess(&read, 3, 9), [1, 2]);
    }

    proptest! {
        #[test]
        fn a_guess_stood_there_before(read in prop::collection::vec(0u32..3, 0..40), next in 0u32..3, most in 0usize..20) {
            let guessed = Lookup::default().guess(&read, next, most);
            prop_assert!(guessed.len() <= most.min(FIRST as usize));
            if !guessed.is_empty() {
                let mut stood = read[read.len() - (MATCH - 1)..].to_vec();
                stood.push(next);
                stood.extend(&guessed);
                let whole: Vec<Token> = read.iter().copied().chain([next]).chain(guessed).collect();
                let earlier = &whole[..whole.len() - 1];
                prop_assert!(earlier.windows(stood.len()).any(|window| window == stood));
            }
        }
    }
}
