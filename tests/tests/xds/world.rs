//! Resources, and the two proxies that are told of them.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use attache_proxy::{
    Config, Proxy, Running,
    config::NothingEmbedded,
    export,
    xds::{AdsStatus, ControlPlane as Follower},
};
use attache_service::{Address, Metrics, config::Document};
use attache_tests::{
    control_plane,
    envoy::{self, Envoy},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const PROTOCOLS: [&str; 2] = ["GRPC", "DELTA_GRPC"];

/// An origin that answers everything with its name.
pub(crate) async fn origin(name: &'static str) -> SocketAddr {
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

pub(crate) fn endpoints(name: &str, at: SocketAddr) -> Value {
    let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": at.port() } });
    json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
    })
}

pub(crate) fn cluster(name: &str) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name, "type": "EDS", "connect_timeout": "5s",
        "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } },
    })
}

/// Routes that send everything to this cluster.
pub(crate) fn routes(name: &str, cluster: &str) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": name,
        "virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }],
        }],
    })
}

pub(crate) fn listener(name: &str, routes: &str, more: &Value) -> Value {
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
pub(crate) fn world(at: SocketAddr) -> Vec<Value> {
    vec![
        cluster("web"),
        endpoints("web", at),
        listener("edge", "routes", &json!({})),
        routes("routes", "web"),
    ]
}

pub(crate) fn file(control_plane: &Address, protocol: &str, more: &str) -> String {
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

pub(crate) fn read(text: &str) -> (Config, attache_proxy::Plan, Document) {
    let document = Document::parse("proxy.yaml", text).unwrap();
    let (config, plan) =
        Config::read(&document, &NothingEmbedded).unwrap_or_else(|errors| panic!("{errors}"));
    (config, plan, document)
}

/// Our proxy, following its control plane.
pub(crate) struct Ours {
    pub(crate) running: Arc<Running>,
    status: watch::Receiver<AdsStatus>,
    following: JoinHandle<()>,
}

impl Ours {
    pub(crate) async fn start(text: &str) -> Self {
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

    pub(crate) fn listener(&self, name: &str) -> Option<SocketAddr> {
        let plan = self.running.plan();
        let nth = plan.listeners.iter().position(|one| &*one.name == name)?;
        self.running.addresses().get(nth)?.to_string().parse().ok()
    }

    pub(crate) fn has_cluster(&self, name: &str) -> bool {
        let plan = self.running.plan();
        plan.clusters.iter().any(|one| &*one.name == name)
    }

    /// Waits until nothing is refused of this type.
    pub(crate) async fn accepted(&mut self, kind: &str) {
        let accepted = |status: &AdsStatus| {
            let status = status.types.get(kind);
            status.is_some_and(|status| status.refused.is_none())
        };
        let wait = self.status.wait_for(accepted);
        let status = tokio::time::timeout(PATIENCE, wait).await;
        status.expect("accepted in time").unwrap();
    }

    /// Why the latest response of this type is refused, once it is.
    pub(crate) async fn refused(&mut self, kind: &str) -> String {
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

pub(crate) enum Either {
    Ours(Ours),
    Envoy(Envoy),
}

impl Either {
    /// Our proxy, which it is.
    pub(crate) fn ours(&mut self) -> &mut Ours {
        match self {
            Self::Ours(ours) => ours,
            Self::Envoy(_) => panic!("this is Envoy"),
        }
    }

    pub(crate) async fn listener(&self, name: &str) -> Option<SocketAddr> {
        match self {
            Self::Ours(ours) => ours.listener(name),
            Self::Envoy(envoy) => envoy.listener(name).await,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "ours",
            Self::Envoy(_) => "Envoy",
        }
    }

    /// Waits until the listener answers so.
    pub(crate) async fn until(&self, listener: &str, expected: &str) {
        self.until_at(listener, "/", expected).await;
    }

    /// Waits until the listener answers a request of this path so; a body of `*` is any.
    pub(crate) async fn until_at(&self, listener: &str, path: &str, expected: &str) {
        let mut last = None;
        let done = async {
            loop {
                if let Some(at) = self.listener(listener).await {
                    let answer = ask_for(at, path).await;
                    let whole = answer.as_deref() == Some(expected);
                    let status = answer.as_ref().zip(expected.strip_suffix('*'));
                    if whole || status.is_some_and(|(answer, status)| answer.starts_with(status)) {
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
            "{}: `{listener}` should answer {expected:?} to {path}: {last:?}",
            self.name()
        );
    }
}

/// The status and body of an answer: `200 one`.
pub(crate) async fn ask(at: SocketAddr) -> Option<String> {
    ask_for(at, "/").await
}

/// The same, of this path.
pub(crate) async fn ask_for(at: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?;
    Some(format!("{status} {body}"))
}

pub(crate) fn program() -> Option<std::path::PathBuf> {
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

/// Our proxy and, where it is installed, Envoy; with more settings of `xds`.
pub(crate) async fn both(control_plane: &Address, protocol: &str, more: &str) -> Vec<Either> {
    let text = file(control_plane, protocol, more);
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
