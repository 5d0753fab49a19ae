//! A streamed answer on its way to the client: translated or passed through, metered piece by piece, settled at its end.

use crate::body::Body;
use crate::cut::Cut;
use crate::dispatch::Answer;
use crate::error::ApiError;
use crate::meter::Meter;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderName, Response};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::time::{Instant, Sleep, sleep_until};
use tollkeeper_inference::{EventStream, Frame, FrameStream, ReplyBody};
use tollkeeper_policies::{Denied, Outcome};
use tollkeeper_protocol::Request;
use tollkeeper_protocol::event::ChatEvent;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::openai::{self, AnswerMeta, Extension, StreamEncoder};
use tollkeeper_protocol::sse;

/// Tells nginx and its like not to hold events back.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A stream in progress. Pulled by the connection, so a slow reader slows the backend. Dropping it stops the backend and settles.
pub(crate) struct Relay {
    source: Source,
    /// What has come and is not paid for yet.
    piece: Option<Piece>,
    meter: Meter,
    encoder: StreamEncoder,
    backend: Arc<str>,
    include_usage: bool,
    /// Choices that have not ended, by index.
    open: Vec<u32>,
    deadline: Pin<Box<Sleep>>,
    cut: Cut,
}

enum Source {
    /// A provider's frames, passed through.
    Frames(FrameStream),
    /// A local engine's events, encoded here.
    Events(EventStream),
    /// The answer is complete; the provider's connection is read to its end so that it can be used again.
    Spent(FrameStream),
    /// Nothing more to come.
    Ended,
}

/// A piece of an answer.
enum Piece {
    Frame(Frame),
    Event(ChatEvent),
}

/// The response that carries a stream.
pub(crate) fn respond(
    answer: Answer,
    request: &Request,
    meter: Meter,
    (deadline, cut): (Instant, Cut),
) -> Response<Body> {
    let meta = AnswerMeta { id: answer.id.to_string(), created: answer.created, model: answer.reply.model };
    let include_usage = request.include_usage();
    let source = match answer.reply.body {
        ReplyBody::Frames(frames) => Source::Frames(frames),
        ReplyBody::Events(events) => Source::Events(events),
        ReplyBody::Bytes { .. } | ReplyBody::Embeddings(_) | ReplyBody::Ranking(_) => {
            let fault =
                ProviderFault::new(FaultKind::Malformed, "the backend answered whole although a stream was asked for");
            Source::Events(Box::pin(stream::iter([Err(fault)])))
        }
    };
    let relay = Relay {
        source,
        piece: None,
        meter,
        encoder: StreamEncoder::new(request.operation(), meta, include_usage),
        backend: answer.backend,
        include_usage,
        open: (0..u32::try_from(request.answers()).unwrap_or(1)).collect(),
        deadline: Box::pin(sleep_until(deadline)),
        cut,
    };
    let mut response = Response::new(Body::Relay(Box::new(relay)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

impl Relay {
    /// The next bytes for the client.
    pub(crate) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let running = !matches!(self.source, Source::Ended | Source::Spent(_));
            if running && let Poll::Ready(denied) = self.cut.as_mut().poll(cx) {
                return Poll::Ready(Some(self.stop(denied)));
            }
            if running && self.deadline.as_mut().poll(cx).is_ready() {
                let fault =
                    ProviderFault::new(FaultKind::Timeout, "the stream took longer than `server.request_timeout`");
                return Poll::Ready(Some(self.broken(fault)));
            }
            if self.piece.is_some() {
                if let Err(denied) = ready!(self.meter.poll_paid(cx)) {
                    return Poll::Ready(Some(self.stop(denied)));
                }
                let bytes = self.piece.take().and_then(|piece| match piece {
                    Piece::Frame(frame) => self.frame(frame),
                    Piece::Event(event) => self.event(&event),
                });
                if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
                    return Poll::Ready(Some(bytes));
                }
                continue;
            }
            match &mut self.source {
                Source::Ended => return Poll::Ready(None),
                Source::Spent(frames) => {
                    if ready!(frames.as_mut().poll_next(cx)).is_none() {
                        self.source = Source::Ended;
                    }
                    continue;
                }
                Source::Frames(frames) => match ready!(frames.as_mut().poll_next(cx)) {
                    Some(Ok(frame)) => self.see_frame(frame),
                    Some(Err(fault)) => return Poll::Ready(Some(self.broken(fault))),
                    None => return Poll::Ready(Some(self.ended_without_done())),
                },
                Source::Events(events) => match ready!(events.as_mut().poll_next(cx)) {
                    Some(Ok(event)) => {
                        self.meter.event(&event);
                        self.piece = Some(Piece::Event(event));
                    }
                    Some(Err(fault)) => return Poll::Ready(Some(self.broken(fault))),
                    None => return Poll::Ready(Some(self.ended_without_done())),
                },
            }
        }
    }

    /// A provider's frame has come.
    fn see_frame(&mut self, frame: Frame) {
        let peek = &frame.peek;
        if let Some(usage) = peek.usage {
            self.meter.reported(usage);
        }
        if peek.finished && self.open.len() == 1 {
            self.open.clear();
        }
        self.meter.text(peek.text_bytes);
        self.piece = Some(Piece::Frame(frame));
    }

    /// A provider's frame: its own bytes, but for the usage chunk, which is completed or kept from clients that did not ask for it.
    fn frame(&mut self, frame: Frame) -> Option<Bytes> {
        let peek = &frame.peek;
        if frame.done {
            let source = std::mem::replace(&mut self.source, Source::Ended);
            let last = if self.include_usage && !self.meter.is_reported() { self.finish() } else { frame.raw };
            self.meter.close(Outcome::Done);
            if let Source::Frames(frames) = source {
                self.source = Source::Spent(frames);
            }
            return Some(last);
        }
        match (peek.usage.is_some(), peek.no_choices, self.include_usage) {
            (true, true, false) => None,
            (true, _, true) => {
                let mut out = BytesMut::new();
                sse::write_data(&openai::extend_usage(&frame.data, &self.extension(true)), &mut out);
                Some(out.freeze())
            }
            _ => Some(frame.raw),
        }
    }

    fn event(&mut self, event: &ChatEvent) -> Option<Bytes> {
        if let ChatEvent::Finish { choice, .. } = event {
            self.open.retain(|open| open != choice);
        }
        let mut out = BytesMut::new();
        self.encoder.encode(event, &mut out);
        if let ChatEvent::Usage(_) = event {
            let extension = self.extension(true);
            self.meter.close(Outcome::Done);
            self.encoder.finish(Some(&extension), &mut out);
            self.source = Source::Ended;
        }
        Some(out.freeze())
    }

    /// No further token may be spent. Where the budget affords none, or the run has ended: a well-formed end, as at a token limit, that says
    /// why. Where the ledger cannot record it: an error.
    fn stop(&mut self, denied: Denied) -> Bytes {
        self.piece = None;
        let mut out = BytesMut::new();
        if denied.is_outage() {
            self.meter.close(Outcome::Fault(FaultKind::Unavailable));
            self.source = Source::Ended;
            self.encoder.error(&ApiError::denied(denied).body(), &mut out);
            return out.freeze();
        }
        let outcome = if matches!(denied, Denied::Stopped { .. }) { Outcome::Stopped } else { Outcome::BudgetStop };
        let extension = Extension { stopped: Some(ApiError::denied(denied).stopped()), ..self.extension(false) };
        for choice in std::mem::take(&mut self.open) {
            self.encoder.stop(choice, &extension, &mut out);
        }
        self.encoder.encode(&ChatEvent::Usage(self.meter.usage(false).0), &mut out);
        self.meter.close(outcome);
        self.encoder.finish(Some(&extension), &mut out);
        self.source = Source::Ended;
        out.freeze()
    }

    /// The answer broke off: an error event, and no `[DONE]`.
    fn broken(&mut self, fault: ProviderFault) -> Bytes {
        self.piece = None;
        self.meter.close(Outcome::Fault(fault.kind));
        self.source = Source::Ended;
        let mut out = BytesMut::new();
        let error = ApiError::Provider { backend: self.backend.to_string(), fault };
        self.encoder.error(&error.body(), &mut out);
        out.freeze()
    }

    /// The provider forgot `[DONE]`. Its stream says by ending without an error that the answer is complete.
    fn ended_without_done(&mut self) -> Bytes {
        self.source = Source::Ended;
        let last = self.finish();
        self.meter.close(Outcome::Done);
        last
    }

    /// The end of a stream, with the usage chunk that the client asked for and did not get.
    fn finish(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        if self.include_usage && !self.meter.is_reported() {
            self.encoder.encode(&ChatEvent::Usage(self.meter.usage(true).0), &mut out);
            let extension = self.extension(true);
            self.encoder.finish(Some(&extension), &mut out);
        } else {
            sse::write_data(b"[DONE]", &mut out);
        }
        out.freeze()
    }

    /// What the request costs; `whole` when its usage is final.
    fn extension(&self, whole: bool) -> Extension {
        Extension { cost_usd: self.meter.cost(whole).to_string(), backend: self.backend.to_string(), stopped: None }
    }
}
