//! Connects an exchange with its gRPC stream and the clock.
//!
//! There is no task per request. Whoever is polled moves the exchange on: the layer's future
//! until there is a response head, the request body when the upstream connection wants data,
//! the response body when the caller's connection does. The stream and the timer wake all of
//! them, since an answer for one direction may arrive while only the other is being polled.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker, ready},
    time::Instant,
};

use attache_filter::{Body, BoxError};
use attache_proto::ext_proc::ProcessingResponse;
use attache_service::{Channel, GrpcStream, Method, channel::FRAME_HEADER};
use bytes::{Buf as _, Bytes};
use futures_util::task::AtomicWaker;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use prost::Message as _;
use tokio::time::Sleep;
use tonic::Status;

use super::{
    Side,
    exchange::{Exchange, Head, Outcome},
    http::HttpLink,
    linger::linger,
};

/// Who waits for an exchange to move on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// The layer's future.
    Future,
    /// The body of a direction.
    Body(Side),
}

/// The tasks that wait. Kept apart from the exchange: the stream and the timer hold this, and
/// must not keep alive what holds them.
#[derive(Default)]
struct Wakers {
    future: AtomicWaker,
    request: AtomicWaker,
    response: AtomicWaker,
}

impl Wakers {
    fn slot(&self, slot: Slot) -> &AtomicWaker {
        match slot {
            Slot::Future => &self.future,
            Slot::Body(Side::Request) => &self.request,
            Slot::Body(Side::Response) => &self.response,
        }
    }

    fn wake_all(&self) {
        self.future.wake();
        self.request.wake();
        self.response.wake();
    }

    fn wake_others(&self, slot: Slot) {
        for other in [
            Slot::Future,
            Slot::Body(Side::Request),
            Slot::Body(Side::Response),
        ] {
            if other != slot {
                self.slot(other).wake();
            }
        }
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

/// The stream to the processor.
#[expect(
    clippy::large_enum_variant,
    reason = "one per exchange, held in place: a box would be one more allocation"
)]
enum Link {
    /// Opened with the first message.
    Idle {
        channel: Option<Channel>,
        metadata: HeaderMap,
    },
    Open(GrpcStream),
    Http(Box<HttpLink>),
    Closed,
}

/// Who is asked about an exchange, and how.
pub(super) enum Callee {
    /// Over gRPC. `channel` is `None` when the configured cluster does not exist.
    Grpc {
        channel: Option<Channel>,
        metadata: HeaderMap,
    },
    /// Over plain HTTP.
    Http(Box<HttpLink>),
}

/// An exchange with all it needs to move on; shared by the future and the two bodies.
#[derive(Clone)]
pub(super) struct Shared {
    wakers: Arc<Wakers>,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    exchange: Exchange,
    link: Link,
    method: Method,
    timer: Option<Pin<Box<Sleep>>>,
    waker: Waker,
}

/// What one look at the next frame of a processed body shows.
pub(super) enum Next {
    Frame {
        frame: Frame<Bytes>,
        /// Nothing follows, so that the frame and the end may leave together.
        last: bool,
    },
    End,
    Broken,
    /// More input is needed.
    Feed,
}

impl Shared {
    pub(super) fn new(exchange: Exchange, callee: Callee, method: Method) -> Self {
        let wakers = Arc::<Wakers>::default();
        let inner = Inner {
            exchange,
            link: match callee {
                Callee::Grpc { channel, metadata } => Link::Idle { channel, metadata },
                Callee::Http(link) => Link::Http(link),
            },
            method,
            timer: None,
            waker: Waker::from(wakers.clone()),
        };
        Self {
            wakers,
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at or changes the exchange, without moving it on.
    pub(super) fn with<R>(&self, look: impl FnOnce(&mut Exchange) -> R) -> R {
        look(&mut self.inner().exchange)
    }

    /// The head of a direction once it may go on, or what happened instead. Reads the body
    /// meanwhile, as far as the processor needs it first.
    pub(super) fn poll_head(
        &self,
        side: Side,
        body: &mut Body,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Head, Interruption>> {
        loop {
            {
                let mut inner = self.moved(Slot::Future, cx);
                if let Some(outcome) = inner.exchange.take_outcome() {
                    return Poll::Ready(Err(Interruption::Outcome(outcome)));
                }
                if let Some(head) = inner.exchange.take_head(side) {
                    return Poll::Ready(Ok(head));
                }
                if !inner.wants_data(side) {
                    return Poll::Pending;
                }
            }
            if let Err(error) = ready!(self.poll_feed(side, body, cx)) {
                return Poll::Ready(Err(Interruption::Body(error)));
            }
        }
    }

    /// Moves the exchange on while the upstream is waited for.
    pub(super) fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        match self.moved(Slot::Future, cx).exchange.take_outcome() {
            Some(outcome) => Poll::Ready(outcome),
            None => Poll::Pending,
        }
    }

    /// The next frame of a body that goes on.
    pub(super) fn poll_next(&self, side: Side, cx: &mut Context<'_>) -> Poll<Next> {
        let mut inner = self.moved(Slot::Body(side), cx);
        Poll::Ready(if inner.exchange.is_broken(side) {
            Next::Broken
        } else if let Some(frame) = inner.exchange.next_frame(side) {
            if inner.exchange.minds_silence(side) {
                inner.exchange.taken(now());
            }
            let last = inner.exchange.has_ended(side);
            if last {
                self.forget(side);
            }
            Next::Frame { frame, last }
        } else if inner.exchange.has_ended(side) {
            // Nothing will come: do not be woken for the other direction.
            self.forget(side);
            Next::End
        } else if inner.wants_data(side) {
            Next::Feed
        } else {
            return Poll::Pending;
        })
    }

    /// Whether the request body is to be read only to be shown.
    pub(super) fn shows_only(&self) -> bool {
        let mut inner = self.inner();
        inner.exchange.shows_only() && inner.wants_data(Side::Request)
    }

    /// Reads one frame of a body into the exchange.
    pub(super) fn poll_feed(
        &self,
        side: Side,
        body: &mut Body,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BoxError>> {
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx)).transpose()?;
        let now = now();
        let mut inner = self.inner();
        match frame.map(Frame::into_data) {
            None => inner.exchange.data(side, Bytes::new(), true, now),
            Some(Ok(data)) => inner.exchange.data(side, data, body.is_end_stream(), now),
            Some(Err(frame)) => {
                if let Ok(trailers) = frame.into_trailers() {
                    inner.exchange.trailers(side, trailers, now);
                }
            }
        }
        if inner.exchange.has_outcome() {
            // It concerns everybody, and no message of the processor will tell them.
            self.wakers.wake_all();
        }
        Poll::Ready(Ok(()))
    }

    /// The body of a direction is not polled any more.
    pub(super) fn forget(&self, side: Side) {
        drop(self.wakers.slot(Slot::Body(side)).take());
    }

    /// Moves the exchange on for one waiting task and wakes the others if something happened.
    fn moved(&self, slot: Slot, cx: &Context<'_>) -> MutexGuard<'_, Inner> {
        // First registered, then looked: what happens in between is not missed.
        self.wakers.slot(slot).register(cx.waker());
        let mut inner = self.inner();
        if inner.move_on() {
            self.wakers.wake_others(slot);
        }
        inner
    }
}

/// Why a head does not go on.
pub(super) enum Interruption {
    Outcome(Outcome),
    /// Its body failed while it was held.
    Body(BoxError),
}

impl Inner {
    /// Sends what is to be sent, takes in what has arrived, minds the clock. True when
    /// something arrived or ran out, which may concern any of those who wait.
    fn move_on(&mut self) -> bool {
        let waker = self.waker.clone();
        let mut cx = Context::from_waker(&waker);
        let mut progress = false;
        loop {
            self.send();
            if self.exchange.is_closed() {
                self.close();
                return progress;
            }
            let received = match &mut self.link {
                // Not more than those who read can take; they look here again.
                Link::Open(_) if self.exchange.is_full() => Poll::Pending,
                Link::Open(stream) => stream.poll_pieces(&mut cx),
                Link::Http(link) => link.poll_message(&mut cx).map(|answer| match answer {
                    Ok(message) => Some(Ok(message.into())),
                    Err(failure) => {
                        self.exchange.http_failed(failure.not_ok, now());
                        None
                    }
                }),
                Link::Idle { .. } | Link::Closed => return progress,
            };
            match received {
                Poll::Ready(message) => {
                    let now = now();
                    match message {
                        Some(Ok(message)) => {
                            self.exchange.receives(FRAME_HEADER + message.remaining());
                            match ProcessingResponse::decode(message) {
                                Ok(message) => self.exchange.reply(message, now),
                                Err(error) => {
                                    let status = Status::internal(format!("bad message: {error}"));
                                    self.exchange.failed(&status, now);
                                }
                            }
                        }
                        None => self.exchange.closed(now),
                        Some(Err(status)) => self.exchange.failed(&status, now),
                    }
                    progress = true;
                }
                Poll::Pending => {
                    if self.poll_timer(&mut cx).is_pending() {
                        return progress;
                    }
                    progress = true;
                }
            }
        }
    }

    fn send(&mut self) {
        let observes = self.exchange.observes();
        loop {
            // Nobody waits for who only looks on: what it does not take stays in the outbox.
            if observes
                && let Link::Open(stream) = &mut self.link
                && stream
                    .poll_capacity(&mut Context::from_waker(&self.waker))
                    .is_pending()
            {
                return;
            }
            let Some(piece) = self.exchange.outbox().pop() else {
                return;
            };
            if let Link::Idle { channel, metadata } = &mut self.link {
                match channel {
                    Some(channel) => {
                        let metadata = std::mem::take(metadata);
                        self.link = Link::Open(channel.stream(&self.method, metadata));
                    }
                    None => {
                        let status = Status::unavailable("Cluster not available");
                        self.exchange.failed(&status, now());
                    }
                }
            }
            if let Link::Http(link) = &mut self.link {
                link.send(piece);
            } else if let Link::Open(stream) = &mut self.link {
                stream.send(piece);
            }
        }
    }

    fn close(&mut self) {
        if let Link::Open(stream) = &mut self.link {
            stream.finish();
        }
        self.link = Link::Closed;
        self.timer = None;
    }

    /// Ready when a deadline has passed, and the exchange knows.
    ///
    /// The timer is not moved when a deadline moves later: it goes off, and is set anew then.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.exchange.deadline() else {
            return Poll::Pending;
        };
        let deadline = tokio::time::Instant::from_std(deadline);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if tokio::time::Instant::now() >= deadline {
                break;
            }
            timer.as_mut().reset(deadline);
        }
        self.exchange.tick(now());
        Poll::Ready(())
    }

    /// Whether to read more of a body now: the exchange wants it, and it can be sent on.
    fn wants_data(&mut self, side: Side) -> bool {
        if !self.exchange.wants_data(side) {
            return false;
        }
        match &mut self.link {
            Link::Open(stream) if self.exchange.streams(side) => {
                let waker = self.waker.clone();
                stream
                    .poll_capacity(&mut Context::from_waker(&waker))
                    .is_ready()
            }
            _ => true,
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.exchange.observes()
            && let Link::Open(stream) = std::mem::replace(&mut self.link, Link::Closed)
        {
            let outbox = std::mem::take(self.exchange.outbox());
            linger(stream, outbox, self.exchange.deferred_close_timeout());
        }
    }
}

/// The exchange's clock: tokio's, which tests can stop.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
