//! New connections to an endpoint.

use std::io;

use attache_service::{cluster::Opened, tls::ClientTls};
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use super::{Pool, UploadBody, UpstreamError, pool::Made};
use crate::tunnel::Io;

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Most bytes of an HTTP/1.1 response read at once, and the bound on its head. Larger reads cost
/// more than they save: what many responses have read does not stay in the CPU's caches. With
/// what a policy's messages put before it, it still fits in two of the somewhat less than 64 KiB
/// that the kernel sends at once.
const BUFFER: usize = 124 << 10;

type Http1 = conn::http1::SendRequest<UploadBody>;
type Http2 = conn::http2::SendRequest<UploadBody>;

pub(super) async fn http1(pool: &Pool) -> Result<(Http1, Made), UpstreamError> {
    bounded(pool, async {
        let (opened, tls, connected) = open(pool).await?;
        let sender = match (opened, tls) {
            (Opened::Embedded(io), _) => http1_over(io).await,
            (Opened::Unix(io), None) => http1_over(io).await,
            (Opened::Unix(io), Some(tls)) => {
                http1_over(tls.connect(pool.endpoint.hostname(), io).await?).await
            }
            (Opened::Tcp(io), None) => http1_over(io).await,
            (Opened::Tcp(io), Some(tls)) => {
                http1_over(tls.connect(pool.endpoint.hostname(), io).await?).await
            }
        };
        Ok((sender?, connected))
    })
    .await
}

pub(super) async fn http2(pool: &Pool) -> Result<(Http2, Made), UpstreamError> {
    bounded(pool, async {
        let (opened, tls, connected) = open(pool).await?;
        let sender = match (opened, tls) {
            (Opened::Embedded(io), _) => http2_over(io).await,
            (Opened::Unix(io), None) => http2_over(io).await,
            (Opened::Unix(io), Some(tls)) => {
                http2_over(tls.connect(pool.endpoint.hostname(), io).await?).await
            }
            (Opened::Tcp(io), None) => http2_over(io).await,
            (Opened::Tcp(io), Some(tls)) => {
                http2_over(tls.connect(pool.endpoint.hostname(), io).await?).await
            }
        };
        Ok((sender?, connected))
    })
    .await
}

/// A connection without HTTP on it.
pub(super) async fn plain(pool: &Pool) -> Result<Box<dyn Io>, UpstreamError> {
    let (io, _) = bounded(pool, async {
        let (opened, tls, connected) = open(pool).await?;
        let io: Box<dyn Io> = match (opened, tls) {
            (Opened::Embedded(io), _) => Box::new(io),
            (Opened::Unix(io), None) => Box::new(io),
            (Opened::Unix(io), Some(tls)) => {
                Box::new(tls.connect(pool.endpoint.hostname(), io).await?)
            }
            (Opened::Tcp(io), None) => Box::new(io),
            (Opened::Tcp(io), Some(tls)) => {
                Box::new(tls.connect(pool.endpoint.hostname(), io).await?)
            }
        };
        Ok((io, connected))
    })
    .await?;
    Ok(io)
}

/// The transport, the TLS that is to go over it, and when the transport stood.
async fn open(pool: &Pool) -> io::Result<(Opened, Option<&ClientTls>, Instant)> {
    let opened = pool.endpoint.open().await?;
    if let Opened::Tcp(io) = &opened {
        io.set_nodelay(true)?;
    }
    Ok((opened, pool.cluster.tls.as_ref(), Instant::now()))
}

/// Bounds an attempt to connect, counts it, and notes when it was made.
async fn bounded<T>(
    pool: &Pool,
    connect: impl Future<Output = Result<(T, Instant), UpstreamError>>,
) -> Result<(T, Made), UpstreamError> {
    let limit = pool.cluster.connect_timeout;
    let attempt = async {
        tokio::time::timeout(limit, connect)
            .await
            .unwrap_or(Err(UpstreamError::ConnectTimeout(limit)))
    };
    let begun = Instant::now();
    let (io, connected) = pool.endpoint.counted(attempt).await?;
    let ready = Instant::now();
    let made = Made {
        begun,
        connected,
        secured: pool.cluster.tls.as_ref().map(|_| ready),
        ready,
    };
    Ok((io, made))
}

async fn http1_over<IO>(io: IO) -> Result<Http1, UpstreamError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = conn::http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(io))
        .await
        .map_err(UpstreamError::Reset)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(sender)
}

async fn http2_over<IO>(io: IO) -> Result<Http2, UpstreamError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(TokioIo::new(io))
        .await
        .map_err(UpstreamError::Reset)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(sender)
}
