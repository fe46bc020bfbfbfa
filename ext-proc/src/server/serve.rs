//! From a processor to a gRPC service and a server.

use std::{future::Future, io, process::ExitCode, sync::Arc, time::Duration};

use attache_proto::FILE_DESCRIPTOR_SET;
use attache_service::{
    Address, Metrics,
    admin::{Admin, AdminError, Readiness},
    host::{Host, HostError},
    shutdown::Shutdown,
    telemetry::{self, LogFormat},
};
use tonic::{Status, server::NamedService, service::Routes};

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

/// Why a server did not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on, or a worker cannot be started.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] io::Error),
    /// The async runtime cannot be started.
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] io::Error),
    /// The admin endpoint cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The command line is not understood.
    #[error("{0}; usage: [[--listen] ADDRESS] [--admin ADDRESS], for instance {DEFAULT_ADDRESS}")]
    Usage(String),
}

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
        Routes::new(Service {
            settings: Arc::new(self.settings.proxy),
            run: (self.make)(Arc::new(self.settings)),
            drain: self.drain,
        })
    }

    /// The service with health and reflection, to be bound to an address or embedded.
    pub fn into_host(self) -> Host {
        Host::new(self.into_routes())
            .named(Service::NAME)
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
        match run_server(self) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

fn run_server(server: Server) -> Result<(), ServeError> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    // An application that logs already goes on as it does.
    let _ = telemetry::init(LogFormat::default(), None);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(async {
        let Some(address) = &arguments.admin else {
            return server.serve(&arguments.listen).await;
        };
        let metrics = Metrics::default();
        metrics.describe_process();
        let admin = Admin::new(Readiness::default(), metrics.clone());
        let admin = admin.bind(address).await?;
        tracing::info!(address = %admin.address(), "admin");
        // It answers until the drain is over.
        tokio::select! {
            served = server.metrics(&metrics).serve(&arguments.listen) => served,
            () = admin.serve(Shutdown::new()) => Ok(()),
        }
    })
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

/// The command line of [`run`].
#[derive(Debug, PartialEq)]
struct Arguments {
    listen: Address,
    admin: Option<Address>,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, ServeError> {
        let (mut listen, mut admin) = (None, None);
        while let Some(argument) = arguments.next() {
            let (flag, value) = match argument.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            let target = match flag {
                "--listen" => &mut listen,
                "--admin" => &mut admin,
                _ if argument.starts_with('-') || listen.is_some() => {
                    return Err(ServeError::Usage(format!("`{argument}` is not expected")));
                }
                _ => {
                    listen = Some(address(&argument)?);
                    continue;
                }
            };
            let value = value.or_else(|| arguments.next());
            let value =
                value.ok_or_else(|| ServeError::Usage(format!("`{flag}` needs an address")))?;
            *target = Some(address(&value)?);
        }
        let listen = match listen {
            Some(listen) => listen,
            None => address(DEFAULT_ADDRESS)?,
        };
        Ok(Self { listen, admin })
    }
}

fn address(text: &str) -> Result<Address, ServeError> {
    text.parse()
        .map_err(|error| ServeError::Usage(format!("`{text}`: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_arguments_with_or_without_a_name() {
        let parse = |arguments: &[&str]| {
            let parsed = Arguments::parse(arguments.iter().map(|a| (*a).to_owned()))?;
            Ok::<_, ServeError>((
                parsed.listen.to_string(),
                parsed.admin.map(|admin| admin.to_string()),
            ))
        };
        assert_eq!(parse(&[]).unwrap(), (DEFAULT_ADDRESS.to_owned(), None));
        for arguments in [
            &["127.0.0.1:1"][..],
            &["--listen", "127.0.0.1:1"],
            &["--listen=127.0.0.1:1"],
        ] {
            assert_eq!(parse(arguments).unwrap(), ("127.0.0.1:1".to_owned(), None));
        }
        let both = ("127.0.0.1:1".to_owned(), Some("127.0.0.1:2".to_owned()));
        assert_eq!(
            parse(&["--admin", "127.0.0.1:2", "127.0.0.1:1"]).unwrap(),
            both
        );
        for arguments in [
            &["--listen"][..],
            &["--admin"],
            &["127.0.0.1:1", "x"],
            &["--other", "127.0.0.1:1"],
            &["nonsense"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }
}
