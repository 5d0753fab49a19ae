//! The provider kinds that can be configured, as a table. URLs, authentication and quirks live with the client code.

/// A kind of provider.
#[derive(Debug, PartialEq, Eq)]
pub struct ProviderKind {
    /// Its name in `kind = "…"`, and the first part of its models' names in the catalogue.
    pub name: &'static str,
    /// The environment variable that usually holds its key; `None` when it can be used without a key.
    pub key_variable: Option<&'static str>,
    /// Whether there is no base URL to fall back on.
    pub needs_base_url: bool,
    /// Whether `price` may be said once for all its models: true of servers that one runs or rents as a whole.
    pub own_price: bool,
    /// Whether it is known to serve `…/rerank`: where nothing else is said of a model, it is asked to rerank only then.
    pub reranks: bool,
    /// Whether its servers tell how they are: health, models, and how long their queue is.
    pub probed: bool,
}

const fn cloud(name: &'static str, key_variable: &'static str) -> ProviderKind {
    ProviderKind { key_variable: Some(key_variable), own_price: false, ..server(name) }
}

const fn server(name: &'static str) -> ProviderKind {
    ProviderKind { name, key_variable: None, needs_base_url: false, own_price: true, reranks: false, probed: false }
}

const fn probed(name: &'static str) -> ProviderKind {
    ProviderKind { probed: true, ..server(name) }
}

/// Every kind.
pub const PROVIDER_KINDS: &[ProviderKind] = &[
    cloud("openai", "OPENAI_API_KEY"),
    ProviderKind { needs_base_url: true, ..cloud("azure", "AZURE_OPENAI_API_KEY") },
    cloud("gemini", "GEMINI_API_KEY"),
    cloud("groq", "GROQ_API_KEY"),
    cloud("cerebras", "CEREBRAS_API_KEY"),
    cloud("openrouter", "OPENROUTER_API_KEY"),
    ProviderKind { reranks: true, ..cloud("together", "TOGETHER_API_KEY") },
    cloud("fireworks", "FIREWORKS_API_KEY"),
    cloud("deepseek", "DEEPSEEK_API_KEY"),
    cloud("mistral", "MISTRAL_API_KEY"),
    cloud("xai", "XAI_API_KEY"),
    cloud("perplexity", "PERPLEXITY_API_KEY"),
    probed("ollama"),
    ProviderKind { reranks: true, ..probed("vllm") },
    probed("sglang"),
    ProviderKind { reranks: true, ..probed("llama-server") },
    server("lmstudio"),
    ProviderKind { needs_base_url: true, reranks: true, ..server("custom") },
];
