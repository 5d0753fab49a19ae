//! Reads the fixed parts of a call from text that may not be complete yet.

use serde_json::Value;

/// Why a part could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// What is there fits, but more must come.
    More,
    /// It does not fit, whatever comes.
    Never,
}

/// Longer names and ids are taken for text.
const LONGEST: usize = 1024;
/// Longer numbers too.
const LONGEST_WORD: usize = 32;

/// A place in a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scan<'a> {
    text: &'a str,
    /// Bytes read so far.
    pub(super) at: usize,
}

impl<'a> Scan<'a> {
    pub(super) fn new(text: &'a str, at: usize) -> Self {
        Self { text, at }
    }

    pub(super) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Passes over whitespace.
    pub(super) fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// The next character, which is not read.
    pub(super) fn peek(&self) -> Result<char, Stop> {
        self.rest().chars().next().ok_or(Stop::More)
    }

    pub(super) fn literal(&mut self, wanted: &str) -> Result<(), Stop> {
        if self.rest().starts_with(wanted) {
            self.at += wanted.len();
            Ok(())
        } else if wanted.starts_with(self.rest()) {
            Err(Stop::More)
        } else {
            Err(Stop::Never)
        }
    }

    /// What is before a mark; the mark is passed over. Long texts without one are none.
    pub(super) fn until(&mut self, mark: &str) -> Result<&'a str, Stop> {
        match self.rest().find(mark) {
            Some(end) if end <= LONGEST => {
                let before = &self.rest()[..end];
                self.at += end + mark.len();
                Ok(before)
            }
            None if self.rest().len() <= LONGEST + mark.len() => Err(Stop::More),
            _ => Err(Stop::Never),
        }
    }

    /// A JSON string.
    pub(super) fn string(&mut self) -> Result<String, Stop> {
        if self.peek()? != '"' {
            return Err(Stop::Never);
        }
        let mut escaped = false;
        for (at, byte) in self.rest().bytes().enumerate().take(LONGEST).skip(1) {
            match byte {
                b'"' if !escaped => {
                    let text = serde_json::from_str(&self.rest()[..=at]).map_err(|_| Stop::Never)?;
                    self.at += at + 1;
                    return Ok(text);
                }
                byte => escaped = byte == b'\\' && !escaped,
            }
        }
        Err(if self.rest().len() >= LONGEST { Stop::Never } else { Stop::More })
    }

    /// A JSON string, number, boolean or null.
    pub(super) fn scalar(&mut self) -> Result<(), Stop> {
        if self.peek()? == '"' {
            return self.string().map(drop);
        }
        let end = self.rest().find(|letter: char| !letter.is_ascii_alphanumeric() && !"+-.".contains(letter));
        let word = &self.rest()[..end.unwrap_or(self.rest().len())];
        match (end, serde_json::from_str::<Value>(word)) {
            (None, _) if word.len() < LONGEST_WORD => Err(Stop::More),
            (Some(_), Ok(_)) if word.len() < LONGEST_WORD => {
                self.at += word.len();
                Ok(())
            }
            _ => Err(Stop::Never),
        }
    }

    /// A name that ends before a character that no function has in its name.
    pub(super) fn name(&mut self) -> Result<&'a str, Stop> {
        let ends = |letter: char| letter.is_whitespace() || "<[{".contains(letter);
        match self.rest().find(ends) {
            Some(0) => Err(Stop::Never),
            Some(end) if end <= LONGEST => {
                let name = &self.rest()[..end];
                self.at += end;
                Ok(name)
            }
            None if self.rest().len() <= LONGEST => Err(Stop::More),
            _ => Err(Stop::Never),
        }
    }
}

/// Finds the end of a JSON object that comes in pieces. Brackets are counted; whether the rest is JSON is the grammar's business.
#[derive(Debug, Default)]
pub(super) struct Object {
    depth: u32,
    string: bool,
    escaped: bool,
}

impl Object {
    /// How many bytes of the text belong to the object, and whether it is complete.
    pub(super) fn take(&mut self, text: &str) -> (usize, bool) {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.string => self.escaped = true,
                b'"' => self.string = !self.string,
                b'{' | b'[' if !self.string => self.depth += 1,
                b'}' | b']' if !self.string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                _ => {}
            }
        }
        (text.len(), false)
    }
}
