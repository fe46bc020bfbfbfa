//! The rate limit service in the place of envoyproxy/ratelimit: by environment variables alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::Path,
    process::Command,
};

use attache_proto::ratelimit::rate_limit_response::Code;
use support::{
    PATIENCE, Process, attache,
    drop_in::{Service, command},
    eventually, eventually_async, folder, grpc,
    grpc::LIMITS,
    path,
    peers::{Redis, skip},
    workspace,
};

const RULES: &str =
    "domain: shop\ndescriptors:\n- key: user\n  rate_limit: { unit: hour, requests_per_unit: 2 }\n";

/// Files as the reference wants them: `<root>/limits/config/*`.
fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = folder(&[]);
    std::fs::create_dir_all(root.path().join("limits/config")).unwrap();
    for (name, text) in files {
        std::fs::write(root.path().join("limits/config").join(name), text).unwrap();
    }
    root
}

fn files_of(root: &Path) -> [(&'static str, String); 3] {
    [
        ("RUNTIME_ROOT", root.display().to_string()),
        ("RUNTIME_SUBDIRECTORY", "limits".to_owned()),
        ("RUNTIME_WATCH_ROOT", "false".to_owned()),
    ]
}

fn borrowed<'a>(variables: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    let variables = variables.iter();
    variables
        .map(|(name, value)| (*name, value.as_str()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_of_the_references_name_takes_its_place_with_all_its_endpoints() {
    let root = root(&[("shop.yaml", RULES)]);
    let link = root.path().join("ratelimit");
    symlink(env!("CARGO_BIN_EXE_attache"), &link).unwrap();
    let files = files_of(root.path());
    let mut service = Service::start(&mut command(Command::new(&link), &borrowed(&files)));

    assert!(service.healthy().await);
    let line = "shop.user: unit=HOUR requests_per_unit=2, shadow_mode: false, quota_mode: false\n";
    assert_eq!(
        service.page(service.debug, "/rlconfig").await,
        (200, line.to_owned())
    );
    let (_, list) = service.page(service.debug, "/").await;
    assert!(list.starts_with("/debug/pprof/: ") && list.ends_with("/stats: print out stats\n"));
    assert_eq!(
        service.page(service.debug, "/debug/pprof/profile").await.0,
        501
    );
    assert_eq!(
        service.page(service.http, "/x").await,
        (404, "404 page not found\n".to_owned())
    );
    // A request without a body is none.
    assert_eq!(
        service.page(service.http, "/json").await,
        (400, "Bad Request\n".to_owned())
    );

    let connection = grpc::connect(&service.grpc).await.unwrap();
    for name in ["ratelimit", LIMITS, ""] {
        assert_eq!(grpc::health(&connection, name).await.unwrap(), 1, "{name}");
    }
    for expected in [1, 1, 2] {
        let answer = grpc::limited(&connection, "shop", &[("user", "ada")])
            .await
            .unwrap();
        assert_eq!(answer.overall_code, expected);
    }
    let (_, stats) = service.page(service.debug, "/stats").await;
    for line in [
        "ratelimit.service.rate_limit.shop.user.total_hits: 3",
        "ratelimit.service.rate_limit.shop.user.over_limit: 1",
        "ratelimit_server.ShouldRateLimit.total_requests: 3",
    ] {
        assert!(stats.lines().any(|found| found == line), "{line}\n{stats}");
    }

    // The reference ends on SIGHUP too.
    service.process.signal("HUP");
    assert_eq!(service.process.ended().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_read_again_and_bad_ones_leave_the_rules_as_they_are() {
    let root = root(&[(
        "shop.yaml",
        "domain: shop\ndescriptors:\n- key: a\n  unit: x\n  x: y\n",
    )]);
    let files = files_of(root.path());
    let mut variables = borrowed(&files);
    variables.push(("HEALTHY_WITH_AT_LEAST_ONE_CONFIG_LOADED", "true"));
    let service = Service::with(&variables);
    service.process.wait_for("config error, unknown key 'x'", 1);
    assert!(!service.healthy().await);
    let connection = grpc::connect(&service.grpc).await.unwrap();
    let refused = grpc::limit(&connection, "shop", &[("user", "ada")])
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unknown);
    assert_eq!(refused.message(), "no rate limit configuration loaded");
    assert_eq!(grpc::health(&connection, "ratelimit").await.unwrap(), 2);
    // The process lives.
    assert_eq!(grpc::health(&connection, "").await.unwrap(), 1);

    let file = root.path().join("limits/config/shop.yaml");
    std::fs::write(&file, RULES).unwrap();
    service
        .process
        .wait_for("Successfully loaded new configuration", 1);
    assert!(service.healthy().await);
    std::fs::write(&file, "domain: ''\n").unwrap();
    service
        .process
        .wait_for("config file cannot have empty domain", 1);
    let (_, rules) = service.page(service.debug, "/rlconfig").await;
    assert!(rules.starts_with("shop.user:"), "{rules}");
    std::fs::remove_file(&file).unwrap();
    service
        .process
        .wait_for("Successfully loaded new configuration", 2);
    assert!(!service.healthy().await, "no domain is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_is_swapped_as_a_whole() {
    let (first, second) = (
        root(&[("shop.yaml", RULES)]),
        root(&[("other", "domain: other\n")]),
    );
    let place = folder(&[]);
    let current = place.path().join("current");
    symlink(first.path(), &current).unwrap();
    let service = Service::with(&[
        ("RUNTIME_ROOT", &path(&place, "current")),
        ("RUNTIME_SUBDIRECTORY", "limits"),
    ]);
    let connection = grpc::connect(&service.grpc).await.unwrap();
    let limited = async || {
        let answer = grpc::limited(&connection, "shop", &[("user", "ada")])
            .await
            .unwrap();
        answer.statuses[0].current_limit.is_some()
    };
    assert!(limited().await);
    symlink(second.path(), place.path().join("next")).unwrap();
    std::fs::rename(place.path().join("next"), &current).unwrap();
    service
        .process
        .wait_for("Successfully loaded new configuration", 2);
    assert!(!limited().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_go_to_statsd_and_to_prometheus() {
    let root = root(&[("shop.yaml", RULES)]);
    let files = files_of(root.path());

    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = collector.local_addr().unwrap().port().to_string();
    let mut variables = borrowed(&files);
    variables.extend([
        ("USE_STATSD", "true"),
        ("STATSD_HOST", "127.0.0.1"),
        ("STATSD_PORT", port.as_str()),
        ("STATS_FLUSH_INTERVAL", "20ms"),
        ("EXTRA_TAGS", "zone:a"),
    ]);
    let service = Service::with(&variables);
    let connection = grpc::connect(&service.grpc).await.unwrap();
    grpc::limit(&connection, "shop", &[("user", "ada")])
        .await
        .unwrap();
    let (mut lines, _) = collector.accept().unwrap();
    lines.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    for line in [
        "ratelimit.service.config_load_success.__zone=a:1|c\n",
        "ratelimit.service.rate_limit.shop.user.total_hits.__zone=a:1|c\n",
        "ratelimit_server.ShouldRateLimit.total_requests.__zone=a:1|c\n",
    ] {
        while !text.contains(line) {
            let mut buffer = [0; 4096];
            let count = lines.read(&mut buffer).expect("statistics");
            assert_ne!(count, 0, "{text}");
            text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
    }
    drop(service);

    let mut variables = borrowed(&files);
    variables.extend([
        ("USE_PROMETHEUS", "true"),
        ("PROMETHEUS_ADDR", "127.0.0.1:0"),
    ]);
    let service = Service::with(&variables);
    let line = service.process.wait_for("Starting prometheus sink on", 1);
    let place = line.rsplit(' ').next().unwrap();
    let at = place.strip_suffix("/metrics").unwrap().parse().unwrap();
    let connection = grpc::connect(&service.grpc).await.unwrap();
    grpc::limit(&connection, "shop", &[("user", "ada")])
        .await
        .unwrap();
    let (_, page) = service.page(at, "/metrics").await;
    for line in [
        "ratelimit_service_rate_limit_total_hits{domain=\"shop\",key1=\"user\"} 1",
        "ratelimit_service_total_requests{grpc_method=\"ShouldRateLimit\"} 1",
        "ratelimit_service_response_time_seconds_count{grpc_method=\"ShouldRateLimit\"} 1",
        "ratelimit_service_config_load_success 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    assert_eq!(service.page(at, "/x").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_listens_before_the_store_is_there() {
    let Some(mut redis) = Redis::start() else {
        return skip("nothing_listens_before_the_store_is_there: no redis-server");
    };
    redis.kill();
    let root = root(&[("shop.yaml", RULES)]);
    let files = files_of(root.path());
    let url = redis.url();
    let mut variables = borrowed(&files);
    variables.extend([
        ("BACKEND_TYPE", "redis"),
        ("REDIS_SOCKET_TYPE", "tcp"),
        ("REDIS_URL", url.as_str()),
        ("REDIS_STARTUP_INITIAL_INTERVAL", "10ms"),
        ("REDIS_STARTUP_MAX_INTERVAL", "20ms"),
        ("REDIS_HEALTH_CHECK_ACTIVE_CONNECTION", "true"),
    ]);
    let mut waiting = command(attache(&["ratelimit"]), &variables);
    let process = Process::spawn(&mut waiting);
    process.wait_for("waiting for the store", 3);
    assert!(!process.text().contains("Listening"), "{}", process.text());
    redis.restart();
    process.wait_for("Listening for gRPC on", 1);
    drop(process);

    let service = Service::with(&variables);
    assert!(service.healthy().await);
    redis.kill();
    eventually_async("the health goes with the store", async || {
        !service.healthy().await
    })
    .await;

    variables.push(("REDIS_STARTUP_MAX_ELAPSED_TIME", "50ms"));
    let mut given_up = Process::spawn(&mut command(attache(&["ratelimit"]), &variables));
    assert_eq!(given_up.ended().code(), Some(1));
    assert!(
        given_up.text().contains("was not reached within"),
        "{}",
        given_up.text()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_reads_counters_as_they_are_and_not_as_of_the_last_flush() {
    let root = root(&[("shop.yaml", RULES)]);
    let files = files_of(root.path());
    let mut variables = borrowed(&files);
    variables.extend([
        ("USE_PROMETHEUS", "true"),
        ("PROMETHEUS_ADDR", "127.0.0.1:0"),
        ("STATS_FLUSH_INTERVAL", "24h"),
    ]);
    let service = Service::with(&variables);
    let line = service.process.wait_for("Starting prometheus sink on", 1);
    let place = line.rsplit(' ').next().unwrap();
    let at: SocketAddr = place.strip_suffix("/metrics").unwrap().parse().unwrap();
    let connection = grpc::connect(&service.grpc).await.unwrap();
    for count in 1..=3 {
        let asked = grpc::limit(&connection, "shop", &[("user", "ada")]).await;
        asked.unwrap();
        let (_, page) = service.page(at, "/metrics").await;
        let line = format!(
            "ratelimit_service_rate_limit_total_hits{{domain=\"shop\",key1=\"user\"}} {count}"
        );
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
}

/// 64 clients with so many hits each, in turn at these services; how many passed.
async fn rush(services: &[Service], user: &'static str, hits: u32) -> u32 {
    let mut clients = Vec::new();
    for client in 0..64 {
        let service = &services[client % services.len()];
        let connection = grpc::connect(&service.grpc).await.unwrap();
        clients.push(tokio::spawn(async move {
            let mut passed = 0;
            for _ in 0..hits {
                let code = grpc::limit(&connection, "shop", &[("rush", user)]).await;
                passed += u32::from(code.unwrap() == Code::Ok);
            }
            passed
        }));
    }
    let mut passed = 0;
    for client in clients {
        passed += client.await.unwrap();
    }
    passed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_services_over_one_redis_let_exactly_the_limit_pass_as_one_does() {
    let Some(redis) = Redis::start() else {
        return skip("four_services_over_one_redis: no redis-server");
    };
    let rules = "domain: shop\ndescriptors:\n- key: rush\n  rate_limit: { unit: year, requests_per_unit: 500 }\n";
    let root = root(&[("shop.yaml", rules)]);
    let mut variables = files_of(root.path()).to_vec();
    let url = redis.url().trim_start_matches("redis://").to_owned();
    variables.extend([
        ("BACKEND_TYPE", "redis".to_owned()),
        ("REDIS_SOCKET_TYPE", "tcp".to_owned()),
        ("REDIS_URL", url),
        // A busy machine is no outage.
        ("REDIS_OPERATION_TIMEOUT", "10s".to_owned()),
    ]);
    let services: Vec<_> = (0..4)
        .map(|_| Service::with(&borrowed(&variables)))
        .collect();
    assert_eq!(rush(&services[..1], "one", 100).await, 500);
    assert_eq!(rush(&services, "four", 1000).await, 500);
}

#[test]
fn what_is_wrong_with_the_environment_is_told_at_once() {
    let wrong = [
        ("PORT", "high"),
        ("SHADOW_MODE", "yes"),
        ("REDIS_POOL_SIZE", "3"),
    ];
    let mut process = Process::spawn(&mut command(attache(&["ratelimit"]), &wrong));
    assert_eq!(process.ended().code(), Some(2));
    eventually("both are told", || {
        let text = process.text();
        (text.contains("PORT=high: ") && text.contains("SHADOW_MODE=yes: ")).then_some(())
    });

    let mut nothing = attache(&["ratelimit"]);
    nothing.env_clear().env("HOST", "127.0.0.1");
    let mut process = Process::spawn(&mut nothing);
    assert_eq!(process.ended().code(), Some(2));
    eventually("what is missing is told", || {
        process
            .text()
            .contains("`--config` is needed")
            .then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_effect_is_noted_and_flags_count_more() {
    let root = root(&[("shop.yaml", RULES)]);
    let files = files_of(root.path());
    let socket = path(&root, "limits.sock");
    let mut variables = borrowed(&files);
    variables.extend([
        ("BACKEND_TYPE", "redis"),
        ("REDIS_POOL_SIZE", "3"),
        ("GRPC_UDS", "/nonexistent/limits.sock"),
    ]);
    let listen = format!("unix:{socket}");
    let flags = [
        "ratelimit",
        "--store",
        "memory",
        "--listen",
        &listen,
        "--admin",
        "127.0.0.1:0",
    ];
    let service = Service::start(&mut command(attache(&flags), &variables));
    service.process.wait_for("REDIS_POOL_SIZE has no effect", 1);
    let connection = grpc::connect(&listen).await.unwrap();
    grpc::limit(&connection, "shop", &[("user", "ada")])
        .await
        .unwrap();

    let line = service.process.wait_for("admin page", 1);
    let at: SocketAddr = line.rsplit('=').next().unwrap().parse().unwrap();
    let (_, counters) = service.page(at, "/ratelimit/counters").await;
    assert!(counters.contains("shop_user_ada"), "{counters}");
    let (_, why) = service
        .page(at, "/ratelimit/explain?domain=shop&entry=user%3Dada")
        .await;
    assert!(why.contains("counter: 1 of 2 left"), "{why}");
    let (_, metrics) = service.page(at, "/metrics").await;
    let hits = "attache_ratelimit_hits_total{domain=\"shop\",rule=\"user\"} 1";
    assert!(metrics.contains(hits), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_runs() {
    let example = workspace().join("examples/ratelimit");
    let text = std::fs::read_to_string(example.join("environment")).unwrap();
    let variables: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| !name.ends_with("PORT"))
        .collect();
    let service = Service::with(&variables);
    assert!(service.healthy().await);
    let connection = grpc::connect(&service.grpc).await.unwrap();
    let answer = grpc::limited(&connection, "shop", &[("user", "ada")])
        .await
        .unwrap();
    assert!(answer.statuses[0].current_limit.is_some());
    assert!(TcpStream::connect(service.http).is_ok());
}
