//! Answers that go to the client whole.

use crate::body::Body;
use crate::dispatch::Answer;
use crate::error::{ApiError, ok_json};
use crate::meter::Meter;
use bytes::Bytes;
use futures_util::StreamExt;
use http::Response;
use std::future::poll_fn;
use tollkeeper_inference::{EventStream, ReplyBody};
use tollkeeper_policies::{Charge, Denied, Outcome};
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatResponse, FinishReason};
use tollkeeper_protocol::event::Folder;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::openai::{self, AnswerMeta, Extension};

/// Waits for the whole answer, charges it, and makes a response of it. A provider's bytes stay as they are.
///
/// # Errors
/// The backend fails on the way; what it had generated is charged.
pub(crate) async fn respond(
    answer: Answer,
    request: &Request,
    meter: &mut Meter,
) -> Result<(Response<Body>, Option<Charge>), ApiError> {
    let Answer { reply, backend, id, created, .. } = answer;
    let meta = AnswerMeta { id: id.to_string(), created, model: reply.model };
    let (body, outcome): (Bytes, Outcome) = match reply.body {
        ReplyBody::Bytes { bytes, peek } => {
            meter.first_content();
            match peek.usage {
                Some(usage) => meter.reported(usage),
                None => meter.whole_text(peek.text_bytes),
            }
            (bytes, Outcome::Done)
        }
        ReplyBody::Embeddings(embeddings) => {
            meter.first_content();
            meter.reported(embeddings.usage);
            let Request::Embedding(asked) = request else { return Err(unfit(&backend, meter)) };
            (openai::encode_embeddings(&meta, &embeddings, asked.encoding, None), Outcome::Done)
        }
        ReplyBody::Ranking(ranking) => {
            meter.first_content();
            meter.reported(ranking.usage);
            let Request::Rerank(asked) = request else { return Err(unfit(&backend, meter)) };
            (openai::encode_rerank(&meta, asked, &ranking, None), Outcome::Done)
        }
        ReplyBody::Events(events) => {
            let folded = fold(events, request, meter).await;
            let (answer, stopped) = folded.map_err(|broken| match broken {
                Broken::Backend(fault) => {
                    meter.close(Outcome::Fault(fault.kind));
                    ApiError::Provider { backend: backend.to_string(), fault }
                }
                Broken::Store(denied) => {
                    meter.close(Outcome::Fault(FaultKind::Unavailable));
                    ApiError::denied(denied)
                }
            })?;
            let outcome = match &stopped {
                None => Outcome::Done,
                Some(Denied::Stopped { .. }) => Outcome::Stopped,
                Some(_) => Outcome::BudgetStop,
            };
            let extension = stopped.map(|denied| Extension {
                cost_usd: meter.cost(false).to_string(),
                backend: backend.to_string(),
                stopped: Some(ApiError::denied(denied).stopped()),
            });
            match request {
                Request::Completion(_) => (openai::encode_completion(&meta, &answer, extension.as_ref()), outcome),
                _ => (openai::encode_chat(&meta, &answer, extension.as_ref()), outcome),
            }
        }
        ReplyBody::Frames(_) => return Err(unfit(&backend, meter)),
    };
    let charge = meter.close(outcome);
    Ok((ok_json(body), charge))
}

/// What can end an answer before its end.
enum Broken {
    Backend(ProviderFault),
    Store(Denied),
}

/// Gathers a local answer. When the budget is exhausted it ends there, as at a token limit, and the refusal is returned with it.
async fn fold(
    mut events: EventStream,
    request: &Request,
    meter: &mut Meter,
) -> Result<(ChatResponse, Option<Denied>), Broken> {
    let mut folder = Folder::default();
    let mut stopped = None;
    while let Some(event) = events.next().await {
        let event = event.map_err(Broken::Backend)?;
        meter.event(&event);
        match poll_fn(|cx| meter.poll_paid(cx)).await {
            Ok(()) => {}
            Err(denied) if denied.is_outage() => return Err(Broken::Store(denied)),
            Err(denied) => {
                stopped = Some(denied);
                break;
            }
        }
        folder.push(event);
    }
    let mut answer = folder.finish();
    if stopped.is_some() {
        answer.choices.resize_with(usize::try_from(request.answers()).unwrap_or(1), Default::default);
        for choice in &mut answer.choices {
            choice.finish.get_or_insert(FinishReason::Length);
        }
        answer.usage = Some(meter.usage(false).0);
    }
    Ok((answer, stopped))
}

/// The backend answered another question than was asked; nothing of it can be sent on.
fn unfit(backend: &str, meter: &mut Meter) -> ApiError {
    meter.close(Outcome::Fault(FaultKind::Malformed));
    let fault = ProviderFault::new(FaultKind::Malformed, "the backend answered in a form that was not asked for");
    ApiError::Provider { backend: backend.to_owned(), fault }
}
