//! Routes and virtual hosts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use attache_filter::{
    FilterConfigs, Route as RouteInfo, context::IdleTimeout, matcher::FieldMatcher,
    metadata::RouteMetadata,
};
use attache_ratelimit::client::{RouteLimits, StagedPolicies};
use attache_service::config::{Errors, Located, Node, Size};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::{Builder, Scope, known_cluster};
use crate::{
    config::{
        Config, PathMatch, PathRewrite, Redirect, RedirectCode, Route, RouteAction, SchemeChange,
        Step, UpgradeConfig,
    },
    retry::Retry,
    route::{
        Action, DirectResponse, Forward, HeaderTest, InternalRedirect, PathMatch as PathTest,
        Redirect as RedirectPlan, RouteEntry, RouteMatch, RouteTable, VirtualHost,
    },
};

/// What the routes of a virtual host share.
#[derive(Default)]
struct Shared {
    filters: FilterConfigs,
    limits: StagedPolicies,
}

impl Builder<'_> {
    pub(super) fn routes(
        &self,
        config: &Config,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> RouteTable {
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
