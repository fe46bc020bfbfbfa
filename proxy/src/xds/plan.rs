//! The control plane of a configuration, as it is asked.

use std::{fmt, path::PathBuf, time::Duration};

use attache_service::xds::AdsSettings;

use crate::config::DiscoveredType;

/// How long the first answer may take unless configured, as in Envoy.
pub const DEFAULT_INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// What is asked for unless configured.
pub const DEFAULT_RESOURCES: &[DiscoveredType] =
    &[DiscoveredType::Clusters, DiscoveredType::Listeners];

/// A control plane to ask.
#[derive(Clone)]
pub struct XdsPlan {
    /// Where it is, and who asks.
    pub settings: AdsSettings,
    /// What it is asked for as a whole.
    pub resources: Vec<DiscoveredType>,
    /// How long the first answer about something may take.
    pub initial_fetch_timeout: Duration,
    /// The file that keeps the last good resources.
    pub cache: Option<PathBuf>,
    /// What it was made of, to see whether a reload leaves it as it is.
    pub(crate) written: String,
}

/// Without the headers of the call.
impl fmt::Debug for XdsPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XdsPlan")
            .field("cluster", &self.settings.channel.name)
            .field("resources", &self.resources)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}
