//! Endpoints that requests name themselves: a policy such as an endpoint picker says in a header
//! or in metadata where a request goes. Only to networks that the configuration allows.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use attache_filter::{RequestContext, metadata::find};
use attache_service::{
    Address, Metrics,
    channel::Target,
    cluster::{Described, Local},
    metrics::Counter,
};
use http::HeaderMap;
use prost_types::value::Kind;

use super::{Pool, SWEEPS_PER_IDLE_TIMEOUT};
use crate::plan::{ClusterPlan, DestinationPlan};

/// Addresses of one request that count.
const MAX_NAMED: usize = 16;

/// The endpoints that requests of one worker have named lately.
pub(super) struct Destinations {
    cluster: Arc<ClusterPlan>,
    known: Mutex<HashMap<SocketAddr, Known>>,
    refused: Counter,
    crowded: Counter,
}

struct Known {
    local: Arc<Local<Pool>>,
    /// Sweeps since it was last picked.
    unused: u32,
}

impl Known {
    /// Nobody has it but us.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.local) == 1
    }
}

impl Destinations {
    pub(super) fn new(cluster: Arc<ClusterPlan>, metrics: &Metrics) -> Self {
        let refused = |reason| {
            metrics.counter(
                "attache_upstream_destinations_refused",
                "Requests whose own destination was not used: none that is allowed, or too many endpoints at a time.",
                &[("cluster", &cluster.name), ("reason", reason)],
            )
        };
        Self {
            refused: refused("not_allowed"),
            crowded: refused("max_endpoints"),
            cluster,
            known: Mutex::default(),
        }
    }

    /// The addresses that a request names and may go to.
    pub(super) fn named(&self, headers: &HeaderMap, context: &RequestContext) -> Vec<SocketAddr> {
        let Some(plan) = &self.cluster.destination else {
            return Vec::new();
        };
        let in_metadata = plan.metadata.as_ref().map(|key| {
            context.with_metadata(&key.namespace, |fields| {
                let value = find(fields?, &key.path)?;
                match &value.kind {
                    Some(Kind::StringValue(text)) => Some(allowed(plan, text)),
                    _ => None,
                }
            })
        });
        let in_header = || {
            let value = headers.get(plan.header.as_ref()?)?;
            Some(allowed(plan, value.to_str().ok()?))
        };
        let named = in_metadata.flatten().or_else(in_header);
        let named = named.unwrap_or_default();
        if named.is_empty() {
            self.refused.inc();
        }
        named
    }

    pub(super) fn pick(&self, named: &[SocketAddr], attempt: u32) -> Option<Arc<Local<Pool>>> {
        let turn = usize::try_from(attempt).unwrap_or_default();
        let address = *named.get(turn.checked_rem(named.len())?)?;
        let mut known = self.known();
        if let Some(one) = known.get_mut(&address) {
            one.unused = 0;
            return Some(one.local.clone());
        }
        let max = self.cluster.destination.as_ref()?.max_endpoints;
        if known.len() >= max {
            let idle = known.iter().filter(|(_, one)| one.is_idle());
            let longest = idle.max_by_key(|(_, one)| one.unused);
            let Some(longest) = longest.map(|(address, _)| *address) else {
                self.crowded.inc();
                return None;
            };
            known.remove(&longest);
        }
        let local = self.local(address);
        known.insert(
            address,
            Known {
                local: local.clone(),
                unused: 0,
            },
        );
        Some(local)
    }

    fn local(&self, address: SocketAddr) -> Arc<Local<Pool>> {
        let target = Target::Address(Address::Tcp {
            host: address.ip().to_string(),
            port: address.port(),
        });
        let endpoint = self.cluster.endpoints.outside(&Described::new(target));
        let pool = Pool::new(endpoint.clone(), self.cluster.clone());
        Arc::new(Local::new(endpoint, pool, &self.cluster.balance))
    }

    /// Forgets what has not been named for the idle timeout.
    pub(super) fn sweep(&self) {
        self.known().retain(|_, one| {
            one.local.own.sweep();
            one.unused = one.unused.saturating_add(1);
            one.unused <= SWEEPS_PER_IDLE_TIMEOUT || !one.is_idle()
        });
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SocketAddr, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The addresses in a list with commas between that may be gone to.
fn allowed(plan: &DestinationPlan, text: &str) -> Vec<SocketAddr> {
    let named = text.split(',').take(MAX_NAMED);
    let named = named.filter_map(|one| one.trim().parse::<SocketAddr>().ok());
    named
        .filter(|one| {
            let ip = one.ip().to_canonical();
            plan.allowed.iter().any(|network| network.contains(&ip))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destinations(max_endpoints: usize) -> (Destinations, Metrics) {
        let mut plan = ClusterPlan::new("picked", []);
        plan.destination = Some(DestinationPlan {
            header: Some(http::HeaderName::from_static("x-to")),
            metadata: None,
            allowed: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            max_endpoints,
        });
        let metrics = Metrics::default();
        (Destinations::new(Arc::new(plan), &metrics), metrics)
    }

    fn named(destinations: &Destinations, text: &str) -> Vec<String> {
        let headers =
            HeaderMap::from_iter([(http::HeaderName::from_static("x-to"), text.parse().unwrap())]);
        let context = RequestContext::new(Arc::default(), http::Version::HTTP_11);
        let named = destinations.named(&headers, &context);
        named.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_allowed_addresses_are_gone_to() {
        let (destinations, metrics) = destinations(10);
        for (text, wanted) in [
            ("10.1.2.3:80", vec!["10.1.2.3:80"]),
            ("10.0.0.1:1, 10.0.0.2:2", vec!["10.0.0.1:1", "10.0.0.2:2"]),
            ("127.0.0.1:80,10.0.0.2:2", vec!["10.0.0.2:2"]),
            ("[::ffff:10.0.0.1]:80", vec!["[::ffff:10.0.0.1]:80"]),
            ("[fd00::1]:80", vec!["[fd00::1]:80"]),
        ] {
            assert_eq!(named(&destinations, text), wanted, "{text}");
        }
        for text in [
            "127.0.0.1:80",
            "[::ffff:127.0.0.1]:80",
            "web:80",
            "10.0.0.1",
            "",
            ",",
        ] {
            assert!(named(&destinations, text).is_empty(), "{text}");
        }
        let counted = "destinations_refused_total{cluster=\"picked\",reason=\"not_allowed\"} 6";
        assert!(metrics.render().contains(counted), "{}", metrics.render());
    }

    #[test]
    fn the_next_address_is_for_the_next_attempt() {
        let (destinations, _) = destinations(10);
        let named: Vec<SocketAddr> = ["10.0.0.1:1", "10.0.0.2:2"]
            .map(|a| a.parse().unwrap())
            .into();
        let order = (0..3).map(|attempt| {
            let local = destinations.pick(&named, attempt).unwrap();
            local.endpoint.to_string()
        });
        let order: Vec<_> = order.collect();
        assert_eq!(order, ["10.0.0.1:1", "10.0.0.2:2", "10.0.0.1:1"]);
    }

    #[test]
    fn one_in_use_is_never_dropped_for_another() {
        let (destinations, metrics) = destinations(1);
        let at = |text: &str| vec![text.parse::<SocketAddr>().unwrap()];
        let busy = destinations.pick(&at("10.0.0.1:1"), 0).unwrap();
        assert!(destinations.pick(&at("10.0.0.2:2"), 0).is_none());
        assert!(metrics.render().contains("reason=\"max_endpoints\"} 1"));
        drop(busy);
        assert!(destinations.pick(&at("10.0.0.2:2"), 0).is_some());
        assert_eq!(destinations.known().len(), 1);
    }

    #[test]
    fn one_that_is_no_longer_named_is_forgotten() {
        let (destinations, _) = destinations(10);
        drop(destinations.pick(&["10.0.0.1:1".parse().unwrap()], 0));
        for _ in 0..=SWEEPS_PER_IDLE_TIMEOUT {
            assert_eq!(destinations.known().len(), 1);
            destinations.sweep();
        }
        assert!(destinations.known().is_empty());
    }
}
