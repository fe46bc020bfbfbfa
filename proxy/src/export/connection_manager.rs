//! What a listener does with HTTP: `HttpConnectionManager`.

use attache_service::config::{ConfigValue, envoy::type_url, format_duration, json};
use json::{Value, json};

use super::{access_log, discovery, resolved, route, set_file, tracing};
use crate::{
    config::{
        CodecType, Config, EscapedSlashesAction, ForwardClientCertDetails, LimitsConfig, Listener,
        LocalReplyConfig, Source,
    },
    plan::Limits,
};

pub(super) fn export(listener: &Listener, config: &Config) -> Value {
    let defaults = Limits::default();
    let limits = listener.limits.as_ref();
    let number = |written: Option<usize>, default: usize| written.unwrap_or(default);
    let bytes = limits
        .and_then(|limits| limits.max_header_bytes.as_ref())
        .map_or(defaults.max_header_bytes, |size| size.value.as_usize());
    let streams = limits
        .and_then(|l| l.max_concurrent_streams.as_ref())
        .map_or(defaults.max_concurrent_streams, |written| written.value);
    let header_timeout = limits
        .and_then(|l| l.header_timeout.as_ref())
        .map_or(defaults.header_timeout, |written| written.value);
    let idle_timeout = limits
        .and_then(|l| l.idle_timeout.as_ref())
        .map_or(defaults.idle_timeout, |written| written.value);
    let max_headers = number(
        limits.and_then(|l| l.max_headers.as_deref().copied()),
        defaults.max_headers,
    );
    let mut json = json!({
        "@type": type_url("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": listener.name.value,
        "codec_type": listener.codec_type.unwrap_or(CodecType::Auto).as_str(),
        "server_header_transformation": "PASS_THROUGH",
        "use_remote_address": listener.use_remote_address.unwrap_or(true),
        "xff_num_trusted_hops": listener.xff_num_trusted_hops.unwrap_or(0),
        "generate_request_id": listener.generate_request_id.unwrap_or(true),
        "preserve_external_request_id": listener.preserve_external_request_id.unwrap_or(false),
        "forward_client_cert_details": listener
            .forward_client_cert_details
            .unwrap_or(ForwardClientCertDetails::Sanitize)
            .as_str(),
        "normalize_path": listener.normalize_path.unwrap_or(true),
        "merge_slashes": listener.merge_slashes.unwrap_or(false),
        "path_with_escaped_slashes_action": listener
            .path_with_escaped_slashes_action
            .unwrap_or(EscapedSlashesAction::KeepUnchanged)
            .as_str(),
        "max_request_headers_kb": bytes.div_ceil(1024),
        "request_headers_timeout": format_duration(header_timeout),
        "common_http_protocol_options": {
            "max_headers_count": max_headers,
            "idle_timeout": format_duration(idle_timeout),
        },
        "http_protocol_options": { "enable_trailers": true, "accept_http_10": true },
        "http2_protocol_options": { "max_concurrent_streams": streams },
        "http_filters": http_filters(listener, config),
    });
    match route::table(listener, config) {
        Ok(table) => json["route_config"] = table,
        Err(name) => {
            json["rds"] = json!({ "route_config_name": name, "config_source": discovery::ads() });
        }
    }
    let upgrades = listener
        .upgrades
        .clone()
        .unwrap_or_else(|| vec!["websocket".to_owned()]);
    json["upgrade_configs"] = upgrades
        .iter()
        .map(|upgrade| json!({ "upgrade_type": upgrade }))
        .collect();
    if let Some(limits) = limits {
        more_limits(limits, &mut json);
    }
    if let Some(details) = &listener.set_current_client_cert_details {
        json["set_current_client_cert_details"] = json!({
            "subject": details.subject,
            "cert": details.cert,
            "dns": details.dns,
            "uri": details.uri,
        });
    }
    let http2 = listener.http2_protocol_options.as_ref();
    if let Some(allow) = http2.and_then(|http2| http2.allow_connect) {
        json["http2_protocol_options"]["allow_connect"] = allow.into();
    }
    let common = listener.common_http_protocol_options.as_ref();
    if let Some(bound) = common.and_then(|common| common.max_stream_duration) {
        json["common_http_protocol_options"]["max_stream_duration"] = format_duration(bound).into();
    }
    let underscores = common.and_then(|common| common.headers_with_underscores_action.as_ref());
    if let Some(action) = underscores {
        json["common_http_protocol_options"]["headers_with_underscores_action"] =
            action.value.as_str().into();
    }
    if let Some(replies) = &listener.local_reply_config {
        json["local_reply_config"] = local_reply_config(replies);
    }
    if let Some(log) = &listener.access_log {
        json["access_log"] = access_log::export(log);
    }
    if let Some(tracing) = &config.tracing {
        json["tracing"] = tracing::export(tracing);
    }
    json
}

/// Limits that are as in Envoy unless written. `max_requests` and `max_resets` are left out:
/// Envoy bounds requests in flight by cluster, and resets by runtime keys. Its
/// `stream_idle_timeout` is both `body_timeout` and `write_timeout`, so the longer of them.
fn more_limits(limits: &LimitsConfig, manager: &mut Value) {
    let common = &mut manager["common_http_protocol_options"];
    if let Some(requests) = &limits.max_requests_per_connection {
        common["max_requests_per_connection"] = requests.value.into();
    }
    if let Some(duration) = &limits.max_connection_duration {
        common["max_connection_duration"] = format_duration(duration.value).into();
    }
    if limits.body_timeout.is_some() || limits.write_timeout.is_some() {
        let defaults = Limits::default();
        let body = limits.body_timeout.as_deref().copied();
        let body = body.unwrap_or(defaults.body_timeout);
        let write = limits.write_timeout.as_deref().copied();
        let write = write.unwrap_or(defaults.write_timeout);
        manager["stream_idle_timeout"] = format_duration(body.max(write)).into();
    }
}

fn http_filters(listener: &Listener, config: &Config) -> Vec<Value> {
    let named = listener.filters.iter().filter_map(|name| {
        let filter = config.filters.get(name.as_str())?;
        let config = filter.value.policy.encode_typed()?;
        let mut json = json!({ "name": name.value, "typed_config": config });
        if filter.value.disabled {
            json["disabled"] = json!(true);
        }
        Some(json)
    });
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": type_url("envoy.extensions.filters.http.router.v3.Router") },
    });
    named.chain([router]).collect()
}

/// What answers look like; conditions with a runtime key, which Envoy wants.
fn local_reply_config(replies: &LocalReplyConfig) -> Value {
    let mut json = replies.encode().unwrap_or_default();
    set_file(&mut json, "body_format", replies.body_format.as_ref());
    let mappers = json["mappers"].as_array_mut();
    for (json, raw) in mappers.into_iter().flatten().zip(&replies.mappers) {
        let format = raw.body_format_override.as_ref();
        set_file(json, "body_format_override", format);
        if let Some(Source::Filename(path)) = raw.body.as_ref().map(|body| &body.source) {
            json["body"]["filename"] = json!(resolved(path));
        }
        set_runtime_keys(&mut json["filter"]);
    }
    json
}

fn set_runtime_keys(filter: &mut Value) {
    if let Some(value) = filter.pointer_mut("/status_code_filter/comparison/value")
        && value["runtime_key"].is_null()
    {
        value["runtime_key"] = json!("unused");
    }
    for of in ["/and_filter/filters", "/or_filter/filters"] {
        let filters = filter.pointer_mut(of).and_then(Value::as_array_mut);
        filters.into_iter().flatten().for_each(set_runtime_keys);
    }
}
