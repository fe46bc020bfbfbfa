//! Restarts of a proxy that follows a control plane, go-control-plane, while requests go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use attache_tests::control_plane::{self, ControlPlane};
use serde_json::{Value, json};

use support::{Process, eventually, free_port, load::Load};

const TYPES: &str = "type.googleapis.com/envoy";

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";

/// An origin that answers everything. Bytes that are passed on have no end of their own that a
/// restart could wait for, so it keeps no connection.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read_exact(&mut byte).is_err() {
                        return;
                    }
                    head.push(byte[0]);
                }
                // Whoever asked may be gone.
                let _ = stream.write_all(ANSWER);
            });
        }
    });
    at
}

fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}

/// Two listeners with the same routes: over HTTP, and as bytes.
fn world(http: SocketAddr, tcp: SocketAddr, origin: SocketAddr) -> Vec<Value> {
    let manager = json!({
        "@type": format!("{TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "edge",
        "rds": { "config_source": { "ads": {}, "resource_api_version": "V3" }, "route_config_name": "routes" },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": format!("{TYPES}.extensions.filters.http.router.v3.Router") },
        }],
    });
    let proxy = json!({
        "@type": format!("{TYPES}.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": "db", "cluster": "web",
    });
    let listener = |name: &str, at: SocketAddr, filter: Value| {
        json!({
            "@type": format!("{TYPES}.config.listener.v3.Listener"),
            "name": name, "address": address(at),
            "filter_chains": [{ "filters": [{ "name": "last", "typed_config": filter }] }],
        })
    };
    vec![
        json!({
            "@type": format!("{TYPES}.config.cluster.v3.Cluster"),
            "name": "web", "type": "EDS", "connect_timeout": "5s",
            "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } },
        }),
        json!({
            "@type": format!("{TYPES}.config.endpoint.v3.ClusterLoadAssignment"),
            "cluster_name": "web",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(origin) } }] }],
        }),
        listener("edge", http, manager),
        listener("db", tcp, proxy),
        json!({
            "@type": format!("{TYPES}.config.route.v3.RouteConfiguration"),
            "name": "routes",
            "virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "web" } }],
            }],
        }),
    ]
}

/// A proxy with a listener of its own that has its routes from the control plane.
struct Setup {
    folder: tempfile::TempDir,
    file: PathBuf,
    /// Where it listens: as its file says, and as the control plane does.
    at: [SocketAddr; 3],
}

impl Setup {
    fn new(server: &ControlPlane, protocol: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("attache.yaml");
        let at = [(); 3].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let text = format!(
            "
node: {{ id: ours, cluster: edge }}
xds: {{ cluster: control-plane, api_type: {protocol}, initial_fetch_timeout: 2s, cache: xds.json }}
listeners: [{{ name: own, address: '{}', route_config_name: routes }}]
clusters: [{{ name: control-plane, endpoints: ['{}'], http2: {{}}, connect_timeout: 5s }}]
",
            at[0], server.address
        );
        std::fs::write(&file, text).unwrap();
        Self { folder, file, at }
    }

    fn start(&self, workers: &str) -> Process {
        let handover = self.folder.path().join("handover.sock");
        Process::attache(&[
            "run",
            self.file.to_str().unwrap(),
            "--workers",
            workers,
            "--handover",
            handover.to_str().unwrap(),
        ])
    }

    /// Clients of all listeners, which answer.
    fn load(&self) -> Vec<Load> {
        for at in self.at {
            eventually("an answer", || {
                let mut client = support::load::Client::connect(at).ok()?;
                client.ask().ok()
            });
        }
        self.at.map(Load::start).into()
    }

    /// Replaces the process; it has ended well then.
    fn succeed(&self, mut running: Process, workers: &str) -> Process {
        let successor = self.start(workers);
        assert!(running.ended().success(), "{}", running.text());
        successor
    }
}

fn program() -> Option<PathBuf> {
    let program = control_plane::program();
    if program.is_none() {
        assert!(
            std::env::var_os("ATTACHE_REQUIRE_ALL").is_none(),
            "no control plane"
        );
        println!("skipped: no control plane (run cargo xtask processors)");
    }
    program
}

fn more(load: &[Load]) {
    load.iter().for_each(|load| load.more(100));
}

fn no_failures(load: Vec<Load>) {
    let failures: Vec<_> = load.into_iter().flat_map(Load::failures).collect();
    assert_eq!(failures, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_lose_no_request_of_listeners_of_the_control_plane() {
    let Some(program) = program() else { return };
    for protocol in ["GRPC", "DELTA_GRPC"] {
        let mut server = ControlPlane::start(&program).await;
        let setup = Setup::new(&server, protocol);
        let [_, http, tcp] = setup.at;
        server.set("1", &world(http, tcp, origin())).await;
        let mut running = setup.start("2");
        let load = setup.load();
        more(&load);

        for workers in ["2", "1", "3"] {
            running = setup.succeed(running, workers);
            more(&load);
        }

        no_failures(load);
        drop(running);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_control_plane_a_successor_goes_by_what_was_told_last() {
    let Some(program) = program() else { return };
    let mut server = ControlPlane::start(&program).await;
    let setup = Setup::new(&server, "GRPC");
    let [_, http, tcp] = setup.at;
    server.set("1", &world(http, tcp, origin())).await;
    let running = setup.start("1");
    let load = setup.load();
    let cache = setup.folder.path().join("xds.json");
    eventually("the cache", || saved(&cache).then_some(()));
    drop(server);

    let running = setup.succeed(running, "1");

    more(&load);
    no_failures(load);
    drop(running);
}

/// Whether the file holds routes, which come last.
fn saved(file: &Path) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let saved: Value = serde_json::from_str(&text).unwrap_or_default();
    let routes = format!("{TYPES}.config.route.v3.RouteConfiguration");
    saved["resources"][routes.as_str()]
        .as_array()
        .is_some_and(|list| !list.is_empty())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_is_stopped_before_it_knows_enough_changes_nothing() {
    let Some(program) = program() else { return };
    let mut server = ControlPlane::start(&program).await;
    let setup = Setup::new(&server, "GRPC");
    let [_, http, tcp] = setup.at;
    server.set("1", &world(http, tcp, origin())).await;
    let running = setup.start("1");
    let load = setup.load();
    let text = std::fs::read_to_string(&setup.file).unwrap();
    // Nobody answers there.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = text
        .replace(
            &server.address.to_string(),
            &silent.local_addr().unwrap().to_string(),
        )
        .replace("initial_fetch_timeout: 2s", "initial_fetch_timeout: 600s");
    std::fs::write(setup.folder.path().join("other.yaml"), &text).unwrap();
    let other = Setup {
        file: setup.folder.path().join("other.yaml"),
        ..setup
    };

    let mut successor = other.start("1");
    running.wait_for("takes over the listening sockets", 1);
    successor.signal("TERM");
    assert!(successor.ended().success());

    running.wait_for("did not start", 1);
    more(&load);
    no_failures(load);
}
