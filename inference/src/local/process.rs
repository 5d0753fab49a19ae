//! An engine in a process of its own: safe Rust calls into C++ and CUDA that can end the process they are in, and that is not the gateway.
//!
//! `ProcessEngine` is an [`Engine`] like any other; what it is asked it asks the process, which is this same program started as
//! `tollkeeper engine`, with a socket for its standard input. Every request has one answer, in order; while an answer takes its time
//! the process shows life. Death and long silence are [`EngineError::Broken`], and from there on the gateway does what it does when
//! an engine in a thread breaks. Tokenizer, sampling, grammars and the choice of who runs stay in the gateway.

mod child;
mod link;
mod log;
#[cfg(test)]
mod tests;
mod wire;

pub use child::serve;

use super::engine::{self, Engine, EngineError, Limits, LoadError, LoadPlan, Row, Serve, Token, Unfinished};
use super::picture::Picture;
use link::Link;
use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;
use wire::{Answer, Frame, Guessing, Request};

/// A process from which nothing was heard for so long is stuck. It shows life much more often, but may have to wait for a core.
const SILENCE: Duration = Duration::from_secs(10);

/// Starts a process with the model's engine and serves.
pub(super) fn run(program: &Path, plan: &LoadPlan, serve: Serve<'_>) -> Result<(), LoadError> {
    let link = Link::start(program, plan, SILENCE);
    let link = link.map_err(|error| LoadError(format!("no process can be started for its engine: {error}")))?;
    run_over(link, plan, serve)
}

fn run_over(mut link: Link, plan: &LoadPlan, serve: Serve<'_>) -> Result<(), LoadError> {
    let asked = link.send(&Request::Load(Box::new((*plan.model).clone())), &[]);
    asked.map_err(|error| LoadError(error.to_string()))?;
    // Meanwhile the process loads the weights.
    let tokenizer = engine::tokenizer(plan)?;
    match link.loaded(plan)? {
        (Answer::Loaded { limits, memory }, 0) => {
            let told = vec![Vec::new(); limits.sequences as usize];
            let mut engine = ProcessEngine { link, limits, memory, logits: Vec::new(), places: Vec::new(), told };
            serve(tokenizer, &mut engine);
            Ok(())
        }
        (Answer::NotLoaded(reason), 0) => Err(LoadError(reason)),
        (answer, _) => Err(LoadError(format!("its process answered the request to load with {answer:?}"))),
    }
}

/// Reads frames as each side would, to the end of the bytes or the first that makes no sense.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(data: &[u8]) {
    let (mut from, mut scratch) = (data, Vec::new());
    while let Ok((_, tail)) = wire::read::<Answer>(&mut from, &mut scratch) {
        if wire::read_bytes(&mut from, tail).is_err() {
            break;
        }
    }
    let mut from = data;
    while let Ok((request, tail)) = wire::read::<Request<'_>>(&mut from, &mut scratch) {
        let mut again = Vec::new();
        let written = wire::write(&mut again, &mut Vec::new(), &request, &[]);
        assert!(written.is_ok());
        if wire::read_bytes(&mut from, tail).is_err() {
            break;
        }
    }
}

/// The engine as the gateway sees it.
struct ProcessEngine {
    link: Link,
    limits: Limits,
    memory: Option<u64>,
    /// The logits of all rows of the last batch that wanted some, one after the other.
    logits: Vec<f32>,
    /// Where in them each row's are.
    places: Vec<Option<usize>>,
    /// The text of each sequence as the process was told it, when guesses were asked for.
    told: Vec<Vec<Token>>,
}

impl ProcessEngine {
    /// An answer of the wrong kind: the two do not understand each other.
    fn confused(&mut self, answer: &Answer) -> EngineError {
        self.link.broke(&wire::strange(format!("{answer:?}")))
    }

    /// What the process has to be told to know the same.
    fn tell(&mut self, text: &Unfinished<'_>) -> Option<Guessing> {
        let told = self.told.get_mut(text.sequence as usize)?;
        let keep = told.iter().zip(text.read).take_while(|(told, read)| told == read).count();
        let more = text.read[keep..].to_vec();
        told.truncate(keep);
        told.extend(&more);
        let Unfinished { sequence, next, most, reach, .. } = *text;
        Some(Guessing { sequence, keep: keep as u32, more, next, most, reach })
    }

    /// Asks for something that cannot fail. If it does, the next request that can says so.
    fn done(&mut self, request: &Request<'_>, tail: &[u8]) -> Option<bool> {
        match self.link.ask_with(request, tail).ok()? {
            (Answer::Done(done), 0) => Some(done),
            (answer, _) => {
                self.confused(&answer);
                None
            }
        }
    }
}

impl Engine for ProcessEngine {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn decode(&mut self, rows: &[Row]) -> Result<(), EngineError> {
        let vocabulary = self.limits.vocabulary as usize;
        match self.link.ask(&Request::Decode(Cow::Borrowed(rows)))? {
            (Answer::Decoded, tail) => {
                let mut end = 0;
                self.places.clear();
                self.places.extend(rows.iter().map(|row| {
                    let place = row.output.then_some(end);
                    end += if row.output { vocabulary } else { 0 };
                    place
                }));
                self.link.numbers(tail, end, &mut self.logits)
            }
            (answer, _) => Err(self.confused(&answer)),
        }
    }

    fn warm_up(&mut self) -> Result<(), EngineError> {
        match self.link.ask(&Request::WarmUp)? {
            (Answer::Warm { memory }, 0) => {
                self.memory = memory;
                Ok(())
            }
            (answer, _) => Err(self.confused(&answer)),
        }
    }

    fn alive(&mut self) -> Result<(), EngineError> {
        self.link.sound()
    }

    fn process(&self) -> Option<u32> {
        self.link.process()
    }

    fn memory(&self) -> Option<u64> {
        self.memory
    }

    fn logits(&self, row: usize) -> &[f32] {
        let vocabulary = self.limits.vocabulary as usize;
        let place = self.places.get(row).copied().flatten();
        place.and_then(|place| self.logits.get(place..place + vocabulary)).unwrap_or_default()
    }

    fn truncate(&mut self, sequence: u32, keep: u32) -> bool {
        // A process that is gone has forgotten everything.
        self.done(&Request::Truncate { sequence, keep }, &[]).unwrap_or(keep == 0)
    }

    fn share(&mut self, from: u32, to: u32, length: u32) {
        self.done(&Request::Share { from, to, length }, &[]);
    }

    fn guess(&mut self, unfinished: &[Unfinished<'_>]) -> Result<Vec<Vec<Token>>, EngineError> {
        let asked: Vec<Guessing> = unfinished.iter().filter_map(|text| self.tell(text)).collect();
        match self.link.ask(&Request::Guess(asked))? {
            (Answer::Guessed(guessed), 0) if guessed.len() == unfinished.len() => Ok(guessed),
            (answer, _) => Err(self.confused(&answer)),
        }
    }

    fn save(&mut self, sequence: u32) -> Option<Vec<u8>> {
        match self.link.ask(&Request::Save { sequence }).ok()? {
            (Answer::Saved, tail) => self.link.bytes(tail).ok(),
            (Answer::Done(false), 0) => None,
            (answer, _) => {
                self.confused(&answer);
                None
            }
        }
    }

    fn restore(&mut self, sequence: u32, state: &[u8], length: u32) -> bool {
        self.done(&Request::Restore { sequence, length }, state).unwrap_or(false)
    }

    fn measure(&mut self, picture: &Picture) -> Result<u32, EngineError> {
        match self.link.ask_with(&Request::Measure(Frame::of(picture)), picture.rgb())? {
            (Answer::Measured(tokens), 0) => Ok(tokens),
            (answer, _) => Err(self.confused(&answer)),
        }
    }

    fn show(&mut self, picture: &Picture, sequence: u32, position: u32) -> Result<(), EngineError> {
        let request = Request::Show { frame: Frame::of(picture), sequence, position };
        match self.link.ask_with(&request, picture.rgb())? {
            (Answer::Done(true), 0) => Ok(()),
            (answer, _) => Err(self.confused(&answer)),
        }
    }

    fn embed(&mut self, inputs: &[&[Token]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let lengths = inputs.iter().map(|input| input.len() as u32).collect();
        match self.link.ask(&Request::Embed { lengths, tokens: inputs.concat() })? {
            (Answer::Vectors { width }, tail) if width <= self.limits.embedding_width => {
                let (width, mut numbers) = (width as usize, Vec::new());
                self.link.numbers(tail, width * inputs.len(), &mut numbers)?;
                Ok(numbers.chunks(width.max(1)).map(<[f32]>::to_vec).collect())
            }
            (answer, _) => Err(self.confused(&answer)),
        }
    }
}
