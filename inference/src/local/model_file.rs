//! What holds for a model's file whichever engine reads it.

use super::engine::LoadError;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Its size in bytes, if it can be a GGUF model: the engines' own words for these cases help nobody.
pub(crate) fn check_gguf(path: &Path) -> Result<u64, LoadError> {
    let unreadable = |error: std::io::Error| LoadError(format!("the file cannot be read: {error}"));
    let file = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => LoadError("the file does not exist".into()),
        _ => unreadable(error),
    })?;
    if file.is_dir() {
        return Err(LoadError("this is a directory; name the GGUF file itself".into()));
    }
    let mut magic = [0; 4];
    let whole = File::open(path).map_err(unreadable)?.read_exact(&mut magic).is_ok();
    match (file.len(), whole && magic == *b"GGUF") {
        (0, _) => Err(LoadError("the file is empty".into())),
        (_, false) => Err(LoadError("the file is not a GGUF model (it does not begin with \"GGUF\")".into())),
        (bytes, true) => Ok(bytes),
    }
}
