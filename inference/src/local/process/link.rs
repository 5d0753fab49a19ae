//! The gateway's end of an engine process: starts it, asks it, knows whether it lives, and never leaves it behind.

use super::super::engine::{EngineError, LoadError, LoadPlan, Progress};
use super::log::{self, Lines};
use super::wire::{self, Answer, Request};
use nix::sys::signal::Signal;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tollkeeper_config::environment;

/// How often a wait for the process looks at what else may end it.
const LOOK: Duration = Duration::from_millis(100);

/// What every engine process has in its environment: threads that wait do not burn the cores that the gateway needs, and a crash does
/// not call a debugger.
const ENVIRONMENT: [(&str, &str); 3] =
    [("GOMP_SPINCOUNT", "0"), ("OMP_WAIT_POLICY", "passive"), ("GGML_NO_BACKTRACE", "1")];

/// A process and the socket to it. Dropping it kills the process and waits for its end, so that its memory is free again.
pub(super) struct Link {
    reader: BufReader<Patient>,
    writer: UnixStream,
    scratch: Vec<u8>,
    /// `None` in tests whose other end is a thread.
    process: Option<Process>,
    broken: Option<String>,
    /// Where to show how far it is, while it loads.
    progress: Option<Arc<Progress>>,
}

struct Process {
    child: Child,
    lines: Lines,
}

impl Link {
    /// Starts `program engine`. Its first request has to be [`Request::Load`].
    pub(super) fn start(program: &Path, plan: &LoadPlan, silence: Duration) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let (lines, output) = io::pipe()?;
        let mut command = Command::new(program);
        // The socket is its standard input, so that no descriptor has to outlive an exec but the usual three. A group of its own keeps
        // the Ctrl-C of a terminal from it: the gateway says when it ends.
        command.arg0("tollkeeper").args(["engine", "--log", log::level()]).process_group(0);
        // No key of a provider is any of its business.
        command.env_clear().envs(environment::of_engines()).envs(ENVIRONMENT);
        if let Some(card) = &plan.card {
            // By its UUID: numbers of CUDA have an order of their own.
            command.env("CUDA_VISIBLE_DEVICES", &*card.last().card);
        }
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn()?;
        // The command holds copies of what is the process's alone: while they are open, its end cannot be heard.
        drop(command);
        let mut process = Process { child, lines: Lines::default() };
        match log::follow(&plan.model.name, lines).and_then(|lines| {
            process.lines = lines;
            Self::over(ours, silence)
        }) {
            Ok(link) => Ok(Self { process: Some(process), ..link }),
            Err(error) => {
                process.end();
                Err(error)
            }
        }
    }

    /// A link over this socket, to a process that somebody else looks after.
    pub(super) fn over(socket: UnixStream, silence: Duration) -> io::Result<Self> {
        socket.set_read_timeout(Some(LOOK))?;
        // It reads whenever it may be written to.
        socket.set_write_timeout(Some(silence))?;
        let reader = Patient { socket: socket.try_clone()?, silence, heard: Instant::now(), stop: None };
        Ok(Self {
            reader: BufReader::new(reader),
            writer: socket,
            scratch: Vec::new(),
            process: None,
            broken: None,
            progress: None,
        })
    }

    /// Asks and waits for the answer; gives the length of its tail too, which has to be read next.
    pub(super) fn ask(&mut self, request: &Request<'_>) -> Result<(Answer, u64), EngineError> {
        self.ask_with(request, &[])
    }

    /// The same for a request with a tail.
    pub(super) fn ask_with(&mut self, request: &Request<'_>, tail: &[u8]) -> Result<(Answer, u64), EngineError> {
        self.send(request, tail)?;
        self.answer()
    }

    pub(super) fn send(&mut self, request: &Request<'_>, tail: &[u8]) -> Result<(), EngineError> {
        self.sound()?;
        self.reader.get_mut().heard = Instant::now();
        wire::write(&mut self.writer, &mut self.scratch, request, &[tail]).map_err(|error| self.broke(&error))
    }

    fn answer(&mut self) -> Result<(Answer, u64), EngineError> {
        loop {
            match wire::read(&mut self.reader, &mut self.scratch) {
                Ok((Answer::Beat { loaded }, 0)) => {
                    if let Some(progress) = &self.progress {
                        progress.set(loaded);
                    }
                }
                Ok((Answer::Failed(error), 0)) => return Err(error),
                Ok(answer) => return Ok(answer),
                Err(error) => return Err(self.broke(&error)),
            }
        }
    }

    /// The answer to the request to load, unless `stop` is set before: then the process is gone.
    pub(super) fn loaded(&mut self, plan: &LoadPlan) -> Result<(Answer, u64), LoadError> {
        self.reader.get_mut().stop = Some(plan.stop.clone());
        self.progress = Some(plan.progress.clone());
        let answer = self.answer();
        self.reader.get_mut().stop = None;
        self.progress = None;
        answer.map_err(|error| match self.process.as_ref().and_then(|process| process.lines.last_words()) {
            Some(words) => LoadError(format!("{error} while loading; it last said: {words}")),
            None => LoadError(format!("{error} while loading")),
        })
    }

    /// Reads the tail of an answer that has to be of so many numbers.
    pub(super) fn numbers(&mut self, tail: u64, count: usize, into: &mut Vec<f32>) -> Result<(), EngineError> {
        wire::read_numbers(&mut self.reader, tail, count, into).map_err(|error| self.broke(&error))
    }

    /// Reads the tail of an answer, however long it is.
    pub(super) fn bytes(&mut self, tail: u64) -> Result<Vec<u8>, EngineError> {
        wire::read_bytes(&mut self.reader, tail).map_err(|error| self.broke(&error))
    }

    /// The number of its process.
    pub(super) fn process(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.child.id())
    }

    /// Whether it has not failed yet, and its process has not ended.
    pub(super) fn sound(&mut self) -> Result<(), EngineError> {
        match &self.broken {
            Some(reason) => Err(EngineError::Broken(reason.clone())),
            None if self.process.as_ref().is_some_and(|process| process.lines.ended()) => {
                Err(self.broke(&ErrorKind::UnexpectedEof.into()))
            }
            None => Ok(()),
        }
    }

    /// It is of no use any more: ends the process, and says why from now on.
    pub(super) fn broke(&mut self, error: &io::Error) -> EngineError {
        let ended = self.process.as_mut().and_then(Process::end);
        let gone = matches!(
            error.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::WriteZero
        );
        let reason = match ended {
            // Somebody who is dead already keeps the cause of his death: being killed once more does not change it.
            Some(status) if gone => format!("its process {}", fate(status)),
            _ if gone => "its process ended".to_owned(),
            _ => error.to_string(),
        };
        EngineError::Broken(self.broken.get_or_insert(reason).clone())
    }
}

impl Process {
    /// Kills it, and waits until nothing of it is left.
    fn end(&mut self) -> Option<ExitStatus> {
        // That there is nothing to kill any more is no failure.
        drop(self.child.kill());
        self.child.wait().ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

fn fate(status: ExitStatus) -> String {
    let name = |number: i32| Signal::try_from(number).map_or(format!("signal {number}"), |signal| signal.to_string());
    match (status.signal(), status.code()) {
        (Some(9), _) => "was killed by SIGKILL (by hand, or because the machine has no memory left)".to_owned(),
        (Some(number), _) => format!("was killed by {}", name(number)),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

/// A socket whose reader waits as long as it hears something at least every `silence`, and is not told to stop.
struct Patient {
    socket: UnixStream,
    silence: Duration,
    /// When something came, or was asked for.
    heard: Instant,
    stop: Option<Arc<AtomicBool>>,
}

impl Read for Patient {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.read(into) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                read => {
                    self.heard = Instant::now();
                    return read;
                }
            }
            if self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return Err(io::Error::other("its process was stopped"));
            }
            if self.heard.elapsed() >= self.silence {
                let message = format!("its process did not show life for {:?} and was killed", self.silence);
                return Err(io::Error::new(ErrorKind::TimedOut, message));
            }
        }
    }
}
