//! The commands that try a policy service: probe, record and replay.

use std::{path::PathBuf, time::Duration};

use attache_service::Address;
use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::duration;

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

/// What the requests of every probe are like.
#[derive(Debug, ClapArgs)]
pub(crate) struct ProbeRequests {
    /// Method of the requests that have a body, and of those without that an auth service is asked
    /// about. Default: POST with a body, GET without.
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
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ProbeExtAuthzArgs {
    #[command(flatten)]
    pub(crate) service: ProbedService,
    /// How long an answer may take, as `timeout` of the filter's `grpc_service`.
    #[arg(long, default_value = "200ms", value_name = "DURATION", value_parser = duration, help_heading = "Filter")]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) requests: ProbeRequests,
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
    #[command(flatten)]
    pub(crate) requests: ProbeRequests,
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

/// `name: value`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| "expected `name: value`".to_owned())?;
    match name.trim() {
        "" => Err("expected `name: value`".to_owned()),
        name => Ok((name.to_owned(), value.trim().to_owned())),
    }
}
