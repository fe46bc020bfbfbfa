//! One route.

use std::sync::Arc;

use attache_filter::Route;
use http::{HeaderMap, StatusCode, header};

use super::{Changes, DirectResponse, Forward, Redirect, RouteMatch};

/// One route.
#[derive(Debug)]
pub struct RouteEntry {
    /// Which requests it is for.
    pub matches: RouteMatch,
    /// What is done with them.
    pub action: Action,
    /// What the policy layers may know of the route, with their per-route settings.
    pub route: Arc<Route>,
    /// Changes to the headers of requests and responses.
    pub changes: Option<Box<Changes>>,
}

/// What is done with a request.
#[derive(Debug)]
pub enum Action {
    /// Sent to a cluster (`route`).
    Forward(Forward),
    /// Answered here (`direct_response`).
    Direct(DirectResponse),
    /// Sent elsewhere (`redirect`).
    Redirect(Redirect),
    /// Refused with this status: the request names a cluster that does not exist
    /// (`cluster_header`).
    NoCluster(StatusCode),
}

impl RouteEntry {
    /// A route that changes no headers.
    pub fn new(matches: RouteMatch, action: Action, route: Arc<Route>) -> Self {
        Self {
            matches,
            action,
            route,
            changes: None,
        }
    }

    /// Whether the route lets a request with these headers go on: it asks for no upgrade, or for
    /// one that the route lets through.
    pub(crate) fn lets_upgrade(&self, headers: &HeaderMap, listed: &[String]) -> bool {
        let Some(protocol) = headers.get(header::UPGRADE) else {
            return true;
        };
        let protocol = protocol.to_str().unwrap_or_default().trim();
        self.upgrades_to(&protocol.to_ascii_lowercase(), listed)
    }

    /// Whether the route lets a request upgrade to `protocol`, on a listener that does so for
    /// `listed`.
    pub(crate) fn upgrades_to(&self, protocol: &str, listed: &[String]) -> bool {
        let own = match &self.action {
            Action::Forward(forward) => forward.upgrades.iter(),
            Action::Direct(_) | Action::Redirect(_) | Action::NoCluster(_) => [].iter(),
        };
        own.rev()
            .find(|(name, _)| name == protocol)
            .map_or_else(|| listed.iter().any(|l| l == protocol), |(_, on)| *on)
    }
}
