//! The admin page of a proxy that runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{collections::BTreeSet, io::Write as _, net::SocketAddr};

use attache_service::config::json::{Value, from_str};
use support::{
    Process, eventually_async, folder, free_port,
    http::{self, Answer, Client, Origin},
    path,
};

/// A proxy for one origin, with a secret in its configuration, and an endpoint where nobody
/// listens.
fn edge(origin: SocketAddr, unused: u16) -> String {
    format!(
        "
listeners: [{{ name: edge, address: 127.0.0.1:0 }}]
routes:
- match: {{ prefix: /gone }}
  route: {{ cluster: gone }}
- match: {{ prefix: / }}
  route: {{ cluster: web }}
  request_headers_to_add: [{{ header: {{ key: x-origin-key, value: s3cret }} }}]
clusters:
- name: web
  endpoints: [{{ address: '{origin}', weight: 3 }}]
  circuit_breakers: {{ thresholds: [{{ max_requests: 5 }}] }}
- name: gone
  endpoints: ['127.0.0.1:{unused}']
  health_checks: [{{ tcp_health_check: {{}}, interval: 0.05s, timeout: 1s, no_traffic_interval: 0.05s, unhealthy_threshold: 1, healthy_threshold: 1 }}]
admin: 127.0.0.1:0
"
    )
}

async fn get(at: SocketAddr, path: &str) -> Answer {
    http::get(at, path, &[]).await
}

async fn post(at: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Answer {
    Client::new(at).post(path, headers).await.unwrap()
}

fn json(answer: &Answer) -> Value {
    from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.body))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_is_listed_and_probes_have_two_names() {
    let origin = Origin::start().await;
    let files = folder(&[("edge.yaml", &edge(origin.at, free_port()))]);
    let proxy = Process::attache(&["run", &path(&files, "edge.yaml"), "--workers", "1"]);
    let admin = proxy.admin();

    let list = get(admin, "/").await.body;

    for path in list.lines().filter(|line| line.starts_with('/')) {
        let path = path.split_whitespace().next().unwrap();
        assert_eq!(get(admin, path).await.status, 200, "{path}");
    }
    for page in ["/config", "/clusters", "POST /log-level", "POST /drain"] {
        assert!(list.contains(page), "{page}: {list}");
    }
    for (path, body) in [
        ("/live", "alive"),
        ("/healthz", "alive"),
        ("/ready", "ready"),
        ("/readyz", "ready"),
        ("/stats/prometheus", "attache_downstream_connections"),
    ] {
        let answer = get(admin, path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.body.contains(body), "{path}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configuration_is_shown_without_secrets_and_with_what_was_refused() {
    let origin = Origin::start().await;
    let good = edge(origin.at, free_port());
    let files = folder(&[("edge.yaml", &good)]);
    let file = path(&files, "edge.yaml");
    let proxy = Process::attache(&["run", &file, "--workers", "1"]);
    let admin = proxy.admin();

    let first = get(admin, "/config").await;

    assert!(!first.body.contains("s3cret"), "{}", first.body);
    let first = json(&first);
    assert_eq!(first["file"], file.as_str());
    assert_eq!(first["last_failed_reload"], Value::Null);
    assert_eq!(first["configuration"]["clusters"][0]["name"], "web");

    std::fs::write(&file, good.replace("prefix: /gone", "prefx: /gone")).unwrap();
    proxy.wait_for("refused, the old one goes on", 1);

    let refused = json(&get(admin, "/config").await);
    let errors = refused["last_failed_reload"]["errors"].as_array().unwrap();
    let all = errors.iter().filter_map(Value::as_str).collect::<String>();
    assert!(
        all.contains("edge.yaml:4:") && all.contains("prefx"),
        "{all}"
    );
    assert_eq!(refused["sha256"], first["sha256"]);

    std::fs::write(&file, good.replace("weight: 3", "weight: 4")).unwrap();
    proxy.wait_for("configuration reloaded", 1);

    let then = json(&get(admin, "/config").await);
    assert_ne!(then["sha256"], first["sha256"]);
    let endpoint = &then["configuration"]["clusters"][0]["endpoints"][0];
    assert_eq!(endpoint["weight"], 4);
    assert_eq!(then["last_failed_reload"], refused["last_failed_reload"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_start_changes_is_said_by_a_reload_and_shown_as_it_is() {
    let origin = Origin::start().await;
    let good = format!("{}workers: 1\n", edge(origin.at, free_port()));
    let files = folder(&[("edge.yaml", &good)]);
    let file = path(&files, "edge.yaml");
    let proxy = Process::attache(&["run", &file]);
    let admin = proxy.admin();

    let other = good.replace("workers: 1", "workers: 2");
    std::fs::write(
        &file,
        other.replace("admin: 127.0.0.1:0", "admin: 127.0.0.1:1"),
    )
    .unwrap();
    proxy.wait_for("configuration reloaded", 1);

    for field in ["workers", "admin"] {
        let said = proxy.wait_for(&format!("field={field}"), 1);
        assert!(said.contains("WARN"), "{said}");
    }
    let told = json(&get(admin, "/config").await);
    let kept = &told["kept_until_restart"];
    assert_eq!(
        (&kept["workers"], &kept["admin"]),
        (&1.into(), &"127.0.0.1:0".into())
    );

    std::fs::write(&file, &good).unwrap();
    proxy.wait_for("configuration reloaded", 2);
    let told = json(&get(admin, "/config").await);
    assert_eq!(told["kept_until_restart"].as_object().unwrap().len(), 0);
}

/// The names of metrics on a page. One that begins with `…` leaves out the beginning that it shares
/// with the whole name before it: as many words as make a name of it, so all of those are given.
fn metrics_in(page: &str) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_*…".contains(c);
    let mut names = Vec::new();
    let mut whole: Option<&str> = None;
    for word in page
        .split(|c| !is_name(c))
        .filter(|word| word.contains('_'))
    {
        match (word.strip_prefix('…'), whole) {
            (Some(end), Some(whole)) => {
                let shared = whole.match_indices('_').map(|(at, _)| at);
                names.extend(shared.map(|at| format!("{}{end}", &whole[..at])));
            }
            (Some(_), None) => {}
            (None, _) => {
                whole = Some(word);
                names.push(word.to_owned());
            }
        }
    }
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_on_a_page() {
    let origin = Origin::start().await;
    let more = "filters:
  auth: { ext_authz: { grpc_service: { envoy_grpc: { cluster_name: auth } } } }
  limits: { ratelimit: { domain: demo, rate_limit_service: { grpc_service: { envoy_grpc: { cluster_name: limits } } } } }
  rewrite: { ext_proc: { grpc_service: { envoy_grpc: { cluster_name: demo } } } }
overload: { max_memory: 4GiB }
";
    let clusters = "clusters:
- { name: auth, embedded: { ext_authz: auth.yaml } }
- { name: limits, embedded: { ratelimit: limits/ } }
- { name: demo, embedded: { ext_proc: demo } }
";
    let config = edge(origin.at, free_port())
        .replace("127.0.0.1:0 }]", "127.0.0.1:0, filters: [auth, limits, rewrite] }\n- { name: tcp, address: 127.0.0.1:0, tcp: { cluster: web } }]")
        .replace("listeners: [", "listeners:\n- ")
        .replace("{ cluster: web } }]", "{ cluster: web } }")
        .replace("clusters:\n", clusters);
    let example = |name: &str| {
        let path = support::workspace().join("examples/demo").join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let files = folder(&[
        ("edge.yaml", &(config + more)),
        ("auth.yaml", &example("auth.yaml")),
        ("jwks.json", &example("jwks.json")),
        ("limits/demo.yaml", &example("limits/demo.yaml")),
    ]);
    let proxy = Process::attache(&["run", &path(&files, "edge.yaml"), "--workers", "1"]);
    let told: BTreeSet<String> = std::fs::read_dir(support::workspace().join("docs/src"))
        .unwrap()
        .filter_map(|page| std::fs::read_to_string(page.unwrap().path()).ok())
        .flat_map(|page| metrics_in(&page))
        .collect();

    let metrics = get(proxy.admin(), "/metrics").await.body;

    let names: Vec<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    assert!(names.len() > 50, "{metrics}");
    // A page may say `*` for names that are Envoy's, and `_total` of a counter.
    let is_there = |name: &&str| {
        let ends = name.match_indices('_').map(|(at, _)| &name[..at]);
        let mut all = ends
            .map(|beginning| format!("{beginning}_*"))
            .chain([(*name).to_owned()]);
        all.any(|name| told.contains(&name) || told.contains(&format!("{name}_total")))
    };
    let missing: Vec<_> = names.into_iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_show_their_endpoints_with_health_and_why() {
    let origin = Origin::start().await;
    let unused = free_port();
    let files = folder(&[("edge.yaml", &edge(origin.at, unused))]);
    let proxy = Process::attache(&["run", &path(&files, "edge.yaml"), "--workers", "1"]);
    let (at, admin) = (proxy.socket(), proxy.admin());
    assert_eq!(get(at, "/").await.status, 200);

    let web = origin.at;
    let lines = [
        format!("web::{web}::weight::3"),
        format!("web::{web}::cx_total::1"),
        format!("web::{web}::rq_active::0"),
        format!("web::{web}::health_flags::healthy"),
        "web::default_priority::max_requests::5".to_owned(),
        "web::default_priority::max_requests::used::0".to_owned(),
        format!("gone::127.0.0.1:{unused}::health_flags::/failed_active_hc"),
    ];
    for line in lines {
        eventually_async(&line, async || {
            let text = get(admin, "/clusters").await.body;
            text.lines().any(|one| one == line)
        })
        .await;
    }
    let text = get(admin, "/clusters").await.body;
    let why = format!("gone::127.0.0.1:{unused}::failed_active_hc::why::");
    let why = text.lines().find_map(|line| line.strip_prefix(&why));
    assert!(why.is_some_and(|why| why.contains("refused")), "{text}");

    let clusters = json(&get(admin, "/clusters?format=json").await);
    let [web, gone] = [0, 1].map(|index| &clusters["clusters"][index]);
    assert_eq!(web["name"], "web");
    assert_eq!(web["endpoints"][0]["healthy"], true);
    assert_eq!(web["circuit_breakers"]["max_requests"]["limit"], 5);
    let trouble = &gone["endpoints"][0]["troubles"][0];
    assert_eq!(trouble["flag"], "failed_active_hc");

    assert_eq!(get(admin, "/clusters?format=xml").await.status, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_logged_is_changed_by_post_alone() {
    let origin = Origin::start().await;
    let files = folder(&[("edge.yaml", &edge(origin.at, free_port()))]);
    let proxy = Process::attache(&["run", &path(&files, "edge.yaml"), "--workers", "1"]);
    let admin = proxy.admin();
    assert_eq!(get(admin, "/log-level").await.body, "info\n");

    for (level, reason) in [
        ("", "?level="),
        ("?level=loud", "`loud` is no level"),
        ("?level=attache=loud", "attache=loud"),
        ("?lvl=info", "`lvl` is no parameter"),
    ] {
        let refused = post(admin, &format!("/log-level{level}"), &[]).await;
        assert_eq!(refused.status, 400, "{level}");
        assert!(refused.body.contains(reason), "{level}: {}", refused.body);
    }
    get(admin, "/log-level?level=debug").await;
    let elsewhere = [("origin", "http://evil.example")];
    let refused = post(admin, "/log-level?level=debug", &elsewhere).await;
    assert_eq!(refused.status, 403);
    assert_eq!(get(admin, "/log-level").await.body, "info\n");

    let changed = post(admin, "/log-level?level=attache_service=debug", &[]).await;

    assert_eq!(changed.body, "info,attache_service=debug\n");
    assert_eq!(get(admin, "/log-level").await.body, changed.body);
    proxy.wait_for("what is logged was changed", 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_begun_by_post_and_can_be_watched() {
    // It takes its time to answer, which keeps the drain from its end.
    let origin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = edge(origin.local_addr().unwrap(), free_port()) + "drain: { min: 0s, max: 20s }\n";
    let files = folder(&[("edge.yaml", &text)]);
    let mut proxy = Process::attache(&["run", &path(&files, "edge.yaml"), "--workers", "1"]);
    let (at, admin) = (proxy.socket(), proxy.admin());
    let mut busy = std::net::TcpStream::connect(at).unwrap();
    busy.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .unwrap();
    let (mut asked, _) = origin.accept().unwrap();
    eventually_async("the connection is there", async || {
        json(&get(admin, "/drain").await)["connections"] == 1
    })
    .await;
    assert_eq!(json(&get(admin, "/drain").await)["state"], "serving");

    let refused = post(admin, "/drain", &[("sec-fetch-site", "cross-site")]).await;
    assert_eq!(refused.status, 403);
    assert_eq!(get(admin, "/ready").await.status, 200);

    let begun = json(&post(admin, "/drain", &[]).await);

    assert_eq!(begun["state"], "draining");
    assert_eq!(begun["max_seconds"], 20.0);
    eventually_async("not ready", async || {
        let ready = get(admin, "/ready").await;
        ready.status == 503 && ready.body.contains("draining")
    })
    .await;
    assert_eq!(get(admin, "/live").await.status, 200);
    let state = json(&get(admin, "/drain").await);
    assert_eq!(
        (&state["state"], &state["connections"]),
        (&"draining".into(), &1.into())
    );

    asked
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .unwrap();
    assert_eq!(proxy.ended().code(), Some(0));
}
