//! The filter's settings, checked and compiled: what the layer runs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use attache_filter::{
    fraction::Fraction,
    grpc_service::ServiceCall,
    matcher::{ForwardedHeaders, ListStringMatcher, TextMatcher, TextMatchers},
    metadata::StructValue,
    metadata_matcher::MetadataTest,
    mutation::MutationRules,
    on_failure::{AskedBy, OnFailure, Outcome},
};
use attache_service::config::{Errors, Located};
use http::StatusCode;

use super::{
    answer::Reading,
    apply::HeaderLimits,
    config::{BufferSettings, ExtAuthz, ExtAuthzPerRoute, PerRouteOverride, Services},
    encode::{self, Namespaces},
    http::HttpCall,
};

/// Envoy's default bound on a check.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);

/// A planned filter: immutable, shared by all workers.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Bytes of one body held at most where a part of it is shown. Default 1 MiB. No setting of
    /// the filter itself: Envoy has it on the listener (`per_connection_buffer_limit_bytes`).
    pub buffer_limit: usize,
    /// Bounds on the headers of a request after changes. No setting of the filter itself either:
    /// those of the listener.
    pub limits: HeaderLimits,
    pub(crate) name: Arc<str>,
    pub(crate) stat_prefix: Option<String>,
    pub(crate) service: AuthService,
    pub(crate) body: Option<BodyPlan>,
    pub(crate) enabled: Fraction,
    pub(crate) enabled_metadata: Option<MetadataTest>,
    pub(crate) deny_at_disable: bool,
    pub(crate) failure_mode_allow: bool,
    pub(crate) failure_mode_header: bool,
    pub(crate) reading: Reading,
    pub(crate) rules: Option<MutationRules>,
    pub(crate) response_limit: Option<usize>,
    pub(crate) clear_route: ClearRoute,
    pub(crate) shown: ForwardedHeaders,
    pub(crate) raw_headers: bool,
    pub(crate) peer_certificate: bool,
    pub(crate) tls_session: bool,
    labels_key: Option<String>,
    /// Labels of our side as they go on the wire.
    pub(crate) labels: Vec<u8>,
    dynamic: Vec<String>,
    dynamic_typed: Vec<String>,
    route: Vec<String>,
    route_typed: Vec<String>,
    pub(crate) ingest_metadata: bool,
    pub(crate) charge_cluster: bool,
    pub(crate) logging: Logging,
    /// Where the decisions of a filter in shadow mode are noted; `None` for one that decides.
    pub(crate) shadow: Option<Arc<str>>,
    /// Checks have spans of their own.
    pub(crate) emit_client_span: bool,
}

/// What is noted of each check in the access log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Logging {
    pub(crate) fixed: Option<prost_types::Struct>,
    pub(crate) figures: bool,
}

/// The auth service to ask.
#[derive(Debug, Clone)]
pub(crate) enum AuthService {
    Grpc(Arc<GrpcCall>),
    Http(Arc<HttpCall>),
}

/// An auth service that is asked over gRPC.
#[derive(Debug, Clone)]
pub(crate) struct GrpcCall {
    pub(crate) call: ServiceCall,
    /// Bound on a check, retries included; `None` waits forever.
    pub(crate) timeout: Option<Duration>,
}

impl AuthService {
    fn plan(raw: &Services, errors: &mut Errors) -> Self {
        match raw {
            Services::GrpcService(raw) => {
                let call = ServiceCall::plan(raw, errors);
                let timeout = call.timeout.unwrap_or(DEFAULT_TIMEOUT);
                Self::Grpc(Arc::new(GrpcCall {
                    timeout: Some(timeout).filter(|timeout| !timeout.is_zero()),
                    call,
                }))
            }
            Services::HttpService(raw) => Self::Http(Arc::new(HttpCall::plan(raw, errors))),
        }
    }

    /// The cluster, where it is called over gRPC.
    fn grpc_cluster(&self) -> Option<Located<String>> {
        match self {
            Self::Grpc(grpc) => Some(grpc.call.cluster.clone()),
            Self::Http(_) => None,
        }
    }

    /// The cluster, where it is called over plain HTTP.
    fn http_cluster(&self) -> Option<Located<String>> {
        match self {
            Self::Grpc(_) => None,
            Self::Http(http) => Some(http.cluster.clone()),
        }
    }
}

/// When the route is picked again after an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClearRoute {
    Never,
    /// After any change of request headers or query.
    OnChange,
    /// After a change of one of these headers or of the query. Names are lower case.
    OnHeaders(Vec<String>),
}

/// How the body is shown to the auth service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BodyPlan {
    /// Greater than 0.
    pub(crate) max: usize,
    pub(crate) partial: bool,
    pub(crate) as_bytes: bool,
}

impl BodyPlan {
    fn plan(raw: &BufferSettings, errors: &mut Errors) -> Self {
        if raw.max_request_bytes.value == 0 {
            errors.push(
                &raw.max_request_bytes,
                "`max_request_bytes` must be greater than 0",
            );
        }
        Self {
            max: usize::try_from(raw.max_request_bytes.value)
                .unwrap_or(usize::MAX)
                .max(1),
            partial: raw.allow_partial_message.unwrap_or(false),
            as_bytes: raw.pack_as_bytes.unwrap_or(false),
        }
    }
}

impl Filter {
    /// Checks the settings of the filter called `name`.
    ///
    /// `None` only after an error was added.
    pub fn plan(name: &str, raw: &ExtAuthz, errors: &mut Errors) -> Option<Self> {
        let before = errors.len();
        let service = AuthService::plan(&raw.services, errors);
        let shown = plan_shown(raw, errors);
        let enabled_metadata = raw
            .filter_enabled_metadata
            .as_ref()
            .and_then(|raw| MetadataTest::plan(raw, errors));
        let rules = raw
            .decoder_header_mutation_rules
            .as_ref()
            .map(|rules| MutationRules::plan(rules, errors));
        let body = raw
            .with_request_body
            .as_ref()
            .map(|body| BodyPlan::plan(body, errors));
        let clear_route = match (
            raw.clear_route_cache.unwrap_or(false),
            raw.clear_route_cache_headers.as_slice(),
        ) {
            (false, _) => ClearRoute::Never,
            (true, []) => ClearRoute::OnChange,
            (true, names) => {
                ClearRoute::OnHeaders(names.iter().map(|n| n.to_ascii_lowercase()).collect())
            }
        };
        let limits = HeaderLimits::default();
        let on = |flag: Option<bool>| flag.unwrap_or(false);
        (errors.len() == before).then(|| Self {
            buffer_limit: 1 << 20,
            name: name.into(),
            stat_prefix: raw.stat_prefix.clone().filter(|prefix| !prefix.is_empty()),
            service,
            body,
            enabled: Fraction::plan(raw.filter_enabled.as_ref()),
            enabled_metadata,
            deny_at_disable: raw
                .deny_at_disable
                .as_ref()
                .is_some_and(|f| f.default_value),
            failure_mode_allow: on(raw.failure_mode_allow),
            failure_mode_header: on(raw.failure_mode_allow_header_add),
            reading: Reading {
                validate: on(raw.validate_mutations),
                status_on_error: raw
                    .status_on_error
                    .as_ref()
                    .map_or(StatusCode::FORBIDDEN, |status| status.code.0),
                max_denied_body: raw
                    .max_denied_response_body_bytes
                    .and_then(|max| usize::try_from(max).ok())
                    .unwrap_or(0),
            },
            rules,
            limits,
            response_limit: on(raw.enforce_response_header_limits).then_some(limits.count),
            clear_route,
            shown,
            raw_headers: on(raw.encode_raw_headers),
            peer_certificate: on(raw.include_peer_certificate),
            tls_session: on(raw.include_tls_session),
            labels_key: raw
                .bootstrap_metadata_labels_key
                .clone()
                .filter(|key| !key.is_empty()),
            labels: Vec::new(),
            dynamic: raw.metadata_context_namespaces.clone(),
            dynamic_typed: raw.typed_metadata_context_namespaces.clone(),
            route: raw.route_metadata_context_namespaces.clone(),
            route_typed: raw.route_typed_metadata_context_namespaces.clone(),
            ingest_metadata: raw.enable_dynamic_metadata_ingestion.unwrap_or(true),
            charge_cluster: raw.charge_cluster_response_stats.unwrap_or(true),
            logging: Logging {
                fixed: raw.filter_metadata.as_ref().map(StructValue::value),
                figures: on(raw.emit_filter_state_stats),
            },
            shadow: on(raw.shadow_mode).then(|| format!("{name}.shadow").into()),
            emit_client_span: raw.emit_client_span.unwrap_or(true),
        })
    }

    /// Takes the labels of our side from the metadata of the node that this is.
    #[must_use]
    pub fn at_node(mut self, metadata: &prost_types::Struct) -> Self {
        use prost_types::value::Kind;
        let key = self.labels_key.as_ref();
        let labels = key.and_then(|key| metadata.fields.get(key)?.kind.as_ref());
        if let Some(Kind::StructValue(labels)) = labels {
            let labels = labels.fields.iter().map(|(name, value)| match &value.kind {
                Some(Kind::StringValue(text)) => (name.as_str(), text.as_str()),
                // As in Envoy, which reads every value as a text.
                _ => (name.as_str(), ""),
            });
            self.labels = encode::peer::labels(labels);
        }
        self
    }

    /// What becomes of requests when the service fails.
    pub fn on_failure(&self) -> OnFailure {
        let passes = self.failure_mode_allow || self.shadow.is_some();
        let outcome = Outcome::of(passes, self.reading.status_on_error);
        let (cluster, timeout, asked_by) = match &self.service {
            AuthService::Grpc(grpc) => (&grpc.call.cluster, grpc.timeout, AskedBy::Grpc),
            AuthService::Http(http) => (&http.cluster, http.timeout, AskedBy::Http),
        };
        let mut impossible_change = StatusCode::INTERNAL_SERVER_ERROR;
        let mut notes = Vec::new();
        match asked_by {
            AskedBy::Grpc => {
                if !passes {
                    notes.push("an answer that says it is an error may bring a status of its own");
                }
                if self.reading.validate {
                    notes.push("a pseudo-header that cannot be is answered with 503");
                } else {
                    impossible_change = StatusCode::SERVICE_UNAVAILABLE;
                    notes.push(
                        "a change of the reply to the client that cannot be made, and more headers than the limits allow, are answered with 500",
                    );
                }
            }
            AskedBy::Http => {
                notes.push("an answer with a status from 500 to 599 counts as not reached");
                notes.push(
                    "an answer with a status that no client can be given is answered with 500, in any failure mode",
                );
            }
        }
        if self.shadow.is_some() {
            notes.push("it is in shadow mode: denied requests pass too");
        }
        OnFailure {
            kind: "ext_authz",
            cluster: cluster.value.clone(),
            asked_by,
            timeout,
            not_reached: outcome,
            too_late: outcome,
            wrong_answer: outcome,
            impossible_change: Some(Outcome::Refused(impossible_change)),
            notes,
        }
    }

    /// The clusters that the filter calls over gRPC, for a check that they exist.
    pub fn clusters(&self) -> Vec<Located<String>> {
        self.service.grpc_cluster().into_iter().collect()
    }

    /// The clusters that the filter calls over plain HTTP, for the same check.
    pub fn http_clusters(&self) -> Vec<Located<String>> {
        self.service.http_cluster().into_iter().collect()
    }

    pub(crate) fn namespaces(&self) -> Namespaces<'_> {
        Namespaces {
            dynamic: &self.dynamic,
            dynamic_typed: &self.dynamic_typed,
            route: &self.route,
            route_typed: &self.route_typed,
        }
    }
}

/// What the service is shown. Where the filter's service is asked over plain HTTP, that is by
/// default only what such a service cannot do without.
fn plan_shown(raw: &ExtAuthz, errors: &mut Errors) -> ForwardedHeaders {
    let mut list = |raw: &Option<Located<ListStringMatcher>>| {
        raw.as_ref().map(|raw| TextMatchers::plan(raw, errors))
    };
    let mut allowed = list(&raw.allowed_headers);
    let disallowed = list(&raw.disallowed_headers);
    if let Services::HttpService(service) = &raw.services {
        let request = service.authorization_request.as_ref();
        let deprecated = request.and_then(|request| request.allowed_headers.as_ref());
        if let (Some(_), Some(deprecated)) = (&allowed, deprecated) {
            let message = "the filter has `allowed_headers` already; keep those";
            errors.push(deprecated, message);
        }
        let listed = allowed.or_else(|| deprecated.map(|raw| TextMatchers::plan(raw, errors)));
        let always = ["authorization", ":method", ":path", ":authority"].map(TextMatcher::exact);
        allowed = Some(listed.unwrap_or_default().with(always));
    }
    ForwardedHeaders {
        allowed,
        disallowed,
    }
}

/// Planned settings of one route; found in [`attache_filter::Route::filters`] by the filter's
/// name.
#[derive(Debug, Clone, Default)]
pub struct PerRoute {
    pub(crate) disabled: Option<bool>,
    /// `Some(None)`: the filter's buffering is off for this route.
    pub(crate) body: Option<Option<BodyPlan>>,
    /// Asked instead of the filter's.
    pub(crate) service: Option<AuthService>,
    /// Whether checks have spans, where the route says so.
    pub(crate) emit_client_span: Option<bool>,
    context_extensions: BTreeMap<String, String>,
    /// `context_extensions` as they go on the wire.
    pub(crate) encoded_extensions: Vec<u8>,
}

impl PerRoute {
    /// Checks the settings of a route. `None` only after an error was added.
    pub fn plan(raw: &ExtAuthzPerRoute, errors: &mut Errors) -> Option<Self> {
        let before = errors.len();
        let mut planned = Self::default();
        match &raw.settings {
            PerRouteOverride::Disabled(disabled) => planned.disabled = Some(*disabled),
            PerRouteOverride::CheckSettings(settings) => {
                let off = settings
                    .disable_request_body_buffering
                    .as_ref()
                    .filter(|off| off.value);
                planned.body = match (off, &settings.with_request_body) {
                    (Some(off), Some(_)) => {
                        errors.push(
                            off,
                            "`disable_request_body_buffering` and `with_request_body` exclude each other",
                        );
                        None
                    }
                    (Some(_), None) => Some(None),
                    (None, Some(body)) => Some(Some(BodyPlan::plan(body, errors))),
                    (None, None) => None,
                };
                let service = settings.service.as_ref();
                planned.service = service.map(|raw| AuthService::plan(raw, errors));
                planned.emit_client_span = settings.emit_client_span;
                planned.context_extensions = settings.context_extensions.clone();
                planned.encode_extensions();
            }
        }
        (errors.len() == before).then_some(planned)
    }

    /// The clusters that the route brings in and calls over gRPC.
    pub fn clusters(&self) -> Vec<Located<String>> {
        let service = self.service.as_ref();
        service
            .and_then(AuthService::grpc_cluster)
            .into_iter()
            .collect()
    }

    /// The clusters that the route brings in and calls over plain HTTP.
    pub fn http_clusters(&self) -> Vec<Located<String>> {
        let service = self.service.as_ref();
        service
            .and_then(AuthService::http_cluster)
            .into_iter()
            .collect()
    }

    /// Completes the settings of a route with those of the virtual host around it: context
    /// extensions are merged, the route's winning; everything else is the route's alone.
    #[must_use]
    pub fn within(mut self, outer: &Self) -> Self {
        for (key, value) in &outer.context_extensions {
            self.context_extensions
                .entry(key.clone())
                .or_insert_with(|| value.clone());
        }
        self.encode_extensions();
        self
    }

    fn encode_extensions(&mut self) {
        let entries = self.context_extensions.iter();
        self.encoded_extensions =
            encode::context_extensions(entries.map(|(k, v)| (k.as_str(), v.as_str())));
    }
}
