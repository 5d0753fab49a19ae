//! Pictures in a turn of the worker: how many tokens they take is found out when a sequence gets its slot, and one is shown to the engine
//! between two batches.

use super::super::picture::{Picture, Pictures, expand};
use super::{EngineError, FaultKind, Model, ProviderFault, Sequence, Worker};
use crate::local::engine::Token;
use std::sync::Arc;
use tollkeeper_protocol::fault::FaultDetail;

impl Worker {
    /// A sequence that is to get a slot, once it is known how many tokens its pictures take; `None` if they cannot be used, which ends its answer.
    pub(super) fn with_measured_pictures(
        &mut self,
        mut sequence: Sequence,
        model: &mut Model<'_>,
    ) -> Result<Option<Sequence>, EngineError> {
        let Pictures::Unmeasured(pictures) = &sequence.pictures else { return Ok(Some(sequence)) };
        let pictures = pictures.clone();
        match measured(&sequence.prompt, &pictures, model)? {
            Ok((prompt, room)) => {
                // All sequences of an answer with pictures have one prompt, and go on sharing it.
                let others = self.waiting.of_mut(sequence.answer);
                for sequence in others.chain([&mut sequence]) {
                    sequence.prompt = prompt.clone();
                    sequence.pictures = Pictures::Measured(pictures.clone());
                    sequence.limit = sequence.limit.min(room);
                }
                Ok(Some(sequence))
            }
            Err(fault) => {
                self.end_answer(sequence.answer, fault);
                Ok(None)
            }
        }
    }

    /// Shows the engine one picture that is next in a slot; the slots take turns. Returns whether there was one.
    pub(super) fn show_picture(&mut self, model: &mut Model<'_>) -> Result<bool, EngineError> {
        let count = self.slots.len();
        let turns = (0..count).map(|step| (self.turns as usize + step) % count);
        let next = turns.filter(|at| self.may_go_on(&self.slots[*at])).find_map(|at| {
            let slot = &self.slots[at];
            let (picture, tokens) = slot.next_picture()?;
            Some((at, slot.running.as_ref()?.sequence.answer, picture, tokens.to_vec()))
        });
        let Some((at, id, picture, tokens)) = next else { return Ok(false) };
        let slot = &mut self.slots[at];
        match model.engine.show(&picture, at as u32, slot.cached.len() as u32) {
            Ok(()) => slot.cached.extend(tokens),
            Err(EngineError::NoRoom) => self.make_room(model),
            Err(EngineError::Unfit(reason)) => self.end_answer(id, ProviderFault::new(FaultKind::Internal, reason)),
            Err(broken @ EngineError::Broken(_)) => return Err(broken),
        }
        Ok(true)
    }
}

/// The prompt with the tokens of its pictures, and how many may follow; or what is wrong with the request.
#[expect(clippy::type_complexity, reason = "two ways to fail: the engine's, and the request's")]
fn measured(
    prompt: &[Token],
    pictures: &[Picture],
    model: &mut Model<'_>,
) -> Result<Result<(Arc<[Token]>, u32), ProviderFault>, EngineError> {
    let context = model.engine.limits().context;
    let mut lengths = Vec::with_capacity(pictures.len());
    for (number, picture) in (1..).zip(pictures) {
        match model.engine.measure(picture) {
            Ok(length) => lengths.push(length),
            Err(EngineError::Unfit(reason)) => {
                let message = format!("picture {number} of the request cannot be used: {reason}");
                return Ok(Err(refuse(FaultKind::BadRequest, message, None)));
            }
            Err(error) => return Err(error),
        }
    }
    let tokens = prompt.len() as u64 + lengths.iter().map(|length| u64::from(*length)).sum::<u64>();
    let tokens = tokens - pictures.len() as u64;
    let room =
        u64::from(context).checked_sub(tokens).and_then(|room| u32::try_from(room).ok()).filter(|room| *room > 0);
    Ok(match room {
        Some(room) => Ok((expand(prompt, pictures, &lengths), room)),
        None => {
            let message = format!(
                "the prompt has {tokens} tokens, {} of them for {} pictures, but the model runs with a context of {context} tokens (prompt \
                 and answer together); shorten it, send fewer or smaller pictures, or choose a model with a longer context",
                lengths.iter().map(|length| u64::from(*length)).sum::<u64>(),
                pictures.len(),
            );
            Err(refuse(FaultKind::ContextLength, message, Some("context_length_exceeded")))
        }
    })
}

fn refuse(kind: FaultKind, message: String, code: Option<&str>) -> ProviderFault {
    let detail =
        FaultDetail { code: code.map(str::to_owned), param: Some("messages".into()), ..FaultDetail::default() };
    ProviderFault { detail: Some(Box::new(detail)), ..ProviderFault::new(kind, message) }
}
