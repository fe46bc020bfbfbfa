//! Listeners of the control plane beside those of the file and beside each other.

use std::{collections::BTreeMap, net::SocketAddr};

use attache_proxy::export;
use attache_service::tls::{ClientFiles, ClientTls};
use attache_tests::{
    control_plane::ControlPlane,
    envoy::{self, Envoy},
    tls,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::world::{
    Either, Ours, PATIENCE, PROTOCOLS, ask, both, cluster, endpoints, file, listener, origin,
    program, read, routes, world,
};

const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const TABLES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// A cluster with this one endpoint.
fn fixed(name: &str, at: SocketAddr) -> Value {
    let mut load = endpoints(name, at);
    load.as_object_mut().unwrap().remove("@type");
    json!({
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": load,
    })
}

/// A listener at this address.
fn listener_at(name: &str, routes: &str, at: SocketAddr) -> Value {
    let mut listener = listener(name, routes, &json!({}));
    listener["address"]["socket_address"]["port_value"] = json!(at.port());
    listener
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_the_name_of_something_in_the_file_is_refused_and_the_rest_comes_into_force() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        let resources = [
            fixed("web", two),
            fixed("more", two),
            listener("edge", "inside", &json!({})),
            listener("inner", "inside", &json!({})),
            listener("third", "shared", &json!({})),
            routes("inside", "more"),
            routes("shared", "more"),
        ];
        server.set("1", &resources).await;
        let there = server.address.to_string();
        let text = file(&server.address, protocol, "");
        let web = format!("clusters: [{{ name: web, endpoints: ['{one}'] }}, ");
        let text = text.replace("clusters: [", &web);
        let text = format!(
            "{text}listeners:
- {{ name: edge, address: '127.0.0.1:0' }}
- {{ name: own, address: '127.0.0.1:0', route_config_name: shared }}
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
route_configs:
  shared: {{ routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 203 }} }}] }}
"
        );
        let mut ours = Ours::start(&text).await;

        for (kind, name) in [
            ("Cluster", "web"),
            ("Listener", "edge"),
            ("RouteConfiguration", "shared"),
        ] {
            let reason = ours.refused(kind).await;
            let expected = format!("{name}: the file of the proxy has one of this name");
            assert_eq!(reason, expected);
            let told = server.until(|event| event.error.contains(&expected));
            told.await;
        }
        let proxy = Either::Ours(ours);
        proxy.until("inner", "200 two").await;
        proxy.until("edge", "200 one").await;
        proxy.until("own", "203 ").await;
        drop(proxy);

        // Envoy takes them, and leaves them without effect.
        let Some(envoy) = envoy::program() else {
            continue;
        };
        let mut server = ControlPlane::start(&program).await;
        server.set("1", &resources).await;
        let here = server.address.to_string();
        let text = text.replace(&there, &here);
        let bootstrap = export::envoy(&read(&text).0, &BTreeMap::new()).unwrap();
        let proxy = Either::Envoy(Envoy::run(&envoy, &bootstrap).await.unwrap());
        proxy.until("inner", "200 two").await;
        proxy.until("edge", "200 one").await;
        for kind in [CLUSTERS, LISTENERS, TABLES] {
            assert_eq!(server.answer_to(kind, "1").await.error, "");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_cannot_have_its_address_is_refused_and_tried_again() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = taken.local_addr().unwrap();
        let mut server = ControlPlane::start(&program).await;
        let with_blocked = |web: SocketAddr| {
            let mut all = world(web);
            all.extend([listener_at("blocked", "routes", at)]);
            all
        };
        server.set("1", &with_blocked(one)).await;
        let mut ours = Ours::start(&file(&server.address, protocol, "")).await;

        let reason = ours.refused("Listener").await;
        assert!(reason.starts_with("blocked: "), "{reason}");
        assert!(reason.contains(&at.to_string()), "{reason}");
        let told = server.until(|event| event.error.contains(&at.to_string()));
        told.await;

        // Everything else goes on.
        let mut proxy = Either::Ours(ours);
        proxy.until("edge", "200 one").await;
        let mut other = with_blocked(two);
        other[3] = routes("routes", "more");
        other.extend([cluster("more"), endpoints("more", two)]);
        server.set("2", &other).await;
        proxy.until("edge", "200 two").await;

        drop(taken);
        proxy.until("blocked", "200 two").await;
        // The status says so without another response.
        proxy.ours().accepted("Listener").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_while_a_listener_waits_for_its_routes_holds_up_nothing_else() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        let mut server = ControlPlane::start(&program).await;
        let mut resources = world(one);
        resources.push(listener_at("blocked", "late", at));
        server.set("1", &resources).await;
        let text = file(&server.address, protocol, ", initial_fetch_timeout: 600s");
        let mut proxy = Either::Ours(Ours::start(&text).await);
        assert_eq!(server.answer_to(LISTENERS, "1").await.error, "");
        proxy.until("edge", "200 one").await;

        let taken = TcpListener::bind(at).await.unwrap();
        resources.extend([
            routes("late", "more"),
            cluster("more"),
            endpoints("more", two),
        ]);
        resources[3] = routes("routes", "more");
        server.set("2", &resources).await;

        assert_eq!(server.answer_to(TABLES, "2").await.error, "");
        proxy.until("edge", "200 two").await;
        // Of what was accepted, the status says at once that it does not run.
        let reason = proxy.ours().refused("Listener").await;
        assert!(reason.starts_with("blocked: "), "{reason}");
        assert!(reason.contains(&at.to_string()), "{reason}");
        drop(taken);
        proxy.until("blocked", "200 two").await;
    }
}

/// A cluster that nobody answers for, and a policy that asks it and denies with this status.
fn denying(name: &str, code: &str) -> [Value; 2] {
    let mut cluster = fixed(name, "127.0.0.1:1".parse().unwrap());
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    });
    let policy = json!({
        "http_filters": [
            {
                "name": "auth",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
                    "transport_api_version": "V3",
                    "grpc_service": { "envoy_grpc": { "cluster_name": name } },
                    "status_on_error": { "code": code },
                },
            },
            {
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            },
        ],
    });
    [cluster, policy]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_of_two_listeners_may_have_the_same_name() {
    let Some(program) = program() else { return };
    let one = origin("one").await;
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        let [dead, unauthorized] = denying("dead", "Unauthorized");
        let [_, too_many] = denying("dead", "TooManyRequests");
        let off = json!({
            "auth": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
                "disabled": true,
            },
        });
        let open = |name: &str, path: &str| {
            let mut table = routes(name, "web");
            table["virtual_hosts"][0]["routes"] = json!([
                { "match": { "prefix": path }, "route": { "cluster": "web" }, "typed_per_filter_config": off },
                { "match": { "prefix": "/" }, "route": { "cluster": "web" } },
            ]);
            table
        };
        let resources = [
            cluster("web"),
            endpoints("web", one),
            dead,
            listener("edge", "routes", &unauthorized),
            open("routes", "/edge"),
            listener("inner", "inside", &too_many),
            open("inside", "/inner"),
        ];
        server.set("1", &resources).await;

        for proxy in both(&server.address, protocol, "").await {
            for (listener, status, other) in
                [("edge", "401 *", "/inner"), ("inner", "429 *", "/edge")]
            {
                proxy.until(listener, status).await;
                proxy.until_at(listener, other, status).await;
                let open = format!("/{listener}");
                proxy.until_at(listener, &open, "200 one").await;
            }
        }
    }
}

/// A connection over TLS, after one request and answer, and how its handshake went.
async fn ask_tls(client: &ClientTls, at: SocketAddr) -> (impl Sized + use<>, String) {
    let stream = TcpStream::connect(at).await.unwrap();
    let mut stream = client.connect("server.test", stream).await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: a.test\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let kind = format!("{:?}", stream.get_ref().1.handshake_kind());
    (stream, kind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_leaves_sessions_and_counts_of_listeners_that_stay_as_they_are() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    let folder = tls::folder().unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        let mut resources = world(one);
        let mut sealed = listener("sealed", "inside", &json!({}));
        sealed["filter_chains"][0]["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": { "tls_certificates": [{
                    "certificate_chain": { "filename": path("server.pem") },
                    "private_key": { "filename": path("server.key") },
                }] },
            },
        });
        resources.extend([sealed, routes("inside", "web")]);
        server.set("1", &resources).await;
        let text = format!(
            "{}listeners:
- name: secure
  address: 127.0.0.1:0
  tls: {{ certificate: '{}', private_key: '{}' }}
  limits: {{ max_connections: 2 }}
  route_config: {{ routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 203 }} }}] }}
",
            file(&server.address, protocol, ""),
            path("server.pem"),
            path("server.key"),
        );
        let proxy = Either::Ours(Ours::start(&text).await);
        proxy.until("edge", "200 one").await;
        while proxy.listener("sealed").await.is_none() {
            tokio::task::yield_now().await;
        }
        let mut clients = Vec::new();
        for name in ["secure", "sealed"] {
            let client = ClientTls::load(ClientFiles {
                ca: Some(folder.join("ca.pem")),
                ..ClientFiles::default()
            });
            let (client, at) = (client.unwrap(), proxy.listener(name).await.unwrap());
            let (stream, kind) = ask_tls(&client, at).await;
            assert!(kind.contains("Full"), "{kind}");
            clients.push((name, client, at, stream));
        }

        resources[3] = routes("routes", "more");
        resources.extend([cluster("more"), endpoints("more", two)]);
        server.set("2", &resources).await;
        proxy.until("edge", "200 two").await;

        for (name, client, at, _first) in clients {
            assert_eq!(proxy.listener(name).await, Some(at));
            let (_second, kind) = ask_tls(&client, at).await;
            assert_eq!(kind, "Some(Resumed)", "{name}");
            if name == "secure" {
                let mut third = TcpStream::connect(at).await.unwrap();
                let mut byte = [0; 1];
                let closed = tokio::time::timeout(PATIENCE, third.read(&mut byte));
                assert_eq!(closed.await.unwrap().unwrap_or(0), 0);
            }
        }
        let edge = proxy.listener("edge").await.unwrap();
        assert_eq!(ask(edge).await.as_deref(), Some("200 two"));
    }
}
