//! Checks `[[providers]]`.

use super::server::small;
use super::{Check, is_first};
use crate::file::{RawPrice, RawProvider};
use crate::kinds::{PROVIDER_KINDS, ProviderKind};
use crate::read::{At, Named};
use crate::settings::Provider;
use crate::units::Secret;
use crate::value::{Pace, SecretRef, Slug};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Headers that the HTTP client sets itself.
const OWN_HEADERS: [&str; 5] = ["host", "content-length", "content-type", "transfer-encoding", "connection"];

/// How often a server is asked how it is when the file does not say.
const PROBE_EVERY: Duration = Duration::from_secs(5);

impl Check<'_> {
    pub(super) fn providers(&mut self, raw: &[RawProvider]) -> BTreeMap<String, Arc<Provider>> {
        let mut seen = HashMap::new();
        let mut providers = BTreeMap::new();
        for raw in raw {
            let Some(name) = raw.name.as_ref().map(|name| &name.value) else { continue };
            let what = format_args!("the provider `{}`", name.value.0);
            let first = is_first(&mut seen, &name.value.0, &name.span, what, &mut self.problems);
            match self.provider(raw, name) {
                Some(provider) if first => drop(providers.insert(provider.name.clone(), Arc::new(provider))),
                Some(_) => {}
                None => drop(self.broken.insert(name.value.0.clone())),
            }
        }
        providers
    }

    fn provider(&mut self, raw: &RawProvider, name: &At<Slug>) -> Option<Provider> {
        let whose = format!("the provider `{}`", name.value.0);
        let headers = self.headers(&raw.headers.value);
        let kind = raw.kind.as_ref()?;
        if kind.value.needs_base_url && !raw.base_url.written {
            let message = format!("{whose} needs `base_url`: the kind `{}` has none to fall back on", kind.value.name);
            self.problems.add(&name.span, message);
        }
        let (api_key, disabled) = self.api_key(&whose, raw, kind.value, name);
        if let Some(price) = raw.price.at.as_ref().filter(|_| !kind.value.own_price) {
            let message = format!(
                "the kind `{}` prices each model: say `[prices.\"{}/MODEL\"]` instead",
                kind.value.name, name.value.0
            );
            self.problems.add(&price.span, message);
        }
        Some(Provider {
            name: name.value.0.clone(),
            kind: kind.value.name.to_owned(),
            base_url: raw.base_url.at.as_ref().map(|url| url.value.0.clone()),
            api_key,
            headers,
            api_version: raw.api_version.at.as_ref().map(|version| version.value.clone()),
            connect_timeout: raw.connect_timeout.value,
            first_byte_timeout: raw.first_byte_timeout.value,
            idle_timeout: raw.idle_timeout.value,
            max_attempts: small(raw.max_attempts.value.0),
            probe: self.probe(raw, kind.value),
            disabled,
        })
    }

    /// How often its server is asked how it is; `"off"` may be said of every kind.
    fn probe(&mut self, raw: &RawProvider, kind: &ProviderKind) -> Option<Duration> {
        match raw.probe.at.as_ref().map(|pace| (pace.value, &pace.span)) {
            None => kind.probed.then_some(PROBE_EVERY),
            Some((Pace::Off, _)) => None,
            Some((Pace::Every(every), _)) if kind.probed => Some(every),
            Some((Pace::Every(_), span)) => {
                let kinds: Vec<_> = PROVIDER_KINDS.iter().filter(|kind| kind.probed).map(|kind| kind.name).collect();
                let message = format!(
                    "servers of the kind `{}` are not asked how they are; `probe` is for {}",
                    kind.name,
                    kinds.join(", ")
                );
                self.problems.add(span, message);
                None
            }
        }
    }

    /// The key, and why the provider is disabled if it is.
    fn api_key(
        &mut self,
        whose: &str,
        raw: &RawProvider,
        kind: &ProviderKind,
        name: &At<Slug>,
    ) -> (Option<Secret>, Option<String>) {
        let Some(key) = &raw.api_key.at else {
            if let Some(variable) = kind.key_variable.filter(|_| !raw.api_key.written) {
                let message = format!("{whose} needs `api_key`, for example `api_key = \"env:{variable}\"`");
                self.problems.add(&name.span, message);
            }
            return (None, None);
        };
        self.warn_of_literal(whose, &key.value);
        match self.fetch(&key.value) {
            Ok(secret) if secret.expose().bytes().all(|byte| byte.is_ascii_graphic()) => (Some(secret), None),
            Ok(_) => {
                let message = format!("the key of {whose} holds a character that an HTTP header cannot carry");
                self.problems.add(&key.span, message);
                (None, None)
            }
            Err(why) => {
                self.warnings.push(format!("{whose} is disabled: {why}"));
                (None, Some(why))
            }
        }
    }

    fn headers(&mut self, raw: &Named<SecretRef>) -> Vec<(String, Secret)> {
        let mut headers = Vec::new();
        for (name, value) in &raw.0 {
            let lower = name.value.to_ascii_lowercase();
            let is_token = !lower.is_empty()
                && lower.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
            if !is_token || OWN_HEADERS.contains(&lower.as_str()) {
                self.problems.add(&name.span, format!("`{}` is not a header that can be set", name.value));
                continue;
            }
            let Some(value) = value else { continue };
            match self.fetch(value) {
                Ok(value) if value.expose().bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) => {
                    headers.push((lower, value));
                }
                Ok(_) => {
                    self.problems.add(&name.span, format!("the value of the header `{lower}` is not printable ASCII"))
                }
                Err(why) => self.problems.add(&name.span, format!("the header `{lower}` has no value: {why}")),
            }
        }
        headers
    }
}

impl RawProvider {
    /// The price of all its models, where one may be said.
    pub(super) fn own_price(&self) -> Option<&At<RawPrice>> {
        self.price.at.as_ref().filter(|_| self.kind.as_ref().is_some_and(|kind| kind.value.own_price))
    }
}
