//! Decisions that are kept.

use std::time::Duration;

use attache_service::{config::Located, config_struct};

config_struct! {
    /// Decisions that are kept for requests that are alike in all that the decision looked at.
    /// They end with the token or certificate that they rest on, and when the policy, its data
    /// or its keys change.
    pub struct DecisionCache {
        /// Decisions to keep; those used least go first. Default 10000; 0 keeps none.
        pub size: Option<Located<u32>>,
        /// How long a request is allowed without asking again, at most 1 h. Default 30 s.
        pub ttl: Option<Located<Duration>>,
        /// How long a request is denied without asking again. Default 5 s, at most `ttl`.
        pub negative_ttl: Option<Located<Duration>>,
        /// How long after its time a decision to allow still stands in, at most 1 h: while one
        /// check asks anew, and when no decision can be reached. Default: not at all.
        pub stale: Option<Located<Duration>>,
    }
}
