//! A GGUF file opened for candle: its metadata, and the checks that candle leaves out.

use super::said;
use crate::local::engine::{LoadError, LoadPlan};
use crate::local::model_file::check_gguf;
use candle_core::quantized::gguf_file::{Content, Value};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An opened file: what its header says, and where its tensors are read from.
pub(super) struct Gguf {
    pub(super) content: Content,
    pub(super) reader: Reader,
}

/// Reads until the model is not wanted any more: candle itself loads without a pause.
pub(super) struct Reader {
    file: BufReader<File>,
    stop: Arc<AtomicBool>,
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("the model is not wanted any more"));
        }
        self.file.read(into)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Gguf {
    /// Reads the header, and checks that the file holds all the tensors it speaks of.
    pub(super) fn open(plan: &LoadPlan) -> Result<Self, LoadError> {
        let path: &Path = &plan.model.path;
        let bytes = check_gguf(path)?;
        let file = File::open(path).map_err(|error| LoadError(format!("the file cannot be read: {error}")))?;
        let mut reader = Reader { file: BufReader::new(file), stop: plan.stop.clone() };
        let content = Content::read(&mut reader).map_err(|error| {
            LoadError(format!(
                "candle cannot read the file's header (it may be cut, or newer than candle): {}",
                said(&error)
            ))
        })?;
        let ends = content.tensor_infos.values().map(|tensor| {
            let blocks = tensor.shape.elem_count() / tensor.ggml_dtype.block_size();
            let size = blocks.saturating_mul(tensor.ggml_dtype.type_size()) as u64;
            content.tensor_data_offset.saturating_add(tensor.offset).saturating_add(size)
        });
        match ends.max() {
            Some(end) if end > bytes => {
                Err(LoadError(format!("the file is cut: it has {bytes} of at least {end} bytes; fetch it again")))
            }
            _ => Ok(Self { content, reader }),
        }
    }

    /// Its metadata.
    pub(super) fn metadata(&self) -> Metadata<'_> {
        Metadata(&self.content.metadata)
    }

    /// Overrides a number of the metadata, where candle would make more of it than is wanted.
    pub(super) fn set(&mut self, key: String, number: u32) {
        self.content.metadata.insert(key, Value::U32(number));
    }
}

/// The key-value pairs of a file. A value of another type than asked for counts as absent.
#[derive(Clone, Copy)]
pub(super) struct Metadata<'a>(&'a HashMap<String, Value>);

impl<'a> Metadata<'a> {
    pub(super) fn text(self, key: &str) -> Option<&'a str> {
        match self.0.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn number(self, key: &str) -> Option<u32> {
        match self.0.get(key)? {
            Value::I32(number) => u32::try_from(*number).ok(),
            number => u32::try_from(number.to_u64().ok()?).ok(),
        }
    }

    pub(super) fn flag(self, key: &str) -> Option<bool> {
        self.0.get(key)?.to_bool().ok()
    }

    /// The items of a list that `read` understands; empty when there is no list.
    pub(super) fn list<T>(self, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Vec<T> {
        match self.0.get(key) {
            Some(Value::Array(items)) => items.iter().filter_map(read).collect(),
            _ => Vec::new(),
        }
    }

    pub(super) fn texts(self, key: &str) -> Vec<&'a str> {
        self.list(key, |item| match item {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }
}
