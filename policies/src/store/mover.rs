//! Moves a write-ahead log into its database on a thread of its own: that waits for the disk, and admissions would
//! wait with it.

use super::StoreError;
use std::sync::mpsc::{RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Least time between two rounds. Short, so that a round has little to wait for: the writer stands still while the disk takes a round's data.
const REST: Duration = Duration::from_millis(40);

/// The thread; stops when this is dropped.
pub(super) struct Mover {
    written: SyncSender<()>,
    /// Dropped to stop it.
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Mover {
    /// `move_log` moves what there is, while others may be writing more.
    pub(super) fn start(
        mut move_log: impl FnMut() -> Result<(), StoreError> + Send + 'static,
    ) -> Result<Self, StoreError> {
        let (written, rounds) = sync_channel(1);
        let (running, stopped) = channel();
        let run = move || {
            let mut well = true;
            while rounds.recv().is_ok() && stopped.try_recv() != Err(TryRecvError::Disconnected) {
                let moved = move_log();
                if let (Err(error), true) = (&moved, well) {
                    tracing::warn!(%error, "the ledger's write-ahead log cannot be moved into its database and grows");
                }
                well = moved.is_ok();
                if stopped.recv_timeout(REST) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("ledger-log".into()).spawn(run);
        let thread = thread.map_err(|cause| StoreError(format!("no thread for its log: {cause}").into()))?;
        Ok(Self { written, running: Some(running), thread: Some(thread) })
    }

    /// There is something to move.
    pub(super) fn wake(&self) {
        // A full channel means that it knows already.
        _ = self.written.try_send(());
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.running = None;
        self.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that moves the ledger's write-ahead log panicked");
        }
    }
}
