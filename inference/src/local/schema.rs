//! Which JSON schemas a grammar can enforce. llama.cpp's converter passes over what it does not know; who asks for a schema must
//! get it or be told, so everything it would pass over is refused here.

use serde_json::{Map, Value};

/// Larger schemas would keep the engine's thread busy for too long.
const MOST_BYTES: usize = 64 * 1024;

/// Keywords that restrict nothing, or only hold other schemas.
const FREE: [&str; 12] = [
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
];

/// The keywords that are enforced beside `type`, by type.
const BY_TYPE: [(&str, &[&str]); 7] = [
    ("object", &["properties", "required", "additionalProperties"]),
    ("array", &["items", "prefixItems", "minItems", "maxItems"]),
    ("string", &["pattern", "format", "minLength", "maxLength"]),
    ("integer", &["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]),
    ("number", &[]),
    ("boolean", &[]),
    ("null", &[]),
];

/// Checks that a schema (JSON text) can be enforced whole. `supports_pattern` tells which regular expressions can.
///
/// # Errors
/// What cannot be enforced, and where.
pub(crate) fn check(schema: &str, supports_pattern: &dyn Fn(&str) -> bool) -> Result<(), String> {
    if schema.len() > MOST_BYTES {
        return Err(format!("the JSON schema has {} bytes; at most {MOST_BYTES} are taken", schema.len()));
    }
    let schema: Value =
        serde_json::from_str(schema).map_err(|error| format!("the JSON schema is not JSON: {error}"))?;
    check_node(&schema, "#", supports_pattern)
}

fn check_node(schema: &Value, at: &str, supports_pattern: &dyn Fn(&str) -> bool) -> Result<(), String> {
    let Value::Object(fields) = schema else { return Err(format!("the JSON schema at {at} is not an object")) };
    let enforced = enforced_keywords(fields, at)?;
    let unknown = fields.keys().find(|key| !FREE.contains(&key.as_str()) && !enforced.contains(&key.as_str()));
    if let Some(key) = unknown {
        return Err(format!("the JSON schema has `{key}` at {at}, which this engine cannot enforce there"));
    }
    if let Some(Value::String(pattern)) = fields.get("pattern") {
        let alone = ["format", "minLength", "maxLength"].iter().all(|key| !fields.contains_key(*key));
        if !alone || !supports_pattern(pattern) {
            let message =
                "this engine enforces only simple patterns, anchored with ^ and $, without length limits beside them";
            return Err(format!("the JSON schema has the `pattern` {pattern:?} at {at}; {message}"));
        }
    }
    let named = |name: &Value| {
        fields.get("properties").is_some_and(|properties| properties.get(name.as_str().unwrap_or_default()).is_some())
    };
    if let Some(missing) =
        fields.get("required").and_then(Value::as_array).and_then(|names| names.iter().find(|name| !named(name)))
    {
        return Err(format!("the JSON schema requires {missing} at {at}, which is not among its `properties`"));
    }
    children(fields)
        .into_iter()
        .try_for_each(|(path, child)| check_node(child, &format!("{at}/{path}"), supports_pattern))
}

/// The keywords that are enforced in this node, by the one that decides its kind.
fn enforced_keywords(fields: &Map<String, Value>, at: &str) -> Result<Vec<&'static str>, String> {
    for (kind, enforced) in [
        ("$ref", vec!["$ref"]),
        ("anyOf", vec!["anyOf"]),
        ("oneOf", vec!["oneOf"]),
        ("const", vec!["const", "type"]),
        ("enum", vec!["enum", "type"]),
    ] {
        if fields.contains_key(kind) {
            return Ok(enforced);
        }
    }
    let types: Vec<&str> = match fields.get("type") {
        Some(Value::Array(types)) => types.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(name)) => vec![name],
        Some(_) => Vec::new(),
        None => BY_TYPE[..3]
            .iter()
            .filter(|(_, keys)| keys.iter().any(|key| fields.contains_key(*key)))
            .map(|(name, _)| *name)
            .collect(),
    };
    let mut enforced = vec!["type"];
    for name in types {
        let known = BY_TYPE.iter().find(|(known, _)| *known == name);
        let (_, keywords) = known.ok_or_else(|| format!("the JSON schema has the unknown type {name:?} at {at}"))?;
        enforced.extend(*keywords);
    }
    Ok(enforced)
}

/// The schemas inside this one, with their places.
fn children(fields: &Map<String, Value>) -> Vec<(String, &Value)> {
    let mut children = Vec::new();
    for key in ["properties", "$defs", "definitions"] {
        if let Some(Value::Object(named)) = fields.get(key) {
            children.extend(named.iter().map(|(name, child)| (format!("{key}/{name}"), child)));
        }
    }
    for key in ["items", "prefixItems", "anyOf", "oneOf", "additionalProperties"] {
        match fields.get(key) {
            Some(Value::Array(list)) => {
                children.extend(list.iter().enumerate().map(|(index, child)| (format!("{key}/{index}"), child)))
            }
            Some(child @ Value::Object(_)) => children.push((key.to_owned(), child)),
            _ => {}
        }
    }
    children
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn verdict(schema: &Value) -> Result<(), String> {
        check(&schema.to_string(), &|pattern| pattern == "^a$")
    }

    #[test]
    fn what_can_be_enforced_is_taken() {
        for schema in [
            json!({}),
            json!({"type": "object"}),
            json!({"type": ["string", "null"], "maxLength": 3, "description": "x"}),
            json!({"$defs": {"a": {"type": "integer", "minimum": 1}}, "type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 2}),
            json!({"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"anyOf": [{"type": "null"}, {"const": "x"}]}}, "required": ["a"], "additionalProperties": false}),
            json!({"type": "string", "pattern": "^a$"}),
            json!({"properties": {"a": {"type": "string", "format": "date"}}}),
        ] {
            assert_eq!(verdict(&schema), Ok(()), "{schema}");
        }
    }

    #[test]
    fn what_would_be_passed_over_is_refused_with_its_place() {
        for (schema, words) in [
            (json!({"type": "number", "minimum": 1}), "`minimum` at #"),
            (json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}), "`uniqueItems` at #"),
            (json!({"type": "object", "properties": {"a": {"allOf": [{}]}}}), "`allOf` at #/properties/a"),
            (json!({"$ref": "#/$defs/a", "minLength": 1, "$defs": {"a": {}}}), "`minLength` at #"),
            (json!({"$defs": {"a": {"type": "string", "pattern": "b"}}}), "#/$defs/a"),
            (json!({"type": "string", "pattern": "^a$", "maxLength": 1}), "length limits"),
            (json!({"type": "object", "properties": {}, "required": ["a"]}), "requires \"a\""),
            (json!({"type": "text"}), "unknown type"),
            (json!({"items": [{"type": "string"}, true]}), "#/items/1 is not an object"),
            (json!([]), "not an object"),
            (json!({"description": "x".repeat(70_000)}), "bytes"),
        ] {
            let refusal = verdict(&schema).unwrap_err();
            assert!(refusal.contains(words), "{refusal}");
        }
    }
}
