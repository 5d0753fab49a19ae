//! One try: the request goes out, and what comes back is an answer that has begun, or a fault.

use super::body::TimedBody;
use super::client;
use super::frames::Frames;
use super::headroom::{self, Told};
use super::retry::retry_after;
use super::{Reach, Remote};
use crate::health::Flight;
use crate::reply::{Reply, ReplyBody};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, LOCATION};
use http::{Request, StatusCode};
use http_body_util::Full;
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::openai::decode_error;
use tollkeeper_protocol::passthrough::{BodyPeek, peek_body};

/// The longest whole answer: 2,048 embeddings of 1,536 numbers as text are about 40 MB.
const LONGEST_BODY: usize = 64 * 1024 * 1024;
/// The longest error that is read.
const LONGEST_ERROR: usize = 64 * 1024;

/// An answer that has begun.
pub(super) struct Opened {
    upstream_request_id: Option<String>,
    /// What is left of its limits, and for how long that holds.
    headroom: Option<Told>,
    body: OpenedBody,
}

enum OpenedBody {
    Whole(Bytes, BodyPeek),
    Stream(Box<Frames>),
}

/// A try that failed, and whether the provider lets it be repeated.
pub(super) struct Failure {
    pub(super) fault: ProviderFault,
    pub(super) again: bool,
    /// Whether the provider was reached.
    reached: bool,
    /// When its head came, for failures that are told after that.
    head: Option<Instant>,
}

impl From<ProviderFault> for Failure {
    fn from(fault: ProviderFault) -> Self {
        Self { fault, again: true, reached: true, head: None }
    }
}

impl Failure {
    /// What it means of an answer that was waited for so long. Providers say nothing before a whole answer is finished, and models that think are
    /// silent for long: when one of them, or a server in front of it, gives up in the middle, it has worked, and may bill that, and so the same
    /// is not asked for again here.
    pub(super) fn amid(mut self, begun: Instant, connecting: Duration) -> Self {
        let took = self.head.unwrap_or_else(Instant::now).saturating_duration_since(begun);
        let broke = self.reached && self.fault.kind == FaultKind::Connection && self.fault.status.is_none();
        let given_up = self.fault.status.is_some_and(|status| GIVEN_UP.contains(&status));
        if took >= connecting.max(WORKING) && (broke || given_up) {
            self.fault.worked = true;
            self.again = false;
        }
        self
    }
}

/// Statuses by which a server in front of the one that works says that it has waited long enough, or has lost it.
const GIVEN_UP: [u16; 4] = [502, 504, 520, 524];
/// Who gives up sooner, or within the time that a connection may take, has hardly worked.
const WORKING: Duration = Duration::from_secs(1);

/// A fault after the provider had begun to answer: it has worked, and bills that, so the same is not asked for again here.
fn begun(fault: ProviderFault, status: StatusCode) -> Failure {
    Failure {
        fault: ProviderFault { status: Some(status.as_u16()), worked: true, ..fault },
        again: false,
        reached: true,
        head: None,
    }
}

impl Opened {
    /// The reply, which counts as in flight until it has ended.
    pub(super) fn into_reply(self, model: &str, flight: Flight) -> Reply {
        if let Some(told) = self.headroom {
            flight.told(told);
        }
        let body = match self.body {
            OpenedBody::Whole(bytes, peek) => {
                flight.succeeded();
                ReplyBody::Bytes { bytes, peek }
            }
            OpenedBody::Stream(mut frames) => {
                frames.track(flight);
                ReplyBody::Frames(Box::into_pin(frames))
            }
        };
        Reply { model: model.to_owned(), upstream_request_id: self.upstream_request_id, body }
    }
}

impl Remote {
    /// Sends the request once and waits for the whole answer, or for the first piece of a stream.
    pub(super) async fn open(
        &self,
        reach: &Reach,
        request: Request<Full<Bytes>>,
        stream: bool,
        deadline: Instant,
    ) -> Result<Opened, Failure> {
        let patience = self.provider.first_byte_timeout;
        let limit = (Instant::now() + patience).min(deadline);
        let (response, place) = timeout_at(limit, reach.client.send(request))
            .await
            .map_err(|_| self.no_head(limit == deadline))?
            // A limit that has run out once is not waited for again.
            .map_err(|error| Failure {
                fault: client::fault(&self.name, &error),
                again: !client::timed_out(&error),
                reached: !error.is_connect(),
                head: None,
            })?;
        let (head, incoming) = response.into_parts();
        // Before the first frame of a stream, models that think are silent for long.
        let silence = if stream { patience.max(self.provider.idle_timeout) } else { self.provider.idle_timeout };
        let body = TimedBody::new(self.name.clone(), incoming, place, silence, deadline);
        if !head.status.is_success() {
            return Err(self.refusal(head.status, &head.headers, body).await);
        }
        let upstream_request_id = request_id(&head.headers);
        let headroom = headroom::read(&head.headers, Timestamp::now());
        let body = match (stream, is_json(&head.headers)) {
            (false, _) => {
                let bytes = body.collect(LONGEST_BODY).await.map_err(|fault| begun(fault, head.status))?;
                let peek = self.peek(&bytes).map_err(|fault| match fault.kind {
                    FaultKind::Malformed => begun(fault, head.status),
                    _ => fault.into(),
                })?;
                OpenedBody::Whole(bytes, peek)
            }
            (true, true) => {
                let bytes = body.collect(LONGEST_BODY).await?;
                self.peek(&bytes)?;
                return Err(begun(self.malformed("sent a whole answer where a stream was asked for"), head.status));
            }
            (true, false) => {
                let mut frames = Frames::new(self.name.clone(), body, self.counters.bad_frames.clone());
                frames.first(self.provider.idle_timeout).await?;
                OpenedBody::Stream(Box::new(frames))
            }
        };
        Ok(Opened { upstream_request_id, headroom, body })
    }

    /// Reads a whole answer; one that is an error in disguise is a fault.
    fn peek(&self, bytes: &Bytes) -> Result<BodyPeek, ProviderFault> {
        match peek_body(bytes) {
            Ok(BodyPeek { error: Some(fault), .. }) => Err(fault),
            Ok(peek) => Ok(peek),
            Err(error) => Err(self.malformed(&format!("sent an answer that cannot be read: {error}"))),
        }
    }

    /// What a status other than success means.
    async fn refusal(&self, status: StatusCode, headers: &HeaderMap, body: TimedBody) -> Failure {
        if status.is_redirection() {
            let target = headers.get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
            let message = format!("the provider `{}` redirects to {target}: correct its base_url", self.name);
            let fault = ProviderFault { status: Some(status.as_u16()), ..unavailable(message) };
            return Failure { fault, again: false, reached: true, head: None };
        }
        // The text of an error may be long in coming.
        let head = Some(Instant::now());
        let wait = retry_after(headers, Timestamp::now());
        let again = headers.get("x-should-retry").is_none_or(|value| value != "false");
        // An error whose text cannot be read still has its status.
        let text = body.collect(LONGEST_ERROR).await.unwrap_or_default();
        Failure { fault: decode_error(status.as_u16(), wait, &text), again, reached: true, head }
    }

    fn malformed(&self, what: &str) -> ProviderFault {
        ProviderFault::new(FaultKind::Malformed, format!("the provider `{}` {what}", self.name))
    }

    fn no_head(&self, deadline: bool) -> ProviderFault {
        let (name, patience) = (&self.name, self.provider.first_byte_timeout);
        let message = if deadline {
            format!("the request's time ran out before the provider `{name}` answered")
        } else {
            format!("the provider `{name}` did not answer within {patience:?}")
        };
        ProviderFault::new(FaultKind::Timeout, message)
    }
}

fn unavailable(message: String) -> ProviderFault {
    ProviderFault::new(FaultKind::Unavailable, message)
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.trim_start().to_ascii_lowercase().starts_with("application/json")
}

fn request_id(headers: &HeaderMap) -> Option<String> {
    let names = ["x-request-id", "apim-request-id", "x-generation-id"];
    names.iter().find_map(|name| Some(headers.get(*name)?.to_str().ok()?.to_owned()))
}
