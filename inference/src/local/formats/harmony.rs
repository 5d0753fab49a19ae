//! Harmony, the format of gpt-oss: an answer is a chain of messages, each with a header that names its channel and, for a call, the function.
//!
//! `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…` is reasoning and text;
//! `<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}` is a call, which the end token closes.

use super::scan::Object;
use super::{Piece, text_piece};
use crate::local::stop::open_tail;

/// What headers and messages are made of.
#[cfg(any(feature = "llama-cpp", feature = "candle", test))]
pub(super) const MARKS: [&str; 5] = ["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>"];

const MESSAGE: &str = "<|message|>";
/// How a header can begin.
const BEGINNINGS: [&str; 3] = ["<|start|>", "<|channel|>", " to="];
/// What ends a message.
const ENDS: [&str; 2] = ["<|end|>", "<|start|>"];
/// Longer headers are text.
const LONGEST_HEADER: usize = 1024;

/// Reads the messages of one answer.
#[derive(Debug)]
pub(super) struct Harmony {
    state: State,
    held: String,
    calls: bool,
}

#[derive(Debug)]
enum State {
    Header,
    Body(Channel),
    /// Behind the header of a call, before its arguments.
    Called(String),
    Arguments(Object),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Channel {
    Reasoning,
    Text,
    /// What is behind the arguments of a call.
    Nothing,
}

impl Harmony {
    /// `calls` says whether calls are looked for.
    pub(super) fn new(calls: bool) -> Self {
        Self { state: State::Header, held: String::new(), calls }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    pub(super) fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Body(channel) => say(channel, held).into_iter().collect(),
            State::Header if !looks_like_a_header(&held) => text_piece(&held).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn take(&mut self, bytes: usize) -> String {
        let rest = self.held.split_off(bytes);
        std::mem::replace(&mut self.held, rest)
    }

    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match &mut self.state {
            State::Header => {
                let found = self.held.find(MESSAGE).filter(|at| *at <= LONGEST_HEADER);
                if !looks_like_a_header(&self.held)
                    || found.is_none() && self.held.len() > LONGEST_HEADER + MESSAGE.len()
                {
                    // A mark that opens no header is text. Left where it is, it would end the text that it begins, for ever.
                    if self.held.starts_with(ENDS[1]) {
                        let mark = self.take(ENDS[1].len());
                        pieces.extend(text_piece(&mark));
                    }
                    self.state = State::Body(Channel::Text);
                    return true;
                }
                if let Some(at) = found {
                    let header = self.take(at + MESSAGE.len());
                    self.state = self.message(&header);
                }
                found.is_some()
            }
            State::Body(channel) => {
                let channel = *channel;
                let found = ENDS.iter().filter_map(|mark| self.held.find(mark)).min();
                let open = || ENDS.iter().map(|mark| open_tail(&self.held, mark)).max().unwrap_or(0);
                let said = self.take(found.unwrap_or_else(|| self.held.len() - open()));
                pieces.extend(say(channel, said));
                if found.is_some() {
                    if self.held.starts_with(ENDS[0]) {
                        self.take(ENDS[0].len());
                    }
                    self.state = State::Header;
                }
                found.is_some()
            }
            State::Called(name) => {
                let Some(first) = self.held.trim_start().chars().next() else { return false };
                if first == '{' {
                    pieces.push(Piece::Call(std::mem::take(name)));
                    self.held = self.held.trim_start().to_owned();
                    self.state = State::Arguments(Object::default());
                } else {
                    self.state = State::Body(Channel::Text);
                }
                true
            }
            State::Arguments(object) => {
                let (length, complete) = object.take(&self.held);
                let arguments = self.take(length);
                if !arguments.is_empty() {
                    pieces.push(Piece::Arguments(arguments));
                }
                if complete {
                    pieces.push(Piece::CallEnd);
                    self.state = State::Body(Channel::Nothing);
                }
                complete
            }
        }
    }

    /// What a header announces.
    fn message(&self, header: &str) -> State {
        let recipient = header.split_once("to=").map(|(_, rest)| {
            let end = rest.find(|letter: char| letter.is_whitespace() || letter == '<').unwrap_or(rest.len());
            rest[..end].to_owned()
        });
        let channel = header.split_once("<|channel|>").map_or("", |(_, rest)| rest);
        match recipient {
            Some(name) if self.calls && !name.is_empty() => {
                State::Called(name.strip_prefix("functions.").unwrap_or(&name).to_owned())
            }
            _ if channel.starts_with("analysis") => State::Body(Channel::Reasoning),
            _ => State::Body(Channel::Text),
        }
    }
}

/// Whether this may be, or become, the beginning of a header.
fn looks_like_a_header(text: &str) -> bool {
    BEGINNINGS.iter().any(|mark| text.starts_with(mark) || mark.starts_with(text))
}

fn say(channel: Channel, text: String) -> Option<Piece> {
    match channel {
        _ if text.is_empty() => None,
        Channel::Text => Some(Piece::Text(text)),
        Channel::Reasoning => Some(Piece::Reasoning(text)),
        Channel::Nothing => None,
    }
}
