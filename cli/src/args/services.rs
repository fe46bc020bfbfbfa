//! The commands of the auth service, and what it shares with the rate limit service.

use std::{path::PathBuf, time::Duration};

use attache_service::Address;
use clap::{Args as ClapArgs, Subcommand};

use super::{TraceArgs, duration, probe::pair};

/// What the two stand-alone services have in common.
#[derive(Debug, ClapArgs)]
pub(crate) struct ServiceArgs {
    /// Where the admin page listens (`/live`, `/ready`, `/metrics`, `/config`, `/log-level`,
    /// `/drain`); loopback only.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin: Option<Address>,
    /// Worker threads. Default: one per core.
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<std::num::NonZeroUsize>,
    #[command(flatten)]
    pub(crate) trace: TraceArgs,
    /// Serve TLS with this certificate chain (PEM); read again when it changes.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of `--tls-cert` (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Require a client certificate signed by one of these authorities (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) client_ca: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
#[command(subcommand_negates_reqs = true)]
pub(crate) struct ExtAuthzArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ExtAuthzCommand>,
    /// The service's configuration: identity sources and rules. Read again when it changes.
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) config: Option<PathBuf>,
    /// Where to listen: `host:port` or `unix:/path`.
    #[arg(long, default_value = "127.0.0.1:9001", value_name = "ADDRESS")]
    pub(crate) listen: Address,
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExtAuthzCommand {
    /// Validate a configuration and say what it is made of. Nothing is fetched or written.
    ///
    /// Exits 2 if anything is wrong; every mistake is printed with its place.
    Check {
        /// The service's configuration.
        file: PathBuf,
    },
    /// Say what would be decided on a request, and why.
    ///
    /// Prints which source knows the caller, which rule or policy decides, which parts of the
    /// request were looked at, whether the decision would be kept, and what upstream and client
    /// would get. Keys and policies are fetched as the service fetches them. Nothing is written to
    /// the decision log. Credentials are not printed.
    ///
    /// Exit codes: 0 when there is a decision, whichever; 1 when none can be reached; 2 when the
    /// command line or the configuration is wrong.
    Explain(Box<ExplainArgs>),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExplainArgs {
    /// The service's configuration.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The method of the request.
    #[arg(long, default_value = "GET", value_name = "METHOD")]
    pub(crate) method: String,
    /// The URL of the request.
    #[arg(long, default_value = "http://localhost/", value_name = "URL")]
    pub(crate) url: http::Uri,
    /// A header: `name: value`. May be repeated. Other users of this machine can see the command
    /// line; `name: @FILE` takes the value from a file.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = pair)]
    pub(crate) headers: Vec<(String, String)>,
    /// The body, or `@FILE`.
    #[arg(long, value_name = "TEXT")]
    pub(crate) body: Option<String>,
    /// The certificate that the client presented to the proxy (PEM).
    #[arg(long, value_name = "FILE")]
    pub(crate) client_cert_pem: Option<PathBuf>,
    /// The address of the proxy's peer.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub(crate) source: std::net::IpAddr,
    /// An entry of the route's `context_extensions`: `key=value`. May be repeated.
    #[arg(long = "context", value_name = "KEY=VALUE", value_parser = entry)]
    pub(crate) context: Vec<(String, String)>,
    /// How long to wait for what has to be fetched, and for the decision.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `key=value`.
fn entry(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected `key=value`".to_owned()),
    }
}
