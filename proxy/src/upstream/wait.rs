//! Waiting for the head of a response, within the route's limits.

use std::{pin::Pin, time::Duration};

use attache_filter::context::ResponseFlag;
use tokio::time::{Instant, timeout_at};

use super::Upload;
use crate::silence::LOOKS;

/// The limits of one exchange.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// When the request head had arrived.
    pub(crate) started: Instant,
    /// From the end of the request to the end of the response.
    pub(crate) timeout: Option<Duration>,
    /// Longest silence.
    pub(crate) idle: Option<Duration>,
    /// When this attempt began; at first when the request head had arrived.
    pub(crate) attempt: Instant,
    /// From the end of the request, or the later start of the attempt, to the head of the
    /// response.
    pub(crate) attempt_timeout: Option<Duration>,
    /// Longest silence of the attempt, up to the head of the response.
    pub(crate) attempt_idle: Option<Duration>,
    /// When the stream ends, whatever it does.
    pub(crate) lifetime: Option<Lifetime>,
}

/// When a stream ends, whatever it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime {
    pub(crate) until: Instant,
    pub(crate) of: LifetimeOf,
}

/// Whose bound a lifetime is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LifetimeOf {
    /// `max_stream_duration` of the route or the listener.
    Downstream,
    /// `max_stream_duration` of the cluster.
    Upstream,
}

impl LifetimeOf {
    /// The flag in the access log of a stream that it has ended. Envoy sets none for the bound of
    /// a route or listener.
    pub(crate) fn flag(self) -> Option<ResponseFlag> {
        match self {
            Self::Downstream => None,
            Self::Upstream => Some(ResponseFlag::UpstreamMaxStreamDurationReached),
        }
    }

    /// The details in the access log of such a stream.
    pub(crate) fn details(self) -> &'static str {
        match self {
            Self::Downstream => "max_duration_timeout",
            Self::Upstream => "upstream_max_stream_duration_reached",
        }
    }
}

impl Lifetime {
    /// The one that ends first.
    pub(crate) fn earlier(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) if other.until < one.until => Some(other),
            (Some(one), _) => Some(one),
            (None, other) => other,
        }
    }
}

/// How the wait ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Waited<T> {
    /// With this.
    Done(T),
    /// The route's timeout passed.
    Timeout,
    /// The timeout of the attempt passed.
    AttemptTimeout,
    /// Nothing moved for the idle timeout.
    Idle,
    /// Nothing moved for the idle timeout of the attempt.
    AttemptIdle,
    /// The stream has come to its end.
    Lifetime(LifetimeOf),
}

impl Limits {
    /// When the whole response must be here, once the request is complete.
    pub(crate) fn deadline(&self, upload: Option<&Upload>) -> Option<Instant> {
        Some(self.complete(upload)? + self.timeout?)
    }

    /// How long the upstream has for this attempt.
    pub(crate) fn left(&self, upload: Option<&Upload>) -> Option<Duration> {
        let spent = self.complete(upload).map_or(Duration::ZERO, |complete| {
            self.attempt.saturating_duration_since(complete)
        });
        let left = self.timeout.map(|timeout| timeout.saturating_sub(spent));
        earlier(left, self.attempt_timeout)
    }

    /// When the head of the response must be here, once the request is complete.
    fn attempt_deadline(&self, upload: Option<&Upload>) -> Option<Instant> {
        let complete = self.complete(upload)?;
        Some(complete.max(self.attempt) + self.attempt_timeout?)
    }

    fn complete(&self, upload: Option<&Upload>) -> Option<Instant> {
        match upload {
            None => Some(self.started),
            Some(upload) => upload.complete(),
        }
    }
}

fn earlier<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// Runs `future` within `limits`.
///
/// Without a request body there is one timer for all of it. With one, the timer looks at what
/// the upload did meanwhile when it fires, so that frames need not touch it; that is a few times
/// per idle timeout.
pub(crate) async fn within<F: Future>(
    mut future: Pin<&mut F>,
    limits: Limits,
    upload: Option<&Upload>,
) -> Waited<F::Output> {
    let mut moved_at = limits.attempt;
    let mut frames = 0;
    loop {
        let deadline = earlier(limits.deadline(upload), limits.attempt_deadline(upload));
        let earliest = match upload {
            Some(upload) => {
                let now = Instant::now();
                if upload.frames() != frames {
                    frames = upload.frames();
                    moved_at = upload.done().unwrap_or(now);
                }
                // While the request is not complete, the timeout has not begun to run.
                let timeout = earlier(limits.timeout, limits.attempt_timeout);
                deadline.or_else(|| timeout.map(|timeout| now + timeout))
            }
            None => deadline,
        };
        let idle = earlier(limits.idle, limits.attempt_idle);
        let silent = idle.map(|idle| moved_at + idle);
        let end = limits.lifetime.map(|lifetime| lifetime.until);
        let Some(next) = earlier(earlier(earliest, silent), end) else {
            return Waited::Done(future.await);
        };
        let moves = upload.is_some_and(|upload| upload.done().is_none());
        let next = match idle.filter(|_| moves) {
            Some(idle) => next.min(Instant::now() + idle / LOOKS),
            None => next,
        };
        if let Ok(done) = timeout_at(next, future.as_mut()).await {
            return Waited::Done(done);
        }
        let now = Instant::now();
        let passed = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if let Some(lifetime) = limits.lifetime.filter(|lifetime| lifetime.until <= now) {
            return Waited::Lifetime(lifetime.of);
        }
        if passed(limits.deadline(upload)) {
            return Waited::Timeout;
        }
        if passed(limits.attempt_deadline(upload)) {
            return Waited::AttemptTimeout;
        }
        let moved = upload.is_some_and(|upload| upload.frames() != frames);
        if !moved && silent.is_some_and(|silent| silent <= now) {
            return match limits.attempt_idle {
                Some(_) if limits.attempt_idle == idle => Waited::AttemptIdle,
                _ => Waited::Idle,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    fn limits(timeout: u64, idle: u64) -> Limits {
        let some = |seconds| (seconds > 0).then(|| Duration::from_secs(seconds));
        Limits {
            started: Instant::now(),
            timeout: some(timeout),
            idle: some(idle),
            attempt: Instant::now(),
            attempt_timeout: None,
            attempt_idle: None,
            lifetime: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_shorter_limit_ends_the_wait() {
        for (timeout, idle, wanted, after) in [
            (15, 300, Waited::Timeout, 15),
            (0, 300, Waited::Idle, 300),
            (15, 0, Waited::Timeout, 15),
            (15, 5, Waited::Idle, 5),
        ] {
            let limits = limits(timeout, idle);
            let waited = within(pin!(std::future::pending::<()>()), limits, None).await;
            assert_eq!(waited, wanted, "{timeout} {idle}");
            let took = limits.started.elapsed();
            let after = Duration::from_secs(after);
            assert!(
                took >= after && took < after + Duration::from_millis(50),
                "{took:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_timeout_begins_when_the_request_is_complete() {
        use http_body_util::BodyExt;
        let chunks = |count: usize| {
            futures_util::stream::unfold(count, |left| async move {
                tokio::time::sleep(Duration::from_secs(4)).await;
                let frame = http_body::Frame::data(bytes::Bytes::from_static(b"x"));
                (left > 0).then(|| (Ok::<_, attache_filter::BoxError>(frame), left - 1))
            })
        };
        // Uploads for 20 s, then waits: the idle timeout of 6 s sees progress, the timeout of
        // 5 s begins at the end.
        let body = http_body_util::StreamBody::new(chunks(4));
        let (body, upload) =
            crate::upstream::UploadBody::new(attache_filter::Body::new(body), None);
        let limits = limits(5, 6);
        let exchange = async {
            let _ = body.collect().await;
            std::future::pending::<()>().await;
        };
        let waited = within(pin!(exchange), limits, upload.as_deref()).await;
        assert_eq!(waited, Waited::Timeout);
        let took = limits.started.elapsed().as_secs_f64();
        assert!((25.0..25.1).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_is_silent_from_its_last_piece() {
        use http_body_util::BodyExt;
        for pause in [1, 3, 5, 9] {
            let pieces = futures_util::stream::unfold(3, move |left| async move {
                if left == 0 {
                    return std::future::pending().await;
                }
                tokio::time::sleep(Duration::from_secs(pause)).await;
                let frame = http_body::Frame::data(bytes::Bytes::from_static(b"x"));
                Some((Ok::<_, attache_filter::BoxError>(frame), left - 1))
            });
            let body = http_body_util::StreamBody::new(pieces);
            let (body, upload) =
                crate::upstream::UploadBody::new(attache_filter::Body::new(body), None);
            let limits = limits(0, 10);
            let exchange = async {
                let _ = body.collect().await;
            };
            let waited = within(pin!(exchange), limits, upload.as_deref()).await;
            assert_eq!(waited, Waited::Idle);
            let silent = limits.started.elapsed().as_secs_f64() - 3.0 * pause as f64;
            assert!((10.0..12.6).contains(&silent), "{pause}: {silent}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_is_bounded_from_its_own_start_within_the_timeout() {
        for (attempt, wanted, after) in [(4, Waited::AttemptTimeout, 7), (20, Waited::Timeout, 15)]
        {
            let mut limits = limits(15, 300);
            limits.attempt += Duration::from_secs(3);
            limits.attempt_timeout = Some(Duration::from_secs(attempt));
            let waited = within(pin!(std::future::pending::<()>()), limits, None).await;
            assert_eq!(waited, wanted);
            let took = limits.started.elapsed().as_secs_f64();
            assert!((after as f64..after as f64 + 0.1).contains(&took), "{took}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_of_an_attempt_and_the_end_of_the_stream_end_the_wait_too() {
        let some = |seconds| (seconds > 0).then(|| Duration::from_secs(seconds));
        for (timeout, idle, attempt_idle, lifetime, wanted, after) in [
            (15, 300, 5, 0, Waited::AttemptIdle, 5),
            (15, 4, 5, 0, Waited::Idle, 4),
            (15, 300, 5, 3, Waited::Lifetime(LifetimeOf::Upstream), 3),
            (0, 0, 0, 9, Waited::Lifetime(LifetimeOf::Upstream), 9),
            (15, 300, 0, 20, Waited::Timeout, 15),
        ] {
            let mut limits = limits(timeout, idle);
            limits.attempt_idle = some(attempt_idle);
            limits.lifetime = some(lifetime).map(|lifetime| Lifetime {
                until: limits.started + lifetime,
                of: LifetimeOf::Upstream,
            });
            let waited = within(pin!(std::future::pending::<()>()), limits, None).await;
            assert_eq!(waited, wanted);
            let took = limits.started.elapsed().as_secs_f64();
            assert!((after as f64..after as f64 + 0.1).contains(&took), "{took}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_in_time_is_given_back() {
        assert_eq!(
            within(pin!(std::future::ready(7)), limits(1, 1), None).await,
            Waited::Done(7)
        );
        assert_eq!(
            within(pin!(std::future::ready(7)), limits(0, 0), None).await,
            Waited::Done(7)
        );
    }
}
