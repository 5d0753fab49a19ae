//! Which ledger a command is about.

use super::FileArg;
use clap::Args;
use std::time::Duration;
use tollkeeper_config::{Config, environment};
use tollkeeper_policies::{Database, Place};

/// How long a database that is named on the command line may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The ledger of a configuration, or another.
#[derive(Debug, Args)]
pub(super) struct LedgerArg {
    #[command(flatten)]
    pub(super) file: FileArg,
    /// The ledgers in this PostgreSQL database instead of the configuration's: "env:NAME", "file:PATH" or the URL itself
    #[arg(long, value_name = "URL")]
    store_url: Option<String>,
    /// Only the ledger of this gateway; of a database, all are read
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
}

impl LedgerArg {
    pub(super) fn config(&self) -> Result<Config, String> {
        self.file.load()
    }

    /// What is to be read.
    ///
    /// # Errors
    /// The configuration is bad, or a gateway is named of a file.
    pub(super) fn to_read(&self) -> Result<Place, String> {
        self.place(Place::fleet)
    }

    /// The one ledger that is to be changed: the configuration's own when none is named.
    ///
    /// # Errors
    /// As [`to_read`](Self::to_read), or no gateway is named of a database.
    pub(super) fn to_change(&self) -> Result<Place, String> {
        let place = self.place(Place::own)?;
        match &place {
            Place::Database(database) if database.gateway.is_none() => {
                Err("name the gateway whose ledger is meant (--gateway)".to_owned())
            }
            _ => Ok(place),
        }
    }

    fn place(&self, of: impl FnOnce(&tollkeeper_config::Store) -> Place) -> Result<Place, String> {
        let place = match &self.store_url {
            Some(url) => {
                let url = environment::secret(url).map_err(|why| format!("--store-url: {why}"))?;
                Place::Database(Database { url, gateway: None, timeout: TIMEOUT })
            }
            None => of(&self.config()?.store),
        };
        match &self.gateway {
            None => Ok(place),
            Some(name) => {
                let refused = format!("{place} is a file, which holds one gateway's ledger: leave --gateway out");
                place.of_gateway(name).ok_or(refused)
            }
        }
    }
}
