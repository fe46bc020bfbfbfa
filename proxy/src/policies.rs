//! The three policies as filters of the proxy: the one place that names all of them.

use std::sync::Arc;

use attache_ext_authz::client::{
    self as ext_authz, ExtAuthzLayer, ExtAuthzPerRoute, apply::HeaderLimits,
};
use attache_ext_proc::client::{self as ext_proc, ExtProcLayer, config::ExtProcPerRoute};
use attache_filter::{FilterConfigs, on_failure::OnFailure};
use attache_ratelimit::client::{
    self as ratelimit, RateLimitLayer, RateLimitPerRoute, RouteLimits,
};
use attache_service::config::{ConfigValue, Errors, Located, Node as ConfigNode, json};
use tower::Layer;

use crate::{
    config::Policy as Raw,
    filters::{Policy, Site, Stack},
    grpc_web::GrpcWeb,
};

/// A policy's settings, checked and compiled.
#[derive(Debug, Clone)]
pub(crate) enum Planned {
    Ratelimit(Arc<ratelimit::Filter>),
    ExtAuthz(Arc<ext_authz::Filter>),
    ExtProc(Arc<ext_proc::Filter>),
    GrpcWeb,
}

/// What policies are told of this proxy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    pub(crate) metadata: prost_types::Struct,
    /// The cluster that it belongs to.
    pub(crate) cluster: String,
}

/// The clusters that a route's settings bring in.
#[derive(Debug, Default)]
pub(crate) struct Called {
    /// Those called over gRPC.
    pub(crate) grpc: Vec<Located<String>>,
    /// Those called over plain HTTP.
    pub(crate) http: Vec<Located<String>>,
}

impl Planned {
    /// Plans the settings of the filter `name`; `None` only after an error was added.
    pub(crate) fn new(name: &str, raw: &Raw, node: &Node, errors: &mut Errors) -> Option<Self> {
        Some(match raw {
            Raw::Ratelimit(raw) => {
                let filter = ratelimit::Filter::plan(name, raw, errors)?;
                Self::Ratelimit(Arc::new(filter.in_cluster(&node.cluster)))
            }
            Raw::ExtAuthz(raw) => {
                let filter = ext_authz::Filter::plan(name, raw, errors)?;
                Self::ExtAuthz(Arc::new(filter.at_node(&node.metadata)))
            }
            Raw::ExtProc(raw) => {
                Self::ExtProc(Arc::new(ext_proc::Filter::plan(name, raw, errors)?))
            }
            Raw::GrpcWeb(_) => Self::GrpcWeb,
        })
    }

    /// The clusters that the filter calls over gRPC, as named in the configuration.
    pub(crate) fn clusters(&self) -> Vec<Located<String>> {
        match self {
            Self::Ratelimit(filter) => filter.clusters(),
            Self::ExtAuthz(filter) => filter.clusters(),
            Self::ExtProc(filter) => filter.clusters(),
            Self::GrpcWeb => Vec::new(),
        }
    }

    /// The clusters that the filter calls over plain HTTP; they need no HTTP/2.
    pub(crate) fn http_clusters(&self) -> Vec<Located<String>> {
        match self {
            Self::Ratelimit(_) | Self::GrpcWeb => Vec::new(),
            Self::ExtAuthz(filter) => filter.http_clusters(),
            Self::ExtProc(filter) => filter.http_clusters(),
        }
    }

    /// Plans the filter's settings for one route into `configs`, and names the clusters that
    /// they bring in.
    pub(crate) fn per_route(
        &self,
        name: &str,
        node: &ConfigNode,
        configs: &mut FilterConfigs,
        errors: &mut Errors,
    ) -> Called {
        match self {
            Self::Ratelimit(_) => {
                if let Some(raw) = RateLimitPerRoute::decode(node, errors)
                    && let Some(plan) = ratelimit::PerRoute::plan(&raw, errors)
                {
                    configs.insert(name, plan);
                }
                Called::default()
            }
            Self::ExtAuthz(_) => {
                let plan = ExtAuthzPerRoute::decode(node, errors)
                    .and_then(|raw| ext_authz::PerRoute::plan(&raw, errors));
                let Some(plan) = plan else {
                    return Called::default();
                };
                let called = Called {
                    grpc: plan.clusters(),
                    http: plan.http_clusters(),
                };
                configs.insert(name, plan);
                called
            }
            Self::ExtProc(_) => {
                let plan = ExtProcPerRoute::decode(node, errors)
                    .and_then(|raw| ext_proc::PerRoute::plan(&raw, errors));
                let Some(plan) = plan else {
                    return Called::default();
                };
                let grpc = plan.clusters();
                configs.insert(name, plan);
                Called {
                    grpc,
                    http: Vec::new(),
                }
            }
            Self::GrpcWeb => {
                errors.push(node.head(), "`grpc_web` has no settings for routes");
                Called::default()
            }
        }
    }

    /// Adds to a route's settings of the filter `name` what its virtual host says.
    pub(crate) fn inherit(&self, name: &str, route: &mut FilterConfigs, host: &FilterConfigs) {
        if let Self::ExtProc(_) = self
            && let Some(host) = host.get::<ext_proc::PerRoute>(name)
        {
            route.change(name, |own: &ext_proc::PerRoute| own.over(host));
        }
        if let Self::ExtAuthz(_) = self
            && let Some(host) = host.get::<ext_authz::PerRoute>(name)
        {
            route.change(name, |own: &ext_authz::PerRoute| own.clone().within(host));
        }
        route.inherit(name, host);
    }

    /// Works out ahead of requests what holds for the filter `name` on a route with these
    /// settings of filters and these limits.
    pub(crate) fn resolve(
        &self,
        name: &str,
        filters: &FilterConfigs,
        limits: &RouteLimits,
        resolved: &mut FilterConfigs,
    ) {
        if let Self::Ratelimit(filter) = self
            && let Some(settings) = filter.on_route(filters.get(name), limits)
        {
            resolved.insert(name, settings);
        }
    }

    pub(crate) fn as_policy(&self) -> Arc<dyn Policy> {
        Arc::new(self.clone())
    }
}

impl Policy for Planned {
    fn layer(&self, inner: Stack, site: &Site<'_>) -> Stack {
        let Site {
            channels,
            metrics,
            buffer_limit,
            limits,
        } = *site;
        match self {
            Self::Ratelimit(filter) => {
                Stack::new(RateLimitLayer::new(filter.clone(), channels, metrics).layer(inner))
            }
            Self::ExtAuthz(filter) => {
                let mut filter = filter.clone();
                let own = Arc::make_mut(&mut filter);
                own.buffer_limit = buffer_limit;
                own.limits = HeaderLimits {
                    count: limits.max_headers,
                    bytes: limits.max_header_bytes,
                };
                Stack::new(ExtAuthzLayer::new(filter, channels, metrics).layer(inner))
            }
            Self::ExtProc(filter) => {
                let mut filter = filter.clone();
                if filter.buffer_limit != buffer_limit {
                    Arc::make_mut(&mut filter).buffer_limit = buffer_limit;
                }
                Stack::new(ExtProcLayer::new(filter, channels, metrics).layer(inner))
            }
            Self::GrpcWeb => Stack::of(GrpcWeb { inner }),
        }
    }

    fn clusters(&self) -> Vec<String> {
        Self::clusters(self)
            .into_iter()
            .map(Located::into_inner)
            .collect()
    }

    fn on_failure(&self) -> Option<OnFailure> {
        match self {
            Self::Ratelimit(filter) => Some(filter.on_failure()),
            Self::ExtAuthz(filter) => Some(filter.on_failure()),
            Self::ExtProc(filter) => Some(filter.on_failure()),
            Self::GrpcWeb => None,
        }
    }
}

/// A route's settings for a filter of the kind of `policy`, in Envoy's JSON with `@type`.
pub(crate) fn encode_per_route(policy: &Raw, node: &ConfigNode) -> Option<json::Value> {
    let mut errors = Errors::new();
    match policy {
        Raw::Ratelimit(_) => RateLimitPerRoute::decode(node, &mut errors)?.encode_typed(),
        Raw::ExtAuthz(_) => ExtAuthzPerRoute::decode(node, &mut errors)?.encode_typed(),
        Raw::ExtProc(_) => ExtProcPerRoute::decode(node, &mut errors)?.encode_typed(),
        Raw::GrpcWeb(_) => None,
    }
}
