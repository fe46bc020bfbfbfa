//! Calls of a policy service that are made again: Envoy's `config.core.v3.RetryPolicy`.
//!
//! Two things in it are easily missed, and are as in Envoy: without `retry_on` nothing is made
//! again, and `max_interval` also bounds each attempt.

use std::time::Duration;

use attache_service::{
    HttpError,
    channel::TransportFailure,
    cluster::breakers::Breakers,
    config::{Errors, Located},
    config_struct,
};
use http::{HeaderMap, HeaderName, StatusCode};
use rand::Rng as _;
use tonic::{Code, Status};

config_struct! {
    /// Envoy's `config.core.v3.RetryPolicy`.
    pub struct RetryPolicy {
        /// Pauses between attempts. Default: up to 1 s at first, up to 10 s later.
        pub retry_back_off: Option<Located<BackoffStrategy>>,
        /// Attempts after the first. Default 1.
        pub num_retries: Option<u32>,
        /// After which failures, as in Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`,
        /// with commas between. Default: after none.
        pub retry_on: Option<Located<String>>,
    }
    elsewhere {
        "retry_priority" => "clusters have no priorities here",
        "retry_host_predicate" => "endpoints are taken in turn, so a retry takes the next one",
        "host_selection_retry_max_attempts" => "endpoints are taken in turn, so a retry takes the next one",
    }
}

config_struct! {
    /// Envoy's `config.core.v3.BackoffStrategy`.
    pub struct BackoffStrategy {
        /// Bound of the first pause, doubled for each further one; pauses are chosen at random
        /// below it. At least 1 ms.
        pub base_interval: Located<Duration>,
        /// Bound of all pauses, and of each attempt. Default ten times `base_interval`.
        pub max_interval: Option<Located<Duration>>,
    }
}

/// A failure after which a call may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    ServerError,
    GatewayError,
    Reset,
    ConnectFailure,
    Retriable4xx,
    Grpc(Code),
}

const CONDITIONS: [(&str, Condition); 10] = [
    ("5xx", Condition::ServerError),
    ("gateway-error", Condition::GatewayError),
    ("reset", Condition::Reset),
    ("connect-failure", Condition::ConnectFailure),
    ("retriable-4xx", Condition::Retriable4xx),
    ("cancelled", Condition::Grpc(Code::Cancelled)),
    ("deadline-exceeded", Condition::Grpc(Code::DeadlineExceeded)),
    ("internal", Condition::Grpc(Code::Internal)),
    (
        "resource-exhausted",
        Condition::Grpc(Code::ResourceExhausted),
    ),
    ("unavailable", Condition::Grpc(Code::Unavailable)),
];

/// How an attempt failed, or what it was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// There is no connection.
    Connect,
    /// The cluster's circuit breakers leave no room.
    Overflow,
    /// The connection or stream ended, or the attempt took too long.
    Reset,
    /// An HTTP status.
    Http(StatusCode),
    /// A gRPC status of the service.
    Grpc(Code),
}

impl Failure {
    /// What the status of a gRPC call says.
    pub fn of_status(status: &Status) -> Self {
        match TransportFailure::of(status) {
            Some(TransportFailure::Unreachable) => Self::Connect,
            Some(TransportFailure::Overflow) => Self::Overflow,
            Some(TransportFailure::Broken | TransportFailure::Timeout) => Self::Reset,
            None => Self::Grpc(status.code()),
        }
    }

    /// What the failure of an HTTP request says.
    pub fn of_http(error: &HttpError) -> Self {
        match error {
            HttpError::Connect { .. } | HttpError::NoEndpoint(_) => Self::Connect,
            HttpError::Overflow { .. } => Self::Overflow,
            HttpError::Timeout { .. } | HttpError::Broken { .. } | HttpError::TooLarge { .. } => {
                Self::Reset
            }
        }
    }
}

/// The pauses between attempts: each is chosen at random below a bound, which doubles.
#[derive(Debug, Clone, PartialEq)]
pub struct Pauses {
    bound: Duration,
    longest: Duration,
}

impl Pauses {
    /// Pauses below `first` at first, and never longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            bound: first.min(longest),
            longest,
        }
    }

    /// Chooses the next pause.
    pub fn draw(&mut self) -> Duration {
        let pause = self.bound.mul_f64(rand::rng().random::<f64>());
        self.bound = self.bound.saturating_mul(2).min(self.longest);
        pause
    }
}

/// A [`RetryPolicy`], ready to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    on: Vec<Condition>,
    retries: u32,
    first_pause: Duration,
    longest_pause: Duration,
    attempt: Option<Duration>,
}

const RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");

impl Retry {
    /// Compiles a policy. What `metadata` of the calls says of retries (`x-envoy-retry-on`,
    /// `x-envoy-retry-grpc-on`, `x-envoy-max-retries`) is taken out of it and counts too, as in
    /// Envoy. `None` when nothing is ever made again; faults are reported at their place.
    pub fn plan(
        raw: Option<&Located<RetryPolicy>>,
        metadata: &mut HeaderMap,
        errors: &mut Errors,
    ) -> Option<Self> {
        let mut planned = Self {
            on: Vec::new(),
            retries: 1,
            first_pause: Duration::from_millis(25),
            longest_pause: Duration::from_millis(250),
            attempt: None,
        };
        if let Some(raw) = raw {
            planned.by_policy(raw, errors);
        }
        for name in [RETRY_ON, RETRY_GRPC_ON] {
            let value = metadata.remove(name);
            let names = value.as_ref().and_then(|value| value.to_str().ok());
            // As in Envoy, what is no condition is no matter here: it is only metadata.
            for name in names.unwrap_or_default().split(',') {
                planned.on.extend(condition(name));
            }
        }
        let most = metadata.remove(MAX_RETRIES);
        if let Some(most) = most.and_then(|most| most.to_str().ok()?.parse().ok()) {
            planned.retries = most;
        }
        (!planned.on.is_empty() && planned.retries > 0).then_some(planned)
    }

    fn by_policy(&mut self, raw: &Located<RetryPolicy>, errors: &mut Errors) {
        self.retries = raw.num_retries.unwrap_or(1);
        self.first_pause = Duration::from_secs(1);
        self.longest_pause = Duration::from_secs(10);
        if let Some(back_off) = &raw.retry_back_off {
            self.first_pause = back_off.base_interval.value;
            if self.first_pause < Duration::from_millis(1) {
                errors.push(&back_off.base_interval, "`base_interval` is at least 1ms");
            }
            self.longest_pause = self.first_pause.saturating_mul(10);
            if let Some(longest) = &back_off.max_interval {
                if longest.value < self.first_pause {
                    errors.push(longest, "`max_interval` is at least `base_interval`");
                }
                self.longest_pause = longest.value;
            }
        }
        self.attempt = Some(self.longest_pause);
        let Some(on) = &raw.retry_on else { return };
        for name in on.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match condition(name) {
                Some(condition) => self.on.push(condition),
                None => {
                    let name = Located {
                        value: name.to_owned(),
                        span: on.span.clone(),
                    };
                    let known = CONDITIONS.iter().map(|(name, _)| *name);
                    errors.unknown_name(&name, "condition of `retry_on`", known);
                }
            }
        }
    }

    /// Bound on one attempt: its own, but never more than `whole`, that on all of them.
    pub fn of_attempt(&self, whole: Option<Duration>) -> Option<Duration> {
        match (self.attempt, whole) {
            (Some(one), Some(whole)) => Some(one.min(whole)),
            (one, whole) => one.or(whole),
        }
    }

    /// Whether a call that failed so may be made again.
    pub fn covers(&self, failure: Failure) -> bool {
        self.on.iter().any(|condition| match (condition, failure) {
            (Condition::Grpc(wanted), Failure::Grpc(code)) => *wanted == code,
            (Condition::ServerError, Failure::Http(status)) => status.is_server_error(),
            (Condition::GatewayError, Failure::Http(status)) => {
                matches!(status.as_u16(), 502..=504)
            }
            (Condition::Retriable4xx, Failure::Http(status)) => status == StatusCode::CONFLICT,
            (Condition::ConnectFailure, failure) => failure == Failure::Connect,
            (
                Condition::ServerError | Condition::GatewayError | Condition::Reset,
                Failure::Connect | Failure::Reset,
            ) => true,
            _ => false,
        })
    }

    /// Makes a call until it succeeds, fails in a way that is not to be tried again, or the
    /// attempts are used up; gives the last answer. `failure` says how an answer failed.
    ///
    /// `breakers` are those of the service's cluster, which bound how many calls are made again at
    /// the same time.
    pub async fn run<T, F>(
        &self,
        breakers: Option<&Breakers>,
        mut attempt: impl FnMut() -> F,
        failure: impl Fn(&T) -> Option<Failure>,
    ) -> T
    where
        F: Future<Output = T>,
    {
        let mut pauses = Pauses::new(self.first_pause, self.longest_pause);
        let _counted = breakers.map(Breakers::count);
        let mut room = None;
        for _ in 0..self.retries {
            let answer = attempt().await;
            // A retry takes up room until it is answered.
            drop(room.take());
            if !failure(&answer).is_some_and(|failure| self.covers(failure)) {
                return answer;
            }
            room = breakers.map(Breakers::retry);
            if matches!(room, Some(None)) {
                return answer;
            }
            drop(answer);
            tokio::time::sleep(pauses.draw()).await;
        }
        attempt().await
    }
}

fn condition(name: &str) -> Option<Condition> {
    let mut known = CONDITIONS.iter();
    let (_, condition) = known.find(|(known, _)| *known == name.trim())?;
    Some(*condition)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use attache_service::{Metrics, cluster::breakers::BreakersPlan, config::Document};
    use http::HeaderValue;

    use super::*;

    fn planned(text: &str) -> Result<Option<Retry>, String> {
        let document = Document::parse("retry.yaml", text).unwrap();
        let (raw, mut errors) = document.decode_partly::<Located<RetryPolicy>>();
        let planned = Retry::plan(raw.as_ref(), &mut HeaderMap::new(), &mut errors);
        errors
            .into_result(Some(planned))
            .map_err(|errors| errors.to_string())
    }

    fn on(conditions: &str) -> Retry {
        planned(&format!("{{ retry_on: '{conditions}' }}"))
            .unwrap()
            .unwrap()
    }

    #[test]
    fn conditions_cover_what_their_names_say() {
        let http = |code| Failure::Http(StatusCode::from_u16(code).unwrap());
        for (conditions, failure, covered) in [
            ("5xx", http(500), true),
            ("5xx", http(404), false),
            ("5xx", Failure::Connect, true),
            ("gateway-error", http(503), true),
            ("gateway-error", http(500), false),
            ("reset", Failure::Reset, true),
            ("reset", http(503), false),
            ("connect-failure", Failure::Connect, true),
            ("connect-failure", Failure::Reset, false),
            ("retriable-4xx", http(409), true),
            ("unavailable", Failure::Grpc(Code::Unavailable), true),
            ("unavailable", Failure::Connect, false),
            ("5xx", Failure::Grpc(Code::Unavailable), false),
            (
                "cancelled, resource-exhausted",
                Failure::Grpc(Code::ResourceExhausted),
                true,
            ),
        ] {
            assert_eq!(
                on(conditions).covers(failure),
                covered,
                "{conditions} {failure:?}"
            );
        }
    }

    #[test]
    fn without_conditions_or_attempts_there_are_no_retries() {
        assert_eq!(planned("{ num_retries: 3 }"), Ok(None));
        assert_eq!(planned("{ num_retries: 0, retry_on: 5xx }"), Ok(None));
    }

    #[test]
    fn the_longest_pause_bounds_each_attempt() {
        let back_off = |text: &str| {
            let text = format!("{{ retry_on: 5xx, retry_back_off: {{ {text} }} }}");
            planned(&text).unwrap().unwrap().of_attempt(None)
        };
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(back_off("base_interval: 5ms"), ms(50));
        assert_eq!(back_off("base_interval: 5ms, max_interval: 7ms"), ms(7));
        assert_eq!(on("5xx").of_attempt(None), ms(10_000));
    }

    #[test]
    fn pauses_stay_below_a_bound_that_doubles_up_to_the_longest() {
        let ms = Duration::from_millis;
        for _ in 0..100 {
            let mut pauses = Pauses::new(ms(10), ms(25));
            for bound in [10, 20, 25, 25] {
                assert!(pauses.draw() < ms(bound));
            }
        }
    }

    #[test]
    fn mistakes_are_reported() {
        for (text, fault) in [
            (
                "{ retry_on: 'unavailble' }",
                "condition of `retry_on` `unavailble`",
            ),
            ("{ retry_back_off: { base_interval: 0s } }", "at least 1ms"),
            (
                "{ retry_back_off: { base_interval: 2s, max_interval: 1s } }",
                "at least `base_interval`",
            ),
        ] {
            let error = planned(text).unwrap_err();
            assert!(error.contains(fault), "{text}: {error}");
        }
    }

    #[test]
    fn metadata_of_the_calls_can_ask_for_retries() {
        let mut metadata = HeaderMap::new();
        metadata.insert(
            RETRY_GRPC_ON,
            HeaderValue::from_static("nonsense,unavailable"),
        );
        metadata.insert(MAX_RETRIES, HeaderValue::from_static("4"));
        metadata.insert("x-own", HeaderValue::from_static("1"));
        let retry = Retry::plan(None, &mut metadata, &mut Errors::new()).unwrap();
        assert!(retry.covers(Failure::Grpc(Code::Unavailable)));
        assert_eq!((retry.retries, retry.of_attempt(None)), (4, None));
        // They are for the proxy, not for the service.
        assert_eq!(metadata.keys().collect::<Vec<_>>(), ["x-own"]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_calls_are_made_again_at_a_time_than_their_cluster_allows() {
        let retry = planned("{ retry_on: unavailable, num_retries: 3 }");
        let retry = retry.unwrap().unwrap();
        for (thresholds, attempts) in [
            ("max_retries: 0", 1),
            ("max_retries: 1", 4),
            ("retry_budget: { min_retry_concurrency: 0 }", 1),
            ("retry_budget: { min_retry_concurrency: 1 }", 4),
        ] {
            let text = format!("{{ thresholds: [{{ {thresholds} }}] }}");
            let document = Document::parse("breakers.yaml", &text).unwrap();
            let (raw, mut errors) = document.decode_partly();
            let plan = BreakersPlan::plan(&raw.unwrap(), &mut errors);
            let breakers = Breakers::new(plan, "c", &Metrics::default());
            let made = Cell::new(0);
            let attempt = || {
                made.set(made.get() + 1);
                async { Code::Unavailable }
            };
            let failure = |code: &Code| Some(Failure::Grpc(*code));
            let answer = retry.run(Some(&breakers), attempt, failure).await;
            assert_eq!(
                (answer, made.get()),
                (Code::Unavailable, attempts),
                "{text}"
            );
            assert_eq!(breakers.snapshot().max_retries.used, 0, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_end_with_success_with_another_failure_or_at_their_number() {
        let retry = planned("{ retry_on: unavailable, num_retries: 3 }")
            .unwrap()
            .unwrap();
        for (answers, attempts) in [
            (&[14, 14, 0][..], 3),
            (&[14, 7], 2),
            (&[0], 1),
            (&[14, 14, 14, 14, 14], 4),
        ] {
            let made = Cell::new(0);
            let answer = retry
                .run(
                    None,
                    || {
                        let code = answers[made.get()];
                        made.set(made.get() + 1);
                        async move { code }
                    },
                    |code| Some(Failure::Grpc(Code::from_i32(*code))).filter(|_| *code != 0),
                )
                .await;
            assert_eq!(made.get(), attempts, "{answers:?}");
            assert_eq!(answer, answers[attempts - 1]);
        }
    }
}
