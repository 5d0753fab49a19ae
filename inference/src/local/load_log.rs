//! What llama.cpp logs while it loads: the only place where it says why loading failed, and how large its buffers are.

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

/// What was logged.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Warnings and errors.
    pub(crate) complaints: Vec<String>,
    /// Buffers: the device, and bytes.
    buffers: Vec<(String, u64)>,
}

impl Said {
    /// Bytes on the devices; those of the CPU count where there is nothing else.
    pub(crate) fn memory(&self) -> Option<u64> {
        let sum = |of_host: bool| -> u64 {
            let of = |device: &str| device.starts_with("CPU") || device.ends_with("_Host");
            self.buffers.iter().filter(|(device, _)| of(device) == of_host).map(|(_, bytes)| bytes).sum()
        };
        [sum(false), sum(true)].into_iter().find(|bytes| *bytes > 0)
    }

    fn note(&mut self, line: &str, serious: bool) {
        self.buffers.extend(buffer(line));
        if serious && self.complaints.len() < MOST_LINES {
            self.complaints.push(line.trim().to_owned());
        }
    }
}

/// A line such as `CUDA0 KV buffer size =  448.00 MiB`, with or without the name of a function before it.
fn buffer(line: &str) -> Option<(String, u64)> {
    let (before, after) = line.split_once(" buffer size = ")?;
    let device = before.rsplit(": ").next()?.split_whitespace().next()?;
    let mebibytes: f64 = after.trim().strip_suffix("MiB")?.trim().parse().ok()?;
    Some((device.to_owned(), (mebibytes * f64::from(1 << 20)) as u64))
}

/// Runs `load` on this thread and gives back what llama.cpp logged meanwhile. The thread's own subscriber
/// sees llama.cpp's lines (some hundred a load) only if it wants that target at the debug level, and all else as ever.
pub(crate) fn capture<T>(load: impl FnOnce() -> T) -> (T, Said) {
    let said = Arc::new(Mutex::new(Said::default()));
    let chatty = tracing::enabled!(target: "llama-cpp-2", Level::DEBUG);
    let parent = tracing::dispatcher::get_default(Clone::clone);
    let capture = Dispatch::new(Capture { parent, said: said.clone(), chatty });
    let result = tracing::dispatcher::with_default(&capture, load);
    let said = std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner));
    (result, said)
}

struct Capture {
    parent: Dispatch,
    said: Arc<Mutex<Said>>,
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
        if metadata.target() == TARGET && *metadata.level() <= Level::INFO {
            let mut message = Message::default();
            event.record(&mut message);
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.note(&message.0, *metadata.level() <= Level::WARN);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_summed_by_where_they_are() {
        let mut said = Said::default();
        for line in [
            "load_tensors:   CPU_Mapped model buffer size =   100.00 MiB",
            "       CPU KV buffer size =   20.50 MiB",
            "llama_context:        CPU  output buffer size =     0.50 MiB",
            "llama_context: n_ctx = 4096",
        ] {
            said.note(line, false);
        }
        assert_eq!(said.memory(), Some(121 << 20));
        said.note("load_tensors:        CUDA0 model buffer size =  6000.00 MiB", false);
        said.note("sched_reserve:  CUDA_Host compute buffer size =    16.00 MiB", false);
        assert_eq!(said.memory(), Some(6000 << 20));
        assert!(said.complaints.is_empty());
        assert_eq!(Said::default().memory(), None);
    }
}
