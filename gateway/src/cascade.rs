//! The cascade: a local answer is held back until it is known to be fit to be shown. If it is not, the next target above is asked, before the
//! client has seen a byte. Costs nothing where no target above could answer: then nothing is held back.

mod flaws;

use crate::dispatch::Job;
use crate::learning::Signal;
use crate::meter::Meter;
use crate::planning::Planned;
use flaws::flaw;
pub(crate) use flaws::{call_fits, has_form};
use futures_util::{StreamExt, stream};
use std::fmt;
use std::sync::Arc;
use tollkeeper_config::{BackendId, Cascade, Flaw, Price};
use tollkeeper_inference::EventStream;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{Choice, ResponseFormat, ToolChoice};
use tollkeeper_protocol::event::{ChatEvent, fold};
use tollkeeper_protocol::fault::ProviderFault;
use tollkeeper_router::confidence::{Certainty, Curve};

/// An answer that is longer is not held back any further.
const MOST_BYTES: usize = 256 << 10;

/// Looks at the answer of one attempt.
pub(crate) struct Judge {
    cascade: Cascade,
    /// That of the model, if it has one.
    curve: Option<Curve>,
    request: Arc<Request>,
    /// What the target above charges.
    pub(crate) above: Price,
}

/// What became of an answer that was held back.
pub(crate) struct Judged {
    pub(crate) verdict: Verdict,
    /// All of the answer, from its beginning.
    pub(crate) events: EventStream,
}

/// Whether an answer is fit, and how sure its model was of it: displayed as `cascade=fit;confidence=0.930;logprob=-0.052;entropy=0.110`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) cause: Cause,
    certainty: Certainty,
    confidence: Option<f64>,
}

/// Why an answer is shown or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It is shown.
    Fit,
    /// A budget cut it before that could be said: it is shown as far as it goes.
    Unjudged,
    /// Its model was not sure of it.
    Unsure,
    /// Anybody can see that something is wrong with it.
    Flawed(Flaw),
}

impl Cause {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fit => "fit",
            Self::Unjudged => "unjudged",
            Self::Unsure => "unsure",
            Self::Flawed(flaw) => flaw.name(),
        }
    }

    pub(crate) fn is_shown(self) -> bool {
        matches!(self, Self::Fit | Self::Unjudged)
    }

    /// What it says of the model.
    pub(crate) fn signal(self) -> Option<Signal> {
        match self {
            Self::Fit => Some(Signal::Accepted),
            Self::Unjudged => None,
            Self::Unsure | Self::Flawed(_) => Some(Signal::Escalated),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cascade={}", self.cause.name())?;
        if let (Some(confidence), Some((logprob, entropy))) = (self.confidence, self.certainty.means()) {
            write!(f, ";confidence={confidence:.3};logprob={logprob:.3};entropy={entropy:.3}")?;
        }
        Ok(())
    }
}

/// What was seen of an answer so far.
#[derive(Default)]
struct Seen {
    events: Vec<ChatEvent>,
    certainty: Certainty,
    bytes: usize,
    /// It calls tools.
    calls: bool,
    /// The text of its last token is held back by whoever reads calls out of the answer: one may have begun.
    silent: bool,
    ended: bool,
}

impl Seen {
    fn take(&mut self, event: ChatEvent) {
        match &event {
            ChatEvent::Text { text, .. } | ChatEvent::Reasoning { text, .. } => {
                self.bytes += text.len();
                self.silent = text.is_empty();
            }
            ChatEvent::ToolCall { arguments, .. } => {
                self.bytes += arguments.len();
                self.calls = true;
            }
            ChatEvent::Certainty { .. } | ChatEvent::Finish { .. } => {}
            ChatEvent::Usage(_) => self.ended = true,
        }
        self.events.push(event);
    }

    /// The answer as far as it has come.
    fn answer(&self) -> Choice {
        fold(self.events.iter().cloned()).choices.into_iter().next().unwrap_or_default()
    }
}

impl Judge {
    /// Who looks at the answer of the plan's attempt at this place: nobody, unless the alias wants that, the target is local, there is one
    /// answer, and a target above comes later.
    pub(crate) fn of(job: &Job<'_>, planned: &Planned, at: usize) -> Option<Self> {
        let cascade = planned.alias.as_ref()?.cascade.clone()?;
        let (attempt, later) = planned.plan.attempts.get(at..)?.split_first()?;
        let BackendId::Local(name) = &attempt.id else { return None };
        let above = later.iter().find(|later| later.why.tier > attempt.why.tier)?;
        if !job.operation.generates() || job.request.answers() != 1 {
            return None;
        }
        let curve = job.config.local.models.get(&**name).and_then(|model| model.certainty);
        let curve = curve.map(|numbers| numbers.map(f64::from));
        let curve = curve.map(|[base, logprob, entropy]| Curve { base, logprob, entropy });
        Some(Self { cascade, curve, request: job.request.clone(), above: above.facts.price.clone() })
    }

    /// Of so many first tokens the engine is to say how sure it was.
    pub(crate) fn measured(&self) -> u32 {
        self.cascade.hold_tokens
    }

    /// Reads the answer until it is known whether it is fit. What is read is metered.
    ///
    /// # Errors
    /// The answer broke off.
    pub(crate) async fn look(&self, mut events: EventStream, meter: &mut Meter) -> Result<Judged, ProviderFault> {
        let mut seen = Seen::default();
        let cause = loop {
            let Some(event) = events.next().await.transpose()? else { break Cause::Fit };
            // It belongs to the piece that follows.
            if let ChatEvent::Certainty { logprob, entropy, .. } = event {
                seen.certainty.saw(logprob, entropy);
                continue;
            }
            // What cannot be paid for ends the answer when it is sent on.
            let unpaid = meter.held(&event).await.is_err();
            seen.take(event);
            if unpaid {
                break Cause::Unjudged;
            }
            if let Some(cause) = self.cause(&seen) {
                break cause;
            }
        };
        let certainty = seen.certainty;
        let verdict = Verdict { cause, certainty, confidence: self.confidence(&certainty) };
        let events = Box::pin(stream::iter(seen.events.into_iter().map(Ok)).chain(events));
        Ok(Judged { verdict, events })
    }

    fn confidence(&self, certainty: &Certainty) -> Option<f64> {
        self.curve.map_or_else(|| certainty.likelihood(), |curve| curve.confidence(certainty))
    }

    /// What is to become of the answer, once that can be said.
    fn cause(&self, seen: &Seen) -> Option<Cause> {
        if seen.certainty.tokens() < self.cascade.hold_tokens && !seen.ended {
            return None;
        }
        let least = f64::from(self.cascade.min_confidence) / 1000.0;
        if self.confidence(&seen.certainty).is_some_and(|confidence| confidence < least) {
            return Some(Cause::Unsure);
        }
        let may_call = seen.calls || (seen.silent && offers_tools(&self.request));
        let whole = !self.request.stream() || must_have_form(&self.request) || may_call;
        if !seen.ended && whole && seen.bytes <= MOST_BYTES {
            return None;
        }
        let flaw = flaw(&self.request, &seen.answer(), seen.ended).filter(|flaw| self.cascade.checks.contains(flaw));
        Some(flaw.map_or(Cause::Fit, Cause::Flawed))
    }
}

/// Whether only the whole answer can be checked.
fn must_have_form(request: &Request) -> bool {
    let Request::Chat(chat) = request else { return false };
    chat.response_format != ResponseFormat::Text
        || matches!(chat.tool_choice, ToolChoice::Required | ToolChoice::Named(_))
}

fn offers_tools(request: &Request) -> bool {
    matches!(request, Request::Chat(chat) if !chat.tools.is_empty() && chat.tool_choice != ToolChoice::None)
}

#[cfg(test)]
mod tests;
