//! The same proxy in Envoy's language: `attache export envoy`.
//!
//! The bootstrap behaves under Envoy 1.40 as the configuration does here: the same filters in the
//! same order, the same routes, timeouts, normalisation and limits. What Envoy turns off by
//! default and we turn on (or the other way round) is written out. Envoy has no live page: its
//! settings are left out.

mod access_log;
mod discovery;
mod guards;
mod tracing;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use attache_service::{
    Address,
    cluster::EndpointConfig,
    config::{ConfigValue, Located, Node, envoy::type_url, format_duration, json},
    listen::ListenAddress,
    tls::{ClusterTls, ListenerTls, TlsVersion},
};
use json::{Map, Value, json};

use crate::{
    config::{
        BodyFormat, Cluster, ClusterSpecifier, CodecType, Config, DnsLookupFamily, DnsType,
        EscapedSlashesAction, LbPolicy, LimitsConfig, Listener, LocalReplyConfig, ProxyProtocol,
        Route, RouteSpecifier, Source, Step, SubstitutionFormat, Table, Target,
    },
    plan::{DEFAULT_CLUSTER_IDLE, Limits},
    policies::encode_per_route,
    tcp,
};

/// Why a configuration cannot be exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Envoy cannot reach a service inside this process.
    #[error(
        "cluster `{0}` is embedded: run its service on its own and say where, with `--embedded {0}=ADDRESS`"
    )]
    Embedded(String),
    /// Envoy takes no sockets from systemd.
    #[error(
        "listener `{0}` has its sockets from systemd, which Envoy cannot take: write an address"
    )]
    Systemd(String),
    /// An address was given for a cluster that is not embedded or does not exist.
    #[error("there is no embedded cluster `{0}`")]
    NotEmbedded(String),
}

/// The Envoy bootstrap equal to `config`.
///
/// `embedded` says where the services of embedded clusters can be reached instead, by cluster.
///
/// # Errors
/// When an embedded cluster has no address, or an address no embedded cluster; also when a
/// listener has its sockets from systemd.
pub fn envoy(config: &Config, embedded: &BTreeMap<String, Address>) -> Result<Value, ExportError> {
    let is_embedded = |cluster: &&Cluster| matches!(cluster.target.value, Target::Embedded(_));
    for name in embedded.keys() {
        if !config
            .clusters
            .iter()
            .filter(is_embedded)
            .any(|c| c.name.value == *name)
        {
            return Err(ExportError::NotEmbedded(name.clone()));
        }
    }
    let mut clusters = config
        .clusters
        .iter()
        .map(|cluster| self::cluster(cluster, embedded))
        .collect::<Result<Vec<_>, _>>()?;
    let tracing = config.tracing.as_ref();
    clusters.extend(tracing.and_then(|tracing| tracing::cluster(tracing)));
    let listeners = config
        .listeners
        .iter()
        .map(|l| listener(l, config))
        .collect::<Result<Vec<_>, _>>()?;
    let mut bootstrap = json!({
        "static_resources": { "listeners": listeners, "clusters": clusters },
    });
    if let Some(node) = config.node.as_ref().and_then(ConfigValue::encode) {
        bootstrap["node"] = node;
    }
    if let Some(xds) = &config.xds {
        bootstrap["dynamic_resources"] = discovery::export(&xds.value);
    }
    if let Some(overload) = overload_manager(config) {
        bootstrap["overload_manager"] = overload;
    }
    if let Some(admin) = &config.admin {
        bootstrap["admin"] = json!({ "address": address(&admin.value) });
    }
    Ok(bootstrap)
}

/// Envoy looks at its heap where ours looks at resident memory, and has no part below which it
/// resumes: one threshold does both. A share of the cgroup's memory is for Envoy's own place to
/// say, and left out.
fn overload_manager(config: &Config) -> Option<Value> {
    let mut monitors = Vec::new();
    let mut manager = json!({});
    if let Some(limit) = &config.max_active_downstream_connections {
        monitors.push(json!({
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": type_url("envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"),
                "max_active_downstream_connections": limit.value,
            },
        }));
    }
    let overload = config.overload.as_ref().map(|overload| &overload.value);
    if let Some(overload) = overload
        && let Some(max) = &overload.max_memory
    {
        let interval = overload.refresh_interval.as_ref();
        let interval = interval.map_or(Duration::from_millis(250), |interval| interval.value);
        let heap = "envoy.resource_monitors.fixed_heap";
        monitors.push(json!({
            "name": heap,
            "typed_config": {
                "@type": type_url("envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig"),
                "max_heap_size_bytes": max.value.bytes(),
            },
        }));
        manager["refresh_interval"] = json!(format_duration(interval));
        manager["actions"] = json!([{
            "name": "envoy.overload_actions.stop_accepting_requests",
            "triggers": [{ "name": heap, "threshold": { "value": 1.0 } }],
        }]);
    }
    if monitors.is_empty() {
        return None;
    }
    manager["resource_monitors"] = monitors.into();
    Some(manager)
}

fn listener(listener: &Listener, config: &Config) -> Result<Value, ExportError> {
    let buffer_limit = listener
        .per_connection_buffer_limit_bytes
        .as_ref()
        .map_or(1 << 20, |limit| limit.value.bytes());
    let mut json = json!({
        "name": listener.name.value,
        "address": listen_address(listener)?,
        "per_connection_buffer_limit_bytes": buffer_limit,
        "filter_chains": filter_chains(listener, config),
    });
    let mut before = Vec::new();
    if let Some(settings) = &listener.proxy_protocol {
        before.push(proxy_protocol(settings));
    }
    if !listener.tls_passthrough.is_empty() {
        before.push(json!({
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": {
                "@type": type_url("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"),
            },
        }));
    }
    if !before.is_empty() {
        let limits = listener.limits.as_ref();
        let timeout = limits.and_then(|limits| limits.header_timeout);
        let timeout = timeout.unwrap_or(Limits::default().header_timeout);
        json["listener_filters_timeout"] = json!(format_duration(timeout));
        json["listener_filters"] = before.into();
    }
    Ok(json)
}

/// Those that are passed on unopened, and the one for all others.
fn filter_chains(listener: &Listener, config: &Config) -> Vec<Value> {
    let mut chains = Vec::new();
    for one in &listener.tls_passthrough {
        let names: Vec<_> = one.server_names.iter().map(|name| &name.value).collect();
        let attempts = one.max_connect_attempts.as_ref();
        let filter = tcp_proxy(listener, &one.cluster, one.idle_timeout, attempts);
        chains.push(json!({
            "filter_chain_match": { "server_names": names, "transport_protocol": "tls" },
            "filters": [filter],
        }));
    }
    let filter = match &listener.tcp {
        Some(tcp) => {
            let attempts = tcp.value.max_connect_attempts.as_ref();
            Some(tcp_proxy(
                listener,
                &tcp.value.cluster,
                tcp.value.idle_timeout,
                attempts,
            ))
        }
        None if listener.tls.is_none() && !chains.is_empty() => None,
        None => Some(json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": connection_manager(listener, config),
        })),
    };
    if let Some(filter) = filter {
        let mut chain = json!({ "filters": [filter] });
        if let Some(tls) = &listener.tls {
            chain["transport_socket"] = downstream_tls(tls, listener.tcp.is_none());
        }
        chains.push(chain);
    }
    // Other peers find no chain, and are closed.
    let from = listener.proxy_protocol.iter().flat_map(|p| &p.from);
    let from: Vec<_> = from.map(|net| cidr(&net.value)).collect();
    for chain in chains.iter_mut().filter(|_| !from.is_empty()) {
        if chain["filter_chain_match"].is_null() {
            chain["filter_chain_match"] = json!({});
        }
        chain["filter_chain_match"]["direct_source_prefix_ranges"] = json!(from);
    }
    chains
}

fn cidr(net: &str) -> Value {
    let (address, length) = net.split_once('/').unwrap_or((net, ""));
    let most = if address.contains(':') { 128 } else { 32 };
    let length = length.parse::<u8>().unwrap_or(most);
    json!({ "address_prefix": address, "prefix_len": length })
}

fn proxy_protocol(settings: &ProxyProtocol) -> Value {
    let optional = settings.allow_requests_without_proxy_protocol;
    let disallowed = settings.disallowed_versions.iter();
    let disallowed: Vec<_> = disallowed.map(|version| version.as_str()).collect();
    json!({
        "name": "envoy.filters.listener.proxy_protocol",
        "typed_config": {
            "@type": type_url("envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"),
            "allow_requests_without_proxy_protocol": optional.unwrap_or(false),
            "disallowed_versions": disallowed,
        },
    })
}

fn tcp_proxy(
    listener: &Listener,
    cluster: &str,
    idle_timeout: Option<Duration>,
    attempts: Option<&Located<u32>>,
) -> Value {
    let mut json = json!({
        "@type": type_url("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": listener.name.value,
        "cluster": cluster,
        "idle_timeout": format_duration(idle_timeout.unwrap_or(tcp::DEFAULT_IDLE)),
        "max_connect_attempts": attempts.map_or(1, |attempts| attempts.value),
    });
    if let Some(log) = &listener.access_log {
        json["access_log"] = access_log::export(log);
    }
    json!({ "name": "envoy.filters.network.tcp_proxy", "typed_config": json })
}

fn listen_address(listener: &Listener) -> Result<Value, ExportError> {
    match &listener.address.value {
        ListenAddress::Systemd(_) => Err(ExportError::Systemd(listener.name.value.clone())),
        ListenAddress::At(at) => {
            let mut json = address(at);
            if let Some(mode) = &listener.mode {
                json["pipe"]["mode"] = mode.value.bits().into();
            }
            Ok(json)
        }
    }
}

fn connection_manager(listener: &Listener, config: &Config) -> Value {
    let defaults = Limits::default();
    let limits = listener.limits.as_ref();
    let number = |written: Option<usize>, default: usize| written.unwrap_or(default);
    let bytes = limits
        .and_then(|limits| limits.max_header_bytes.as_ref())
        .map_or(defaults.max_header_bytes, |size| size.value.as_usize());
    let streams = limits
        .and_then(|l| l.max_concurrent_streams)
        .unwrap_or(defaults.max_concurrent_streams);
    let header_timeout = limits
        .and_then(|l| l.header_timeout)
        .unwrap_or(defaults.header_timeout);
    let idle_timeout = limits
        .and_then(|l| l.idle_timeout)
        .unwrap_or(defaults.idle_timeout);
    let max_headers = number(limits.and_then(|l| l.max_headers), defaults.max_headers);
    let mut json = json!({
        "@type": type_url("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": listener.name.value,
        "codec_type": listener.codec_type.unwrap_or(CodecType::Auto).as_str(),
        "server_header_transformation": "PASS_THROUGH",
        "use_remote_address": listener.use_remote_address.unwrap_or(true),
        "xff_num_trusted_hops": listener.xff_num_trusted_hops.unwrap_or(0),
        "generate_request_id": listener.generate_request_id.unwrap_or(true),
        "preserve_external_request_id": listener.preserve_external_request_id.unwrap_or(false),
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
    match route_config(listener, config) {
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
    if let Some(duration) = limits.max_connection_duration {
        common["max_connection_duration"] = format_duration(duration).into();
    }
    if limits.body_timeout.is_some() || limits.write_timeout.is_some() {
        let defaults = Limits::default();
        let body = limits.body_timeout.unwrap_or(defaults.body_timeout);
        let write = limits.write_timeout.unwrap_or(defaults.write_timeout);
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

/// Virtual hosts and routes are Envoy's already; only per-route settings need their types, and
/// files their places.
///
/// # Errors
/// The name of those that the control plane has.
fn route_config<'c>(listener: &'c Listener, config: &'c Config) -> Result<Value, &'c str> {
    let specifier = listener.route_specifier.as_ref().map(|own| &own.value);
    let (name, table) = match specifier {
        None => ("routes", Table::from(config)),
        Some(RouteSpecifier::RouteConfig(own)) => {
            let name = own.name.as_deref();
            (
                name.unwrap_or(&listener.name.value),
                Table::from(own.as_ref()),
            )
        }
        Some(RouteSpecifier::RouteConfigName(name)) => {
            match config.route_configs.get(&name.value) {
                Some(table) => (name.as_str(), Table::from(table)),
                None => return Err(name),
            }
        }
    };
    let routes = |routes: &[Route]| -> Vec<Value> {
        routes.iter().filter_map(|r| route(r, config)).collect()
    };
    let mut hosts: Vec<_> = table
        .virtual_hosts
        .iter()
        .filter_map(|host| {
            let mut json = host.encode()?;
            let object = json.as_object_mut()?;
            object.insert("routes".to_owned(), routes(&host.routes).into());
            set_per_filter(object, &host.typed_per_filter_config, config);
            Some(json)
        })
        .collect();
    if !table.routes.is_empty() {
        hosts.push(json!({ "name": "default", "domains": ["*"], "routes": routes(table.routes) }));
    }
    let mut json = json!({
        "name": name,
        "virtual_hosts": hosts,
        "validate_clusters": table.validate_clusters,
        "ignore_port_in_host_matching": true,
    });
    let changes = [
        (
            "request_headers_to_add",
            table.request_headers_to_add.encode(),
        ),
        (
            "request_headers_to_remove",
            table.request_headers_to_remove.encode(),
        ),
        (
            "response_headers_to_add",
            table.response_headers_to_add.encode(),
        ),
        (
            "response_headers_to_remove",
            table.response_headers_to_remove.encode(),
        ),
        (
            "most_specific_header_mutations_wins",
            table.most_specific_header_mutations_wins.encode(),
        ),
        (
            "request_mirror_policies",
            table.request_mirror_policies.encode(),
        ),
    ];
    for (name, value) in changes {
        if let Some(value) = value {
            json[name] = value;
        }
    }
    if let Some(most) = table.max_direct_response_body_size_bytes {
        json["max_direct_response_body_size_bytes"] = most.bytes().into();
    }
    Ok(json)
}

fn route(route: &Route, config: &Config) -> Option<Value> {
    let mut json = route.encode()?;
    guards::of_route(route, &mut json);
    let object = json.as_object_mut()?;
    set_per_filter(object, &route.typed_per_filter_config, config);
    match &route.action {
        Step::Route(action) => {
            if let ClusterSpecifier::WeightedClusters(weighted) = &action.cluster {
                let clusters = json.pointer_mut("/route/weighted_clusters/clusters")?;
                let clusters = clusters.as_array_mut()?.iter_mut();
                for (json, raw) in clusters.zip(&weighted.clusters.value) {
                    set_per_filter(json.as_object_mut()?, &raw.typed_per_filter_config, config);
                }
            }
        }
        Step::DirectResponse(direct) => {
            let body = direct.body.as_ref();
            if let Some(Source::Filename(path)) = body.map(|body| &body.source) {
                *json.pointer_mut("/direct_response/body/filename")? = json!(resolved(path));
            }
            let format = direct.body_format.as_ref();
            set_file(&mut json["direct_response"], "body_format", format);
        }
        Step::Redirect(_) => {}
    }
    Some(json)
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

/// Names the file of a format by its full path.
fn set_file(json: &mut Value, name: &str, format: Option<&BodyFormat>) {
    if let Some(SubstitutionFormat::TextFormatSource(source)) = format.map(|raw| &raw.format)
        && let Source::Filename(path) = &source.source
    {
        json[name]["text_format_source"]["filename"] = json!(resolved(path));
    }
}

/// Gives the settings of filters their types.
fn set_per_filter(
    object: &mut Map<String, Value>,
    settings: &BTreeMap<String, Node>,
    config: &Config,
) {
    object.remove("typed_per_filter_config");
    if let Some(settings) = per_filter(settings, config) {
        object.insert("typed_per_filter_config".to_owned(), settings);
    }
}

fn per_filter(settings: &BTreeMap<String, Node>, config: &Config) -> Option<Value> {
    let encoded = settings.iter().filter_map(|(name, node)| {
        let filter = config.filters.get(name)?;
        Some((name.clone(), encode_per_route(&filter.value.policy, node)?))
    });
    let encoded: Map<_, _> = encoded.collect();
    (!encoded.is_empty()).then_some(Value::Object(encoded))
}

fn cluster(cluster: &Cluster, embedded: &BTreeMap<String, Address>) -> Result<Value, ExportError> {
    let name = &cluster.name.value;
    let http2 = cluster.http2.is_some() || matches!(cluster.target.value, Target::Embedded(_));
    let connect_timeout = cluster.connect_timeout.unwrap_or(Duration::from_secs(1));
    let protocol = if http2 {
        json!({ "http2_protocol_options": {} })
    } else {
        json!({ "http_protocol_options": { "enable_trailers": true } })
    };
    let idle_timeout = cluster.idle_timeout.unwrap_or(DEFAULT_CLUSTER_IDLE);
    let mut common = json!({ "idle_timeout": format_duration(idle_timeout) });
    if let Some(max) = &cluster.max_connection_duration {
        common["max_connection_duration"] = json!(format_duration(max.value));
    }
    if let Some(max) = &cluster.max_requests_per_connection {
        common["max_requests_per_connection"] = json!(max.value);
    }
    let mut json = json!({
        "name": name,
        "lb_policy": lb_policy(cluster),
        "connect_timeout": format_duration(connect_timeout),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": type_url("envoy.extensions.upstreams.http.v3.HttpProtocolOptions"),
                "common_http_protocol_options": common,
                "explicit_http_config": protocol,
            },
        },
    });
    if let Some(common) = cluster
        .common_lb_config
        .as_ref()
        .and_then(ConfigValue::encode)
    {
        json["common_lb_config"] = common;
    }
    guards::of_cluster(cluster, &mut json);
    let endpoints = endpoints(cluster, embedded, &mut json)?;
    if let Some(metadata) = cluster.metadata.as_ref().and_then(ConfigValue::encode) {
        json["metadata"] = metadata;
    }
    if let Some(tls) = &cluster.tls {
        json["transport_socket"] = upstream_tls(tls, host(&endpoints), http2);
    }
    Ok(json)
}

/// Envoy has no peak EWMA: what it has and comes next is `LEAST_REQUEST`.
fn lb_policy(cluster: &Cluster) -> &'static str {
    match (&cluster.target.value, cluster.lb_policy) {
        (Target::OriginalDst(_), _) => "CLUSTER_PROVIDED",
        (_, None | Some(LbPolicy::PeakEwma)) => LbPolicy::LeastRequest.as_str(),
        (_, Some(policy)) => policy.as_str(),
    }
}

/// Says where the endpoints of a cluster are, and which of them are known.
fn endpoints(
    cluster: &Cluster,
    embedded: &BTreeMap<String, Address>,
    json: &mut Value,
) -> Result<Vec<EndpointConfig>, ExportError> {
    let name = &cluster.name.value;
    let at = |address: &Address| EndpointConfig {
        address: Located::nowhere(address.clone()),
        weight: None,
        hostname: None,
        health_status: None,
    };
    let endpoints = match &cluster.target.value {
        Target::Endpoints(written) => written.iter().map(|one| one.0.clone()).collect(),
        Target::Dns(name) => vec![at(&name.value)],
        Target::Embedded(_) => {
            let address = embedded
                .get(name)
                .ok_or_else(|| ExportError::Embedded(name.clone()))?;
            vec![at(address)]
        }
        Target::EndpointsFile(path) => {
            json["type"] = json!("EDS");
            json["eds_cluster_config"] = json!({
                "eds_config": {
                    "resource_api_version": "V3",
                    "path_config_source": { "path": resolved(path) },
                },
            });
            return Ok(Vec::new());
        }
        Target::Eds(eds) => {
            json["type"] = json!("EDS");
            json["eds_cluster_config"] = json!({ "eds_config": discovery::ads() });
            if let Some(name) = &eds.service_name {
                json["eds_cluster_config"]["service_name"] = json!(name);
            }
            return Ok(Vec::new());
        }
        Target::OriginalDst(raw) => {
            json["type"] = json!("ORIGINAL_DST");
            let mut config = json!({ "use_http_header": raw.http_header_name.is_some() });
            if let Some(header) = &raw.http_header_name {
                config["http_header_name"] = json!(header.value);
            }
            if let Some(key) = raw.metadata_key.as_ref().and_then(ConfigValue::encode) {
                config["metadata_key"] = key;
            }
            json["original_dst_lb_config"] = config;
            return Ok(Vec::new());
        }
    };
    let literal = |endpoint: &EndpointConfig| match &endpoint.address.value {
        Address::Tcp { host, .. } => host.parse::<std::net::IpAddr>().is_ok(),
        Address::Unix(_) => true,
    };
    if endpoints.iter().all(literal) {
        json["type"] = json!("STATIC");
    } else {
        let kind = cluster.dns_type.as_ref().map(|kind| kind.value);
        json["type"] = json!(kind.unwrap_or(DnsType::Strict).as_str());
        let family = cluster.dns_lookup_family;
        json["dns_lookup_family"] = json!(family.unwrap_or(DnsLookupFamily::V4Preferred).as_str());
        if let Some(every) = &cluster.dns_refresh_rate {
            json["dns_refresh_rate"] = json!(format_duration(every.value));
        }
    }
    let encoded = endpoints.iter().map(|endpoint| {
        let mut inner = json!({ "address": address(&endpoint.address.value) });
        if let Some(hostname) = &endpoint.hostname {
            inner["hostname"] = json!(hostname);
        }
        let mut outer = json!({ "endpoint": inner });
        if let Some(weight) = &endpoint.weight {
            outer["load_balancing_weight"] = json!(weight.value);
        }
        if let Some(status) = endpoint.health_status {
            outer["health_status"] = json!(status.as_str());
        }
        outer
    });
    let encoded: Vec<_> = encoded.collect();
    json["load_assignment"] =
        json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": encoded }] });
    Ok(endpoints)
}

/// The name that TLS asks for unless it is configured: that of the first endpoint.
fn host(endpoints: &[EndpointConfig]) -> Option<&str> {
    endpoints.iter().find_map(
        |endpoint| match (&endpoint.hostname, &endpoint.address.value) {
            (Some(name), _) => Some(name.as_str()),
            (None, Address::Tcp { host, .. }) => Some(host),
            (None, Address::Unix(_)) => None,
        },
    )
}

fn address(address: &Address) -> Value {
    match address {
        Address::Tcp { host, port } => {
            json!({ "socket_address": { "address": host, "port_value": port } })
        }
        Address::Unix(path) => json!({ "pipe": { "path": path } }),
    }
}

fn downstream_tls(tls: &ListenerTls, http: bool) -> Value {
    let mut certificates = vec![certificate(&tls.certificate, &tls.private_key)];
    let more = tls.certificates.iter();
    certificates.extend(more.map(|files| certificate(&files.certificate, &files.private_key)));
    let mut params = json!({
        "tls_minimum_protocol_version": tls.min_version.unwrap_or(TlsVersion::Tls12).as_str(),
    });
    if let Some(version) = &tls.max_version {
        params["tls_maximum_protocol_version"] = json!(version.value.as_str());
    }
    if !tls.cipher_suites.is_empty() {
        params["cipher_suites"] = tls.cipher_suites.iter().map(|s| s.as_str()).collect();
    }
    if !tls.ecdh_curves.is_empty() {
        params["ecdh_curves"] = tls.ecdh_curves.iter().map(|c| c.as_str()).collect();
    }
    let mut common = json!({ "tls_certificates": certificates, "tls_params": params });
    let alpn = tls.alpn.clone();
    let alpn = alpn.or_else(|| http.then(|| vec!["h2".into(), "http/1.1".into()]));
    if let Some(alpn) = alpn {
        common["alpn_protocols"] = json!(alpn);
    }
    if let Some(ca) = &tls.client_ca {
        common["validation_context"] = json!({ "trusted_ca": { "filename": resolved(ca) } });
    }
    let required = tls.require_client_certificate.as_ref();
    let required = required.is_none_or(|required| required.value);
    let mut context = json!({
        "common_tls_context": common,
        "require_client_certificate": tls.client_ca.is_some() && required,
    });
    if tls.disable_stateless_session_resumption == Some(true) {
        context["disable_stateless_session_resumption"] = json!(true);
        context["disable_stateful_session_resumption"] = json!(true);
    }
    transport_socket("DownstreamTlsContext", context)
}

fn upstream_tls(tls: &ClusterTls, host: Option<&str>, http2: bool) -> Value {
    let sni = tls.sni.as_ref().map(|sni| sni.value.as_str()).or(host);
    let mut validation = match &tls.ca {
        Some(ca) => json!({ "trusted_ca": { "filename": resolved(ca) } }),
        None => json!({ "system_root_certs": {} }),
    };
    if let Some(name) = sni {
        let kind = if name.parse::<std::net::IpAddr>().is_ok() {
            "IP_ADDRESS"
        } else {
            "DNS"
        };
        validation["match_typed_subject_alt_names"] =
            json!([{ "san_type": kind, "matcher": { "exact": name } }]);
    }
    let mut common = json!({
        "alpn_protocols": [if http2 { "h2" } else { "http/1.1" }],
        "validation_context": validation,
    });
    if let (Some(chain), Some(key)) = (&tls.certificate, &tls.private_key) {
        common["tls_certificates"] = json!([certificate(chain, key)]);
    }
    let mut context = json!({ "common_tls_context": common });
    if let Some(name) = sni.filter(|name| name.parse::<std::net::IpAddr>().is_err()) {
        context["sni"] = json!(name);
    }
    transport_socket("UpstreamTlsContext", context)
}

fn certificate(chain: &Located<PathBuf>, key: &Located<PathBuf>) -> Value {
    json!({
        "certificate_chain": { "filename": resolved(chain) },
        "private_key": { "filename": resolved(key) },
    })
}

fn transport_socket(context: &str, mut config: Value) -> Value {
    config["@type"] = json!(type_url(&format!(
        "envoy.extensions.transport_sockets.tls.v3.{context}"
    )));
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": config })
}

/// A path as Envoy finds it: relative ones start at the file that names them.
pub(crate) fn resolved(path: &Located<PathBuf>) -> PathBuf {
    let folder = path.span.file().and_then(|file| Path::new(file).parent());
    let path = folder.unwrap_or(Path::new("")).join(&path.value);
    std::path::absolute(&path).unwrap_or(path)
}
