//! Authorizers as the proxy sees them.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache_filter::{ConnectionInfo, context::TlsInfo, json};
use attache_proto::auth::{
    CheckResponse,
    authorization_server::{Authorization, AuthorizationServer},
};
use attache_service::Metrics;
use futures_util::FutureExt as _;
use http::{HeaderMap, Request};
use rcgen::{CertificateParams, KeyPair, SanType};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Notify;

use super::{metrics::CheckMetrics, service::Settings, *};
use crate::testing::{Harness, Outcome, TcpOutcome};

/// Does what the path says.
struct Obeys;

impl Authorizer for Obeys {
    async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        match request.path() {
            Some("/error") => Err("the database password is hunter2")?,
            Some("/panic") => panic!("no such thing"),
            Some("/slow") => pending().await,
            Some("/malformed") => Ok(Decision::allow().set("x-a", "a\r\nb").into()),
            Some("/fail") => Ok(Decision::error(502).body("no keys yet").into()),
            Some("/deny") => Ok(Decision::deny(401).into()),
            _ => Ok(Decision::allow().set("x-seen", "yes").into()),
        }
    }
}

fn get(path: &str) -> Request<&'static str> {
    Request::get(format!("http://h{path}")).body("").unwrap()
}

fn harness() -> Harness<Obeys> {
    Harness::new(Obeys).deadline(Duration::from_millis(100))
}

const FAILURES: [&str; 4] = ["/error", "/panic", "/slow", "/malformed"];

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_is_an_error_and_never_a_decision() {
    for path in FAILURES {
        let Outcome::Failed(failed) = harness().check(get(path)).await else {
            panic!("{path}");
        };
        assert_eq!(failed.response.status(), 503, "{path}");
        assert!(failed.response.body().is_empty(), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_failure_is_answered_with_can_be_said() {
    let answer = Decision::error(500)
        .header("retry-after", "1")
        .body("sorry");
    let told = OnFailure::answer(answer).unwrap();
    for path in FAILURES {
        let harness = harness().on_failure(told.clone());
        let Outcome::Failed(failed) = harness.check(get(path)).await else {
            panic!("{path}");
        };
        assert_eq!(failed.response.status(), 500, "{path}");
        assert_eq!(failed.response.headers()["retry-after"], "1", "{path}");
        assert_eq!(failed.response.body(), "sorry", "{path}");
    }
    let harness = harness()
        .on_failure(OnFailure::failed_call())
        .status_on_error(http::StatusCode::BAD_GATEWAY);
    assert_eq!(harness.check(get("/error")).await.status().unwrap(), 502);
    for status in [0, 200, 302, 399, 600] {
        let refused = OnFailure::answer(Decision::error(status)).unwrap_err();
        assert_eq!(refused, DecisionError::ErrorStatus(status));
    }
}

#[tokio::test(start_paused = true)]
async fn failures_pass_where_the_proxy_lets_them_and_denials_do_not() {
    for path in FAILURES.into_iter().chain(["/fail"]) {
        let outcome = harness().failure_mode_allow().check(get(path)).await;
        let Outcome::Allowed(allowed) = outcome else {
            panic!("{path}");
        };
        assert!(allowed.failed, "{path}");
        assert!(allowed.request.headers().is_empty(), "{path}");
    }
    let outcome = harness().failure_mode_allow().check(get("/deny")).await;
    assert!(matches!(outcome, Outcome::Denied(_)));
    let Outcome::Failed(failed) = harness().check(get("/fail")).await else {
        panic!();
    };
    assert_eq!(failed.response.status(), 502);
    assert_eq!(failed.response.body(), "no keys yet");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_the_call_is_kept_with_time_for_the_answer() {
    let service = AuthorizerService::new(Obeys);
    for (given, most) in [(Some("100m"), 90), (Some("1H"), 10_000), (None, 10_000)] {
        let mut call = tonic::Request::new(crate::testing::request(&get("/slow")));
        if let Some(given) = given {
            let given = given.parse().unwrap();
            call.metadata_mut().insert("grpc-timeout", given);
        }
        let begun = tokio::time::Instant::now();
        let answer = Authorization::check(&service, call).await.unwrap();
        assert_ne!(answer.into_inner().status.unwrap().code, 0);
        let took = begun.elapsed();
        let most = Duration::from_millis(most);
        assert!(
            took >= most && took < most + Duration::from_millis(5),
            "{given:?}: {took:?}"
        );
    }
}

fn counting<A: Authorizer>(authorizer: A, most: usize) -> (AuthorizerService<A>, Metrics) {
    let metrics = Metrics::default();
    let settings = Settings {
        max_in_flight: most,
        metrics: Some(Arc::new(CheckMetrics::new(&metrics))),
        ..Settings::default()
    };
    (AuthorizerService::with(authorizer, settings), metrics)
}

const PATIENT: Duration = Duration::from_secs(60);

async fn ask<A: Authorizer>(service: &AuthorizerService<A>, path: &str) -> CheckResponse {
    let view = crate::testing::view(&get(path));
    service.decide(&view, PATIENT).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_check_is_counted_by_what_it_came_to() {
    let (service, metrics) = counting(Obeys, 10);
    for path in [
        "/",
        "/deny",
        "/error",
        "/fail",
        "/malformed",
        "/panic",
        "/slow",
    ] {
        ask(&service, path).await;
    }
    // The caller goes away.
    assert!(ask(&service, "/slow").now_or_never().is_none());

    let text = metrics.render().replace("{}", "");
    for (outcome, count) in [
        ("allowed", 1),
        ("denied", 1),
        ("error", 3),
        ("panic", 1),
        ("deadline", 1),
        ("cancelled", 1),
        ("shed", 0),
    ] {
        let line = format!("attache_authorizer_checks_total{{outcome=\"{outcome}\"}} {count}\n");
        assert!(text.contains(&line), "no {line} in {text}");
    }
    assert!(text.contains("attache_authorizer_check_seconds_count 8\n"));
    assert!(text.contains("attache_authorizer_checks_in_flight 0\n"));
}

/// Waits until it is told to go on.
#[derive(Clone, Default)]
struct Waits {
    go: Arc<Notify>,
    asked: Arc<AtomicUsize>,
}

impl Authorizer for Waits {
    async fn check(&self, _: &CheckRequestView) -> Result<Decision, CheckError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.go.notified().await;
        Ok(Decision::allow().into())
    }
}

#[tokio::test]
async fn checks_beyond_the_bound_fail_at_once_and_room_is_given_back() {
    let waits = Waits::default();
    let (service, metrics) = counting(waits.clone(), 2);
    {
        let mut first = Box::pin(ask(&service, "/"));
        let mut second = Box::pin(ask(&service, "/"));
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());

        let shed = ask(&service, "/").now_or_never().unwrap();
        assert_ne!(shed.status.unwrap().code, 0);
        assert_eq!(waits.asked.load(Ordering::Relaxed), 2);

        waits.go.notify_one();
        assert_eq!(first.await.status.unwrap().code, 0);
    }
    // The second has gone away: there is room again.
    waits.go.notify_one();
    assert_eq!(ask(&service, "/").await.status.unwrap().code, 0);
    let shed = "attache_authorizer_checks_total{outcome=\"shed\"} 1\n";
    assert!(metrics.render().contains(shed), "{}", metrics.render());
}

/// Allows who shows all of it.
struct Reads;

#[derive(Deserialize)]
struct Order {
    amount: u32,
}

impl Authorizer for Reads {
    async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        let certificate = request.peer_certificate()?.ok_or("no certificate")?;
        let forwarded = request.forwarded_certificates()?;
        let order: Order = request.body().json()?;
        let tenant: Order = request.metadata_as("tenant").ok_or("no tenant")?;
        let route: Order = request.route_metadata_as("route").ok_or("no route")?;
        let seen = json!({
            "uri": certificate.uris().collect::<Vec<_>>(),
            "domain": request.spiffe_id().map(|id| id.trust_domain().to_owned()),
            "forwarded": forwarded.iter().map(|e| e.subject.clone()).collect::<Vec<_>>(),
            "amounts": [order.amount, tenant.amount, route.amount],
            "lines": request.header_lines("x-a").count(),
            "sni": request.sni(),
            "extension": request.context_extension("k"),
            "trace": request.trace().map(|trace| trace.trace_id.to_owned()),
            "source": request.source_address(),
        });
        Ok(Decision::allow().metadata_from(&seen)?.into())
    }
}

fn connection() -> ConnectionInfo {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let uri = "spiffe://a.example/b".try_into().unwrap();
    params.subject_alt_names = vec![SanType::URI(uri)];
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    ConnectionInfo {
        peer: Some("10.0.0.1:7".parse().unwrap()),
        tls: Some(TlsInfo {
            sni: Some("api.example".into()),
            peer_certificate: Some(certificate.der().to_vec().into()),
            peer_principal: Some("spiffe://a.example/b".into()),
            ..TlsInfo::default()
        }),
        ..ConnectionInfo::default()
    }
}

#[tokio::test]
async fn everything_that_a_proxy_tells_is_there_to_read() {
    let fields = |amount: u32| json::to_object(json!({ "amount": amount })).unwrap();
    let mut call = HeaderMap::new();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let header = format!("00-{trace}-b7ad6b7169203331-01");
    call.insert("traceparent", header.parse().unwrap());
    let harness = Harness::new(Reads)
        .connection(connection())
        .context_extension("k", "v")
        .metadata("tenant", fields(2))
        .route_metadata("route", fields(3))
        .call(call)
        .raw_headers()
        .pack_as_bytes();
    let request = Request::post("http://h/")
        .header("x-a", "1")
        .header("x-a", "2")
        .header(
            "x-forwarded-client-cert",
            r#"Hash=1;Subject="CN=x,O=y",Hash=2"#,
        )
        .body(r#"{"amount": 1}"#)
        .unwrap();

    let Outcome::Allowed(allowed) = harness.check(request).await else {
        panic!();
    };
    assert_eq!(
        json::object(&allowed.metadata.unwrap()),
        json!({
            "uri": ["spiffe://a.example/b"],
            "domain": "a.example",
            "forwarded": ["CN=x,O=y", null],
            "amounts": [1, 2, 3],
            "lines": 2,
            "sni": "api.example",
            "extension": "v",
            "trace": trace,
            "source": "10.0.0.1:7",
        })
    );
}

#[tokio::test]
async fn what_is_cut_or_missing_or_wrong_is_an_error_and_not_an_empty_value() {
    let body = |harness: Harness<Reads>, body: &'static str| async move {
        let request = Request::post("http://h/").body(body).unwrap();
        harness.check(request).await.status().unwrap().as_u16()
    };
    let harness = || Harness::new(Reads).connection(connection());
    assert_eq!(body(harness(), "").await, 503);
    assert_eq!(body(harness(), "nonsense").await, 503);
    let cut = harness().max_request_bytes(4);
    assert_eq!(body(cut, r#"{"amount": 1}"#).await, 503);

    let wrong = TlsInfo {
        peer_certificate: Some(b"nonsense".to_vec().into()),
        ..TlsInfo::default()
    };
    let wrong = ConnectionInfo {
        tls: Some(wrong),
        ..ConnectionInfo::default()
    };
    let wrong = Harness::new(Reads).connection(wrong);
    assert_eq!(body(wrong, r#"{"amount": 1}"#).await, 503);
}

/// Knows nothing of HTTP.
struct ByAddress;

impl Authorizer for ByAddress {
    async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        assert!(!request.is_http());
        let source = request.source_address().ok_or("no address")?;
        match source.ip().is_loopback() || request.sni() == Some("open.example") {
            true => Ok(Decision::allow().into()),
            false => Ok(Decision::deny(403).into()),
        }
    }
}

#[tokio::test]
async fn tcp_connections_are_checked_without_a_request() {
    let connect = |peer: Option<&str>, sni: Option<&str>| {
        let connection = ConnectionInfo {
            peer: peer.map(|peer| peer.parse().unwrap()),
            tls: sni.map(|sni| TlsInfo {
                sni: Some(sni.to_owned()),
                ..TlsInfo::default()
            }),
            ..ConnectionInfo::default()
        };
        Harness::new(ByAddress).connection(connection)
    };
    let open = connect(Some("127.0.0.1:1"), None);
    assert_eq!(open.connect().await, TcpOutcome::Open);
    let closed = connect(Some("10.0.0.1:1"), Some("other.example"));
    assert_eq!(closed.connect().await, TcpOutcome::Closed);
    let named = connect(Some("10.0.0.1:1"), Some("open.example"));
    assert_eq!(named.connect().await, TcpOutcome::Open);
    assert_eq!(connect(None, None).connect().await, TcpOutcome::Failed);
    let lenient = connect(None, None).failure_mode_allow();
    assert_eq!(lenient.connect().await, TcpOutcome::Open);
}

#[test]
fn the_service_is_named_as_in_the_protocol() {
    use tonic::server::NamedService;
    type Service = AuthorizationServer<AuthorizerService<Obeys>>;
    assert_eq!(Service::NAME, SERVICE_NAME);
}

/// The example is as short as is promised: lines of code with `main`.
#[test]
fn the_example_is_short() {
    let source = include_str!("../../../examples/authorizers/admins.rs");
    let code = source.lines().map(str::trim);
    let code = code.filter(|line| !line.is_empty() && !line.starts_with("//"));
    assert!(code.count() <= 14, "{source}");
}
