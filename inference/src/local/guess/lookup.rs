//! Prompt lookup: guesses how an answer goes on from where its last words stood before.
//!
//! Answers repeat what they were given: code that is edited, documents that are quoted, JSON that is filled in. The guess costs nothing.

use crate::local::engine::Token;
use crate::local::picture::is_picture;

/// Tokens that must stand in the text already before what is guessed.
const MATCH: usize = 3;
/// So far back it is looked for.
const HORIZON: usize = 8192;

/// At most `most` tokens that may follow after `read` and `next`.
pub(crate) fn guess(read: &[Token], next: Token, most: usize) -> Vec<Token> {
    let Some(tail) = read.len().checked_sub(MATCH - 1).map(|from| &read[from..]).filter(|_| most > 0) else {
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
    (0..most).for_each(|place| text.push(text[place]));
    // What stood there may have been a picture, which nobody writes.
    let written = text.iter().take_while(|token| !is_picture(**token)).count();
    text.truncate(most.min(written));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guessed(text: &str, most: usize) -> String {
        let tokens: Vec<Token> = text.bytes().map(Token::from).collect();
        let (next, read) = tokens.split_last().unwrap();
        let guessed = guess(read, *next, most);
        guessed.into_iter().map(|token| char::from(token as u8)).collect()
    }

    #[test]
    fn what_followed_last_time_is_guessed() {
        let table = [
            ("the cat sat; the c", 4, "at s"),
            ("abcX abcY abc", 2, "Y "),
            ("abcabc", 4, "abca"),
            ("abcd", 9, ""),
            ("ab", 9, ""),
            ("aaaaaa", 2, "aa"),
            ("the cat sat; the c", 0, ""),
        ];
        for (text, most, expected) in table {
            assert_eq!(guessed(text, most), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_guess_stood_there_before(read in prop::collection::vec(0u32..3, 0..40), next in 0u32..3, most in 0usize..20) {
            let guessed = guess(&read, next, most);
            prop_assert!(guessed.len() <= most);
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
