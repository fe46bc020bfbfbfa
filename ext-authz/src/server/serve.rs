//! From an authorizer to a server.

use std::{process::ExitCode, sync::Arc, time::Duration};

use attache_proto::FILE_DESCRIPTOR_SET;
use attache_service::{
    Address, Host, Metrics, Shutdown, Unary,
    standalone::{self, ServeError},
    tls::ServerTls,
    trace::Tracer,
};
use tonic::service::Routes;

use super::{
    authorizer::Authorizer,
    decision::HeaderLimits,
    failure::OnFailure,
    metrics::CheckMetrics,
    service::{AuthorizerService, Settings},
};

/// Where [`run`] listens unless told otherwise.
const DEFAULT_ADDRESS: &str = "127.0.0.1:9001";

/// Name of the gRPC service, for health checks.
pub const SERVICE_NAME: &str = "envoy.service.auth.v3.Authorization";

/// An authorizer and how it is served.
///
/// ```no_run
/// # use attache_ext_authz::server::{Authorizer, CheckError, CheckRequestView, Decision, OnFailure, Server};
/// # struct Nobody;
/// # impl Authorizer for Nobody {
/// #     async fn check(&self, _: &CheckRequestView) -> Result<Decision, CheckError> {
/// #         Ok(Decision::deny(403).into())
/// #     }
/// # }
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let busy = Decision::error(503).header("retry-after", "1");
/// let server = Server::new(Nobody).on_failure(OnFailure::answer(busy)?);
/// server.serve(&"127.0.0.1:9001".parse()?).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Server<A> {
    authorizer: A,
    settings: Settings,
    metrics: Option<Metrics>,
    workers: usize,
    tls: Option<ServerTls>,
}

impl<A: Authorizer> Server<A> {
    /// Serves `authorizer`, with one worker and plain text.
    pub fn new(authorizer: A) -> Self {
        Self {
            authorizer,
            settings: Settings::default(),
            metrics: None,
            workers: 1,
            tls: None,
        }
    }

    /// What the proxy is told of a check that came to no decision. Default: an error answer with
    /// status 503.
    #[must_use]
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.settings.on_failure = on_failure;
        self
    }

    /// How long a check may take at most. Default 10 s. The deadline of the proxy's call, 200 ms
    /// by Envoy's default, less a tenth for the way back, counts where it is shorter.
    #[must_use]
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.settings.handler_timeout = timeout;
        self
    }

    /// Most checks under way at once; those beyond fail at once, as [`Server::on_failure`] says.
    /// Default 1024.
    #[must_use]
    pub fn max_in_flight(mut self, checks: usize) -> Self {
        self.settings.max_in_flight = checks;
        self
    }

    /// Largest check that is accepted, body included, in bytes. Default 16 MiB.
    #[must_use]
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.settings.max_message = bytes;
        self
    }

    /// Header limits of the proxy, by which decisions are refused that it would answer with 500
    /// (Envoy's `max_headers_count`, `max_request_headers_kb`). Default: Envoy's defaults.
    #[must_use]
    pub fn assume_limits(mut self, limits: HeaderLimits) -> Self {
        self.settings.limits = limits;
        self
    }

    /// Counts checks: `attache_authorizer_checks_total` by `outcome` (`allowed`, `denied`,
    /// `error`, `panic`, `deadline`, `cancelled`, `shed`), `attache_authorizer_check_seconds`
    /// and `attache_authorizer_checks_in_flight`; and the connections of the host. Default: not
    /// counted.
    #[must_use]
    pub fn metrics(mut self, metrics: &Metrics) -> Self {
        self.settings.metrics = Some(Arc::new(CheckMetrics::new(metrics)));
        self.metrics = Some(metrics.clone());
        self
    }

    /// Makes a span of each check, see [`CheckRequestView::span`](super::CheckRequestView::span).
    /// Default: none.
    #[must_use]
    pub fn tracer(mut self, tracer: &Tracer) -> Self {
        self.settings.tracer = tracer.clone();
        self
    }

    /// Number of threads that serve. Default 1.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Serves TLS. Default: plain text.
    #[must_use]
    pub fn tls(mut self, tls: ServerTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The gRPC service, for a server of your own.
    pub fn into_routes(self) -> Routes {
        Routes::new(self.into_service())
    }

    /// The gRPC service, for a [`Host`] of your own.
    pub fn into_service(self) -> Unary<AuthorizerService<A>> {
        AuthorizerService::with(self.authorizer, self.settings).into_unary()
    }

    /// The service with health and reflection, to be bound to an address or embedded.
    pub fn into_host(self) -> Host {
        let (metrics, workers, tls) = (self.metrics.clone(), self.workers, self.tls.clone());
        let mut host = Host::default()
            .service(self.into_service())
            .descriptors(FILE_DESCRIPTOR_SET)
            .workers(workers);
        if let Some(metrics) = metrics {
            host = host.metrics(&metrics);
        }
        match tls {
            Some(tls) => host.tls(tls),
            None => host,
        }
    }

    /// Serves on `address` until `shutdown`, and then until the checks under way have ended.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn serve_until(
        self,
        address: &Address,
        shutdown: Shutdown,
    ) -> Result<(), ServeError> {
        Ok(self.into_host().serve(address, shutdown).await?)
    }

    /// Serves on `address` until the process is told to end (SIGTERM, SIGINT).
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn serve(self, address: &Address) -> Result<(), ServeError> {
        let shutdown = Shutdown::on_signals().map_err(ServeError::Signals)?;
        self.serve_until(address, shutdown).await
    }

    /// What [`run`] does, for a server with settings of its own.
    pub fn run(self) -> ExitCode {
        standalone::run(DEFAULT_ADDRESS, |address, metrics, tracer| async move {
            let server = match metrics {
                Some(metrics) => self.metrics(&metrics),
                None => self,
            };
            server.tracer(&tracer).serve(&address).await
        })
    }
}

/// The gRPC service of an authorizer, for a server of your own.
pub fn routes(authorizer: impl Authorizer) -> Routes {
    Server::new(authorizer).into_routes()
}

/// All that a `main` needs: serves an authorizer on the address given on the command line
/// (`[--listen] ADDRESS`), by default `127.0.0.1:9001`, until the process is told to end
/// (SIGTERM, SIGINT). Metrics and probes are served with `--admin ADDRESS`. Logs go to standard
/// error, as much as `RUST_LOG` says.
pub fn run(authorizer: impl Authorizer) -> ExitCode {
    Server::new(authorizer).run()
}
