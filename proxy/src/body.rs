//! Response bodies on their way to the client.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Instant,
};

use attache_filter::{Body, BoxError};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::{
    access_log::{Incoming, Record},
    edge::Downstream,
    overload::Place,
    upstream::UpstreamBody,
};

/// Where a response body comes from. An upstream's needs no box.
pub(crate) enum ReplyBody {
    Upstream(UpstreamBody),
    Local(Body),
}

impl HttpBody for ReplyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
            Self::Local(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Upstream(body) => body.is_end_stream(),
            Self::Local(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Upstream(body) => body.size_hint(),
            Self::Local(body) => body.size_hint(),
        }
    }
}

/// Counts a request as active until dropped, and its connection as open.
pub(crate) struct Active {
    downstream: Arc<Downstream>,
    /// Where the listener bounds them: a place among the requests in flight.
    place: Option<Place>,
    http2: bool,
    /// The response has been given to the connection in full.
    answered: bool,
    /// A piece of the response has been given to the connection, and none asked for since.
    untaken: bool,
}

impl Active {
    pub(crate) fn new(downstream: &Arc<Downstream>, http2: bool) -> Self {
        let activity = &downstream.activity;
        activity.served.fetch_add(1, Ordering::Relaxed);
        activity.requests.fetch_add(1, Ordering::Relaxed);
        Self {
            downstream: downstream.clone(),
            place: None,
            http2,
            answered: false,
            untaken: false,
        }
    }

    /// Keeps a place among the requests in flight as long as the request is active.
    pub(crate) fn keep(&mut self, place: Option<Place>) {
        self.place = place;
    }

    /// What follows is a tunnel: whenever the client leaves it, it had its answer.
    pub(crate) fn opens_tunnel(&mut self) {
        self.answered = true;
    }

    /// The connection asks for the next piece: it got rid of the last.
    fn asked(&mut self) {
        if std::mem::take(&mut self.untaken) {
            let activity = &self.downstream.activity;
            activity.untaken.fetch_sub(1, Ordering::Relaxed);
            activity.taken.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It gets a piece. Only in HTTP/2 can it keep one without a write that waits.
    fn gave(&mut self) {
        if self.http2 && !self.untaken {
            self.untaken = true;
            self.downstream
                .activity
                .untaken
                .fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.asked();
        let activity = &self.downstream.activity;
        if self.http2 && !self.answered {
            activity.resets.fetch_add(1, Ordering::Relaxed);
        }
        activity.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body that hyper writes: its end or its drop is the end of the request.
pub(crate) struct ClientBody {
    body: ReplyBody,
    record: Option<Box<Record>>,
    /// Absent where the response has no body of its own to end with.
    active: Option<Active>,
}

impl ClientBody {
    pub(crate) fn new(body: ReplyBody, record: Option<Box<Record>>, mut active: Active) -> Self {
        active.answered |= body.is_end_stream();
        let record = record.map(|mut record| {
            if body.is_end_stream() {
                record.completes();
            }
            record
        });
        Self {
            body,
            record,
            active: Some(active),
        }
    }

    /// The body of a response that opens a tunnel.
    pub(crate) fn empty() -> Self {
        Self {
            body: ReplyBody::Local(Body::empty()),
            record: None,
            active: None,
        }
    }
}

impl HttpBody for ClientBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Some(active) = &mut this.active {
            active.asked();
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(active) = &mut this.active {
            // An upstream that breaks off is not the client's doing.
            active.answered |= !matches!(frame, Some(Ok(_))) || this.body.is_end_stream();
            if frame.is_some() {
                active.gave();
            }
        }
        if let Some(record) = &mut this.record {
            match &frame {
                Some(Ok(frame)) => {
                    record.sends(frame.data_ref().map_or(&[], Bytes::as_ref));
                    if let Some(trailers) = frame.trailers_ref() {
                        record.trails(trailers);
                    }
                }
                Some(Err(_)) => record.breaks(),
                None => {}
            }
            if frame.is_none() || this.body.is_end_stream() {
                record.completes();
            }
        }
        if frame.is_none() {
            // In a tunnel the rest lives longer, and the other side waits until this one is gone.
            this.body = ReplyBody::Local(Body::empty());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request body whose bytes are counted for the access log; `since` is when the request began.
pub(crate) fn counted(body: Body, incoming: Arc<Incoming>, since: Instant) -> Body {
    body.watched(move |frame, ended| {
        if let Some(Ok(frame)) = frame
            && let Some(data) = frame.data_ref()
        {
            incoming.add(data.len());
        }
        if ended {
            incoming.end(since.elapsed());
        }
    })
}
