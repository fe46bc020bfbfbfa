//! Routes and virtual hosts.

mod direct_response;
mod forward;
mod matches;
mod redirect;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use attache_filter::{
    FilterConfigs, Route as RouteInfo, context::IdleTimeout, header_option::HeaderValueOption,
    metadata::RouteMetadata,
};
use attache_ratelimit::client::{RouteLimits, StagedPolicies};
use attache_service::config::{Errors, Located, Node, Size};
use http::{HeaderName, StatusCode};

pub(super) use direct_response::{body_format, data};

use super::{Builder, Scope, Tables};
use crate::{
    config::{
        ClusterNotFoundResponseCode, ClusterSpecifier, ClusterWeight, Config, RequestMirrorPolicy,
        RetryPolicy, Route, RouteAction, RouteSpecifier, Step, Table, VirtualHost as RawHost,
        WeightTarget, WeightedClusters,
    },
    route::{
        Action, Changes, Choice, Forward, HeaderChanges, HostRewrite, RouteEntry, RouteMatch,
        RouteTable, Rule, Split, VirtualHost,
    },
};

/// What the routes of a virtual host share.
struct Shared<'c> {
    filters: FilterConfigs,
    limits: StagedPolicies,
    retry: Option<&'c RetryPolicy>,
    mirrors: &'c [RequestMirrorPolicy],
    /// Changes of the virtual host and those at the top of the file.
    request: [HeaderChanges; 2],
    response: [HeaderChanges; 2],
    most_specific_wins: bool,
    most_body: usize,
}

/// What the routes that one route stands for have in common.
struct Common<'r> {
    raw: &'r Route,
    action: &'r RouteAction,
    shared: &'r Shared<'r>,
    matches: &'r RouteMatch,
    forward: Forward,
    filters: FilterConfigs,
    limits: RouteLimits,
    request: HeaderChanges,
    response: HeaderChanges,
}

/// What one cluster of several adds to its route.
#[derive(Default, Clone)]
struct Own {
    filters: FilterConfigs,
    request: HeaderChanges,
    response: HeaderChanges,
    host: Option<HostRewrite>,
}

/// Bytes of the body of a direct response unless configured, as Envoy.
const MOST_BODY: usize = 4096;

impl Builder<'_> {
    pub(super) fn routes(
        &self,
        config: Table<'_>,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> RouteTable {
        let scope = &Scope {
            validate_clusters: config.validate_clusters,
            ..*scope
        };
        let changes = |add: &[HeaderValueOption], remove: &[_], errors: &mut _| {
            HeaderChanges::plan(add, remove, errors)
        };
        let request = changes(
            config.request_headers_to_add,
            config.request_headers_to_remove,
            errors,
        );
        let response = changes(
            config.response_headers_to_add,
            config.response_headers_to_remove,
            errors,
        );
        let top = || Shared {
            filters: FilterConfigs::default(),
            limits: StagedPolicies::default(),
            retry: None,
            mirrors: config.request_mirror_policies,
            request: [HeaderChanges::default(), request.clone()],
            response: [HeaderChanges::default(), response.clone()],
            most_specific_wins: config.most_specific_header_mutations_wins == Some(true),
            most_body: config
                .max_direct_response_body_size_bytes
                .map_or(MOST_BODY, Size::as_usize),
        };
        let mut hosts: Vec<_> = config
            .virtual_hosts
            .iter()
            .map(|host| self.host(host, top(), scope, errors))
            .collect();
        let mut seen: HashMap<String, ()> = HashMap::new();
        for domain in config.virtual_hosts.iter().flat_map(|host| &host.domains) {
            if seen.insert(domain.to_ascii_lowercase(), ()).is_some() {
                errors.push(domain, format!("domain `{}` is given twice", domain.value));
            }
            if domain.value == "*" && !config.routes.is_empty() {
                errors.push(domain, "the `routes` beside it are those of `*` already");
            }
        }
        if !config.routes.is_empty() {
            hosts.push(VirtualHost {
                name: "default".to_owned(),
                domains: vec!["*".to_owned()],
                routes: self.rules(config.routes, &top(), scope, errors),
            });
        }
        RouteTable::new(hosts)
    }

    /// The tables that listeners may name.
    pub(super) fn route_configs(
        &self,
        config: &Config,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> Tables {
        let tables = config.route_configs.iter();
        tables
            .map(|(name, raw)| {
                (
                    name.clone(),
                    Arc::new(self.routes(raw.into(), scope, errors)),
                )
            })
            .collect()
    }

    /// The routes that a listener does not share with those that say nothing of theirs.
    pub(super) fn own_routes(
        &self,
        raw: &RouteSpecifier,
        tables: &Tables,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> Option<Arc<RouteTable>> {
        match raw {
            RouteSpecifier::RouteConfig(raw) => {
                Some(Arc::new(self.routes(raw.as_ref().into(), scope, errors)))
            }
            RouteSpecifier::RouteConfigName(name) => {
                let table = tables.get(name.as_str());
                if table.is_none() {
                    errors.unknown_name(name, "route table", tables.keys().map(String::as_str));
                }
                table.cloned()
            }
        }
    }

    fn host<'c>(
        &self,
        host: &'c RawHost,
        top: Shared<'c>,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> VirtualHost {
        for domain in &host.domains {
            if domain.is_empty() || domain.trim_matches('*').contains('*') {
                errors.push(
                    domain,
                    format!(
                        "`{}` is not a domain: `*` may stand at one end only",
                        domain.value
                    ),
                );
            } else if has_port(domain) {
                errors.push(
                    domain,
                    format!(
                        "`{}`: the ports of hosts are ignored, so leave it out",
                        domain.value
                    ),
                );
            }
        }
        let [_, request] = top.request;
        let [_, response] = top.response;
        let own = HeaderChanges::plan(
            &host.request_headers_to_add,
            &host.request_headers_to_remove,
            errors,
        );
        let own_response = HeaderChanges::plan(
            &host.response_headers_to_add,
            &host.response_headers_to_remove,
            errors,
        );
        let shared = Shared {
            filters: self.filter_configs(&host.typed_per_filter_config, scope, errors),
            limits: StagedPolicies::plan(&host.rate_limits, errors),
            retry: host.retry_policy.as_ref(),
            mirrors: match host.request_mirror_policies.as_slice() {
                [] => top.mirrors,
                own => own,
            },
            request: [own, request],
            response: [own_response, response],
            ..top
        };
        VirtualHost {
            name: host.name.clone(),
            domains: host.domains.iter().map(|d| d.value.clone()).collect(),
            routes: self.rules(&host.routes, &shared, scope, errors),
        }
    }

    fn rules(
        &self,
        routes: &[Route],
        shared: &Shared<'_>,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> Vec<Rule> {
        routes
            .iter()
            .filter_map(|route| self.rule(route, shared, scope, errors))
            .collect()
    }

    fn rule(
        &self,
        raw: &Route,
        shared: &Shared<'_>,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> Option<Rule> {
        let matches = matches::plan(raw, errors)?;
        let filters = self.filter_configs(&raw.typed_per_filter_config, scope, errors);
        let request = HeaderChanges::plan(
            &raw.request_headers_to_add,
            &raw.request_headers_to_remove,
            errors,
        );
        let response = HeaderChanges::plan(
            &raw.response_headers_to_add,
            &raw.response_headers_to_remove,
            errors,
        );
        let (own, action) = match &raw.action {
            Step::Route(action) => {
                let limits = RouteLimits {
                    route: StagedPolicies::plan(&action.rate_limits, errors),
                    host: shared.limits.clone(),
                    include_host: action.include_vh_rate_limits == Some(true),
                };
                let common = Common {
                    raw,
                    action,
                    shared,
                    matches: &matches,
                    forward: forward::plan(action, shared, scope, errors),
                    filters,
                    limits,
                    request,
                    response,
                };
                let choice = self.choice(&common, scope, errors)?;
                return Some(match choice {
                    Choice::One(entry) => Rule::One(Arc::new(RouteEntry {
                        matches,
                        ..Arc::into_inner(entry)?
                    })),
                    choice => Rule::Split(Box::new(Split { matches, choice })),
                });
            }
            Step::Redirect(redirect) => (
                Own {
                    filters,
                    request,
                    response,
                    host: None,
                },
                Action::Redirect(redirect::plan(redirect, errors)?),
            ),
            Step::DirectResponse(direct) => {
                let direct = direct_response::plan(direct, shared.most_body, errors)?;
                let own = Own {
                    filters,
                    request,
                    response,
                    host: None,
                };
                (own, Action::Direct(direct))
            }
        };
        let mut filters = own.filters;
        let limits = RouteLimits::default();
        let resolved = resolve(&mut filters, &[&shared.filters], &limits, scope);
        Some(Rule::One(Arc::new(RouteEntry {
            matches,
            action,
            changes: shared.changes([own.request], [own.response]),
            route: Arc::new(RouteInfo {
                filters,
                resolved,
                ..info(raw)
            }),
        })))
    }

    /// The routes that one with a cluster stands for.
    fn choice(
        &self,
        common: &Common<'_>,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> Option<Choice> {
        match &common.action.cluster {
            ClusterSpecifier::Cluster(name) => {
                let index = cluster_index(name, scope, errors)?;
                let named = index.map(|index| (name.as_str(), index));
                let entry = common.entry(Own::default(), named, scope);
                Some(Choice::One(Arc::new(entry)))
            }
            ClusterSpecifier::ClusterHeader(header) => {
                let header = header_name(header, errors)?;
                Some(common.named(header, &Own::default, scope))
            }
            ClusterSpecifier::WeightedClusters(raw) => self.weighted(raw, common, scope, errors),
        }
    }

    fn weighted(
        &self,
        raw: &WeightedClusters,
        common: &Common<'_>,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> Option<Choice> {
        let header = match &raw.header_name {
            Some(name) => Some(header_name(name, errors)?),
            None => None,
        };
        let mut among = Vec::new();
        let mut total = 0u64;
        for cluster in &raw.clusters.value {
            let own = self.own(cluster, scope, errors);
            let choice = match &cluster.target {
                WeightTarget::Name(name) => {
                    let index = cluster_index(name, scope, errors)?;
                    let named = index.map(|index| (name.as_str(), index));
                    Choice::One(Arc::new(common.entry(own, named, scope)))
                }
                WeightTarget::ClusterHeader(header) => {
                    let header = header_name(header, errors)?;
                    common.named(header, &|| own.clone(), scope)
                }
            };
            total = total.saturating_add(u64::from(cluster.weight));
            among.push((cluster.weight, Box::new(choice)));
        }
        if total == 0 || total > u64::from(u32::MAX) {
            errors.push(
                &raw.clusters,
                format!("the weights together are between 1 and {}", u32::MAX),
            );
            return None;
        }
        Some(Choice::Weighted {
            among,
            total,
            header,
        })
    }

    fn own(&self, raw: &ClusterWeight, scope: &Scope<'_>, errors: &mut Errors) -> Own {
        Own {
            filters: self.filter_configs(&raw.typed_per_filter_config, scope, errors),
            request: HeaderChanges::plan(
                &raw.request_headers_to_add,
                &raw.request_headers_to_remove,
                errors,
            ),
            response: HeaderChanges::plan(
                &raw.response_headers_to_add,
                &raw.response_headers_to_remove,
                errors,
            ),
            host: raw
                .host_rewrite_literal
                .as_ref()
                .and_then(|host| forward::host(host, errors))
                .map(HostRewrite::OfCluster),
        }
    }

    fn filter_configs(
        &self,
        raw: &BTreeMap<String, Node>,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> FilterConfigs {
        let mut configs = FilterConfigs::default();
        for (name, node) in raw {
            match scope.policies.get(name) {
                None => {
                    let name = Located {
                        value: name.clone(),
                        span: node.head().clone(),
                    };
                    errors.unknown_name(&name, "filter", scope.policies.keys().map(String::as_str));
                }
                // The filter's own mistakes are reported where it stands.
                Some(None) => {}
                Some(Some(policy)) => {
                    let called = policy.per_route(name, node, &mut configs, errors);
                    for cluster in called.grpc {
                        self.policy_cluster(&cluster, scope.clusters, errors);
                    }
                    for cluster in called.http {
                        self.known_cluster(&cluster, scope.clusters, errors);
                    }
                }
            }
        }
        configs
    }
}

impl Common<'_> {
    /// The route to one cluster, or to one that does not exist.
    fn entry(&self, own: Own, cluster: Option<(&str, usize)>, scope: &Scope<'_>) -> RouteEntry {
        let mut filters = own.filters;
        let outer = [&self.filters, &self.shared.filters];
        let resolved = resolve(&mut filters, &outer, &self.limits, scope);
        let changes = self.shared.changes(
            [own.request, self.request.clone()],
            [own.response, self.response.clone()],
        );
        let action = match cluster {
            Some((_, index)) => {
                let mut forward = self.forward.clone();
                forward.cluster = index;
                forward.host_rewrite = forward.host_rewrite.or(own.host);
                Action::Forward(forward)
            }
            None => Action::NoCluster(
                match self
                    .action
                    .cluster_not_found_response_code
                    .unwrap_or_default()
                {
                    ClusterNotFoundResponseCode::ServiceUnavailable => {
                        StatusCode::SERVICE_UNAVAILABLE
                    }
                    ClusterNotFoundResponseCode::NotFound => StatusCode::NOT_FOUND,
                    ClusterNotFoundResponseCode::InternalServerError => {
                        StatusCode::INTERNAL_SERVER_ERROR
                    }
                },
            ),
        };
        let name = cluster.map(|(name, _)| name);
        RouteEntry {
            matches: RouteMatch::path(self.matches.path.clone()),
            action,
            changes,
            route: Arc::new(RouteInfo {
                cluster: name.map(Into::into),
                idle_timeout: self.action.idle_timeout.into(),
                cluster_metadata: name
                    .map(|name| scope.cluster_metadata(name))
                    .unwrap_or_default(),
                filters,
                resolved,
                ..info(self.raw)
            }),
        }
    }

    /// The routes to all clusters, of which a header names one.
    fn named(&self, header: HeaderName, own: &dyn Fn() -> Own, scope: &Scope<'_>) -> Choice {
        let clusters = scope.clusters.iter();
        Choice::Named {
            header,
            by_name: clusters
                .map(|(name, (index, _))| {
                    let entry = self.entry(own(), Some((name, *index)), scope);
                    (Arc::from(*name), Arc::new(entry))
                })
                .collect(),
            unknown: Arc::new(self.entry(own(), None, scope)),
        }
    }
}

impl Shared<'_> {
    /// Changes of headers, the most specific first, with those that all routes share; nothing
    /// where there are none.
    fn changes<const N: usize>(
        &self,
        request: [HeaderChanges; N],
        response: [HeaderChanges; N],
    ) -> Option<Box<Changes>> {
        let ordered = |own: [HeaderChanges; N], outer: &[HeaderChanges; 2]| {
            let all = own.into_iter().chain(outer.iter().cloned());
            let mut all: Vec<_> = all.filter(|changes| !changes.is_empty()).collect();
            if self.most_specific_wins {
                all.reverse();
            }
            all
        };
        let changes = Changes {
            request: ordered(request, &self.request),
            response: ordered(response, &self.response),
        };
        let any = !changes.request.is_empty() || !changes.response.is_empty();
        any.then(|| Box::new(changes))
    }
}

/// What policies may know of a route whatever its cluster.
fn info(raw: &Route) -> RouteInfo {
    RouteInfo {
        name: raw.name.clone().unwrap_or_default(),
        cluster: None,
        buffer_limit: raw
            .request_body_buffer_limit
            .or(raw.per_request_buffer_limit_bytes)
            .map(Size::as_usize),
        idle_timeout: IdleTimeout::Inherited,
        metadata: raw
            .metadata
            .as_ref()
            .map(RouteMetadata::plan)
            .unwrap_or_default(),
        cluster_metadata: Arc::default(),
        filters: FilterConfigs::default(),
        resolved: FilterConfigs::default(),
    }
}

/// Adds to the settings of filters those of `outer`, the most specific first, and works out what
/// holds ahead of requests.
fn resolve(
    filters: &mut FilterConfigs,
    outer: &[&FilterConfigs],
    limits: &RouteLimits,
    scope: &Scope<'_>,
) -> FilterConfigs {
    let mut resolved = FilterConfigs::default();
    for (name, policy) in scope.policies {
        if let Some(policy) = policy {
            for outer in outer {
                policy.inherit(name, filters, outer);
            }
            policy.resolve(name, filters, limits, &mut resolved);
        }
    }
    resolved
}

/// Which cluster it is, `Some(None)` where tables may name clusters that there are not; `None`
/// after an error was added.
fn cluster_index(
    name: &Located<String>,
    scope: &Scope<'_>,
    errors: &mut Errors,
) -> Option<Option<usize>> {
    let index = scope.clusters.get(name.as_str()).map(|(index, _)| *index);
    if index.is_none() && scope.validate_clusters {
        errors.unknown_name(name, "cluster", scope.clusters.keys().copied());
        return None;
    }
    Some(index)
}

fn header_name(name: &Located<String>, errors: &mut Errors) -> Option<HeaderName> {
    let known = HeaderName::from_bytes(name.as_bytes());
    known
        .map_err(|_| errors.push(name, format!("`{}` is not a header name", name.value)))
        .ok()
}

fn has_port(domain: &str) -> bool {
    let port = domain.rsplit_once(':').map(|(_, port)| port);
    port.is_some_and(|port| {
        port == "*" || !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
    })
}
