//! The attempts of one request: it is sent until an answer is kept.

use std::{pin::pin, sync::Arc, time::Duration};

use attache_filter::{Body, RequestContext, context::ResponseFlag, retry::Pauses};
use attache_service::cluster::breakers::Permit;
use http::{Request, request};
use hyper::body::Body as _;
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    retry::Retry,
    router::{EXPECTED_TIMEOUT, millis, note_attempt, propagate, say_empty, timed},
    upstream::{
        Cluster, Ended, Endpoint, Limits, Replay, Upload, UploadBody, Waited, Wanted, exchange,
        within,
    },
};

/// The attempt that counts.
pub(crate) struct Sent {
    pub(crate) endpoint: Endpoint,
    /// When it began.
    pub(crate) begun: Instant,
    pub(crate) ended: Ended,
    pub(crate) upload: Option<Arc<Upload>>,
    /// The body, where it may be needed again.
    pub(crate) replay: Option<Replay>,
}

/// Where a request goes, and when it goes there again.
pub(crate) struct Attempts<'c> {
    pub(crate) cluster: &'c Cluster,
    /// What its endpoint is picked by.
    pub(crate) wanted: Wanted,
    pub(crate) retry: Option<&'c Retry>,
    /// Bytes of the body that may be kept; a request with more is not sent again.
    pub(crate) buffer_limit: usize,
    pub(crate) context: &'c Arc<RequestContext>,
}

impl<'c> Attempts<'c> {
    /// Sends a request to `endpoint`, and as often as the route says to the next ones.
    pub(crate) async fn send(
        self,
        mut endpoint: Endpoint,
        parts: request::Parts,
        body: Body,
        mut limits: Limits,
    ) -> Sent {
        let replay = Replay::new(body, self.buffer_limit);
        let mut pauses = self.retry.map(|retry| retry.pauses.clone());
        let mut left = self.retry.map_or(0, |retry| retry.retries);
        limits.attempt_timeout = self.retry.and_then(|retry| retry.attempt_timeout);
        limits.attempt_idle = self.retry.and_then(|retry| retry.attempt_idle);
        let whole = limits.lifetime;
        let retry = self.retry.filter(|retry| retry.concerns(&parts));
        let mut tried = Vec::new();
        let mut complete = None;
        let mut room = None;
        let _counted = retry.map(|_| self.cluster.guards.breakers.count());
        let mut attempt = 0u32;
        loop {
            let (body, upload) = UploadBody::after(replay.attempt(), complete, timed(self.context));
            let mut head = head(&parts, limits, upload.as_deref());
            let span = propagate(self.context, &mut head);
            let begun = Instant::now();
            let mut request = Request::from_parts(head, body);
            let ended = {
                let exchange = pin!(exchange(&endpoint.own, &mut request));
                within(exchange, limits, upload.as_deref()).await
            };
            self.cluster.note(&mut endpoint, &ended);
            note_attempt(self.context, &endpoint, begun, span, &ended);
            // A retry takes up room until it is answered.
            drop(room.take());
            room = retry.and_then(|retry| self.again(retry, &ended, &replay, left));
            let deadline = limits.deadline(upload.as_deref());
            let end = limits.lifetime.map(|lifetime| lifetime.until);
            let deadline = [deadline, end].into_iter().flatten().min();
            let ended = if room.is_none() {
                Some(ended)
            } else {
                let asked_for = retry.and_then(|retry| asked_for(retry, &ended));
                self.discard(&endpoint, ended, upload.as_deref());
                let drawn = pauses.as_mut().map_or(Duration::ZERO, Pauses::draw);
                let pause = asked_for.unwrap_or(drawn);
                let slept = pause_until(pause, deadline).await;
                (!slept).then(|| match limits.lifetime {
                    Some(lifetime) if lifetime.until <= Instant::now() => {
                        Waited::Lifetime(lifetime.of)
                    }
                    _ => Waited::Timeout,
                })
            };
            if let Some(ended) = ended {
                return Sent {
                    endpoint,
                    begun,
                    ended,
                    upload,
                    replay: Some(replay),
                };
            }
            left = left.saturating_sub(1);
            complete = upload.and_then(|upload| upload.complete());
            tried.push(endpoint.local().clone());
            attempt = attempt.saturating_add(1);
            let searches = retry.map_or(0, |retry| retry.searches);
            let other = self
                .cluster
                .pick_other(&self.wanted, attempt, &tried, searches);
            endpoint = other.unwrap_or(endpoint);
            limits.attempt = Instant::now();
            limits.lifetime = self.cluster.lifetime(whole, limits.attempt);
        }
    }

    /// Room for another attempt, if there is to be one.
    fn again(&self, retry: &Retry, ended: &Ended, replay: &Replay, left: u32) -> Option<Permit> {
        let failure = retry.failure(ended)?;
        if !retry.covers(failure) || !replay.is_whole() {
            return None;
        }
        if left == 0 {
            self.cluster.stats.retries_exhausted.inc();
            self.context
                .add_flag(ResponseFlag::UpstreamRetryLimitExceeded);
            return None;
        }
        let Some(room) = self.cluster.guards.breakers.retry() else {
            self.context.add_flag(ResponseFlag::UpstreamOverflow);
            return None;
        };
        tracing::debug!(?failure, left, "the request is sent again");
        Some(room)
    }

    /// Counts an attempt whose answer nobody gets.
    fn discard(&self, endpoint: &Endpoint, ended: Ended, upload: Option<&Upload>) {
        let Waited::Done(Ok((response, mut lease))) = ended else {
            self.cluster.stats.failed.inc();
            return;
        };
        self.cluster.stats.count(response.status());
        let sent = upload.is_none_or(|upload| upload.done().is_some());
        if sent && response.body().is_end_stream() {
            lease.release(&endpoint.own);
        }
    }
}

/// The pause that the upstream asks for.
fn asked_for(retry: &Retry, ended: &Ended) -> Option<Duration> {
    match ended {
        Waited::Done(Ok((response, _))) => retry.asked_for.as_ref()?.pause(response.headers()),
        _ => None,
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
