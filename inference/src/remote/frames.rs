//! A provider's stream, frame by frame, as fast as it is asked for.

use super::body::TimedBody;
use crate::health::Flight;
use crate::reply::Frame;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::passthrough::{ChunkPeek, is_done, peek_chunk};
use tollkeeper_protocol::sse::{SseDecoder, SseFrame};

/// The longest frame. Only images or very long tool calls sent in one piece come near it.
const LONGEST_FRAME: usize = 4 * 1024 * 1024;
/// Comments (and lines that are not JSON) kept from before the first frame; more of them are dropped.
const LEADING_FRAMES: usize = 64;
/// After `[DONE]`, how long the end of the body may take, so that its connection can be used again.
const FAREWELL: Duration = Duration::from_millis(250);

/// The frames of one answer.
pub(super) struct Frames {
    provider: Arc<str>,
    body: TimedBody,
    decoder: SseDecoder,
    /// Frames from before the first one and the first one itself; empty soon.
    leading: VecDeque<Frame>,
    state: State,
    /// A finish reason, or the usage chunk that follows them all, was seen.
    finished: bool,
    bad_frames: Arc<AtomicU64>,
    flight: Option<Flight>,
}

/// How far the answer has come, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// The body has more.
    Open,
    /// The body has ended; what the decoder still holds comes next.
    BodyEnded,
    /// `[DONE]` was handed out; only the end of the body is waited for.
    Done,
    /// Nothing more is handed out.
    Ended,
}

/// What one frame is.
enum Kind {
    /// A piece of the answer.
    Chunk,
    /// A comment or a line that is not JSON.
    Noise,
    Done,
}

impl Frames {
    /// The frames of a body, of which `bad_frames` counts those that are not JSON.
    pub(super) fn new(provider: Arc<str>, body: TimedBody, bad_frames: Arc<AtomicU64>) -> Self {
        let decoder = SseDecoder::new(LONGEST_FRAME);
        let leading = VecDeque::new();
        Self { provider, body, decoder, leading, state: State::Open, finished: false, bad_frames, flight: None }
    }

    /// Waits for the first piece of the answer; it is kept to be handed out again. From then on silences of `idle` are borne.
    ///
    /// # Errors
    /// The first piece is an error, or there is none.
    pub(super) async fn first(&mut self, idle: Duration) -> Result<(), ProviderFault> {
        loop {
            let (kind, frame) = match std::future::poll_fn(|cx| self.poll_frame(cx)).await {
                Some(next) => next?,
                None => return Err(self.ended_early()),
            };
            match kind {
                Kind::Done => {
                    let message = format!("the provider `{}` sent an empty answer", self.provider);
                    return Err(ProviderFault::new(FaultKind::Malformed, message));
                }
                Kind::Noise if self.leading.len() >= LEADING_FRAMES => {}
                Kind::Noise => self.leading.push_back(frame),
                Kind::Chunk => {
                    self.leading.push_back(frame);
                    self.body.set_idle(idle);
                    return Ok(());
                }
            }
        }
    }

    /// Counts the stream as in flight, and its end for or against the backend's health.
    pub(super) fn track(&mut self, flight: Flight) {
        self.flight = Some(flight);
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(Kind, Frame), ProviderFault>>> {
        loop {
            if self.state <= State::BodyEnded
                && let Some(frame) = self.decoder.next_frame()
            {
                return Poll::Ready(Some(self.read(frame)));
            }
            match self.state {
                State::Open => match ready!(self.body.poll_data(cx)) {
                    Some(Ok(data)) => {
                        if let Err(error) = self.decoder.push(&data) {
                            let message = format!("the provider `{}` sent too much: {error}", self.provider);
                            return Poll::Ready(Some(Err(ProviderFault::new(FaultKind::Malformed, message))));
                        }
                    }
                    // The client has its whole answer: how the connection ends no longer matters.
                    Some(Err(_)) if self.finished => self.state = State::BodyEnded,
                    Some(Err(fault)) => return Poll::Ready(Some(Err(fault))),
                    None => self.state = State::BodyEnded,
                },
                State::BodyEnded => {
                    self.state = State::Ended;
                    return Poll::Ready(self.last_words());
                }
                State::Done => {
                    // Bytes after the end are of no use; an error neither.
                    if !matches!(ready!(self.body.poll_data(cx)), Some(Ok(_))) {
                        self.state = State::Ended;
                    }
                }
                State::Ended => return Poll::Ready(None),
            }
        }
    }

    /// What is left when the body has ended: a frame without its blank line, or the fact that the answer is not whole.
    fn last_words(&mut self) -> Option<Result<(Kind, Frame), ProviderFault>> {
        if let Some(frame) = self.decoder.finish()
            && (is_done(&frame.data) || peek_chunk(&frame.data).is_ok())
        {
            return Some(self.read(terminated(frame)));
        }
        if self.finished {
            return None;
        }
        Some(Err(self.ended_early()))
    }

    fn ended_early(&self) -> ProviderFault {
        let message = format!("the answer of the provider `{}` ended early", self.provider);
        ProviderFault::new(FaultKind::Connection, message)
    }

    fn read(&mut self, frame: SseFrame) -> Result<(Kind, Frame), ProviderFault> {
        let SseFrame { raw, data, .. } = frame;
        let (kind, peek) = if data.is_empty() {
            (Kind::Noise, ChunkPeek::default())
        } else if is_done(&data) {
            self.state = State::Done;
            self.body.set_idle(FAREWELL);
            (Kind::Done, ChunkPeek::default())
        } else {
            match peek_chunk(&data) {
                Ok(ChunkPeek { error: Some(fault), .. }) => return Err(fault),
                Ok(peek) => (Kind::Chunk, peek),
                Err(_) => {
                    self.bad_frames.fetch_add(1, Relaxed);
                    (Kind::Noise, ChunkPeek::default())
                }
            }
        };
        self.finished |= peek.finished || (peek.no_choices && peek.usage.is_some());
        let done = matches!(kind, Kind::Done);
        Ok((kind, Frame { raw, data, peek, done }))
    }
}

/// A last frame as readers expect it, with a blank line at its end.
fn terminated(frame: SseFrame) -> SseFrame {
    let mut raw = BytesMut::with_capacity(frame.raw.len() + 2);
    raw.extend_from_slice(frame.raw.trim_ascii_end());
    raw.extend_from_slice(b"\n\n");
    SseFrame { raw: Bytes::from(raw), ..frame }
}

impl Stream for Frames {
    type Item = Result<Frame, ProviderFault>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(frame) = this.leading.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let item = ready!(this.poll_frame(cx));
        match (&item, this.flight.as_ref()) {
            (Some(Err(fault)), Some(flight)) => flight.failed(fault),
            (Some(Ok((Kind::Done, _))) | None, Some(flight)) => flight.succeeded(),
            _ => {}
        }
        if matches!(item, Some(Err(_)) | None) {
            this.state = State::Ended;
            this.flight = None;
        }
        Poll::Ready(item.map(|item| item.map(|(_, frame)| frame)))
    }
}
