//! Traces of the services, as a collector gets them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use attache_ext_proc::server::{Processor, Server};
use attache_proto::{
    auth::{
        AttributeContext, CheckRequest,
        attribute_context::{HttpRequest, Request as AttributeRequest},
        authorization_client::AuthorizationClient,
    },
    ext_proc::{
        HttpHeaders, ProcessingRequest, external_processor_client::ExternalProcessorClient,
        processing_request,
    },
    otlp_trace::span::SpanKind,
};
use attache_service::{
    Metrics, Shutdown,
    trace::{Exporter, TraceSettings},
};
use support::{
    Process, eventually_async, folder, free_port, grpc,
    http::{self, Origin},
    otlp::{Collector, attribute, hex},
    path,
    peers::{Envoy, envoy_program},
};

const METHOD: &str = "envoy.service.auth.v3.Authorization/Check";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Everybody may read what is open, and what costs is looked up first.
fn auth(prices: &Origin) -> String {
    format!(
        "
identity: [{{ name: anyone, anonymous: {{}} }}]
metadata: [{{ name: prices, http: \"http://{}\", on_failure: absent, ttl: 0s }}]
rules: [{{ name: open, action: allow, identity: [anyone], paths: [{{ prefix: /open }}] }}]
",
        prices.at
    )
}

/// The auth service, which sends what it has to tell at once.
fn service(config: &str, more: &[&str]) -> Process {
    let mut command = support::attache(&["ext-authz", "--listen", "127.0.0.1:0"]);
    command.args([
        "--admin",
        "127.0.0.1:0",
        "--workers",
        "1",
        "--config",
        config,
    ]);
    command.args(more).env("OTEL_BSP_SCHEDULE_DELAY", "1");
    command.env("OTEL_BSP_MAX_QUEUE_SIZE", "64");
    Process::spawn(&mut command)
}

/// Asks about a path, within a trace.
async fn check(connection: &grpc::Connection, path: &str, flags: &str) {
    let mut request = tonic::Request::new(CheckRequest {
        attributes: Some(AttributeContext {
            request: Some(AttributeRequest {
                http: Some(HttpRequest {
                    method: "GET".to_owned(),
                    path: path.to_owned(),
                    host: "attache.test".to_owned(),
                    ..HttpRequest::default()
                }),
                ..AttributeRequest::default()
            }),
            ..AttributeContext::default()
        }),
    });
    let parent = format!("00-{TRACE}-{PARENT}-{flags}");
    let metadata = request.metadata_mut();
    metadata.insert("traceparent", parent.parse().unwrap());
    let origin = ::http::Uri::from_static("http://localhost");
    let mut client = AuthorizationClient::with_origin(connection.clone(), origin);
    client.check(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_are_spans_of_the_callers_trace_and_what_they_wait_for_are_parts_of_them() {
    let (collector, prices) = (Collector::start().await, Origin::start().await);
    let files = folder(&[("auth.yaml", &auth(&prices))]);
    let endpoint = collector.endpoint();
    let service = service(&path(&files, "auth.yaml"), &["--otlp-endpoint", &endpoint]);
    let connection = grpc::connect(&service.address()).await.unwrap();

    check(&connection, "/unsampled?secret=1", "00").await;
    check(&connection, "/open?secret=1", "01").await;
    check(&connection, "/closed", "01").await;

    let open = collector.span_with("url.path", "/open").await;
    let closed = collector.span_with("url.path", "/closed").await;
    for (span, outcome, rule) in [(&open, "allowed", Some("open")), (&closed, "denied", None)] {
        assert_eq!(hex(&span.trace_id), TRACE);
        assert_eq!(hex(&span.parent_span_id), PARENT);
        assert_eq!(
            (span.name.as_str(), span.kind()),
            (METHOD, SpanKind::Server)
        );
        for (key, value) in [
            ("rpc.method", METHOD),
            ("rpc.response.status_code", "OK"),
            ("http.request.method", "GET"),
            ("server.address", "attache.test"),
            ("attache.outcome", outcome),
            ("attache.pipeline", "default"),
            ("attache.identity.source", "anyone"),
            ("attache.cached", "false"),
        ] {
            assert_eq!(attribute(span, key).as_deref(), Some(value), "{key}");
        }
        assert_eq!(attribute(span, "attache.rule").as_deref(), rule);
    }
    let looked_up = collector.span_with("attache.metadata", "prices").await;
    assert_eq!(looked_up.name, "metadata");
    assert_eq!(hex(&looked_up.trace_id), TRACE);
    let parents = [&open, &closed].map(|span| &span.span_id);
    assert!(parents.contains(&&looked_up.parent_span_id));

    let all = collector.spans();
    assert!(!format!("{all:?}").contains("secret"), "{all:?}");
    let unsampled = Some("/unsampled");
    let sent = |span| attribute(span, "url.path").as_deref() == unsampled;
    assert!(!all.iter().any(sent), "{all:?}");

    let metrics = http::get(service.admin(), "/metrics", &[]).await.body;
    for stage in ["identity", "metadata", "policy", "response"] {
        let labels = format!("{{pipeline=\"default\",stage=\"{stage}\"}}");
        let count = format!("attache_auth_stage_seconds_count{labels} 3\n");
        assert!(metrics.contains(&count), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_spans_leave_before_the_service_ends() {
    let (collector, prices) = (Collector::start().await, Origin::start().await);
    let files = folder(&[("auth.yaml", &auth(&prices))]);
    let mut command = support::attache(&["ext-authz", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(path(&files, "auth.yaml"));
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
    command.env("OTEL_BSP_SCHEDULE_DELAY", "600000");
    let mut service = Process::spawn(&mut command);
    let connection = grpc::connect(&service.address()).await.unwrap();
    check(&connection, "/open", "01").await;
    drop(connection);

    service.signal("TERM");

    assert!(service.ended().success());
    collector.span_with("url.path", "/open").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_go_on_without_a_collector_and_the_end_does_not_wait_for_it() {
    let prices = Origin::start().await;
    let stalled = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stalled = stalled.local_addr().map(|at| (at.port(), stalled)).unwrap();
    let files = folder(&[("auth.yaml", &auth(&prices))]);
    for port in [free_port(), stalled.0] {
        let endpoint = format!("http://127.0.0.1:{port}");
        let more = ["--otlp-endpoint", &endpoint];
        let mut service = service(&path(&files, "auth.yaml"), &more);
        let connection = grpc::connect(&service.address()).await.unwrap();
        for _ in 0..100 {
            check(&connection, "/open", "01").await;
        }
        let at = service.admin();
        eventually_async("losses to be counted", async || {
            let metrics = http::get(at, "/metrics", &[]).await.body;
            let lost = "attache_trace_spans_total{result=\"dropped\"} ";
            let lines = metrics.lines();
            lines
                .filter_map(|line| line.strip_prefix(lost))
                .any(|count| count != "0")
        })
        .await;
        service.signal("TERM");
        assert!(service.ended().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_the_rate_limit_service_are_spans() {
    let collector = Collector::start().await;
    let rules = "domain: shop\ndescriptors:\n- key: user\n  rate_limit: { unit: hour, requests_per_unit: 1 }\n";
    let files = folder(&[("shop.yaml", rules)]);
    let (config, endpoint) = (path(&files, "shop.yaml"), collector.endpoint());
    let mut command = support::attache(&["ratelimit", "--listen", "127.0.0.1:0"]);
    command.args(["--config", &config, "--otlp-endpoint", &endpoint]);
    command.env("OTEL_BSP_SCHEDULE_DELAY", "1");
    let service = Process::spawn(&mut command);
    let connection = grpc::connect(&service.address()).await.unwrap();

    for _ in 0..2 {
        grpc::limit(&connection, "shop", &[("user", "secret")])
            .await
            .unwrap();
    }
    grpc::limit(&connection, "", &[]).await.unwrap_err();

    let key = "attache.ratelimit.code";
    for code in ["OK", "OVER_LIMIT"] {
        let span = collector.span_with(key, code).await;
        assert_eq!(
            span.name,
            "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
        );
        assert_eq!(
            attribute(&span, "attache.ratelimit.domain").as_deref(),
            Some("shop")
        );
        assert_eq!(
            attribute(&span, "attache.ratelimit.descriptors").as_deref(),
            Some("1")
        );
    }
    collector.span_with("error.type", "UNKNOWN").await;
    let all = collector.spans();
    assert!(!format!("{all:?}").contains("secret"), "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_with_a_processor_is_a_span() {
    #[derive(Clone)]
    struct Nothing;
    impl Processor for Nothing {}

    let collector = Collector::start().await;
    let settings = TraceSettings::read(Some(&collector.endpoint()), "nothing", |_| None);
    let settings = settings.unwrap().unwrap();
    let (exporter, tracer) = Exporter::start(settings, &Metrics::default()).unwrap();
    let host = Server::new(Nothing).tracer(&tracer).into_host();
    let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let connection = grpc::connect(&bound.address().to_string()).await.unwrap();
    tokio::spawn(bound.serve(Shutdown::new()));
    let headers = processing_request::Request::RequestHeaders(HttpHeaders {
        end_of_stream: true,
        ..HttpHeaders::default()
    });
    let message = ProcessingRequest {
        request: Some(headers),
        ..ProcessingRequest::default()
    };
    let mut request = tonic::Request::new(tokio_stream::once(message));
    let parent = format!("00-{TRACE}-{PARENT}-01");
    request
        .metadata_mut()
        .insert("traceparent", parent.parse().unwrap());
    let origin = ::http::Uri::from_static("http://localhost");
    let mut client = ExternalProcessorClient::with_origin(connection, origin);

    let mut replies = client.process(request).await.unwrap().into_inner();
    while replies.message().await.unwrap().is_some() {}
    exporter.finish(support::PATIENCE).await;

    let [span] = &collector.spans()[..] else {
        panic!("{:?}", collector.spans())
    };
    assert_eq!(
        span.name,
        "envoy.service.ext_proc.v3.ExternalProcessor/Process"
    );
    assert_eq!(hex(&span.trace_id), TRACE);
    assert_eq!(hex(&span.parent_span_id), PARENT);
    assert_eq!(
        attribute(span, "rpc.response.status_code").as_deref(),
        Some("OK")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_of_a_real_envoy_belong_to_its_traces() {
    let Some(envoy) = envoy_program() else { return };
    let (collector, origin) = (Collector::start().await, Origin::start().await);
    let files = folder(&[("auth.yaml", &auth(&origin))]);
    let endpoint = collector.endpoint();
    let service = service(&path(&files, "auth.yaml"), &["--otlp-endpoint", &endpoint]);
    let port = |address: &str| address.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    let bootstrap = bootstrap(port(&service.address()), port(&endpoint), origin.at.port());
    let envoy = Envoy::start(&envoy, files.path(), &bootstrap).await;

    assert_eq!(http::get(envoy.at, "/open/door", &[]).await.status, 200);

    let span = collector.span_with("url.path", "/open/door").await;
    eventually_async("Envoy's own span of the call", async || {
        let spans = collector.spans();
        let mut parents = spans
            .iter()
            .filter(|parent| parent.span_id == span.parent_span_id);
        parents.any(|parent| parent.trace_id == span.trace_id)
    })
    .await;
}

/// An Envoy that asks an auth service and traces all it does.
fn bootstrap(auth: u16, collector: u16, origin: u16) -> String {
    let grpc = serde_json::json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} }
        }
    });
    let cluster = |name: &str, port: u16, options: serde_json::Value| {
        let address = serde_json::json!({ "address": "127.0.0.1", "port_value": port });
        let endpoint =
            serde_json::json!({ "endpoint": { "address": { "socket_address": address } } });
        serde_json::json!({
            "name": name,
            "typed_extension_protocol_options": options,
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{ "lb_endpoints": [endpoint] }]
            }
        })
    };
    let asks = |cluster: &str| serde_json::json!({ "envoy_grpc": { "cluster_name": cluster }, "timeout": "5s" });
    let manager = serde_json::json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "tracing": {
            "random_sampling": { "value": 100.0 },
            "spawn_upstream_span": true,
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                    "grpc_service": asks("collector"),
                    "service_name": "envoy"
                }
            }
        },
        "http_filters": [{
            "name": "auth",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
                "grpc_service": asks("auth")
            }
        }, {
            "name": "router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
            }
        }],
        "route_config": { "virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "origin" } }]
        }] }
    });
    let any_port = |port| {
        serde_json::json!({
            "socket_address": { "address": "127.0.0.1", "port_value": port }
        })
    };
    serde_json::json!({
        "admin": { "address": any_port(0) },
        "static_resources": {
            "listeners": [{
                "name": "edge",
                "address": any_port(0),
                "filter_chains": [{ "filters": [{ "name": "http", "typed_config": manager }] }]
            }],
            "clusters": [
                cluster("auth", auth, grpc.clone()),
                cluster("collector", collector, grpc),
                cluster("origin", origin, serde_json::json!({}))
            ]
        }
    })
    .to_string()
}
