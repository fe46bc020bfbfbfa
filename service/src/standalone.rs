//! A program that is one gRPC service and nothing else: its command line, logs, runtime and
//! admin page.

use std::{future::Future, io, path::Path, process::ExitCode, time::Duration};

use crate::{
    address::Address,
    admin::{Admin, AdminError, Readiness},
    host::HostError,
    metrics::Metrics,
    shutdown::Shutdown,
    telemetry::{self, LogFormat},
    trace::{Exporter, TraceError, TraceSettings, Tracer},
};

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
    /// Traces cannot be sent as the environment says.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// The command line is not understood.
    #[error("{0}; usage: [[--listen] ADDRESS] [--admin ADDRESS], for instance 127.0.0.1:50051")]
    Usage(String),
}

/// Runs `serve` on the address of the command line (`[--listen] ADDRESS`), or else on `default`,
/// with the metrics of the admin page if one is asked for (`--admin ADDRESS`). Logs go to
/// standard error, as much as `RUST_LOG` says. Traces go where OpenTelemetry's environment says
/// (`OTEL_EXPORTER_OTLP_ENDPOINT` and others, see [`TraceSettings`]), under the program's name
/// unless it gives another.
pub fn run<F, R>(default: &str, serve: F) -> ExitCode
where
    F: FnOnce(Address, Option<Metrics>, Tracer) -> R,
    R: Future<Output = Result<(), ServeError>>,
{
    match try_run(default, serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run<F, R>(default: &str, serve: F) -> Result<(), ServeError>
where
    F: FnOnce(Address, Option<Metrics>, Tracer) -> R,
    R: Future<Output = Result<(), ServeError>>,
{
    let arguments = Arguments::parse(std::env::args().skip(1), default)?;
    // An application that logs already goes on as it does.
    let _ = telemetry::init(LogFormat::default(), None);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    let metrics = Metrics::default();
    let (exporter, tracer) = match TraceSettings::from_environment(None, &program())? {
        None => (None, Tracer::default()),
        Some(settings) => {
            let (exporter, tracer) = Exporter::start(settings, &metrics)?;
            (Some(exporter), tracer)
        }
    };
    runtime.block_on(async {
        let served = match &arguments.admin {
            None => serve(arguments.listen, None, tracer).await,
            Some(address) => {
                metrics.describe_process();
                let admin = Admin::new(Readiness::default(), metrics.clone());
                let admin = admin.bind(address).await?;
                tracing::info!(address = %admin.address(), "admin");
                // It answers until the drain is over.
                tokio::select! {
                    served = serve(arguments.listen, Some(metrics), tracer) => served,
                    () = admin.serve(Shutdown::new()) => Ok(()),
                }
            }
        };
        if let Some(exporter) = exporter {
            exporter.finish(LAST_SPANS).await;
        }
        served
    })
}

/// How long the last spans may take to be sent when all else has stopped.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// The name of this program.
fn program() -> String {
    let program = std::env::args().next().unwrap_or_default();
    let name = Path::new(&program).file_name();
    name.map_or_else(|| "unknown_service".into(), |name| name.to_string_lossy())
        .into_owned()
}

#[derive(Debug, PartialEq)]
struct Arguments {
    listen: Address,
    admin: Option<Address>,
}

impl Arguments {
    fn parse(
        mut arguments: impl Iterator<Item = String>,
        default: &str,
    ) -> Result<Self, ServeError> {
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
            None => address(default)?,
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

    const DEFAULT: &str = "127.0.0.1:50051";

    #[test]
    fn addresses_are_arguments_with_or_without_a_name() {
        let parse = |arguments: &[&str]| {
            let parsed = Arguments::parse(arguments.iter().map(|a| (*a).to_owned()), DEFAULT)?;
            Ok::<_, ServeError>((
                parsed.listen.to_string(),
                parsed.admin.map(|admin| admin.to_string()),
            ))
        };
        assert_eq!(parse(&[]).unwrap(), (DEFAULT.to_owned(), None));
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
