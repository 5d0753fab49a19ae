//! The hard filters: which backends cannot do what is asked, each with a reason.

use crate::ask::Ask;
use crate::candidate::{Candidate, Health};
use crate::estimate::CostEstimate;
use crate::plan::Wishes;
use std::sync::Arc;
use tollkeeper_config::{BackendId, Usd};
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::fault::FaultKind;

/// Why a backend cannot answer a request. The text follows the backend's name: "`x` cannot call tools".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The model does other work.
    #[error("does not do {}", described(*.0))]
    Operation(Operation),
    /// The request has tools.
    #[error("cannot call tools")]
    Tools,
    /// The request has images.
    #[error("cannot read images")]
    Vision,
    /// The request has a JSON schema.
    #[error("cannot follow a JSON schema")]
    JsonSchema,
    /// Input and asked output are longer than the model's context, all in tokens.
    #[error(
        "has a context of {context} tokens, but the request needs about {} (input about {input}, output {output})",
        input + output
    )]
    Context {
        /// Estimated input of the longest prompt.
        input: u64,
        /// Asked output of one answer; at least 1 where text is generated.
        output: u64,
        /// The model's context.
        context: u64,
    },
    /// The request may only be answered by other tiers.
    #[error("is of tier {tier}, but the request wants one from {min} to {max}")]
    Tier {
        /// The backend's.
        tier: u8,
        /// The lowest that may answer.
        min: u8,
        /// The highest.
        max: u8,
    },
    /// The request may only be answered by local models.
    #[error("is not local")]
    NotLocal,
    /// Tasks of its type are for others.
    #[error("is not in the chain for tasks of this type")]
    NotInChain,
    /// The request's ceiling.
    #[error("is expected to cost {expected} USD, and the request may cost {most} USD")]
    TooDear {
        /// What it is expected to cost.
        expected: Usd,
        /// What it may cost.
        most: Usd,
    },
    /// The backend is out of use.
    #[error("is unavailable: {0}")]
    Unavailable(Arc<str>),
}

impl Reason {
    /// The kind of fault it is to the caller: the request must change, or the backend.
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Operation(_) | Self::Tools | Self::Vision | Self::JsonSchema => FaultKind::BadRequest,
            Self::Tier { .. } | Self::NotLocal | Self::NotInChain | Self::TooDear { .. } => FaultKind::BadRequest,
            Self::Context { .. } => FaultKind::ContextLength,
            Self::Unavailable(_) => FaultKind::Unavailable,
        }
    }
}

fn described(operation: Operation) -> &'static str {
    match operation {
        Operation::Chat => "chat completions",
        Operation::TextCompletion => "text completions",
        Operation::Embeddings => "embeddings",
        Operation::Rerank => "reranking",
    }
}

/// Whether the backend can do what is asked. An unknown context holds everything.
///
/// # Errors
/// The first filter that it does not pass: abilities, then context, then health.
pub fn fit(ask: &Ask, candidate: &Candidate) -> Result<(), Reason> {
    let can = candidate.facts.abilities;
    let does = match ask.operation {
        Operation::Chat => can.chat,
        Operation::TextCompletion => can.completion,
        Operation::Embeddings => can.embeddings,
        Operation::Rerank => can.rerank,
    };
    let filters = [
        (does, Reason::Operation(ask.operation)),
        (can.tools || !ask.tools, Reason::Tools),
        (can.vision || !ask.vision, Reason::Vision),
        (can.json_schema || !ask.json_schema, Reason::JsonSchema),
    ];
    if let Some((_, reason)) = filters.into_iter().find(|(passes, _)| !passes) {
        return Err(reason);
    }
    let least = u64::from(ask.operation.generates());
    let (input, output) = (ask.longest_input, ask.max_output_each().unwrap_or(0).max(least));
    if let Some(context) = candidate.facts.context.filter(|context| input.saturating_add(output) > *context) {
        return Err(Reason::Context { input, output, context });
    }
    match &candidate.health {
        Health::Unavailable(why) => Err(Reason::Unavailable(why.clone())),
        Health::Ready | Health::Absent { .. } | Health::Cooling { .. } => Ok(()),
    }
}

/// Whether the request may go there, by what it wants beyond its abilities; returns its place among those that may, which without a chain is
/// the one it is given.
///
/// # Errors
/// The first wish that it does not meet.
pub(crate) fn wanted(
    wishes: &Wishes,
    candidate: &Candidate,
    cost: &CostEstimate,
    place: usize,
) -> Result<usize, Reason> {
    let (tier, min, max) = (candidate.tier, wishes.min_tier.unwrap_or(0), wishes.max_tier.unwrap_or(u8::MAX));
    if !(min..=max).contains(&tier) {
        return Err(Reason::Tier { tier, min, max });
    }
    if wishes.local_only && !matches!(candidate.id, BackendId::Local(_)) {
        return Err(Reason::NotLocal);
    }
    let (place, most) = wishes.place(&candidate.id, place).ok_or(Reason::NotInChain)?;
    match most.filter(|most| cost.expected > *most) {
        Some(most) => Err(Reason::TooDear { expected: cost.expected, most }),
        None => Ok(place),
    }
}
