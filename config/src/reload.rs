//! Reads the configuration again on request, and watches it for changes.

use crate::problem::ConfigErrors;
use crate::settings::Config;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How long a folder must be quiet before the file is read: editors write in several steps.
const QUIET: Duration = Duration::from_millis(150);

/// How long quiet is waited for: a folder with a database in it may never be.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads one configuration file, again and again. It keeps no configuration: a bad file therefore changes nothing.
#[derive(Debug, Clone)]
pub struct Reloader {
    path: PathBuf,
}

impl Reloader {
    /// A reloader of the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Reads and checks the file as it is now, secrets included.
    pub fn reload(&self) -> Result<Arc<Config>, ConfigErrors> {
        crate::load(&self.path).map(Arc::new)
    }

    /// Calls `changed` on a thread of its own with what [`Self::reload`] says whenever the file's text has changed,
    /// until the returned [`Watch`] is dropped. Works when the file is replaced rather than written (editors), when it
    /// is a symlink, and when the folder behind it is swapped (mounted configuration maps). Files that hold secrets
    /// are not watched.
    pub fn watch(
        &self,
        changed: impl FnMut(Result<Arc<Config>, ConfigErrors>) + Send + 'static,
    ) -> Result<Watch, WatchError> {
        let failed = |cause| WatchError { path: self.path.clone(), cause };
        // One place: a wake-up that is already waiting stands for all that follow.
        let (wake, woken) = sync_channel(1);
        let of_watcher = wake.clone();
        let notice = move |event: notify::Result<Event>| {
            // Reading the file is an event as well; only what may have changed it counts.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
                let _ = of_watcher.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(notice).map_err(failed)?;
        let mut folders = Folders { path: self.path.clone(), watcher, watched: BTreeSet::new() };
        folders.follow().map_err(failed)?;
        // Read only now that changes are noticed, so that none falls in between.
        let text = std::fs::read(&self.path).ok();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let reloader = self.clone();
        let follow = move || reloader.follow(&woken, &stopped, folders, text, changed);
        std::thread::Builder::new()
            .name("config-watch".to_owned())
            .spawn(follow)
            .map_err(|cause| failed(notify::Error::io(cause)))?;
        Ok(Watch { stop, wake })
    }

    fn follow(
        &self,
        woken: &Receiver<()>,
        stopped: &AtomicBool,
        mut folders: Folders,
        mut text: Option<Vec<u8>>,
        mut changed: impl FnMut(Result<Arc<Config>, ConfigErrors>),
    ) {
        while woken.recv().is_ok() {
            let deadline = Instant::now() + PATIENCE;
            while !stopped.load(Ordering::Acquire) && Instant::now() < deadline && woken.recv_timeout(QUIET).is_ok() {}
            if stopped.load(Ordering::Acquire) {
                return;
            }
            // A folder that cannot be watched now (it is being swapped) is tried again at the next change beside it.
            let _ = folders.follow();
            let now = std::fs::read(&self.path).ok();
            if now != text {
                text = now;
                changed(self.reload());
            }
        }
    }
}

/// Watches while it lives.
#[derive(Debug)]
#[must_use = "dropping it ends the watch"]
pub struct Watch {
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A full channel wakes the thread as well.
        let _ = self.wake.try_send(());
    }
}

/// Why a file cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {} for changes: {cause}; it is still read again on SIGHUP", path.display())]
pub struct WatchError {
    path: PathBuf,
    cause: notify::Error,
}

/// The folders whose changes can change the file: its own, and each that a symlink on the way leads to.
struct Folders {
    path: PathBuf,
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
}

impl Folders {
    /// Watches the folders as they are now. A folder that was swapped has to be watched anew even under its old name.
    fn follow(&mut self) -> notify::Result<()> {
        let own = folder_of(&self.path);
        let real = std::fs::canonicalize(&self.path).ok().map(|real| folder_of(&real));
        let now: BTreeSet<PathBuf> = [Some(own), real].into_iter().flatten().collect();
        for gone in self.watched.difference(&now) {
            let _ = self.watcher.unwatch(gone);
        }
        for folder in &now {
            self.watcher.watch(folder, RecursiveMode::NonRecursive)?;
        }
        self.watched = now;
        Ok(())
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::mpsc::{RecvTimeoutError, channel};

    /// The agent's name is what tells one version of the file from another.
    fn text(agent: &str) -> String {
        format!("[[agents]]\nname = \"{agent}\"\nkey = \"some-key\"\n")
    }

    /// The names of the agents, or the errors.
    type Report = Result<Vec<String>, String>;

    fn watch(path: &Path) -> (Watch, Receiver<Report>) {
        let (sender, seen) = channel();
        let names = |config: Arc<Config>| config.agents.keys().cloned().collect();
        let watch = Reloader::new(path)
            .watch(move |result| drop(sender.send(result.map(names).map_err(|errors| errors.to_string()))))
            .unwrap();
        (watch, seen)
    }

    /// Waits for a report that `is_it`; a file that is written in place may first be seen empty.
    fn wait_for(seen: &Receiver<Report>, is_it: impl Fn(&Report) -> bool) {
        while !is_it(&seen.recv_timeout(Duration::from_secs(20)).expect("the change is noticed")) {}
    }

    fn wait_for_agent(seen: &Receiver<Report>, agent: &str) {
        wait_for(seen, |report| report.as_ref().is_ok_and(|agents| *agents == [agent]));
    }

    fn wait_for_errors(seen: &Receiver<Report>, text: &str) {
        wait_for(seen, |report| report.as_ref().is_err_and(|errors| errors.contains(text)));
    }

    #[test]
    fn follows_a_file_that_is_written_replaced_and_broken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tollkeeper.toml");
        fs::write(&path, text("one")).unwrap();
        let (watch, seen) = watch(&path);

        fs::write(&path, text("two")).unwrap();
        wait_for_agent(&seen, "two");

        fs::write(folder.path().join("new"), "[[agents]]\nnam = 1").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        wait_for_errors(&seen, "tollkeeper.toml:2:1: [[agents]] has no key `nam`; did you mean `name`?");

        fs::remove_file(&path).unwrap();
        wait_for_errors(&seen, "cannot read the configuration");

        fs::write(&path, text("three")).unwrap();
        wait_for_agent(&seen, "three");

        drop(watch);
        let end = seen.recv_timeout(Duration::from_secs(20));
        assert_eq!(end, Err(RecvTimeoutError::Disconnected), "the thread ends and drops its callback");
    }

    #[test]
    #[cfg(unix)]
    fn follows_a_folder_that_is_swapped_behind_symlinks() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, agent) in [("v1", "one"), ("v2", "two"), ("v3", "three")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("tollkeeper.toml"), text(agent)).unwrap();
        }
        symlink("v1", at("..data")).unwrap();
        symlink("..data/tollkeeper.toml", at("tollkeeper.toml")).unwrap();
        let (_watch, seen) = watch(&at("tollkeeper.toml"));
        for (version, agent) in [("v2", "two"), ("v3", "three")] {
            symlink(version, at("..new")).unwrap();
            fs::rename(at("..new"), at("..data")).unwrap();
            wait_for_agent(&seen, agent);
        }
        // The real file is written in place, in a folder that was not the first.
        fs::write(at("v3").join("tollkeeper.toml"), text("four")).unwrap();
        wait_for_agent(&seen, "four");
    }
}
