//! What engines have read, kept outside of them: the KV of conversations that lost their slot, in memory and then on disk, so that
//! they go on without reading everything again, also after a swap and after a restart.
//!
//! An entry is the state of one sequence and the tokens it stands for. It may be used by the very model that made it and by no
//! other: a [`Shelf`] is the part of the store for one fingerprint. Memory and disk have a budget each; the longest unused goes from memory
//! to disk, and from disk for good. A file that is damaged or of another model is refused, and deleted if it is damaged.

mod file;
#[cfg(test)]
mod tests;

#[cfg(feature = "fuzzing")]
pub(super) use file::fuzz;

use super::engine::Token;
use super::known;
use super::slots::common_prefix;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tollkeeper_config::LocalModel;

/// Shorter beginnings are read again: that costs less than finding them. (What was kept whole comes back at any length.)
pub(crate) const SHORTEST: usize = 32;
/// Entries of all models together.
const MOST_ENTRIES: usize = 4096;
/// States on their way to disk.
const WRITES: usize = 16;

/// The form of states; to be changed when an engine's new version writes another one.
const STATE_FORMAT: &str = "llama.cpp of llama-cpp-sys-2 0.1.161";

/// What identifies a model: its weights and how it keeps keys and values.
pub(crate) type Fingerprint = [u8; 32];

/// How much may be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Bytes in memory.
    pub(crate) memory: u64,
    /// Bytes on disk.
    pub(crate) disk: u64,
    /// Where on disk; without a folder nothing is written.
    pub(crate) folder: Option<PathBuf>,
}

/// What the store holds and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KvStoreReading {
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// States put in.
    pub saved: u64,
    /// States given back to an engine.
    pub restored: u64,
    /// Tokens that did not have to be read because of that.
    pub restored_tokens: u64,
    /// Files refused: damaged, or of another version.
    pub refused: u64,
}

/// The store, for all models.
pub(crate) struct KvStore {
    inner: Mutex<Inner>,
}

struct Inner {
    budget: Budget,
    entries: BTreeMap<u64, Entry>,
    next: u64,
    clock: u64,
    reading: KvStoreReading,
    writer: Option<SyncSender<Write>>,
    /// Folders of models whose files are known.
    scanned: Vec<Fingerprint>,
}

struct Entry {
    model: Fingerprint,
    tokens: Arc<[Token]>,
    /// Hashes of the tokens: see [`known`].
    blocks: Arc<[u64]>,
    /// The state, while it is in memory.
    state: Option<Arc<[u8]>>,
    /// The state on its way to disk, which is not there yet.
    leaving: Option<Weak<[u8]>>,
    /// Its file, once it is (being) written.
    path: Option<PathBuf>,
    bytes: u64,
    used: u64,
}

/// A state to be written.
struct Write {
    path: PathBuf,
    model: Fingerprint,
    tokens: Arc<[Token]>,
    state: Arc<[u8]>,
}

/// The store as one model sees it.
#[derive(Clone)]
pub(crate) struct Shelf {
    store: Arc<KvStore>,
    model: Fingerprint,
}

/// An entry that begins like a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    entry: u64,
    /// Tokens of the entry.
    pub(crate) length: usize,
    /// Tokens that it has in common with the prompt.
    pub(crate) common: usize,
}

impl KvStore {
    pub(crate) fn new(budget: Budget) -> Arc<Self> {
        let writer = budget.folder.is_some().then(spawn_writer).flatten();
        let inner = Inner {
            budget,
            entries: BTreeMap::new(),
            next: 0,
            clock: 0,
            reading: KvStoreReading::default(),
            writer,
            scanned: Vec::new(),
        };
        Arc::new(Self { inner: Mutex::new(inner) })
    }

    /// The part of a model; what it left on disk before is found again.
    pub(crate) fn shelf(self: &Arc<Self>, model: Fingerprint) -> Shelf {
        self.enter().scan(model);
        Shelf { store: self.clone(), model }
    }

    pub(crate) fn reading(&self) -> KvStoreReading {
        self.enter().reading
    }

    /// Writes what is only in memory, as far as there is room on disk, and waits until it is written.
    pub(crate) fn flush(&self) {
        let writes = {
            let mut inner = self.enter();
            // What is being written goes first; the thread ends with its channel.
            inner.writer = None;
            inner.flush()
        };
        for write in writes {
            write.carry_out();
        }
    }

    fn enter(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    /// The entry that has most in common with a prompt, if it is worth having.
    pub(crate) fn find(&self, prompt: &[Token]) -> Option<Found> {
        let inner = self.store.enter();
        let mine = inner.entries.iter().filter(|(_, entry)| entry.model == self.model);
        let found = mine.map(|(id, entry)| Found {
            entry: *id,
            length: entry.tokens.len(),
            common: common_prefix(&entry.tokens, prompt),
        });
        found
            .max_by_key(|found| (found.common, std::cmp::Reverse(found.length)))
            .filter(|found| found.common >= SHORTEST || (found.common > 0 && found.common == found.length))
    }

    /// The most tokens that an entry has in common with these blocks.
    pub(crate) fn common(&self, blocks: &[u64]) -> usize {
        let inner = self.store.enter();
        let mine = inner.entries.values().filter(|entry| entry.model == self.model);
        mine.map(|entry| known::common(&entry.blocks, blocks)).max().unwrap_or(0)
    }

    /// Brings the entry for a prompt into memory if it is on disk, so that the engine's thread does not wait for the disk.
    pub(crate) async fn fetch(&self, prompt: &[Token]) {
        let on_disk = |found: &Found| {
            let inner = self.store.enter();
            inner.entries.get(&found.entry).is_some_and(|entry| entry.state.is_none())
        };
        if let Some(found) = self.find(prompt).filter(on_disk) {
            let shelf = self.clone();
            // If it cannot be read the prompt is.
            drop(tokio::task::spawn_blocking(move || drop(shelf.take(found))).await);
        }
    }

    /// Whether what is put here may be found by a later process.
    pub(crate) fn lasts(&self) -> bool {
        self.store.enter().disk_budget() > 0
    }

    /// Whether these tokens are kept already, alone or as the beginning of more.
    pub(crate) fn holds(&self, tokens: &[Token]) -> bool {
        let inner = self.store.enter();
        inner.entries.values().any(|entry| entry.model == self.model && entry.tokens.starts_with(tokens))
    }

    /// The state of an entry; read from disk if it is there. `None`: it is gone, or its file was refused.
    pub(crate) fn take(&self, found: Found) -> Option<Arc<[u8]>> {
        let (path, tokens) = {
            let mut inner = self.store.enter();
            let now = inner.tick();
            let entry = inner.entries.get_mut(&found.entry)?;
            entry.used = now;
            let leaving = entry.leaving.as_ref().and_then(Weak::upgrade);
            if let Some(state) = entry.state.clone().or(leaving) {
                return Some(state);
            }
            (entry.path.clone()?, entry.tokens.clone())
        };
        // The lock is not held while the disk is read.
        let state = file::read(&path, &self.model).ok().filter(|kept| *kept.tokens == *tokens).map(|kept| kept.state);
        let mut inner = self.store.enter();
        match state {
            Some(state) => {
                inner.keep_in_memory(found.entry, state.clone());
                Some(state)
            }
            None => {
                inner.reading.refused += 1;
                inner.remove(found.entry);
                None
            }
        }
    }

    /// Notes that an entry served an engine, and saved it this many tokens.
    pub(crate) fn restored(&self, tokens: usize) {
        let mut inner = self.store.enter();
        inner.reading.restored += 1;
        inner.reading.restored_tokens += tokens as u64;
    }

    /// An entry that the engine refused.
    pub(crate) fn refuse(&self, found: Found) {
        let mut inner = self.store.enter();
        inner.reading.refused += 1;
        inner.remove(found.entry);
    }

    /// Keeps the state of a sequence; entries that are its beginning are not needed any more. Returns whether there is room for it at all.
    pub(crate) fn put(&self, tokens: &[Token], state: Vec<u8>) -> bool {
        let bytes = (state.len() + std::mem::size_of_val(tokens)) as u64;
        let mut inner = self.store.enter();
        if bytes > inner.budget.memory.max(inner.disk_budget()) {
            return false;
        }
        let superseded: Vec<u64> = inner
            .entries
            .iter()
            .filter(|(_, entry)| entry.model == self.model && tokens.starts_with(&entry.tokens))
            .map(|(id, _)| *id)
            .collect();
        superseded.into_iter().for_each(|id| inner.remove(id));
        let (id, used) = (inner.next, inner.tick());
        inner.next += 1;
        inner.reading.saved += 1;
        let (tokens, blocks) = (tokens.into(), known::blocks(tokens));
        let entry = Entry { model: self.model, tokens, blocks, state: None, leaving: None, path: None, bytes, used };
        inner.entries.insert(id, entry);
        inner.keep_in_memory(id, state.into());
        inner.limit_count();
        true
    }
}

impl Inner {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn disk_budget(&self) -> u64 {
        if self.budget.folder.is_some() { self.budget.disk } else { 0 }
    }

    fn keep_in_memory(&mut self, id: u64, state: Arc<[u8]>) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.state.is_none()
        {
            entry.state = Some(state);
            self.reading.memory_bytes += entry.bytes;
        }
        while self.reading.memory_bytes > self.budget.memory {
            let Some(oldest) = self.oldest(|entry| entry.state.is_some()) else { return };
            self.leave_memory(oldest);
        }
    }

    fn oldest(&self, which: impl Fn(&Entry) -> bool) -> Option<u64> {
        self.entries.iter().filter(|(_, entry)| which(entry)).min_by_key(|(_, entry)| entry.used).map(|(id, _)| *id)
    }

    /// Takes an entry out of memory: onto disk if it may, else for good.
    fn leave_memory(&mut self, id: u64) {
        if self.entries.get(&id).is_some_and(|entry| entry.path.is_none()) && !self.send_to_disk(id) {
            return self.remove(id);
        }
        if let Some(entry) = self.entries.get_mut(&id)
            && let Some(state) = entry.state.take()
        {
            entry.leaving = Some(Arc::downgrade(&state));
            self.reading.memory_bytes -= entry.bytes;
        }
    }

    fn send_to_disk(&mut self, id: u64) -> bool {
        let Some(write) = self.prepare_write(id) else { return false };
        match self.writer.as_ref().map(|writer| writer.try_send(write)) {
            Some(Ok(())) => true,
            // The disk is slower than what comes: it is dropped rather than waited for.
            Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) | None => {
                self.forget_file(id);
                false
            }
        }
    }

    /// Makes room on disk for an entry and says what to write.
    fn prepare_write(&mut self, id: u64) -> Option<Write> {
        let (model, tokens, state, bytes) = {
            let entry = self.entries.get(&id)?;
            (entry.model, entry.tokens.clone(), entry.state.clone()?, entry.bytes)
        };
        let folder = self.budget.folder.clone()?;
        if bytes > self.budget.disk {
            return None;
        }
        while self.reading.disk_bytes + bytes > self.budget.disk {
            let oldest = self.oldest(|entry| entry.path.is_some())?;
            let in_memory = self.entries.get(&oldest).is_some_and(|entry| entry.state.is_some());
            if in_memory { self.forget_file(oldest) } else { self.remove(oldest) }
        }
        let path = file::path(&folder, &model, &tokens);
        self.entries.get_mut(&id)?.path = Some(path.clone());
        self.reading.disk_bytes += bytes;
        Some(Write { path, model, tokens, state })
    }

    fn forget_file(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id)
            && let Some(path) = entry.path.take()
        {
            self.reading.disk_bytes -= entry.bytes;
            let _ = std::fs::remove_file(path);
        }
    }

    fn remove(&mut self, id: u64) {
        self.forget_file(id);
        if let Some(entry) = self.entries.remove(&id)
            && entry.state.is_some()
        {
            self.reading.memory_bytes -= entry.bytes;
        }
    }

    fn limit_count(&mut self) {
        while self.entries.len() > MOST_ENTRIES {
            let Some(oldest) = self.oldest(|_| true) else { return };
            self.remove(oldest);
        }
    }

    fn flush(&mut self) -> Vec<Write> {
        let mut unwritten: Vec<(u64, u64)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.path.is_none() && entry.state.is_some())
            .map(|(id, entry)| (entry.used, *id))
            .collect();
        // The last used are written last, so that they are the last to be dropped for room.
        unwritten.sort_unstable();
        unwritten.into_iter().filter_map(|(_, id)| self.prepare_write(id)).collect()
    }

    /// Finds what a model left on disk.
    fn scan(&mut self, model: Fingerprint) {
        let Some(folder) = self.budget.folder.clone() else { return };
        if self.scanned.contains(&model) {
            return;
        }
        self.scanned.push(model);
        for (path, bytes) in file::of_model(&folder, &model) {
            match file::read_tokens(&path, &model) {
                Ok(tokens) => {
                    let (id, used) = (self.next, self.tick());
                    self.next += 1;
                    self.reading.disk_bytes += bytes;
                    let blocks = known::blocks(&tokens);
                    let entry =
                        Entry { model, tokens, blocks, state: None, leaving: None, path: Some(path), bytes, used };
                    self.entries.insert(id, entry);
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a file of kept KV was refused");
                    self.reading.refused += 1;
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        while self.reading.disk_bytes > self.budget.disk {
            let Some(oldest) = self.oldest(|entry| entry.path.is_some()) else { break };
            self.remove(oldest);
        }
        self.limit_count();
    }
}

impl Write {
    fn carry_out(self) {
        if let Err(error) = file::write(&self.path, &self.model, &self.tokens, &self.state) {
            tracing::warn!(path = %self.path.display(), %error, "kept KV could not be written");
        }
    }
}

/// The thread that writes to disk, so that no engine waits for one; it ends with the store.
fn spawn_writer() -> Option<SyncSender<Write>> {
    let (sender, writes) = sync_channel::<Write>(WRITES);
    let thread = std::thread::Builder::new().name("kv-writer".into());
    thread.spawn(move || writes.into_iter().for_each(Write::carry_out)).ok().map(|_| sender)
}

/// The fingerprint of a model: its file by length and by samples, and everything else that its KV depends on.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn fingerprint(model: &LocalModel) -> std::io::Result<Fingerprint> {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(format!("{STATE_FORMAT} {:?} {}", model.engine, model.kv));
    file::sample(&model.path, |sample| hash.update(sample))?;
    for adapter in &model.lora {
        hash.update(adapter.scale.to_le_bytes());
        file::sample(&adapter.path, |sample| hash.update(sample))?;
    }
    if let Some(projector) = &model.mmproj {
        file::sample(projector, |sample| hash.update(sample))?;
    }
    Ok(hash.finalize().into())
}
