//! What a schema makes of a value between marks.

use super::*;
use serde_json::json;

#[test]
fn a_schema_says_how_its_value_is_written() {
    for (schema, kind) in [
        (json!({}), Kind::Open),
        (json!(true), Kind::Open),
        (json!({"description": "x", "nullable": true}), Kind::Open),
        (json!({"type": "string", "title": "x", "default": "y"}), Kind::Text),
        (json!({"type": "string", "maxLength": 3}), Kind::Text),
        (json!({"enum": ["a", "b"]}), Kind::Text),
        (json!({"type": "string", "const": "a"}), Kind::Text),
        (json!({"type": ["null", "string"]}), Kind::Nullable),
        (json!({"oneOf": [{"type": "null"}, {"type": "string", "minLength": 1}]}), Kind::Nullable),
        (json!({"anyOf": [{"type": "null"}, {"enum": ["null"]}]}), Kind::Json),
        (json!({"anyOf": [{"type": "integer"}, {"type": "string"}]}), Kind::Json),
        (json!({"enum": ["a", 1]}), Kind::Json),
        (json!({"type": "string", "pattern": "a"}), Kind::Json),
        (json!({"type": ["string", "integer"]}), Kind::Json),
        (json!({"type": "integer"}), Kind::Json),
        (json!({"$ref": "#/$defs/a"}), Kind::Json),
        (json!(false), Kind::Json),
    ] {
        assert_eq!(Kind::of(&schema), kind, "{schema}");
    }
}

#[test]
fn without_a_grammar_texts_are_still_texts() {
    let arguments =
        json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}, "b": {"not": {}}}});
    let signature = Signature::of(&Function { name: "f", arguments, enforced: false });
    assert_eq!((signature.kind("a"), signature.kind("b"), signature.kind("c")), (Kind::Text, Kind::Open, Kind::Open));
}
