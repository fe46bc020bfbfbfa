//! A running rate limit service: the reference, or ours in its place.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::discovered::Discovered;
use super::process::Process;
use super::rpc;
use super::statsd::Statsd;
use crate::tls::{self, Tls};

/// How long a service may take to start, or to take over a file.
pub(super) const START: Duration = Duration::from_secs(20);

/// Between two looks at something that nobody reports.
pub(super) const LOOK: Duration = Duration::from_millis(10);

/// How long ours may wait for its store in scenarios in which the store is there.
const PATIENT: &str = "2s";

/// The variable with which a service starts before it has files.
const WITHOUT_FILES: &str = "FORCE_START_WITHOUT_INITIAL_CONFIG";

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// envoyproxy/ratelimit.
    Reference,
    /// `attache ratelimit`.
    Ours,
}

/// How the files of a service lie.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// In one folder, watched file by file.
    #[default]
    Folder,
    /// Behind a link, which is swapped when they change.
    Link,
    /// Nowhere: a control plane sends what is in them.
    Discovery,
}

/// What a service is started with.
#[derive(Debug)]
pub struct Start<'a> {
    /// Who.
    pub side: Side,
    /// Its program.
    pub program: &'a Path,
    /// The variables beside those of every start.
    pub variables: &'a BTreeMap<String, String>,
    /// Its configuration files: names and texts.
    pub files: &'a BTreeMap<String, String>,
    /// How they lie.
    pub layout: Layout,
    /// Its store.
    pub redis: SocketAddr,
    /// The store of its limits by the second, if it is another.
    pub second_redis: Option<SocketAddr>,
    /// Whether the store goes away in its scenarios.
    pub outage: bool,
    /// How it is called, if over TLS.
    pub tls: Option<Tls>,
}

/// A running service; it ends with this value.
#[derive(Debug)]
pub struct Service {
    /// Where `/json` and `/healthcheck` are.
    pub http: SocketAddr,
    /// Where `/rlconfig` is.
    pub debug: SocketAddr,
    /// Where it is called.
    pub grpc: SocketAddr,
    /// Where it shows its metrics, if it does.
    pub prometheus: SocketAddr,
    /// What it has counted.
    pub statsd: Statsd,
    tls: Option<Tls>,
    process: Process,
    layout: Layout,
    folder: tempfile::TempDir,
    discovered: Option<Discovered>,
    files: BTreeMap<String, String>,
    swaps: u32,
}

impl Service {
    /// Starts a service and waits until it answers on all its ports.
    pub async fn start(start: Start<'_>) -> Result<Self, String> {
        let statsd = Statsd::start().await?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let address = || Ok::<_, String>(SocketAddr::from(([127, 0, 0, 1], free_port()?)));
        let (http, debug, grpc, prometheus) = (address()?, address()?, address()?, address()?);
        let mut command = Command::new(start.program);
        command.env_clear();
        if start.side == Side::Ours {
            command.arg("ratelimit");
        }
        if start.side == Side::Ours && !start.outage {
            // A busy machine is no outage.
            command
                .env("REDIS_OPERATION_TIMEOUT", PATIENT)
                .env("REDIS_PERSECOND_OPERATION_TIMEOUT", PATIENT);
        }
        let root = match start.layout {
            Layout::Link => folder.path().join("current"),
            Layout::Folder | Layout::Discovery => folder.path().to_owned(),
        };
        let discovered = match start.layout {
            Layout::Discovery => Some(Discovered::start(start.files).await?),
            Layout::Folder | Layout::Link => None,
        };
        if let Some(discovered) = &discovered {
            command
                .env("CONFIG_TYPE", "GRPC_XDS_SOTW")
                .env("CONFIG_GRPC_XDS_SERVER_URL", discovered.address.to_string());
        }
        command
            .env("HOST", "127.0.0.1")
            .env("PORT", http.port().to_string())
            .env("DEBUG_HOST", "127.0.0.1")
            .env("DEBUG_PORT", debug.port().to_string())
            .env("GRPC_HOST", "127.0.0.1")
            .env("GRPC_PORT", grpc.port().to_string())
            .env("PROMETHEUS_ADDR", prometheus.to_string())
            .env("LOG_FORMAT", "json")
            .env("RUNTIME_ROOT", &root)
            .env("RUNTIME_SUBDIRECTORY", "limits")
            .env("RUNTIME_IGNOREDOTFILES", "true")
            .env(
                "RUNTIME_WATCH_ROOT",
                (start.layout == Layout::Link).to_string(),
            )
            .env("STATSD_HOST", "127.0.0.1")
            .env("STATSD_PORT", statsd.address.port().to_string())
            .env("STATS_FLUSH_INTERVAL", "50ms")
            .env("REDIS_SOCKET_TYPE", "tcp")
            .env("REDIS_URL", start.redis.to_string())
            .envs(start.variables);
        if let Some(redis) = start.second_redis {
            command
                .env("REDIS_PERSECOND", "true")
                .env("REDIS_PERSECOND_SOCKET_TYPE", "tcp")
                .env("REDIS_PERSECOND_URL", redis.to_string());
        }
        let mut files = Files {
            layout: start.layout,
            folder: folder.path(),
            swaps: 0,
        };
        if discovered.is_none() {
            files.write(start.files)?;
        }
        let swaps = files.swaps;
        let mut service = Self {
            http,
            debug,
            grpc,
            prometheus,
            statsd,
            tls: start.tls,
            process: Process::spawn(&mut command)?,
            layout: start.layout,
            folder,
            discovered,
            files: start.files.clone(),
            swaps,
        };
        service.answers().await?;
        let counted = start.variables.get("USE_STATSD").map(String::as_str) != Some("false");
        if counted && start.variables.get(WITHOUT_FILES).map(String::as_str) != Some("true") {
            service.loaded().await?;
        }
        Ok(service)
    }

    /// Waits until what it says of its first files has come in, where it says so.
    async fn loaded(&self) -> Result<(), String> {
        let start = Instant::now();
        while self.loads().0 + self.loads().1 == 0.0 {
            if start.elapsed() > START {
                return Err(format!("it counts no loads:\n{}", self.process.said()));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// How often files were taken, and how often refused.
    fn loads(&self) -> (f64, f64) {
        let counter = |name: &str| self.statsd.counter(&format!("ratelimit.service.{name}"));
        (counter("config_load_success"), counter("config_load_error"))
    }

    async fn answers(&mut self) -> Result<(), String> {
        let start = Instant::now();
        for port in [self.grpc, self.debug, self.http] {
            while tokio::net::TcpStream::connect(port).await.is_err() {
                if let Some(code) = self.process.ended()? {
                    return Err(format!("it ended with {code}:\n{}", self.process.said()));
                }
                if start.elapsed() > START {
                    return Err(format!("it does not start:\n{}", self.process.said()));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Changes files (a name without a text is removed), and waits until the service has looked
    /// at each. Gives where in the log it says why, if it refused the last.
    pub async fn load(
        &mut self,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<Option<usize>, String> {
        for (name, text) in changes {
            match text {
                Some(text) => self.files.insert(name.clone(), text.clone()),
                None => self.files.remove(name),
            };
        }
        let mut files = Files {
            layout: self.layout,
            folder: self.folder.path(),
            swaps: self.swaps,
        };
        let mut refused = None;
        match self.layout {
            Layout::Link | Layout::Discovery => {
                let before = (self.loads(), self.process.lines().len());
                match &self.discovered {
                    Some(discovered) => discovered.replace(&self.files)?,
                    None => files.write(&self.files)?,
                }
                refused = self.taken_or_refused(before).await?;
            }
            Layout::Folder => {
                // A load for each file, so that none of them comes in late.
                for (name, text) in changes {
                    let before = (self.loads(), self.process.lines().len());
                    files.change(name, text.as_deref())?;
                    refused = self.taken_or_refused(before).await?;
                }
            }
        }
        self.swaps = files.swaps;
        Ok(refused)
    }

    /// Waits until files are taken or refused; gives where the log said so if they are refused.
    async fn taken_or_refused(
        &self,
        ((taken, refused), logged): ((f64, f64), usize),
    ) -> Result<Option<usize>, String> {
        let start = Instant::now();
        loop {
            if self.loads().0 > taken {
                return Ok(None);
            }
            if self.loads().1 > refused {
                return Ok(Some(logged));
            }
            if start.elapsed() > START {
                return Err(format!(
                    "it does not look at its files again:\n{}",
                    self.process.said()
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What it has logged after so many lines, without the marks of JSON.
    pub fn log(&self, since: usize) -> String {
        let lines = self.process.lines();
        lines
            .iter()
            .skip(since)
            .map(|line| plain(line))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) -> Result<(), String> {
        self.process.signal(name)
    }

    /// Its exit code, once it has ended on its own.
    pub async fn ended(&mut self) -> Result<i32, String> {
        let start = Instant::now();
        while start.elapsed() < START {
            if let Some(code) = self.process.ended()? {
                return Ok(code);
            }
            tokio::time::sleep(LOOK).await;
        }
        Err("it goes on".to_owned())
    }

    /// One gRPC call, by another client than the usual one if there is one.
    pub(super) async fn call(
        &self,
        path: &str,
        message: &[u8],
        other: Option<&Tls>,
    ) -> Result<Result<bytes::Bytes, rpc::Failed>, String> {
        let address = match other.or(self.tls.as_ref()) {
            Some(tls) => tls::through(self.grpc, tls, "h2").await?,
            None => self.grpc,
        };
        let called = rpc::call(address, path, message).await;
        called.map_err(|error| format!("{error}\n{}", self.process.said()))
    }
}

/// The files of a service in its folder.
struct Files<'a> {
    layout: Layout,
    folder: &'a Path,
    swaps: u32,
}

impl Files<'_> {
    fn place(&self) -> PathBuf {
        let root = match self.layout {
            Layout::Folder | Layout::Discovery => self.folder.to_owned(),
            Layout::Link => self.folder.join(format!("version-{}", self.swaps)),
        };
        root.join("limits/config")
    }

    /// Writes all files; behind a link, as another version of them.
    fn write(&mut self, files: &BTreeMap<String, String>) -> Result<(), String> {
        self.swaps += 1;
        fs::create_dir_all(self.place()).map_err(|error| error.to_string())?;
        for (name, text) in files {
            self.change(name, Some(text))?;
        }
        if self.layout == Layout::Link {
            let (link, next) = (self.folder.join("current"), self.folder.join("next"));
            let version = self.folder.join(format!("version-{}", self.swaps));
            std::os::unix::fs::symlink(version, &next).map_err(|error| error.to_string())?;
            fs::rename(next, link).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Writes or removes one file at once, so that nobody sees a half of it.
    fn change(&self, name: &str, text: Option<&str>) -> Result<(), String> {
        let file = self.place().join(name);
        let done = match text {
            Some(text) => {
                let scratch = self.folder.join("scratch");
                fs::write(&scratch, text).and_then(|()| fs::rename(scratch, &file))
            }
            None => fs::remove_file(&file),
        };
        done.map_err(|error| format!("{}: {error}", file.display()))
    }
}

/// The texts of a line of JSON.
fn plain(line: &str) -> String {
    match serde_json::from_str::<BTreeMap<String, serde_json::Value>>(line) {
        Ok(fields) => {
            let texts = fields.values().map(|value| match value.as_str() {
                Some(text) => text.to_owned(),
                None => value.to_string(),
            });
            texts.collect::<Vec<_>>().join(" ")
        }
        Err(_) => line.to_owned(),
    }
}

/// A port that was free a moment ago, and is given to nobody else in this process: services that
/// share their ports would not notice.
pub(super) fn free_port() -> Result<u16, String> {
    static GIVEN: std::sync::Mutex<Vec<u16>> = std::sync::Mutex::new(Vec::new());
    loop {
        let socket = std::net::TcpListener::bind("127.0.0.1:0");
        let socket = socket.map_err(|error| format!("no free port: {error}"))?;
        let port = socket.local_addr().map_err(|e| e.to_string())?.port();
        let mut given = GIVEN.lock().unwrap();
        if !given.contains(&port) {
            given.push(port);
            return Ok(port);
        }
    }
}
