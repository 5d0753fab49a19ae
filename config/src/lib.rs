//! Typed configuration, checked: what the rest of the gateway reads. [`load`] turns a TOML file into a [`Config`] or
//! into ALL its problems.
//!
//! The way of a file: text, spanned TOML, the raw tables of `file.rs`, checked by `check.rs` into [`settings`]; then
//! [`Config::resolve`] turns what a client names into backends. Only this crate reads the environment.

pub mod catalog;
mod problem;
mod resolve;
pub mod settings;
pub mod units;

pub use catalog::{Abilities, Catalog, ModelFacts, Price, PriceSource, Rates};
pub use problem::{ConfigErrors, Problem};
pub use resolve::{Resolved, UnknownModel};
pub use settings::{
    AgentConfig, Alias, BackendId, BudgetConfig, Config, Durability, EngineKind, Local, LocalModel, Log, LogFormat,
    Provider, Server, Store, Strategy, Tls, Window,
};
pub use units::{PicoUsd, Secret, Usd};

use std::path::Path;

/// Reads and checks the file at `path`, secrets from this process's environment included.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ConfigErrors::one(path, 0, 0, format!("cannot read the configuration: {cause}")))?;
    #[expect(clippy::disallowed_methods, reason = "the one place where the environment is read")]
    parse(&text, path, &|name| std::env::var(name).ok())
}

/// Checks the configuration in `text`. `origin` is the file it came from: it names the problems and its folder is what
/// relative paths start from. `env` looks environment variables up.
pub fn parse(_text: &str, origin: &Path, _env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigErrors> {
    Err(ConfigErrors::one(origin, 1, 1, "not built yet".to_owned()))
}
