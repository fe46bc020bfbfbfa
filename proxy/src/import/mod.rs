//! Envoy's configuration in our language: `attache import envoy`, and what a control plane sends.
//!
//! A bootstrap, or one resource of it, is read as a tree with places. What we have too is carried
//! over; everything else is listed in [`Dropped`], with its place and what leaving it out means.
//! Nothing is left out in silence.
//!
//! Most of Envoy's blocks are ours field for field, and are decoded with our own types; what those
//! refuse is what is dropped. So a field that the proxy learns is imported from then on.

mod access_log;
mod address;
mod block;
mod bootstrap;
mod chain;
mod cluster;
mod connection_manager;
mod discovery;
mod domains;
mod dropped;
mod filter;
mod listener;
mod names;
mod output;
mod overload;
mod refusal;
mod refused;
mod route;
mod sni;
mod tcp_proxy;
mod tls;
mod tracing;
mod yaml;

use attache_service::config::{Document, Errors, Node, Span, json::Value as Json};

pub use dropped::{Dropped, Effect};
pub use yaml::to_yaml;

pub(crate) use dropped::Findings;
use filter::Filters;

/// What became of a bootstrap.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// Our configuration, as `Config` reads it.
    pub config: Json,
    /// What it does not say, in the order of the file.
    pub dropped: Vec<Dropped>,
}

/// One resource, as the part of our configuration that stands for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Our form of it; that of a listener with its `route_config`, if it has one.
    pub config: Json,
    /// Filters that a listener names and describes, by name; entries of `filters`.
    pub filters: json_map::Map,
    /// Routes that a listener asks its control plane for, by name.
    pub rds: Option<String>,
    /// What it does not say.
    pub dropped: Vec<Dropped>,
}

/// The map of [`Resource::filters`].
pub mod json_map {
    /// Our form of each filter, by its name.
    pub type Map = std::collections::BTreeMap<String, attache_service::config::json::Value>;
}

/// The way to what stands at a place of a tree, such as `filters[0].name`.
pub(crate) fn path_to(root: &Node, span: &Span) -> Option<String> {
    dropped::paths(root).remove(&(span.line(), span.column()))
}

/// Reads a file for [`bootstrap`]: `${NAME}` is plain text to Envoy, and stays so.
///
/// # Errors
/// When it cannot be read, or is not YAML.
pub fn load(path: &std::path::Path) -> Result<Document, Errors> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => read(name, text),
        Err(error) => {
            let mut errors = Errors::new();
            errors.push_file(name, format!("cannot be read: {error}"));
            Err(errors)
        }
    }
}

/// Like [`load`], from a text; `name` stands for it in messages.
///
/// # Errors
/// When it is not YAML.
pub fn read(name: impl Into<String>, text: impl Into<String>) -> Result<Document, Errors> {
    Document::parse_with(name, text, &|name| Some(format!("$${{{name}}}")))
}

/// What becomes of a listener that would be served without something that protected it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unprotected {
    /// It is left out, so that nothing is open that was not.
    LeftOut,
    /// It is served with what is left.
    Kept,
}

/// Converts a bootstrap. The result is a configuration that the proxy takes, as long as there are
/// the files that it names, and a listener is left in it.
///
/// # Errors
/// Keys that are given twice, and others of YAML.
pub fn bootstrap(document: &Document, unprotected: Unprotected) -> Result<Imported, Errors> {
    let root = tree(document)?;
    let mut found = Findings::default();
    let config = bootstrap::convert(&root, unprotected, &mut found);
    let config = refused::take_out(config, &root, unprotected, &mut found);
    Ok(Imported {
        config,
        dropped: found.sorted(&root),
    })
}

/// Converts a listener (Envoy's `config.listener.v3.Listener`).
///
/// # Errors
/// See [`bootstrap`].
pub fn listener(document: &Document) -> Result<Resource, Errors> {
    let root = tree(document)?;
    let mut found = Findings::default();
    let mut filters = Filters::default();
    let converted = listener::convert(&root, &mut filters, &mut found);
    let (mut config, routes) = match converted {
        Some(one) => {
            if let Some(tracing) = &one.tracing {
                let why = "traces are set once for all listeners, in the file";
                found.push(tracing, Effect::Behaviour, why);
            }
            (one.config, one.routes)
        }
        None => (Json::Null, None),
    };
    let rds = match routes {
        Some(listener::Routes::Discovered(name)) => Some(name),
        Some(listener::Routes::Here(table)) => {
            config["route_config"] = table;
            None
        }
        None => None,
    };
    Ok(Resource {
        config,
        filters: filters.into_map(),
        rds,
        dropped: found.sorted(&root),
    })
}

/// Converts a route table (Envoy's `config.route.v3.RouteConfiguration`).
///
/// # Errors
/// See [`bootstrap`].
pub fn route_configuration(document: &Document) -> Result<Resource, Errors> {
    resource(document, |root, found| route::table(root, None, found))
}

/// Converts a cluster (Envoy's `config.cluster.v3.Cluster`).
///
/// # Errors
/// See [`bootstrap`].
pub fn cluster(document: &Document) -> Result<Resource, Errors> {
    resource(document, cluster::convert)
}

/// Converts the endpoints of a cluster (Envoy's `config.endpoint.v3.ClusterLoadAssignment`) to
/// the list that `endpoints` of a cluster holds.
///
/// # Errors
/// See [`bootstrap`].
pub fn cluster_load_assignment(document: &Document) -> Result<Resource, Errors> {
    resource(document, |root, found| {
        let endpoints = cluster::assignment(root, found);
        Some(output::list(endpoints).to_json())
    })
}

fn resource(
    document: &Document,
    convert: impl FnOnce(&Node, &mut Findings) -> Option<Json>,
) -> Result<Resource, Errors> {
    let root = tree(document)?;
    let mut found = Findings::default();
    let config = convert(&root, &mut found).unwrap_or(Json::Null);
    Ok(Resource {
        config,
        filters: json_map::Map::new(),
        rds: None,
        dropped: found.sorted(&root),
    })
}

/// The tree with Envoy's names in snake_case.
fn tree(document: &Document) -> Result<Node, Errors> {
    document
        .errors()
        .into_result(Some(names::snake_case(document.root())))
}

#[cfg(test)]
mod doors;
#[cfg(test)]
mod tests;
