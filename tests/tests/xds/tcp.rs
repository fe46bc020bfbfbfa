//! Listeners of the control plane that pass connections on.

use std::net::SocketAddr;

use attache_tests::control_plane::ControlPlane;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::world::{
    Either, Ours, PATIENCE, PROTOCOLS, both, cluster, endpoints, file, origin, program, world,
};

const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

/// What is no TLS, and long enough to see that.
const PLAIN: &[u8] = b"no TLS";

/// An origin that says its name before it hears anything, and then all that it hears.
async fn greeter(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(name.as_bytes()).await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    at
}

/// A filter that passes connections on to this cluster.
fn tcp_proxy(cluster: &str, more: &Value) -> Value {
    let mut proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster, "cluster": cluster,
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        proxy[field] = value.clone();
    }
    json!({ "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": proxy }] })
}

/// The same for connections that ask for one of these server names.
fn by_name(names: &[&str], cluster: &str) -> Value {
    let mut chain = tcp_proxy(cluster, &json!({}));
    chain["filter_chain_match"] = json!({ "server_names": names, "transport_protocol": "tls" });
    chain
}

fn listener(name: &str, chains: &[Value]) -> Value {
    json!({
        "@type": LISTENERS,
        "name": name,
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "listener_filters": [{
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" },
        }],
        "filter_chains": chains,
    })
}

/// The first bytes of a TLS client that asks for this name.
fn hello(name: &str) -> Vec<u8> {
    let sized = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        [&length[..], bytes].concat()
    };
    let host = [&[0][..], &sized(name.as_bytes())].concat();
    let names = [&[0, 0][..], &sized(&sized(&host))].concat();
    let signatures = [&[0, 13][..], &sized(&sized(&[4, 3]))].concat();
    let extensions = [names, signatures].concat();
    // TLS 1.2, a random number, no session, one cipher suite, no compression.
    let mut body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0xc0, 0x2b], &[1, 0]].concat();
    body.extend(sized(&extensions));
    let message = [&[1, 0][..], &sized(&body)].concat();
    [&[22, 3, 1][..], &sized(&message)].concat()
}

/// Who answers a connection that begins so, and whether it gets all that was said; empty when it
/// is closed.
async fn asked(at: SocketAddr, beginning: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    stream.write_all(beginning).await.ok()?;
    let mut answer = Vec::new();
    // A reset is an end too.
    while !answer.ends_with(beginning) && stream.read_buf(&mut answer).await.is_ok_and(|n| n > 0) {}
    let name = answer.strip_suffix(beginning).unwrap_or_default();
    Some(String::from_utf8_lossy(name).into_owned())
}

/// Waits until a connection to the listener that begins so ends up there.
async fn until(proxy: &Either, listener: &str, beginning: &[u8], expected: &str) {
    let mut last = None;
    let done = async {
        loop {
            if let Some(at) = proxy.listener(listener).await {
                last = asked(at, beginning).await;
                if last.as_deref() == Some(expected) {
                    return;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, done).await.is_ok();
    let name = proxy.name();
    assert!(
        in_time,
        "{name}: `{listener}` should lead to {expected:?}: {last:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_passed_on_as_both_proxies_are_told() {
    let Some(program) = program() else { return };
    let (one, two) = (greeter("one").await, greeter("two").await);
    let web = origin("web").await;
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        let with = |chain: Value, at: SocketAddr| {
            let mut all = world(web);
            all.extend([
                cluster("db"),
                endpoints("db", at),
                listener("plain", &[chain]),
            ]);
            all
        };
        let settings = json!({ "idle_timeout": "60s", "max_connect_attempts": 2 });
        server
            .set("1", &with(tcp_proxy("db", &settings), one))
            .await;
        let proxies = both(&server.address, protocol, "").await;
        for proxy in &proxies {
            until(proxy, "plain", PLAIN, "one").await;
            proxy.until("edge", "200 web").await;
        }
        let plain = proxies[0].listener("plain").await.unwrap();
        let mut stays = TcpStream::connect(plain).await.unwrap();
        stays.read_exact(&mut [0; 3]).await.unwrap();

        // Other endpoints.
        server
            .set("2", &with(tcp_proxy("db", &settings), two))
            .await;
        for proxy in &proxies {
            until(proxy, "plain", PLAIN, "two").await;
        }

        // Another cluster.
        let mut other = with(tcp_proxy("more", &json!({})), two);
        other.extend([cluster("more"), endpoints("more", one)]);
        server.set("3", &other).await;
        for proxy in &proxies {
            until(proxy, "plain", PLAIN, "one").await;
        }

        // What was passed on before is so still.
        stays.write_all(b"ping").await.unwrap();
        let mut pong = [0; 4];
        stays.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"ping");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_passed_on_by_the_server_name_that_is_asked_for() {
    let Some(program) = program() else { return };
    let origins = [
        ("one", greeter("one").await),
        ("two", greeter("two").await),
        ("rest", greeter("rest").await),
    ];
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        let mut resources: Vec<_> = origins
            .iter()
            .flat_map(|(name, at)| [cluster(name), endpoints(name, *at)])
            .collect();
        let mut rest = tcp_proxy("rest", &json!({}));
        rest["filter_chain_match"] = json!({});
        resources.push(listener(
            "names",
            &[
                by_name(&["a.test", "b.test"], "one"),
                by_name(&["*.b.test"], "two"),
                rest,
            ],
        ));
        let mut alone = listener("alone", &[by_name(&["a.test"], "one")]);
        alone["listener_filters_timeout"] = json!("5s");
        resources.push(alone);
        server.set("1", &resources).await;

        for proxy in &both(&server.address, protocol, "").await {
            for (name, expected) in [
                ("a.test", "one"),
                ("b.test", "one"),
                ("x.b.test", "two"),
                ("other.test", "rest"),
            ] {
                until(proxy, "names", &hello(name), expected).await;
            }
            until(proxy, "names", PLAIN, "rest").await;
            until(proxy, "alone", &hello("a.test"), "one").await;
            until(proxy, "alone", &hello("b.test"), "").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_is_accepted_before_the_cluster_that_it_passes_connections_on_to_is_told() {
    let Some(program) = program() else { return };
    let one = greeter("one").await;
    let web = origin("web").await;
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        let mut resources = world(web);
        resources.push(listener("plain", &[tcp_proxy("late", &json!({}))]));
        server.set("1", &resources).await;
        let proxies = both(&server.address, protocol, "").await;
        for proxy in &proxies {
            proxy.until("edge", "200 web").await;
        }
        for _ in &proxies {
            assert_eq!(server.answer_to(LISTENERS, "1").await.error, "");
        }

        resources.extend([cluster("late"), endpoints("late", one)]);
        server.set("2", &resources).await;

        for proxy in &proxies {
            until(proxy, "plain", PLAIN, "one").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_supported_of_connections_that_are_passed_on_is_refused_with_its_field() {
    let Some(program) = program() else { return };
    let one = greeter("one").await;
    let mut weighted = tcp_proxy("db", &json!({}));
    let proxy = &mut weighted["filters"][0]["typed_config"];
    proxy.as_object_mut().unwrap().remove("cluster");
    proxy["weighted_clusters"] = json!({ "clusters": [{ "name": "db", "weight": 1 }] });
    let mut by_source = tcp_proxy("db", &json!({}));
    by_source["filter_chain_match"] = json!({ "source_ports": [1] });
    let two = [tcp_proxy("db", &json!({})), by_source.clone()];
    for (chains, expected) in [
        (
            vec![weighted],
            "filter_chains[0].filters[0].typed_config.weighted_clusters: ",
        ),
        (
            vec![by_source],
            "filter_chains[0].filter_chain_match.source_ports: ",
        ),
        (two.to_vec(), "filter_chains[1]"),
        (
            vec![by_name(&["a*.test"], "db")],
            "`a*.test` is no server name",
        ),
    ] {
        for protocol in PROTOCOLS {
            let mut server = ControlPlane::start(&program).await;
            let resources = [
                cluster("db"),
                endpoints("db", one),
                listener("plain", &chains),
                listener("good", &[tcp_proxy("db", &json!({}))]),
            ];
            server.set("1", &resources).await;
            let mut ours = Ours::start(&file(&server.address, protocol, "")).await;

            let reason = ours.refused("Listener").await;

            assert!(reason.starts_with("plain: "), "{reason}");
            assert!(reason.contains(expected), "{reason}");
            let told = server.until(|event| !event.error.is_empty()).await;
            assert!(told.error.contains(expected), "{}", told.error);
            until(&Either::Ours(ours), "good", PLAIN, "one").await;
        }
    }
}
