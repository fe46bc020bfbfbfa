//! `retry_policy` of routes, as written: Envoy's `config.route.v3.RetryPolicy`.

use std::time::Duration;

use attache_filter::matcher::HeaderMatcher;
use attache_service::{config::Located, config_enum, config_struct};

config_struct! {
    /// When a request is sent again (Envoy's `config.route.v3.RetryPolicy`). All attempts are
    /// within the route's `timeout`, and each goes to another endpoint where there is one.
    #[derive(Default)]
    pub struct RetryPolicy {
        /// After which failures, with commas between: `5xx`, `gateway-error`, `reset`,
        /// `reset-before-request`, `connect-failure`, `refused-stream`, `envoy-ratelimited`,
        /// `retriable-4xx`, `retriable-headers`, `retriable-status-codes`, and for gRPC
        /// `cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`.
        /// Default: after none.
        pub retry_on: Option<Located<String>>,
        /// Attempts after the first. Default 1.
        pub num_retries: Option<u32>,
        /// Bound on each attempt, up to the head of the response, also where there are no
        /// retries. Default: none of its own.
        pub per_try_timeout: Option<Duration>,
        /// Longest silence of each attempt, up to the head of the response. Default: none of its
        /// own.
        pub per_try_idle_timeout: Option<Duration>,
        /// The statuses of `retriable-status-codes`.
        pub retriable_status_codes: Vec<Located<u16>>,
        /// The headers of `retriable-headers`: any of them.
        pub retriable_headers: Vec<HeaderMatcher>,
        /// Only requests with any of these headers are sent again. Default: all requests.
        pub retriable_request_headers: Vec<HeaderMatcher>,
        /// Pauses between attempts. Default: up to 25 ms at first, up to 250 ms later.
        pub retry_back_off: Option<RetryBackOff>,
        /// Pauses that the upstream asks for.
        pub rate_limited_retry_back_off: Option<RateLimitedRetryBackOff>,
        /// `envoy.retry_host_predicates.previous_hosts`: endpoints that have failed are not asked
        /// again, which holds here in any case.
        pub retry_host_predicate: Vec<HostPredicate>,
        /// How often another endpoint is looked for. Default 3 (Envoy: 1).
        pub host_selection_retry_max_attempts: Option<u32>,
    }
    elsewhere {
        "retry_priority" => "there are no priorities here",
        "retry_options_predicates" => "extensions of Envoy are not loaded",
    }
}

config_struct! {
    /// Which endpoints are not asked again (Envoy's `RetryPolicy.RetryHostPredicate`).
    pub struct HostPredicate {
        /// The predicate.
        pub name: PredicateName,
        /// It has no settings.
        pub typed_config: Option<PreviousHosts>,
    }
}

config_struct! {
    /// The settings of a predicate, which has none.
    pub struct PreviousHosts {}
    envoy_type = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
}

config_enum! {
    /// The name of a predicate on endpoints.
    pub enum PredicateName {
        /// Endpoints that have been asked.
        PreviousHosts = "envoy.retry_host_predicates.previous_hosts",
    }
    elsewhere {
        "envoy.retry_host_predicates.omit_canary_hosts" => "there are no canaries",
        "envoy.retry_host_predicates.omit_host_metadata" => "endpoints have no metadata",
    }
}

config_struct! {
    /// Pauses between attempts (Envoy's `RetryPolicy.RetryBackOff`).
    pub struct RetryBackOff {
        /// Bound of the first pause, doubled for each further one; pauses are chosen at random
        /// below it. At least 1 ms.
        pub base_interval: Located<Duration>,
        /// Bound of all pauses. Default ten times `base_interval`.
        pub max_interval: Option<Located<Duration>>,
    }
}

config_struct! {
    /// Pauses that the upstream asks for (Envoy's `RetryPolicy.RateLimitedRetryBackOff`).
    pub struct RateLimitedRetryBackOff {
        /// Where it says so: the first of these that can be read.
        pub reset_headers: Vec<ResetHeader>,
        /// A longer pause is not made: `retry_back_off` counts then. Default 300s.
        pub max_interval: Option<Located<Duration>>,
    }
}

config_struct! {
    /// A header that says when to ask again (Envoy's `RetryPolicy.ResetHeader`).
    pub struct ResetHeader {
        /// Its name.
        pub name: Located<String>,
        /// What it says. Default `SECONDS`.
        pub format: Option<ResetHeaderFormat>,
    }
}

config_enum! {
    /// What a header says that tells when to ask again.
    pub enum ResetHeaderFormat {
        /// In so many seconds.
        Seconds = "SECONDS",
        /// At this time, in seconds since 1970.
        UnixTimestamp = "UNIX_TIMESTAMP",
    }
}
