//! What is noted while a request runs, and known of it once it is over: for logs, traces and
//! those who watch.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
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
use crate::{
    live::{Over, Watched},
    router::Answered,
    tcp::Ended,
    trace::Tracing,
};

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

/// What is noted while a request runs. Dropping it hands it to the logs, to
/// traces and to those who watch.
pub(crate) struct Record {
    logs: Option<AccessLogs>,
    tracing: Option<Tracing>,
    watched: Option<Box<Watched>>,
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
    pub(super) subject: Subject,
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

/// What a line is about.
#[derive(Clone)]
pub(super) enum Subject {
    /// A request, with its head when it came.
    Request(Arc<request::Parts>),
    /// One that ended before anybody could serve it: its head is not known.
    Unserved,
    /// A connection that is passed on as it is.
    Connection,
}

impl Record {
    pub(crate) fn new(
        logs: Option<&AccessLogs>,
        tracing: Option<&Tracing>,
        watched: Option<Box<Watched>>,
        context: &Arc<RequestContext>,
        parts: &request::Parts,
    ) -> Box<Self> {
        Box::new(Self {
            logs: logs.cloned(),
            tracing: tracing.cloned(),
            watched,
            line: Line {
                context: context.clone(),
                subject: Subject::Request(Arc::new(head::copy(parts))),
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
        if let Some(watched) = &mut self.watched {
            watched.responds(self.line.context.started.elapsed());
        }
        let context = &self.line.context;
        context.note_times(|times| times.responding = Some(Instant::now()));
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
    pub(crate) fn sends(&mut self, piece: &[u8]) {
        let bytes = piece.len();
        if let Some(tap) = &self.line.context.tap {
            tap.returned.add(piece);
        }
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
        line.finished.complete = self.complete && !line.cut_off;
        line.finished.received = self.incoming.ended();
        line.bytes_received = self.incoming.bytes.load(Ordering::Relaxed);
        let mut went = line.context.take_head();
        let watched = self.watched.take();
        line.went = match &watched {
            Some(watched) if !watched.log_reads_head() => None,
            Some(_) => went.clone(),
            None => went.take(),
        };
        if !self.complete && !line.cut_off {
            line.context
                .add_flag(ResponseFlag::DownstreamConnectionTermination);
        }
        if let (Some(tracing), Subject::Request(arrived)) = (&self.tracing, &line.subject) {
            let took = line.finished.duration;
            tracing.report(&line.context, arrived, line.status(), took);
        }
        if let Some(logs) = &self.logs {
            logs.take(line);
        }
        if let (Some(watched), Subject::Request(arrived)) = (watched, &line.subject) {
            watched.end(&Over {
                context: &line.context,
                arrived,
                went: went.as_deref(),
                response: line.response.as_deref(),
                trailers: line.finished.trailers.as_deref(),
                bytes_received: line.bytes_received,
                bytes_sent: line.bytes_sent,
                duration: line.finished.duration,
                received: line.finished.received,
                cut_off: line.cut_off,
            });
        }
    }
}

impl Line {
    /// A connection that was passed on as it is.
    pub(super) fn connection(context: Arc<RequestContext>, passed: &Ended) -> Self {
        Self {
            bytes_received: passed.received,
            bytes_sent: passed.sent,
            ..Self::without_head(context, Subject::Connection)
        }
    }

    /// A request that nobody served, and the status that it was answered with.
    pub(super) fn unserved(context: Arc<RequestContext>, status: Option<StatusCode>) -> Self {
        let response = status.map(|status| {
            let (mut head, ()) = http::Response::new(()).into_parts();
            head.status = status;
            Arc::new(head)
        });
        Self {
            response,
            ..Self::without_head(context, Subject::Unserved)
        }
    }

    fn without_head(context: Arc<RequestContext>, subject: Subject) -> Self {
        let duration = context.started.elapsed();
        Self {
            context,
            subject,
            went: None,
            response: None,
            bytes_received: 0,
            bytes_sent: 0,
            answered: None,
            cut_off: false,
            finished: Finished {
                duration,
                ..Finished::default()
            },
        }
    }

    /// The request's head, as it went on where that is known.
    pub(super) fn request(&self) -> Option<&request::Parts> {
        self.went.as_deref().or(self.arrived())
    }

    /// The request's head when it came.
    pub(super) fn arrived(&self) -> Option<&request::Parts> {
        match &self.subject {
            Subject::Request(head) => Some(head),
            Subject::Unserved | Subject::Connection => None,
        }
    }

    pub(super) fn request_id(&self) -> Option<&[u8]> {
        let id = self.request()?.headers.get("x-request-id")?;
        Some(id.as_bytes())
    }

    /// Whether it ended badly: with a status of 500 or more, or without a whole response.
    pub(super) fn failed(&self) -> bool {
        match self.subject {
            Subject::Connection => !self.context.flags().is_empty(),
            Subject::Request(_) | Subject::Unserved => {
                self.cut_off || self.status().is_none_or(|status| status.is_server_error())
            }
        }
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
                request: self.request(),
                response: self.response.as_deref(),
            },
            bytes_received: self.bytes_received,
            bytes_sent: self.bytes_sent,
            finished: Some(&self.finished),
        }
    }
}
