//! Attaché: how its proxy and services are configured and started.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

use crate::certificates::Certificates;
use crate::filters;
use crate::proxies::Backends;
use crate::row::Row;

/// The command that runs the proxy of `program` with `config` and so many workers.
pub(crate) fn command(program: &Path, config: &Path, workers: u32) -> Command {
    let mut command = Command::new(program);
    command
        .arg("run")
        .arg(config)
        .args(["--workers", &workers.to_string()])
        .args(["--log", "error"]);
    command
}

/// The proxy's configuration for a row: YAML, in its JSON form.
pub(crate) fn config(
    row: Row,
    listen: SocketAddr,
    backends: &Backends,
    tls: &Certificates,
) -> Value {
    let filters = filters::of(row);
    let mut clusters = vec![json!({
        "name": "origin",
        "endpoints": [backends.origin.to_string()],
        "lb_policy": "ROUND_ROBIN",
        "connect_timeout": "1s",
    })];
    let mut bodies = Map::new();
    let names: Vec<&str> = filters.iter().map(|filter| filter.name).collect();
    for filter in filters {
        clusters.push(json!({
            "name": filter.name,
            "endpoints": [backends.of(filter.name).to_string()],
            "lb_policy": "ROUND_ROBIN",
            "connect_timeout": "1s",
            "http2": {},
        }));
        bodies.insert(filter.name.to_owned(), json!({ filter.kind: filter.body }));
    }
    let mut listener = json!({ "name": "bench", "address": listen.to_string(), "filters": names });
    if let (Some(_), Some(listener)) = (row.protocol().alpn(), listener.as_object_mut()) {
        let files = json!({ "certificate": tls.certificate(), "private_key": tls.key() });
        listener.insert("tls".to_owned(), files);
    }
    json!({
        "listeners": [listener],
        "filters": bodies,
        "routes": [{
            "match": { "prefix": "/" },
            "route": { "cluster": "origin", "timeout": "30s" },
        }],
        "clusters": clusters,
    })
}

/// The command that runs the auth service, its configuration in `folder`.
pub(crate) fn auth(program: &Path, listen: SocketAddr, folder: &Path) -> anyhow::Result<Command> {
    let file = folder.join("auth.yaml");
    std::fs::write(&file, include_str!("../config/auth.yaml"))?;
    Ok(service(program, "ext-authz", &file, listen))
}

/// The command that runs the rate-limit service, its rules in `folder`.
pub(crate) fn limits(program: &Path, listen: SocketAddr, folder: &Path) -> anyhow::Result<Command> {
    let rules = folder.join("limits");
    std::fs::create_dir_all(&rules)?;
    std::fs::write(
        rules.join("bench.yaml"),
        include_str!("../config/limits.yaml"),
    )?;
    Ok(service(program, "ratelimit", &rules, listen))
}

/// The command that runs a service of ours on one worker.
pub(crate) fn service(program: &Path, name: &str, config: &Path, listen: SocketAddr) -> Command {
    let mut command = Command::new(program);
    command
        .arg(name)
        .arg("--config")
        .arg(config)
        .args(["--listen", &listen.to_string(), "--workers", "1"])
        .args(["--log", "error"]);
    command
}
