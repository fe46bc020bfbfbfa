//! The filter's settings, checked and compiled.

use std::{sync::Arc, time::Duration};

use attache_filter::{
    grpc_service::{ServiceCall, plan_metadata},
    matcher::{ForwardedHeaders, TextMatchers},
    mutation::MutationRules,
};
use attache_service::config::{Errors, Located};
use http::{HeaderMap, StatusCode};

use super::config::{
    BodySendMode, ExtProcPerRoute, ExternalProcessor, HeaderForwardingRules, HeaderSendMode,
    PerRouteOverride, ProcessingMode, RouteCacheActionName,
};

/// Longest timeout that Envoy accepts.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// How much of a body the processor is shown (`ProcessingMode.BodySendMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyMode {
    /// Nothing.
    #[default]
    None,
    /// Each piece as it arrives.
    Streamed,
    /// All of it at once.
    Buffered,
}

/// Which parts of a request and its response the processor is shown (`ProcessingMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// Show the request headers. Default true.
    pub request_headers: bool,
    /// Show the response headers. Default true.
    pub response_headers: bool,
    /// Show the request body. Default `None`.
    pub request_body: BodyMode,
    /// Show the response body. Default `None`.
    pub response_body: BodyMode,
    /// Show request trailers. Default false.
    pub request_trailers: bool,
    /// Show response trailers. Default false.
    pub response_trailers: bool,
}

impl Default for Modes {
    fn default() -> Self {
        Self {
            request_headers: true,
            response_headers: true,
            request_body: BodyMode::None,
            response_body: BodyMode::None,
            request_trailers: false,
            response_trailers: false,
        }
    }
}

impl Modes {
    fn plan(raw: &ProcessingMode) -> Self {
        let headers = |mode| mode != Some(HeaderSendMode::Skip);
        let trailers = |mode| mode == Some(HeaderSendMode::Send);
        let body = |mode| match mode {
            None | Some(BodySendMode::None | BodySendMode::Grpc) => BodyMode::None,
            Some(BodySendMode::Streamed) => BodyMode::Streamed,
            Some(BodySendMode::Buffered) => BodyMode::Buffered,
        };
        Self {
            request_headers: headers(raw.request_header_mode),
            response_headers: headers(raw.response_header_mode),
            request_body: body(raw.request_body_mode),
            response_body: body(raw.response_body_mode),
            request_trailers: trailers(raw.request_trailer_mode),
            response_trailers: trailers(raw.response_trailer_mode),
        }
    }

    /// Whether nothing at all is shown, so that no stream is needed.
    pub(super) fn is_off(&self) -> bool {
        *self
            == Self {
                request_headers: false,
                response_headers: false,
                ..Self::default()
            }
    }
}

/// When a header mutation makes the route be picked again (`route_cache_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RouteCacheAction {
    /// When the processor asks for it.
    #[default]
    Default,
    /// Always.
    Clear,
    /// Never.
    Retain,
}

/// A checked filter configuration, shared by all workers.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Name of the filter in the configuration: key of per-route settings, label of metrics.
    pub name: Arc<str>,
    /// The cluster of the processor.
    pub cluster: Located<String>,
    /// Metadata of each stream.
    pub initial_metadata: HeaderMap,
    /// What the processor is shown.
    pub modes: Modes,
    /// Bound on the answer to one message. Default 200 ms.
    pub message_timeout: Duration,
    /// Upper bound of timeouts that the processor asks for; zero refuses all. Default zero.
    pub max_message_timeout: Duration,
    /// Let traffic pass when the processor fails. Default false.
    pub failure_mode_allow: bool,
    /// Status of the filter's own error replies, timeouts aside. Default 500.
    pub status_on_error: StatusCode,
    /// Refuse immediate responses. Default false.
    pub disable_immediate_response: bool,
    /// When the route is picked again.
    pub route_cache_action: RouteCacheAction,
    /// Keep `content-length` where it would be removed. Default false.
    pub allow_content_length_header: bool,
    /// Send body pieces before the headers are answered (STREAMED only). Default false.
    pub send_body_without_waiting_for_header_response: bool,
    /// Bytes of one body held at most. Default 1 MiB. No setting of the filter itself: Envoy has
    /// it on the listener (`per_connection_buffer_limit_bytes`).
    pub buffer_limit: usize,
    /// What the processor may change.
    pub mutation_rules: MutationRules,
    /// Which headers the processor is shown.
    pub forward: ForwardedHeaders,
    stat_prefix: Option<String>,
}

impl Filter {
    /// A filter that calls `cluster`, everything else at Envoy's defaults.
    pub fn new(name: impl Into<Arc<str>>, cluster: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            cluster: Located::nowhere(cluster.into()),
            initial_metadata: HeaderMap::new(),
            modes: Modes::default(),
            message_timeout: Duration::from_millis(200),
            max_message_timeout: Duration::ZERO,
            failure_mode_allow: false,
            status_on_error: StatusCode::INTERNAL_SERVER_ERROR,
            disable_immediate_response: false,
            route_cache_action: RouteCacheAction::Default,
            allow_content_length_header: false,
            send_body_without_waiting_for_header_response: false,
            buffer_limit: 1 << 20,
            mutation_rules: MutationRules::default(),
            forward: ForwardedHeaders::default(),
            stat_prefix: None,
        }
    }

    /// Checks and compiles settings; every fault is reported at its place.
    pub fn plan(name: &str, raw: &ExternalProcessor, errors: &mut Errors) -> Option<Self> {
        let before = errors.len();
        let service = ServiceCall::plan(&raw.grpc_service, errors);
        let defaults = Self::new(name, service.cluster.value.clone());
        for flag in [&raw.allow_mode_override, &raw.observability_mode] {
            if let Some(flag) = flag.as_ref().filter(|flag| flag.value) {
                errors.push(flag, "not supported yet");
            }
        }
        let mut timeout = |raw: &Option<Located<Duration>>, default: Duration| match raw {
            Some(timeout) if timeout.value > MAX_TIMEOUT => {
                errors.push(timeout, "at most 3600s are allowed");
                default
            }
            Some(timeout) => timeout.value,
            None => default,
        };
        let message_timeout = timeout(&raw.message_timeout, defaults.message_timeout);
        let max_message_timeout = timeout(&raw.max_message_timeout, defaults.max_message_timeout);
        let rules = raw.mutation_rules.as_ref();
        let forward = raw.forward_rules.as_ref();
        let filter = Self {
            cluster: service.cluster,
            initial_metadata: service.metadata,
            modes: raw
                .processing_mode
                .as_ref()
                .map(Modes::plan)
                .unwrap_or_default(),
            message_timeout,
            max_message_timeout,
            failure_mode_allow: raw.failure_mode_allow.unwrap_or(false),
            status_on_error: raw
                .status_on_error
                .as_ref()
                .map(|status| status.code.0)
                .filter(|status| status.is_client_error() || status.is_server_error())
                .unwrap_or(defaults.status_on_error),
            disable_immediate_response: raw.disable_immediate_response.unwrap_or(false),
            route_cache_action: plan_route_cache(raw, errors),
            allow_content_length_header: raw.allow_content_length_header.unwrap_or(false),
            send_body_without_waiting_for_header_response: raw
                .send_body_without_waiting_for_header_response
                .unwrap_or(false),
            buffer_limit: defaults.buffer_limit,
            mutation_rules: rules
                .map(|r| MutationRules::plan(r, errors))
                .unwrap_or_default(),
            forward: forward.map(|r| plan_forward(r, errors)).unwrap_or_default(),
            stat_prefix: raw.stat_prefix.clone().filter(|prefix| !prefix.is_empty()),
            name: defaults.name,
        };
        (errors.len() == before).then_some(filter)
    }

    /// The clusters that the filter calls, for a check that they exist.
    pub fn clusters(&self) -> Vec<Located<String>> {
        vec![self.cluster.clone()]
    }

    /// The `filter` label of metrics: the name, and the `stat_prefix` if there is one.
    pub(super) fn label(&self) -> String {
        match &self.stat_prefix {
            Some(prefix) => format!("{}.{prefix}", self.name),
            None => self.name.to_string(),
        }
    }
}

fn plan_route_cache(raw: &ExternalProcessor, errors: &mut Errors) -> RouteCacheAction {
    let action = match raw.route_cache_action {
        None | Some(RouteCacheActionName::Default) => RouteCacheAction::Default,
        Some(RouteCacheActionName::Clear) => RouteCacheAction::Clear,
        Some(RouteCacheActionName::Retain) => RouteCacheAction::Retain,
    };
    match raw
        .disable_clear_route_cache
        .as_ref()
        .filter(|disable| disable.value)
    {
        None => action,
        Some(disable) => {
            if action != RouteCacheAction::Default {
                errors.push(
                    disable,
                    "`disable_clear_route_cache` and `route_cache_action` exclude each other",
                );
            }
            RouteCacheAction::Retain
        }
    }
}

fn plan_forward(raw: &HeaderForwardingRules, errors: &mut Errors) -> ForwardedHeaders {
    let mut list = |raw: &Option<Located<_>>| raw.as_ref().map(|l| TextMatchers::plan(l, errors));
    ForwardedHeaders {
        allowed: list(&raw.allowed_headers),
        disallowed: list(&raw.disallowed_headers),
    }
}

/// Checked per-route settings (`ExtProcPerRoute`).
#[derive(Debug, Clone, Default)]
pub struct PerRoute {
    /// The filter does nothing on this route.
    pub disabled: bool,
    /// Replaces the filter's modes as a whole.
    pub modes: Option<Modes>,
    /// Replaces the filter's `failure_mode_allow`.
    pub failure_mode_allow: Option<bool>,
    /// Replaces or adds stream metadata, key by key.
    pub initial_metadata: HeaderMap,
    /// Calls another processor on this route.
    pub service: Option<ServiceCall>,
}

impl PerRoute {
    /// Checks and compiles settings of a route; every fault is reported at its place.
    pub fn plan(raw: &ExtProcPerRoute, errors: &mut Errors) -> Option<Self> {
        let before = errors.len();
        let planned = match &raw.r#override {
            PerRouteOverride::Disabled(disabled) => {
                if !disabled.value {
                    errors.push(
                        disabled,
                        "`disabled` can only be true: leave it out instead",
                    );
                }
                Self {
                    disabled: true,
                    ..Self::default()
                }
            }
            PerRouteOverride::Overrides(raw) => Self {
                disabled: false,
                modes: raw.processing_mode.as_ref().map(Modes::plan),
                failure_mode_allow: raw.failure_mode_allow,
                initial_metadata: plan_metadata(&raw.grpc_initial_metadata, errors),
                service: raw
                    .grpc_service
                    .as_ref()
                    .map(|s| ServiceCall::plan(s, errors)),
            },
        };
        (errors.len() == before).then_some(planned)
    }

    /// The clusters that the route calls, for a check that they exist.
    pub fn clusters(&self) -> Vec<Located<String>> {
        self.service
            .iter()
            .map(|service| service.cluster.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use attache_service::config::{ConfigValue, Document};

    use super::*;

    fn decode<T: ConfigValue>(text: &str) -> T {
        Document::parse("f.yaml", text).unwrap().decode().unwrap()
    }

    fn plan(text: &str) -> Result<Filter, String> {
        let text = format!("grpc_service: {{ envoy_grpc: {{ cluster_name: p }} }}\n{text}");
        let document = Document::parse("f.yaml", &text).map_err(|e| e.to_string())?;
        let (raw, mut errors) = document.decode_partly::<ExternalProcessor>();
        let filter = raw.and_then(|raw| Filter::plan("f", &raw, &mut errors));
        errors.into_result(filter).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_envoys() {
        let filter = plan("").unwrap();
        assert_eq!(filter.cluster.value, "p");
        assert_eq!(filter.modes, Modes::default());
        assert_eq!(filter.message_timeout, Duration::from_millis(200));
        assert_eq!(filter.max_message_timeout, Duration::ZERO);
        assert_eq!(filter.status_on_error, 500);
        assert_eq!(filter.buffer_limit, 1 << 20);
        assert!(!filter.failure_mode_allow);
    }

    #[test]
    fn modes_are_read_by_envoys_names() {
        let filter = plan(
            "processing_mode: { request_header_mode: SKIP, request_body_mode: STREAMED, \
             response_body_mode: BUFFERED, response_trailer_mode: SEND }",
        );
        let expected = Modes {
            request_headers: false,
            request_body: BodyMode::Streamed,
            response_body: BodyMode::Buffered,
            response_trailers: true,
            ..Modes::default()
        };
        assert_eq!(filter.unwrap().modes, expected);
    }

    #[test]
    fn the_error_status_must_be_an_error() {
        let status = |code| plan(&format!("status_on_error: {{ code: {code} }}")).unwrap();
        assert_eq!(status(503).status_on_error, 503);
        assert_eq!(status(404).status_on_error, 404);
        assert_eq!(status(200).status_on_error, 500);
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_reason() {
        for (text, reason) in [
            ("message_timeout: 3601s", "at most 3600s"),
            ("observability_mode: true", "not supported yet"),
            ("allow_mode_override: true", "not supported yet"),
            ("request_attributes: [request.path]", "not supported yet"),
            (
                "processing_mode: { request_body_mode: FULL_DUPLEX_STREAMED }",
                "not supported yet",
            ),
            (
                "disable_clear_route_cache: true\nroute_cache_action: CLEAR",
                "exclude each other",
            ),
            ("mesage_timeout: 1s", "message_timeout"),
            (
                "mutation_rules: { allow_expression: { regex: \"(\" } }",
                "f.yaml:2",
            ),
        ] {
            let error = plan(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_route_disables_or_overrides() {
        let mut errors = Errors::new();
        let raw = decode::<ExtProcPerRoute>("disabled: true");
        assert!(PerRoute::plan(&raw, &mut errors).unwrap().disabled);
        let raw = decode("overrides: { processing_mode: { response_header_mode: SKIP } }");
        let route = PerRoute::plan(&raw, &mut errors).unwrap();
        assert!(!route.disabled && !route.modes.unwrap().response_headers);
        let raw = decode("disabled: false");
        assert!(PerRoute::plan(&raw, &mut errors).is_none());
    }
}
