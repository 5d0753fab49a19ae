//! The tokenizer of llama.cpp.

use super::super::control::ControlTokens;
use super::super::engine::{ControlToken, Infill, LoadError, Token, Tokenizer};
use super::super::formats::Format;
use super::llama;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token_type::LlamaTokenAttr;
use std::collections::HashMap;
use tollkeeper_config::LocalModel;

/// The tokenizer: a second, weightless copy of the model, so that text can be read on any thread at any time.
pub(super) struct Vocabulary {
    model: LlamaModel,
    size: u32,
    control: Vec<ControlToken>,
    spoken: HashMap<Token, Vec<u8>>,
    template: Option<String>,
    infill: Option<Infill>,
    /// The model's own frame for a query and a document, with places for them.
    pair_frame: Option<(String, ControlTokens)>,
}

impl Vocabulary {
    pub(super) fn of(model: LlamaModel, configured: &LocalModel) -> Result<Self, LoadError> {
        let kind = model.meta_val_str("tokenizer.ggml.model").unwrap_or_default();
        if kind.is_empty() || kind == "none" || kind == "no_vocab" {
            return Err(LoadError("the model has no tokenizer".into()));
        }
        let size = u32::try_from(model.n_vocab()).unwrap_or(0);
        let control = control_tokens(&model);
        let template = model.chat_template(None).ok().and_then(|template| template.to_string().ok());
        // llama.cpp hides control tokens, but some of them are marks in the text of an answer.
        let (tools, reasoning) = (configured.tool_format, configured.reasoning_format);
        let marks = Format::chosen(template.as_deref().unwrap_or_default(), tools, reasoning).spoken();
        let spoken = control.iter().filter(|token| marks.contains(&token.name.as_str()));
        let spoken = spoken.map(|token| (token.token, token.name.clone().into_bytes())).collect();
        let infill = infill(&model, &control);
        let pair_frame = model.meta_val_str("tokenizer.chat_template.rerank").ok();
        let pair_frame = pair_frame.map(|frame| (frame, ControlTokens::new(control.clone())));
        Ok(Self { model, size, control, spoken, template, infill, pair_frame })
    }

    fn name(&self, token: LlamaToken) -> String {
        if u32::try_from(token.0).is_ok_and(|id| id < self.size) { name_of(&self.model, token) } else { String::new() }
    }
}

fn name_of(model: &LlamaModel, token: LlamaToken) -> String {
    model.vocab().text(token).map_or(String::new(), |text| text.to_string_lossy().into_owned())
}

fn control_tokens(model: &LlamaModel) -> Vec<ControlToken> {
    let vocabulary = model.vocab();
    let tokens = vocabulary.tokens().filter_map(|token| {
        let attributes = vocabulary.attr(token);
        let name = name_of(model, token);
        let control = attributes.intersects(LlamaTokenAttr::Control | LlamaTokenAttr::Unknown) && !name.is_empty();
        control.then(|| ControlToken {
            token: u32::try_from(token.0).unwrap_or(0),
            name,
            strips_left: attributes.contains(LlamaTokenAttr::LStrip),
            strips_right: attributes.contains(LlamaTokenAttr::RStrip),
        })
    });
    tokens.collect()
}

/// The tokens for gaps: those that the file names, or whose names llama.cpp knows, or Codestral's, which it does not.
fn infill(model: &LlamaModel, control: &[ControlToken]) -> Option<Infill> {
    let vocabulary = model.vocab();
    let known = |token: LlamaToken| u32::try_from(token.0).ok();
    let named = |name: &str| control.iter().find(|token| token.name == name).map(|token| token.token);
    match (known(vocabulary.fim_pre()), known(vocabulary.fim_suf()), known(vocabulary.fim_mid())) {
        (Some(before), Some(after), Some(middle)) => Some(Infill { before, after, middle: Some(middle) }),
        _ => Some(Infill { before: named("[PREFIX]")?, after: named("[SUFFIX]")?, middle: None }),
    }
}

impl Tokenizer for Vocabulary {
    fn encode(&self, text: &str, whole: bool) -> Vec<Token> {
        let tokens = self.model.vocab().tokenize(text.as_bytes(), whole, false);
        tokens.into_iter().filter_map(|token| u32::try_from(token.0).ok()).collect()
    }

    fn piece(&self, token: Token) -> Vec<u8> {
        match self.spoken.get(&token) {
            Some(spoken) => spoken.clone(),
            None if token < self.size => self.model.vocab().token_to_piece(llama(token), false, None),
            None => Vec::new(),
        }
    }

    fn is_end(&self, token: Token) -> bool {
        token < self.size && self.model.vocab().is_eog(llama(token))
    }

    fn vocabulary(&self) -> u32 {
        self.size
    }

    fn control_tokens(&self) -> Vec<ControlToken> {
        self.control.clone()
    }

    fn required_first(&self) -> Option<Token> {
        let vocabulary = self.model.vocab();
        vocabulary.should_add_bos().then(|| u32::try_from(vocabulary.bos().0).ok()).flatten()
    }

    fn chat_template(&self) -> Option<String> {
        self.template.clone()
    }

    fn edge_names(&self) -> (String, String) {
        (self.name(self.model.vocab().bos()), self.name(self.model.vocab().eos()))
    }

    fn infill(&self) -> Option<Infill> {
        self.infill
    }

    /// As the model's own frame says, else what encoders are trained with: the beginning, the query, an end, a separator, the document,
    /// an end; of these the ones that the model's file wants.
    fn pair(&self, query: &str, document: &str) -> Vec<Token> {
        if let Some((frame, control)) = &self.pair_frame {
            let rendered = frame
                .split("{query}")
                .map(|part| part.replace("{document}", &control.disarm(document)))
                .collect::<Vec<_>>()
                .join(&control.disarm(query));
            return control.encode(&rendered, self);
        }
        let vocabulary = self.model.vocab();
        let known = |token: LlamaToken| u32::try_from(token.0).ok();
        let begin = known(vocabulary.bos()).filter(|_| vocabulary.should_add_bos());
        let separator = known(vocabulary.sep()).filter(|_| vocabulary.should_add_sep());
        let end = known(vocabulary.eos()).or(known(vocabulary.sep())).filter(|_| vocabulary.should_add_eos());
        let mut pair: Vec<Token> =
            begin.into_iter().chain(self.encode(query, false)).chain(end).chain(separator).collect();
        pair.extend(self.encode(document, false));
        pair.extend(end.or(separator));
        pair
    }
}
