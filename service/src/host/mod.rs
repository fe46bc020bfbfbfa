//! The gRPC server of our services: HTTP/2 straight over hyper, health, reflection, drain.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use attache_service::{host::Host, shutdown::Shutdown};
//!
//! let shutdown = Shutdown::on_signals()?;
//! let host = Host::new(tonic::service::Routes::default()).workers(2);
//! host.serve(&"127.0.0.1:50051".parse()?, shutdown).await?;
//! # Ok(())
//! # }
//! ```
//!
//! **Threads.** Each worker is one thread with a current-thread runtime. One acceptor hands every
//! connection to the worker that has the fewest: gRPC clients open few connections and keep them
//! long, so an even spread is worth more than a fast accept, and the kernel's `SO_REUSEPORT` hash
//! often puts two of four connections on one worker. It also lets a port in use be an error
//! instead of a port silently shared.

mod calls;
mod connection;
mod health;
mod preface;
mod services;
mod worker;

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use http::Request;
use tokio::{io::duplex, sync::mpsc};
use tonic::{server::NamedService, service::Routes};
use tonic_health::pb::health_server::HealthServer;
use tower::Service;

pub use connection::ConnectionAge;
pub use health::Health;

use crate::{
    address::Address,
    channel::EmbeddedConnector,
    listen::{ListenError, Listener, Socket},
    metrics::{Counter, Gauge, Metrics},
    shutdown::Shutdown,
    tls::ServerTls,
};
use connection::Server;
use services::Services;
use worker::Worker;

/// Buffer of an in-memory connection, each way.
const EMBEDDED_BUFFER: usize = 256 << 10;
/// How long past the drain bound a worker that does not react is waited for.
const STUCK_GRACE: Duration = Duration::from_secs(1);

/// Why a host does not serve.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A worker thread or its runtime cannot be made.
    #[error("cannot start a worker: {0}")]
    Worker(#[source] io::Error),
    /// A descriptor set for reflection is malformed.
    #[error("cannot serve reflection: {0}")]
    Descriptors(String),
}

/// A gRPC server: services and how to serve them.
///
/// Health (`grpc.health.v1`) and reflection (v1 and v1alpha) are added on their own.
#[derive(Clone)]
pub struct Host {
    services: Services,
    names: Vec<String>,
    descriptors: Vec<&'static [u8]>,
    health: Health,
    workers: usize,
    tls: Option<ServerTls>,
    drain_timeout: Duration,
    max_connections: usize,
    age: Option<ConnectionAge>,
    shared_port: bool,
    metrics: Metrics,
}

impl Default for Host {
    /// A host without services yet: add them with [`Host::service`].
    fn default() -> Self {
        Self::new(Routes::default())
    }
}

impl Host {
    /// A host of these services, with one worker and plain text.
    ///
    /// `routes` do not tell their names: give them with [`Host::named`]. Services that are added
    /// with [`Host::service`] instead have a shorter way to go.
    pub fn new(routes: Routes) -> Self {
        Self {
            services: Services::new(routes),
            names: Vec::new(),
            descriptors: Vec::new(),
            health: Health::default(),
            workers: 1,
            tls: None,
            drain_timeout: Duration::from_secs(10),
            max_connections: 10_000,
            age: None,
            shared_port: false,
            metrics: Metrics::default(),
        }
    }

    /// Adds a service, and its name to health and reflection.
    #[must_use]
    pub fn service<S>(mut self, service: S) -> Self
    where
        S: Service<Request<tonic::body::Body>, Response = http::Response<tonic::body::Body>>
            + Service<Request<tonic::body::Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.services.add(service);
        self.named(S::NAME)
    }

    /// Names a service of the routes (`package.Service`) for health and reflection. It is
    /// reported as serving until [`Health::set`] says otherwise.
    #[must_use]
    pub fn named(mut self, service: impl Into<String>) -> Self {
        let service = service.into();
        self.health.set(&service, true);
        self.names.push(service);
        self
    }

    /// Adds an encoded `FileDescriptorSet` to reflection. Those of Envoy's policy services are
    /// there already.
    #[must_use]
    pub fn descriptors(mut self, encoded: &'static [u8]) -> Self {
        self.descriptors.push(encoded);
        self
    }

    /// Number of threads that serve. Default 1; 0 counts as 1.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// Serves over TLS.
    #[must_use]
    pub fn tls(mut self, tls: ServerTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Bound on finishing the calls in flight at shutdown. Default 10 s.
    #[must_use]
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Connections at a time; further ones are closed as soon as they are accepted.
    /// Default 10 000.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections.max(1);
        self
    }

    /// Ends connections of a certain age, so that clients connect anew and find other instances.
    /// Default: they live as long as the client wants.
    #[must_use]
    pub fn connection_age(mut self, age: ConnectionAge) -> Self {
        self.age = Some(age);
        self
    }

    /// Lets other processes of this user listen on the same TCP port (`SO_REUSEPORT`), so that a
    /// successor can start before its predecessor stops. Default false: a port in use is an error.
    #[must_use]
    pub fn shared_port(mut self, shared: bool) -> Self {
        self.shared_port = shared;
        self
    }

    /// Counts connections here: `attache_host_connections` (open now) and
    /// `attache_host_connections_refused` (over the cap), by `address` as it was configured.
    #[must_use]
    pub fn metrics(mut self, metrics: &Metrics) -> Self {
        self.metrics = metrics.clone();
        self
    }

    /// The handle by which services report whether they are ready.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Listens on `address`, without serving yet. Clients that connect wait.
    ///
    /// # Errors
    /// The address cannot be listened on, or a descriptor set is malformed.
    pub async fn bind(self, address: &Address) -> Result<Bound, HostError> {
        let routes =
            connection::with_reflection(self.with_health(), &self.names, &self.descriptors)
                .map_err(|error| HostError::Descriptors(error.to_string()))?;
        let server = Server {
            services: self.services.with_routes(routes),
            tls: self.tls.clone(),
            age: self.age,
            drain: Shutdown::new(),
        };
        let listener = match self.shared_port {
            true => Listener::bind_shared(address).await?,
            false => Listener::bind(address).await?,
        };
        let labels = [("address", &*address.to_string())];
        let open = self.metrics.gauge(
            "attache_host_connections",
            "Connections open to a gRPC host.",
            &labels,
        );
        let refused = self.metrics.counter(
            "attache_host_connections_refused",
            "Connections to a gRPC host that were closed because of their number.",
            &labels,
        );
        Ok(Bound {
            listener,
            server,
            open,
            refused,
            host: self,
        })
    }

    /// [`Host::bind`] and [`Bound::serve`] in one.
    ///
    /// # Errors
    /// As theirs.
    pub async fn serve(self, address: &Address, shutdown: Shutdown) -> Result<(), HostError> {
        self.bind(address).await?.serve(shutdown).await
    }

    /// Makes the services reachable from within this process, without a socket.
    ///
    /// Each connection is served on the tokio runtime of the worker that opens it, so calls
    /// never cross threads; the connector must be called inside one. Health is served,
    /// reflection is not: nobody can come to ask.
    pub fn embedded(self) -> EmbeddedConnector {
        let server = Server {
            services: self.services.with_routes(self.with_health()),
            tls: None,
            age: None,
            drain: Shutdown::new(),
        };
        Arc::new(move || {
            let (client, io) = duplex(EMBEDDED_BUFFER);
            let server = Server {
                drain: Shutdown::new(),
                ..server.clone()
            };
            tokio::spawn(async move {
                if let Err(error) = server.serve(Box::new(io), || true).await {
                    tracing::debug!(%error, "embedded connection ended");
                }
            });
            client
        })
    }

    fn with_health(&self) -> Routes {
        let service = HealthServer::new(self.health.clone());
        self.services.routes().add_service(service)
    }
}

/// A host that listens and does not serve yet.
pub struct Bound {
    listener: Listener,
    server: Server,
    open: Gauge,
    refused: Counter,
    host: Host,
}

impl Bound {
    /// Where it listens, with the port that the system chose.
    pub fn address(&self) -> &Address {
        self.listener.address()
    }

    /// Serves until `shutdown`, then drains: says `NOT_SERVING`, stops accepting, sends GOAWAY,
    /// and returns when the calls in flight have ended or the drain bound has passed.
    ///
    /// Dropping the future stops everything at once.
    ///
    /// # Errors
    /// A worker cannot be started.
    pub async fn serve(self, shutdown: Shutdown) -> Result<(), HostError> {
        let Self {
            listener,
            server,
            open,
            refused,
            host,
        } = self;
        let drain = server.drain.clone();
        let _stop_on_drop = StopOnDrop(drain.clone());
        let (alive, mut all_gone) = mpsc::channel(1);
        let workers = (0..host.workers)
            .map(|index| {
                let (server, open, alive) = (server.clone(), open.clone(), alive.clone());
                Worker::start(index, server, host.drain_timeout, open, alive)
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(HostError::Worker)?;
        drop(alive);
        tracing::info!(address = %listener.address(), workers = workers.len(), tls = host.tls.is_some(), "listening");

        let mut dispatch = Dispatch {
            workers,
            turn: 0,
            max: host.max_connections,
            refused,
            refusing: false,
        };
        let certificates = async {
            match &host.tls {
                Some(tls) => tls.follow_files().await,
                None => std::future::pending().await,
            }
        };
        let mut certificates = std::pin::pin!(certificates);
        loop {
            tokio::select! {
                () = &mut certificates => {}
                socket = listener.accept() => dispatch.hand(socket),
                () = shutdown.recv() => break,
            }
        }

        host.health.drain();
        drop(listener);
        drop(dispatch);
        drain.trigger();
        tokio::select! {
            _ = all_gone.recv() => {}
            () = shutdown.recv_immediate() => {}
            () = tokio::time::sleep(host.drain_timeout + STUCK_GRACE) => {
                tracing::warn!("a worker is stuck in a handler that blocks; leaving it behind");
            }
        }
        Ok(())
    }
}

struct StopOnDrop(Shutdown);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.trigger_immediate();
    }
}

/// Spreads connections over workers.
struct Dispatch {
    workers: Vec<Worker>,
    turn: usize,
    max: usize,
    refused: Counter,
    refusing: bool,
}

impl Dispatch {
    fn hand(&mut self, socket: Socket) {
        let open: usize = self.workers.iter().map(Worker::open).sum();
        if open >= self.max {
            self.refused.inc();
            // Once, however many come; the metric has the number.
            if !std::mem::replace(&mut self.refusing, true) {
                tracing::warn!(open, "connections are refused: the limit is reached");
            }
            return;
        }
        self.refusing = false;
        // Among equals the turn decides, so that the first worker is not always the first.
        self.turn = self.turn.wrapping_add(1);
        let (before, from) = self
            .workers
            .split_at(self.turn.checked_rem(self.workers.len()).unwrap_or(0));
        let Some(worker) = from.iter().chain(before).min_by_key(|worker| worker.open()) else {
            return;
        };
        if let Err(error) = worker.hand(socket) {
            tracing::warn!(%error, "connection dropped");
        }
    }
}

#[cfg(test)]
mod tests;
