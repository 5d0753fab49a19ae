//! What llama.cpp logs while it loads: the only place where it says why loading failed.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};

/// The target of llama.cpp's log lines.
const TARGET: &str = "llama-cpp-2";
/// Lines kept, so that a chatty failure stays readable.
const MOST_LINES: usize = 40;

/// Runs `load` on this thread and gives back the warnings and errors that llama.cpp logged meanwhile. The thread's own subscriber
/// sees llama.cpp's lines (some hundred a load) only if it wants that target at the debug level, and all else as ever.
pub(crate) fn capture<T>(load: impl FnOnce() -> T) -> (T, Vec<String>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let chatty = tracing::enabled!(target: "llama-cpp-2", Level::DEBUG);
    let parent = tracing::dispatcher::get_default(Clone::clone);
    let capture = Dispatch::new(Capture { parent, lines: lines.clone(), chatty });
    let result = tracing::dispatcher::with_default(&capture, load);
    let lines = std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner));
    (result, lines)
}

struct Capture {
    parent: Dispatch,
    lines: Arc<Mutex<Vec<String>>>,
    chatty: bool,
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.0 = value.to_owned();
        }
    }
}

impl Subscriber for Capture {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == TARGET || self.parent.enabled(metadata)
    }

    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let serious = *metadata.level() <= Level::WARN;
        if metadata.target() == TARGET && serious {
            let mut message = Message::default();
            event.record(&mut message);
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() < MOST_LINES {
                lines.push(message.0.trim().to_owned());
            }
        }
        if (metadata.target() != TARGET || self.chatty) && self.parent.enabled(metadata) {
            self.parent.event(event);
        }
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.parent.new_span(span)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        self.parent.record(span, values);
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        self.parent.record_follows_from(span, follows);
    }

    fn enter(&self, span: &Id) {
        self.parent.enter(span);
    }

    fn exit(&self, span: &Id) {
        self.parent.exit(span);
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.parent.clone_span(id)
    }

    fn try_close(&self, id: Id) -> bool {
        self.parent.try_close(id)
    }
}
