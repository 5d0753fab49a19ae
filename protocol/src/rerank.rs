//! The neutral rerank request and answer (`POST /v1/rerank`), as Cohere, Jina, vLLM and llama.cpp's server shape them.

use crate::usage::Usage;

/// A request to order documents by how well they answer a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RerankRequest {
    /// The model or alias the client asked for.
    pub model: String,
    /// What the documents are to answer; never empty.
    pub query: String,
    /// The documents, 1 to 2,048.
    pub documents: Vec<String>,
    /// How many of the best to name; `None` is all.
    pub top_n: Option<u32>,
    /// Whether the answer repeats the documents.
    pub return_documents: bool,
}

/// How relevant each document is, in the order of the request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RerankResponse {
    /// One number a document, from 0 to 1; higher is more relevant.
    pub scores: Vec<f32>,
    /// Token counts.
    pub usage: Usage,
}

impl RerankResponse {
    /// The documents' places in the request with their scores: the best first, equal ones in the order of the request, at most `top_n`.
    pub fn ranked(&self, top_n: Option<u32>) -> Vec<(usize, f32)> {
        let mut ranked: Vec<(usize, f32)> = self.scores.iter().copied().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(top_n.map_or(usize::MAX, |most| most as usize));
        ranked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_equals_keep_their_order() {
        let answer = RerankResponse { scores: vec![0.1, 0.7, 0.1, 0.9], usage: Usage::default() };
        assert_eq!(answer.ranked(None), [(3, 0.9), (1, 0.7), (0, 0.1), (2, 0.1)]);
        assert_eq!(answer.ranked(Some(2)), [(3, 0.9), (1, 0.7)]);
        assert_eq!(answer.ranked(Some(9)).len(), 4);
    }
}
