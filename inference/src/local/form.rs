//! The form an answer must have, as the request asks for it: JSON, a regular expression, one of some texts, or a grammar.
//!
//! OpenAI's `response_format` is one way to say it; the fields of llama-server (`grammar`, `json_schema`) and of vLLM
//! (`structured_outputs`, and `guided_…` of older versions) are others.

use super::formats::grammar::{escape, json};
use super::gbnf;
use serde_json::{Map, Value};
use tollkeeper_protocol::chat::ResponseFormat;

/// Longer schemas and expressions are refused.
const MOST_BYTES: usize = 64 * 1024;
/// More choices are refused.
const MOST_CHOICES: usize = 1024;

/// A form, as a rule of a grammar.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Form {
    /// The field that asked for it.
    pub(crate) field: &'static str,
    /// The right side of the answer's rule.
    pub(crate) rule: String,
    /// Further rules that it needs.
    pub(crate) rules: String,
    /// Whether the answer is JSON.
    pub(crate) json: bool,
}

/// What is wrong with a field.
pub(crate) type Wrong = (&'static str, String);

/// How a field says the form.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Json,
    Object,
    Regex,
    Choice,
    Grammar,
}

/// The fields of other servers that say a form.
const FIELDS: [(&str, Kind); 6] = [
    ("grammar", Kind::Grammar),
    ("json_schema", Kind::Json),
    ("guided_json", Kind::Json),
    ("guided_regex", Kind::Regex),
    ("guided_choice", Kind::Choice),
    ("guided_grammar", Kind::Grammar),
];

/// The fields within `structured_outputs`.
const STRUCTURED: [(&str, &str, Kind); 5] = [
    ("json", "structured_outputs.json", Kind::Json),
    ("json_object", "structured_outputs.json_object", Kind::Object),
    ("regex", "structured_outputs.regex", Kind::Regex),
    ("choice", "structured_outputs.choice", Kind::Choice),
    ("grammar", "structured_outputs.grammar", Kind::Grammar),
];

/// The form that a request asks for, if it asks for one.
///
/// # Errors
/// The field that is wrong, or cannot be followed here, or that contradicts another one.
pub(crate) fn wanted(format: &ResponseFormat, extra: &Map<String, Value>) -> Result<Option<Form>, Wrong> {
    let mut forms = Vec::new();
    match format {
        ResponseFormat::Text => {}
        ResponseFormat::JsonObject => forms.push(read("response_format", Kind::Object, &Value::Null)?),
        ResponseFormat::JsonSchema(format) => {
            forms.push(read("response_format", Kind::Json, format.get("schema").unwrap_or(&Value::Bool(true)))?);
        }
    }
    for (field, kind) in FIELDS {
        if let Some(value) = extra.get(field).filter(|value| !value.is_null()) {
            forms.push(read(field, kind, value)?);
        }
    }
    match extra.get("structured_outputs") {
        None | Some(Value::Null) => {}
        Some(Value::Object(outputs)) => {
            for (key, value) in outputs.iter().filter(|(_, value)| !value.is_null() && **value != Value::Bool(false)) {
                let Some((_, field, kind)) = STRUCTURED.iter().find(|(known, ..)| known == key) else {
                    let message = format!(
                        "`structured_outputs.{key}` is not supported by this engine; it knows json, json_object, regex, choice and grammar"
                    );
                    return Err(("structured_outputs", message));
                };
                forms.push(read(field, *kind, value)?);
            }
        }
        Some(_) => return Err(("structured_outputs", "`structured_outputs` must be an object".into())),
    }
    match forms.len() {
        0 | 1 => Ok(forms.pop()),
        _ => {
            let message =
                format!("`{}` and `{}` both say what the answer must be; send one", forms[0].field, forms[1].field);
            Err((forms[1].field, message))
        }
    }
}

fn read(field: &'static str, kind: Kind, value: &Value) -> Result<Form, Wrong> {
    let wrong = |what: &str| (field, format!("`{field}` {what}"));
    let form = |rule: String, rules: String| Form { field, rule, rules, json: false };
    let text = || match value {
        Value::String(text) if text.len() > MOST_BYTES => Err(wrong(&format!("is longer than {MOST_BYTES} bytes"))),
        Value::String(text) if !text.is_empty() => Ok(text.as_str()),
        _ => Err(wrong("must be a text that is not empty")),
    };
    match kind {
        Kind::Object => {
            Ok(Form { json: true, ..form(json(&serde_json::json!({"type": "object"}), false), String::new()) })
        }
        Kind::Json => {
            let parsed = match value {
                Value::String(text) => {
                    serde_json::from_str(text).map_err(|error| wrong(&format!("is not JSON: {error}")))?
                }
                schema => schema.clone(),
            };
            if !parsed.is_object() && !parsed.is_boolean() {
                return Err(wrong("must have a JSON schema, which is an object"));
            }
            if parsed.to_string().len() > MOST_BYTES {
                return Err(wrong(&format!("has a JSON schema of more than {MOST_BYTES} bytes")));
            }
            Ok(Form { json: true, ..form(json(&parsed, false), String::new()) })
        }
        Kind::Regex => {
            let expression = terminal(text()?).map_err(|what| wrong(&what))?;
            Ok(form("EXPRESSION".into(), format!("EXPRESSION: /{expression}/\n")))
        }
        Kind::Grammar => {
            let (rule, rules) = gbnf::rewrite(text()?).map_err(|what| wrong(&format!("cannot be used: {what}")))?;
            Ok(form(rule, rules))
        }
        Kind::Choice => {
            let choices = value.as_array().filter(|list| !list.is_empty() && list.len() <= MOST_CHOICES);
            let choices = choices.ok_or_else(|| wrong(&format!("must be an array of 1 to {MOST_CHOICES} texts")))?;
            let choices: Option<Vec<String>> =
                choices.iter().map(|choice| choice.as_str().filter(|text| !text.is_empty()).map(escape)).collect();
            let choices = choices.ok_or_else(|| wrong("must be an array of texts that are not empty"))?;
            Ok(form("CHOICE".into(), format!("CHOICE: /{}/\n", choices.join("|"))))
        }
    }
}

/// A regular expression that the whole answer must match, as it can stand between slashes.
fn terminal(expression: &str) -> Result<String, String> {
    let expression = expression.strip_prefix('^').unwrap_or(expression);
    let mut written = String::from("(?:");
    let mut letters = expression.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                None => return Err("ends in the middle of an escape".into()),
                Some('/') => written.push_str("\\x{2f}"),
                // As in JavaScript and in JSON schemas: ASCII only. A class may stand within another.
                Some('d') => written.push_str("[0-9]"),
                Some('D') => written.push_str("[^0-9]"),
                Some('w') => written.push_str("[0-9A-Za-z_]"),
                Some('W') => written.push_str("[^0-9A-Za-z_]"),
                Some(escaped) => written.extend(['\\', escaped]),
            },
            '/' => written.push_str("\\x{2f}"),
            '\n' => written.push_str("\\n"),
            '\r' => written.push_str("\\r"),
            '$' if letters.peek().is_none() => {}
            letter => written.push(letter),
        }
    }
    written.push(')');
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(extra: &Value) -> Result<Option<Form>, Wrong> {
        wanted(&ResponseFormat::Text, extra.as_object().unwrap())
    }

    #[test]
    fn fields_of_other_servers_say_the_same() {
        assert_eq!(asked(&json!({"seed": 1, "grammar": null, "structured_outputs": null})), Ok(None));
        for (extra, rules) in [
            (json!({"guided_regex": "^a/b$"}), "EXPRESSION: /(?:a\\x{2f}b)/\n"),
            (json!({"structured_outputs": {"regex": "a\\/b\\$"}}), "EXPRESSION: /(?:a\\x{2f}b\\$)/\n"),
            (json!({"guided_regex": "[\\d.]\\w+"}), "EXPRESSION: /(?:[[0-9].][0-9A-Za-z_]+)/\n"),
            (json!({"guided_choice": ["a", "b c"]}), "CHOICE: /a|b\\x{20}c/\n"),
            (json!({"structured_outputs": {"choice": ["a"], "json": null}}), "CHOICE: /a/\n"),
            (json!({"grammar": "root ::= \"a\""}), "G_ROOT: \"a\" \n"),
        ] {
            assert_eq!(asked(&extra).unwrap().unwrap().rules, rules, "{extra}");
        }
        let schema = json!({"type": "object"});
        let rule = json(&schema, false);
        for extra in [
            json!({"guided_json": schema}),
            json!({"guided_json": schema.to_string()}),
            json!({"json_schema": schema}),
            json!({"structured_outputs": {"json": schema}}),
            json!({"structured_outputs": {"json_object": true}}),
        ] {
            let form = asked(&extra).unwrap().unwrap();
            assert_eq!((form.rule.as_str(), form.json), (rule.as_str(), true), "{extra}");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_the_name_of_its_field() {
        for (extra, field, words) in [
            (json!({"grammar": 5}), "grammar", "must be a text"),
            (json!({"grammar": "root ::= missing"}), "grammar", "does not define"),
            (json!({"guided_regex": "a\\"}), "guided_regex", "escape"),
            (json!({"guided_choice": []}), "guided_choice", "1 to 1024"),
            (json!({"guided_json": "{"}), "guided_json", "not JSON"),
            (json!({"guided_json": []}), "guided_json", "JSON schema"),
            (json!({"structured_outputs": []}), "structured_outputs", "object"),
            (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs", "not supported"),
            (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice", "both"),
        ] {
            let (named, message) = asked(&extra).unwrap_err();
            assert_eq!(named, field, "{extra}");
            assert!(message.contains(words), "{message}");
        }
        let both = wanted(&ResponseFormat::JsonObject, json!({"grammar": "root ::= \"a\""}).as_object().unwrap());
        assert!(both.unwrap_err().1.contains("both"));
    }
}
