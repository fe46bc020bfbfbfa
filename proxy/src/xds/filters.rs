//! The names of policies: each listener has its own in Envoy, and all share one set of names here.

use std::collections::BTreeMap;

use attache_service::config::{Located, Node};

use crate::config::{ClusterSpecifier, FilterConfig, Route, RouteConfiguration, Step};

/// The policies of all listeners.
pub(super) type Filters = BTreeMap<String, Located<FilterConfig>>;
/// The name here of each policy of one listener.
pub(super) type Names = BTreeMap<String, String>;

/// Adds the policies of a listener: one that is already there as it is, another that has the same
/// name under a further one.
pub(super) fn add(own: &Filters, all: &mut Filters) -> Names {
    let mut names = Names::new();
    for (name, filter) in own {
        let mut ours = name.clone();
        let mut nth = 2;
        while all.get(&ours).is_some_and(|other| other != filter) {
            ours = format!("{name}-{nth}");
            nth += 1;
        }
        all.entry(ours.clone()).or_insert_with(|| filter.clone());
        names.insert(name.clone(), ours);
    }
    names
}

/// Gives the settings of policies in a route table their names here. Settings of policies that
/// the listener does not have are without effect, and left out.
pub(super) fn rename(table: &mut RouteConfiguration, names: &Names) {
    for host in &mut table.virtual_hosts {
        settings(&mut host.typed_per_filter_config, names);
        host.routes.iter_mut().for_each(|one| route(one, names));
    }
    table.routes.iter_mut().for_each(|one| route(one, names));
}

fn route(route: &mut Route, names: &Names) {
    settings(&mut route.typed_per_filter_config, names);
    if let Step::Route(action) = &mut route.action
        && let ClusterSpecifier::WeightedClusters(weighted) = &mut action.cluster
    {
        for cluster in &mut weighted.clusters.value {
            settings(&mut cluster.typed_per_filter_config, names);
        }
    }
}

fn settings(settings: &mut BTreeMap<String, Node>, names: &Names) {
    if settings.is_empty() {
        return;
    }
    let before = std::mem::take(settings);
    let named = before.into_iter();
    settings.extend(named.filter_map(|(name, node)| Some((names.get(&name)?.clone(), node))));
}
