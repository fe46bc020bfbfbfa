//! The policy services that a worker can call, by cluster name.

use std::{collections::HashMap, sync::Arc};

use attache_service::Channel;

/// One worker's channels, by cluster name. Cheap to clone.
#[derive(Clone, Default)]
pub struct Channels(Arc<HashMap<String, Channel>>);

impl Channels {
    /// The channel to `cluster`, if such a cluster exists.
    pub fn get(&self, cluster: &str) -> Option<&Channel> {
        self.0.get(cluster)
    }
}

impl FromIterator<Channel> for Channels {
    fn from_iter<I: IntoIterator<Item = Channel>>(channels: I) -> Self {
        Self(Arc::new(
            channels
                .into_iter()
                .map(|c| (c.name().to_owned(), c))
                .collect(),
        ))
    }
}
