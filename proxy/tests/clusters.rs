//! Endpoints of clusters: where they come from, how they are chosen, what of them is kept.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache_proxy::{
    Plan,
    config::{Config, NothingEmbedded},
    export,
};
use attache_service::{cluster::LbPolicy, config::Document};
use support::{
    OK, Origin, PATIENCE, Raw, Tested, frames::Http2, header, origin, read_head, start, status,
};
use tokio::{
    io::AsyncWriteExt,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

fn text(listen: &str, clusters: &str, route: &str) -> String {
    format!(
        "listeners: [{{ name: edge, address: \"{listen}\" }}]\n\
         routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web{route} }} }}]\n\
         clusters:\n{clusters}\nworkers: 1\n"
    )
}

/// The plan of these clusters, with a route to `web` that has these further settings.
fn plan(listen: &str, clusters: &str, route: &str) -> Plan {
    let text = text(listen, clusters, route);
    let document = Document::parse("proxy.yaml", text).unwrap();
    let read = Config::read(&document, &NothingEmbedded);
    read.map_err(|errors| errors.to_string()).unwrap().1
}

async fn proxy(clusters: &str, route: &str) -> Tested {
    start(plan("127.0.0.1:0", clusters, route)).await
}

/// An origin that says the number of the connection that each request came on, its own first.
async fn numbered() -> (Origin, UnboundedReceiver<usize>) {
    let (seen, connections) = unbounded_channel();
    let origin = origin(move |number, mut stream| {
        let seen = seen.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                let _ = seen.send(number);
                if stream.write_all(OK.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, connections)
}

fn drain(receiver: &mut UnboundedReceiver<usize>) -> Vec<usize> {
    std::iter::from_fn(|| receiver.try_recv().ok()).collect()
}

async fn ask(client: &mut Raw, headers: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: test\r\n{headers}\r\n");
    client.send(&request).await;
    client.response().await.0
}

#[test]
fn without_a_policy_endpoints_are_chosen_by_load() {
    let plan = plan(
        "127.0.0.1:0",
        "- { name: web, endpoints: [\"127.0.0.1:1\"] }",
        "",
    );
    assert_eq!(plan.clusters[0].balance.policy, LbPolicy::LeastRequest);
}

#[tokio::test]
async fn endpoints_are_used_in_turn_by_their_weight() {
    let (one, mut first) = numbered().await;
    let (two, mut second) = numbered().await;
    let clusters = format!(
        "- {{ name: web, lb_policy: ROUND_ROBIN, endpoints: [\"{}\", {{ address: \"{}\", weight: 3 }}] }}",
        one.at, two.at
    );
    let proxy = proxy(&clusters, "").await;
    let mut client = Raw::connect(proxy.at).await;
    for _ in 0..8 {
        assert_eq!(status(&ask(&mut client, "").await), 200);
    }
    assert_eq!(drain(&mut first).len(), 2);
    assert_eq!(drain(&mut second).len(), 6);
}

#[tokio::test]
async fn a_name_is_looked_up_before_the_first_request() {
    let (web, mut seen) = numbered().await;
    let port = web.at.port();
    for clusters in [
        format!("- {{ name: web, endpoints: [\"localhost:{port}\"] }}"),
        format!("- {{ name: web, dns: \"localhost:{port}\" }}"),
        format!("- {{ name: web, dns: \"localhost:{port}\", dns_type: LOGICAL_DNS }}"),
    ] {
        let proxy = proxy(&clusters, "").await;
        let mut client = Raw::connect(proxy.at).await;
        assert_eq!(status(&ask(&mut client, "").await), 200, "{clusters}");
        assert_eq!(drain(&mut seen).len(), 1);
    }
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_a_503() {
    let proxy = proxy("- { name: web, dns: \"nobody.invalid:80\" }", "").await;
    let mut client = Raw::connect(proxy.at).await;
    assert_eq!(status(&ask(&mut client, "").await), 503);
}

#[tokio::test]
async fn endpoints_of_a_file_change_while_requests_go_on() {
    let (one, mut first) = numbered().await;
    let (two, mut second) = numbered().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("endpoints.yaml");
    std::fs::write(&file, format!("- {}\n", one.at)).unwrap();
    let clusters = format!("- {{ name: web, endpoints_file: \"{}\" }}", file.display());
    let proxy = proxy(&clusters, "").await;
    let mut client = Raw::connect(proxy.at).await;
    assert_eq!(status(&ask(&mut client, "").await), 200);
    assert_eq!(drain(&mut first), [0]);

    std::fs::write(&file, format!("- {}\n", two.at)).unwrap();
    let moved = async {
        while drain(&mut second).is_empty() {
            assert_eq!(status(&ask(&mut client, "").await), 200);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, moved).await.unwrap();
}

#[tokio::test]
async fn a_reload_keeps_the_connections_of_clusters_that_it_leaves_as_they_are() {
    let (web, mut seen) = numbered().await;
    let clusters = format!("- {{ name: web, endpoints: [\"{}\"] }}", web.at);
    let proxy = proxy(&clusters, "").await;
    let listen = proxy.at.to_string();
    let mut client = Raw::connect(proxy.at).await;
    ask(&mut client, "").await;

    let same = plan(&listen, &clusters, ", timeout: 7s");
    proxy.running.reload(same).await.unwrap();
    ask(&mut client, "").await;
    assert_eq!(drain(&mut seen), [0, 0], "the kept connection is used");

    let other = clusters.replace("name: web", "name: web, connect_timeout: 2s");
    proxy
        .running
        .reload(plan(&listen, &other, ""))
        .await
        .unwrap();
    ask(&mut client, "").await;
    assert_eq!(drain(&mut seen), [1], "the cluster is another one");
}

/// An origin that counts its connections, those that are open and all.
async fn counting() -> (Origin, Arc<[AtomicUsize; 2]>) {
    let counts = Arc::<[AtomicUsize; 2]>::default();
    let counted = counts.clone();
    let origin = origin(move |_, mut stream| {
        let counts = counted.clone();
        async move {
            counts.iter().for_each(|count| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            while read_head(&mut stream).await.is_some() {
                if stream.write_all(OK.as_bytes()).await.is_err() {
                    break;
                }
            }
            counts[0].fetch_sub(1, Ordering::Relaxed);
        }
    })
    .await;
    (origin, counts)
}

#[tokio::test]
async fn a_cluster_that_is_replaced_goes_away_while_connections_of_clients_stay() {
    let (old, of_old) = counting().await;
    let (new, of_new) = counting().await;
    // Each check comes on a connection of its own, so that checks are seen.
    let clusters = |at: SocketAddr| {
        format!(
            "- {{ name: web, endpoints: [\"{at}\"], health_checks: [{{ timeout: 1s, interval: 0.02s, no_traffic_interval: 0.02s, \
             unhealthy_threshold: 3, healthy_threshold: 1, reuse_connection: false, \
             http_health_check: {{ path: /health }} }}] }}"
        )
    };
    let until = async |what: &str, holds: &dyn Fn() -> bool| {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, wait).await;
        assert!(in_time.is_ok(), "{what}");
    };
    let all = |counts: &[AtomicUsize; 2]| counts[1].load(Ordering::Relaxed);
    let proxy = proxy(&clusters(old.at), "").await;
    let mut http1 = Raw::connect(proxy.at).await;
    ask(&mut http1, "").await;
    let mut http2 = Http2::connect(proxy.at).await;
    assert!(http2.is_alive(1).await);
    until("checks of the old", &|| all(&of_old) > 4).await;

    let next = plan(&proxy.at.to_string(), &clusters(new.at), "");
    proxy.running.reload(next).await.unwrap();

    until("the old has no connection", &|| {
        of_old[0].load(Ordering::Relaxed) == 0
    })
    .await;
    let before = (all(&of_old), all(&of_new));
    until("checks of the new", &|| all(&of_new) > before.1 + 5).await;
    assert_eq!(all(&of_old), before.0, "the old is still checked");
    ask(&mut http1, "").await;
    assert!(http2.is_alive(3).await);
    assert_eq!(all(&of_old), before.0);
}

#[tokio::test]
async fn a_connection_carries_so_many_requests_as_it_may() {
    let (web, mut seen) = numbered().await;
    let clusters = format!(
        "- {{ name: web, endpoints: [\"{}\"], max_requests_per_connection: 2 }}",
        web.at
    );
    let proxy = proxy(&clusters, "").await;
    let mut client = Raw::connect(proxy.at).await;
    for _ in 0..5 {
        ask(&mut client, "").await;
    }
    assert_eq!(drain(&mut seen), [0, 0, 1, 1, 2]);
}

#[tokio::test]
async fn a_connection_that_is_too_old_is_not_used_again() {
    let (web, mut seen) = numbered().await;
    let clusters = format!(
        "- {{ name: web, endpoints: [\"{}\"], max_connection_duration: 10ms }}",
        web.at
    );
    let proxy = proxy(&clusters, "").await;
    let mut client = Raw::connect(proxy.at).await;
    ask(&mut client, "").await;
    let second = async {
        while !drain(&mut seen).contains(&1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            ask(&mut client, "").await;
        }
    };
    tokio::time::timeout(PATIENCE, second).await.unwrap();
}

/// Four origins, and which of them answers.
async fn four(settings: &str) -> (String, Vec<(Origin, UnboundedReceiver<usize>)>) {
    let mut origins = Vec::new();
    for _ in 0..4 {
        origins.push(numbered().await);
    }
    let at: Vec<_> = origins
        .iter()
        .map(|(one, _)| format!("\"{}\"", one.at))
        .collect();
    let clusters = format!(
        "- {{ name: web, {settings}, endpoints: [{}] }}",
        at.join(", ")
    );
    (clusters, origins)
}

fn answered(origins: &mut [(Origin, UnboundedReceiver<usize>)]) -> Vec<usize> {
    let counts = origins.iter_mut().map(|(_, seen)| drain(seen).len());
    counts.collect()
}

#[tokio::test]
async fn requests_with_the_same_hash_go_to_the_same_endpoint() {
    for policy in ["RING_HASH", "MAGLEV"] {
        let (clusters, mut origins) = four(&format!("lb_policy: {policy}")).await;
        let route = ", hash_policy: [{ header: { header_name: x-user } }]";
        let proxy = proxy(&clusters, route).await;
        let mut client = Raw::connect(proxy.at).await;
        let mut used = [0; 4];
        for user in 0..32 {
            for _ in 0..3 {
                ask(&mut client, &format!("x-user: {user}\r\n")).await;
            }
            let counts = answered(&mut origins);
            let one = counts.iter().position(|count| *count == 3);
            used[one.expect("all three at one endpoint")] += 1;
        }
        assert!(used.iter().all(|users| *users > 0), "{used:?}");
    }
}

#[tokio::test]
async fn a_cookie_ties_a_client_to_an_endpoint() {
    let (clusters, mut origins) = four("lb_policy: RING_HASH").await;
    let route = ", hash_policy: [{ cookie: { name: sid, ttl: 60s } }]";
    let proxy = proxy(&clusters, route).await;
    let mut client = Raw::connect(proxy.at).await;
    let head = ask(&mut client, "").await;
    let cookie = header(&head, "set-cookie").unwrap();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let first = answered(&mut origins);
    for _ in 0..5 {
        let head = ask(&mut client, &format!("cookie: {cookie}\r\n")).await;
        assert_eq!(header(&head, "set-cookie"), None);
    }
    let later: Vec<_> = first.iter().map(|count| count * 5).collect();
    assert_eq!(answered(&mut origins), later);
}

#[tokio::test]
async fn a_request_goes_where_it_says_if_that_is_allowed() {
    let (one, mut first) = numbered().await;
    let (two, mut second) = numbered().await;
    let clusters = "- { name: web, original_dst: { http_header_name: x-gateway-destination-endpoint, allowed: [127.0.0.1/32] } }";
    let proxy = proxy(clusters, ", retry_policy: { retry_on: connect-failure }").await;
    let mut client = Raw::connect(proxy.at).await;
    let to = |at: &str| format!("x-gateway-destination-endpoint: {at}\r\n");
    for (origin, seen) in [(&one, &mut first), (&two, &mut second)] {
        let head = ask(&mut client, &to(&origin.at.to_string())).await;
        assert_eq!(status(&head), 200);
        assert_eq!(drain(seen), [0]);
    }
    // A port where nobody listens, then one where somebody does.
    let nobody: SocketAddr = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let head = ask(&mut client, &to(&format!("{nobody}, {}", one.at))).await;
    assert_eq!(status(&head), 200);
    assert_eq!(drain(&mut first), [0]);

    let elsewhere = format!("127.0.0.2:{}", one.at.port());
    for refused in [elsewhere.as_str(), "localhost:80", ""] {
        let head = ask(&mut client, &to(refused)).await;
        assert_eq!(status(&head), 503, "{refused}");
    }
    let counted = "destinations_refused_total{cluster=\"web\",reason=\"not_allowed\"} 3";
    assert!(proxy.metrics.render().contains(counted));
}

#[tokio::test]
async fn connections_and_members_are_counted() {
    let (web, _seen) = numbered().await;
    let clusters = format!("- {{ name: web, endpoints: [\"{}\"] }}", web.at);
    let proxy = proxy(&clusters, "").await;
    let mut client = Raw::connect(proxy.at).await;
    ask(&mut client, "").await;
    let text = proxy.metrics.render();
    for line in [
        "attache_upstream_connects_total{cluster=\"web\"} 1",
        "attache_upstream_connect_duration_seconds_count{cluster=\"web\"} 1",
        "attache_upstream_membership_total{cluster=\"web\"} 1",
        "attache_upstream_membership_healthy{cluster=\"web\"} 1",
        "attache_upstream_requests_active{cluster=\"web\"} 0",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let snapshot = proxy.running.plan().clusters[0].endpoints.snapshot();
    assert_eq!(snapshot.endpoints[0].connects, 1);
    assert_eq!(snapshot.endpoints[0].address, web.at.to_string());
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    for (cluster, reason) in [
        (
            "endpoints: [a.test:1, b.test:1], dns_type: LOGICAL_DNS",
            "is for one name",
        ),
        ("dns: \"10.0.0.1:80\"", "needs a name"),
        (
            "dns: \"a.test:80\", respect_dns_ttl: true",
            "names are looked up every `dns_refresh_rate`",
        ),
        (
            "endpoints: [\"10.0.0.1:80\"], peak_ewma_lb_config: {}",
            "lb_policy: PEAK_EWMA",
        ),
        ("endpoints: [\"10.0.0.1:0\"]", "needs a port"),
        (
            "endpoints: [{ address: \"10.0.0.1:80\", weight: 0 }]",
            "at least 1",
        ),
        (
            "endpoints: [\"10.0.0.1:80\"], common_lb_config: { healthy_panic_threshold: { value: 101 } }",
            "between 0 and 100",
        ),
        (
            "original_dst: { http_header_name: x-to, allowed: [] }",
            "at least one network",
        ),
        (
            "original_dst: { http_header_name: x-to, allowed: [web] }",
            "not a network",
        ),
        (
            "original_dst: { allowed: [10.0.0.0/8] }",
            "`http_header_name` or `metadata_key`",
        ),
        (
            "endpoints: [\"10.0.0.1:80\"], max_connection_duration: 0s",
            "must be more than 0",
        ),
    ] {
        let text = text("127.0.0.1:0", &format!("- {{ name: web, {cluster} }}"), "");
        let document = Document::parse("proxy.yaml", text).unwrap();
        let errors = Config::read(&document, &NothingEmbedded).unwrap_err();
        assert!(errors.to_string().contains(reason), "{cluster}: {errors}");
        assert_eq!(errors.len(), 1, "{cluster}: {errors}");
    }
}

#[test]
fn all_settings_are_exported() {
    let clusters = "\
- { name: web, lb_policy: PEAK_EWMA, max_connection_duration: 60s, max_requests_per_connection: 9, endpoints: [{ address: \"10.0.0.1:80\", weight: 3, hostname: a.test }], common_lb_config: { healthy_panic_threshold: { value: 0 } } }
- { name: names, lb_policy: MAGLEV, dns: \"a.test:80\", dns_type: LOGICAL_DNS, dns_refresh_rate: 9s, dns_lookup_family: V6_ONLY }
- { name: file, endpoints_file: endpoints.json }
- { name: picked, original_dst: { http_header_name: x-to, allowed: [10.0.0.0/8] } }";
    let text = text("127.0.0.1:0", clusters, "");
    let document = Document::parse("proxy.yaml", text).unwrap();
    let (config, _) = Config::read(&document, &NothingEmbedded).unwrap();
    let envoy = export::envoy(&config, &BTreeMap::new()).unwrap();
    let clusters = &envoy["static_resources"]["clusters"];
    let [web, names, file, picked] = [0, 1, 2, 3].map(|index| &clusters[index]);
    let endpoint = &web["load_assignment"]["endpoints"][0]["lb_endpoints"][0];
    assert_eq!(web["type"], "STATIC");
    assert_eq!(web["lb_policy"], "LEAST_REQUEST");
    assert_eq!(endpoint["load_balancing_weight"], 3);
    assert_eq!(endpoint["endpoint"]["hostname"], "a.test");
    assert_eq!(
        web["common_lb_config"]["healthy_panic_threshold"]["value"],
        0.0
    );
    let options = &web["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
        ["common_http_protocol_options"];
    assert_eq!(options["max_connection_duration"], "60s");
    assert_eq!(options["max_requests_per_connection"], 9);
    assert_eq!(names["type"], "LOGICAL_DNS");
    assert_eq!(names["lb_policy"], "MAGLEV");
    assert_eq!(names["dns_refresh_rate"], "9s");
    assert_eq!(names["dns_lookup_family"], "V6_ONLY");
    assert_eq!(file["type"], "EDS");
    let path = &file["eds_cluster_config"]["eds_config"]["path_config_source"]["path"];
    assert!(path.as_str().unwrap().ends_with("/endpoints.json"));
    assert_eq!(picked["type"], "ORIGINAL_DST");
    assert_eq!(picked["lb_policy"], "CLUSTER_PROVIDED");
    assert_eq!(picked["original_dst_lb_config"]["http_header_name"], "x-to");
}
