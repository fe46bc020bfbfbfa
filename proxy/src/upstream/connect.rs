//! New connections to an endpoint.

use std::io;

use attache_service::{cluster::Opened, tls::ClientTls};
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Pool, UploadBody, UpstreamError};
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

pub(super) async fn http1(pool: &Pool) -> Result<Http1, UpstreamError> {
    bounded(pool, async {
        match open(pool).await? {
            (Opened::Embedded(io), _) => http1_over(io).await,
            (Opened::Unix(io), None) => http1_over(io).await,
            (Opened::Unix(io), Some(tls)) => {
                http1_over(tls.connect(pool.endpoint.hostname(), io).await?).await
            }
            (Opened::Tcp(io), None) => http1_over(io).await,
            (Opened::Tcp(io), Some(tls)) => {
                http1_over(tls.connect(pool.endpoint.hostname(), io).await?).await
            }
        }
    })
    .await
}

pub(super) async fn http2(pool: &Pool) -> Result<Http2, UpstreamError> {
    bounded(pool, async {
        match open(pool).await? {
            (Opened::Embedded(io), _) => http2_over(io).await,
            (Opened::Unix(io), None) => http2_over(io).await,
            (Opened::Unix(io), Some(tls)) => {
                http2_over(tls.connect(pool.endpoint.hostname(), io).await?).await
            }
            (Opened::Tcp(io), None) => http2_over(io).await,
            (Opened::Tcp(io), Some(tls)) => {
                http2_over(tls.connect(pool.endpoint.hostname(), io).await?).await
            }
        }
    })
    .await
}

/// A connection without HTTP on it.
pub(super) async fn plain(pool: &Pool) -> Result<Box<dyn Io>, UpstreamError> {
    bounded(pool, async {
        let io: Box<dyn Io> = match open(pool).await? {
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
        Ok(io)
    })
    .await
}

async fn open(pool: &Pool) -> io::Result<(Opened, Option<&ClientTls>)> {
    let opened = pool.endpoint.open().await?;
    if let Opened::Tcp(io) = &opened {
        io.set_nodelay(true)?;
    }
    Ok((opened, pool.cluster.tls.as_ref()))
}

/// Bounds an attempt to connect, and counts it.
async fn bounded<T>(
    pool: &Pool,
    connect: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    let limit = pool.cluster.connect_timeout;
    let attempt = async {
        tokio::time::timeout(limit, connect)
            .await
            .unwrap_or(Err(UpstreamError::ConnectTimeout(limit)))
    };
    let begun = tokio::time::Instant::now();
    let connected = pool.endpoint.counted(attempt).await;
    pool.connect_duration.observe(begun.elapsed());
    connected
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
