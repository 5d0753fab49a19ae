//! What a request wants of its routing, by headers (`x-tollkeeper-…`) or, from clients that cannot set any, by keys of the same names in
//! `metadata`. A header counts before the key.

use crate::error::ApiError;
use http::HeaderMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use tollkeeper_config::{Priority, Strategy, Usd, is_slug};
use tollkeeper_protocol::{DecodeError, Request};
use tollkeeper_router::Wishes;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) wishes: Wishes,
    /// The type of its task.
    pub(crate) task_type: Option<Arc<str>>,
    /// It can wait. A batch agent cannot become an interactive one by asking.
    pub(crate) is_batch: bool,
}

impl Asked {
    /// # Errors
    /// A header or key that says nothing that can be done; it is named.
    pub(crate) fn read(head: &HeaderMap, request: &Request) -> Result<Self, ApiError> {
        let from = Source { head, request };
        let max_cost = from.read("x-tollkeeper-max-cost-usd", "an amount in USD such as 0.02", |text| {
            Usd::parse_decimal(text).ok().filter(|usd| *usd >= Usd::ZERO)
        })?;
        let tier = |name| from.read(name, "a tier from 0 to 255", |text| text.parse::<u8>().ok());
        let priorities = "interactive or batch";
        let priority = from.read("x-tollkeeper-priority", priorities, Priority::named)?;
        let local_only = from.read("x-tollkeeper-local-only", "true or false", |text| text.parse::<bool>().ok())?;
        let task_type = from.read("x-tollkeeper-task-type", "a name of a-z, 0-9, `_`, `-` and `.`", |text| {
            is_slug(text).then(|| text.into())
        })?;
        let session = from.read("x-tollkeeper-session", "a text", |text| {
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            Some(hasher.finish())
        })?;
        let strategies = Strategy::NAMES.map(|(name, _)| name).join(", ");
        let wishes = Wishes {
            strategy: from.read("x-tollkeeper-strategy", &format!("one of {strategies}"), Strategy::named)?,
            max_cost,
            deadline_ms: from.read("x-tollkeeper-deadline-ms", "a number of milliseconds", |text| text.parse().ok())?,
            min_tier: tier("x-tollkeeper-min-tier")?,
            max_tier: tier("x-tollkeeper-max-tier")?,
            local_only: local_only.unwrap_or(false),
            session,
            chain: None,
        };
        Ok(Self { wishes, task_type, is_batch: priority == Some(Priority::Batch) })
    }
}

struct Source<'a> {
    head: &'a HeaderMap,
    request: &'a Request,
}

impl Source<'_> {
    fn read<T>(
        &self,
        name: &'static str,
        wanted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let written = match self.head.get(name) {
            Some(value) => value.to_str().unwrap_or("").trim(),
            None => match self.metadata(name) {
                Some(text) => text,
                None => return Ok(None),
            },
        };
        let bad = || {
            let written: String = written.chars().take(80).collect();
            ApiError::BadRequest(DecodeError::at(name, format!("`{name}` must be {wanted}, found \"{written}\"")))
        };
        parse(written).map(Some).ok_or_else(bad)
    }

    fn metadata(&self, name: &str) -> Option<&str> {
        let Request::Chat(chat) = self.request else { return None };
        chat.extra.get("metadata")?.get(name)?.as_str()
    }
}
