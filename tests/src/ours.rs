//! Our proxy: the scenario as its configuration, and how it is started.

use std::any::Any;
use std::net::SocketAddr;

use attache_proxy::{Config, Plan, Proxy, config::NothingEmbedded};
use attache_service::{Address, Metrics, config::Document};
use serde_json::{Map, Value, json};

use crate::run::Cluster;
use crate::scenario::Scenario;

/// Our proxy, running in this process; it ends with this value.
#[derive(Debug)]
pub struct RunningProxy {
    /// Where its listener is.
    pub address: SocketAddr,
    /// What keeps it running: it stops when this is dropped.
    pub keeper: Box<dyn Any + Send>,
}

/// Starts our proxy with this configuration.
///
/// # Errors
/// What is wrong with the configuration, or why it does not start.
pub async fn start_ours(config: &str) -> Result<RunningProxy, String> {
    let (_, plan) = read(config)?;
    let running = Proxy::start(plan, Metrics::default())
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
pub fn config(scenario: &Scenario, clusters: &[Cluster]) -> Result<String, String> {
    Ok(written(
        scenario.listener.clone(),
        &scenario.filters()?,
        &scenario.routes,
        clusters,
    ))
}

/// The scenario without what our proxy may refuse: its filters and routes.
pub fn frame(scenario: &Scenario, clusters: &[Cluster]) -> String {
    written(scenario.listener.clone(), &[], &[], clusters)
}

fn written(
    mut listener: Map<String, Value>,
    all: &[(String, &str, Value)],
    routes: &[Value],
    clusters: &[Cluster],
) -> String {
    let filters: Map<String, Value> = all
        .iter()
        .map(|(name, kind, body)| (name.clone(), json!({ *kind: body })))
        .collect();
    let names: Vec<&String> = all.iter().map(|(name, _, _)| name).collect();
    listener.insert("name".to_owned(), json!("edge"));
    listener.insert("address".to_owned(), json!("127.0.0.1:0"));
    listener.insert("filters".to_owned(), json!(names));
    let clusters: Vec<Value> = clusters.iter().map(cluster).collect();
    let config = json!({
        "listeners": [listener],
        "filters": filters,
        "routes": routes,
        "clusters": clusters,
        "workers": 1,
    });
    format!("{config:#}")
}

fn cluster(cluster: &Cluster) -> Value {
    let mut fields = Map::new();
    fields.insert("name".to_owned(), json!(cluster.name));
    fields.insert("endpoints".to_owned(), json!([cluster.address.to_string()]));
    // A busy machine must not make a scenario fail.
    fields.insert("connect_timeout".to_owned(), json!("5s"));
    if cluster.http2 {
        fields.insert("http2".to_owned(), json!({}));
    }
    Value::Object(fields)
}
