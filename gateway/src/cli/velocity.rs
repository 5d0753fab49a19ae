//! `tollkeeper velocity`: how fast everybody spends, and stages set by hand.

use super::agents::{print, said, seconds};
use super::say;
use super::table::{Column, rows, shown, table, time};
use super::talk::{At, in_path};
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};

/// Arguments of `velocity`.
#[derive(Debug, Args)]
pub(super) struct Velocity {
    #[command(flatten)]
    at: At,
    #[command(subcommand)]
    command: Option<VelocityCommand>,
}

#[derive(Debug, Subcommand)]
enum VelocityCommand {
    /// How fast every agent and run spends, what is normal for it, and its stage (the default)
    List,
    /// Set its stage by hand; until it is released nothing else changes it
    Hold {
        whose: Whose,
        /// The agent or run
        name: String,
        /// `normal` (nothing stops it), `notify`, `throttle`, `local`, `paused`, or `killed`, which also cuts what is in flight
        stage: String,
        /// For how long, such as 90s, 30m, 12h or 7d; without it until it is released
        #[arg(long = "for", value_name = "DURATION", conflicts_with = "until")]
        length: Option<String>,
        /// Until when, RFC 3339
        #[arg(long)]
        until: Option<String>,
    },
    /// Let its traffic decide again
    Release {
        whose: Whose,
        /// The agent or run
        name: String,
    },
}

/// Whose stage can be set.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Whose {
    Agent,
    Run,
}

impl Whose {
    fn path(self, name: &str) -> String {
        let kind = match self {
            Self::Agent => "agents",
            Self::Run => "runs",
        };
        format!("/admin/v1/{kind}/{}/velocity", in_path(name))
    }
}

impl Velocity {
    pub(super) fn run(self) -> Result<(), String> {
        let gateway = self.at.gateway()?;
        let json = self.at.json;
        match self.command {
            None | Some(VelocityCommand::List) => {
                let all = gateway.ask(&Method::GET, "/admin/v1/velocity", None)?;
                print(json, &all, |all| velocity_table(rows(all)))
            }
            Some(VelocityCommand::Hold { whose, name, stage, length, until }) => {
                let length = length.as_deref().map(seconds).transpose()?;
                let body = said([("stage", json!(stage)), ("for_s", json!(length)), ("until", json!(until))]);
                let held = gateway.ask(&Method::POST, &whose.path(&name), Some(&body))?;
                print(json, &held, |held| velocity_table(std::slice::from_ref(held)))
            }
            Some(VelocityCommand::Release { whose, name }) => {
                let released = gateway.ask(&Method::DELETE, &whose.path(&name), None)?;
                print(json, &released, |released| {
                    let before = if released["was_held"] == true { "is released" } else { "was not held" };
                    say(&format!("{} {} {before}", shown(&released["scope"]), shown(&released["owner"])));
                })
            }
        }
    }
}

fn velocity_table(standings: &[Value]) {
    let columns = [
        Column("whose", |one| shown(&one["scope"])),
        Column("name", |one| shown(&one["owner"])),
        Column("stage", |one| shown(&one["stage"])),
        Column("set by", |one| (if one["held"] == true { "hand" } else { "" }).to_owned()),
        Column("until", |one| time(&one["until"])),
        Column("usd/h", |one| beside(&one["usd_per_hour"])),
        Column("tokens/h", |one| beside(&one["tokens_per_hour"])),
        Column("calls/h", |one| beside(&one["calls_per_hour"])),
        Column("normal is", |one| (if one["known"] == true { "learned" } else { "assumed" }).to_owned()),
    ];
    table(&columns, standings);
}

/// A rate of what is normal.
fn beside(rate: &Value) -> String {
    format!("{}/{}", shown(&rate["present"]), shown(&rate["normal"]))
}
