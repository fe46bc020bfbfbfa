//! What listeners and clusters say of HTTP in any version.

use std::time::Duration;

use attache_service::{config::Located, config_enum, config_struct};

config_struct! {
    /// Envoy's `config.core.v3.HttpProtocolOptions`.
    pub struct CommonHttpProtocolOptions {
        /// Bound on a stream, tunnels among them: of a listener from the head of the request, of
        /// a cluster from when it is sent there. Default: none.
        pub max_stream_duration: Option<Duration>,
        /// What becomes of requests with headers whose names have underscores; of a listener.
        /// Default `ALLOW`.
        pub headers_with_underscores_action: Option<Located<UnderscoresAction>>,
    }
    elsewhere {
        "idle_timeout" => "write `idle_timeout` of the cluster, or in `limits` of the listener",
        "max_connection_duration" => "write `max_connection_duration` of the cluster",
        "max_headers_count" => "write `max_headers` in `limits` of the listener",
        "max_requests_per_connection" => "write `max_requests_per_connection` of the cluster",
        "max_response_headers_kb" => "there is a fixed bound",
    }
}

config_enum! {
    /// Envoy's `HeadersWithUnderscoresAction`.
    #[derive(Default)]
    pub enum UnderscoresAction {
        /// They pass.
        #[default]
        Allow = "ALLOW",
        /// Requests with them are refused with 400.
        RejectRequest = "REJECT_REQUEST",
        /// They are dropped.
        DropHeader = "DROP_HEADER",
    }
}
