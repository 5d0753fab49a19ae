//! Calls between marks: finds them in the text of an answer and says them piece by piece.
//!
//! Until the name is read and the arguments begin, what looks like a call may turn out to be none and is then given back as text.
//! From there on it is a call: its arguments are passed on as they come. A grammar stands guard over answers with tools, so what
//! begins as a call goes on as one; without it, whatever follows in the place of a call's end would be text.

use super::parameters::{Parameters, Step};
use super::scan::{Object, Scan, Stop};
use super::{Item, Piece, Signature, Tagged, Wrap, text_piece};
use crate::local::stop::open_tail;
use std::sync::Arc;

/// Reads the calls of one answer.
#[derive(Debug)]
pub(super) struct Calls {
    syntax: &'static Tagged,
    /// What the arguments of the offered functions mean.
    signatures: Arc<[Signature]>,
    state: State,
    /// What is not decided.
    held: String,
    /// Nothing but whitespace came so far.
    fresh: bool,
    called: bool,
}

#[derive(Debug)]
enum State {
    Text,
    /// Behind an opening mark, which ends at this byte of what is held.
    Head(usize),
    Arguments(Object),
    Parameters(Parameters),
    /// Behind the arguments.
    Tail,
}

/// The beginning of a call.
struct Head {
    name: String,
    /// Whether arguments follow.
    arguments: bool,
    /// Where they do.
    at: usize,
}

/// What follows a call.
enum Next {
    Call(Head),
    /// The closing mark, which ends here.
    End(usize),
}

impl Calls {
    pub(super) fn new(syntax: &'static Tagged, signatures: Arc<[Signature]>) -> Self {
        Self { syntax, signatures, state: State::Text, held: String::new(), fresh: true, called: false }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// What is left at the end. Marks that only close are not missed.
    pub(super) fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        match &self.state {
            State::Tail => Vec::new(),
            State::Parameters(parameters) => parameters.finish(&held),
            State::Text if self.called && held.trim().is_empty() => Vec::new(),
            _ => text_piece(&held).into_iter().collect(),
        }
    }

    /// Goes on from one state to the next; returns whether there is more to do with what is held.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match &mut self.state {
            State::Text => self.text(pieces),
            State::Head(open) => {
                let open = *open;
                match self.first(Scan::new(&self.held, open)) {
                    Ok(head) => self.begin(head, pieces),
                    Err(Stop::More) => return false,
                    Err(Stop::Never) => {
                        self.state = State::Text;
                        pieces.extend(text_piece(&self.take(open)));
                    }
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
                    self.state = State::Tail;
                }
                complete
            }
            State::Parameters(parameters) => match parameters.step(&mut self.held, pieces) {
                Step::Again => true,
                Step::More => false,
                Step::Done => {
                    self.state = State::Tail;
                    true
                }
            },
            State::Tail => {
                match self.next(Scan::new(&self.held, 0)) {
                    Ok(Next::Call(head)) => self.begin(head, pieces),
                    Ok(Next::End(at)) => {
                        self.take(at);
                        self.state = State::Text;
                    }
                    Err(Stop::More) => return false,
                    Err(Stop::Never) => self.state = State::Text,
                }
                true
            }
        }
    }

    fn take(&mut self, bytes: usize) -> String {
        let rest = self.held.split_off(bytes);
        std::mem::replace(&mut self.held, rest)
    }

    fn text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        if self.fresh && self.syntax.bare {
            let mut scan = Scan::new(&self.held, 0);
            scan.space();
            match self.first(scan) {
                Ok(head) => {
                    self.begin(head, pieces);
                    return true;
                }
                Err(Stop::More) => return false,
                Err(Stop::Never) => {}
            }
        }
        if let Some(at) = self.held.find(self.syntax.open) {
            let before = self.held[..at].trim_end().len();
            pieces.extend(text_piece(&self.take(before)));
            self.fresh = false;
            self.state = State::Head(at - before + self.syntax.open.len());
            return true;
        }
        let decided = self.held.len() - open_tail(&self.held, self.syntax.open);
        let shown = self.held[..decided].trim_end().len();
        self.fresh &= shown == 0;
        pieces.extend(text_piece(&self.take(shown)));
        false
    }

    fn begin(&mut self, head: Head, pieces: &mut Vec<Piece>) {
        self.take(head.at);
        self.called = true;
        self.fresh = false;
        self.state = match &self.syntax.item {
            Item::Marked(marks) => {
                let end = marks.end(self.syntax.close);
                State::Parameters(Parameters::new(marks, end, &self.signatures, &head.name))
            }
            _ if head.arguments => State::Arguments(Object::default()),
            _ => State::Tail,
        };
        pieces.push(Piece::Call(head.name));
        if matches!(self.state, State::Tail) {
            pieces.extend([Piece::Arguments("{}".into()), Piece::CallEnd]);
        }
    }

    /// The first call behind the opening mark.
    fn first(&self, mut scan: Scan<'_>) -> Result<Head, Stop> {
        scan.space();
        if self.syntax.wrap == Wrap::List {
            scan.literal("[")?;
            scan.space();
        }
        self.head(scan)
    }

    fn head(&self, mut scan: Scan<'_>) -> Result<Head, Stop> {
        match &self.syntax.item {
            Item::Marked(marks) => {
                scan.literal(marks.before)?;
                let name = if marks.named.is_empty() { scan.name()? } else { scan.until(marks.named)? };
                if name.is_empty() || name.contains(char::is_whitespace) {
                    return Err(Stop::Never);
                }
                Parameters::follow(marks, marks.end(self.syntax.close), scan)?;
                Ok(Head { name: name.to_owned(), arguments: true, at: scan.at })
            }
            Item::Named { before, id, between, .. } => {
                scan.literal(before)?;
                let name = scan.name()?.to_owned();
                let mut marked = scan;
                match (marked.literal(between), id) {
                    (Err(Stop::Never), Some(id)) => {
                        scan.literal(id)?;
                        scan.name()?;
                        scan.literal(between)?;
                    }
                    (found, _) => {
                        found?;
                        scan = marked;
                    }
                }
                scan.space();
                if scan.peek()? == '{' { Ok(Head { name, arguments: true, at: scan.at }) } else { Err(Stop::Never) }
            }
            Item::Json { name: name_key, arguments, .. } => {
                scan.literal("{")?;
                let mut name = None;
                loop {
                    scan.space();
                    let key = scan.string()?;
                    scan.space();
                    scan.literal(":")?;
                    scan.space();
                    if key == *arguments {
                        let opens = scan.peek()? == '{';
                        return match name {
                            Some(name) if opens => Ok(Head { name, arguments: true, at: scan.at }),
                            _ => Err(Stop::Never),
                        };
                    }
                    if key == *name_key {
                        name = Some(scan.string()?);
                    } else {
                        scan.scalar()?;
                    }
                    scan.space();
                    if scan.peek()? == '}' {
                        let name = name.ok_or(Stop::Never)?;
                        return Ok(Head { name, arguments: false, at: scan.at });
                    }
                    scan.literal(",")?;
                }
            }
        }
    }

    /// The rest of a call behind its arguments, and what comes then.
    fn next(&self, mut scan: Scan<'_>) -> Result<Next, Stop> {
        match &self.syntax.item {
            Item::Named { after, .. } => scan.literal(after)?,
            Item::Marked(marks) => {
                scan.space();
                scan.literal(marks.after)?;
            }
            Item::Json { .. } => {
                scan.space();
                while scan.peek()? == ',' {
                    scan.literal(",")?;
                    scan.space();
                    scan.string()?;
                    scan.space();
                    scan.literal(":")?;
                    scan.space();
                    scan.scalar()?;
                    scan.space();
                }
                scan.literal("}")?;
            }
        }
        match self.syntax.wrap {
            Wrap::One => {}
            Wrap::List => {
                scan.space();
                if scan.peek()? == ',' {
                    scan.literal(",")?;
                    scan.space();
                    return self.head(scan).map(Next::Call);
                }
                scan.literal("]")?;
            }
            Wrap::Many => {
                scan.space();
                let mut closed = scan;
                return match closed.literal(self.syntax.close) {
                    Err(Stop::Never) => self.head(scan).map(Next::Call),
                    // Both marks begin alike, and neither is complete.
                    found => found.map(|()| Next::End(closed.at)),
                };
            }
        }
        if !self.syntax.close.is_empty() {
            scan.space();
            scan.literal(self.syntax.close)?;
        }
        Ok(Next::End(scan.at))
    }
}
