//! Checks `[store]`.

use super::Check;
use crate::file::RawStore;
use crate::settings::Store;
use crate::units::Secret;
use crate::value::SecretRef;

/// How the URL of a PostgreSQL database begins.
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

impl Check<'_> {
    /// `shared` is the gateway's name in `[shared]`.
    pub(super) fn store(&mut self, raw: RawStore, shared: Option<&str>) -> Store {
        let gateway = raw.gateway.at.map(|at| at.value.0).or_else(|| shared.map(str::to_owned));
        let url = raw.url.at.as_ref().and_then(|at| match self.fetch(&at.value) {
            Ok(url) if is_database(&url) => {
                if matches!(at.value, SecretRef::Literal(_)) && has_password(&url) {
                    let advice = "prefer \"env:NAME\" or \"file:PATH\"";
                    self.warnings.push(format!("the password of `store.url` is written in the file; {advice}"));
                }
                Some(url)
            }
            Ok(_) => {
                self.problems.add(&at.span, "`url` must begin with postgres:// or postgresql://");
                None
            }
            Err(why) => {
                self.problems.add(&at.span, format!("`[store]` has no `url`: {why}"));
                None
            }
        });
        if let (Some(at), None) = (&raw.url.at, &gateway) {
            let message = "`url` needs `gateway`: the name under which this gateway writes, and no other";
            self.problems.add(&at.span, message);
        }
        Store {
            path: self.path(&raw.path.value),
            url,
            gateway,
            timeout: raw.timeout.value,
            durability: raw.durability.value,
            keep: raw.keep.value.0,
        }
    }
}

fn is_database(url: &Secret) -> bool {
    SCHEMES.iter().any(|scheme| url.expose().starts_with(scheme))
}

fn has_password(url: &Secret) -> bool {
    let url = url.expose();
    let user = url.split("://").nth(1).and_then(|rest| rest.split(['/', '?']).next()?.rsplit_once('@'));
    user.is_some_and(|(user, _)| user.contains(':')) || url.contains("password=")
}
