//! `tollkeeper engine`: what `tollkeeper serve` starts for each local model that has a process of its own. Nobody else has a use for it.

use clap::Args;
use tollkeeper_inference::local::process;
use tracing::level_filters::LevelFilter;

/// Its arguments.
#[derive(Debug, Args)]
pub(super) struct Engine {
    /// Say what is at least so important, for the gateway's log
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: LevelFilter,
}

impl Engine {
    pub(super) fn run(self) -> Result<(), String> {
        // The gateway reads the level, and adds the time.
        let lines = tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(std::io::stderr);
        let started = lines.with_max_level(self.log).try_init();
        started.map_err(|error| format!("logging could not be started: {error}"))?;
        process::serve()
    }
}
