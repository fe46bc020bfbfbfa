//! The filter's settings as they are written: Envoy's names, field for field.

use std::{collections::BTreeMap, time::Duration};

use attache_filter::{
    grpc_service::{GrpcService, HttpStatus, MetadataEntry},
    http_uri::HttpUri,
    matcher::ListStringMatcher,
    mutation::HeaderMutationRules,
};
use attache_service::{
    config::{ConfigValue, Errors, Located, Node, Schemas, json},
    config_enum, config_oneof, config_struct,
};

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
    /// Envoy's `ExtProcHttpService`.
    pub struct ExtProcHttpService {
        /// The service.
        pub http_service: HttpService,
    }
}

config_struct! {
    /// Envoy's `config.core.v3.HttpService`.
    pub struct HttpService {
        /// Where it is.
        pub http_uri: HttpUri,
        /// Headers of each request.
        pub request_headers_to_add: Vec<AddedHeader>,
    }
    elsewhere {
        "retry_policy" => "calls to policy services are not retried yet",
        "formatters" => "there are no formatters beside those that values know by themselves",
    }
}

config_struct! {
    /// Envoy's `config.core.v3.HeaderValueOption`, of requests that have no such headers yet.
    pub struct AddedHeader {
        /// The header.
        pub header: Located<MetadataEntry>,
    }
    elsewhere {
        "append" => "headers are added here, as there are no others",
        "append_action" => "headers are added here, as there are no others",
        "keep_empty_value" => "empty values are kept",
    }
}

config_struct! {
    /// Envoy's `MetadataOptions.MetadataNamespaces`.
    pub struct MetadataNamespaces {
        /// Namespaces that hold structs.
        pub untyped: Vec<String>,
        /// Namespaces that hold messages of a type.
        pub typed: Vec<String>,
    }
}

config_struct! {
    /// Envoy's `MetadataOptions`.
    pub struct MetadataOptions {
        /// Namespaces that the processor is shown.
        pub forwarding_namespaces: Option<MetadataNamespaces>,
        /// Namespaces that the processor may set.
        pub receiving_namespaces: Option<MetadataNamespaces>,
    }
    elsewhere {
        "cluster_metadata_forwarding_namespaces" => "clusters have no metadata here",
    }
}

config_struct! {
    /// Envoy's `MappedAttributeBuilder`: attributes under names of their own.
    pub struct MappedAttributeBuilder {
        /// CEL expressions by the name that the processor is shown, for the request direction.
        pub mapped_request_attributes: BTreeMap<String, Located<String>>,
        /// The same for the response direction.
        pub mapped_response_attributes: BTreeMap<String, Located<String>>,
    }
    envoy_type = "envoy.extensions.http.ext_proc.processing_request_modifiers.mapped_attribute_builder.v3.MappedAttributeBuilder";
}

config_struct! {
    /// Envoy's `TypedExtensionConfig` of the one extension that there is for requests.
    pub struct ProcessingRequestModifier {
        /// Any name.
        pub name: String,
        /// The extension's settings.
        pub typed_config: Typed<MappedAttributeBuilder>,
    }
}

impl ProcessingRequestModifier {
    /// The attributes that it names.
    pub fn attributes(&self) -> &MappedAttributeBuilder {
        &self.typed_config.0
    }
}

/// A message that is written with its `@type`.
#[derive(Debug, Clone, PartialEq)]
pub struct Typed<T>(pub T);

impl<T: ConfigValue> ConfigValue for Typed<T> {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        T::decode(node, errors).map(Self)
    }

    fn encode(&self) -> Option<json::Value> {
        self.0.encode_typed()
    }

    fn schema(schemas: &mut Schemas) -> json::Value {
        T::schema(schemas)
    }
}

config_struct! {
    /// Envoy's `envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor`.
    pub struct ExternalProcessor {
        /// The processor; this or `http_service` must be there.
        pub grpc_service: Option<GrpcService>,
        /// The processor, when it is asked over plain HTTP, about headers only.
        pub http_service: Option<Located<ExtProcHttpService>>,
        /// Let traffic pass when the processor fails. Default false.
        pub failure_mode_allow: Option<bool>,
        /// What the processor is shown. Default: headers of both directions.
        pub processing_mode: Option<Located<ProcessingMode>>,
        /// CEL expressions whose values go with the first message of the request direction.
        pub request_attributes: Vec<Located<String>>,
        /// The same for the response direction.
        pub response_attributes: Vec<Located<String>>,
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
        /// Which dynamic metadata goes to the processor and comes from it. Default: none.
        pub metadata_options: Option<MetadataOptions>,
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
        /// Attributes under names of their own, instead of `request_attributes` and
        /// `response_attributes`.
        pub processing_request_modifier: Option<ProcessingRequestModifier>,
        /// Give each exchange a span in the trace of its request. Default true.
        pub emit_client_span: Option<bool>,
    }
    envoy_type = "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor";
    elsewhere {
        "async_mode" => "was never implemented by Envoy",
        "filter_metadata" => "is copied into a log object of Envoy that there is not here",
        "on_processing_response" => "is an extension of Envoy's own process",
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
        /// Each list in it replaces the filter's.
        pub metadata_options: Option<MetadataOptions>,
        /// Replaces the filter's attributes.
        pub processing_request_modifier: Option<ProcessingRequestModifier>,
        /// Replaces the filter's setting.
        pub emit_client_span: Option<bool>,
    }
    elsewhere {
        "async_mode" => "was never implemented by Envoy",
        "request_attributes" => "is ignored by Envoy",
        "response_attributes" => "is ignored by Envoy",
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
