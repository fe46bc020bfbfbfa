//! From what was written to what runs: names resolved, values checked, defaults filled in.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use attache_filter::{
    FilterConfigs, Route as RouteInfo,
    context::IdleTimeout,
    matcher::FieldMatcher,
    metadata::{RouteMetadata, StructValue},
};
use attache_ratelimit::client::{RouteLimits, StagedPolicies};
use attache_service::{
    Address,
    admin::{AdminError, is_local},
    channel,
    config::{Document, Errors, Located, Node, Size},
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::{
    AccessLog, Cluster, Config, Embedded, EmbeddedService, EmbeddedServices, EscapedSlashesAction,
    Listener, PathMatch, PathRewrite, Redirect, RedirectCode, Route, RouteAction, SchemeChange,
    Step, Target, UpgradeConfig,
};
use crate::{
    Plan,
    access_log::{AccessLogPlan, Sink},
    filters::{FilterPlans, OnRoutes},
    path::EscapedSlashes,
    plan::{ClusterPlan, DEFAULT_DRAIN_TIMEOUT, Endpoint, ListenerPlan, Protocol},
    policies::{self, Planned},
    retry::Retry,
    route::{
        Action, DirectResponse, Forward, HeaderTest, InternalRedirect, PathMatch as PathTest,
        Redirect as RedirectPlan, RouteEntry, RouteMatch, RouteTable, VirtualHost,
    },
};

/// Envoy's bound on a header block, in bytes; hyper needs some room at least.
const LEAST_HEADER_BYTES: u64 = 8 << 10;

/// Builds the plan. `None` only after an error was added.
pub(super) fn plan(
    config: &Config,
    document: &Document,
    embedded: &dyn EmbeddedServices,
    errors: &mut Errors,
) -> Option<Plan> {
    let builder = Builder { document, embedded };
    let clusters: Vec<_> = config
        .clusters
        .iter()
        .map(|cluster| builder.cluster(cluster, errors))
        .collect();
    let names = cluster_names(&config.clusters, errors);
    let policies = builder.policies(config, &names, errors);
    let listeners: Vec<_> = config
        .listeners
        .iter()
        .map(|l| builder.listener(l, &policies, errors))
        .collect();
    if config.listeners.is_empty() {
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
    let scope = Scope {
        clusters: &names,
        policies: &policies,
    };
    let routes = builder.routes(config, &scope, errors);
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
        filters,
        workers,
        drain_timeout: DEFAULT_DRAIN_TIMEOUT,
    })
}

/// The policies by name; `None` for those with mistakes, so that their names still count.
type Policies = HashMap<String, Option<Planned>>;
/// Index and kind of each cluster.
type ClusterNames<'c> = HashMap<&'c str, (usize, &'c Cluster)>;

struct Builder<'d> {
    document: &'d Document,
    embedded: &'d dyn EmbeddedServices,
}

/// What routes may refer to.
struct Scope<'s> {
    clusters: &'s ClusterNames<'s>,
    policies: &'s Policies,
}

impl Scope<'_> {
    fn cluster_metadata(&self, name: &str) -> Arc<RouteMetadata> {
        let cluster = self.clusters.get(name);
        let metadata = cluster.and_then(|(_, cluster)| cluster.metadata.as_ref());
        metadata.map(RouteMetadata::plan).unwrap_or_default().into()
    }
}

/// What the routes of a virtual host share.
#[derive(Default)]
struct Shared {
    filters: FilterConfigs,
    limits: StagedPolicies,
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
        let system_chooses = matches!(listener.address.value, Address::Tcp { port: 0, .. });
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
    fn cluster(&self, raw: &Cluster, errors: &mut Errors) -> Option<ClusterPlan> {
        let mut plan = ClusterPlan::new(raw.name.as_str(), []);
        if let Some(timeout) = raw.connect_timeout {
            plan.connect_timeout = timeout;
        }
        if let Some(timeout) = raw.idle_timeout {
            plan.idle_timeout = timeout;
        }
        plan.protocol = if raw.http2.is_some() {
            Protocol::Http2
        } else {
            Protocol::Http1
        };
        plan.targets = match &raw.target.value {
            Target::Endpoints(addresses) => {
                if addresses.is_empty() {
                    errors.push(&raw.target, "`endpoints` needs at least one address");
                }
                for address in addresses {
                    if matches!(address.value, Address::Tcp { port: 0, .. }) {
                        errors.push(address, "an endpoint needs a port");
                    }
                }
                let endpoint =
                    |a: &Located<Address>| Endpoint(channel::Target::Address(a.value.clone()));
                addresses.iter().map(endpoint).collect()
            }
            Target::Embedded(service) => {
                plan.protocol = Protocol::Http2;
                if let Some(tls) = &raw.tls {
                    errors.push(tls, "an embedded service is reached without TLS");
                }
                let service = self.embedded_service(service);
                let connector = self.embedded.connect(&raw.name, &service, errors)?;
                vec![Endpoint(channel::Target::Embedded(connector))]
            }
        };
        if let Some(tls) = &raw.tls {
            let alpn: &[&str] = match plan.protocol {
                Protocol::Http1 => &["http/1.1"],
                Protocol::Http2 => &["h2"],
            };
            plan.tls = Some(tls.value.plan(alpn, tls, errors)?);
        }
        Some(plan)
    }

    fn embedded_service(&self, raw: &Embedded) -> EmbeddedService {
        let resolve = |path: &Located<PathBuf>| Located {
            value: self.document.resolve(&path.value),
            span: path.span.clone(),
        };
        match raw {
            Embedded::ExtAuthz(path) => EmbeddedService::ExtAuthz(resolve(path)),
            Embedded::Ratelimit(path) => EmbeddedService::Ratelimit(resolve(path)),
            Embedded::ExtProc(name) => EmbeddedService::ExtProc(name.clone()),
        }
    }

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
                known_cluster(&cluster, clusters, errors);
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
            None => errors.unknown_name(name, "cluster", clusters.keys().copied()),
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

    fn listener(
        &self,
        raw: &Listener,
        policies: &Policies,
        errors: &mut Errors,
    ) -> Option<ListenerPlan> {
        let mut plan = ListenerPlan::new(&raw.name, raw.address.value.clone());
        if matches!(raw.address.value, Address::Unix(_)) {
            errors.push(
                &raw.address,
                "listeners on Unix sockets are not supported yet",
            );
        }
        for name in &raw.filters {
            if !policies.contains_key(name.as_str()) {
                errors.unknown_name(name, "filter", policies.keys().map(String::as_str));
            }
            if plan.filters.iter().any(|known| **known == *name.value) {
                errors.push(name, format!("filter `{}` is named twice", name.value));
            }
            plan.filters.push(name.as_str().into());
        }
        if let Some(limits) = &raw.limits {
            let to = &mut plan.limits;
            if let Some(size) = &limits.max_header_bytes {
                if size.value.bytes() < LEAST_HEADER_BYTES {
                    errors.push(size, "`max_header_bytes` is at least 8KiB");
                }
                to.max_header_bytes = size.value.as_usize();
            }
            to.max_connections = limits.max_connections.unwrap_or(to.max_connections);
            to.max_headers = limits.max_headers.unwrap_or(to.max_headers);
            to.header_timeout = limits.header_timeout.unwrap_or(to.header_timeout);
            to.idle_timeout = limits.idle_timeout.unwrap_or(to.idle_timeout);
            to.max_concurrent_streams = limits
                .max_concurrent_streams
                .unwrap_or(to.max_concurrent_streams);
        }
        let forward = &mut plan.forward;
        forward.use_remote_address = raw.use_remote_address.unwrap_or(forward.use_remote_address);
        forward.xff_num_trusted_hops = raw
            .xff_num_trusted_hops
            .unwrap_or(forward.xff_num_trusted_hops);
        forward.generate_request_id = raw
            .generate_request_id
            .unwrap_or(forward.generate_request_id);
        forward.preserve_external_request_id = raw
            .preserve_external_request_id
            .unwrap_or(forward.preserve_external_request_id);
        plan.path.normalize = raw.normalize_path.unwrap_or(plan.path.normalize);
        plan.path.merge_slashes = raw.merge_slashes.unwrap_or(plan.path.merge_slashes);
        if let Some(action) = raw.path_with_escaped_slashes_action {
            plan.path.escaped_slashes = match action {
                EscapedSlashesAction::KeepUnchanged => EscapedSlashes::KeepUnchanged,
                EscapedSlashesAction::RejectRequest => EscapedSlashes::RejectRequest,
                EscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
                EscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
            };
        }
        if let Some(upgrades) = &raw.upgrades {
            plan.upgrades = upgrades
                .iter()
                .map(|name| name.to_ascii_lowercase())
                .collect();
        }
        let http2 = raw.http2_protocol_options.as_ref();
        plan.allow_connect = http2.and_then(|http2| http2.allow_connect).unwrap_or(false);
        if let Some(limit) = &raw.per_connection_buffer_limit_bytes {
            plan.buffer_limit = limit.value.as_usize();
            if plan.buffer_limit == 0 {
                errors.push(limit, "must be more than 0: no body could pass");
            }
        }
        if let Some(log) = &raw.access_log {
            plan.access_log = self.access_log(log, errors);
        }
        if let Some(tls) = &raw.tls {
            plan.tls = Some(tls.plan(&["h2", "http/1.1"], errors)?);
        }
        Some(plan)
    }

    fn access_log(&self, raw: &AccessLog, errors: &mut Errors) -> Option<AccessLogPlan> {
        let mut plan = AccessLogPlan {
            sink: match &raw.path {
                Some(path) => Sink::File(self.document.resolve(&path.value)),
                None => Sink::Stdout,
            },
            sample: 1.0,
            always_errors: false,
            always_slower: None,
        };
        if let Some(sample) = &raw.sample {
            if !(0.0..=1.0).contains(&sample.value) {
                errors.push(sample, "`sample` is a part between 0 and 1");
            }
            plan.sample = sample.value;
        }
        for condition in &raw.always {
            match condition.strip_prefix("slow>").map(parse_duration) {
                Some(Some(duration)) => plan.always_slower = Some(duration),
                None if condition.value == "errors" => plan.always_errors = true,
                _ => errors.push(
                    condition,
                    format!(
                        "`{}` is not a condition: `errors` and `slow>1s` are",
                        condition.value
                    ),
                ),
            }
        }
        Some(plan)
    }

    fn routes(&self, config: &Config, scope: &Scope<'_>, errors: &mut Errors) -> RouteTable {
        let mut hosts: Vec<_> = config
            .virtual_hosts
            .iter()
            .map(|host| {
                for domain in &host.domains {
                    if domain.is_empty() || domain.trim_matches('*').contains('*') {
                        errors.push(
                            domain,
                            format!(
                                "`{}` is not a domain: `*` may stand at one end only",
                                domain.value
                            ),
                        );
                    }
                }
                let shared = Shared {
                    filters: self.filter_configs(&host.typed_per_filter_config, scope, errors),
                    limits: StagedPolicies::plan(&host.rate_limits, errors),
                };
                VirtualHost {
                    name: host.name.clone(),
                    domains: host.domains.iter().map(|d| d.value.clone()).collect(),
                    routes: self.entries(&host.routes, &shared, scope, errors),
                }
            })
            .collect();
        let mut seen: HashMap<String, ()> = HashMap::new();
        for domain in config.virtual_hosts.iter().flat_map(|host| &host.domains) {
            if seen.insert(domain.to_ascii_lowercase(), ()).is_some() {
                errors.push(domain, format!("domain `{}` is given twice", domain.value));
            }
            if domain.value == "*" && !config.routes.is_empty() {
                errors.push(domain, "the top-level `routes` are those of `*` already");
            }
        }
        if !config.routes.is_empty() {
            hosts.push(VirtualHost {
                name: "default".to_owned(),
                domains: vec!["*".to_owned()],
                routes: self.entries(&config.routes, &Shared::default(), scope, errors),
            });
        }
        RouteTable::new(hosts)
    }

    fn entries(
        &self,
        routes: &[Route],
        shared: &Shared,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> Vec<Arc<RouteEntry>> {
        routes
            .iter()
            .filter_map(|route| self.entry(route, shared, scope, errors))
            .map(Arc::new)
            .collect()
    }

    fn entry(
        &self,
        raw: &Route,
        shared: &Shared,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> Option<RouteEntry> {
        let path = match &raw.r#match.path.value {
            PathMatch::Prefix(text) => PathTest::Prefix(text.clone()),
            PathMatch::Path(text) => PathTest::Exact(text.clone()),
            PathMatch::PathSeparatedPrefix(text) => {
                if text.ends_with('/') || text.contains(['?', '#']) {
                    let at = &raw.r#match.path;
                    errors.push(
                        at,
                        "`path_separated_prefix` has no closing slash and no query",
                    );
                }
                PathTest::Separated(text.clone())
            }
            PathMatch::ConnectMatcher(_) => PathTest::Connect,
            PathMatch::SafeRegex(regex) => {
                match attache_filter::matcher::full_match(&regex.regex) {
                    Ok(regex) => PathTest::Regex(regex),
                    Err(error) => {
                        errors.push(&raw.r#match.path, error.to_string());
                        return None;
                    }
                }
            }
        };
        if matches!(path, PathTest::Connect)
            && !matches!(&raw.action, Step::Route(action) if takes_connect(action))
        {
            errors.push(
                &raw.r#match.path,
                "`connect_matcher` needs `route` with `upgrade_configs: [{ upgrade_type: CONNECT, connect_config: {} }]`",
            );
        }
        let headers = raw
            .r#match
            .headers
            .iter()
            .filter_map(|header| FieldMatcher::plan(header, errors))
            .map(|matcher| HeaderTest::new(move |parts| matcher.matches(parts)))
            .collect();
        let mut filters = self.filter_configs(&raw.typed_per_filter_config, scope, errors);
        let limits = match &raw.action {
            Step::Route(action) => RouteLimits {
                route: StagedPolicies::plan(&action.rate_limits, errors),
                host: shared.limits.clone(),
                include_host: action.include_vh_rate_limits == Some(true),
            },
            Step::Redirect(_) | Step::DirectResponse(_) => RouteLimits::default(),
        };
        let mut resolved = FilterConfigs::default();
        for (name, policy) in scope.policies {
            if let Some(policy) = policy {
                policy.inherit(name, &mut filters, &shared.filters);
                policy.resolve(name, &filters, &limits, &mut resolved);
            }
        }
        let (action, cluster) = match &raw.action {
            Step::Route(action) => {
                let forward = self.forward(action, scope, errors)?;
                (
                    Action::Forward(forward),
                    Some(action.cluster.as_str().into()),
                )
            }
            Step::Redirect(redirect) => (Action::Redirect(redirect_plan(redirect)), None),
            Step::DirectResponse(direct) => {
                let body = direct
                    .body
                    .as_ref()
                    .map(|body| Bytes::from(body.inline_string.clone()));
                let direct = DirectResponse {
                    status: direct.status.0,
                    body: body.unwrap_or_default(),
                };
                (Action::Direct(direct), None)
            }
        };
        Some(RouteEntry {
            matches: RouteMatch { path, headers },
            action,
            route: Arc::new(RouteInfo {
                name: raw.name.clone().unwrap_or_default(),
                cluster,
                buffer_limit: raw
                    .request_body_buffer_limit
                    .or(raw.per_request_buffer_limit_bytes)
                    .map(Size::as_usize),
                idle_timeout: match &raw.action {
                    Step::Route(action) => action.idle_timeout.into(),
                    Step::Redirect(_) | Step::DirectResponse(_) => IdleTimeout::Inherited,
                },
                metadata: raw
                    .metadata
                    .as_ref()
                    .map(RouteMetadata::plan)
                    .unwrap_or_default(),
                cluster_metadata: match &raw.action {
                    Step::Route(action) => scope.cluster_metadata(&action.cluster),
                    Step::Redirect(_) | Step::DirectResponse(_) => Arc::default(),
                },
                filters,
                resolved,
            }),
        })
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
                        known_cluster(&cluster, scope.clusters, errors);
                    }
                }
            }
        }
        configs
    }

    fn forward(
        &self,
        raw: &RouteAction,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> Option<Forward> {
        let Some((index, _)) = scope.clusters.get(raw.cluster.as_str()) else {
            errors.unknown_name(&raw.cluster, "cluster", scope.clusters.keys().copied());
            return None;
        };
        let mut forward = Forward::to(*index);
        if let Some(timeout) = raw.timeout {
            forward = forward.with_timeout(Some(timeout));
        }
        if let Some(timeout) = raw.idle_timeout {
            forward.idle_timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
        }
        if let Some(prefix) = &raw.prefix_rewrite {
            if http::uri::PathAndQuery::try_from(prefix.as_str()).is_err() {
                errors.push(prefix, format!("`{}` is not a path", prefix.value));
            }
            forward.prefix_rewrite = Some(prefix.value.clone());
        }
        if let Some(host) = &raw.host_rewrite_literal {
            match HeaderValue::from_str(host) {
                Ok(value) if host.parse::<http::uri::Authority>().is_ok() => {
                    forward.host_rewrite = Some(value);
                }
                _ => errors.push(host, format!("`{}` is not a host", host.value)),
            }
        }
        forward.retry = raw
            .retry_policy
            .as_ref()
            .and_then(|policy| Retry::plan(policy, errors))
            .map(|retry| Box::new(retry.within(forward.timeout)));
        forward.internal_redirect = raw
            .internal_redirect_policy
            .as_ref()
            .map(|policy| Box::new(InternalRedirect::plan(policy, errors)));
        for upgrade in &raw.upgrade_configs {
            let on = upgrade.enabled.unwrap_or(true);
            match (is_connect(upgrade), &upgrade.connect_config) {
                (true, Some(_)) => forward.connect = on,
                (true, None) if on => errors.push(
                    &upgrade.upgrade_type,
                    "a `CONNECT` is not passed on: write `connect_config: {}` to end it here",
                ),
                (true, None) => {}
                (false, Some(_)) => errors.push(
                    &upgrade.upgrade_type,
                    "`connect_config` is for `CONNECT` only",
                ),
                (false, None) => {
                    let name = upgrade.upgrade_type.to_ascii_lowercase();
                    forward.upgrades.push((name, on));
                }
            }
        }
        Some(forward)
    }
}

/// A cluster that is called over plain HTTP must exist.
fn known_cluster(name: &Located<String>, clusters: &ClusterNames<'_>, errors: &mut Errors) {
    if !clusters.contains_key(name.as_str()) {
        errors.unknown_name(name, "cluster", clusters.keys().copied());
    }
}

fn is_connect(upgrade: &UpgradeConfig) -> bool {
    upgrade.upgrade_type.eq_ignore_ascii_case("connect")
}

fn takes_connect(action: &RouteAction) -> bool {
    let mut configs = action.upgrade_configs.iter();
    configs.any(|upgrade| is_connect(upgrade) && upgrade.enabled != Some(false))
}

fn redirect_plan(raw: &Redirect) -> RedirectPlan {
    let mut plan = RedirectPlan {
        status: match raw.response_code {
            None | Some(RedirectCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
            Some(RedirectCode::Found) => StatusCode::FOUND,
            Some(RedirectCode::SeeOther) => StatusCode::SEE_OTHER,
            Some(RedirectCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
            Some(RedirectCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        },
        host: raw.host_redirect.clone(),
        port: raw.port_redirect,
        strip_query: raw.strip_query.unwrap_or(false),
        ..RedirectPlan::default()
    };
    match &raw.scheme {
        Some(SchemeChange::HttpsRedirect(true)) => plan.scheme = Some("https".to_owned()),
        Some(SchemeChange::SchemeRedirect(scheme)) => plan.scheme = Some(scheme.clone()),
        Some(SchemeChange::HttpsRedirect(false)) | None => {}
    }
    match &raw.path {
        Some(PathRewrite::PathRedirect(path)) => plan.path = Some(path.clone()),
        Some(PathRewrite::PrefixRewrite(prefix)) => plan.prefix_rewrite = Some(prefix.clone()),
        None => {}
    }
    plan
}

fn parse_duration(text: &str) -> Option<Duration> {
    attache_service::config::parse_duration(text)
}
