//! From a processor to a gRPC service and a server.

use std::{future::Future, process::ExitCode, sync::Arc, time::Duration};

use attache_proto::FILE_DESCRIPTOR_SET;
use attache_service::{
    Address, Metrics,
    host::Host,
    shutdown::Shutdown,
    standalone::{self, ServeError},
    trace::Tracer,
};
use tonic::{Status, service::Routes};

use super::{
    drain::Drain,
    metrics::PartMetrics,
    processor::Processor,
    rules::ProxySettings,
    runner::{self, OnFailure, Settings},
    session::Session,
    transport::{Run, Service},
};

/// Where [`run`] listens unless told otherwise.
const DEFAULT_ADDRESS: &str = "127.0.0.1:50051";
/// How long open exchanges may go on at the end of a server, before those that can are closed.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// A processor and how it is served.
///
/// ```no_run
/// # use attache_ext_proc::server::{OnFailure, Processor, Server};
/// #[derive(Clone)]
/// struct Nothing;
/// impl Processor for Nothing {}
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let server = Server::new(Nothing).on_failure(OnFailure::Pass);
/// server.serve(&"127.0.0.1:50051".parse()?).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Server {
    make: Arc<dyn Fn(Arc<Settings>) -> Arc<Run> + Send + Sync>,
    settings: Settings,
    drain: Option<Drain>,
    drain_grace: Duration,
    tracer: Tracer,
}

impl Server {
    /// Serves clones of `processor`, one for each exchange.
    pub fn new<P: Processor + Clone + Sync>(processor: P) -> Self {
        Self::with(move || processor.clone())
    }

    /// Serves processors that `make` makes, one for each exchange.
    pub fn with<P: Processor>(make: impl Fn() -> P + Send + Sync + 'static) -> Self {
        let make = Arc::new(make);
        Self::of(move |settings| {
            let make = make.clone();
            Arc::new(move |session| Box::pin(runner::run(session, make(), settings.clone())))
        })
    }

    /// Serves `handler`, which is given the typed wire of each exchange. Of the settings only
    /// [`Server::assume`] and [`Server::drain_grace`] (see [`Session::drained`]) have a meaning for
    /// it.
    pub fn sessions<F, R>(handler: F) -> Self
    where
        F: Fn(Session) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        Self::of(move |_| {
            let handler = handler.clone();
            Arc::new(move |session| Box::pin(handler(session)))
        })
    }

    pub(super) fn of(make: impl Fn(Arc<Settings>) -> Arc<Run> + Send + Sync + 'static) -> Self {
        Self {
            make: Arc::new(make),
            settings: Settings::default(),
            drain: None,
            drain_grace: DRAIN_GRACE,
            tracer: Tracer::default(),
        }
    }

    /// What the failure of a handler means. Default: [`OnFailure::Report`].
    #[must_use]
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.settings.on_failure = on_failure;
        self
    }

    /// How long one call of a handler may take. Default 10 s. The proxy waits less by default:
    /// see [`ProxySettings::message_timeout`].
    #[must_use]
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.settings.handler_timeout = timeout;
        self
    }

    /// Most bytes gathered or held back of a body. Default 4 MiB.
    #[must_use]
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.settings.max_body = bytes;
        self
    }

    /// What is known of the settings of the proxy's filter. Default: Envoy's defaults.
    #[must_use]
    pub fn assume(mut self, proxy: ProxySettings) -> Self {
        self.settings.proxy = proxy;
        self
    }

    /// Counts what the handlers of a [`Processor`] do: `attache_processor_handled_total` by `part`
    /// and `result`, `attache_processor_handler_seconds` by `part`, and
    /// `attache_processor_cut_bodies_total`. Default: not counted. Sessions and stacks of
    /// middleware are not counted.
    #[must_use]
    pub fn metrics(mut self, metrics: &Metrics) -> Self {
        self.settings.metrics = Some(Arc::new(PartMetrics::new(metrics)));
        self
    }

    /// Makes a span of each exchange. Default: none.
    #[must_use]
    pub fn tracer(mut self, tracer: &Tracer) -> Self {
        self.tracer = tracer.clone();
        self
    }

    /// How long open exchanges go on when the server is told to end. After it those that wait for
    /// the proxy are closed cleanly, so that traffic passes unprocessed; those within a body end
    /// when it does. Default 5 s, of the 10 s that a [`Host`] waits.
    #[must_use]
    pub fn drain_grace(mut self, grace: Duration) -> Self {
        self.drain_grace = grace;
        self
    }

    #[cfg(test)]
    pub(super) fn draining_with(mut self, drain: Drain) -> Self {
        self.drain = Some(drain);
        self
    }

    /// The gRPC service, for a server of your own.
    pub fn into_routes(self) -> Routes {
        Routes::new(self.into_service())
    }

    fn into_service(self) -> Service {
        Service {
            settings: Arc::new(self.settings.proxy),
            run: (self.make)(Arc::new(self.settings)),
            drain: self.drain,
            tracer: self.tracer,
        }
    }

    /// The service with health and reflection, to be bound to an address or embedded.
    pub fn into_host(self) -> Host {
        Host::default()
            .service(self.into_service())
            .descriptors(FILE_DESCRIPTOR_SET)
    }

    /// Serves on `address` until `shutdown`, and then until the open exchanges have ended.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn serve_until(
        mut self,
        address: &Address,
        shutdown: Shutdown,
    ) -> Result<(), ServeError> {
        let drain = self.drain.get_or_insert_default().clone();
        let grace = self.drain_grace;
        let serving = self.into_host().serve(address, shutdown.clone());
        let closing = async {
            shutdown.recv().await;
            tokio::time::sleep(grace).await;
            drain.close();
            std::future::pending().await
        };
        tokio::select! {
            served = serving => Ok(served?),
            never = closing => never,
        }
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

/// The gRPC service of a processor, for a server of your own.
pub fn routes<P: Processor + Clone + Sync>(processor: P) -> Routes {
    Server::new(processor).into_routes()
}

/// Serves a processor on `address` until the process is told to end.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve<P: Processor + Clone + Sync>(
    address: &Address,
    processor: P,
) -> Result<(), ServeError> {
    Server::new(processor).serve(address).await
}

/// All that a `main` needs: serves a processor on the address given on the command line
/// (`[--listen] ADDRESS`), by default `127.0.0.1:50051`, until the process is told to end
/// (SIGTERM, SIGINT). Metrics and probes are served with `--admin ADDRESS`. Logs go to standard
/// error, as much as `RUST_LOG` says.
pub fn run<P: Processor + Clone + Sync>(processor: P) -> ExitCode {
    Server::new(processor).run()
}
