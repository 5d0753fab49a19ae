//! The real `tollkeeper` binary as a child process: its address, its output, signals to it, its exit status, its subcommands.

use crate::client::Client;
use crate::setup::{KEY, Setup};
use crate::wait::{PATIENCE, eventually, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

/// A running gateway process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: Arc<Mutex<String>>,
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
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        let readers = [
            tokio::spawn(gather(child.stdout.take().unwrap(), output.clone())),
            tokio::spawn(gather(child.stderr.take().unwrap(), output.clone())),
        ];
        let addr = eventually("the address the gateway listens on, or its end", async || {
            if let Some(addr) = address_in(&output.lock().unwrap()) {
                return Some(Ok(addr));
            }
            child.try_wait().unwrap().map(Err)
        });
        match addr.await {
            Ok(addr) => Ok(Self { child, output, addr }),
            Err(status) => {
                for reader in readers {
                    reader.await.unwrap();
                }
                let output = output.lock().unwrap().clone();
                Err(Refusal { status, output })
            }
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

    /// All it has printed so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits until it has printed this.
    pub async fn wait_for_output(&self, text: &str) {
        eventually(&format!("{text:?} in the gateway's output"), async || self.output().contains(text).then_some(()))
            .await;
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the process has not been waited for")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Waits until it has ended.
    pub async fn wait(&mut self) -> ExitStatus {
        within("the end of the gateway process", self.child.wait()).await.unwrap()
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

/// Runs a subcommand with these arguments to its end.
pub async fn run(folder: &Path, arguments: &[&str]) -> Output {
    let command =
        Command::new(binary()).args(arguments).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true).output();
    tokio::time::timeout(PATIENCE, command).await.unwrap_or_else(|_| panic!("hang: tollkeeper {arguments:?}")).unwrap()
}

/// The `tollkeeper` binary: `TOLLKEEPER_BIN`, else the one built beside this test.
pub fn binary() -> PathBuf {
    sibling("tollkeeper", "TOLLKEEPER_BIN", "cargo build -p tollkeeper-gateway")
}

/// The `scripted-upstream` binary.
pub fn scripted_upstream() -> PathBuf {
    sibling("scripted-upstream", "SCRIPTED_UPSTREAM_BIN", "cargo build -p tollkeeper-tests")
}

/// A program in the build folder this program is in (`target/debug/deps/it-…` → `target/debug/NAME`).
fn sibling(name: &str, variable: &str, build: &str) -> PathBuf {
    #[expect(
        clippy::disallowed_methods,
        reason = "where the binary is, is the test run's business and no setting of the gateway"
    )]
    let given = std::env::var(variable).ok().map(PathBuf::from);
    let beside = || {
        let test = std::env::current_exe().unwrap();
        test.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file())
    };
    let found = given.or_else(beside).filter(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("no `{name}` binary: build it with `{build}` (same profile), or name it in {variable}")
    })
}

async fn gather(from: impl AsyncRead + Unpin, into: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut into = into.lock().unwrap();
        into.push_str(&line);
        into.push('\n');
    }
}

/// The first socket address of this machine in a text that does not end in port 0.
fn address_in(text: &str) -> Option<SocketAddr> {
    text.match_indices("127.0.0.1:").find_map(|(at, host)| {
        let port: String = text[at + host.len()..].chars().take_while(char::is_ascii_digit).collect();
        port.parse().ok().filter(|port| *port != 0).map(|port: u16| SocketAddr::from(([127, 0, 0, 1], port)))
    })
}
