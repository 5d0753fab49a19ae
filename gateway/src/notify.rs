//! Tells people and programs what happens: each webhook gets the notices it wants, signed, repeated when it fails, and never late for a stop.
//!
//! [`Notifier::send`] only puts a notice into the queues. Each webhook has a queue and a task of its own (`worker.rs`), so that a dead
//! receiver delays no other. `queue.rs` and `repeats.rs` decide what is sent when, with the time as an argument; `post.rs` sends it.

mod body;
mod counts;
mod dead_letter;
mod hook;
mod post;
mod queue;
mod repeats;
mod signature;
#[cfg(test)]
mod tests;
mod worker;

use arc_swap::ArcSwap;
use counts::Fate;
use dead_letter::DeadLetters;
use hook::Hook;
use jiff::Timestamp;
use post::Client;
use queue::Moment;
use serde_json::{Map, Value};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tollkeeper_config::{NoticeKind, Notify};
use tollkeeper_policies::Clock;

/// Something that happened and that somebody should know.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Notice {
    /// What it is about.
    pub(crate) kind: NoticeKind,
    /// When it happened.
    pub(crate) at: Timestamp,
    /// Whom or what it happened to, such as `agent scout`.
    pub(crate) subject: String,
    /// What else tells it from others of the same kind and subject, such as `day 80`. Not sent. Two kinds that are each other's contrary
    /// use the same key.
    pub(crate) key: String,
    /// One sentence for people.
    pub(crate) text: String,
    /// The same for programs.
    pub(crate) fields: Map<String, Value>,
    /// Whether it is sent at once even in quiet hours; at first what its kind says.
    pub(crate) urgent: bool,
}

impl Notice {
    /// A notice without a key or fields.
    pub(crate) fn new(kind: NoticeKind, at: Timestamp, subject: impl Into<String>, text: impl Into<String>) -> Self {
        let (subject, text) = (subject.into(), text.into());
        Self { kind, at, subject, key: String::new(), text, fields: Map::new(), urgent: kind.is_urgent() }
    }

    /// The same with a key.
    #[must_use]
    pub(crate) fn key(self, key: impl Into<String>) -> Self {
        Self { key: key.into(), ..self }
    }

    /// The same with one more field.
    #[must_use]
    pub(crate) fn field(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }
}

/// Sends notices to webhooks.
pub(crate) struct Notifier {
    hooks: ArcSwap<Vec<Arc<Hook>>>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    /// Reloads come from threads outside of it.
    runtime: Handle,
    /// One change of the webhooks at a time.
    changing: Mutex<()>,
}

/// What the tasks of all webhooks share.
struct Shared {
    settings: ArcSwap<Notify>,
    client: Client,
    clock: Clock,
    start: Instant,
    dead_letters: DeadLetters,
    ids: Ids,
}

impl Shared {
    fn now(&self) -> Moment {
        Moment { wall: self.clock.now(), up: self.start.elapsed() }
    }
}

/// Makes ids of notices from a random number of the process and a counter.
struct Ids {
    process: u64,
    next: AtomicU64,
}

impl Ids {
    fn new() -> Self {
        // The standard library's hash keys are random per process.
        Self { process: RandomState::new().hash_one(std::process::id()), next: AtomicU64::new(0) }
    }

    fn next(&self) -> Arc<str> {
        format!("ntc_{:016x}{:08x}", self.process, self.next.fetch_add(1, Relaxed)).into()
    }
}

impl Notifier {
    /// Starts a task for each webhook. Must be called inside a runtime.
    pub(crate) fn start(settings: &Notify, clock: Clock) -> Self {
        let shared = Shared {
            settings: ArcSwap::from_pointee(settings.clone()),
            client: post::client(),
            clock,
            start: Instant::now(),
            dead_letters: DeadLetters::default(),
            ids: Ids::new(),
        };
        let notifier = Self {
            hooks: ArcSwap::default(),
            shared: Arc::new(shared),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            changing: Mutex::new(()),
        };
        notifier.reload(settings);
        notifier
    }

    /// Puts a notice into the queue of each webhook that wants it. Never waits for anything and never fails: what has no room is
    /// dropped and counted.
    pub(crate) fn send(&self, notice: Notice) {
        let hooks = self.hooks.load();
        if hooks.is_empty() {
            return;
        }
        let (notice, id, now) = (Arc::new(notice), self.shared.ids.next(), self.shared.now());
        for hook in hooks.iter() {
            hook.offer(&notice, &id, now);
        }
    }

    /// Takes over changed settings. A webhook of the same name keeps its queue, whatever else of it changed; the queue of one that is
    /// gone goes to the dead-letter file.
    pub(crate) fn reload(&self, settings: &Notify) {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.settings.store(Arc::new(settings.clone()));
        let old = self.hooks.load_full();
        let kept = |name: &str| old.iter().find(|hook| *hook.name == *name).cloned();
        let hooks = settings.webhooks.iter().map(|webhook| match kept(&webhook.name) {
            Some(hook) => {
                hook.change(webhook.clone());
                hook
            }
            None => {
                let hook = Arc::new(Hook::new(webhook.clone()));
                self.tasks.spawn_on(worker::work(hook.clone(), self.shared.clone()), &self.runtime);
                hook
            }
        });
        self.hooks.store(Arc::new(hooks.collect()));
        for gone in old.iter().filter(|hook| settings.webhooks.iter().all(|webhook| webhook.name != hook.name)) {
            gone.cut("the webhook was removed");
        }
    }

    /// Tries once more to deliver all that waits, for at most `notify.drain_timeout` or until `force`; the rest goes to the dead-letter
    /// file, and so do reminders where it is quiet.
    pub(crate) async fn shutdown(&self, force: &CancellationToken) {
        let hooks = self.hooks.load_full();
        hooks.iter().for_each(|hook| hook.close());
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => return,
            () = tokio::time::sleep(self.shared.settings.load().drain_timeout) => {}
            () = force.cancelled() => {}
        }
        hooks.iter().for_each(|hook| hook.cut("the gateway stopped"));
        self.tasks.wait().await;
    }

    /// What became of notices, for `GET /metrics`: webhook, kind, fate and number, where it is not 0.
    pub(crate) fn counts(&self) -> Vec<(Arc<str>, NoticeKind, &'static str, u64)> {
        let hooks = self.hooks.load();
        let counts =
            hooks.iter().flat_map(|hook| hook.counts.all().map(|(kind, fate, n)| (hook.name.clone(), kind, fate, n)));
        counts.map(|(name, kind, fate, n)| (name, kind, Fate::name(fate), n)).collect()
    }

    /// Notices that are still to be delivered, by webhook.
    pub(crate) fn waiting(&self) -> Vec<(Arc<str>, usize)> {
        self.hooks.load().iter().map(|hook| (hook.name.clone(), hook.waiting())).collect()
    }
}
