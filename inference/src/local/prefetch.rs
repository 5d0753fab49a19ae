//! Brings a file into the page cache, so that loading it does not wait for the disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Readers at once: one alone does not keep a disk busy.
const READERS: usize = 4;
const PIECE: u64 = 4 << 20;

/// Begins to read the file, in the background and once. That it cannot be read is for the load to say.
pub(crate) fn begin(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    let Ok(length) = file.metadata().map(|metadata| metadata.len()) else { return };
    let (file, next) = (Arc::new(file), Arc::new(AtomicU64::new(0)));
    for _ in 0..READERS.min(length.div_ceil(PIECE) as usize) {
        let (file, next) = (file.clone(), next.clone());
        let reader = move || {
            let mut piece = vec![0; PIECE as usize];
            loop {
                let from = next.fetch_add(PIECE, Ordering::Relaxed);
                if from >= length || file.read_at(&mut piece, from).is_err() {
                    return;
                }
            }
        };
        // Without a thread the load reads the file itself.
        drop(std::thread::Builder::new().name("prefetch".into()).spawn(reader));
    }
}
