//! OpenAI's dialect: chat completions, text completions, embeddings, reranking, their streams and their errors.

mod decode;
mod fault;
mod fields;
mod message;
mod request;
mod rerank;
mod response;
mod sampling;
mod stream;
mod tool;
mod wire;

pub use decode::{StreamDecoder, decode_answer};
pub use fault::{ErrorBody, decode_error};
pub use request::decode_request;
pub use rerank::encode_rerank;
pub use response::{AnswerMeta, Extension, Stopped, encode_chat, encode_completion, encode_embeddings, extend_usage};
pub use stream::StreamEncoder;
