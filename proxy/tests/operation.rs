//! Start, reload, drain, limits, policies in the stack, access log.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

mod support;

use std::{convert::Infallible, sync::Arc, time::Duration};

use attache_filter::{Body, RequestContext, on_failure::OnFailure};
use attache_proxy::{
    Plan, Proxy, StartError,
    access_log::{AccessLogPlan, By, Share, Sink},
    filters::{Policy, PolicyFuture, Site, Stack},
    plan::ListenerPlan,
    route::{
        Action, DirectResponse, Forward, PathChange, PathMatch, Redirect, RouteEntry, RouteMatch,
        RouteTable,
    },
};
use attache_service::Metrics;
use http::{HeaderValue, Request, Response, StatusCode};
use support::{
    OK, PATIENCE, Raw, address, any_port, echo_origin, header, origin, plan_to, plan_with,
    read_head, start, status,
};
use tokio::io::AsyncWriteExt;
use tower::Service;

fn direct(path: &str, body: &'static str) -> RouteEntry {
    RouteEntry {
        changes: None,
        matches: RouteMatch::path(PathMatch::Prefix(path.to_owned())),
        action: Action::Direct(DirectResponse {
            status: StatusCode::OK,
            format: None,
            body: body.into(),
        }),
        route: Arc::default(),
    }
}

fn plan_of(routes: Vec<RouteEntry>) -> Plan {
    let listener = ListenerPlan::new("test", any_port());
    Plan::new(vec![listener], RouteTable::of(routes), Vec::new())
}

/// The same plan on the port that a running proxy has.
fn moved_to(plan: Plan, at: std::net::SocketAddr) -> Plan {
    let mut listener = ListenerPlan::new("test", address(at));
    listener.filters = plan.listeners[0].filters.clone();
    Plan {
        listeners: vec![Arc::new(listener)],
        ..plan
    }
}

#[tokio::test]
async fn the_first_matching_route_answers_and_none_is_404() {
    let proxy = start(plan_of(vec![
        direct("/a/b", "first"),
        direct("/a", "second"),
        RouteEntry {
            changes: None,
            matches: RouteMatch::path(PathMatch::Exact("/old".to_owned())),
            action: Action::Redirect(Redirect {
                path: Some(PathChange::Whole("/new".to_owned())),
                ..Redirect::default()
            }),
            route: Arc::default(),
        },
    ]))
    .await;
    let mut client = Raw::connect(proxy.at).await;
    assert_eq!(client.get("/a/b/c").await.1, "first");
    assert_eq!(client.get("/a/c").await.1, "second");
    let (head, _) = client.get("/old").await;
    assert_eq!(status(&head), 301);
    assert_eq!(header(&head, "location"), Some("http://test/new"));
    assert_eq!(status(&client.get("/z").await.0), 404);
    assert!(
        proxy
            .metrics
            .render()
            .contains("attache_downstream_requests_total{listener=\"test\",code_class=\"2xx\"} 2")
    );
}

#[tokio::test]
async fn all_workers_serve_one_port() {
    let mut plan = plan_of(vec![direct("/", "here")]);
    plan.workers = 3;
    let proxy = start(plan).await;
    for _ in 0..20 {
        assert_eq!(Raw::connect(proxy.at).await.get("/").await.1, "here");
    }
    proxy.running.shutdown().await;
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = taken.local_addr().unwrap();
    let plan = moved_to(plan_of(vec![direct("/", "x")]), at);
    let error = Proxy::start(plan, Metrics::default()).await.err().unwrap();
    assert!(matches!(error, StartError::Listen { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("`test`") && text.contains(&at.to_string()),
        "{text}"
    );
}

#[tokio::test]
async fn a_reload_changes_what_kept_connections_get() {
    let proxy = start(plan_of(vec![direct("/", "old")])).await;
    let mut client = Raw::connect(proxy.at).await;
    assert_eq!(client.get("/").await.1, "old");

    let plan = moved_to(plan_of(vec![direct("/", "new")]), proxy.at);
    proxy.running.reload(plan).await.unwrap();

    assert_eq!(client.get("/").await.1, "new");
}

#[tokio::test]
async fn a_request_in_flight_finishes_on_the_plan_it_began_with() {
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let wait = Arc::new(tokio::sync::Mutex::new(Some(wait)));
    let (arrived, mut has_arrived) = tokio::sync::mpsc::unbounded_channel();
    let origin = origin(move |_, mut stream| {
        let (wait, arrived) = (wait.clone(), arrived.clone());
        async move {
            read_head(&mut stream).await;
            let _ = arrived.send(());
            let wait = wait.lock().await.take();
            if let Some(wait) = wait {
                let _ = wait.await;
            }
            let _ = stream.write_all(OK.as_bytes()).await;
        }
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    has_arrived.recv().await.unwrap();
    let plan = moved_to(plan_of(vec![direct("/", "new")]), proxy.at);
    proxy.running.reload(plan).await.unwrap();
    go.send(()).unwrap();
    assert_eq!(client.response().await.1, "ok");
    assert_eq!(Raw::connect(proxy.at).await.get("/").await.1, "new");
}

#[tokio::test]
async fn a_reload_that_cannot_listen_leaves_the_old_plan_running() {
    let proxy = start(plan_of(vec![direct("/", "old")])).await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut plan = moved_to(plan_of(vec![direct("/", "new")]), proxy.at);
    let second = ListenerPlan::new("second", address(taken.local_addr().unwrap()));
    plan.listeners.push(Arc::new(second));
    let error = proxy.running.reload(plan).await.unwrap_err().to_string();
    assert!(error.contains("`second`"), "{error}");
    assert_eq!(Raw::connect(proxy.at).await.get("/").await.1, "old");
    assert!(
        proxy
            .metrics
            .render()
            .contains("attache_config_reloads_total{result=\"failed\"} 1")
    );
}

#[tokio::test]
async fn shutdown_finishes_requests_and_accepts_no_more() {
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let wait = Arc::new(tokio::sync::Mutex::new(Some(wait)));
    let (arrived, mut has_arrived) = tokio::sync::mpsc::unbounded_channel();
    let origin = origin(move |_, mut stream| {
        let (wait, arrived) = (wait.clone(), arrived.clone());
        async move {
            read_head(&mut stream).await;
            let _ = arrived.send(());
            let wait = wait.lock().await.take();
            if let Some(wait) = wait {
                let _ = wait.await;
            }
            let _ = stream.write_all(OK.as_bytes()).await;
        }
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let mut idle = Raw::connect(proxy.at).await;
    idle.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    has_arrived.recv().await.unwrap();

    let stopping = tokio::spawn(proxy.running.shutdown());
    // Refused as soon as the listener is closed.
    tokio::time::timeout(PATIENCE, async {
        while tokio::net::TcpStream::connect(proxy.at).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the listener closes");
    go.send(()).unwrap();

    let (head, body) = idle.response().await;
    assert_eq!(body, "ok");
    assert_eq!(header(&head, "connection"), Some("close"));
    assert_eq!(idle.rest().await, "");
    tokio::time::timeout(PATIENCE, stopping)
        .await
        .expect("stops")
        .unwrap();
}

#[tokio::test]
async fn the_drain_is_bounded() {
    let origin = origin(|_, mut stream| async move {
        read_head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut plan = plan_to(origin.at);
    plan.drain_timeout = Duration::from_millis(100);
    let proxy = start(plan).await;
    let mut client = Raw::connect(proxy.at).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    tokio::time::timeout(PATIENCE, proxy.running.shutdown())
        .await
        .expect("stops although a request hangs");
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn connections_over_the_limit_are_closed() {
    let (origin, _heads) = echo_origin(OK).await;
    let proxy = start(plan_with(
        origin.at,
        |listener| listener.limits.max_connections = 1,
        |_| {},
        Forward::to(0),
    ))
    .await;
    let mut first = Raw::connect(proxy.at).await;
    first.get("/").await;
    assert_eq!(Raw::connect(proxy.at).await.rest().await, "");
    assert_eq!(first.get("/").await.1, "ok");
}

/// A policy that adds its letter to a request header on the way in and a response header on the
/// way out, and may send the request elsewhere.
#[derive(Debug, Clone)]
struct Letter {
    letter: &'static str,
    reroute: bool,
}

#[derive(Clone)]
struct LetterService {
    policy: Letter,
    inner: Stack,
}

impl Policy for Letter {
    fn layer(&self, inner: Stack, _site: &Site<'_>) -> Stack {
        Stack::new(LetterService {
            policy: self.clone(),
            inner,
        })
    }

    fn clusters(&self) -> Vec<String> {
        Vec::new()
    }

    fn on_failure(&self) -> Option<OnFailure> {
        None
    }
}

impl Service<Request<Body>> for LetterService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = PolicyFuture;

    fn poll_ready(
        &mut self,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> PolicyFuture {
        let letter = HeaderValue::from_static(self.policy.letter);
        request.headers_mut().append("x-in", letter.clone());
        if self.policy.reroute {
            *request.uri_mut() = "/elsewhere".parse().unwrap();
            RequestContext::of(&mut request).clear_route();
        }
        let inner = self.inner.call(request);
        Box::pin(async move {
            let mut response = inner.await?;
            response.headers_mut().append("x-out", letter);
            Ok(response)
        })
    }
}

fn with_policies(mut plan: Plan, policies: &[Letter]) -> Plan {
    let mut listener = ListenerPlan::new("test", any_port());
    for policy in policies {
        listener.filters.push(policy.letter.into());
        plan.filters.insert(policy.letter, Arc::new(policy.clone()));
    }
    plan.listeners = vec![Arc::new(listener)];
    plan
}

fn letter(letter: &'static str) -> Letter {
    Letter {
        letter,
        reroute: false,
    }
}

#[tokio::test]
async fn policies_run_in_order_inward_and_in_reverse_outward() {
    let (origin, mut heads) = echo_origin(OK).await;
    let plan = with_policies(plan_to(origin.at), &[letter("a"), letter("b")]);
    let proxy = start(plan).await;
    let (head, body) = Raw::connect(proxy.at).await.get("/").await;
    assert_eq!(body, "ok");
    let seen = heads.recv().await.unwrap();
    let values = |head: &str, name: &str| -> Vec<String> {
        let prefix = format!("{name}: ");
        head.lines()
            .filter_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
            .collect()
    };
    assert_eq!(values(&seen, "x-in"), ["a", "b"]);
    assert_eq!(values(&head, "x-out"), ["b", "a"]);
}

#[tokio::test]
async fn a_cleared_route_is_picked_again_behind_the_policies() {
    let plan = plan_of(vec![direct("/elsewhere", "second"), direct("/", "first")]);
    let reroute = Letter {
        letter: "a",
        reroute: true,
    };
    let proxy = start(with_policies(plan, &[reroute])).await;
    assert_eq!(Raw::connect(proxy.at).await.get("/").await.1, "second");
}

/// The line of the access log for a request to `/x?y` that this origin is to answer.
async fn logged(origin: std::net::SocketAddr) -> serde_json::Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let mut log = AccessLogPlan::new(Sink::File(file.clone()));
    log.selection.sample = Share::of(0.0, By::RequestId);
    log.selection.always_slower = Some(Duration::ZERO);
    let proxy = start(plan_with(
        origin,
        |listener| listener.access_logs = vec![log],
        |_| {},
        Forward::to(0),
    ))
    .await;
    Raw::connect(proxy.at).await.get("/x?y").await;
    proxy.running.shutdown().await;
    let line = tokio::time::timeout(PATIENCE, async {
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if text.ends_with('\n') {
                return text;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a line");
    serde_json::from_str(&line).unwrap()
}

#[tokio::test]
async fn the_access_log_tells_what_happened() {
    let (origin, _heads) = echo_origin(OK).await;

    let line = logged(origin.at).await;

    assert_eq!(line["method"], "GET");
    assert_eq!(line["path"], "/x?y");
    assert_eq!(line["status"], 200);
    assert_eq!(line["details"], "via_upstream");
    assert_eq!(line["flags"], "");
    assert_eq!(line["bytes_out"], 2);
    assert_eq!(line["upstream"], origin.at.to_string());
    assert_eq!(line["upstream_failure"], serde_json::Value::Null);
    assert_eq!(line["client"], "127.0.0.1");
}

#[tokio::test]
async fn the_access_log_tells_why_an_upstream_was_not_reached() {
    // Bound, so that nobody else gets the port, but nobody listens.
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody_at = nobody.local_addr().unwrap();

    let line = logged(nobody_at).await;

    assert_eq!(
        (&line["status"], &line["flags"]),
        (&503.into(), &"UF".into())
    );
    assert_eq!(line["upstream"], nobody_at.to_string());
    let failure = line["upstream_failure"].as_str().unwrap_or_default();
    assert!(failure.contains("refused"), "{line}");
}

#[tokio::test]
async fn clients_that_go_away_at_any_moment_leave_nothing_behind() {
    let origin = origin(|_, mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";
            if stream.write_all(head).await.is_err()
                || stream.write_all(&[b'x'; 1_000_000]).await.is_err()
            {
                return;
            }
        }
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let mut clients = Vec::new();
    for number in 0..60 {
        let at = proxy.at;
        clients.push(tokio::spawn(async move {
            let mut client = Raw::connect(at).await;
            let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
            match number % 4 {
                0 => client.send(&request[..10]).await,
                1 => client.send(request).await,
                2 => {
                    client.send(request).await;
                    client.take(5000).await;
                }
                _ => {
                    let (_, body) = client.get("/").await;
                    assert_eq!(body.len(), 1_000_000);
                }
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    let none = "attache_downstream_connections{listener=\"test\"} 0";
    tokio::time::timeout(PATIENCE, async {
        while !proxy.metrics.render().contains(none) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("every connection ends");
    let mut client = Raw::connect(proxy.at).await;
    assert_eq!(status(&client.get("/").await.0), 200);
}
