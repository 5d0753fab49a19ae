//! Reasoning at the beginning of an answer, and marks that are not for the client.

use super::{Piece, text_piece};
use crate::local::stop::open_tail;

/// Finds the reasoning that an answer begins with. Whitespace at its edges is dropped.
#[derive(Debug)]
pub(super) struct Reasoning {
    open: &'static str,
    close: &'static str,
    state: State,
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but whitespace came.
    Start,
    /// Behind the opening mark, before the first letter.
    Opened,
    Inside,
    /// Behind the closing mark, before the first letter.
    Closed,
    Over,
}

impl Reasoning {
    /// `inside` says that the prompt had the opening mark.
    pub(super) fn new(marks: Option<(&'static str, &'static str)>, inside: bool) -> Self {
        let (open, close) = marks.unwrap_or_default();
        let state = match (marks, inside) {
            (None, _) => State::Over,
            (Some(_), true) => State::Opened,
            (Some(_), false) => State::Start,
        };
        Self { open, close, state, held: String::new() }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start => {
                let begun = self.held.trim_start();
                if let Some(rest) = begun.strip_prefix(self.open) {
                    self.held = rest.to_owned();
                    self.state = State::Opened;
                    return true;
                }
                let decided = !self.open.starts_with(begun);
                if decided {
                    self.state = State::Over;
                }
                decided
            }
            State::Opened | State::Closed => {
                self.held = self.held.trim_start().to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.state = if self.state == State::Opened { State::Inside } else { State::Over };
                true
            }
            State::Inside => {
                let found = self.held.find(self.close);
                let end = found.unwrap_or_else(|| self.held.len() - open_tail(&self.held, self.close));
                let said = self.held[..end].trim_end().len();
                if said > 0 {
                    pieces.push(Piece::Reasoning(self.held[..said].to_owned()));
                }
                match found {
                    Some(at) => {
                        self.held.drain(..at + self.close.len());
                        self.state = State::Closed;
                    }
                    None => drop(self.held.drain(..said)),
                }
                found.is_some()
            }
            State::Over => {
                pieces.extend(text_piece(&std::mem::take(&mut self.held)));
                false
            }
        }
    }

    pub(super) fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Inside if held.trim().is_empty() => Vec::new(),
            State::Inside => vec![Piece::Reasoning(held)],
            _ => text_piece(&held).into_iter().collect(),
        }
    }
}

/// Takes marks out of the text.
#[derive(Debug)]
pub(super) struct Silence {
    marks: &'static [&'static str],
    held: String,
}

impl Silence {
    pub(super) fn new(marks: &'static [&'static str]) -> Self {
        Self { marks, held: String::new() }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        while let Some((at, mark)) = self.marks.iter().filter_map(|mark| Some((self.held.find(mark)?, mark))).min() {
            self.held.replace_range(at..at + mark.len(), "");
        }
        let open = self.marks.iter().map(|mark| open_tail(&self.held, mark)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - open);
        text_piece(&std::mem::replace(&mut self.held, rest)).into_iter().collect()
    }

    pub(super) fn finish(&mut self) -> Vec<Piece> {
        text_piece(&std::mem::take(&mut self.held)).into_iter().collect()
    }
}
