//! When a request is sent to its upstream again: Envoy's `config.route.v3.RetryPolicy`.

use std::time::Duration;

use attache_filter::retry::Pauses;
use attache_service::config::{Errors, Located};
use http::{HeaderName, Response, StatusCode};

use crate::{
    config,
    upstream::{UpstreamError, Waited},
};

/// Set by an upstream that limits rates: asking again would not help.
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// Retries of a cluster that may run at a time, over all workers: Envoy's default `max_retries`.
pub const MAX_RUNNING: usize = 3;

/// When and how often a request is sent again.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    on: Vec<Condition>,
    statuses: Vec<StatusCode>,
    /// Attempts after the first.
    pub(crate) retries: u32,
    /// From the end of the request, or the start of a later attempt, to the head of the response.
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) pauses: Pauses,
}

/// After what a request is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    ServerError,
    GatewayError,
    Reset,
    ConnectFailure,
    RefusedStream,
    RetriableStatusCodes,
    Retriable4xx,
}

const CONDITIONS: [(&str, Condition); 7] = [
    ("5xx", Condition::ServerError),
    ("gateway-error", Condition::GatewayError),
    ("reset", Condition::Reset),
    ("connect-failure", Condition::ConnectFailure),
    ("refused-stream", Condition::RefusedStream),
    ("retriable-status-codes", Condition::RetriableStatusCodes),
    ("retriable-4xx", Condition::Retriable4xx),
];

const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// How an attempt ended that may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no connection.
    Connect,
    /// The upstream says that it has not begun.
    RefusedStream,
    /// The connection or stream ended, or the attempt took too long.
    Reset,
    /// The upstream has answered with this.
    Status(StatusCode),
}

impl Retry {
    /// Compiles a policy; faults are reported at their place. `None` when nothing is ever sent
    /// again.
    pub(crate) fn plan(raw: &config::RetryPolicy, errors: &mut Errors) -> Option<Self> {
        let mut planned = Self {
            on: Vec::new(),
            statuses: Vec::new(),
            retries: raw.num_retries.unwrap_or(1),
            attempt_timeout: raw.per_try_timeout.filter(|timeout| !timeout.is_zero()),
            pauses: Pauses::new(FIRST_PAUSE, LONGEST_PAUSE),
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
        for code in &raw.retriable_status_codes {
            match StatusCode::from_u16(code.value) {
                Ok(status) if status.as_u16() >= 200 => planned.statuses.push(status),
                _ => errors.push(code, format!("`{}` is not a status", code.value)),
            }
        }
        let written = raw.retry_on.as_ref();
        let names = written.map_or("", |on| on.as_str()).split(',');
        for name in names.map(str::trim).filter(|name| !name.is_empty()) {
            let mut known = CONDITIONS.iter();
            match (known.find(|(known, _)| *known == name), written) {
                (Some((_, condition)), _) => planned.on.push(*condition),
                (None, Some(on)) => {
                    let name = Located {
                        value: name.to_owned(),
                        span: on.span.clone(),
                    };
                    let known = CONDITIONS.iter().map(|(name, _)| *name);
                    errors.unknown_name(&name, "condition of `retry_on`", known);
                }
                (None, None) => {}
            }
        }
        (!planned.on.is_empty() && planned.retries > 0).then_some(planned)
    }

    /// Leaves the bound on an attempt out where `timeout`, that on all of them, is no longer.
    #[must_use]
    pub(crate) fn within(mut self, timeout: Option<Duration>) -> Self {
        self.attempt_timeout = self
            .attempt_timeout
            .filter(|attempt| timeout.is_none_or(|timeout| *attempt < timeout));
        self
    }

    /// Whether a request that failed so is sent again.
    pub(crate) fn covers(&self, failure: Failure) -> bool {
        self.on.iter().any(|condition| match (condition, failure) {
            (Condition::ServerError, Failure::Status(status)) => status.is_server_error(),
            (Condition::GatewayError, Failure::Status(status)) => {
                matches!(status.as_u16(), 502..=504)
            }
            (Condition::RetriableStatusCodes, Failure::Status(status)) => {
                self.statuses.contains(&status)
            }
            (Condition::Retriable4xx, Failure::Status(status)) => status == StatusCode::CONFLICT,
            (_, Failure::Status(_)) => false,
            (Condition::ServerError | Condition::GatewayError | Condition::Reset, _) => true,
            (Condition::ConnectFailure, failure) => failure == Failure::Connect,
            (Condition::RefusedStream, failure) => failure == Failure::RefusedStream,
            (Condition::RetriableStatusCodes | Condition::Retriable4xx, _) => false,
        })
    }
}

impl Failure {
    /// What the end of an attempt says; `None` when another can only end the same way.
    pub(crate) fn of<B, L>(
        ended: &Waited<Result<(Response<B>, L), UpstreamError>>,
    ) -> Option<Self> {
        match ended {
            Waited::Done(Ok((response, _))) => {
                let limited = response.headers().contains_key(RATE_LIMITED);
                (!limited).then(|| Self::Status(response.status()))
            }
            Waited::Done(Err(UpstreamError::Connect(_) | UpstreamError::ConnectTimeout(_))) => {
                Some(Self::Connect)
            }
            // The request's own body broke off.
            Waited::Done(Err(UpstreamError::Reset(error))) if error.is_user() => None,
            Waited::Done(Err(UpstreamError::Reset(error))) => Some(match is_refusal(error) {
                true => Self::RefusedStream,
                false => Self::Reset,
            }),
            Waited::AttemptTimeout => Some(Self::Reset),
            Waited::Timeout | Waited::Idle => None,
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

    use super::*;

    fn planned(text: &str) -> Result<Option<Retry>, String> {
        let document = Document::parse("route.yaml", text).unwrap();
        let (raw, mut errors) = document.decode_partly::<config::RetryPolicy>();
        let planned = raw.map(|raw| Retry::plan(&raw, &mut errors));
        errors.into_result(planned).map_err(|e| e.to_string())
    }

    fn on(conditions: &str) -> Retry {
        let text = format!("{{ retry_on: '{conditions}', retriable_status_codes: [404] }}");
        planned(&text).unwrap().unwrap()
    }

    #[test]
    fn conditions_cover_what_their_names_say() {
        let status = |code| Failure::Status(StatusCode::from_u16(code).unwrap());
        let failures = [
            ("200", status(200)),
            ("404", status(404)),
            ("409", status(409)),
            ("500", status(500)),
            ("502", status(502)),
            ("connect", Failure::Connect),
            ("refused", Failure::RefusedStream),
            ("reset", Failure::Reset),
        ];
        for (conditions, covered) in [
            ("5xx", "500 502 connect refused reset"),
            ("gateway-error", "502 connect refused reset"),
            ("reset", "connect refused reset"),
            ("connect-failure", "connect"),
            ("refused-stream", "refused"),
            ("retriable-status-codes", "404"),
            ("retriable-4xx", "409"),
            ("connect-failure, retriable-4xx", "409 connect"),
        ] {
            let retry = on(conditions);
            let seen = failures
                .iter()
                .filter(|(_, failure)| retry.covers(*failure));
            let seen: Vec<_> = seen.map(|(name, _)| *name).collect();
            assert_eq!(seen.join(" "), covered, "{conditions}");
        }
    }

    #[test]
    fn the_upstreams_own_rate_limit_is_not_asked_again() {
        let answer = |limited: bool| {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            if limited {
                let yes = http::HeaderValue::from_static("true");
                response.headers_mut().insert(RATE_LIMITED, yes);
            }
            Failure::of(&Waited::Done(Ok((response, ()))))
        };
        let unavailable = Failure::Status(StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer(false), Some(unavailable));
        assert_eq!(answer(true), None);
    }

    #[test]
    fn without_conditions_or_attempts_nothing_is_sent_again() {
        assert_eq!(planned("{ num_retries: 3 }"), Ok(None));
        assert_eq!(planned("{ num_retries: 0, retry_on: 5xx }"), Ok(None));
        assert_eq!(on("5xx").retries, 1);
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
            ("{ retriable_headers: [] }", "retriable_headers"),
        ] {
            let error = planned(text).unwrap_err();
            assert!(error.contains(fault), "{text}: {error}");
        }
    }
}
