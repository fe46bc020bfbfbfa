//! The command line.

use std::path::PathBuf;

use attache_service::Address;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Policy services for Envoy-style proxies, and a small proxy to run them behind.
///
/// Without a command, a demonstration starts: the proxy on 127.0.0.1:8080 in front of a
/// built-in origin, asking an auth service, a rate limit service and a processor, all in this
/// one process. It prints requests to try.
///
/// Exit codes: 0 after success and after a stop by signal, 1 when something cannot start or
/// fails, 2 when the command line or a configuration is wrong.
#[derive(Debug, Parser)]
#[command(name = "attache", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// How to log; logs go to standard error.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct LogArgs {
    /// What to log: a level (`error`, `warn`, `info`, `debug`, `trace`) or a filter such as
    /// `info,attache_ext_proc=debug`.
    #[arg(
        long,
        global = true,
        env = "ATTACHE_LOG",
        help_heading = "Logging",
        display_order = 100,
        default_value = "info",
        value_name = "FILTER"
    )]
    pub(crate) log: String,
    /// The form of log lines.
    #[arg(
        long,
        global = true,
        env = "ATTACHE_LOG_FORMAT",
        help_heading = "Logging",
        display_order = 101,
        default_value = "text",
        value_name = "FORMAT"
    )]
    pub(crate) log_format: LogFormat,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a proxy from a configuration file.
    ///
    /// The file is read again when it changes or on SIGHUP. A new configuration takes over only
    /// if all of it is valid; otherwise the old one goes on and the log says why. SIGTERM and
    /// Ctrl-C drain: no new connections, requests in flight finish, then exit 0.
    Run(RunArgs),
    /// Validate configuration files and print every mistake with its place.
    ///
    /// Knows the three kinds of file by their content: a proxy's (`listeners`), an auth
    /// service's (`identity`, `rules`), a rate limit domain's (`domain`). A folder is checked as
    /// the rate limit service would load it. Exits 2 if anything is wrong.
    Check(CheckArgs),
    /// Run the auth service alone: Envoy's `Authorization/Check` over gRPC.
    ///
    /// The configuration is read again when it changes or on SIGHUP; a wrong one is refused, and
    /// the old one goes on. SIGTERM and Ctrl-C drain, then exit 0. Health
    /// (`envoy.service.auth.v3.Authorization`) and reflection are served on the same address.
    ExtAuthz(ExtAuthzArgs),
    /// Run the rate limit service alone: Envoy's `RateLimitService/ShouldRateLimit` over gRPC.
    ///
    /// The files are those of envoyproxy/ratelimit. They are read again when they change or on
    /// SIGHUP; wrong ones are refused, and the old ones go on. SIGTERM and Ctrl-C drain, then exit
    /// 0. Health (`envoy.service.ratelimit.v3.RateLimitService`) and reflection are served on the
    /// same address.
    Ratelimit(RatelimitArgs),
    /// Print a proxy configuration in another proxy's language.
    Export(ExportArgs),
    /// Print the JSON Schema of a configuration file, for editors.
    Schema(SchemaArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// The configuration (YAML or JSON).
    pub(crate) file: PathBuf,
    /// Worker threads, each with its own connections. Default: `workers` of the file, else one
    /// per core.
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<std::num::NonZeroUsize>,
    /// How long requests in flight may take to finish after a stop is asked for, in seconds.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub(crate) drain_seconds: u64,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CheckArgs {
    /// Files or folders to validate.
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
}

/// What the two stand-alone services have in common.
#[derive(Debug, ClapArgs)]
pub(crate) struct ServiceArgs {
    /// Where the admin page listens (`/healthz`, `/readyz`, `/metrics`, `/config`); loopback only.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin: Option<Address>,
    /// Worker threads. Default: one per core.
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<std::num::NonZeroUsize>,
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
pub(crate) struct ExtAuthzArgs {
    /// The service's configuration: identity sources and rules. Read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Where to listen: `host:port` or `unix:/path`.
    #[arg(long, default_value = "127.0.0.1:9001", value_name = "ADDRESS")]
    pub(crate) listen: Address,
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RatelimitArgs {
    /// The folder with the rate limit files, one domain each, or a single file. Read again when
    /// it changes.
    #[arg(long, value_name = "PATH")]
    pub(crate) config: PathBuf,
    /// Where to listen: `host:port` or `unix:/path`.
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    pub(crate) listen: Address,
    /// Where the counters live: `memory`, or a Redis shared by several instances
    /// (`redis://host:port/db`, or `unix:///path`). A URL with a password is better given by the
    /// environment, where other users of the machine do not see it.
    #[arg(
        long,
        default_value = "memory",
        value_name = "STORE",
        env = "ATTACHE_STORE",
        hide_env_values = true
    )]
    pub(crate) store: String,
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExportArgs {
    #[command(subcommand)]
    pub(crate) target: ExportTarget,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExportTarget {
    /// Print the Envoy bootstrap (JSON) that behaves as this configuration does.
    ///
    /// Embedded services have no socket that Envoy could reach. Run them on their own
    /// (`attache ext-authz`, `attache ratelimit`) and say where with `--embedded`.
    Envoy {
        /// The proxy configuration.
        file: PathBuf,
        /// Where an embedded cluster can be reached instead: `CLUSTER=ADDRESS`. May be repeated.
        #[arg(long, value_name = "CLUSTER=ADDRESS")]
        embedded: Vec<String>,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SchemaArgs {
    /// Which file to describe.
    #[arg(value_enum, default_value = "proxy")]
    pub(crate) kind: SchemaKind,
}

/// The kinds of file that have a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaKind {
    /// What `attache run` reads.
    Proxy,
    /// What `attache ext-authz` reads.
    ExtAuthz,
}
