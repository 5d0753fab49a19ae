//! What servers that one runs oneself can be asked about themselves, by kind.
//!
//! The names were read in these places; `config/README.md` shows them to operators.
//!
//! - vLLM: `docs.vllm.ai/en/stable/usage/metrics/`; `vllm/v1/metrics/loggers.py` for the older name of the cache's gauge
//! - SGLang: `docs.sglang.io/references/production_metrics.html`; `docs/basic_usage/native_api` for `/health`
//! - llama-server: `tools/server/README.md` of llama.cpp, and a server of September 2026 that was asked
//! - Ollama: `docs.ollama.com/api` (`version`, `tags`, `ps`)

/// What a kind of server can be asked. Each path is below its root: the base URL without its `/v1`.
#[derive(Debug, PartialEq, Eq)]
pub struct Questions {
    /// Answered with less than 500 by a server that is well.
    pub health: &'static str,
    /// The models it has.
    pub models: &'static str,
    /// Those of them that are in memory, where that is a question of its own.
    pub loaded: Option<&'static str>,
    /// How busy it is, where it tells.
    pub gauges: Option<GaugeNames>,
    /// Its slots, for when its gauges are off. It is asked only while a request of ours runs there: the question itself wakes a
    /// llama-server that sleeps, and keeps one from falling asleep.
    pub slots: Option<&'static str>,
    /// Which names of models it answers to.
    pub names: Names,
}

/// The gauges of `/metrics`, in Prometheus' text format.
#[derive(Debug, PartialEq, Eq)]
pub struct GaugeNames {
    /// Requests being answered.
    pub running: &'static str,
    /// Requests that wait.
    pub waiting: &'static str,
    /// Share of the KV cache in use, 0 to 1; versions name it differently.
    pub kv: &'static [&'static str],
}

/// Which names of models a server answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Those that it lists.
    Listed,
    /// Those that it lists when it says of each whether it is loaded (llama-server's router); else every name.
    ListedByRouter,
    /// Every name: it does not look at it.
    Any,
}

/// Where gauges are.
pub(super) const METRICS: &str = "/metrics";

/// vLLM.
pub(super) const VLLM: Questions = Questions {
    health: "/health",
    models: "/v1/models",
    loaded: None,
    gauges: Some(GaugeNames {
        running: "vllm:num_requests_running",
        waiting: "vllm:num_requests_waiting",
        kv: &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
    }),
    slots: None,
    names: Names::Listed,
};

/// SGLang; it tells its gauges when started with `--enable-metrics`.
pub(super) const SGLANG: Questions = Questions {
    health: "/health",
    models: "/v1/models",
    loaded: None,
    gauges: Some(GaugeNames {
        running: "sglang:num_running_reqs",
        waiting: "sglang:num_queue_reqs",
        kv: &["sglang:token_usage"],
    }),
    slots: None,
    names: Names::Any,
};

/// llama-server; it tells its gauges when started with `--metrics`, and its slots unless started with `--no-slots`.
pub(super) const LLAMA_SERVER: Questions = Questions {
    health: "/health",
    models: "/v1/models",
    loaded: None,
    gauges: Some(GaugeNames {
        running: "llamacpp:requests_processing",
        waiting: "llamacpp:requests_deferred",
        kv: &[],
    }),
    slots: Some("/slots"),
    names: Names::ListedByRouter,
};

/// Ollama; it has no gauges.
pub(super) const OLLAMA: Questions = Questions {
    health: "/api/version",
    models: "/api/tags",
    loaded: Some("/api/ps"),
    gauges: None,
    slots: None,
    names: Names::Listed,
};
