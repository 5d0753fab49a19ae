//! Checks `[notify]` and `[[webhooks]]`.

use super::server::small;
use super::{Check, is_first};
use crate::file::{RawNotify, RawQuietHours, RawWebhook};
use crate::notify::{NoticeKind, Notify, Webhook, WebhookFormat};
use crate::problem::Span;
use crate::quiet::QuietHours;
use crate::read::At;
use crate::units::Secret;
use crate::value::{Pace, SecretRef};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Shorter signing secrets can be guessed.
const SHORTEST_SECRET: usize = 16;

impl Check<'_> {
    /// `store`: the store's file, beside which the dead letters are when nothing else is said.
    pub(super) fn notify(&mut self, raw: RawNotify, webhooks: Vec<RawWebhook>, store: &Path) -> Notify {
        let mut names = HashMap::new();
        let webhooks = webhooks.into_iter().filter_map(|raw| self.webhook(raw, &mut names)).map(Arc::new).collect();
        let dead_letter = raw.dead_letter.at.map(|path| path.value);
        Notify {
            dead_letter: self.path(&dead_letter.unwrap_or_else(|| store.with_file_name("notices.jsonl"))),
            dead_letter_limit: raw.dead_letter_limit.value.0,
            drain_timeout: raw.drain_timeout.value,
            webhooks,
        }
    }

    fn webhook(&mut self, raw: RawWebhook, names: &mut HashMap<String, Span>) -> Option<Webhook> {
        let name = raw.name.map(|name| name.value);
        let whose = name.as_ref().map_or("a webhook".to_owned(), |name| format!("the webhook `{}`", name.value.0));
        if let Some(name) = &name {
            is_first(names, &name.value.0, &name.span, &whose, &mut self.problems);
        }
        let url = raw.url.and_then(|url| self.webhook_url(&whose, &url));
        let secret = raw.secret.at.and_then(|secret| self.signing_secret(&whose, &secret));
        if raw.format.value == WebhookFormat::Generic && !raw.secret.written {
            self.warnings.push(format!("{whose} has no `secret`: its receiver cannot tell notices from forged ones"));
        }
        let events = match raw.events.at {
            None => NoticeKind::all().collect(),
            Some(events) => self.events(&whose, &events),
        };
        let quiet_hours = raw.quiet_hours.at.and_then(|hours| self.quiet_hours(hours));
        if raw.retry_pause.value > raw.longest_pause.value {
            self.problems.add(&raw.retry_pause.span, "`retry_pause` is longer than `longest_pause`");
        }
        Some(Webhook {
            name: name?.value.0.into(),
            url: url?,
            secret,
            format: raw.format.value,
            events,
            quiet_hours,
            timeout: raw.timeout.value,
            retries: small(raw.retries.value.0),
            retry_pause: raw.retry_pause.value,
            longest_pause: raw.longest_pause.value,
            repeat_after: match raw.repeat_after.value {
                Pace::Off => None,
                Pace::Every(time) => Some(time),
            },
            queue: small(raw.queue.value.0) as usize,
        })
    }

    /// Without its URL nobody would be told, which nobody would notice: a mistake, not a warning.
    fn webhook_url(&mut self, whose: &str, url: &At<SecretRef>) -> Option<Secret> {
        let found = match self.fetch(&url.value) {
            Ok(found) => found,
            Err(why) => {
                self.problems.add(&url.span, format!("{whose} has no URL: {why}"));
                return None;
            }
        };
        if is_url(found.expose()) {
            return Some(found);
        }
        let message = format!("the URL of {whose} must be like \"https://host/path\", without user or fragment");
        self.problems.add(&url.span, message);
        None
    }

    fn signing_secret(&mut self, whose: &str, secret: &At<SecretRef>) -> Option<Secret> {
        let problem = match self.fetch(&secret.value) {
            Ok(found) if found.expose().len() >= SHORTEST_SECRET => {
                if matches!(secret.value, SecretRef::Literal(_)) {
                    let advice = "prefer \"env:NAME\" or \"file:PATH\"";
                    self.warnings.push(format!("the secret of {whose} is written in the file; {advice}"));
                }
                return Some(found);
            }
            Ok(_) => format!("the secret of {whose} is shorter than {SHORTEST_SECRET} characters"),
            Err(why) => format!("{whose} has no secret: {why}"),
        };
        self.problems.add(&secret.span, problem);
        None
    }

    fn events(&mut self, whose: &str, events: &At<Vec<At<NoticeKind>>>) -> Vec<NoticeKind> {
        if events.value.is_empty() {
            self.problems.add(&events.span, format!("{whose} is told of nothing; leave `events` out for everything"));
        }
        let mut seen = HashSet::new();
        for event in events.value.iter().filter(|event| !seen.insert(event.value)) {
            self.problems.add(&event.span, format!("`{}` is there twice", event.value.name()));
        }
        events.value.iter().map(|event| event.value).collect()
    }

    fn quiet_hours(&mut self, hours: At<RawQuietHours>) -> Option<QuietHours> {
        let (from, to) = (hours.value.from?.value.value.0, hours.value.to?.value.value.0);
        let quiet = QuietHours::try_new(from, to, hours.value.time_zone.value.0);
        if quiet.is_none() {
            let message = "`quiet_hours` begin and end at the same time; to be told of less for good, use `events`";
            self.problems.add(&hours.span, message);
        }
        quiet
    }
}

/// Whether a text is an absolute URL that an HTTP client can use, without user info (which would be ignored) or a fragment (which is not
/// sent).
fn is_url(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else { return false };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    let in_path = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?@!$&'()*+,;=%".contains(&byte);
    is_host && port.is_none_or(is_port) && path.bytes().all(in_path)
}

#[cfg(test)]
mod tests {
    use super::is_url;

    #[test]
    fn urls_are_those_that_a_client_can_use() {
        let good = [
            "https://hooks.example.com/services/T0/B0/xyz",
            "http://127.0.0.1:8080",
            "http://[::1]:9/a?b=c&d=%20",
            "https://host?x",
            "http://my_host.local/@here",
        ];
        for url in good {
            assert!(is_url(url), "{url}");
        }
        let bad = [
            "",
            "hooks.example.com",
            "ftp://host/",
            "https://",
            "https:///path",
            "https://user:pass@host/",
            "https://host:0/",
            "https://host:/",
            "https://host:99999/",
            "https://host:+80/",
            "https://host/a b",
            "https://host/#part",
            "https://host/\"",
            "http://[nope]/",
            "http://ho st/",
        ];
        for url in bad {
            assert!(!is_url(url), "{url}");
        }
    }
}
