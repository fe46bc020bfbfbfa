//! Bodies that pass through an exchange.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use attache_filter::{Body, BoxError};
use bytes::Bytes;
use http_body::Frame;

use super::{
    Side,
    drive::{Next, Shared},
};

/// A body on its way through the processor: what the exchange lets out.
///
/// Its length is unknown, so a message without `content-length` is sent in chunks.
pub(super) struct Processed {
    shared: Shared,
    side: Side,
    source: Body,
    empty: bool,
    finished: bool,
}

/// The exchange was broken off while a body was on its way.
#[derive(Debug, thiserror::Error)]
#[error("external processing broke the message off")]
pub struct BrokenOff;

impl Processed {
    /// `source` is what remains to be read; `empty` says that there is no body at all.
    pub(super) fn new(shared: Shared, side: Side, source: Body, empty: bool) -> Self {
        Self {
            shared,
            side,
            source,
            empty,
            finished: false,
        }
    }
}

impl http_body::Body for Processed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.finished {
            return Poll::Ready(None);
        }
        loop {
            match ready!(this.shared.poll_next(this.side, cx)) {
                Next::Frame { frame, last } => {
                    this.finished = last;
                    return Poll::Ready(Some(Ok(frame)));
                }
                Next::End => {
                    this.finished = true;
                    return Poll::Ready(None);
                }
                Next::Broken => {
                    this.finished = true;
                    return Poll::Ready(Some(Err(BrokenOff.into())));
                }
                Next::Feed => {
                    if let Err(error) =
                        ready!(this.shared.poll_feed(this.side, &mut this.source, cx))
                    {
                        this.finished = true;
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.empty || self.finished
    }
}

impl Drop for Processed {
    fn drop(&mut self) {
        self.shared.forget(self.side);
        if !self.finished && !self.empty {
            self.shared.with(|exchange| exchange.unread(self.side));
        }
    }
}

/// A response of the processor's own. The request body, which nobody else reads, is shown to it
/// meanwhile where it asks for that.
pub(super) struct Local {
    shared: Shared,
    request: Body,
    finished: bool,
}

impl Local {
    pub(super) fn new(shared: Shared, request: Body) -> Self {
        Self {
            shared,
            request,
            finished: false,
        }
    }
}

impl http_body::Body for Local {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.finished {
            return Poll::Ready(None);
        }
        while this.shared.shows_only() {
            match this.shared.poll_feed(Side::Request, &mut this.request, cx) {
                Poll::Ready(Ok(())) => {}
                // A request that breaks off does not concern its response.
                Poll::Ready(Err(_)) => this.request = Body::empty(),
                Poll::Pending => break,
            }
        }
        let next = ready!(this.shared.poll_next(Side::Response, cx));
        if let Next::Frame { frame, .. } = next {
            return Poll::Ready(Some(Ok(frame)));
        }
        this.finished = true;
        Poll::Ready(match next {
            Next::Broken => Some(Err(BrokenOff.into())),
            _ => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.finished
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.shared.forget(Side::Response);
    }
}
