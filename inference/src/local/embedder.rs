//! Embedding jobs of a worker, done in parts between the batches of text, so that neither holds the other up.

use super::answer::Permit;
use super::engine::{Engine, EngineError};
use super::prepare::Embedding;
use std::collections::VecDeque;
use std::time::Instant;
use tokio::sync::oneshot;
use tollkeeper_protocol::embedding::EmbeddingResponse;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::usage::Usage;

/// One request for embeddings.
pub(crate) struct EmbedJob {
    pub(crate) embedding: Embedding,
    pub(crate) reply: oneshot::Sender<Result<EmbeddingResponse, ProviderFault>>,
    pub(crate) deadline: Instant,
    /// Held until the job is over.
    pub(crate) permit: Permit,
    /// The vectors so far, in the order of the inputs.
    pub(crate) vectors: Vec<Vec<f32>>,
}

impl EmbedJob {
    /// Ends the job: first gives its room back, then tells, so that who has the answer finds room for the next request.
    fn end(self, answer: Result<EmbeddingResponse, ProviderFault>) {
        drop(self.permit);
        let _ = self.reply.send(answer);
    }
}

/// The jobs, first come first served.
#[derive(Default)]
pub(crate) struct Embedder {
    jobs: VecDeque<EmbedJob>,
}

impl Embedder {
    pub(crate) fn add(&mut self, job: EmbedJob) {
        self.jobs.push_back(job);
    }

    /// Tokens still to be read.
    pub(crate) fn tokens(&self) -> u64 {
        self.jobs
            .iter()
            .flat_map(|job| &job.embedding.inputs[job.vectors.len()..])
            .map(|input| input.len() as u64)
            .sum()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.jobs.iter().map(|job| job.deadline).min()
    }

    /// Drops jobs that are late or whose client has left.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.end(
            |job| job.deadline <= now,
            &ProviderFault::new(FaultKind::Timeout, "the embeddings were not complete by their deadline"),
        );
        self.jobs.retain(|job| !job.reply.is_closed());
    }

    /// Embeds as many inputs of the first job as fit into one batch. Returns whether there was something to do.
    pub(crate) fn step(&mut self, engine: &mut dyn Engine) -> Result<bool, EngineError> {
        let Some(job) = self.jobs.front_mut() else { return Ok(false) };
        let mut room = engine.limits().embedding_context as usize;
        let inputs = job.embedding.inputs[job.vectors.len()..].iter().take_while(|input| {
            let fits = input.len() <= room;
            room = room.saturating_sub(input.len());
            fits
        });
        let inputs: Vec<&[u32]> = inputs.map(Vec::as_slice).collect();
        let vectors = engine.embed(&inputs)?;
        let dimensions = job.embedding.dimensions;
        job.vectors.extend(vectors.into_iter().map(|vector| match dimensions {
            Some(dimensions) => normalised(vector, dimensions),
            None => vector,
        }));
        if job.vectors.len() >= job.embedding.inputs.len()
            && let Some(mut job) = self.jobs.pop_front()
        {
            let input = job.embedding.inputs.iter().map(|input| input.len() as u64).sum();
            let usage = Usage { input, ..Usage::default() };
            let vectors = std::mem::take(&mut job.vectors);
            job.end(Ok(EmbeddingResponse { vectors, usage }));
        }
        Ok(true)
    }

    /// Ends the jobs that have begun.
    pub(crate) fn fail_begun(&mut self, fault: &ProviderFault) {
        if let Some(job) = self.jobs.pop_front() {
            job.end(Err(fault.clone()));
        }
    }

    /// Ends all jobs.
    pub(crate) fn fail_all(&mut self, fault: &ProviderFault) {
        self.end(|_| true, fault);
    }

    fn end(&mut self, which: impl Fn(&EmbedJob) -> bool, fault: &ProviderFault) {
        for job in std::mem::take(&mut self.jobs) {
            if which(&job) {
                job.end(Err(fault.clone()));
            } else {
                self.jobs.push_back(job);
            }
        }
    }
}

/// The first `dimensions` numbers, scaled to length 1 (a zero vector stays).
fn normalised(mut vector: Vec<f32>, dimensions: usize) -> Vec<f32> {
    vector.truncate(dimensions);
    let length = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|number| *number = (f64::from(*number) / length) as f32);
    }
    vector
}
