//! What a decision says to the client.

use attache_filter::LocalReply;
use attache_proto::ratelimit::rate_limit_response::{
    Code as WireCode, DescriptorStatus, RateLimit,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::{
    client::{answer, ratelimit_headers},
    config::Rules,
    limiter::{Applied, Code, Decision, DescriptorDecision},
};

/// A decision in the words of the protocol.
pub(super) struct Answer {
    pub(super) over: bool,
    statuses: Vec<DescriptorStatus>,
}

impl Answer {
    pub(super) fn of(rules: &Rules, decision: Decision) -> Self {
        let descriptors = decision.descriptors.into_iter();
        Self {
            over: decision.code == Code::OverLimit,
            statuses: descriptors.map(|one| status(rules, one)).collect(),
        }
    }

    /// Headers for the response: `x-ratelimit-*` if they are `shown`.
    pub(super) fn headers(&self, shown: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        ratelimit_headers::append(&self.statuses, |_| shown, &mut headers);
        headers
    }

    /// The answer to a request over its limit.
    pub(super) fn refusal(&self, shown: bool) -> LocalReply {
        let mut reply = LocalReply::new(StatusCode::TOO_MANY_REQUESTS, answer::RATE_LIMITED)
            .with_body("too many requests");
        reply.headers = self.headers(shown);
        if let Some(seconds) = answer::retry_after(&self.statuses) {
            let seconds = HeaderValue::from(seconds);
            reply.headers.insert(header::RETRY_AFTER, seconds);
        }
        reply
    }
}

fn status(rules: &Rules, decision: DescriptorDecision) -> DescriptorStatus {
    let code = match decision.code {
        Code::Ok => WireCode::Ok,
        Code::OverLimit => WireCode::OverLimit,
    };
    let mut status = DescriptorStatus {
        code: code.into(),
        limit_remaining: decision.remaining,
        ..DescriptorStatus::default()
    };
    if let Applied::Limit {
        rule,
        limit,
        resets_in,
        ..
    } = decision.applied
    {
        let rule = rule.and_then(|rule| rules.get(rule));
        let multiplier = limit.unit_multiplier.get();
        status.current_limit = Some(RateLimit {
            requests_per_unit: limit.requests_per_unit,
            unit: limit.unit.to_wire(),
            name: rule.map_or_else(String::new, |rule| rule.name.as_ref().to_owned()),
            unit_multiplier: (multiplier > 1).then_some(multiplier),
        });
        status.duration_until_reset = Some(prost_types::Duration {
            seconds: i64::try_from(resets_in).unwrap_or(i64::MAX),
            nanos: 0,
        });
    }
    status
}
