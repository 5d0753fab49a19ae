//! The tokenizer of a model, kept from one load to the next: reading a vocabulary takes longer than many a swap may.

use super::engine::{LoadError, Tokenizer};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Tells whether a file is still the one that was read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    bytes: u64,
    modified: SystemTime,
}

impl Stamp {
    /// `None` where there is no such file.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        Some(Self { bytes: file.len(), modified: file.modified().ok()? })
    }
}

/// The tokenizer of the last load. It serves the next one too as long as the model's file stays the same.
#[derive(Clone, Default)]
pub struct KeptVocabulary(Arc<Mutex<Option<Kept>>>);

struct Kept {
    of: Stamp,
    tokenizer: Arc<dyn Tokenizer>,
}

impl KeptVocabulary {
    /// The tokenizer for this file, read only if the one that is kept is for another.
    pub(crate) fn tokenizer(
        &self,
        path: &Path,
        read: impl FnOnce() -> Result<Arc<dyn Tokenizer>, LoadError>,
    ) -> Result<Arc<dyn Tokenizer>, LoadError> {
        let stamp = Stamp::of(path);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*kept, stamp) {
            (Some(kept), Some(stamp)) if kept.of == stamp => return Ok(kept.tokenizer.clone()),
            _ => *kept = None,
        }
        let tokenizer = read()?;
        *kept = stamp.map(|of| Kept { of, tokenizer: tokenizer.clone() });
        Ok(tokenizer)
    }
}

impl fmt::Debug for KeptVocabulary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KeptVocabulary")
    }
}

#[cfg(test)]
mod tests {
    use super::super::engine::{LoadPlan, tokenizer};
    use super::*;
    use tollkeeper_config::{EngineKind, LocalModel};

    #[test]
    fn a_vocabulary_is_read_again_only_when_the_file_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.json");
        std::fs::write(&path, "{}").unwrap();
        let plan = LoadPlan::new(Arc::new(LocalModel::plain("m", EngineKind::Scripted, path.clone())));
        let first = tokenizer(&plan).unwrap();
        assert!(Arc::ptr_eq(&first, &tokenizer(&plan.clone()).unwrap()));
        std::fs::write(&path, "{ }").unwrap();
        assert!(!Arc::ptr_eq(&first, &tokenizer(&plan).unwrap()));
        std::fs::remove_file(&path).unwrap();
        let gone = tokenizer(&plan).unwrap();
        assert!(!Arc::ptr_eq(&gone, &tokenizer(&plan).unwrap()), "what has no file is not kept");
    }
}
