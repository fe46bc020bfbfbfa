//! Processes: the command itself, and what it works with.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    missing_docs,
    reason = "each test binary uses its part of this"
)]

pub mod discovery;
pub mod drop_in;
pub mod grpc;
pub mod http;
pub mod jwt;
pub mod load;
pub mod otlp;
pub mod peers;
pub mod schema;

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

/// Far longer than anything a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at a condition that nobody reports.
const LOOK: Duration = Duration::from_millis(10);

/// The root of the workspace, where the examples are.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// The command, without the environment's settings for it.
pub fn attache(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_attache"));
    command.args(args).current_dir(workspace());
    for (name, _) in std::env::vars() {
        if name.starts_with("ATTACHE_") || name.starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the command to its end.
pub fn outcome(args: &[&str]) -> Ended {
    Ended(attache(args).stdin(Stdio::null()).output().unwrap())
}

/// What a command left behind.
pub struct Ended(Output);

impl Ended {
    pub fn code(&self) -> i32 {
        self.0.status.code().expect("it ended on its own")
    }

    pub fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }
}

/// A process of ours, ended with this value.
pub struct Process {
    child: Child,
    output: Arc<Lines>,
}

/// What a process has printed so far, on both streams.
#[derive(Default)]
struct Lines {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Lines {
    fn collect(self: &Arc<Self>, stream: impl Read + Send + 'static) {
        let lines = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                lines.lines.lock().unwrap().push(line);
                lines.more.notify_all();
            }
        });
    }
}

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        Self::spawn_reading(command, Stdio::null())
    }

    /// Like [`Process::spawn`], with this as its standard input.
    pub fn spawn_reading(command: &mut Command, input: Stdio) -> Self {
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = Arc::<Lines>::default();
        output.collect(child.stdout.take().unwrap());
        output.collect(child.stderr.take().unwrap());
        Self { child, output }
    }

    /// Starts the command with these arguments.
    pub fn attache(args: &[&str]) -> Self {
        Self::spawn(&mut attache(args))
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything printed so far.
    pub fn text(&self) -> String {
        self.output.lines.lock().unwrap().join("\n")
    }

    /// Waits until `count` lines contain `text`; returns the last of them.
    #[track_caller]
    pub fn wait_for(&self, text: &str, count: usize) -> String {
        let lines = self.output.lines.lock().unwrap();
        let found = |lines: &Vec<String>| {
            let mut matching = lines.iter().filter(|line| line.contains(text));
            matching.nth(count - 1).cloned()
        };
        let (lines, _) = self
            .output
            .more
            .wait_timeout_while(lines, PATIENCE, |lines| found(lines).is_none())
            .unwrap();
        let line = found(&lines);
        drop(lines);
        line.unwrap_or_else(|| panic!("no `{text}` in:\n{}", self.text()))
    }

    /// Where it listens, as its log says.
    #[track_caller]
    pub fn address(&self) -> String {
        address_in(&self.wait_for("listening", 1))
    }

    /// Where it listens, on TCP.
    #[track_caller]
    pub fn socket(&self) -> SocketAddr {
        self.address().parse().unwrap()
    }

    /// Where its admin page is.
    #[track_caller]
    pub fn admin(&self) -> SocketAddr {
        address_in(&self.wait_for("admin page", 1)).parse().unwrap()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    /// Waits until it ends on its own.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(LOOK);
        }
        panic!("still running:\n{}", self.text());
    }

    pub fn kill(&mut self) {
        let _ended_already = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Its resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib: u64 = line
            .and_then(|line| line.split_whitespace().nth(1))
            .unwrap()
            .parse()
            .unwrap();
        kib << 10
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let text = self.text();
            let lines: Vec<_> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(15)..].join("\n");
            eprintln!("--- process {} said at last:\n{last}", self.id());
        }
    }
}

fn address_in(line: &str) -> String {
    let (_, rest) = line.split_once("address=").expect("an address");
    rest.split(' ').next().unwrap().to_owned()
}

/// Waits until `look` finds something.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(LOOK);
    }
}

/// [`eventually`], for what has to be awaited.
pub async fn eventually_async(what: &str, look: impl AsyncFnMut() -> bool) {
    within_async(PATIENCE, what, look).await;
}

pub async fn within_async(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !look().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A folder with these files.
pub fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

/// A path as an argument.
pub fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}
