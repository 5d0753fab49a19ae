//! Splicing: the field changes, every other byte stays.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Map, Value};
use tollkeeper_protocol::openai::{Extension, extend_usage};
use tollkeeper_protocol::passthrough::{rename, splice};

fn spliced(body: &str, changes: &[(&str, &str)]) -> String {
    let changes: Vec<(&str, String)> = changes.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    String::from_utf8(splice(&Bytes::copy_from_slice(body.as_bytes()), &changes).unwrap().into()).unwrap()
}

#[test]
fn changes_fields_in_place_or_adds_them() {
    type Changes = &'static [(&'static str, &'static str)];
    let cases: [(&str, Changes, &str); 11] = [
        (r#"{"model":"a","n":1}"#, &[("model", "\"b\"")], r#"{"model":"b","n":1}"#),
        (" {\n \"model\" :\t\"a\" ,\"n\":1 }\r\n", &[("model", "2")], " {\n \"model\" :\t2 ,\"n\":1 }\r\n"),
        ("{}", &[("a", "1"), ("b", "2")], r#"{"a":1,"b":2}"#),
        ("{ }", &[("a", "1")], r#"{ "a":1}"#),
        (
            r#"{"n":1}"#,
            &[("stream_options", r#"{"include_usage":true}"#)],
            r#"{"n":1,"stream_options":{"include_usage":true}}"#,
        ),
        (r#"{"model":"a","x":{"model":"a"}}"#, &[("model", "1")], r#"{"model":1,"x":{"model":"a"}}"#),
        (r#"{"x":{"model":"a"}}"#, &[("model", "1")], r#"{"x":{"model":"a"},"model":1}"#),
        (r#"{"model":"a","model":{"b":1}}"#, &[("model", "1")], r#"{"model":1,"model":1}"#),
        (r#"{"mod\u0065l":"a"}"#, &[("model", "1")], r#"{"mod\u0065l":1}"#),
        (
            r#"{"x":"\"model\":\"a\"}","b":[{"model":"}"}]}"#,
            &[("model", "1")],
            r#"{"x":"\"model\":\"a\"}","b":[{"model":"}"}],"model":1}"#,
        ),
        (r#"{"b":1.0e+2,"a":0.10}"#, &[("c", "3"), ("a", "[]")], r#"{"b":1.0e+2,"a":[],"c":3}"#),
    ];
    for (body, changes, expected) in cases {
        assert_eq!(spliced(body, changes), expected, "{body}");
    }
}

#[test]
fn refuses_what_is_no_object() {
    for body in ["", "[]", "null", "{", r#"{"a":1"#, r#"{"a":1} x"#, r#"{"a":1}{"b":2}"#, "{\"a\":\"\u{1}\"}"] {
        assert!(splice(&Bytes::copy_from_slice(body.as_bytes()), &[("m", "1".into())]).is_err(), "{body:?}");
    }
    assert!(splice(&Bytes::from_static(b"{\"a\":\"\xff\"}"), &[("m", "1".into())]).is_err());
}

#[test]
fn without_changes_nothing_is_copied() {
    let body = Bytes::from_static(b"{\"a\":1}");
    assert_eq!(splice(&body, &[]).unwrap().as_ptr(), body.as_ptr());
}

#[test]
fn the_extension_goes_into_usage_and_beside_it() {
    let extension = Extension { backend: "openai/gpt".into(), cost_usd: "0.00012".into(), stopped: None };
    let cases = [
        (
            r#"{"choices":[],"usage":{"prompt_tokens":1, "cost":0.5}}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":1, "cost":0.5,"cost_usd":"0.00012"},"tollkeeper":{"backend":"openai/gpt","cost_usd":"0.00012"}}"#,
        ),
        (r#"{"choices":[],"usage":null}"#, r#"{"choices":[],"usage":null}"#),
        (r#"{"choices":[{"usage":{}}]}"#, r#"{"choices":[{"usage":{}}]}"#),
        ("no json", "no json"),
    ];
    for (body, expected) in cases {
        assert_eq!(extend_usage(body.as_bytes(), &extension), expected, "{body}");
    }
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        Just(Value::from("\"model\": {}[],\\")),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..4).prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![Just("model".to_owned()), Just("stream".to_owned()), "\\PC{0,4}"]
}

/// A field of the text: white space, key, white space, value, white space.
fn field() -> impl Strategy<Value = (String, String)> {
    let space = || "[ \t\r\n]{0,2}";
    (space(), key(), space(), space(), json(), space()).prop_map(|(a, key, b, c, value, d)| {
        let written = Value::from(key.as_str()).to_string();
        (key, format!("{a}{written}{b}:{c}\u{0}{value}\u{0}{d}"))
    })
}

proptest! {
    /// The NULs mark where each value begins and ends, so that the expected text can be made without reading JSON.
    #[test]
    fn every_other_byte_stays(fields in prop::collection::vec(field(), 0..6), add in any::<bool>()) {
        let name = if add { "added" } else { "model" };
        let join = |parts: Vec<String>| format!("{{{}}}", parts.join(","));
        let body = join(fields.iter().map(|(_, text)| text.replace('\u{0}', "")).collect());
        let mut expected: Vec<String> = fields.iter().map(|(key, text)| {
            let parts: Vec<&str> = text.split('\u{0}').collect();
            let value = if key == name { "\"new\"" } else { parts[1] };
            format!("{}{value}{}", parts[0], parts[2])
        }).collect();
        if fields.iter().all(|(key, _)| key != name) {
            expected.push(format!("\"{name}\":\"new\""));
        }
        let spliced = spliced(&body, &[(name, "\"new\"")]);
        prop_assert_eq!(&spliced, &join(expected));
        let mut value: Value = serde_json::from_str(&body).unwrap();
        value[name] = "new".into();
        prop_assert_eq!(serde_json::from_str::<Value>(&spliced).unwrap(), value);
    }
}

#[test]
fn a_field_is_renamed_wherever_it_stands_and_nothing_else_changes() {
    let cases = [
        (r#"{"old":1}"#, r#"{"newer":1}"#),
        (r#" { "a" : {"old":2} , "old" : [1, "old"] } "#, r#" { "a" : {"old":2} , "newer" : [1, "old"] } "#),
        (r#"{"old":1,"b":2,"old":3}"#, r#"{"newer":1,"b":2,"newer":3}"#),
        (r#"{"\u006fld":1}"#, r#"{"\u006fld":1}"#),
        ("{}", "{}"),
    ];
    for (body, expected) in cases {
        assert_eq!(rename(&Bytes::from_static(body.as_bytes()), "old", "newer").unwrap(), expected);
    }
    assert!(rename(&Bytes::from_static(b"[1]"), "old", "newer").is_err());
}
