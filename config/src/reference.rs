//! The reference of every key, as Markdown, made from the tables of `file.rs`.

use crate::file::RawFile;
use crate::read::{Key, Read};
use std::fmt::Write;

/// Every key with its type, default and meaning: one Markdown table for each table of the file.
pub fn reference() -> String {
    let mut out = String::new();
    let sections = [
        ("server", "`[server]`"),
        ("store", "`[store]`"),
        ("shared", "`[shared]`"),
        ("log", "`[log]`"),
        ("local", "`[local]`"),
        ("providers", "`[[providers]]`"),
        ("aliases", "`[[aliases]]`"),
        ("prices", "`[prices.\"provider/model\"]`"),
        ("tasks", "`[[tasks]]`"),
        ("learning", "`[learning]`"),
        ("agents", "`[[agents]]`"),
        ("notify", "`[notify]`"),
        ("webhooks", "`[[webhooks]]`"),
        ("velocity", "`[velocity]`"),
    ];
    let file = RawFile::keys();
    for (name, title) in sections {
        let Some(section) = file.iter().find(|key| key.name == name) else { continue };
        table(&mut out, title, section);
    }
    out
}

/// The table of one section, then those of the tables inside it.
fn table(out: &mut String, title: &str, section: &Key) {
    let rows = section.below.iter().map(|key| {
        let about = key.about.trim().replace('|', "\\|");
        format!("| `{}` | {} | {} | {about} |\n", key.name, key.shape, presence(&key.presence))
    });
    let rows: String = rows.collect();
    let about = section.about.trim();
    // Writing to a String cannot fail.
    let _ = write!(out, "### {title}\n\n{about}\n\n| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n");
    // Prices have a section of their own.
    for key in section.below.iter().filter(|key| !key.below.is_empty() && key.name != "price") {
        let title = match (section.name, key.name) {
            ("local", "models") => "`[[local.models]]`".to_owned(),
            (_, name) => format!("`{name}` of {title}"),
        };
        table(out, &title, key);
    }
}

fn presence(presence: &str) -> String {
    match presence {
        "required" => "required".to_owned(),
        "optional" => "–".to_owned(),
        default => format!("`{default}`"),
    }
}
