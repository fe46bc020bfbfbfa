//! The admin endpoint: a tiny HTTP/1.1 server for probes, metrics and a look at the
//! configuration. It only reads; nothing can be changed through it.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while the process lives |
//! | `/readyz` | 200, or 503 with one reason a line: see [`Readiness`] |
//! | `/metrics` | OpenMetrics text |
//! | `/config` | the configuration in use, if the program gives it |
//! | `/` | this list |

mod readiness;
mod respond;

use std::{convert::Infallible, net::IpAddr, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};
use tokio_util::task::TaskTracker;

pub use readiness::{Condition, Readiness};

use crate::{
    address::Address,
    listen::{ListenError, Listener, Socket},
    metrics::Metrics,
    shutdown::Shutdown,
};

/// Connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// Bound on sending one request head, and on a connection's silence between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound on a connection's whole life, however slowly it reads.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);
/// Bound on finishing what runs at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the admin endpoint does not serve.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Others on the network could reach it.
    #[error(
        "the admin endpoint would be open to the network at {0}: use 127.0.0.1, [::1] or a Unix socket"
    )]
    NotLoopback(Address),
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// The configuration as text, and its media type; without secrets.
pub struct ConfigDump {
    /// Such as `application/json`.
    pub content_type: &'static str,
    /// The whole text.
    pub text: String,
}

type DumpConfig = Arc<dyn Fn() -> ConfigDump + Send + Sync>;

/// What the admin endpoint shows.
#[derive(Clone)]
pub struct Admin {
    readiness: Readiness,
    metrics: Metrics,
    config: Option<DumpConfig>,
    allow_network: bool,
}

impl Admin {
    /// An endpoint for these conditions and metrics.
    pub fn new(readiness: Readiness, metrics: Metrics) -> Self {
        Self {
            readiness,
            metrics,
            config: None,
            allow_network: false,
        }
    }

    /// Shows the configuration in use at `/config`. The closure must leave secrets out.
    #[must_use]
    pub fn config(mut self, dump: impl Fn() -> ConfigDump + Send + Sync + 'static) -> Self {
        self.config = Some(Arc::new(dump));
        self
    }

    /// Allows an address that others on the network can reach. Default false.
    #[must_use]
    pub fn allow_network(mut self, allow: bool) -> Self {
        self.allow_network = allow;
        self
    }

    /// Listens on `address`, without serving yet.
    ///
    /// # Errors
    /// The address is not local, or cannot be listened on.
    pub async fn bind(self, address: &Address) -> Result<BoundAdmin, AdminError> {
        if !self.allow_network && !is_local(address) {
            return Err(AdminError::NotLoopback(address.clone()));
        }
        let listener = Listener::bind(address).await?;
        Ok(BoundAdmin {
            listener,
            admin: self,
        })
    }
}

/// An admin endpoint that listens and does not serve yet.
pub struct BoundAdmin {
    listener: Listener,
    admin: Admin,
}

impl BoundAdmin {
    /// Where it listens, with the port that the system chose.
    pub fn address(&self) -> &Address {
        self.listener.address()
    }

    /// Serves until `shutdown`. To answer probes during a drain, shut it down after it.
    pub async fn serve(self, shutdown: Shutdown) {
        let Self { listener, admin } = self;
        let connections = TaskTracker::new();
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let next = async {
                let place = places.clone().acquire_owned().await;
                (place, listener.accept().await)
            };
            let (place, socket) = tokio::select! {
                next = next => next,
                () = shutdown.recv() => break,
            };
            let (admin, shutdown) = (admin.clone(), shutdown.clone());
            connections.spawn(async move {
                let _place = place;
                let served = async {
                    match socket {
                        Socket::Tcp(stream) => admin.connection(stream, &shutdown).await,
                        Socket::Unix(stream) => admin.connection(stream, &shutdown).await,
                    }
                };
                if let Ok(Err(error)) = tokio::time::timeout(MAX_CONNECTION_AGE, served).await {
                    tracing::debug!(%error, "admin connection ended");
                }
            });
        }
        drop(listener);
        connections.close();
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await;
    }
}

impl Admin {
    async fn connection<IO>(&self, io: IO, shutdown: &Shutdown) -> hyper::Result<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let respond = service_fn(async |request| Ok::<_, Infallible>(self.respond(&request)));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(16 << 10)
            .serve_connection(TokioIo::new(io), respond);
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = shutdown.recv() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

/// Whether only this machine can reach `address`.
pub fn is_local(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp { host, .. } => {
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests;
