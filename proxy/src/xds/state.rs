//! What a control plane has said, and what of it is in use. No I/O.
//!
//! A resource comes into use when what it needs is there, as in Envoy: a cluster when its
//! endpoints came, a route table when no cluster that it names still waits for them, a listener
//! when its route table is in use. Until then the one before stays. What does not come within the
//! time for a first answer is done without.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use attache_service::{
    config::{ConfigError, Document, Errors, Located},
    xds::{Refusal, Resource, ResourceType, Update},
};

use super::{
    cache::Saved,
    filters::{self, Filters, Names},
    resource::{Assignment, Cluster, Convert, Kept, Listener, Table, title},
};
use crate::{
    StartError,
    access_log::Sink,
    config::{Config, RouteConfiguration, RouteSpecifier, Target},
};

/// Resources of one type by name.
type ByName<T> = BTreeMap<String, Arc<Kept<T>>>;

/// Resources as they were said last, and those in use.
pub(super) struct Stages<T> {
    pub(super) latest: ByName<T>,
    pub(super) active: ByName<T>,
}

impl<T> Default for Stages<T> {
    fn default() -> Self {
        Self {
            latest: ByName::default(),
            active: ByName::default(),
        }
    }
}

impl<T> Clone for Stages<T> {
    fn clone(&self) -> Self {
        Self {
            latest: self.latest.clone(),
            active: self.active.clone(),
        }
    }
}

impl<T> Stages<T> {
    fn is_settled(&self, name: &str) -> bool {
        match (self.latest.get(name), self.active.get(name)) {
            (Some(latest), Some(active)) => Arc::ptr_eq(latest, active),
            (None, _) => true,
            (Some(_), None) => false,
        }
    }

    /// Brings into use what is ready.
    fn settle(&mut self, ready: impl Fn(&Kept<T>) -> bool) {
        for (name, latest) in &self.latest {
            if ready(latest) {
                self.active.insert(name.clone(), latest.clone());
            }
        }
    }
}

/// A resource by its type and name.
pub(super) type Key = (ResourceType, String);

/// All that is known.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) clusters: Stages<Cluster>,
    pub(super) assignments: ByName<Assignment>,
    pub(super) tables: Stages<Table>,
    pub(super) listeners: Stages<Listener>,
    /// What is done without, as it did not come in time or does not exist.
    pub(super) given_up: BTreeSet<Key>,
    /// Listeners that the system does not let run as they were told last, and why.
    pub(super) held: BTreeMap<String, String>,
    /// The first clusters have their endpoints: listeners may begin, as in Envoy.
    pub(super) begun: bool,
}

impl State {
    /// Takes over what an update says, as far as it can be read; gives what was refused.
    pub(super) fn take(
        &mut self,
        update: &Update,
        refused: &BTreeMap<String, String>,
        base: &Config,
    ) -> Vec<Refusal> {
        match update.resource_type {
            ResourceType::CLUSTER => {
                let taken = base.clusters.iter().map(|c| c.name.as_str()).collect();
                take(&mut self.clusters.latest, update, refused, &taken)
            }
            ResourceType::LISTENER => {
                let taken = base.listeners.iter().map(|l| l.name.as_str()).collect();
                let told = update.resources.iter().map(|one| &one.name);
                for name in told.chain(&update.removed) {
                    self.held.remove(name);
                }
                take(&mut self.listeners.latest, update, refused, &taken)
            }
            ResourceType::ROUTE_CONFIGURATION => {
                let taken = base.route_configs.keys().map(String::as_str).collect();
                self.without(update);
                let kept = self.tables.latest.clone();
                let refusals = take(&mut self.tables.latest, update, refused, &taken);
                // A table ends with the last listener that names it.
                keep(&mut self.tables.latest, kept);
                refusals
            }
            ResourceType::CLUSTER_LOAD_ASSIGNMENT => {
                self.without(update);
                let kept = self.assignments.clone();
                let refusals = take(&mut self.assignments, update, refused, &BTreeSet::new());
                keep(&mut self.assignments, kept);
                refusals
            }
            other => vec![Refusal {
                name: other.name().to_owned(),
                reason: "was not asked for".to_owned(),
            }],
        }
    }

    /// Takes over resources that were in force at an earlier time; gives what cannot be used.
    pub(super) fn adopt(
        &mut self,
        kind: ResourceType,
        resources: Vec<Resource>,
        base: &Config,
    ) -> Vec<Refusal> {
        let clusters = base.clusters.iter().map(|c| c.name.as_str()).collect();
        let listeners = base.listeners.iter().map(|l| l.name.as_str()).collect();
        match kind {
            ResourceType::CLUSTER => adopt(&mut self.clusters.latest, resources, &clusters),
            ResourceType::LISTENER => adopt(&mut self.listeners.latest, resources, &listeners),
            ResourceType::ROUTE_CONFIGURATION => {
                adopt(&mut self.tables.latest, resources, &BTreeSet::new())
            }
            _ => adopt(&mut self.assignments, resources, &BTreeSet::new()),
        }
    }

    /// What is in force, as it came.
    pub(super) fn saved(&self) -> Saved {
        vec![
            (ResourceType::CLUSTER, saved(&self.clusters.latest)),
            (
                ResourceType::CLUSTER_LOAD_ASSIGNMENT,
                saved(&self.assignments),
            ),
            (ResourceType::LISTENER, saved(&self.listeners.latest)),
            (
                ResourceType::ROUTE_CONFIGURATION,
                saved(&self.tables.latest),
            ),
        ]
    }

    /// What was asked for by name and does not exist need not be waited for.
    fn without(&mut self, update: &Update) {
        let keys = update.removed.iter();
        self.given_up
            .extend(keys.map(|name| (update.resource_type, name.clone())));
    }

    /// The names of endpoints and route tables that somebody needs.
    pub(super) fn wanted(&self, base: &Config) -> [(ResourceType, BTreeSet<String>); 2] {
        let clusters = self.clusters.latest.values();
        let mut endpoints: BTreeSet<_> = clusters
            .chain(self.clusters.active.values())
            .filter_map(|cluster| cluster.resource.endpoints.clone())
            .collect();
        endpoints.extend(
            base.clusters
                .iter()
                .filter_map(|cluster| match &cluster.target.value {
                    Target::Eds(eds) => {
                        let name = eds.service_name.as_ref();
                        Some(name.unwrap_or(&cluster.name.value).clone())
                    }
                    _ => None,
                }),
        );
        let listeners = self.listeners.latest.values();
        let mut tables: BTreeSet<_> = listeners
            .chain(self.listeners.active.values())
            .filter_map(|listener| listener.resource.routes.clone())
            .collect();
        tables.extend(base.listeners.iter().filter_map(|listener| {
            let name = named_table(listener)?;
            (!base.route_configs.contains_key(name)).then(|| name.to_owned())
        }));
        [
            (ResourceType::CLUSTER_LOAD_ASSIGNMENT, endpoints),
            (ResourceType::ROUTE_CONFIGURATION, tables),
        ]
    }

    /// How long the first answer about something may take: what the resources that name it say,
    /// the longest of them, or else `default`; `None` is for ever.
    pub(super) fn patience(&self, (kind, name): &Key, default: Duration) -> Option<Duration> {
        let clusters = self.clusters.latest.values();
        let listeners = self.listeners.latest.values();
        let said: Vec<_> = match *kind {
            ResourceType::CLUSTER_LOAD_ASSIGNMENT => clusters
                .map(|one| &one.resource)
                .filter(|cluster| cluster.endpoints.as_ref() == Some(name))
                .map(|cluster| cluster.patience.unwrap_or(default))
                .collect(),
            ResourceType::ROUTE_CONFIGURATION => listeners
                .map(|one| &one.resource)
                .filter(|listener| listener.routes.as_ref() == Some(name))
                .map(|listener| listener.patience.unwrap_or(default))
                .collect(),
            _ => Vec::new(),
        };
        match said.iter().any(Duration::is_zero) {
            true => None,
            false => Some(said.into_iter().max().unwrap_or(default)),
        }
    }

    /// Which of the wanted names have not been told, and which clusters are on their way out.
    pub(super) fn missing(&self, base: &Config) -> BTreeSet<Key> {
        let wanted = self.wanted(base).into_iter();
        let all = wanted.flat_map(|(kind, names)| names.into_iter().map(move |name| (kind, name)));
        all.filter(|(kind, name)| match *kind {
            ResourceType::ROUTE_CONFIGURATION => !self.tables.latest.contains_key(name),
            _ => !self.assignments.contains_key(name),
        })
        .chain(
            self.leaving()
                .into_iter()
                .map(|name| (ResourceType::CLUSTER, name)),
        )
        .collect()
    }

    fn is_given_up(&self, resource_type: ResourceType, name: &str) -> bool {
        self.given_up.contains(&(resource_type, name.to_owned()))
    }

    /// Brings into use what is ready, and forgets what nobody needs. `clusters_known` says that
    /// the clusters have been told, or are not to be waited for.
    pub(super) fn settle(&mut self, base: &Config, clusters_known: bool) {
        let has_endpoints = |name: &String| {
            self.assignments.contains_key(name)
                || self.is_given_up(ResourceType::CLUSTER_LOAD_ASSIGNMENT, name)
        };
        let mut clusters = self.clusters.clone();
        clusters.settle(|one| one.resource.endpoints.as_ref().is_none_or(has_endpoints));
        let waits = |name: &str| !clusters.is_settled(name);
        let mut tables = self.tables.clone();
        tables.settle(|one| !one.resource.clusters.iter().any(|name| waits(name)));
        let mut listeners = self.listeners.clone();
        self.begun |= clusters_known && !clusters.latest.keys().any(|name| waits(name));
        if self.begun {
            let base_clusters: BTreeSet<_> =
                base.clusters.iter().map(|c| c.name.as_str()).collect();
            listeners.settle(|one| {
                let held = self.held.contains_key(one.resource.raw.name.as_str());
                let routes = one.resource.routes.as_ref().is_none_or(|name| {
                    tables.active.contains_key(name)
                        || self.is_given_up(ResourceType::ROUTE_CONFIGURATION, name)
                });
                let mut to = one.resource.passes_on_to();
                !held
                    && routes
                    && to.all(|name| {
                        base_clusters.contains(name) || clusters.active.contains_key(name)
                    })
            });
        }
        let told = &listeners.latest;
        listeners.active.retain(|name, _| told.contains_key(name));
        self.clusters = clusters;
        self.tables = tables;
        self.listeners = listeners;
        let [_, (_, routes)] = self.wanted(base);
        self.tables.latest.retain(|name, _| routes.contains(name));
        self.tables.active.retain(|name, _| routes.contains(name));
        let needed = self.needed();
        let leaving = self.leaving();
        let told = &self.clusters.latest;
        let given_up = &self.given_up;
        self.clusters.active.retain(|name, _| {
            let key = (ResourceType::CLUSTER, name.clone());
            told.contains_key(name)
                || needed.contains(name)
                || leaving.contains(name) && !given_up.contains(&key)
        });
        let leaving = self.leaving();
        let [(_, endpoints), _] = self.wanted(base);
        self.assignments.retain(|name, _| endpoints.contains(name));
        self.given_up.retain(|(kind, name)| match *kind {
            ResourceType::ROUTE_CONFIGURATION => routes.contains(name),
            ResourceType::CLUSTER => leaving.contains(name),
            _ => endpoints.contains(name),
        });
    }

    /// Clusters that connections are passed on to: listeners name them for good.
    fn needed(&self) -> BTreeSet<String> {
        let told = self.listeners.latest.values();
        let listeners = told.chain(self.listeners.active.values());
        let named = listeners.flat_map(|one| one.resource.passes_on_to().map(str::to_owned));
        named.collect()
    }

    /// Clusters in use that were removed while routes or policies in use name them: what names
    /// others is mostly on its way. What is needed for good is none of them.
    fn leaving(&self) -> BTreeSet<String> {
        let tables = self.tables.active.values();
        let listeners = self.listeners.active.values();
        let named: BTreeSet<_> = tables
            .flat_map(|one| &one.resource.clusters)
            .chain(listeners.flat_map(|one| &one.resource.clusters))
            .collect();
        let needed = self.needed();
        let active = self.clusters.active.keys();
        active
            .filter(|name| !self.clusters.latest.contains_key(*name))
            .filter(|name| named.contains(name) && !needed.contains(*name))
            .cloned()
            .collect()
    }

    /// The configuration with what is in use.
    pub(super) fn in_use(&self, base: &Config) -> Config {
        let stage = |tables: &mut RouteConfiguration| tables.validate_clusters = Some(false);
        assemble(
            base,
            &self.clusters.active,
            &self.tables.active,
            &self.listeners.active,
            &self.given_up,
            &|_, table| stage(table),
        )
    }

    /// Whether a listener is not in use as it was told last.
    pub(super) fn waits(&self, listener: &str) -> bool {
        !self.listeners.is_settled(listener)
    }

    /// The configuration with everything that was said last.
    pub(super) fn known(&self, base: &Config) -> Config {
        self.together(base, &|_, table| table.validate_clusters = Some(false))
    }

    /// The configuration with everything that was said last, to see whether it is right; clusters
    /// that were removed and are still needed are there. The routes of listeners that `update`
    /// brings may name clusters that there are, and no others; connections may be passed on to any,
    /// as in Envoy, and the listener waits for it.
    pub(super) fn said(&self, base: &Config, update: &Update) -> Config {
        let brought: BTreeSet<_> = match update.resource_type {
            ResourceType::LISTENER => update.resources.iter().map(|one| &*one.name).collect(),
            _ => BTreeSet::new(),
        };
        self.together(base, &|listener, table| {
            if !listener.is_some_and(|name| brought.contains(name)) {
                table.validate_clusters = Some(false);
            }
        })
    }

    fn together(
        &self,
        base: &Config,
        adjust: &dyn Fn(Option<&str>, &mut RouteConfiguration),
    ) -> Config {
        let mut clusters = self.clusters.active.clone();
        clusters.extend(self.clusters.latest.clone());
        let mut config = assemble(
            base,
            &clusters,
            &self.tables.latest,
            &self.listeners.latest,
            &self.missing(base),
            adjust,
        );
        let known: BTreeSet<_> = config.clusters.iter().map(|c| c.name.as_str()).collect();
        let mut to_come = self.needed();
        to_come.retain(|name| !known.contains(name.as_str()));
        let to_come = to_come.iter().filter_map(|name| Cluster::to_come(name));
        config.clusters.extend(to_come);
        config
    }

    /// Which resources of an update the mistakes are in; `None` when one is in none of them.
    pub(super) fn blame(
        &self,
        update: &Update,
        errors: &Errors,
    ) -> Option<BTreeMap<String, String>> {
        let kind = update.resource_type;
        let titles: BTreeMap<_, _> = update
            .resources
            .iter()
            .map(|one| (title(kind, &one.name), one.name.as_str()))
            .collect();
        let mut blamed = BTreeMap::<String, String>::new();
        for error in errors {
            let name = titles.get(error.file()?)?;
            let reason = self.reason(kind, name, error);
            let reasons = blamed.entry((*name).to_owned()).or_default();
            if !reasons.is_empty() {
                reasons.push_str("; ");
            }
            reasons.push_str(&reason);
        }
        (!blamed.is_empty()).then_some(blamed)
    }

    /// Why the system does not let a listener run, with the way to the field where it is one.
    pub(super) fn why_unable(&self, name: &str, error: &StartError) -> String {
        let file = match error {
            StartError::AccessLog { sink, .. } => match sink {
                Sink::File(path) => Some(path),
                Sink::Stdout | Sink::Stderr => None,
            },
            _ => None,
        };
        let told = self.listeners.latest.get(name);
        let way = file
            .zip(told)
            .and_then(|(path, told)| told.way_to("path", |text| path.ends_with(text)));
        match way {
            Some(way) => format!("{way}: {error}"),
            None => error.to_string(),
        }
    }

    fn reason(&self, kind: ResourceType, name: &str, error: &ConfigError) -> String {
        let reason = match kind {
            ResourceType::CLUSTER => self.clusters.latest.get(name).map(|k| k.reason(error)),
            ResourceType::LISTENER => self.listeners.latest.get(name).map(|k| k.reason(error)),
            _ => self.tables.latest.get(name).map(|k| k.reason(error)),
        };
        reason.unwrap_or_else(|| error.message().to_owned())
    }
}

/// Takes over one type.
fn take<T: Convert>(
    known: &mut ByName<T>,
    update: &Update,
    refused: &BTreeMap<String, String>,
    taken: &BTreeSet<&str>,
) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for one in &update.resources {
        let same = known.get(&one.name);
        if same.is_some_and(|kept| kept.content == one.content) {
            continue;
        }
        let read = match refused.get(&one.name) {
            Some(reason) => Err(reason.clone()),
            None if taken.contains(one.name.as_str()) => {
                Err("the file of the proxy has one of this name".to_owned())
            }
            None => Kept::read(&one.name, &one.version, &one.content),
        };
        match read {
            Ok(kept) => {
                known.insert(one.name.clone(), kept);
            }
            Err(reason) => refusals.push(Refusal {
                name: one.name.clone(),
                reason,
            }),
        }
    }
    for name in &update.removed {
        known.remove(name);
    }
    refusals
}

/// Takes over one type from an earlier time; what came since is newer.
fn adopt<T: Convert>(
    known: &mut ByName<T>,
    resources: Vec<Resource>,
    taken: &BTreeSet<&str>,
) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for one in resources {
        if known.contains_key(&one.name) || taken.contains(one.name.as_str()) {
            continue;
        }
        match Kept::read(&one.name, &one.version, &one.content) {
            Ok(kept) => {
                known.insert(one.name, kept);
            }
            Err(reason) => refusals.push(Refusal {
                name: one.name,
                reason,
            }),
        }
    }
    refusals
}

fn saved<T>(known: &ByName<T>) -> Vec<Resource> {
    let each = known.iter().map(|(name, kept)| Resource {
        name: name.clone(),
        version: kept.version.clone(),
        content: kept.content.clone(),
    });
    each.collect()
}

/// Whether these are the same resources.
pub(super) fn same<T>(one: &ByName<T>, other: &ByName<T>) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|((a, x), (b, y))| a == b && Arc::ptr_eq(x, y))
}

/// Puts back what an update took away.
fn keep<T>(known: &mut ByName<T>, before: ByName<T>) {
    for (name, kept) in before {
        known.entry(name).or_insert(kept);
    }
}

fn named_table(listener: &crate::config::Listener) -> Option<&str> {
    match &listener.route_specifier.as_ref()?.value {
        RouteSpecifier::RouteConfigName(name) => Some(name),
        RouteSpecifier::RouteConfig(_) => None,
    }
}

/// The file with these resources. Tables of `empty` are so: they are done without.
fn assemble(
    base: &Config,
    clusters: &ByName<Cluster>,
    tables: &ByName<Table>,
    listeners: &ByName<Listener>,
    empty: &BTreeSet<Key>,
    adjust: &dyn Fn(Option<&str>, &mut RouteConfiguration),
) -> Config {
    let mut config = base.clone();
    let own: BTreeSet<_> = base.clusters.iter().map(|c| c.name.as_str()).collect();
    let more = clusters
        .iter()
        .filter(|(name, _)| !own.contains(name.as_str()));
    config
        .clusters
        .extend(more.map(|(_, kept)| kept.resource.raw.clone()));
    let table = |name: &str| match tables.get(name) {
        Some(kept) => Some(kept.resource.raw.clone()),
        None if empty.contains(&(ResourceType::ROUTE_CONFIGURATION, name.to_owned())) => {
            Some(RouteConfiguration::default())
        }
        None => None,
    };
    for listener in &base.listeners {
        if let Some(name) = named_table(listener)
            && !base.route_configs.contains_key(name)
            && let Some(mut table) = table(name)
        {
            let names = listener.filters.iter();
            let names: Names = names.map(|n| (n.value.clone(), n.value.clone())).collect();
            filters::rename(&mut table, &names);
            adjust(None, &mut table);
            config.route_configs.insert(name.to_owned(), table);
        }
    }
    let mut policies: Filters = config.filters.clone();
    let own: BTreeSet<_> = base.listeners.iter().map(|l| l.name.as_str()).collect();
    for (name, kept) in listeners {
        if own.contains(name.as_str()) {
            continue;
        }
        let mut raw = kept.resource.raw.clone();
        let names = filters::add(&kept.resource.filters, &mut policies);
        for filter in &mut raw.filters {
            if let Some(ours) = names.get(&filter.value) {
                filter.value.clone_from(ours);
            }
        }
        let routes = match (raw.route_specifier.take(), &kept.resource.routes) {
            (Some(own), Some(name)) => table(name).map(|mut table| {
                filters::rename(&mut table, &names);
                adjust(None, &mut table);
                Located {
                    value: RouteSpecifier::RouteConfig(Box::new(table)),
                    ..own
                }
            }),
            (Some(mut own), None) => {
                if let RouteSpecifier::RouteConfig(table) = &mut own.value {
                    filters::rename(table, &names);
                    adjust(Some(name), table);
                }
                Some(own)
            }
            (None, _) => None,
        };
        // A listener whose routes are taken away while it is in use goes on without any.
        raw.route_specifier = match (&raw.tcp, routes) {
            (None, None) if opens(&raw) => Some(Located::nowhere(RouteSpecifier::RouteConfig(
                Box::default(),
            ))),
            (_, routes) => routes,
        };
        config.listeners.push(raw);
    }
    config.filters = policies;
    config
}

/// Whether a listener serves HTTP, and so has routes of its own.
fn opens(raw: &crate::config::Listener) -> bool {
    raw.tls_passthrough.is_empty() || raw.tls.is_some()
}

/// A plan of what was put together.
///
/// # Errors
/// What is wrong with it.
pub(super) fn plan(
    config: &Config,
    document: &Document,
    embedded: &dyn crate::config::EmbeddedServices,
) -> Result<crate::Plan, Errors> {
    let mut errors = Errors::new();
    let plan = config.plan(document, embedded, &mut errors);
    errors.into_result(plan)
}
