//! A streamed answer on its way to the client: translated or passed through, metered piece by piece, settled at its end.

use crate::body::Body;
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
use tollkeeper_policies::Outcome;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::FinishReason;
use tollkeeper_protocol::event::ChatEvent;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::openai::{self, AnswerMeta, Extension, StreamEncoder};
use tollkeeper_protocol::sse;

/// Tells nginx and its like not to hold events back.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A stream in progress. Pulled by the connection, so a slow reader slows the backend. Dropping it stops the backend and settles.
pub(crate) struct Relay {
    source: Source,
    meter: Meter,
    encoder: StreamEncoder,
    backend: Arc<str>,
    include_usage: bool,
    choices: u32,
    finished: bool,
    deadline: Pin<Box<Sleep>>,
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

/// The response that carries a stream.
pub(crate) fn respond(answer: Answer, request: &Request, meter: Meter, deadline: Instant) -> Response<Body> {
    let meta = AnswerMeta { id: answer.id.to_string(), created: answer.created, model: answer.reply.model };
    let include_usage = request.include_usage();
    let source = match answer.reply.body {
        ReplyBody::Frames(frames) => Source::Frames(frames),
        ReplyBody::Events(events) => Source::Events(events),
        ReplyBody::Bytes { .. } | ReplyBody::Embeddings(_) => {
            let fault =
                ProviderFault::new(FaultKind::Malformed, "the backend answered whole although a stream was asked for");
            Source::Events(Box::pin(stream::iter([Err(fault)])))
        }
    };
    let relay = Relay {
        source,
        meter,
        encoder: StreamEncoder::new(request.operation(), meta, include_usage),
        backend: answer.backend,
        include_usage,
        choices: u32::try_from(request.answers()).unwrap_or(1),
        finished: false,
        deadline: Box::pin(sleep_until(deadline)),
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
            let late = !matches!(self.source, Source::Ended) && self.deadline.as_mut().poll(cx).is_ready();
            if late {
                let fault =
                    ProviderFault::new(FaultKind::Timeout, "the stream took longer than `server.request_timeout`");
                return Poll::Ready(Some(self.broken(fault)));
            }
            let bytes = match &mut self.source {
                Source::Ended => return Poll::Ready(None),
                Source::Spent(frames) => {
                    if ready!(frames.as_mut().poll_next(cx)).is_none() {
                        self.source = Source::Ended;
                    }
                    continue;
                }
                Source::Frames(frames) => match ready!(frames.as_mut().poll_next(cx)) {
                    Some(Ok(frame)) => self.frame(frame),
                    Some(Err(fault)) => Some(self.broken(fault)),
                    None => Some(self.ended_without_done()),
                },
                Source::Events(events) => match ready!(events.as_mut().poll_next(cx)) {
                    Some(Ok(event)) => self.event(&event),
                    Some(Err(fault)) => Some(self.broken(fault)),
                    None => Some(self.ended_without_done()),
                },
            };
            if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
                return Poll::Ready(Some(bytes));
            }
        }
    }

    /// A provider's frame: its own bytes, but for the usage chunk, which is completed or kept from clients that did not ask for it.
    fn frame(&mut self, frame: Frame) -> Option<Bytes> {
        let peek = &frame.peek;
        if let Some(usage) = peek.usage {
            self.meter.reported(usage);
        }
        self.finished |= peek.finished;
        if self.meter.text(peek.text_bytes).is_err() {
            return Some(self.budget_stop());
        }
        if frame.done {
            self.meter.close(Outcome::Done);
            if let Source::Frames(frames) = std::mem::replace(&mut self.source, Source::Ended) {
                self.source = Source::Spent(frames);
            }
            return Some(frame.raw);
        }
        match (peek.usage.is_some(), peek.no_choices, self.include_usage) {
            (true, true, false) => None,
            (true, _, true) => {
                let mut out = BytesMut::new();
                sse::write_data(&openai::extend_usage(&frame.data, &self.extension()), &mut out);
                Some(out.freeze())
            }
            _ => Some(frame.raw),
        }
    }

    fn event(&mut self, event: &ChatEvent) -> Option<Bytes> {
        if self.meter.event(event).is_err() {
            return Some(self.budget_stop());
        }
        let mut out = BytesMut::new();
        self.encoder.encode(event, &mut out);
        if let ChatEvent::Usage(_) = event {
            let extension = self.extension();
            self.meter.close(Outcome::Done);
            self.encoder.finish(Some(&extension), &mut out);
            self.source = Source::Ended;
        }
        Some(out.freeze())
    }

    /// The budget affords no further token: a well-formed end, as at a token limit.
    fn budget_stop(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        for choice in 0..self.choices {
            self.encoder.encode(&ChatEvent::Finish { choice, reason: FinishReason::Length }, &mut out);
        }
        self.encoder.encode(&ChatEvent::Usage(self.meter.usage().0), &mut out);
        let extension = self.extension();
        self.meter.close(Outcome::BudgetStop);
        self.encoder.finish(Some(&extension), &mut out);
        self.source = Source::Ended;
        out.freeze()
    }

    /// The answer broke off: an error event, and no `[DONE]`.
    fn broken(&mut self, fault: ProviderFault) -> Bytes {
        self.meter.close(Outcome::Fault(fault.kind));
        self.source = Source::Ended;
        let mut out = BytesMut::new();
        let error = ApiError::Provider { backend: self.backend.to_string(), fault };
        self.encoder.error(&error.body(), &mut out);
        out.freeze()
    }

    /// The provider forgot `[DONE]`. Its stream says by ending without an error that the answer is complete.
    fn ended_without_done(&mut self) -> Bytes {
        self.meter.close(Outcome::Done);
        self.source = Source::Ended;
        let mut out = BytesMut::new();
        sse::write_data(b"[DONE]", &mut out);
        out.freeze()
    }

    fn extension(&self) -> Extension {
        Extension { cost_usd: self.meter.cost().to_string(), backend: self.backend.to_string() }
    }
}
