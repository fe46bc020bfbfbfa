//! Auth services of the framework, which do nothing wrong, and hand-written ones, which do.

use std::{
    future::{Future, pending},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache_proto::{
    auth::{
        CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
        authorization_server::{Authorization, AuthorizationServer},
        check_response::HttpResponse,
    },
    core::{HeaderValue, HeaderValueOption, QueryParameter},
    rpc, types,
};
use attache_service::{Channel, ChannelSettings, Host, channel::Target};
use tonic::{Request, Response, Status, service::Routes};

use super::*;
use crate::server::{Authorizer, CheckError, CheckRequestView, Decision, Server};

/// Long enough for a machine that is busy with other tests.
const LENIENT: Duration = Duration::from_secs(10);

fn channel(host: Host) -> Channel {
    let embedded = Target::Embedded(host.embedded());
    Channel::new(ChannelSettings::new("auth", vec![embedded]))
}

async fn probe(host: Host, names: &[&str], change: impl FnOnce(&mut Plan)) -> Report {
    let mut plan = Plan::new(&Content::default());
    plan.timeout = LENIENT;
    plan.hang_timeout = LENIENT;
    plan.cases
        .retain(|case| names.is_empty() || names.contains(&case.name));
    assert!(plan.cases.len() >= names.len(), "{names:?}");
    change(&mut plan);
    run(&channel(host), &plan, |_| {}).await.unwrap()
}

fn codes(report: &Report) -> Vec<Code> {
    let findings = report.cases.iter().flat_map(|case| &case.findings);
    let mut codes: Vec<_> = findings.map(|finding| finding.code).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

/// Uses what the framework has on every request that it is shown.
struct Thorough;

impl Authorizer for Thorough {
    async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        let certificate = request.peer_certificate()?;
        if !request.is_http() {
            return Ok(Decision::deny(403).into());
        }
        let who = certificate.map_or("nobody", |c| c.subject.as_str());
        let decision = Decision::allow()
            .set("x-who", who)
            .join("x-a", "3")
            .join("cookie", "c=3")
            .remove("x-gone")
            .response_add("set-cookie", "a=1")
            .response_add("set-cookie", "b=2")
            .query_set("who", "nobody");
        Ok(decision.into())
    }
}

#[tokio::test]
async fn an_authorizer_of_the_framework_does_nothing_wrong_whatever_comes() {
    let report = probe(Server::new(Thorough).into_host(), &[], |_| {}).await;
    assert_eq!(codes(&report), [Code::HttpForTcp], "{report}");
    assert!(report.passes(true), "{report}");
    assert_eq!(report.server.health, Health::Serving);
    assert!(report.cases.len() > 40);
    assert!(report.allowed() > 35, "{report}");
    assert!(report.latency().unwrap().count > 35);
    assert_eq!(report.latency_at_once().unwrap().count, 50);
}

type Answer = dyn Fn(&CheckRequest) -> Result<CheckResponse, Status> + Send + Sync;

/// An auth service written straight against the wire.
#[derive(Clone)]
struct Raw(Arc<Answer>);

#[tonic::async_trait]
impl Authorization for Raw {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        (self.0)(&request.into_inner()).map(Response::new)
    }
}

fn raw(
    answer: impl Fn(&CheckRequest) -> Result<CheckResponse, Status> + Send + Sync + 'static,
) -> Host {
    let service = AuthorizationServer::new(Raw(Arc::new(answer)));
    Host::new(Routes::new(service.max_decoding_message_size(16 << 20)))
}

fn status(code: i32) -> Option<rpc::Status> {
    Some(rpc::Status {
        code,
        ..rpc::Status::default()
    })
}

fn ok(ok: OkHttpResponse) -> CheckResponse {
    CheckResponse {
        status: status(0),
        http_response: Some(HttpResponse::OkResponse(ok)),
        dynamic_metadata: None,
    }
}

fn denied(code: i32, http: i32, headers: Vec<HeaderValueOption>, body: &str) -> CheckResponse {
    CheckResponse {
        status: status(code),
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(types::HttpStatus { code: http }),
            headers,
            body: body.to_owned(),
        })),
        dynamic_metadata: None,
    }
}

fn header(key: &str, value: &str, append: Option<bool>, append_action: i32) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            ..HeaderValue::default()
        }),
        append,
        append_action,
        ..HeaderValueOption::default()
    }
}

fn request_headers(headers: Vec<HeaderValueOption>) -> CheckResponse {
    ok(OkHttpResponse {
        headers,
        ..OkHttpResponse::default()
    })
}

fn response_headers(header: HeaderValueOption) -> CheckResponse {
    ok(OkHttpResponse {
        response_headers_to_add: vec![header],
        ..OkHttpResponse::default()
    })
}

fn query(key: &str, value: &str) -> CheckResponse {
    let parameter = QueryParameter {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    ok(OkHttpResponse {
        query_parameters_to_set: vec![parameter],
        ..OkHttpResponse::default()
    })
}

fn judged(request: &str, response: &CheckResponse) -> (Answered, Vec<Code>) {
    let cases = cases(&Content::default());
    let case = cases.iter().find(|case| case.name == request).unwrap();
    let (answered, findings) = judge(&case.request, response);
    (answered, findings.iter().map(|f| f.code).collect())
}

#[test]
fn answers_are_judged_by_what_envoy_makes_of_them() {
    let allowed = Answered::Allowed;
    let error = |code, http| {
        let CheckResponse { http_response, .. } = denied(code, http, vec![], "");
        let Some(HttpResponse::DeniedResponse(error)) = http_response else {
            unreachable!()
        };
        CheckResponse {
            status: status(code),
            http_response: Some(HttpResponse::ErrorResponse(error)),
            dynamic_metadata: None,
        }
    };
    let bare = |code| CheckResponse {
        status: status(code),
        ..CheckResponse::default()
    };
    let mut unsaid = ok(OkHttpResponse::default());
    unsaid.status = None;
    let mut refused = ok(OkHttpResponse::default());
    refused.status = status(7);
    for (response, answered, codes) in [
        (CheckResponse::default(), allowed, vec![Code::EmptyAllows]),
        (bare(0), allowed, vec![]),
        (unsaid, allowed, vec![Code::StatusMissing]),
        (
            denied(0, 401, vec![], ""),
            allowed,
            vec![Code::DenialAllows],
        ),
        (error(0, 503), allowed, vec![Code::ErrorAllows]),
        (bare(7), Answered::Denied(403), vec![Code::BareDenial]),
        (refused, Answered::Denied(403), vec![Code::OkIgnored]),
        (denied(7, 0, vec![], ""), Answered::Denied(403), vec![]),
        (denied(7, 418, vec![], "no"), Answered::Denied(418), vec![]),
        (
            denied(7, 200, vec![], "no"),
            Answered::Denied(200),
            vec![Code::DeniedOk],
        ),
        (
            denied(7, 100, vec![], ""),
            Answered::Denied(100),
            vec![Code::WaitsForever],
        ),
        (
            denied(7, 700, vec![], ""),
            Answered::Denied(700),
            vec![Code::BadStatus],
        ),
        (
            denied(7, -1, vec![], ""),
            Answered::Denied(-1),
            vec![Code::BadStatus],
        ),
        (
            denied(7, 204, vec![], "x"),
            Answered::Denied(204),
            vec![Code::BodyForbidden, Code::DeniedOk],
        ),
        (error(14, 503), Answered::Error(503), vec![]),
        (error(14, 0), Answered::Error(0), vec![]),
        (
            error(14, 200),
            Answered::Error(200),
            vec![Code::ErrorStatus],
        ),
    ] {
        assert_eq!(
            judged("headers", &response),
            (answered, codes),
            "{response:?}"
        );
    }
    let long = "a".repeat(8 << 10);
    let grpc = judged("grpc", &denied(7, 403, vec![], &long));
    assert_eq!(grpc, (Answered::Denied(403), vec![Code::LongMessage]));
    let tcp = judged("tcp", &denied(7, 403, vec![], ""));
    assert_eq!(tcp, (Answered::Denied(403), vec![Code::HttpForTcp]));
}

#[test]
fn headers_that_envoy_ignores_or_mangles_are_found() {
    // The request has `x-a` and lacks `x-new`.
    let found = |response: &CheckResponse| judged("repeated-headers", response).1;
    let one = |h: HeaderValueOption| found(&request_headers(vec![h]));
    let deny = |h: HeaderValueOption| found(&denied(7, 403, vec![h], ""));
    let raw = HeaderValueOption {
        header: Some(HeaderValue {
            key: "x-a".to_owned(),
            raw_value: "1".into(),
            ..HeaderValue::default()
        }),
        ..HeaderValueOption::default()
    };
    let none = HeaderValueOption::default();
    let (set, join) = (Some(false), Some(true));
    for (codes, expected) in [
        (one(header("x-new", "1", set, 0)), None),
        (one(header("x-new", "1", None, 2)), None),
        (one(header("x-a", "1", join, 0)), None),
        (
            one(header("x-new", "1", join, 0)),
            Some(Code::AppendToAbsent),
        ),
        (
            one(header(":path", "/x", join, 0)),
            Some(Code::AppendToPseudo),
        ),
        (one(header(":path", "/x", set, 0)), Some(Code::PathOnly)),
        (one(header("x-a", "9", None, 1)), Some(Code::ActionWrong)),
        (
            one(header("x-new", "9", None, 1)),
            Some(Code::ActionIgnored),
        ),
        (one(header("x-new", "9", None, 3)), Some(Code::ActionWrong)),
        (one(header("x-a", "9", None, 3)), Some(Code::ActionIgnored)),
        (one(header("x-a", "9", None, 9)), Some(Code::UnknownAction)),
        (one(header("", "1", set, 0)), Some(Code::EmptyName)),
        (one(header("x b", "1", set, 0)), Some(Code::BadName)),
        (
            one(header("x-new", "a\r\nb: c", set, 0)),
            Some(Code::BadValue),
        ),
        (
            one(header("Content-Length", "1", set, 0)),
            Some(Code::Framing),
        ),
        (one(raw.clone()), Some(Code::RawValue)),
        (one(none), Some(Code::NoHeader)),
        (
            one(header("x-new", &"a".repeat(61 << 10), set, 0)),
            Some(Code::TooMany),
        ),
        (deny(header("x-a", "1", set, 0)), None),
        (deny(header("x-a", "1", join, 0)), Some(Code::DeniedAppend)),
        (deny(header("server", "x", set, 0)), Some(Code::NoEffect)),
        (deny(header(":status", "200", set, 0)), Some(Code::NoEffect)),
        (
            deny(header("location", "/\nx: y", set, 0)),
            Some(Code::BadValue),
        ),
        (found(&response_headers(header("x-a", "1", None, 3))), None),
        (
            found(&response_headers(header(":status", "201", None, 2))),
            Some(Code::StatusSet),
        ),
        (
            found(&response_headers(header("content-length", "9", None, 2))),
            Some(Code::Framing),
        ),
        (
            found(&response_headers(header("x-a", "9", None, 7))),
            Some(Code::UnknownAction),
        ),
        (found(&query("a", "b-1")), None),
        (found(&query("a", "x%26y")), Some(Code::QueryValidated)),
        (found(&query("a", "x&y")), Some(Code::QueryEncoding)),
        (found(&query("a", "100%")), Some(Code::QueryEncoding)),
    ] {
        assert_eq!(codes, Vec::from_iter(expected));
    }
    let twice = vec![header("x-new", "1", None, 0), header("x-new", "2", None, 0)];
    assert_eq!(found(&request_headers(twice)), [Code::LastWins]);
    let several = vec![header("x-new", "1", set, 0), header("x-new", "2", join, 0)];
    assert_eq!(found(&request_headers(several)), []);
    let many = (0..101).map(|i| header(&format!("x-{i}"), "1", set, 0));
    assert_eq!(found(&request_headers(many.collect())), [Code::TooMany]);
    let removes = |name: &str| {
        found(&ok(OkHttpResponse {
            headers: vec![header("x-new", "1", set, 0)],
            headers_to_remove: vec![name.to_owned()],
            ..OkHttpResponse::default()
        }))
    };
    assert_eq!(removes("x-a"), []);
    assert_eq!(removes("Host"), [Code::RemoveIgnored]);
    assert_eq!(removes("X-New"), [Code::SetAndRemoved]);
}

#[tokio::test]
async fn denials_by_the_status_of_the_call_are_errors() {
    for (status, code) in [
        (Status::permission_denied("no"), Code::RpcDenial),
        (Status::unauthenticated("no"), Code::RpcDenial),
        (Status::internal("boom"), Code::RpcError),
    ] {
        let host = raw(move |_| Err(status.clone()));
        let report = probe(host, &["headers", "grpc", "cancelled"], |_| {}).await;
        assert_eq!(codes(&report), [code]);
        assert!(!report.passes(false));
    }
}

fn attributes(request: &CheckRequest) -> CheckRequestView {
    request.clone().into()
}

#[tokio::test]
async fn a_decision_that_depends_on_how_the_request_is_told_is_found() {
    let host = raw(|request| {
        let http = request
            .attributes
            .clone()
            .unwrap()
            .request
            .unwrap()
            .http
            .unwrap();
        Ok(match http.headers.contains_key("user-agent") {
            true => ok(OkHttpResponse::default()),
            false => denied(7, 403, vec![], ""),
        })
    });
    let report = probe(host, &["headers", "raw-headers"], |_| {}).await;
    assert_eq!(codes(&report), [Code::Encoding], "{report}");

    let host = raw(|request| {
        let denies = attributes(request).path().unwrap().starts_with("/probe");
        Ok(match denies {
            true => denied(7, 403, vec![], ""),
            false => ok(OkHttpResponse::default()),
        })
    });
    let report = probe(
        host,
        &["headers", "path-double-slash", "path-parameter"],
        |_| {},
    )
    .await;
    assert_eq!(codes(&report), [Code::Spelling], "{report}");
    assert!(report.passes(false) && !report.passes(true));
}

struct Slow<F>(F);

#[tonic::async_trait]
impl<F, R> Authorization for Slow<F>
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send,
{
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        (self.0)().await;
        Ok(Response::new(ok(OkHttpResponse::default())))
    }
}

#[tokio::test]
async fn answers_that_come_late_or_never_are_told_apart() {
    let late = || tokio::time::sleep(Duration::from_millis(30));
    let host = Host::new(Routes::new(AuthorizationServer::new(Slow(late))));
    let report = probe(host, &["headers"], |plan| {
        plan.timeout = Duration::from_millis(10)
    })
    .await;
    assert_eq!(codes(&report), [Code::LateAnswer], "{report}");

    let host = Host::new(Routes::new(AuthorizationServer::new(Slow(pending::<()>))));
    let report = probe(host, &["headers"], |plan| {
        plan.timeout = Duration::from_millis(10);
        plan.hang_timeout = Duration::from_millis(30);
    })
    .await;
    assert_eq!(codes(&report), [Code::NoAnswer], "{report}");
    assert_eq!(report.cases[0].answered, Answered::Nothing);
}

/// Holds the first check until it is dropped, and answers the others.
#[derive(Default)]
struct HoldsFirst {
    asked: AtomicUsize,
    dropped: Arc<AtomicUsize>,
}

struct CountsDrop(Arc<AtomicUsize>);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Authorizer for HoldsFirst {
    async fn check(&self, _: &CheckRequestView) -> Result<Decision, CheckError> {
        if self.asked.fetch_add(1, Ordering::Relaxed) == 0 {
            let _held = CountsDrop(self.dropped.clone());
            pending::<()>().await;
        }
        Ok(Decision::allow().into())
    }
}

#[tokio::test]
async fn a_client_goes_away_and_the_next_check_is_answered() {
    let holds = HoldsFirst::default();
    let dropped = holds.dropped.clone();
    let report = probe(Server::new(holds).into_host(), &["cancelled"], |_| {}).await;
    assert_eq!(codes(&report), [], "{report}");
    assert_eq!(dropped.load(Ordering::Relaxed), 1);

    let host = Host::new(Routes::new(AuthorizationServer::new(Slow(pending::<()>))));
    let report = probe(host, &["cancelled"], |plan| {
        plan.timeout = Duration::from_millis(10);
        plan.hang_timeout = Duration::from_millis(30);
    })
    .await;
    assert_eq!(codes(&report), [Code::DeadAfterCancel], "{report}");
}

#[tokio::test]
async fn another_service_is_not_probed() {
    let plan = Plan::new(&Content::default());
    let other = channel(Host::new(Routes::default()));
    let error = run(&other, &plan, |_| {}).await.unwrap_err();
    assert!(matches!(error, NotServed::Unimplemented(..)), "{error}");
}

#[test]
fn names_of_cases_are_unique_and_checks_read_as_they_are_meant() {
    let cases = cases(&Content::default());
    let mut names: Vec<_> = cases.iter().map(|case| case.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), cases.len());
    let view = |name| {
        let case = cases.iter().find(|case| case.name == name).unwrap();
        attributes(&case.request)
    };
    assert_eq!(view("raw-repeated-headers").header_lines("x-a").count(), 2);
    assert_eq!(view("repeated-headers").header("x-a").unwrap(), "1,2");
    assert_eq!(view("binary-header").header("x-binary").unwrap(), "caf!");
    let certified = view("client-certificate");
    let certificate = certified.peer_certificate().unwrap().unwrap();
    assert_eq!(certificate.uris().next(), certified.principal());
    assert_eq!(view("connect").path(), Some(""));
    assert!(!view("tcp").is_http());
    assert!(view("grpc").is_grpc());
    assert!(view("withheld-body").withholds_body());
    assert!(matches!(
        view("partial-body").body(),
        crate::server::Body::Partial(_)
    ));
    assert!(matches!(
        view("raw-binary-body").body(),
        crate::server::Body::Whole(_)
    ));
}
