//! `tollkeeper learning`: what routes have learned from their outcomes.

use super::agents::print;
use super::say;
use super::table::{Column, rows, shown, table, time};
use super::talk::{At, in_path};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

/// Arguments of `learning`.
#[derive(Debug, Args)]
pub(super) struct Learning {
    #[command(flatten)]
    at: At,
    #[command(subcommand)]
    command: Option<LearningCommand>,
}

#[derive(Debug, Subcommand)]
enum LearningCommand {
    /// What is believed of each tier, and how sure that is (the default)
    Show,
    /// Forget it
    Reset {
        /// Only of tasks of this type
        #[arg(long, value_name = "TYPE")]
        task_type: Option<String>,
        /// Only of this alias
        #[arg(long)]
        alias: Option<String>,
    },
}

impl Learning {
    pub(super) fn run(self) -> Result<(), String> {
        let gateway = self.at.gateway()?;
        let json = self.at.json;
        match self.command {
            None | Some(LearningCommand::Show) => {
                let all = gateway.ask(&Method::GET, "/admin/v1/learning", None)?;
                print(json, &all, learning_table)
            }
            Some(LearningCommand::Reset { task_type, alias }) => {
                let wanted = [("task_type", task_type), ("alias", alias)];
                let pairs: Vec<String> =
                    wanted.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", in_path(&value?)))).collect();
                let path = format!("/admin/v1/learning?{}", pairs.join("&"));
                let reset = gateway.ask(&Method::DELETE, &path, None)?;
                print(json, &reset, |reset| say(&format!("forgotten: {}", shown(&reset["forgotten"]))))
            }
        }
    }
}

fn learning_table(all: &Value) {
    if all["on"] != true {
        say("learning is off (`learning.on`)");
    }
    let columns = [
        Column("alias", |one| shown(&one["alias"])),
        Column("task", |one| shown(&one["task_type"])),
        Column("difficulty says", |one| shown(&one["difficulty_tier"])),
        Column("begins with", |one| shown(&one["begins_with"])),
        Column("tier", |one| shown(&one["tier"])),
        Column("backends", |one| shown(&one["backends"])),
        Column("good", |one| number(&one["good"])),
        Column("bad", |one| number(&one["bad"])),
        Column("mean", |one| number(&one["mean"])),
        Column("90 %", |one| format!("{}-{}", number(&one["low"]), number(&one["high"]))),
        Column("answered", |one| shown(&one["answered"])),
        Column("tried out", |one| number(&one["explored_share"])),
        Column("changed", |one| time(&one["changed"])),
    ];
    let lines: Vec<Value> = rows(all).iter().flat_map(lines).collect();
    table(&columns, &lines);
}

/// One line for each tier, with what holds for its group.
fn lines(group: &Value) -> Vec<Value> {
    let tiers = group["tiers"].as_array().map_or(&[][..], Vec::as_slice);
    let line = |tier: &Value| {
        let mut line = tier.clone();
        for key in ["alias", "task_type", "difficulty_tier", "begins_with"] {
            line[key] = json!(group[key]);
        }
        line
    };
    tiers.iter().map(line).collect()
}

fn number(value: &Value) -> String {
    value.as_f64().map_or_else(String::new, |number| format!("{number:.2}"))
}
