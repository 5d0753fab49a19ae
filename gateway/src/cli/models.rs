//! `tollkeeper models`: where the local models of a running gateway are, and bringing them in and out.

use super::say;
use super::talk::{At, Gateway};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::Value;

/// Its arguments.
#[derive(Debug, Args)]
pub(super) struct Models {
    #[command(flatten)]
    at: At,
    #[command(subcommand)]
    command: Option<ModelsCommand>,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// Where they are, what they take, and how long until they can serve (the default)
    Status,
    /// Bring a model into memory; others make room for it
    Load(Name),
    /// Take a model out of memory when what runs has ended
    Unload(Name),
    /// Never take a model out of memory for another
    Pin(Name),
    /// Let a model make room for others again
    Unpin(Name),
}

#[derive(Debug, Args)]
struct Name {
    /// The model's name in the configuration
    model: String,
}

impl Models {
    pub(super) fn run(self) -> Result<(), String> {
        let gateway = self.at.gateway()?;
        let (action, name) = match self.command.unwrap_or(ModelsCommand::Status) {
            ModelsCommand::Status => return status(&gateway, self.at.json),
            ModelsCommand::Load(name) => ("load", name),
            ModelsCommand::Unload(name) => ("unload", name),
            ModelsCommand::Pin(name) => ("pin", name),
            ModelsCommand::Unpin(name) => ("unpin", name),
        };
        let path = format!("/admin/v1/models/{}/{action}", name.model);
        let model = gateway.ask(&Method::POST, &path, None)?;
        if self.at.json {
            say(&model.to_string());
            return Ok(());
        }
        table(std::slice::from_ref(&model));
        Ok(())
    }
}

fn status(gateway: &Gateway, as_json: bool) -> Result<(), String> {
    let answer = gateway.ask(&Method::GET, "/admin/v1/models", None)?;
    if as_json {
        say(&answer.to_string());
        return Ok(());
    }
    table(answer["models"].as_array().map_or(&[][..], Vec::as_slice));
    let memory = &answer["memory"];
    let taken = match memory["taken_bytes"].as_u64() {
        Some(taken) if taken > 0 => format!("; others hold {} of it", size(&memory["taken_bytes"])),
        _ => String::new(),
    };
    say(&format!("{} of {} free{taken}", size(&memory["free_bytes"]), size(&memory["budget_bytes"])));
    Ok(())
}

fn table(models: &[Value]) {
    let line = |[name, state, pin, ready, bytes, slots, context]: [&str; 7]| {
        say(&format!("{name:<28} {state:<12} {pin:<7} {ready:>10} {bytes:>10} {slots:>7} {context:>8}"));
    };
    line(["model", "state", "pinned", "ready in", "memory", "slots", "context"]);
    for model in models {
        let seconds = model["ready_in_ms"].as_f64().unwrap_or(0.0) / 1000.0;
        line([
            model["name"].as_str().unwrap_or(""),
            &state(model),
            if model["pinned"] == true { "yes" } else { "" },
            &if seconds > 0.0 { format!("{seconds:.1} s") } else { "now".to_owned() },
            &size(&model["bytes"]),
            &format!("{}/{}", model["slots_busy"], model["slots"]),
            &model["context"].to_string(),
        ]);
        if let Some(reason) = model["reason"].as_str() {
            say(&format!("    {reason}"));
        }
    }
}

/// `ready`, or `loading 63%` where the engine tells.
fn state(model: &Value) -> String {
    let state = model["state"].as_str().unwrap_or("");
    match model["progress"].as_f64() {
        Some(done) => format!("{state} {:.0}%", done * 100.0),
        None => state.to_owned(),
    }
}

fn size(bytes: &Value) -> String {
    let bytes = bytes.as_f64().unwrap_or(0.0);
    let (unit, name) = if bytes >= 1e9 { (1u64 << 30, "GiB") } else { (1 << 20, "MiB") };
    #[expect(clippy::cast_precision_loss, reason = "a size for people")]
    let shown = bytes / unit as f64;
    format!("{shown:.1} {name}")
}
