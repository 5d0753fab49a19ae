//! The trainer of `toll-tiny.gguf`: tokenizer, model with hand-written gradients, optimiser, evaluation and export.

pub mod evaluation;
pub mod export;
pub mod kernels;
pub mod layout;
pub mod model;
pub mod optimiser;
pub mod tokenizer;
pub mod trainer;
