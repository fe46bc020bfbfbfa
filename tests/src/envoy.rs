//! Real Envoy: one process that has a listener for each scenario.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
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
    admin: Option<SocketAddr>,
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
        Self::run(program, &envoy_config::bootstrap(parts)).await
    }

    /// Starts Envoy with this bootstrap.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn run(program: &Path, bootstrap: &Value) -> Result<Self, String> {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let nth = STARTED.fetch_add(1, Ordering::Relaxed);
        let folder = target().join(format!("tmp/envoy-{}-{nth}", std::process::id()));
        fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        let file = folder.join("bootstrap.json");
        fs::write(&file, bootstrap.to_string()).map_err(|e| e.to_string())?;
        let log = fs::File::create(folder.join("log")).map_err(|e| e.to_string())?;
        // The working directory is its own, for its logs.
        let program = &std::path::absolute(program).map_err(|e| e.to_string())?;
        let process = Command::new(program)
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "--log-level",
                "warning",
                "--file-flush-interval-msec",
                "20",
            ])
            .current_dir(&folder)
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
            admin: None,
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
            if let Some((admin, listeners)) = self.try_listeners().await {
                self.admin = Some(admin);
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

    async fn try_listeners(&self) -> Option<(SocketAddr, BTreeMap<String, SocketAddr>)> {
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
        Some((admin, listeners))
    }

    /// Where a listener is that comes from a control plane, once it is there.
    pub async fn listener(&self, name: &str) -> Option<SocketAddr> {
        let (_, listeners) = self.try_listeners().await?;
        listeners.get(name).copied()
    }

    /// Where the n-th scenario's listener is.
    pub fn address(&self, nth: usize) -> Option<SocketAddr> {
        self.listeners
            .get(&envoy_config::listener_name(nth))
            .copied()
    }

    /// The counters of the filter `kind` in the n-th scenario, summed over all instances, as far
    /// as they are not 0. Those of External Authorization have their `stat_prefix` before them,
    /// and those of a cluster its name; beside them are the responses of the origins.
    pub async fn stats(&self, nth: usize, kind: &str) -> Value {
        let mut counters = BTreeMap::<String, u64>::new();
        let listener = envoy_config::listener_name(nth);
        let cluster = format!("cluster.{}", envoy_config::prefix(nth));
        let filter = format!("http.{listener}.{kind}.");
        let path = match kind {
            "ext_authz" | "ratelimit" => {
                format!("/stats?format=text&type=Counters&usedonly&filter={listener}[.~]")
            }
            _ => format!("/stats?format=text&type=Counters&usedonly&filter=^{filter}"),
        };
        let text = match self.admin {
            Some(admin) => get(admin, &path).await.unwrap_or_default(),
            None => Vec::new(),
        };
        for line in String::from_utf8_lossy(&text).lines() {
            let Some((name, count)) = line.split_once(": ") else {
                continue;
            };
            let name = match (name.strip_prefix(&filter), name.strip_prefix(&cluster)) {
                (Some(name), _) if kind == "ext_authz" => name.to_owned(),
                (Some(name), _) => name.rsplit('.').next().unwrap_or_default().to_owned(),
                (None, Some(name)) if is_of_origin(name) => name.replace(&format!(".{kind}."), "."),
                _ => continue,
            };
            let count = count.parse::<u64>().unwrap_or_default();
            *counters.entry(name).or_default() += count;
        }
        counters.retain(|_, count| *count > 0);
        json!(counters)
    }

    /// The last line of the n-th scenario's access log.
    pub fn log(&self, nth: usize) -> Value {
        let file = self.folder.join(envoy_config::log_name(nth));
        let text = fs::read_to_string(file).unwrap_or_default();
        let last = text.lines().last().unwrap_or_default();
        let mut line: Value = serde_json::from_str(last).unwrap_or_default();
        if line.get("policies").is_none() {
            return json!({ "line": last });
        }
        if line["flags"] == "-" {
            line["flags"] = json!("");
        }
        if let Some(states) = line["filter_state"].as_object_mut() {
            for state in states.values_mut().filter_map(Value::as_object_mut) {
                state.retain(|_, value| !value.is_null());
            }
            states.retain(|_, state| !state.is_null() && *state != json!({}));
        }
        for state in line["policies"]
            .as_object_mut()
            .into_iter()
            .flat_map(Map::values_mut)
        {
            *state = calls(state.as_str().unwrap_or_default());
        }
        line
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

/// Whether a counter of a cluster is one of those that ours has too.
fn is_of_origin(name: &str) -> bool {
    let class = |name: &str| matches!(name.strip_suffix("xx"), Some("1" | "2" | "3" | "4" | "5"));
    let (cluster, counter) = name.split_once('.').unwrap_or_default();
    let responses = counter.strip_prefix("upstream_rq_").is_some_and(class);
    let of_policy = ["ext_authz.", "ratelimit."];
    of_policy.iter().any(|policy| counter.starts_with(policy))
        || (responses && matches!(cluster, "web" | "alt"))
}

/// The last status of each kind of call, from the filter's own short form
/// (`rh:210:0,rb:2:400:0,bs:100,…`).
fn calls(plain: &str) -> Value {
    let mut calls = Map::new();
    for part in plain.split(',') {
        let mut words = part.split(':');
        let kind = match words.next() {
            Some("rh") => "request_headers",
            Some("rb") => "request_body",
            Some("rt") => "request_trailers",
            Some("sh") => "response_headers",
            Some("sb") => "response_body",
            Some("st") => "response_trailers",
            _ => continue,
        };
        let status = words
            .next_back()
            .and_then(|status| status.parse::<i64>().ok());
        calls.insert(kind.to_owned(), json!(status));
    }
    Value::Object(calls)
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
