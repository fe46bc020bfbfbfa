//! Bytes both ways after `101 Switching Protocols` or the 200 of a `CONNECT`.
//!
//! Where nobody looks at them, they are copied from side to side ([`run`]). Where a policy may
//! see them, each side gives what it reads as a body, and writes the body that comes from the
//! other side ([`FromTunnel`], [`serve`], [`open`]).

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use attache_filter::{Body, BoxError};
use attache_service::cluster::breakers::Permit;
use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf},
    sync::oneshot,
    time::Instant,
};
use tokio_util::io::poll_read_buf;

use crate::upstream::Lifetime;

/// Both sides must have switched within this time.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes read at once for a body.
const PIECE: usize = 16 << 10;

/// One side of an open tunnel.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

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

/// Whether a response with this status opens the tunnel that the request asked for.
pub(crate) fn opens(connect: bool, status: StatusCode) -> bool {
    match connect {
        true => status.is_success(),
        false => status == StatusCode::SWITCHING_PROTOCOLS,
    }
}

/// Whether a request that was let in asks for a tunnel.
pub(crate) fn is_wanted(method: &Method, headers: &http::HeaderMap) -> bool {
    *method == Method::CONNECT || headers.contains_key(http::header::UPGRADE)
}

/// What a tunnel holds while it is open, and when it ends whatever it does.
#[derive(Debug)]
pub(crate) struct Held {
    until: Option<Instant>,
    permit: Option<Permit>,
}

impl Held {
    pub(crate) fn new(lifetime: Option<Lifetime>, permit: Option<Permit>) -> Self {
        Self {
            until: lifetime.map(|lifetime| lifetime.until),
            permit,
        }
    }

    /// Runs a tunnel.
    pub(crate) async fn hold(self, tunnel: impl Future<Output = ()>) {
        match self.until {
            None => tunnel.await,
            Some(until) => {
                if tokio::time::timeout_at(until, tunnel).await.is_err() {
                    tracing::debug!("the tunnel has lasted as long as it may");
                }
            }
        }
        drop(self.permit);
    }
}

/// Copies until one side ends, fails, or nothing moves for `idle`.
pub(crate) async fn run(downstream: Side, upstream: Side, idle: Option<Duration>) {
    let (downstream, upstream) = match tokio::try_join!(downstream.open(), upstream.open()) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "the tunnel did not open"),
    };
    let moved = Arc::<AtomicU32>::default();
    let mut downstream = Watched {
        io: downstream,
        moved: moved.clone(),
    };
    let mut upstream = Watched {
        io: upstream,
        moved: moved.clone(),
    };
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut downstream, &mut upstream) => {
            if let Err(error) = copied {
                tracing::debug!(%error, "tunnel ended");
            }
        }
        () = silence(&moved, idle) => tracing::debug!("tunnel silent for too long"),
    }
}

async fn silence(moved: &AtomicU32, idle: Option<Duration>) {
    let Some(idle) = idle else {
        return std::future::pending().await;
    };
    let mut last = moved.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(idle).await;
        let now = moved.load(Ordering::Relaxed);
        if now == last {
            return;
        }
        last = now;
    }
}

/// What one side of a tunnel reads, as a body that ends with it. Waits until the tunnel is open.
pub(crate) struct FromTunnel {
    reading: Reading,
    buffer: BytesMut,
    moved: Arc<AtomicU32>,
    /// Its sender goes when the tunnel is torn down.
    torn_down: oneshot::Receiver<()>,
}

enum Reading {
    Later(oneshot::Receiver<ReadHalf<Box<dyn Io>>>),
    Now(ReadHalf<Box<dyn Io>>),
    Ended,
}

/// The tunnel's end of a [`FromTunnel`].
pub(crate) struct Feed {
    opened: oneshot::Sender<ReadHalf<Box<dyn Io>>>,
    /// Dropping it ends the body with an error.
    alive: oneshot::Sender<()>,
    moved: Arc<AtomicU32>,
}

/// The tunnel was torn down before it ended.
#[derive(Debug, thiserror::Error)]
#[error("the tunnel was torn down")]
struct TornDown;

/// A body, and the side of a tunnel to be that it is read from.
pub(crate) fn body() -> (FromTunnel, Feed) {
    let (opened, later) = oneshot::channel();
    let (alive, torn_down) = oneshot::channel();
    let moved = Arc::<AtomicU32>::default();
    let body = FromTunnel {
        reading: Reading::Later(later),
        buffer: BytesMut::new(),
        moved: moved.clone(),
        torn_down,
    };
    let feed = Feed {
        opened,
        alive,
        moved,
    };
    (body, feed)
}

impl HttpBody for FromTunnel {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            match &mut this.reading {
                Reading::Ended => return Poll::Ready(None),
                Reading::Later(later) => {
                    this.reading = match ready!(Pin::new(later).poll(cx)) {
                        Ok(io) => Reading::Now(io),
                        // There will be no tunnel.
                        Err(_) => Reading::Ended,
                    };
                }
                Reading::Now(io) => {
                    this.buffer.reserve(PIECE);
                    let read = poll_read_buf(Pin::new(io), cx, &mut this.buffer);
                    let result = match read {
                        Poll::Ready(Ok(0)) => None,
                        Poll::Ready(Ok(_)) => {
                            this.moved.fetch_add(1, Ordering::Relaxed);
                            let piece = this.buffer.split().freeze();
                            return Poll::Ready(Some(Ok(Frame::data(piece))));
                        }
                        Poll::Ready(Err(error)) => Some(Err(error.into())),
                        Poll::Pending => {
                            let _ = ready!(Pin::new(&mut this.torn_down).poll(cx));
                            Some(Err(TornDown.into()))
                        }
                    };
                    this.reading = Reading::Ended;
                    return Poll::Ready(result);
                }
            }
        }
    }
}

/// Opens one side of a tunnel: what it reads goes to the body of `feed`, and `outgoing` is
/// written to it. Ends when both are done, when one fails, or when nothing moves for `idle`.
pub(crate) async fn serve<B>(side: Side, feed: Feed, outgoing: B, idle: Option<Duration>)
where
    B: HttpBody<Data = Bytes, Error = BoxError>,
{
    let Feed {
        opened,
        mut alive,
        moved,
    } = feed;
    let io = match side.open().await {
        Ok(io) => io,
        Err(error) => return tracing::debug!(%error, "the tunnel did not open"),
    };
    let (read, write) = tokio::io::split(io);
    if opened.send(read).is_err() {
        return;
    }
    let both = async {
        write_out(write, outgoing, &moved).await?;
        alive.closed().await;
        Ok::<_, BoxError>(())
    };
    tokio::select! {
        ended = both => if let Err(error) = ended {
            tracing::debug!(%error, "tunnel ended");
        },
        () = silence(&moved, idle) => tracing::debug!("tunnel silent for too long"),
    }
}

/// Writes a body, and ends the side when the body ends.
async fn write_out<B>(
    mut write: WriteHalf<Box<dyn Io>>,
    outgoing: B,
    moved: &AtomicU32,
) -> Result<(), BoxError>
where
    B: HttpBody<Data = Bytes, Error = BoxError>,
{
    let mut outgoing = pin!(outgoing);
    while let Some(frame) = outgoing.frame().await {
        if let Ok(piece) = frame?.into_data() {
            write.write_all(&piece).await?;
            write.flush().await?;
            moved.fetch_add(1, Ordering::Relaxed);
        }
    }
    write.shutdown().await?;
    Ok(())
}

/// Opens the upstream's side: gives what it reads, and writes `outgoing` to it.
pub(crate) fn open(side: Side, outgoing: Body, idle: Option<Duration>, held: Held) -> Body {
    let (body, feed) = body();
    tokio::spawn(held.hold(serve(side, feed, outgoing, idle)));
    Body::new(body)
}

/// One side, with its reads counted.
struct Watched {
    io: Box<dyn Io>,
    moved: Arc<AtomicU32>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
