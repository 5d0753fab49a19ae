//! Writing the trained parameters as a GGUF file.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::layout::Layout;
use super::model::ROPE_BASE;
use super::tokenizer::Tokenizer;
use crate::chat_model::{Sizes, Vocabulary, metadata};
use crate::gguf::{TensorData, write};
use crate::quant::Quant;

/// Longest sequence the file promises; training has seen far shorter ones.
const CONTEXT: usize = 4096;

/// Writes a Q8_0 file at `path`, whole or not at all.
///
/// # Errors
/// Those of the file system.
pub fn export(path: &Path, layout: &Layout, params: &[f32], tokenizer: &Tokenizer) -> io::Result<()> {
    let shape = layout.shape;
    let sizes = Sizes {
        context: CONTEXT,
        dim: shape.dim,
        layers: shape.layers,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        ff: shape.ff,
        rope_base: ROPE_BASE,
    };
    let vocabulary = Vocabulary {
        tokens: tokenizer.tokens.clone(),
        merges: tokenizer.merges.iter().map(|(a, b)| format!("{a} {b}")).collect(),
    };
    let tensors: Vec<_> = layout
        .tensors
        .iter()
        .map(|t| {
            let rows = (t.rows > 1).then_some(t.rows);
            TensorData::new(&t.name, rows, t.cols, Quant::Q8_0, &params[t.range()])
        })
        .collect();
    let part = path.with_extension("part");
    let mut out = BufWriter::new(File::create(&part)?);
    write(&mut out, &metadata("Toll Tiny", &sizes, &vocabulary, Quant::Q8_0), &tensors)?;
    out.flush()?;
    fs::rename(part, path)
}
