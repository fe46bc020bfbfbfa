//! What does not come, and what goes away.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use attache_tests::control_plane::ControlPlane;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::Notify,
};

use crate::world::{
    Either, Ours, PATIENCE, PROTOCOLS, ask, ask_for, both, cluster, endpoints, file, listener,
    origin, program, read, routes, world,
};

const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const IMPATIENT: &str = ", initial_fetch_timeout: 300ms";

/// The same resource for Envoy, where each has the time of its first answer itself.
fn impatient(mut resource: Value) -> Value {
    let manager = "/filter_chains/0/filters/0/typed_config/rds/config_source";
    for source in ["/eds_cluster_config/eds_config", manager] {
        if let Some(source) = resource.pointer_mut(source) {
            source["initial_fetch_timeout"] = json!("0.3s");
        }
    }
    resource
}

/// Sends everything below `/lost` to another cluster than the rest.
fn two_routes(name: &str, lost: &str, rest: &str) -> Value {
    let mut table = routes(name, rest);
    table["virtual_hosts"][0]["routes"] = json!([
        { "match": { "prefix": "/lost" }, "route": { "cluster": lost } },
        { "match": { "prefix": "/" }, "route": { "cluster": rest } },
    ]);
    table
}

#[test]
fn a_first_answer_is_waited_for_as_long_as_in_envoy() {
    let nobody = "127.0.0.1:1".parse().unwrap();
    let (_, plan, _) = read(&file(&nobody, "GRPC", ""));
    let timeout = plan.xds.unwrap().initial_fetch_timeout;
    assert_eq!(timeout, Duration::from_secs(15));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_comes_does_not_hold_up_the_rest_for_ever() {
    let Some(program) = program() else { return };
    let one = origin("one").await;
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        let world = [
            cluster("web"),
            endpoints("web", one),
            impatient(cluster("lost")),
            listener("edge", "routes", &json!({})),
            two_routes("routes", "lost", "web"),
            impatient(listener("bare", "never", &json!({}))),
        ];
        server.set("1", &world).await;

        for proxy in both(&server.address, protocol, IMPATIENT).await {
            proxy.until("edge", "200 one").await;
            proxy.until_at("edge", "/lost", "503 *").await;
            proxy.until("bare", "404 *").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_for_a_first_answer_is_that_of_the_resource_that_names_it() {
    let Some(program) = program() else { return };
    let one = origin("one").await;
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        let world = [
            cluster("web"),
            endpoints("web", one),
            impatient(cluster("lost")),
            listener("edge", "routes", &json!({})),
            two_routes("routes", "lost", "web"),
            impatient(listener("bare", "never", &json!({}))),
        ];
        server.set("1", &world).await;

        let patient = ", initial_fetch_timeout: 600s";
        for proxy in both(&server.address, protocol, patient).await {
            proxy.until("edge", "200 one").await;
            proxy.until_at("edge", "/lost", "503 *").await;
            proxy.until("bare", "404 *").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_may_wait_for_ever() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        server.set("1", &world(one)).await;
        let text = file(&server.address, protocol, IMPATIENT);
        let proxy = Either::Ours(Ours::start(&text).await);
        proxy.until("edge", "200 one").await;

        let mut patient = cluster("late");
        patient["eds_cluster_config"]["eds_config"]["initial_fetch_timeout"] = json!("0s");
        let mut next = world(one);
        next[3] = routes("routes", "late");
        next.extend([
            patient,
            cluster("lost"),
            listener("inner", "inside", &json!({})),
            routes("inside", "lost"),
        ]);
        server.set("2", &next).await;

        proxy.until("inner", "503 *").await;
        let edge = proxy.listener("edge").await.unwrap();
        assert_eq!(ask(edge).await.as_deref(), Some("200 one"));
        next.extend([endpoints("late", two), endpoints("lost", two)]);
        server.set("3", &next).await;
        proxy.until("edge", "200 two").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_holds_up_nobody_else_and_the_routes_before_go_on() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        server.set("1", &world(one)).await;
        let text = file(&server.address, protocol, ", initial_fetch_timeout: 600s");
        let proxy = Either::Ours(Ours::start(&text).await);
        proxy.until("edge", "200 one").await;

        let mut next = world(one);
        next[3] = routes("routes", "lost");
        next.extend([
            cluster("lost"),
            listener("inner", "inside", &json!({})),
            routes("inside", "more"),
            cluster("more"),
            endpoints("more", two),
        ]);
        server.set("2", &next).await;

        proxy.until("inner", "200 two").await;
        let edge = proxy.listener("edge").await.unwrap();
        assert_eq!(ask(edge).await.as_deref(), Some("200 one"));

        next.push(endpoints("lost", two));
        server.set("3", &next).await;
        proxy.until("edge", "200 two").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_removed_stays_for_a_while_where_routes_name_it() {
    let Some(program) = program() else { return };
    let one = origin("one").await;
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        let without = [
            cluster("more"),
            endpoints("more", one),
            listener("edge", "routes", &json!({})),
            routes("routes", "web"),
        ];
        server.set("1", &world(one)).await;
        let patient = Either::Ours(Ours::start(&file(&server.address, protocol, "")).await);
        patient.until("edge", "200 one").await;
        let edge = patient.listener("edge").await.unwrap();

        server.set("2", &without).await;
        let told = server.answer_to(CLUSTERS, "2").await;

        assert_eq!(told.error, "");
        assert_eq!(ask(edge).await.as_deref(), Some("200 one"));
        drop(patient);

        // Then there is none, as in Envoy at once.
        server.set("3", &world(one)).await;
        let proxies = both(&server.address, protocol, IMPATIENT).await;
        for proxy in &proxies {
            proxy.until("edge", "200 one").await;
        }
        server.set("4", &without).await;
        for proxy in &proxies {
            proxy.until("edge", "503 ").await;
        }
        // And it can come again.
        server.set("5", &world(one)).await;
        for proxy in &proxies {
            proxy.until("edge", "200 one").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_removed_goes_with_the_last_listener_whose_routes_name_it() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        let mut both = world(one);
        both.extend([
            listener("inner", "inside", &json!({})),
            routes("inside", "more"),
            cluster("more"),
            endpoints("more", two),
        ]);
        server.set("1", &both).await;
        let text = file(&server.address, protocol, ", initial_fetch_timeout: 600s");
        let proxy = Either::Ours(Ours::start(&text).await);
        proxy.until("inner", "200 two").await;

        server.set("2", &world(one)).await;

        let Either::Ours(ours) = &proxy else {
            unreachable!()
        };
        let gone = async {
            while ours.has_cluster("more") || ours.listener("inner").is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let gone = tokio::time::timeout(PATIENCE, gone).await;
        assert!(gone.is_ok(), "the cluster stays");
        proxy.until("edge", "200 one").await;
    }
}

/// An origin that answers requests of `/slow` when it is told to; says when one has come.
async fn slow_origin(name: &'static str) -> (SocketAddr, Arc<Notify>, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (came, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    tokio::spawn({
        let (came, go) = (came.clone(), go.clone());
        async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (came, go) = (came.clone(), go.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    if head.starts_with(b"GET /slow ") {
                        came.notify_one();
                        go.notified().await;
                    }
                    let length = name.len();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                });
            }
        }
    });
    (at, came, go)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_a_cluster_has_when_it_goes_away_end_well() {
    let Some(program) = program() else { return };
    let two = origin("two").await;
    for protocol in PROTOCOLS {
        let (slow, came, go) = slow_origin("slow").await;
        let mut server = ControlPlane::start(&program).await;
        server.set("1", &world(slow)).await;
        let text = file(&server.address, protocol, IMPATIENT);
        let proxy = Either::Ours(Ours::start(&text).await);
        proxy.until("edge", "200 slow").await;
        let edge = proxy.listener("edge").await.unwrap();
        let asking = tokio::spawn(ask_for(edge, "/slow"));
        tokio::time::timeout(PATIENCE, came.notified())
            .await
            .unwrap();

        let other = [
            cluster("more"),
            endpoints("more", two),
            listener("edge", "routes", &json!({})),
            routes("routes", "more"),
        ];
        server.set("2", &other).await;
        proxy.until("edge", "200 two").await;
        let Either::Ours(ours) = &proxy else {
            unreachable!()
        };
        let gone = async {
            while ours.has_cluster("web") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
        go.notify_one();

        assert_eq!(asking.await.unwrap().as_deref(), Some("200 slow"));
    }
}
