//! Plays a script's answer as a body: frames, framing, faults, holds; tells the upstream's books what was sent and how it ended.

use super::books::Visit;
use super::script::{Fault, Framing, Hold, Script};
use super::wire::{self, Asked, Piece};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::io;

/// The body of every answer of the upstream.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// One thing the body does.
enum Step {
    /// Send these bytes, the last of a frame that carries so many completion tokens.
    Send(Bytes, u64),
    /// Wait for the test's permit.
    Wait,
    /// Break the connection.
    Break,
    /// Send nothing more, and keep the connection until the client closes it.
    Stall,
}

type Steps = Box<dyn Iterator<Item = Step> + Send>;

/// The body of a streamed answer.
pub(super) fn stream(asked: &Asked, script: &Script, visit: Visit) -> Body {
    let framing = script.framing;
    let frame = move |piece: Piece| (lay_out(framing, &piece.json), piece.tokens);
    let frames = wire::pieces(asked, script).map(frame);
    let done = (!script.no_done).then(|| (lay_out(framing, "[DONE]"), 0));
    let frames: Box<dyn Iterator<Item = (Bytes, u64)> + Send> = Box::new(frames.chain(done));
    let error = || {
        lay_out(
            framing,
            &wire::error("The server had an error while processing your request.", "server_error", None)
                .replace('\n', ""),
        )
    };

    let held = matches!(script.hold, Some(Hold::Frames(_)));
    let steps =
        |frames: Box<dyn Iterator<Item = (Bytes, u64)> + Send>| -> Steps {
            Box::new(frames.flat_map(move |(bytes, tokens)| {
                held.then_some(Step::Wait).into_iter().chain([Step::Send(bytes, tokens)])
            }))
        };
    let ends_in = |frames, last: Step| -> Steps { Box::new(steps(frames).chain([last])) };
    let steps = match script.fault {
        Some(Fault::CloseBeforeFirstFrame) => ends_in(Box::new(std::iter::empty()), Step::Break),
        Some(Fault::StallBeforeFirstFrame) => ends_in(Box::new(std::iter::empty()), Step::Stall),
        Some(Fault::DieAfter(count)) => ends_in(Box::new(frames.take(count)), Step::Break),
        Some(Fault::StallAfter(count)) => ends_in(Box::new(frames.take(count)), Step::Stall),
        Some(Fault::ErrorFirst) => steps(Box::new([(error(), 0)].into_iter())),
        Some(Fault::ErrorAfter(count)) => steps(Box::new(frames.take(count).chain([(error(), 0)]))),
        Some(Fault::BadLineAfter(count)) => {
            let mut frames = frames;
            let before: Vec<_> = frames.by_ref().take(count).collect();
            steps(Box::new(
                before
                    .into_iter()
                    .chain([(Bytes::from_static(b"data: {\"choices\":[{\"delta\":\n\n"), 0)])
                    .chain(frames),
            ))
        }
        _ => steps(frames),
    };
    play(cut(framing, steps), script, visit)
}

/// The body of a whole answer.
pub(super) fn whole(text: String, tokens: u64, script: &Script, visit: Visit) -> Body {
    let bytes = Bytes::from(text);
    let half = bytes.slice(..bytes.len() / 2);
    let steps = match script.fault {
        Some(Fault::CloseBeforeFirstFrame) => vec![Step::Break],
        Some(Fault::StallBeforeFirstFrame) => vec![Step::Stall],
        Some(Fault::DieAfter(_)) => vec![Step::Send(half, tokens), Step::Break],
        Some(Fault::StallAfter(_)) => vec![Step::Send(half, tokens), Step::Stall],
        _ => vec![Step::Send(bytes, tokens)],
    };
    play(Box::new(steps.into_iter()), script, visit)
}

/// One server-sent event in this framing.
fn lay_out(framing: Framing, data: &str) -> Bytes {
    Bytes::from(match framing {
        Framing::CrLf => format!("data: {data}\r\n\r\n"),
        Framing::Comments => format!(": OPENROUTER PROCESSING\n\ndata: {data}\n\n"),
        Framing::Fields => format!("event: message\nid: 7\ndata:{data}\n\n"),
        // A line break may stand between the tokens of JSON: after the first comma outside of a text is such a place.
        Framing::MultiLine => format!("data: {}\n\n", data.replacen(",\"object\"", ",\ndata: \"object\"", 1)),
        Framing::Plain | Framing::CutEvery(_) | Framing::OneWrite => format!("data: {data}\n\n"),
    })
}

/// Lays the frames out into other writes.
fn cut(framing: Framing, steps: Steps) -> Steps {
    match framing {
        Framing::CutEvery(size) => Box::new(steps.flat_map(move |step| match step {
            Step::Send(bytes, tokens) => {
                let last = bytes.len().div_ceil(size) - 1;
                let part = |at: usize| bytes.slice(at * size..bytes.len().min((at + 1) * size));
                (0..=last).map(|at| Step::Send(part(at), if at == last { tokens } else { 0 })).collect::<Vec<_>>()
            }
            other => vec![other],
        })),
        Framing::OneWrite => {
            let mut all = Vec::new();
            let mut sum = 0;
            let mut last = None;
            for step in steps {
                match step {
                    Step::Send(bytes, tokens) => {
                        all.extend_from_slice(&bytes);
                        sum += tokens;
                    }
                    other => last = Some(other),
                }
            }
            Box::new([Step::Send(Bytes::from(all), sum)].into_iter().chain(last))
        }
        _ => steps,
    }
}

fn play(steps: Steps, script: &Script, visit: Visit) -> Body {
    let gate = match &script.hold {
        Some(Hold::Frames(gate)) => Some(gate.clone()),
        _ => None,
    };
    let body = stream::unfold((steps, visit, gate), |(mut steps, mut visit, gate)| async move {
        loop {
            match steps.next() {
                None => {
                    visit.complete();
                    return None;
                }
                Some(Step::Send(bytes, tokens)) => {
                    visit.sent(bytes.len(), tokens);
                    return Some((Ok(Frame::data(bytes)), (steps, visit, gate)));
                }
                Some(Step::Wait) => {
                    if let Some(gate) = &gate {
                        gate.pass().await;
                    }
                }
                Some(Step::Break) => {
                    // One turn for the server to flush what was sent before.
                    tokio::task::yield_now().await;
                    visit.broken();
                    let error = io::Error::new(io::ErrorKind::ConnectionReset, "the script breaks the connection here");
                    return Some((Err(error), (Box::new(std::iter::empty()), visit, gate)));
                }
                Some(Step::Stall) => std::future::pending().await,
            }
        }
    });
    StreamBody::new(body).boxed_unsync()
}
