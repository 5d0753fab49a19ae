//! A streamed answer on its way to the client: translated or passed through, metered piece by piece, settled at its end.

use crate::body::Body;
use crate::cut::Cut;
use crate::dispatch::Answer;
use crate::error::ApiError;
use crate::learning::Streamed;
use crate::meter::Meter;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderName, Response};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};
use tollkeeper_inference::{EventStream, Frame, FrameStream, ReplyBody};
use tollkeeper_policies::{Denied, Outcome};
use tollkeeper_protocol::Request;
use tollkeeper_protocol::event::ChatEvent;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::openai::{self, AnswerMeta, Extension, StreamEncoder};
use tollkeeper_protocol::sse;

/// Tells nginx and its like not to hold events back.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A stream as its connection has it. Pulled, so that a slow reader slows the backend; but its end does not wait to be pulled: a task beside it
/// ends it in time, also for a client that reads nothing. Dropping it stops the backend and settles.
pub(crate) struct Relay {
    shared: Arc<Mutex<Shared>>,
    watch: AbortHandle,
}

/// What the connection and the watch over the stream share.
struct Shared {
    state: State,
    /// When the last piece was taken; `None` while the client has taken all there was and waits for more.
    unread: Option<Instant>,
    /// Whom to tell that there is more.
    reader: Option<Waker>,
}

enum State {
    Running(Box<Stream>),
    /// Everything is let go. What the client may still read says how it ended.
    Ended(Option<Bytes>),
}

/// A stream in progress.
struct Stream {
    source: Source,
    /// What has come and is not paid for yet.
    piece: Option<Piece>,
    meter: Meter,
    encoder: StreamEncoder,
    backend: Arc<str>,
    include_usage: bool,
    /// Choices that have not ended, by index.
    open: Vec<u32>,
    /// Looks at its form when it is whole, if that is wanted.
    form: Option<Streamed>,
}

/// What ends a stream from outside.
enum End {
    Denied(Denied),
    /// Its request has used up its time.
    Late,
    /// The client left it unread for so long.
    Unread(Duration),
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

/// How long a stream may go on.
pub(crate) struct Bounds {
    /// Until then at most.
    pub(crate) deadline: Instant,
    /// Until its run or agent is stopped.
    pub(crate) cut: Cut,
    /// The client may leave it unread for so long.
    pub(crate) unread: Duration,
}

/// The response that carries a stream, at whose `form` somebody may want to look.
pub(crate) fn respond(
    answer: Answer,
    request: &Request,
    meter: Meter,
    bounds: Bounds,
    form: Option<Streamed>,
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
    let stream = Stream {
        source,
        piece: None,
        meter,
        encoder: StreamEncoder::new(request.operation(), meta, include_usage),
        backend: answer.backend,
        include_usage,
        open: (0..u32::try_from(request.answers()).unwrap_or(1)).collect(),
        form,
    };
    let mut response = Response::new(Body::Relay(Relay::new(stream, bounds)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

impl Relay {
    fn new(stream: Stream, bounds: Bounds) -> Self {
        let state = State::Running(Box::new(stream));
        let shared = Arc::new(Mutex::new(Shared { state, unread: Some(Instant::now()), reader: None }));
        let watch = tokio::spawn(watch(Arc::downgrade(&shared), bounds)).abort_handle();
        Self { shared, watch }
    }

    /// The next bytes for the client.
    pub(crate) fn poll_bytes(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut shared = lock(&self.shared);
        let polled = match &mut shared.state {
            State::Running(stream) => stream.poll_bytes(cx),
            State::Ended(last) => return Poll::Ready(last.take()),
        };
        match &polled {
            Poll::Ready(Some(_)) => shared.unread = Some(Instant::now()),
            Poll::Ready(None) => shared.state = State::Ended(None),
            Poll::Pending => {
                shared.unread = None;
                match &mut shared.reader {
                    Some(reader) => reader.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
            }
        }
        polled
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Shared {
    /// Lets go of the backend, the lease and the request's place, whether or not anybody reads why.
    fn end(&mut self, end: End) {
        let State::Running(stream) = &mut self.state else { return };
        let last = stream.end(end);
        self.state = State::Ended(last);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a stream when it must end. It holds the stream only in that moment, and is aborted when the connection lets go of it before.
async fn watch(stream: Weak<Mutex<Shared>>, Bounds { deadline, cut, unread }: Bounds) {
    let since = || stream.upgrade().and_then(|shared| lock(&shared).unread);
    let end = tokio::select! {
        denied = cut => End::Denied(denied),
        () = sleep_until(deadline) => End::Late,
        () = left_unread(unread, since) => End::Unread(unread),
    };
    if let Some(shared) = stream.upgrade() {
        lock(&shared).end(end);
    }
}

/// Resolves when something has been unread for so long. Looks seldom, so that it costs a stream nothing.
async fn left_unread(limit: Duration, since: impl Fn() -> Option<Instant>) {
    let mut look = Instant::now() + limit;
    loop {
        sleep_until(look).await;
        let due = since().unwrap_or_else(Instant::now) + limit;
        if due <= Instant::now() {
            return;
        }
        look = due;
    }
}

impl Stream {
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
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

    /// Ends it from outside. Returns what says so to the client, if the answer is not complete.
    fn end(&mut self, end: End) -> Option<Bytes> {
        if matches!(self.source, Source::Ended | Source::Spent(_)) {
            return None;
        }
        Some(match end {
            End::Denied(denied) => self.stop(denied),
            End::Late => self
                .broken(ProviderFault::new(FaultKind::Timeout, "the stream took longer than `server.request_timeout`")),
            End::Unread(limit) => {
                self.meter.close(Outcome::ClientGone);
                let mut out = BytesMut::new();
                self.encoder.error(&ApiError::Unread(limit).body(), &mut out);
                out.freeze()
            }
        })
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
        if let Some(form) = &mut self.form {
            form.push(event);
        }
        let mut out = BytesMut::new();
        self.encoder.encode(event, &mut out);
        if let ChatEvent::Usage(_) = event {
            if let Some(form) = self.form.take() {
                form.end();
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    const LIMIT: Duration = Duration::from_secs(60);

    /// Resolves with the time at which a client is given up that took its last piece when `last` says, by the time that has passed.
    async fn given_up(last: impl Fn(Duration) -> Option<Duration>) -> Result<Duration, tokio::time::error::Elapsed> {
        let start = Instant::now();
        let since = || last(start.elapsed()).map(|at| start + at);
        tokio::time::timeout(LIMIT * 100, left_unread(LIMIT, since)).await.map(|()| start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_given_up_once_it_leaves_something_unread_for_the_whole_limit() {
        // It never read, or stopped at some time.
        for stopped in [0, 1, 30, 59, 60, 61, 200] {
            let stopped = Duration::from_secs(stopped);
            let after = given_up(|now| Some(stopped.min(now))).await.unwrap();
            assert!(after >= stopped + LIMIT && after < stopped + LIMIT + LIMIT / 10, "{stopped:?}: {after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_or_reads_slowly_is_not() {
        assert!(given_up(|_| None).await.is_err(), "nothing was there to be read");
        let piece = LIMIT.as_secs() - 1;
        let slowly = |now: Duration| Some(Duration::from_secs(now.as_secs() / piece * piece));
        assert!(given_up(slowly).await.is_err(), "a piece is read in time");
    }

    #[tokio::test(start_paused = true)]
    async fn looking_for_unread_pieces_is_seldom() {
        let looked = AtomicU64::new(0);
        let busy = |now: Duration| {
            looked.fetch_add(1, Relaxed);
            Some(now)
        };
        assert!(given_up(busy).await.is_err());
        assert!(looked.load(Relaxed) <= 101, "{looked:?} looks in a hundred limits");
    }
}
