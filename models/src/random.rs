//! Llama-architecture files of any size with random weights, for tests of loading, swapping and throughput.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::chat_model::{Sizes, Vocabulary, metadata};
use crate::gguf::{TensorInfo, Value, write_streamed};
use crate::quant::Quant;
use crate::rng::Rng;

/// What kind of file to make. [`Recipe::default`] is a chat model of 0.2 M weights.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream; a multiple of `heads`.
    pub dim: usize,
    /// Query heads; `dim / heads` must be even.
    pub heads: usize,
    /// Key/value heads; they divide `heads`.
    pub kv_heads: usize,
    /// Width of the feed-forward layer.
    pub ff: usize,
    /// Longest sequence that engines accept, in tokens.
    pub context: usize,
    /// Size of the vocabulary; [`Vocabulary::sized`] fits `vocabulary` to it.
    pub vocab: usize,
    /// The tokens to start from: [`Vocabulary::bytes`], or those of another file by [`Vocabulary::of`].
    pub vocabulary: Vocabulary,
    /// How matrices are stored. Rows that do not fill whole blocks of 32 are stored as F32.
    pub quant: Quant,
    /// Decides every weight.
    pub seed: u64,
    /// Layers from this one on say so much less than the others: at 0 the model writes exactly what one without them would, at 1 (the default)
    /// they are like the others. The same seed gives all such models, with these layers and without, the same weights otherwise.
    pub quiet: (usize, f32),
    /// Marks the file as an embedding model: engines average the last states of all tokens.
    pub embedding: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            layers: 2,
            dim: 64,
            heads: 4,
            kv_heads: 2,
            ff: 160,
            context: 1024,
            vocab: 512,
            vocabulary: Vocabulary::bytes(),
            quant: Quant::Q8_0,
            seed: 1,
            quiet: (0, 1.0),
            embedding: false,
        }
    }
}

/// Why no file was made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sizes do not make a model.
    #[error("these sizes make no model: {0}")]
    Sizes(String),
    /// The file could not be written.
    #[error("cannot write the model: {0}")]
    Io(#[from] io::Error),
}

impl Recipe {
    /// Number of weights, norms and embedding included.
    pub fn weights(&self) -> usize {
        self.tensors().iter().map(TensorInfo::len).sum()
    }

    /// Writes the file, whole or not at all. Memory use does not grow with the model.
    ///
    /// # Errors
    /// [`Error::Sizes`] where the sizes contradict each other, [`Error::Io`] where the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        self.check()?;
        let part = path.with_extension("part");
        let mut out = BufWriter::new(File::create(&part)?);
        let mut rng = Rng::new(self.seed);
        write_streamed(&mut out, &self.metadata(), &self.tensors(), |tensor, out| {
            fill(tensor, self.strength(tensor), &mut rng, out)
        })?;
        out.flush()?;
        fs::rename(part, path)?;
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        let sizes = [self.layers, self.dim, self.heads, self.kv_heads, self.ff, self.context];
        let problem = if sizes.contains(&0) {
            "every size must be at least 1".to_owned()
        } else if !self.dim.is_multiple_of(2 * self.heads) {
            format!("the width {} must be an even number for each of the {} heads", self.dim, self.heads)
        } else if !self.heads.is_multiple_of(self.kv_heads) {
            format!("{} key/value heads cannot share {} heads", self.kv_heads, self.heads)
        } else {
            return Ok(());
        };
        Err(Error::Sizes(problem))
    }

    /// What a tensor's weights are multiplied with: a layer adds to the text's state what these two matrices let through.
    fn strength(&self, tensor: &TensorInfo) -> f32 {
        let layer = tensor.name.strip_prefix("blk.").and_then(|name| name.split_once('.'));
        let Some((layer, "attn_output.weight" | "ffn_down.weight")) = layer else { return 1.0 };
        let (from, strength) = self.quiet;
        if layer.parse().is_ok_and(|layer: usize| layer >= from) { strength } else { 1.0 }
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let sizes = Sizes {
            context: self.context,
            dim: self.dim,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            ff: self.ff,
            rope_base: 10_000.0,
        };
        let mut metadata = metadata("random weights", &sizes, &self.vocabulary.clone().sized(self.vocab), self.quant);
        if self.embedding {
            // 1 is the mean over all tokens.
            metadata.push(("llama.pooling_type".to_owned(), Value::U32(1)));
        }
        metadata
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        let kv = self.dim / self.heads * self.kv_heads;
        let (dim, ff) = (self.dim, self.ff);
        let vocab = self.vocabulary.clone().sized(self.vocab).tokens.len();
        let matrix = |name: String, rows, cols| TensorInfo::new(name, Some(rows), cols, self.quant);
        let norm = |name: String| TensorInfo::new(name, None, dim, self.quant);
        let mut tensors = vec![
            matrix("token_embd.weight".to_owned(), vocab, dim),
            matrix("output.weight".to_owned(), vocab, dim),
            norm("output_norm.weight".to_owned()),
        ];
        for layer in 0..self.layers {
            tensors.extend(["attn_norm", "ffn_norm"].map(|part| norm(format!("blk.{layer}.{part}.weight"))));
            let parts = [
                ("attn_q", dim, dim),
                ("attn_k", kv, dim),
                ("attn_v", kv, dim),
                ("attn_output", dim, dim),
                ("ffn_gate", ff, dim),
                ("ffn_up", ff, dim),
                ("ffn_down", dim, ff),
            ];
            tensors.extend(parts.map(|(part, rows, cols)| matrix(format!("blk.{layer}.{part}.weight"), rows, cols)));
        }
        tensors
    }
}

/// Writes the weights of one tensor row by row: norms are 1, the rest has variance 1/width.
fn fill(tensor: &TensorInfo, strength: f32, rng: &mut Rng, out: &mut impl Write) -> io::Result<()> {
    let Some(rows) = tensor.rows else {
        return out.write_all(&tensor.quant.encode(&vec![1.0; tensor.cols]));
    };
    let spread = strength * (12.0 / tensor.cols as f32).sqrt();
    let mut row = vec![0.0; tensor.cols];
    for _ in 0..rows {
        row.iter_mut().for_each(|weight| *weight = spread * (rng.unit() - 0.5));
        out.write_all(&tensor.quant.encode(&row))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::read_header;

    fn made(recipe: &Recipe) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        recipe.write(&path).unwrap();
        fs::read(path).unwrap()
    }

    #[test]
    fn every_quantisation_gives_a_file_of_the_size_its_tensors_need() {
        for quant in [Quant::F32, Quant::F16, Quant::Q4_0, Quant::Q8_0] {
            let recipe = Recipe { quant, ..Recipe::default() };
            let file = made(&recipe);
            let header = read_header(&mut file.as_slice()).unwrap();
            assert_eq!(header.tensors.len(), 3 + 2 * 9);
            let counted: u64 = header.tensors.iter().map(|(_, sizes, ..)| sizes.iter().product::<u64>()).sum();
            assert_eq!(counted, recipe.weights() as u64);
            let last = recipe.tensors().pop().unwrap();
            let data: u64 = header.tensors.last().unwrap().3 + last.quant.stored(last.len()) as u64;
            let head = file.len() as u64 - data.next_multiple_of(32);
            assert!(head.is_multiple_of(32) && head < 64 << 10, "{quant:?}: {head} bytes before the weights");
        }
    }

    #[test]
    fn the_seed_decides_the_bytes() {
        let recipe = Recipe::default();
        assert_eq!(made(&recipe), made(&recipe.clone()));
        assert_ne!(made(&recipe), made(&Recipe { seed: 2, ..recipe }));
    }

    #[test]
    fn quiet_layers_let_nothing_through_and_change_nothing_else() {
        let whole = Recipe { layers: 3, quant: Quant::F32, ..Recipe::default() };
        let quiet = Recipe { quiet: (2, 0.0), ..whole.clone() };
        let (whole, quiet) = (made(&whole), made(&quiet));
        let words =
            |file: &[u8]| file.chunks_exact(4).map(|word| word.try_into().unwrap()).map(u32::from_le_bytes).collect();
        let (whole, quiet): (Vec<u32>, Vec<u32>) = (words(&whole), words(&quiet));
        let zero = |word: u32| word << 1 == 0;
        assert!(whole.iter().zip(&quiet).all(|(a, b)| a == b || zero(*b)));
        let zeros = |words: &[u32]| words.iter().filter(|word| zero(**word)).count();
        let silenced = 64 * 64 + 64 * 160;
        assert!((silenced..silenced + 100).contains(&(zeros(&quiet) - zeros(&whole))));
    }

    #[test]
    fn a_vocabulary_grows_shrinks_and_keeps_its_bytes() {
        let mut vocabulary = Vocabulary::bytes();
        assert_eq!(vocabulary.tokens[3 + usize::from(b' ')], "\u{120}");
        vocabulary.tokens.extend(["ab", "abc"].map(str::to_owned));
        vocabulary.merges = vec!["a b".to_owned(), "ab c".to_owned()];
        assert_eq!(vocabulary.clone().sized(300).tokens.len(), 300);
        let cut = vocabulary.clone().sized(260);
        assert_eq!((cut.tokens.len(), cut.merges), (260, vec!["a b".to_owned()]));
        assert_eq!(vocabulary.sized(0), Vocabulary::bytes());
    }

    #[test]
    fn contradicting_sizes_are_refused() {
        for recipe in [
            Recipe { heads: 3, ..Recipe::default() },
            Recipe { kv_heads: 3, ..Recipe::default() },
            Recipe { layers: 0, ..Recipe::default() },
        ] {
            assert!(matches!(recipe.write(Path::new("/nowhere/model.gguf")), Err(Error::Sizes(_))));
        }
    }

    #[test]
    fn the_shipped_model_lends_its_vocabulary() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("toll-tiny.gguf");
        let header = read_header(&mut io::BufReader::new(File::open(path).unwrap())).unwrap();
        let vocabulary = Vocabulary::of(&header).unwrap();
        assert_eq!(vocabulary.tokens[..3], ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
        assert_eq!(header.get("tokenizer.chat_template"), Some(&Value::Text(crate::data::TEMPLATE.to_owned())));
        let recipe = Recipe { vocab: vocabulary.tokens.len(), vocabulary, embedding: true, ..Recipe::default() };
        let header = read_header(&mut made(&recipe).as_slice()).unwrap();
        assert_eq!(header.get("llama.pooling_type"), Some(&Value::U32(1)));
        assert_eq!(Vocabulary::of(&header), Some(recipe.vocabulary));
    }
}
