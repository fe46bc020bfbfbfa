//! What is noted while a request runs, and known of it once it is over: for logs and traces.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use attache_filter::{
    RequestContext,
    attributes::Facts,
    context::ResponseFlag,
    format::{Exchange, Finished},
    head,
};
use http::{HeaderMap, StatusCode, request, response};

use super::AccessLogs;
use crate::{router::Answered, trace::Tracing};

/// The body of a request, as it comes in.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    bytes: AtomicU64,
    /// When it had come to its end, in microseconds since the request began, plus one.
    ended: AtomicU64,
}

impl Incoming {
    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The end came this long after the request began.
    pub(crate) fn end(&self, after: Duration) {
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX - 1);
        self.ended
            .store(micros.saturating_add(1), Ordering::Relaxed);
    }

    fn ended(&self) -> Option<Duration> {
        let micros = self.ended.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_micros(micros))
    }
}

/// What is noted while a request runs. Dropping it hands it to the logs and
/// traces.
pub(crate) struct Record {
    logs: Option<AccessLogs>,
    tracing: Option<Tracing>,
    line: Line,
    pub(crate) incoming: Arc<Incoming>,
    /// The `content-length` of the response: nobody asks for more of its body than that.
    length: Option<u64>,
    /// The response was written in full.
    complete: bool,
}

/// A request that is over.
#[derive(Clone)]
pub(crate) struct Line {
    pub(super) context: Arc<RequestContext>,
    /// The request's head when it came.
    pub(super) arrived: Arc<request::Parts>,
    /// The same as it went on, where that is of interest.
    went: Option<Arc<request::Parts>>,
    response: Option<Arc<response::Parts>>,
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    pub(super) answered: Option<Answered>,
    /// The response body failed.
    pub(super) cut_off: bool,
    pub(super) finished: Finished,
}

impl Record {
    pub(crate) fn new(
        logs: Option<&AccessLogs>,
        tracing: Option<&Tracing>,
        context: &Arc<RequestContext>,
        parts: &request::Parts,
    ) -> Box<Self> {
        Box::new(Self {
            logs: logs.cloned(),
            tracing: tracing.cloned(),
            line: Line {
                context: context.clone(),
                arrived: Arc::new(head::copy(parts)),
                went: None,
                response: None,
                bytes_received: 0,
                bytes_sent: 0,
                answered: None,
                cut_off: false,
                finished: Finished::default(),
            },
            incoming: Arc::default(),
            length: None,
            complete: false,
        })
    }

    /// The response's head goes out.
    pub(crate) fn responds(&mut self, head: &response::Parts) {
        let length = head.headers.get(http::header::CONTENT_LENGTH);
        self.length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        self.line.answered = head.extensions.get::<Answered>().cloned();
        let (mut copy, ()) = http::Response::new(()).into_parts();
        copy.status = head.status;
        copy.version = head.version;
        copy.headers = head.headers.clone();
        self.line.response = Some(Arc::new(copy));
    }

    /// A piece of the response's body goes out.
    pub(crate) fn sends(&mut self, bytes: usize) {
        self.line.bytes_sent = self.line.bytes_sent.saturating_add(bytes as u64);
        self.complete |= self.length == Some(self.line.bytes_sent);
    }

    /// The response's trailers go out.
    pub(crate) fn trails(&mut self, trailers: &HeaderMap) {
        self.line.finished.trailers = Some(Arc::new(trailers.clone()));
    }

    /// The response is written in full.
    pub(crate) fn completes(&mut self) {
        self.complete = true;
    }

    /// The response's body failed.
    pub(crate) fn breaks(&mut self) {
        self.line.cut_off = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let line = &mut self.line;
        line.finished.duration = line.context.started.elapsed();
        line.finished.received = self.incoming.ended();
        line.bytes_received = self.incoming.bytes.load(Ordering::Relaxed);
        line.went = line.context.take_head();
        if !self.complete && !line.cut_off {
            line.context
                .add_flag(ResponseFlag::DownstreamConnectionTermination);
        }
        if let Some(tracing) = &self.tracing {
            let took = line.finished.duration;
            tracing.report(&line.context, &line.arrived, line.status(), took);
        }
        if let Some(logs) = &self.logs {
            logs.take(line);
        }
    }
}

impl Line {
    /// The request's head, as it went on where that is known.
    pub(super) fn request(&self) -> &request::Parts {
        self.went.as_ref().unwrap_or(&self.arrived)
    }

    pub(super) fn request_id(&self) -> Option<&[u8]> {
        let id = self.request().headers.get("x-request-id")?;
        Some(id.as_bytes())
    }

    pub(super) fn status(&self) -> Option<StatusCode> {
        self.response.as_ref().map(|response| response.status)
    }

    pub(super) fn status_number(&self) -> u16 {
        self.status().map_or(0, |status| status.as_u16())
    }

    /// The status of the gRPC call: as it says, else what its HTTP status stands for.
    pub(super) fn grpc_code(&self) -> i32 {
        let trailers = self.finished.trailers.as_deref();
        let head = self.response.as_ref().map(|response| &response.headers);
        let said = [trailers, head].into_iter().flatten().find_map(|headers| {
            let code = headers.get("grpc-status")?;
            code.to_str().ok()?.parse().ok()
        });
        said.unwrap_or_else(|| match self.status_number() {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => 14,
            _ => 2,
        })
    }

    pub(super) fn exchange(&self) -> Exchange<'_> {
        Exchange {
            facts: Facts {
                context: &self.context,
                request: Some(self.request()),
                response: self.response.as_deref(),
            },
            bytes_received: self.bytes_received,
            bytes_sent: self.bytes_sent,
            finished: Some(&self.finished),
        }
    }
}
