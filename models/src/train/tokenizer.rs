//! The tokenizer: a byte-level BPE with Qwen2's splitting rule, trained on the data the project makes.

use std::collections::HashMap;

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Inner};

use crate::data::{Dialogue, Piece};

/// Qwen2's splitting rule, which llama.cpp knows as `qwen2`.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The same rule, but a word comes without the space or sign before it. Merges are learnt with this one, so a word is the same
/// tokens after a space, after a quote and at the start of an answer: copying it is copying tokens.
const LEARNING: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The special tokens: the first three ids.
pub const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Id of `<|im_start|>`.
pub const START: u32 = 1;
/// Id of `<|im_end|>`, the end of an answer.
pub const END: u32 = 2;

/// The byte that a space becomes in byte-level vocabularies.
const SPACE: char = '\u{120}';

type Result<T> = tokenizers::Result<T>;

/// A trained tokenizer.
pub struct Tokenizer {
    inner: Inner,
    /// Every token's text in byte-level letters, by id.
    pub tokens: Vec<String>,
    /// The merges in the order they apply.
    pub merges: Vec<(String, String)>,
}

impl Tokenizer {
    /// Trains on `texts` up to `vocab` tokens, of which the last `spaced` are the commonest words with the space before them.
    ///
    /// # Errors
    /// When the texts are too few for a vocabulary.
    pub fn train(texts: &[String], vocab: usize, spaced: usize) -> Result<Self> {
        let trainer = BpeTrainerBuilder::new()
            .vocab_size(vocab - spaced)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(SPECIAL.iter().map(|t| AddedToken::from(*t, true)).collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut learner = Inner::new(BPE::default());
        learner.with_pre_tokenizer(Some(splitter(LEARNING)?));
        learner.train(&mut TrainerWrapper::from(trainer), texts.iter())?;

        // The crate shows its merges only in the written form.
        let written: Written = serde_json::from_str(&learner.to_string(false)?)?;
        let Model { vocab, mut merges } = written.model;
        let mut tokens = vec![String::new(); vocab.len()];
        vocab.into_iter().for_each(|(text, id)| tokens[id as usize] = text);
        for word in common_words(texts, spaced, &tokens) {
            // Listed last, such a merge joins a space only to a word that is already whole.
            tokens.push(format!("{SPACE}{word}"));
            merges.push((SPACE.to_string(), word));
        }
        Self::from_parts(tokens, merges)
    }

    /// A tokenizer from its vocabulary and merges.
    ///
    /// # Errors
    /// When a merge names a token that the vocabulary lacks.
    pub fn from_parts(tokens: Vec<String>, merges: Vec<(String, String)>) -> Result<Self> {
        let vocab: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
        let model = BPE::builder().vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges.clone()).build()?;
        let mut inner = Inner::new(model);
        inner.with_pre_tokenizer(Some(splitter(QWEN2)?));
        inner.with_decoder(Some(ByteLevel::default()));
        Ok(Self { inner, tokens, merges })
    }

    /// The ids of plain text; special tokens spelt out in it stay text.
    ///
    /// # Errors
    /// None for valid UTF-8 and a byte-level vocabulary.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.inner.encode_fast(text, false)?.get_ids().to_vec())
    }

    /// The text of `ids`.
    ///
    /// # Errors
    /// None for ids of this vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false)
    }

    /// The ids of a dialogue in the chat format, and for each whether the model has to predict it.
    ///
    /// # Errors
    /// None for valid UTF-8 and a byte-level vocabulary.
    pub fn dialogue(&self, dialogue: &Dialogue, prompt: bool) -> Result<(Vec<u32>, Vec<bool>)> {
        let (mut ids, mut learn) = (Vec::new(), Vec::new());
        for piece in dialogue.pieces(prompt) {
            let flag = match piece {
                Piece::Start => {
                    ids.push(START);
                    false
                }
                Piece::End(flag) => {
                    ids.push(END);
                    flag
                }
                Piece::Text(text, flag) => {
                    ids.extend(self.encode(&text)?);
                    flag
                }
            };
            learn.resize(ids.len(), flag);
        }
        Ok((ids, learn))
    }
}

#[derive(serde::Deserialize)]
struct Written {
    model: Model,
}

#[derive(serde::Deserialize)]
struct Model {
    vocab: HashMap<String, u32>,
    merges: Vec<(String, String)>,
}

fn splitter(rule: &str) -> Result<PreTokenizerWrapper> {
    let split = Split::new(SplitPattern::Regex(rule.to_owned()), SplitDelimiterBehavior::Isolated, false)?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, false, false).into()]).into())
}

/// The `count` commonest words that follow a space and are one token already; ties by the alphabet.
fn common_words(texts: &[String], count: usize, tokens: &[String]) -> Vec<String> {
    let whole: HashMap<&str, ()> = tokens.iter().map(|t| (t.as_str(), ())).collect();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for word in texts.iter().flat_map(|text| text.split(' ').skip(1)) {
        let end = word.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(word.len());
        if end > 0 && whole.contains_key(&word[..end]) {
            *seen.entry(&word[..end]).or_default() += 1;
        }
    }
    let mut words: Vec<_> = seen.into_iter().collect();
    words.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    words.into_iter().take(count).map(|(word, _)| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Kind, Split as Part, sample};
    use crate::rng::Rng;

    fn tokenizer() -> Tokenizer {
        let mut rng = Rng::new(1);
        let texts: Vec<String> =
            (0..600).map(|i| sample(Kind::MIX[i % 15].0, Part::Train, &mut rng).text(false)).collect();
        Tokenizer::train(&texts, 512, 32).unwrap()
    }

    #[test]
    fn any_text_survives_the_way_there_and_back() {
        let tokenizer = tokenizer();
        for text in ["Hello, world!", "47 + 38 = 85.", "Zażółć gęślą jaźń 🦊\n\n  x", "<|im_end|>", "{\"a\": [1, 2]}"]
        {
            let ids = tokenizer.encode(text).unwrap();
            assert!(ids.iter().all(|&id| id > 2), "{text}: plain text became a special token");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }

    #[test]
    fn a_rare_word_is_the_same_tokens_wherever_it_stands() {
        let tokenizer = tokenizer();
        let bare = tokenizer.encode("Reykjavik").unwrap();
        for (text, before) in [("a Reykjavik", "a "), ("\"Reykjavik", "\"")] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(ids, [tokenizer.encode(before).unwrap(), bare.clone()].concat(), "{text}");
        }
    }

    #[test]
    fn only_answers_are_learnt() {
        let tokenizer = tokenizer();
        let dialogue = Dialogue::from(("Hello".to_owned(), "Good day!".to_owned()));
        let (ids, learn) = tokenizer.dialogue(&dialogue, false).unwrap();
        let learnt: Vec<u32> = ids.iter().zip(&learn).filter(|(_, l)| **l).map(|(id, _)| *id).collect();
        assert_eq!(learnt, [tokenizer.encode("Good day!").unwrap(), vec![END]].concat());
    }
}
