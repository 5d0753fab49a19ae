//! What an engine process writes to its standard output and error, line by line into the gateway's log.

use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::Level;
use tracing::level_filters::LevelFilter;

/// Longer lines are cut, in bytes.
const LONGEST_LINE: u64 = 4096;
/// How long the last words of a process that has ended may take to come.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The output of a process.
#[derive(Default)]
pub(super) struct Lines(Arc<Heard>);

#[derive(Default)]
struct Heard {
    /// The process has closed its output, which only its end does.
    ended: AtomicBool,
    /// The last line that is no message of ours: what C++ says before it aborts.
    last: Mutex<Option<String>>,
    end: std::sync::Condvar,
}

impl Lines {
    /// Whether the process has ended.
    pub(super) fn ended(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }

    /// The last thing that a process that has ended said, if that was not by way of its log.
    pub(super) fn last_words(&self) -> Option<String> {
        let last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.end.wait_timeout_while(last, LAST_WORDS, |_| !self.ended());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

/// The level that an engine process should log at: the lowest that somebody here listens to.
pub(super) fn level() -> &'static str {
    match LevelFilter::current().into_level() {
        None | Some(Level::ERROR) => "error",
        Some(Level::WARN) => "warn",
        Some(Level::INFO) => "info",
        Some(Level::DEBUG) => "debug",
        Some(Level::TRACE) => "trace",
    }
}

/// Passes on what comes out of the pipe, on a thread that ends with it. Then this thread (who waits for work, perhaps) is woken.
///
/// # Errors
/// The system has no thread left.
pub(super) fn follow(model: &str, pipe: PipeReader) -> io::Result<Lines> {
    let lines = Lines::default();
    let (heard, model, waiter) = (lines.0.clone(), model.to_owned(), std::thread::current());
    std::thread::Builder::new().name(format!("llm-log-{model}")).spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut pipe).take(LONGEST_LINE).read_until(b'\n', &mut line) {
                Ok(1..) => {
                    let text = String::from_utf8_lossy(&line);
                    if !pass_on(&model, text.trim()) {
                        let mut last = heard.last.lock().unwrap_or_else(PoisonError::into_inner);
                        *last = Some(text.trim().to_owned());
                    }
                }
                Ok(0) | Err(_) => break,
            }
        }
        let last = heard.last.lock().unwrap_or_else(PoisonError::into_inner);
        heard.ended.store(true, Ordering::Relaxed);
        drop(last);
        heard.end.notify_all();
        waiter.unpark();
    })?;
    Ok(lines)
}

/// Logs a line as what it is; returns whether it was a message of our own, `LEVEL text`.
fn pass_on(model: &str, line: &str) -> bool {
    let (level, text) = line.split_once(' ').unwrap_or(("", line));
    match level {
        "ERROR" => tracing::error!(target: "engine", model, "{text}"),
        "WARN" => tracing::warn!(target: "engine", model, "{text}"),
        "INFO" => tracing::info!(target: "engine", model, "{text}"),
        "DEBUG" => tracing::debug!(target: "engine", model, "{text}"),
        "TRACE" => tracing::trace!(target: "engine", model, "{text}"),
        _ if line.is_empty() => return true,
        _ => {
            tracing::warn!(target: "engine", model, "{line}");
            return false;
        }
    }
    true
}
