//! One model's engine thread: it waits for the order to load, serves, and unloads when told to; and the handle that others hold of it.
//!
//! The thread and its worker live as long as the model is configured; the engine comes and goes. Requests in the worker live through
//! that: what was parked when the engine went goes on when it is back.

use super::answer::{Admission, Bell, Permit, channel};
use super::board::{Board, Reading};
use super::card::{self, Card};
use super::embedder::EmbedJob;
use super::engine::{self, LoadError, LoadPlan, Progress};
use super::guess::Source;
use super::known::{Beginnings, Held, Prompts};
use super::kv_store::{self, KvStore, Shelf};
use super::manager::Lease;
use super::prepare::{Frontend, Work, takes_long};
use super::vocabulary::Stamp;
use super::worker::{Command, Model, Turn, Worker};
use crate::reply::{Call, Reply, ReplyBody};
use arc_swap::ArcSwapOption;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tollkeeper_config::{LocalModel, Priority};
use tollkeeper_protocol::Request;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::rerank::RerankResponse;

/// Requests of more bytes than this are tokenised on a thread of their own.
const QUICK_BYTES: usize = 16 * 1024;

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// It serves.
    Loaded {
        /// Bytes it takes, if the engine knows.
        bytes: Option<u64>,
        /// Reading and uploading.
        load: Duration,
        /// The first decode.
        warm_up: Duration,
    },
    /// It could not be loaded, or was told to stop; nothing of it is left.
    LoadFailed(Arc<str>),
    /// It broke while serving; nothing of it is left.
    Crashed(Arc<str>),
    /// It is out of memory, as told.
    Unloaded {
        /// Setting aside what ran.
        save: Duration,
        /// Giving the memory back.
        free: Duration,
    },
}

/// Where reports go: with the generation of the order they answer.
pub(crate) type Reporter = Box<dyn Fn(u64, Report) + Send>;

/// What the thread was told and has not done yet.
#[derive(Default)]
struct Orders {
    load: Option<u64>,
    abort: bool,
    unload: bool,
    leave: bool,
    abandon: Option<ProviderFault>,
    /// How often requests were abandoned.
    abandoned: u64,
    /// Why they were, the last time.
    cause: Option<ProviderFault>,
}

/// A request that was taken in.
pub(crate) struct Ticket {
    permit: Permit,
    submitted: Instant,
    /// [`Orders::abandoned`] when it came: who comes to the worker later than its own end is not let in.
    abandoned: u64,
}

/// The orders, and a flag for the thread's loop that there is one for it.
#[derive(Default)]
struct Desk {
    orders: Mutex<Orders>,
    interrupt: Arc<AtomicBool>,
}

impl Desk {
    fn open(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, give: impl FnOnce(&mut Orders)) {
        let mut orders = self.open();
        give(&mut orders);
        self.interrupt.store(orders.abort || orders.unload || orders.leave, Ordering::Relaxed);
    }

    fn interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed)
    }
}

/// What all engine threads share.
#[derive(Clone)]
pub(crate) struct Home {
    /// See [`LoadPlan::program`].
    pub(crate) program: Option<Arc<Path>>,
    /// The card that they use, if there is one.
    pub(crate) card: Option<Arc<Card>>,
    /// Where KV is kept.
    pub(crate) store: Arc<KvStore>,
}

/// The handle of a model's engine thread. Dropping it stops the engine and waits for the thread.
pub(crate) struct Host {
    model: Arc<LocalModel>,
    frontend: Arc<ArcSwapOption<Frontend>>,
    shelf: Arc<ArcSwapOption<Shelf>>,
    commands: mpsc::Sender<Command>,
    admission: Arc<Admission>,
    board: Arc<Board>,
    held: Arc<Held>,
    prompts: Prompts,
    progress: Arc<Progress>,
    bell: Bell,
    desk: Arc<Desk>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Host {
    /// Starts the thread; it waits for orders. Nobody reports when there can be no thread: the load is then never begun.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn start(model: Arc<LocalModel>, home: Home, report: Reporter) -> std::io::Result<Self> {
        let admission = Admission::new(model.slots.saturating_add(model.queue));
        let (commands, receiver) = mpsc::channel(admission.capacity(Priority::Interactive).max(1) as usize);
        let board = Arc::new(Board::default());
        let held = Arc::new(Held::default());
        let bell = Bell::default();
        let desk = Arc::new(Desk::default());
        let frontend = Arc::new(ArcSwapOption::empty());
        let shelf = Arc::new(ArcSwapOption::empty());
        let progress = Arc::new(Progress::default());
        let seat = Seat {
            plan: LoadPlan {
                stop: desk.interrupt.clone(),
                program: home.program,
                card: home.card,
                progress: progress.clone(),
                ..LoadPlan::new(model.clone())
            },
            frontend: frontend.clone(),
            store: home.store,
            shelf: shelf.clone(),
            stamp: None,
            worker: {
                let mut worker = Worker::new(receiver, board.clone(), Box::new(Instant::now));
                worker.guess(Source::of(&model.speculate));
                worker.show(held.clone());
                worker
            },
            bell: bell.clone(),
            desk: desk.clone(),
            report,
        };
        let thread = std::thread::Builder::new().name(format!("llm-{}", model.name)).spawn(move || seat.work())?;
        let thread = Mutex::new(Some(thread));
        let prompts = Prompts::default();
        Ok(Self { model, frontend, shelf, commands, admission, board, held, prompts, progress, bell, desk, thread })
    }

    /// The configuration it runs.
    pub(crate) fn model(&self) -> &Arc<LocalModel> {
        &self.model
    }

    /// Sequences in a slot, and what else the worker shows.
    pub(crate) fn reading(&self) -> Reading {
        self.board.read()
    }

    /// Where guessed tokens come from, how many were guessed, and how many of them were right.
    pub(crate) fn guesses(&self) -> Option<(&'static str, u64, u64)> {
        let (guessed, right) = self.board.guesses();
        Source::of(&self.model.speculate).map(|source| (source.name(), guessed, right))
    }

    /// How many bytes of a request's text need not be read again.
    pub(crate) fn cached(&self, beginnings: &Beginnings) -> u64 {
        self.prompts.cached(beginnings, &self.held, self.shelf.load().as_deref())
    }

    /// How much of its load is done, while it loads and if its engine can tell.
    pub(crate) fn progress(&self) -> Option<f32> {
        self.progress.get()
    }

    /// Sequences taken in.
    pub(crate) fn taken(&self) -> u32 {
        self.admission.taken()
    }

    /// The exact number of prompt tokens, once the model was loaded.
    pub(crate) fn input_tokens(&self, request: &Request) -> Option<u64> {
        self.frontend.load().as_ref()?.count(request)
    }

    /// Tells the thread to load the model; the report carries the generation.
    pub(crate) fn load(&self, generation: u64) {
        self.order(|orders| orders.load = Some(generation));
    }

    /// Tells it to stop loading.
    pub(crate) fn abort(&self) {
        self.order(|orders| orders.abort = true);
    }

    /// Tells it to set aside what runs and to take the model out of memory.
    pub(crate) fn unload(&self) {
        self.order(|orders| orders.unload = true);
    }

    /// Tells it to end the requests that it has set aside.
    pub(crate) fn abandon(&self, fault: ProviderFault) {
        self.order(|orders| {
            orders.abandon = Some(fault.clone());
            orders.cause = Some(fault);
            orders.abandoned += 1;
        });
    }

    /// Breaks everything off. The thread ends after the engine's current step.
    pub(crate) fn leave(&self) {
        self.order(|orders| orders.leave = true);
    }

    fn order(&self, give: impl FnOnce(&mut Orders)) {
        self.desk.order(give);
        self.bell.ring();
    }

    /// Waits for the thread to end.
    pub(crate) fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!(model = self.model.name, "the engine thread panicked");
        }
    }

    /// Takes a place for a request, or says when there will be one.
    pub(crate) fn admit(&self, call: &Call) -> Result<Ticket, ProviderFault> {
        let (submitted, abandoned) = (Instant::now(), self.desk.open().abandoned);
        let wanted = sequences(&call.request);
        let capacity = self.admission.capacity(call.priority);
        if wanted > capacity {
            let message = format!(
                "the request asks for {wanted} answers at once; the model `{}` takes at most {capacity}",
                self.model.name
            );
            return Err(ProviderFault::new(FaultKind::BadRequest, message));
        }
        let permit = self.admission.take(wanted, call.priority).ok_or_else(|| {
            let taken = self.admission.taken();
            let message = format!(
                "the model `{}` has {taken} requests in work and in its queue, and takes no more; try again later",
                self.model.name
            );
            let retry_after = Some(self.board.wait_for_room(taken));
            ProviderFault { retry_after, ..ProviderFault::new(FaultKind::Overloaded, message) }
        })?;
        Ok(Ticket { permit, submitted, abandoned })
    }

    /// Checks and tokenises a request; `None` while the model was never loaded, since its tokenizer comes with it.
    pub(crate) async fn prepare(&self, call: &Call) -> Option<Result<Work, ProviderFault>> {
        let frontend = self.frontend.load_full()?;
        if call.original.len() <= QUICK_BYTES && !takes_long(&call.request) {
            return Some(frontend.prepare(&call.request, call.output_limit));
        }
        let (request, limit) = (call.request.clone(), call.output_limit);
        let prepared = tokio::task::spawn_blocking(move || frontend.prepare(&request, limit)).await;
        Some(prepared.unwrap_or_else(|error| {
            Err(ProviderFault::new(FaultKind::Internal, format!("the prompt could not be read: {error}")))
        }))
    }

    /// Answers a request that holds a lease, from when its first token is there.
    pub(crate) async fn answer(
        &self,
        work: Work,
        call: &Call,
        ticket: Ticket,
        lease: Lease,
    ) -> Result<Reply, ProviderFault> {
        let Ticket { mut permit, submitted, abandoned } = ticket;
        permit.hold(lease);
        let deadline = call.deadline;
        let late = |_| late(&self.model.name);
        let body = match work {
            Work::Generate(mut generation) => {
                generation.measured = call.measured;
                if let [prompt] = &generation.prompts[..] {
                    self.prompts.note(&Beginnings::of(&call.request), &prompt.tokens);
                }
                if let Some(shelf) = self.shelf.load_full() {
                    for prompt in &generation.prompts {
                        shelf.fetch(&prompt.tokens).await;
                    }
                }
                let (sender, events) = channel(self.bell.clone());
                let deadline_std = deadline.into_std();
                let command = Command::Generate { generation, sender, permit, submitted, deadline: deadline_std };
                self.submit(abandoned, command)?;
                let events = tokio::time::timeout_at(deadline, events.begin()).await.map_err(late)??;
                ReplyBody::Events(Box::pin(events))
            }
            Work::Embed(embedding) => {
                let (reply, vectors) = oneshot::channel();
                let job = EmbedJob { embedding, reply, deadline: deadline.into_std(), permit, vectors: Vec::new() };
                self.submit(abandoned, Command::Embed(job))?;
                let answer = tokio::time::timeout_at(deadline, vectors).await.map_err(late)?;
                let answer = answer.unwrap_or_else(|_| Err(unloading(&self.model.name)))?;
                match *call.request {
                    Request::Rerank(_) => {
                        ReplyBody::Ranking(RerankResponse { scores: answer.vectors.concat(), usage: answer.usage })
                    }
                    _ => ReplyBody::Embeddings(answer),
                }
            }
        };
        Ok(Reply { model: self.model.name.clone(), upstream_request_id: None, body })
    }

    fn submit(&self, abandoned: u64, command: Command) -> Result<(), ProviderFault> {
        // Under the lock: either the thread finds it when it abandons what it has, or it is not let in.
        let orders = self.desk.open();
        let sent = match orders.abandoned == abandoned {
            true => self.commands.try_send(command).map_err(|unsent| (unsent.into_inner(), None)),
            false => Err((command, orders.cause.clone())),
        };
        // A command that was not sent gives its lease back when it is dropped, which needs the manager's lock: not under this one.
        drop(orders);
        self.bell.ring();
        sent.map_err(|(_, cause)| cause.unwrap_or_else(|| unloading(&self.model.name)))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.leave();
        self.join();
    }
}

/// How many sequences a request takes.
fn sequences(request: &Request) -> u32 {
    let (prompts, answers) = match request {
        Request::Chat(request) => (1, request.n),
        Request::Completion(request) => (request.prompts.len(), request.n),
        Request::Embedding(_) | Request::Rerank(_) => (1, 1),
    };
    u32::try_from(prompts).unwrap_or(u32::MAX).saturating_mul(answers.max(1))
}

pub(crate) fn late(model: &str) -> ProviderFault {
    ProviderFault::new(FaultKind::Timeout, format!("the model `{model}` did not begin to answer in time"))
}

fn unloading(model: &str) -> ProviderFault {
    ProviderFault::new(FaultKind::Unavailable, format!("the model `{model}` is being unloaded"))
}

/// What the engine thread owns.
struct Seat {
    plan: LoadPlan,
    frontend: Arc<ArcSwapOption<Frontend>>,
    store: Arc<KvStore>,
    shelf: Arc<ArcSwapOption<Shelf>>,
    /// The file that the shelf is for.
    stamp: Option<Stamp>,
    worker: Worker,
    bell: Bell,
    desk: Arc<Desk>,
    report: Reporter,
}

/// How a round of serving ended.
enum Served {
    /// As told.
    Unloaded { save: Duration },
    /// The engine broke.
    Crashed(String),
}

impl Seat {
    fn work(mut self) {
        self.bell.hang_here();
        while let Some(generation) = self.next_load() {
            let report = self.load_and_serve(generation);
            (self.report)(generation, report);
        }
        self.worker.close(&unloading(&self.plan.model.name));
    }

    /// Waits for the order to load, and looks after the requests that wait meanwhile; `None` is the order to leave.
    fn next_load(&mut self) -> Option<u64> {
        loop {
            let until = self.worker.rest();
            let mut orders = self.desk.open();
            if let Some(fault) = orders.abandon.take() {
                drop(orders);
                self.worker.fail_all(&fault);
                continue;
            }
            if orders.leave {
                return None;
            }
            // Orders of the round that has ended mean nothing any more.
            (orders.abort, orders.unload) = (false, false);
            if let Some(generation) = orders.load.take() {
                self.desk.interrupt.store(false, Ordering::Relaxed);
                return Some(generation);
            }
            drop(orders);
            match until {
                None => std::thread::park(),
                Some(until) => std::thread::park_timeout(until.saturating_duration_since(Instant::now())),
            }
        }
    }

    /// Finds the place for the model's KV, as long as its file stays the same only once; without one nothing is kept.
    fn find_shelf(&mut self) {
        let stamp = Stamp::of(&self.plan.model.path);
        if self.shelf.load().is_none() || self.stamp != stamp {
            let model = kv_store::fingerprint(&self.plan.model).ok();
            self.shelf.store(model.map(|model| Arc::new(self.store.shelf(model))));
            self.stamp = stamp;
        }
    }

    /// Loads the model and serves until it is told to stop or breaks. The engine is gone when this returns.
    fn load_and_serve(&mut self, generation: u64) -> Report {
        self.find_shelf();
        let Self { plan, frontend, shelf, worker, desk, report, .. } = self;
        let name = &plan.model.name;
        let mut ended = None;
        let mut stopped = Instant::now();
        let began = stopped;
        let mut serve = |tokenizer: Arc<dyn engine::Tokenizer>, engine: &mut dyn engine::Engine| {
            let load = began.elapsed();
            let served = catch_unwind(AssertUnwindSafe(|| {
                let warming = Instant::now();
                engine.warm_up().map_err(|error| error.to_string())?;
                let warm_up = warming.elapsed();
                let limits = engine.limits().clone();
                tracing::info!(model = name, ?limits, ?load, "model loaded");
                if !frontend.load().as_ref().is_some_and(|known| known.is_for(&tokenizer, &limits)) {
                    let new = Frontend::new(plan.model.clone(), tokenizer.clone(), limits);
                    frontend.store(Some(Arc::new(new)));
                }
                desk.order(|orders| orders.abort = false);
                // What the operator says that it takes counts.
                let bytes = card::held(plan.card.as_deref(), engine.process(), engine.memory())
                    .filter(|_| plan.model.residency.memory.is_none());
                report(generation, Report::Loaded { bytes, load, warm_up });
                worker.keep_kv(shelf.load_full().map(|shelf| (*shelf).clone()));
                serve_until_told(worker, &mut Model { engine: &mut *engine, tokenizer: &*tokenizer }, desk)?;
                let saving = Instant::now();
                if desk.open().leave && !shelf.load().as_ref().is_some_and(|shelf| shelf.lasts()) {
                    worker.keep_kv(None);
                }
                worker.park(engine);
                Ok(saving.elapsed())
            }));
            let served = served.unwrap_or_else(|panic| Err(panic_text(&*panic)));
            // Samplers may refer to the engine: they go first.
            ended = Some(match served {
                Ok(save) => Served::Unloaded { save },
                Err(reason) => {
                    worker.fail_running(&crashed(name, &reason));
                    Served::Crashed(reason)
                }
            });
            stopped = Instant::now();
        };
        let loaded = catch_unwind(AssertUnwindSafe(|| engine::run(plan, &mut serve)));
        plan.progress.set(None);
        let loaded =
            loaded.unwrap_or_else(|panic| Err(LoadError(format!("loading panicked: {}", panic_text(&*panic)))));
        let named = |reason: &str| -> Arc<str> {
            format!("the model `{name}` ({}) is not available: {reason}", plan.model.path.display()).into()
        };
        match (ended, loaded) {
            (Some(Served::Unloaded { save }), _) => Report::Unloaded { save, free: stopped.elapsed() },
            (Some(Served::Crashed(reason)), _) => Report::Crashed(named(&format!("its engine crashed: {reason}"))),
            (None, Ok(())) => Report::LoadFailed(named("its engine did not begin to serve")),
            (None, Err(LoadError(reason))) => Report::LoadFailed(named(&reason)),
        }
    }
}

/// Turns the worker until the thread is told something, or the engine is broken (the reason).
fn serve_until_told(worker: &mut Worker, model: &mut Model<'_>, desk: &Desk) -> Result<(), String> {
    while !desk.interrupted() {
        model.engine.alive().map_err(|error| error.to_string())?;
        match worker.turn(model) {
            Ok(Turn::Worked) => {}
            Ok(Turn::Idle(None)) => std::thread::park(),
            Ok(Turn::Idle(Some(until))) => std::thread::park_timeout(until.saturating_duration_since(Instant::now())),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

fn crashed(model: &str, reason: &str) -> ProviderFault {
    ProviderFault::new(
        FaultKind::Internal,
        format!("the engine of `{model}` failed while it was answering ({reason}); it is being restarted, try again"),
    )
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panic".into())
}
