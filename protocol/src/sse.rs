//! A bounded decoder of server-sent events that keeps every byte.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// A frame grew beyond the decoder's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a server-sent event is longer than {limit} bytes")]
pub struct SseTooLong {
    /// The limit in bytes.
    pub limit: usize,
}

/// One event with its exact bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseFrame {
    /// The exact bytes, the blank line at the end included.
    pub raw: Bytes,
    /// The value of the `event` field.
    pub event: Option<Bytes>,
    /// The `data` lines, joined by line feeds; empty for comments.
    pub data: Bytes,
}

/// Cuts a byte stream into frames.
#[derive(Debug)]
pub struct SseDecoder {
    limit: usize,
    partial: BytesMut,
    ready: VecDeque<Bytes>,
}

impl SseDecoder {
    /// A decoder that refuses frames of more than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, partial: BytesMut::new(), ready: VecDeque::new() }
    }

    /// Takes the next bytes in.
    pub fn push(&mut self, _chunk: &Bytes) -> Result<(), SseTooLong> {
        todo!()
    }

    /// The next whole frame.
    pub fn next_frame(&mut self) -> Option<SseFrame> {
        todo!()
    }

    /// At the end of the stream: the last frame even if its blank line is missing.
    pub fn finish(&mut self) -> Option<SseFrame> {
        todo!()
    }
}
