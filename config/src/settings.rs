//! The checked settings: plain data that the rest of the gateway reads; defaults are filled in, every value is valid.

use crate::budget::BudgetConfig;
use crate::catalog::{Abilities, Catalog, Price};
use crate::daily::DailyTime;
use crate::energy::Energy;
use crate::formats::{ReasoningFormat, ToolFormat};
use crate::learning::Learning;
use crate::notify::Notify;
use crate::shared::SharedStore;
use crate::strategy::{Cascade, Strategy, TaskRule};
use crate::units::{Secret, Usd};
use crate::velocity::VelocityConfig;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A whole, valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The HTTP edge.
    pub server: Server,
    /// Where money and requests are recorded.
    pub store: Store,
    /// Where budgets and pauses are that several gateways share.
    pub shared: Option<SharedStore>,
    /// Logging.
    pub log: Log,
    /// The embedded engines.
    pub local: Local,
    /// Cloud providers and other servers, by name.
    pub providers: BTreeMap<String, Arc<Provider>>,
    /// Aliases by name, the built-in ones included; targets are resolved down to backends.
    pub aliases: BTreeMap<String, Arc<Alias>>,
    /// What holds for tasks of some types, by type.
    pub tasks: BTreeMap<String, TaskRule>,
    /// How routes learn from their outcomes; `None` when they do not.
    pub learning: Option<Learning>,
    /// Agents, by name.
    pub agents: BTreeMap<String, Arc<AgentConfig>>,
    /// What may be spent, by agents and by all else; every budget over a request must hold.
    pub budgets: Vec<BudgetConfig>,
    /// Who is told of what happens.
    pub notify: Notify,
    /// When spending is too fast, for whatever has no setting of its own.
    pub velocity: VelocityConfig,
    /// Model facts and prices by `provider/model`: the built-in catalogue with the file's `[prices]` laid over it.
    pub catalog: Arc<Catalog>,
    /// What is legal but probably not meant (a provider without a key, an alias without a usable target).
    pub warnings: Vec<String>,
}

/// The HTTP edge.
#[derive(Debug, Clone)]
pub struct Server {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Address where `/admin` is served instead.
    pub admin_listen: Option<SocketAddr>,
    /// Certificate and key in PEM: turns on rustls with HTTP/1.1 and HTTP/2.
    pub tls: Option<Tls>,
    /// The operator's key.
    pub admin_key: Option<Secret>,
    /// Most bytes of a request body (default 32 MiB).
    pub body_limit: usize,
    /// Longest wait for a request's head (default 10 s).
    pub header_timeout: Duration,
    /// Longest wait for a request's whole body (default 60 s).
    pub body_timeout: Duration,
    /// Longest life of one request, streams included (default 30 min).
    pub request_timeout: Duration,
    /// How long a client may leave its answer unread before it is let go (default 60 s).
    pub unread_timeout: Duration,
    /// Requests in flight before new ones are shed with 503 (default 1024).
    pub max_in_flight: usize,
    /// Open client connections before new ones wait in the listen queue (default 4096).
    pub max_connections: usize,
    /// How long a drain waits for streams (default 30 s).
    pub drain_timeout: Duration,
    /// Origins that browsers may call from; empty is off; `*` is any.
    pub cors_origins: Vec<String>,
    /// Status of a budget refusal: 402 (default), 429 or 422.
    pub budget_status: u16,
    /// Whether `/metrics` needs the admin key (default no).
    pub metrics_need_key: bool,
}

/// TLS files.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// Where money and requests are recorded.
#[derive(Debug, Clone)]
pub struct Store {
    /// The SQLite file; not used when there is a `url`.
    pub path: PathBuf,
    /// The PostgreSQL database instead of it.
    pub url: Option<Secret>,
    /// This gateway's name; there is one when there is a `url`.
    pub gateway: Option<String>,
    /// Longest wait for a connection to the database, and for an answer of it.
    pub timeout: Duration,
    /// `Process`: a commit survives a killed process; `Power`: also a power cut (an fsync per group commit).
    pub durability: Durability,
    /// How long single attempts stay in the ledger before sums stand for them; `None` for ever. A whole number of days.
    pub keep: Option<Duration>,
}

/// What a committed ledger entry survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The gateway's death.
    Process,
    /// The machine's.
    Power,
}

/// Logging.
#[derive(Debug, Clone)]
pub struct Log {
    /// Text or JSON lines.
    pub format: LogFormat,
    /// A tracing filter such as `info` or `tollkeeper=debug`.
    pub filter: String,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// The embedded engines.
#[derive(Debug, Clone, Default)]
pub struct Local {
    /// Memory budget; `None` is "auto": ask the device.
    pub vram: Option<u64>,
    /// The card that they share.
    pub gpu: Gpu,
    /// When one model makes room for another.
    pub swap: SwapRules,
    /// What computing costs, if it is to cost anything.
    pub energy: Option<Energy>,
    /// What is kept of conversations that have no slot.
    pub kv_cache: KvCache,
    /// Models by name, in the order of the file.
    pub models: IndexMap<String, Arc<LocalModel>>,
}

/// A graphics card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gpu {
    /// By its number in the order of the bus, from 0.
    Index(u32),
    /// By its UUID (or that of a part of it): `GPU-…` or `MIG-…`.
    Uuid(String),
}

impl Gpu {
    /// No machine has more.
    const MOST: u32 = 64;

    /// A number or a UUID.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_uuid = (text.starts_with("GPU-") || text.starts_with("MIG-")) && text.len() <= 80;
        if is_uuid && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/".contains(&byte)) {
            return Some(Self::Uuid(text.to_owned()));
        }
        text.parse().ok().filter(|index| *index < Self::MOST).map(Self::Index)
    }
}

impl Default for Gpu {
    fn default() -> Self {
        Self::Index(0)
    }
}

impl std::fmt::Display for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

/// What is kept of the KV of conversations that have no slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvCache {
    /// Bytes in memory; 0 keeps nothing there.
    pub memory: u64,
    /// Bytes on disk.
    pub disk: u64,
    /// Where on disk; without a folder nothing is written.
    pub folder: Option<PathBuf>,
}

impl Default for KvCache {
    fn default() -> Self {
        Self { memory: 1 << 30, disk: 8 << 30, folder: None }
    }
}

/// When a model that was missed, but that another backend could answer for, takes the place of others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SwapWhen {
    /// When those are idle.
    #[default]
    Idle,
    /// When what its absence costs has reached what the swap costs.
    Pays,
}

/// When one local model makes room for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwapRules {
    /// A model that was loaded stays at least so long (default 10 s), and at least half as long as its load took.
    pub min_residency: Duration,
    /// Answers that run when their model has to go get so long to end (default 20 s).
    pub drain: Duration,
    /// Longest wait of a request for a model that is not in memory (default 2 min).
    pub max_wait: Duration,
    /// A request that another backend can answer waits no longer than this for a model (default 2 s).
    pub patience: Duration,
    /// When a model that was missed takes the place of others (default: when they are idle).
    pub when: SwapWhen,
}

impl Default for SwapRules {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            min_residency: seconds(10),
            drain: seconds(20),
            max_wait: seconds(120),
            patience: seconds(2),
            when: SwapWhen::Idle,
        }
    }
}

/// A local model. What it is serialised for is its engine, which may run in another process: price, abilities and residency are not
/// that one's business and come out as their defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalModel {
    /// Its name in requests and aliases; no slash.
    pub name: String,
    /// The GGUF file; for candle it may be the folder of a BERT.
    pub path: PathBuf,
    /// Which engine runs it.
    pub engine: EngineKind,
    /// Where its engine runs.
    pub host: EngineHost,
    /// Context length in tokens of each slot.
    pub context: u32,
    /// Requests decoded at once.
    pub slots: u32,
    /// Requests that may wait for a slot (default 64).
    pub queue: u32,
    /// CPU threads (default: 1 for files below 64 MiB, else the cores).
    pub threads: Option<u32>,
    /// Layers on the GPU; `None` is all that a GPU build can place there.
    pub gpu_layers: Option<u32>,
    /// Price of its tokens (default free).
    #[serde(skip, default = "Price::free")]
    pub price: Price,
    /// What it can do; embeddings are computed when asked for.
    #[serde(skip)]
    pub abilities: Abilities,
    /// Default limit of generated tokens when the client sets none (default: what is left of the context).
    pub max_output: Option<u32>,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Whether it may be loaded smaller than configured when it does not fit.
    pub fit: bool,
    /// Whether tokens are guessed and checked several at a time.
    pub speculate: Speculate,
    /// When it is in memory.
    #[serde(skip)]
    pub residency: Residency,
    /// When it is loaded every day.
    #[serde(skip)]
    pub preload_at: Vec<DailyTime>,
    /// How its embeddings come from its tokens; `None` is the model's own way.
    pub pooling: Option<Pooling>,
    /// The GGUF file of its projector; with one it sees pictures.
    pub mmproj: Option<PathBuf>,
    /// LoRA adapters laid over its weights; at most one.
    pub lora: Vec<LoraAdapter>,
    /// How it writes tool calls.
    pub tool_format: ToolFormat,
    /// How it writes reasoning.
    pub reasoning_format: ReasoningFormat,
    /// The curve from how sure it was of an answer to how probably the answer is good: base, factor of the mean log-probability, factor of
    /// the mean entropy.
    #[serde(skip)]
    pub certainty: Option<[f32; 3]>,
}

/// How the embedding of a text comes from the states of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The state of the first token.
    Cls,
    /// The state of the last token.
    Last,
    /// There are no embeddings.
    None,
}

/// A LoRA adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraAdapter {
    /// Its GGUF file.
    pub path: PathBuf,
    /// How strong it is, -100 to 100; 0 changes nothing.
    pub scale: f32,
}

impl LocalModel {
    /// A free model that is as little as possible: one slot without a queue, 256 tokens of context, run in a thread of this process.
    pub fn plain(name: impl Into<String>, engine: EngineKind, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            engine,
            host: EngineHost::Thread,
            context: 256,
            slots: 1,
            queue: 0,
            threads: None,
            gpu_layers: None,
            price: Price::free(),
            abilities: Abilities::default(),
            max_output: None,
            kv: KvType::F16,
            fit: false,
            speculate: Speculate::Off,
            residency: Residency::default(),
            preload_at: Vec::new(),
            pooling: None,
            mmproj: None,
            lora: Vec::new(),
            tool_format: ToolFormat::Auto,
            reasoning_format: ReasoningFormat::Auto,
            certainty: None,
        }
    }
}

/// How tokens are guessed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Speculate {
    /// They are not.
    #[default]
    Off,
    /// From where the last words stood before in the prompt or the answer.
    Lookup,
    /// By a smaller model of the same vocabulary, in this GGUF file.
    Draft(PathBuf),
}

/// When a local model is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Residency {
    /// Load it at the start if there is room (default yes).
    pub preload: bool,
    /// Never take it out for another.
    pub pin: bool,
    /// Take it out when nobody has used it for so long.
    pub keep_alive: Option<Duration>,
    /// Bytes it takes; `None` is told from its file.
    pub memory: Option<u64>,
}

impl Default for Residency {
    fn default() -> Self {
        Self { preload: true, pin: false, keep_alive: None, memory: None }
    }
}

/// How keys and values are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum KvType {
    /// 16 bits a value.
    #[default]
    F16,
    /// 8.5 bits a value.
    Q8_0,
    /// 4.5 bits a value; answers may suffer.
    Q4_0,
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        })
    }
}

/// Which engine runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineKind {
    /// llama.cpp.
    LlamaCpp,
    /// candle.
    Candle,
    /// Answers from a script in the model's path; for tests.
    Scripted,
}

/// Where a model's engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum EngineHost {
    /// llama.cpp on a GPU in a process of its own, all else in a thread.
    #[default]
    Auto,
    /// In a thread of the gateway.
    Thread,
    /// In a process of its own: when it dies, the gateway lives.
    Process,
}

/// A provider: a configured instance of a row of the provider table.
#[derive(Debug, Clone, PartialEq)]
pub struct Provider {
    /// Its name, the first part of `provider/model`.
    pub name: String,
    /// The row of the provider table (`openai`, `groq`, `azure`, `ollama`, `custom` …).
    pub kind: String,
    /// Overrides the row's base URL (needed by `custom`, `azure`).
    pub base_url: Option<String>,
    /// The key; `None` for servers that need none, or when its variable or file is missing (then `disabled` says so).
    pub api_key: Option<Secret>,
    /// Extra headers sent with every request.
    pub headers: Vec<(String, Secret)>,
    /// Azure's api-version.
    pub api_version: Option<String>,
    /// Connect timeout (default 5 s).
    pub connect_timeout: Duration,
    /// Longest wait for the response head (default 120 s).
    pub first_byte_timeout: Duration,
    /// Longest silence inside a stream or body (default 60 s).
    pub idle_timeout: Duration,
    /// Tries per target, the first included (default 2).
    pub max_attempts: u32,
    /// How often the server is asked how it is (default 5 s); `None` when it is not.
    pub probe: Option<Duration>,
    /// Why this provider cannot be used as configured (its key's variable is not set); requests to it get this text.
    pub disabled: Option<String>,
}

/// A name that stands for an ordered list of targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// Its name; may hold slashes.
    pub name: String,
    /// How targets are ordered.
    pub strategy: Strategy,
    /// Backends, deduplicated, with the tier each has in this alias (0 is the bottom of the pyramid).
    pub targets: Vec<(BackendId, u8)>,
    /// How much all who name it may ask of it together.
    pub rates: RateLimits,
    /// Difficulties in thousandths, ascending, from which on a pyramid begins one tier higher each.
    pub escalate_at: Vec<u16>,
    /// Whether its local answers are held back until they are known to be fit.
    pub cascade: Option<Cascade>,
    /// Of a weighted alias: the weight of each target by its tier; 1 where there is none.
    pub weights: Vec<u32>,
}

/// How much may be asked: within a minute, and at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests a minute.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens a minute, input and output together.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Requests at once.
    pub parallel: Option<NonZeroU32>,
    /// Requests of each priority that may wait when `parallel` run (default 64).
    pub queue: u32,
}

impl Default for RateLimits {
    /// No limit.
    fn default() -> Self {
        Self { requests_per_minute: None, tokens_per_minute: None, parallel: None, queue: Self::QUEUE }
    }
}

impl RateLimits {
    /// Requests of each priority that may wait unless something else is said: as many as for a slot of a local model.
    pub const QUEUE: u32 = 64;
}

/// Names one backend: a local model or a provider's model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendId {
    /// A local model by name.
    Local(Arc<str>),
    /// A provider's model.
    Remote {
        /// The provider's configured name.
        provider: Arc<str>,
        /// The provider's own name of the model; may hold slashes.
        model: Arc<str>,
    },
}

impl std::fmt::Display for BackendId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local(name) => f.write_str(name),
            Self::Remote { provider, model } => write!(f, "{provider}/{model}"),
        }
    }
}

/// An agent: who may spend what on which models.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentConfig {
    /// Its name in logs, metrics and the ledger.
    pub name: String,
    /// Its key; `None` for one that was made at run time and has keys of its own.
    pub key: Option<Secret>,
    /// Patterns (`*` matches any run of characters) of aliases and models it may name; default `["*"]`.
    pub models: Vec<String>,
    /// How urgent its requests are where there is a queue.
    pub priority: Priority,
    /// How much it may ask.
    pub rates: RateLimits,
    /// The team that it belongs to.
    pub team: Option<String>,
    /// The most that one request may cost, all its attempts together.
    pub max_request: Option<Usd>,
    /// The alias whose targets answer when a budget or its velocity sends it to cheaper ones and the alias it named has none.
    pub degrade_to: Option<String>,
    /// The type of its tasks where a request does not say one.
    pub task_type: Option<String>,
    /// When it spends too fast: the file's settings with its own laid over them.
    pub velocity: VelocityConfig,
}

/// How urgent a request is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// It may wait for those, but not for ever.
    Batch,
}

impl Priority {
    /// All of them, with their names.
    pub const NAMES: [(&'static str, Self); 2] = [("interactive", Self::Interactive), ("batch", Self::Batch)];

    /// The name in configuration files and in the API.
    pub fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}
