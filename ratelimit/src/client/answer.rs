//! What a service's answer does to request and response. Pure: no I/O.

use attache_filter::{LocalReply, format::Exchange};
use attache_proto::ratelimit::{
    RateLimitResponse,
    rate_limit_response::{Code, DescriptorStatus},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{filter::Filter, headers, ratelimit_headers};

/// Response code details of a limited request.
pub const RATE_LIMITED: &str = "request_rate_limited";
/// Response code details of a request that is refused because the service failed.
pub const SERVICE_ERROR: &str = "rate_limiter_error";

const ENVOY_RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
const GRPC_RESOURCE_EXHAUSTED: u32 = 8;

/// What happens to the request.
#[derive(Debug)]
pub enum Effect {
    /// It goes on.
    Continue {
        /// To append to the request.
        request: HeaderMap,
        /// To append to the response.
        response: HeaderMap,
    },
    /// It is answered here.
    Reply(Box<LocalReply>),
}

/// Whether a service's answer limits the request; an unknown code does not.
pub fn is_over_limit(answer: &RateLimitResponse) -> bool {
    answer.overall_code == i32::from(Code::OverLimit)
}

/// The effect of an answer; `enforced` says whether a limited request is refused, `shown` which
/// statuses may show in `x-ratelimit-*`, by position; `exchange` fills in formats.
pub fn effect(
    filter: &Filter,
    answer: &RateLimitResponse,
    enforced: bool,
    shown: impl Fn(usize) -> bool,
    exchange: &Exchange<'_>,
) -> Effect {
    let over = is_over_limit(answer);
    // Envoy's order, and its choice of what replaces what the service sent.
    let mut response = headers::from_service(&answer.response_headers_to_add);
    if over && filter.envoy_ratelimited_header {
        response.insert(ENVOY_RATELIMITED, HeaderValue::from_static("true"));
    }
    ratelimit_headers::append(&answer.statuses, shown, &mut response);
    if !(over && enforced) {
        return Effect::Continue {
            request: headers::from_service(&answer.request_headers_to_add),
            response,
        };
    }

    let status = filter.rate_limited_status;
    if filter.retry_after
        && status == StatusCode::TOO_MANY_REQUESTS
        && !response.contains_key(header::RETRY_AFTER)
        && let Some(seconds) = retry_after(&answer.statuses)
    {
        response.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    for addition in &filter.response_headers {
        addition.apply(&mut response, exchange);
    }
    let mut reply = LocalReply::new(status, RATE_LIMITED).with_body(answer.raw_body.clone());
    reply.headers = response;
    reply.grpc_status = filter.resource_exhausted.then_some(GRPC_RESOURCE_EXHAUSTED);
    Effect::Reply(Box::new(reply))
}

/// The refusal because the service failed.
pub fn failure(filter: &Filter) -> LocalReply {
    LocalReply::new(filter.status_on_error, SERVICE_ERROR)
}

/// The longest wait among the limits that are exceeded, in seconds, at least 1.
pub(crate) fn retry_after(statuses: &[DescriptorStatus]) -> Option<u64> {
    statuses
        .iter()
        .filter(|status| status.code == i32::from(Code::OverLimit))
        .filter_map(|status| status.duration_until_reset.as_ref())
        .map(|duration| u64::try_from(duration.seconds).unwrap_or(0).max(1))
        .max()
}
