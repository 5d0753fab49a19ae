//! What the upstream does with one request: content, dialect quirks, how bytes are framed, and which fault it plays.

use std::sync::Arc;
use tokio::sync::Semaphore;

/// How one request is answered. The default is a well-behaved OpenAI answer of five words.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// What the answer says.
    pub content: Content,
    /// Whose way of reporting usage it follows.
    pub vendor: Vendor,
    /// Whether usage is reported.
    pub usage: UsageRule,
    /// How many of the prompt tokens count as cached (at most all of them).
    pub cached: u64,
    /// How the bytes of a stream are laid out.
    pub framing: Framing,
    /// Whether a stream leaves out `[DONE]`.
    pub no_done: bool,
    /// How many more requests it says that it takes; without it, very many.
    pub requests_left: Option<u32>,
    /// What goes wrong.
    pub fault: Option<Fault>,
    /// Where it waits for the test.
    pub hold: Option<Hold>,
}

/// What an answer says. One word, one piece of arguments or one letter of a refusal is one completion token.
#[derive(Debug, Clone)]
pub enum Content {
    /// So many words, one a frame.
    Words(u32),
    /// Words without end, until `max_tokens`, the client's leaving or the fault stops them.
    Endless,
    /// Reasoning words (`reasoning_content`), then words.
    Reasoning(u32, u32),
    /// A refusal of so many words.
    Refusal(u32),
    /// So many words, then `content_filter` as the finish reason.
    Filtered(u32),
    /// Tool calls.
    Tools(ToolForm),
    /// These frames exactly as written (a stream), or the first of them as the body (unary); usage is whatever they say.
    Verbatim(Vec<String>, Counted),
}

/// What a verbatim answer is worth, for the upstream's own books.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    /// Prompt tokens.
    pub input: u64,
    /// Completion tokens.
    pub output: u64,
}

/// How tool calls come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolForm {
    /// One call, arguments in pieces.
    One,
    /// Two calls whose pieces are interleaved.
    Interleaved,
    /// A call without an `id`.
    NoId,
    /// A call without a name.
    NoName,
    /// Pieces without an `index`.
    NoIndex,
    /// An `index` of −1.
    NegativeIndex,
    /// The arguments only in the final chunk.
    ArgumentsAtEnd,
}

/// Whose way of reporting usage is followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Vendor {
    /// A chunk with empty `choices` after the last one, when asked; `usage: null` before.
    #[default]
    OpenAi,
    /// Like OpenAI, after a first chunk with empty `choices` and `prompt_filter_results`.
    Azure,
    /// In `x_groq` of the last chunk, and like OpenAI when asked.
    Groq,
    /// In the last chunk beside the finish reason, asked or not, with `prompt_cache_hit_tokens`.
    DeepSeek,
}

/// Whether usage is reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UsageRule {
    /// The vendor's way.
    #[default]
    Vendor,
    /// Never, whatever was asked.
    Missing,
    /// As zeros, said on purpose.
    Zero,
}

/// How the bytes of a stream are laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Framing {
    /// `data: {…}\n\n`, a frame a write.
    #[default]
    Plain,
    /// Lines end in CR LF.
    CrLf,
    /// A comment before every frame.
    Comments,
    /// `event:`, `id:` and no space after `data:`.
    Fields,
    /// The JSON spread over several `data:` lines.
    MultiLine,
    /// Cut into writes of so many bytes, wherever that falls.
    CutEvery(usize),
    /// All frames in one write.
    OneWrite,
}

/// What goes wrong. Counts are frames of a stream sent whole before it happens (for a whole body: half of it has been sent).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// An error status with an OpenAI-shaped body.
    Status {
        /// The status.
        status: u16,
        /// Seconds of `retry-after`.
        retry_after: Option<u32>,
        /// The error's `code`.
        code: Option<&'static str>,
    },
    /// An error status with an HTML body.
    Html(u16),
    /// An error status with an empty body.
    Empty(u16),
    /// The connection closes when the request has been read.
    CloseBeforeHead,
    /// No answer until the client leaves.
    StallBeforeHead,
    /// Head with status 200, then the connection closes.
    CloseBeforeFirstFrame,
    /// Head with status 200, then nothing until the client leaves.
    StallBeforeFirstFrame,
    /// The connection breaks after so many frames.
    DieAfter(usize),
    /// Nothing more comes after so many frames, until the client leaves.
    StallAfter(usize),
    /// An error event as the first thing of a stream with status 200; an error object as the body of an unary 200.
    ErrorFirst,
    /// An error event after so many frames.
    ErrorAfter(usize),
    /// One `data:` line that is not JSON after so many frames; the stream goes on.
    BadLineAfter(usize),
    /// An error status 400 whose body quotes so many bytes of text.
    HugeError(usize),
    /// Status 200 with a body that is not JSON.
    NotJson,
}

/// Where an answer waits until the test opens the [`Gate`].
#[derive(Debug, Clone)]
pub enum Hold {
    /// Before the head.
    Head(Gate),
    /// Before every frame: one permit a frame.
    Frames(Gate),
}

/// Lets the upstream go on, step by step.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

impl Gate {
    /// Lets `steps` waits pass, now or later.
    pub fn open(&self, steps: usize) {
        self.0.add_permits(steps);
    }

    /// Lets every wait pass from now on.
    pub fn open_wide(&self) {
        self.0.close();
    }

    pub(super) async fn pass(&self) {
        // A closed semaphore is a gate that stands open.
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}

impl Default for Content {
    fn default() -> Self {
        Self::Words(5)
    }
}

impl Script {
    /// An answer of so many words.
    pub fn words(count: u32) -> Self {
        Self { content: Content::Words(count), ..Self::default() }
    }

    /// An answer with this content.
    pub fn says(content: Content) -> Self {
        Self { content, ..Self::default() }
    }

    /// The default answer with a fault.
    pub fn fault(fault: Fault) -> Self {
        Self::default().with_fault(fault)
    }

    /// An error status with an OpenAI-shaped body.
    pub fn status(status: u16) -> Self {
        Self::fault(Fault::Status { status, retry_after: None, code: None })
    }

    /// The same with a fault.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// The same, with usage reported by this rule.
    #[must_use]
    pub fn with_usage(mut self, usage: UsageRule) -> Self {
        self.usage = usage;
        self
    }

    /// The same in this vendor's way.
    #[must_use]
    pub fn with_vendor(mut self, vendor: Vendor) -> Self {
        self.vendor = vendor;
        self
    }

    /// The same with so many cached prompt tokens.
    #[must_use]
    pub fn with_cached(mut self, cached: u64) -> Self {
        self.cached = cached;
        self
    }

    /// The same, with so many more requests before the rate is limited.
    #[must_use]
    pub fn with_requests_left(mut self, left: u32) -> Self {
        self.requests_left = Some(left);
        self
    }

    /// The same in this framing.
    #[must_use]
    pub fn with_framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// The same, waiting here.
    #[must_use]
    pub fn with_hold(mut self, hold: Hold) -> Self {
        self.hold = Some(hold);
        self
    }

    /// The same without `[DONE]`.
    #[must_use]
    pub fn without_done(mut self) -> Self {
        self.no_done = true;
        self
    }

    /// Scripts that a model's name selects: what the stand-alone upstream plays, and the Python tests ask for.
    pub fn named() -> Vec<(&'static str, Self)> {
        let status = |status, retry_after, code| Self::fault(Fault::Status { status, retry_after, code });
        vec![
            ("plain", Self::default()),
            ("long", Self::words(200)),
            ("endless", Self::says(Content::Endless)),
            ("cached", Self::default().with_cached(2)),
            ("refusal", Self::says(Content::Refusal(3))),
            ("reasoning", Self::says(Content::Reasoning(3, 2))),
            ("tools", Self::says(Content::Tools(ToolForm::One))),
            ("parallel-tools", Self::says(Content::Tools(ToolForm::Interleaved))),
            ("no-usage", Self::default().with_usage(UsageRule::Missing)),
            ("zero-usage", Self::default().with_usage(UsageRule::Zero)),
            ("groq", Self::default().with_vendor(Vendor::Groq)),
            ("azure", Self::default().with_vendor(Vendor::Azure)),
            ("deepseek", Self::default().with_vendor(Vendor::DeepSeek).with_cached(1)),
            ("bad-request", status(400, None, None)),
            ("expired-key", status(401, None, Some("invalid_api_key"))),
            ("unknown-model", status(404, None, Some("model_not_found"))),
            ("rate-limited", status(429, Some(7), Some("rate_limit_exceeded"))),
            ("broken", status(500, None, None)),
            ("overloaded", status(503, None, None)),
            ("error-first", Self::fault(Fault::ErrorFirst)),
            ("dies", Self::fault(Fault::DieAfter(3))),
            ("stalls", Self::fault(Fault::StallAfter(3))),
        ]
    }

    /// The script of this name in [`Script::named`]; the default for any other name.
    pub fn by_name(name: &str) -> Self {
        Self::named().into_iter().find(|(known, _)| *known == name).map(|(_, script)| script).unwrap_or_default()
    }
}
