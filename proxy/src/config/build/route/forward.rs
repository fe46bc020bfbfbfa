//! Where and how a request goes on.

use attache_filter::{format::Format, fraction::Fraction, substitution::Substitution};
use attache_service::config::{Errors, Located};
use http::{HeaderValue, uri::PathAndQuery};

use super::{Scope, Shared, cluster_index, header_name};
use crate::{
    config::{
        HeaderAction, HostRewrite as RawHost, RequestMirrorPolicy, RouteAction, UpgradeConfig,
    },
    retry::Retry,
    route::{
        Forward, HashPolicy, HeaderChanges, HostRewrite, InternalRedirect, Mirror, MirrorHost,
        PathRewrite,
    },
    stream_duration::StreamDuration,
};

/// Compiles all of an action but its cluster; faults are reported at their place.
pub(super) fn plan(
    raw: &RouteAction,
    shared: &Shared<'_>,
    scope: &Scope<'_>,
    errors: &mut Errors,
) -> Forward {
    let mut forward = Forward::to(0);
    if let Some(timeout) = raw.timeout {
        forward = forward.with_timeout(Some(timeout));
    }
    if let Some(timeout) = raw.idle_timeout {
        forward.idle_timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
    }
    forward.path_rewrite = path_rewrite(raw, errors);
    forward.host_rewrite = raw
        .host_rewrite
        .as_ref()
        .and_then(|raw| host_rewrite(raw, errors));
    forward.append_forwarded_host = raw.append_x_forwarded_host == Some(true);
    let mirrors = match raw.request_mirror_policies.as_slice() {
        [] => shared.mirrors,
        own => own,
    };
    forward.mirrors = mirrors
        .iter()
        .filter_map(|raw| mirror(raw, scope, errors))
        .collect();
    let duration = raw.max_stream_duration.as_ref();
    forward.stream_duration = duration.map(|raw| Box::new(StreamDuration::plan(raw)));
    if duration.is_some_and(|raw| raw.max_stream_duration.is_some()) {
        // It takes the place of `timeout`, as in Envoy.
        forward = forward.with_timeout(None);
    }
    forward.retry = raw
        .retry_policy
        .as_ref()
        .or(shared.retry)
        .and_then(|policy| Retry::plan(policy, errors))
        .map(|retry| Box::new(retry.within(forward.timeout)));
    forward.hash_policy = raw
        .hash_policy
        .iter()
        .filter_map(|policy| HashPolicy::plan(policy, errors))
        .collect();
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
    forward
}

fn path_rewrite(raw: &RouteAction, errors: &mut Errors) -> Option<PathRewrite> {
    let mut rewrites = Vec::new();
    if let Some(prefix) = &raw.prefix_rewrite {
        if PathAndQuery::try_from(prefix.as_str()).is_err() {
            errors.push(prefix, format!("`{}` is not a path", prefix.value));
        }
        rewrites.push(PathRewrite::Prefix(prefix.value.clone()));
    }
    if let Some(regex) = &raw.regex_rewrite {
        if !rewrites.is_empty() {
            errors.push(regex, ONE_REWRITE);
        }
        rewrites.extend(Substitution::plan(&regex.value, errors).map(PathRewrite::Regex));
    }
    if let Some(path) = &raw.path_rewrite {
        if !rewrites.is_empty() {
            errors.push(path, ONE_REWRITE);
        }
        rewrites.extend(format(path, errors).map(PathRewrite::Format));
    }
    rewrites.pop()
}

const ONE_REWRITE: &str =
    "write one of `prefix_rewrite`, `regex_rewrite` and `path_rewrite`, not several";

fn host_rewrite(raw: &RawHost, errors: &mut Errors) -> Option<HostRewrite> {
    match raw {
        RawHost::HostRewriteLiteral(literal) => host(literal, errors).map(HostRewrite::Literal),
        RawHost::HostRewriteHeader(name) => header_name(name, errors).map(HostRewrite::Header),
        RawHost::HostRewritePathRegex(regex) => {
            Substitution::plan(regex, errors).map(HostRewrite::PathRegex)
        }
        RawHost::HostRewrite(text) => format(text, errors).map(HostRewrite::Format),
        RawHost::AutoHostRewrite(on) => on.then_some(HostRewrite::Auto),
    }
}

/// A host that is written as it is.
pub(super) fn host(raw: &Located<String>, errors: &mut Errors) -> Option<HeaderValue> {
    match HeaderValue::from_str(raw) {
        Ok(value) if raw.parse::<http::uri::Authority>().is_ok() => Some(value),
        _ => {
            errors.push(raw, format!("`{}` is not a host", raw.value));
            None
        }
    }
}

/// A text with formatters in it.
pub(super) fn format(raw: &Located<String>, errors: &mut Errors) -> Option<Format> {
    Format::parse(raw)
        .map_err(|fault| errors.push(raw, fault))
        .ok()
}

fn mirror(raw: &RequestMirrorPolicy, scope: &Scope<'_>, errors: &mut Errors) -> Option<Mirror> {
    // Nothing is copied to a cluster that there is not.
    let cluster = cluster_index(&raw.cluster, scope, errors)??;
    let host = match &raw.host_rewrite_literal {
        Some(literal) => MirrorHost::Literal(host(literal, errors)?),
        None if raw.disable_shadow_host_suffix_append == Some(true) => MirrorHost::Same,
        None => MirrorHost::Shadow,
    };
    let changes = raw
        .request_headers_mutations
        .iter()
        .map(|mutation| match &mutation.action {
            HeaderAction::Remove(name) => {
                HeaderChanges::plan(&[], std::slice::from_ref(name), errors)
            }
            HeaderAction::Append(option) => {
                HeaderChanges::plan(std::slice::from_ref(option), &[], errors)
            }
        })
        .collect();
    Some(Mirror {
        cluster,
        fraction: Fraction::plan(raw.runtime_fraction.as_ref()),
        host,
        changes,
    })
}

fn is_connect(upgrade: &UpgradeConfig) -> bool {
    upgrade.upgrade_type.eq_ignore_ascii_case("connect")
}

pub(super) fn takes_connect(action: &RouteAction) -> bool {
    let mut configs = action.upgrade_configs.iter();
    configs.any(|upgrade| is_connect(upgrade) && upgrade.enabled != Some(false))
}
