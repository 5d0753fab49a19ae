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
        if let Some(price) = price(&model["price"]) {
            say(&format!("    {price}"));
        }
        if let (Some(regret), Some(swap)) =
            (model["absence"]["regret_usd"].as_str(), model["absence"]["swap_usd"].as_str())
        {
            say(&format!("    its absence has cost {regret} USD; a swap costs {swap} USD"));
        }
    }
}

/// What its tokens cost, beside the cloud's.
fn price(price: &Value) -> Option<String> {
    let text = |key: &str| price[key].as_str();
    let own = format!("{} / {}", text("input_usd_per_million")?, text("output_usd_per_million")?);
    let beside = text("cloud").map_or_else(String::new, |cloud| {
        let prices =
            ["cloud_input_usd_per_million", "cloud_output_usd_per_million"].map(|key| text(key).unwrap_or("?"));
        let even = price["break_even_tokens_per_second"].as_f64();
        let even = even.map_or_else(String::new, |even| format!(", as cheap from {even:.1} tokens/s on"));
        format!("; {cloud} {} / {}{even}", prices[0], prices[1])
    });
    Some(format!("USD per million tokens read / written: {own}{beside}"))
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_token_costs_is_shown_beside_the_clouds() {
        let mut shown = json!({"input_usd_per_million": "0.014584", "output_usd_per_million": "0.583334"});
        assert_eq!(price(&shown).unwrap(), "USD per million tokens read / written: 0.014584 / 0.583334");
        shown["cloud"] = json!("up/plain");
        shown["cloud_input_usd_per_million"] = json!("0.05");
        shown["cloud_output_usd_per_million"] = json!("0.08");
        shown["break_even_tokens_per_second"] = json!(364.58);
        let all = price(&shown).unwrap();
        assert!(all.ends_with("; up/plain 0.05 / 0.08, as cheap from 364.6 tokens/s on"), "{all}");
        assert_eq!(price(&Value::Null), None, "no price, no line");
    }
}
