//! A draft: a second, smaller model of the same vocabulary that guesses how the sequences of the first one go on.
//!
//! It is an [`Engine`] like the model, so whatever runs models runs drafts, on the same thread. The draft keeps KV of its own for every
//! sequence and follows by what is common: asked about a text, it forgets what it has read otherwise (its own wrong guesses among that)
//! and reads what it lacks. All sequences are read and guessed together, one batch for each guessed position. How much it reads before
//! it guesses is bounded by the time that takes, like prompts that arrive beside running answers; what it has not caught up with has no
//! guess in this turn.

use super::batch::{Demand, Pace, share};
use super::engine::{
    Compute, Engine, EngineError, Limits, Load, LoadError, LoadPlan, ReadTokenizer, Row, Token, Tokenizer, Unfinished,
};
use super::picture::Picture;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tollkeeper_config::{LocalModel, Pooling, Speculate};

/// Most tokens it reads in one turn to catch up.
const CATCH_UP: u32 = 256;
/// By so many tokens, unused ones at the end, the vocabularies of one family differ in size.
const SIZES_DIFFER: u32 = 128;
/// The first tokens stand for padding and the like; files of one family name them differently.
const FIRST_COMPARED: Token = 5;

/// Loads a model and its draft, and computes with both.
///
/// # Errors
/// One of them cannot be loaded, or cannot take tokens back.
pub(crate) fn beside(plan: &LoadPlan, path: &Path, load: Load, compute: Compute<'_>) -> Result<(), LoadError> {
    let of_draft = plan_of(plan, path);
    let mut both = Ok(());
    load(plan, &mut |model| {
        let mut fits = Ok(());
        let loaded = load(&of_draft, &mut |engine| match Draft::new(engine, model.limits()) {
            Ok(draft) => compute(&mut Drafted { model: &mut *model, draft }),
            Err(reason) => fits = Err(LoadError(reason)),
        });
        both = loaded.and(std::mem::replace(&mut fits, Ok(()))).map_err(|error| named(path, &error));
    })?;
    both
}

/// Whether a draft has the vocabulary of its model, compared as llama.cpp does.
///
/// # Errors
/// It has not, or its file cannot be read.
pub(crate) fn agree(plan: &LoadPlan, path: &Path, read: ReadTokenizer, model: &dyn Tokenizer) -> Result<(), LoadError> {
    let draft = read(&plan_of(plan, path)).map_err(|error| named(path, &error))?;
    let foreign = |why: String| {
        let advice = "a draft must be of its model's family; use another, or `speculate = \"lookup\"`";
        named(path, &LoadError(format!("its vocabulary is not the model's: {why}; {advice}")))
    };
    let (ours, theirs) = (model.vocabulary(), draft.vocabulary());
    if ours.abs_diff(theirs) > SIZES_DIFFER {
        return Err(foreign(format!("{theirs} tokens instead of {ours}")));
    }
    if model.required_first() != draft.required_first() {
        return Err(foreign("another token opens its texts".into()));
    }
    let (of_model, of_draft) = (texts(model), texts(&*draft));
    match (FIRST_COMPARED..ours.min(theirs)).find(|token| of_model(*token) != of_draft(*token)) {
        None => Ok(()),
        Some(token) => {
            let shown = |text: Vec<u8>| String::from_utf8_lossy(&text).into_owned();
            let (theirs, ours) = (shown(of_draft(token)), shown(of_model(token)));
            Err(foreign(format!("token {token} is {theirs:?} instead of {ours:?}")))
        }
    }
}

/// What a token stands for; control tokens for their names.
fn texts(tokenizer: &dyn Tokenizer) -> impl Fn(Token) -> Vec<u8> {
    let control: HashMap<Token, Vec<u8>> =
        tokenizer.control_tokens().into_iter().map(|control| (control.token, control.name.into_bytes())).collect();
    move |token| control.get(&token).cloned().unwrap_or_else(|| tokenizer.piece(token))
}

/// The draft as a model: with the slots, the context and the KV of the one it guesses for.
fn plan_of(plan: &LoadPlan, path: &Path) -> LoadPlan {
    let model = LocalModel {
        path: path.into(),
        speculate: Speculate::Off,
        pooling: Some(Pooling::None),
        mmproj: None,
        lora: Vec::new(),
        ..(*plan.model).clone()
    };
    // How far a load is, is told of the model alone.
    LoadPlan { model: Arc::new(model), progress: Arc::default(), ..plan.clone() }
}

fn named(path: &Path, LoadError(why): &LoadError) -> LoadError {
    LoadError(format!("its draft {} cannot be used: {why}", path.display()))
}

/// The engine that guesses.
pub(crate) struct Draft<'e> {
    engine: &'e mut dyn Engine,
    /// The tokens that the model knows.
    vocabulary: u32,
    /// What of each sequence is in its KV.
    read: Vec<Vec<Token>>,
    pace: Pace,
    turns: usize,
}

/// A row of a batch whose logits are the guess for the sequence with this place in what was asked.
struct Ask {
    place: usize,
    row: usize,
}

impl<'e> Draft<'e> {
    pub(crate) fn new(engine: &'e mut dyn Engine, model: &Limits) -> Result<Self, String> {
        let own = engine.limits();
        if !model.rewinds {
            return Err(
                "the model cannot take tokens back, so that guesses cannot be checked; leave `speculate` out".into()
            );
        }
        if !own.rewinds {
            return Err("it cannot take tokens back, as drafts must".into());
        }
        if !own.generates {
            return Err("it does not generate text".into());
        }
        if own.sequences < model.sequences {
            return Err(format!("it holds {} sequences, and the model {}", own.sequences, model.sequences));
        }
        let read = vec![Vec::new(); own.sequences as usize];
        Ok(Self { engine, vocabulary: model.vocabulary, read, pace: Pace::default(), turns: 0 })
    }

    fn guess(&mut self, unfinished: &[Unfinished<'_>]) -> Result<Vec<Vec<Token>>, EngineError> {
        let mut guessed = vec![Vec::new(); unfinished.len()];
        let (mut rows, mut asks) = self.follow(unfinished);
        while !rows.is_empty() {
            let began = Instant::now();
            match self.engine.decode(&rows) {
                Ok(()) => {
                    let (tokens, asked) = (rows.len() as u32, asks.len() as u32);
                    self.pace.note(asked, tokens, tokens - asked, began.elapsed());
                }
                Err(EngineError::NoRoom) => {
                    self.forget();
                    break;
                }
                Err(EngineError::Broken(why) | EngineError::Unfit(why)) => {
                    return Err(EngineError::Broken(format!("its draft failed: {why}")));
                }
            }
            rows.iter().for_each(|row| self.read[row.sequence as usize].push(row.token));
            rows.clear();
            for ask in std::mem::take(&mut asks) {
                let Unfinished { sequence, most, .. } = unfinished[ask.place];
                // A larger vocabulary has tokens that the model knows nothing of.
                let Some(token) = best(self.engine.logits(ask.row)).filter(|token| *token < self.vocabulary) else {
                    continue;
                };
                guessed[ask.place].push(token);
                let position = self.read[sequence as usize].len() as u32;
                if guessed[ask.place].len() < most as usize && position < self.engine.limits().context {
                    asks.push(Ask { place: ask.place, row: rows.len() });
                    rows.push(Row { token, position, sequence, output: true });
                }
            }
        }
        Ok(guessed)
    }

    /// The rows that bring the draft nearer to the texts, and which of them end one.
    fn follow(&mut self, unfinished: &[Unfinished<'_>]) -> (Vec<Row>, Vec<Ask>) {
        self.turns = self.turns.wrapping_add(1);
        let limits = self.engine.limits();
        let (batch, context, vocabulary) = (limits.batch, limits.context as usize, limits.vocabulary);
        let demands: Vec<Demand> = (0..)
            .zip(unfinished)
            .filter(|(_, text)| text.most > 0 && text.read.len() < context)
            .filter_map(|(slot, text)| {
                let lacking = self.lacking(text)?;
                // It cannot see: behind a picture it has nothing to say.
                let unread = &text.read[text.read.len() - lacking..];
                let reads = unread.iter().all(|token| *token < vocabulary);
                let tokens = u32::try_from(lacking + 1).unwrap_or(u32::MAX);
                (reads && lacking <= text.reach as usize).then_some(Demand { slot, tokens, prefill: lacking > 0 })
            })
            .collect();
        let (mut rows, mut asks) = (Vec::new(), Vec::new());
        let chunk = self.pace.chunk(unfinished.len(), 1, batch.min(CATCH_UP));
        for (place, count) in share(&demands, batch, chunk, self.turns) {
            let text = &unfinished[place];
            let from = self.read[text.sequence as usize].len();
            let lacking = text.read[from..].iter().chain([&text.next]);
            for (position, token) in (from..).zip(lacking).take(count as usize) {
                let output = position == text.read.len();
                if output {
                    asks.push(Ask { place, row: rows.len() });
                }
                rows.push(Row { token: *token, position: position as u32, sequence: text.sequence, output });
            }
        }
        (rows, asks)
    }

    /// Forgets what is otherwise in a text, and tells how many of its tokens were not read. `None`: there is no such sequence.
    fn lacking(&mut self, text: &Unfinished<'_>) -> Option<usize> {
        let read = self.read.get_mut(text.sequence as usize)?;
        let common = read.iter().zip(text.read).take_while(|(ours, theirs)| ours == theirs).count();
        if common < read.len() {
            let kept = if self.engine.truncate(text.sequence, common as u32) { common } else { 0 };
            if kept < common {
                self.engine.truncate(text.sequence, 0);
            }
            read.truncate(kept);
        }
        Some(text.read.len() - read.len())
    }

    fn forget(&mut self) {
        for (sequence, read) in (0..).zip(&mut self.read) {
            self.engine.truncate(sequence, 0);
            read.clear();
        }
    }

    /// The sequence `to` will begin as `from` does.
    fn share(&mut self, from: u32, to: u32, length: u32) {
        let Some(beginning) = self.read.get(from as usize) else { return };
        let beginning = beginning[..beginning.len().min(length as usize)].to_vec();
        if let Some(read) = self.read.get_mut(to as usize).filter(|_| from != to && !beginning.is_empty()) {
            self.engine.truncate(to, 0);
            self.engine.share(from, to, beginning.len() as u32);
            *read = beginning;
        }
    }
}

/// The likeliest token.
fn best(logits: &[f32]) -> Option<Token> {
    let better = |best: (Token, f32), other: (Token, f32)| if other.1 > best.1 { other } else { best };
    (0..).zip(logits.iter().copied()).reduce(better).map(|(token, _)| token)
}

/// A model with its draft.
pub(crate) struct Drafted<'m, 'd> {
    pub(crate) model: &'m mut dyn Engine,
    pub(crate) draft: Draft<'d>,
}

impl Engine for Drafted<'_, '_> {
    fn limits(&self) -> &Limits {
        self.model.limits()
    }

    fn decode(&mut self, rows: &[Row]) -> Result<(), EngineError> {
        self.model.decode(rows)
    }

    fn warm_up(&mut self) -> Result<(), EngineError> {
        self.model.warm_up()?;
        self.draft.engine.warm_up()
    }

    fn alive(&mut self) -> Result<(), EngineError> {
        self.model.alive()
    }

    fn memory(&self) -> Option<u64> {
        Some(self.model.memory()? + self.draft.engine.memory()?)
    }

    fn logits(&self, row: usize) -> &[f32] {
        self.model.logits(row)
    }

    fn truncate(&mut self, sequence: u32, keep: u32) -> bool {
        self.model.truncate(sequence, keep)
    }

    fn share(&mut self, from: u32, to: u32, length: u32) {
        self.model.share(from, to, length);
        self.draft.share(from, to, length);
    }

    fn guess(&mut self, unfinished: &[Unfinished<'_>]) -> Result<Vec<Vec<Token>>, EngineError> {
        self.draft.guess(unfinished)
    }

    fn measure(&mut self, picture: &Picture) -> Result<u32, EngineError> {
        self.model.measure(picture)
    }

    fn show(&mut self, picture: &Picture, sequence: u32, position: u32) -> Result<(), EngineError> {
        self.model.show(picture, sequence, position)
    }

    fn save(&mut self, sequence: u32) -> Option<Vec<u8>> {
        self.model.save(sequence)
    }

    fn restore(&mut self, sequence: u32, state: &[u8], length: u32) -> bool {
        self.model.restore(sequence, state, length)
    }

    fn embed(&mut self, inputs: &[&[Token]]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.model.embed(inputs)
    }
}

#[cfg(test)]
mod tests;
