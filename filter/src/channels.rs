//! The policy services that a worker can call, by cluster name: over gRPC, or plain HTTP.

use std::{collections::HashMap, sync::Arc};

use attache_service::{Channel, HttpClient};

/// One worker's channels, by cluster name. Cheap to clone.
#[derive(Clone, Default)]
pub struct Channels(Arc<Inner>);

#[derive(Clone, Default)]
struct Inner {
    grpc: HashMap<String, Channel>,
    http: HashMap<String, HttpClient>,
}

impl Channels {
    /// The channel to `cluster`, if such a cluster exists.
    pub fn get(&self, cluster: &str) -> Option<&Channel> {
        self.0.grpc.get(cluster)
    }

    /// The HTTP client of `cluster`, if it is among them.
    pub fn http(&self, cluster: &str) -> Option<&HttpClient> {
        self.0.http.get(cluster)
    }

    /// The clusters with an HTTP client: in the proxy, all.
    pub fn http_clusters(&self) -> impl Iterator<Item = &str> {
        self.0.http.keys().map(String::as_str)
    }

    /// Adds HTTP clients.
    #[must_use]
    pub fn with_http(mut self, clients: impl IntoIterator<Item = HttpClient>) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        let named = clients.into_iter().map(|c| (c.name().to_string(), c));
        inner.http.extend(named);
        self
    }
}

impl FromIterator<Channel> for Channels {
    fn from_iter<I: IntoIterator<Item = Channel>>(channels: I) -> Self {
        let named = channels.into_iter().map(|c| (c.name().to_owned(), c));
        Self(Arc::new(Inner {
            grpc: named.collect(),
            http: HashMap::new(),
        }))
    }
}
