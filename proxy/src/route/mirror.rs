//! Where copies of requests go (`RequestMirrorPolicy`).

use attache_filter::fraction::Fraction;
use http::HeaderValue;

use super::HeaderChanges;

/// Copies of requests for another cluster.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Index of the cluster in [`crate::Plan::clusters`].
    pub cluster: usize,
    /// Which part of the requests is copied.
    pub fraction: Fraction,
    /// The host of the copies.
    pub host: MirrorHost,
    /// Changes to the headers of the copies.
    pub changes: Vec<HeaderChanges>,
}

/// The host of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorHost {
    /// With `-shadow` behind its name.
    Shadow,
    /// As it is (`disable_shadow_host_suffix_append`).
    Same,
    /// This one (`host_rewrite_literal`).
    Literal(HeaderValue),
}
