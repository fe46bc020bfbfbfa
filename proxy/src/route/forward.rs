//! Where and how a request goes on.

use std::time::Duration;

use http::HeaderValue;

use super::{HashPolicy, HostRewrite, InternalRedirect, Mirror, PathRewrite};
use crate::{retry::Retry, stream_duration::StreamDuration};

/// Where and how to forward (`RouteAction`).
#[derive(Debug, Clone)]
pub struct Forward {
    /// Index of the cluster in [`crate::Plan::clusters`].
    pub cluster: usize,
    /// From the end of the request to the end of the response. Default 15 s; `None` is forever.
    pub timeout: Option<Duration>,
    /// Longest silence of a stream. Default 5 min; `None` is forever.
    pub idle_timeout: Option<Duration>,
    /// The path for the upstream, where it changes.
    pub path_rewrite: Option<PathRewrite>,
    /// The host for the upstream, where it changes.
    pub host_rewrite: Option<HostRewrite>,
    /// A host that changes is added to `x-forwarded-host` before (`append_x_forwarded_host`).
    pub append_forwarded_host: bool,
    /// Copies of requests (`request_mirror_policies`).
    pub mirrors: Vec<Mirror>,
    /// `Upgrade` protocols, lower case, that are let through here or not, whatever the listener
    /// says (`upgrade_configs`).
    pub upgrades: Vec<(String, bool)>,
    /// `CONNECT` ends here, and its tunnel goes to the cluster over TCP (`upgrade_configs` with
    /// a `connect_config`).
    pub connect: bool,
    /// Bound on the whole stream (`max_stream_duration`); that of the listener when absent.
    pub stream_duration: Option<Box<StreamDuration>>,
    /// What its endpoint is chosen by, where the cluster hashes (`hash_policy`).
    pub hash_policy: Vec<HashPolicy>,
    /// When a request is sent again (`retry_policy`).
    pub retry: Option<Box<Retry>>,
    /// Redirects of the upstream that are followed here (`internal_redirect_policy`).
    pub internal_redirect: Option<Box<InternalRedirect>>,
    expected_ms: Option<HeaderValue>,
}

/// Envoy's route timeout.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's stream idle timeout.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

impl Forward {
    /// To a cluster, with Envoy's defaults.
    pub fn to(cluster: usize) -> Self {
        Self {
            cluster,
            timeout: None,
            idle_timeout: Some(DEFAULT_IDLE_TIMEOUT),
            path_rewrite: None,
            host_rewrite: None,
            append_forwarded_host: false,
            mirrors: Vec::new(),
            upgrades: Vec::new(),
            connect: false,
            stream_duration: None,
            hash_policy: Vec::new(),
            retry: None,
            internal_redirect: None,
            expected_ms: None,
        }
        .with_timeout(Some(DEFAULT_TIMEOUT))
    }

    /// Sets the timeout, and with it the `x-envoy-expected-rq-timeout-ms` for the upstream.
    pub fn with_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout.filter(|timeout| !timeout.is_zero());
        self.expected_ms = self
            .timeout
            .and_then(|timeout| u64::try_from(timeout.as_millis()).ok())
            .map(HeaderValue::from);
        self
    }

    pub(crate) fn expected_ms(&self) -> Option<&HeaderValue> {
        self.expected_ms.as_ref()
    }
}
