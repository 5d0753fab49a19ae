//! Random JSON schemas, small enough for a random model to come to an end.

use serde_json::{Map, Value, json};
use tollkeeper_models::rng::Rng;

/// Makes schemas; the seed decides which.
pub(crate) struct Schemas {
    random: Rng,
    definitions: Map<String, Value>,
}

const NAMES: [&str; 8] = ["a", "name", "größe", "x y", "quote\"d", "back\\slash", "n/a", "zip~"];
const PATTERNS: [&str; 5] = ["^[A-Z]{2}-\\d{3}$", "^(foo|bar)+$", "^\\w{1,8}$", "[0-9]x", "^a.c$"];
const FORMATS: [&str; 5] = ["date", "date-time", "uuid", "ipv4", "time"];

impl Schemas {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Rng::new(seed), definitions: Map::new() }
    }

    /// A schema with its definitions; an object if it must be.
    pub(crate) fn root(mut self, object: bool) -> Value {
        let mut schema = if object { self.object(1) } else { self.schema(3) };
        if !self.definitions.is_empty() {
            schema["$defs"] = Value::Object(self.definitions);
        }
        schema
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn schema(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 8 } else { 14 }) {
            0 => self.integer(),
            1 => self.number(),
            2 | 3 => self.string(),
            4 => json!({"type": self.one(&["boolean", "null"])}),
            5 => self.literals(),
            6 => json!({"const": self.literal()}),
            7 => json!({"type": [self.one(&["integer", "boolean"]), "null"], "maximum": 99, "minimum": -9}),
            8 | 9 => self.object(depth - 1),
            10 => self.array(depth - 1),
            11 => json!({"anyOf": [self.schema(depth - 1), self.schema(depth - 1)]}),
            12 => json!({"allOf": [{"type": "integer", "minimum": 0}, {"maximum": 50, "multipleOf": 5}]}),
            _ => self.reference(),
        }
    }

    fn integer(&mut self) -> Value {
        let least = self.below(2000) as i64 - 1000;
        let most = least + self.below(3000) as i64;
        match self.below(4) {
            0 => json!({"type": "integer", "minimum": least, "maximum": most}),
            1 => json!({"type": "integer", "exclusiveMinimum": least, "exclusiveMaximum": most + 2}),
            2 => json!({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 7 * (most - least + 1)}),
            _ => json!({"type": "integer", "maximum": most, "minimum": -100_000}),
        }
    }

    fn number(&mut self) -> Value {
        let least = self.below(80) as f64 / 8.0 - 5.0;
        json!({"type": "number", "minimum": least, "maximum": least + 2.5})
    }

    fn string(&mut self) -> Value {
        match self.below(4) {
            0 => json!({"type": "string", "pattern": self.one(&PATTERNS), "maxLength": 20}),
            1 => json!({"type": "string", "format": self.one(&FORMATS)}),
            _ => {
                let least = self.below(4);
                json!({"type": "string", "minLength": least, "maxLength": least + self.below(12)})
            }
        }
    }

    fn literal(&mut self) -> Value {
        let literals = [
            json!("plain"),
            json!("with \"quotes\"\n"),
            json!(-7),
            json!(2.5),
            json!(null),
            json!(true),
            json!(["a", {"b": 1}]),
        ];
        literals[self.below(literals.len())].clone()
    }

    fn literals(&mut self) -> Value {
        let count = 1 + self.below(4);
        let mut literals: Vec<Value> = Vec::new();
        for _ in 0..count {
            let literal = self.literal();
            if !literals.contains(&literal) {
                literals.push(literal);
            }
        }
        json!({ "enum": literals })
    }

    fn object(&mut self, depth: usize) -> Value {
        let mut properties = Map::new();
        for _ in 0..self.below(4) + 1 {
            let name = self.one(&NAMES);
            properties.insert(name.into(), self.schema(depth));
        }
        let required: Vec<&String> = properties.keys().collect();
        let required = required[..self.below(required.len() + 1)].to_vec();
        let mut schema = json!({"type": "object", "properties": properties, "required": required});
        schema["additionalProperties"] = match self.below(4) {
            0 => json!({"type": "boolean"}),
            _ => json!(false),
        };
        schema
    }

    fn array(&mut self, depth: usize) -> Value {
        let least = self.below(3);
        let items = self.schema(depth);
        match self.below(3) {
            0 => json!({"type": "array", "prefixItems": [items, self.schema(depth)], "items": false, "minItems": 1}),
            _ => json!({"type": "array", "items": items, "minItems": least, "maxItems": least + self.below(3)}),
        }
    }

    fn reference(&mut self) -> Value {
        let name = self.one(&["one", "two"]);
        if !self.definitions.contains_key(name) {
            let mut definition = self.schema(0);
            if self.below(3) == 0 {
                // One that contains itself.
                let next = json!({"anyOf": [{"type": "null"}, {"$ref": format!("#/$defs/{name}")}]});
                definition = json!({"type": "object", "properties": {"value": {"type": "boolean"}, "next": next}, "required": ["value"], "additionalProperties": false});
            }
            self.definitions.insert(name.into(), definition);
        }
        json!({"$ref": format!("#/$defs/{name}")})
    }
}
