//! llama.cpp's grammar notation (GBNF), rewritten for llguidance.
//!
//! A grammar in which no rule leads back to itself becomes one regular expression. In any other, every letter is a terminal of
//! its own: then no terminal is longer than another, and what the grammar allows is exactly what is written.

use super::formats::grammar::escape;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Longer grammars are refused.
const MOST_BYTES: usize = 64 * 1024;
/// Deeper nesting is refused.
const DEEPEST: u32 = 64;
/// More repetitions are refused.
const MOST_REPEATS: u32 = 2000;

/// Rewrites a grammar: the right side of a rule for its `root`, and the further rules that this one needs.
///
/// # Errors
/// What is wrong with it, and in which line.
pub(crate) fn rewrite(source: &str) -> Result<(String, String), String> {
    if source.len() > MOST_BYTES {
        return Err(format!("the grammar has {} bytes; at most {MOST_BYTES} are taken", source.len()));
    }
    let mut parser = Parser { rest: source, source, rules: BTreeMap::new() };
    parser.space(true);
    while !parser.rest.is_empty() {
        parser.rule()?;
    }
    let rules = parser.rules;
    let first = |name: &str| rules.get(name).map(|rule| rule.line);
    let unknown = rules.values().flat_map(|rule| &rule.uses).find(|name| first(name).is_none());
    if let Some(name) = unknown {
        return Err(format!("the grammar uses the rule `{name}`, which it does not define"));
    }
    if !rules.contains_key("root") {
        return Err("the grammar has no rule `root`".into());
    }
    let regular = is_regular(&rules);
    let mut written = String::new();
    for (name, rule) in &rules {
        let mut body = String::new();
        write_all(&rule.body, regular, &mut body);
        let _ = writeln!(written, "{}: {body}", new_name(name, regular));
    }
    Ok((new_name("root", regular), written))
}

/// Whether no rule that the root needs leads back to itself.
fn is_regular(rules: &BTreeMap<String, Rule>) -> bool {
    // What has no use left that is not settled is settled; a cycle never is.
    let mut settled: BTreeSet<&str> = BTreeSet::new();
    loop {
        let before = settled.len();
        settled.extend(
            rules
                .iter()
                .filter(|(_, rule)| rule.uses.iter().all(|name| settled.contains(name.as_str())))
                .map(|(name, _)| name.as_str())
                .collect::<Vec<_>>(),
        );
        if settled.len() == before {
            return before == rules.len();
        }
    }
}

/// Terminals are written in capitals; the names of others may not clash with ours.
fn new_name(name: &str, regular: bool) -> String {
    let mut new = String::from(if regular { "G_" } else { "g_" });
    for letter in name.chars() {
        match letter {
            // Two names that differ in case only, or in - and _, stay different.
            'A'..='Z' => {
                let _ = write!(new, "{}_u", letter.to_ascii_lowercase());
            }
            '-' => new.push_str("_m"),
            '_' => new.push_str("_s"),
            letter => new.push(letter),
        }
    }
    if regular { new.to_ascii_uppercase() } else { new }
}

struct Rule {
    line: usize,
    body: Vec<Vec<Element>>,
    uses: BTreeSet<String>,
}

/// A part of a rule, and how often it may come.
struct Element {
    kind: Kind,
    repeat: Option<(u32, Option<u32>)>,
}

enum Kind {
    Text(String),
    /// A class of characters, as a regular expression.
    Class(String),
    Rule(String),
    Group(Vec<Vec<Element>>),
}

fn write_all(alternatives: &[Vec<Element>], regular: bool, into: &mut String) {
    for (index, sequence) in alternatives.iter().enumerate() {
        if index > 0 {
            into.push_str(" | ");
        }
        if sequence.is_empty() {
            into.push_str("\"\"");
        }
        for element in sequence {
            element.write(regular, into);
            into.push(' ');
        }
    }
}

impl Element {
    fn write(&self, regular: bool, into: &mut String) {
        match &self.kind {
            Kind::Text(text) if regular => into.push_str(&Value::from(text.as_str()).to_string()),
            Kind::Text(text) => {
                into.push('(');
                for letter in text.chars() {
                    let _ = write!(into, "{} ", Value::from(letter.to_string()));
                }
                into.push_str(if text.is_empty() { "\"\")" } else { ")" });
            }
            Kind::Class(class) => {
                let _ = write!(into, "/{class}/");
            }
            Kind::Rule(name) => into.push_str(&new_name(name, regular)),
            Kind::Group(alternatives) => {
                into.push('(');
                write_all(alternatives, regular, into);
                into.push(')');
            }
        }
        match self.repeat {
            None => {}
            Some((0, Some(1))) => into.push('?'),
            Some((0, None)) => into.push('*'),
            Some((1, None)) => into.push('+'),
            Some((least, Some(most))) => {
                let _ = write!(into, "{{{least},{most}}}");
            }
            Some((least, None)) => {
                let _ = write!(into, "{{{least},}}");
            }
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
    source: &'a str,
    rules: BTreeMap<String, Rule>,
}

impl<'a> Parser<'a> {
    fn line(&self) -> usize {
        self.source[..self.source.len() - self.rest.len()].matches('\n').count() + 1
    }

    fn fail<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("the grammar is wrong in line {}: {what}", self.line()))
    }

    /// Passes over blanks and comments, and over line ends if it may.
    fn space(&mut self, lines: bool) {
        loop {
            let blank = |letter: char| letter == ' ' || letter == '\t' || (lines && (letter == '\n' || letter == '\r'));
            self.rest = self.rest.trim_start_matches(blank);
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.find(['\n', '\r']).map_or("", |end| &self.rest[end..]);
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        let end = self.rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-' && letter != '_');
        let (name, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        (!name.is_empty()).then_some(name)
    }

    fn rule(&mut self) -> Result<(), String> {
        let line = self.line();
        let Some(name) = self.name() else { return self.fail("a rule's name is expected") };
        self.space(false);
        let Some(rest) = self.rest.strip_prefix("::=") else {
            return self.fail("`::=` is expected behind a rule's name");
        };
        self.rest = rest;
        self.space(true);
        let mut uses = BTreeSet::new();
        let body = self.alternatives(&mut uses, 0)?;
        if !self.rest.is_empty() && !self.rest.starts_with(['\n', '\r']) {
            return self.fail("the end of the rule is expected");
        }
        self.space(true);
        match self.rules.insert(name.to_owned(), Rule { line, body, uses }) {
            Some(_) => Err(format!("the grammar defines the rule `{name}` twice, the second time in line {line}")),
            None => Ok(()),
        }
    }

    fn alternatives(&mut self, uses: &mut BTreeSet<String>, depth: u32) -> Result<Vec<Vec<Element>>, String> {
        if depth > DEEPEST {
            return self.fail("it is nested too deeply");
        }
        let mut alternatives = vec![self.sequence(uses, depth)?];
        while let Some(rest) = self.rest.strip_prefix('|') {
            self.rest = rest;
            self.space(true);
            alternatives.push(self.sequence(uses, depth)?);
        }
        Ok(alternatives)
    }

    fn sequence(&mut self, uses: &mut BTreeSet<String>, depth: u32) -> Result<Vec<Element>, String> {
        let mut elements: Vec<Element> = Vec::new();
        loop {
            let Some(first) = self.rest.chars().next() else { return Ok(elements) };
            let kind = match first {
                '"' => Kind::Text(self.literal()?),
                '[' => Kind::Class(self.class()?),
                '.' => {
                    self.rest = &self.rest[1..];
                    Kind::Class("(?s:.)".into())
                }
                '(' => {
                    self.rest = &self.rest[1..];
                    self.space(true);
                    let group = self.alternatives(uses, depth + 1)?;
                    let Some(rest) = self.rest.strip_prefix(')') else { return self.fail("`)` is missing") };
                    self.rest = rest;
                    Kind::Group(group)
                }
                '<' | '!' => return self.fail("tokens cannot be named in grammars here"),
                _ => match self.name() {
                    Some(name) => {
                        uses.insert(name.to_owned());
                        Kind::Rule(name.to_owned())
                    }
                    None => return Ok(elements),
                },
            };
            let repeat = self.repeat()?;
            elements.push(Element { kind, repeat });
            self.space(depth > 0);
        }
    }

    fn repeat(&mut self) -> Result<Option<(u32, Option<u32>)>, String> {
        let repeat = match self.rest.chars().next() {
            Some('?') => (0, Some(1)),
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('{') => {
                let Some(end) = self.rest.find('}') else { return self.fail("`}` is missing") };
                let bounds = &self.rest[1..end];
                let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| *number <= MOST_REPEATS);
                let repeat = match bounds.split_once(',') {
                    None => number(bounds).map(|times| (times, Some(times))),
                    Some((least, "")) => number(least).map(|least| (least, None)),
                    Some(("", most)) => number(most).map(|most| (0, Some(most))),
                    Some((least, most)) => number(least).zip(number(most)).map(|(least, most)| (least, Some(most))),
                };
                let valid = repeat.filter(|(least, most)| most.is_none_or(|most| *least <= most));
                let Some(repeat) = valid else {
                    return self
                        .fail(&format!("a repetition is {{n}}, {{n,}} or {{n,m}} with numbers up to {MOST_REPEATS}"));
                };
                self.rest = &self.rest[end..];
                repeat
            }
            _ => return Ok(None),
        };
        self.rest = &self.rest[1..];
        Ok(Some(repeat))
    }

    /// One character of a literal or class, escapes resolved.
    fn letter(&mut self) -> Result<char, String> {
        let mut letters = self.rest.chars();
        let Some(first) = letters.next() else { return self.fail("it ends in the middle of a text") };
        if first != '\\' {
            self.rest = letters.as_str();
            return Ok(first);
        }
        let Some(escape) = letters.next() else { return self.fail("it ends in the middle of an escape") };
        self.rest = letters.as_str();
        let digits = match escape {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            '\\' | '"' | '[' | ']' | '-' | '^' => return Ok(escape),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return self.fail("an escape is \\n \\r \\t \\\\ \\\" \\[ \\] \\x41 \\u0041 or \\U00000041"),
        };
        let code = self.rest.get(..digits).and_then(|code| u32::from_str_radix(code, 16).ok());
        let Some(letter) = code.and_then(char::from_u32) else { return self.fail("an escape names no character") };
        self.rest = &self.rest[digits..];
        Ok(letter)
    }

    fn literal(&mut self) -> Result<String, String> {
        self.rest = &self.rest[1..];
        let mut text = String::new();
        while !self.rest.starts_with('"') {
            text.push(self.letter()?);
        }
        self.rest = &self.rest[1..];
        Ok(text)
    }

    /// A class as a regular expression.
    fn class(&mut self) -> Result<String, String> {
        self.rest = &self.rest[1..];
        let mut class = String::from("[");
        if let Some(rest) = self.rest.strip_prefix('^') {
            self.rest = rest;
            class.push('^');
        }
        let empty = class.len();
        while !self.rest.starts_with(']') {
            let from = self.letter()?;
            class.push_str(&escape(&from.to_string()));
            if self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                self.rest = &self.rest[1..];
                let to = self.letter()?;
                if to < from {
                    return self.fail("a range ends before it begins");
                }
                class.push('-');
                class.push_str(&escape(&to.to_string()));
            }
        }
        if class.len() == empty {
            return self.fail("a class of characters is empty");
        }
        self.rest = &self.rest[1..];
        class.push(']');
        Ok(class)
    }
}

#[cfg(test)]
mod tests;
