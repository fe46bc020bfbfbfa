//! The layer against a rate limit service of the same process, without sockets.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use attache_filter::{
    Body, Channels, FilterConfigs, RequestContext, Route, calls::CallResult, context::ResponseFlag,
};
use attache_proto::{
    core::HeaderValue,
    ratelimit::{
        RateLimitRequest, RateLimitResponse,
        rate_limit_response::{Code, DescriptorStatus, RateLimit as CurrentLimit},
        rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
    },
};
use attache_ratelimit::client::{
    Filter, PerRoute, RateLimit, RateLimitLayer, RateLimitPerRoute, RouteLimits,
};
use attache_service::{
    Channel, ChannelSettings, Metrics,
    channel::Target,
    config::{Document, Errors},
    host::Host,
};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tonic::{Status, service::Routes};
use tower::{Layer as _, ServiceExt as _};

/// A service that answers what it is told to and keeps what it was asked.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Play>>);

#[derive(Default)]
struct Play {
    answer: Option<Result<RateLimitResponse, Status>>,
    asked: Vec<RateLimitRequest>,
}

#[tonic::async_trait]
impl RateLimitService for Script {
    async fn should_rate_limit(
        &self,
        request: tonic::Request<RateLimitRequest>,
    ) -> Result<tonic::Response<RateLimitResponse>, Status> {
        let answer = {
            let mut play = self.0.lock().unwrap();
            play.asked.push(request.into_inner());
            play.answer.clone()
        };
        match answer {
            Some(answer) => answer.map(tonic::Response::new),
            // Stays silent.
            None => std::future::pending().await,
        }
    }
}

struct Rig {
    script: Script,
    layer: RateLimitLayer,
    metrics: Metrics,
}

/// What came back, and what the request's context knows.
struct Seen {
    response: Response<Body>,
    context: Arc<RequestContext>,
}

impl Rig {
    fn new(config: &str, answer: Option<Result<RateLimitResponse, Status>>) -> Self {
        let script = Script::default();
        script.0.lock().unwrap().answer = answer;
        let host = Host::new(Routes::new(RateLimitServiceServer::new(script.clone())));
        let channel = Channel::new(ChannelSettings::new(
            "limits",
            vec![Target::Embedded(host.embedded())],
        ));
        let metrics = Metrics::default();
        let channels = Channels::from_iter([channel]);
        let layer = RateLimitLayer::new(Arc::new(filter(config)), &channels, &metrics);
        Self {
            script,
            layer,
            metrics,
        }
    }

    async fn send(&self, mut request: Request<Body>) -> Seen {
        let context = RequestContext::of(&mut request);
        let response = self.layer.layer(origin()).oneshot(request).await.unwrap();
        Seen { response, context }
    }

    async fn get(&self) -> Seen {
        self.send(request()).await
    }

    fn asked(&self) -> Vec<RateLimitRequest> {
        self.script.0.lock().unwrap().asked.clone()
    }

    fn count(&self, name: &str) -> u64 {
        let line = format!("attache_ratelimit_filter_{name}_total{{filter=\"limits\"}} ");
        let text = self.metrics.render();
        let value = text.lines().find_map(|text| text.strip_prefix(&line));
        value.unwrap().parse().unwrap()
    }
}

/// An origin that shows the request's headers in its response.
fn origin() -> impl tower::Service<
    Request<Body>,
    Response = Response<Body>,
    Error = Infallible,
    Future = std::future::Ready<Result<Response<Body>, Infallible>>,
> + Clone
+ Send
+ 'static {
    tower::service_fn(|request: Request<Body>| {
        let mut response = Response::new(Body::from("origin"));
        for (name, value) in request.headers() {
            let name = format!("seen-{name}");
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            response.headers_mut().append(name, value.clone());
        }
        std::future::ready(Ok(response))
    })
}

const BASE: &str = "
domain: edge
rate_limit_service: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: limits } } }
";

const BY_USER: &str = "rate_limits: [{ actions: [{ request_headers: { header_name: x-user, descriptor_key: user } }] }]\n";

fn filter(config: &str) -> Filter {
    let text = format!("{BASE}{config}");
    let document = Document::parse("filter.yaml", text).unwrap();
    let raw: RateLimit = document.decode().unwrap_or_else(|e| panic!("{e}"));
    let mut errors = Errors::new();
    let filter = Filter::plan("limits", &raw, &mut errors);
    assert!(errors.is_empty(), "{errors}");
    let filter = filter.unwrap();
    assert_eq!(filter.clusters()[0].value, "limits");
    filter
}

fn request() -> Request<Body> {
    Request::builder()
        .uri("http://example.com/")
        .header("x-user", "alice")
        .body(Body::empty())
        .unwrap()
}

fn field(key: &str, value: &str) -> HeaderValue {
    HeaderValue {
        key: key.to_owned(),
        value: value.to_owned(),
        ..HeaderValue::default()
    }
}

fn status(code: Code, requests_per_unit: u32, remaining: u32, reset: i64) -> DescriptorStatus {
    DescriptorStatus {
        code: code.into(),
        current_limit: Some(CurrentLimit {
            requests_per_unit,
            unit: 2,
            ..CurrentLimit::default()
        }),
        limit_remaining: remaining,
        duration_until_reset: Some(prost_types::Duration {
            seconds: reset,
            nanos: 0,
        }),
        ..DescriptorStatus::default()
    }
}

fn ok() -> RateLimitResponse {
    RateLimitResponse {
        overall_code: Code::Ok.into(),
        statuses: vec![status(Code::Ok, 10, 9, 30)],
        response_headers_to_add: vec![field("x-from-service", "1")],
        request_headers_to_add: vec![field("x-budget", "9"), field("host", "evil")],
        ..RateLimitResponse::default()
    }
}

fn over() -> RateLimitResponse {
    RateLimitResponse {
        overall_code: Code::OverLimit.into(),
        statuses: vec![
            status(Code::OverLimit, 10, 0, 30),
            status(Code::OverLimit, 100, 0, 300),
            status(Code::Ok, 1000, 5, 3000),
        ],
        response_headers_to_add: vec![field("x-from-service", "1")],
        raw_body: "slow down".into(),
        ..RateLimitResponse::default()
    }
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|v| v.to_str().unwrap())
}

async fn body(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn a_request_within_limits_goes_on_with_the_services_headers() {
    let rig = Rig::new(BY_USER, Some(Ok(ok())));
    let seen = rig.get().await;
    assert_eq!(seen.response.status(), StatusCode::OK);
    assert_eq!(header(&seen.response, "seen-x-budget"), Some("9"));
    assert_eq!(header(&seen.response, "seen-host"), None);
    assert_eq!(header(&seen.response, "x-from-service"), Some("1"));
    assert_eq!(header(&seen.response, "x-ratelimit-limit"), None);
    assert_eq!(body(seen.response).await, "origin");

    let asked = rig.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].domain, "edge");
    assert_eq!(asked[0].hits_addend, 0);
    let entry = &asked[0].descriptors[0].entries[0];
    assert_eq!(
        (entry.key.as_str(), entry.value.as_str()),
        ("user", "alice")
    );
    let calls = seen.context.calls();
    assert_eq!((calls.len(), calls[0].status), (1, 0));
    assert_eq!(calls[0].result, CallResult::Continued);
    assert!(calls[0].sent_bytes > 5 && calls[0].received_bytes > 5);
    assert_eq!((rig.count("ok"), rig.count("over_limit")), (1, 0));
}

#[tokio::test]
async fn a_request_over_a_limit_is_refused() {
    let config = format!(
        "{BY_USER}response_headers_to_add: [{{ header: {{ key: x-why, value: limits }} }}]\n"
    );
    let rig = Rig::new(&config, Some(Ok(over())));
    let seen = rig.get().await;
    assert_eq!(seen.response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&seen.response, "x-envoy-ratelimited"), Some("true"));
    assert_eq!(header(&seen.response, "x-from-service"), Some("1"));
    assert_eq!(header(&seen.response, "x-why"), Some("limits"));
    assert_eq!(header(&seen.response, "content-type"), Some("text/plain"));
    assert_eq!(header(&seen.response, "retry-after"), None);
    assert_eq!(body(seen.response).await, "slow down");
    assert_eq!(seen.context.flags(), [ResponseFlag::RateLimited]);
    assert_eq!(seen.context.details().unwrap(), "request_rate_limited");
    assert_eq!((rig.count("ok"), rig.count("over_limit")), (0, 1));
}

#[tokio::test]
async fn headers_of_a_refusal_come_in_envoys_order() {
    let config = format!(
        "{BY_USER}enable_x_ratelimit_headers: DRAFT_VERSION_03\nresponse_headers_to_add: [{{ header: {{ key: x-why, value: filter }} }}]\n"
    );
    let mut answer = over();
    answer.response_headers_to_add = vec![
        field("x-envoy-ratelimited", "maybe"),
        field("x-ratelimit-limit", "mine"),
        field("x-why", "service"),
        field("content-length", "3"),
    ];
    answer.statuses.truncate(1);
    let seen = Rig::new(&config, Some(Ok(answer))).get().await;
    let headers: Vec<_> = seen
        .response
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    assert_eq!(
        headers,
        [
            "x-envoy-ratelimited: true",
            "x-ratelimit-limit: mine",
            "x-ratelimit-limit: 10, 10;w=60",
            "x-why: service",
            "x-why: filter",
            "x-ratelimit-remaining: 0",
            "x-ratelimit-reset: 30",
            "content-length: 9",
            "content-type: text/plain",
        ]
    );
}

#[tokio::test]
async fn what_a_refusal_looks_like_can_be_chosen() {
    let config = format!(
        "{BY_USER}rate_limited_status: {{ code: 503 }}\ndisable_x_envoy_ratelimited_header: true\nenable_retry_after_header: true\n"
    );
    let rig = Rig::new(&config, Some(Ok(over())));
    let seen = rig.get().await;
    assert_eq!(seen.response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(header(&seen.response, "x-envoy-ratelimited"), None);
    // Only with 429.
    assert_eq!(header(&seen.response, "retry-after"), None);

    let config =
        format!("{BY_USER}rate_limited_status: {{ code: 200 }}\nenable_retry_after_header: true\n");
    let mut answer = over();
    answer
        .response_headers_to_add
        .push(field("content-type", "text/html"));
    let rig = Rig::new(&config, Some(Ok(answer)));
    let seen = rig.get().await;
    assert_eq!(seen.response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&seen.response, "retry-after"), Some("300"));
    assert_eq!(header(&seen.response, "content-type"), Some("text/html"));
}

#[tokio::test]
async fn grpc_callers_get_a_grpc_status() {
    for (config, expected) in [
        ("", "14"),
        ("rate_limited_as_resource_exhausted: true\n", "8"),
    ] {
        let rig = Rig::new(&format!("{BY_USER}{config}"), Some(Ok(over())));
        let mut request = request();
        request
            .headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        let seen = rig.send(request).await;
        assert_eq!(seen.response.status(), StatusCode::OK);
        assert_eq!(header(&seen.response, "grpc-status"), Some(expected));
        assert_eq!(header(&seen.response, "grpc-message"), Some("slow down"));
        assert_eq!(header(&seen.response, "x-envoy-ratelimited"), Some("true"));
    }
}

#[tokio::test]
async fn limits_show_in_the_headers_of_both_outcomes() {
    let config = format!("{BY_USER}enable_x_ratelimit_headers: DRAFT_VERSION_03\n");
    let rig = Rig::new(&config, Some(Ok(ok())));
    let seen = rig.get().await;
    assert_eq!(
        header(&seen.response, "x-ratelimit-limit"),
        Some("10, 10;w=60")
    );
    assert_eq!(header(&seen.response, "x-ratelimit-remaining"), Some("9"));
    assert_eq!(header(&seen.response, "x-ratelimit-reset"), Some("30"));

    let rig = Rig::new(&config, Some(Ok(over())));
    let seen = rig.get().await;
    assert_eq!(
        header(&seen.response, "x-ratelimit-limit"),
        Some("10, 10;w=60, 100;w=60, 1000;w=60")
    );
    assert_eq!(header(&seen.response, "x-ratelimit-remaining"), Some("0"));
}

#[tokio::test]
async fn a_policy_can_hide_its_limit() {
    let config = "enable_x_ratelimit_headers: DRAFT_VERSION_03
rate_limits:
- actions: [{ generic_key: { descriptor_value: a } }]
  x_ratelimit_option: \"OFF\"
";
    let rig = Rig::new(config, Some(Ok(ok())));
    let seen = rig.get().await;
    assert_eq!(header(&seen.response, "x-ratelimit-limit"), None);
}

#[tokio::test]
async fn an_unenforced_limit_is_counted_but_lets_requests_pass() {
    let config = format!("{BY_USER}filter_enforced: {{ default_value: {{ numerator: 0 }} }}\n");
    let rig = Rig::new(&config, Some(Ok(over())));
    let seen = rig.get().await;
    assert_eq!(seen.response.status(), StatusCode::OK);
    assert_eq!(header(&seen.response, "x-envoy-ratelimited"), Some("true"));
    assert_eq!(header(&seen.response, "x-from-service"), Some("1"));
    assert!(seen.context.flags().is_empty());
    assert_eq!(rig.count("over_limit"), 1);
}

#[tokio::test]
async fn nothing_to_ask_means_no_call() {
    let off = format!("{BY_USER}filter_enabled: {{ default_value: {{ numerator: 0 }} }}\n");
    let internal = format!("{BY_USER}request_type: internal\n");
    let absent = "rate_limits: [{ actions: [{ request_headers: { header_name: x-no, descriptor_key: k } }] }]\n";
    for config in ["", absent, &off, &internal] {
        let rig = Rig::new(config, Some(Ok(over())));
        let seen = rig.get().await;
        assert_eq!(seen.response.status(), StatusCode::OK, "{config}");
        assert!(rig.asked().is_empty(), "{config}");
    }
}

#[tokio::test]
async fn internal_requests_are_told_apart() {
    for (request_type, limited) in [
        ("internal", true),
        ("external", false),
        ("both", true),
        ("''", true),
    ] {
        let rig = Rig::new(
            &format!("{BY_USER}request_type: {request_type}\n"),
            Some(Ok(over())),
        );
        let mut request = request();
        request
            .headers_mut()
            .insert("x-envoy-internal", "true".parse().unwrap());
        let seen = rig.send(request).await;
        let refused = seen.response.status() == StatusCode::TOO_MANY_REQUESTS;
        assert_eq!(refused, limited, "{request_type}");
    }
}

#[tokio::test]
async fn a_skipped_entry_leaves_an_empty_descriptor_and_a_dropped_one_none() {
    let config = "rate_limits:
- actions: [{ request_headers: { header_name: x-no, descriptor_key: k, skip_if_absent: true } }]
- actions: [{ generic_key: { descriptor_value: a } }, { request_headers: { header_name: x-no, descriptor_key: k } }]
- actions: [{ generic_key: { descriptor_value: b } }]
  hits_addend: { number: 3 }
";
    let rig = Rig::new(config, Some(Ok(ok())));
    rig.get().await;
    let asked = rig.asked();
    let descriptors = &asked[0].descriptors;
    assert_eq!(descriptors.len(), 2);
    assert!(descriptors[0].entries.is_empty());
    assert_eq!(descriptors[1].entries[0].value, "b");
    assert_eq!(descriptors[1].hits_addend, Some(3));
}

#[tokio::test]
async fn a_failing_service_lets_requests_pass_unless_told_otherwise() {
    let failure = || Some(Err(Status::unknown("redis is gone")));
    let rig = Rig::new(BY_USER, failure());
    let seen = rig.get().await;
    assert_eq!(seen.response.status(), StatusCode::OK);
    assert_eq!(seen.context.calls()[0].status, 2);
    assert_eq!(
        (rig.count("error"), rig.count("failure_mode_allowed")),
        (1, 1)
    );

    for (config, status) in [
        ("failure_mode_deny: true\n", 500),
        (
            "failure_mode_deny: true\nstatus_on_error: { code: 503 }\n",
            503,
        ),
        (
            "failure_mode_deny_percent: { default_value: { numerator: 100 } }\n",
            500,
        ),
        (
            "failure_mode_deny: true\nstatus_on_error: { code: Accepted }\n",
            202,
        ),
        (
            "failure_mode_deny: true\nfailure_mode_deny_percent: { default_value: { numerator: 0 } }\n",
            200,
        ),
    ] {
        let rig = Rig::new(&format!("{BY_USER}{config}"), failure());
        let seen = rig.get().await;
        assert_eq!(seen.response.status().as_u16(), status, "{config}");
        if status != 200 {
            assert_eq!(seen.context.flags(), [ResponseFlag::RateLimitServiceError]);
            assert_eq!(seen.context.details().unwrap(), "rate_limiter_error");
            assert_eq!(rig.count("failure_mode_allowed"), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_service_holds_a_request_for_the_timeout_only() {
    for (config, millis) in [("", 20), ("timeout: 0.1s\n", 100)] {
        let rig = Rig::new(&format!("{BY_USER}{config}"), None);
        let started = tokio::time::Instant::now();
        let seen = rig.get().await;
        assert_eq!(seen.response.status(), StatusCode::OK);
        let call = &seen.context.calls()[0];
        assert_eq!((call.status, call.result), (4, CallResult::TimedOutOpen));
        let waited = started.elapsed();
        let expected = Duration::from_millis(millis);
        assert!(waited >= expected && waited < expected * 2, "{waited:?}");
    }
}

#[tokio::test]
async fn a_route_has_policies_and_a_domain_of_its_own() {
    let text = "domain: special\nrate_limits: [{ actions: [{ destination_cluster: {} }] }]\nvh_rate_limits: INCLUDE\n";
    let raw: RateLimitPerRoute = Document::parse("route.yaml", text)
        .unwrap()
        .decode()
        .unwrap();
    let mut errors = Errors::new();
    let per_route = PerRoute::plan(&raw, &mut errors).unwrap();
    assert!(errors.is_empty(), "{errors}");

    let rig = Rig::new(BY_USER, Some(Ok(ok())));
    let send = async |cluster: Option<&str>, per_route: Option<PerRoute>| {
        let mut request = request();
        let mut resolved = FilterConfigs::default();
        if let Some(per_route) = per_route {
            let settings = filter(BY_USER).on_route(Some(&per_route), &RouteLimits::default());
            resolved.insert("limits", settings.unwrap());
        }
        RequestContext::of(&mut request).set_route(Some(Arc::new(Route {
            cluster: cluster.map(Into::into),
            resolved,
            ..Route::default()
        })));
        rig.send(request).await;
        rig.asked().len()
    };
    assert_eq!(send(Some("web"), Some(per_route.clone())).await, 1);
    assert_eq!(rig.asked()[0].domain, "special");
    let entry = &rig.asked()[0].descriptors[0].entries[0];
    assert_eq!(
        (entry.key.as_str(), entry.value.as_str()),
        ("destination_cluster", "web")
    );

    assert_eq!(send(Some("web"), None).await, 2);
    assert_eq!(rig.asked()[1].domain, "edge");
    // The proxy answers by itself: nothing to limit.
    assert_eq!(send(None, Some(per_route)).await, 2);
}

#[tokio::test]
async fn the_services_metadata_is_kept() {
    let mut answer = ok();
    let value = prost_types::Value::from("gold");
    answer.dynamic_metadata = Some(prost_types::Struct {
        fields: [("tier".to_owned(), value.clone())].into(),
    });
    for (config, namespace) in [
        ("", "envoy.filters.http.ratelimit"),
        ("metadata_namespace: my.own\n", "my.own"),
    ] {
        let rig = Rig::new(&format!("{BY_USER}{config}"), Some(Ok(answer.clone())));
        let seen = rig.get().await;
        let metadata = seen.context.metadata(namespace).unwrap();
        assert_eq!(metadata.fields["tier"], value);
    }
}

#[tokio::test]
async fn a_cluster_that_does_not_exist_is_a_failure() {
    let metrics = Metrics::default();
    let config = format!("{BY_USER}failure_mode_deny: true\n");
    let layer = RateLimitLayer::new(Arc::new(filter(&config)), &Channels::default(), &metrics);
    let response = layer.layer(origin()).oneshot(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

#[test]
fn every_field_of_envoy_has_an_answer() {
    let decode = |text: &str| {
        let document = Document::parse("filter.yaml", format!("{BASE}{text}")).unwrap();
        let (raw, mut errors) = document.decode_partly::<RateLimit>();
        if let Some(raw) = raw {
            Filter::plan("limits", &raw, &mut errors);
        }
        errors.to_string()
    };
    for (text, expected) in [
        ("stage: 11", "from 0 to 10"),
        (
            "rate_limits: [{ stage: 1, actions: [{ remote_address: {} }] }]",
            "only in the `rate_limits` of a route",
        ),
        (
            "rate_limits: [{ disable_key: k, actions: [{ remote_address: {} }] }]",
            "only in the `rate_limits` of a route",
        ),
        ("rate_limits: [{ actions: [] }]", "at least one action"),
        (
            "rate_limits: [{ actions: [{ remote_address: {} }], hits_addend: { number: 1000000001 } }]",
            "at most 1000000000",
        ),
        (
            "enable_x_ratelimit_header: OFF",
            "enable_x_ratelimit_headers",
        ),
        (
            "response_headers_to_add: [{ header: { key: a, value: '%NOPE%' } }]",
            "is not known here",
        ),
        ("request_type: extern", "external"),
    ] {
        let errors = decode(text);
        assert!(errors.contains(expected), "{text}: {errors}");
    }
    assert_eq!(
        decode("'@type': type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit"),
        ""
    );
    assert_eq!(decode("enable_x_ratelimit_headers: \"OFF\""), "");
}

const AT_END: &str = "
rate_limits:
- apply_on_stream_done: true
  hits_addend: { format: '%BYTES_SENT%' }
  actions: [{ generic_key: { descriptor_value: done } }]
";

/// Waits until `done` holds.
async fn wait_for(done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_end_of_an_exchange_is_that_of_its_response() {
    let rig = Rig::new(AT_END, Some(Ok(ok())));
    let seen = rig.get().await;
    assert_eq!(rig.asked().len(), 0);
    let body = seen.response.into_body().collect().await.unwrap();
    let length = body.to_bytes().len() as u64;
    wait_for(|| rig.asked().len() == 1).await;
    let descriptor = rig.asked()[0].descriptors[0].clone();
    assert_eq!(descriptor.hits_addend, Some(length));
    wait_for(|| rig.count("stream_done") == 1).await;
    assert_eq!(rig.count("stream_done_error"), 0);
    assert_eq!((rig.count("ok"), rig.count("over_limit")), (0, 0));
}

#[tokio::test]
async fn calls_at_the_end_are_bounded() {
    let rig = Rig::new(AT_END, None);
    for _ in 0..1030 {
        drop(rig.get().await);
    }
    assert_eq!(rig.count("stream_done_dropped"), 6);
}

#[tokio::test]
async fn a_failure_at_the_end_is_counted() {
    let rig = Rig::new(AT_END, Some(Err(Status::unavailable("away"))));
    drop(rig.get().await);
    wait_for(|| rig.count("stream_done_error") == 1).await;
    assert_eq!(rig.count("stream_done"), 1);
}
