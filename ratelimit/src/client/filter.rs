//! The filter's configuration, checked and compiled; shared by all workers.

use std::{sync::Arc, time::Duration};

use attache_filter::{
    fraction::Fraction,
    grpc_service::{HttpStatus, ServiceCall},
    header_option::HeaderAddition,
    on_failure::{AskedBy, OnFailure, Outcome},
};
use attache_service::config::{Errors, Located};
use http::StatusCode;

use super::{
    policy::{self, Policy, RouteLimits, Settings},
    raw::{self, RequestType, VhRateLimitsOptions, XRateLimitHeadersRfcVersion},
};

/// Where a service's dynamic metadata goes when nothing else is configured.
pub const DEFAULT_METADATA_NAMESPACE: &str = "envoy.filters.http.ratelimit";

/// Bound on one call when nothing else is configured.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(20);

/// Most headers that `response_headers_to_add` may have.
const MAX_RESPONSE_HEADERS: usize = 10;

/// A planned [`raw::RateLimit`].
#[derive(Debug, Clone)]
pub struct Filter {
    pub(super) name: String,
    pub(super) stat_prefix: Option<String>,
    pub(super) stage: u32,
    pub(super) request_type: RequestType,
    /// `None` waits without bound.
    pub(super) timeout: Option<Duration>,
    /// The share of requests that are refused when the service fails; `None` refuses none.
    pub(super) deny_on_error: Option<Fraction>,
    pub(super) resource_exhausted: bool,
    pub(super) service: ServiceCall,
    pub(super) ratelimit_headers: bool,
    pub(super) envoy_ratelimited_header: bool,
    pub(super) rate_limited_status: StatusCode,
    pub(super) response_headers: Vec<HeaderAddition>,
    pub(super) status_on_error: StatusCode,
    pub(super) enabled: Fraction,
    pub(super) enforced: Fraction,
    /// Where the route says nothing.
    pub(super) settings: Settings,
    pub(super) metadata_namespace: String,
    pub(super) retry_after: bool,
    /// The cluster that the proxy belongs to.
    pub(super) source_cluster: String,
}

/// A planned [`raw::RateLimitPerRoute`].
#[derive(Debug, Clone)]
pub struct PerRoute {
    domain: Option<String>,
    policies: Vec<Arc<Policy>>,
    host: VhRateLimitsOptions,
}

impl Filter {
    /// Checks and compiles the configuration of the filter called `name`; faults are reported at
    /// their place.
    pub fn plan(name: &str, raw: &raw::RateLimit, errors: &mut Errors) -> Option<Self> {
        if raw.domain.value.is_empty() {
            errors.push(&raw.domain, "`domain` must not be empty");
        }
        let additions = &raw.response_headers_to_add;
        if additions.value.len() > MAX_RESPONSE_HEADERS {
            errors.push(
                additions,
                format!("`response_headers_to_add` takes at most {MAX_RESPONSE_HEADERS} headers"),
            );
        }
        let response_headers = additions
            .value
            .iter()
            .filter_map(|addition| HeaderAddition::plan(addition, errors))
            .collect();
        let deny_on_error = match (&raw.failure_mode_deny_percent, raw.failure_mode_deny) {
            (Some(percent), _) => Some(Fraction::plan(Some(percent))),
            (None, Some(true)) => Some(Fraction::ALL),
            (None, _) => None,
        };
        let policies = policy::plan_all(&raw.rate_limits, errors);
        let timeout = raw.timeout.unwrap_or(DEFAULT_TIMEOUT);
        Some(Self {
            name: name.to_owned(),
            stat_prefix: raw.stat_prefix.clone().filter(|prefix| !prefix.is_empty()),
            stage: policy::stage(raw.stage.as_ref(), errors),
            request_type: raw.request_type.unwrap_or_default(),
            timeout: (!timeout.is_zero()).then_some(timeout),
            deny_on_error,
            resource_exhausted: raw.rate_limited_as_resource_exhausted == Some(true),
            service: ServiceCall::plan(&raw.rate_limit_service.grpc_service, errors),
            ratelimit_headers: raw.enable_x_ratelimit_headers
                == Some(XRateLimitHeadersRfcVersion::DraftVersion03),
            envoy_ratelimited_header: raw.disable_x_envoy_ratelimited_header != Some(true),
            rate_limited_status: limited_status(raw.rate_limited_status.as_ref()),
            response_headers,
            status_on_error: raw
                .status_on_error
                .as_ref()
                .map_or(StatusCode::INTERNAL_SERVER_ERROR, |status| status.code.0),
            enabled: Fraction::plan(raw.filter_enabled.as_ref()),
            enforced: Fraction::plan(raw.filter_enforced.as_ref()),
            settings: Settings::new(&raw.domain.value, policies?),
            metadata_namespace: raw
                .metadata_namespace
                .clone()
                .filter(|namespace| !namespace.is_empty())
                .unwrap_or_else(|| DEFAULT_METADATA_NAMESPACE.to_owned()),
            retry_after: raw.enable_retry_after_header == Some(true),
            source_cluster: String::new(),
        })
    }

    /// The same for a proxy that belongs to this cluster (Envoy's `--service-cluster`).
    #[must_use]
    pub fn in_cluster(mut self, cluster: &str) -> Self {
        cluster.clone_into(&mut self.source_cluster);
        self
    }

    /// What holds on a route, for [`attache_filter::Route::resolved`]: policies of the filter's
    /// settings of the route, else of the filter, else those around the route. `None` where it
    /// is what the filter says anyway.
    pub fn on_route(&self, own: Option<&PerRoute>, limits: &RouteLimits) -> Option<Settings> {
        if own.is_none() && limits.is_empty() {
            return None;
        }
        let domain = own.and_then(|own| own.domain.as_deref());
        let domain = domain.unwrap_or(&self.settings.domain);
        let of_filter = || {
            let all = self.settings.before.iter().chain(&self.settings.at_end);
            all.cloned().collect::<Vec<_>>()
        };
        let policies = match own.map(|own| own.policies.clone()) {
            Some(policies) if !policies.is_empty() => policies,
            _ => match of_filter() {
                policies if !policies.is_empty() => policies,
                _ => {
                    let host = own.map(|own| own.host).unwrap_or_default();
                    limits.policies(self.stage, host)
                }
            },
        };
        Some(Settings::new(domain, policies))
    }

    /// What becomes of requests when the service fails.
    pub fn on_failure(&self) -> OnFailure {
        let status = self.status_on_error;
        let outcome = match self.deny_on_error {
            Some(share) if share.is_all() => Outcome::Refused(status),
            Some(share) if !share.is_none() => Outcome::PartlyRefused(share, status),
            _ => Outcome::Passes,
        };
        OnFailure {
            kind: "ratelimit",
            cluster: self.service.cluster.value.clone(),
            asked_by: AskedBy::Grpc,
            timeout: self.timeout,
            not_reached: outcome,
            too_late: outcome,
            wrong_answer: outcome,
            impossible_change: None,
            notes: Vec::new(),
        }
    }

    /// The filter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The clusters that the filter calls.
    pub fn clusters(&self) -> Vec<Located<String>> {
        vec![self.service.cluster.clone()]
    }
}

impl PerRoute {
    /// Checks and compiles a route's settings; faults are reported at their place.
    pub fn plan(raw: &raw::RateLimitPerRoute, errors: &mut Errors) -> Option<Self> {
        Some(Self {
            domain: raw.domain.clone().filter(|domain| !domain.is_empty()),
            policies: policy::plan_all(&raw.rate_limits, errors)?,
            host: raw.vh_rate_limits.unwrap_or_default(),
        })
    }
}

/// A status that is no error would let limited requests look served.
fn limited_status(raw: Option<&HttpStatus>) -> StatusCode {
    raw.map(|status| status.code.0)
        .filter(|status| status.as_u16() >= 400)
        .unwrap_or(StatusCode::TOO_MANY_REQUESTS)
}
