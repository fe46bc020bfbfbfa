//! The settings of circuit breakers, as they are written and as they are planned.

use crate::{
    config::{Errors, Located},
    config_enum, config_struct,
};

config_struct! {
    /// How much of a cluster may be in use at a time, over all workers (Envoy's
    /// `config.cluster.v3.CircuitBreakers`). Default: no limits but that on retries.
    #[derive(Default)]
    pub struct CircuitBreakers {
        /// The limits: one entry.
        pub thresholds: Vec<Located<Thresholds>>,
    }
    elsewhere {
        "per_host_thresholds" => "limits are those of the whole cluster",
    }
}

config_struct! {
    /// The limits of a cluster (Envoy's `CircuitBreakers.Thresholds`).
    #[derive(Default)]
    pub struct Thresholds {
        /// Requests of which priority are counted. There is only `DEFAULT`.
        pub priority: Option<RoutingPriority>,
        /// Connections. A request that needs one more waits. Default 1024.
        pub max_connections: Option<u32>,
        /// Requests that wait for a connection. Default 1024.
        pub max_pending_requests: Option<u32>,
        /// Requests on their way, calls to policies among them. Default 1024.
        pub max_requests: Option<u32>,
        /// Requests that are sent again at the same time, where there is no `retry_budget`.
        pub max_retries: Option<u32>,
        /// The same as a share of the requests on their way. Default: as below.
        pub retry_budget: Option<Located<RetryBudget>>,
        /// Show in `attache_upstream_remaining` how much is left. Default false.
        pub track_remaining: Option<bool>,
    }
    elsewhere {
        "max_connection_pools" => "there is one pool for each endpoint and worker",
    }
}

config_struct! {
    /// How many requests may be sent again at the same time (Envoy's
    /// `CircuitBreakers.Thresholds.RetryBudget`).
    #[derive(Default)]
    pub struct RetryBudget {
        /// Share of the requests on their way. Default 20.
        pub budget_percent: Option<Percent>,
        /// As many may always. Default 3.
        pub min_retry_concurrency: Option<u32>,
    }
}

config_struct! {
    /// Envoy's `type.v3.Percent`.
    pub struct Percent {
        /// From 0 to 100.
        pub value: Located<f64>,
    }
}

config_enum! {
    /// The priority of requests.
    pub enum RoutingPriority {
        /// All requests have it.
        Default = "DEFAULT",
    }
    elsewhere {
        "HIGH" => "there are no priorities",
    }
}

/// Envoy's limit where `circuit_breakers` names none.
const MOST: u32 = 1024;
/// Share of the requests on their way that may be sent again, in percent.
pub const RETRY_PERCENT: f64 = 20.0;
/// Requests that may always be sent again.
pub const RETRIES_ALWAYS: u32 = 3;

/// [`CircuitBreakers`], checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakersPlan {
    pub(super) limits: Option<LimitsPlan>,
    pub(super) retries: RetryLimit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LimitsPlan {
    pub(super) connections: u32,
    pub(super) pending: u32,
    pub(super) requests: u32,
    pub(super) tracked: bool,
}

/// How many requests may be sent again at the same time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RetryLimit {
    /// So many.
    Count(u32),
    /// A share of the requests on their way, in percent, but always so many.
    Budget {
        /// The share.
        percent: f64,
        /// So many in any case.
        least: u32,
    },
}

impl Default for BreakersPlan {
    fn default() -> Self {
        Self {
            limits: None,
            retries: RetryLimit::Budget {
                percent: RETRY_PERCENT,
                least: RETRIES_ALWAYS,
            },
        }
    }
}

impl BreakersPlan {
    /// Checks the settings; mistakes are reported at their place.
    pub fn plan(raw: &CircuitBreakers, errors: &mut Errors) -> Self {
        let mut planned = Self::default();
        let mut thresholds = raw.thresholds.iter();
        let Some(first) = thresholds.next() else {
            return planned;
        };
        if let Some(second) = thresholds.next() {
            errors.push(second, "there is one priority, and so one entry");
        }
        planned.limits = Some(LimitsPlan {
            connections: first.max_connections.unwrap_or(MOST),
            pending: first.max_pending_requests.unwrap_or(MOST),
            requests: first.max_requests.unwrap_or(MOST),
            tracked: first.track_remaining.unwrap_or(false),
        });
        planned.retries = match (&first.retry_budget, first.max_retries) {
            (None, None) => planned.retries,
            (None, Some(count)) => RetryLimit::Count(count),
            (Some(budget), _) => {
                let percent = match &budget.budget_percent {
                    None => RETRY_PERCENT,
                    Some(written) if (0.0..=100.0).contains(&written.value.value) => {
                        written.value.value
                    }
                    Some(written) => {
                        errors.push(&written.value, "a percentage is from 0 to 100");
                        RETRY_PERCENT
                    }
                };
                RetryLimit::Budget {
                    percent,
                    least: budget.min_retry_concurrency.unwrap_or(RETRIES_ALWAYS),
                }
            }
        };
        planned
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Document;

    pub(in super::super) fn planned(text: &str) -> Result<BreakersPlan, String> {
        let document = Document::parse("breakers.yaml", text).unwrap();
        let (raw, mut errors) = document.decode_partly::<CircuitBreakers>();
        let planned = raw.map(|raw| BreakersPlan::plan(&raw, &mut errors));
        errors.into_result(planned).map_err(|e| e.to_string())
    }

    #[test]
    fn mistakes_are_reported() {
        for (text, fault) in [
            ("{ thresholds: [{}, {}] }", "one entry"),
            ("{ thresholds: [{ priority: HIGH }] }", "no priorities"),
            (
                "{ thresholds: [{ retry_budget: { budget_percent: { value: 101 } } }] }",
                "from 0 to 100",
            ),
            ("{ per_host_thresholds: [] }", "the whole cluster"),
        ] {
            let error = planned(text).unwrap_err();
            assert!(error.contains(fault), "{text}: {error}");
        }
    }
}
