//! Where ledgers are: in a SQLite file, or in a PostgreSQL database where each gateway has a chain of its own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tollkeeper_config::{Secret, Store};

/// Where one ledger or a fleet's ledgers are. Shows no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A SQLite file, one gateway's ledger.
    File(PathBuf),
    /// A PostgreSQL database.
    Database(Database),
}

/// A PostgreSQL database, all of it or one gateway's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its URL, such as `postgres://user:password@host/database`.
    pub url: Secret,
    /// Only this gateway's chain.
    pub gateway: Option<String>,
    /// How long a connection, or an answer that somebody waits for, may take.
    pub timeout: Duration,
}

impl Place {
    /// Where a gateway of this configuration writes.
    pub fn own(store: &Store) -> Self {
        match Self::fleet(store) {
            Self::Database(database) => Self::Database(Database { gateway: store.gateway.clone(), ..database }),
            file => file,
        }
    }

    /// What there is to read where a gateway of this configuration writes: in a database, what all gateways wrote.
    pub fn fleet(store: &Store) -> Self {
        match &store.url {
            Some(url) => Self::Database(Database { url: url.clone(), gateway: None, timeout: store.timeout }),
            None => Self::File(store.path.clone()),
        }
    }

    /// Only the chain of this gateway; `None` of a file, which holds but one.
    #[must_use]
    pub fn of_gateway(self, name: &str) -> Option<Self> {
        match self {
            Self::File(_) => None,
            Self::Database(database) => Some(Self::Database(Database { gateway: Some(name.to_owned()), ..database })),
        }
    }

    /// The gateway whose chain is meant.
    pub fn gateway(&self) -> Option<&str> {
        match self {
            Self::File(_) => None,
            Self::Database(database) => database.gateway.as_deref(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Database(database) => database.fmt(f),
        }
    }
}

impl fmt::Display for Database {
    /// Host and database, but neither user nor password nor settings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.expose();
        let (_, rest) = url.split_once("://").unwrap_or(("", url));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let shown = rest.rsplit('@').next().unwrap_or_default();
        write!(f, "postgres://{shown}")?;
        self.gateway.iter().try_for_each(|gateway| write!(f, " of `{gateway}`"))
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<&PathBuf> for Place {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

impl From<&Self> for Place {
    fn from(place: &Self) -> Self {
        place.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_shows_no_secret() {
        let shown = |url: &str| {
            let database = Database { url: Secret::new(url), gateway: None, timeout: Duration::ZERO };
            let place = Place::Database(database);
            assert!(!format!("{place:?}").contains("pa@ss"));
            (place.to_string(), place.of_gateway("left").map(|place| place.to_string()))
        };
        let of = |text: &str| (text.to_owned(), Some(format!("{text} of `left`")));
        assert_eq!(shown("postgres://me:pa@ss@db:5432/toll?sslkey=x"), of("postgres://db:5432/toll"));
        assert_eq!(shown("postgres:///toll?host=/run&password=pa@ss"), of("postgres:///toll"));
        assert_eq!(shown("me:pa@ss@db"), of("postgres://db"));
    }
}
