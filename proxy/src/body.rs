//! Response bodies on their way to the client.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use attache_filter::{Body, BoxError};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::{access_log::Record, activity::Activity, upstream::UpstreamBody};

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

/// Counts a request as active until dropped.
pub(crate) struct Active(Arc<Activity>);

impl Active {
    pub(crate) fn new(activity: &Arc<Activity>) -> Self {
        activity.served.fetch_add(1, Ordering::Relaxed);
        activity.requests.fetch_add(1, Ordering::Relaxed);
        Self(activity.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body that hyper writes: its end or its drop is the end of the request.
pub(crate) struct ClientBody {
    body: ReplyBody,
    record: Option<Box<Record>>,
    /// Absent where the response has no body of its own to end with.
    _active: Option<Active>,
}

impl ClientBody {
    pub(crate) fn new(body: ReplyBody, record: Option<Box<Record>>, active: Active) -> Self {
        let record = record.map(|mut record| {
            record.complete = body.is_end_stream();
            record
        });
        Self {
            body,
            record,
            _active: Some(active),
        }
    }

    /// The body of a response that opens a tunnel.
    pub(crate) fn empty() -> Self {
        Self {
            body: ReplyBody::Local(Body::empty()),
            record: None,
            _active: None,
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
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(record) = &mut this.record {
            match &frame {
                Some(Ok(frame)) => {
                    record.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                Some(Err(_)) => record.cut_off = true,
                None => {}
            }
            record.complete |= frame.is_none()
                || this.body.is_end_stream()
                || record.length == Some(record.bytes_out);
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

/// A request body whose bytes are counted for the access log.
pub(crate) struct Counted {
    pub(crate) body: Body,
    pub(crate) bytes: Arc<std::sync::atomic::AtomicU64>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
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
