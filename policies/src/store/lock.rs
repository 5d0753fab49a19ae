//! One gateway per ledger: a lock file that names its holder.

use crate::OpenError;
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Held as long as it lives, and freed by the system when the process dies. The file stays behind: removing it would
/// let two processes lock two files of one name.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
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
        Ok(Self { _file: file })
    }
}

fn lock_path(ledger: &Path) -> PathBuf {
    let mut name = ledger.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}
