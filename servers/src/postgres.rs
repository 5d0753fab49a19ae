//! A real PostgreSQL server as a child process.

use crate::PATIENCE;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Starts the server; ends it and removes its folder when the input ends, which it does however the tests end; leaves both
/// alone when told.
const SUPERVISE: &str = r#"folder="$1"; shift; "$@" & server=$!
    read -r word; [ "$word" = leave ] && exit; kill -QUIT $server; wait $server; rm -rf "$folder""#;

/// Settings of a server that need not survive the machine.
const SETTINGS: [&str; 6] = [
    "listen_addresses=",
    "fsync=off",
    "full_page_writes=off",
    "shared_buffers=16MB",
    "max_connections=200",
    "unix_socket_permissions=0777",
];

/// A server that listens on a socket in a folder of its own. Killed when dropped.
#[derive(Debug)]
pub struct PostgresServer {
    folder: PathBuf,
    supervisor: Child,
    settings: Vec<String>,
    port: u16,
    databases: AtomicU32,
}

impl PostgresServer {
    /// The one that all tests of this process share, each with a database of its own. Nobody may stop it.
    pub fn shared() -> &'static Self {
        static SERVER: OnceLock<PostgresServer> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    /// Starts one.
    pub fn start() -> Self {
        Self::start_with(Vec::new(), 5432, &[])
    }

    /// Starts one that can be reached by TCP, too, with TLS by this certificate (of `localhost`) and key, both PEM.
    pub fn with_tls(certificate: &str, key: &str) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let settings =
            ["ssl=on", "ssl_cert_file=../server.crt", "ssl_key_file=../server.key", "listen_addresses=127.0.0.1"];
        let files = [("server.crt", certificate), ("server.key", key)];
        Self::start_with(settings.map(str::to_owned).into(), port, &files)
    }

    fn start_with(mut settings: Vec<String>, port: u16, files: &[(&str, &str)]) -> Self {
        settings.push(format!("port={port}"));
        let folder = tempfile::tempdir().unwrap().keep();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
            fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        if is_root() {
            done(Command::new("chown").args(["-R", "postgres:postgres"]).arg(&folder));
        }
        let data = folder.join("data");
        let options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"];
        done(as_nobody(&program("initdb")).args(options).arg("-D").arg(&data));
        let supervisor = supervise(&folder, &settings);
        let server = Self { folder, supervisor, settings, port, databases: AtomicU32::new(0) };
        server.wait();
        server
    }

    /// A new database: the URL to reach it.
    pub fn database(&self) -> String {
        let name = format!("d{}", self.databases.fetch_add(1, SeqCst));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// The same by TCP and this name of the machine.
    pub fn tcp_url(&self, database: &str, host: &str) -> String {
        format!("postgres://postgres@{host}:{}/{database}", self.port)
    }

    /// The URL of a database by the server's socket.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@localhost/{database}?host={}&port={}", self.folder.display(), self.port)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join(format!(".s.PGSQL.{}", self.port))
    }

    /// Asks the server's own command line client: the values of a row with bars between them, a row a line.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        self.ask(database, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The same, or what the server has against it.
    pub fn ask(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut client = Command::new(program("psql"));
        client.args(["-U", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]);
        let output = client.arg("-h").arg(&self.folder).arg("-p").arg(self.port.to_string()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// Stops all its processes, so that nobody gets an answer, or lets them go on.
    pub fn stop(&self, stopped: bool) {
        let signal = if stopped { "-STOP" } else { "-CONT" };
        send(signal, &self.processes());
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&self) {
        let processes = self.processes();
        send("-KILL", &processes);
        wait_for("the end of the server", || processes.iter().all(|pid| has_ended(*pid)));
    }

    /// Starts it again after [`kill`](Self::kill), with what it has on disk.
    pub fn restart(&mut self) {
        self.tell_supervisor("leave\n");
        self.supervisor = supervise(&self.folder, &self.settings);
        self.wait();
    }

    /// The server and its children.
    fn processes(&self) -> Vec<u32> {
        let written = fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        let server: u32 = written.lines().next().unwrap().parse().unwrap();
        let is_child = |pid: &u32| status(*pid).is_some_and(|(_, parent)| parent == server);
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        std::iter::once(server).chain(pids.filter(is_child)).collect()
    }

    fn wait(&self) {
        let ready = || {
            let mut ask = Command::new(program("pg_isready"));
            ask.arg("-q").arg("-h").arg(&self.folder).arg("-p").arg(self.port.to_string()).status().unwrap().success()
        };
        wait_for("the server to answer", ready);
    }

    fn tell_supervisor(&mut self, word: &str) {
        // One that has gone needs not be told.
        _ = self.supervisor.stdin.take().unwrap().write_all(word.as_bytes());
        self.supervisor.wait().unwrap();
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop(false);
        self.tell_supervisor("\n");
    }
}

fn supervise(folder: &Path, settings: &[String]) -> Child {
    let mut server = as_nobody(&program("postgres"));
    server.arg("-D").arg(folder.join("data")).arg("-k").arg(folder);
    let all = SETTINGS.iter().copied().chain(settings.iter().map(String::as_str));
    all.for_each(|setting| _ = server.arg("-c").arg(setting));
    let mut shell = Command::new("sh");
    shell.args(["-c", SUPERVISE, "sh"]).arg(folder).arg(server.get_program()).args(server.get_args());
    shell.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// A server's program refuses to run as root; then it runs as the user that its package has made.
fn as_nobody(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program).current_dir("/");
    command
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// The newest one that is installed where Debian has them, or the one in the path.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |path: &Path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()).unwrap_or(0);
    let newest = versions.map(|entry| entry.path()).max_by_key(|path| version(path));
    let found = newest.map(|version| version.join("bin").join(name)).filter(|path| path.exists());
    found.unwrap_or_else(|| name.into())
}

fn done(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.expect("these tests need PostgreSQL, Debian's package `postgresql`");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Sends a signal to those of the processes that are still there: the first, which is the server, gets it first.
fn send(signal: &str, processes: &[u32]) {
    let mut kill = Command::new("kill");
    kill.arg(signal).args(processes.iter().map(u32::to_string)).stderr(Stdio::null()).status().unwrap();
}

/// A process's state and its parent.
fn status(pid: u32) -> Option<(String, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

fn has_ended(pid: u32) -> bool {
    status(pid).is_none_or(|(state, _)| state == "Z")
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "hang: waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
