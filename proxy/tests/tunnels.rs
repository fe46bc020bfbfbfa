//! Upgrades and CONNECT, with and without policies that look at what goes through.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::{convert::Infallible, sync::Arc, task::Poll, time::Duration};

use attache_filter::{Body, RequestContext, on_failure::OnFailure};
use attache_proxy::{
    Plan,
    filters::{Policy, PolicyFuture, Site, Stack},
    route::{Forward, PathMatch, RouteEntry, RouteMatch, RouteTable},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use support::{Origin, Raw, entry, header, origin, plan_to, read_head, start, status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::Service;

const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const SOCKET: &str =
    "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";

/// Turns what goes up into capitals, and doubles what comes down.
#[derive(Debug)]
struct Loud;

impl Policy for Loud {
    fn layer(&self, inner: Stack, _site: &Site<'_>) -> Stack {
        Stack::new(LoudService(inner))
    }

    fn clusters(&self) -> Vec<String> {
        Vec::new()
    }

    fn on_failure(&self) -> Option<OnFailure> {
        None
    }
}

#[derive(Clone)]
struct LoudService(Stack);

impl Service<Request<Body>> for LoudService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = PolicyFuture;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> PolicyFuture {
        assert!(RequestContext::of(&mut request).tunnels_in_body());
        let up = request.map(|body| {
            Body::new(
                body.map_frame(|frame| frame.map_data(|data| data.to_ascii_uppercase().into())),
            )
        });
        let response = self.0.call(up);
        Box::pin(async move {
            let twice = |data: Bytes| Bytes::from([&data[..], &data[..]].concat());
            let down = |body: Body| Body::new(body.map_frame(move |f| f.map_data(twice)));
            Ok(response.await?.map(down))
        })
    }
}

fn loud(mut plan: Plan) -> Plan {
    let listener = Arc::get_mut(&mut plan.listeners[0]).unwrap();
    listener.filters = vec!["loud".into()];
    plan.filters.insert("loud", Arc::new(Loud));
    plan
}

/// Leads every request to `/inside`.
#[derive(Debug, Clone)]
struct Inside(Option<Stack>);

impl Policy for Inside {
    fn layer(&self, inner: Stack, _site: &Site<'_>) -> Stack {
        Stack::new(Inside(Some(inner)))
    }

    fn clusters(&self) -> Vec<String> {
        Vec::new()
    }

    fn on_failure(&self) -> Option<OnFailure> {
        None
    }
}

impl Service<Request<Body>> for Inside {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = PolicyFuture;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> PolicyFuture {
        RequestContext::of(&mut request).clear_route();
        *request.uri_mut() = "/inside".parse().unwrap();
        self.0.as_mut().unwrap().call(request)
    }
}

fn connect_forward() -> Forward {
    let mut forward = Forward::to(0);
    forward.connect = true;
    forward
}

fn connecting(mut plan: Plan) -> Plan {
    let connect = RouteEntry {
        changes: None,
        matches: RouteMatch::path(PathMatch::Connect),
        ..entry("/", connect_forward())
    };
    plan.routes = Arc::new(RouteTable::of(vec![entry("/", Forward::to(0)), connect]));
    plan
}

/// Switches protocols, then sends back whatever comes.
async fn echoing(switches: bool) -> Origin {
    origin(move |_, mut stream| async move {
        if switches {
            read_head(&mut stream).await.unwrap();
            stream.write_all(SWITCH.as_bytes()).await.unwrap();
        }
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

#[tokio::test]
async fn a_route_picked_again_decides_about_upgrades_anew() {
    let origin = echoing(true).await;
    for (inside, expected) in [(None, 101), (Some(true), 101), (Some(false), 403)] {
        let mut plan = plan_to(origin.at);
        let mut forward = Forward::to(0);
        forward.upgrades = inside
            .map(|on| ("websocket".to_owned(), on))
            .into_iter()
            .collect();
        let routes = vec![entry("/inside", forward), entry("/", Forward::to(0))];
        plan.routes = Arc::new(RouteTable::of(routes));
        let listener = Arc::get_mut(&mut plan.listeners[0]).unwrap();
        listener.filters = vec!["inside".into()];
        plan.filters.insert("inside", Arc::new(Inside(None)));
        let proxy = start(plan).await;
        let mut client = Raw::connect(proxy.at).await;

        client.send(SOCKET).await;

        assert_eq!(status(&client.head().await), expected, "{inside:?}");
    }
}

#[tokio::test]
async fn a_policy_sees_and_changes_what_goes_through_an_upgrade() {
    let origin = echoing(true).await;
    let proxy = start(loud(plan_to(origin.at))).await;
    let mut client = Raw::connect(proxy.at).await;
    client.send(SOCKET).await;
    let head = client.head().await;
    assert_eq!(status(&head), 101);
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    client.send("ping").await;
    assert_eq!(client.take(8).await, "PINGPING");
    client.send("more").await;
    assert_eq!(client.take(8).await, "MOREMORE");
    client.0.shutdown().await.unwrap();
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn an_upgrade_that_the_origin_refuses_has_an_ordinary_response() {
    let (origin, _heads) =
        support::echo_origin("HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno").await;
    let proxy = start(loud(plan_to(origin.at))).await;
    let answer = support::once(proxy.at, SOCKET).await;
    assert_eq!(status(&answer), 404);
}

#[tokio::test]
async fn an_origin_that_leaves_ends_the_tunnel() {
    let origin = origin(|_, mut stream| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(SWITCH.as_bytes()).await.unwrap();
        stream.write_all(b"bye").await.unwrap();
    })
    .await;
    let proxy = start(loud(plan_to(origin.at))).await;
    let mut client = Raw::connect(proxy.at).await;
    client.send(SOCKET).await;
    client.head().await;
    assert_eq!(client.take(6).await, "byebye");
    assert_eq!(client.0.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_tunnel() {
    let (gone, seen) = tokio::sync::oneshot::channel();
    let gone = Arc::new(std::sync::Mutex::new(Some(gone)));
    let origin = origin(move |_, mut stream| {
        let gone = gone.clone();
        async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(SWITCH.as_bytes()).await.unwrap();
            while !matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)) {}
            let _ = gone.lock().unwrap().take().unwrap().send(());
        }
    })
    .await;
    let proxy = start(loud(plan_to(origin.at))).await;
    let mut client = Raw::connect(proxy.at).await;
    client.send(SOCKET).await;
    client.head().await;
    drop(client);
    tokio::time::timeout(support::PATIENCE, seen)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_side_that_does_not_read_pauses_the_other() {
    let origin = origin(|_, mut stream| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(SWITCH.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = start(loud(plan_to(origin.at))).await;
    let mut client = Raw::connect(proxy.at).await;
    client.send(SOCKET).await;
    client.head().await;
    let piece = vec![b'x'; 64 << 10];
    let mut sent = 0;
    // More than the sockets' buffers and what the proxy may hold.
    let most = 64 << 20;
    while sent < most {
        match tokio::time::timeout(Duration::from_millis(500), client.0.write(&piece)).await {
            Ok(count) => sent += count.unwrap(),
            Err(_) => return,
        }
    }
    panic!("{sent} bytes were taken, and nobody read them");
}

#[tokio::test]
async fn a_connect_ends_here_and_goes_on_over_tcp() {
    for (is_loud, wanted) in [(false, "ping"), (true, "PINGPING")] {
        let origin = echoing(false).await;
        let plan = connecting(plan_to(origin.at));
        let proxy = start(if is_loud { loud(plan) } else { plan }).await;
        let mut client = Raw::connect(proxy.at).await;
        client
            .send("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n")
            .await;
        let head = client.head().await;
        assert_eq!(status(&head), 200);
        assert_eq!(header(&head, "transfer-encoding"), None);
        client.send("ping").await;
        assert_eq!(client.take(wanted.len()).await, wanted);
        client.0.shutdown().await.unwrap();
        assert_eq!(client.rest().await, "");
    }
}

#[tokio::test]
async fn other_requests_do_not_match_a_connect_route() {
    let (origin, _heads) = support::echo_origin(support::OK).await;
    let mut plan = plan_to(origin.at);
    let connect = RouteEntry {
        changes: None,
        matches: RouteMatch::path(PathMatch::Connect),
        ..entry("/", connect_forward())
    };
    plan.routes = Arc::new(RouteTable::of(vec![connect]));
    let proxy = start(plan).await;
    let (head, _) = Raw::connect(proxy.at).await.get("/").await;
    assert_eq!(status(&head), 404);
}

#[tokio::test]
async fn a_connect_to_nobody_is_a_503() {
    let origin = echoing(false).await;
    let plan = connecting(plan_to(origin.at));
    drop(origin);
    let proxy = start(plan).await;
    let mut client = Raw::connect(proxy.at).await;
    client
        .send("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n")
        .await;
    assert_eq!(status(&client.head().await), 503);
}

#[tokio::test]
async fn a_route_lets_more_or_fewer_upgrades_through() {
    for (listener, route, protocol, wanted) in [
        ("websocket", ("other", true), "other", 101),
        ("websocket", ("other", true), "websocket", 101),
        ("websocket", ("websocket", false), "websocket", 403),
        ("websocket", ("other", true), "third", 403),
    ] {
        let origin = echoing(true).await;
        let mut plan = plan_to(origin.at);
        Arc::get_mut(&mut plan.listeners[0]).unwrap().upgrades = vec![listener.to_owned()];
        let mut forward = Forward::to(0);
        forward.upgrades = vec![(route.0.to_owned(), route.1)];
        plan.routes = Arc::new(RouteTable::of(vec![entry("/", forward)]));
        let proxy = start(plan).await;
        let mut client = Raw::connect(proxy.at).await;
        client
            .send(&format!(
                "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
            ))
            .await;
        assert_eq!(status(&client.head().await), wanted, "{protocol}");
    }
}

/// An HTTP/2 client of a listener.
async fn h2_to(at: std::net::SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

/// The same, once it knows that the listener takes extended `CONNECT`.
async fn extending_h2_to(at: std::net::SocketAddr) -> h2::client::SendRequest<Bytes> {
    let client = h2_to(at).await;
    let told = tokio::time::timeout(support::PATIENCE, async {
        while !client.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
    });
    told.await.expect("the listener's settings");
    client
}

fn extended() -> Request<()> {
    let mut request = Request::connect("http://a/ws").body(()).unwrap();
    let protocol = h2::ext::Protocol::from_static("websocket");
    request.extensions_mut().insert(protocol);
    request
}

fn taking_extended_connect(mut plan: Plan) -> Plan {
    let listener = Arc::get_mut(&mut plan.listeners[0]).unwrap();
    listener.allow_connect = true;
    plan
}

/// An origin that answers upgrades with this head and sends back what follows, and other requests
/// with 200.
async fn socket_origin(head: &'static str) -> Origin {
    origin(move |_, mut stream| async move {
        while let Some(request) = read_head(&mut stream).await {
            if header(&request, "upgrade").is_none() {
                stream.write_all(support::OK.as_bytes()).await.unwrap();
                continue;
            }
            assert!(request.starts_with("GET /ws HTTP/1.1\r\n"), "{request}");
            assert_eq!(header(&request, "connection"), Some("upgrade"));
            stream.write_all(head.as_bytes()).await.unwrap();
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
            return;
        }
    })
    .await
}

#[tokio::test]
async fn an_extended_connect_is_an_upgrade_to_the_origin() {
    let origin = socket_origin(SWITCH).await;
    let plain = taking_extended_connect(plan_to(origin.at));
    let seen = loud(taking_extended_connect(plan_to(origin.at)));
    for (plan, expected) in [(plain, &b"ping"[..]), (seen, b"PINGPING")] {
        let proxy = start(plan).await;
        let mut client = extending_h2_to(proxy.at).await;
        let (answer, mut send) = client.send_request(extended(), false).unwrap();
        let (head, mut body) = answer.await.unwrap().into_parts();
        assert_eq!(head.status, 200);
        assert!(!head.headers.contains_key("upgrade"));
        assert!(!head.headers.contains_key("connection"));
        send.send_data(Bytes::from_static(b"ping"), true).unwrap();
        let mut got = Vec::new();
        while let Some(data) = body.data().await {
            got.extend_from_slice(&data.unwrap());
        }
        assert_eq!(got, expected);
    }
}

#[tokio::test]
async fn only_a_switch_opens_the_tunnel_of_an_extended_connect() {
    for (head, expected) in [
        (support::OK, 502),
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", 403),
    ] {
        let origin = socket_origin(head).await;
        let proxy = start(taking_extended_connect(plan_to(origin.at))).await;
        let mut client = extending_h2_to(proxy.at).await;
        let (answer, _send) = client.send_request(extended(), false).unwrap();
        let mut answer = answer.await.unwrap();
        assert_eq!(answer.status(), expected);
        assert!(answer.body_mut().data().await.is_none());
    }
}

#[tokio::test]
async fn an_extended_connect_is_taken_only_where_the_listener_says_so() {
    let origin = socket_origin(SWITCH).await;
    for allowed in [false, true] {
        let mut plan = plan_to(origin.at);
        Arc::get_mut(&mut plan.listeners[0]).unwrap().allow_connect = allowed;
        let proxy = start(plan).await;
        let mut client = h2_to(proxy.at).await;
        // With the answer the settings have arrived.
        let request = Request::get("http://a/").body(()).unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        answer.await.unwrap();
        assert_eq!(client.is_extended_connect_protocol_enabled(), allowed);
    }
}
