//! A real Redis server as a child process.

use crate::PATIENCE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A server that listens on a socket in a folder of its own. Killed when dropped.
pub struct RedisServer {
    folder: TempDir,
    child: Child,
    append_only: bool,
}

impl RedisServer {
    /// Starts one that keeps everything on disk, or nothing.
    pub fn start(append_only: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let child = spawn(&folder, append_only);
        let server = Self { folder, child, append_only };
        server.wait();
        server
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// Its address as a gateway is told it.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// Starts it again after [`kill`](Self::kill), with what it has on disk.
    pub fn restart(&mut self) {
        self.child = spawn(&self.folder, self.append_only);
        self.wait();
    }

    /// The server's own command line client.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli").arg("-s").arg(self.socket()).args(arguments).output();
        String::from_utf8(output.expect("redis-cli comes with redis-server").stdout).unwrap()
    }

    /// How often a command was done.
    pub fn calls(&self, command: &str) -> u64 {
        let stats = self.cli(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }

    /// Waits until it answers; it does not while it loads.
    fn wait(&self) {
        let answers = || {
            let mut socket = UnixStream::connect(self.socket()).ok()?;
            socket.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
            socket.write_all(b"PING\r\n").ok()?;
            let mut answer = [0; 7];
            socket.read_exact(&mut answer).ok()?;
            (answer == *b"+PONG\r\n").then_some(())
        };
        let start = Instant::now();
        while answers().is_none() {
            assert!(start.elapsed() < PATIENCE, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn spawn(folder: &TempDir, append_only: bool) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", if append_only { "yes" } else { "no" }]);
    command.arg("--dir").arg(folder.path()).arg("--unixsocket").arg(folder.path().join("redis.sock"));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    child.expect("these tests need redis-server, Debian's package of that name")
}
