//! What an answer may look like, as a grammar in llguidance's dialect of Lark.
//!
//! Terminals (in capitals) are regular expressions and take the longest text that fits, so those that can begin at the same place
//! are made to exclude each other: free text never contains the mark that opens a call, and never begins as reasoning does.

mod parameters;

use super::{Format, Item, Shape, Tagged, Wrap};
use serde_json::Value;
use std::fmt::Write;

/// Most calls in one answer.
const MOST_CALLS: u32 = 32;

/// Whitespace between the parts of a call.
const SPACE: &str = "SPACE: /[ \\t\\r\\n]{1,32}/\n";

/// A function that may be called.
#[derive(Debug)]
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    /// JSON schema of the arguments; an object.
    pub(crate) arguments: Value,
    /// Whether the arguments must follow it.
    pub(crate) enforced: bool,
}

/// Which calls an answer may make.
#[derive(Debug)]
pub(crate) struct Offer<'a> {
    pub(crate) functions: Vec<Function<'a>>,
    /// Whether there must be one.
    pub(crate) required: bool,
    /// Whether there may be several.
    pub(crate) several: bool,
}

/// What an answer may be.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) format: &'a Format,
    /// [`Format::begins_thinking`].
    pub(crate) thinking: bool,
    /// The right side of a rule that the text must follow; free when there is none.
    pub(crate) text: Option<&'a str>,
    /// Further rules that it needs.
    pub(crate) rules: &'a str,
    pub(crate) offer: Option<&'a Offer<'a>>,
}

/// A JSON schema as the right side of a rule. Whitespace is bounded, so that no answer can be made of it.
pub(crate) fn json(schema: &Value, loose: bool) -> String {
    let mut schema = match schema {
        Value::Object(fields) => fields.clone(),
        Value::Bool(false) => serde_json::Map::from_iter([("not".to_owned(), Value::Object(serde_json::Map::new()))]),
        _ => serde_json::Map::new(),
    };
    let options = serde_json::json!({
        "whitespace_pattern": "[ \\t\\r\\n]{1,64}",
        "coerce_one_of": loose,
    });
    schema.insert("x-guidance".to_owned(), options);
    let mut schema = Value::Object(schema);
    without_leap_seconds(&mut schema);
    format!("%json {schema}")
}

/// Times have no 60th second: strict readers take it at the very end of some days only, and most take it never.
fn without_leap_seconds(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    let pattern = match fields.get("format").and_then(Value::as_str) {
        Some("time") => Some("^[0-9]{2}:[0-9]{2}:[0-5]"),
        Some("date-time") => Some("[Tt ][0-9]{2}:[0-9]{2}:[0-5]"),
        _ => None,
    };
    if let Some(pattern) = pattern {
        fields.entry("pattern").or_insert_with(|| pattern.into());
    }
    for (key, value) in fields {
        match (key.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(named)) => {
                named.values_mut().for_each(without_leap_seconds);
            }
            ("prefixItems" | "items" | "anyOf" | "oneOf" | "allOf", Value::Array(list)) => {
                list.iter_mut().for_each(without_leap_seconds);
            }
            ("items" | "additionalItems" | "additionalProperties", schema) => without_leap_seconds(schema),
            _ => {}
        }
    }
}

impl Function<'_> {
    /// The right side of a rule for the arguments as JSON.
    fn json(&self) -> String {
        if self.enforced { json(&self.arguments, true) } else { json(&serde_json::json!({"type": "object"}), true) }
    }
}

impl Answer<'_> {
    /// The whole grammar.
    ///
    /// # Errors
    /// What the format cannot follow of a function's schema.
    pub(crate) fn grammar(&self) -> Result<String, String> {
        let mut rules = self.rules.to_owned();
        let body = match &self.format.family.shape {
            Shape::Harmony => self.harmony(&mut rules),
            Shape::Tagged(tagged) => self.tagged(tagged, &mut rules)?,
        };
        Ok(format!("start: {body}\n{SPACE}{rules}"))
    }

    fn tagged(&self, tagged: &Tagged, rules: &mut String) -> Result<String, String> {
        let thought = match (self.format.reasoning, self.thinking) {
            (None, _) => "",
            (Some((open, close)), thinking) => {
                let rest = format!("({}) {}", without(&containing(close)), text(close));
                let open = if thinking { String::new() } else { format!("/\\s*/ {} ", text(open)) };
                let _ = writeln!(rules, "THOUGHT: {open}{rest} /[ \\t\\r\\n]{{0,8}}/");
                if thinking { "THOUGHT " } else { "THOUGHT? " }
            }
        };
        let mut bodies = Vec::new();
        if !self.offer.is_some_and(|offer| offer.required) {
            bodies.push(match self.text {
                Some(_) => "answer".to_owned(),
                None => "TEXT?".to_owned(),
            });
        }
        if let Some(answer) = self.text {
            let _ = writeln!(rules, "answer: {answer}");
        }
        let mut not = Vec::new();
        if let (Some((open, _)), false) = (self.format.reasoning, self.thinking) {
            not.push(beginning(open));
        }
        if let Some(offer) = self.offer {
            not.push(containing(tagged.open));
            if let (true, Item::Json { name, .. }) = (tagged.bare, &tagged.item) {
                let head = format!("\\s*\\{{\\s*{}", escape(&Value::from(*name).to_string()));
                let _ = writeln!(rules, "HEAD: /{head}/");
                not.push(format!("{head}(?s:.*)"));
            }
            calls(tagged, offer, rules)?;
            let free = !offer.required && self.text.is_none();
            if free {
                let _ = writeln!(rules, "OPENED: TEXT {}", text(tagged.open));
                bodies.push("OPENED calls".to_owned());
            } else {
                bodies.push(format!("{} calls", text(tagged.open)));
            }
            if tagged.bare {
                bodies.push("calls".to_owned());
            }
        }
        let _ = writeln!(rules, "TEXT: {}", if not.is_empty() { ANY.to_owned() } else { without(&not.join("|")) });
        Ok(format!("{thought}({})", bodies.join(" | ")))
    }

    fn harmony(&self, rules: &mut String) -> String {
        let _ = writeln!(rules, "BODY: {}", without(&containing("<|end|>")));
        // One terminal with its end: free text alone would take the beginning of the mark for its own.
        let _ = writeln!(rules, "ENDED: ({}) \"<|end|><|start|>assistant\"", without(&containing("<|end|>")));
        rules.push_str("analysis: \"<|channel|>analysis<|message|>\" ENDED\n");
        rules.push_str("preamble: \"<|channel|>commentary<|message|>\" ENDED\n");
        let mut bodies = Vec::new();
        if !self.offer.is_some_and(|offer| offer.required) {
            let answer = self.text.unwrap_or("BODY");
            let _ = writeln!(rules, "answer: {answer}");
            bodies.push("\"<|channel|>final<|message|>\" answer".to_owned());
        }
        if let Some(offer) = self.offer {
            for (index, function) in offer.functions.iter().enumerate() {
                let to = text(&format!(" to=functions.{}", function.name));
                let _ = writeln!(
                    rules,
                    "call_{index}: (\"<|channel|>commentary\" {to} | {to} \"<|channel|>commentary\") (\" json\" | \" \"? \"<|constrain|>json\")? \"<|message|>\" arguments_{index}\narguments_{index}: {}",
                    function.json()
                );
            }
            let names: Vec<String> = (0..offer.functions.len()).map(|index| format!("call_{index}")).collect();
            bodies.push(format!("({})", names.join(" | ")));
        }
        format!("analysis? preamble? ({})", bodies.join(" | "))
    }
}

/// The rule `calls`: everything behind the opening mark.
fn calls(tagged: &Tagged, offer: &Offer<'_>, rules: &mut String) -> Result<(), String> {
    for (index, function) in offer.functions.iter().enumerate() {
        let arguments = match &tagged.item {
            Item::Marked(marks) => parameters::arguments(marks, function, index, rules)?,
            Item::Json { .. } | Item::Named { .. } => function.json(),
        };
        let _ = writeln!(rules, "call_{index}: {}", item(tagged, function.name, index));
        let _ = writeln!(rules, "arguments_{index}: {arguments}");
    }
    let names: Vec<String> = (0..offer.functions.len()).map(|index| format!("call_{index}")).collect();
    let _ = writeln!(rules, "call: {}", names.join(" | "));
    let more = if offer.several { MOST_CALLS - 1 } else { 0 };
    let close = if tagged.close.is_empty() { String::new() } else { format!(" SPACE? {}", text(tagged.close)) };
    let again = |between: &str| if more == 0 { String::new() } else { format!(" ({between} call){{0,{more}}}") };
    let body = match tagged.wrap {
        Wrap::List => format!("SPACE? \"[\" SPACE? call{} SPACE? \"]\"{close} SPACE?", again("SPACE? \",\" SPACE?")),
        Wrap::Many => format!("SPACE? call{}{close} SPACE?", again("SPACE?")),
        // Each call has marks of its own. The models that need no mark make one call at a time.
        Wrap::One if tagged.bare => "call SPACE?".to_owned(),
        Wrap::One => {
            let next = format!("SPACE? {} SPACE?", text(tagged.open));
            let again = if more == 0 { String::new() } else { format!(" ({next} call{close}){{0,{more}}}") };
            format!("SPACE? call{close}{again} SPACE?")
        }
    };
    let _ = writeln!(rules, "calls: {body}");
    Ok(())
}

/// One call of a function.
fn item(tagged: &Tagged, name: &str, index: usize) -> String {
    let part = |mark: &str| if mark.is_empty() { String::new() } else { text(mark) };
    match &tagged.item {
        Item::Marked(marks) => {
            let head = text(&format!("{}{name}{}", marks.before, marks.named));
            format!("{head} arguments_{index} SPACE? {}", part(marks.after))
        }
        Item::Named { before, id, between, after } => {
            let id = id.map_or(String::new(), |id| format!(" ({} /[a-zA-Z0-9]{{1,16}}/)?", text(id)));
            format!("{} {}{id} {} arguments_{index} {}", part(before), text(name), part(between), part(after))
        }
        Item::Json { first, name: name_key, arguments, last } => {
            let key = |key: &str| format!("{} SPACE? \":\" SPACE?", text(&Value::from(key).to_string()));
            let first = match first {
                Some(first) => format!("({} /\"[0-9]{{1,3}}\"/ SPACE? \",\" SPACE?)?", key(first)),
                None => String::new(),
            };
            let last = match last {
                Some(last) => format!("(SPACE? \",\" SPACE? {} /\"[a-zA-Z0-9]{{1,16}}\"/)?", key(last)),
                None => String::new(),
            };
            let name = text(&Value::from(name).to_string());
            // Free text can begin like a bare call: one terminal has all by which the two are told apart.
            let head = if tagged.bare {
                "HEAD SPACE? \":\" SPACE?".to_owned()
            } else {
                format!("\"{{\" SPACE? {first} {}", key(name_key))
            };
            format!("{head} {name} SPACE? \",\" SPACE? {} arguments_{index} {last} SPACE? \"}}\"", key(arguments))
        }
    }
}

/// Any text, as a terminal.
const ANY: &str = "/(?s:.*)/";

/// Any text but those that match, as a terminal. The complement alone would never be seen to have failed.
fn without(expression: &str) -> String {
    format!("{ANY} & ~/{expression}/")
}

/// A literal.
fn text(literal: &str) -> String {
    Value::from(literal).to_string()
}

/// A regular expression for texts with this literal in them.
fn containing(literal: &str) -> String {
    format!("(?s:.*){}(?s:.*)", escape(literal))
}

/// A regular expression for texts that begin with this literal, whitespace aside.
fn beginning(literal: &str) -> String {
    format!("\\s*{}(?s:.*)", escape(literal))
}

/// A literal in a regular expression.
pub(crate) fn escape(literal: &str) -> String {
    let mut escaped = String::new();
    for letter in literal.chars() {
        if letter.is_ascii_alphanumeric() {
            escaped.push(letter);
        } else {
            let _ = write!(escaped, "\\x{{{:x}}}", u32::from(letter));
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
