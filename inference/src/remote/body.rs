//! A response body that is read only as fast as it is asked for, and never waited for longer than allowed.

use super::client::Place;
use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Incoming};
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// The body of one response. Dropping it closes the connection (HTTP/2: resets the stream) unless the end was reached.
#[derive(Debug)]
pub(super) struct TimedBody {
    provider: Arc<str>,
    incoming: Incoming,
    /// Longest silence.
    idle: Duration,
    deadline: Instant,
    /// When the silence began; `None` while bytes flow, so that a slow reader is not taken for a silent provider.
    silent_since: Option<Instant>,
    /// Wakes the reader; may fire early, never late.
    alarm: Pin<Box<Sleep>>,
    _place: Place,
}

impl TimedBody {
    pub(super) fn new(provider: Arc<str>, incoming: Incoming, place: Place, idle: Duration, deadline: Instant) -> Self {
        let alarm = Box::pin(tokio::time::sleep_until(deadline));
        Self { provider, incoming, idle, deadline, silent_since: None, alarm, _place: place }
    }

    /// Changes the longest silence.
    pub(super) fn set_idle(&mut self, idle: Duration) {
        self.idle = idle;
    }

    /// The next bytes; `None` at a proper end.
    ///
    /// # Errors
    /// The connection broke, the provider was silent for too long, or the deadline passed.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ProviderFault>>> {
        loop {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(self.broken(&error)))),
                Poll::Ready(Some(Ok(frame))) => {
                    self.silent_since = None;
                    // Trailers say nothing to us.
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Poll::Pending => return self.poll_silence(cx).map(|fault| Some(Err(fault))),
            }
        }
    }

    /// Ready when the silence has become too long.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<ProviderFault> {
        loop {
            let now = Instant::now();
            let limit = (*self.silent_since.get_or_insert(now) + self.idle).min(self.deadline);
            if now >= limit {
                let message = if now >= self.deadline {
                    format!("the request's time ran out while the provider `{}` was answering", self.provider)
                } else {
                    format!("the provider `{}` was silent for {:?} amid its answer", self.provider, self.idle)
                };
                return Poll::Ready(ProviderFault::new(FaultKind::Timeout, message));
            }
            // An alarm that rings early, set for a silence that ended, is cheaper than one set anew for every chunk.
            if self.alarm.deadline() > limit || self.alarm.is_elapsed() {
                self.alarm.as_mut().reset(limit);
            }
            ready!(self.alarm.as_mut().poll(cx));
        }
    }

    fn broken(&self, error: &hyper::Error) -> ProviderFault {
        let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        let message = format!("the connection to the provider `{}` broke amid its answer: {cause}", self.provider);
        ProviderFault::new(FaultKind::Connection, message)
    }

    /// The next bytes, awaited.
    pub(super) async fn data(&mut self) -> Option<Result<Bytes, ProviderFault>> {
        std::future::poll_fn(|cx| self.poll_data(cx)).await
    }

    /// All bytes up to the end.
    ///
    /// # Errors
    /// As [`Self::poll_data`]; also a body of more than `limit` bytes.
    pub(super) async fn collect(mut self, limit: usize) -> Result<Bytes, ProviderFault> {
        let mut whole = BytesMut::new();
        while let Some(data) = self.data().await.transpose()? {
            if whole.len() + data.len() > limit {
                let message = format!("the answer of the provider `{}` is longer than {limit} bytes", self.provider);
                return Err(ProviderFault::new(FaultKind::Malformed, message));
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    }
}
