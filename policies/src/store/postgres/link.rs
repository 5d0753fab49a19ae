//! A connection to the database: how long it may take, who it is to the server, and the locks that it holds.

use crate::place::Database;
use crate::store::StoreError;
use sha2::{Digest, Sha256};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgSeverity};
use sqlx::{ConnectOptions, Row};
use std::str::FromStr;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, Runtime};

/// The longest wait for an answer that nobody but a start or a report waits for.
pub(super) const PATIENT: Duration = Duration::from_secs(600);

/// Between two looks at a lock that somebody has.
const LOOK: Duration = Duration::from_millis(10);

/// By these the server notices within seconds that a gateway's machine is gone, and frees its locks.
const SETTINGS: [(&str, &str); 3] =
    [("tcp_keepalives_idle", "5"), ("tcp_keepalives_interval", "2"), ("tcp_keepalives_count", "3")];

/// Drives connections on the thread that waits for them.
pub(super) struct Driver(Option<Runtime>);

/// How to reach the database.
pub(super) struct Address {
    options: PgConnectOptions,
    pub(super) timeout: Duration,
}

/// A connection.
pub(super) struct Link {
    pub(super) connection: PgConnection,
    pub(super) backend: Backend,
    /// Where its tables are.
    schema: String,
    is_standby: bool,
}

/// The server's process at the other end.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    pid: i32,
    started: String,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// It did not come: what was asked for may be done or not.
    Lost(StoreError),
    /// The server refused: nothing was done.
    Refused(StoreError),
    /// Somebody else has the lock.
    Held(String),
    /// It came, and nothing can be made of it.
    Store(StoreError),
}

impl Driver {
    pub(super) fn start() -> Result<Self, StoreError> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build();
        runtime.map(|runtime| Self(Some(runtime))).map_err(|cause| StoreError(cause.to_string().into()))
    }

    /// Waits, on a thread of its own when this one is not to be made wait.
    pub(super) fn wait<T: Send>(&self, answer: impl Future<Output = Result<T, Fault>> + Send) -> Result<T, Fault> {
        let Some(runtime) = &self.0 else { return Err(Fault::Store(StoreError("it is closed".into()))) };
        if Handle::try_current().is_err() {
            return runtime.block_on(answer);
        }
        let waited = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(answer)).join());
        waited.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may be dropped where nothing may wait.
        self.0.take().map(Runtime::shutdown_background).unwrap_or_default();
    }
}

/// Waits no longer than that.
pub(super) async fn within<T>(longest: Duration, answer: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let late = |_| Fault::Lost(StoreError(format!("it has not answered within {longest:?}").into()));
    tokio::time::timeout(longest, answer).await.map_err(late)?
}

impl Address {
    pub(super) fn new(database: &Database) -> Result<Self, StoreError> {
        // What it cannot be read for may show a password, so that is not passed on.
        let options = PgConnectOptions::from_str(database.url.expose())
            .map_err(|_| StoreError("its address is no URL of PostgreSQL".into()))?;
        let gateway = database.gateway.as_deref().unwrap_or("-");
        let name = format!("tollkeeper {gateway} (process {})", std::process::id());
        let options = options.application_name(&name).options(SETTINGS).disable_statement_logging();
        Ok(Self { options, timeout: database.timeout })
    }

    pub(super) async fn connect(&self) -> Result<Link, Fault> {
        let mut connection = Box::pin(self.options.connect()).await?;
        // A commit that is answered is one that the server does not lose.
        let sql = "SELECT pg_backend_pid(), current_schema()::text, pg_is_in_recovery(), current_setting('server_encoding'),
                          (SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()),
                          CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END";
        let row = sqlx::query(sql).persistent(false).fetch_one(&mut connection).await?;
        let encoding: &str = row.try_get(3)?;
        if encoding != "UTF8" {
            return Err(Fault::Store(StoreError(format!("its encoding is {encoding}; UTF8 is needed").into())));
        }
        let schema: Option<String> = row.try_get(1)?;
        let schema = schema.ok_or_else(|| Fault::Store(StoreError("its search path names no schema".into())))?;
        let started: Option<String> = row.try_get(4)?;
        let backend = Backend { pid: row.try_get(0)?, started: started.unwrap_or_default() };
        let is_standby = row.try_get(2)?;
        drop(row);
        Ok(Link { connection, backend, schema, is_standby })
    }
}

impl Link {
    pub(super) fn must_be_writable(&self) -> Result<(), Fault> {
        let refused = Err(Fault::Store(StoreError("it is a standby, which cannot be written".into())));
        if self.is_standby { refused } else { Ok(()) }
    }

    /// Has the server end another connection of this gateway, if that is still there.
    pub(super) async fn end(&mut self, other: &Backend) -> Result<(), Fault> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2";
        sqlx::query(sql).bind(other.pid).bind(&other.started).fetch_all(&mut self.connection).await?;
        Ok(())
    }

    /// Takes a gateway's name and its share of the tables, both until this connection ends.
    pub(super) async fn take(&mut self, gateway: &str, longest: Duration) -> Result<(), Fault> {
        let (tables, name) = (self.key(""), self.key(gateway));
        self.lock("SELECT pg_try_advisory_lock_shared($1)", tables, longest).await?;
        self.lock("SELECT pg_try_advisory_lock($1)", name, longest).await
    }

    /// Takes the tables for itself, until this connection ends.
    pub(super) async fn take_tables(&mut self, longest: Duration) -> Result<(), Fault> {
        self.lock("SELECT pg_try_advisory_lock($1)", self.key(""), longest).await
    }

    async fn lock(&mut self, sql: &'static str, key: i64, longest: Duration) -> Result<(), Fault> {
        let until = Instant::now() + longest;
        loop {
            let row = sqlx::query(sql).bind(key).fetch_one(&mut self.connection).await?;
            if row.try_get(0)? {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Fault::Held(self.holder(key).await?));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Who has a lock, as far as the server tells.
    async fn holder(&mut self, key: i64) -> Result<String, Fault> {
        let sql = "SELECT concat_ws(' at ', nullif(application_name, ''), host(client_addr)) FROM pg_locks JOIN pg_stat_activity USING (pid)
                   WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND (classid::bigint << 32) | objid::bigint = $1
                         AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database()) LIMIT 1";
        let row = sqlx::query(sql).bind(key).fetch_optional(&mut self.connection).await?;
        let name: Option<String> = row.map(|row| row.try_get(0)).transpose()?;
        Ok(name.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned()))
    }

    /// The number of the lock on a gateway's name in this schema; of no name, of the tables.
    fn key(&self, gateway: &str) -> i64 {
        let digest = Sha256::digest(format!("tollkeeper\0{}\0{gateway}", self.schema));
        digest.iter().take(8).fold(0, |key, byte| key << 8 | i64::from(*byte))
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        let text = StoreError(error.to_string().into());
        match &error {
            // Less than an error is no answer, and more than one ends the connection, perhaps in the middle of a commit.
            sqlx::Error::Database(said)
                if said
                    .try_downcast_ref::<PgDatabaseError>()
                    .is_some_and(|said| said.severity() == PgSeverity::Error) =>
            {
                Self::Refused(text)
            }
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) => Self::Store(text),
            _ => Self::Lost(text),
        }
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Lost(why) | Fault::Refused(why) | Fault::Store(why) => why,
            Fault::Held(holder) => Self(format!("another gateway has taken this one's name ({holder})").into()),
        }
    }
}
