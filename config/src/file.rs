//! The configuration file as it is written: every table and key with its meaning, type and default. The README's
//! reference is made from this file.

use crate::catalog::Ability;
use crate::kinds::{PROVIDER_KINDS, ProviderKind};
use crate::problem::Problems;
use crate::read::{At, Key, Named, Node, Read, Whole, one_of, read_choice, read_text, table};
use crate::settings::{Durability, EngineKind, LogFormat, Strategy, Window};
use crate::units::{PicoUsd, Secret, Usd, parse_duration, parse_size};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;

table! {
    /// The whole file.
    RawFile "the file" {
        /// The HTTP edge.
        server: RawServer = default({}),
        /// Where money and requests are recorded.
        store: RawStore = default({}),
        /// Logging.
        log: RawLog = default({}),
        /// The embedded engines.
        local: RawLocal = default({}),
        /// Cloud providers and other servers, each `[[providers]]`.
        providers: Vec<RawProvider> = default([]),
        /// Names that stand for lists of models, each `[[aliases]]`.
        aliases: Vec<RawAlias> = default([]),
        /// Prices and facts by `"provider/model"`, laid over the built-in catalogue.
        prices: Named<RawPrice> = default({}),
        /// Who may spend what on which models, each `[[agents]]`.
        agents: Vec<RawAgent> = default([]),
    }
}

table! {
    /// The HTTP edge.
    RawServer "[server]" {
        /// Address and port to listen on; port 0 takes a free one.
        listen: SocketAddr = default("127.0.0.1:4000"),
        /// Turns on TLS with HTTP/1.1 and HTTP/2.
        tls: RawTls = optional,
        /// The operator's key, for the administrative endpoints.
        admin_key: SecretRef = optional,
        /// Most bytes of a request body; a longer one is answered 413.
        body_limit: Size<1_073_741_824> = default("32MiB"),
        /// Longest wait for a request's head.
        header_timeout: Duration = default("10s"),
        /// Longest wait for a request's whole body.
        body_timeout: Duration = default("60s"),
        /// Longest life of one request, streams included.
        request_timeout: Duration = default("30m"),
        /// Requests in flight before new ones are shed with 503.
        max_in_flight: Whole<1, 1_000_000> = default(1024),
        /// Open client connections before new ones wait in the listen queue.
        max_connections: Whole<1, 1_000_000> = default(4096),
        /// How long a drain waits for streams to finish.
        drain_timeout: Duration = default("30s"),
        /// Origins that browsers may call from; none turns CORS off.
        cors_origins: Vec<Origin> = default([]),
        /// HTTP status of a budget refusal.
        budget_status: BudgetStatus = default(402),
        /// Whether `/metrics` needs the admin key.
        metrics_need_key: bool = default(false),
    }
}

table! {
    /// TLS files.
    RawTls "tls" {
        /// Certificate chain, PEM.
        cert: PathBuf = required,
        /// Private key, PEM.
        key: PathBuf = required,
    }
}

table! {
    /// Where money and requests are recorded.
    RawStore "[store]" {
        /// The SQLite file; its folder is made when missing.
        path: PathBuf = default("data/tollkeeper.db"),
        /// What a committed entry survives: the gateway's death, or also a power cut (an fsync per group commit).
        durability: Durability = default("process"),
    }
}

table! {
    /// Logging.
    RawLog "[log]" {
        /// Lines for people or for machines.
        format: LogFormat = default("text"),
        /// A tracing filter such as `info` or `tollkeeper=debug,warn`.
        filter: String = default("info"),
    }
}

table! {
    /// The embedded engines.
    RawLocal "[local]" {
        /// Memory for models; `"auto"` asks the device, and is the RAM on a machine without a GPU.
        vram: Vram = default("auto"),
        /// The models, each `[[local.models]]`.
        models: Vec<RawLocalModel> = default([]),
    }
}

table! {
    /// A local model.
    RawLocalModel "[[local.models]]" {
        /// Its name in requests and aliases.
        name: At<ModelName> = required,
        /// The GGUF file.
        path: PathBuf = required,
        /// What runs it; `"scripted"` answers from a script and is for tests.
        engine: EngineKind = default("llama.cpp"),
        /// Context length of each slot, in tokens.
        context: Whole<16, 16_777_216> = default(4096),
        /// Requests decoded at once.
        slots: Whole<1, 256> = default(4),
        /// Requests that may wait for a slot.
        queue: Whole<0, 100_000> = default(64),
        /// CPU threads; without it 1 for files below 64 MiB, else the machine's cores.
        threads: Whole<1, 1024> = optional,
        /// Layers on the GPU; without it all that a GPU build can place there.
        gpu_layers: Whole<0, 100_000> = optional,
        /// Price of its tokens.
        price: RawPrice = default("free"),
        /// What it can do; the router sends it nothing else.
        abilities: Vec<Ability> = default(["chat", "completion", "embeddings", "tools"]),
        /// Generated tokens when the client sets no limit; without it what is left of the context.
        max_output: Whole<1, 16_777_216> = optional,
    }
}

table! {
    /// A provider.
    RawProvider "[[providers]]" {
        /// Its name, the first part of `provider/model`.
        name: At<Slug> = required,
        /// Which row of the provider table it is an instance of.
        kind: &'static ProviderKind = required,
        /// Overrides the kind's base URL, up to and with the version (`…/v1`); `azure` and `custom` need it.
        base_url: BaseUrl = optional,
        /// The key. When its variable or file is missing or empty the provider is disabled, with a warning.
        api_key: SecretRef = optional,
        /// Headers sent with every request, by name.
        headers: Named<SecretRef> = default({}),
        /// Azure's `api-version`.
        api_version: String = optional,
        /// Longest wait for a connection.
        connect_timeout: Duration = default("5s"),
        /// Longest wait for the head of an answer.
        first_byte_timeout: Duration = default("120s"),
        /// Longest silence inside an answer.
        idle_timeout: Duration = default("60s"),
        /// Tries per target, the first included.
        max_attempts: Whole<1, 10> = default(2),
        /// The price of all its models, for kinds that one runs oneself (`ollama`, `vllm`, `llama-server`, `lmstudio`, `custom`).
        price: RawPrice = optional,
    }
}

table! {
    /// A name that stands for a list of models.
    RawAlias "[[aliases]]" {
        /// Its name; may hold slashes.
        name: At<AliasName> = required,
        /// Order of the targets: as written, bottom-up by tier, or by estimated cost.
        strategy: Strategy = default("ordered"),
        /// `"provider/model"`, local models and other aliases; the place in the list is the tier.
        targets: Vec<At<String>> = required,
    }
}

table! {
    /// The price and facts of a model.
    RawRates "a price" {
        /// Price of prompt tokens.
        input: PicoUsd = optional,
        /// Price of prompt tokens read from the provider's cache; without it that of `input`.
        cached_input: PicoUsd = optional,
        /// Price of prompt tokens written to the provider's cache; without it that of `input`.
        cache_write: PicoUsd = optional,
        /// Price of generated tokens; only models that do nothing but embeddings have none.
        output: PicoUsd = optional,
        /// Prices of a whole request whose input exceeds a number of tokens.
        above: Vec<At<RawAbove>> = default([]),
        /// Most tokens of a prompt.
        context: Whole<1, 1_000_000_000> = optional,
        /// Most tokens of an answer.
        max_output: Whole<1, 1_000_000_000> = optional,
        /// What it can do; without it the catalogue's, and for models that it does not know everything.
        abilities: Vec<Ability> = optional,
    }
}

table! {
    /// The price of requests with more input than a threshold.
    RawAbove "above" {
        /// The threshold, in tokens.
        input_tokens: Whole<1, 1_000_000_000> = required,
        /// As above.
        input: PicoUsd = required,
        /// As above.
        cached_input: PicoUsd = optional,
        /// As above.
        cache_write: PicoUsd = optional,
        /// As above.
        output: PicoUsd = required,
    }
}

table! {
    /// Who may spend what on which models.
    RawAgent "[[agents]]" {
        /// Its name in logs, metrics and the ledger.
        name: At<Slug> = required,
        /// Its key, as clients send it after `Bearer`; kept hashed.
        key: SecretRef = required,
        /// Aliases and models it may name; `*` stands for any run of characters.
        models: Vec<At<String>> = default(["*"]),
        /// Its budgets; all must hold.
        budgets: Vec<RawBudget> = default([]),
    }
}

table! {
    /// A cap on spend within a window.
    RawBudget "a budget" {
        /// The calendar window, in UTC; `"total"` never ends.
        window: Window = required,
        /// The cap.
        limit_usd: Usd = required,
    }
}

/// `"free"` or a table of rates.
#[derive(Debug, Clone)]
pub(crate) enum RawPrice {
    /// Costs nothing, said on purpose.
    Free,
    /// Costs this.
    Rates(Box<RawRates>),
}

impl Read for RawPrice {
    fn shape() -> String {
        "\"free\" or a price table such as { input = \"0.15\", output = \"0.60\" }".to_owned()
    }

    fn keys() -> Vec<Key> {
        RawRates::keys()
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        match node.value.get_ref() {
            DeValue::Table(_) => RawRates::read(node, problems).map(|rates| Self::Rates(Box::new(rates))),
            DeValue::String(text) if text == "free" => Some(Self::Free),
            DeValue::String(text) => {
                node.refuse::<Self>(format_args!(", found \"{text}\""), problems);
                None
            }
            _ => {
                node.refuse_type::<Self>(problems);
                None
            }
        }
    }
}

/// Where a secret is to be had.
#[derive(Debug, Clone)]
pub(crate) enum SecretRef {
    /// An environment variable.
    Env(String),
    /// A file, trimmed.
    File(PathBuf),
    /// The text itself.
    Literal(Secret),
}

/// Memory for models.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Vram {
    /// Ask the device.
    Auto,
    /// So many bytes.
    Bytes(u64),
}

/// A number of bytes from 1 to `MAX`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size<const MAX: u64>(pub(crate) u64);

/// An origin that browsers may call from.
#[derive(Debug, Clone)]
pub(crate) struct Origin(pub(crate) String);

/// An absolute `http` or `https` URL without a trailing slash.
#[derive(Debug, Clone)]
pub(crate) struct BaseUrl(pub(crate) String);

/// A name of lower-case letters, digits, `_`, `-` and `.`.
#[derive(Debug, Clone)]
pub(crate) struct Slug(pub(crate) String);

/// A name of letters, digits, `_`, `-`, `.` and `:`.
#[derive(Debug, Clone)]
pub(crate) struct ModelName(pub(crate) String);

/// A model name that may hold slashes.
#[derive(Debug, Clone)]
pub(crate) struct AliasName(pub(crate) String);

/// A status for budget refusals.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BudgetStatus(pub(crate) u16);

impl Read for BudgetStatus {
    fn shape() -> String {
        "402, 429 or 422".to_owned()
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let status = node.value.get_ref().as_integer().and_then(|status| status.as_str().parse().ok());
        let read = status.filter(|status| [402, 429, 422].contains(status));
        if read.is_none() {
            node.refuse::<Self>("", problems);
        }
        read.map(Self)
    }
}

impl Read for &'static ProviderKind {
    fn shape() -> String {
        one_of(&PROVIDER_KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>())
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let choices: Vec<_> = PROVIDER_KINDS.iter().map(|kind| (kind.name, kind)).collect();
        crate::read::choose(node, &choices, problems)
    }
}

impl Read for Ability {
    fn shape() -> String {
        one_of(&Self::NAMES.map(|(name, _)| name))
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        crate::read::choose(node, &Self::NAMES, problems)
    }
}

impl<const MAX: u64> Read for Size<MAX> {
    fn shape() -> String {
        format!("a size such as \"32MiB\", at most {} GiB", MAX >> 30)
    }

    fn read(node: Node<'_, '_>, problems: &mut Problems<'_>) -> Option<Self> {
        let read = node.value.get_ref().as_str().and_then(parse_size).filter(|size| (1..=MAX).contains(size));
        if read.is_none() {
            node.refuse::<Self>("", problems);
        }
        read.map(Self)
    }
}

read_choice! {
    Durability: "process" => Self::Process, "power" => Self::Power;
    LogFormat: "text" => Self::Text, "json" => Self::Json;
    EngineKind: "llama.cpp" => Self::LlamaCpp, "candle" => Self::Candle, "scripted" => Self::Scripted;
    Strategy: "ordered" => Self::Ordered, "pyramid" => Self::Pyramid, "cheapest" => Self::Cheapest;
    Window: "minute" => Self::Minute, "hour" => Self::Hour, "day" => Self::Day, "week" => Self::Week,
        "month" => Self::Month, "total" => Self::Total;
}

read_text! {
    String: "a string", |text| Ok(text.to_owned());
    PathBuf: "a path", |text| if text.is_empty() { Err(", found none".to_owned()) } else { Ok(text.into()) };
    SocketAddr: "an IP address and port such as \"127.0.0.1:4000\"", |text| text.parse().map_err(|_| found(text));
    Duration: "a duration such as \"100ms\", \"30s\", \"5m\" or \"2h\", from 1ms to 24h", |text| {
        let day = Duration::from_secs(24 * 3600);
        parse_duration(text).filter(|d| !d.is_zero() && *d <= day).ok_or_else(|| found(text))
    };
    Vram: "\"auto\" or a size such as \"24GiB\"", |text| match (text, parse_size(text)) {
        ("auto", _) => Ok(Self::Auto),
        (_, Some(bytes)) if bytes > 0 => Ok(Self::Bytes(bytes)),
        _ => Err(found(text)),
    };
    Usd: "an exact decimal in USD such as \"5.00\", with at most 9 decimals", |text|
        Self::parse_decimal(text).map_err(|_| found(text));
    PicoUsd: "an exact decimal in USD per million tokens such as \"0.15\", with at most 6 decimals", |text|
        Self::parse_per_million(text).map_err(|_| found(text));
    SecretRef: "\"env:NAME\", \"file:PATH\" or the secret itself", |text| match text.split_once(':') {
        Some(("env", name)) if !name.is_empty() && !name.contains(['=', '\0']) => Ok(Self::Env(name.to_owned())),
        Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
        Some(("env" | "file", _)) => Err(", found no name after the colon".to_owned()),
        _ if text.trim().is_empty() => Err(", found nothing".to_owned()),
        _ => Ok(Self::Literal(Secret::new(text))),
    };
    Origin: "an origin such as \"https://app.example\", or \"*\"", |text| {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_origin = host.is_some_and(|host| !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && b != b'/'));
        if is_origin || text == "*" { Ok(Self(text.to_owned())) } else { Err(found(text)) }
    };
    BaseUrl: "a URL such as \"https://host/v1\"", |text| {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_url = host.is_some_and(|h| h.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '['));
        // User info in a URL would be a secret that gets logged.
        if is_url && text.bytes().all(|b| b.is_ascii_graphic() && !b"@?#".contains(&b)) {
            Ok(Self(text.trim_end_matches('/').to_owned()))
        } else {
            Err(", without user, query or fragment".to_owned())
        }
    };
    Slug: "a name of a-z, 0-9, `_`, `-` and `.`", |text| {
        named(text, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c)).map(Self)
    };
    ModelName: "a name of letters, digits, `_`, `-`, `.` and `:`", |text| {
        named(text, |c| c.is_ascii_alphanumeric() || "_-.:".contains(c)).map(Self)
    };
    AliasName: "a name of letters, digits, `_`, `-`, `.`, `:` and inner `/`", |text| {
        let name = named(text, |c| c.is_ascii_alphanumeric() || "_-.:/".contains(c))?;
        if name.split('/').any(str::is_empty) { Err(found(text)) } else { Ok(Self(name)) }
    };
}

fn found(text: &str) -> String {
    format!(", found \"{text}\"")
}

/// A name of at most 128 allowed characters.
fn named(text: &str, allowed: fn(char) -> bool) -> Result<String, String> {
    let fits = (1..=128).contains(&text.len()) && text.chars().all(allowed);
    if fits { Ok(text.to_owned()) } else { Err(found(text)) }
}
