//! Route tables of listeners: those that all share, those under a name, and a listener's own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use attache_proxy::{Config, Plan, Proxy, Running, config::NothingEmbedded};
use attache_service::{
    Metrics,
    config::{Document, Errors},
};
use support::once;

const LISTENERS: &str = "
listeners:
- { name: shared, address: '127.0.0.1:0' }
- { name: also-shared, address: '127.0.0.1:0' }
- { name: named, address: '127.0.0.1:0', route_config_name: inside }
- name: own
  address: 127.0.0.1:0
  route_config:
    response_headers_to_add: [{ header: { key: x-table, value: own } }]
    routes: [{ match: { prefix: / }, direct_response: { status: 203 } }]
routes: [{ match: { prefix: / }, direct_response: { status: 201 } }]
route_configs:
  inside: { routes: [{ match: { prefix: / }, direct_response: { status: 202 } }] }
";

fn read(text: &str) -> Result<(Config, Plan), Errors> {
    Config::read(
        &Document::parse("proxy.yaml", text).unwrap(),
        &NothingEmbedded,
    )
}

async fn start(text: &str) -> Running {
    let (_, plan) = read(text).unwrap_or_else(|errors| panic!("{errors}"));
    Proxy::start(plan, Metrics::default()).await.unwrap()
}

async fn ask(running: &Running, listener: usize) -> String {
    let at = running.addresses()[listener].to_string().parse().unwrap();
    once(at, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await
}

#[tokio::test]
async fn a_listener_goes_by_its_own_routes_and_else_by_those_that_all_share() {
    let running = start(LISTENERS).await;

    assert!(ask(&running, 0).await.starts_with("HTTP/1.1 201"));
    assert!(ask(&running, 1).await.starts_with("HTTP/1.1 201"));
    assert!(ask(&running, 2).await.starts_with("HTTP/1.1 202"));
    let own = ask(&running, 3).await;
    assert!(own.starts_with("HTTP/1.1 203"), "{own}");
    assert!(own.contains("x-table: own"), "{own}");
    running.shutdown().await;
}

#[tokio::test]
async fn a_reload_changes_the_routes_of_one_listener_alone() {
    let running = start(LISTENERS).await;

    let changed = LISTENERS.replace("status: 203", "status: 204");
    running.reload(read(&changed).unwrap().1).await.unwrap();

    assert!(ask(&running, 2).await.starts_with("HTTP/1.1 202"));
    assert!(ask(&running, 3).await.starts_with("HTTP/1.1 204"));
    running.shutdown().await;
}

#[tokio::test]
async fn a_route_to_no_cluster_is_answered_where_clusters_are_not_validated() {
    let running = start(
        "
listeners: [{ name: l, address: '127.0.0.1:0' }]
validate_clusters: false
routes:
- match: { prefix: / }
  route: { weighted_clusters: { clusters: [{ name: nowhere, weight: 1 }] } }
",
    )
    .await;

    let answer = ask(&running, 0).await;

    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    running.shutdown().await;
}

#[test]
fn tables_that_there_are_not_are_refused_with_the_nearest_name() {
    let errors = read(&LISTENERS.replace("route_config_name: inside", "route_config_name: insid"))
        .unwrap_err();

    let text = errors.to_string();
    assert!(text.contains("there is no route table `insid`"), "{text}");
    assert!(text.contains("`inside`"), "{text}");
}

#[test]
fn a_listener_has_one_table() {
    let errors = read(&LISTENERS.replace(
        "  route_config:\n",
        "  route_config_name: inside\n  route_config:\n",
    ))
    .unwrap_err();

    assert_eq!(errors.len(), 1, "{errors}");
}

#[test]
fn routes_of_a_listener_that_passes_connections_on_are_refused() {
    let errors = read(
        "
listeners: [{ name: l, address: '127.0.0.1:0', tcp: { cluster: a }, route_config: {} }]
clusters: [{ name: a, endpoints: ['127.0.0.1:1'] }]
",
    )
    .unwrap_err();

    assert!(
        errors.to_string().contains("passes connections on"),
        "{errors}"
    );
}
