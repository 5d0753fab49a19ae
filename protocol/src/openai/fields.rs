//! Takes the fields of a JSON object one by one, with errors that name the field and say what it should be.

use crate::DecodeError;
use serde_json::{Map, Value};
use std::fmt::{Display, Formatter};
use std::ops::RangeInclusive;

/// The fields of an object that were not taken yet. A field that is null counts as one that is not there.
///
/// A list and no map: some thirty names are looked up in a handful of fields, and comparing is cheaper there than hashing.
pub(super) struct Fields {
    list: Vec<Field>,
    place: Place,
}

struct Field {
    name: String,
    value: Value,
    taken: bool,
}

/// Where an object stands in the body; only written out for errors.
pub(super) enum Place {
    /// It is the body.
    Body,
    /// It is an element of a list of the body.
    Element(&'static str, usize),
    /// Somewhere deeper.
    At(String),
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Body => Ok(()),
            Self::Element(list, index) => write!(f, "{list}[{index}]"),
            Self::At(path) => f.write_str(path),
        }
    }
}

impl Fields {
    /// The fields of the object at this place.
    pub(super) fn new(value: Value, place: Place) -> Result<Self, DecodeError> {
        match value {
            Value::Object(map) => {
                let field = |(name, value)| Field { name, value, taken: false };
                Ok(Self { list: map.into_iter().map(field).collect(), place })
            }
            other => Err(mismatch(&place.to_string(), "an object", &other)),
        }
    }

    /// Where a field stands in the body.
    pub(super) fn path(&self, name: &str) -> String {
        match &self.place {
            Place::Body => name.to_owned(),
            place => format!("{place}.{name}"),
        }
    }

    /// The value as it came.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Value> {
        let field = self.list.iter_mut().find(|field| field.name == name)?;
        field.taken = true;
        Some(field.value.take()).filter(|value| !value.is_null())
    }

    /// The value, without taking it.
    pub(super) fn peek(&self, name: &str) -> Option<&Value> {
        self.list.iter().find(|field| field.name == name).map(|field| &field.value)
    }

    /// The fields nobody took.
    pub(super) fn rest(self) -> Map<String, Value> {
        let left = self.list.into_iter().filter(|field| !field.taken);
        left.map(|field| (field.name, field.value)).collect()
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
        self.take(name).map(|value| Self::new(value, Place::At(self.path(name)))).transpose()
    }

    /// A whole number within a range.
    pub(super) fn integer<T>(&mut self, name: &'static str, range: RangeInclusive<T>) -> Result<Option<T>, DecodeError>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = whole(&value).and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number));
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(|| mismatch(&self.path(name), &expected(), &value))
    }

    /// A number within a range.
    pub(super) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, DecodeError> {
        self.take(name).map(|value| number(&value, || self.path(name), range)).transpose()
    }
}

/// A number within a range; `path` is only asked for errors.
pub(super) fn number(
    value: &Value,
    path: impl FnOnce() -> String,
    range: RangeInclusive<f32>,
) -> Result<f32, DecodeError> {
    let number = value.as_f64().map(|number| number as f32).filter(|number| range.contains(number));
    number.ok_or_else(|| mismatch(&path(), &format!("a number from {} to {}", range.start(), range.end()), value))
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

/// The error of a value of the wrong type or out of its range.
pub(super) fn mismatch(path: &str, expected: &str, got: &Value) -> DecodeError {
    let got = match got {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) => &number.to_string(),
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
