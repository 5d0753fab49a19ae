//! What a backend is asked ([`Call`]) and what it gives back ([`Reply`]).

use bytes::Bytes;
use futures_util::Stream;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::time::Instant;
use tollkeeper_config::Priority;
use tollkeeper_protocol::embedding::EmbeddingResponse;
use tollkeeper_protocol::event::ChatEvent;
use tollkeeper_protocol::fault::ProviderFault;
use tollkeeper_protocol::passthrough::{BodyPeek, ChunkPeek};
use tollkeeper_protocol::rerank::RerankResponse;
use tollkeeper_protocol::{Operation, Request};

/// One request as a backend gets it.
#[derive(Debug, Clone)]
pub struct Call {
    /// The decoded request; local engines read this.
    pub request: Arc<Request>,
    /// The client's own bytes; remote backends send these with the fewest possible changes.
    pub original: Bytes,
    /// What kind of work it is.
    pub operation: Operation,
    /// `Some(n)`: the answer, all its choices together, must not exceed `n` tokens, whatever the client asked for.
    pub output_limit: Option<u64>,
    /// Of so many of an answer's first tokens local engines say how sure the model was ([`ChatEvent::Certainty`]).
    pub measured: u32,
    /// How urgent it is; local engines with a queue read this.
    pub priority: Priority,
    /// The gateway's id of the request, for logs.
    pub request_id: Arc<str>,
    /// No attempt starts and no answer continues after this moment of tokio's clock.
    pub deadline: Instant,
    /// Becomes true when nobody waits for the answer any more: then what failed is not tried again.
    pub abandoned: Arc<AtomicBool>,
}

/// A backend's answer, begun or whole.
#[derive(Debug)]
pub struct Reply {
    /// The model as the backend names it.
    pub model: String,
    /// The provider's own id of the request (`x-request-id`), for support cases.
    pub upstream_request_id: Option<String>,
    /// The answer.
    pub body: ReplyBody,
}

/// Server-sent events of a remote stream, in the client's dialect. Ends after `[DONE]`, after its first `Err`, or, when the provider
/// forgets `[DONE]`, after all choices have finished.
///
/// Read on after `[DONE]` until the end (it comes within 250 ms): a stream that is dropped before cannot give its connection back.
pub type FrameStream = Pin<Box<dyn Stream<Item = Result<Frame, ProviderFault>> + Send>>;

/// Neutral events of a local answer. Ends after [`ChatEvent::Usage`] or after its first `Err`.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<ChatEvent, ProviderFault>> + Send>>;

/// An answer in the form its backend gives it.
pub enum ReplyBody {
    /// A whole remote answer: the provider's bytes, with usage and finish reason read from them.
    Bytes {
        /// The provider's bytes, at most 64 MiB.
        bytes: Bytes,
        /// What was read from them.
        peek: BodyPeek,
    },
    /// A remote stream whose first frame has arrived. Dropping it closes the provider's connection (HTTP/2: resets the stream).
    Frames(FrameStream),
    /// A local answer, streamed also when the client wants it whole. Dropping it stops the generation.
    Events(EventStream),
    /// Local embeddings.
    Embeddings(EmbeddingResponse),
    /// Documents ranked by a local model.
    Ranking(RerankResponse),
}

impl fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { bytes, .. } => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Frames(_) => f.write_str("Frames"),
            Self::Events(_) => f.write_str("Events"),
            Self::Embeddings(answer) => write!(f, "Embeddings({} vectors)", answer.vectors.len()),
            Self::Ranking(answer) => write!(f, "Ranking({} documents)", answer.scores.len()),
        }
    }
}

/// One server-sent event of a remote stream.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The exact bytes, the blank line included; comments are frames too.
    pub raw: Bytes,
    /// The joined data lines; empty for comments.
    pub data: Bytes,
    /// What was read from `data`; the default (nothing) for comments, `[DONE]` and lines that are not JSON.
    pub peek: ChunkPeek,
    /// Whether this is `[DONE]`, the last frame.
    pub done: bool,
}
