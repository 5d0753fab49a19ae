//! Configurations, requests and what comes back, in few words.

use futures_util::StreamExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_config::{EngineKind, Local, LocalModel, Priority};
use tollkeeper_inference::local::LocalEngines;
use tollkeeper_inference::{Call, EventStream, ReplyBody};
use tollkeeper_protocol::chat::{ChatRequest, FinishReason, Message, Part, Role, Sampling};
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_protocol::embedding::{EmbeddingRequest, EmbeddingResponse, Encoding};
use tollkeeper_protocol::event::{ChatEvent, TokenLogprob};
use tollkeeper_protocol::fault::ProviderFault;
use tollkeeper_protocol::rerank::{RerankRequest, RerankResponse};
use tollkeeper_protocol::usage::Usage;
use tollkeeper_protocol::{Operation, Request};

pub(crate) fn model(name: &str, engine: EngineKind, path: impl AsRef<Path>) -> LocalModel {
    LocalModel {
        host: tollkeeper_config::EngineHost::Auto,
        slots: 4,
        queue: 8,
        ..LocalModel::plain(name, engine, path.as_ref())
    }
}

pub(crate) fn echo(name: &str) -> LocalModel {
    model(name, EngineKind::Scripted, "echo")
}

pub(crate) fn local(models: impl IntoIterator<Item = LocalModel>) -> Local {
    Local {
        models: models.into_iter().map(|model| (model.name.clone(), Arc::new(model))).collect(),
        ..Local::default()
    }
}

pub(crate) async fn engines(models: impl IntoIterator<Item = LocalModel>) -> LocalEngines {
    let engines = LocalEngines::start(&local(models), None);
    engines.ready().await;
    engines
}

pub(crate) fn message(role: Role, text: &str) -> Message {
    let content = vec![Part::Text(text.into())];
    Message { role, content, name: None, tool_calls: Vec::new(), tool_call_id: None, reasoning: None }
}

pub(crate) fn greedy() -> Sampling {
    Sampling { temperature: Some(0.0), ..Sampling::default() }
}

pub(crate) fn chat(text: &str) -> ChatRequest {
    ChatRequest { messages: vec![message(Role::User, text)], sampling: greedy(), n: 1, ..ChatRequest::default() }
}

pub(crate) fn completion(text: &str, max_tokens: u32) -> CompletionRequest {
    let prompts = vec![Prompt::Text(text.into())];
    CompletionRequest {
        prompts,
        max_tokens: Some(max_tokens),
        sampling: greedy(),
        n: 1,
        ..CompletionRequest::default()
    }
}

pub(crate) fn embedding(texts: &[&str]) -> EmbeddingRequest {
    let inputs = texts.iter().map(|text| Prompt::Text((*text).into())).collect();
    EmbeddingRequest { model: String::new(), inputs, encoding: Encoding::Float, dimensions: None }
}

pub(crate) fn call(request: Request) -> Call {
    let operation = match request {
        Request::Chat(_) => Operation::Chat,
        Request::Completion(_) => Operation::TextCompletion,
        Request::Embedding(_) => Operation::Embeddings,
        Request::Rerank(_) => Operation::Rerank,
    };
    Call {
        request: Arc::new(request),
        original: bytes::Bytes::new(),
        operation,
        output_limit: None,
        measured: 0,
        priority: Priority::default(),
        request_id: "test".into(),
        abandoned: Arc::default(),
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

/// A whole answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Text by choice.
    pub(crate) texts: Vec<String>,
    pub(crate) finishes: Vec<Option<FinishReason>>,
    pub(crate) calls: Vec<(String, String)>,
    pub(crate) reasoning: String,
    pub(crate) logprobs: Vec<TokenLogprob>,
    /// Tokens the events counted.
    pub(crate) counted: u64,
    pub(crate) usage: Usage,
    /// How the answer broke off, if it did.
    pub(crate) fault: Option<ProviderFault>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        self.texts.first().map_or("", String::as_str)
    }

    fn take(&mut self, event: ChatEvent) {
        let (ChatEvent::Text { choice, .. }
        | ChatEvent::Reasoning { choice, .. }
        | ChatEvent::ToolCall { choice, .. }
        | ChatEvent::Finish { choice, .. }) = event
        else {
            if let ChatEvent::Usage(usage) = event {
                self.usage = usage;
            }
            return;
        };
        let choice = choice as usize;
        self.texts.resize(self.texts.len().max(choice + 1), String::new());
        self.finishes.resize(self.finishes.len().max(choice + 1), None);
        match event {
            ChatEvent::Text { text, tokens, logprobs, .. } => {
                self.texts[choice].push_str(&text);
                self.counted += u64::from(tokens);
                self.logprobs.extend(logprobs);
            }
            ChatEvent::ToolCall { index, name, arguments, tokens, .. } => {
                let index = index as usize;
                self.calls.resize(self.calls.len().max(index + 1), Default::default());
                self.calls[index].0.push_str(&name.unwrap_or_default());
                self.calls[index].1.push_str(&arguments);
                self.counted += u64::from(tokens);
            }
            ChatEvent::Finish { reason, .. } => self.finishes[choice] = Some(reason),
            ChatEvent::Reasoning { text, tokens, .. } => {
                self.reasoning.push_str(&text);
                self.counted += u64::from(tokens);
            }
            ChatEvent::Certainty { .. } | ChatEvent::Usage(_) => {}
        }
    }
}

/// Reads a stream to its end; a complete answer's events count exactly what its usage says.
pub(crate) async fn read(mut events: EventStream) -> Answer {
    let mut answer = Answer::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => answer.take(event),
            Err(fault) => answer.fault = Some(fault),
        }
    }
    assert!(answer.fault.is_some() || answer.counted == answer.usage.output, "{answer:?}");
    answer
}

pub(crate) async fn begin(engines: &LocalEngines, name: &str, call: Call) -> Result<EventStream, ProviderFault> {
    match engines.send(name, call).await?.body {
        ReplyBody::Events(events) => Ok(events),
        other => panic!("not a stream of events: {other:?}"),
    }
}

pub(crate) async fn ask(engines: &LocalEngines, name: &str, request: Request) -> Result<Answer, ProviderFault> {
    Ok(read(begin(engines, name, call(request)).await?).await)
}

pub(crate) async fn embed(
    engines: &LocalEngines,
    name: &str,
    request: EmbeddingRequest,
) -> Result<EmbeddingResponse, ProviderFault> {
    match engines.send(name, call(Request::Embedding(request))).await?.body {
        ReplyBody::Embeddings(answer) => Ok(answer),
        other => panic!("not embeddings: {other:?}"),
    }
}

pub(crate) fn reranking(query: &str, documents: &[&str]) -> RerankRequest {
    let documents = documents.iter().map(ToString::to_string).collect();
    RerankRequest { model: String::new(), query: query.into(), documents, top_n: None, return_documents: false }
}

pub(crate) async fn rerank(
    engines: &LocalEngines,
    name: &str,
    request: RerankRequest,
) -> Result<RerankResponse, ProviderFault> {
    match engines.send(name, call(Request::Rerank(request))).await?.body {
        ReplyBody::Ranking(answer) => Ok(answer),
        other => panic!("not a ranking: {other:?}"),
    }
}
