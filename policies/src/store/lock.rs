//! One gateway per ledger: a lock file that names its holder.

use crate::OpenError;
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Held as long as it lives, and freed by the system when the process dies. The file stays behind: removing it would
/// let two processes lock two files of one name.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Drop for Lock {
    /// A child that is being started shares the file until it runs its own program, and would keep the lock so long.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::debug!(%error, "the ledger's lock is freed by closing its file");
        }
    }
}

impl Lock {
    /// Locks `<ledger>.lock`, through whichever path the ledger is named.
    pub(crate) fn take(ledger: &Path) -> Result<Self, OpenError> {
        let failed = |cause: std::io::Error| OpenError::Store {
            place: ledger.into(),
            reason: format!("its lock file {} cannot be used: {cause}", lock_path(ledger).display()),
        };
        let options = File::options().create(true).truncate(false).read(true).write(true).clone();
        let mut file = options.open(lock_path(ledger)).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let known = file.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
                let pid = if known { pid.trim().to_owned() } else { "unknown".to_owned() };
                return Err(OpenError::Locked { place: ledger.into(), pid });
            }
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { file })
    }
}

fn lock_path(ledger: &Path) -> PathBuf {
    let mut name = ledger.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::Lock;

    #[test]
    fn it_is_free_when_it_is_dropped_though_somebody_shares_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = folder.path().join("ledger.db");
        let lock = Lock::take(&ledger).unwrap();
        // As a process does that was forked.
        let _shared = lock.file.try_clone().unwrap();
        assert!(Lock::take(&ledger).is_err());
        drop(lock);
        Lock::take(&ledger).unwrap();
    }
}
