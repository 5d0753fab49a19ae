//! Writes a Llama-architecture GGUF file of the asked size with random weights.
#![expect(clippy::print_stdout, reason = "a command-line program reports to its user")]

use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use clap::Parser;
use tollkeeper_models::chat_model::Vocabulary;
use tollkeeper_models::gguf::read_header;
use tollkeeper_models::projector::{Kind, Projector};
use tollkeeper_models::quant::Quant;
use tollkeeper_models::random::Recipe;
use tollkeeper_models::reranker::Reranker;

#[derive(Parser)]
#[command(about = "Write a GGUF file with random weights, for load and throughput tests")]
struct Args {
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// Transformer blocks.
    #[arg(long, default_value_t = 2)]
    layers: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 64)]
    dim: usize,
    /// Query heads.
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// Key/value heads.
    #[arg(long, default_value_t = 2)]
    kv_heads: usize,
    /// Width of the feed-forward layer.
    #[arg(long, default_value_t = 160)]
    ff: usize,
    /// Longest sequence, in tokens.
    #[arg(long, default_value_t = 1024)]
    context: usize,
    /// Size of the vocabulary.
    #[arg(long, default_value_t = 512)]
    vocab: usize,
    /// Take the tokens of this GGUF file instead of plain bytes.
    #[arg(long)]
    tokens_of: Option<PathBuf>,
    /// How the matrices are stored.
    #[arg(long, value_enum, default_value_t = Quant::Q8_0)]
    quant: Quant,
    /// Decides every weight.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Layers from this one on say `--quiet-strength` of what the others do.
    #[arg(long, default_value_t = 0)]
    quiet_from: usize,
    /// At 0 the model writes what one with only the layers before would (`--layers` with the same seed): a draft that is always right.
    #[arg(long, default_value_t = 1.0)]
    quiet_strength: f32,
    /// Make an embedding model.
    #[arg(long)]
    embedding: bool,
    /// Make a reranker: a BERT whose tokens are bytes, with F32 weights. `--kv-heads`, `--vocab`, `--tokens-of` and `--quant` do not apply.
    #[arg(long, conflicts_with_all = ["embedding", "tokens_of"])]
    reranker: bool,
    /// Make a LLaVA projector for a text model of this width, with F32 weights. `--kv-heads`, `--context`, `--vocab`, `--tokens-of` and
    /// `--quant` do not apply.
    #[arg(long, value_name = "WIDTH", conflicts_with_all = ["embedding", "tokens_of", "reranker"])]
    projector: Option<usize>,
    /// Pixels of a picture's side, for a projector.
    #[arg(long, default_value_t = 224)]
    image: usize,
    /// Pixels of a patch's side, for a projector.
    #[arg(long, default_value_t = 16)]
    patch: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if let Some(text) = args.projector {
        let Args { layers, dim, heads, ff, image, patch, seed, .. } = args;
        Projector { kind: Kind::Llava, text, layers, dim, heads, ff, image, patch, seed }.write(&args.out)?;
        println!("{}: {:.2} MB", args.out.display(), std::fs::metadata(&args.out)?.len() as f64 / 1e6);
        return Ok(());
    }
    if args.reranker {
        let Args { layers, dim, heads, ff, context, seed, .. } = args;
        Reranker { layers, dim, heads, ff, context, seed }.write(&args.out)?;
        println!("{}: {:.2} MB", args.out.display(), std::fs::metadata(&args.out)?.len() as f64 / 1e6);
        return Ok(());
    }
    let vocabulary = match &args.tokens_of {
        None => Vocabulary::bytes(),
        Some(path) => {
            let header = read_header(&mut BufReader::new(File::open(path)?))?;
            Vocabulary::of(&header).ok_or("that file has no byte-level vocabulary")?
        }
    };
    let recipe = Recipe {
        layers: args.layers,
        dim: args.dim,
        heads: args.heads,
        kv_heads: args.kv_heads,
        ff: args.ff,
        context: args.context,
        vocab: args.vocab,
        vocabulary,
        quant: args.quant,
        seed: args.seed,
        quiet: (args.quiet_from, args.quiet_strength),
        embedding: args.embedding,
    };
    recipe.write(&args.out)?;
    let size = std::fs::metadata(&args.out)?.len();
    println!("{}: {:.2} M weights, {:.2} MB", args.out.display(), recipe.weights() as f64 / 1e6, size as f64 / 1e6);
    Ok(())
}
