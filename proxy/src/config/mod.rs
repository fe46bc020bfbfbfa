//! The configuration file of the proxy: what was written, and the way to a [`Plan`].
//!
//! The bodies of filters, routes and per-route settings are field for field Envoy's; listeners
//! and clusters are shorter. [`Config`] says exactly what was written; [`Config::read`] checks it
//! and resolves every name, and reports all mistakes at once, each with its place.

mod build;
mod cluster;
mod filter;
mod listener;
mod route;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use attache_filter::metadata::StructValue;
use attache_service::{
    Address,
    channel::EmbeddedConnector,
    config::{Document, Errors, Located},
    config_struct,
};

pub use cluster::{Cluster, Embedded, Endpoints, LbPolicy, Target};
pub use filter::{FilterConfig, Policy};
pub use listener::{
    AccessLog, AccessLogFormat, EscapedSlashesAction, Http2ProtocolOptions, LimitsConfig, Listener,
};
pub use route::{
    Body, ConnectConfig, ConnectMatcher, DirectResponse, InternalRedirectPolicy, PathMatch,
    PathRewrite, Redirect, RedirectCode, RetryBackOff, RetryPolicy, Route, RouteAction, RouteMatch,
    SchemeChange, Step, UpgradeConfig, VirtualHost,
};

use crate::Plan;

config_struct! {
    /// What `attache run` reads.
    pub struct Config {
        /// Where requests come in.
        pub listeners: Vec<Listener>,
        /// The policies, by the names that listeners and routes use.
        pub filters: BTreeMap<String, Located<FilterConfig>>,
        /// Routes for every host; the first that matches is taken.
        pub routes: Vec<Route>,
        /// Routes for some hosts.
        pub virtual_hosts: Vec<VirtualHost>,
        /// Where requests go, and the policy services.
        pub clusters: Vec<Cluster>,
        /// Where the admin page listens; loopback only. None when left out.
        pub admin: Option<Located<Address>>,
        /// What policies are told of this proxy.
        pub node: Option<NodeConfig>,
        /// Worker threads, each with its own connections. Default: one per core.
        pub workers: Option<Located<usize>>,
    }
    elsewhere {
        "static_resources" => "this is an Envoy bootstrap: write `listeners`, `routes`, `filters` and `clusters` at the top",
        "dynamic_resources" => "configuration comes from this file only; it is read again when it changes",
        "layered_runtime" => "there is no runtime layer: change the value and reload",
    }
}

config_struct! {
    /// Envoy's `config.core.v3.Node`, as far as policies are told of it.
    pub struct NodeConfig {
        /// Facts about this proxy, by name: `bootstrap_metadata_labels_key` of `ext_authz` shows
        /// one of them.
        pub metadata: Option<StructValue>,
        /// The cluster that this proxy belongs to (Envoy's `--service-cluster`): what the action
        /// `source_cluster` of `ratelimit` sends. Default: empty.
        pub cluster: Option<String>,
    }
    elsewhere {
        "id" => "there is no control plane to name this proxy to",
        "locality" => "there is no control plane to name this proxy to",
    }
}

/// Services of this process that clusters may name with `embedded`.
pub trait EmbeddedServices {
    /// The way to the service that `cluster` names; a mistake is reported at its place. Relative
    /// paths have been resolved.
    fn connect(
        &self,
        cluster: &str,
        service: &EmbeddedService,
        errors: &mut Errors,
    ) -> Option<EmbeddedConnector>;
}

/// A service that a cluster embeds.
#[derive(Debug, Clone, PartialEq)]
pub enum EmbeddedService {
    /// The auth service with this configuration file.
    ExtAuthz(Located<PathBuf>),
    /// The rate limit service with this folder of rules.
    Ratelimit(Located<PathBuf>),
    /// A processor built into the program, by name.
    ExtProc(Located<String>),
}

/// No service is embedded: naming one is a mistake.
#[derive(Debug, Clone, Copy, Default)]
pub struct NothingEmbedded;

impl EmbeddedServices for NothingEmbedded {
    fn connect(
        &self,
        cluster: &str,
        service: &EmbeddedService,
        errors: &mut Errors,
    ) -> Option<EmbeddedConnector> {
        let message = format!("cluster `{cluster}`: this program embeds no services");
        match service {
            EmbeddedService::ExtAuthz(at) | EmbeddedService::Ratelimit(at) => {
                errors.push(at, message);
            }
            EmbeddedService::ExtProc(at) => errors.push(at, message),
        }
        None
    }
}

impl Config {
    /// Reads a file and plans it.
    ///
    /// # Errors
    /// Every mistake in the file, located; also when it cannot be read.
    pub fn load(
        path: impl AsRef<Path>,
        embedded: &dyn EmbeddedServices,
    ) -> Result<(Self, Plan), Errors> {
        Self::read(&Document::load(path)?, embedded)
    }

    /// Decodes and plans a document.
    ///
    /// # Errors
    /// Every mistake in it, located.
    pub fn read(
        document: &Document,
        embedded: &dyn EmbeddedServices,
    ) -> Result<(Self, Plan), Errors> {
        let (config, mut errors) = document.decode_partly::<Self>();
        let both = config.and_then(|config| {
            let plan = build::plan(&config, document, embedded, &mut errors)?;
            Some((config, plan))
        });
        errors.into_result(both)
    }
}
