//! Logs: text for people or JSON for machines, on standard error.

use std::io::IsTerminal;
use tollkeeper_config::settings::{Log, LogFormat};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::debug_fn;

/// Starts logging as configured. The first call counts.
///
/// # Errors
/// The filter cannot be understood; the text says what of it.
pub(crate) fn init(log: &Log) -> Result<(), String> {
    let filter =
        EnvFilter::try_new(&log.filter).map_err(|error| format!("`log.filter` cannot be understood: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => {
            // Without the colours of the default, whose bookkeeping costs more than all the rest of a line.
            let fields = debug_fn(|line, field, value| match field.name() {
                "message" => write!(line, "{value:?}"),
                name => write!(line, "{name}={value:?}"),
            });
            let builder = builder.with_target(false).with_ansi(std::io::stderr().is_terminal());
            builder.fmt_fields(fields.delimited(" ")).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| format!("logging could not be started: {error}"))
}
