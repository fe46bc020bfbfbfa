//! Real Envoy and real Redis.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{PATIENCE, Process, eventually, free_port, workspace};

/// A program: what the variable names, else what the workspace's tools have. When it is absent a
/// line says so, or the test fails under `ATTACHE_REQUIRE_ALL=1`.
pub fn program(variable: &str, name: &str) -> Option<PathBuf> {
    let program = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => workspace().join("target/tools").join(name),
    };
    if program.is_file() {
        return Some(program);
    }
    skip(&format!("there is no {name} at {}", program.display()));
    None
}

/// Says that a test does not run.
pub fn skip(why: &str) {
    assert!(
        std::env::var("ATTACHE_REQUIRE_ALL").as_deref() != Ok("1"),
        "{why}"
    );
    println!("skipped: {why}");
}

pub fn envoy_program() -> Option<PathBuf> {
    program("ATTACHE_ENVOY", "envoy")
}

/// A running Envoy with one listener.
pub struct Envoy {
    _process: Process,
    pub at: SocketAddr,
}

impl Envoy {
    /// Starts Envoy with a bootstrap that has an admin address and one listener on port 0.
    pub async fn start(program: &Path, folder: &Path, bootstrap: &str) -> Self {
        let (file, admin) = (folder.join("envoy.json"), folder.join("admin"));
        fs::write(&file, bootstrap).unwrap();
        let mut process = Process::spawn(
            Command::new(program)
                .args(["--disable-hot-restart", "--concurrency", "1"])
                .args(["--log-level", "error"])
                .arg("--config-path")
                .arg(&file)
                .arg("--admin-address-path")
                .arg(&admin),
        );
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Ok(text) = fs::read_to_string(&admin)
                && let Ok(admin) = text.trim().parse()
                && let Some(at) = listener(admin).await
            {
                return Self {
                    _process: process,
                    at,
                };
            }
            if let Some(status) = process.child.try_wait().unwrap() {
                panic!("Envoy ended with {status}:\n{}", process.text());
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "Envoy does not start"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn listener(admin: SocketAddr) -> Option<SocketAddr> {
    let mut client = super::http::Client::new(admin);
    let ready = client.get("/ready", &[]).await.ok()?;
    if !ready.body.starts_with("LIVE") {
        return None;
    }
    let listeners = client.get("/listeners", &[]).await.ok()?;
    listeners.body.trim().rsplit_once("::")?.1.parse().ok()
}

/// A Redis of our own.
pub struct Redis {
    program: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
    pub process: Process,
}

impl Redis {
    pub fn start() -> Option<Self> {
        let program = program("ATTACHE_REDIS", "redis-server")?;
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let process = Self::spawn(&program, folder.path(), port);
        Some(Self {
            program,
            folder,
            port,
            process,
        })
    }

    fn spawn(program: &Path, folder: &Path, port: u16) -> Process {
        let process = Process::spawn(
            Command::new(program)
                .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
                .args(["--save", "", "--appendonly", "no", "--dir"])
                .arg(folder),
        );
        process.wait_for("Ready to accept connections", 1);
        process
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it anew where it was.
    pub fn restart(&mut self) {
        eventually("the port of Redis is free", || {
            std::net::TcpListener::bind(("127.0.0.1", self.port)).ok()
        });
        self.process = Self::spawn(&self.program, self.folder.path(), self.port);
    }
}
