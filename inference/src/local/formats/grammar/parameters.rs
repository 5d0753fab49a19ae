//! The grammar of arguments that stand between marks: each by its own schema, in the order of the schema.

use super::{ANY, Function, containing, escape, json, text};
use crate::local::formats::families::Marks;
use crate::local::formats::parameters::Kind;
use serde_json::{Map, Value};
use std::fmt::Write;

/// Most arguments beside those that the schema names.
const MOST_OTHERS: u32 = 64;

/// Keywords that say something about the object as a whole, which marks cannot follow.
const WHOLE: [&str; 16] = [
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "if",
    "$ref",
    "$dynamicRef",
    "patternProperties",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "minProperties",
    "maxProperties",
    "unevaluatedProperties",
];

/// The right side of the rule for the arguments of a function; `index` tells its rules from those of others.
///
/// # Errors
/// What in the schema cannot be followed between marks.
pub(super) fn arguments(
    marks: &Marks,
    function: &Function<'_>,
    index: usize,
    rules: &mut String,
) -> Result<String, String> {
    if !function.enforced {
        value(marks, Kind::Open, &Value::Bool(true), &format!("{index}_0"), rules)?;
        return Ok(others(marks, &[], index, &format!("value_{index}_0"), rules));
    }
    let Some(schema) = function.arguments.as_object() else { return Err("the schema must be an object".into()) };
    if let Some(keyword) = WHOLE.iter().find(|keyword| schema.contains_key(**keyword)) {
        return Err(format!("`{keyword}` for all arguments together cannot be enforced with this model"));
    }
    let definitions = ["$defs", "definitions"].into_iter().filter_map(|key| Some((key, schema.get(key)?)));
    let definitions: Vec<(&str, &Value)> = definitions.collect();
    let additional = schema.get("additionalProperties");
    let open = Value::Bool(true);
    let required: Vec<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let mut properties: Vec<(&str, &Value)> = Vec::new();
    for (key, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        properties.push((key, schema));
    }
    for key in &required {
        if !properties.iter().any(|(known, _)| known == key) {
            properties.push((key, additional.unwrap_or(&open)));
        }
    }
    let mut body = String::new();
    for (number, (key, schema)) in properties.iter().enumerate() {
        let name = format!("{index}_{number}");
        if key.contains(marks.keyed) || key.contains(['\n', '<', '>']) || key.is_empty() {
            return Err(format!("the name `{key}` cannot be written between the marks of this model"));
        }
        value(marks, Kind::of(schema), &with_definitions(schema, &definitions)?, &name, rules)?;
        let head = format!("{} {}", text(&format!("{}{key}{}", marks.key, marks.keyed)), opening(marks));
        let _ = writeln!(rules, "parameter_{name}: SPACE? {head} value_{name}");
        let _ = write!(body, "parameter_{name}{} ", if required.contains(key) { "" } else { "?" });
    }
    // Where the schema says nothing about other arguments, those that it names are enough.
    let more = additional.unwrap_or(&Value::Bool(properties.is_empty())).clone();
    if more != Value::Bool(false) {
        let name = format!("{index}_{}", properties.len());
        value(marks, Kind::of(&more), &with_definitions(&more, &definitions)?, &name, rules)?;
        let names: Vec<&str> = properties.iter().map(|(key, _)| *key).collect();
        body.push_str(&others(marks, &names, index, &format!("value_{name}"), rules));
    }
    Ok(if body.is_empty() { "\"\"".to_owned() } else { body })
}

/// Arguments with any other name.
fn others(marks: &Marks, names: &[&str], index: usize, value: &str, rules: &mut String) -> String {
    let not = match names {
        [] => String::new(),
        names => format!(" & ~/{}/", names.iter().map(|name| escape(name)).collect::<Vec<_>>().join("|")),
    };
    let _ = writeln!(rules, "OTHER_{index}: {} (/[^<>\"\\s]{{1,64}}/{not}) {}", text(marks.key), text(marks.keyed));
    let _ = writeln!(rules, "other_{index}: SPACE? OTHER_{index} {} {value}", opening(marks));
    format!("other_{index}{{0,{MOST_OTHERS}}}")
}

/// What is between a key and its value.
fn opening(marks: &Marks) -> String {
    let mark = if marks.value.is_empty() { String::new() } else { format!("SPACE? {}", text(marks.value)) };
    if marks.lines { format!("{mark} \"\\n\"") } else { mark }
}

/// The rule `value_…` for a value and the mark behind it.
fn value(marks: &Marks, kind: Kind, schema: &Value, name: &str, rules: &mut String) -> Result<(), String> {
    let line = if marks.lines { "\n" } else { "" };
    let end = text(&format!("{line}{}", marks.valued));
    if kind == Kind::Json {
        let _ = writeln!(rules, "value_{name}: SPACE? json_{name} SPACE? {}", text(marks.valued));
        let _ = writeln!(rules, "json_{name}: {}", json(schema, true));
        return Ok(());
    }
    let free = literals(schema).map_or_else(|| Ok(free(marks, schema)), |texts| literal(marks, &texts));
    let _ = writeln!(rules, "VALUE_{name}: ({}) {end}\nvalue_{name}: VALUE_{name}", free?);
    Ok(())
}

/// A text of the asked length without the mark that ends it.
fn free(marks: &Marks, schema: &Value) -> String {
    let null = Kind::of(schema) == Kind::Nullable;
    let text = ["anyOf", "oneOf"].into_iter().find_map(|key| schema.get(key)?.as_array());
    let text = text.and_then(|branches| branches.iter().find(|branch| branch["type"] == "string")).unwrap_or(schema);
    let length = |key: &str| text.get(key).and_then(Value::as_u64);
    let (least, most) = (length("minLength"), length("maxLength"));
    let most = most.map_or(String::new(), |most| most.to_string());
    let bounded = match (least, most.is_empty()) {
        (None | Some(0), true) => String::new(),
        (least, _) => format!(" & /(?s:.{{{},{most}}})/", least.unwrap_or(0)),
    };
    let free = format!("{ANY} & ~/{}/{bounded}", containing(marks.valued));
    if null && !bounded.is_empty() { format!("(\"null\" | ({free}))") } else { free }
}

fn literals(schema: &Value) -> Option<Vec<&str>> {
    let list = schema.get("enum").and_then(Value::as_array).map(|list| list.iter().filter_map(Value::as_str).collect());
    list.or_else(|| Some(vec![schema.get("const")?.as_str()?]))
}

fn literal(marks: &Marks, texts: &[&str]) -> Result<String, String> {
    if let Some(bad) = texts.iter().find(|text| text.contains(marks.valued)) {
        return Err(format!("the text `{bad}` cannot be written between the marks of this model"));
    }
    let texts: Vec<String> = texts.iter().map(|text| format!("/{}/", escape(text))).collect();
    if texts.is_empty() { Err("`enum` has no member".into()) } else { Ok(texts.join(" | ")) }
}

/// The schema of one argument on its own.
fn with_definitions(schema: &Value, definitions: &[(&str, &Value)]) -> Result<Value, String> {
    if let Some(reference) = foreign_reference(schema) {
        return Err(format!("the reference `{reference}` cannot be followed with this model; put it in `$defs`"));
    }
    let Value::Object(fields) = schema else { return Ok(schema.clone()) };
    let mut fields: Map<String, Value> = fields.clone();
    if Kind::of(schema) == Kind::Json {
        for (key, definition) in definitions {
            if let Some(reference) = foreign_reference(definition) {
                return Err(format!("the reference `{reference}` cannot be followed with this model"));
            }
            fields.entry((*key).to_owned()).or_insert_with(|| (*definition).clone());
        }
    }
    Ok(Value::Object(fields))
}

/// A reference to anything but the definitions.
fn foreign_reference(schema: &Value) -> Option<&str> {
    match schema {
        Value::Object(fields) => {
            let here = fields.get("$ref").and_then(Value::as_str);
            here.filter(|reference| !reference.starts_with("#/$defs/") && !reference.starts_with("#/definitions/"))
                .or_else(|| fields.values().find_map(foreign_reference))
        }
        Value::Array(list) => list.iter().find_map(foreign_reference),
        _ => None,
    }
}
