//! The requests of a simulation.

use super::table::{self, TableError};
use crate::ask::Ask;
use serde::{Deserialize, Serialize};
use tollkeeper_protocol::Operation;

/// What a prompt is estimated at for so many tokens: English has about four bytes in one, and estimates reckon with three.
pub(super) fn padded(tokens: u64) -> u64 {
    tokens * 4 / 3
}

/// A request: one row of a trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// When it comes, in milliseconds since the trace's start.
    pub at_ms: u64,
    /// The type of its task, for the reader.
    pub task: String,
    /// Tokens of its prompt.
    pub input: u64,
    /// The conversation, or the crowd of prompts that begin alike, that it belongs to.
    pub session: u64,
    /// Tokens at its beginning that whoever answered earlier ones of its session has read.
    pub shared: u64,
    /// Tokens of its answer.
    pub output: u64,
    /// The most that the client allows for.
    #[serde(default)]
    pub max_output: Option<u64>,
    /// How hard the classifier takes it for, 0 to 1.
    pub difficulty: f32,
    /// The lowest tier whose answer is good enough.
    pub needs_tier: u8,
    /// The lowest tier that the request allows for; often because its type of task says so.
    #[serde(default)]
    pub min_tier: Option<u8>,
    /// When its answer has to be whole, in milliseconds after it came.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
}

impl Request {
    /// Reads a trace from CSV with the names of the fields in its first line; what is optional may be empty. Rows are put in order of time.
    ///
    /// # Errors
    /// The first row that cannot be read.
    pub fn read_csv(bytes: &[u8]) -> Result<Vec<Self>, TableError> {
        let mut trace: Vec<Self> = table::read(bytes)?.into_iter().map(|(_, request)| request).collect();
        trace.sort_by_key(|request| request.at_ms);
        Ok(trace)
    }

    /// The trace as [`Request::read_csv`] reads it.
    pub fn write_csv(trace: &[Self]) -> Vec<u8> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for request in trace {
            // Memory takes everything.
            let _ = writer.serialize(request);
        }
        writer.into_inner().unwrap_or_default()
    }

    /// What the router would read of it.
    pub(super) fn ask(&self, usual_output: Option<u64>) -> Ask {
        Ask {
            operation: Operation::Chat,
            input_tokens: padded(self.input),
            longest_input: padded(self.input),
            answers: 1,
            max_output: self.max_output,
            usual_output,
            tools: false,
            vision: false,
            images: 0,
            unread: 0,
            json_schema: false,
            stream: true,
        }
    }
}
