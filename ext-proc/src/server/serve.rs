//! From a processor to a gRPC service and a server.

use std::{
    future::Future,
    io,
    pin::Pin,
    process::ExitCode,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use attache_proto::{
    FILE_DESCRIPTOR_SET,
    ext_proc::{
        ProcessingRequest, ProcessingResponse,
        external_processor_server::{ExternalProcessor, ExternalProcessorServer},
    },
};
use attache_service::{
    Address,
    host::{Host, HostError},
    shutdown::Shutdown,
    telemetry::{self, LogFormat},
};
use futures_util::Stream;
use tonic::{Status, Streaming, service::Routes};

use super::{
    exchange::{self, OnFailure, Settings},
    processor::Processor,
    session::{Outbox, Session},
};

/// Where [`run`] listens unless told otherwise.
const DEFAULT_ADDRESS: &str = "127.0.0.1:50051";
/// Largest message accepted from a proxy: room for the largest body it may buffer.
const MAX_MESSAGE: usize = 64 << 20;

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
    /// The command line is not understood.
    #[error("{0}; usage: [--listen] ADDRESS, for instance {DEFAULT_ADDRESS}")]
    Usage(String),
}

type Run = dyn Fn(Session) -> Replying + Send + Sync;
type Replying = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

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
    make: Arc<dyn Fn(Settings) -> Arc<Run> + Send + Sync>,
    settings: Settings,
}

impl Server {
    /// Serves clones of `processor`, one for each exchange.
    pub fn new<P: Processor + Clone + Sync>(processor: P) -> Self {
        Self::with(move || processor.clone())
    }

    /// Serves processors that `make` makes, one for each exchange.
    pub fn with<P: Processor>(make: impl Fn() -> P + Send + Sync + 'static) -> Self {
        let make = Arc::new(make);
        Self {
            make: Arc::new(move |settings| {
                let make = make.clone();
                Arc::new(move |session| Box::pin(exchange::run(session, make(), settings)))
            }),
            settings: Settings::default(),
        }
    }

    /// Serves `handler`, which is given the typed wire of each exchange. The other settings have
    /// no meaning for it.
    pub fn sessions<F, R>(handler: F) -> Self
    where
        F: Fn(Session) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        Self {
            make: Arc::new(move |_| {
                let handler = handler.clone();
                Arc::new(move |session| Box::pin(handler(session)))
            }),
            settings: Settings::default(),
        }
    }

    /// What the failure of a handler means. Default: [`OnFailure::Report`].
    #[must_use]
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.settings.on_failure = on_failure;
        self
    }

    /// How long one call of a handler may take. Default 10 s. The proxy waits less by default:
    /// 200 ms (`message_timeout`).
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline;
        self
    }

    /// Most bytes gathered of a body that is wanted whole. Default 4 MiB.
    #[must_use]
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.settings.max_body = bytes;
        self
    }

    /// The gRPC service, for a server of your own.
    pub fn into_routes(self) -> Routes {
        let service = Service {
            run: (self.make)(self.settings),
        };
        Routes::new(ExternalProcessorServer::new(service).max_decoding_message_size(MAX_MESSAGE))
    }

    /// The service with health and reflection, to be bound to an address or embedded.
    pub fn into_host(self) -> Host {
        Host::new(self.into_routes())
            .named("envoy.service.ext_proc.v3.ExternalProcessor")
            .descriptors(FILE_DESCRIPTOR_SET)
    }

    /// Serves on `address` until the process is told to end (SIGTERM, SIGINT).
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn serve(self, address: &Address) -> Result<(), ServeError> {
        let shutdown = Shutdown::on_signals().map_err(ServeError::Signals)?;
        Ok(self.into_host().serve(address, shutdown).await?)
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
    let address = address(std::env::args().skip(1))?;
    // An application that logs already goes on as it does.
    let _ = telemetry::init(LogFormat::default(), None);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(server.serve(&address))
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
/// (SIGTERM, SIGINT). Logs go to standard error, as much as `RUST_LOG` says.
pub fn run<P: Processor + Clone + Sync>(processor: P) -> ExitCode {
    Server::new(processor).run()
}

/// The address among the arguments.
fn address(mut arguments: impl Iterator<Item = String>) -> Result<Address, ServeError> {
    let text = match arguments.next() {
        None => DEFAULT_ADDRESS.to_owned(),
        Some(flag) if flag == "--listen" => arguments
            .next()
            .ok_or_else(|| ServeError::Usage("`--listen` needs an address".to_owned()))?,
        Some(argument) => match argument.strip_prefix("--listen=") {
            Some(address) => address.to_owned(),
            None => argument,
        },
    };
    if let Some(more) = arguments.next() {
        return Err(ServeError::Usage(format!("`{more}` is not expected")));
    }
    text.parse()
        .map_err(|error| ServeError::Usage(format!("`{text}`: {error}")))
}

struct Service {
    run: Arc<Run>,
}

#[tonic::async_trait]
impl ExternalProcessor for Service {
    type ProcessStream = Replies;

    async fn process(
        &self,
        request: tonic::Request<Streaming<ProcessingRequest>>,
    ) -> Result<tonic::Response<Replies>, Status> {
        let outbox = Outbox::default();
        let session = Session::new(request.into_inner(), outbox.clone());
        Ok(tonic::Response::new(Replies {
            outbox,
            exchange: Some((self.run)(session)),
        }))
    }
}

/// The replies of one exchange. The exchange runs when they are asked for: no task of its own,
/// and it ends with the call.
struct Replies {
    outbox: Outbox,
    exchange: Option<Replying>,
}

impl Stream for Replies {
    type Item = Result<ProcessingResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut end = None;
        if let Some(exchange) = &mut self.exchange {
            match exchange.as_mut().poll(cx) {
                Poll::Ready(result) => {
                    self.exchange = None;
                    end = result.err();
                }
                Poll::Pending => {
                    return match self.outbox.pop() {
                        Some(message) => Poll::Ready(Some(Ok(message))),
                        None => Poll::Pending,
                    };
                }
            }
        }
        match (end, self.outbox.pop()) {
            (Some(status), _) => Poll::Ready(Some(Err(status))),
            (None, message) => Poll::Ready(message.map(Ok)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_an_argument_with_or_without_its_name() {
        let parse = |arguments: &[&str]| {
            address(arguments.iter().map(|a| (*a).to_owned())).map(|a| a.to_string())
        };
        assert_eq!(parse(&[]).unwrap(), "127.0.0.1:50051");
        for arguments in [
            &["127.0.0.1:1"][..],
            &["--listen", "127.0.0.1:1"],
            &["--listen=127.0.0.1:1"],
        ] {
            assert_eq!(parse(arguments).unwrap(), "127.0.0.1:1");
        }
        for arguments in [&["--listen"][..], &["127.0.0.1:1", "x"], &["nonsense"]] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }
}
