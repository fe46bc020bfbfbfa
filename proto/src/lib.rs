//! Wire types and gRPC stubs of the Envoy service APIs that Attaché speaks, and of OTLP traces.
//!
//! The services, each with its messages, a server stub and a client stub:
//!
//! | service | messages and stubs |
//! |---|---|
//! | External Processing | [`ext_proc`] |
//! | External Authorization | [`auth`] |
//! | Rate limiting | [`ratelimit`] |
//! | Rate limit quotas | [`rate_limit_quota`] |
//! | Discovery (xDS) | [`discovery`] |
//!
//! and what they share: [`core`] (headers, metadata, addresses), [`types`]
//! (HTTP status, rate-limit unit and strategy), [`common_ratelimit`] (descriptors),
//! [`ext_proc_filter`] (the processing mode) and [`rpc`] (the gRPC status).
//! What discovery carries here are the rules of a rate limit service,
//! [`ratelimit_config`]. Traces are sent to collectors with the service of
//! [`otlp_collector`], whose spans are those of [`otlp_trace`].
//! These names are short for the full paths, which follow the protobuf
//! packages: [`ext_proc`] is [`envoy::service::ext_proc::v3`], and so on.
//!
//! The messages are those of Envoy 1.40, whole: a field that Envoy knows is
//! here even where nobody uses it yet, so it survives being read and written.
//! A test compares them with the descriptors inside the Envoy binary. Fields
//! that Envoy marks as outdated are not marked here, since some of them are the
//! only ones that it acts upon (`HeaderValueOption.append`).
//!
//! Well-known types (`Struct`, `Any`, `Duration`, …) come from `prost-types`.
//!
//! In Rust, `bytes` fields are [`bytes::Bytes`], so a decoded body shares the
//! buffer it was read from, and maps are ordered
//! ([`BTreeMap`](std::collections::BTreeMap)). The client stubs are generic
//! over their transport: any [`tonic::client::GrpcService`] will do.
//!
//! ```
//! use attache_proto::core::{HeaderValue, HeaderValueOption};
//! use attache_proto::ext_proc::{
//!     CommonResponse, HeaderMutation, HeadersResponse, ProcessingResponse, processing_response,
//! };
//!
//! let reply = ProcessingResponse {
//!     response: Some(processing_response::Response::RequestHeaders(HeadersResponse {
//!         response: Some(CommonResponse {
//!             header_mutation: Some(HeaderMutation {
//!                 set_headers: vec![HeaderValueOption {
//!                     header: Some(HeaderValue {
//!                         key: "x-seen".to_owned(),
//!                         raw_value: "yes".into(),
//!                         ..HeaderValue::default()
//!                     }),
//!                     ..HeaderValueOption::default()
//!                 }],
//!                 ..HeaderMutation::default()
//!             }),
//!             ..CommonResponse::default()
//!         }),
//!     })),
//!     ..ProcessingResponse::default()
//! };
//! assert!(reply.response.is_some());
//! ```

/// Declares the module of one protobuf package from the code generated for it.
macro_rules! package {
    ($doc:literal, $name:literal) => {
        package!($doc, v3, $name);
    };
    ($doc:literal, $version:ident, $name:literal) => {
        #[doc = $doc]
        #[allow(missing_docs, unreachable_pub, rustdoc::all, clippy::all)]
        pub mod $version {
            tonic::include_proto!($name);
        }
    };
}

/// Packages `envoy.*`.
pub mod envoy {
    /// Packages `envoy.config.*`.
    pub mod config {
        /// Package `envoy.config.core`.
        pub mod core {
            package!(
                "Headers, query parameters, metadata and addresses.",
                "envoy.config.core.v3"
            );
        }
    }

    /// Packages `envoy.extensions.*`.
    pub mod extensions {
        /// Packages `envoy.extensions.common.*`.
        pub mod common {
            /// Package `envoy.extensions.common.ratelimit`.
            pub mod ratelimit {
                package!(
                    "Rate-limit descriptors.",
                    "envoy.extensions.common.ratelimit.v3"
                );
            }
        }

        /// Packages `envoy.extensions.filters.*`.
        pub mod filters {
            /// Packages `envoy.extensions.filters.http.*`.
            pub mod http {
                /// Package `envoy.extensions.filters.http.ext_proc`.
                pub mod ext_proc {
                    package!(
                        "The processing mode of the External Processing filter.",
                        "envoy.extensions.filters.http.ext_proc.v3"
                    );
                }
            }
        }
    }

    /// Packages `envoy.service.*`.
    pub mod service {
        /// Package `envoy.service.auth`.
        pub mod auth {
            package!("External Authorization.", "envoy.service.auth.v3");
        }

        /// Package `envoy.service.discovery`.
        pub mod discovery {
            package!("Discovery (xDS).", "envoy.service.discovery.v3");
        }

        /// Package `envoy.service.ext_proc`.
        pub mod ext_proc {
            package!("External Processing.", "envoy.service.ext_proc.v3");
        }

        /// Package `envoy.service.rate_limit_quota`.
        pub mod rate_limit_quota {
            package!("Rate limit quotas.", "envoy.service.rate_limit_quota.v3");
        }

        /// Package `envoy.service.ratelimit`.
        pub mod ratelimit {
            package!("Rate limiting.", "envoy.service.ratelimit.v3");
        }
    }

    /// Package `envoy.type`.
    pub mod r#type {
        package!(
            "HTTP status, rate-limit unit and strategy.",
            "envoy.r#type.v3"
        );
    }
}

/// Packages `google.*`, without the well-known types.
pub mod google {
    /// Package `google.rpc`.
    #[allow(missing_docs, unreachable_pub, rustdoc::all, clippy::all)]
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

/// Packages `opentelemetry.*`: traces as OTLP sends them.
pub mod opentelemetry {
    /// Packages `opentelemetry.proto.*`.
    pub mod proto {
        /// Packages `opentelemetry.proto.collector.*`.
        pub mod collector {
            /// Package `opentelemetry.proto.collector.trace`.
            pub mod trace {
                package!(
                    "The service that collects traces.",
                    v1,
                    "opentelemetry.proto.collector.trace.v1"
                );
            }
        }

        /// Package `opentelemetry.proto.common`.
        pub mod common {
            package!("Attributes.", v1, "opentelemetry.proto.common.v1");
        }

        /// Package `opentelemetry.proto.resource`.
        pub mod resource {
            package!(
                "The program that tells.",
                v1,
                "opentelemetry.proto.resource.v1"
            );
        }

        /// Package `opentelemetry.proto.trace`.
        pub mod trace {
            package!("Spans.", v1, "opentelemetry.proto.trace.v1");
        }
    }
}

/// Packages `ratelimit.*`: the configuration of a rate limit service.
pub mod ratelimit_service {
    /// Packages `ratelimit.config.*`.
    pub mod config {
        /// Package `ratelimit.config.ratelimit`.
        pub mod ratelimit {
            package!(
                "Rules of a rate limit service, as discovery carries them.",
                "ratelimit.config.ratelimit.v3"
            );
        }
    }
}

pub use envoy::config::core::v3 as core;
pub use envoy::extensions::common::ratelimit::v3 as common_ratelimit;
pub use envoy::extensions::filters::http::ext_proc::v3 as ext_proc_filter;
pub use envoy::service::auth::v3 as auth;
pub use envoy::service::discovery::v3 as discovery;
pub use envoy::service::ext_proc::v3 as ext_proc;
pub use envoy::service::rate_limit_quota::v3 as rate_limit_quota;
pub use envoy::service::ratelimit::v3 as ratelimit;
pub use envoy::r#type::v3 as types;
pub use google::rpc;
pub use opentelemetry::proto::{
    collector::trace::v1 as otlp_collector, common::v1 as otlp_common,
    resource::v1 as otlp_resource, trace::v1 as otlp_trace,
};
pub use ratelimit_service::config::ratelimit::v3 as ratelimit_config;

/// The descriptors of all these files and of those that they import: an encoded
/// `google.protobuf.FileDescriptorSet`, as gRPC reflection wants it.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));

/// The descriptors of the resources that a control plane sends (clusters, endpoints, routes,
/// listeners and what stands in them), in the same form.
///
/// Every field that Envoy 1.40 knows has its name and number. Of those that are never read, a
/// message is declared as `bytes` and an enum as `int32`, which is the same on the wire.
pub const RESOURCE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/resources.binpb"));
