//! Redis: the connection, the scripts, and what becomes of answers that do not come.
//!
//! Each connection has a number that the server knows: once a newer one has joined, nothing sent over an older one is
//! done any more. So a call that was not answered has been done by then, or never will be.

use crate::clock::Clock;
use crate::shared::SharedError;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tollkeeper_config::SharedStore;

/// A call is made so often until the connection that it was made over is the newest.
const TURNS: usize = 4;

macro_rules! scripts {
    ($($name:ident $file:literal $fresh:literal,)*) => {
        /// What can be asked. All of it happens at once, or nothing.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Script { $($name,)* }

        impl Script {
            /// Whether it may be asked by a gateway whose ledger has not been counted.
            fn fresh(self) -> bool {
                match self { $(Self::$name => $fresh,)* }
            }
        }

        const SOURCES: &[&str] = &[$(concat!(include_str!("redis/prelude.lua"), include_str!(concat!("redis/", $file, ".lua"))),)*];
    };
}

scripts! {
    Join "join" true,
    Take "take" false,
    Extend "extend" false,
    Settle "settle" false,
    Beat "beat" true,
    Reap "reap" false,
    Unknown "unknown" true,
    Restore "restore" true,
    Mark "mark" false,
    Marks "marks" true,
    Standing "standing" true,
}

/// The server, as one gateway sees it.
pub(crate) struct Server {
    client: Client,
    scripts: Vec<redis::Script>,
    key: String,
    gateway: Arc<str>,
    /// Tells this process from others of its name.
    boot: String,
    clock: Clock,
    age: Duration,
    connect: Duration,
    answer: Duration,
    retry: Duration,
    state: Mutex<State>,
    /// Held by who connects.
    joining: tokio::sync::Mutex<()>,
    marks: AtomicU64,
}

#[derive(Default)]
struct State {
    link: Option<Link>,
    /// How many links there were.
    links: u64,
    /// The last generation joined, and the most of this gateway's calls that it said were done.
    generation: String,
    done: u64,
    gateways: Vec<Arc<str>>,
    /// Nobody asks until then, and why.
    closed: Option<(Instant, SharedError)>,
    /// For good.
    replaced: bool,
}

/// A connection that has joined.
#[derive(Clone)]
struct Link {
    number: u64,
    connection: MultiplexedConnection,
    run: Arc<str>,
    generation: Arc<str>,
    conn: Arc<str>,
}

/// An answer.
pub(crate) struct Reply {
    pub(crate) code: String,
    /// How often marks have changed.
    pub(crate) marks: u64,
    parts: Vec<String>,
}

impl Server {
    pub(crate) fn new(settings: &SharedStore, clock: Clock) -> Result<Self, SharedError> {
        // What the address cannot be read for may show a password, so it is not passed on.
        let client = Client::open(settings.url.expose())
            .map_err(|_| SharedError::Unfit("its address is no URL of Redis".into()))?;
        Ok(Self {
            client,
            scripts: SOURCES.iter().map(|source| redis::Script::new(source)).collect(),
            // The braces put all keys into one slot of a cluster.
            key: format!("{{{}}}", settings.prefix),
            gateway: settings.gateway.as_str().into(),
            boot: format!("{:016x}", rand::random::<u64>()),
            clock,
            age: settings.lease_age,
            connect: settings.connect,
            answer: settings.answer,
            retry: settings.retry,
            state: Mutex::default(),
            joining: tokio::sync::Mutex::default(),
            marks: AtomicU64::new(0),
        })
    }

    /// Asks, and waits no longer than for one connection and one answer, and that but once while nobody answers.
    pub(crate) async fn call(&self, script: Script, args: Vec<String>) -> Result<Reply, SharedError> {
        for _ in 0..TURNS {
            let link = self.link().await?;
            let reply = self.ask(&link, script, &args).await?;
            match (reply.code.as_str(), reply.parts.first().map(String::as_str)) {
                ("fenced" | "dead", _) => self.rejoin(&link).await?,
                ("lost", Some("generation")) => {
                    self.rejoin(&link).await?;
                    if !script.fresh() {
                        return Err(SharedError::Lost);
                    }
                }
                ("lost", _) => return Err(SharedError::Lost),
                ("wait", _) => return Err(SharedError::Waiting),
                ("replaced", _) => {
                    self.state().replaced = true;
                    return Err(SharedError::Replaced(self.gateway.clone()));
                }
                _ => return Ok(reply),
            }
        }
        Err(SharedError::Unreachable("other connections of this gateway keep taking over".into()))
    }

    /// Remembers who else there is. While others may not have come back yet, nobody is forgotten.
    pub(crate) fn know(&self, gateways: &[Arc<str>], live: bool) {
        let mut state = self.state();
        if live {
            state.gateways.clear();
        }
        for name in gateways.iter().filter(|name| **name != self.gateway) {
            if !state.gateways.contains(name) {
                state.gateways.push(name.clone());
            }
        }
    }

    pub(crate) fn knows_nobody(&self) -> bool {
        self.state().gateways.is_empty()
    }

    pub(crate) fn marks(&self) -> u64 {
        self.marks.load(Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link, made when there is none. While nobody answers, one caller at a time tries, and not at once.
    async fn link(&self) -> Result<Link, SharedError> {
        let failed = {
            let state = self.state();
            if state.replaced {
                return Err(SharedError::Replaced(self.gateway.clone()));
            }
            if let Some(link) = &state.link {
                return Ok(link.clone());
            }
            state.closed.clone()
        };
        let _joining = match failed {
            Some((until, why)) if Instant::now() < until => return Err(why),
            Some((_, why)) => self.joining.try_lock().map_err(|_| why)?,
            None => self.joining.lock().await,
        };
        {
            let state = self.state();
            match (&state.link, &state.closed) {
                (Some(link), _) => return Ok(link.clone()),
                (None, Some((until, why))) if Instant::now() < *until => return Err(why.clone()),
                _ => {}
            }
        }
        let joined = match timeout(self.connect, self.open()).await {
            Ok(Ok((connection, run))) => self.join(connection, run).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(SharedError::Unreachable("it cannot be connected to in time".into())),
        };
        joined.inspect_err(|error| self.close(error))
    }

    /// A new connection, and the id of the process at its other end.
    async fn open(&self) -> Result<(MultiplexedConnection, Arc<str>), SharedError> {
        // One clock for all: the one around the call.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connection.map_err(|error| unreachable(&error))?;
        let mut ask = redis::pipe();
        ask.cmd("INFO").arg("server").cmd("INFO").arg("memory");
        for source in SOURCES {
            ask.cmd("SCRIPT").arg("LOAD").arg(source).ignore();
        }
        let (server, memory): (String, String) =
            ask.query_async(&mut connection).await.map_err(|error| unreachable(&error))?;
        let value = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| Arc::<str>::from(value.trim()))
        };
        let policy = value(&memory, "maxmemory_policy").unwrap_or_default();
        if !policy.is_empty() && &*policy != "noeviction" {
            let why = format!("its `maxmemory-policy` is {policy}, which forgets counters; set it to noeviction");
            return Err(SharedError::Unfit(why.into()));
        }
        let run = value(&server, "run_id").ok_or_else(|| SharedError::Unfit("it does not say its `run_id`".into()))?;
        Ok((connection, run))
    }

    /// Makes a connection the newest one. `joining` is held.
    async fn join(&self, connection: MultiplexedConnection, run: Arc<str>) -> Result<Link, SharedError> {
        let (generation, args) = {
            let state = self.state();
            let fresh = format!("{:016x}", rand::random::<u64>());
            let mut args = vec![run.to_string(), self.age.as_micros().to_string(), state.done.to_string(), fresh];
            args.extend(state.gateways.iter().map(|name| name.to_string()));
            (Arc::from(state.generation.as_str()), args)
        };
        let link = Link { number: 0, connection, run, generation, conn: "".into() };
        let invoked = self.invoke(&link, Script::Join, &args);
        let parts = match timeout(self.answer, invoked).await {
            Ok(parts) => parts.map_err(|error| unreachable(&error))?,
            Err(_) => return Err(SharedError::Unreachable("no answer in time".into())),
        };
        let [_, done, _, generation, conn, ..] = &parts[..] else { return Err(Reply::odd()) };
        let mut state = self.state();
        state.links += 1;
        let number = state.links;
        let link = Link { number, generation: generation.as_str().into(), conn: conn.as_str().into(), ..link };
        if state.generation != *generation {
            state.done = 0;
        }
        state.done = state.done.max(done.parse().unwrap_or(0));
        state.generation.clone_from(generation);
        (state.link, state.closed) = (Some(link.clone()), None);
        Ok(link)
    }

    /// Joins again over the same connection, unless somebody has.
    async fn rejoin(&self, old: &Link) -> Result<(), SharedError> {
        let _joining = self.joining.lock().await;
        if self.state().link.as_ref().is_some_and(|link| link.number == old.number) {
            let joined = self.join(old.connection.clone(), old.run.clone()).await;
            joined.inspect_err(|error| self.close(error))?;
        }
        Ok(())
    }

    async fn ask(&self, link: &Link, script: Script, args: &[String]) -> Result<Reply, SharedError> {
        let failed: Arc<str> = match timeout(self.answer, self.invoke(link, script, args)).await {
            Ok(Ok(parts)) => return self.heard(link, parts),
            Ok(Err(error)) => error.to_string().into(),
            Err(_) => Arc::from("no answer in time"),
        };
        if self.state().link.as_ref().is_some_and(|newest| newest.number == link.number) {
            self.close(&SharedError::Unreachable(failed.clone()));
        }
        Err(SharedError::NoAnswer(failed))
    }

    /// Sends it; the server gets the script's text only when it does not know it.
    async fn invoke(&self, link: &Link, script: Script, args: &[String]) -> Result<Vec<String>, RedisError> {
        let clock = self.clock.by_hand().map_or_else(String::new, |now| now.to_string());
        let mut call = self.scripts[script as usize].prepare_invoke();
        call.key(&self.key)
            .arg(&*link.generation)
            .arg(&*self.gateway)
            .arg(&self.boot)
            .arg(&*link.conn)
            .arg(clock)
            .arg(args);
        call.invoke_async(&mut link.connection.clone()).await
    }

    fn heard(&self, link: &Link, parts: Vec<String>) -> Result<Reply, SharedError> {
        let mut parts = parts.into_iter();
        let code = parts.next().ok_or_else(Reply::odd)?;
        let mut marks = 0;
        if code == "ok" {
            let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok()).ok_or_else(Reply::odd);
            let done = number()?;
            marks = number()?;
            self.marks.store(marks, Relaxed);
            let mut state = self.state();
            if *state.generation == *link.generation {
                state.done = state.done.max(done);
            }
        }
        Ok(Reply { code, marks, parts: parts.collect() })
    }

    /// Lets the connection go, and nobody ask for a while.
    fn close(&self, why: &SharedError) {
        let mut state = self.state();
        state.link = None;
        state.closed = Some((Instant::now() + self.retry, why.clone()));
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("key", &self.key).field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

impl Reply {
    pub(crate) fn text(&self, at: usize) -> Result<Arc<str>, SharedError> {
        self.parts.get(at).map(|part| Arc::from(part.as_str())).ok_or_else(Self::odd)
    }

    /// What follows from there.
    pub(crate) fn rest(&self, from: usize) -> impl Iterator<Item = &str> {
        self.parts.iter().skip(from).map(String::as_str)
    }

    pub(crate) fn numbers(&self, from: usize) -> Result<Vec<i128>, SharedError> {
        self.rest(from).map(|part| part.parse().map_err(|_| Self::odd())).collect()
    }

    pub(crate) fn odd() -> SharedError {
        SharedError::NoAnswer("its answer makes no sense".into())
    }
}

fn unreachable(error: &RedisError) -> SharedError {
    SharedError::Unreachable(error.to_string().into())
}
