//! What listeners and clusters say of HTTP in any version.

use std::time::Duration;

use attache_service::config_struct;

config_struct! {
    /// Envoy's `config.core.v3.HttpProtocolOptions`.
    pub struct CommonHttpProtocolOptions {
        /// Bound on a stream, tunnels among them: of a listener from the head of the request, of
        /// a cluster from when it is sent there. Default: none.
        pub max_stream_duration: Option<Duration>,
    }
    elsewhere {
        "idle_timeout" => "write `idle_timeout` of the cluster, or in `limits` of the listener",
        "max_connection_duration" => "write `max_connection_duration` of the cluster",
        "max_headers_count" => "write `max_headers` in `limits` of the listener",
        "max_requests_per_connection" => "write `max_requests_per_connection` of the cluster",
        "headers_with_underscores_action" => "not supported: such headers pass",
        "max_response_headers_kb" => "not supported: there is a fixed bound",
    }
}
