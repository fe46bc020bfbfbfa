//! `x-ratelimit-limit`, `-remaining` and `-reset`, as in the draft RFC, version 3.

use std::fmt::Write as _;

use attache_proto::ratelimit::rate_limit_response::DescriptorStatus;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::limiter::Unit;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Appends the headers for a service's statuses; `shown` says which statuses may show, by
/// position. The tightest limit leads; when it may not show, nothing does.
pub fn append(
    statuses: &[DescriptorStatus],
    shown: impl Fn(usize) -> bool,
    headers: &mut HeaderMap,
) {
    let mut tightest: Option<(usize, &DescriptorStatus)> = None;
    for (position, status) in statuses.iter().enumerate() {
        let tighter =
            tightest.is_none_or(|(_, other)| status.limit_remaining < other.limit_remaining);
        if status.current_limit.is_some() && tighter {
            tightest = Some((position, status));
        }
    }
    let Some((position, tightest)) = tightest else {
        return;
    };
    let Some(limit) = tightest.current_limit.as_ref() else {
        return;
    };
    if !shown(position) {
        return;
    }

    let mut policies = limit.requests_per_unit.to_string();
    for (position, status) in statuses.iter().enumerate() {
        let Some(limit) = status.current_limit.as_ref().filter(|_| shown(position)) else {
            continue;
        };
        let Some(unit) = Unit::from_wire(limit.unit) else {
            continue;
        };
        let seconds = unit.seconds() * u64::from(limit.unit_multiplier.unwrap_or(1).max(1));
        // Writing to a String cannot fail.
        let _ = write!(policies, ", {};w={seconds}", limit.requests_per_unit);
        if !limit.name.is_empty() {
            let _ = write!(policies, ";name=\"{}\"", limit.name);
        }
    }
    // A name that no header can carry leaves the list out, not the request.
    if let Ok(policies) = HeaderValue::try_from(policies) {
        headers.append(LIMIT, policies);
    }
    headers.append(REMAINING, HeaderValue::from(tightest.limit_remaining));
    let reset = tightest
        .duration_until_reset
        .as_ref()
        .map_or(0, |duration| duration.seconds);
    headers.append(RESET, HeaderValue::from(reset));
}

#[cfg(test)]
mod tests {
    use attache_proto::ratelimit::rate_limit_response::RateLimit;

    use super::*;

    fn status(limit: Option<(u32, i32, &str)>, remaining: u32, reset: i64) -> DescriptorStatus {
        DescriptorStatus {
            current_limit: limit.map(|(requests_per_unit, unit, name)| RateLimit {
                requests_per_unit,
                unit,
                name: name.to_owned(),
                ..RateLimit::default()
            }),
            limit_remaining: remaining,
            duration_until_reset: Some(prost_types::Duration {
                seconds: reset,
                nanos: 0,
            }),
            ..DescriptorStatus::default()
        }
    }

    fn headers(
        statuses: &[DescriptorStatus],
        shown: impl Fn(usize) -> bool,
    ) -> Option<[String; 3]> {
        let mut headers = HeaderMap::new();
        append(statuses, shown, &mut headers);
        let text = |name| headers.get(name).map(|v| v.to_str().unwrap().to_owned());
        match (text(LIMIT), text(REMAINING), text(RESET)) {
            (Some(limit), Some(remaining), Some(reset)) => Some([limit, remaining, reset]),
            (None, None, None) => None,
            other => panic!("some headers are missing: {other:?}"),
        }
    }

    fn expect(limit: &str, remaining: &str, reset: &str) -> Option<[String; 3]> {
        Some([limit.to_owned(), remaining.to_owned(), reset.to_owned()])
    }

    #[test]
    fn the_tightest_limit_leads_and_all_are_listed() {
        let statuses = [
            status(Some((1, 2, "first")), 2, 3),
            status(Some((4, 3, "second")), 5, 6),
        ];
        assert_eq!(
            headers(&statuses, |_| true),
            expect(
                "1, 1;w=60;name=\"first\", 4;w=3600;name=\"second\"",
                "2",
                "3"
            )
        );
    }

    #[test]
    fn an_unknown_unit_leads_but_is_not_listed() {
        let statuses = [
            status(Some((1, 0, "first")), 2, 3),
            status(Some((4, 7, "")), 5, 6),
        ];
        assert_eq!(
            headers(&statuses, |_| true),
            expect("1, 4;w=604800", "2", "3")
        );
    }

    #[test]
    fn statuses_without_limit_do_not_count() {
        let statuses = [status(None, 0, 0), status(Some((4, 1, "")), 5, 6)];
        assert_eq!(headers(&statuses, |_| true), expect("4, 4;w=1", "5", "6"));
        assert_eq!(headers(&[status(None, 0, 0)], |_| true), None);
        assert_eq!(headers(&[], |_| true), None);
    }

    #[test]
    fn a_hidden_tightest_limit_hides_everything_and_another_only_itself() {
        let statuses = [
            status(Some((1, 2, "")), 2, 3),
            status(Some((4, 3, "")), 5, 6),
        ];
        assert_eq!(headers(&statuses, |position| position != 0), None);
        assert_eq!(
            headers(&statuses, |position| position != 1),
            expect("1, 1;w=60", "2", "3")
        );
    }

    #[test]
    fn of_equally_tight_limits_the_first_leads() {
        let statuses = [
            status(Some((7, 2, "")), 2, 3),
            status(Some((9, 3, "")), 2, 6),
        ];
        assert_eq!(
            headers(&statuses, |_| true),
            expect("7, 7;w=60, 9;w=3600", "2", "3")
        );
    }
}
