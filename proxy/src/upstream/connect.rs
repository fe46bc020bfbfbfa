//! New connections to an endpoint.

use std::io;

use attache_service::cluster::Io;
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::Instant;

use super::{Pool, UploadBody, UpstreamError, pool::Made};

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
        let (io, connected) = open(pool).await?;
        Ok((http1_over(io).await?, connected))
    })
    .await
}

pub(super) async fn http2(pool: &Pool) -> Result<(Http2, Made), UpstreamError> {
    bounded(pool, async {
        let (io, connected) = open(pool).await?;
        Ok((http2_over(io).await?, connected))
    })
    .await
}

/// A connection without HTTP on it.
pub(super) async fn plain(pool: &Pool) -> Result<Box<dyn Io>, UpstreamError> {
    let (io, _) = bounded(pool, async { Ok(open(pool).await?) }).await?;
    Ok(io)
}

/// A connection, with TLS where its cluster has it, and when its transport stood.
async fn open(pool: &Pool) -> io::Result<(Box<dyn Io>, Instant)> {
    let opened = pool.endpoint.open().await?;
    let connected = Instant::now();
    let tls = pool.cluster.tls.as_ref();
    let io = opened.secured(tls, pool.endpoint.hostname()).await?;
    Ok((io, connected))
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

async fn http1_over(io: Box<dyn Io>) -> Result<Http1, UpstreamError> {
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

async fn http2_over(io: Box<dyn Io>) -> Result<Http2, UpstreamError> {
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
