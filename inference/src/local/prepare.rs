//! A neutral request becomes work for one model: tokens, limits and the rules of drawing, or a refusal that says why.

use super::engine::{Grammar, Limits, Token, Tokenizer};
use super::template::{Template, TemplateError};
use std::sync::Arc;
use tollkeeper_config::LocalModel;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, Part, ResponseFormat, Sampling, ToolChoice};
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_protocol::embedding::EmbeddingRequest;
use tollkeeper_protocol::fault::{FaultDetail, FaultKind, ProviderFault};

/// Work for a model's worker.
pub(crate) enum Work {
    /// Text.
    Generate(Generation),
    /// Vectors.
    Embed(Embedding),
}

/// One or more answers to one or more prompts.
pub(crate) struct Generation {
    /// Each is answered `answers` times.
    pub(crate) prompts: Vec<PromptTokens>,
    /// Answers to each prompt, at least 1.
    pub(crate) answers: u32,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
    pub(crate) top_logprobs: Option<u8>,
    pub(crate) tools: Tools,
    pub(crate) grammar: Option<Grammar>,
}

/// A prompt as the model reads it.
pub(crate) struct PromptTokens {
    pub(crate) tokens: Arc<[Token]>,
    /// Text to repeat before the answer.
    pub(crate) echo: Option<String>,
    /// Most tokens to generate; the context has room for them.
    pub(crate) limit: u32,
}

/// Whether tool calls are looked for in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tools {
    /// No.
    Off,
    /// Yes, any number.
    Many,
    /// Yes, and the answer ends with the first.
    One,
}

/// Inputs to embed.
pub(crate) struct Embedding {
    pub(crate) inputs: Vec<Vec<Token>>,
    /// Numbers to keep of each vector.
    pub(crate) dimensions: usize,
}

/// What turns requests into work for one loaded model, on any thread.
pub(crate) struct Frontend {
    model: Arc<LocalModel>,
    tokenizer: Arc<dyn Tokenizer>,
    template: Template,
    limits: Limits,
}

impl Frontend {
    pub(crate) fn new(model: Arc<LocalModel>, tokenizer: Arc<dyn Tokenizer>, limits: Limits) -> Self {
        let template = Template::of(&*tokenizer);
        if let Some(defect) = template.defect() {
            tracing::warn!(
                model = model.name,
                defect,
                "the model's chat template does not compile; chat requests will fail"
            );
        }
        Self { model, tokenizer, template, limits }
    }

    /// The number of prompt tokens, or nothing if the request would be refused.
    pub(crate) fn count(&self, request: &Request) -> Option<u64> {
        let tokens = match request {
            Request::Chat(request) => self.chat_prompt(request).ok()?.len(),
            Request::Completion(request) => self.prompts(&request.prompts).ok()?.iter().map(Vec::len).sum(),
            Request::Embedding(request) => self.prompts(&request.inputs).ok()?.iter().map(Vec::len).sum(),
        };
        Some(tokens as u64)
    }

    /// Checks and tokenises a request. `output_limit` bounds each answer.
    pub(crate) fn prepare(&self, request: &Request, output_limit: Option<u64>) -> Result<Work, ProviderFault> {
        match request {
            Request::Chat(request) => self.chat(request, output_limit).map(Work::Generate),
            Request::Completion(request) => self.completion(request, output_limit).map(Work::Generate),
            Request::Embedding(request) => self.embedding(request).map(Work::Embed),
        }
    }

    fn chat(&self, request: &ChatRequest, output_limit: Option<u64>) -> Result<Generation, ProviderFault> {
        let grammar = match &request.response_format {
            ResponseFormat::Text => None,
            ResponseFormat::JsonObject => Some(Grammar::JsonSchema(r#"{"type":"object"}"#.into())),
            ResponseFormat::JsonSchema(format) => {
                let schema = format.get("schema").map_or_else(|| "{}".into(), ToString::to_string);
                Some(Grammar::JsonSchema(schema))
            }
        };
        if grammar.is_some() && offers_tools(request) {
            return Err(refuse(
                "response_format",
                "`response_format` together with `tools` is not supported by this engine yet",
            ));
        }
        self.check_sampling(&request.sampling)?;
        let tokens = self.chat_prompt(request)?;
        let limit = self.limit(tokens.len(), request.max_tokens, output_limit)?;
        Ok(Generation {
            prompts: vec![PromptTokens { tokens: tokens.into(), echo: None, limit }],
            answers: request.n.max(1),
            sampling: request.sampling.clone(),
            stop: request.stop.clone(),
            top_logprobs: request.top_logprobs,
            tools: match (offers_tools(request), request.parallel_tool_calls) {
                (false, _) => Tools::Off,
                (true, Some(false)) => Tools::One,
                (true, _) => Tools::Many,
            },
            grammar,
        })
    }

    fn chat_prompt(&self, request: &ChatRequest) -> Result<Vec<Token>, ProviderFault> {
        for part in request.messages.iter().flat_map(|message| &message.content) {
            match part {
                Part::Text(_) => {}
                Part::Image(_) => {
                    return Err(refuse("messages", "images are not supported by this engine yet; send text only"));
                }
                Part::Other(_) => return Err(refuse("messages", "only text content is supported by this engine")),
            }
        }
        if let ToolChoice::Required | ToolChoice::Named(_) = request.tool_choice {
            let message =
                "a required or named `tool_choice` is not supported by this engine yet; use \"auto\" or \"none\"";
            return Err(refuse("tool_choice", message));
        }
        self.template.prompt(request, offers_tools(request), &*self.tokenizer).map_err(|error| match error {
            TemplateError::Refused(_) => refuse("messages", &error.to_string()),
            TemplateError::Broken(_) => ProviderFault::new(FaultKind::Unavailable, error.to_string()),
        })
    }

    fn completion(&self, request: &CompletionRequest, output_limit: Option<u64>) -> Result<Generation, ProviderFault> {
        if request.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(refuse("suffix", "`suffix` is not supported by this engine yet"));
        }
        if request.echo && request.logprobs.is_some() {
            return Err(refuse("echo", "`echo` together with `logprobs` is not supported by this engine yet"));
        }
        self.check_sampling(&request.sampling)?;
        let prompts = self.prompts(&request.prompts)?;
        let prompts = prompts.into_iter().map(|tokens| {
            Ok(PromptTokens {
                echo: request.echo.then(|| self.text(&tokens)),
                limit: self.limit(tokens.len(), Some(request.max_tokens.unwrap_or(16)), output_limit)?,
                tokens: tokens.into(),
            })
        });
        Ok(Generation {
            prompts: prompts.collect::<Result<_, ProviderFault>>()?,
            answers: request.n.max(1),
            sampling: request.sampling.clone(),
            stop: request.stop.clone(),
            top_logprobs: request.logprobs,
            tools: Tools::Off,
            grammar: None,
        })
    }

    fn embedding(&self, request: &EmbeddingRequest) -> Result<Embedding, ProviderFault> {
        let width = self.limits.embedding_width as usize;
        if self.limits.embedding_context == 0 {
            return Err(refuse("model", &format!("the model `{}` does not compute embeddings", self.model.name)));
        }
        let dimensions = request.dimensions.map_or(width, |wanted| wanted as usize);
        if dimensions == 0 || dimensions > width {
            let message = format!("`dimensions` must be from 1 to {width}, the size of this model's vectors");
            return Err(refuse("dimensions", &message));
        }
        let inputs = self.prompts(&request.inputs)?;
        let longest = inputs.iter().map(Vec::len).max().unwrap_or(0);
        if longest > self.limits.embedding_context as usize {
            return Err(too_long(longest, &self.model.name, self.limits.embedding_context, "embedding input"));
        }
        Ok(Embedding { inputs, dimensions })
    }

    /// Tokens of texts; token prompts are checked and taken as they are.
    fn prompts(&self, prompts: &[Prompt]) -> Result<Vec<Vec<Token>>, ProviderFault> {
        let tokens = prompts.iter().map(|prompt| {
            let tokens = match prompt {
                Prompt::Text(text) => self.tokenizer.encode(text, true),
                Prompt::Tokens(tokens) => tokens.clone(),
            };
            match tokens.iter().find(|token| **token >= self.limits.vocabulary) {
                Some(token) => {
                    let message =
                        format!("token {token} is not in the vocabulary of {} tokens", self.limits.vocabulary);
                    Err(refuse("prompt", &message))
                }
                None if tokens.is_empty() => {
                    Err(refuse("prompt", "the prompt is empty; this model needs at least one token"))
                }
                None => Ok(tokens),
            }
        });
        tokens.collect()
    }

    fn text(&self, tokens: &[Token]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| self.tokenizer.piece(*token)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn check_sampling(&self, sampling: &Sampling) -> Result<(), ProviderFault> {
        if !self.limits.generates {
            let message = format!("the model `{}` only computes embeddings; use POST /v1/embeddings", self.model.name);
            return Err(refuse("model", &message));
        }
        match sampling.logit_bias.iter().find(|(token, _)| *token >= self.limits.vocabulary) {
            Some((token, _)) => {
                let message = format!(
                    "token {token} in `logit_bias` is not in the vocabulary of {} tokens",
                    self.limits.vocabulary
                );
                Err(refuse("logit_bias", &message))
            }
            None => Ok(()),
        }
    }

    /// How many tokens may be generated after a prompt of this length.
    fn limit(&self, prompt: usize, wanted: Option<u32>, output_limit: Option<u64>) -> Result<u32, ProviderFault> {
        let context = self.limits.context;
        let room = u32::try_from(prompt).ok().and_then(|prompt| context.checked_sub(prompt)).filter(|room| *room > 0);
        let room = room.ok_or_else(|| too_long(prompt, &self.model.name, context, "prompt"))?;
        let wanted = wanted.or(self.model.max_output).unwrap_or(room);
        let affordable = output_limit.map_or(u32::MAX, |limit| u32::try_from(limit).unwrap_or(u32::MAX));
        Ok(room.min(wanted).min(affordable))
    }
}

fn offers_tools(request: &ChatRequest) -> bool {
    !request.tools.is_empty() && request.tool_choice != ToolChoice::None
}

fn too_long(tokens: usize, model: &str, context: u32, what: &str) -> ProviderFault {
    let message = format!(
        "the {what} has {tokens} tokens, but the model `{model}` runs with a context of {context} tokens (prompt and answer together); \
         shorten it, or choose a model with a longer context"
    );
    let detail = FaultDetail { code: Some("context_length_exceeded".into()), ..FaultDetail::default() };
    ProviderFault { detail: Some(Box::new(detail)), ..ProviderFault::new(FaultKind::ContextLength, message) }
}

fn refuse(param: &str, message: &str) -> ProviderFault {
    let detail = FaultDetail { param: Some(param.into()), ..FaultDetail::default() };
    ProviderFault { detail: Some(Box::new(detail)), ..ProviderFault::new(FaultKind::BadRequest, message) }
}
