//! The command line: what can be asked of the binary, and with which exit code it answers.

mod against;
mod agents;
mod certainty;
mod engine;
mod learning;
mod ledger;
mod models;
mod operate;
mod place;
mod reconcile;
mod route;
mod serve;
mod spend;
mod table;
mod talk;
mod velocity;

pub(crate) use spend::moment;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use tollkeeper_config::{Config, load};
use tollkeeper_inference::Fleet;

/// An inference-aware LLM gateway. Exit codes: 0 done, 1 it could not be done (the reason is on standard error), 2 the command line is wrong.
#[derive(Debug, Parser)]
#[command(name = "tollkeeper", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT; SIGHUP or a changed file reloads the configuration
    Serve(serve::Serve),
    /// Check a configuration: every mistake at once, with file, line and column
    Check(FileArg),
    /// What was charged, exactly, from the ledger
    Spend(spend::Spend),
    /// The local models of the running gateway: where they are, load, unload, pin
    Models(models::Models),
    /// The agents of the running gateway: who may use it
    Agents(agents::Agents),
    /// The keys of an agent that was made at run time
    Keys(agents::Keys),
    /// The budgets of the running gateway, and how they stand
    Budgets(operate::Budgets),
    /// The runs of the running gateway
    Runs(operate::Runs),
    /// Refuse everything that an agent, a team or a run asks for, or that an alias, a model or a provider is asked for; alone, who is paused
    Pause(operate::Pause),
    /// Let it go on
    Resume(operate::Resume),
    /// How fast agents and runs spend, what is normal for them, and stages set by hand
    Velocity(velocity::Velocity),
    /// What routes have learned of the tiers of pyramids, and forgetting it
    Learning(learning::Learning),
    /// The ledger
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    /// Lay a provider's invoice (CSV) beside the ledger, by day and model; exit code 1 when they differ
    Reconcile(reconcile::ReconcileCommand),
    /// The router: the plan of a request, how good the classifier is, thresholds for it, and strategies on a trace
    #[command(subcommand)]
    Route(route::RouteCommand),
    /// Run one model's engine for the gateway that starts this
    #[command(hide = true)]
    Engine(engine::Engine),
}

/// Which configuration.
#[derive(Debug, Args)]
struct FileArg {
    /// The configuration file
    #[arg(short = 'c', long = "config", value_name = "FILE", default_value = "config/tollkeeper.toml", global = true)]
    file: PathBuf,
}

impl FileArg {
    fn load(&self) -> Result<Config, String> {
        load(&self.file).map_err(|problems| problems.to_string())
    }
}

/// Parses the command line, does what it says, and gives the exit code.
pub fn run() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(command) => command.run(),
        Command::Check(file) => check(&file),
        Command::Spend(command) => command.run(),
        Command::Models(command) => command.run(),
        Command::Agents(command) => command.run(),
        Command::Keys(command) => command.run(),
        Command::Budgets(command) => command.run(),
        Command::Runs(command) => command.run(),
        Command::Pause(command) => command.run(),
        Command::Resume(command) => command.run(),
        Command::Velocity(command) => command.run(),
        Command::Learning(command) => command.run(),
        Command::Engine(command) => command.run(),
        Command::Ledger(command) => command.run(),
        Command::Reconcile(command) => command.run(),
        Command::Route(command) => command.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            complain(&reason);
            ExitCode::FAILURE
        }
    }
}

fn check(file: &FileArg) -> Result<(), String> {
    let config = file.load()?;
    for warning in &config.warnings {
        complain(&format!("warning: {warning}"));
    }
    Fleet::check(&config).map_err(|error| error.to_string())?;
    say(&format!(
        "{}: good ({} agents, {} aliases, {} providers, {} local models)",
        file.file.display(),
        config.agents.len(),
        config.aliases.len(),
        config.providers.len(),
        config.local.models.len()
    ));
    Ok(())
}

/// A line on standard output. A reader that left (`| head`) is no error.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A line on standard error.
fn complain(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}
