//! From what was written to what runs: names resolved, values checked, defaults filled in.

mod access_log;
mod cluster;
mod limits;
mod listener;
mod live_page;
mod local_reply;
mod overload;
mod route;
mod tracing;
mod xds;

use std::{collections::HashMap, sync::Arc, time::Duration};

use attache_filter::metadata::{RouteMetadata, StructValue};
use attache_service::{
    Address,
    admin::{AdminError, is_local},
    config::{Document, Errors, Located},
    listen::ListenAddress,
};

use super::{Cluster, Config, DrainConfig, EmbeddedServices, Listener, RouteSpecifier, Target};
use crate::{
    Plan,
    filters::{FilterPlans, OnRoutes},
    plan::DEFAULT_DRAIN_TIMEOUT,
    policies::{self, Planned},
    route::RouteTable,
};

/// Builds the plan. `None` only after an error was added.
pub(super) fn plan(
    config: &Config,
    document: &Document,
    embedded: &dyn EmbeddedServices,
    errors: &mut Errors,
) -> Option<Plan> {
    let builder = Builder {
        document,
        embedded,
        discovers: config.xds.is_some(),
    };
    let clusters: Vec<_> = config
        .clusters
        .iter()
        .map(|cluster| builder.cluster(cluster, errors))
        .collect();
    let names = cluster_names(&config.clusters, errors);
    let tracing = config.tracing.as_ref();
    let tracing = tracing.and_then(|raw| tracing::plan(raw, &names, &clusters, errors));
    let policies = builder.policies(config, &names, errors);
    let scope = Scope {
        clusters: &names,
        policies: &policies,
        validate_clusters: true,
    };
    let routes = builder.routes(config.into(), &scope, errors);
    let tables = builder.route_configs(config, &scope, errors);
    let xds = config.xds.as_ref();
    let xds = xds.and_then(|raw| builder.xds(raw, config, &names, &clusters, errors));
    let listeners: Vec<_> = config
        .listeners
        .iter()
        // Those whose routes are still to come from the control plane wait.
        .filter(|listener| !builder.discovers || has_routes(listener, &tables))
        .map(|l| builder.listener(l, &tables, &scope, errors))
        .collect();
    if config.listeners.is_empty() && config.xds.is_none() {
        errors.push(document.root(), "`listeners` needs at least one listener");
    }
    listener_names(&config.listeners, errors);
    if let Some(address) = &config.admin
        && !is_local(&address.value)
    {
        errors.push(
            address,
            AdminError::NotLoopback(address.value.clone()).to_string(),
        );
    }
    let overload = config
        .overload
        .as_ref()
        .and_then(|raw| overload::overload(raw, errors));
    let masks = live_page::masks(config.live_page.as_ref(), errors);
    let workers = match &config.workers {
        Some(workers) if workers.value == 0 || workers.value > 1024 => {
            errors.push(
                workers,
                "`workers` is between 1 and 1024; leave it out for one per core",
            );
            0
        }
        Some(workers) => workers.value,
        None => 0,
    };
    let (drain_min, drain_timeout) = drain(config.drain.as_ref(), errors);
    let max_connections = config.max_active_downstream_connections.as_ref();
    let max_connections = limits::positive(max_connections, "nobody could connect", errors);
    let mut filters = FilterPlans::default();
    for (name, policy) in policies {
        if let Some(policy) = policy {
            let disabled = config.filters.get(&name).is_some_and(|raw| raw.disabled);
            let policy = match disabled {
                true => Arc::new(OnRoutes::new(&name, policy.as_policy())),
                false => policy.as_policy(),
            };
            filters.insert(name.as_str(), policy);
        }
    }
    Some(Plan {
        listeners: listeners
            .into_iter()
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .map(Arc::new)
            .collect(),
        routes: Arc::new(routes),
        clusters: clusters
            .into_iter()
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .map(Arc::new)
            .collect(),
        tracing,
        xds,
        filters,
        workers,
        drain_min,
        drain_timeout,
        max_connections,
        overload,
        masks,
    })
}

/// The least and the most time that a drain takes.
fn drain(raw: Option<&Located<DrainConfig>>, errors: &mut Errors) -> (Duration, Duration) {
    let min = raw.and_then(|raw| raw.value.min).unwrap_or_default();
    let max = raw.and_then(|raw| raw.value.max);
    let max = max.unwrap_or(DEFAULT_DRAIN_TIMEOUT);
    if let Some(raw) = raw
        && min > max
    {
        errors.push(raw, "`min` is longer than `max` (by default 30s)");
    }
    (min, max)
}

/// The policies by name; `None` for those with mistakes, so that their names still count.
type Policies = HashMap<String, Option<Planned>>;
/// The route tables that listeners may name.
type Tables = HashMap<String, Arc<RouteTable>>;
/// Index and kind of each cluster.
type ClusterNames<'c> = HashMap<&'c str, (usize, &'c Cluster)>;

struct Builder<'d> {
    document: &'d Document,
    embedded: &'d dyn EmbeddedServices,
    /// There is a control plane: clusters that policies call, and routes that listeners name, may
    /// come from it.
    discovers: bool,
}

/// What routes may refer to.
struct Scope<'s> {
    clusters: &'s ClusterNames<'s>,
    policies: &'s Policies,
    /// Whether to refuse routes to clusters that there are not.
    validate_clusters: bool,
}

impl Scope<'_> {
    fn cluster_metadata(&self, name: &str) -> Arc<RouteMetadata> {
        let cluster = self.clusters.get(name);
        let metadata = cluster.and_then(|(_, cluster)| cluster.metadata.as_ref());
        metadata.map(RouteMetadata::plan).unwrap_or_default().into()
    }
}

fn cluster_names<'c>(clusters: &'c [Cluster], errors: &mut Errors) -> ClusterNames<'c> {
    let mut names = HashMap::new();
    for (index, cluster) in clusters.iter().enumerate() {
        if names
            .insert(cluster.name.as_str(), (index, cluster))
            .is_some()
        {
            errors.push(
                &cluster.name,
                format!("there are two clusters `{}`", cluster.name.value),
            );
        }
    }
    names
}

fn listener_names(listeners: &[Listener], errors: &mut Errors) {
    for (index, listener) in listeners.iter().enumerate() {
        let earlier = || listeners.iter().take(index);
        if earlier().any(|other| other.name == listener.name) {
            let message = format!("there are two listeners `{}`", listener.name.value);
            errors.push(&listener.name, message);
        }
        let system_chooses = matches!(
            listener.address.value,
            ListenAddress::At(Address::Tcp { port: 0, .. })
        );
        if !system_chooses && earlier().any(|other| other.address == listener.address) {
            let message = format!(
                "another listener has the address `{}`",
                listener.address.value
            );
            errors.push(&listener.address, message);
        }
    }
}

impl Builder<'_> {
    fn policies(
        &self,
        config: &Config,
        clusters: &ClusterNames<'_>,
        errors: &mut Errors,
    ) -> Policies {
        let mut policies = Policies::new();
        let node = config.node.as_ref();
        let metadata = node.and_then(|node| node.metadata.as_ref());
        let node = policies::Node {
            metadata: metadata.map(StructValue::value).unwrap_or_default(),
            cluster: node
                .and_then(|node| node.cluster.clone())
                .unwrap_or_default(),
        };
        for (name, filter) in &config.filters {
            let planned = Planned::new(name, &filter.value.policy, &node, errors);
            for cluster in planned.iter().flat_map(Planned::clusters) {
                self.policy_cluster(&cluster, clusters, errors);
            }
            for cluster in planned.iter().flat_map(Planned::http_clusters) {
                self.known_cluster(&cluster, clusters, errors);
            }
            policies.insert(name.clone(), planned);
        }
        policies
    }

    /// A cluster that is called over gRPC must exist and speak HTTP/2.
    fn policy_cluster(
        &self,
        name: &Located<String>,
        clusters: &ClusterNames<'_>,
        errors: &mut Errors,
    ) {
        match clusters.get(name.as_str()) {
            None => self.known_cluster(name, clusters, errors),
            Some((_, cluster)) => {
                let embedded = matches!(cluster.target.value, Target::Embedded(_));
                if cluster.http2.is_none() && !embedded {
                    errors.push(
                        name,
                        format!(
                            "cluster `{}` is called over gRPC and needs `http2: {{}}`",
                            name.value
                        ),
                    );
                }
            }
        }
    }

    /// A cluster that is called over plain HTTP must exist, or come.
    fn known_cluster(
        &self,
        name: &Located<String>,
        clusters: &ClusterNames<'_>,
        errors: &mut Errors,
    ) {
        if !self.discovers && !clusters.contains_key(name.as_str()) {
            errors.unknown_name(name, "cluster", clusters.keys().copied());
        }
    }
}

fn has_routes(listener: &Listener, tables: &Tables) -> bool {
    match listener.route_specifier.as_ref().map(|own| &own.value) {
        Some(RouteSpecifier::RouteConfigName(name)) => tables.contains_key(name.as_str()),
        Some(RouteSpecifier::RouteConfig(_)) | None => true,
    }
}
