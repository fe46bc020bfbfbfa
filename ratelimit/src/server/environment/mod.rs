//! The environment variables of the reference service, `envoyproxy/ratelimit`, with which this one
//! takes its place.
//!
//! - `variables`: reading them, in Go's syntax.
//! - `listen`: addresses, TLS, age of connections.
//! - `log`: what is logged.
//! - `rules`: where the rules come from.
//! - `limits`: how is counted and answered.
//! - `store`: where counters live.
//! - `statistics`: where statistics go.
//! - `tracing`: where spans go.
//!
//! All that is wrong is told at once, each with its name and value. Variables that the reference
//! does not know are passed over, as it does: others use the environment too.

mod limits;
mod listen;
mod log;
mod rules;
mod statistics;
mod store;
mod tracing;
mod variables;

use std::fmt;

pub use limits::Counting;
pub use listen::Listen;
pub use log::Log;
pub use rules::RulesFrom;
pub use store::StoreWait;
pub use tracing::Tracing;
use variables::Variables;
pub use variables::{Note, VariableError};

use super::{Answers, StoreSettings, sink::StatisticsSettings};

/// All that the variables say.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Where the service listens.
    pub listen: Listen,
    /// What is logged.
    pub log: Log,
    /// Where the rules come from.
    pub rules: RulesFrom,
    /// Listen before there are rules. Default false.
    pub start_without_rules: bool,
    /// Healthy only while there is at least one domain. Default false.
    pub healthy_with_rules: bool,
    /// Unhealthy while there is no connection to Redis. Default false: once there was one, it is
    /// healthy.
    pub health_follows_store: bool,
    /// How is counted.
    pub counting: Counting,
    /// What is answered beside the statuses.
    pub answers: Answers,
    /// Where counters live.
    pub store: StoreSettings,
    /// How long is waited for the store when the service starts.
    pub store_wait: StoreWait,
    /// Where statistics go.
    pub statistics: StatisticsSettings,
    /// Where spans go; nowhere when absent.
    pub tracing: Option<Tracing>,
    /// What is set and has no effect.
    pub notes: Vec<Note>,
}

/// All variables that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentErrors(pub Vec<VariableError>);

impl fmt::Display for EnvironmentErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the environment is wrong:")?;
        for error in &self.0 {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for EnvironmentErrors {}

/// Variables that nothing but the reference service has: one of them means that this program is to
/// take its place.
const TELLING: [&str; 13] = [
    "BACKEND_TYPE",
    "CONFIG_TYPE",
    "GRPC_PORT",
    "GRPC_UDS",
    "LIMIT_RESPONSE_HEADERS_ENABLED",
    "MEMCACHE_HOST_PORT",
    "REDIS_SOCKET_TYPE",
    "REDIS_TYPE",
    "REDIS_URL",
    "RUNTIME_ROOT",
    "RUNTIME_SUBDIRECTORY",
    "USE_PROMETHEUS",
    "USE_STATSD",
];

impl Environment {
    /// Whether this environment is meant for the reference service.
    pub fn is_meant(lookup: &dyn Fn(&str) -> Option<String>) -> bool {
        TELLING.iter().any(|name| lookup(name).is_some())
    }

    /// Reads all variables.
    ///
    /// # Errors
    /// All that cannot be used.
    pub fn read(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, EnvironmentErrors> {
        let mut variables = Variables::new(lookup);
        let counting = Counting::read(&mut variables);
        let environment = Self {
            listen: Listen::read(&mut variables),
            log: Log::read(&mut variables),
            rules: RulesFrom::read(&mut variables),
            start_without_rules: variables.flag("FORCE_START_WITHOUT_INITIAL_CONFIG", false),
            healthy_with_rules: variables.flag("HEALTHY_WITH_AT_LEAST_ONE_CONFIG_LOADED", false),
            health_follows_store: variables.flag("REDIS_HEALTH_CHECK_ACTIVE_CONNECTION", false),
            answers: limits::answers(&mut variables),
            store: store::read(&mut variables, &counting),
            store_wait: StoreWait::read(&mut variables),
            statistics: statistics::read(&mut variables),
            tracing: Tracing::read(&mut variables),
            counting,
            notes: std::mem::take(&mut variables.notes),
        };
        match variables.errors.is_empty() {
            true => Ok(environment),
            false => Err(EnvironmentErrors(variables.errors)),
        }
    }
}

#[cfg(test)]
mod tests;
