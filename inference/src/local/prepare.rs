//! A neutral request becomes work for one model: tokens, limits and the rules of drawing, or a refusal that says why.

use super::engine::{Limits, Token, Tokenizer};
use super::form::{Form, wanted};
use super::formats::grammar::{Answer, Function, Offer};
use super::formats::{Format, Signature};
use super::guide::{Guide, Guides};
use super::picture::{MOST_PICTURES, MOST_PIXELS, Picture, Pictures, mark};
use super::template::{Rendered, Template, TemplateError};
use serde_json::Value;
use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use tollkeeper_config::LocalModel;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, Part, ResponseFormat, Sampling, Tool, ToolChoice};
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_protocol::embedding::EmbeddingRequest;
use tollkeeper_protocol::fault::{FaultDetail, FaultKind, ProviderFault};
use tollkeeper_protocol::rerank::RerankRequest;

/// Work for a model's worker.
pub(crate) enum Work {
    /// Text.
    Generate(Box<Generation>),
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
    /// Of so many first tokens it is said how sure the model was.
    pub(crate) measured: u32,
    /// Whether the prompt is repeated token by token with log-probabilities.
    pub(crate) scores_prompt: bool,
    /// How the answer is taken apart; `None` is plain text.
    pub(crate) layout: Option<Layout>,
    /// The grammar that the answer must follow.
    pub(crate) guide: Option<Guide>,
}

/// A prompt as the model reads it.
pub(crate) struct PromptTokens {
    pub(crate) tokens: Arc<[Token]>,
    pub(crate) pictures: Pictures,
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

/// How an answer is written.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) format: Format,
    /// Whether the prompt left the model in the middle of its reasoning.
    pub(crate) thinking: bool,
    pub(crate) tools: Tools,
    /// The functions that can be called.
    pub(crate) signatures: Arc<[Signature]>,
}

/// Inputs to embed or to rank.
pub(crate) struct Embedding {
    pub(crate) inputs: Vec<Vec<Token>>,
    /// Numbers to keep of each vector, which then gets the length 1; `None` leaves relevances as they are.
    pub(crate) dimensions: Option<usize>,
}

/// What turns requests into work for one loaded model, on any thread.
pub(crate) struct Frontend {
    model: Arc<LocalModel>,
    tokenizer: Arc<dyn Tokenizer>,
    template: Template,
    guides: Guides,
    limits: Limits,
    /// Pictures take much memory while they are decoded: one at a time.
    decoding: Mutex<()>,
}

impl Frontend {
    pub(crate) fn new(model: Arc<LocalModel>, tokenizer: Arc<dyn Tokenizer>, limits: Limits) -> Self {
        let template =
            Template::of(&*tokenizer, |template| Format::chosen(template, model.tool_format, model.reasoning_format));
        if let Some(defect) = template.defect() {
            tracing::warn!(
                model = model.name,
                defect,
                "the model's chat template does not compile; chat requests will fail"
            );
        }
        tracing::debug!(model = model.name, format = template.format().name(), "the format of the model's answers");
        let guides = Guides::new(tokenizer.clone());
        Self { model, tokenizer, template, guides, limits, decoding: Mutex::default() }
    }

    /// Whether this is what a new one for them would be.
    pub(crate) fn is_for(&self, tokenizer: &Arc<dyn Tokenizer>, limits: &Limits) -> bool {
        Arc::ptr_eq(&self.tokenizer, tokenizer) && self.limits == *limits
    }

    /// The number of prompt tokens, or nothing if the request would be refused.
    pub(crate) fn count(&self, request: &Request) -> Option<u64> {
        let tokens = match request {
            // Only the engine knows how many tokens a picture takes.
            Request::Chat(request) if shows(request) => return None,
            Request::Chat(request) => self.chat_prompt(request).ok()?.tokens.len(),
            Request::Completion(request) => self.completion_prompts(request).ok()?.iter().map(Vec::len).sum(),
            Request::Embedding(request) => self.prompts(&request.inputs, "input").ok()?.iter().map(Vec::len).sum(),
            Request::Rerank(request) => self.rerank(request).ok()?.inputs.iter().map(Vec::len).sum(),
        };
        Some(tokens as u64)
    }

    /// Checks and tokenises a request. `output_limit` bounds each answer.
    pub(crate) fn prepare(&self, request: &Request, output_limit: Option<u64>) -> Result<Work, ProviderFault> {
        match request {
            Request::Chat(request) => {
                self.chat(request, output_limit).map(|generation| Work::Generate(Box::new(generation)))
            }
            Request::Completion(request) => {
                self.completion(request, output_limit).map(|generation| Work::Generate(Box::new(generation)))
            }
            Request::Embedding(request) => self.embedding(request).map(Work::Embed),
            Request::Rerank(request) => self.rerank(request).map(Work::Embed),
        }
    }

    fn chat(&self, request: &ChatRequest, output_limit: Option<u64>) -> Result<Generation, ProviderFault> {
        let form = wanted(&request.response_format, &request.extra).map_err(|(field, what)| refuse(field, &what))?;
        self.check_sampling(&request.sampling)?;
        let (marked, pictures) = self.pictures(request)?;
        let Rendered { tokens, thinking } = self.chat_prompt(&marked)?;
        let limit = self.limit(tokens.len(), request.max_tokens, output_limit)?;
        let format = *self.template.format();
        if !format.reads_calls() && matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_)) {
            let message = format!(
                "the model `{}` cannot be made to call: its `tool_format` is \"none\"; send `tool_choice` \"auto\", or change the gateway's configuration",
                self.model.name
            );
            return Err(refuse("tool_choice", &message));
        }
        let tools = match (offers_tools(request) && format.reads_calls(), request.parallel_tool_calls) {
            (false, _) => Tools::Off,
            (true, Some(false)) => Tools::One,
            (true, _) => Tools::Many,
        };
        let (guide, signatures) = self.guide(request, &format, thinking, form.as_ref(), tools)?;
        Ok(Generation {
            prompts: vec![PromptTokens { tokens: tokens.into(), pictures: Pictures::of(pictures), echo: None, limit }],
            answers: request.n.max(1),
            sampling: request.sampling.clone(),
            stop: request.stop.clone(),
            top_logprobs: request.top_logprobs,
            measured: 0,
            scores_prompt: false,
            layout: (tools != Tools::Off || format.thinks()).then_some(Layout { format, thinking, tools, signatures }),
            guide,
        })
    }

    /// The grammar of a chat answer, if it has to follow one: the asked form, and the calls of the offered tools. With it what the arguments
    /// of these mean.
    fn guide(
        &self,
        request: &ChatRequest,
        format: &Format,
        thinking: bool,
        form: Option<&Form>,
        tools: Tools,
    ) -> Result<(Option<Guide>, Arc<[Signature]>), ProviderFault> {
        if form.is_none() && tools == Tools::Off {
            return Ok((None, Arc::new([])));
        }
        if let (Some(form), true) = (form, tools != Tools::Off && format.calls_look_like_json()) {
            let message = format!(
                "`{}` together with `tools` cannot be followed with this model: it writes calls as plain JSON; send one of the two",
                form.field
            );
            return Err(refuse(form.field, &message));
        }
        let compile = |offer: Option<&Offer<'_>>| {
            let (text, rules) = form.map_or((None, ""), |form| (Some(form.rule.as_str()), form.rules.as_str()));
            self.guides.compile(&Answer { format, thinking, text, rules, offer }.grammar()?)
        };
        if let Some(form) = form {
            // Alone first, so that what is wrong with it is not taken for something that is wrong with a tool.
            let guide = compile(None)
                .map_err(|reason| refuse(form.field, &format!("`{}` cannot be used: {reason}", form.field)))?;
            if tools == Tools::Off {
                return Ok((Some(guide), Arc::new([])));
            }
        }
        let mut offer = offer(request, tools)?;
        if let Ok(guide) = compile(Some(&offer)) {
            return Ok((Some(guide), signatures(&offer)));
        }
        let grammar = |function: Function<'_>| {
            let alone = Offer { functions: vec![function], required: true, several: false };
            Answer { format, thinking: false, text: None, rules: "", offer: Some(&alone) }.grammar()
        };
        for (index, tool) in offered(request).enumerate() {
            let arguments = offer.functions[index].arguments.clone();
            let function = Function { name: &tool.name, arguments, enforced: true };
            let Err(reason) = grammar(function).and_then(|grammar| self.guides.compile(&grammar)) else { continue };
            if tool.strict == Some(true) {
                let message = format!("the `parameters` of the tool `{}` cannot be enforced: {reason}", tool.name);
                return Err(refuse("tools", &message));
            }
            // Without `strict`, a schema that cannot be enforced is a description for the model.
            offer.functions[index].enforced = false;
        }
        let guide = compile(Some(&offer)).or_else(|reason| {
            if offered(request).any(|tool| tool.strict == Some(true)) {
                return Err(refuse("tools", &format!("the tools together cannot be enforced: {reason}")));
            }
            offer.functions.iter_mut().for_each(|function| function.enforced = false);
            compile(Some(&offer)).map_err(|reason| refuse("tools", &format!("the tools cannot be offered: {reason}")))
        });
        guide.map(|guide| (Some(guide), signatures(&offer)))
    }

    fn chat_prompt(&self, request: &ChatRequest) -> Result<Rendered, ProviderFault> {
        if parts(request).any(|part| matches!(part, Part::Other(_))) {
            return Err(refuse("messages", "only text and pictures are supported by this engine"));
        }
        self.template.prompt(request, offers_tools(request), &*self.tokenizer).map_err(|error| match error {
            TemplateError::Refused(_) | TemplateError::Pictures(_) => refuse("messages", &error.to_string()),
            TemplateError::Broken(_) => ProviderFault::new(FaultKind::Unavailable, error.to_string()),
        })
    }

    /// The request with a mark in the place of each picture, and the pictures.
    fn pictures<'r>(&self, request: &'r ChatRequest) -> Result<(Cow<'r, ChatRequest>, Vec<Picture>), ProviderFault> {
        let count = parts(request).filter(|part| matches!(part, Part::Image(_))).count();
        if count == 0 {
            return Ok((Cow::Borrowed(request), Vec::new()));
        }
        if !self.limits.sees {
            let message = format!("the model `{}` cannot see pictures; send text only", self.model.name);
            return Err(refuse("messages", &message));
        }
        if count > MOST_PICTURES {
            let message = format!("the request has {count} pictures; a local model takes at most {MOST_PICTURES}");
            return Err(refuse("messages", &message));
        }
        let _one_at_a_time = self.decoding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut marked = request.clone();
        let (mut pictures, mut room) = (Vec::with_capacity(count), MOST_PIXELS);
        for part in marked.messages.iter_mut().flat_map(|message| &mut message.content) {
            let Part::Image(url) = part else { continue };
            let number = pictures.len();
            let picture = Picture::of_url(url, room).map_err(|reason| {
                refuse("messages", &format!("picture {} of the request cannot be used: {reason}", number + 1))
            })?;
            room -= u64::from(picture.width()) * u64::from(picture.height());
            pictures.push(picture);
            *url = mark(number).into();
        }
        Ok((Cow::Owned(marked), pictures))
    }

    fn completion(&self, request: &CompletionRequest, output_limit: Option<u64>) -> Result<Generation, ProviderFault> {
        let form = wanted(&ResponseFormat::Text, &request.extra).map_err(|(field, what)| refuse(field, &what))?;
        let guide = form.map(|form| {
            let grammar = format!("start: {}\n{}", form.rule, form.rules);
            let guide = self.guides.compile(&grammar);
            guide.map_err(|reason| refuse(form.field, &format!("`{}` cannot be used: {reason}", form.field)))
        });
        let guide = guide.transpose()?;
        self.check_sampling(&request.sampling)?;
        let prompts = self.completion_prompts(request)?;
        let scores_prompt = request.echo && request.logprobs.is_some();
        let prompts = prompts.into_iter().map(|tokens| {
            Ok(PromptTokens {
                echo: (request.echo && !scores_prompt).then(|| self.text(&tokens)),
                limit: self.limit(tokens.len(), Some(request.max_tokens.unwrap_or(16)), output_limit)?,
                tokens: tokens.into(),
                pictures: Pictures::None,
            })
        });
        Ok(Generation {
            prompts: prompts.collect::<Result<_, ProviderFault>>()?,
            answers: request.n.max(1),
            sampling: request.sampling.clone(),
            stop: request.stop.clone(),
            top_logprobs: request.logprobs,
            measured: 0,
            scores_prompt,
            layout: None,
            guide,
        })
    }

    fn completion_prompts(&self, request: &CompletionRequest) -> Result<Vec<Vec<Token>>, ProviderFault> {
        let Some(suffix) = request.suffix.as_ref().filter(|suffix| !suffix.is_empty()) else {
            return self.prompts(&request.prompts, "prompt");
        };
        let infill = self.tokenizer.infill().ok_or_else(|| {
            let message = format!(
                "the model `{}` has no tokens for filling a gap, so it cannot use `suffix`; leave it out, or choose a model for code",
                self.model.name
            );
            refuse("suffix", &message)
        })?;
        if request.echo {
            return Err(refuse("echo", "`echo` cannot be used together with `suffix`"));
        }
        let first = self.tokenizer.required_first();
        let after = self.tokenizer.encode(suffix, false);
        let prompts = request.prompts.iter().map(|prompt| {
            let before = match prompt {
                Prompt::Text(text) => self.tokenizer.encode(text, false),
                Prompt::Tokens(tokens) => tokens.clone(),
            };
            self.check_tokens(&before, "prompt")?;
            Ok(infill.prompt(first, &before, &after))
        });
        prompts.collect()
    }

    fn embedding(&self, request: &EmbeddingRequest) -> Result<Embedding, ProviderFault> {
        let width = self.limits.embedding_width as usize;
        if self.limits.ranks {
            return Err(refuse("model", &format!("the model `{}` only reranks; use POST /v1/rerank", self.model.name)));
        }
        if self.limits.embedding_context == 0 {
            return Err(refuse("model", &format!("the model `{}` does not compute embeddings", self.model.name)));
        }
        let dimensions = request.dimensions.map_or(width, |wanted| wanted as usize);
        if dimensions == 0 || dimensions > width {
            let message = format!("`dimensions` must be from 1 to {width}, the size of this model's vectors");
            return Err(refuse("dimensions", &message));
        }
        let inputs = self.prompts(&request.inputs, "input")?;
        self.check_length(inputs.iter().map(Vec::len).max().unwrap_or(0), "embedding input")?;
        Ok(Embedding { inputs, dimensions: Some(dimensions) })
    }

    fn rerank(&self, request: &RerankRequest) -> Result<Embedding, ProviderFault> {
        if !self.limits.ranks {
            let message = format!(
                "the model `{}` has no classifier head, so it cannot rerank; choose a reranker, whose file says pooling type `rank`",
                self.model.name
            );
            return Err(refuse("model", &message));
        }
        // The first that is too long ends it: a long query is not read with all the other documents.
        let inputs = request.documents.iter().map(|document| {
            let pair = self.tokenizer.pair(&request.query, document);
            self.check_length(pair.len(), "query with a document")?;
            Ok(pair)
        });
        Ok(Embedding { inputs: inputs.collect::<Result<_, ProviderFault>>()?, dimensions: None })
    }

    fn check_length(&self, tokens: usize, what: &str) -> Result<(), ProviderFault> {
        let context = self.limits.embedding_context;
        if tokens > context as usize { Err(too_long(tokens, &self.model.name, context, what)) } else { Ok(()) }
    }

    /// Tokens of texts; token prompts are checked and taken as they are. `param` is the field that they come from.
    fn prompts(&self, prompts: &[Prompt], param: &str) -> Result<Vec<Vec<Token>>, ProviderFault> {
        let tokens = prompts.iter().map(|prompt| {
            let tokens = match prompt {
                Prompt::Text(text) => self.tokenizer.encode(text, true),
                Prompt::Tokens(tokens) => tokens.clone(),
            };
            self.check_tokens(&tokens, param)?;
            if tokens.is_empty() {
                return Err(refuse(param, &format!("the {param} is empty; this model needs at least one token")));
            }
            Ok(tokens)
        });
        tokens.collect()
    }

    fn check_tokens(&self, tokens: &[Token], param: &str) -> Result<(), ProviderFault> {
        let size = self.limits.vocabulary;
        match tokens.iter().find(|token| **token >= size) {
            Some(token) => Err(refuse(param, &format!("token {token} is not in the vocabulary of {size} tokens"))),
            None => Ok(()),
        }
    }

    fn text(&self, tokens: &[Token]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| self.tokenizer.piece(*token)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn check_sampling(&self, sampling: &Sampling) -> Result<(), ProviderFault> {
        if !self.limits.generates {
            let message = match self.limits.ranks {
                true => format!("the model `{}` only reranks; use POST /v1/rerank", self.model.name),
                false => format!("the model `{}` only computes embeddings; use POST /v1/embeddings", self.model.name),
            };
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

/// Whether preparing even a small request takes long, so that it is done on a thread that may take its time: grammars are compiled, pictures
/// decoded, and a query is read again with each document.
pub(crate) fn takes_long(request: &Request) -> bool {
    match request {
        Request::Chat(request) => {
            shows(request)
                || offers_tools(request)
                || !matches!(wanted(&request.response_format, &request.extra), Ok(None))
        }
        Request::Completion(request) => !matches!(wanted(&ResponseFormat::Text, &request.extra), Ok(None)),
        Request::Embedding(_) => false,
        Request::Rerank(_) => true,
    }
}

fn parts(request: &ChatRequest) -> impl Iterator<Item = &Part> {
    request.messages.iter().flat_map(|message| &message.content)
}

/// Whether there are pictures in the conversation.
fn shows(request: &ChatRequest) -> bool {
    parts(request).any(|part| matches!(part, Part::Image(_)))
}

fn offers_tools(request: &ChatRequest) -> bool {
    !request.tools.is_empty() && request.tool_choice != ToolChoice::None
}

/// The tools that the choice leaves.
fn offered(request: &ChatRequest) -> impl Iterator<Item = &Tool> {
    request.tools.iter().filter(|tool| match &request.tool_choice {
        ToolChoice::Named(name) => tool.name == *name,
        ToolChoice::Auto | ToolChoice::None | ToolChoice::Required => true,
    })
}

fn offer(request: &ChatRequest, tools: Tools) -> Result<Offer<'_>, ProviderFault> {
    let functions =
        offered(request).map(|tool| Ok(Function { name: &tool.name, arguments: arguments(tool)?, enforced: true }));
    let functions = functions.collect::<Result<Vec<_>, ProviderFault>>()?;
    if let (ToolChoice::Named(name), true) = (&request.tool_choice, functions.is_empty()) {
        return Err(refuse("tool_choice", &format!("`tool_choice` names `{name}`, which is not among the `tools`")));
    }
    Ok(Offer {
        functions,
        required: matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_)),
        several: tools == Tools::Many && !matches!(request.tool_choice, ToolChoice::Named(_)),
    })
}

fn signatures(offer: &Offer<'_>) -> Arc<[Signature]> {
    offer.functions.iter().map(Signature::of).collect()
}

/// The schema of a tool's arguments, which are an object.
fn arguments(tool: &Tool) -> Result<Value, ProviderFault> {
    let Some(Value::Object(schema)) = &tool.parameters else { return Ok(any_object()) };
    let object = match schema.get("type") {
        None => true,
        Some(Value::Array(types)) => types.iter().any(|name| name == "object"),
        Some(name) => name == "object",
    };
    if !object {
        let message =
            format!("the `parameters` of the tool `{}` must describe an object (`type` is `object`)", tool.name);
        return Err(refuse("tools", &message));
    }
    let mut schema = schema.clone();
    schema.insert("type".into(), "object".into());
    Ok(Value::Object(schema))
}

fn any_object() -> Value {
    serde_json::json!({"type": "object"})
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
