//! Keeps an answer within a grammar: the only file that calls llguidance.
//!
//! A grammar is read and prepared for the model's vocabulary away from the engine's thread ([`Guides::compile`]); each answer then
//! follows its own copy ([`Guide::start`]). The texts of the tokens are those that the client sees, so marks that are control
//! tokens but part of the text need no rule of their own, and all other control tokens are never allowed. End tokens are
//! allowed where the answer may end. All work is bounded by llguidance's limits: a grammar beyond them is refused.

use super::engine::{Constraint, Token, Tokenizer};
use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Longer grammars would take too long to read.
const MOST_BYTES: usize = 512 * 1024;

/// Prepares grammars for one vocabulary.
pub(crate) struct Guides {
    tokenizer: Arc<dyn Tokenizer>,
    /// Made when the first grammar is asked for: a large vocabulary takes a moment.
    factory: OnceLock<Result<Prepared, String>>,
}

struct Prepared {
    factory: ParserFactory,
    ends: Arc<[Token]>,
}

impl Guides {
    pub(crate) fn new(tokenizer: Arc<dyn Tokenizer>) -> Self {
        Self { tokenizer, factory: OnceLock::new() }
    }

    /// Prepares a grammar in the dialect of Lark that llguidance reads.
    ///
    /// # Errors
    /// What is wrong with it, or what in it cannot be enforced.
    pub(crate) fn compile(&self, grammar: &str) -> Result<Guide, String> {
        if grammar.len() > MOST_BYTES {
            return Err(format!("it is too long ({} bytes; at most {MOST_BYTES} are taken)", grammar.len()));
        }
        let prepared = self.factory.get_or_init(|| prepare(&*self.tokenizer)).as_ref().map_err(String::clone)?;
        let parser = prepared.factory.create_parser(TopLevelGrammar::from_lark(grammar.to_owned()));
        let matcher = Matcher::new(Ok(parser.map_err(|error| words(&error.to_string()))?));
        match matcher.get_error() {
            Some(error) => Err(words(&error)),
            None => Ok(Guide { matcher: Arc::new(Mutex::new(matcher)), ends: prepared.ends.clone() }),
        }
    }
}

fn prepare(tokenizer: &dyn Tokenizer) -> Result<Prepared, String> {
    let vocabulary = tokenizer.vocabulary();
    let ends: Arc<[Token]> = (0..vocabulary).filter(|token| tokenizer.is_end(*token)).collect();
    let texts: Vec<Vec<u8>> = (0..vocabulary)
        .map(|token| if tokenizer.is_end(token) { Vec::new() } else { tokenizer.piece(token) })
        .collect();
    // Which token stands for the end does not matter here: ends are handled apart.
    let end = ends.first().copied().unwrap_or(0);
    let trie = TokTrie::from(&TokRxInfo::new(vocabulary, end), &texts);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let factory =
        ParserFactory::new(&environment, InferenceCapabilities::default(), &SlicedBiasComputer::general_slices());
    let mut factory = factory.map_err(|error| error.to_string())?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.verbose_errors = false;
    // A grammar whose terminals are letters (see `gbnf`) takes many steps to filter a large vocabulary: about 25 ms at most.
    limits.step_max_items = 500_000;
    Ok(Prepared { factory, ends })
}

/// An error on one line, without its place in the grammar, which is not the client's.
fn words(error: &str) -> String {
    // Lines of the grammar itself are numbered, and marked with ^.
    let quoted = |line: &&str| line.contains(" | ") || line.trim_start().starts_with('^');
    let line: Vec<&str> = error.lines().filter(|line| !quoted(line)).flat_map(str::split_whitespace).collect();
    let line = match line.split_first() {
        Some((&"at", rest)) if rest.first().is_some_and(|place| place.ends_with("):")) => rest[1..].join(" "),
        _ => line.join(" "),
    };
    line.chars().take(400).collect()
}

/// A prepared grammar.
#[derive(Clone)]
pub(crate) struct Guide {
    /// As it was before the first token.
    matcher: Arc<Mutex<Matcher>>,
    ends: Arc<[Token]>,
}

impl Guide {
    /// Follows one answer.
    pub(crate) fn start(&self) -> Box<dyn Constraint> {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        Box::new(Follower { matcher, ends: self.ends.clone() })
    }
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Guide")
    }
}

/// Where an answer is in its grammar.
struct Follower {
    matcher: Matcher,
    ends: Arc<[Token]>,
}

impl Follower {
    fn may_end(&mut self) -> bool {
        // A matcher that has stopped without an error has read a whole text.
        !self.matcher.is_error() && (self.matcher.is_stopped() || self.matcher.is_accepting().unwrap_or(false))
    }
}

impl Constraint for Follower {
    fn allows(&mut self, token: Token) -> bool {
        if self.ends.contains(&token) {
            return self.may_end();
        }
        !self.matcher.is_stopped() && self.matcher.validate_tokens(&[token]).is_ok_and(|valid| valid == 1)
    }

    fn filter(&mut self, candidates: &mut Vec<(Token, f32)>) {
        let may_end = self.may_end();
        let mask = if self.matcher.is_stopped() { None } else { self.matcher.compute_mask().ok() };
        candidates.retain(|(token, _)| {
            if self.ends.contains(token) { may_end } else { mask.as_ref().is_some_and(|mask| mask.is_allowed(*token)) }
        });
    }

    fn accept(&mut self, token: Token) -> Result<(), String> {
        self.matcher.consume_token(token).map_err(|error| words(&error.to_string()))
    }
}
