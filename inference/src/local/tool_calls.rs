//! Tool calls in generated text, in the Hermes form that Qwen models use: `<tool_call>{"name": …, "arguments": …}</tool_call>`.

use super::stop::open_tail;
use serde_json::Value;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text for the client.
    Text(String),
    /// A call; `arguments` is JSON text.
    Call {
        /// The function's name.
        name: String,
        /// The arguments as JSON text.
        arguments: String,
    },
}

/// Splits an answer into text and calls while it comes. What is not a well-formed call stays text.
#[derive(Debug, Default)]
pub(crate) struct ToolCalls {
    /// Text that may still become (part of) a call, or the body of one.
    held: String,
    /// Whitespace before the open tag; it is dropped with the tag.
    gap: String,
    inside: bool,
    /// Whether a call was found.
    called: bool,
}

impl ToolCalls {
    /// Takes the next text and gives back all that is decided.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        loop {
            if self.inside {
                let Some(at) = self.held.find(CLOSE) else { return pieces };
                let rest = self.held.split_off(at + CLOSE.len());
                let mut body = std::mem::replace(&mut self.held, rest);
                body.truncate(at);
                self.inside = false;
                pieces.push(self.close(body, CLOSE));
            } else if let Some(at) = self.held.find(OPEN) {
                let rest = self.held.split_off(at + OPEN.len());
                let mut before = std::mem::replace(&mut self.held, rest);
                before.truncate(at);
                self.gap = before.split_off(before.trim_end().len());
                self.inside = true;
                pieces.extend(text_piece(before));
            } else {
                let undecided = self.held.len() - open_tail(&self.held, OPEN);
                let shown = self.held[..undecided].trim_end().len();
                let kept = self.held.split_off(shown);
                pieces.extend(text_piece(std::mem::replace(&mut self.held, kept)));
                return pieces;
            }
        }
    }

    /// What is left at the end. A call whose close tag is missing counts if it is whole otherwise.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        if std::mem::take(&mut self.inside) {
            return vec![self.close(held, "")];
        }
        if self.called && held.trim().is_empty() {
            return Vec::new();
        }
        text_piece(held).into_iter().collect()
    }

    /// A call, or the text it was if it is none.
    fn close(&mut self, body: String, tag: &str) -> Piece {
        let gap = std::mem::take(&mut self.gap);
        match parse(&body) {
            Some((name, arguments)) => {
                self.called = true;
                Piece::Call { name, arguments }
            }
            None => Piece::Text(format!("{gap}{OPEN}{body}{tag}")),
        }
    }
}

fn text_piece(text: String) -> Option<Piece> {
    (!text.is_empty()).then_some(Piece::Text(text))
}

/// Name and arguments of a call. Arguments are an object, or a text that holds one.
fn parse(body: &str) -> Option<(String, String)> {
    let Value::Object(mut call) = serde_json::from_str(body.trim()).ok()? else { return None };
    let Value::String(name) = call.remove("name")? else { return None };
    let arguments = match call.remove("arguments").or_else(|| call.remove("parameters")) {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(Value::String(text)) => {
            serde_json::from_str::<serde_json::Map<String, Value>>(&text).ok()?;
            text
        }
        Some(_) => return None,
    };
    Some((name, arguments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(pieces: &[&str]) -> Vec<Piece> {
        let mut calls = ToolCalls::default();
        let mut out: Vec<Piece> = pieces.iter().flat_map(|piece| calls.push(piece)).collect();
        out.extend(calls.finish());
        merge(out)
    }

    /// Joins neighbouring texts, so that cuts do not matter.
    fn merge(pieces: Vec<Piece>) -> Vec<Piece> {
        let mut merged: Vec<Piece> = Vec::new();
        for piece in pieces {
            match (merged.last_mut(), piece) {
                (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
                (_, piece) => merged.push(piece),
            }
        }
        merged
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    fn call(name: &str, arguments: &str) -> Piece {
        Piece::Call { name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn cases() {
        let table: Vec<(&str, Vec<Piece>)> = vec![
            ("plain < text ", vec![text("plain < text ")]),
            ("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>", vec![call("f", "{\"a\":1}")]),
            ("Wait.\n<tool_call>{\"name\":\"f\"}</tool_call>\n", vec![text("Wait."), call("f", "{}")]),
            (
                "<tool_call>{\"name\":\"f\"}</tool_call>\n<tool_call>{\"name\":\"g\",\"arguments\":\"{\\\"b\\\": 2}\"}</tool_call>",
                vec![call("f", "{}"), call("g", "{\"b\": 2}")],
            ),
            ("<tool_call>{\"name\":\"f\",\"arguments\":{}}", vec![call("f", "{}")]),
            ("a <tool_call>{\"name\": }</tool_call> b", vec![text("a <tool_call>{\"name\": }</tool_call> b")]),
            ("a <tool_call>{\"na", vec![text("a <tool_call>{\"na")]),
            ("a <tool_ca", vec![text("a <tool_ca")]),
            ("<tool_call>[1]</tool_call>", vec![text("<tool_call>[1]</tool_call>")]),
        ];
        for (input, expected) in table {
            assert_eq!(run(&[input]), expected, "{input}");
            let letters: Vec<String> = input.chars().map(String::from).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            assert_eq!(run(&letters), expected, "letter by letter: {input}");
        }
    }

    proptest! {
        #[test]
        fn text_without_calls_comes_through_whole(pieces in prop::collection::vec("[<>/_tolca \\n]{0,6}", 0..20)) {
            let input = pieces.concat();
            prop_assume!(!input.contains(OPEN));
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&pieces), text_piece(input).into_iter().collect::<Vec<_>>());
        }
    }
}
