//! The filter's configuration, checked and compiled; shared by all workers.

use std::time::Duration;

use attache_filter::{
    fraction::Fraction,
    grpc_service::{HttpStatus, ServiceCall},
};
use attache_service::config::{Errors, Located};
use http::StatusCode;

use super::{
    action::Action,
    headers::HeaderAddition,
    raw::{self, RequestType, VhRateLimitsOptions, XRateLimitHeadersRfcVersion, XRateLimitOption},
    request::Hits,
};

/// Where a service's dynamic metadata goes when nothing else is configured.
pub const DEFAULT_METADATA_NAMESPACE: &str = "envoy.filters.http.ratelimit";

/// Bound on one call when nothing else is configured.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(20);

/// Most headers that `response_headers_to_add` may have.
const MAX_RESPONSE_HEADERS: usize = 10;

/// Most hits that a policy may count a request as.
const MAX_HITS: u64 = 1_000_000_000;

/// A planned [`raw::RateLimit`].
#[derive(Debug, Clone)]
pub struct Filter {
    pub(super) name: String,
    pub(super) stat_prefix: Option<String>,
    pub(super) domain: String,
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
    pub(super) policies: Vec<Policy>,
    pub(super) metadata_namespace: String,
    pub(super) retry_after: bool,
}

/// A planned [`raw::RateLimitPerRoute`].
#[derive(Debug, Clone)]
pub struct PerRoute {
    pub(super) domain: Option<String>,
    pub(super) policies: Vec<Policy>,
}

/// A planned [`raw::Policy`].
#[derive(Debug, Clone)]
pub struct Policy {
    pub(super) actions: Vec<Action>,
    pub(super) hits: Option<Hits>,
    pub(super) shown: XRateLimitOption,
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
        let policies = plan_policies(&raw.rate_limits, errors);
        let timeout = raw.timeout.unwrap_or(DEFAULT_TIMEOUT);
        Some(Self {
            name: name.to_owned(),
            stat_prefix: raw.stat_prefix.clone().filter(|prefix| !prefix.is_empty()),
            domain: raw.domain.value.clone(),
            request_type: raw.request_type.unwrap_or_default(),
            timeout: (!timeout.is_zero()).then_some(timeout),
            deny_on_error,
            resource_exhausted: raw.rate_limited_as_resource_exhausted == Some(true),
            service: ServiceCall::plan_once(&raw.rate_limit_service.grpc_service, errors),
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
            policies: policies?,
            metadata_namespace: raw
                .metadata_namespace
                .clone()
                .filter(|namespace| !namespace.is_empty())
                .unwrap_or_else(|| DEFAULT_METADATA_NAMESPACE.to_owned()),
            retry_after: raw.enable_retry_after_header == Some(true),
        })
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
        // Nothing here depends on it: there are no rate limits of virtual hosts.
        let _: Option<VhRateLimitsOptions> = raw.vh_rate_limits;
        Some(Self {
            domain: raw.domain.clone().filter(|domain| !domain.is_empty()),
            policies: plan_policies(&raw.rate_limits, errors)?,
        })
    }
}

impl Policy {
    fn plan(raw: &raw::Policy, errors: &mut Errors) -> Option<Self> {
        if raw.actions.value.is_empty() {
            errors.push(&raw.actions, "`actions` needs at least one action");
        }
        let actions: Vec<_> = raw
            .actions
            .value
            .iter()
            .map(|action| Action::plan(action, errors))
            .collect();
        let hits = raw.hits_addend.as_ref().map(|raw| {
            if let Some(number) = raw.number.as_ref().filter(|number| number.value > MAX_HITS) {
                errors.push(number, format!("at most {MAX_HITS} hits are possible"));
            }
            Hits {
                number: raw.number.as_ref().map_or(0, |number| number.value),
                negative: raw.is_negative_hits == Some(true),
            }
        });
        Some(Self {
            actions: actions.into_iter().collect::<Option<_>>()?,
            hits,
            shown: raw.x_ratelimit_option.unwrap_or_default(),
        })
    }

    /// Whether the descriptor's limit shows in `x-ratelimit-*` when the filter says `default`.
    pub(super) fn is_shown(&self, default: bool) -> bool {
        match self.shown {
            XRateLimitOption::Unspecified => default,
            XRateLimitOption::Off => false,
            XRateLimitOption::DraftVersion03 => true,
        }
    }
}

fn plan_policies(raw: &[raw::Policy], errors: &mut Errors) -> Option<Vec<Policy>> {
    // All are planned before the first failure counts, to report them all.
    let planned: Vec<_> = raw
        .iter()
        .map(|policy| Policy::plan(policy, errors))
        .collect();
    planned.into_iter().collect()
}

/// A status that is no error would let limited requests look served.
fn limited_status(raw: Option<&HttpStatus>) -> StatusCode {
    raw.map(|status| status.code.0)
        .filter(|status| status.as_u16() >= 400)
        .unwrap_or(StatusCode::TOO_MANY_REQUESTS)
}
