//! Bodies on their way to and from an upstream.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use attache_filter::{Body, BoxError, RequestContext, context::ResponseFlag};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::Lease;

/// How far a request body has come.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    frames: AtomicU32,
    done: OnceLock<Instant>,
    /// When it was complete in an earlier attempt.
    before: Option<Instant>,
}

impl Upload {
    /// Frames passed on so far.
    pub(crate) fn frames(&self) -> u32 {
        self.frames.load(Ordering::Relaxed)
    }

    /// When the last byte was passed on.
    pub(crate) fn done(&self) -> Option<Instant> {
        self.done.get().copied()
    }

    /// When the last byte was passed on for the first time, in whichever attempt.
    pub(crate) fn complete(&self) -> Option<Instant> {
        self.before.or_else(|| self.done())
    }
}

/// A request body for an upstream, watched when it is more than nothing.
#[derive(Debug, Default)]
pub(crate) struct UploadBody {
    body: Body,
    upload: Option<Arc<Upload>>,
}

impl UploadBody {
    /// The body, and what to watch it by unless it is empty.
    pub(crate) fn new(body: Body) -> (Self, Option<Arc<Upload>>) {
        Self::after(body, None)
    }

    /// The same for a body that has been sent before, and was complete then at `before`.
    pub(crate) fn after(body: Body, before: Option<Instant>) -> (Self, Option<Arc<Upload>>) {
        let upload = (!body.is_end_stream()).then(|| {
            Arc::new(Upload {
                before,
                ..Upload::default()
            })
        });
        let watch = upload.clone();
        (Self { body, upload }, watch)
    }
}

impl HttpBody for UploadBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(upload) = &self.upload {
            upload.frames.fetch_add(1, Ordering::Relaxed);
            let ended = match &frame {
                None => true,
                Some(Ok(frame)) => frame.is_trailers() || self.body.is_end_stream(),
                Some(Err(_)) => false,
            };
            if ended {
                let _ = upload.done.set(Instant::now());
            }
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

/// Why a response body was cut off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CutOff {
    #[error("the response was not complete in time")]
    Timeout,
    #[error("the stream was silent for too long")]
    Idle,
}

/// A response body from an upstream. Its end gives the connection back; dropping it earlier
/// closes the connection (HTTP/1.1) or resets the stream (HTTP/2).
pub(crate) struct UpstreamBody {
    incoming: Incoming,
    lease: Lease,
    /// Unless the request has been sent in full, its connection cannot be used again.
    upload: Option<Arc<Upload>>,
    deadline: Option<Instant>,
    idle: Option<Duration>,
    /// Only set once the body has made us wait.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether a frame came since the timer was set.
    moved: bool,
    context: Arc<RequestContext>,
}

impl UpstreamBody {
    pub(crate) fn new(
        incoming: Incoming,
        lease: Lease,
        upload: Option<Arc<Upload>>,
        deadline: Option<Instant>,
        idle: Option<Duration>,
        context: Arc<RequestContext>,
    ) -> Self {
        let mut body = Self {
            incoming,
            lease,
            upload,
            deadline,
            idle,
            timer: None,
            moved: false,
            context,
        };
        if body.incoming.is_end_stream() {
            body.release();
        }
        body
    }

    fn release(&mut self) {
        if self.upload.as_ref().is_none_or(|u| u.done().is_some()) {
            self.lease.release();
        }
    }

    /// Ready when time is up.
    fn poll_cut_off(&mut self, cx: &mut Context<'_>) -> Poll<CutOff> {
        loop {
            let Some(timer) = &mut self.timer else {
                let idle = self.idle.map(|idle| Instant::now() + idle);
                let next = match (self.deadline, idle) {
                    (Some(a), Some(b)) => a.min(b),
                    (Some(one), None) | (None, Some(one)) => one,
                    (None, None) => return Poll::Pending,
                };
                self.moved = false;
                self.timer = Some(Box::pin(tokio::time::sleep_until(next)));
                continue;
            };
            ready!(timer.as_mut().poll(cx));
            if self
                .deadline
                .is_some_and(|deadline| deadline <= Instant::now())
            {
                return Poll::Ready(CutOff::Timeout);
            }
            if !self.moved {
                return Poll::Ready(CutOff::Idle);
            }
            self.timer = None;
        }
    }
}

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.moved = true;
                if self.incoming.is_end_stream() {
                    self.release();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.release();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.context
                    .add_flag(ResponseFlag::UpstreamConnectionTermination);
                self.context
                    .set_details("upstream_reset_after_response_started{connection_termination}");
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Pending => {
                let cut_off = ready!(self.poll_cut_off(cx));
                let (flag, details) = match cut_off {
                    CutOff::Timeout => (ResponseFlag::UpstreamRequestTimeout, "response_timeout"),
                    CutOff::Idle => (ResponseFlag::StreamIdleTimeout, "stream_idle_timeout"),
                };
                self.context.add_flag(flag);
                self.context.set_details(details);
                Poll::Ready(Some(Err(cut_off.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
