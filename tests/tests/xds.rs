//! Our proxy and real Envoy behind the same control plane, go-control-plane: both come up empty,
//! and are told listeners, routes, clusters and endpoints.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache_proxy::{
    Config, Proxy, Running,
    config::NothingEmbedded,
    export,
    xds::{AdsStatus, ControlPlane as Follower},
};
use attache_service::{Address, Metrics, config::Document};
use attache_tests::{
    control_plane::{self, ControlPlane},
    envoy::{self, Envoy},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

const PATIENCE: Duration = Duration::from_secs(60);
const PROTOCOLS: [&str; 2] = ["GRPC", "DELTA_GRPC"];

/// An origin that answers everything with its name.
async fn origin(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let length = name.len();
                        let answer =
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}");
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    at
}

fn endpoints(name: &str, at: SocketAddr) -> Value {
    let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": at.port() } });
    json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
    })
}

fn cluster(name: &str) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name, "type": "EDS", "connect_timeout": "5s",
        "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } },
    })
}

/// Routes that send everything to this cluster.
fn routes(name: &str, cluster: &str) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": name,
        "virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }],
        }],
    })
}

fn listener(name: &str, routes: &str, more: &Value) -> Value {
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "rds": { "config_source": { "ads": {}, "resource_api_version": "V3" }, "route_config_name": routes },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        manager[field] = value.clone();
    }
    json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": name,
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
        }] }],
    })
}

/// One listener that sends everything to `web`, with endpoints there.
fn world(at: SocketAddr) -> Vec<Value> {
    vec![
        cluster("web"),
        endpoints("web", at),
        listener("edge", "routes", &json!({})),
        routes("routes", "web"),
    ]
}

fn file(control_plane: &Address, protocol: &str, more: &str) -> String {
    format!(
        "
node: {{ id: ours, cluster: edge }}
xds: {{ cluster: control-plane, api_type: {protocol}{more} }}
clusters: [{{ name: control-plane, endpoints: ['{control_plane}'], http2: {{}}, connect_timeout: 5s }}]
workers: 1
admin: 127.0.0.1:0
"
    )
}

fn read(text: &str) -> (Config, attache_proxy::Plan, Document) {
    let document = Document::parse("proxy.yaml", text).unwrap();
    let (config, plan) =
        Config::read(&document, &NothingEmbedded).unwrap_or_else(|errors| panic!("{errors}"));
    (config, plan, document)
}

/// Our proxy, following its control plane.
struct Ours {
    running: Arc<Running>,
    status: watch::Receiver<AdsStatus>,
    following: JoinHandle<()>,
}

impl Ours {
    async fn start(text: &str) -> Self {
        let (config, plan, document) = read(text);
        let metrics = Metrics::default();
        let running = Arc::new(Proxy::start(plan, metrics.clone()).await.unwrap());
        let mut follower =
            Follower::new(config, document, &running.plan(), &metrics).expect("a control plane");
        let status = follower.status();
        let proxy = running.clone();
        let following = tokio::spawn(async move {
            loop {
                let event = follower.next().await;
                follower.take(event, &proxy).await;
            }
        });
        Self {
            running,
            status,
            following,
        }
    }

    fn listener(&self, name: &str) -> Option<SocketAddr> {
        let plan = self.running.plan();
        let nth = plan.listeners.iter().position(|one| &*one.name == name)?;
        self.running.addresses().get(nth)?.to_string().parse().ok()
    }

    /// Why the latest response of this type is refused, once it is.
    async fn refused(&mut self, kind: &str) -> String {
        let refused = |status: &AdsStatus| status.types.get(kind)?.refused.clone();
        let wait = self.status.wait_for(|status| refused(status).is_some());
        let status = tokio::time::timeout(PATIENCE, wait).await;
        refused(&status.expect("refused in time").unwrap())
            .unwrap()
            .reason
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.following.abort();
    }
}

enum Either {
    Ours(Ours),
    Envoy(Envoy),
}

impl Either {
    async fn listener(&self, name: &str) -> Option<SocketAddr> {
        match self {
            Self::Ours(ours) => ours.listener(name),
            Self::Envoy(envoy) => envoy.listener(name).await,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "ours",
            Self::Envoy(_) => "Envoy",
        }
    }

    /// Waits until the listener answers so.
    async fn until(&self, listener: &str, expected: &str) {
        let mut last = None;
        let done = async {
            loop {
                if let Some(at) = self.listener(listener).await {
                    let answer = ask(at).await;
                    if answer.as_deref() == Some(expected) {
                        return;
                    }
                    last = Some(answer);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, done).await.is_ok();
        assert!(
            in_time,
            "{}: `{listener}` should answer {expected:?}: {last:?}",
            self.name()
        );
    }
}

/// The status and body of an answer: `200 one`.
async fn ask(at: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    let request = "GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?;
    Some(format!("{status} {body}"))
}

fn program() -> Option<std::path::PathBuf> {
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

/// Our proxy and, where it is installed, Envoy.
async fn both(control_plane: &Address, protocol: &str) -> Vec<Either> {
    let text = file(control_plane, protocol, "");
    let mut both = vec![Either::Ours(Ours::start(&text).await)];
    match envoy::program() {
        None => println!("skipped: Envoy (run cargo xtask test)"),
        Some(program) => {
            let (config, _, _) = read(&text);
            let bootstrap = export::envoy(&config, &BTreeMap::new()).unwrap();
            both.push(Either::Envoy(
                Envoy::run(&program, &bootstrap).await.unwrap(),
            ));
        }
    }
    both
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_proxies_do_what_the_same_control_plane_says() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        server.set("1", &world(one)).await;
        let proxies = both(&server.address, protocol).await;
        for proxy in &proxies {
            proxy.until("edge", "200 one").await;
        }

        // Other endpoints.
        server.set("2", &world(two)).await;
        for proxy in &proxies {
            proxy.until("edge", "200 two").await;
        }

        // Another route, to another cluster.
        let mut more = world(one);
        more[3] = routes("routes", "more");
        more.extend([cluster("more"), endpoints("more", two)]);
        server.set("3", &more).await;
        for proxy in &proxies {
            proxy.until("edge", "200 two").await;
        }

        // A cluster that there is not.
        let mut lost = world(one);
        lost[3] = routes("routes", "nowhere");
        server.set("4", &lost).await;
        for proxy in &proxies {
            proxy.until("edge", "503 ").await;
        }

        // A second listener with its own routes beside the first.
        let mut second = world(one);
        second.extend([
            listener("inner", "inside", &json!({})),
            routes("inside", "more"),
            cluster("more"),
            endpoints("more", two),
        ]);
        server.set("5", &second).await;
        for proxy in &proxies {
            proxy.until("inner", "200 two").await;
            proxy.until("edge", "200 one").await;
        }

        // And none.
        server.set("6", &world(one)).await;
        for proxy in &proxies {
            let gone = async {
                while proxy.listener("inner").await.is_some() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let gone = tokio::time::timeout(PATIENCE, gone).await;
            assert!(gone.is_ok(), "{}: the listener stays", proxy.name());
            proxy.until("edge", "200 one").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_supported_is_refused_with_its_field_and_the_old_stays() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        server.set("1", &world(one)).await;
        let mut proxy = Either::Ours(Ours::start(&file(&server.address, protocol, "")).await);
        proxy.until("edge", "200 one").await;

        let mut other = world(two);
        other[2] = listener("edge", "routes", &json!({ "via": "1.1 somebody" }));
        server.set("2", &other).await;

        let Either::Ours(ours) = &mut proxy else {
            unreachable!()
        };
        let reason = ours.refused("Listener").await;
        assert!(reason.contains("edge: "), "{reason}");
        assert!(
            reason.contains("filter_chains[0].filters[0].typed_config.via"),
            "{reason}"
        );
        let told = server.until(|event| !event.error.is_empty()).await;
        assert!(told.error.contains("typed_config.via"), "{}", told.error);
        // What is right of it is in force.
        proxy.until("edge", "200 two").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_lose_no_request() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        server.set("0", &world(one)).await;
        let proxy = Either::Ours(Ours::start(&file(&server.address, protocol, "")).await);
        proxy.until("edge", "200 one").await;
        let at = proxy.listener("edge").await.unwrap();
        let (stop, asked) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let asking = tokio::spawn({
            let (stop, asked) = (stop.clone(), asked.clone());
            async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = ask(at).await;
                    let expected = ["200 one", "200 two"];
                    let expected = answer.as_deref().is_some_and(|is| expected.contains(&is));
                    assert!(expected, "{answer:?}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            }
        });

        // Each time another cluster takes the place of the one before.
        for (version, at) in [(1, two), (2, one), (3, two), (4, one)] {
            let name = format!("web-{version}");
            let world = [
                cluster(&name),
                endpoints(&name, at),
                listener("edge", "routes", &json!({})),
                routes("routes", &name),
            ];
            server.set(&version.to_string(), &world).await;
            proxy
                .until("edge", if at == one { "200 one" } else { "200 two" })
                .await;
        }

        stop.store(true, Ordering::Relaxed);
        asking.await.unwrap();
        assert!(asked.load(Ordering::Relaxed) > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_control_plane_the_last_good_configuration_goes_on_also_after_a_restart() {
    let Some(program) = program() else { return };
    let one = origin("one").await;
    for protocol in PROTOCOLS {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("xds.json");
        let more = format!(
            ", initial_fetch_timeout: 500ms, cache: '{}'",
            cache.display()
        );
        let mut server = ControlPlane::start(&program).await;
        server.set("1", &world(one)).await;
        let text = file(&server.address, protocol, &more);
        let proxy = Either::Ours(Ours::start(&text).await);
        proxy.until("edge", "200 one").await;
        wait_for(&cache, "RouteConfiguration").await;

        drop(server);
        proxy.until("edge", "200 one").await;
        drop(proxy);
        let proxy = Either::Ours(Ours::start(&text).await);

        proxy.until("edge", "200 one").await;
    }
}

/// Waits until the file holds a resource of this type.
async fn wait_for(file: &Path, kind: &str) {
    let done = async {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let saved: Value = serde_json::from_str(&text).unwrap_or_default();
            let types = saved["resources"].as_object();
            let mut types = types.into_iter().flatten();
            if types.any(|(name, list)| name.ends_with(kind) && list != &json!([])) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, done)
        .await
        .expect("saved in time");
}

/// Does what the control plane says until the proxy has this listener.
async fn follow_until(follower: &mut Follower, running: &Running, listener: &str) -> SocketAddr {
    loop {
        let plan = running.plan();
        let nth = plan.listeners.iter().position(|one| &*one.name == listener);
        if let Some(nth) = nth {
            return running.addresses()[nth].to_string().parse().unwrap();
        }
        let event = tokio::time::timeout(PATIENCE, follower.next()).await;
        follower.take(event.expect("in time"), running).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_keeps_what_the_control_plane_said() {
    let Some(program) = program() else { return };
    let one = origin("one").await;
    let mut server = ControlPlane::start(&program).await;
    server.set("1", &world(one)).await;
    let text = file(&server.address, "GRPC", "");
    let (config, plan, document) = read(&text);
    let metrics = Metrics::default();
    let running = Proxy::start(plan, metrics.clone()).await.unwrap();
    let mut follower = Follower::new(config, document, &running.plan(), &metrics).unwrap();
    let edge = follow_until(&mut follower, &running, "edge").await;

    let more = format!(
        "{text}listeners:\n- name: probes\n  address: 127.0.0.1:0\n  route_config: {{ routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 203 }} }}] }}\n"
    );
    let (config, plan, document) = read(&more);
    follower
        .rebase(config, document, &plan, &running)
        .await
        .unwrap();

    let probes = follow_until(&mut follower, &running, "probes").await;
    assert_eq!(ask(probes).await.as_deref(), Some("203 "));
    assert_eq!(ask(edge).await.as_deref(), Some("200 one"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_may_name_routes_and_endpoints_of_the_control_plane() {
    let Some(program) = program() else { return };
    let one = origin("one").await;
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        server
            .set("1", &[endpoints("web", one), routes("inside", "web")])
            .await;
        let text = file(&server.address, protocol, ", resources: []");
        let text = text.replace("clusters: [", "clusters: [{ name: web, eds: {} }, ");
        let text = format!(
            "{text}listeners: [{{ name: inner, address: '127.0.0.1:0', route_config_name: inside }}]\n"
        );

        let proxy = Either::Ours(Ours::start(&text).await);

        proxy.until("inner", "200 one").await;
    }
}
