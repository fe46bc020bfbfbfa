//! The attempts of one request: it is sent until an answer is kept.

use std::{pin::pin, sync::Arc, time::Duration};

use attache_filter::{Body, RequestContext, context::ResponseFlag, retry::Pauses};
use http::{Request, Response, request};
use hyper::body::{Body as _, Incoming};
use tokio::{
    sync::SemaphorePermit,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    retry::{Failure, Retry},
    router::{EXPECTED_TIMEOUT, millis, say_empty},
    upstream::{
        Cluster, Endpoint, Lease, Limits, Replay, Upload, UploadBody, UpstreamError, Waited,
        exchange, within,
    },
};

/// How an attempt ended.
pub(crate) type Ended = Waited<Result<(Response<Incoming>, Lease), UpstreamError>>;

/// The attempt that counts.
pub(crate) struct Sent<'c> {
    pub(crate) endpoint: &'c Arc<Endpoint>,
    pub(crate) ended: Ended,
    pub(crate) upload: Option<Arc<Upload>>,
    /// The body, where it may be needed again.
    pub(crate) replay: Option<Replay>,
}

/// Where a request goes, and when it goes there again.
pub(crate) struct Attempts<'c> {
    pub(crate) cluster: &'c Cluster,
    pub(crate) retry: Option<&'c Retry>,
    /// Bytes of the body that may be kept; a request with more is not sent again.
    pub(crate) buffer_limit: usize,
    pub(crate) context: &'c RequestContext,
}

impl<'c> Attempts<'c> {
    /// Sends a request to `endpoint`, and as often as the route says to the next ones.
    pub(crate) async fn send(
        self,
        mut endpoint: &'c Arc<Endpoint>,
        parts: request::Parts,
        body: Body,
        mut limits: Limits,
    ) -> Sent<'c> {
        let replay = Replay::new(body, self.buffer_limit);
        let mut pauses = self.retry.map(|retry| retry.pauses.clone());
        let mut left = self.retry.map_or(0, |retry| retry.retries);
        limits.attempt_timeout = self.retry.and_then(|retry| retry.attempt_timeout);
        let mut complete = None;
        let mut room = None;
        loop {
            let (body, upload) = UploadBody::after(replay.attempt(), complete);
            let head = head(&parts, limits, upload.as_deref());
            let mut request = Request::from_parts(head, body);
            let exchange = pin!(exchange(endpoint, &mut request));
            let ended = within(exchange, limits, upload.as_deref()).await;
            // A retry takes up room until it is answered.
            drop(room.take());
            room = self.again(&ended, &replay, left);
            let deadline = limits.deadline(upload.as_deref());
            let ended = if room.is_none() {
                Some(ended)
            } else {
                self.discard(ended, upload.as_deref());
                let pause = pauses.as_mut().map_or(Duration::ZERO, Pauses::draw);
                let slept = pause_until(pause, deadline).await;
                (!slept).then_some(Waited::Timeout)
            };
            if let Some(ended) = ended {
                return Sent {
                    endpoint,
                    ended,
                    upload,
                    replay: Some(replay),
                };
            }
            left = left.saturating_sub(1);
            complete = upload.and_then(|upload| upload.complete());
            endpoint = self.cluster.pick().unwrap_or(endpoint);
            limits.attempt = Instant::now();
        }
    }

    /// Room for another attempt, if there is to be one.
    fn again(&self, ended: &Ended, replay: &Replay, left: u32) -> Option<SemaphorePermit<'c>> {
        let failure = Failure::of(ended)?;
        if !self.retry?.covers(failure) || !replay.is_whole() {
            return None;
        }
        let stats = &self.cluster.stats;
        if left == 0 {
            stats.retries_exhausted.inc();
            self.context
                .add_flag(ResponseFlag::UpstreamRetryLimitExceeded);
            return None;
        }
        let Ok(room) = self.cluster.plan.retries.try_acquire() else {
            stats.retries_overflowed.inc();
            self.context.add_flag(ResponseFlag::UpstreamOverflow);
            return None;
        };
        stats.retried.inc();
        tracing::debug!(?failure, left, "the request is sent again");
        Some(room)
    }

    /// Counts an attempt whose answer nobody gets.
    fn discard(&self, ended: Ended, upload: Option<&Upload>) {
        let Waited::Done(Ok((response, mut lease))) = ended else {
            self.cluster.stats.failed.inc();
            return;
        };
        self.cluster.stats.count(response.status());
        let sent = upload.is_none_or(|upload| upload.done().is_some());
        if sent && response.body().is_end_stream() {
            lease.release();
        }
    }
}

/// The head of one attempt.
fn head(parts: &request::Parts, limits: Limits, upload: Option<&Upload>) -> request::Parts {
    let mut parts = parts.clone();
    if upload.is_none() {
        say_empty(&mut parts);
    }
    if let Some(left) = limits.left(upload) {
        // 0 would be for ever.
        let left = millis(left.as_millis().max(1));
        parts.headers.insert(EXPECTED_TIMEOUT, left);
    }
    parts
}

/// Whether the pause was over by then.
async fn pause_until(pause: Duration, deadline: Option<Instant>) -> bool {
    match deadline {
        Some(deadline) => timeout_at(deadline, sleep(pause)).await.is_ok(),
        None => {
            sleep(pause).await;
            true
        }
    }
}
