//! Real Envoy: one process that has a listener for each scenario.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::envoy_config;
use crate::h1::{Framing, Reader, write_head};

/// How long Envoy may take to start.
const START: Duration = Duration::from_secs(60);

/// A running Envoy; it ends with this value.
#[derive(Debug)]
pub struct Envoy {
    process: Child,
    folder: PathBuf,
    listeners: BTreeMap<String, SocketAddr>,
}

/// Envoy's program: what `ATTACHE_ENVOY` names, else what the workspace has.
pub fn program() -> Option<PathBuf> {
    let program = match std::env::var_os("ATTACHE_ENVOY") {
        Some(path) => PathBuf::from(path),
        None => target().join("tools/envoy"),
    };
    program.is_file().then_some(program)
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")
}

impl Envoy {
    /// Starts Envoy for these parts of a bootstrap: one for each scenario.
    pub async fn start(program: &Path, parts: &[Value]) -> Result<Self, String> {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let nth = STARTED.fetch_add(1, Ordering::Relaxed);
        let folder = target().join(format!("tmp/envoy-{}-{nth}", std::process::id()));
        fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        let file = folder.join("bootstrap.json");
        let bootstrap = envoy_config::bootstrap(parts);
        fs::write(&file, bootstrap.to_string()).map_err(|e| e.to_string())?;
        let log = fs::File::create(folder.join("log")).map_err(|e| e.to_string())?;
        let process = Command::new(program)
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "--log-level",
                "warning",
            ])
            .arg("--config-path")
            .arg(&file)
            .arg("--admin-address-path")
            .arg(folder.join("admin"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let mut envoy = Self {
            process,
            folder,
            listeners: BTreeMap::new(),
        };
        envoy.wait_until_ready().await?;
        Ok(envoy)
    }

    async fn wait_until_ready(&mut self) -> Result<(), String> {
        let start = Instant::now();
        while start.elapsed() < START {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(format!("Envoy ended with {status}:\n{}", self.log_end()));
            }
            if let Some(listeners) = self.try_listeners().await {
                self.listeners = listeners;
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!(
            "Envoy did not start in {START:?}:\n{}",
            self.log_end()
        ))
    }

    async fn try_listeners(&self) -> Option<BTreeMap<String, SocketAddr>> {
        let admin = fs::read_to_string(self.folder.join("admin")).ok()?;
        let admin: SocketAddr = admin.trim().parse().ok()?;
        if !get(admin, "/ready").await?.starts_with(b"LIVE") {
            return None;
        }
        let answer = get(admin, "/listeners?format=json").await?;
        let body: Value = serde_json::from_slice(&answer).ok()?;
        let mut listeners = BTreeMap::new();
        for status in body.get("listener_statuses")?.as_array()? {
            let address = &status["local_address"]["socket_address"];
            let port = address["port_value"].as_u64()?;
            let address = format!("{}:{port}", address["address"].as_str()?);
            listeners.insert(status["name"].as_str()?.to_owned(), address.parse().ok()?);
        }
        Some(listeners)
    }

    /// Where the n-th scenario's listener is.
    pub fn address(&self, nth: usize) -> Option<SocketAddr> {
        self.listeners
            .get(&envoy_config::listener_name(nth))
            .copied()
    }

    /// The end of Envoy's log.
    pub fn log_end(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines = log.lines().filter(|line| !line.contains("[warning]"));
        // Envoy repeats the whole bootstrap in a complaint about it.
        let lines: Vec<String> = lines.map(|line| line.chars().take(500).collect()).collect();
        lines[lines.len().saturating_sub(3)..].join("\n")
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

async fn get(address: SocketAddr, path: &str) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let headers = vec![("host".to_owned(), b"admin".to_vec())];
    stream
        .write_all(&write_head(&format!("GET {path} HTTP/1.1"), &headers))
        .await
        .ok()?;
    let mut reader = Reader::new(stream);
    let framing = reader.head().await?.framing(Framing::ToClose);
    let mut body = Vec::new();
    reader
        .body(framing, |data| body.extend_from_slice(data))
        .await?;
    Some(body)
}
