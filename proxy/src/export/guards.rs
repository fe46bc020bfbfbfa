//! What guards a cluster and its requests, in Envoy's language: health checks, outlier detection,
//! circuit breakers, retries.

use std::time::Duration;

use attache_service::{
    cluster::breakers::{RETRIES_ALWAYS, RETRY_PERCENT},
    config::{ConfigValue, envoy::type_url, format_duration, json},
};
use json::{Value, json};

use crate::config::{Cluster, Route, Step};

/// Adds to `to`, a cluster of Envoy's, what guards `cluster`.
pub(super) fn of_cluster(cluster: &Cluster, to: &mut Value) {
    to["circuit_breakers"] = circuit_breakers(cluster);
    if let Some(outliers) = cluster
        .outlier_detection
        .as_ref()
        .and_then(ConfigValue::encode)
    {
        to["outlier_detection"] = outliers;
    }
    if let Some(check) = cluster.health_checks.first().and_then(ConfigValue::encode) {
        to["health_checks"] = json!([health_check(check)]);
    }
    let common = cluster.common_http_protocol_options.as_ref();
    if let Some(bound) = common.and_then(|common| common.max_stream_duration) {
        let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        to["typed_extension_protocol_options"][options]["common_http_protocol_options"]["max_stream_duration"] =
            format_duration(bound).into();
    }
}

/// Envoy has no defaults for these.
fn health_check(mut check: Value) -> Value {
    for (field, default) in [
        ("timeout", json!(format_duration(Duration::from_secs(1)))),
        ("interval", json!(format_duration(Duration::from_secs(5)))),
        ("unhealthy_threshold", json!(2)),
        ("healthy_threshold", json!(2)),
    ] {
        if check[field].is_null() {
            check[field] = default;
        }
    }
    check
}

/// Where there are none, Envoy's default of 1024 would be one.
fn circuit_breakers(cluster: &Cluster) -> Value {
    let written = cluster.circuit_breakers.as_ref();
    let mut thresholds = match written.and_then(|breakers| breakers.thresholds.first()) {
        Some(thresholds) => thresholds.encode().unwrap_or_else(|| json!({})),
        None => {
            let unlimited = u32::MAX;
            json!({
                "max_connections": unlimited,
                "max_pending_requests": unlimited,
                "max_requests": unlimited,
            })
        }
    };
    if thresholds["max_retries"].is_null() && thresholds["retry_budget"].is_null() {
        thresholds["retry_budget"] = json!({});
    }
    if let Some(budget) = thresholds
        .get_mut("retry_budget")
        .and_then(Value::as_object_mut)
    {
        budget
            .entry("budget_percent")
            .or_insert_with(|| json!({ "value": RETRY_PERCENT }));
        budget
            .entry("min_retry_concurrency")
            .or_insert_with(|| json!(RETRIES_ALWAYS));
    }
    json!({ "thresholds": [thresholds] })
}

/// Says in `to`, a route of Envoy's, that endpoints that have failed are not asked again, which
/// is not said of `route` where it holds in any case.
pub(super) fn of_route(route: &Route, to: &mut Value) {
    let Step::Route(action) = &route.action else {
        return;
    };
    let Some(policy) = &action.retry_policy else {
        return;
    };
    let to = &mut to["route"]["retry_policy"];
    to["retry_host_predicate"] = json!([{
        "name": "envoy.retry_host_predicates.previous_hosts",
        "typed_config": {
            "@type": type_url("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
        },
    }]);
    let searches = policy.host_selection_retry_max_attempts.unwrap_or(3);
    to["host_selection_retry_max_attempts"] = json!(searches);
}
