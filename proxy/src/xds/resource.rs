//! Resources as parts of our configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use attache_service::{
    Address,
    cluster::{Described, WrittenEndpoint},
    config::{
        ConfigError, ConfigValue, Document, Entry, Errors, Located, Node, Value, json,
        parse_duration,
    },
    xds::ResourceType,
};
use prost_types::Any;

use super::message;
use crate::{
    config::{self, FilterConfig, RouteConfiguration, RouteSpecifier, Target},
    import::{self, Effect},
};

/// Mistakes of one resource that are told.
const MOST_REASONS: usize = 8;

/// A resource as it came, and what it is here.
pub(super) struct Kept<T> {
    /// Its version, for the cache.
    pub(super) version: String,
    /// As it came.
    pub(super) content: Any,
    /// Where the parts of ours stand, to tell the ways to mistakes.
    document: Option<Document>,
    pub(super) resource: T,
}

/// A cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) raw: config::Cluster,
    /// The name of its endpoints, where they come on their own.
    pub(super) endpoints: Option<String>,
    /// How long the first answer about them may take, where it says so; 0 is for ever.
    pub(super) patience: Option<Duration>,
}

impl Cluster {
    /// Stands for a cluster that may still be told, so that what names it can be looked at.
    pub(super) fn to_come(name: &str) -> Option<config::Cluster> {
        let value = json::json!({ "name": name, "eds": {} });
        let document = ours(title(Self::TYPE, name), &value).ok()?;
        decode(document.root(), document.root()).ok()
    }
}

/// A listener.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) raw: config::Listener,
    /// The policies that it describes, by its names for them.
    pub(super) filters: BTreeMap<String, Located<FilterConfig>>,
    /// The name of its routes, where they come on their own.
    pub(super) routes: Option<String>,
    /// How long the first answer about them may take, where it says so; 0 is for ever.
    pub(super) patience: Option<Duration>,
    /// The clusters that it names.
    pub(super) clusters: BTreeSet<String>,
}

impl Listener {
    /// The clusters that it passes connections on to.
    pub(super) fn passes_on_to(&self) -> impl Iterator<Item = &str> {
        let tcp = self.raw.tcp.iter().map(|tcp| tcp.value.cluster.as_str());
        let passthrough = self.raw.tls_passthrough.iter();
        tcp.chain(passthrough.map(|one| one.cluster.as_str()))
    }
}

/// A route table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) raw: RouteConfiguration,
    /// The clusters that it names.
    pub(super) clusters: BTreeSet<String>,
}

/// The endpoints of a cluster.
pub(super) struct Assignment {
    pub(super) endpoints: Vec<Described>,
}

/// What a resource of some type becomes.
pub(super) trait Convert: Sized {
    const TYPE: ResourceType;

    /// Reads the resource `name`, of which `document` tells all; gives where the parts of ours
    /// stand too.
    fn convert(name: &str, document: &Document) -> Result<(Self, Option<Document>), String>;
}

impl<T: Convert> Kept<T> {
    /// Reads a resource.
    ///
    /// # Errors
    /// What is wrong with it or not supported, with the ways to the fields.
    pub(super) fn read(name: &str, version: &str, content: &Any) -> Result<Arc<Self>, String> {
        let text = message::to_json(content)?;
        let document = import::read(title(T::TYPE, name), text).map_err(|e| e.to_string())?;
        let (resource, document) = T::convert(name, &document)?;
        Ok(Arc::new(Self {
            version: version.to_owned(),
            content: content.clone(),
            document,
            resource,
        }))
    }
}

impl<T> Kept<T> {
    /// A mistake in it, with the way to the field.
    pub(super) fn reason(&self, error: &ConfigError) -> String {
        reason(self.document.as_ref().map(Document::root), error)
    }

    /// The way to the first field of this name that says so, in the resource as it came.
    pub(super) fn way_to(&self, field: &str, says: impl Fn(&str) -> bool) -> Option<String> {
        let text = message::to_json(&self.content).ok()?;
        let document = import::read(String::new(), text).ok()?;
        let entry = find(document.root(), &|entry| {
            &*entry.key.name == field && entry.value.text().is_some_and(&says)
        })?;
        import::path_to(document.root(), &entry.key.span)
    }
}

/// How long the first answer about what a cluster or listener names may take, as the
/// `config_source` in it says.
fn patience(document: &Document) -> Option<Duration> {
    let is_source = |entry: &Entry| matches!(&*entry.key.name, "eds_config" | "config_source");
    let source = find(document.root(), &is_source)?;
    let timeout = source.value.get("initial_fetch_timeout")?;
    parse_duration(timeout.text()?)
}

/// The first entry that is so, from top to bottom.
fn find<'n>(node: &'n Node, is_so: &dyn Fn(&Entry) -> bool) -> Option<&'n Entry> {
    match &node.value {
        Value::Map(entries) => entries.iter().find_map(|entry| match is_so(entry) {
            true => Some(entry),
            false => find(&entry.value, is_so),
        }),
        Value::Seq(items) => items.iter().find_map(|item| find(item, is_so)),
        _ => None,
    }
}

/// What stands for the file of a resource in the places of mistakes.
pub(super) fn title(resource_type: ResourceType, name: &str) -> String {
    format!("{} `{name}`", resource_type.name())
}

fn reason(root: Option<&Node>, error: &ConfigError) -> String {
    let path = root.and_then(|root| import::path_to(root, error.span()));
    match path.as_deref() {
        None | Some("") => error.message().to_owned(),
        Some(path) => format!("{path}: {}", error.message()),
    }
}

fn reasons(root: &Node, errors: &Errors) -> String {
    let all = errors.iter().map(|error| reason(Some(root), error));
    joined(all)
}

fn joined(reasons: impl Iterator<Item = String>) -> String {
    reasons.take(MOST_REASONS).collect::<Vec<_>>().join("; ")
}

/// Nothing that has an effect may be left out.
fn all_of_it(dropped: &[import::Dropped]) -> Result<(), String> {
    let lost = dropped.iter().filter(|one| one.effect != Effect::Nothing);
    let reasons: Vec<_> = lost
        .map(|one| match one.path.as_str() {
            "" => one.why.clone(),
            path => format!("{path}: {}", one.why),
        })
        .collect();
    match reasons.is_empty() {
        true => Ok(()),
        false => Err(joined(reasons.into_iter())),
    }
}

/// Our own form as a document, so that mistakes found later have a place.
fn ours(title: String, value: &json::Value) -> Result<Document, String> {
    let text = json::to_string_pretty(value).map_err(|error| error.to_string())?;
    import::read(title, text).map_err(|error| error.to_string())
}

fn decode<T: ConfigValue>(root: &Node, node: &Node) -> Result<T, String> {
    let mut errors = Errors::new();
    let decoded = T::decode(node, &mut errors);
    match decoded {
        Some(decoded) if errors.is_empty() => Ok(decoded),
        _ => Err(reasons(root, &errors)),
    }
}

impl Convert for Cluster {
    const TYPE: ResourceType = ResourceType::CLUSTER;

    fn convert(name: &str, document: &Document) -> Result<(Self, Option<Document>), String> {
        let patience = patience(document);
        let read = import::cluster(document).map_err(|e| e.to_string())?;
        all_of_it(&read.dropped)?;
        let document = ours(title(Self::TYPE, name), &read.config)?;
        let raw: config::Cluster = decode(document.root(), document.root())?;
        let endpoints = match &raw.target.value {
            Target::Eds(eds) => Some(eds.service_name.clone().unwrap_or_else(|| name.to_owned())),
            _ => None,
        };
        let cluster = Self {
            raw,
            endpoints,
            patience,
        };
        Ok((cluster, Some(document)))
    }
}

impl Convert for Assignment {
    const TYPE: ResourceType = ResourceType::CLUSTER_LOAD_ASSIGNMENT;

    fn convert(name: &str, document: &Document) -> Result<(Self, Option<Document>), String> {
        let read = import::cluster_load_assignment(document).map_err(|e| e.to_string())?;
        all_of_it(&read.dropped)?;
        let document = ours(title(Self::TYPE, name), &read.config)?;
        let root = document.root();
        let written: Vec<WrittenEndpoint> = decode(root, root)?;
        let mut errors = Errors::new();
        let described = written.iter().map(|one| {
            let address = &one.0.address;
            if let Address::Tcp { host, .. } = &address.value
                && host.parse::<IpAddr>().is_err()
            {
                errors.push(address, format!("`{host}` is no IP address"));
            }
            one.plan(&mut errors)
        });
        let endpoints = described.collect();
        match errors.is_empty() {
            true => Ok((Self { endpoints }, None)),
            false => Err(reasons(root, &errors)),
        }
    }
}

impl Convert for Table {
    const TYPE: ResourceType = ResourceType::ROUTE_CONFIGURATION;

    fn convert(name: &str, document: &Document) -> Result<(Self, Option<Document>), String> {
        let read = import::route_configuration(document).map_err(|e| e.to_string())?;
        all_of_it(&read.dropped)?;
        let mut clusters = BTreeSet::new();
        named_clusters(&read.config, &mut clusters);
        let document = ours(title(Self::TYPE, name), &read.config)?;
        let raw: RouteConfiguration = decode(document.root(), document.root())?;
        if raw.validate_clusters == Some(true) {
            return Err("validate_clusters: clusters of routes may still be to come".to_owned());
        }
        Ok((Self { raw, clusters }, Some(document)))
    }
}

/// Where the name of a cluster stands.
const NAMES: [&str; 3] = ["cluster", "cluster_name", "name"];

/// Clusters that routes and policies name, and some names besides where those have the same field.
fn named_clusters(value: &json::Value, clusters: &mut BTreeSet<String>) {
    match value {
        json::Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    json::Value::String(name) if NAMES.contains(&key.as_str()) => {
                        clusters.insert(name.clone());
                    }
                    value => named_clusters(value, clusters),
                }
            }
        }
        json::Value::Array(items) => items.iter().for_each(|item| named_clusters(item, clusters)),
        _ => {}
    }
}

impl Convert for Listener {
    const TYPE: ResourceType = ResourceType::LISTENER;

    fn convert(name: &str, document: &Document) -> Result<(Self, Option<Document>), String> {
        let patience = patience(document);
        let read = import::listener(document).map_err(|e| e.to_string())?;
        all_of_it(&read.dropped)?;
        let mut listener = read.config;
        // It may go without a name there.
        listener["name"] = json::json!(name);
        let both = json::json!({ "listener": listener, "filters": read.filters });
        let mut clusters = BTreeSet::new();
        named_clusters(&both, &mut clusters);
        let document = ours(title(Self::TYPE, name), &both)?;
        let root = document.root();
        let field = |name: &str| root.get(name).ok_or_else(|| format!("no {name}"));
        let mut raw: config::Listener = decode(root, field("listener")?)?;
        let filters = decode(root, field("filters")?)?;
        let routes = read.rds;
        if let Some(routes) = &routes {
            let name = RouteSpecifier::RouteConfigName(Located::nowhere(routes.clone()));
            raw.route_specifier = Some(Located::nowhere(name));
        }
        let listener = Self {
            raw,
            filters,
            routes,
            patience,
            clusters,
        };
        Ok((listener, Some(document)))
    }
}
