//! The engine process itself: loads the one model that it is told to, does what it is asked, and ends when nobody asks any more.

use super::super::engine::{self, Engine, EngineError, LoadError, LoadPlan, Progress, Token, Unfinished};
use super::wire::{self, Answer, Guessing, Request};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often it shows that it lives while it is asked for something.
pub(super) const BEAT: Duration = Duration::from_millis(250);

/// Of two that need the memory, the kernel shall take this process and not its gateway.
const EXPENDABLE: &str = "500";

/// What the `engine` subcommand of the gateway's binary does: serves the gateway at the other end of its standard input, until that
/// one closes it.
///
/// # Errors
/// This process was not started by a gateway.
pub fn serve() -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("`engine` is started by the gateway, for itself: {error}");
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(|error| failed(&error))?;
    let socket = UnixStream::from(socket);
    socket.peer_addr().map_err(|error| failed(&error))?;
    set_pdeathsig(Signal::SIGKILL).map_err(|error| failed(&error))?;
    // What ends a gateway gracefully may be sent to all its processes: this one goes on until the gateway has drained.
    let ends: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    ends.thread_block().map_err(|error| failed(&error))?;
    // Where this is not allowed, the kernel chooses as it likes.
    drop(std::fs::write("/proc/self/oom_score_adj", EXPENDABLE));
    // A long step must not outlive the gateway either.
    talk(socket, || std::process::exit(0)).map_err(|error| failed(&error))
}

/// Answers what comes through the socket; `orphaned` is called on another thread when nobody is left to show life to.
pub(super) fn talk(socket: UnixStream, orphaned: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut seat = Seat {
        reader: BufReader::new(socket.try_clone()?),
        mouth: Arc::new(Mouth { socket: Mutex::new(socket), busy: AtomicBool::new(true) }),
        scratch: Vec::new(),
    };
    let mouth = Arc::downgrade(&seat.mouth);
    let progress = Arc::new(Progress::default());
    let done = progress.clone();
    std::thread::Builder::new().name("beat".into()).spawn(move || {
        loop {
            std::thread::sleep(BEAT);
            let Some(mouth) = mouth.upgrade() else { return };
            let beat = Answer::Beat { loaded: done.get() };
            if mouth.busy.load(Ordering::Relaxed) && mouth.say(&beat, &[], &mut Vec::new()).is_err() {
                return orphaned();
            }
        }
    })?;
    let Some((Request::Load(model), _)) = seat.next()? else { return Ok(()) };
    let plan = LoadPlan { progress, ..LoadPlan::new(Arc::new(*model)) };
    let mut served = Ok(());
    match engine::compute(&plan, &mut |engine| served = seat.serve(engine)) {
        Ok(()) => served,
        Err(LoadError(reason)) => seat.answer(&Answer::NotLoaded(reason), &[]),
    }
}

/// The side that speaks, for two threads.
struct Mouth {
    socket: Mutex<UnixStream>,
    /// Whether an answer is awaited.
    busy: AtomicBool,
}

impl Mouth {
    fn say(&self, answer: &Answer, tail: &[&[u8]], scratch: &mut Vec<u8>) -> io::Result<()> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        wire::write(&mut *socket, scratch, answer, tail)
    }
}

/// Where the engine's thread reads and writes.
struct Seat {
    reader: BufReader<UnixStream>,
    mouth: Arc<Mouth>,
    scratch: Vec<u8>,
}

impl Seat {
    /// The next request and its tail; `None` when the gateway has gone.
    fn next(&mut self) -> io::Result<Option<(Request<'static>, Vec<u8>)>> {
        let read = wire::read(&mut self.reader, &mut self.scratch).and_then(|(request, tail)| {
            self.mouth.busy.store(true, Ordering::Relaxed);
            Ok((request, wire::read_bytes(&mut self.reader, tail)?))
        });
        match read {
            Ok(request) => Ok(Some(request)),
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn answer(&mut self, answer: &Answer, tail: &[&[u8]]) -> io::Result<()> {
        self.mouth.busy.store(false, Ordering::Relaxed);
        self.mouth.say(answer, tail, &mut self.scratch)
    }

    fn serve(&mut self, engine: &mut dyn Engine) -> io::Result<()> {
        self.answer(&Answer::Loaded { limits: engine.limits().clone(), memory: engine.memory() }, &[])?;
        let mut texts = vec![Vec::new(); engine.limits().sequences as usize];
        while let Some((request, tail)) = self.next()? {
            match request {
                Request::Load(_) => return Err(wire::strange("a second model".into())),
                Request::WarmUp => {
                    let warm = engine.warm_up();
                    self.say_or_fail(warm, |()| Answer::Warm { memory: engine.memory() })?;
                }
                Request::Decode(rows) => match engine.decode(&rows) {
                    Ok(()) => {
                        let outputs = rows.iter().enumerate().filter(|(_, row)| row.output);
                        let logits: Vec<&[u8]> =
                            outputs.map(|(at, _)| bytemuck::cast_slice(engine.logits(at))).collect();
                        self.answer(&Answer::Decoded, &logits)?;
                    }
                    Err(error) => self.answer(&Answer::Failed(error), &[])?,
                },
                Request::Truncate { sequence, keep } => {
                    let done = engine.truncate(sequence, keep);
                    self.answer(&Answer::Done(done), &[])?;
                }
                Request::Share { from, to, length } => {
                    engine.share(from, to, length);
                    self.answer(&Answer::Done(true), &[])?;
                }
                Request::Save { sequence } => match engine.save(sequence) {
                    Some(state) => self.answer(&Answer::Saved, &[&state])?,
                    None => self.answer(&Answer::Done(false), &[])?,
                },
                Request::Restore { sequence, length } => {
                    let done = engine.restore(sequence, &tail, length);
                    self.answer(&Answer::Done(done), &[])?;
                }
                Request::Measure(frame) => {
                    let measured = engine.measure(&frame.filled(tail)?);
                    self.say_or_fail(measured, Answer::Measured)?;
                }
                Request::Show { frame, sequence, position } => {
                    let shown = engine.show(&frame.filled(tail)?, sequence, position);
                    self.say_or_fail(shown, |()| Answer::Done(true))?;
                }
                Request::Embed { lengths, tokens } => match engine.embed(&cut(&lengths, &tokens)?) {
                    Ok(vectors) => {
                        let width = vectors.first().map_or(0, Vec::len) as u32;
                        let vectors: Vec<&[u8]> = vectors.iter().map(|vector| bytemuck::cast_slice(vector)).collect();
                        self.answer(&Answer::Vectors { width }, &vectors)?;
                    }
                    Err(error) => self.answer(&Answer::Failed(error), &[])?,
                },
                Request::Guess(asked) => {
                    follow(&mut texts, &asked)?;
                    let guessed = engine.guess(&unfinished(&texts, &asked));
                    self.say_or_fail(guessed, Answer::Guessed)?;
                }
            }
        }
        Ok(())
    }

    fn say_or_fail<T>(&mut self, done: Result<T, EngineError>, answer: impl FnOnce(T) -> Answer) -> io::Result<()> {
        let answer = done.map_or_else(Answer::Failed, answer);
        self.answer(&answer, &[])
    }
}

/// Brings the texts of the sequences up to date.
fn follow(texts: &mut [Vec<Token>], asked: &[Guessing]) -> io::Result<()> {
    for Guessing { sequence, keep, more, .. } in asked {
        let text = texts.get_mut(*sequence as usize).filter(|text| text.len() >= *keep as usize);
        let text = text.ok_or_else(|| wire::strange("a text that goes on from nowhere".into()))?;
        text.truncate(*keep as usize);
        text.extend(more);
    }
    Ok(())
}

fn unfinished<'t>(texts: &'t [Vec<Token>], asked: &[Guessing]) -> Vec<Unfinished<'t>> {
    let known = |asked: &Guessing| {
        let Guessing { sequence, next, most, reach, .. } = *asked;
        Unfinished { sequence, read: &texts[sequence as usize], next, most, reach }
    };
    asked.iter().map(known).collect()
}

/// Inputs that came one after the other.
fn cut<'t>(lengths: &[u32], mut tokens: &'t [Token]) -> io::Result<Vec<&'t [Token]>> {
    let inputs = lengths.iter().map(|length| {
        let (input, rest) = tokens.split_at_checked(*length as usize)?;
        tokens = rest;
        Some(input)
    });
    inputs.collect::<Option<_>>().ok_or_else(|| wire::strange("inputs shorter than they should be".into()))
}
