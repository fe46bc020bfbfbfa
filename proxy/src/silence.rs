//! Request bodies that stop coming while a policy waits for them.
//!
//! The router bounds the silence of what it forwards; a policy that holds a body back would wait
//! for ever for a client that has stopped in the middle of it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use attache_filter::{Body, BoxError, RequestContext, context::ResponseFlag};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

/// The client sent nothing of its body for too long.
#[derive(Debug, thiserror::Error)]
#[error("the request body was silent for too long")]
pub(crate) struct Silent;

/// A request body that fails after so much silence.
pub(crate) struct Bounded {
    body: Body,
    limit: Duration,
    context: Arc<RequestContext>,
    /// Only set while the body makes us wait.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Bounded {
    pub(crate) fn new(body: Body, limit: Duration, context: Arc<RequestContext>) -> Self {
        Self {
            body,
            limit,
            context,
            timer: None,
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
            this.timer = None;
            return Poll::Ready(frame);
        }
        let limit = this.limit;
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        this.timer = None;
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
    use futures_util::{StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::time::Instant;

    use super::*;

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
        assert_eq!(since.elapsed(), limit);
    }
}
