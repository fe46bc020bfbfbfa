//! The command line.

mod parse;
pub(crate) mod ratelimit;

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use attache_service::{Address, config::parse_duration};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use ratelimit::RatelimitCommand;

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

#[derive(Debug, ClapArgs)]
pub(crate) struct RatelimitArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RatelimitCommand>,
    /// The folder with the rate limit files, one domain each, or a single file. Read again when
    /// it changes.
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// Where to listen for gRPC: `host:port` or `unix:/path`. Default: 127.0.0.1:8081; in the
    /// place of envoyproxy/ratelimit, what its variables say.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<Address>,
    /// Where the counters live: `memory`, or a store shared by several instances:
    /// `redis://host:port/db`, `unix:///path`, `redis+sentinel://host,host/master/db`,
    /// `redis+cluster://host,host` (with `rediss` it speaks TLS) or `memcached://host,host`. A URL with a password is better
    /// given by the environment, where other users of the machine do not see it. Default:
    /// `memory`; in the place of envoyproxy/ratelimit, what its variables say.
    #[arg(
        long,
        value_name = "STORE",
        env = "ATTACHE_STORE",
        hide_env_values = true
    )]
    pub(crate) store: Option<String>,
    /// How many instances share the store: each has this part of a limit while the store is away,
    /// for rules that say so, and leases so much less.
    #[arg(
        long,
        value_name = "COUNT",
        env = "ATTACHE_INSTANCES",
        default_value = "1"
    )]
    pub(crate) instances: NonZeroU32,
    /// How counters are called in Redis.
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        env = "ATTACHE_REDIS_KEYS",
        default_value = "reference"
    )]
    pub(crate) redis_keys: RedisKeys,
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
    /// `PROTECTION LOST` for a policy or a check that is gone. Look at those before you use the
    /// result, and run `attache check` on it.
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
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SchemaArgs {
    /// Which file to describe.
    #[arg(value_enum, default_value = "proxy")]
    pub(crate) kind: SchemaKind,
}

/// How counters are called in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RedisKeys {
    /// As by envoyproxy/ratelimit, which can count on the same Redis. When a rule changes its
    /// unit, hits of the old unit's window may count in the new one until that ends.
    Reference,
    /// With the length of their window: each unit has its own counter.
    WithLength,
}

/// The kinds of file that have a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaKind {
    /// What `attache run` reads.
    Proxy,
    /// What `attache ext-authz` reads.
    ExtAuthz,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ProbeArgs {
    #[command(subcommand)]
    pub(crate) target: ProbeTarget,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProbeTarget {
    /// Probe a processor (Envoy's ext_proc).
    ///
    /// Plays requests and responses through all phases and body modes, each on a stream of its
    /// own, with the messages that Envoy 1.40 sends. Reports what breaks the protocol, what would
    /// hang, what is without effect and how long replies take, each with what Envoy does about it
    /// and what helps.
    ///
    /// The processor sees requests that nobody made: use one that may.
    ///
    /// Exit codes: 0 when nothing is wrong, 1 after violations or hangs (with `--strict` also
    /// after warnings), 2 when there is no processor to be reached.
    ExtProc(Box<ProbeExtProcArgs>),
    /// Probe an auth service (Envoy's ext_authz).
    ///
    /// Asks it about requests and connections of all kinds, with the messages that Envoy 1.40
    /// sends. Reports what allows or fails by accident, what Envoy would ignore or mangle, and how
    /// long answers take, each with what Envoy does about it and what helps.
    ///
    /// Much shows only in answers that allow: say with `--header` and `--path` what is allowed.
    /// The service sees requests that nobody made: use one that may.
    ///
    /// Exit codes: 0 when nothing is wrong, 1 after violations or hangs (with `--strict` also
    /// after warnings), 2 when there is no auth service to be reached.
    ExtAuthz(Box<ProbeExtAuthzArgs>),
}

/// What every probe is told.
#[derive(Debug, ClapArgs)]
pub(crate) struct ProbedService {
    /// Where the service is: `host:port` or `unix:/path`.
    #[arg(required_unless_present = "list")]
    pub(crate) address: Option<Address>,
    /// Print the cases and play none.
    #[arg(long)]
    pub(crate) list: bool,
    /// Play these cases only, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) cases: Vec<String>,
    /// Leave these cases out, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) skip: Vec<String>,
    /// The form of the report.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) format: ReportFormat,
    /// Let warnings fail too.
    #[arg(long)]
    pub(crate) strict: bool,
    /// How long to wait for a service that does nothing, before a case is given up.
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = duration)]
    pub(crate) hang_timeout: Duration,
    /// gRPC metadata of each call or stream: `name: value`. May be repeated.
    #[arg(long, value_name = "NAME: VALUE", value_parser = pair)]
    pub(crate) metadata: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) tls: ClientTlsArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ProbeExtAuthzArgs {
    #[command(flatten)]
    pub(crate) service: ProbedService,
    /// How long an answer may take, as `timeout` of the filter's `grpc_service`.
    #[arg(long, default_value = "200ms", value_name = "DURATION", value_parser = duration, help_heading = "Filter")]
    pub(crate) timeout: Duration,
    /// Method of the requests. Default: GET, and POST with a body.
    #[arg(long, value_name = "METHOD", help_heading = "Content")]
    pub(crate) method: Option<String>,
    /// Authority of the requests. Default: probe.example.
    #[arg(long, value_name = "AUTHORITY", help_heading = "Content")]
    pub(crate) authority: Option<String>,
    /// Path and query of the requests. Default: /probe?case=1.
    #[arg(long, value_name = "PATH", help_heading = "Content")]
    pub(crate) path: Option<String>,
    /// A header of the requests: `name: value`. May be repeated.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = pair, help_heading = "Content")]
    pub(crate) headers: Vec<(String, String)>,
    /// Body of the requests that have one, or `@FILE`. Default: a JSON object.
    #[arg(long, value_name = "TEXT", help_heading = "Content")]
    pub(crate) body: Option<String>,
    /// An entry of the route's `context_extensions`: `name: value`. May be repeated.
    #[arg(long = "context-extension", value_name = "NAME: VALUE", value_parser = pair, help_heading = "Content")]
    pub(crate) context_extensions: Vec<(String, String)>,
    /// Who the client is in cases with a certificate. Default: spiffe://probe.example/client.
    #[arg(long, value_name = "NAME", help_heading = "Content")]
    pub(crate) principal: Option<String>,
    /// The client's certificate (PEM) in cases with one. Default: one of that principal.
    #[arg(long, value_name = "FILE", help_heading = "Content")]
    pub(crate) certificate: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ProbeExtProcArgs {
    #[command(flatten)]
    pub(crate) service: ProbedService,
    /// Play cases of this body mode only.
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) mode: Option<ProbeMode>,
    /// How long a reply may take, as `message_timeout` of the filter.
    #[arg(long, default_value = "200ms", value_name = "DURATION", value_parser = duration, help_heading = "Filter")]
    pub(crate) message_timeout: Duration,
    /// The most that the processor may ask for, as `max_message_timeout` of the filter; 0s for
    /// nothing.
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = duration, help_heading = "Filter")]
    pub(crate) max_message_timeout: Duration,
    /// Follow `mode_override`, as `allow_mode_override` of the filter.
    #[arg(long, help_heading = "Filter")]
    pub(crate) allow_mode_override: bool,
    /// Let host, :authority, :method and :scheme be set, as in `mutation_rules` of the filter.
    #[arg(long, help_heading = "Filter")]
    pub(crate) allow_all_routing: bool,
    /// Let x-envoy headers be changed, as in `mutation_rules` of the filter.
    #[arg(long, help_heading = "Filter")]
    pub(crate) allow_envoy: bool,
    /// Method of the requests that have a body. Default: POST.
    #[arg(long, value_name = "METHOD", help_heading = "Content")]
    pub(crate) method: Option<String>,
    /// Authority of the requests. Default: probe.example.
    #[arg(long, value_name = "AUTHORITY", help_heading = "Content")]
    pub(crate) authority: Option<String>,
    /// Path and query of the requests. Default: /probe?case=1.
    #[arg(long, value_name = "PATH", help_heading = "Content")]
    pub(crate) path: Option<String>,
    /// A header of the requests: `name: value`. May be repeated.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = pair, help_heading = "Content")]
    pub(crate) headers: Vec<(String, String)>,
    /// Body of the requests, or `@FILE`. Default: a JSON object.
    #[arg(long, value_name = "TEXT", help_heading = "Content")]
    pub(crate) body: Option<String>,
    /// A header of the responses: `name: value`. May be repeated.
    #[arg(long = "response-header", value_name = "NAME: VALUE", value_parser = pair, help_heading = "Content")]
    pub(crate) response_headers: Vec<(String, String)>,
    /// Body of the responses, or `@FILE`. Default: a JSON object.
    #[arg(long, value_name = "TEXT", help_heading = "Content")]
    pub(crate) response_body: Option<String>,
}

/// How to speak TLS to a service.
#[derive(Debug, ClapArgs)]
pub(crate) struct ClientTlsArgs {
    /// Speak TLS; the other options here imply it.
    #[arg(long, help_heading = "TLS")]
    pub(crate) tls: bool,
    /// Trust these authorities (PEM) and not the system's.
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    pub(crate) ca: Option<PathBuf>,
    /// Present this certificate chain (PEM).
    #[arg(long, value_name = "FILE", requires = "key", help_heading = "TLS")]
    pub(crate) cert: Option<PathBuf>,
    /// The private key of `--cert` (PEM).
    #[arg(long, value_name = "FILE", requires = "cert", help_heading = "TLS")]
    pub(crate) key: Option<PathBuf>,
    /// Ask for and verify this name. Default: the host of the address.
    #[arg(long, value_name = "NAME", help_heading = "TLS")]
    pub(crate) server_name: Option<String>,
}

/// The form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Body modes, by Envoy's names in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum ProbeMode {
    /// Headers and trailers only.
    None,
    /// Piece by piece.
    Streamed,
    /// Whole bodies.
    Buffered,
    /// As much as the proxy may hold.
    BufferedPartial,
    /// In both directions at once.
    FullDuplexStreamed,
    /// gRPC messages, which Envoy 1.40 does not show.
    Grpc,
}

impl ProbeMode {
    /// Envoy's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Streamed => "STREAMED",
            Self::Buffered => "BUFFERED",
            Self::BufferedPartial => "BUFFERED_PARTIAL",
            Self::FullDuplexStreamed => "FULL_DUPLEX_STREAMED",
            Self::Grpc => "GRPC",
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RecordArgs {
    #[command(subcommand)]
    pub(crate) target: RecordTarget,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RecordTarget {
    /// Record exchanges of a processor (Envoy's ext_proc).
    ///
    /// Listens in the processor's place, passes every message on as it is, and writes one JSON
    /// line for each message, in both directions, with times, metadata and the end of the stream.
    /// Traffic goes on when the file cannot be written or grows too large. Bodies are recorded as
    /// they are: mind what they hold.
    ///
    /// SIGTERM and Ctrl-C drain, then exit 0.
    ExtProc(Box<RecordExtProcArgs>),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RecordExtProcArgs {
    /// The recording. Must not exist.
    pub(crate) file: PathBuf,
    /// Where to listen for the proxy: `host:port` or `unix:/path`.
    #[arg(long, default_value = "127.0.0.1:50052", value_name = "ADDRESS")]
    pub(crate) listen: Address,
    /// Where the processor is.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) upstream: Address,
    /// Headers and metadata whose values are not recorded, separated by commas.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "authorization,cookie,set-cookie,proxy-authorization,x-api-key"
    )]
    pub(crate) mask: Vec<String>,
    /// Stop recording when the file has this size, in MiB; traffic goes on.
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    pub(crate) max_size: u64,
    #[command(flatten)]
    pub(crate) tls: ClientTlsArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReplayArgs {
    /// A recording of `attache record`.
    pub(crate) file: PathBuf,
    /// Where the processor is: `host:port` or `unix:/path`.
    pub(crate) address: Address,
    /// How long to wait for a recorded answer.
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// The form of the report.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) format: ReportFormat,
    #[command(flatten)]
    pub(crate) tls: ClientTlsArgs,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration such as `250ms` or `2s`".to_owned())
}

/// `key=value`.
fn entry(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected `key=value`".to_owned()),
    }
}

/// `name: value`.
fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| "expected `name: value`".to_owned())?;
    match name.trim() {
        "" => Err("expected `name: value`".to_owned()),
        name => Ok((name.to_owned(), value.trim().to_owned())),
    }
}
