//! Our proxy: the scenario as its configuration, and how it is started.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use attache_proxy::{Config, Plan, Proxy, config::NothingEmbedded};
use attache_service::{Address, Metrics, config::Document};
use serde_json::{Map, Value, json};

use crate::noise;
use crate::run::Cluster;
use crate::scenario::Scenario;
use crate::tls;

/// Our proxy, running in this process; it ends with this value.
#[derive(Debug)]
pub struct RunningProxy {
    /// Where its listener is.
    pub address: SocketAddr,
    /// What keeps it running: it stops when this is dropped.
    pub keeper: Box<dyn Any + Send>,
    metrics: Metrics,
    log: Option<PathBuf>,
}

impl RunningProxy {
    /// The counters of the filter `kind` that are not 0. Those of External Authorization have
    /// their `stat_prefix` before them, and those of a cluster its name.
    pub fn counters(&self, kind: &str) -> Value {
        let mut counters = BTreeMap::<String, u64>::new();
        let text = self.metrics.render();
        for line in text.lines() {
            let Some((name, rest)) = line.split_once("_total{") else {
                continue;
            };
            let (labels, count) = rest.rsplit_once("} ").unwrap_or_default();
            let label = |key: &str| {
                let (_, value) = labels.split_once(&format!("{key}=\""))?;
                value.split('"').next()
            };
            let cluster = label("cluster").map_or(String::new(), |name| format!("{name}."));
            let name = match name.strip_prefix("attache_") {
                Some("upstream_requests") if kind != "ext_proc" => {
                    format!(
                        "{cluster}upstream_rq_{}",
                        label("code_class").unwrap_or_default()
                    )
                }
                Some(name) => {
                    let of_cluster = name.strip_prefix("cluster_");
                    // Envoy counts what rate limits do for clusters only.
                    if kind == "ratelimit" && of_cluster.is_none() {
                        continue;
                    }
                    let name = of_cluster.unwrap_or(name);
                    let Some(name) = name.strip_prefix(&format!("{kind}_")) else {
                        continue;
                    };
                    let prefix = label("stat_prefix").filter(|_| kind != "ext_proc");
                    let prefix = prefix.map_or(String::new(), |prefix| format!("{prefix}."));
                    format!("{cluster}{prefix}{name}")
                }
                None => continue,
            };
            let count = count.parse::<u64>().unwrap_or_default();
            *counters.entry(name).or_default() += count;
        }
        counters.retain(|_, count| *count > 0);
        json!(counters)
    }

    /// The last line of the access log in the words of both proxies.
    pub fn log_line(&self) -> Value {
        let text = self
            .log
            .as_ref()
            .and_then(|log| fs::read_to_string(log).ok());
        let last = text.as_deref().unwrap_or_default().lines().last();
        let line: Value =
            (last.and_then(|line| serde_json::from_str(line).ok())).unwrap_or_default();
        if line.get("policies").is_none() {
            return json!({ "line": last });
        }
        let mut policies = Map::new();
        for call in line["policies"].as_array().into_iter().flatten() {
            let (filter, phase) = (text_of(&call["filter"]), text_of(&call["phase"]));
            // Envoy says nothing of it, unless as filter state.
            if matches!(phase.as_str(), "check" | "should_rate_limit") {
                continue;
            }
            let of = policies.entry(filter).or_insert_with(|| json!({}));
            of[phase] = call["grpc_status"].clone();
        }
        let mut states = line["filter_state"].clone();
        for (name, state) in states.as_object_mut().into_iter().flatten() {
            if let Some(state) = state.as_object_mut().filter(|_| !name.ends_with(".shadow")) {
                // Envoy shows no more of it.
                state.retain(|figure, _| noise::FIGURES.contains(&figure.as_str()));
            }
        }
        json!({
            "status": line["status"],
            "flags": line["flags"],
            "details": line["details"].as_str().map(|details| details.replace(' ', "_")),
            "policies": policies,
            "filter_state": states,
        })
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Drop for RunningProxy {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            let _ = fs::remove_file(log);
        }
    }
}

/// Starts our proxy, with an access log if wanted.
///
/// # Errors
/// What is wrong with the configuration, or why it does not start.
pub async fn start(config: &str, logged: bool) -> Result<RunningProxy, String> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    if !logged {
        return start_ours(config).await;
    }
    let nth = NEXT.fetch_add(1, Ordering::Relaxed);
    let log = std::env::temp_dir().join(format!("attache-{}-{nth}.log", std::process::id()));
    let mut with_log: Value = serde_json::from_str(config).map_err(|e| e.to_string())?;
    // With a form of its own, the scenario shows how lines are written.
    with_log["listeners"][0]["access_log"]["path"] = json!(log);
    let mut proxy = start_ours(&with_log.to_string()).await?;
    proxy.log = Some(log);
    Ok(proxy)
}

/// Starts our proxy with this configuration.
///
/// # Errors
/// What is wrong with the configuration, or why it does not start.
pub async fn start_ours(config: &str) -> Result<RunningProxy, String> {
    let (_, plan) = read(config)?;
    let metrics = Metrics::default();
    let running = Proxy::start(plan, metrics.clone())
        .await
        .map_err(|e| e.to_string())?;
    let address = match running.addresses().first() {
        Some(Address::Tcp { host, port }) => {
            let host = host
                .parse()
                .map_err(|_| format!("{host} is no IP address"))?;
            SocketAddr::new(host, *port)
        }
        other => return Err(format!("the listener is at {other:?}")),
    };
    Ok(RunningProxy {
        address,
        keeper: Box::new(running),
        metrics,
        log: None,
    })
}

/// Reads a configuration of our proxy.
///
/// # Errors
/// What is wrong with it.
pub fn read(config: &str) -> Result<(Config, Plan), String> {
    let document = Document::parse("scenario.yaml", config).map_err(|e| e.to_string())?;
    Config::read(&document, &NothingEmbedded).map_err(|e| e.to_string())
}

/// The scenario as a configuration of our proxy.
///
/// # Errors
/// What is wrong with the scenario, or with the files that it speaks of.
pub fn config(scenario: &Scenario, clusters: &[Cluster]) -> Result<String, String> {
    let hosts = &scenario.virtual_hosts;
    written(
        scenario,
        &scenario.filters()?,
        &scenario.routes,
        hosts,
        clusters,
    )
}

/// The scenario without what our proxy may refuse: its filters and routes.
///
/// # Errors
/// What is wrong with the files that it speaks of.
pub fn frame(scenario: &Scenario, clusters: &[Cluster]) -> Result<String, String> {
    written(scenario, &[], &[], &[], clusters)
}

fn written(
    scenario: &Scenario,
    all: &[(String, &str, Value)],
    routes: &[Value],
    hosts: &[Value],
    clusters: &[Cluster],
) -> Result<String, String> {
    let mut listener = scenario.listener.clone();
    let filter = |kind: &str, name: &str, body: &Value| {
        let mut filter = json!({ kind: body });
        if scenario.is_off(name) {
            filter["disabled"] = json!(true);
        }
        filter
    };
    let filters: Map<String, Value> = all
        .iter()
        .map(|(name, kind, body)| (name.clone(), filter(kind, name, body)))
        .collect();
    let names: Vec<&String> = all.iter().map(|(name, _, _)| name).collect();
    listener.insert("name".to_owned(), json!("edge"));
    listener.insert("address".to_owned(), json!("127.0.0.1:0"));
    listener.insert("filters".to_owned(), json!(names));
    let clusters: Vec<Value> = clusters.iter().map(|c| cluster(c, scenario)).collect();
    let mut config = json!({
        "listeners": [listener],
        "filters": filters,
        "routes": routes,
        "clusters": clusters,
        "workers": 1,
    });
    if !hosts.is_empty() {
        config["virtual_hosts"] = json!(hosts);
        config["routes"] = json!([]);
    }
    for (name, value) in &scenario.route_configuration {
        config[name] = value.clone();
    }
    if let Some(node) = &scenario.node {
        config["node"] = node.clone();
    }
    let written = format!("{config:#}");
    if !written.contains("<tls>") {
        return Ok(written);
    }
    Ok(written.replace("<tls>", &tls::folder()?.to_string_lossy()))
}

fn cluster(cluster: &Cluster, scenario: &Scenario) -> Value {
    let mut fields = scenario
        .clusters
        .get(&cluster.name)
        .cloned()
        .unwrap_or_default();
    fields.insert("name".to_owned(), json!(cluster.name));
    fields.insert("endpoints".to_owned(), json!([cluster.address.to_string()]));
    // A busy machine must not make a scenario fail.
    fields.insert("connect_timeout".to_owned(), json!("5s"));
    if cluster.http2 {
        fields.insert("http2".to_owned(), json!({}));
    }
    Value::Object(fields)
}
