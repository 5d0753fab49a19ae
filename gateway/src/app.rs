//! What all requests share, how it is put together, and how it is taken down.

use crate::economics::Economics;
use crate::learning::{self, Learning};
use crate::listen::{self, Listener};
use crate::metrics::{Labels, Metrics};
use crate::notify::Notifier;
use crate::paces::Paces;
use crate::routes::Door;
use crate::runs::Watchers;
use crate::told;
use arc_swap::ArcSwap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tollkeeper_config::{Config, Reloader};
use tollkeeper_inference::{Fleet, FleetError};
use tollkeeper_policies::{Clock, OpenError, Place, Policies, Rates};

/// How often it is looked whether something has used up its time.
const TICK: Duration = Duration::from_secs(1);

/// What all requests share.
pub(crate) struct App {
    pub(crate) config: ArcSwap<Config>,
    pub(crate) fleet: Fleet,
    pub(crate) policies: Policies,
    pub(crate) rates: Rates,
    pub(crate) economics: Economics,
    pub(crate) metrics: Metrics,
    /// How fast remote models write.
    pub(crate) paces: Paces,
    /// What routes learn from their outcomes.
    pub(crate) learning: Learning,
    pub(crate) notifier: Notifier,
    pub(crate) clock: Clock,
    pub(crate) draining: AtomicBool,
    /// Cancelled when the gateway begins to stop.
    pub(crate) stop: CancellationToken,
    /// Answers that are waited for without their clients, until there was enough waiting.
    pub(crate) abandoned: TaskTracker,
    pub(crate) enough: CancellationToken,
    /// Places for those who watch runs.
    pub(crate) watchers: Arc<Watchers>,
    places: Arc<Semaphore>,
    most_in_flight: usize,
    pub(crate) labels: Labels,
    pace: Pace,
    ids: Ids,
    /// The ledgers: this gateway's file, or the database with those of its fleet.
    pub(crate) ledger: Place,
    /// What reads the configuration file again, if there is one.
    pub(crate) reloader: Option<Reloader>,
    /// Whether `/admin` has a listener of its own.
    pub(crate) admin_apart: bool,
    /// One reload at a time: the file's watcher and SIGHUP may come together.
    reloading: Mutex<()>,
}

impl App {
    /// A place among the requests in flight, or how long it will take until one is free.
    pub(crate) fn enter(&self) -> Result<OwnedSemaphorePermit, (usize, Duration)> {
        self.places.clone().try_acquire_owned().map_err(|_| {
            self.metrics.shed.inc();
            (self.most_in_flight, self.pace.until_free(self.most_in_flight))
        })
    }

    /// A request in flight ended after so long.
    pub(crate) fn left(&self, after: Duration) {
        self.pace.observe(after);
    }

    /// Requests in flight now.
    pub(crate) fn in_flight(&self) -> usize {
        self.most_in_flight.saturating_sub(self.places.available_permits())
    }

    /// An id that no other request of this or any other process has, and a number that differs between requests.
    pub(crate) fn next_id(&self) -> (Arc<str>, u64) {
        self.ids.next()
    }

    /// Takes over what can change while running: agents, budgets, aliases, models, providers, prices, webhooks. Address, TLS, store and the limits of
    /// connections and requests in flight stay as they were at the start.
    pub(crate) fn reload(&self, config: &Arc<Config>) {
        let _alone = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        if self.draining.load(Relaxed) {
            return;
        }
        self.fleet.reload(config);
        self.policies.reload(config);
        self.rates.reload(&self.policies.effective());
        self.economics.reload(self, config);
        self.notifier.reload(&config.notify);
        self.config.store(config.clone());
        // Nothing is counted by the old configuration after this.
        self.learning.reload(config);
        self.metrics.reloaded("ok");
        tracing::info!(agents = config.agents.len(), aliases = config.aliases.len(), "configuration reloaded");
    }
}

impl App {
    /// Agents were made or changed at run time: has their rate limits hold.
    pub(crate) fn limits_changed(&self) {
        let _alone = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        self.rates.reload(&self.policies.effective());
    }
}

/// How fast requests end: a smoothed duration, from which the wait for a free place follows.
#[derive(Default)]
struct Pace(AtomicU64);

impl Pace {
    /// Keeps 15/16 of the old mean. Two requests that end at once may lose one of the updates, which an average can bear.
    fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 16);
        let old = self.0.load(Relaxed);
        let mean = if old == 0 { micros } else { old.saturating_mul(15).saturating_add(micros) / 16 };
        self.0.store(mean.max(1), Relaxed);
    }

    /// With all places taken, one is left every (mean duration / places).
    fn until_free(&self, places: usize) -> Duration {
        Duration::from_micros(self.0.load(Relaxed) / places.max(1) as u64)
            .clamp(Duration::from_secs(1), Duration::from_secs(60))
    }
}

/// Makes ids from a random number of the process and a counter.
struct Ids {
    process: u64,
    next: AtomicU64,
}

impl Ids {
    fn new() -> Self {
        // The standard library's hash keys are random per process.
        Self { process: RandomState::new().hash_one(std::process::id()), next: AtomicU64::new(0) }
    }

    fn next(&self) -> (Arc<str>, u64) {
        let number = self.next.fetch_add(1, Relaxed);
        (format!("req_{:016x}{number:08x}", self.process).into(), number)
    }
}

/// Ends what has used up its time.
async fn tick(app: Arc<App>) {
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {
                app.economics.refresh(&app, &app.config.load());
                app.policies.tick().await;
            }
        }
    }
}

/// Has the tokenizers of configured models at hand before the first request.
fn warm_tokenizers(config: &Config) {
    let targets = config.aliases.values().flat_map(|alias| alias.targets.iter().map(|(target, _)| target.to_string()));
    let names: Vec<String> = targets.collect();
    // On a thread of its own, for nobody waits.
    tokio::task::spawn_blocking(move || tollkeeper_router::tokens::warm(names.iter().map(String::as_str)));
}

/// Tells what has gone down or come back.
async fn watch_health(app: Arc<App>) {
    let mut health = told::Health::default();
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => health.look(&app),
        }
    }
}

/// Starts gateways.
#[derive(Debug)]
pub struct Gateway;

/// What is not configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the policies take the time from.
    pub clock: Clock,
    /// The program whose `engine` subcommand runs local models in processes of their own: this one, if it has it.
    pub engine_program: Option<Arc<Path>>,
    /// What reads the configuration file again when the operator asks for it over HTTP.
    pub reloader: Option<Reloader>,
}

impl Default for Options {
    fn default() -> Self {
        Self { clock: Clock::system(), engine_program: None, reloader: None }
    }
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not ours.
    #[error(
        "cannot listen on {addr}: {reason}; choose another `server.listen` (or `admin_listen`) or stop what uses it"
    )]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The certificate or key cannot be used.
    #[error("cannot use the TLS files: {0}")]
    Tls(String),
    /// The ledger cannot be opened.
    #[error(transparent)]
    Ledger(#[from] OpenError),
    /// A provider cannot be used as configured.
    #[error(transparent)]
    Fleet(#[from] FleetError),
}

/// A running gateway. Dropping it does not stop it; [`Running::shutdown`] does.
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Where it listens for the operator, if that is not the same.
    pub admin_addr: Option<SocketAddr>,
    app: Arc<App>,
    stop: CancellationToken,
    force: CancellationToken,
    server: JoinHandle<()>,
    /// What tells of events, and what tells it that there will be no more.
    told: (JoinHandle<()>, CancellationToken),
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Binds, opens the ledger, starts the engines (models load in the background) and serves.
    ///
    /// # Errors
    /// The address, the TLS files, the ledger or a provider's settings cannot be used.
    #[expect(clippy::unused_async, reason = "must run inside a runtime; callers await it")]
    pub async fn start(config: Arc<Config>, options: Options) -> Result<Running, StartError> {
        let tls = config.server.tls.as_ref();
        let listener = Listener::bind(config.server.listen, tls)?;
        let addr = listener.addr;
        let admin = config.server.admin_listen.map(|listen| Listener::bind(listen, tls)).transpose()?;
        let admin_addr = admin.as_ref().map(|listener| listener.addr);
        let (policies, recovered) = Policies::open(&config, options.clock.clone())?;
        if recovered.unknown > 0 {
            tracing::warn!(
                requests = recovered.unknown,
                charged_usd = %recovered.amount,
                "an earlier process left requests open; they are charged at what they had leased"
            );
        }
        let fleet = Fleet::start(&config, options.engine_program)?;
        let metrics = Metrics::new();
        metrics.recovered(recovered);
        let rates = Rates::new(&policies.effective(), options.clock.clone());
        let most_in_flight = config.server.max_in_flight;
        let (stop, force) = (CancellationToken::new(), CancellationToken::new());
        let learning = Learning::restore(policies.take_learned(), &config);
        let app = Arc::new(App {
            config: ArcSwap::new(config.clone()),
            fleet,
            policies,
            rates,
            economics: Economics::new(),
            metrics,
            paces: Paces::default(),
            learning,
            notifier: Notifier::start(&config.notify, options.clock.clone()),
            clock: options.clock,
            draining: AtomicBool::new(false),
            stop: stop.clone(),
            abandoned: TaskTracker::new(),
            enough: CancellationToken::new(),
            watchers: Arc::default(),
            places: Arc::new(Semaphore::new(most_in_flight)),
            most_in_flight,
            pace: Pace::default(),
            ids: Ids::new(),
            labels: Labels::default(),
            ledger: Place::fleet(&config.store),
            reloader: options.reloader,
            admin_apart: config.server.admin_listen.is_some(),
            reloading: Mutex::new(()),
        });
        app.economics.refresh(&app, &config);
        tokio::spawn(tick(app.clone()));
        tokio::spawn(watch_health(app.clone()));
        tokio::spawn(learning::keep(app.clone()));
        warm_tokenizers(&config);
        // Until the policies are closed: also what the drain ends is told to who shares the budgets.
        let policies = app.policies.clone();
        tokio::spawn(async move { policies.keep_shared().await });
        let over = CancellationToken::new();
        let told = (tokio::spawn(told::events(app.clone(), over.clone())), over);
        let serve = |door, listener| {
            // When one has drained it cuts what is left of its own connections, not of the other's.
            listen::serve(app.clone(), door, listener, stop.clone(), force.child_token())
        };
        let main = serve(Door::Main, listener);
        let server = match admin {
            None => tokio::spawn(main),
            Some(admin) => {
                let admin = serve(Door::Admin, admin);
                tokio::spawn(async move { _ = tokio::join!(main, admin) })
            }
        };
        Ok(Running { addr, admin_addr, app, stop, force, server, told })
    }
}

impl Running {
    /// Takes over a changed configuration.
    pub fn reload(&self, config: &Arc<Config>) {
        self.app.reload(config);
    }

    /// A handle that takes over changed configurations from another thread.
    pub fn reloader(&self) -> impl Fn(&Arc<Config>) + Send + Sync + 'static {
        let app = self.app.clone();
        move |config| app.reload(config)
    }

    /// Counts a configuration that was refused; the old one stays in force.
    pub fn reload_refused(&self) {
        self.app.metrics.reloaded("refused");
    }

    /// A handle for [`Running::reload_refused`].
    pub fn refuser(&self) -> impl Fn() + Send + Sync + 'static {
        let app = self.app.clone();
        move || app.metrics.reloaded("refused")
    }

    /// What cuts a drain short.
    pub fn force(&self) -> CancellationToken {
        self.force.clone()
    }

    /// Returns when all local models are loaded or have failed.
    pub async fn ready(&self) {
        self.app.fleet.ready().await;
    }

    /// Returns when connections are no longer accepted although nobody asked for that: a bug, after which the process should end.
    pub async fn died(&mut self) {
        // Whatever the task's end looks like, it says the same.
        let _ = (&mut self.server).await;
    }

    /// Stops accepting, waits for requests up to `server.drain_timeout`, cuts the rest, settles everything, closes the ledger and
    /// delivers what notices it can.
    pub async fn shutdown(self) {
        self.app.draining.store(true, Relaxed);
        self.stop.cancel();
        let limit = Instant::now() + self.app.config.load().server.drain_timeout;
        if self.server.await.is_err() {
            tracing::error!("the server task ended in a panic");
        }
        self.app.abandoned.close();
        tokio::select! {
            () = self.app.abandoned.wait() => {}
            () = sleep_until(limit) => {}
            () = self.force.cancelled() => {}
        }
        self.app.enough.cancel();
        self.app.abandoned.wait().await;
        self.app.fleet.shutdown().await;
        learning::save(&self.app).await;
        self.app.policies.close().await;
        // All that the drain settled has been told of by then.
        let (told, over) = self.told;
        over.cancel();
        if told.await.is_err() {
            tracing::error!("what tells of events ended in a panic");
        }
        self.app.notifier.shutdown(&self.force).await;
    }
}
