//! A real control plane: `tests/control-plane`, made of go-control-plane, that
//! `cargo xtask processors` has built.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use attache_service::Address;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::processors::built;

/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program; nothing where it is not built, or not from these sources.
pub fn program() -> Option<PathBuf> {
    let build = built("tests/control-plane", "target/control-plane")?;
    Some(build.join("control-plane"))
}

/// Something that happened in the control plane.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Event {
    /// `set` (a state of the world is in its place) and `failed`; of streams `opened`, `request`,
    /// `response` and `closed`.
    pub event: String,
    /// Numbers the streams, in each variant from 1.
    pub stream: i64,
    /// Whether it is a stream of changes.
    pub delta: bool,
    /// The type of the resources.
    #[serde(rename = "type")]
    pub type_url: String,
    /// Of a request: the names asked for; of changes, those added.
    #[serde(default, deserialize_with = "or_default")]
    pub names: Vec<String>,
    /// Of a request for changes: the names not wanted any more.
    #[serde(default, deserialize_with = "or_default")]
    pub unsubscribe: Vec<String>,
    /// Of a request for changes: the versions that the client has.
    #[serde(default, deserialize_with = "or_default")]
    pub initial: BTreeMap<String, String>,
    /// The version in force or sent; of changes only what is sent.
    pub version: String,
    /// Which response this is, or answers.
    pub nonce: String,
    /// Why a response is refused (`<code>: <text>`), or a state cannot be set; empty otherwise.
    pub error: String,
    /// Who asks.
    pub node: String,
}

/// Empty lists are `null` in Go.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A running control plane; it ends with this value.
#[derive(Debug)]
pub struct ControlPlane {
    /// Where it listens.
    pub address: Address,
    input: ChildStdin,
    output: mpsc::UnboundedReceiver<String>,
    /// All that has happened.
    events: Vec<Event>,
    /// How much of it was looked at.
    looked: usize,
    process: Child,
}

impl ControlPlane {
    /// Starts it at a port of the system's choice.
    pub async fn start(program: &Path) -> Self {
        Self::start_at(program, "127.0.0.1:0").await
    }

    /// Starts it there.
    pub async fn start_at(program: &Path, address: &str) -> Self {
        let mut process = Command::new(program)
            .arg(address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let written = BufReader::new(process.stdout.take().unwrap());
        let (lines, mut output) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let mut written = written.lines().map_while(Result::ok);
            while written.next().is_some_and(|line| lines.send(line).is_ok()) {}
        });
        let first = within(output.recv()).await.unwrap();
        let address = first.strip_prefix("listening on ").unwrap();
        Self {
            address: address.parse().unwrap(),
            input,
            output,
            events: Vec::new(),
            looked: 0,
            process,
        }
    }

    /// Puts a state of the world in the place of the one before; all of its types get the version.
    /// Each resource is in protojson, with its `@type`.
    ///
    /// As an aggregated server it answers for endpoints and routes only when all that it has of
    /// them are asked for: give none that no cluster or listener names.
    pub async fn set(&mut self, version: &str, resources: &[Value]) {
        let state = json!({ "version": version, "resources": resources });
        let line = format!("{state}\n");
        self.input.write_all(line.as_bytes()).unwrap();
        let from = self.events.len();
        let set = |event: &Event| matches!(&*event.event, "set" | "failed");
        let (_, set) = self.find(from, set).await;
        assert_eq!((&*set.error, &*set.version), ("", version), "{state}");
    }

    /// The next event such as this, after the last one that was looked for.
    pub async fn until(&mut self, is_so: impl FnMut(&Event) -> bool) -> Event {
        let (at, event) = self.find(self.looked, is_so).await;
        self.looked = at + 1;
        event
    }

    /// What a client says to the next response of this type and version: it is accepted when there
    /// is no `error` in it. Later calls look at what comes after that response.
    pub async fn answer_to(&mut self, type_url: &str, version: &str) -> Event {
        let response = self
            .until(|event| {
                event.event == "response" && event.type_url == type_url && event.version == version
            })
            .await;
        let answers = |event: &Event| {
            event.event == "request"
                && (event.delta, event.stream) == (response.delta, response.stream)
                && (&event.type_url, &event.nonce) == (&response.type_url, &response.nonce)
        };
        self.find(0, answers).await.1
    }

    /// All that has been seen to happen.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The first such event from there on, and where it is.
    async fn find(&mut self, from: usize, mut is_so: impl FnMut(&Event) -> bool) -> (usize, Event) {
        let mut at = from;
        loop {
            while let Some(event) = self.events.get(at) {
                if is_so(event) {
                    return (at, event.clone());
                }
                at += 1;
            }
            let line = tokio::time::timeout(PATIENCE, self.output.recv()).await;
            let line = line.unwrap_or_else(|_| panic!("not in time, but {:#?}", self.events));
            let line = line.expect("the control plane goes on");
            let event = serde_json::from_str(&line);
            self.events
                .push(event.unwrap_or_else(|why| panic!("{why}: {line}")));
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("in time")
}
