//! `listeners`, as written.

use std::time::Duration;

use attache_service::{
    config::{Located, Size},
    config_enum, config_struct,
    listen::{ListenAddress, SocketMode},
    tls::ListenerTls,
};

use super::{
    AccessLogs, CommonHttpProtocolOptions, ForwardClientCertDetails, LocalReplyConfig,
    RouteSpecifier, SetCurrentClientCertDetails,
};

config_struct! {
    /// Where requests come in.
    pub struct Listener {
        /// Name for logs and metrics.
        pub name: Located<String>,
        /// `host:port` (port 0 lets the system choose), `unix:/path`, `unix:@name` in the abstract
        /// namespace, or `systemd:NAME` for the sockets that systemd hands over by this name.
        pub address: Located<ListenAddress>,
        /// Permissions of a Unix socket's file, such as "0660". Default: what the umask leaves.
        pub mode: Option<Located<SocketMode>>,
        /// Connections begin with a header of the PROXY protocol, version 1 or 2, which says whose
        /// they are. Without one they are closed.
        pub proxy_protocol: Option<ProxyProtocol>,
        /// TLS connections that are passed on unopened, by the server name that they ask for.
        /// Others are served by `tls` or `tcp`, or closed when there is neither.
        pub tls_passthrough: Vec<TlsPassthrough>,
        /// Serve TLS; plain text when left out.
        pub tls: Option<ListenerTls>,
        /// Pass connections on instead of serving HTTP; with `tls`, what is inside.
        pub tcp: Option<Located<Tcp>>,
        /// The policies to ask, by name: in this order inward, in reverse outward.
        pub filters: Vec<Located<String>>,
        /// The versions of HTTP that clients may speak. Default `AUTO`: both, told apart by ALPN
        /// or by the first bytes.
        pub codec_type: Option<CodecType>,
        /// Bounds on what clients may do.
        pub limits: Option<LimitsConfig>,
        /// How much of one body a policy may hold back. Default 1MiB.
        pub per_connection_buffer_limit_bytes: Option<Located<Size>>,
        /// One access log, or a list of them; none when left out.
        pub access_log: Option<AccessLogs>,
        /// What answers look like that are made here, not by an upstream. Default: a short text.
        pub local_reply_config: Option<LocalReplyConfig>,
        /// The peer is the client, not a proxy in front of us. Default true (Envoy: false).
        pub use_remote_address: Option<bool>,
        /// How many proxies in front of us are believed in `x-forwarded-for`. Default 0.
        pub xff_num_trusted_hops: Option<u32>,
        /// Give requests an `x-request-id`. Default true.
        pub generate_request_id: Option<bool>,
        /// Keep an `x-request-id` that a client sent. Default false.
        pub preserve_external_request_id: Option<bool>,
        /// What becomes of `x-forwarded-client-cert`. Default `SANITIZE`.
        pub forward_client_cert_details: Option<ForwardClientCertDetails>,
        /// What that tells of a client's certificate, where it is written here.
        pub set_current_client_cert_details: Option<SetCurrentClientCertDetails>,
        /// Resolve `.`, `..` and escapes in paths before anybody sees them. Default true
        /// (Envoy: false).
        pub normalize_path: Option<bool>,
        /// Make adjacent slashes of a path one. Default false.
        pub merge_slashes: Option<bool>,
        /// What to do with `%2f` and `%5c` in paths. Default `KEEP_UNCHANGED`.
        pub path_with_escaped_slashes_action: Option<EscapedSlashesAction>,
        /// Protocols that `Upgrade` may ask for. Default `[websocket]`.
        pub upgrades: Option<Vec<String>>,
        /// What holds for HTTP in any version.
        pub common_http_protocol_options: Option<CommonHttpProtocolOptions>,
        /// What HTTP/2 clients may do.
        pub http2_protocol_options: Option<Http2ProtocolOptions>,
    }
    oneof {
        /// Routes of its own. Default: those at the top of the file.
        pub route_specifier: Option<Located<RouteSpecifier>>,
    }
    elsewhere {
        "filter_chains" => "a listener has one chain: write `filters`, `tls` and the other fields here",
        "listener_filters" => "write `proxy_protocol` and `tls_passthrough` here; the protocol is detected without listener filters",
        "rds" => "write `route_config_name`",
        "scoped_routes" => "a listener has one route table",
        "http_filters" => "name the policies in `filters` and describe them under the top-level `filters`",
        "protocols" => "write `codec_type`: `AUTO`, `HTTP1` or `HTTP2`; there is no HTTP/3 here, so put an Envoy that ends it in front",
        "http3_protocol_options" => "there is no HTTP/3 here",
        "udp_listener_config" => "there is no HTTP/3 here, and no other UDP",
        "http_protocol_options" => "trailers and HTTP/1.0 are always taken",
        "scheme_header_transformation" => "`:scheme` is what the client's connection says",
        "server_header_transformation" => "the header `server` is passed on as the upstream wrote it",
        "server_name" => "the header `server` is passed on as the upstream wrote it",
        "via" => "write `request_headers_to_add` and `response_headers_to_add`",
        "max_request_headers_kb" => "it is `max_header_bytes` of `limits`",
        "request_headers_timeout" => "it is `header_timeout` of `limits`",
        "stream_idle_timeout" => "write `body_timeout` and `write_timeout` of `limits`, and `idle_timeout` of routes",
        "request_timeout" => "nothing bounds a whole request of a client: `body_timeout` of `limits` bounds its silence, and `timeout` of routes the response",
        "drain_timeout" => "write `drain` at the top",
        "delayed_close_timeout" => "a connection that is told to close has `header_timeout` of `limits` to do so",
        "upgrade_configs" => "write `upgrades: [websocket]`; `CONNECT` is allowed by `upgrade_configs` of a route",
        "tracing" => "write `tracing` at the top",
        "stat_prefix" => "the listener's name stands in its metrics",
        "strip_any_host_port" => "the ports of hosts never count for routes",
        "strip_matching_host_port" => "the ports of hosts never count for routes",
        "skip_xff_append" => "what becomes of `x-forwarded-for` follows from `use_remote_address`",
        "original_ip_detection_extensions" => "write `use_remote_address`, `xff_num_trusted_hops` or `proxy_protocol`",
        "early_header_mutation_extensions" => "there is none: policies see headers as the client sent them; strip them in front, or leave them out by `disallowed_headers` of `ext_authz`",
        "transport_socket" => "write `tls`",
        "filter_chain_match" => "write `tls_passthrough` for server names",
    }
}

config_enum! {
    /// The versions of HTTP that clients of a listener may speak (Envoy's `CodecType`).
    pub enum CodecType {
        /// HTTP/1.1 and HTTP/2.
        Auto = "AUTO",
        /// HTTP/1.1 alone.
        Http1 = "HTTP1",
        /// HTTP/2 alone; whatever else comes is hung up on.
        Http2 = "HTTP2",
    }
    elsewhere {
        "HTTP3" => "there is no HTTP/3 here",
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
    /// What to do about the PROXY protocol (Envoy's listener filter `ProxyProtocol`).
    pub struct ProxyProtocol {
        /// Let connections in that have no header. Whoever can connect can then claim any address.
        /// Default false.
        pub allow_requests_without_proxy_protocol: Option<bool>,
        /// Networks whose peers may connect. Default: all.
        pub from: Vec<Located<String>>,
        /// Versions that are not taken.
        pub disallowed_versions: Vec<ProxyProtocolVersion>,
    }
    elsewhere {
        "rules" => "what follows the addresses is not read",
        "pass_through_tlvs" => "what follows the addresses is not read",
    }
}

config_enum! {
    /// A version of the PROXY protocol.
    pub enum ProxyProtocolVersion {
        /// Text.
        V1 = "V1",
        /// Binary.
        V2 = "V2",
    }
}

config_struct! {
    /// Where connections are passed on to (Envoy's `TcpProxy`).
    pub struct Tcp {
        /// The cluster.
        pub cluster: Located<String>,
        /// How long nothing may move either way; 0 for ever. Default 1h.
        pub idle_timeout: Option<Duration>,
        /// How often connecting is tried, each time with the next endpoint. Default 1.
        pub max_connect_attempts: Option<Located<u32>>,
    }
    elsewhere {
        "stat_prefix" => "the listener's name stands in its metrics",
        "weighted_clusters" => "name one `cluster`",
        "tunneling_config" => "connections are not wrapped in HTTP",
        "access_log" => "it is the listener's `access_log`",
    }
}

config_struct! {
    /// TLS connections that are passed on unopened.
    pub struct TlsPassthrough {
        /// Server names: whole ones, or `*.` and a domain for all below it.
        pub server_names: Vec<Located<String>>,
        /// The cluster.
        pub cluster: Located<String>,
        /// How long nothing may move either way; 0 for ever. Default 1h.
        pub idle_timeout: Option<Duration>,
        /// How often connecting is tried, each time with the next endpoint. Default 1.
        pub max_connect_attempts: Option<Located<u32>>,
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
    /// Bounds on what the clients of a listener may do; none of them is 0, but for `max_resets`.
    pub struct LimitsConfig {
        /// Connections at a time; more are closed at once. Default 10000.
        pub max_connections: Option<Located<usize>>,
        /// Header fields of a request; more is answered with 431. Default 100.
        pub max_headers: Option<Located<usize>>,
        /// Size of a request head; more is answered with 431. Default 64KiB, at least 8KiB.
        pub max_header_bytes: Option<Located<Size>>,
        /// How long a request head may take to arrive. Default 10s.
        pub header_timeout: Option<Located<Duration>>,
        /// How long a connection without requests is kept. Default 1h.
        pub idle_timeout: Option<Located<Duration>>,
        /// HTTP/2 requests at a time on one connection. Default 100.
        pub max_concurrent_streams: Option<Located<u32>>,
        /// Requests in flight at a time; more are answered with 503. No limit by default.
        pub max_requests: Option<Located<usize>>,
        /// Requests of one connection; then it is closed, with `connection: close` or a GOAWAY. No
        /// limit by default.
        pub max_requests_per_connection: Option<Located<u32>>,
        /// Age at which a connection is closed, when what is in flight has ended. No limit by
        /// default.
        pub max_connection_duration: Option<Located<Duration>>,
        /// How long a request body that a policy waits for may be silent. Default 5m.
        pub body_timeout: Option<Located<Duration>>,
        /// How long a client may take nothing of a response that is there. Default 5m.
        pub write_timeout: Option<Located<Duration>>,
        /// HTTP/2 requests that a client may give up within 10s, if they are more than half of
        /// those that it began; then its connection is dropped. Default 500.
        pub max_resets: Option<u32>,
    }
}
