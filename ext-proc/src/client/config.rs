//! The filter's settings as they are written: Envoy's names, field for field.

use std::time::Duration;

use attache_filter::{
    grpc_service::{GrpcService, HttpStatus, MetadataEntry},
    matcher::ListStringMatcher,
    mutation::HeaderMutationRules,
};
use attache_service::{config::Located, config_enum, config_oneof, config_struct};

config_enum! {
    /// Envoy's `ProcessingMode.HeaderSendMode`.
    pub enum HeaderSendMode {
        /// Headers are sent, trailers are not.
        Default = "DEFAULT",
        /// Send it.
        Send = "SEND",
        /// Do not send it.
        Skip = "SKIP",
    }
}

config_enum! {
    /// Envoy's `ProcessingMode.BodySendMode`.
    pub enum BodySendMode {
        /// The body is not sent.
        None = "NONE",
        /// Each piece is sent as it arrives, and answered.
        Streamed = "STREAMED",
        /// The whole body is sent at once.
        Buffered = "BUFFERED",
        /// The body up to the buffer limit is sent at once; the rest passes unseen.
        BufferedPartial = "BUFFERED_PARTIAL",
        /// Each piece is sent as it arrives; what comes back need not match it piece by piece.
        FullDuplexStreamed = "FULL_DUPLEX_STREAMED",
        /// As `NONE`: Envoy accepts it and does no more either.
        Grpc = "GRPC",
    }
}

config_struct! {
    /// Envoy's `ProcessingMode`: which parts of an exchange the processor is shown.
    #[derive(Copy, Default)]
    pub struct ProcessingMode {
        /// Default: send.
        pub request_header_mode: Option<HeaderSendMode>,
        /// Default: send.
        pub response_header_mode: Option<HeaderSendMode>,
        /// Default: none.
        pub request_body_mode: Option<BodySendMode>,
        /// Default: none.
        pub response_body_mode: Option<BodySendMode>,
        /// Default: skip.
        pub request_trailer_mode: Option<HeaderSendMode>,
        /// Default: skip.
        pub response_trailer_mode: Option<HeaderSendMode>,
    }
}

config_enum! {
    /// Envoy's `ExternalProcessor.RouteCacheAction`.
    pub enum RouteCacheActionName {
        /// Pick the route again when the processor asks for it.
        Default = "DEFAULT",
        /// Pick the route again after every header mutation of a request.
        Clear = "CLEAR",
        /// Never pick the route again.
        Retain = "RETAIN",
    }
}

config_struct! {
    /// Envoy's `HeaderForwardingRules`: which headers the processor is shown.
    pub struct HeaderForwardingRules {
        /// Names to show; all when absent.
        pub allowed_headers: Option<Located<ListStringMatcher>>,
        /// Names to hide, even if allowed.
        pub disallowed_headers: Option<Located<ListStringMatcher>>,
    }
}

config_struct! {
    /// Envoy's `envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor`.
    pub struct ExternalProcessor {
        /// The processor.
        pub grpc_service: GrpcService,
        /// Let traffic pass when the processor fails. Default false.
        pub failure_mode_allow: Option<bool>,
        /// What the processor is shown. Default: headers of both directions.
        pub processing_mode: Option<Located<ProcessingMode>>,
        /// Bound on the answer to one message, up to an hour. Default 200 ms.
        pub message_timeout: Option<Located<Duration>>,
        /// Added to the label of the filter's metrics.
        pub stat_prefix: Option<String>,
        /// What the processor may change.
        pub mutation_rules: Option<HeaderMutationRules>,
        /// Upper bound of the timeouts that a processor may ask for, up to an hour.
        /// Default 0: none.
        pub max_message_timeout: Option<Located<Duration>>,
        /// Never pick the route again. Default false. Not with `route_cache_action`.
        pub disable_clear_route_cache: Option<Located<bool>>,
        /// Which headers the processor is shown. Default: all.
        pub forward_rules: Option<HeaderForwardingRules>,
        /// Let the processor change the mode of a request. Default false.
        pub allow_mode_override: Option<bool>,
        /// The modes that it may change to. Default: all.
        pub allowed_override_modes: Vec<ProcessingMode>,
        /// Treat immediate responses as errors. Default false.
        pub disable_immediate_response: Option<bool>,
        /// Process without waiting for answers. Default false.
        pub observability_mode: Option<bool>,
        /// How long the stream to an observing processor stays open when its exchange has
        /// ended. Default 5 s.
        pub deferred_close_timeout: Option<Located<Duration>>,
        /// When the route is picked again.
        pub route_cache_action: Option<RouteCacheActionName>,
        /// Send pieces of a STREAMED body before the headers are answered. Default false.
        pub send_body_without_waiting_for_header_response: Option<bool>,
        /// Status of the filter's own error replies, timeouts aside; 500 unless 4xx or 5xx.
        pub status_on_error: Option<HttpStatus>,
        /// Keep `content-length` where a body may change its length. Default false.
        pub allow_content_length_header: Option<bool>,
    }
    envoy_type = "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor";
    elsewhere {
        "http_service" => "not supported yet: use `grpc_service`",
        "async_mode" => "was never implemented by Envoy",
        "request_attributes" => "not supported yet",
        "response_attributes" => "not supported yet",
        "filter_metadata" => "not supported yet",
        "metadata_options" => "not supported yet",
        "on_processing_response" => "is an extension of Envoy's own process",
        "processing_request_modifier" => "is an extension of Envoy's own process",
        "emit_client_span" => "there is no tracing of policy calls yet",
    }
}

config_struct! {
    /// Envoy's `ExtProcOverrides`: settings of one route.
    pub struct ExtProcOverrides {
        /// Replaces the filter's mode as a whole.
        pub processing_mode: Option<ProcessingMode>,
        /// Another processor.
        pub grpc_service: Option<GrpcService>,
        /// Added to the metadata of streams, replacing by name.
        pub grpc_initial_metadata: Vec<Located<MetadataEntry>>,
        /// Replaces the filter's setting.
        pub failure_mode_allow: Option<bool>,
    }
    elsewhere {
        "async_mode" => "was never implemented by Envoy",
        "request_attributes" => "is ignored by Envoy",
        "response_attributes" => "is ignored by Envoy",
        "metadata_options" => "not supported yet",
        "processing_request_modifier" => "is an extension of Envoy's own process",
        "emit_client_span" => "there is no tracing of policy calls yet",
    }
}

config_oneof! {
    /// What a route changes.
    pub enum PerRouteOverride {
        /// The filter does nothing on this route; must be true.
        Disabled(Located<bool>) = "disabled",
        /// The filter does other things on this route.
        Overrides(ExtProcOverrides) = "overrides",
    }
}

config_struct! {
    /// Envoy's `envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute`.
    pub struct ExtProcPerRoute {}
    envoy_type = "envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute";
    oneof {
        /// What the route changes.
        pub r#override: PerRouteOverride,
    }
}
