//! A configuration under construction: what a test does not say is the plainest working set-up. Lives in a temporary folder.

use crate::upstream::{End, Upstream};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tollkeeper_config::units::PicoUsd;
use tollkeeper_config::{Price, PriceSource, Rates, Usd};
use tollkeeper_protocol::usage::Usage;

/// The key of the agent `scout`, whom every [`Setup`] knows unless told otherwise.
pub const KEY: &str = "tk-scout-key";
/// The operator's key of every [`Setup`].
pub const ADMIN_KEY: &str = "tk-admin-key";

/// USD per million tokens of every test provider's models: input, cached input, output. One token is not a whole number of
/// nano-dollars, so that rounding shows.
const PRICES: [&str; 3] = ["0.0375", "0.009375", "0.1501"];

/// A configuration file and the folder it lives in, ledger included.
#[derive(Debug)]
pub struct Setup {
    folder: TempDir,
    server: String,
    rest: String,
    scout: String,
    velocity: String,
    store: String,
}

/// What this usage of a test provider's model costs, by this file's own arithmetic.
pub fn cost(usage: &Usage) -> Usd {
    let pico = |text: &str| {
        let (whole, fraction) = text.split_once('.').unwrap();
        PicoUsd(format!("{whole}{fraction:0<6}").parse().unwrap())
    };
    let [input, cached_input, output] = PRICES.map(pico);
    let price = Price {
        base: Rates { input, cached_input, cache_write: input, output, ..Rates::default() },
        above: Vec::new(),
        tiers: Vec::new(),
        source: PriceSource::File,
    };
    price.charge(usage)
}

/// What a test provider bills for all whole answers whose usage it told.
pub fn due(upstream: &Upstream) -> Usd {
    let told = upstream.served().into_iter().filter(|served| served.reported && served.end == End::Complete);
    Usd(told.map(|served| cost(&served.usage).0).sum())
}

impl Setup {
    /// No provider, no local model; the agent `scout` without a budget.
    pub fn new() -> Self {
        // Tests and benches are faster than any agent normally is.
        let velocity = "enabled = false\n".to_owned();
        let (server, rest, scout, store) = Default::default();
        let setup = Self { folder: TempDir::new().unwrap(), server, rest, scout, velocity, store };
        setup.server("listen = \"127.0.0.1:0\"").server(&format!("admin_key = \"{ADMIN_KEY}\""))
    }

    /// The provider `up` in front of this upstream.
    pub fn with(upstream: &Upstream) -> Self {
        Self::new().provider("up", &upstream.url(), "")
    }

    /// The same with one more line in `[server]`.
    #[must_use]
    pub fn server(mut self, line: &str) -> Self {
        writeln!(self.server, "{line}").unwrap();
        self
    }

    /// The same with these keys of `[store]` besides the file, which is not used with a `url`.
    #[must_use]
    pub fn store(self, lines: &str) -> Self {
        Self { store: lines.to_owned(), ..self }
    }

    /// The same with one more provider of kind `custom` with the test prices; `lines` are more keys of it.
    #[must_use]
    pub fn provider(self, name: &str, url: &str, lines: &str) -> Self {
        let [input, cached, output] = PRICES;
        // All but reasoning, which nobody sees.
        let abilities = r#"["chat", "completion", "embeddings", "tools", "json_schema", "vision", "rerank"]"#;
        let price = format!(
            "price = {{ input = \"{input}\", cached_input = \"{cached}\", output = \"{output}\", abilities = {abilities} }}"
        );
        self.raw(&format!("[[providers]]\nname = \"{name}\"\nkind = \"custom\"\nbase_url = \"{url}\"\napi_key = \"sk-{name}\"\n{price}\n{lines}\n"))
    }

    /// The same with one more alias.
    #[must_use]
    pub fn alias(self, name: &str, targets: &[&str]) -> Self {
        self.raw(&format!("[[aliases]]\nname = \"{name}\"\ntargets = {targets:?}\n"))
    }

    /// The same with these keys of `[velocity]`, which is off otherwise.
    #[must_use]
    pub fn velocity(self, lines: &str) -> Self {
        Self { velocity: lines.to_owned(), ..self }
    }

    /// The same with more keys of the agent `scout`.
    #[must_use]
    pub fn scout(mut self, lines: &str) -> Self {
        self.scout.push_str(lines);
        self.scout.push('\n');
        self
    }

    /// The same with budgets for the agent `scout`: (window, limit in USD).
    #[must_use]
    pub fn budgets(mut self, budgets: &[(&str, &str)]) -> Self {
        self.scout = budget_lines(budgets);
        self
    }

    /// The same with one more agent.
    #[must_use]
    pub fn agent(self, name: &str, key: &str, budgets: &[(&str, &str)]) -> Self {
        let budgets = budget_lines(budgets);
        self.raw(&format!("[[agents]]\nname = \"{name}\"\nkey = \"{key}\"\n{budgets}"))
    }

    /// The same with this TOML (whole tables) at the end.
    #[must_use]
    pub fn raw(mut self, toml: &str) -> Self {
        self.rest.push_str(toml);
        self.rest.push('\n');
        self
    }

    /// The configuration's text.
    pub fn toml(&self) -> String {
        let ledger = self.ledger();
        let (server, rest, scout, velocity, store) =
            (&self.server, &self.rest, &self.scout, &self.velocity, &self.store);
        format!(
            "[server]\n{server}\n[store]\npath = {ledger:?}\n{store}\n[velocity]\n{velocity}\n{rest}\n[[agents]]\nname = \"scout\"\nkey = \"{KEY}\"\n{scout}"
        )
    }

    /// Writes the configuration and says where.
    pub fn write(&self) -> PathBuf {
        let path = self.path("tollkeeper.toml");
        fs::write(&path, self.toml()).unwrap();
        path
    }

    /// The SQLite file.
    pub fn ledger(&self) -> PathBuf {
        self.path("data/tollkeeper.db")
    }

    /// A path in this set-up's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// This set-up's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

fn budget_lines(budgets: &[(&str, &str)]) -> String {
    let tables: Vec<String> =
        budgets.iter().map(|(window, limit)| format!("{{ window = \"{window}\", limit_usd = \"{limit}\" }}")).collect();
    format!("budgets = [{}]\n", tables.join(", "))
}
