//! Encodes and decodes streamed answers.

use super::fault::ErrorBody;
use super::response::{AnswerMeta, Extension};
use crate::Operation;
use crate::event::ChatEvent;
use bytes::BytesMut;

/// Writes neutral events as SSE frames.
#[derive(Debug)]
pub struct StreamEncoder {}

impl StreamEncoder {
    /// An encoder of one answer.
    pub fn new(_op: Operation, _meta: AnswerMeta, _include_usage: bool) -> Self {
        todo!()
    }

    /// Appends the frames of this event.
    pub fn encode(&mut self, _event: &ChatEvent, _out: &mut BytesMut) {
        todo!()
    }

    /// Appends the usage chunk, when asked for, and `[DONE]`.
    pub fn finish(&mut self, _extension: Option<&Extension>, _out: &mut BytesMut) {
        todo!()
    }

    /// Appends an error frame; nothing may follow it.
    pub fn error(&mut self, _body: &ErrorBody, _out: &mut BytesMut) {
        todo!()
    }
}
