//! Fetches secrets from the environment and from files.

use super::Check;
use crate::read::At;
use crate::units::Secret;
use crate::value::SecretRef;

impl Check<'_> {
    /// The secret that is referred to, or why it cannot be had. Empty counts as missing.
    pub(super) fn fetch(&self, secret: &SecretRef) -> Result<Secret, String> {
        let text = match secret {
            SecretRef::Literal(secret) => return Ok(secret.clone()),
            SecretRef::Env(name) => {
                let value = (self.env)(name).ok_or_else(|| format!("the environment variable {name} is not set"))?;
                Some(value)
                    .filter(|value| !value.trim().is_empty())
                    .ok_or(format!("the environment variable {name} is empty"))?
            }
            SecretRef::File(path) => {
                let path = self.path(path);
                let shown = path.display();
                let value =
                    std::fs::read_to_string(&path).map_err(|cause| format!("cannot read the file {shown}: {cause}"))?;
                Some(value).filter(|value| !value.trim().is_empty()).ok_or(format!("the file {shown} is empty"))?
            }
        };
        Ok(Secret::new(text.trim()))
    }

    /// The key of an agent or of the operator: it must be there, and it must be one that HTTP can carry.
    pub(super) fn key(&mut self, whose: &str, key: &At<SecretRef>) -> Option<Secret> {
        let secret = match self.fetch(&key.value) {
            Ok(secret) => secret,
            Err(why) => {
                self.problems.add(&key.span, format!("{whose} has no key: {why}"));
                return None;
            }
        };
        if !secret.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            let message = format!("the key of {whose} holds a character that an HTTP header cannot carry");
            self.problems.add(&key.span, message);
            return None;
        }
        self.warn_of_literal(whose, &key.value);
        Some(secret)
    }

    /// A key in the file is legal, but is easily shared by accident.
    pub(super) fn warn_of_literal(&mut self, whose: &str, key: &SecretRef) {
        if matches!(key, SecretRef::Literal(_)) {
            self.warnings
                .push(format!("the key of {whose} is written in the file; prefer \"env:NAME\" or \"file:PATH\""));
        }
    }
}
