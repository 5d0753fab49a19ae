//! Takes the fields of a JSON object one by one, with errors that name the field and say what it should be.

use crate::DecodeError;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::ops::RangeInclusive;

/// The fields of an object that were not taken yet. A field that is null counts as one that is not there.
pub(super) struct Fields {
    map: Map<String, Value>,
    /// Where the object stands in the body, e.g. `messages[2]`; empty for the body itself.
    path: String,
    taken: Vec<&'static str>,
}

impl Fields {
    /// The fields of the object at `path`.
    pub(super) fn new(value: Value, path: impl Into<String>) -> Result<Self, DecodeError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { map, path, taken: Vec::new() }),
            other => Err(mismatch(&path, "an object", &other)),
        }
    }

    /// Where a field stands in the body.
    pub(super) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The value as it came.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.taken.push(name);
        self.map.get_mut(name).map(Value::take).filter(|value| !value.is_null())
    }

    /// The fields nobody took.
    pub(super) fn rest(mut self) -> Map<String, Value> {
        self.map.retain(|name, _| !self.taken.contains(&name.as_str()));
        self.map
    }

    /// A text.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, DecodeError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(mismatch(&self.path(name), "a string", &other)),
        }
    }

    /// A text that must be there.
    pub(super) fn required_text(&mut self, name: &'static str) -> Result<String, DecodeError> {
        self.text(name)?.ok_or_else(|| missing(&self.path(name), "a string"))
    }

    /// A boolean.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<Option<bool>, DecodeError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(mismatch(&self.path(name), "true or false", &other)),
        }
    }

    /// A list.
    pub(super) fn list(&mut self, name: &'static str) -> Result<Option<Vec<Value>>, DecodeError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(mismatch(&self.path(name), "an array", &other)),
        }
    }

    /// An object.
    pub(super) fn object(&mut self, name: &'static str) -> Result<Option<Self>, DecodeError> {
        self.take(name).map(|value| Self::new(value, self.path(name))).transpose()
    }

    /// A whole number within a range.
    pub(super) fn integer<T>(&mut self, name: &'static str, range: RangeInclusive<T>) -> Result<Option<T>, DecodeError>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let Some(value) = self.take(name) else { return Ok(None) };
        let path = self.path(name);
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let number = whole(&value).ok_or_else(|| mismatch(&path, &expected, &value))?;
        match T::try_from(number) {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(DecodeError::at(&path, format!("`{path}` must be {expected}, got {number}"))),
        }
    }

    /// A number within a range.
    pub(super) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, DecodeError> {
        self.take(name).map(|value| number(&value, &self.path(name), range)).transpose()
    }
}

/// A number within a range, at this path.
pub(super) fn number(value: &Value, path: &str, range: RangeInclusive<f32>) -> Result<f32, DecodeError> {
    let expected = format!("a number from {} to {}", range.start(), range.end());
    let wide = value.as_f64().ok_or_else(|| mismatch(path, &expected, value))?;
    let narrow = wide as f32;
    if range.contains(&narrow) {
        return Ok(narrow);
    }
    Err(DecodeError::at(path, format!("`{path}` must be {expected}, got {wide}")))
}

/// The number, if it is whole: `5` and `5.0` are.
pub(super) fn whole(value: &Value) -> Option<i128> {
    match (value.as_i64(), value.as_u64(), value.as_f64()) {
        (Some(number), _, _) => Some(number.into()),
        (_, Some(number), _) => Some(number.into()),
        (_, _, Some(number)) if number.fract() == 0.0 && number.abs() < 1e18 => Some(number as i128),
        _ => None,
    }
}

/// The error of a value of the wrong type.
pub(super) fn mismatch(path: &str, expected: &str, got: &Value) -> DecodeError {
    let got = match got {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    if path.is_empty() {
        return DecodeError::new(format!("the request body must be {expected}, got {got}"));
    }
    DecodeError::at(path, format!("`{path}` must be {expected}, got {got}"))
}

/// The error of a value that must be there.
pub(super) fn missing(path: &str, expected: &str) -> DecodeError {
    DecodeError::at(path, format!("`{path}` is missing: it must be {expected}"))
}
