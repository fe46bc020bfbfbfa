//! Streams that fall silent, and request bodies that stop coming while a policy waits for them.
//!
//! The router bounds the silence of what it forwards; a policy that holds a body back would wait
//! for ever for a client that has stopped in the middle of it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use attache_filter::{Body, BoxError, RequestContext, context::ResponseFlag};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// Silence is looked for this many times per limit, so that it is noticed by a quarter of the limit
/// late at most.
pub(crate) const LOOKS: u32 = 4;

/// Looks for silence a few times per limit, so that what moves need not touch a timer.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    /// Only set once there was something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
    /// Something moved since the last look.
    moved: bool,
    /// Looks in a row that saw nothing move.
    quiet: u8,
}

/// Why a wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// Nothing has moved for the limit.
    Silent,
    /// It is as late as it may get.
    Late,
}

impl Silence {
    /// Something moved.
    pub(crate) fn broken(&mut self) {
        self.moved = true;
    }

    /// Ready when nothing has moved for `limit`, or at `end`; to be asked while nothing moves.
    pub(crate) fn poll_over(
        &mut self,
        cx: &mut Context<'_>,
        limit: Option<Duration>,
        end: Option<Instant>,
    ) -> Poll<Over> {
        loop {
            if let Some(timer) = &mut self.timer {
                ready!(timer.as_mut().poll(cx));
                if end.is_some_and(|end| end <= Instant::now()) {
                    return Poll::Ready(Over::Late);
                }
                self.quiet = match self.moved {
                    true => 0,
                    false => self.quiet.saturating_add(1),
                };
                if limit.is_some() && u32::from(self.quiet) >= LOOKS {
                    return Poll::Ready(Over::Silent);
                }
            }
            let look = limit.map(|limit| Instant::now() + limit / LOOKS);
            let Some(next) = look.into_iter().chain(end).min() else {
                return Poll::Pending;
            };
            self.moved = false;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(next),
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(next))),
            }
        }
    }
}

/// The client sent nothing of its body for too long.
#[derive(Debug, thiserror::Error)]
#[error("the request body was silent for too long")]
pub(crate) struct Silent;

/// A request body that fails after so much silence.
pub(crate) struct Bounded {
    body: Body,
    limit: Duration,
    context: Arc<RequestContext>,
    silence: Silence,
}

impl Bounded {
    pub(crate) fn new(body: Body, limit: Duration, context: Arc<RequestContext>) -> Self {
        Self {
            body,
            limit,
            context,
            silence: Silence::default(),
        }
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.silence.broken();
            return Poll::Ready(frame);
        }
        let _ = ready!(this.silence.poll_over(cx, Some(this.limit), None));
        this.context.add_flag(ResponseFlag::StreamIdleTimeout);
        Poll::Ready(Some(Err(Silent.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use futures_util::{StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_body_and_slowness_does_not() {
        let limit = Duration::from_secs(10);
        let slow = stream::iter(0..5).then(|_| async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x")))
        });
        let body = Body::new(StreamBody::new(Box::pin(slow.chain(stream::pending()))));
        let context = Arc::new(RequestContext::new(Arc::default(), http::Version::HTTP_11));
        let mut body = Bounded::new(body, limit, context);

        for _ in 0..5 {
            assert!(body.frame().await.unwrap().is_ok());
        }
        let since = Instant::now();
        let error = body.frame().await.unwrap().unwrap_err();

        assert!(error.is::<Silent>());
        let silent = since.elapsed();
        assert!(
            silent >= limit && silent <= limit.mul_f64(1.25),
            "{silent:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_the_last_that_moved_and_only_the_first_wait_sets_a_timer() {
        let limit = Duration::from_secs(10);
        for moved_after in [0, 1, 2, 5, 7, 9] {
            let mut silence = Silence::default();
            let mut last = Instant::now();
            for _ in 0..3 {
                let wait = poll_fn(|cx| silence.poll_over(cx, Some(limit), None));
                let moves = tokio::time::sleep(Duration::from_secs(moved_after));
                tokio::select! {
                    biased;
                    () = moves => {}
                    over = wait => panic!("{over:?} after {:?}", last.elapsed()),
                }
                silence.broken();
                last = Instant::now();
            }
            let over = poll_fn(|cx| silence.poll_over(cx, Some(limit), None)).await;

            assert_eq!(over, Over::Silent);
            let silent = last.elapsed();
            assert!(
                silent >= limit && silent <= limit.mul_f64(1.25),
                "{moved_after}: {silent:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_comes_whatever_moves() {
        let mut silence = Silence::default();
        let end = Instant::now() + Duration::from_secs(25);
        let limit = Some(Duration::from_secs(10));
        let over = poll_fn(|cx| {
            silence.broken();
            silence.poll_over(cx, limit, Some(end))
        });
        assert_eq!(over.await, Over::Late);
        assert!(Instant::now() - end < Duration::from_millis(50));

        let mut silence = Silence::default();
        let end = Instant::now() + Duration::from_secs(5000);
        let over = poll_fn(|cx| silence.poll_over(cx, None, Some(end)));
        assert_eq!(over.await, Over::Late);
    }
}
