//! `listeners`, as written.

use std::{path::PathBuf, time::Duration};

use attache_service::{
    Address,
    config::{Located, Size},
    config_enum, config_struct,
    tls::ListenerTls,
};

config_struct! {
    /// Where requests come in.
    pub struct Listener {
        /// Name for logs and metrics.
        pub name: Located<String>,
        /// `host:port`; port 0 lets the system choose.
        pub address: Located<Address>,
        /// Serve TLS; plain text when left out.
        pub tls: Option<ListenerTls>,
        /// The policies to ask, by name: in this order inward, in reverse outward.
        pub filters: Vec<Located<String>>,
        /// Bounds on what clients may do.
        pub limits: Option<LimitsConfig>,
        /// How much of one body a policy may hold back. Default 1MiB.
        pub per_connection_buffer_limit_bytes: Option<Located<Size>>,
        /// The access log; none when left out.
        pub access_log: Option<Located<AccessLog>>,
        /// The peer is the client, not a proxy in front of us. Default true (Envoy: false).
        pub use_remote_address: Option<bool>,
        /// How many proxies in front of us are believed in `x-forwarded-for`. Default 0.
        pub xff_num_trusted_hops: Option<u32>,
        /// Give requests an `x-request-id`. Default true.
        pub generate_request_id: Option<bool>,
        /// Keep an `x-request-id` that a client sent. Default false.
        pub preserve_external_request_id: Option<bool>,
        /// Resolve `.`, `..` and escapes in paths before anybody sees them. Default true
        /// (Envoy: false).
        pub normalize_path: Option<bool>,
        /// Make adjacent slashes of a path one. Default false.
        pub merge_slashes: Option<bool>,
        /// What to do with `%2f` and `%5c` in paths. Default `KEEP_UNCHANGED`.
        pub path_with_escaped_slashes_action: Option<EscapedSlashesAction>,
        /// Protocols that `Upgrade` may ask for. Default `[websocket]`.
        pub upgrades: Option<Vec<String>>,
        /// What HTTP/2 clients may do.
        pub http2_protocol_options: Option<Http2ProtocolOptions>,
    }
    elsewhere {
        "filter_chains" => "a listener has one chain: write `filters`, `tls` and the other fields here",
        "listener_filters" => "the protocol is detected without listener filters",
        "http_filters" => "name the policies in `filters` and describe them under the top-level `filters`",
        "proxy_protocol" => "the PROXY protocol is not supported yet",
    }
}

config_enum! {
    /// What to do with escaped slashes in paths (Envoy's `PathWithEscapedSlashesAction`).
    pub enum EscapedSlashesAction {
        /// Leave them.
        KeepUnchanged = "KEEP_UNCHANGED",
        /// Answer 400.
        RejectRequest = "REJECT_REQUEST",
        /// Answer 307 with the unescaped path.
        UnescapeAndRedirect = "UNESCAPE_AND_REDIRECT",
        /// Go on with the unescaped path.
        UnescapeAndForward = "UNESCAPE_AND_FORWARD",
    }
}

config_struct! {
    /// What HTTP/2 clients of a listener may do (Envoy's `Http2ProtocolOptions`).
    pub struct Http2ProtocolOptions {
        /// Take upgrades, such as of websockets, as extended `CONNECT` (RFC 8441); to policies
        /// and origins they are `GET` with `upgrade`. Default false.
        pub allow_connect: Option<bool>,
    }
    elsewhere {
        "max_concurrent_streams" => "it is among the listener's `limits`",
    }
}

config_struct! {
    /// Bounds on what the clients of a listener may do.
    pub struct LimitsConfig {
        /// Connections at a time; more are closed at once. Default 10000.
        pub max_connections: Option<usize>,
        /// Header fields of a request; more is answered with 431. Default 100.
        pub max_headers: Option<usize>,
        /// Size of a request head; more is answered with 431. Default 64KiB, at least 8KiB.
        pub max_header_bytes: Option<Located<Size>>,
        /// How long a request head may take to arrive. Default 10s.
        pub header_timeout: Option<Duration>,
        /// How long a connection without requests is kept. Default 1h.
        pub idle_timeout: Option<Duration>,
        /// HTTP/2 requests at a time on one connection. Default 100.
        pub max_concurrent_streams: Option<u32>,
    }
}

config_enum! {
    /// How access log lines look.
    pub enum AccessLogFormat {
        /// One JSON object a line.
        Json = "json",
    }
    elsewhere {
        "text" => "lines are JSON objects",
    }
}

config_struct! {
    /// One line for each request, or for some of them.
    pub struct AccessLog {
        /// How lines look. Default `json`.
        pub format: Option<AccessLogFormat>,
        /// The file to append to; standard output when left out.
        pub path: Option<Located<PathBuf>>,
        /// Part of the requests to log, 0 to 1. Default 1.
        pub sample: Option<Located<f64>>,
        /// What to log in any case: `errors`, and `slow>DURATION`.
        pub always: Vec<Located<String>>,
    }
}
