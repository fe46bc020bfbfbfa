//! `tracing`, as written.

use attache_service::{config::Located, config_struct};

config_struct! {
    /// Traces of requests, sent over OTLP/gRPC.
    pub struct TracingConfig {
        /// The collector, `http://host:4317`, `https://host:4317` or `unix:/path`.
        pub endpoint: Option<Located<String>>,
        /// The cluster of the collector, instead of `endpoint`.
        pub cluster: Option<Located<String>>,
        /// The name of this proxy in traces. Default `attache`.
        pub service_name: Option<String>,
        /// Percentage of the requests with an `x-client-trace-id` that are traced. Default 100.
        pub client_sampling: Option<Located<f64>>,
        /// Percentage of the other requests that are traced. Default 100.
        pub random_sampling: Option<Located<f64>>,
        /// Percentage of what the other two let through that is traced. Default 100.
        pub overall_sampling: Option<Located<f64>>,
    }
    elsewhere {
        "provider" => "spans go to a collector of OpenTelemetry: write its `endpoint` or `cluster`",
        "custom_tags" => "spans have attributes of their own",
        "verbose" => "spans have a child for each policy call",
        "spawn_upstream_span" => "there is always one",
    }
}
