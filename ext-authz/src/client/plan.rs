//! The filter's settings, checked and compiled: what the layer runs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use attache_filter::{
    fraction::Fraction,
    grpc_service::ServiceCall,
    matcher::{ForwardedHeaders, TextMatchers},
    mutation::MutationRules,
};
use attache_service::config::{Errors, Located};
use http::StatusCode;

use super::{
    answer::Reading,
    apply::HeaderLimits,
    config::{BufferSettings, ExtAuthz, ExtAuthzPerRoute, PerRouteOverride, Services},
    encode,
};

/// Envoy's default bound on a check.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);

/// A planned filter: immutable, shared by all workers.
#[derive(Debug)]
pub struct Filter {
    pub(crate) name: Arc<str>,
    pub(crate) stat_prefix: Option<String>,
    pub(crate) call: ServiceCall,
    /// `None` waits forever.
    pub(crate) timeout: Option<Duration>,
    pub(crate) body: Option<BodyPlan>,
    pub(crate) enabled: Fraction,
    pub(crate) deny_at_disable: bool,
    pub(crate) failure_mode_allow: bool,
    pub(crate) failure_mode_header: bool,
    pub(crate) reading: Reading,
    pub(crate) rules: Option<MutationRules>,
    pub(crate) limits: HeaderLimits,
    pub(crate) response_limit: Option<usize>,
    pub(crate) clear_route: ClearRoute,
    pub(crate) shown: ForwardedHeaders,
    pub(crate) raw_headers: bool,
    pub(crate) peer_certificate: bool,
    pub(crate) tls_session: bool,
    pub(crate) metadata_namespaces: Vec<String>,
    pub(crate) ingest_metadata: bool,
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
        let Services::GrpcService(service) = &raw.services;
        let call = ServiceCall::plan(service, errors);
        let mut list =
            |raw: &Option<Located<_>>| raw.as_ref().map(|raw| TextMatchers::plan(raw, errors));
        let shown = ForwardedHeaders {
            allowed: list(&raw.allowed_headers),
            disallowed: list(&raw.disallowed_headers),
        };
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
        let timeout = call.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let on = |flag: Option<bool>| flag.unwrap_or(false);
        (errors.len() == before).then(|| Self {
            name: name.into(),
            stat_prefix: raw.stat_prefix.clone().filter(|prefix| !prefix.is_empty()),
            timeout: Some(timeout).filter(|timeout| !timeout.is_zero()),
            call,
            body,
            enabled: Fraction::plan(raw.filter_enabled.as_ref()),
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
            metadata_namespaces: raw.metadata_context_namespaces.clone(),
            ingest_metadata: raw.enable_dynamic_metadata_ingestion.unwrap_or(true),
        })
    }

    /// The clusters that the filter calls; they have to exist.
    pub fn clusters(&self) -> Vec<Located<String>> {
        vec![self.call.cluster.clone()]
    }
}

/// Planned settings of one route; found in [`attache_filter::Route::filters`] by the filter's
/// name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PerRoute {
    pub(crate) disabled: Option<bool>,
    /// `Some(None)`: the filter's buffering is off for this route.
    pub(crate) body: Option<Option<BodyPlan>>,
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
                planned.context_extensions = settings.context_extensions.clone();
                planned.encode_extensions();
            }
        }
        (errors.len() == before).then_some(planned)
    }

    /// Completes the settings of a route with those of the virtual host around it: context
    /// extensions are merged, the route's winning; everything else is the route's alone.
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
