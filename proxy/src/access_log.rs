//! The JSON access log: one line per request, written by a thread of its own.
//!
//! Workers hand over finished records through a bounded queue. When the writer falls behind,
//! records are dropped and counted; requests never wait for a log.

use std::{
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    time::{Duration, SystemTime},
};

use attache_filter::{RequestContext, context::ResponseFlag, metadata::struct_to_json};
use attache_service::metrics::Counter;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::router::Answered;

/// Finished records that may wait for the writer.
const QUEUE: usize = 4096;

/// What is logged of a listener's requests, and where.
#[derive(Debug, Clone)]
pub struct AccessLogPlan {
    /// Where the lines go.
    pub sink: Sink,
    /// Part of the requests that is logged, 0 to 1. Default 1.
    pub sample: f64,
    /// Log every request that ended with a status of 500 or more, or without any.
    pub always_errors: bool,
    /// Log every request that took longer.
    pub always_slower: Option<Duration>,
}

/// Where the lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

/// The way to one writer. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    plan: Arc<AccessLogPlan>,
    queue: SyncSender<Box<Line>>,
    dropped: Counter,
}

impl AccessLog {
    /// Starts the writer. It ends when the last clone is gone.
    pub(crate) fn start(plan: &AccessLogPlan, dropped: Counter) -> io::Result<Self> {
        let output: Box<dyn Write + Send> = match &plan.sink {
            Sink::Stdout => Box::new(io::stdout()),
            Sink::File(path) => Box::new(OpenOptions::new().append(true).create(true).open(path)?),
        };
        let (queue, lines) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_all(&lines, BufWriter::new(output)))?;
        Ok(Self {
            plan: Arc::new(plan.clone()),
            queue,
            dropped,
        })
    }
}

fn write_all(lines: &Receiver<Box<Line>>, mut output: BufWriter<Box<dyn Write + Send>>) {
    let mut next = lines.recv().ok();
    while let Some(line) = next {
        // A full disk or closed pipe must not stop the proxy; there is nobody to tell.
        let _ = serde_json::to_writer(&mut output, &line.json());
        let _ = output.write_all(b"\n");
        next = match lines.try_recv() {
            Ok(line) => Some(line),
            Err(TryRecvError::Empty) => {
                let _ = output.flush();
                lines.recv().ok()
            }
            Err(TryRecvError::Disconnected) => None,
        };
    }
    let _ = output.flush();
}

/// What is noted while a request runs. Dropping it hands it to the log.
pub(crate) struct Record {
    log: AccessLog,
    context: Arc<RequestContext>,
    method: Method,
    path: String,
    host: String,
    request_id: Option<String>,
    pub(crate) bytes_in: Arc<AtomicU64>,
    pub(crate) bytes_out: u64,
    pub(crate) status: Option<StatusCode>,
    pub(crate) answered: Option<Answered>,
    /// The `content-length` of the response: nobody asks for more of its body than that.
    pub(crate) length: Option<u64>,
    /// The response was written in full.
    pub(crate) complete: bool,
    /// The response body failed.
    pub(crate) cut_off: bool,
}

struct Line {
    context: Arc<RequestContext>,
    method: Method,
    path: String,
    host: String,
    request_id: Option<String>,
    bytes_in: u64,
    bytes_out: u64,
    status: Option<StatusCode>,
    answered: Option<Answered>,
    duration: Duration,
}

impl Record {
    pub(crate) fn new(
        log: &AccessLog,
        context: &Arc<RequestContext>,
        parts: &http::request::Parts,
    ) -> Box<Self> {
        let text = |name: &str| {
            let value = parts.headers.get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Box::new(Self {
            log: log.clone(),
            context: context.clone(),
            method: parts.method.clone(),
            path: parts
                .uri
                .path_and_query()
                .map_or_else(String::new, |path| path.as_str().to_owned()),
            host: attache_filter::head::authority(parts)
                .unwrap_or_default()
                .to_owned(),
            request_id: text("x-request-id"),
            bytes_in: Arc::default(),
            bytes_out: 0,
            status: None,
            answered: None,
            length: None,
            complete: false,
            cut_off: false,
        })
    }

    fn wanted(&self, duration: Duration) -> bool {
        let plan = &self.log.plan;
        let error = self.status.is_none_or(|s| s.is_server_error()) || self.cut_off;
        (plan.always_errors && error)
            || plan.always_slower.is_some_and(|limit| duration > limit)
            || plan.sample >= 1.0
            || (plan.sample > 0.0 && rand::random::<f64>() < plan.sample)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let duration = self.context.started.elapsed();
        if !self.complete && !self.cut_off {
            self.context
                .add_flag(ResponseFlag::DownstreamConnectionTermination);
        }
        if !self.wanted(duration) {
            return;
        }
        let line = Box::new(Line {
            context: self.context.clone(),
            method: std::mem::take(&mut self.method),
            path: std::mem::take(&mut self.path),
            host: std::mem::take(&mut self.host),
            request_id: self.request_id.take(),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out,
            status: self.status,
            answered: self.answered.take(),
            duration,
        });
        if self.log.queue.try_send(line).is_err() {
            self.log.dropped.inc();
        }
    }
}

impl Line {
    fn json(&self) -> Value {
        let context = &self.context;
        let flags: Vec<&str> = context
            .flags()
            .into_iter()
            .map(ResponseFlag::short)
            .collect();
        let calls: Vec<Value> = context
            .calls()
            .iter()
            .map(|call| {
                json!({
                    "filter": &*call.filter,
                    "phase": call.phase,
                    "count": call.count,
                    "duration_ms": millis(call.latency),
                    "max_ms": millis(call.max_latency),
                    "bytes_sent": call.sent_bytes,
                    "bytes_received": call.received_bytes,
                    "grpc_status": call.status,
                })
            })
            .collect();
        let route = context.route();
        let states = context.filter_state();
        let states = states
            .iter()
            .map(|(name, state)| (name.to_string(), struct_to_json(state)));
        json!({
            "time": rfc3339(context.start_time()),
            "method": self.method.as_str(),
            "path": self.path,
            "host": self.host,
            "protocol": format!("{:?}", context.protocol),
            "status": self.status.map_or(0, |status| status.as_u16()),
            "flags": flags.join(","),
            "details": context.details(),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "duration_ms": millis(self.duration),
            "client": context.client_ip.map(|ip| ip.to_string()),
            "route": route.as_ref().map(|route| route.name.as_str()).filter(|name| !name.is_empty()),
            "cluster": route.as_ref().and_then(|route| route.cluster.as_deref()),
            "upstream": self.answered.as_ref().map(|answered| answered.endpoint.as_str()),
            "upstream_ms": self.answered.as_ref().map(|answered| millis(answered.after)),
            "request_id": self.request_id,
            "policies": calls,
            "filter_state": Value::Object(states.collect()),
        })
    }
}

/// Milliseconds with three decimals.
fn millis(duration: Duration) -> f64 {
    // Durations of requests are far below the 2^53 µs that f64 holds exactly.
    duration.as_micros() as f64 / 1000.0
}

/// `2026-11-22T04:01:11.123Z`
fn rfc3339(time: SystemTime) -> String {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

/// Year, month and day of a day count from 1970-01-01, by counting in eras of 400 years that
/// begin in March, so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (seconds, wanted) in [
            (0, "1970-01-01T00:00:00.005Z"),
            (951_782_399, "2000-02-28T23:59:59.005Z"),
            (951_782_400, "2000-02-29T00:00:00.005Z"),
            (1_795_320_071, "2026-11-22T04:01:11.005Z"),
            (4_102_444_800, "2100-01-01T00:00:00.005Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, 5_000_000);
            assert_eq!(rfc3339(time), wanted);
        }
    }
}
