//! The provider table: where each kind of provider listens, how it wants to be asked, and what it does differently.

use super::questions::{LLAMA_SERVER, OLLAMA, Questions, SGLANG, VLLM};
use http::Uri;
use std::fmt::Write;
use tollkeeper_config::Provider;
use tollkeeper_protocol::Operation;

/// A kind of provider. All of them speak OpenAI's dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its name in the configuration.
    pub kind: &'static str,
    /// Its name in the GenAI conventions (`gen_ai.provider.name`); the kind where they have none.
    pub gen_ai_name: &'static str,
    /// Where it listens, without a slash at the end; `None` where the operator must say.
    pub base_url: Option<&'static str>,
    /// How the key is sent, when there is one.
    pub auth: Auth,
    /// How paths are built.
    pub paths: Paths,
    /// How a stream comes to report its tokens.
    pub stream_usage: StreamUsage,
    /// The field that limits a chat answer. Text completions always take `max_tokens`.
    pub output_field: &'static str,
    /// Fields by which a client would have it ask, and bill, other models than the one that was leased.
    pub other_models: &'static [&'static str],
    /// What its servers can be asked about themselves, if anything.
    pub questions: Option<&'static Questions>,
}

/// How a key is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// `authorization: Bearer KEY`
    Bearer,
    /// `api-key: KEY`
    ApiKey,
}

/// How paths are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paths {
    /// `BASE/chat/completions`
    OpenAi,
    /// `BASE/openai/deployments/MODEL/chat/completions?api-version=…`
    AzureDeployments,
}

/// How a stream comes to report its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamUsage {
    /// In a last chunk, when `stream_options.include_usage` asks for it.
    Asked,
    /// Without being asked; the provider refuses `stream_options` or does not know them, so they are not sent.
    Unasked,
}

pub(super) const OLD_FIELD: &str = "max_tokens";
/// OpenAI's reasoning models refuse `max_tokens`; providers that followed know both.
pub(super) const NEW_FIELD: &str = "max_completion_tokens";

/// The version of Azure's API when the configuration names none: the last one of the dated kind that is not a preview.
const AZURE_API_VERSION: &str = "2024-10-21";

const fn row(kind: &'static str, base_url: &'static str) -> Row {
    Row {
        kind,
        gen_ai_name: kind,
        base_url: Some(base_url),
        auth: Auth::Bearer,
        paths: Paths::OpenAi,
        stream_usage: StreamUsage::Asked,
        output_field: OLD_FIELD,
        other_models: &[],
        questions: None,
    }
}

/// The table.
pub const ROWS: &[Row] = &[
    Row { output_field: NEW_FIELD, ..row("openai", "https://api.openai.com/v1") },
    Row {
        gen_ai_name: "azure.ai.openai",
        base_url: None,
        auth: Auth::ApiKey,
        paths: Paths::AzureDeployments,
        output_field: NEW_FIELD,
        ..row("azure", "")
    },
    Row { gen_ai_name: "gcp.gemini", ..row("gemini", "https://generativelanguage.googleapis.com/v1beta/openai") },
    Row { output_field: NEW_FIELD, ..row("groq", "https://api.groq.com/openai/v1") },
    Row { output_field: NEW_FIELD, ..row("cerebras", "https://api.cerebras.ai/v1") },
    // Fallbacks of its own, at their own prices.
    Row { other_models: &["models", "route"], ..row("openrouter", "https://openrouter.ai/api/v1") },
    row("together", "https://api.together.xyz/v1"),
    row("fireworks", "https://api.fireworks.ai/inference/v1"),
    row("deepseek", "https://api.deepseek.com/v1"),
    // Answers 422 "Extra inputs are not permitted" to include_usage.
    Row {
        gen_ai_name: "mistral_ai",
        stream_usage: StreamUsage::Unasked,
        ..row("mistral", "https://api.mistral.ai/v1")
    },
    Row { gen_ai_name: "x_ai", output_field: NEW_FIELD, ..row("xai", "https://api.x.ai/v1") },
    // Reports the tokens so far in every chunk: the last report counts.
    Row { stream_usage: StreamUsage::Unasked, ..row("perplexity", "https://api.perplexity.ai") },
    Row { questions: Some(&OLLAMA), ..row("ollama", "http://127.0.0.1:11434/v1") },
    Row { questions: Some(&VLLM), ..row("vllm", "http://127.0.0.1:8000/v1") },
    Row { questions: Some(&SGLANG), ..row("sglang", "http://127.0.0.1:30000/v1") },
    Row { questions: Some(&LLAMA_SERVER), ..row("llama-server", "http://127.0.0.1:8080/v1") },
    row("lmstudio", "http://127.0.0.1:1234/v1"),
    Row { base_url: None, ..row("custom", "") },
];

/// The row of a kind.
pub fn find(kind: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.kind == kind)
}

/// Where one configured provider listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme, authority and path, without a slash at the end.
    base: String,
    /// Its host, for `server.address`.
    pub host: String,
    paths: Paths,
    api_version: String,
}

impl Endpoint {
    /// The configured address, else the row's.
    ///
    /// # Errors
    /// The address is missing or cannot be used; the text says why and what to do.
    pub fn new(row: &Row, provider: &Provider) -> Result<Self, String> {
        let Some(base) = provider.base_url.as_deref().or(row.base_url) else {
            return Err(format!("`kind = \"{}\"` needs a `base_url`", row.kind));
        };
        let unusable = |why: &str| format!("the base_url `{base}` {why}");
        let uri: Uri = base.parse().map_err(|cause| unusable(&format!("is not a URL: {cause}")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(unusable("must begin with http:// or https://"));
        }
        if uri.query().is_some() || base.contains('#') {
            return Err(unusable("must not have a query or fragment"));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("the base_url must not hold a user and password; use `api_key` or `headers`".to_owned());
        }
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            host: uri.host().unwrap_or_default().to_owned(),
            paths: row.paths,
            api_version: provider.api_version.clone().unwrap_or_else(|| AZURE_API_VERSION.to_owned()),
        })
    }

    /// The address of a path below the server's root: what it has beside OpenAI's API is not below `/v1`.
    ///
    /// # Errors
    /// The path makes no address.
    pub fn below_root(&self, path: &str) -> Result<Uri, http::uri::InvalidUri> {
        let root = self.base.strip_suffix("/v1").unwrap_or(&self.base);
        format!("{root}{path}").parse()
    }

    /// The address for an operation on a model.
    ///
    /// # Errors
    /// The model's name makes the address too long.
    pub fn uri(&self, operation: Operation, model: &str) -> Result<Uri, http::uri::InvalidUri> {
        let path = match operation {
            Operation::Chat => "chat/completions",
            Operation::TextCompletion => "completions",
            Operation::Embeddings => "embeddings",
            Operation::Rerank => "rerank",
        };
        let base = &self.base;
        match self.paths {
            Paths::OpenAi => format!("{base}/{path}"),
            Paths::AzureDeployments => {
                let (model, version) = (percent_encoded(model), percent_encoded(&self.api_version));
                format!("{base}/openai/deployments/{model}/{path}?api-version={version}")
            }
        }
        .parse()
    }
}

/// A text as one segment of a path or one value of a query.
pub(super) fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}
