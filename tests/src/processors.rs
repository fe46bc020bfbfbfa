//! The example processors in other languages: programs that `cargo xtask processors` has built.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixStream;

#[path = "../../xtask/src/sources.rs"]
mod sources;

/// How long a processor may take to start.
const START: Duration = Duration::from_secs(60);

/// The folder `to`, where `cargo xtask processors` builds what is in the folder `from`; nothing
/// where it has not, or not from these sources. Both are folders of the workspace.
pub fn built(from: &str, to: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (from, to) = (root.join(from), root.join(to));
    let files = sources::files(&from).ok()?;
    sources::is_built(&files, &to).then_some(to)
}

/// A language that examples are written in.
#[derive(Debug, Clone, Copy)]
pub struct Language {
    /// What people call it.
    pub title: &'static str,
    /// Its folder in `examples/processors`.
    name: &'static str,
    /// The program and its first arguments. Words with a slash are files of the build.
    start: &'static [&'static str],
}

/// Go.
pub const GO: Language = Language {
    title: "Go",
    name: "go",
    start: &["./processors"],
};
/// Python.
pub const PYTHON: Language = Language {
    title: "Python",
    name: "python",
    start: &["./.venv/bin/python", "./main.py"],
};
/// Node.
pub const NODE: Language = Language {
    title: "Node",
    name: "node",
    start: &["node", "./main.js"],
};
/// Java.
pub const JAVA: Language = Language {
    title: "Java",
    name: "java",
    start: &[
        "java",
        "-XX:TieredStopAtLevel=1",
        "-jar",
        "./target/processors.jar",
    ],
};

impl Language {
    /// Where its processors are built; nothing where they are not, or not from these sources.
    fn build(self) -> Option<PathBuf> {
        let of = |folder| format!("{folder}/{}", self.name);
        built(&of("examples/processors"), &of("target/processors"))
    }

    /// The program that serves a processor; nothing where it is not built.
    pub fn program(self, processor: &str) -> Option<Command> {
        let build = self.build()?;
        let mut words = self.start.iter().map(|word| match word.strip_prefix("./") {
            Some(file) => build.join(file).into_os_string(),
            None => (*word).into(),
        });
        let mut program = Command::new(words.next()?);
        program.args(words).arg(processor);
        Some(program)
    }
}

/// The languages whose processors are not built here, in words.
pub(crate) fn left_out() -> Option<String> {
    let missing = [GO, PYTHON, NODE, JAVA]
        .into_iter()
        .filter(|language| language.build().is_none());
    let missing: Vec<_> = missing.map(|language| language.title).collect();
    (!missing.is_empty()).then(|| format!("processors in {}", missing.join(", ")))
}

/// A processor that runs; it ends with this value.
#[derive(Debug)]
pub struct Running {
    process: Child,
    /// Where it listens.
    pub address: String,
    /// Holds what it writes, and its socket.
    folder: TempDir,
}

impl Running {
    /// Starts a program that takes an address and says on its standard output which one it
    /// listens on.
    ///
    /// # Errors
    /// Why it does not start.
    pub async fn start(program: Command) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let address = "127.0.0.1:0".to_owned();
        let mut running = Self::spawn(program, folder, address, Stdio::piped())?;
        let said = running.process.stdout.take().ok_or("no output")?;
        let line = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            BufReader::new(said).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(START, line).await;
        let line = line
            .map_err(|_| "it says nothing")?
            .map_err(|e| e.to_string())?;
        let line = line.map_err(|e| e.to_string())?;
        match line.trim().strip_prefix("listening on ") {
            Some(address) => running.address = address.to_owned(),
            None => return Err(format!("it says {line:?}\n{}", running.log())),
        }
        Ok(running)
    }

    /// Starts a program that listens on a Unix socket.
    ///
    /// # Errors
    /// Why it does not start.
    pub async fn start_unix(program: Command) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let socket = folder.path().join("processor.sock");
        let address = format!("unix:{}", socket.display());
        let running = Self::spawn(program, folder, address, Stdio::null())?;
        let listens = async {
            while UnixStream::connect(&socket).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let listens = tokio::time::timeout(START, listens).await;
        listens.map_err(|_| format!("it does not listen\n{}", running.log()))?;
        Ok(running)
    }

    fn spawn(
        mut program: Command,
        folder: TempDir,
        address: String,
        stdout: Stdio,
    ) -> Result<Self, String> {
        let log = File::create(folder.path().join("log")).map_err(|e| e.to_string())?;
        let process = program
            .arg(&address)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.get_program().display()))?;
        Ok(Self {
            process,
            address,
            folder,
        })
    }

    /// What it has written to its standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
