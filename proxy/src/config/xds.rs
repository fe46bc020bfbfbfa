//! `xds`: configuration from a control plane.

use std::{path::PathBuf, time::Duration};

use attache_service::{
    config::{Located, Secret},
    config_enum, config_struct,
};

config_struct! {
    /// Where listeners, routes, clusters and endpoints come from, beside those of the file
    /// (Envoy's `dynamic_resources` with an aggregated stream, `ads_config`). Who asks is the
    /// top-level `node`.
    pub struct XdsConfig {
        /// The control plane: a cluster of this file, with `http2: {}`.
        pub cluster: Located<String>,
        /// What is spoken. Default `GRPC`.
        pub api_type: Option<ApiType>,
        /// What the control plane is asked for. Default `[CDS, LDS]`; the routes and endpoints
        /// that these name, and those that this file names, are asked for in any case.
        pub resources: Option<Vec<DiscoveredType>>,
        /// How long the first answer about something may take until the proxy goes on without it.
        /// Default 15s, as Envoy.
        pub initial_fetch_timeout: Option<Located<Duration>>,
        /// A file that keeps the last good resources, for a start without the control plane. None
        /// when left out.
        pub cache: Option<Located<PathBuf>>,
        /// The `:authority` of the call. Default: the name of the cluster.
        pub authority: Option<Located<String>>,
        /// Headers of the call, such as a token.
        pub initial_metadata: Vec<XdsHeader>,
    }
    elsewhere {
        "ads_config" => "write its fields here: `cluster`, `api_type`",
        "lds_config" => "all resources come by one stream: name them in `resources`",
        "cds_config" => "all resources come by one stream: name them in `resources`",
        "node" => "`node` is at the top",
        "grpc_services" => "write `cluster`",
        "transport_api_version" => "it is V3",
    }
}

config_enum! {
    /// What is spoken with a control plane (Envoy's `ApiConfigSource.ApiType`).
    pub enum ApiType {
        /// Each response has everything.
        Grpc = "GRPC",
        /// Each response has what changed.
        DeltaGrpc = "DELTA_GRPC",
    }
    elsewhere {
        "REST" => "long polling is not spoken",
        "AGGREGATED_GRPC" => "every stream is aggregated: write `GRPC`",
        "AGGREGATED_DELTA_GRPC" => "every stream is aggregated: write `DELTA_GRPC`",
    }
}

config_enum! {
    /// What a control plane may be asked for as a whole.
    pub enum DiscoveredType {
        /// Clusters.
        Clusters = "CDS",
        /// Listeners.
        Listeners = "LDS",
    }
    elsewhere {
        "RDS" => "routes are asked for where a listener names them",
        "EDS" => "endpoints are asked for where a cluster names them",
        "SDS" => "secrets are files here",
    }
}

config_struct! {
    /// A header of the call to a control plane.
    pub struct XdsHeader {
        /// Its name.
        pub key: Located<String>,
        /// Its value; it is never shown.
        pub value: Located<Secret>,
    }
}
