//! Calls whose arguments stand between marks: what a value means by the tool's schema, and the reader that makes JSON of them.

use super::families::Marks;
use super::scan::{Scan, Stop};
use super::{Piece, grammar::Function};
use crate::local::stop::open_tail;
use serde_json::Value;
use std::sync::Arc;

/// Keywords of JSON schemas that say what a value may be. Others are annotations, or words that the standard does not know.
const CONSTRAINTS: &[&str] = &[
    "type",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "if",
    "then",
    "else",
    "$ref",
    "$dynamicRef",
    "properties",
    "patternProperties",
    "additionalProperties",
    "propertyNames",
    "required",
    "dependentRequired",
    "dependentSchemas",
    "minProperties",
    "maxProperties",
    "unevaluatedProperties",
    "items",
    "prefixItems",
    "contains",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];

/// How the value of an argument is written. Its schema decides; grammar and reader go by the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A text, as it is.
    Text,
    /// A text, as it is, but `null` is null.
    Nullable,
    /// JSON; a text in quotes.
    Json,
    /// JSON if it is JSON and no text in quotes, otherwise a text.
    Open,
}

impl Kind {
    pub(super) fn of(schema: &Value) -> Self {
        let Value::Object(fields) = schema else {
            return if *schema == Value::Bool(true) { Self::Open } else { Self::Json };
        };
        let mut constraints: Vec<&str> =
            fields.keys().map(String::as_str).filter(|key| CONSTRAINTS.contains(key)).collect();
        constraints.sort_unstable();
        let texts = |literals: &Value| literals.as_array().is_some_and(|list| list.iter().all(Value::is_string));
        let typed = fields.get("type");
        let text = typed.is_some_and(|name| name == "string");
        match constraints[..] {
            [] => Self::Open,
            ["enum"] if texts(&fields["enum"]) => Self::Text,
            ["enum", "type"] if text && texts(&fields["enum"]) => Self::Text,
            ["const"] if fields["const"].is_string() => Self::Text,
            ["const", "type"] if text && fields["const"].is_string() => Self::Text,
            ["anyOf" | "oneOf"] => fields[constraints[0]].as_array().map_or(Self::Json, |list| either(list)),
            _ if constraints.iter().all(|key| ["type", "minLength", "maxLength"].contains(key)) => match typed {
                _ if text => Self::Text,
                Some(Value::Array(names)) if names.len() == 2 && names.iter().any(|name| name == "null") => {
                    if names.iter().any(|name| name == "string") { Self::Nullable } else { Self::Json }
                }
                _ => Self::Json,
            },
            _ => Self::Json,
        }
    }

    /// How it is read when no grammar stands guard over it.
    fn unguarded(self, schema: &Value) -> Self {
        match self {
            Self::Json if schema.get("type").is_some_and(|name| name == "string") => Self::Text,
            Self::Json => Self::Open,
            kind => kind,
        }
    }
}

/// A text that may be null, as some generators of schemas write it.
fn either(branches: &[Value]) -> Kind {
    let null = |schema: &&Value| schema.get("type").is_some_and(|name| name == "null");
    match branches {
        [one, other] if null(&one) != null(&other) => {
            let text = if null(&one) { other } else { one };
            // Literal texts could be `null` themselves.
            let literal = text.get("enum").or(text.get("const")).is_some();
            if Kind::of(text) == Kind::Text && !literal { Kind::Nullable } else { Kind::Json }
        }
        _ => Kind::Json,
    }
}

/// What the values of a function's arguments mean.
#[derive(Debug)]
pub(crate) struct Signature {
    name: String,
    kinds: Vec<(String, Kind)>,
    others: Kind,
}

impl Signature {
    pub(crate) fn of(function: &Function<'_>) -> Self {
        let kind = |schema: &Value| {
            let kind = Kind::of(schema);
            if function.enforced { kind } else { kind.unguarded(schema) }
        };
        let properties = function.arguments.get("properties").and_then(Value::as_object);
        let kinds = properties.into_iter().flatten().map(|(key, schema)| (key.clone(), kind(schema))).collect();
        let others = function.arguments.get("additionalProperties").map_or(Kind::Open, kind);
        Self { name: function.name.to_owned(), kinds, others }
    }

    fn kind(&self, key: &str) -> Kind {
        self.kinds.iter().find(|(known, _)| known == key).map_or(self.others, |(_, kind)| *kind)
    }
}

/// Reads the arguments of one call.
#[derive(Debug)]
pub(super) struct Parameters {
    marks: &'static Marks,
    /// What ends the arguments.
    end: &'static str,
    signatures: Arc<[Signature]>,
    /// Which of them is called.
    called: Option<usize>,
    state: State,
    /// No argument came yet.
    empty: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Before a key or the end.
    Between,
    /// Before the first letter of a value.
    Value(Kind),
    /// Inside a value that may turn out to be a text or something else; so many bytes were searched for its end.
    Undecided(Kind, usize),
    /// Inside a text.
    Text,
    Json {
        string: bool,
        escaped: bool,
        /// Whether a part of it was passed on.
        said: bool,
    },
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// There is more to do with what is held.
    Again,
    /// More text must come.
    More,
    /// The arguments are complete. What is held is behind them.
    Done,
}

impl Parameters {
    /// The arguments of a call of `name`, up to the mark `end`.
    pub(super) fn new(marks: &'static Marks, end: &'static str, signatures: &Arc<[Signature]>, name: &str) -> Self {
        let called = signatures.iter().position(|signature| signature.name == name);
        Self { marks, end, signatures: signatures.clone(), called, state: State::Between, empty: true }
    }

    /// Whether what follows a name belongs to a call.
    pub(super) fn follow(marks: &Marks, end: &str, mut scan: Scan<'_>) -> Result<(), Stop> {
        scan.space();
        let mut ended = scan;
        match (scan.literal(marks.key), ended.literal(end)) {
            (Ok(()), _) | (_, Ok(())) => Ok(()),
            (Err(Stop::Never), Err(Stop::Never)) => Err(Stop::Never),
            _ => Err(Stop::More),
        }
    }

    pub(super) fn step(&mut self, held: &mut String, pieces: &mut Vec<Piece>) -> Step {
        match self.state {
            State::Between => self.between(held, pieces),
            State::Value(kind) => self.value(kind, held, pieces),
            State::Undecided(kind, searched) => self.undecided(kind, searched, held, pieces),
            State::Text => {
                let (text, ended) = self.text(held);
                say(pieces, escaped(&text));
                if ended {
                    say(pieces, "\"".into());
                    self.state = State::Between;
                }
                if ended { Step::Again } else { Step::More }
            }
            State::Json { string, escaped, said } => self.json(string, escaped, said, held, pieces),
        }
    }

    /// What is left when the answer ends within the arguments: they stay incomplete.
    pub(super) fn finish(&self, held: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        match self.state {
            State::Text => say(&mut pieces, escaped(held)),
            State::Json { .. } => say(&mut pieces, held.trim_end().to_owned()),
            State::Between | State::Value(_) | State::Undecided(..) => {}
        }
        pieces
    }

    fn between(&mut self, held: &mut String, pieces: &mut Vec<Piece>) -> Step {
        match self.key(held) {
            Ok((key, at)) => {
                held.drain(..at);
                let kind = match self.called {
                    Some(called) => self.signatures[called].kind(&key),
                    None => Kind::Open,
                };
                let before = if self.empty { "{" } else { ", " };
                say(pieces, format!("{before}{}: ", Value::from(key)));
                self.empty = false;
                self.state = State::Value(kind);
                Step::Again
            }
            Err(Stop::More) => Step::More,
            Err(Stop::Never) => {
                say(pieces, if self.empty { "{}".into() } else { "}".into() });
                pieces.push(Piece::CallEnd);
                Step::Done
            }
        }
    }

    /// The next key, and where its value begins. What is no key ends the arguments.
    fn key(&self, held: &str) -> Result<(String, usize), Stop> {
        let mut scan = Scan::new(held, 0);
        scan.space();
        if scan.rest().is_empty() {
            return Err(Stop::More);
        }
        let mut ended = scan;
        match (scan.literal(self.marks.key), ended.literal(self.end)) {
            // The end begins like a key.
            (Err(Stop::Never), Err(Stop::More)) => return Err(Stop::More),
            (found, _) => found?,
        }
        let key = scan.until(self.marks.keyed)?.to_owned();
        if !self.marks.value.is_empty() {
            scan.space();
            scan.literal(self.marks.value)?;
        }
        Ok((key, scan.at))
    }

    fn value(&mut self, kind: Kind, held: &mut String, pieces: &mut Vec<Piece>) -> Step {
        if held.is_empty() {
            return Step::More;
        }
        if self.marks.lines && held.starts_with('\n') {
            held.remove(0);
        }
        self.state = match kind {
            Kind::Text => {
                say(pieces, "\"".into());
                State::Text
            }
            Kind::Nullable | Kind::Open => State::Undecided(kind, 0),
            Kind::Json => State::Json { string: false, escaped: false, said: false },
        };
        Step::Again
    }

    fn undecided(&mut self, kind: Kind, searched: usize, held: &mut String, pieces: &mut Vec<Piece>) -> Step {
        let Some(at) = held[searched..].find(self.marks.valued) else {
            let open = open_tail(held, self.marks.valued);
            let decided = &held[..held.len() - open];
            let text = decided.strip_suffix('\n').filter(|_| self.marks.lines).unwrap_or(decided);
            if kind == Kind::Nullable && !"null".starts_with(text) {
                say(pieces, "\"".into());
                self.state = State::Text;
                return Step::Again;
            }
            self.state = State::Undecided(kind, decided.len());
            return Step::More;
        };
        let value: String = held.drain(..searched + at + self.marks.valued.len()).collect();
        let value = &value[..searched + at];
        let value = value.strip_suffix('\n').filter(|_| self.marks.lines).unwrap_or(value);
        let json = match kind {
            Kind::Nullable => value == "null",
            _ => serde_json::from_str(value).is_ok_and(|value: Value| !value.is_string()),
        };
        say(pieces, if json { value.trim().to_owned() } else { Value::from(value).to_string() });
        self.state = State::Between;
        Step::Again
    }

    /// The next part of a text that has come for certain, and whether it is the last.
    fn text(&self, held: &mut String) -> (String, bool) {
        let mark = self.marks.valued;
        let found = held.find(mark);
        let decided = found.unwrap_or_else(|| held.len() - open_tail(held, mark));
        // A line break may be the one before the mark.
        let shown = if self.marks.lines && held[..decided].ends_with('\n') { decided - 1 } else { decided };
        let text = held[..shown].to_owned();
        held.drain(..found.map_or(shown, |at| at + mark.len()));
        (text, found.is_some())
    }

    /// Marks within the texts of JSON are part of them.
    fn json(
        &mut self,
        mut string: bool,
        mut escaped: bool,
        mut said: bool,
        held: &mut String,
        pieces: &mut Vec<Piece>,
    ) -> Step {
        let mark = self.marks.valued;
        let (mut end, mut ended, mut waits) = (held.len(), false, false);
        for (at, byte) in held.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if string => escaped = true,
                b'"' => string = !string,
                _ if string || mark.as_bytes()[0] != byte => {}
                _ if held[at..].starts_with(mark) => (end, ended) = (at, true),
                _ if mark.starts_with(&held[at..]) => (end, waits) = (at, true),
                _ => {}
            }
            if ended || waits {
                break;
            }
        }
        let value = held[..end].trim_end();
        // Whitespace behind it may be the last; it changes nothing when it is read again.
        let kept = if escaped { end } else { value.len() };
        let value = held[..kept].to_owned();
        let shown = if said { value.as_str() } else { value.trim_start() };
        said |= !shown.is_empty();
        say(pieces, shown.to_owned());
        held.drain(..kept);
        if ended {
            held.drain(..end - kept + mark.len());
            if !said {
                say(pieces, "null".into());
            }
            self.state = State::Between;
            return Step::Again;
        }
        self.state = State::Json { string, escaped, said };
        Step::More
    }
}

/// A text within quotes.
fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn say(pieces: &mut Vec<Piece>, arguments: String) {
    if !arguments.is_empty() {
        pieces.push(Piece::Arguments(arguments));
    }
}

#[cfg(test)]
mod tests;
