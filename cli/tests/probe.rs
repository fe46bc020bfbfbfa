//! `attache probe`, `record` and `replay` as their user sees them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use attache_ext_authz::server::{
    Authorizer, CheckError, CheckRequestView, Decision, Server as AuthServer,
};
use attache_ext_proc::server::{Processor, RequestHead, Result, Server};
use attache_proto::{
    auth::{
        CheckRequest, CheckResponse,
        authorization_server::{Authorization, AuthorizationServer},
    },
    ext_proc::{
        ProcessingRequest, ProcessingResponse,
        external_processor_server::{ExternalProcessor, ExternalProcessorServer},
    },
};
use attache_service::{
    Host, Shutdown,
    tls::{ServerFiles, ServerTls, TlsVersion},
};
use support::{Ended, Process, folder, grpc::Certificates, outcome, path};
use tonic::{Status, Streaming, service::Routes};

/// Processors are not late on a machine that is busy with other tests.
const PATIENT: [&str; 4] = ["--message-timeout", "10s", "--hang-timeout", "10s"];

#[derive(Clone)]
struct Tag(&'static str);

impl Processor for Tag {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        Ok(request.headers.insert("x-tag", self.0)?)
    }
}

fn tag(value: &'static str) -> Host {
    Server::new(Tag(value)).into_host()
}

/// Ends every stream with an error.
struct Broken;

#[tonic::async_trait]
impl ExternalProcessor for Broken {
    type ProcessStream = Pin<
        Box<
            dyn tokio_stream::Stream<Item = std::result::Result<ProcessingResponse, Status>> + Send,
        >,
    >;

    async fn process(
        &self,
        _: tonic::Request<Streaming<ProcessingRequest>>,
    ) -> std::result::Result<tonic::Response<Self::ProcessStream>, Status> {
        Err(Status::internal("boom"))
    }
}

fn broken() -> Host {
    Host::new(Routes::new(ExternalProcessorServer::new(Broken)))
}

/// Allows who has the key.
struct Keyed;

impl Authorizer for Keyed {
    async fn check(&self, request: &CheckRequestView) -> std::result::Result<Decision, CheckError> {
        Ok(match request.header("x-key").as_deref() {
            Some("k") => Decision::allow().join("x-user", "ada").into(),
            _ => Decision::deny(401).body("who are you?").into(),
        })
    }
}

/// Denies by failing, and allows by saying nothing.
struct Careless;

#[tonic::async_trait]
impl Authorization for Careless {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> std::result::Result<tonic::Response<CheckResponse>, Status> {
        let view = CheckRequestView::from(request.into_inner());
        match view.header("x-key").as_deref() {
            Some("k") => Ok(tonic::Response::new(CheckResponse::default())),
            _ => Err(Status::permission_denied("no key")),
        }
    }
}

fn careless() -> Host {
    Host::new(Routes::new(AuthorizationServer::new(Careless)))
}

/// A service that serves until dropped, on a thread of its own.
struct Served {
    address: String,
    shutdown: Shutdown,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    fn new(host: Host) -> Self {
        Self::on("127.0.0.1:0", host)
    }

    fn on(address: &str, host: Host) -> Self {
        let address = address.parse().unwrap();
        let shutdown = Shutdown::new();
        let (bound, receive) = std::sync::mpsc::channel();
        let stop = shutdown.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let host = host.bind(&address).await.unwrap();
                bound.send(host.address().to_string()).unwrap();
                host.serve(stop).await.unwrap();
            });
        });
        Self {
            address: receive.recv().unwrap(),
            shutdown,
            thread: Some(thread),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.trigger();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn probe(address: &str, more: &[&str]) -> Ended {
    let mut args = vec!["probe", "ext-proc", address];
    args.extend(PATIENT);
    args.extend(more);
    outcome(&args)
}

#[test]
fn a_good_processor_passes_with_exit_code_zero() {
    let served = Served::new(tag("a"));
    let ended = probe(&served.address, &["--strict"]);
    let text = ended.stdout();

    assert_eq!(ended.code(), 0, "{text}{}", ended.stderr());
    for part in [
        "full-duplex-trailers",
        "observability",
        "health: serving; reflection: served",
        "0 hangs, 0 violations, 0 warnings",
        "request_headers",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    assert_eq!(ended.stderr(), "");
}

#[test]
fn a_wrong_processor_fails_with_exit_code_one_and_says_why() {
    let served = Served::new(broken());
    let ended = probe(&served.address, &["--cases", "headers,buffered"]);
    let text = ended.stdout();

    assert_eq!(ended.code(), 1, "{text}");
    for part in [
        "VIOLATION error-status",
        "boom",
        "[headers, buffered]",
        "Fix:",
        "2 violations",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    let chosen = ["--mode", "none", "--skip", "headers", "--format", "json"];
    let ended = probe(&served.address, &chosen);
    assert_eq!(ended.code(), 1);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout()).unwrap();
    let finding = &report["cases"][0]["findings"][0];
    assert_eq!(finding["code"], "error-status");
    assert_eq!(finding["severity"], "violation");
    assert_eq!(report["cases"][0]["name"], "request-headers-only");
}

#[test]
fn what_cannot_be_probed_ends_with_exit_code_two() {
    let nobody = format!("127.0.0.1:{}", support::free_port());
    let other = Served::new(Host::new(Routes::default()));
    let address = &other.address;
    let cases: [(&[&str], &str); 7] = [
        (&[&nobody], &nobody),
        (&["unix:/nonexistent/probe.sock"], "/nonexistent/probe.sock"),
        (&[address], "ExternalProcessor is not implemented"),
        (&[address, "--cases", "nonsense"], "no case `nonsense`"),
        (&[address, "--header", "nonsense"], "name: value"),
        (&[address, "--body", "@/nonexistent"], "/nonexistent"),
        (&[], "ADDRESS"),
    ];
    for (args, says) in cases {
        let ended = outcome(&[&["probe", "ext-proc"], args].concat());
        assert_eq!(ended.code(), 2, "{args:?}: {}", ended.stderr());
        assert!(
            ended.stderr().contains(says),
            "{args:?}: {}",
            ended.stderr()
        );
    }
}

#[test]
fn the_cases_can_be_listed() {
    let ended = outcome(&["probe", "ext-proc", "--list"]);

    assert_eq!(ended.code(), 0);
    assert!(ended.stdout().lines().count() > 30);
    assert!(ended.stdout().contains("full-duplex "));
}

#[test]
fn unix_sockets_and_tls_are_spoken() {
    let files = folder(&[]);
    let socket = format!("unix:{}", path(&files, "p.sock"));
    let served = Served::on(&socket, tag("a"));
    let ended = probe(&served.address, &["--cases", "headers"]);
    assert_eq!(ended.code(), 0, "{}", ended.stderr());

    let certificates = Certificates::new();
    let tls = ServerTls::load(ServerFiles {
        certificate: certificates.file("server.pem").into(),
        private_key: certificates.file("server.key").into(),
        client_ca: None,
        client_name: None,
        min_version: TlsVersion::default(),
        alpn: vec!["h2".to_owned()],
    });
    let served = Served::new(tag("a").tls(tls.unwrap()));
    let ca = certificates.file("ca.pem");
    let trusted = [
        "--ca",
        &ca,
        "--server-name",
        "localhost",
        "--cases",
        "headers",
    ];
    let ended = probe(&served.address, &trusted);
    assert_eq!(ended.code(), 0, "{}", ended.stderr());
    let ended = probe(
        &served.address,
        &["--ca", &ca, "--server-name", "elsewhere"],
    );
    assert_eq!(ended.code(), 2, "{}", ended.stderr());
}

#[test]
fn what_is_recorded_can_be_replayed() {
    let files = folder(&[]);
    let file = path(&files, "exchanges.jsonl");
    let served = Served::new(tag("a"));
    let record = [
        "record",
        "ext-proc",
        "--listen",
        "127.0.0.1:0",
        "--upstream",
    ];
    let mut relay = Process::attache(&[&record[..], &[&served.address, &file]].concat());

    let through = [
        "--cases",
        "headers,buffered,full-duplex",
        "--header",
        "cookie: s3cret",
    ];
    let ended = probe(&relay.address(), &through);
    assert_eq!(ended.code(), 0, "{}{}", ended.stdout(), ended.stderr());
    relay.signal("TERM");
    assert_eq!(relay.ended().code(), Some(0));
    assert!(relay.text().contains("exchanges=3"), "{}", relay.text());

    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("czNjcmV0"), "the cookie is in:\n{text}");
    let ended = outcome(&["replay", &file, &served.address, "--timeout", "10s"]);
    assert_eq!(ended.code(), 0, "{}{}", ended.stdout(), ended.stderr());
    assert!(ended.stdout().contains("3 exchanges the same, 0 different"));

    let other = Served::new(tag("b"));
    let ended = outcome(&["replay", &file, &other.address, "--timeout", "10s"]);
    assert_eq!(ended.code(), 1);
    assert!(
        ended.stdout().contains("request_headers[0]"),
        "{}",
        ended.stdout()
    );
    let ended = outcome(&["replay", &file, &other.address, "--format", "json"]);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout()).unwrap();
    assert_eq!(report["exchanges"].as_array().unwrap().len(), 3);
    assert_eq!(
        report["exchanges"][0]["differences"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn a_recording_is_never_overwritten_and_must_be_one() {
    let files = folder(&[("old", "x\ny\n")]);
    let old = path(&files, "old");
    let args = ["record", "ext-proc", &old, "--upstream", "127.0.0.1:1"];
    let ended = outcome(&args);
    assert_eq!(ended.code(), 2);
    assert!(ended.stderr().contains(&old), "{}", ended.stderr());
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "x\ny\n");

    let ended = outcome(&["replay", &old, "127.0.0.1:1"]);
    assert_eq!(ended.code(), 2);
    assert!(ended.stderr().contains("line 1"), "{}", ended.stderr());
}

#[test]
fn a_silent_processor_does_not_hold_up_the_probe() {
    // Accepts connections and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let begun = Instant::now();
    let ended = outcome(&["probe", "ext-proc", &address]);

    assert_eq!(ended.code(), 2, "{}", ended.stdout());
    assert!(begun.elapsed() < Duration::from_secs(15));
}

fn probe_auth(address: &str, more: &[&str]) -> Ended {
    let patient = ["--timeout", "10s", "--hang-timeout", "10s"];
    outcome(&[&["probe", "ext-authz", address], &patient[..], more].concat())
}

#[test]
fn a_good_auth_service_passes_whether_it_denies_or_allows() {
    let served = Served::new(AuthServer::new(Keyed).into_host());
    let ended = probe_auth(&served.address, &["--strict"]);
    let text = ended.stdout();
    assert_eq!(ended.code(), 0, "{text}{}", ended.stderr());
    for part in [
        "denied 401",
        "No request was allowed",
        "health: serving; reflection: served",
        "0 hangs, 0 violations, 0 warnings",
        "median",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    assert_eq!(ended.stderr(), "");

    let with_key = ["--strict", "--header", "x-key: k", "--format", "json"];
    let ended = probe_auth(&served.address, &with_key);
    assert_eq!(ended.code(), 0, "{}", ended.stdout());
    let report: serde_json::Value = serde_json::from_str(&ended.stdout()).unwrap();
    assert_eq!(report["cases"][0]["answer"], "allowed");
    assert_eq!(report["violations"], 0);
    assert!(report["allowed"].as_u64().unwrap() > 30);
    assert!(report["latency"]["count"].as_u64().unwrap() > 40);
    assert_eq!(report["latency_at_once"]["count"], 50);
}

#[test]
fn a_careless_auth_service_fails_with_exit_code_one_and_says_why() {
    let served = Served::new(careless());
    let ended = probe_auth(&served.address, &["--cases", "headers,body"]);
    let text = ended.stdout();
    assert_eq!(ended.code(), 1, "{text}");
    for part in [
        "VIOLATION rpc-error-as-denial",
        "no key",
        "[headers, body]",
        "Fix:",
        "2 violations",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    let with_key = ["--cases", "headers", "--header", "x-key: k"];
    let ended = probe_auth(&served.address, &with_key);
    assert_eq!(ended.code(), 1);
    let text = ended.stdout();
    assert!(text.contains("VIOLATION empty-answer-allows"), "{text}");
}

#[test]
fn what_is_no_auth_service_cannot_be_probed() {
    let nobody = format!("127.0.0.1:{}", support::free_port());
    let other = Served::new(Host::new(Routes::default()));
    let address = &other.address;
    let cases: [(&[&str], &str); 5] = [
        (&[&nobody], &nobody),
        (&[address], "Authorization is not implemented"),
        (&[address, "--cases", "nonsense"], "no case `nonsense`"),
        (&[address, "--certificate", "/nonexistent"], "/nonexistent"),
        (&[], "ADDRESS"),
    ];
    for (args, says) in cases {
        let ended = outcome(&[&["probe", "ext-authz"], args].concat());
        let error = ended.stderr();
        assert_eq!(ended.code(), 2, "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
    }
    let ended = outcome(&["probe", "ext-authz", "--list"]);
    assert_eq!(ended.code(), 0);
    assert!(ended.stdout().lines().count() > 40);
}
