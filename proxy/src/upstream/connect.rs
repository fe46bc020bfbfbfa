//! New connections to an endpoint.

use attache_service::{Address, channel::Target};
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use super::{Endpoint, UploadBody, UpstreamError};
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

pub(super) async fn http1(endpoint: &Endpoint) -> Result<Http1, UpstreamError> {
    bounded(endpoint, async {
        match &endpoint.target {
            Target::Embedded(connector) => http1_over(connector()).await,
            Target::Address(Address::Unix(path)) => {
                let io = UnixStream::connect(path).await?;
                match &endpoint.cluster.tls {
                    None => http1_over(io).await,
                    Some(tls) => http1_over(tls.connect("localhost", io).await?).await,
                }
            }
            Target::Address(Address::Tcp { host, port }) => {
                let io = tcp(host, *port).await?;
                match &endpoint.cluster.tls {
                    None => http1_over(io).await,
                    Some(tls) => http1_over(tls.connect(host, io).await?).await,
                }
            }
        }
    })
    .await
}

pub(super) async fn http2(endpoint: &Endpoint) -> Result<Http2, UpstreamError> {
    bounded(endpoint, async {
        match &endpoint.target {
            Target::Embedded(connector) => http2_over(connector()).await,
            Target::Address(Address::Unix(path)) => {
                let io = UnixStream::connect(path).await?;
                match &endpoint.cluster.tls {
                    None => http2_over(io).await,
                    Some(tls) => http2_over(tls.connect("localhost", io).await?).await,
                }
            }
            Target::Address(Address::Tcp { host, port }) => {
                let io = tcp(host, *port).await?;
                match &endpoint.cluster.tls {
                    None => http2_over(io).await,
                    Some(tls) => http2_over(tls.connect(host, io).await?).await,
                }
            }
        }
    })
    .await
}

/// A connection without HTTP on it.
pub(super) async fn plain(endpoint: &Endpoint) -> Result<Box<dyn Io>, UpstreamError> {
    bounded(endpoint, async {
        let io: Box<dyn Io> = match (&endpoint.target, &endpoint.cluster.tls) {
            (Target::Embedded(connector), _) => Box::new(connector()),
            (Target::Address(Address::Unix(path)), None) => {
                Box::new(UnixStream::connect(path).await?)
            }
            (Target::Address(Address::Unix(path)), Some(tls)) => {
                let io = UnixStream::connect(path).await?;
                Box::new(tls.connect("localhost", io).await?)
            }
            (Target::Address(Address::Tcp { host, port }), None) => {
                Box::new(tcp(host, *port).await?)
            }
            (Target::Address(Address::Tcp { host, port }), Some(tls)) => {
                Box::new(tls.connect(host, tcp(host, *port).await?).await?)
            }
        };
        Ok(io)
    })
    .await
}

async fn bounded<T>(
    endpoint: &Endpoint,
    connect: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    let limit = endpoint.cluster.connect_timeout;
    tokio::time::timeout(limit, connect)
        .await
        .unwrap_or(Err(UpstreamError::ConnectTimeout(limit)))
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, UpstreamError> {
    let io = TcpStream::connect((host, port)).await?;
    io.set_nodelay(true)?;
    Ok(io)
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
