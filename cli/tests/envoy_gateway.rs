//! The rate limit service as Envoy Gateway starts and drives it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::net::SocketAddr;

use attache_proto::{
    ratelimit::rate_limit_response::Code,
    ratelimit_config::{RateLimitConfig, RateLimitDescriptor, RateLimitPolicy, RateLimitUnit},
};
use attache_tests::discovery::{ControlPlane, RULES};
use support::{
    Process, attache, discovery,
    drop_in::{Service, command},
    folder,
    grpc::{self, Certificates, Connection},
    path,
    peers::{Redis, skip},
};

const DOMAIN: &str = "default/eg/http";

/// In the language of the statsd exporter, with the fields that Envoy Gateway's has.
const MAPPER: &str = r#"
mappings:
- match: "ratelimit.service.rate_limit.*.*.*.over_limit"
  name: "gateway_rate_limit_over_limit"
  timer_type: "histogram"
  labels: { domain: "$1", route: "$2", rule: "$3" }
- match: "ratelimit_server.*.total_requests"
  name: "ratelimit_service_total_requests"
  match_metric_type: counter
  labels: { grpc_method: "$1" }
- match: "ratelimit.service.config_load_success"
  name: "ratelimit_service_config_load_success"
  match_metric_type: counter
"#;

/// What Envoy Gateway sets. Ports are chosen by the system, and pauses are short.
fn variables(
    certificates: &Certificates,
    control_plane: &ControlPlane,
    mapper: &str,
    redis: &str,
) -> Vec<(&'static str, String)> {
    let file = |name| certificates.file(name);
    let text = str::to_owned;
    vec![
        ("RUNTIME_ROOT", text("/data")),
        ("RUNTIME_SUBDIRECTORY", text("ratelimit")),
        ("RUNTIME_IGNOREDOTFILES", text("true")),
        ("RUNTIME_WATCH_ROOT", text("false")),
        ("LOG_LEVEL", text("info")),
        ("USE_STATSD", text("false")),
        ("CONFIG_TYPE", text("GRPC_XDS_SOTW")),
        (
            "CONFIG_GRPC_XDS_SERVER_URL",
            control_plane.address.to_string(),
        ),
        ("CONFIG_GRPC_XDS_NODE_ID", text("envoy-ratelimit")),
        ("GRPC_SERVER_USE_TLS", text("true")),
        ("GRPC_SERVER_TLS_CERT", file("server.pem")),
        ("GRPC_SERVER_TLS_KEY", file("server.key")),
        ("GRPC_SERVER_TLS_CA_CERT", file("ca.pem")),
        ("CONFIG_GRPC_XDS_SERVER_USE_TLS", text("true")),
        ("CONFIG_GRPC_XDS_CLIENT_TLS_CERT", file("client.pem")),
        ("CONFIG_GRPC_XDS_CLIENT_TLS_KEY", file("client.key")),
        ("CONFIG_GRPC_XDS_SERVER_TLS_CACERT", file("ca.pem")),
        // The certificate is not for the address.
        ("CONFIG_GRPC_XDS_SERVER_TLS_SAN", text("localhost")),
        ("FORCE_START_WITHOUT_INITIAL_CONFIG", text("true")),
        ("REDIS_SOCKET_TYPE", text("tcp")),
        ("REDIS_URL", text(redis)),
        ("USE_PROMETHEUS", text("true")),
        ("PROMETHEUS_ADDR", text("127.0.0.1:0")),
        ("PROMETHEUS_MAPPER_YAML", text(mapper)),
        (
            "CONFIG_GRPC_XDS_SERVER_CONNECT_RETRY_INTERVAL",
            text("20ms"),
        ),
        ("XDS_CLIENT_BACKOFF_INITIAL_INTERVAL", text("20ms")),
        ("XDS_CLIENT_BACKOFF_MAX_INTERVAL", text("50ms")),
        // A busy machine is no outage.
        ("REDIS_OPERATION_TIMEOUT", text("10s")),
    ]
}

/// The command in this environment and no other.
fn started_with(variables: &[(&'static str, String)]) -> std::process::Command {
    let borrowed = variables.iter().map(|(name, value)| (*name, &**value));
    let mut command = command(attache(&["ratelimit"]), &borrowed.collect::<Vec<_>>());
    command.env_remove("BACKEND_TYPE");
    command
}

/// A route's limit for each value of a header.
fn rules(requests_per_unit: u32, unit: RateLimitUnit) -> RateLimitConfig {
    let limit = RateLimitPolicy {
        unit: unit.into(),
        requests_per_unit,
        ..RateLimitPolicy::default()
    };
    let of_header = RateLimitDescriptor {
        key: "rule-0-match-0".to_owned(),
        rate_limit: Some(limit),
        ..RateLimitDescriptor::default()
    };
    RateLimitConfig {
        name: DOMAIN.to_owned(),
        domain: DOMAIN.to_owned(),
        descriptors: vec![RateLimitDescriptor {
            key: "route-a".to_owned(),
            value: "route-a".to_owned(),
            descriptors: vec![of_header],
            ..RateLimitDescriptor::default()
        }],
    }
}

async fn ask(connection: &Connection, user: &str) -> Result<Code, tonic::Status> {
    let entries = [("route-a", "route-a"), ("rule-0-match-0", user)];
    grpc::limit(connection, DOMAIN, &entries).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_come_change_and_stay_while_the_control_plane_is_away() {
    let Some(redis) = Redis::start() else {
        return skip("rules_come_change_and_stay_while_the_control_plane_is_away: no redis-server");
    };
    let certificates = Certificates::new();
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let mut control_plane = discovery::start(&certificates, &anywhere).await;
    let files = folder(&[("conf.yaml", MAPPER)]);
    let variables = variables(
        &certificates,
        &control_plane,
        &path(&files, "conf.yaml"),
        redis.url().trim_start_matches("redis://"),
    );

    // It listens and is healthy before there are rules.
    let service = Service::start(&mut started_with(&variables));
    assert!(service.healthy().await);
    let connection = certificates.connect(&service.grpc, false).await.unwrap();
    let refused = ask(&connection, "ada").await.unwrap_err();
    assert_eq!(refused.message(), "no rate limit configuration loaded");
    let mut stream = control_plane.stream().await;
    let first = stream.request().await;
    assert_eq!(first.type_url, RULES);
    assert_eq!(first.node.unwrap().id, "envoy-ratelimit");

    let accepted = stream.answer("1", &[rules(2, RateLimitUnit::Year)]).await;
    assert_eq!(accepted.version_info, "1");
    assert_eq!(accepted.error_detail, None);
    for expected in [Code::Ok, Code::Ok, Code::OverLimit] {
        assert_eq!(ask(&connection, "ada").await.unwrap(), expected);
    }

    let accepted = stream.answer("2", &[rules(4, RateLimitUnit::Year)]).await;
    assert_eq!(accepted.version_info, "2");
    // Three hits are counted in Redis, whatever the limit is.
    assert_eq!(ask(&connection, "ada").await.unwrap(), Code::Ok);
    assert_eq!(ask(&connection, "ada").await.unwrap(), Code::OverLimit);

    let refused = stream
        .answer("3", &[rules(9, RateLimitUnit::Unknown)])
        .await;
    assert_eq!(refused.version_info, "2");
    assert_eq!(
        refused.error_detail.unwrap().message,
        "default/eg/http: invalid rate limit unit 'UNKNOWN'"
    );
    assert_eq!(ask(&connection, "ada").await.unwrap(), Code::OverLimit);
    assert_eq!(ask(&connection, "bob").await.unwrap(), Code::Ok);

    let at = control_plane.address.clone();
    drop(stream);
    control_plane.stop().await;
    service.process.wait_for("rules are not followed", 1);
    assert!(service.healthy().await);
    assert_eq!(ask(&connection, "ada").await.unwrap(), Code::OverLimit);

    let mut control_plane = discovery::start(&certificates, &at).await;
    let mut stream = control_plane.stream().await;
    let again = stream.request().await;
    assert_eq!((&*again.version_info, &*again.response_nonce), ("2", ""));
    let accepted = stream.answer("4", &[rules(99, RateLimitUnit::Year)]).await;
    assert_eq!(accepted.version_info, "4");
    assert_eq!(ask(&connection, "ada").await.unwrap(), Code::Ok);
    // However many attempts there were, the log tells of the outage once.
    let (log, server) = (service.process.text(), control_plane.address.to_string());
    let warnings = log
        .lines()
        .filter(|line| line.contains(" WARN ") && line.contains(&server));
    assert_eq!(warnings.count(), 1, "{log}");

    let line = service.process.wait_for("Starting prometheus sink on", 1);
    let place = line.rsplit(' ').next().unwrap();
    let at: SocketAddr = place.strip_suffix("/metrics").unwrap().parse().unwrap();
    let (_, page) = service.page(at, "/metrics").await;
    for line in [
        "gateway_rate_limit_over_limit{domain=\"default/eg/http\",route=\"route-a_route-a\",rule=\"rule-0-match-0\"} 4",
        "ratelimit_service_total_requests{grpc_method=\"ShouldRateLimit\"} 10",
        "ratelimit_service_config_load_success 3",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_of_another_name_is_not_followed() {
    let Some(redis) = Redis::start() else {
        return skip("a_control_plane_of_another_name_is_not_followed: no redis-server");
    };
    let certificates = Certificates::new();
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let control_plane = discovery::start(&certificates, &anywhere).await;
    let files = folder(&[("conf.yaml", MAPPER)]);
    let url = redis.url();
    let mapper = path(&files, "conf.yaml");
    let mut variables = variables(&certificates, &control_plane, &mapper, &url);
    for (name, value) in &mut variables {
        if *name == "CONFIG_GRPC_XDS_SERVER_TLS_SAN" {
            "envoy-gateway".clone_into(value);
        }
    }
    let process = Process::spawn(&mut started_with(&variables));
    let line = process.wait_for("cannot subscribe to rules", 1);
    assert!(line.contains("envoy-gateway"), "{line}");
}
