//! One model's engine thread: it loads, serves, loads again after a crash, and ends; and the handle that others hold of it.

use super::answer::{Admission, Bell, Permit, channel};
use super::board::Board;
use super::embedder::EmbedJob;
use super::engine::{self, LoadError, LoadPlan};
use super::prepare::{Frontend, Work};
use super::worker::{Command, Model, Turn, Worker};
use crate::backend::{BackendHealth, BackendState};
use crate::reply::{Call, Reply, ReplyBody};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tollkeeper_config::LocalModel;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// A model that crashes so often within [`CRASH_WINDOW`] is given up.
const MOST_CRASHES: usize = 3;
const CRASH_WINDOW: Duration = Duration::from_secs(60);
/// Requests of more bytes than this are tokenised on a thread of their own.
const QUICK_BYTES: usize = 16 * 1024;

/// Where a model is.
#[derive(Clone)]
pub(crate) enum Stage {
    /// Being loaded, for the first time or again.
    Loading,
    /// Serving.
    Ready(Arc<Frontend>),
    /// It cannot be loaded, or crashes again and again.
    Failed(Arc<str>),
    /// Stopped on purpose.
    Ended,
}

/// The handle of a model's engine thread. Dropping it stops the engine and waits for the thread.
pub(crate) struct Host {
    model: Arc<LocalModel>,
    stage: watch::Receiver<Stage>,
    commands: Mutex<Option<mpsc::Sender<Command>>>,
    admission: Arc<Admission>,
    board: Arc<Board>,
    bell: Bell,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Host {
    /// Starts the thread; the model loads in the background.
    pub(crate) fn start(model: Arc<LocalModel>) -> Self {
        let admission = Admission::new(model.slots.saturating_add(model.queue));
        let (commands, receiver) = mpsc::channel(admission.capacity().max(1) as usize);
        let (sender, stage) = watch::channel(Stage::Loading);
        let board = Arc::new(Board::default());
        let bell = Bell::default();
        let stop = Arc::new(AtomicBool::new(false));
        let seat = Seat {
            plan: LoadPlan { model: model.clone(), stop: stop.clone() },
            stage: sender,
            worker: Worker::new(receiver, board.clone(), Box::new(Instant::now)),
            bell: bell.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("llm-{}", model.name)).spawn(move || seat.work());
        let (thread, stage) = match thread {
            Ok(thread) => (Some(thread), stage),
            Err(error) => (None, watch::channel(Stage::Failed(format!("no thread for the model: {error}").into())).1),
        };
        Self {
            model,
            stage,
            commands: Mutex::new(Some(commands)),
            admission,
            board,
            bell,
            stop,
            thread: Mutex::new(thread),
        }
    }

    /// The configuration it runs.
    pub(crate) fn model(&self) -> &Arc<LocalModel> {
        &self.model
    }

    /// Where it is now.
    pub(crate) fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    /// Waits until it is loaded or given up.
    pub(crate) async fn settled(&self) -> Stage {
        let mut stage = self.stage.clone();
        match stage.wait_for(|stage| !matches!(stage, Stage::Loading)).await {
            Ok(stage) => stage.clone(),
            Err(_) => Stage::Ended,
        }
    }

    /// What the rest of the gateway may know.
    pub(crate) fn state(&self) -> BackendState {
        let health = match self.stage() {
            Stage::Loading => BackendHealth::Loading,
            Stage::Ready(_) => BackendHealth::Ready,
            Stage::Failed(reason) => BackendHealth::Unavailable(reason),
            Stage::Ended => BackendHealth::Unavailable("the model is being unloaded".into()),
        };
        let reading = self.board.read();
        BackendState {
            health,
            in_flight: reading.running,
            waiting: self.admission.taken().saturating_sub(reading.running),
            queue_tokens: reading.queue_tokens,
            ttft: reading.ttft,
            kv_usage: Some(reading.kv_usage),
        }
    }

    /// The exact number of prompt tokens, when the model is loaded.
    pub(crate) fn input_tokens(&self, request: &Request) -> Option<u64> {
        match self.stage() {
            Stage::Ready(frontend) => frontend.count(request),
            _ => None,
        }
    }

    /// Takes no more requests; the thread ends when the ones it has are answered.
    pub(crate) fn drain(&self) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).take();
        if matches!(self.stage(), Stage::Loading) && self.admission.taken() == 0 {
            self.stop.store(true, Ordering::Relaxed);
        }
        self.bell.ring();
    }

    /// Breaks everything off. The thread ends after the engine's current step.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.drain();
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

    /// Whether the thread has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Answers a request, from when its first token is there.
    pub(crate) async fn send(&self, call: Call) -> Result<Reply, ProviderFault> {
        let submitted = Instant::now();
        let late = |_| {
            ProviderFault::new(
                FaultKind::Timeout,
                format!("the model `{}` did not begin to answer in time", self.model.name),
            )
        };
        let permit = self.admit(&call.request)?;
        let frontend = match tokio::time::timeout_at(call.deadline, self.settled()).await.map_err(late)? {
            Stage::Ready(frontend) => frontend,
            Stage::Failed(reason) => return Err(ProviderFault::new(FaultKind::Unavailable, reason.to_string())),
            Stage::Loading | Stage::Ended => return Err(unloading(&self.model.name)),
        };
        let deadline = call.deadline;
        let body = match prepare(frontend, &call).await? {
            Work::Generate(generation) => {
                let (sender, events) = channel(self.bell.clone());
                self.submit(Command::Generate {
                    generation,
                    sender,
                    permit,
                    submitted,
                    deadline: deadline.into_std(),
                })?;
                let events = tokio::time::timeout_at(deadline, events.begin()).await.map_err(late)??;
                ReplyBody::Events(Box::pin(events))
            }
            Work::Embed(embedding) => {
                let (reply, vectors) = oneshot::channel();
                let job =
                    EmbedJob { embedding, reply, deadline: deadline.into_std(), _permit: permit, vectors: Vec::new() };
                self.submit(Command::Embed(job))?;
                let answer = tokio::time::timeout_at(deadline, vectors).await.map_err(late)?;
                ReplyBody::Embeddings(answer.unwrap_or_else(|_| Err(unloading(&self.model.name)))?)
            }
        };
        Ok(Reply { model: self.model.name.clone(), upstream_request_id: None, body })
    }

    fn admit(&self, request: &Request) -> Result<Permit, ProviderFault> {
        let wanted = sequences(request);
        let capacity = self.admission.capacity();
        if wanted > capacity {
            let message = format!(
                "the request asks for {wanted} answers at once; the model `{}` takes at most {capacity}",
                self.model.name
            );
            return Err(ProviderFault::new(FaultKind::BadRequest, message));
        }
        self.admission.take(wanted).ok_or_else(|| {
            let taken = self.admission.taken();
            let message = format!(
                "the model `{}` has {taken} requests in work and in its queue, and takes no more; try again later",
                self.model.name
            );
            let retry_after = Some(self.board.wait_for_room(taken));
            ProviderFault { retry_after, ..ProviderFault::new(FaultKind::Overloaded, message) }
        })
    }

    fn submit(&self, command: Command) -> Result<(), ProviderFault> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sent = commands.is_some_and(|commands| commands.try_send(command).is_ok());
        self.bell.ring();
        if sent { Ok(()) } else { Err(unloading(&self.model.name)) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

/// How many sequences a request takes.
fn sequences(request: &Request) -> u32 {
    let (prompts, answers) = match request {
        Request::Chat(request) => (1, request.n),
        Request::Completion(request) => (request.prompts.len(), request.n),
        Request::Embedding(_) => (1, 1),
    };
    u32::try_from(prompts).unwrap_or(u32::MAX).saturating_mul(answers.max(1))
}

async fn prepare(frontend: Arc<Frontend>, call: &Call) -> Result<Work, ProviderFault> {
    if call.original.len() <= QUICK_BYTES {
        return frontend.prepare(&call.request, call.output_limit);
    }
    let (request, limit) = (call.request.clone(), call.output_limit);
    let prepared = tokio::task::spawn_blocking(move || frontend.prepare(&request, limit)).await;
    prepared.unwrap_or_else(|error| {
        Err(ProviderFault::new(FaultKind::Internal, format!("the prompt could not be read: {error}")))
    })
}

fn unloading(model: &str) -> ProviderFault {
    ProviderFault::new(FaultKind::Unavailable, format!("the model `{model}` is being unloaded"))
}

/// What the engine thread owns.
struct Seat {
    plan: LoadPlan,
    stage: watch::Sender<Stage>,
    worker: Worker,
    bell: Bell,
}

impl Seat {
    fn work(mut self) {
        self.bell.hang_here();
        let name = self.plan.model.name.clone();
        let mut crashes: Vec<Instant> = Vec::new();
        while !self.stopped() {
            match self.load_and_serve() {
                Ok(None) => break,
                Ok(Some(crash)) => {
                    crashes.retain(|then| then.elapsed() < CRASH_WINDOW);
                    crashes.push(Instant::now());
                    if crashes.len() >= MOST_CRASHES {
                        return self.give_up(&format!(
                            "the engine of `{name}` crashed {MOST_CRASHES} times, the last time with: {crash}"
                        ));
                    }
                    tracing::error!(model = name, reason = crash, "the engine crashed and is loaded again");
                    self.stage.send_replace(Stage::Loading);
                }
                Err(_) if self.stopped() => break,
                Err(LoadError(reason)) => return self.give_up(&reason),
            }
        }
        self.worker.fail_all(&unloading(&name));
        self.stage.send_replace(Stage::Ended);
        tracing::info!(model = name, "model unloaded");
    }

    fn give_up(&mut self, reason: &str) {
        let model = &self.plan.model;
        let reason = format!("the model `{}` ({}) is not available: {reason}", model.name, model.path.display());
        tracing::error!(model = model.name, reason, "model given up");
        self.stage.send_replace(Stage::Failed(reason.as_str().into()));
        self.worker.fail_all(&ProviderFault::new(FaultKind::Unavailable, reason));
    }

    /// Loads the model and serves until it is stopped (`None`) or has crashed (the reason).
    fn load_and_serve(&mut self) -> Result<Option<String>, LoadError> {
        let Self { plan, stage, worker, .. } = self;
        let mut crash = None;
        let began = Instant::now();
        let mut serve = |tokenizer: Arc<dyn engine::Tokenizer>, engine: &mut dyn engine::Engine| {
            let limits = engine.limits().clone();
            tracing::info!(model = plan.model.name, ?limits, took = ?began.elapsed(), "model loaded");
            stage.send_replace(Stage::Ready(Arc::new(Frontend::new(plan.model.clone(), tokenizer.clone(), limits))));
            let mut model = Model { engine, tokenizer: &*tokenizer };
            let served = catch_unwind(AssertUnwindSafe(|| serve_until_done(worker, &mut model, &plan.stop)));
            crash = served.unwrap_or_else(|panic| Some(panic_text(&*panic)));
            // Samplers may refer to the engine: they go first.
            match &crash {
                Some(reason) => worker.fail_running(&crashed(&plan.model.name, reason)),
                None => worker.fail_all(&unloading(&plan.model.name)),
            }
        };
        let loaded = catch_unwind(AssertUnwindSafe(|| engine::run(plan, &mut serve)));
        loaded.unwrap_or_else(|panic| Err(LoadError(format!("loading panicked: {}", panic_text(&*panic)))))?;
        Ok(crash)
    }

    fn stopped(&self) -> bool {
        self.plan.stop.load(Ordering::Relaxed)
    }
}

/// Turns the worker until it is over or stopped (`None`) or the engine is broken (the reason).
fn serve_until_done(worker: &mut Worker, model: &mut Model<'_>, stop: &AtomicBool) -> Option<String> {
    while !stop.load(Ordering::Relaxed) {
        match worker.turn(model) {
            Ok(Turn::Worked) => {}
            Ok(Turn::Over) => return None,
            Ok(Turn::Idle(None)) => std::thread::park(),
            Ok(Turn::Idle(Some(until))) => std::thread::park_timeout(until.saturating_duration_since(Instant::now())),
            Err(error) => return Some(error.to_string()),
        }
    }
    None
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
