//! The call when an exchange is over (`apply_on_stream_done`): its answer changes nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use attache_filter::{
    Body, BoxError, RequestContext, Route,
    attributes::Facts,
    calls::{CallResult, Phase},
    format::Exchange,
};
use bytes::Bytes;
use http::{HeaderMap, Response, request, response};
use http_body::Frame;
use tokio::runtime::Handle;

use super::{
    action::Subject,
    layer::{Inner, is_timeout},
};

/// Calls of one filter and worker at the end of exchanges that may be on their way at a time; more
/// are left out.
pub(super) const MAX_ENDING: usize = 1024;

/// Bound on such a call where the filter has none.
const MAX_ENDING_TIME: Duration = Duration::from_secs(10);

/// An exchange that is going on. When this is dropped, it is over, and the service is asked.
pub(super) struct Ending {
    filter: Arc<Inner>,
    context: Arc<RequestContext>,
    route: Option<Arc<Route>>,
    head: request::Parts,
    response: Option<response::Parts>,
    received: Arc<AtomicU64>,
    sent: u64,
}

impl Ending {
    pub(super) fn new(
        filter: Arc<Inner>,
        context: Arc<RequestContext>,
        route: Option<Arc<Route>>,
        head: request::Parts,
    ) -> Self {
        Self {
            filter,
            context,
            route,
            head,
            response: None,
            received: Arc::default(),
            sent: 0,
        }
    }

    /// Counts the bytes of the request's body.
    pub(super) fn count(&self, body: Body) -> Body {
        let bytes = self.received.clone();
        body.watched(move |frame, _| {
            bytes.fetch_add(length(frame), Ordering::Relaxed);
        })
    }

    /// Lets the exchange end with the body of its response.
    pub(super) fn with_response(mut self, response: Response<Body>) -> Response<Body> {
        let (parts, body) = response.into_parts();
        self.response = Some(parts.clone());
        let mut ending = self;
        let body = body.watched(move |frame, _| {
            // All of it, as the exchange ends when it is dropped with the body.
            let ending = &mut ending;
            ending.sent = ending.sent.saturating_add(length(frame));
        });
        Response::from_parts(parts, body)
    }

    fn ask(&self) {
        let exchange = |response| Exchange {
            facts: Facts {
                context: &self.context,
                request: Some(&self.head),
                response,
            },
            bytes_received: self.received.load(Ordering::Relaxed),
            bytes_sent: self.sent,
            finished: None,
        };
        // As in Envoy: headers of the response count for hits only.
        let bare = self.response.clone().map(|mut parts| {
            parts.headers = HeaderMap::new();
            parts
        });
        let subject = Subject {
            head: &self.head,
            context: &self.context,
            exchange: exchange(bare.as_ref()),
            route: self.route.as_deref(),
            source_cluster: self.filter.source_cluster(),
        };
        let settings = self.filter.settings(self.route.as_deref());
        let hits = exchange(self.response.as_ref());
        let question = self
            .filter
            .question(&settings.domain, &settings.at_end, &subject, &hits);
        let Some(question) = question else { return };
        let slot = self.filter.ending.clone().try_acquire_owned();
        let (Ok(slot), Ok(runtime)) = (slot, Handle::try_current()) else {
            self.filter.stats.stream_done_dropped.inc();
            return;
        };
        let filter = self.filter.clone();
        let mut question = question;
        if let Some(trace) = &self.context.trace {
            // The request's own span has ended: there is none for this call.
            trace.propagate(&mut question.metadata, false);
        }
        runtime.spawn(async move {
            let begun = Instant::now();
            let timeout = filter.timeout().unwrap_or(MAX_ENDING_TIME);
            let result = filter.call(question, Some(timeout)).await;
            filter.stats.stream_done.inc();
            let ended = match &result {
                Ok(_) => CallResult::Continued,
                Err(status) => CallResult::failure(is_timeout(status), true),
            };
            filter
                .calls
                .count(Phase::StreamDone, ended, begun.elapsed());
            if let Err(status) = result {
                filter.stats.stream_done_error.inc();
                tracing::debug!(
                    filter = %filter.name,
                    %status,
                    "the rate limit service failed at the end of an exchange"
                );
            }
            drop(slot);
        });
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.ask();
    }
}

/// Bytes of data in what came of a body.
fn length(came: Option<&Result<Frame<Bytes>, BoxError>>) -> u64 {
    match came {
        Some(Ok(frame)) => frame.data_ref().map_or(0, |data| data.len() as u64),
        _ => 0,
    }
}
