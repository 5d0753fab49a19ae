//! What the targets in `fuzz/` call: readers of what others write, each with what must hold of it. Not part of the library's interface.

use super::formats::grammar::Function;
use super::formats::{Format, Piece, Reader, Signature};
use super::gguf::Header;
use super::{gbnf, kv_store, process};
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

/// Templates by which the families are known, some with reasoning.
const TEMPLATES: &[&str] = &[
    "<|channel|><|message|>",
    "<｜tool▁calls▁begin｜><｜tool▁sep｜></think>",
    "<｜tool▁calls▁begin｜>```json",
    "[TOOL_CALLS][ARGS][/THINK]",
    "[TOOL_CALLS]\"id\"",
    "<|START_ACTION|>tool_name<|END_THINKING|>",
    "Action:```json tool_name",
    "<|tool|><|/tool|>",
    "<|tool_call|>tools",
    "<|start_header_id|>\"parameters\": tools",
    "<tool_call>arguments tools</think>",
    "<seed:tool_call><function=<parameter=</seed:think>",
    "<tool_call><function=<parameter=</think>",
    "<tool_call><arg_key><arg_value>",
    "<minimax:tool_call><invoke name=",
];

/// An answer in pieces: the first byte chooses the format, the second says how it is cut and whether the prompt began to think.
/// Any text must be taken apart, and where it is cut must not matter.
pub fn answer(data: &[u8]) {
    let [family, how, text @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let format = Format::of(TEMPLATES[usize::from(*family) % TEMPLATES.len()]);
    let (thinking, step) = (how & 1 == 1, usize::from(how >> 1) % 23 + 1);
    let (mut cuts, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let end = (step.min(rest.len())..rest.len()).find(|at| rest.is_char_boundary(*at)).unwrap_or(rest.len());
        let (cut, behind) = rest.split_at(end);
        cuts.push(cut);
        rest = behind;
    }
    assert_eq!(read(&format, thinking, &cuts), read(&format, thinking, &[text]), "{}", format.name());
}

fn read(format: &Format, thinking: bool, cuts: &[&str]) -> Vec<Piece> {
    let arguments = serde_json::json!({"type": "object", "properties": {
        "t": {"type": "string"}, "n": {"type": ["string", "null"]}, "j": {"type": "array"}, "o": {}
    }});
    let signature = Signature::of(&Function { name: "f", arguments, enforced: true });
    let mut reader = Reader::new(format, thinking, Some(Arc::new([signature])));
    let mut pieces: Vec<Piece> = cuts.iter().flat_map(|cut| reader.push(cut)).collect();
    pieces.extend(reader.finish());
    let mut merged: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (merged.last_mut(), piece) {
            (Some(Piece::Text(before)), Piece::Text(text))
            | (Some(Piece::Reasoning(before)), Piece::Reasoning(text))
            | (Some(Piece::Arguments(before)), Piece::Arguments(text)) => before.push_str(&text),
            (_, piece) => merged.push(piece),
        }
    }
    merged
}

/// A grammar in llama.cpp's notation.
pub fn grammar(data: &[u8]) {
    if let Ok(source) = std::str::from_utf8(data) {
        let _ = gbnf::rewrite(source);
    }
}

/// The header of a GGUF file, and what is worked out from it.
pub fn gguf(data: &[u8]) {
    if let Ok(header) = Header::parse(Cursor::new(data), data.len() as u64) {
        let _ = (header.architecture(), header.figure("block_count"), header.vocabulary());
        let _ = header.sum_over_layers("attention.head_count_kv", 4);
    }
}

/// A file of the KV store. `path` is where it is written to be read.
pub fn kept(path: &Path, data: &[u8]) {
    kv_store::fuzz(path, data);
}

/// What the other side of an engine's socket may say.
pub fn frames(data: &[u8]) {
    process::fuzz(data);
}
