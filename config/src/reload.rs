//! Reads the configuration again on request, and watches it for changes.

use crate::problem::ConfigErrors;
use crate::settings::Config;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// How often the file is looked at. Looking works the same wherever the file is: behind symlinks that are swapped (mounted configuration
/// maps), on network drives, and beside a ledger whose every commit would wake whoever listens to the folder.
const PERIOD: Duration = Duration::from_millis(500);

/// Reads one configuration file, again and again. It keeps no configuration: a bad file therefore changes nothing.
#[derive(Debug, Clone)]
pub struct Reloader {
    path: PathBuf,
    /// What the file held when the reloader was made, if it could be read.
    first: Option<Vec<u8>>,
}

impl Reloader {
    /// A reloader of the file at `path`. Make it before the file is loaded for the first time, so that no change falls in between.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { first: std::fs::read(&path).ok(), path }
    }

    /// Reads and checks the file as it is now, secrets included.
    pub fn reload(&self) -> Result<Arc<Config>, ConfigErrors> {
        crate::load(&self.path).map(Arc::new)
    }

    /// Calls `changed` on a thread of its own with what [`Self::reload`] says whenever the file's text has changed and has stayed the same
    /// for a moment (editors write in several steps), until the returned [`Watch`] is dropped. Files that hold secrets are not watched.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn watch(
        &self,
        mut changed: impl FnMut(Result<Arc<Config>, ConfigErrors>) + Send + 'static,
    ) -> std::io::Result<Watch> {
        let (watch, watched) = channel::<()>();
        let (reloader, mut known) = (self.clone(), self.first.clone());
        let mut last = known.clone();
        thread::Builder::new().name("config-watch".to_owned()).spawn(move || {
            while watched.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                let now = std::fs::read(&reloader.path).ok();
                if now == last && now != known {
                    known.clone_from(&now);
                    changed(reloader.reload());
                }
                last = now;
            }
        })?;
        Ok(Watch(watch))
    }
}

/// Watches while it lives.
#[derive(Debug)]
#[must_use = "dropping it ends the watch"]
pub struct Watch(#[expect(dead_code, reason = "dropping it is what tells the thread")] Sender<()>);

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;
    use std::sync::mpsc::Receiver;

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
