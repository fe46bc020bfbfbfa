//! Decisions as responses.

use attache_proto::ratelimit::{
    RateLimitRequest, RateLimitResponse,
    rate_limit_response::{Code as WireCode, DescriptorStatus, RateLimit},
};

use super::{Answers, answers::dynamic_metadata};
use crate::{
    config::Rules,
    limiter::{Applied, Code, Decision, DescriptorDecision},
};

/// The response to `request`.
pub(super) fn response(
    answers: &Answers,
    rules: &Rules,
    request: &RateLimitRequest,
    decision: Decision,
) -> RateLimitResponse {
    let dynamic_metadata = answers.dynamic_metadata.then(|| {
        let passed = decision.descriptors.iter();
        let passed = passed.filter_map(|descriptor| match descriptor.applied {
            Applied::Limit {
                rule: Some(rule), ..
            } if descriptor.code == Code::Ok => rules.get(rule)?.metadata.as_deref(),
            _ => None,
        });
        dynamic_metadata(request, passed)
    });
    let quotas: Vec<bool> = match &answers.headers {
        Some(_) => decision.descriptors.iter().map(|one| one.quota).collect(),
        None => Vec::new(),
    };
    let statuses: Vec<_> = decision
        .descriptors
        .into_iter()
        .map(|decision| status(rules, decision))
        .collect();
    let headers = answers.headers.as_ref().map(|headers| {
        let quota = |number| quotas.get(number).copied().unwrap_or_default();
        headers.of(&statuses, quota)
    });
    RateLimitResponse {
        overall_code: wire_code(decision.code),
        statuses,
        response_headers_to_add: headers.unwrap_or_default(),
        dynamic_metadata,
        ..RateLimitResponse::default()
    }
}

fn status(rules: &Rules, decision: DescriptorDecision) -> DescriptorStatus {
    let (current_limit, resets_in) = match decision.applied {
        Applied::Nothing | Applied::Replaced(_) | Applied::Unlimited(_) => (None, None),
        Applied::Limit {
            rule,
            limit,
            resets_in,
            ..
        } => {
            let rule = rule.and_then(|rule| rules.get(rule));
            let multiplier = limit.unit_multiplier.get();
            let current = RateLimit {
                requests_per_unit: limit.requests_per_unit,
                unit: limit.unit.to_wire(),
                name: rule.map_or_else(String::new, |rule| rule.name.as_ref().to_owned()),
                unit_multiplier: (multiplier > 1).then_some(multiplier),
            };
            (Some(current), Some(resets_in))
        }
    };
    DescriptorStatus {
        code: wire_code(decision.code),
        current_limit,
        limit_remaining: decision.remaining,
        duration_until_reset: resets_in.map(|seconds| prost_types::Duration {
            seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
            nanos: 0,
        }),
        ..DescriptorStatus::default()
    }
}

fn wire_code(code: Code) -> i32 {
    match code {
        Code::Ok => WireCode::Ok,
        Code::OverLimit => WireCode::OverLimit,
    }
    .into()
}
