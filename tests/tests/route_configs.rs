//! Listeners with routes of their own, through our proxy and through Envoy; and the way to
//! Envoy's language and back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::{collections::BTreeMap, net::SocketAddr};

use attache_proxy::{
    Proxy, export,
    import::{self, Effect, Unprotected},
};
use attache_service::Metrics;
use attache_tests::{
    envoy::{self, Envoy},
    ours,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const CONFIG: &str = "
listeners:
- { name: shared, address: '127.0.0.1:0' }
- { name: named, address: '127.0.0.1:0', route_config_name: inside }
- name: own
  address: 127.0.0.1:0
  route_config:
    validate_clusters: false
    routes:
    - match: { path: /nowhere }
      route: { cluster: nowhere, cluster_not_found_response_code: NOT_FOUND }
    - match: { prefix: / }
      direct_response: { status: 203 }
routes: [{ match: { prefix: / }, direct_response: { status: 201 } }]
route_configs:
  inside: { routes: [{ match: { prefix: / }, direct_response: { status: 202 } }] }
workers: 1
admin: 127.0.0.1:0
";

async fn status(at: SocketAddr, path: &str) -> u16 {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

async fn statuses(listeners: [SocketAddr; 3]) -> [u16; 4] {
    [
        status(listeners[0], "/").await,
        status(listeners[1], "/").await,
        status(listeners[2], "/").await,
        status(listeners[2], "/nowhere").await,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_listener_goes_by_its_own_routes_in_both_proxies() {
    let (config, plan) = ours::read(CONFIG).unwrap();
    let running = Proxy::start(plan, Metrics::default()).await.unwrap();
    let at = running.addresses();
    let at = [0, 1, 2].map(|nth| at[nth].to_string().parse().unwrap());

    assert_eq!(statuses(at).await, [201, 202, 203, 404]);

    let Some(program) = envoy::program() else {
        println!("skipped: Envoy (run cargo xtask test)");
        return;
    };
    let bootstrap = export::envoy(&config, &BTreeMap::new()).unwrap();
    let envoy = Envoy::run(&program, &bootstrap).await.unwrap();
    let mut at = Vec::new();
    for name in ["shared", "named", "own"] {
        at.push(envoy.listener(name).await.unwrap());
    }
    assert_eq!(
        statuses([at[0], at[1], at[2]]).await,
        [201, 202, 203, 404],
        "Envoy"
    );
}

#[test]
fn tables_that_differ_come_back_from_envoys_language() {
    let (config, _) = ours::read(CONFIG).unwrap();
    let there = export::envoy(&config, &BTreeMap::new()).unwrap();

    let document = import::read("envoy.json", there.to_string()).unwrap();
    let imported = import::bootstrap(&document, Unprotected::LeftOut).unwrap();

    let lost = imported.dropped.iter();
    let lost: Vec<_> = lost.filter(|one| one.effect != Effect::Nothing).collect();
    assert!(lost.is_empty(), "{lost:?}");
    let text = import::to_yaml(&imported.config);
    let (config, _) = ours::read(&text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    assert_eq!(export::envoy(&config, &BTreeMap::new()).unwrap(), there);
}
