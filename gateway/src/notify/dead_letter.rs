//! The file of notices that could not be delivered: JSON lines, bounded by turning it into the older of two files.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tollkeeper_config::Notify;

/// Writes one at a time.
#[derive(Debug, Default, Clone)]
pub(super) struct DeadLetters(Arc<Mutex<()>>);

impl DeadLetters {
    /// Appends whole lines, on a thread that may wait for a disk.
    ///
    /// # Errors
    /// The file or its folder cannot be made or written.
    pub(super) async fn append(&self, settings: Arc<Notify>, lines: String) -> io::Result<()> {
        let one_at_a_time = self.0.clone();
        let write = move || {
            let _alone = one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
            append(&settings.dead_letter, settings.dead_letter_limit, &lines)
        };
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
    }
}

fn append(path: &Path, limit: u64, lines: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let size = fs::metadata(path).map_or(0, |file| file.len());
    if size > 0 && size.saturating_add(lines.len() as u64) > limit {
        fs::rename(path, older(path))?;
    }
    // What agents spend is nobody else's business.
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)?.write_all(lines.as_bytes())
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_becomes_the_older_one_and_there_is_one_of_those() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/notices.jsonl");
        let lines = |number: u32| format!("{number}{}\n", "x".repeat(38));
        (0..7).for_each(|number| append(&path, 100, &lines(number)).unwrap());
        let firsts = |path: &Path| {
            let text = fs::read_to_string(path).unwrap();
            text.lines().map(|line| line[..1].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!((firsts(&older(&path)), firsts(&path)), (vec!["4".into(), "5".into()], vec!["6".to_owned()]));
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 2);
        append(&path, 10, &lines(7)).unwrap();
        assert_eq!((firsts(&older(&path)), firsts(&path)), (vec!["6".to_owned()], vec!["7".to_owned()]));
    }
}
