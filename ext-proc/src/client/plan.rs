//! The filter's settings, checked and compiled.

use std::{sync::Arc, time::Duration};

use attache_filter::{
    CallMetadata,
    grpc_service::ServiceCall,
    matcher::{ForwardedHeaders, TextMatchers},
    mutation::MutationRules,
    on_failure::{AskedBy, OnFailure, Outcome},
};
use attache_proto::ext_proc_filter as wire;
use attache_service::config::{Errors, Located};
use http::StatusCode;

use super::config::{
    BodySendMode, ExtProcPerRoute, ExternalProcessor, HeaderForwardingRules, HeaderSendMode,
    MetadataOptions, PerRouteOverride, ProcessingMode, RouteCacheActionName,
};
use super::{
    attributes::ShownAttributes,
    extras::Extras,
    http::HttpCall,
    metadata::MetadataRules,
    mode::{BodyMode, Modes, wire as on_the_wire},
};

/// Envoy's default bound on the silence of an HTTP stream.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Longest timeout that Envoy accepts.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

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
    /// The processor, when it is asked over plain HTTP instead of gRPC.
    pub http: Option<Arc<HttpCall>>,
    /// Metadata of each stream.
    pub initial_metadata: CallMetadata,
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
    /// Let the processor change the modes of a request. Default false.
    pub allow_mode_override: bool,
    /// The modes that it may change to, compared value by value with what comes out, request
    /// headers aside; empty allows all. Default empty.
    pub allowed_override_modes: Vec<wire::ProcessingMode>,
    /// Give each exchange a span in the trace of its request. Default true.
    pub emit_client_span: bool,
    /// Show everything, wait for nothing, ignore all answers. Default false.
    pub observability_mode: bool,
    /// How long the stream to an observing processor stays open after its exchange. Default 5 s.
    pub deferred_close_timeout: Duration,
    /// Bound on silence where no message has an answer of its own: full-duplex bodies and
    /// streamed immediate responses; the `idle_timeout` of a route goes before it. Default 300 s,
    /// as Envoy's `stream_idle_timeout`. No setting of the filter itself.
    pub idle_timeout: Duration,
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
    /// Attributes that the processor is shown; `None` for none, the default.
    pub attributes: Option<Arc<ShownAttributes>>,
    /// Dynamic metadata that goes to the processor and comes from it; `None` for none, the
    /// default.
    pub metadata: Option<Arc<MetadataRules>>,
    stat_prefix: Option<String>,
    /// The modes as written, where they were.
    written_modes: Option<wire::ProcessingMode>,
}

impl Filter {
    /// A filter that calls `cluster`, everything else at Envoy's defaults.
    pub fn new(name: impl Into<Arc<str>>, cluster: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            cluster: Located::nowhere(cluster.into()),
            http: None,
            initial_metadata: CallMetadata::default(),
            modes: Modes::default(),
            message_timeout: Duration::from_millis(200),
            max_message_timeout: Duration::ZERO,
            failure_mode_allow: false,
            status_on_error: StatusCode::INTERNAL_SERVER_ERROR,
            allow_mode_override: false,
            allowed_override_modes: Vec::new(),
            emit_client_span: true,
            observability_mode: false,
            deferred_close_timeout: Duration::from_secs(5),
            idle_timeout: IDLE_TIMEOUT,
            disable_immediate_response: false,
            route_cache_action: RouteCacheAction::Default,
            allow_content_length_header: false,
            send_body_without_waiting_for_header_response: false,
            buffer_limit: 1 << 20,
            mutation_rules: MutationRules::default(),
            forward: ForwardedHeaders::default(),
            attributes: None,
            metadata: None,
            stat_prefix: None,
            written_modes: None,
        }
    }

    /// Checks and compiles settings; every fault is reported at its place.
    pub fn plan(name: &str, raw: &ExternalProcessor, errors: &mut Errors) -> Option<Self> {
        let before = errors.len();
        let (cluster, initial_metadata, http) = plan_service(raw, errors)?;
        let defaults = Self::new(name, cluster.value.clone());
        if let Some(mode) = &raw.processing_mode {
            check_full_duplex(mode, errors);
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
        let deferred_close_timeout = raw
            .deferred_close_timeout
            .as_ref()
            .map_or(defaults.deferred_close_timeout, |timeout| timeout.value);
        let mut attributes =
            ShownAttributes::plan(&raw.request_attributes, &raw.response_attributes, errors);
        if let Some(modifier) = &raw.processing_request_modifier {
            attributes = ShownAttributes::plan_modifier(modifier, errors);
        }
        let metadata = raw.metadata_options.as_ref();
        let metadata = metadata.map(|raw| MetadataRules::default().replaced_by(raw));
        let rules = raw.mutation_rules.as_ref();
        let forward = raw.forward_rules.as_ref();
        let filter = Self {
            cluster,
            http: http.map(Arc::new),
            initial_metadata,
            modes: raw
                .processing_mode
                .as_ref()
                .map(|mode| Modes::plan(mode))
                .unwrap_or_default(),
            written_modes: raw.processing_mode.as_ref().map(|mode| on_the_wire(mode)),
            message_timeout,
            max_message_timeout,
            failure_mode_allow: raw.failure_mode_allow.unwrap_or(false),
            status_on_error: raw
                .status_on_error
                .as_ref()
                .map(|status| status.code.0)
                .filter(|status| status.is_client_error() || status.is_server_error())
                .unwrap_or(defaults.status_on_error),
            allow_mode_override: raw.allow_mode_override.unwrap_or(false),
            allowed_override_modes: raw.allowed_override_modes.iter().map(on_the_wire).collect(),
            emit_client_span: raw.emit_client_span.unwrap_or(true),
            observability_mode: raw.observability_mode.unwrap_or(false),
            deferred_close_timeout,
            idle_timeout: defaults.idle_timeout,
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
            attributes: Some(Arc::new(attributes)).filter(|shown| !shown.is_empty()),
            metadata: metadata.filter(|rules| !rules.is_empty()).map(Arc::new),
            stat_prefix: raw.stat_prefix.clone().filter(|prefix| !prefix.is_empty()),
            name: defaults.name,
        };
        if let Some(call) = &filter.http {
            HttpCall::check_modes(filter.modes, &call.cluster, errors);
        }
        (errors.len() == before).then_some(filter)
    }

    /// The clusters that the filter calls over gRPC, for a check that they exist.
    pub fn clusters(&self) -> Vec<Located<String>> {
        match self.http {
            Some(_) => Vec::new(),
            None => vec![self.cluster.clone()],
        }
    }

    /// What becomes of requests when the processor fails.
    pub fn on_failure(&self) -> OnFailure {
        let refused = Outcome::Refused(self.status_on_error);
        let outcome = Outcome::of(self.failure_mode_allow, self.status_on_error);
        let in_time = Outcome::of(self.failure_mode_allow, StatusCode::GATEWAY_TIMEOUT);
        let of_call = self.http.as_ref().map(|call| call.timeout);
        let (timeout, too_late) = match of_call {
            Some(of_call) if of_call < self.message_timeout => (of_call, outcome),
            _ => (self.message_timeout, in_time),
        };
        let duplex = BodyMode::FullDuplexStreamed;
        let duplex = self.modes.request_body == duplex || self.modes.response_body == duplex;
        let mut notes = Vec::new();
        if self.observability_mode {
            notes.push("it only looks on: nothing waits for its answers, and what they say is ignored; a broken stream or message counts as not reached");
        } else {
            notes.extend(self.notes(duplex));
        }
        let timeout = Some(timeout).filter(|_| !self.observability_mode);
        let too_late = match self.observability_mode {
            true => Outcome::Passes,
            false => too_late,
        };
        OnFailure {
            kind: "ext_proc",
            cluster: self
                .http
                .as_ref()
                .map_or(&self.cluster, |call| &call.cluster)
                .value
                .clone(),
            asked_by: match self.http {
                Some(_) => AskedBy::Http,
                None => AskedBy::Grpc,
            },
            timeout,
            not_reached: outcome,
            too_late,
            wrong_answer: outcome,
            impossible_change: Some(refused).filter(|_| !self.observability_mode),
            notes,
        }
    }

    /// What there is to know of a processor that is waited for.
    fn notes(&self, duplex: bool) -> Vec<&'static str> {
        let mut notes = Vec::new();
        if self.http.is_none() {
            notes
                .push("a processor that ends its stream without an error is done: the rest passes");
            if self.max_message_timeout >= Duration::from_millis(1) {
                notes.push("the processor may extend the timeout of a message once, up to `max_message_timeout`");
            }
        }
        if duplex {
            notes.push("a full-duplex direction has no message timeout: silence of the route's `idle_timeout`, 300s by default, ends it");
            notes.push("a stream that ends while it holds pieces of a full-duplex body is a failure that no failure mode lets pass");
        }
        if self.failure_mode_allow && duplex {
            notes.push("no failure passes once a piece of a full-duplex body was sent");
        }
        notes
    }

    /// The clusters that the filter calls over plain HTTP, for the same check.
    pub fn http_clusters(&self) -> Vec<Located<String>> {
        let call = self.http.as_ref();
        call.map(|call| call.cluster.clone()).into_iter().collect()
    }

    /// What goes beside the messages on a route.
    pub(super) fn extras(&self, route: Option<&PerRoute>) -> Extras {
        let attributes = route.and_then(|route| route.attributes.as_ref());
        let metadata = match route.and_then(|route| route.metadata_options.as_ref()) {
            None => self.metadata.clone(),
            Some(raw) => {
                let ours = self.metadata.as_deref().cloned().unwrap_or_default();
                Some(Arc::new(ours.replaced_by(raw)))
            }
        };
        Extras {
            attributes: attributes.or(self.attributes.as_ref()).cloned(),
            metadata,
            ..Extras::default()
        }
    }

    /// The filter's own modes on the wire: what a processor's mode override starts from.
    pub(super) fn wire_modes(&self) -> wire::ProcessingMode {
        use wire::processing_mode::{BodySendMode, HeaderSendMode};
        // Modes set by code are those that were written, or have taken their place.
        if let Some(written) = &self.written_modes
            && Modes::of_wire(written) == self.modes
        {
            return *written;
        }
        let headers = |shown| match shown {
            true => HeaderSendMode::Default.into(),
            false => HeaderSendMode::Skip.into(),
        };
        let trailers = |shown| match shown {
            true => HeaderSendMode::Send.into(),
            false => HeaderSendMode::Default.into(),
        };
        let body = |mode| {
            i32::from(match mode {
                BodyMode::None => BodySendMode::None,
                BodyMode::Streamed => BodySendMode::Streamed,
                BodyMode::Buffered => BodySendMode::Buffered,
                BodyMode::BufferedPartial => BodySendMode::BufferedPartial,
                BodyMode::FullDuplexStreamed => BodySendMode::FullDuplexStreamed,
                BodyMode::Grpc => BodySendMode::Grpc,
            })
        };
        wire::ProcessingMode {
            request_header_mode: headers(self.modes.request_headers),
            response_header_mode: headers(self.modes.response_headers),
            request_body_mode: body(self.modes.request_body),
            response_body_mode: body(self.modes.response_body),
            request_trailer_mode: trailers(self.modes.request_trailers),
            response_trailer_mode: trailers(self.modes.response_trailers),
        }
    }

    /// The `filter` label of metrics: the name, and the `stat_prefix` if there is one.
    pub(super) fn label(&self) -> String {
        match &self.stat_prefix {
            Some(prefix) => format!("{}.{prefix}", self.name),
            None => self.name.to_string(),
        }
    }
}

/// Full duplex has no end without trailers, so they must be shown.
fn check_full_duplex(mode: &Located<ProcessingMode>, errors: &mut Errors) {
    let sides = [
        ("request", mode.request_body_mode, mode.request_trailer_mode),
        (
            "response",
            mode.response_body_mode,
            mode.response_trailer_mode,
        ),
    ];
    for (side, body, trailers) in sides {
        if body == Some(BodySendMode::FullDuplexStreamed) && trailers != Some(HeaderSendMode::Send)
        {
            let message = format!(
                "`{side}_body_mode: FULL_DUPLEX_STREAMED` needs `{side}_trailer_mode: SEND`"
            );
            errors.push(mode, message);
        }
    }
}

/// The processor: exactly one of two.
fn plan_service(
    raw: &ExternalProcessor,
    errors: &mut Errors,
) -> Option<(Located<String>, CallMetadata, Option<HttpCall>)> {
    match (&raw.grpc_service, &raw.http_service) {
        (Some(service), None) => {
            let service = ServiceCall::plan_once(service, errors);
            Some((service.cluster, service.metadata, None))
        }
        (None, Some(service)) => {
            let call = HttpCall::plan(&service.http_service, errors)?;
            Some((call.cluster.clone(), CallMetadata::default(), Some(call)))
        }
        (Some(_), Some(service)) => {
            errors.push(
                service,
                "`grpc_service` and `http_service` exclude each other",
            );
            None
        }
        (None, None) => {
            errors.push_unlocated("`ext_proc` needs a `grpc_service` or an `http_service`");
            None
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
    /// Replaces the filter's `emit_client_span`.
    pub emit_client_span: Option<bool>,
    /// Replaces the filter's `failure_mode_allow`.
    pub failure_mode_allow: Option<bool>,
    /// Replaces or adds stream metadata, key by key.
    pub initial_metadata: CallMetadata,
    /// Replaces the filter's attributes.
    pub attributes: Option<Arc<ShownAttributes>>,
    /// Each list in it replaces the filter's.
    pub metadata_options: Option<MetadataOptions>,
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
                emit_client_span: raw.emit_client_span,
                failure_mode_allow: raw.failure_mode_allow,
                initial_metadata: CallMetadata::plan(&raw.grpc_initial_metadata, errors),
                attributes: raw
                    .processing_request_modifier
                    .as_ref()
                    .map(|raw| Arc::new(ShownAttributes::plan_modifier(raw, errors))),
                metadata_options: raw.metadata_options.clone(),
                service: raw
                    .grpc_service
                    .as_ref()
                    .map(|s| ServiceCall::plan_once(s, errors)),
            },
        };
        (errors.len() == before).then_some(planned)
    }

    /// These settings with those of `less_specific` (of the virtual host) where there are none:
    /// field by field. What is disabled there is not where there are settings here, and the
    /// other way round.
    #[must_use]
    pub fn over(&self, less_specific: &Self) -> Self {
        if self.disabled || less_specific.disabled {
            return self.clone();
        }
        let mut merged = less_specific.clone();
        merged.modes = self.modes.or(merged.modes);
        merged.emit_client_span = self.emit_client_span.or(merged.emit_client_span);
        merged.failure_mode_allow = self.failure_mode_allow.or(merged.failure_mode_allow);
        merged.service = self.service.clone().or(merged.service);
        merged.attributes = self.attributes.clone().or(merged.attributes);
        merged.metadata_options = match (&self.metadata_options, merged.metadata_options) {
            (Some(own), Some(theirs)) => Some(MetadataOptions {
                forwarding_namespaces: own
                    .forwarding_namespaces
                    .clone()
                    .or(theirs.forwarding_namespaces),
                receiving_namespaces: own
                    .receiving_namespaces
                    .clone()
                    .or(theirs.receiving_namespaces),
            }),
            (own, theirs) => own.clone().or(theirs),
        };
        merged.initial_metadata = self.initial_metadata.over(&merged.initial_metadata);
        merged
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
    fn what_bounds_an_answer_is_told_with_its_exceptions() {
        let duplex = "failure_mode_allow: true\nmax_message_timeout: 1s\nprocessing_mode: \
            { response_body_mode: FULL_DUPLEX_STREAMED, response_trailer_mode: SEND }\n";

        let plain = plan("").unwrap().on_failure();
        let streamed = plan(duplex).unwrap().on_failure();
        let observed = plan(&format!("{duplex}observability_mode: true\n"));
        let observed = observed.unwrap().on_failure();

        assert_eq!(plain.notes.len(), 1, "{plain:#?}");
        for word in [
            "is done: the rest passes",
            "up to `max_message_timeout`",
            "has no message timeout",
            "no failure mode lets pass",
            "no failure passes once",
        ] {
            assert!(
                streamed.notes.iter().any(|note| note.contains(word)),
                "{word}: {streamed:#?}"
            );
        }
        assert_eq!(observed.notes.len(), 1, "{observed:#?}");
    }

    #[test]
    fn a_broken_message_fails_where_the_processor_only_looks_on_too() {
        let told = plan("observability_mode: true").unwrap().on_failure();

        let refused = Outcome::Refused(StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!((told.not_reached, told.wrong_answer), (refused, refused));
        assert_eq!((told.too_late, told.timeout), (Outcome::Passes, None));
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
            (
                "processing_mode: { request_body_mode: FULL_DUPLEX_STREAMED }",
                "needs `request_trailer_mode: SEND`",
            ),
            (
                "processing_mode: { response_body_mode: FULL_DUPLEX_STREAMED, \
                 response_trailer_mode: SKIP }",
                "needs `response_trailer_mode: SEND`",
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
    fn settings_of_a_route_stand_over_those_of_its_virtual_host() {
        let mut errors = Errors::new();
        let mut route = |text: &str| PerRoute::plan(&decode(text), &mut errors).unwrap();
        let host = route(
            "overrides: { failure_mode_allow: true, processing_mode: { response_header_mode: SKIP }, \
             grpc_initial_metadata: [{ key: a, value: '1' }, { key: b, value: '1' }] }",
        );
        let own = route(
            "overrides: { failure_mode_allow: false, grpc_initial_metadata: [{ key: b, value: '2' }] }",
        );
        let disabled = route("disabled: true");
        let merged = own.over(&host);
        assert_eq!(merged.failure_mode_allow, Some(false));
        assert!(!merged.modes.unwrap().response_headers);
        assert_eq!(merged.initial_metadata.fixed["a"], "1");
        assert_eq!(merged.initial_metadata.fixed["b"], "2");
        assert!(!route("overrides: {}").over(&disabled).disabled);
        assert!(disabled.over(&host).disabled);
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
