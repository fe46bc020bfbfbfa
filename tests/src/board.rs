//! What was seen so far, shared by everybody who takes part in a scenario.
//!
//! A step waits until something was seen (`await: {service: 2}`) and never
//! for a while: so scenarios are quick, and slow machines do no harm.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::text;

/// How long a step waits for what it is told to wait for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A header list in the order of arrival.
pub type Headers = Vec<(String, Vec<u8>)>;

/// What a step waits for; all that is given must hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// So many messages arrived at the services.
    pub service: Option<usize>,
    /// So many calls arrived at the services.
    pub calls: Option<usize>,
    /// So many calls ended again.
    pub ended: Option<usize>,
    /// So many requests arrived at the origins.
    pub origin: Option<usize>,
    /// The body of the last request at the origin contains this.
    pub origin_body: Option<String>,
    /// The client has so many interim responses.
    pub client_interim: Option<usize>,
    /// The client has the head of its response.
    pub client_head: Option<bool>,
    /// The body of the client's response contains this.
    pub client_body: Option<String>,
    /// The last request at the origin is whole.
    pub origin_complete: Option<bool>,
    /// So many seconds passed after all of this was seen: for what is to stay
    /// as it is.
    pub after: Option<f64>,
}

/// A request as an origin saw it.
#[derive(Debug, Clone, Default)]
pub struct SeenRequest {
    /// The cluster that it came through.
    pub cluster: &'static str,
    /// Method.
    pub method: String,
    /// Path and query as received.
    pub path: String,
    /// Headers without pseudo-headers.
    pub headers: Headers,
    /// The body so far.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: Headers,
    /// Whether the end of the message was seen.
    pub complete: bool,
}

/// The response as the client saw it.
#[derive(Debug, Clone, Default)]
pub struct SeenResponse {
    /// Status; 0 while there is none.
    pub status: u16,
    /// Interim statuses before it.
    pub interim: Vec<u16>,
    /// Headers without pseudo-headers.
    pub headers: Headers,
    /// The body so far.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: Headers,
    /// Whether the end of the message was seen.
    pub complete: bool,
    /// How much of the piece the proxy took, where the client notes it.
    pub taken: Option<usize>,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Messages by service, in the order of arrival.
    pub messages: BTreeMap<String, Vec<Value>>,
    /// Calls in the order of arrival.
    pub calls: Vec<Value>,
    /// Calls that ended.
    pub ended: usize,
    /// Requests at the origins in the order of arrival.
    pub origin: Vec<SeenRequest>,
    /// Requests that an origin still works on.
    pub origin_busy: usize,
    /// What the client got, last.
    pub client: SeenResponse,
    /// What the client got before that.
    pub earlier: Vec<SeenResponse>,
    /// What went wrong in the harness itself.
    pub errors: Vec<String>,
}

/// The shared record.
#[derive(Debug, Clone)]
pub struct Board {
    seen: Arc<Mutex<Seen>>,
    changed: watch::Sender<()>,
}

impl Board {
    /// An empty record.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self {
            seen: Arc::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Writes something down and wakes who waits.
    pub fn note<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        let result = change(&mut self.seen.lock().unwrap());
        self.changed.send_replace(());
        result
    }

    /// Notes a failure of the harness.
    pub fn error(&self, text: impl Into<String>) {
        let text = text.into();
        self.note(|seen| seen.errors.push(text));
    }

    /// Waits until `condition` holds; says so where it never does.
    pub async fn wait(&self, condition: &Condition) {
        if !self
            .wait_until(PATIENCE, |seen| condition.holds(seen))
            .await
        {
            self.error(format!("waited in vain: {condition:?}"));
        }
        if let Some(seconds) = condition.after {
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        }
    }

    /// Waits until the client found that nothing more is taken from it.
    pub async fn wait_stalled(&self) {
        let all = Duration::from_secs(3600);
        self.wait_until(all, |seen| seen.client.taken.is_some())
            .await;
    }

    /// Waits until every call and every origin request is over.
    pub async fn wait_idle(&self) -> bool {
        self.wait_until(PATIENCE, |seen| {
            seen.ended == seen.calls.len() && seen.origin_busy == 0
        })
        .await
    }

    /// Waits until so many messages arrived at each of these services.
    pub async fn wait_messages(&self, wanted: &BTreeMap<&str, usize>) -> bool {
        let count = |seen: &Seen, name: &str| seen.messages.get(name).map_or(0, Vec::len);
        self.wait_until(PATIENCE, |seen| {
            wanted.iter().all(|(name, n)| count(seen, name) >= *n)
        })
        .await
    }

    async fn wait_until(&self, patience: Duration, holds: impl Fn(&Seen) -> bool) -> bool {
        let mut changed = self.changed.subscribe();
        let wait = changed.wait_for(|()| holds(&self.seen.lock().unwrap()));
        tokio::time::timeout(patience, wait).await.is_ok()
    }

    /// Everything as one value, or what went wrong in the harness.
    pub fn observation(&self) -> Result<Value, String> {
        let seen = self.seen.lock().unwrap();
        let value = json!({
            "client": seen.client.show(),
            "earlier": seen.earlier.iter().map(SeenResponse::show).collect::<Value>(),
            "origin": seen.origin.iter().map(SeenRequest::show).collect::<Value>(),
            "calls": seen.calls,
            "messages": seen.messages,
            "open_calls": seen.calls.len() - seen.ended,
        });
        if seen.errors.is_empty() {
            return Ok(value);
        }
        Err(format!(
            "{}\nseen: {}",
            seen.errors.join("\n"),
            pretty(&brief(&value))
        ))
    }
}

impl Condition {
    fn holds(&self, seen: &Seen) -> bool {
        let messages: usize = seen.messages.values().map(Vec::len).sum();
        let origin_body = seen.origin.last().map_or(&[][..], |request| &request.body);
        self.service.is_none_or(|n| messages >= n)
            && self.calls.is_none_or(|n| seen.calls.len() >= n)
            && self.ended.is_none_or(|n| seen.ended >= n)
            && self.origin.is_none_or(|n| seen.origin.len() >= n)
            && self
                .origin_body
                .as_deref()
                .is_none_or(|part| contains(origin_body, part))
            && self
                .client_interim
                .is_none_or(|n| seen.client.interim.len() >= n)
            && self
                .client_head
                .is_none_or(|wanted| (seen.client.status != 0) == wanted)
            && self
                .client_body
                .as_deref()
                .is_none_or(|part| contains(&seen.client.body, part))
            && self.origin_complete.is_none_or(|wanted| {
                seen.origin.last().is_some_and(|request| request.complete) == wanted
            })
    }
}

fn contains(body: &[u8], part: &str) -> bool {
    body.windows(part.len().max(1))
        .any(|window| window == part.as_bytes())
}

/// JSON over several lines, for messages to people.
pub fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// A value with its long texts cut short, for messages to people.
pub fn brief(value: &Value) -> Value {
    match value {
        Value::String(text) if text.len() > 200 => {
            let start: String = text.chars().take(40).collect();
            json!(format!("{start}… ({} bytes)", text.len()))
        }
        Value::Array(items) => items.iter().map(brief).collect(),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| (name.clone(), brief(value)));
            Value::Object(fields.collect())
        }
        other => other.clone(),
    }
}

/// A header list as `[[name, value]]`, names in order; the values of one name
/// keep theirs. The order of different names means nothing in HTTP.
pub fn show_headers(headers: &Headers) -> Value {
    let mut sorted: Vec<_> = headers
        .iter()
        .map(|(k, v)| (k.to_ascii_lowercase(), v))
        .collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    sorted
        .into_iter()
        .map(|(name, value)| json!([name, text::from_bytes(value)]))
        .collect()
}

impl SeenRequest {
    fn show(&self) -> Value {
        json!({
            "cluster": self.cluster,
            "method": self.method,
            "path": self.path,
            "headers": show_headers(&self.headers),
            "body": text::from_bytes(&self.body),
            "trailers": show_headers(&self.trailers),
            "complete": self.complete,
        })
    }
}

impl SeenResponse {
    fn show(&self) -> Value {
        let mut shown = json!({
            "status": self.status,
            "interim": self.interim,
            "headers": show_headers(&self.headers),
            "body": text::from_bytes(&self.body),
            "trailers": show_headers(&self.trailers),
            "complete": self.complete,
        });
        if let Some(taken) = self.taken {
            shown["taken"] = json!(taken);
        }
        shown
    }
}
