//! Access logs: a line for each request that is over, or for some of them, written by a thread of
//! their own.
//!
//! Workers hand over what they noted through a bounded queue. When the writer falls behind,
//! lines are dropped and counted; requests never wait for a log.

mod file;
mod form;
mod line;
mod select;
mod writer;

use std::{fmt, io, path::PathBuf, sync::Arc};

use attache_filter::{RequestContext, format::Format};
use attache_service::metrics::Counter;
use http::StatusCode;

pub(crate) use file::Files;
pub use form::{Field, Form};
pub(crate) use line::{Incoming, Record};
pub use select::{By, Comparison, Filter, Selection, Share};

use crate::tcp::Ended;
use line::Line;
use writer::Writer;

/// What is logged of a listener's requests, how, and where.
#[derive(Debug, Clone)]
pub struct AccessLogPlan {
    /// Where the lines go.
    pub sink: Sink,
    /// How they look.
    pub form: Form,
    /// Which requests have one.
    pub selection: Selection,
}

impl AccessLogPlan {
    /// Everything that is known of every request.
    pub fn new(sink: Sink) -> Self {
        Self {
            sink,
            form: Form::Everything,
            selection: Selection::default(),
        }
    }

    /// Whether lines depend on the head of requests as they went on.
    pub(crate) fn reads_request(&self) -> bool {
        let filter = self.selection.filter.as_ref();
        self.form.any(Format::reads_request) || filter.is_some_and(Filter::reads_request)
    }

    /// Whether lines depend on points in time that are kept on demand.
    pub(crate) fn reads_times(&self) -> bool {
        self.form.any(Format::reads_times)
    }
}

/// Where the lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Appended to a file.
    File(PathBuf),
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::Stderr => f.write_str("standard error"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// The way to the access logs of a listener. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AccessLogs(Arc<[Log]>);

struct Log {
    selection: Selection,
    writer: Writer,
    dropped: Counter,
}

impl fmt::Debug for AccessLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} access logs", self.0.len())
    }
}

impl AccessLogs {
    /// Starts the writers of `plans`, of which there are some. They end when the last clone is
    /// gone.
    ///
    /// # Errors
    /// The plan that cannot be carried out, and why.
    pub(crate) fn start(
        plans: &[AccessLogPlan],
        dropped: &Counter,
        files: &Files,
    ) -> Result<Self, (Sink, io::Error)> {
        let logs = plans.iter().map(|plan| {
            let writer = Writer::start(plan, files).map_err(|error| (plan.sink.clone(), error))?;
            Ok(Log {
                selection: plan.selection.clone(),
                writer,
                dropped: dropped.clone(),
            })
        });
        logs.collect::<Result<Vec<_>, _>>()
            .map(|logs| Self(logs.into()))
    }

    /// Whether `plans` could be carried out.
    ///
    /// # Errors
    /// See [`AccessLogs::start`].
    pub(crate) fn could_start(
        plans: &[AccessLogPlan],
        files: &Files,
    ) -> Result<(), (Sink, io::Error)> {
        let mut sinks = plans.iter().map(|plan| &plan.sink);
        sinks.try_for_each(|sink| match sink {
            Sink::File(path) => match files.open(path) {
                Ok(_) => Ok(()),
                Err(error) => Err((sink.clone(), error)),
            },
            Sink::Stdout | Sink::Stderr => Ok(()),
        })
    }

    /// A connection that was passed on as it is has ended.
    pub(crate) fn passed(&self, context: Arc<RequestContext>, ended: &Ended) {
        self.take(&Line::connection(context, ended));
    }

    /// A request has ended that nobody served.
    pub(crate) fn unserved(&self, context: Arc<RequestContext>, status: Option<StatusCode>) {
        self.take(&Line::unserved(context, status));
    }

    /// Hands a request that is over to those that want it.
    fn take(&self, line: &Line) {
        let mut shared = None;
        for log in &*self.0 {
            if log.selection.takes(line) {
                let line = shared.get_or_insert_with(|| Arc::new(line.clone()));
                if !log.writer.write(line.clone()) {
                    log.dropped.inc();
                }
            }
        }
    }
}
