//! The command line.

mod parse;
pub(crate) mod probe;
pub(crate) mod ratelimit;
pub(crate) mod services;

use std::{path::PathBuf, time::Duration};

use attache_service::{Address, config::parse_duration};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use self::{
    probe::{ProbeArgs, RecordArgs, ReplayArgs},
    ratelimit::RatelimitArgs,
    services::ExtAuthzArgs,
};

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
    /// `info,attache_ext_proc=debug`. Default: `info`.
    #[arg(
        long,
        global = true,
        env = "ATTACHE_LOG",
        help_heading = "Logging",
        display_order = 100,
        value_name = "FILTER"
    )]
    pub(crate) log: Option<String>,
    /// The form of log lines. Default: `text`.
    #[arg(
        long,
        global = true,
        env = "ATTACHE_LOG_FORMAT",
        help_heading = "Logging",
        display_order = 101,
        value_name = "FORMAT"
    )]
    pub(crate) log_format: Option<LogFormat>,
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
    /// Ctrl-C drain: readiness fails, no new connections (after `drain.min`), requests in flight
    /// finish, then exit 0; a second one ends at once.
    ///
    /// With `admin: 127.0.0.1:9901` in the file, that address answers `/ready`, `/live`,
    /// `/metrics`, `/config`, `/clusters`, `/log-level` and `/drain`; `/` lists them.
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
    /// With `--config`, the files are those of envoyproxy/ratelimit. They are read again when they
    /// change or on SIGHUP; wrong ones are refused, and the old ones go on. SIGTERM and Ctrl-C
    /// drain, then exit 0. Health (`envoy.service.ratelimit.v3.RateLimitService`) and reflection
    /// are served on the same address.
    ///
    /// Without `--config`, and with envoyproxy/ratelimit's environment variables (`RUNTIME_ROOT`,
    /// `REDIS_URL` and so on), it takes that service's place: ports, endpoints, metrics and
    /// signals are the same. A link to this program with the name `ratelimit` does so too.
    Ratelimit(Box<RatelimitArgs>),
    /// Ask a running process, over its admin endpoint, whether it is ready for traffic: for the
    /// probes of containers.
    ///
    /// Exit codes: 0 when it is, 1 when it is not (the reasons are printed) or does not answer.
    Ready(ReadyArgs),
    /// Print a proxy configuration in another proxy's language.
    Export(ExportArgs),
    /// Turn another proxy's configuration into one of this proxy.
    Import(ImportArgs),
    /// Print the JSON Schema of a configuration file, for editors.
    Schema(SchemaArgs),
    /// Play the proxy against a policy service, in whatever language it is written, and say what
    /// it does wrong.
    Probe(ProbeArgs),
    /// Stand between a proxy and a policy service and write their exchanges to a file.
    Record(RecordArgs),
    /// Send recorded exchanges to a processor and compare its answers with the recorded ones.
    ///
    /// Answers are compared by what they mean: chunks of a FULL_DUPLEX_STREAMED body may be cut
    /// otherwise, and the order of the two directions does not matter. Values masked in the
    /// recording are sent masked.
    ///
    /// Exit codes: 0 when all answers are the same, 1 when one differs, 2 when the file cannot be
    /// read or the processor cannot be reached.
    Replay(ReplayArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// The configuration (YAML or JSON).
    pub(crate) file: PathBuf,
    /// Worker threads, each with its own connections. Default: `workers` of the file, else one
    /// per core.
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<std::num::NonZeroUsize>,
    #[command(flatten)]
    pub(crate) trace: TraceArgs,
    /// How long requests in flight may take to finish after a stop is asked for, in seconds.
    /// Default: `drain.max` of the file, else 30.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) drain_seconds: Option<u64>,
    /// Take over the listening sockets of the process that runs with the same path, and give ours
    /// to the one that comes next: a restart that loses no connection. The process before us ends
    /// once we listen.
    #[arg(long, value_name = "PATH")]
    pub(crate) handover: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CheckArgs {
    /// Files or folders to validate.
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// Print a table of each proxy's filters, by listener and in their order: the service, how
    /// long an answer may take, and what becomes of a request when the service cannot be reached,
    /// is too late, sends an answer that cannot be read, or asks for a change that cannot be made:
    /// `passes` or the status that the client gets. Routes whose settings change that are named
    /// below. What a control plane sends is not covered.
    #[arg(long)]
    pub(crate) explain: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReadyArgs {
    /// The admin endpoint: `host:port` or `unix:/path`.
    #[arg(
        long,
        env = "ATTACHE_ADMIN",
        default_value = "127.0.0.1:9901",
        value_name = "ADDRESS"
    )]
    pub(crate) admin: Address,
    /// Ask only whether the process lives (`/healthz`): also true while it starts and drains.
    #[arg(long)]
    pub(crate) alive: bool,
    /// How long the answer may take.
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// Where traces are sent to.
#[derive(Debug, ClapArgs)]
pub(crate) struct TraceArgs {
    /// Send a span of each call that the services answer to this collector, by OTLP over gRPC:
    /// `http://host:4317`, `https://host:4317` or `unix:/path`. Default: the environment's
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_EXPORTER_OTLP_ENDPOINT`, else traces are
    /// off. `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and others of OpenTelemetry's variables
    /// count.
    #[arg(long, value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
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
    ///
    /// What Envoy has no word for is left out, and each such thing is listed on standard error with
    /// its place, why, and what that means: `without effect`, `behaves otherwise`, or
    /// `PROTECTION LOST`. The bootstrap is printed in any case.
    ///
    /// Exit codes: 0 when nothing was left out that has an effect, 1 when something was, 2 when
    /// the file cannot be read.
    Envoy {
        /// The proxy configuration.
        file: PathBuf,
        /// Where an embedded cluster can be reached instead: `CLUSTER=ADDRESS`. May be repeated.
        #[arg(long, value_name = "CLUSTER=ADDRESS")]
        embedded: Vec<String>,
        /// List also what is left out without an effect.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImportArgs {
    #[command(subcommand)]
    pub(crate) source: ImportSource,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImportSource {
    /// Read an Envoy bootstrap (YAML or JSON) and print the configuration that behaves as it does.
    ///
    /// What has no counterpart is left out, and each such thing is listed on standard error with
    /// its place, why, and what that means: `without effect`, `behaves otherwise`, or
    /// `PROTECTION LOST` for a policy or a check that is gone. A listener that would be open without
    /// what protected it is left out too. Look at the list before you use the result, and run
    /// `attache check` on it.
    ///
    /// Exit codes: 0 when nothing was left out that has an effect, 1 when something was, 2 when
    /// the file cannot be read.
    Envoy {
        /// The bootstrap.
        file: PathBuf,
        /// Where to write the configuration. Default: standard output.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// List also what is left out without an effect.
        #[arg(long)]
        all: bool,
        /// Keep listeners that are open without what protected them.
        #[arg(long)]
        unprotected: bool,
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

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration such as `250ms` or `2s`".to_owned())
}
