//! When a request is sent to its upstream again: Envoy's `config.route.v3.RetryPolicy`.

mod back_off;
mod condition;

use std::time::Duration;

use attache_filter::{matcher::FieldMatcher, retry::Pauses};
use attache_service::config::Errors;
use http::{HeaderMap, HeaderName, Response, StatusCode, request};

use crate::{
    config,
    upstream::{UpstreamError, Waited},
};
pub(crate) use back_off::AskedFor;
pub(crate) use condition::Failure;
use condition::{Answer, Condition};

/// Set by an upstream that limits rates: asking again would not help.
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// How often an endpoint that has not been asked yet is looked for.
const SEARCHES: u32 = 3;

/// When and how often a request is sent again.
#[derive(Debug, Clone)]
pub struct Retry {
    on: Vec<Condition>,
    statuses: Vec<StatusCode>,
    headers: Vec<FieldMatcher>,
    /// Only requests that match one of these are sent again; all when there is none.
    requests: Vec<FieldMatcher>,
    /// Attempts after the first.
    pub(crate) retries: u32,
    /// From the end of the request, or the start of a later attempt, to the head of the response.
    pub(crate) attempt_timeout: Option<Duration>,
    /// Longest silence of an attempt, up to the head of the response.
    pub(crate) attempt_idle: Option<Duration>,
    pub(crate) pauses: Pauses,
    /// Pauses that the upstream asks for instead.
    pub(crate) asked_for: Option<AskedFor>,
    /// How often an endpoint that has not been asked yet is looked for.
    pub(crate) searches: u32,
}

impl Retry {
    /// Compiles a policy; faults are reported at their place. `None` when it says nothing.
    pub(crate) fn plan(raw: &config::RetryPolicy, errors: &mut Errors) -> Option<Self> {
        let bound = |written: Option<Duration>| written.filter(|bound| !bound.is_zero());
        let mut matchers = |written: &[_]| -> Vec<FieldMatcher> {
            let planned = written.iter().map(|raw| FieldMatcher::plan(raw, errors));
            planned.collect::<Vec<_>>().into_iter().flatten().collect()
        };
        let mut planned = Self {
            on: Vec::new(),
            statuses: Vec::new(),
            headers: matchers(&raw.retriable_headers),
            requests: matchers(&raw.retriable_request_headers),
            retries: raw.num_retries.unwrap_or(1),
            attempt_timeout: bound(raw.per_try_timeout),
            attempt_idle: bound(raw.per_try_idle_timeout),
            pauses: Pauses::new(FIRST_PAUSE, LONGEST_PAUSE),
            asked_for: None,
            searches: raw.host_selection_retry_max_attempts.unwrap_or(SEARCHES),
        };
        if let Some(back_off) = &raw.retry_back_off {
            let first = back_off.base_interval.value;
            if first < Duration::from_millis(1) {
                errors.push(&back_off.base_interval, "`base_interval` is at least 1ms");
            }
            let longest = match &back_off.max_interval {
                None => first.saturating_mul(10),
                Some(longest) => {
                    if longest.value < first {
                        errors.push(longest, "`max_interval` is at least `base_interval`");
                    }
                    longest.value
                }
            };
            planned.pauses = Pauses::new(first, longest);
        }
        let asked_for = raw.rate_limited_retry_back_off.as_ref();
        planned.asked_for = asked_for.map(|raw| AskedFor::plan(raw, errors));
        for code in &raw.retriable_status_codes {
            match StatusCode::from_u16(code.value) {
                Ok(status) if status.as_u16() >= 200 => planned.statuses.push(status),
                _ => errors.push(code, format!("`{}` is not a status", code.value)),
            }
        }
        if let Some(written) = &raw.retry_on {
            planned.on = Condition::all(written, errors);
        }
        let bounds = planned.attempt_timeout.is_some() || planned.attempt_idle.is_some();
        (!planned.on.is_empty() || bounds).then_some(planned)
    }

    /// Leaves the bound on an attempt out where `timeout`, that on all of them, is no longer.
    #[must_use]
    pub(crate) fn within(mut self, timeout: Option<Duration>) -> Self {
        self.attempt_timeout = self
            .attempt_timeout
            .filter(|attempt| timeout.is_none_or(|timeout| *attempt < timeout));
        self
    }

    /// Whether this request may be sent again at all.
    pub(crate) fn concerns(&self, request: &request::Parts) -> bool {
        let mut matchers = self.requests.iter();
        !self.on.is_empty()
            && (self.requests.is_empty() || matchers.any(|matcher| matcher.matches(request)))
    }

    /// Whether a request that failed so is sent again.
    pub(crate) fn covers(&self, failure: Failure) -> bool {
        self.on.iter().any(|condition| condition.covers(failure))
    }

    /// How an attempt has failed; `None` when another can only end the same way.
    pub(crate) fn failure<B, L>(
        &self,
        ended: &Waited<Result<(Response<B>, L), UpstreamError>>,
    ) -> Option<Failure> {
        match ended {
            Waited::Done(Ok((response, _))) => Some(Failure::Answered(
                self.answer(response.status(), response.headers()),
            )),
            Waited::Done(Err(UpstreamError::Connect(_) | UpstreamError::ConnectTimeout(_))) => {
                Some(Failure::Connect)
            }
            Waited::Done(Err(UpstreamError::Ambiguous(_))) => Some(Failure::Reset),
            // The request's own body broke off.
            Waited::Done(Err(UpstreamError::Reset(error))) if error.is_user() => None,
            Waited::Done(Err(UpstreamError::Reset(error))) => Some(match is_refusal(error) {
                true => Failure::RefusedStream,
                false => Failure::Reset,
            }),
            Waited::AttemptTimeout | Waited::AttemptIdle => Some(Failure::Reset),
            Waited::Done(Err(UpstreamError::Overflow(_)))
            | Waited::Timeout
            | Waited::Idle
            | Waited::Lifetime(_) => None,
        }
    }

    fn answer(&self, status: StatusCode, headers: &HeaderMap) -> Answer {
        let grpc = headers.get(GRPC_STATUS);
        Answer {
            status,
            grpc: grpc.and_then(|code| code.to_str().ok()?.parse().ok()),
            limited: headers.contains_key(RATE_LIMITED),
            named: self.statuses.contains(&status),
            marked: self.headers.iter().any(|matcher| matcher.matches(headers)),
        }
    }
}

fn is_refusal(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let stream = source.and_then(|source| source.downcast_ref::<h2::Error>());
    stream.is_some_and(|error| {
        error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM)
    })
}

#[cfg(test)]
mod tests {
    use attache_service::config::Document;
    use http::HeaderValue;

    use super::*;

    fn planned(text: &str) -> Result<Option<Retry>, String> {
        let document = Document::parse("route.yaml", text).unwrap();
        let (raw, mut errors) = document.decode_partly::<config::RetryPolicy>();
        let planned = raw.map(|raw| Retry::plan(&raw, &mut errors));
        errors.into_result(planned).map_err(|e| e.to_string())
    }

    fn on(conditions: &str) -> Retry {
        let text = format!(
            "{{ retry_on: '{conditions}', retriable_status_codes: [404], retriable_headers: [{{ name: x-again }}] }}"
        );
        planned(&text).unwrap().unwrap()
    }

    #[test]
    fn conditions_cover_what_their_names_say() {
        let answer = |code: u16, headers: &[(&'static str, &'static str)]| {
            let headers = headers.iter().map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            });
            let status = StatusCode::from_u16(code).unwrap();
            (status, headers.collect::<HeaderMap>())
        };
        let status = |code| Ok(answer(code, &[]));
        let failures = [
            ("200", status(200)),
            ("404", status(404)),
            ("409", status(409)),
            ("500", status(500)),
            ("502", status(502)),
            ("marked", Ok(answer(200, &[("x-again", "yes")]))),
            (
                "limited",
                Ok(answer(503, &[("x-envoy-ratelimited", "true")])),
            ),
            ("grpc-1", Ok(answer(200, &[("grpc-status", "1")]))),
            ("grpc-4", Ok(answer(200, &[("grpc-status", "4")]))),
            ("grpc-8", Ok(answer(200, &[("grpc-status", "8")]))),
            ("grpc-13", Ok(answer(200, &[("grpc-status", "13")]))),
            ("grpc-14", Ok(answer(200, &[("grpc-status", "14")]))),
            ("connect", Err(Failure::Connect)),
            ("refused", Err(Failure::RefusedStream)),
            ("reset", Err(Failure::Reset)),
        ];
        for (conditions, covered) in [
            ("5xx", "500 502 connect refused reset"),
            ("gateway-error", "502 connect refused reset"),
            ("reset", "connect refused reset"),
            ("connect-failure", "connect"),
            ("reset-before-request", "connect"),
            ("envoy-ratelimited", "limited"),
            ("retriable-headers", "marked"),
            ("cancelled", "grpc-1"),
            ("deadline-exceeded", "grpc-4"),
            ("resource-exhausted", "grpc-8"),
            ("internal,unavailable", "grpc-13 grpc-14"),
            ("refused-stream", "refused"),
            ("retriable-status-codes", "404"),
            ("retriable-4xx", "409"),
            ("connect-failure, retriable-4xx", "409 connect"),
        ] {
            let retry = on(conditions);
            let seen = failures.iter().filter(|(_, outcome)| match outcome {
                Ok((status, headers)) => {
                    retry.covers(Failure::Answered(retry.answer(*status, headers)))
                }
                Err(failure) => retry.covers(*failure),
            });
            let seen: Vec<_> = seen.map(|(name, _)| *name).collect();
            assert_eq!(seen.join(" "), covered, "{conditions}");
        }
    }

    #[test]
    fn only_requests_with_a_header_that_is_named_are_sent_again() {
        let some = "{ retry_on: 5xx, retriable_request_headers: [{ name: x-again }, { name: ':method', exact_match: GET }] }";
        let some = planned(some).unwrap().unwrap();
        for (method, marked, wanted) in [
            ("POST", false, false),
            ("POST", true, true),
            ("GET", false, true),
        ] {
            let mut request = http::Request::builder().method(method);
            if marked {
                request = request.header("x-again", "1");
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(some.concerns(&parts), wanted, "{method} {marked}");
            assert!(on("5xx").concerns(&parts));
        }
    }

    #[test]
    fn without_conditions_nothing_is_sent_again() {
        assert!(planned("{ num_retries: 3 }").unwrap().is_none());
        assert_eq!(on("5xx").retries, 1);
        // It bounds the only attempt.
        let bound = planned("{ per_try_timeout: 1s }").unwrap().unwrap();
        let (parts, ()) = http::Request::new(()).into_parts();
        assert!(!bound.concerns(&parts));
    }

    #[test]
    fn pauses_are_envoys_unless_written() {
        let ms = Duration::from_millis;
        assert_eq!(on("5xx").pauses, Pauses::new(ms(25), ms(250)));
        for (text, wanted) in [
            ("base_interval: 5ms", Pauses::new(ms(5), ms(50))),
            (
                "base_interval: 5ms, max_interval: 7ms",
                Pauses::new(ms(5), ms(7)),
            ),
        ] {
            let text = format!("{{ retry_on: 5xx, retry_back_off: {{ {text} }} }}");
            assert_eq!(planned(&text).unwrap().unwrap().pauses, wanted);
        }
    }

    #[test]
    fn an_attempt_is_bounded_below_the_timeout_of_the_route_only() {
        let retry = planned("{ retry_on: 5xx, per_try_timeout: 2s }");
        let retry = retry.unwrap().unwrap();
        let bound = |seconds: Option<u64>| {
            let timeout = seconds.map(Duration::from_secs);
            retry.clone().within(timeout).attempt_timeout
        };
        let two = Some(Duration::from_secs(2));
        assert_eq!(
            [bound(None), bound(Some(3)), bound(Some(2))],
            [two, two, None]
        );
    }

    #[test]
    fn mistakes_are_reported() {
        for (text, fault) in [
            ("{ retry_on: '5xx,rest' }", "condition of `retry_on` `rest`"),
            ("{ retriable_status_codes: [99] }", "`99` is not a status"),
            ("{ retry_back_off: { base_interval: 0s } }", "at least 1ms"),
            (
                "{ retry_back_off: { base_interval: 2s, max_interval: 1s } }",
                "at least `base_interval`",
            ),
            (
                "{ rate_limited_retry_back_off: { reset_headers: [{ name: 'a b' }] } }",
                "`a b` is not a header",
            ),
            (
                "{ retry_host_predicate: [{ name: envoy.retry_host_predicates.omit_canary_hosts }] }",
                "no canaries",
            ),
        ] {
            let error = planned(text).unwrap_err();
            assert!(error.contains(fault), "{text}: {error}");
        }
    }
}
