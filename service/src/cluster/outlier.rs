//! Outlier ejection: an endpoint that answers badly is left out for a while (Envoy's
//! `config.cluster.v3.OutlierDetection`).
//!
//! A [`Detector`] has the settings of one cluster, a [`Record`] what is known of one endpoint.
//! Requests tell the detector how they went ([`Detector::note`]), and a clock calls
//! [`Detector::tick`] each interval.
//! Unlike in Envoy, the last endpoint that could be used is never ejected.

mod ejecting;
mod rates;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use rand::Rng;
use tokio::time::Instant;

use ejecting::{Ejections, crowd};
use rates::{FailurePercentage, SuccessRate};

pub use ejecting::Crowd;

use crate::{
    config::{Errors, Located},
    config_struct,
};

config_struct! {
    /// When an endpoint is ejected for how it answers (Envoy's
    /// `config.cluster.v3.OutlierDetection`).
    #[derive(Default)]
    pub struct OutlierDetection {
        /// Answers of 500 and above in a row. Default 5.
        pub consecutive_5xx: Option<u32>,
        /// Answers of 502, 503 or 504 in a row. Default 5.
        pub consecutive_gateway_failure: Option<u32>,
        /// Failures of the connection in a row, where they are counted apart. Default 5.
        pub consecutive_local_origin_failure: Option<u32>,
        /// Count failures of the connection (no connection, reset, timeout) apart from answers.
        /// Default false: they count as 503 and 504.
        pub split_external_local_origin_errors: Option<bool>,
        /// Time between two looks at rates and at the end of ejections. Default 10s.
        pub interval: Option<Located<Duration>>,
        /// How long the first ejection lasts; each further one this much longer. Default 30s.
        pub base_ejection_time: Option<Located<Duration>>,
        /// Bound on the length of an ejection. Default 300s, or `base_ejection_time` if longer.
        pub max_ejection_time: Option<Located<Duration>>,
        /// Up to this is added to each ejection, by chance. Default 0s.
        pub max_ejection_time_jitter: Option<Duration>,
        /// Percent of the endpoints that may be ejected at a time. Default 10.
        pub max_ejection_percent: Option<Located<u32>>,
        /// One endpoint may always be ejected, whatever `max_ejection_percent` says. Default false.
        pub always_eject_one_host: Option<bool>,
        /// An active health check that succeeds ends an ejection. Default true.
        pub successful_active_health_check_uneject_host: Option<bool>,
        /// Percent of cases of `consecutive_5xx` that are acted upon. Default 100.
        pub enforcing_consecutive_5xx: Option<Located<u32>>,
        /// The same for `consecutive_gateway_failure`. Default 0.
        pub enforcing_consecutive_gateway_failure: Option<Located<u32>>,
        /// The same for `consecutive_local_origin_failure`. Default 100.
        pub enforcing_consecutive_local_origin_failure: Option<Located<u32>>,
        /// The same for rates of success far below those of the others. Default 100.
        pub enforcing_success_rate: Option<Located<u32>>,
        /// The same for rates of success of the connection. Default 100.
        pub enforcing_local_origin_success_rate: Option<Located<u32>>,
        /// Endpoints with enough requests in an interval for rates to be compared. Default 5.
        pub success_rate_minimum_hosts: Option<u32>,
        /// Requests in an interval that are enough for a rate. Default 100.
        pub success_rate_request_volume: Option<u32>,
        /// Thousandths of the standard deviation below the mean that are far below. Default 1900.
        pub success_rate_stdev_factor: Option<u32>,
        /// Percent of failures in an interval from which an endpoint is ejected. Default 85.
        pub failure_percentage_threshold: Option<Located<u32>>,
        /// Percent of cases of `failure_percentage_threshold` that are acted upon. Default 0.
        pub enforcing_failure_percentage: Option<Located<u32>>,
        /// The same for failures of the connection. Default 0.
        pub enforcing_failure_percentage_local_origin: Option<Located<u32>>,
        /// Endpoints with enough requests for failures to be looked at. Default 5.
        pub failure_percentage_minimum_hosts: Option<u32>,
        /// Requests in an interval that are enough for a percentage. Default 50.
        pub failure_percentage_request_volume: Option<u32>,
    }
    elsewhere {
        "monitors" => "extensions that watch endpoints are not supported",
        "detect_degraded_hosts" => "endpoints are healthy or not; there is nothing between",
    }
}

/// How a request to an endpoint went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered with this; a gRPC status counts as the HTTP status it stands for.
    Answered(StatusCode),
    /// There is a connection, for what has no answers.
    Connected,
    /// No connection, or it broke off before the answer.
    Broken,
    /// There was no answer in time.
    TimedOut,
}

impl Outcome {
    /// What the head of an answer says.
    pub fn of_answer(status: StatusCode, headers: &HeaderMap) -> Self {
        let grpc = headers.get("grpc-status");
        let grpc = grpc.and_then(|code| code.to_str().ok()?.parse().ok());
        Self::Answered(grpc.map_or(status, http_status))
    }
}

/// The HTTP status that a gRPC status stands for (as in Envoy, `google.rpc.Code`).
fn http_status(grpc: u8) -> StatusCode {
    match grpc {
        0 => StatusCode::OK,
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Why an endpoint was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// `consecutive_5xx`.
    Consecutive5xx,
    /// `consecutive_gateway_failure`.
    ConsecutiveGatewayFailure,
    /// `consecutive_local_origin_failure`.
    ConsecutiveLocalOriginFailure,
    /// Its rate of success was far below those of the others.
    SuccessRate,
    /// The same of connections.
    LocalOriginSuccessRate,
    /// `failure_percentage_threshold`.
    FailurePercentage,
    /// The same of connections.
    LocalOriginFailurePercentage,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Consecutive5xx,
        Self::ConsecutiveGatewayFailure,
        Self::ConsecutiveLocalOriginFailure,
        Self::SuccessRate,
        Self::LocalOriginSuccessRate,
        Self::FailurePercentage,
        Self::LocalOriginFailurePercentage,
    ];

    /// Its name in logs and metrics, as in Envoy's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGatewayFailure => "consecutive_gateway_failure",
            Self::ConsecutiveLocalOriginFailure => "consecutive_local_origin_failure",
            Self::SuccessRate => "success_rate",
            Self::LocalOriginSuccessRate => "local_origin_success_rate",
            Self::FailurePercentage => "failure_percentage",
            Self::LocalOriginFailurePercentage => "local_origin_failure_percentage",
        }
    }
}

/// What is known of one endpoint. All workers write to it.
#[derive(Debug, Default)]
pub struct Record {
    is_ejected: AtomicBool,
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    answers: Tally,
    local: Tally,
    ejections: Mutex<Ejections>,
}

/// Requests of one interval.
#[derive(Debug, Default)]
struct Tally {
    all: AtomicU32,
    good: AtomicU32,
}

impl Tally {
    fn add(&self, good: bool) {
        self.all.fetch_add(1, Relaxed);
        if good {
            self.good.fetch_add(1, Relaxed);
        }
    }

    /// Takes what was counted: all and good.
    fn take(&self) -> (u32, u32) {
        let good = self.good.swap(0, Relaxed);
        (self.all.swap(0, Relaxed), good)
    }
}

/// A count back at 0. Written only when it is not, as all workers share it.
fn reset(count: &AtomicU32) {
    if count.load(Relaxed) != 0 {
        count.store(0, Relaxed);
    }
}

/// The settings of one cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Detector {
    /// Time between two calls of [`Detector::tick`].
    pub interval: Duration,
    /// An active health check that succeeds ends an ejection.
    pub readmits_checked: bool,
    split: bool,
    consecutive_5xx: Rule,
    consecutive_gateway: Rule,
    consecutive_local: Rule,
    base: Duration,
    longest: Duration,
    jitter: Duration,
    max_percent: u32,
    always_one: bool,
    success_rate: SuccessRate,
    failure_percentage: FailurePercentage,
}

/// After how many in a row, and how often that is acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    count: u32,
    enforced: Percent,
}

/// How often something is acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Percent(u32);

impl Percent {
    fn draw(self) -> bool {
        match self.0 {
            0 => false,
            100.. => true,
            percent => rand::rng().random_range(0..100) < percent,
        }
    }
}

/// What has changed at a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The endpoint is left out.
    Ejected(Reason),
    /// It is used again.
    Readmitted,
}

impl Detector {
    /// Checks the settings; mistakes are reported at their place.
    pub fn plan(raw: &OutlierDetection, errors: &mut Errors) -> Self {
        let rule = |count: Option<u32>, enforced| Rule {
            count: count.unwrap_or(5).max(1),
            enforced,
        };
        let interval = positive(&raw.interval, Duration::from_secs(10), "interval", errors);
        let base = Duration::from_secs(30);
        let base = positive(&raw.base_ejection_time, base, "base_ejection_time", errors);
        let longest = positive(
            &raw.max_ejection_time,
            base.max(Duration::from_secs(300)),
            "max_ejection_time",
            errors,
        );
        if let Some(written) = &raw.max_ejection_time
            && longest < base
        {
            errors.push(
                written,
                "`max_ejection_time` is at least `base_ejection_time`",
            );
        }
        let mut percent =
            |written: &Option<Located<u32>>, default| percent(written, default, errors);
        Self {
            interval,
            readmits_checked: raw
                .successful_active_health_check_uneject_host
                .unwrap_or(true),
            split: raw.split_external_local_origin_errors.unwrap_or(false),
            consecutive_5xx: rule(
                raw.consecutive_5xx,
                percent(&raw.enforcing_consecutive_5xx, 100),
            ),
            consecutive_gateway: rule(
                raw.consecutive_gateway_failure,
                percent(&raw.enforcing_consecutive_gateway_failure, 0),
            ),
            consecutive_local: rule(
                raw.consecutive_local_origin_failure,
                percent(&raw.enforcing_consecutive_local_origin_failure, 100),
            ),
            base,
            longest,
            jitter: raw.max_ejection_time_jitter.unwrap_or_default(),
            max_percent: percent(&raw.max_ejection_percent, 10).0,
            always_one: raw.always_eject_one_host.unwrap_or(false),
            success_rate: SuccessRate {
                enforced: percent(&raw.enforcing_success_rate, 100),
                local: percent(&raw.enforcing_local_origin_success_rate, 100),
                hosts: raw.success_rate_minimum_hosts.unwrap_or(5),
                volume: raw.success_rate_request_volume.unwrap_or(100),
                deviations: f64::from(raw.success_rate_stdev_factor.unwrap_or(1900)) / 1000.0,
            },
            failure_percentage: FailurePercentage {
                enforced: percent(&raw.enforcing_failure_percentage, 0),
                local: percent(&raw.enforcing_failure_percentage_local_origin, 0),
                hosts: raw.failure_percentage_minimum_hosts.unwrap_or(5),
                volume: raw.failure_percentage_request_volume.unwrap_or(50),
                threshold: f64::from(percent(&raw.failure_percentage_threshold, 85).0),
            },
        }
    }

    /// Notes how a request went; says why the endpoint should be ejected, when it should.
    pub fn note(&self, record: &Record, outcome: Outcome) -> Option<Reason> {
        let status = match outcome {
            Outcome::Answered(status) => {
                if self.split {
                    record.local.add(true);
                    reset(&record.consecutive_local);
                }
                status
            }
            Outcome::Connected => {
                if self.split {
                    record.local.add(true);
                    reset(&record.consecutive_local);
                    return None;
                }
                StatusCode::OK
            }
            _ if self.split => {
                record.local.add(false);
                let over = exceeds(&record.consecutive_local, self.consecutive_local);
                return over.then_some(Reason::ConsecutiveLocalOriginFailure);
            }
            Outcome::Broken => StatusCode::SERVICE_UNAVAILABLE,
            Outcome::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        };
        record.answers.add(!status.is_server_error());
        if !status.is_server_error() {
            reset(&record.consecutive_5xx);
            reset(&record.consecutive_gateway);
            return None;
        }
        let mut reason = None;
        if !matches!(status.as_u16(), 502..=504) {
            reset(&record.consecutive_gateway);
        } else if exceeds(&record.consecutive_gateway, self.consecutive_gateway) {
            reason = Some(Reason::ConsecutiveGatewayFailure);
        }
        if exceeds(&record.consecutive_5xx, self.consecutive_5xx) {
            reason = reason.or(Some(Reason::Consecutive5xx));
        }
        reason
    }

    /// Ends the ejections whose time is over, and ejects those whose rates of the interval
    /// are bad. `endpoints` are all of the cluster, each with whether it could be used if it is
    /// not ejected; what has changed is told by their place.
    pub fn tick(&self, endpoints: &[(&Record, bool)], now: Instant) -> Vec<(usize, Change)> {
        let mut changes = Vec::new();
        for (place, (record, _)) in endpoints.iter().enumerate() {
            let over = {
                let mut ejections = record.ejections();
                let quiet = ejections.until.is_none()
                    && ejections
                        .ended
                        .is_none_or(|ended| now.saturating_duration_since(ended) >= self.interval);
                if quiet {
                    ejections.times = ejections.times.saturating_sub(1);
                }
                ejections.until.is_some_and(|until| until <= now)
            };
            if over && record.readmit(now) {
                changes.push((place, Change::Readmitted));
            }
        }
        let tallies = |of: fn(&Record) -> &Tally| -> Vec<(usize, (u32, u32))> {
            let tallied = endpoints.iter().enumerate();
            let tallied = tallied.map(|(place, (record, _))| (place, of(record).take()));
            let here = |(place, _): &(usize, _)| {
                let endpoint = endpoints.get(*place);
                endpoint.is_some_and(|(record, _)| !record.is_ejected())
            };
            tallied.filter(here).collect()
        };
        let answers = tallies(|record| &record.answers);
        let local = tallies(|record| &record.local);
        let rate = &self.success_rate;
        let percentage = &self.failure_percentage;
        for (tallies, reason, enforced) in [
            (&answers, Reason::SuccessRate, rate.enforced),
            (&local, Reason::LocalOriginSuccessRate, rate.local),
            (&answers, Reason::FailurePercentage, percentage.enforced),
            (
                &local,
                Reason::LocalOriginFailurePercentage,
                percentage.local,
            ),
        ] {
            let bad = match reason {
                Reason::SuccessRate | Reason::LocalOriginSuccessRate => rate.outliers(tallies),
                _ => percentage.outliers(tallies),
            };
            for place in bad {
                let Some((record, _)) = endpoints.get(place) else {
                    continue;
                };
                if enforced.draw() && self.eject(record, crowd(endpoints), now) {
                    changes.push((place, Change::Ejected(reason)));
                }
            }
        }
        changes
    }
}

/// Counts one more in a row; whether that is acted upon. The row begins anew then.
fn exceeds(count: &AtomicU32, rule: Rule) -> bool {
    let row = count.fetch_add(1, Relaxed).saturating_add(1);
    if row < rule.count {
        return false;
    }
    count.store(0, Relaxed);
    rule.enforced.draw()
}

fn percent(written: &Option<Located<u32>>, default: u32, errors: &mut Errors) -> Percent {
    let Some(written) = written else {
        return Percent(default);
    };
    if written.value > 100 {
        errors.push(written, "a percentage is at most 100");
    }
    Percent(written.value)
}

fn positive(
    written: &Option<Located<Duration>>,
    default: Duration,
    name: &str,
    errors: &mut Errors,
) -> Duration {
    let Some(written) = written else {
        return default;
    };
    if written.value.is_zero() {
        errors.push(written, format!("`{name}` is more than 0s"));
    }
    written.value
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Document;

    pub(super) const BAD: Outcome = Outcome::Answered(StatusCode::INTERNAL_SERVER_ERROR);
    const GATEWAY: Outcome = Outcome::Answered(StatusCode::BAD_GATEWAY);
    const GOOD: Outcome = Outcome::Answered(StatusCode::NOT_FOUND);
    pub(super) const MANY: Crowd = Crowd {
        all: 10,
        ejected: 0,
        usable: 10,
    };

    fn planned(text: &str) -> Result<Detector, String> {
        let document = Document::parse("outlier.yaml", text).unwrap();
        let (raw, mut errors) = document.decode_partly::<OutlierDetection>();
        let planned = raw.map(|raw| Detector::plan(&raw, &mut errors));
        errors.into_result(planned).map_err(|e| e.to_string())
    }

    pub(super) fn detector(text: &str) -> Detector {
        planned(text).unwrap()
    }

    pub(super) fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Why one endpoint among many is ejected in the course of these requests.
    fn ejects(detector: &Detector, outcomes: &[Outcome]) -> Option<Reason> {
        let record = Record::default();
        let mut reasons = outcomes
            .iter()
            .filter_map(|outcome| noted(detector, &record, *outcome, MANY));
        reasons.next()
    }

    /// Notes an outcome, and ejects where that is the consequence.
    pub(super) fn noted(
        detector: &Detector,
        record: &Record,
        outcome: Outcome,
        crowd: Crowd,
    ) -> Option<Reason> {
        let reason = detector.note(record, outcome)?;
        let ejected = detector.eject(record, crowd, Instant::now());
        ejected.then_some(reason)
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_failures_in_a_row_as_are_set_eject() {
        let three = detector("{ consecutive_5xx: 3 }");
        for (outcomes, wanted) in [
            (&[BAD, BAD][..], None),
            (&[BAD, BAD, BAD], Some(Reason::Consecutive5xx)),
            (&[BAD, BAD, GOOD, BAD, BAD], None),
            (
                &[Outcome::Broken, Outcome::TimedOut, GATEWAY],
                Some(Reason::Consecutive5xx),
            ),
        ] {
            assert_eq!(ejects(&three, outcomes), wanted, "{outcomes:?}");
        }
        let defaults = detector("{}");
        assert_eq!(ejects(&defaults, &[BAD; 4]), None);
        assert_eq!(ejects(&defaults, &[BAD; 5]), Some(Reason::Consecutive5xx));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_gateways_are_enforced_only_on_demand() {
        let text = "consecutive_gateway_failure: 2, consecutive_5xx: 9";
        let off = detector(&format!("{{ {text} }}"));
        let on = detector(&format!(
            "{{ {text}, enforcing_consecutive_gateway_failure: 100 }}"
        ));
        let gateway = Some(Reason::ConsecutiveGatewayFailure);
        for (outcomes, wanted) in [
            (&[GATEWAY, GATEWAY][..], gateway),
            (&[GATEWAY, BAD, GATEWAY], None),
            (&[Outcome::Broken, Outcome::TimedOut], gateway),
        ] {
            assert_eq!(ejects(&off, outcomes), None, "{outcomes:?}");
            assert_eq!(ejects(&on, outcomes), wanted, "{outcomes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_the_connection_can_be_counted_apart() {
        let split = detector(
            "{ split_external_local_origin_errors: true, consecutive_5xx: 2, consecutive_local_origin_failure: 2 }",
        );
        let local = Some(Reason::ConsecutiveLocalOriginFailure);
        for (outcomes, wanted) in [
            (&[Outcome::Broken, Outcome::TimedOut][..], local),
            (&[Outcome::Broken, BAD, Outcome::Broken], None),
            (&[BAD, Outcome::Broken, BAD], Some(Reason::Consecutive5xx)),
            (
                &[Outcome::Broken, Outcome::Connected, Outcome::Broken],
                None,
            ),
            (
                &[BAD, Outcome::Connected, BAD],
                Some(Reason::Consecutive5xx),
            ),
        ] {
            assert_eq!(ejects(&split, outcomes), wanted, "{outcomes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_enforced_ejects_nobody() {
        let off = detector("{ consecutive_5xx: 1, enforcing_consecutive_5xx: 0 }");
        assert_eq!(ejects(&off, &[BAD; 20]), None);
    }

    /// What a tick ejects among endpoints with these numbers of requests and failures.
    fn ticked(detector: &Detector, tallies: &[(u32, u32)]) -> Vec<(usize, Change)> {
        let now = Instant::now();
        let records: Vec<_> = tallies.iter().map(|_| Record::default()).collect();
        for (record, (all, bad)) in records.iter().zip(tallies) {
            // A failure at a time, so that there is no row of them.
            for nth in 0..*all {
                let outcome = if nth < *bad { BAD } else { GOOD };
                noted(detector, record, outcome, MANY);
            }
        }
        let endpoints: Vec<_> = records.iter().map(|record| (record, true)).collect();
        let changes = detector.tick(&endpoints, now);
        assert_eq!(
            detector.tick(&endpoints, now),
            [],
            "an interval counts once"
        );
        changes
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_of_success_far_below_the_others_ejects() {
        let text = "consecutive_5xx: 1000, max_ejection_percent: 100";
        let rate = detector(&format!("{{ {text} }}"));
        let ejected = [(4, Change::Ejected(Reason::SuccessRate))];
        let good = (100, 0);
        assert_eq!(ticked(&rate, &[good, good, good, good, (100, 50)]), ejected);
        // Not enough requests, not enough endpoints, all alike.
        assert_eq!(ticked(&rate, &[good, good, good, good, (99, 50)]), []);
        assert_eq!(ticked(&rate, &[good, good, good, (100, 50)]), []);
        assert_eq!(ticked(&rate, &[(100, 50); 5]), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_of_failures_ejects_where_it_is_enforced() {
        let text = "consecutive_5xx: 1000, max_ejection_percent: 100, enforcing_success_rate: 0";
        let off = detector(&format!("{{ {text} }}"));
        let on = detector(&format!("{{ {text}, enforcing_failure_percentage: 100 }}"));
        let good = (50, 0);
        let tallies = [good, (50, 43), good, (50, 42), good];
        assert_eq!(ticked(&off, &tallies), []);
        let ejected = [(1, Change::Ejected(Reason::FailurePercentage))];
        assert_eq!(ticked(&on, &tallies), ejected);
        assert_eq!(ticked(&on, &tallies[..4]), []);
        // All fail; the last one stays.
        assert_eq!(ticked(&on, &[(50, 50); 5]).len(), 4);
    }

    #[test]
    fn mistakes_are_reported() {
        for (text, fault) in [
            ("{ max_ejection_percent: 101 }", "at most 100"),
            ("{ interval: 0s }", "`interval` is more than 0s"),
            (
                "{ base_ejection_time: 5s, max_ejection_time: 1s }",
                "at least `base_ejection_time`",
            ),
            ("{ consecutive_5x: 1 }", "consecutive_5xx"),
        ] {
            let error = planned(text).unwrap_err();
            assert!(error.contains(fault), "{text}: {error}");
        }
    }
}
