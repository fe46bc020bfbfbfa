//! `overload`, as written.

use std::time::Duration;

use attache_service::{
    config::{Located, Size},
    config_struct,
};

config_struct! {
    /// When requests are answered with 503 before any policy is asked, for want of memory.
    pub struct Overload {
        /// Resident memory of the process from which requests are refused.
        pub max_memory: Option<Located<Size>>,
        /// The same as a part, above 0 and up to 1, of what the process may have by its cgroup.
        pub max_memory_share: Option<Located<f64>>,
        /// The part of that below which requests are taken again. Default 0.9.
        pub resume: Option<Located<f64>>,
        /// How often is looked. Default 250ms.
        pub refresh_interval: Option<Located<Duration>>,
    }
}
