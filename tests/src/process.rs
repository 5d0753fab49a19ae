//! The real `tollkeeper` binary as a child process: its address, its output, signals to it, its exit status, its subcommands.

use crate::client::Client;
use crate::setup::{KEY, Setup};
use crate::wait::{PATIENCE, eventually, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use tempfile::NamedTempFile;
use tokio::process::{Child, Command};

/// A running server process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: NamedTempFile,
    addr: SocketAddr,
}

/// How a process ended that did not come to listen.
#[derive(Debug)]
pub struct Refusal {
    /// Its exit status.
    pub status: ExitStatus,
    /// All it said.
    pub output: String,
}

impl Process {
    /// Starts `tollkeeper serve` with this set-up and waits until it listens.
    pub async fn start(setup: &Setup) -> Self {
        match Self::try_start(setup, &[]).await {
            Ok(process) => process,
            Err(Refusal { status, output }) => panic!("tollkeeper ended with {status} before it listened:\n{output}"),
        }
    }

    /// Like [`Process::start`] with more arguments.
    ///
    /// # Errors
    /// It ended before it listened.
    pub async fn try_start(setup: &Setup, arguments: &[&str]) -> Result<Self, Refusal> {
        let mut command = Command::new(binary());
        command.arg("serve").arg("-c").arg(setup.write()).args(arguments).current_dir(setup.folder());
        Self::spawn(command).await
    }

    /// Starts a prepared command and waits until it has printed the address it listens on.
    ///
    /// # Errors
    /// It ended before it listened.
    pub async fn spawn(mut command: Command) -> Result<Self, Refusal> {
        let output = NamedTempFile::new().unwrap();
        let [stdout, stderr] = [(); 2].map(|()| OpenOptions::new().append(true).open(output.path()).unwrap());
        let mut child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).kill_on_drop(true).spawn().unwrap();
        let ended = eventually("the address the gateway listens on, or its end", async || {
            let ended = child.try_wait().unwrap();
            address_in(&read(&output)).map(Ok).or(ended.map(Err))
        });
        match ended.await {
            Ok(addr) => Ok(Self { child, output, addr }),
            Err(status) => Err(Refusal { status, output: read(&output) }),
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A client with the key of the agent `scout`.
    pub fn client(&self) -> Client {
        Client::new(self.addr).key(KEY)
    }

    /// All it has printed so far, both streams.
    pub fn output(&self) -> String {
        read(&self.output)
    }

    /// Waits until it has printed this.
    pub async fn wait_for_output(&self, text: &str) {
        let what = format!("{text:?} in the gateway's output");
        eventually(&what, async || self.output().contains(text).then_some(())).await;
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the process has not been waited for")
    }

    /// The processes it has started and that it has not waited for: their ids, and their states as the system shows them (`Z` is one
    /// that has ended).
    pub fn children(&self) -> Vec<(u32, char)> {
        let processes =
            std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mine = |pid: u32| {
            let (state, parent) = state_and_parent(pid)?;
            (parent == self.pid()).then_some((pid, state))
        };
        processes.filter_map(mine).collect()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Waits until it has ended; it must not have panicked.
    pub async fn wait(&mut self) -> ExitStatus {
        let status = within("the end of the gateway process", self.child.wait()).await.unwrap();
        assert!(!self.output().contains("panicked at"), "a panic:\n{}", self.output());
        status
    }

    /// Ends it at once, as a crash would (`kill -9`).
    pub async fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.wait().await;
    }

    /// Asks it to drain and waits until it has ended.
    pub async fn terminate(mut self) -> (ExitStatus, String) {
        self.signal(Signal::SIGTERM);
        let status = self.wait().await;
        (status, self.output())
    }
}

/// Whether a process runs: there is one of this id, and it has not ended.
pub fn is_running(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Runs a subcommand with these arguments to its end.
pub async fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    let output = command.args(arguments).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await;
    output.unwrap_or_else(|_| panic!("hang: tollkeeper {arguments:?}")).unwrap()
}

/// The `tollkeeper` binary: `TOLLKEEPER_BIN`, else the one in the build folder of this program (`target/debug/deps/it-…` →
/// `target/debug/tollkeeper`), which must not be older than its sources: cargo does not build it for this program.
pub fn binary() -> PathBuf {
    if let Some(given) = std::env::var_os("TOLLKEEPER_BIN") {
        return given.into();
    }
    let build = "`cargo build -p tollkeeper-gateway` (in this profile), or name another one in TOLLKEEPER_BIN";
    let this = std::env::current_exe().unwrap();
    let beside = this.ancestors().skip(1).take(2).map(|folder| folder.join("tollkeeper")).find(|path| path.is_file());
    let binary = beside.unwrap_or_else(|| panic!("there is no `tollkeeper` binary beside {}: {build}", this.display()));
    if let Some(newer) = newer_source(&binary) {
        panic!("{} is older than {newer}: {build}", binary.display());
    }
    binary
}

/// A source of the binary (cargo lists them in a `.d` file beside it) that was changed after it was built.
fn newer_source(binary: &Path) -> Option<String> {
    let changed = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    let built = changed(binary)?;
    let list = std::fs::read_to_string(binary.with_extension("d")).ok()?;
    let sources = list.split_once(": ")?.1.split_whitespace();
    sources.map(str::to_owned).find(|source| changed(Path::new(source)).is_some_and(|changed| changed > built))
}

fn read(output: &NamedTempFile) -> String {
    String::from_utf8_lossy(&std::fs::read(output.path()).unwrap()).into_owned()
}

/// The socket address in the line that says that the server is listening; port 0 is not there yet.
fn address_in(output: &str) -> Option<SocketAddr> {
    let line = output.lines().find(|line| line.contains("listening"))?;
    let port = line.split_once("127.0.0.1:")?.1.split(|c: char| !c.is_ascii_digit()).next()?;
    port.parse().ok().filter(|port| *port != 0).map(|port: u16| SocketAddr::from(([127, 0, 0, 1], port)))
}
