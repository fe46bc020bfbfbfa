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

use attache_filter::{
    Body, BoxError, RequestContext,
    context::{ResponseFlag, UpstreamTimes},
};
use attache_service::cluster::breakers::Permit;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{Endpoint, Lease, Lifetime, LifetimeOf, Limits, pool::Made};
use crate::{
    hygiene,
    silence::{Over, Silence},
};

/// How far a request body has come.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    frames: AtomicU32,
    done: OnceLock<Instant>,
    /// When it was complete in an earlier attempt.
    before: Option<Instant>,
    /// Keeps points in time.
    timed: Option<Arc<RequestContext>>,
}

impl Upload {
    /// Frames passed on so far.
    pub(crate) fn frames(&self) -> u32 {
        self.frames.load(Ordering::Relaxed)
    }

    fn note_times(&self, note: impl FnOnce(&mut UpstreamTimes)) {
        if let Some(context) = &self.timed {
            context.note_times(|times| note(&mut times.upstream));
        }
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

/// A request body for an upstream, watched when it is more than nothing or points in time are
/// kept.
#[derive(Debug, Default)]
pub(crate) struct UploadBody {
    body: Body,
    upload: Option<Arc<Upload>>,
}

impl UploadBody {
    /// The body, and what to watch it by unless it is empty.
    ///
    /// An attempt begins for `timed`, which keeps points in time.
    pub(crate) fn new(
        body: Body,
        timed: Option<Arc<RequestContext>>,
    ) -> (Self, Option<Arc<Upload>>) {
        Self::after(body, None, timed)
    }

    /// The same for a body that has been sent before, and was complete then at `before`.
    pub(crate) fn after(
        body: Body,
        before: Option<Instant>,
        timed: Option<Arc<RequestContext>>,
    ) -> (Self, Option<Arc<Upload>>) {
        let empty = body.is_end_stream();
        let upload = (!empty || timed.is_some()).then(|| {
            Arc::new(Upload {
                before,
                timed,
                ..Upload::default()
            })
        });
        if let Some(upload) = &upload {
            upload.note_times(|times| *times = UpstreamTimes::default());
        }
        let watch = upload.clone().filter(|_| !empty);
        (Self { body, upload }, watch)
    }

    /// The request goes out, on a connection that was made then.
    pub(super) fn leaves(&self, made: impl FnOnce() -> Option<Made>) {
        let Some(upload) = self.upload.as_ref().filter(|one| one.timed.is_some()) else {
            return;
        };
        let now = Some(std::time::Instant::now());
        let connection = made().map(Made::into);
        upload.note_times(|times| {
            times.connection = connection;
            times.sending = now;
            times.sent = now.filter(|_| self.body.is_end_stream());
        });
    }
}

impl HttpBody for UploadBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            hygiene::clean_request_trailers(trailers);
        }
        if let Some(upload) = &self.upload {
            upload.frames.fetch_add(1, Ordering::Relaxed);
            let ended = match &frame {
                None => true,
                Some(Ok(frame)) => frame.is_trailers() || self.body.is_end_stream(),
                Some(Err(_)) => false,
            };
            if ended {
                let now = Instant::now();
                let _ = upload.done.set(now);
                upload.note_times(|times| times.sent = Some(now.into_std()));
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
    #[error("the stream has lasted as long as it may")]
    Lifetime(LifetimeOf),
}

/// A response body from an upstream. Its end gives the connection back; dropping it earlier
/// closes the connection (HTTP/1.1) or resets the stream (HTTP/2).
pub(crate) struct UpstreamBody {
    incoming: Incoming,
    endpoint: Endpoint,
    lease: Lease,
    /// Unless the request has been sent in full, its connection cannot be used again.
    upload: Option<Arc<Upload>>,
    deadline: Option<Instant>,
    idle: Option<Duration>,
    lifetime: Option<Lifetime>,
    /// Where the cluster limits requests.
    _permit: Option<Permit>,
    silence: Silence,
    context: Arc<RequestContext>,
}

impl UpstreamBody {
    pub(crate) fn new(
        incoming: Incoming,
        endpoint: Endpoint,
        lease: Lease,
        permit: Option<Permit>,
        upload: Option<Arc<Upload>>,
        limits: &Limits,
        context: Arc<RequestContext>,
    ) -> Self {
        let mut body = Self {
            incoming,
            endpoint,
            lease,
            deadline: limits.deadline(upload.as_deref()),
            idle: limits.idle,
            lifetime: limits.lifetime,
            upload,
            _permit: permit,
            silence: Silence::default(),
            context,
        };
        if body.incoming.is_end_stream() {
            body.release();
        }
        body.note_times(false, body.incoming.is_end_stream());
        body
    }

    fn note_times(&self, piece: bool, ended: bool) {
        self.context.note_times(|times| {
            let now = Some(std::time::Instant::now());
            let times = &mut times.upstream;
            times.answered = times.answered.or(now);
            times.body = times.body.or(now.filter(|_| piece));
            times.received = times.received.or(now.filter(|_| ended));
        });
    }

    fn release(&mut self) {
        if self.upload.as_ref().is_none_or(|u| u.done().is_some()) {
            self.lease.release(&self.endpoint.own);
        }
    }

    /// Ready when time is up.
    fn poll_cut_off(&mut self, cx: &mut Context<'_>) -> Poll<CutOff> {
        let ends = [self.deadline, self.lifetime.map(|lifetime| lifetime.until)];
        let end = ends.into_iter().flatten().min();
        let over = ready!(self.silence.poll_over(cx, self.idle, end));
        let now = Instant::now();
        Poll::Ready(match over {
            Over::Silent => CutOff::Idle,
            Over::Late => match self.lifetime.filter(|lifetime| lifetime.until <= now) {
                Some(lifetime) => CutOff::Lifetime(lifetime.of),
                None => CutOff::Timeout,
            },
        })
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
                self.silence.broken();
                if self.incoming.is_end_stream() {
                    self.release();
                }
                self.note_times(frame.is_data(), self.incoming.is_end_stream());
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.release();
                self.note_times(false, true);
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
                    CutOff::Timeout => {
                        let flag = ResponseFlag::UpstreamRequestTimeout;
                        (Some(flag), "response_timeout")
                    }
                    CutOff::Idle => (Some(ResponseFlag::StreamIdleTimeout), "stream_idle_timeout"),
                    CutOff::Lifetime(of) => (of.flag(), of.details()),
                };
                if let Some(flag) = flag {
                    self.context.add_flag(flag);
                }
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
