//! Bytes both ways after `101 Switching Protocols` or the 200 of a `CONNECT`.
//!
//! Each side gives what it reads as a body, and writes the body that comes from the other side. So
//! a tunnel is an exchange as any other: it passes the policies, and the body of its response,
//! with which it is counted and logged, lives as long as the tunnel does.

use std::{
    io,
    mem::MaybeUninit,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use attache_filter::{Body, BoxError, RequestContext, context::ResponseFlag};
use attache_service::{Io, cluster::breakers::Permit};
use bytes::{Buf as _, Bytes};
use http::{Extensions, HeaderMap, Method, Response, StatusCode, header, request};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf},
    sync::oneshot,
};

use crate::{
    body::ClientBody,
    silence::LOOKS,
    upstream::{Endpoint, Lease, Lifetime},
};

/// Both sides must have switched within this time.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes read at once.
const PIECE: usize = 16 << 10;

/// One side of a tunnel, open or about to be.
pub(crate) enum Side {
    /// HTTP until the head that opens the tunnel has passed.
    Switching(OnUpgrade),
    /// A connection of its own.
    Open(Box<dyn Io>),
}

impl Side {
    async fn open(self) -> io::Result<Box<dyn Io>> {
        match self {
            Self::Open(io) => Ok(io),
            Self::Switching(upgrade) => match tokio::time::timeout(SWITCH_TIMEOUT, upgrade).await {
                Ok(Ok(upgraded)) => Ok(Box::new(TokioIo::new(upgraded))),
                Ok(Err(error)) => Err(io::Error::other(error)),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            },
        }
    }
}

/// Whether a request that was let in asks for a tunnel.
fn is_wanted(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::CONNECT || headers.contains_key(header::UPGRADE)
}

/// The client's side of a tunnel that its request asks for.
pub(crate) struct Wanted {
    side: Side,
    feed: Feed,
    connect: bool,
}

impl Wanted {
    /// The tunnel that a request asks for, if it does. What the client sends through it becomes
    /// the request's body.
    pub(crate) fn of(
        parts: &mut request::Parts,
        body: &mut Body,
        context: &RequestContext,
    ) -> Option<Self> {
        if !is_wanted(&parts.method, &parts.headers) {
            return None;
        }
        let side = Side::Switching(parts.extensions.remove::<OnUpgrade>()?);
        let (sent, feed) = pieces();
        if body.is_end_stream() {
            *body = Body::new(sent);
            context.tunnel_in_body();
        } else {
            // The request has a body of its own, which comes before.
            parts.extensions.insert(Behind::new(sent));
        }
        Some(Self {
            side,
            feed,
            connect: parts.method == Method::CONNECT,
        })
    }

    /// Whether a response with this status opens it.
    pub(crate) fn opens(&self, status: StatusCode) -> bool {
        match self.connect {
            true => status.is_success(),
            false => status == StatusCode::SWITCHING_PROTOCOLS,
        }
    }

    /// Opens the tunnel if `response` says so: what would be its body goes there, and all that
    /// the body holds is held until the tunnel has ended. A client that takes nothing for
    /// `patience` ends it, and so does `cut`.
    pub(crate) fn begin(
        self,
        response: Response<ClientBody>,
        patience: Duration,
        cut: impl Future<Output = ()> + Send + 'static,
    ) -> Response<ClientBody> {
        if !self.opens(response.status()) {
            return response;
        }
        let (parts, mut body) = response.into_parts();
        tokio::spawn(async move {
            let ended = tokio::select! {
                biased;
                ended = serve(self.side, self.feed, &mut body, Some(patience)) => ended,
                () = cut => Err(Ended::Removed),
            };
            if let Err(ended) = ended {
                tracing::debug!(%ended, "tunnel ended");
            }
            drop(body);
        });
        Response::from_parts(parts, ClientBody::empty())
    }
}

/// What a client sends behind the body of a request that asks for a tunnel; an extension of the
/// request.
#[derive(Clone)]
struct Behind(Arc<Mutex<Option<Body>>>);

impl Behind {
    fn new(sent: FromSide) -> Self {
        Self(Arc::new(Mutex::new(Some(Body::new(sent)))))
    }

    fn place(&self) -> MutexGuard<'_, Option<Body>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at what a client sends behind the body of a request that asks for a tunnel.
pub(crate) fn watch_behind(extensions: &Extensions, watch: impl FnOnce(Body) -> Body) {
    if let Some(behind) = extensions.get::<Behind>() {
        let mut place = behind.place();
        *place = place.take().map(watch);
    }
}

/// What the client sends through the tunnel that its request asks for. `None` where there cannot
/// be one.
pub(crate) fn sent(
    extensions: &mut Extensions,
    body: &mut Body,
    context: &RequestContext,
) -> Option<Body> {
    match context.tunnels_in_body() {
        true => Some(std::mem::take(body)),
        false => extensions.remove::<Behind>()?.place().take(),
    }
}

/// The upstream's side of a tunnel, with all that counts it there.
pub(crate) struct Upstream {
    pub(crate) side: Side,
    /// Longest silence.
    pub(crate) idle: Option<Duration>,
    pub(crate) lifetime: Option<Lifetime>,
    pub(crate) endpoint: Endpoint,
    /// The connection, where it was one for requests.
    pub(crate) lease: Option<Lease>,
    pub(crate) permit: Option<Permit>,
    pub(crate) context: Arc<RequestContext>,
}

impl Upstream {
    /// Opens it: gives what it reads, and writes `outgoing` to it. Ends when both are done, when
    /// one fails, or when time is up.
    pub(crate) fn open(self, outgoing: Body) -> Body {
        let (body, feed) = pieces();
        let context = self.context.clone();
        tokio::spawn(self.run(feed, outgoing));
        Body::new(body).watched(move |frame, _| {
            if let Some(Err(error)) = frame
                && !error.is::<TornDown>()
            {
                broke_off(&context);
            }
        })
    }

    async fn run(self, feed: Feed, outgoing: Body) {
        let context = &self.context;
        let shared = feed.shared.clone();
        let serve = async {
            // Silence bounds it.
            let ended = serve(self.side, feed, outgoing, None).await;
            if let Err(ended) = ended {
                tracing::debug!(%ended, "the upstream's side of a tunnel ended");
                if matches!(ended, Ended::NotOpened(_) | Ended::Write(_)) {
                    broke_off(context);
                }
            }
        };
        let silent = async {
            silence(&shared.pieces, self.idle).await;
            context.add_flag(ResponseFlag::StreamIdleTimeout);
            context.set_details("stream_idle_timeout");
        };
        let lasted = async {
            let Some(Lifetime { until, of }) = self.lifetime else {
                return std::future::pending().await;
            };
            tokio::time::sleep_until(until).await;
            if let Some(flag) = of.flag() {
                context.add_flag(flag);
            }
            context.set_details(of.details());
        };
        // What ends it notes that before the client's side can see the end.
        tokio::select! {
            () = serve => {}
            () = silent => {}
            () = lasted => {}
        }
        drop((self.endpoint, self.lease, self.permit));
    }
}

/// Notes that the upstream broke a tunnel off.
fn broke_off(context: &RequestContext) {
    context.add_flag(ResponseFlag::UpstreamConnectionTermination);
    context.set_details("upstream_reset_after_response_started{connection_termination}");
}

async fn silence(pieces: &AtomicU32, idle: Option<Duration>) {
    let Some(idle) = idle else {
        return std::future::pending().await;
    };
    let (mut last, mut quiet) = (pieces.load(Ordering::Relaxed), 0);
    while quiet < LOOKS {
        tokio::time::sleep(idle / LOOKS).await;
        let now = pieces.load(Ordering::Relaxed);
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
    }
}

/// What one side of a tunnel reads, as a body that ends with it. Waits until the tunnel is open.
struct FromSide {
    reading: Reading,
    shared: Arc<Shared>,
    /// Its sender goes when the tunnel is torn down.
    torn_down: oneshot::Receiver<()>,
}

enum Reading {
    Later(oneshot::Receiver<ReadHalf<Box<dyn Io>>>),
    Now(ReadHalf<Box<dyn Io>>),
    Ended,
}

/// The tunnel's end of a [`FromSide`].
struct Feed {
    opened: oneshot::Sender<ReadHalf<Box<dyn Io>>>,
    /// Dropping it ends the body with an error.
    alive: oneshot::Sender<()>,
    shared: Arc<Shared>,
}

/// What a side's body and its tunnel know together.
#[derive(Debug, Default)]
struct Shared {
    /// Counts the pieces that were read or written.
    pieces: AtomicU32,
    /// The side cannot be read any more.
    failed: AtomicBool,
}

impl Shared {
    fn moved(&self) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }
}

/// The tunnel was torn down before it ended.
#[derive(Debug, thiserror::Error)]
#[error("the tunnel was torn down")]
struct TornDown;

/// A body, and the side of a tunnel to be that it is read from.
fn pieces() -> (FromSide, Feed) {
    let (opened, later) = oneshot::channel();
    let (alive, torn_down) = oneshot::channel();
    let shared = Arc::<Shared>::default();
    let body = FromSide {
        reading: Reading::Later(later),
        shared: shared.clone(),
        torn_down,
    };
    let feed = Feed {
        opened,
        alive,
        shared,
    };
    (body, feed)
}

impl FromSide {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        loop {
            match &mut self.reading {
                Reading::Ended => return Poll::Ready(None),
                Reading::Later(later) => {
                    self.reading = match ready!(Pin::new(later).poll(cx)) {
                        Ok(io) => Reading::Now(io),
                        // There will be no tunnel.
                        Err(_) => Reading::Ended,
                    };
                }
                Reading::Now(io) => {
                    // Tunnels are silent most of the time: none keeps memory to read into.
                    let mut room = [MaybeUninit::uninit(); PIECE];
                    let mut room = ReadBuf::uninit(&mut room);
                    match Pin::new(io).poll_read(cx, &mut room) {
                        Poll::Ready(Ok(())) if room.filled().is_empty() => {
                            return Poll::Ready(None);
                        }
                        Poll::Ready(Ok(())) => {
                            self.shared.moved();
                            let piece = Bytes::copy_from_slice(room.filled());
                            return Poll::Ready(Some(Ok(piece)));
                        }
                        Poll::Ready(Err(error)) => {
                            self.shared.failed.store(true, Ordering::Relaxed);
                            return Poll::Ready(Some(Err(error.into())));
                        }
                        Poll::Pending => {
                            let _ = ready!(Pin::new(&mut self.torn_down).poll(cx));
                            return Poll::Ready(Some(Err(TornDown.into())));
                        }
                    }
                }
            }
        }
    }
}

impl HttpBody for FromSide {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let piece = ready!(self.poll_piece(cx));
        if !matches!(piece, Some(Ok(_))) {
            self.reading = Reading::Ended;
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }
}

/// Why one side of a tunnel ended early.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("it did not open: {0}")]
    NotOpened(io::Error),
    #[error("it cannot be written: {0}")]
    Write(io::Error),
    #[error("it cannot be read")]
    Read,
    #[error("the other side broke off: {0}")]
    OtherSide(BoxError),
    #[error("its listener was removed, and its time is over")]
    Removed,
}

/// Opens one side of a tunnel: what it reads goes to the body of `feed`, and `outgoing` is
/// written to it. Ends when both are done, or when one fails.
async fn serve<B>(
    side: Side,
    feed: Feed,
    outgoing: B,
    patience: Option<Duration>,
) -> Result<(), Ended>
where
    B: HttpBody<Data = Bytes, Error = BoxError>,
{
    let Feed {
        opened,
        mut alive,
        shared,
    } = feed;
    let io = side.open().await.map_err(Ended::NotOpened)?;
    let (read, write) = tokio::io::split(io);
    if opened.send(read).is_err() {
        return Ok(());
    }
    let mut writing = pin!(write_out(write, outgoing, &shared, patience));
    tokio::select! {
        biased;
        () = alive.closed() => match shared.failed.load(Ordering::Relaxed) {
            true => return Err(Ended::Read),
            false => return writing.await,
        },
        written = &mut writing => written?,
    }
    alive.closed().await;
    Ok(())
}

/// Writes a body, and ends the side when the body ends.
async fn write_out<B>(
    mut write: WriteHalf<Box<dyn Io>>,
    outgoing: B,
    shared: &Shared,
    patience: Option<Duration>,
) -> Result<(), Ended>
where
    B: HttpBody<Data = Bytes, Error = BoxError>,
{
    let mut outgoing = pin!(outgoing);
    while let Some(frame) = outgoing.frame().await {
        if let Ok(mut piece) = frame.map_err(Ended::OtherSide)?.into_data() {
            while piece.has_remaining() {
                within(patience, write.write_buf(&mut piece)).await?;
            }
            within(patience, write.flush()).await?;
            shared.moved();
        }
    }
    within(patience, write.shutdown()).await
}

/// Waits for a step of writing as long as there is patience.
async fn within<T>(
    patience: Option<Duration>,
    step: impl Future<Output = io::Result<T>>,
) -> Result<T, Ended> {
    let done = match patience {
        None => step.await,
        Some(patience) => match tokio::time::timeout(patience, step).await {
            Ok(done) => done,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        },
    };
    done.map_err(Ended::Write)
}
