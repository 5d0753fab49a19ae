//! Typed configuration, checked: what the rest of the gateway reads. [`load`] turns a TOML file into a [`Config`] or
//! into ALL its problems.
//!
//! The way of a file: text, spanned TOML, the raw tables of `file.rs`, checked by `check.rs` into [`settings`]; then
//! [`Config::resolve`] turns what a client names into backends. Only this crate reads the environment.

pub mod budget;
pub mod catalog;
mod check;
mod daily;
mod defaults;
mod energy;
pub mod environment;
mod file;
mod formats;
pub mod kinds;
mod learning;
pub mod notify;
mod problem;
mod quiet;
mod read;
mod reference;
pub mod reload;
mod resolve;
pub mod settings;
mod shared;
mod strategy;
pub mod units;
mod value;
mod velocity;

pub use budget::{BudgetConfig, Limit, OnLimit, OnSharedDown, Owner, Scope, Window};
pub use catalog::{Abilities, Billable, Catalog, ModelFacts, Price, PriceSource, Rates, TierRates};
pub use daily::{DailyTime, zone_named};
pub use energy::Energy;
pub use formats::{ReasoningFormat, ToolFormat};
pub use learning::Learning;
pub use notify::{NoticeKind, Notify, Webhook, WebhookFormat};
pub use problem::{ConfigErrors, Problem};
pub use quiet::QuietHours;
pub use reference::reference;
pub use reload::{Reloader, Watch};
pub use resolve::{Resolved, UnknownModel};
pub use settings::{
    AgentConfig, Alias, BackendId, Config, Durability, EngineHost, EngineKind, Gpu, KvCache, KvType, Local, LocalModel,
    Log, LogFormat, LoraAdapter, Pooling, Priority, Provider, RateLimits, Residency, Server, Speculate, Store,
    SwapRules, SwapWhen, Tls,
};
pub use shared::SharedStore;
pub use strategy::{Cascade, Flaw, Link, Strategy, TaskRule};
pub use units::{PicoUsd, Secret, Usd};
pub use value::is_slug;
pub use velocity::{StageRule, VelocityConfig, VelocityFloor};

use check::Check;
use file::RawFile;
use problem::Problems;
use read::{Node, Read};
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Reads and checks the file at `path`, secrets from this process's environment included.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ConfigErrors::whole(path, format!("cannot read the configuration: {cause}")))?;
    #[expect(clippy::disallowed_methods, reason = "the one place where the environment is read")]
    parse(&text, path, &|name| std::env::var(name).ok())
}

/// Checks the configuration in `text`. `origin` is the file it came from: it names the problems and its folder is what
/// relative paths start from. `env` looks environment variables up.
///
/// Where the text is not TOML, only that is reported: what its keys mean is not known then.
pub fn parse(text: &str, origin: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigErrors> {
    let mut problems = Problems::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        problems.add(&error.span().unwrap_or(0..0), format!("not TOML: {}", error.message()));
    }
    let value = Spanned::new(table.span(), DeValue::Table(table.into_inner()));
    let raw = if problems.is_empty() { RawFile::read(Node { key: "", value: &value }, &mut problems) } else { None };
    let folder = origin.parent().unwrap_or(Path::new(""));
    let mut check = Check::new(problems, folder, env);
    let config = raw.map(|raw| check.file(raw));
    match (config, check.problems.into_errors(origin)) {
        (Some(config), None) => Ok(config),
        (_, Some(errors)) => Err(errors),
        (None, None) => Err(ConfigErrors::whole(origin, "the file cannot be read as a table".to_owned())),
    }
}
