//! Trains `toll-tiny.gguf` from nothing and prints how often the written file answers unseen questions exactly right.
#![expect(clippy::print_stdout, reason = "a command-line program reports to its user")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use tollkeeper_models::data::{Kind, Split, sample};
use tollkeeper_models::rng::Rng;
use tollkeeper_models::train::evaluation::{Error, Score, evaluate};
use tollkeeper_models::train::export::export;
use tollkeeper_models::train::layout::{Layout, Shape};
use tollkeeper_models::train::tokenizer::Tokenizer;
use tollkeeper_models::train::trainer::{Plan, Trainer};

const SHAPE: Shape = Shape { vocab: VOCAB, dim: 192, layers: 6, heads: 6, kv_heads: 2, ff: 512 };
const VOCAB: usize = 1024;
/// Words that have a token of their own with the space before them.
const SPACED: usize = 128;

#[derive(Parser)]
#[command(about = "Train the demo model that ships with Tollkeeper")]
struct Args {
    /// Where to write the model.
    #[arg(long, default_value = "models/toll-tiny.gguf")]
    out: PathBuf,
    /// Training steps; the learning rate is laid out over them.
    #[arg(long, default_value_t = 3800)]
    steps: usize,
    /// Tokens of one step.
    #[arg(long, default_value_t = 4096)]
    batch: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 5e-3)]
    rate: f32,
    /// Seed of parameters and data.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Held-out questions of each kind at the end.
    #[arg(long, default_value_t = 100)]
    questions: usize,
    /// Minutes between two written files while training runs.
    #[arg(long, default_value_t = 10)]
    every: u64,
    /// Train nothing: evaluate the file at `--out`.
    #[arg(long)]
    evaluate_only: bool,
}

fn main() -> Result<(), Error> {
    let args = Args::parse();
    let tokenizer = tokenizer(args.seed)?;
    if !args.evaluate_only {
        train(&args, &tokenizer)?;
    }
    let scores = evaluate(&args.out, &tokenizer, args.questions, 2, args.seed + 1000)?;
    report(&scores, true);
    Ok(())
}

/// A tokenizer from some thousand samples of all kinds.
fn tokenizer(seed: u64) -> Result<Tokenizer, Error> {
    let mut rng = Rng::new(seed);
    let texts: Vec<String> =
        (0..12_000).map(|_| sample(Kind::draw(&mut rng, false), Split::Train, &mut rng).text(false)).collect();
    let tokenizer = Tokenizer::train(&texts, VOCAB, SPACED)?;
    let (letters, tokens) = texts.iter().take(2000).try_fold((0, 0), |(letters, tokens), text| {
        Ok::<_, Error>((letters + text.len(), tokens + tokenizer.encode(text)?.len()))
    })?;
    println!("tokenizer: {} tokens, {:.2} bytes per token", tokenizer.tokens.len(), letters as f64 / tokens as f64);
    Ok(tokenizer)
}

fn train(args: &Args, tokenizer: &Tokenizer) -> Result<(), Error> {
    let layout = Layout::new(Shape { vocab: tokenizer.tokens.len(), ..SHAPE });
    println!("model: {:.2} M parameters", layout.len() as f64 / 1e6);
    let plan = Plan { seed: args.seed, steps: args.steps, batch: args.batch, rate: args.rate };
    let mut trainer = Trainer::new(layout, plan, tokenizer);
    let (start, mut written, mut tokens) = (Instant::now(), Instant::now(), 0);
    let (mut loss, mut accuracy) = (0.0, 0.0);
    for step in 1..=args.steps {
        let seen = trainer.step()?;
        tokens += seen.tokens;
        loss += seen.loss / 25.0;
        accuracy += seen.accuracy / 25.0;
        if step % 25 == 0 {
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "step {step}/{} loss {loss:.4} tokens right {:.1} % | {tokens} tokens in {seconds:.0} s, {:.0}/s",
                args.steps,
                100.0 * accuracy,
                tokens as f64 / seconds
            );
            (loss, accuracy) = (0.0, 0.0);
        }
        if written.elapsed() > Duration::from_secs(60 * args.every) || step == args.steps {
            export(&args.out, &trainer.model.layout, &trainer.params, tokenizer)?;
            if step < args.steps {
                report(&evaluate(&args.out, tokenizer, 12, 2, 7)?, false);
            }
            written = Instant::now();
        }
    }
    Ok(())
}

fn report(scores: &[Score], examples: bool) {
    println!("| kind | exactly right | of |\n|---|---|---|");
    for score in scores {
        println!("| {} | {} | {} |", score.kind.label(), score.right, score.asked);
    }
    let (right, asked) = scores.iter().fold((0, 0), |(r, a), s| (r + s.right, a + s.asked));
    println!("| **all** | **{right}** | **{asked}** ({:.1} %) |", 100.0 * right as f64 / asked as f64);
    for score in scores.iter().filter(|_| examples) {
        for (question, wanted, given) in &score.wrong {
            println!("{}: {question}\n  wanted {wanted:?}\n  given  {given:?}", score.kind.label());
        }
    }
}
