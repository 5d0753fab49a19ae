//! The way of an answer from the worker to its client: a bounded channel that neither side can clog or outlive.
//!
//! The worker never waits for a client. What the channel does not take stays in the answer's outbox, the answer's sequences
//! pause (their KV stays), and the client's next read wakes the worker. When the client leaves, the worker sees it at its next turn.

use super::manager::Lease;
use futures_util::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::thread::Thread;
use std::time::Instant;
use tokio::sync::mpsc;
use tollkeeper_config::Priority;
use tollkeeper_protocol::event::ChatEvent;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::usage::Usage;

/// Events a client may be behind.
const CHANNEL: usize = 256;

/// An event or the fault that ends an answer.
pub(crate) type Event = Result<ChatEvent, ProviderFault>;

/// Wakes a worker's thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bell(Arc<OnceLock<Thread>>);

impl Bell {
    /// From now on ringing wakes this thread.
    pub(crate) fn hang_here(&self) {
        let _ = self.0.set(std::thread::current());
    }

    pub(crate) fn ring(&self) {
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}

/// How many sequences a model takes in, waiting ones included.
#[derive(Debug)]
pub(crate) struct Admission {
    capacity: u32,
    taken: AtomicU32,
}

impl Admission {
    pub(crate) fn new(capacity: u32) -> Arc<Self> {
        Arc::new(Self { capacity, taken: AtomicU32::new(0) })
    }

    /// Sequences that one may find here, itself included: the batch class leaves a quarter to those who wait.
    pub(crate) fn capacity(&self, priority: Priority) -> u32 {
        match priority {
            Priority::Interactive => self.capacity,
            Priority::Batch => self.capacity - self.capacity / 4,
        }
    }

    pub(crate) fn taken(&self) -> u32 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Room for `sequences`, or nothing if they do not all fit.
    pub(crate) fn take(self: &Arc<Self>, sequences: u32, priority: Priority) -> Option<Permit> {
        let most = self.capacity(priority);
        let fits = |taken: u32| taken.checked_add(sequences).filter(|sum| *sum <= most);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Permit { admission: self.clone(), sequences, priority, lease: None })
    }
}

/// Room taken, and later the lease of the model; both are given back on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    sequences: u32,
    priority: Priority,
    lease: Option<Lease>,
}

impl Permit {
    /// How urgent the request is.
    pub(crate) fn priority(&self) -> Priority {
        self.priority
    }

    /// Keeps the lease for as long as the room is taken.
    pub(crate) fn hold(&mut self, lease: Lease) {
        self.lease = Some(lease);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.taken.fetch_sub(self.sequences, Ordering::Relaxed);
    }
}

/// The two ends of an answer.
pub(crate) fn channel(bell: Bell) -> (Sender, Events) {
    let (sender, receiver) = mpsc::channel(CHANNEL);
    let full = Arc::new(AtomicBool::new(false));
    (Sender { sender, full: full.clone() }, Events { receiver, full, bell, first: None, ended: false })
}

/// The worker's end.
#[derive(Debug)]
pub(crate) struct Sender {
    sender: mpsc::Sender<Event>,
    /// Set while the worker waits for the client to read.
    full: Arc<AtomicBool>,
}

/// How far a delivery got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Everything is on its way.
    Done,
    /// The client reads too slowly.
    Full,
    /// The client has left.
    Gone,
}

/// One request being answered, towards its client.
pub(crate) struct Answer {
    sender: Sender,
    outbox: VecDeque<Event>,
    /// Given back before the last events are sent.
    permit: Option<Permit>,
    /// How many sequences it was admitted with.
    pub(crate) admitted: u32,
    /// Tokens so far.
    pub(crate) usage: Usage,
    /// Sequences that have not ended.
    pub(crate) open: u32,
    /// When it must have ended.
    pub(crate) deadline: Instant,
    /// When the request came.
    pub(crate) submitted: Instant,
    /// Whether a token was generated.
    pub(crate) spoken: bool,
}

impl Answer {
    pub(crate) fn new(sender: Sender, permit: Permit, open: u32, deadline: Instant, submitted: Instant) -> Self {
        Self {
            sender,
            outbox: VecDeque::new(),
            admitted: permit.sequences,
            permit: Some(permit),
            usage: Usage::default(),
            open,
            deadline,
            submitted,
            spoken: false,
        }
    }

    /// Puts an event on its way.
    pub(crate) fn say(&mut self, event: ChatEvent) {
        self.outbox.push_back(Ok(event));
    }

    /// One sequence has ended; the last one adds the usage.
    pub(crate) fn close_one(&mut self) {
        self.open -= 1;
        if self.open == 0 {
            self.outbox.push_back(Ok(ChatEvent::Usage(self.usage)));
        }
    }

    /// Nothing follows but this fault.
    pub(crate) fn fail(&mut self, fault: ProviderFault) {
        self.open = 0;
        self.outbox.push_back(Err(fault));
    }

    /// Whether its sequences may go on: nothing waits for the client.
    pub(crate) fn is_clear(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Sends what the channel takes.
    pub(crate) fn deliver(&mut self) -> Delivery {
        // First the room, then the end: who has read the end of an answer must find room for the next request.
        if self.open == 0 && self.outbox.len() <= self.sender.sender.capacity() {
            self.permit = None;
        }
        let mut told = false;
        while let Some(event) = self.outbox.pop_front() {
            match self.sender.sender.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return Delivery::Gone,
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.outbox.push_front(event);
                    if told {
                        return Delivery::Full;
                    }
                    // Say that we wait, then look again: the client may have read in between without seeing it.
                    self.sender.full.store(true, Ordering::SeqCst);
                    told = true;
                }
            }
        }
        if self.sender.sender.is_closed() { Delivery::Gone } else { Delivery::Done }
    }
}

/// The client's end: ends after the usage or after its first fault. Dropping it ends the answer.
#[derive(Debug)]
pub(crate) struct Events {
    receiver: mpsc::Receiver<Event>,
    full: Arc<AtomicBool>,
    bell: Bell,
    first: Option<Event>,
    ended: bool,
}

impl Events {
    /// Waits for the first event, so that an answer that cannot begin is an error and not a broken stream.
    pub(crate) async fn begin(mut self) -> Result<Self, ProviderFault> {
        let first = std::future::poll_fn(|context| Pin::new(&mut self).poll_next(context)).await;
        self.first = Some(Ok(first.unwrap_or_else(|| Err(lost()))?));
        Ok(self)
    }
}

fn lost() -> ProviderFault {
    ProviderFault::new(FaultKind::Internal, "the local engine stopped while it was answering; try again")
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let event = std::task::ready!(self.receiver.poll_recv(context)).unwrap_or_else(|| Err(lost()));
        self.ended = matches!(event, Ok(ChatEvent::Usage(_)) | Err(_));
        if self.full.swap(false, Ordering::SeqCst) {
            self.bell.ring();
        }
        Poll::Ready(Some(event))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.receiver.close();
        self.bell.ring();
    }
}
