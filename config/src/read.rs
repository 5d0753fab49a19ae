//! From spanned TOML to typed tables: unlike serde, which stops at the first error, every key of every table is read
//! on its own, so that one wrong value hides no other.

use crate::problem::{Problems, Span, did_you_mean};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value and its place in the file.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

/// A key that may be left out.
#[derive(Debug, Clone)]
pub(crate) struct Maybe<T> {
    /// Its value, if it is there and good.
    pub(crate) at: Option<At<T>>,
    /// Whether it is there, good or bad.
    pub(crate) written: bool,
}

/// A value that is to be read, and the key it was found under.
#[derive(Clone, Copy)]
pub(crate) struct Node<'n, 'i> {
    pub(crate) key: &'n str,
    pub(crate) value: &'n Spanned<DeValue<'i>>,
}

impl Node<'_, '_> {
    /// Says that this value is not a `T`. `why` adds detail; it must not hold a secret.
    pub(crate) fn refuse<T: Read>(&self, why: impl std::fmt::Display, problems: &mut Problems<'_>) {
        problems.add(&self.value.span(), format!("`{}` must be {}{why}", self.key, T::shape()));
    }

    /// Says that this value has a type that no `T` has.
    pub(crate) fn refuse_type<T: Read>(&self, problems: &mut Problems<'_>) {
        let found = self.value.get_ref().type_str();
        let article = if found.starts_with(['a', 'i']) { "an" } else { "a" };
        self.refuse::<T>(format_args!(", found {article} {found}"), problems);
    }
}

/// A type that a value of the file can have.
pub(crate) trait Read: Sized {
    /// What a value looks like, to follow "must be".
    fn shape() -> String;

    /// The keys below, for tables.
    fn keys() -> Vec<Key> {
        Vec::new()
    }

    /// Reads a value, or reports what is wrong with it.
    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self>;
}

/// What a key of a table is, for the reference in the README.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) shape: String,
    pub(crate) presence: String,
    pub(crate) below: Vec<Key>,
}

/// A table whose keys may stand among those of another one.
pub(crate) trait Flat: Read {
    /// Reads its keys; those of the other one are left to that.
    fn of(fields: &Fields<'_, '_>, problems: &mut Problems<'_>) -> Self;
}

/// Declares a table: a struct of its keys, each `required` (an `Option` that is `None` only after a problem was
/// reported), `optional` (a [`Maybe`]), with a `default(…)` written as TOML, or `flat`: another table whose keys stand among these.
macro_rules! table {
    ($(#[doc = $about:literal])+ $name:ident $label:literal {
        $($(#[doc = $doc:literal])+ $key:ident: $ty:ty = $presence:ident $(($($default:tt)+))?),* $(,)?
    }) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone)]
        pub(crate) struct $name {
            $($(#[doc = $doc])+ pub(crate) $key: $crate::read::table!(@field $presence $ty),)*
        }

        impl $crate::read::Read for $name {
            fn shape() -> String {
                "a table".to_owned()
            }

            fn keys() -> Vec<$crate::read::Key> {
                let keys = [$($crate::read::table!(@keys $presence $(($($default)+))?, $ty, $key, concat!($($doc),+))),*];
                keys.into_iter().flatten().collect()
            }

            fn read(
                node: $crate::read::Node<'_, '_>,
                problems: &mut $crate::problem::Problems<'_>,
            ) -> Option<Self> {
                let known: Vec<_> = Self::keys().iter().map(|key| key.name).collect();
                let fields = $crate::read::Fields::open::<Self>(node, $label, &known, problems)?;
                Some(<Self as $crate::read::Flat>::of(&fields, problems))
            }
        }

        impl $crate::read::Flat for $name {
            fn of(fields: &$crate::read::Fields<'_, '_>, problems: &mut $crate::problem::Problems<'_>) -> Self {
                Self {
                    $($key: fields.$presence::<$ty>(stringify!($key), $(stringify!($($default)+),)? problems),)*
                }
            }
        }
    };
    (@keys flat, $ty:ty, $key:ident, $about:expr) => { <$ty as $crate::read::Read>::keys() };
    (@keys $presence:ident $(($($default:tt)+))?, $ty:ty, $key:ident, $about:expr) => {
        vec![$crate::read::Key {
            name: stringify!($key),
            about: $about,
            shape: <$ty as $crate::read::Read>::shape(),
            presence: $crate::read::table!(@presence $presence $(($($default)+))?),
            below: <$ty as $crate::read::Read>::keys(),
        }]
    };
    (@field flat $ty:ty) => { $ty };
    (@field default $ty:ty) => { $crate::read::At<$ty> };
    (@field optional $ty:ty) => { $crate::read::Maybe<$ty> };
    (@field required $ty:ty) => { Option<$crate::read::At<$ty>> };
    (@presence default ($($default:tt)+)) => { stringify!($($default)+).to_owned() };
    (@presence $other:ident) => { stringify!($other).to_owned() };
}
pub(crate) use table;

/// The keys and values of one table, unknown keys already reported.
pub(crate) struct Fields<'n, 'i> {
    table: &'n DeTable<'i>,
    label: &'static str,
    span: Span,
}

impl<'n, 'i> Fields<'n, 'i> {
    pub(crate) fn open<T: Read>(
        node: Node<'n, 'i>,
        label: &'static str,
        known: &[&'static str],
        problems: &mut Problems<'_>,
    ) -> Option<Self> {
        let DeValue::Table(table) = node.value.get_ref() else {
            node.refuse_type::<T>(problems);
            return None;
        };
        for (key, _) in table.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref())) {
            let hint = match did_you_mean(key.get_ref(), known.iter().copied()) {
                near if near.is_empty() => format!("; it knows {}", known.join(", ")),
                near => near,
            };
            problems.add(&key.span(), format!("{label} has no key `{}`{hint}", key.get_ref()));
        }
        Some(Self { table, label, span: node.value.span() })
    }

    pub(crate) fn optional<T: Read>(&self, key: &str, problems: &mut Problems<'_>) -> Maybe<T> {
        Maybe { at: self.get(key, problems), written: self.table.get(key).is_some() }
    }

    pub(crate) fn flat<T: Flat>(&self, _: &str, problems: &mut Problems<'_>) -> T {
        T::of(self, problems)
    }

    pub(crate) fn required<T: Read>(&self, key: &str, problems: &mut Problems<'_>) -> Option<At<T>> {
        if self.table.get(key).is_none() {
            problems.add(&self.span, format!("{} needs `{key}`: {}", self.label, T::shape()));
        }
        self.get(key, problems)
    }

    pub(crate) fn default<T: Read>(&self, key: &str, default: &str, problems: &mut Problems<'_>) -> At<T> {
        self.get(key, problems).unwrap_or_else(|| {
            let value = DeValue::parse(default).expect("defaults in file.rs are TOML");
            let read = T::read(Node { key, value: &value }, problems).expect("defaults in file.rs fit their type");
            At { value: read, span: self.span.clone() }
        })
    }

    fn get<T: Read>(&self, key: &str, problems: &mut Problems<'_>) -> Option<At<T>> {
        let value = self.table.get(key)?;
        T::read(Node { key, value }, problems).map(|read| At { value: read, span: value.span() })
    }
}

impl<T: Read> Read for Vec<T> {
    fn shape() -> String {
        format!("a list, each item {}", T::shape())
    }

    fn keys() -> Vec<Key> {
        T::keys()
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let DeValue::Array(items) = node.value.get_ref() else {
            node.refuse_type::<Self>(problems);
            return None;
        };
        Some(items.iter().filter_map(|value| T::read(Node { key: node.key, value }, problems)).collect())
    }
}

impl<T: Read> Read for At<T> {
    fn shape() -> String {
        T::shape()
    }

    fn keys() -> Vec<Key> {
        T::keys()
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        T::read(node, problems).map(|value| Self { value, span: node.value.span() })
    }
}

/// A table whose keys are names that the operator chose; a value is `None` when it was bad.
#[derive(Debug, Clone)]
pub(crate) struct Named<T>(pub(crate) Vec<(At<String>, Option<T>)>);

impl<T: Read> Read for Named<T> {
    fn shape() -> String {
        format!("a table of names, each {}", T::shape())
    }

    fn keys() -> Vec<Key> {
        T::keys()
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let DeValue::Table(table) = node.value.get_ref() else {
            node.refuse_type::<Self>(problems);
            return None;
        };
        let mut entry = |key: &Spanned<toml::de::DeString<'_>>, value| {
            let read = T::read(Node { key: key.get_ref(), value }, problems);
            (At { value: key.get_ref().to_string(), span: key.span() }, read)
        };
        Some(Self(table.iter().map(|(key, value)| entry(key, value)).collect()))
    }
}

impl Read for bool {
    fn shape() -> String {
        "true or false".to_owned()
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let read = node.value.get_ref().as_bool();
        if read.is_none() {
            node.refuse_type::<Self>(problems);
        }
        read
    }
}

/// A whole number within limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whole<const MIN: u64, const MAX: u64>(pub(crate) u64);

impl<const MIN: u64, const MAX: u64> Read for Whole<MIN, MAX> {
    fn shape() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let DeValue::Integer(number) = node.value.get_ref() else {
            node.refuse_type::<Self>(problems);
            return None;
        };
        let read = u64::from_str_radix(number.as_str(), number.radix()).ok().filter(|n| (MIN..=MAX).contains(n));
        if read.is_none() {
            node.refuse::<Self>(format_args!(", found {number}"), problems);
        }
        read.map(Self)
    }
}

/// Gives [`Read`] to types that are written as a string: what they look like, and how a text becomes one (`Err` says
/// why not, to follow the shape; it may quote the text only if that cannot be a secret).
macro_rules! read_text {
    ($($ty:ty: $shape:expr, $parse:expr;)+) => {
        $(impl $crate::read::Read for $ty {
            fn shape() -> String {
                $shape.to_owned()
            }

            fn read(
                node: $crate::read::Node<'_, '_>,
                problems: &mut $crate::problem::Problems<'_>,
            ) -> Option<Self> {
                let Some(text) = node.value.get_ref().as_str() else {
                    node.refuse_type::<Self>(problems);
                    return None;
                };
                let parse: fn(&str) -> Result<Self, String> = $parse;
                parse(text).inspect_err(|why| node.refuse::<Self>(why, problems)).ok()
            }
        })+
    };
}
pub(crate) use read_text;

/// Gives [`Read`] to an enum: each value and its name.
macro_rules! read_choice {
    ($($ty:ty: $($name:literal => $value:expr),+;)+) => {
        $(impl $crate::read::Read for $ty {
            fn shape() -> String {
                $crate::read::one_of(&[$($name),+])
            }

            fn read(
                node: $crate::read::Node<'_, '_>,
                problems: &mut $crate::problem::Problems<'_>,
            ) -> Option<Self> {
                $crate::read::choose(node, &[$(($name, $value)),+], problems)
            }
        })+
    };
}
pub(crate) use read_choice;

/// `"a", "b" or "c"`.
pub(crate) fn one_of(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// The value whose name the node holds.
pub(crate) fn choose<T: Read + Clone>(
    node: Node<'_, '_>,
    choices: &[(&str, T)],
    problems: &mut Problems<'_>,
) -> Option<T> {
    let Some(text) = node.value.get_ref().as_str() else {
        node.refuse_type::<T>(problems);
        return None;
    };
    let chosen = choices.iter().find(|(name, _)| *name == text);
    if chosen.is_none() {
        let near = did_you_mean(text, choices.iter().map(|(name, _)| *name));
        node.refuse::<T>(format_args!(", found \"{text}\"{near}"), problems);
    }
    chosen.map(|(_, value)| value.clone())
}
