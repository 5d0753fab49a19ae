//! The configuration file as it is written: every table and key with its meaning, type and default. The README's
//! reference is made from this file.

mod learning;
mod routing;
mod velocity;

pub(crate) use learning::RawLearning;
pub(crate) use routing::{RawAlias, RawCascade, RawLink, RawTask};
pub(crate) use velocity::{RawOwnVelocity, RawVelocity};

use crate::budget::{OnLimit, OnSharedDown, Window};
use crate::catalog::Ability;
use crate::daily::DailyTime;
use crate::energy::RawEnergy;
use crate::formats::{ReasoningFormat, ToolFormat};
use crate::kinds::ProviderKind;
use crate::notify::{NoticeKind, WebhookFormat};
use crate::problem::Problems;
use crate::read::{At, Key, Named, Node, Read, Whole, table};
use crate::settings::{Durability, EngineHost, EngineKind, Gpu, KvType, LogFormat, Pooling, Priority, SwapWhen};
use crate::units::{PicoUsd, Usd};
use crate::value::{
    BaseUrl, BudgetStatus, Clock, Guesses, Keep, KeptBytes, ModelName, Origin, Pace, Scale, SecretRef, Size, Slug,
    Vram, Zone,
};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tollkeeper_protocol::usage::ServiceTier;
use toml::de::DeValue;

table! {
    /// The whole file.
    RawFile "the file" {
        /// The HTTP edge.
        server: RawServer = default({}),
        /// Where money and requests are recorded.
        store: RawStore = default({}),
        /// Makes budgets and pauses those of all gateways that name the same store; runs and rates stay each gateway's own.
        shared: RawShared = optional,
        /// Logging.
        log: RawLog = default({}),
        /// The embedded engines.
        local: RawLocal = default({}),
        /// Cloud providers and other servers, each `[[providers]]`.
        providers: Vec<RawProvider> = default([]),
        /// Names that stand for lists of models, each `[[aliases]]`.
        aliases: Vec<RawAlias> = default([]),
        /// Prices and facts of models, laid over the built-in catalogue; `prices."provider/model" = "free"` costs nothing.
        prices: Named<RawPrice> = default({}),
        /// What holds for tasks of a type, each `[[tasks]]`.
        tasks: Vec<RawTask> = default([]),
        /// What routes learn from their outcomes.
        learning: RawLearning = default({}),
        /// Who may spend what on which models, each `[[agents]]`.
        agents: Vec<RawAgent> = default([]),
        /// Caps on what is spent, each `[[budgets]]`; those of one agent may also stand in its own table.
        budgets: Vec<RawBudget> = default([]),
        /// What becomes of notices that cannot be delivered.
        notify: RawNotify = default({}),
        /// Who is told of what happens, each `[[webhooks]]`.
        webhooks: Vec<RawWebhook> = default([]),
        /// When an agent spends too fast, and what is done about it.
        velocity: RawVelocity = default({}),
    }
}

table! {
    /// The HTTP edge.
    RawServer "[server]" {
        /// Address and port to listen on; port 0 takes a free one.
        listen: SocketAddr = default("127.0.0.1:4000"),
        /// Address and port where `/admin` is served instead, with the same TLS; without it at `listen`. Needs `admin_key`.
        admin_listen: SocketAddr = optional,
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
        /// How long a client may leave its answer unread before it is let go.
        unread_timeout: Duration = default("60s"),
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
    RawTls "`tls`" {
        /// Certificate chain, PEM.
        cert: PathBuf = required,
        /// Private key, PEM.
        key: PathBuf = required,
    }
}

table! {
    /// Where money and requests are recorded.
    RawStore "[store]" {
        /// The SQLite file; its folder is made when missing. Not used with `url`.
        path: PathBuf = default("data/tollkeeper.db"),
        /// A PostgreSQL database instead of the file, such as `postgres://user:password@host/database?sslmode=verify-full`: for gateways
        /// that are to have their ledgers in one place.
        url: SecretRef = optional,
        /// This gateway's own name in the database, which it keeps over restarts; without it that in `[shared]`.
        gateway: Slug = optional,
        /// Longest wait for a connection to the database, and for an answer of it.
        timeout: Duration = default("2s"),
        /// What a committed entry of the file survives: the gateway's death, or also a power cut (an fsync per group commit).
        durability: Durability = default("process"),
        /// How long single attempts stay in the ledger: at each start, what ended before is replaced by sums of each day that count the same.
        keep: Keep = default("forever"),
    }
}

table! {
    /// What several gateways share (`docs/redis.md`).
    RawShared "[shared]" {
        /// The Redis server, such as `"env:REDIS_URL"`: `redis://host:6379/0`, `rediss://…` for TLS, or `redis+unix:///path`.
        url: SecretRef = required,
        /// This gateway's own name there; it keeps it over restarts, and no other has it.
        gateway: Slug = required,
        /// What all keys begin with; gateways with the same prefix share their budgets.
        prefix: Slug = default("tollkeeper"),
        /// A gateway that has not been heard of for so long, and a quarter more, is dead: what it held is charged.
        lease_age: Duration = default("10s"),
        /// Longest wait for a connection.
        connect_timeout: Duration = default("500ms"),
        /// Longest wait for an answer.
        answer_timeout: Duration = default("500ms"),
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
        /// The card they share: its number, counted as `nvidia-smi` does, or its UUID. Without it the first of `CUDA_VISIBLE_DEVICES`, else 0.
        gpu: Gpu = optional,
        /// A model that was loaded stays at least so long before another may take its place, and at least half as long as its load took.
        min_residency: Duration = default("10s"),
        /// Answers that run when their model has to go get so long to end; then they are set aside and go on when it is back.
        drain: Duration = default("20s"),
        /// Longest wait of a request for a model that is not in memory.
        max_wait: Duration = default("2m"),
        /// Longest wait for it when another target could answer: one that takes longer to come is asked last, and is loaded once what
        /// has to go for it is idle.
        patience: Duration = default("2s"),
        /// When a model that was missed, but that something else could answer for, takes the place of others: when those are `"idle"`, or when
        /// it `"pays"`, for what its absence costs in the cloud (`docs/swap-economics.md`).
        swap: SwapWhen = default("idle"),
        /// What electricity and hardware cost. With it local models that are free have a price by what they use (`docs/energy.md`).
        energy: RawEnergy = optional,
        /// Memory for the KV of conversations that lost their slot or whose model was swapped: they go on without reading everything again.
        kv_memory: KeptBytes = default("1GiB"),
        /// The same on disk, if there is a `kv_folder`.
        kv_disk: KeptBytes = default("8GiB"),
        /// Where on disk. Then conversations also go on after a restart. What was said can be told from these files.
        kv_folder: PathBuf = optional,
        /// The models, each `[[local.models]]`.
        models: Vec<RawLocalModel> = default([]),
    }
}

table! {
    /// A local model.
    RawLocalModel "[[local.models]]" {
        /// Its name in requests and aliases.
        name: At<ModelName> = required,
        /// The GGUF file; for candle it may be the folder of a BERT.
        path: PathBuf = required,
        /// What runs it; candle is Rust only and slower (`docs/candle.md`), `"scripted"` answers from a script and is for tests.
        engine: EngineKind = default("llama.cpp"),
        /// Where its engine runs: in a `"thread"` of the gateway, or in a `"process"` of its own, whose death the gateway survives;
        /// `"auto"` is a process for llama.cpp in GPU builds.
        host: EngineHost = default("auto"),
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
        /// What it can do; the router sends it nothing else. `"rerank"` is for models with a classifier head, `"vision"` comes with `mmproj`.
        abilities: Vec<Ability> = default(["chat", "completion", "embeddings", "tools"]),
        /// Generated tokens when the client sets no limit; without it what is left of the context.
        max_output: Whole<1, 16_777_216> = optional,
        /// How keys and values are kept in memory: 16, 8.5 or 4.5 bits each.
        kv: KvType = default("f16"),
        /// Load it with smaller keys and values, fewer slots, a shorter context or fewer layers on the GPU when it does not fit.
        fit: bool = default(false),
        /// Guesses tokens and checks several in one batch: `"lookup"` from where the last words stood before, which is quicker where answers
        /// repeat their prompt (edits, quotes, filled-in forms); `"draft"` by a smaller model, the `draft`. What does not pay is left off. A
        /// token that was nearly a tie may come out otherwise.
        speculate: Guesses = default("off"),
        /// The GGUF file of a much smaller model with the same vocabulary, for `speculate = "draft"`; it takes memory beside the model.
        draft: PathBuf = optional,
        /// Load it at the start if there is room; else with the first request for it.
        preload: bool = default(true),
        /// Load it every day at these times, such as `"08:30"` (UTC) or `"08:30 Europe/Berlin"`, once what has to go for it is idle.
        preload_at: Vec<DailyTime> = default([]),
        /// Never take it out of memory for another.
        pin: bool = default(false),
        /// Take it out of memory when nobody has used it for so long.
        keep_alive: Duration = optional,
        /// Memory it takes; without it told from its file, and measured once it was loaded.
        memory: Vram = default("auto"),
        /// How its embeddings come from its tokens; without it as the model's file says, else the mean. With `"none"` it has none.
        pooling: Pooling = optional,
        /// The GGUF file of its projector (`mmproj-….gguf`), with which it sees pictures and gets the ability `"vision"`.
        mmproj: PathBuf = optional,
        /// LoRA adapters laid over it, at most one; models of other names may share the file.
        lora: Vec<At<RawLora>> = default([]),
        /// How it writes tool calls, where its chat template does not tell or tells it wrong (`docs/structured-output.md`). With `"taught"` the
        /// tools are explained in the system message; with `"none"` calls are left in the text.
        tool_format: ToolFormat = default("auto"),
        /// How it writes reasoning, where its chat template does not tell; with `"none"` it is left in the text.
        reasoning_format: ReasoningFormat = default("auto"),
        /// Of a cascade: the three numbers of the curve that makes a confidence of how sure this model was, as `tollkeeper route certainty`
        /// prints them; without them the mean probability of its tokens is the confidence.
        certainty: Vec<At<Scale>> = optional,
    }
}

table! {
    /// A LoRA adapter.
    RawLora "`lora`" {
        /// Its GGUF file.
        path: PathBuf = required,
        /// How strong it is; 0 changes nothing.
        scale: Scale = default(1.0),
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
        /// How often the server is asked how it is, for `ollama`, `vllm`, `sglang` and `llama-server`; without it `"5s"`.
        probe: Pace = optional,
        /// The price of all its models, for kinds that one runs oneself (`ollama`, `vllm`, `sglang`, `llama-server`, `lmstudio`,
        /// `custom`).
        price: RawPrice = optional,
    }
}

table! {
    /// How much may be asked, of an agent or of an alias.
    RawRateLimits "rate limits" {
        /// Requests a minute (to an alias: of all agents together); without it any number (`docs/rate-limits.md`).
        requests_per_minute: Whole<1, 10_000_000> = optional,
        /// Tokens a minute, input and output together: estimated when a request comes, corrected when it has ended.
        tokens_per_minute: Whole<1, 1_000_000_000> = optional,
        /// Requests that run at once; the next ones wait.
        parallel: Whole<1, 1_000_000> = optional,
        /// Requests of each priority that may wait for that; without it 64. With 0 they are refused at once.
        queue: Whole<0, 100_000> = optional,
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
        /// Price of generated tokens; only models that do nothing but embed or rerank have none.
        output: PicoUsd = optional,
        /// Price of prompt tokens written to the provider's cache for an hour; without it that of `cache_write`.
        cache_write_1h: PicoUsd = optional,
        /// Price of prompt tokens that are sound; without it that of `input`.
        audio_input: PicoUsd = optional,
        /// Price of generated tokens that are sound; without it that of `output`.
        audio_output: PicoUsd = optional,
        /// Prices of other tariffs than the ordinary one, by which the provider's answer says that it is billed.
        tiers: Vec<At<RawTier>> = default([]),
        /// Prices of a whole request whose input exceeds a number of tokens.
        above: Vec<At<RawAbove>> = default([]),
        /// Most tokens of a prompt.
        context: Whole<1, 1_000_000_000> = optional,
        /// Most tokens of an answer.
        max_output: Whole<1, 1_000_000_000> = optional,
        /// What it can do; without it the catalogue's, and for models that it does not know everything that the provider's kind offers.
        abilities: Vec<Ability> = optional,
    }
}

table! {
    /// The price of requests with more input than a threshold.
    RawAbove "a tier of `above`" {
        /// The threshold, in tokens.
        input_tokens: Whole<1, 1_000_000_000> = required,
        /// As for the price itself.
        input: PicoUsd = required,
        /// As for the price itself; without it that of this tier's `input`.
        cached_input: PicoUsd = optional,
        /// As for the price itself; without it that of this tier's `input`.
        cache_write: PicoUsd = optional,
        /// As for the price itself.
        output: PicoUsd = required,
        /// As for the price itself; without it that of this tier's `cache_write`.
        cache_write_1h: PicoUsd = optional,
        /// As for the price itself; without it that of this tier's `input`.
        audio_input: PicoUsd = optional,
        /// As for the price itself; without it that of this tier's `output`.
        audio_output: PicoUsd = optional,
    }
}

table! {
    /// The price of another tariff.
    RawTier "a tariff of `tiers`" {
        /// Which one.
        tier: ServiceTier = required,
        /// Only for requests whose input exceeds so many tokens; without it for all that no other row is for.
        input_tokens: Whole<1, 1_000_000_000> = optional,
        /// As for the price itself.
        input: PicoUsd = required,
        /// As for the price itself; without it that of this tariff's `input`.
        cached_input: PicoUsd = optional,
        /// As for the price itself; without it that of this tariff's `input`.
        cache_write: PicoUsd = optional,
        /// As for the price itself.
        output: PicoUsd = required,
        /// As for the price itself; without it that of this tariff's `cache_write`.
        cache_write_1h: PicoUsd = optional,
        /// As for the price itself; without it that of this tariff's `input`.
        audio_input: PicoUsd = optional,
        /// As for the price itself; without it that of this tariff's `output`.
        audio_output: PicoUsd = optional,
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
        /// Whether its requests go first where requests wait (`"interactive"`), or wait for those that do (`"batch"`).
        priority: Priority = default("interactive"),
        /// How much it may ask.
        rates: RawRateLimits = flat,
        /// The team that it belongs to, for budgets of teams and for reports.
        team: Slug = optional,
        /// Its budgets; all must hold.
        budgets: Vec<RawBudget> = default([]),
        /// The most that one of its requests may cost, all attempts together.
        max_request_usd: Usd = optional,
        /// The alias whose targets answer when a budget sends its requests to cheaper ones and the alias it named has none;
        /// without it `local/fast`.
        degrade_to: String = optional,
        /// The type of its tasks where a request does not say one; without it the request is looked at.
        task_type: Slug = optional,
        /// What differs for it from `[velocity]`.
        velocity: RawOwnVelocity = default({}),
    }
}

table! {
    /// A cap on spend within a window. It covers everything, or what one of `agent`, `team`, `alias`, `model` and `provider` names.
    RawBudget "a budget" {
        /// The agent whose spending it caps.
        agent: String = optional,
        /// The team, all its agents together.
        team: String = optional,
        /// The alias, as clients name it.
        alias: String = optional,
        /// The model, `"provider/model"` or a local one.
        model: String = optional,
        /// The provider, all its models together.
        provider: String = optional,
        /// The calendar window; `"total"` never ends, `"rolling 24h"` is the last 24 hours.
        window: Window = required,
        /// Where calendar windows begin and end.
        time_zone: Zone = default("UTC"),
        /// The cap in USD; or one of the next two.
        limit_usd: Usd = optional,
        /// The cap in tokens, of prompts and answers together.
        limit_tokens: Whole<1, 1_000_000_000_000_000> = optional,
        /// The cap in requests.
        limit_requests: Whole<1, 1_000_000_000_000_000> = optional,
        /// Percentages of the cap that are worth a notice.
        notify_at: Vec<At<Whole<1, 100>>> = default([50, 80, 95]),
        /// What happens to a request that it cannot pay: it is refused (`"deny"`), answered by a cheaper target, down to a local one
        /// (`"degrade"`), or refused and its agent paused until somebody resumes it (`"ask"`).
        on_limit: OnLimit = default("deny"),
        /// Percentage of the cap that only a final answer without tools may use.
        wrap_up_pct: Whole<0, 50> = default(0),
        /// With `[shared]`, what happens to a request while that store cannot be reached: it is refused (`"deny"`), or what this gateway alone
        /// has spent decides (`"local"`), so that several gateways can spend the cap once each.
        on_shared_down: OnSharedDown = default("deny"),
    }
}

table! {
    /// What becomes of notices that cannot be delivered (`docs/notifications.md`).
    RawNotify "[notify]" {
        /// The file they are appended to, one JSON object a line; its folder is made when missing. Without it `notices.jsonl` beside the file
        /// of `[store]`.
        dead_letter: PathBuf = optional,
        /// A file of this size is renamed to `….1`, in the place of the one before, and another one begun.
        dead_letter_limit: Size<1_073_741_824> = default("8MiB"),
        /// How long a stop of the gateway waits for notices that are still to be delivered.
        drain_timeout: Duration = default("5s"),
    }
}

table! {
    /// A receiver of notices (`docs/notifications.md`).
    RawWebhook "[[webhooks]]" {
        /// Its name in logs, metrics and the file of what could not be delivered.
        name: At<Slug> = required,
        /// Where notices are posted to: an `http://` or `https://` URL, which is never printed. Redirects are not followed.
        url: SecretRef = required,
        /// What bodies are signed with, so that the receiver can tell them from forged ones.
        secret: SecretRef = optional,
        /// The form of bodies: all that is known as JSON, or what Slack's incoming webhooks take.
        format: WebhookFormat = default("generic"),
        /// What it is told of; without it everything.
        events: Vec<At<NoticeKind>> = optional,
        /// When it is told of nothing but what is urgent; reminders wait and then come together.
        quiet_hours: RawQuietHours = optional,
        /// Longest duration of one try.
        timeout: Duration = default("10s"),
        /// Most tries after the first, when the receiver cannot be reached, takes too long, or answers 408, 429 or 500 and above.
        retries: Whole<0, 50> = default(8),
        /// Longest pause before the second try; it doubles with each further one. Pauses are random up to their longest.
        retry_pause: Duration = default("1s"),
        /// Where that doubling ends. A receiver may ask for longer pauses, up to an hour.
        longest_pause: Duration = default("5m"),
        /// For so long the same notice (event, subject and key) is left out and counted; the next one says how many were.
        repeat_after: Pace = default("10m"),
        /// Most notices that wait. When there are more, the oldest reminder is dropped, or else the oldest.
        queue: Whole<1, 100_000> = default(1000),
    }
}

table! {
    /// Hours of every day, over midnight where `to` is the earlier time.
    RawQuietHours "`quiet_hours`" {
        /// When they begin, such as `"22:00"`.
        from: At<Clock> = required,
        /// When they end, such as `"07:00"`.
        to: At<Clock> = required,
        /// Whose time that is: a name of the IANA database such as `"Europe/Berlin"`.
        time_zone: Zone = default("UTC"),
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
