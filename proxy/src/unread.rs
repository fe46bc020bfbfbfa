//! HTTP/1.1 requests that are answered before their body was read.
//!
//! The connection can go on only when the rest of the body is out of the way. What has arrived
//! is read and thrown away; when that is not all of it, the client is told that the connection
//! closes, and does not send its next request into nowhere.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use attache_filter::{Body, BoxError};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

/// Bytes thrown away at most to keep a connection.
const WORTH: usize = 64 << 10;

/// How often in a row the connection is asked in vain for more.
const PATIENCE: usize = 2;

/// A body that comes back when it is dropped before its end.
struct Lent {
    body: Option<Body>,
    lender: Arc<State>,
}

#[derive(Default)]
struct State {
    ended: AtomicBool,
    returned: Mutex<Option<Body>>,
}

impl State {
    fn put(&self, body: Option<Body>) {
        *self.returned.lock().unwrap_or_else(PoisonError::into_inner) = body;
    }

    fn take(&self) -> Option<Body> {
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        returned.take()
    }
}

/// Who lent a body.
pub(crate) struct Lender(Arc<State>);

/// Lends a body.
pub(crate) fn lend(body: Body) -> (Body, Lender) {
    let state = Arc::<State>::default();
    let lent = Lent {
        body: Some(body),
        lender: state.clone(),
    };
    (Body::new(lent), Lender(state))
}

impl Lender {
    /// Whether the body is read to its end; before, what has arrived may be thrown away.
    pub(crate) async fn finish(self, throw_away: bool) -> bool {
        if self.0.ended.load(Ordering::Relaxed) {
            return true;
        }
        let Some(mut body) = self.0.take().filter(|_| throw_away) else {
            // Or somebody still reads it.
            return false;
        };
        let (mut left, mut in_vain) = (WORTH, 0);
        loop {
            let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
            match polled {
                Poll::Ready(None) => return true,
                Poll::Ready(Some(Err(_))) => return false,
                Poll::Ready(Some(Ok(frame))) => {
                    let data = frame.data_ref().map_or(0, Bytes::len);
                    match left.checked_sub(data) {
                        Some(rest) => left = rest,
                        None => return false,
                    }
                    in_vain = 0;
                }
                Poll::Pending if in_vain < PATIENCE => {
                    in_vain += 1;
                    // The connection reads on when it has its turn.
                    tokio::task::yield_now().await;
                }
                Poll::Pending => return false,
            }
        }
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        if frame.is_none() || body.is_end_stream() {
            self.lender.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.lender.ended.load(Ordering::Relaxed) {
            self.lender.put(self.body.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    /// So many pieces that have arrived; the end as well, or it is still to come.
    fn arrived(count: usize, len: usize, whole: bool) -> Body {
        let piece = move |_| Ok::<_, BoxError>(Frame::data(Bytes::from(vec![0; len])));
        let pieces = stream::iter((0..count).map(piece));
        if whole {
            Body::new(StreamBody::new(pieces))
        } else {
            Body::new(StreamBody::new(pieces.chain(stream::pending())))
        }
    }

    async fn is_done_after_drop(body: Body) -> bool {
        let (lent, lender) = lend(body);
        drop(lent);
        lender.finish(true).await
    }

    #[tokio::test]
    async fn a_body_that_has_arrived_is_read_to_its_end() {
        assert!(is_done_after_drop(arrived(3, 1000, true)).await);
    }

    #[tokio::test]
    async fn a_body_still_to_come_is_not_waited_for() {
        assert!(!is_done_after_drop(arrived(1, 1000, false)).await);
    }

    #[tokio::test]
    async fn a_large_body_is_not_read_for_the_sake_of_the_connection() {
        assert!(!is_done_after_drop(arrived(3, WORTH / 2, true)).await);
    }

    #[tokio::test]
    async fn a_body_that_is_still_read_is_left_alone() {
        let (lent, lender) = lend(arrived(1, 10, true));
        assert!(!lender.finish(true).await);
        assert_eq!(lent.collect().await.unwrap().to_bytes().len(), 10);
    }

    #[tokio::test]
    async fn a_body_that_was_read_is_done() {
        let (mut lent, lender) = lend(arrived(1, 10, true));
        while let Some(frame) = lent.frame().await {
            frame.unwrap();
        }
        assert!(lender.finish(true).await);
    }
}
