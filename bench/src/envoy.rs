//! Envoy: how it is configured and started.
//!
//! The settings are those of a plain edge in production: keep-alive pools to
//! the origin, HTTP/2 to the services, no access log, no sink for statistics,
//! defaults for the rest. `--concurrency 1` gives it one worker, as we have.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::certificates::Certificates;
use crate::filters;
use crate::proxies::Backends;
use crate::row::Row;

/// The command that runs the Envoy at `program` with `config`.
pub(crate) fn command(program: &Path, config: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg("--config-path")
        .arg(config)
        .args(["--concurrency", "1", "--disable-hot-restart"])
        .args(["--log-level", "error"]);
    command
}

/// The bootstrap for a row.
pub(crate) fn config(
    row: Row,
    listen: SocketAddr,
    backends: &Backends,
    tls: &Certificates,
) -> Value {
    let filters = filters::of(row);
    let mut clusters = vec![cluster("origin", backends.origin, false)];
    let mut http_filters = Vec::new();
    for filter in filters {
        clusters.push(cluster(filter.name, backends.of(filter.name), true));
        let version = format!("envoy.extensions.filters.http.{}.v3", filter.kind);
        http_filters.push(json!({
            "name": filter.name,
            "typed_config": typed(&format!("{version}.{}", filter.message), filter.body),
        }));
    }
    http_filters.push(json!({
        "name": "router",
        "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
    }));
    let manager = json!({
        "stat_prefix": "bench",
        "use_remote_address": true,
        "normalize_path": true,
        "http_filters": http_filters,
        "route_config": { "name": "bench", "virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{
                "match": { "prefix": "/" },
                "route": { "cluster": "origin", "timeout": "30s" },
            }],
        }] },
    });
    let manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        manager,
    );
    let mut chain = json!({ "filters": [{ "name": "http", "typed_config": manager }] });
    if row.protocol().alpn().is_some() {
        insert(&mut chain, "transport_socket", transport(tls));
    }
    json!({
        "static_resources": {
            "listeners": [{
                "name": "bench",
                "address": address(listen),
                "filter_chains": [chain],
            }],
            "clusters": clusters,
        },
    })
}

fn cluster(name: &str, endpoint: SocketAddr, http2: bool) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": { "cluster_name": name, "endpoints": [{
            "lb_endpoints": [{ "endpoint": { "address": address(endpoint) } }],
        }] },
    });
    if http2 {
        let options = json!({ "explicit_http_config": { "http2_protocol_options": {} } });
        let message = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        insert(
            &mut cluster,
            "typed_extension_protocol_options",
            json!({ message: typed(message, options) }),
        );
    }
    cluster
}

/// TLS, with both versions of HTTP.
fn transport(tls: &Certificates) -> Value {
    let file = |path: PathBuf| json!({ "filename": path });
    let context = json!({ "common_tls_context": {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificates": [{
            "certificate_chain": file(tls.certificate()),
            "private_key": file(tls.key()),
        }],
    } });
    let message = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    json!({ "name": "tls", "typed_config": typed(message, context) })
}

fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": {
        "address": address.ip().to_string(),
        "port_value": address.port(),
    } })
}

/// `body` as the `Any` that Envoy wants.
fn typed(message: &str, mut body: Value) -> Value {
    insert(
        &mut body,
        "@type",
        json!(format!("type.googleapis.com/{message}")),
    );
    body
}

fn insert(object: &mut Value, key: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn envoy_takes_the_configuration_of_every_row() {
        let Some(envoy) = std::env::var_os("ATTACHE_ENVOY") else {
            assert!(
                std::env::var_os("ATTACHE_REQUIRE_ALL").is_none(),
                "ATTACHE_ENVOY is not set"
            );
            eprintln!("left out: ATTACHE_ENVOY is not set");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let tls = Certificates::new(folder.path()).unwrap();
        for row in Row::value_variants() {
            let file = folder.path().join("envoy.yaml");
            let bootstrap = config(*row, address, &Backends::at(address), &tls);
            std::fs::write(&file, bootstrap.to_string()).unwrap();
            let checked = command(Path::new(&envoy), &file)
                .args(["--mode", "validate"])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&checked.stderr);
            assert!(checked.status.success(), "{row:?}: {said}");
        }
    }
}
