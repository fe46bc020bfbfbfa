//! Which service a policy layer calls over plain HTTP: Envoy's `HttpUri`.

use std::time::Duration;

use attache_service::{config::Located, config_struct};

config_struct! {
    /// Envoy's `config.core.v3.HttpUri`.
    pub struct HttpUri {
        /// Where requests go; each filter says which parts of it count.
        pub uri: Located<String>,
        /// Name of a cluster of this configuration.
        pub cluster: Located<String>,
        /// Bound on one answer; each filter says what `0s` means.
        pub timeout: Duration,
    }
}
