//! A tunnel is a request as any other, and part of its connection: it counts, drains and is
//! logged.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

mod support;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use attache_proxy::{
    Plan,
    access_log::{AccessLogPlan, Sink},
    plan::ListenerPlan,
    route::{Forward, PathMatch, RouteEntry, RouteMatch, RouteTable},
};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::Request;
use serde_json::Value;
use support::{
    Origin, PATIENCE, Raw, any_port, entry, header, origin, plan_with, read_head, shown, start,
    status,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// The ways to ask for a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Upgrade,
    Connect,
    Http2Connect,
    ExtendedConnect,
}

use Kind::{Connect, ExtendedConnect, Http2Connect, Upgrade};

const ALL: [Kind; 4] = [Upgrade, Connect, Http2Connect, ExtendedConnect];

impl Kind {
    /// The origin is spoken to in HTTP first.
    fn switches(self) -> bool {
        matches!(self, Upgrade | ExtendedConnect)
    }

    /// An origin for it, which sends back whatever comes.
    async fn echo(self) -> Origin {
        origin(move |_, mut stream| async move {
            if self.switches() {
                let head = read_head(&mut stream).await.unwrap_or_default();
                if header(&head, "upgrade") != Some("websocket") {
                    return;
                }
                stream.write_all(SWITCH.as_bytes()).await.unwrap();
            }
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        })
        .await
    }
}

/// A tunnel, as its client has it.
enum Tunnel {
    Http1(Raw),
    Http2 {
        send: SendStream<Bytes>,
        body: RecvStream,
        _client: SendRequest<Bytes>,
    },
}

impl Tunnel {
    /// Asks for one on a connection of its own; the status where it is refused, if there is one.
    async fn ask(kind: Kind, at: SocketAddr) -> Result<Self, Option<u16>> {
        let text = match kind {
            Upgrade => {
                "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
            }
            Connect => "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n",
            Http2Connect | ExtendedConnect => return Self::ask_http2(kind, at).await,
        };
        let mut client = Raw::connect(at).await;
        if client.0.write_all(text.as_bytes()).await.is_err() {
            return Err(None);
        }
        let head = tokio::time::timeout(PATIENCE, read_head(&mut client.0)).await;
        match head.expect("an answer").as_deref().map(status) {
            Some(101 | 200) => Ok(Self::Http1(client)),
            other => Err(other),
        }
    }

    async fn ask_http2(kind: Kind, at: SocketAddr) -> Result<Self, Option<u16>> {
        let stream = TcpStream::connect(at).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.map_err(|_| None)?;
        let connection = tokio::spawn(connection);
        let mut client = client.ready().await.map_err(|_| None)?;
        let mut request = Request::connect("a:1").body(()).unwrap();
        if kind == ExtendedConnect {
            let told = async {
                while !client.is_extended_connect_protocol_enabled() && !connection.is_finished() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, told)
                .await
                .expect("settings");
            if connection.is_finished() {
                return Err(None);
            }
            request = Request::connect("http://a/ws").body(()).unwrap();
            let protocol = h2::ext::Protocol::from_static("websocket");
            request.extensions_mut().insert(protocol);
        }
        let (answer, send) = client.send_request(request, false).map_err(|_| None)?;
        let answer = answer.await.map_err(|_| None)?;
        match answer.status().as_u16() {
            200 => Ok(Self::Http2 {
                send,
                body: answer.into_body(),
                _client: client,
            }),
            other => Err(Some(other)),
        }
    }

    async fn open(kind: Kind, at: SocketAddr) -> Self {
        let asked = Self::ask(kind, at).await;
        asked.map_err(|status| (kind, status)).unwrap()
    }

    /// Sends a text, and waits until it has come back.
    async fn echoes(&mut self, text: &'static str) {
        match self {
            Self::Http1(client) => {
                client.send(text).await;
                assert_eq!(client.take(text.len()).await, text);
            }
            Self::Http2 { send, body, .. } => {
                send.send_data(Bytes::from_static(text.as_bytes()), false)
                    .unwrap();
                let mut got = Vec::new();
                while got.len() < text.len() {
                    let piece = tokio::time::timeout(PATIENCE, body.data()).await;
                    got.extend_from_slice(&piece.expect("a piece").unwrap().unwrap());
                }
                assert_eq!(got, text.as_bytes());
            }
        }
    }

    /// Ends the client's half, and waits for the end of the other.
    async fn finish(mut self) {
        match &mut self {
            Self::Http1(client) => client.0.shutdown().await.unwrap(),
            Self::Http2 { send, .. } => send.send_data(Bytes::new(), true).unwrap(),
        }
        assert!(self.ended().await, "politely");
    }

    /// Waits for the end of the proxy's half; whether it was a polite one.
    async fn ended(&mut self) -> bool {
        let end = async {
            match self {
                Self::Http1(client) => {
                    let mut rest = Vec::new();
                    client.0.read_to_end(&mut rest).await.is_ok()
                }
                Self::Http2 { body, .. } => loop {
                    match body.data().await {
                        None => return true,
                        // The end comes with a frame that is empty.
                        Some(Ok(piece)) => assert!(piece.is_empty(), "{piece:?}"),
                        Some(Err(_)) => return false,
                    }
                },
            }
        };
        tokio::time::timeout(PATIENCE, end).await.expect("an end")
    }

    /// Breaks the connection off.
    fn reset(self) {
        if let Self::Http1(client) = &self {
            client.0.set_zero_linger().unwrap();
        }
    }
}

/// A plan that takes all kinds of tunnels.
fn plan(origin: SocketAddr, listener: impl FnOnce(&mut ListenerPlan), forward: Forward) -> Plan {
    let tunnels = |plan: &mut ListenerPlan| {
        plan.allow_connect = true;
        listener(plan);
    };
    let mut plan = plan_with(origin, tunnels, |_| {}, Forward::to(0));
    let mut connects = forward.clone();
    connects.connect = true;
    let connect = RouteEntry {
        changes: None,
        matches: RouteMatch::path(PathMatch::Connect),
        ..entry("/", connects)
    };
    plan.routes = Arc::new(RouteTable::of(vec![entry("/", forward), connect]));
    plan
}

fn open_connections(count: usize) -> String {
    format!("attache_downstream_connections{{listener=\"test\"}} {count}\n")
}

#[tokio::test]
async fn a_tunnel_is_a_connection_until_it_ends() {
    for kind in ALL {
        let origin = kind.echo().await;
        let limited = |listener: &mut ListenerPlan| listener.limits.max_connections = 2;
        let proxy = start(plan(origin.at, limited, Forward::to(0))).await;
        let mut first = Tunnel::open(kind, proxy.at).await;
        let _second = Tunnel::open(kind, proxy.at).await;
        first.echoes("ping").await;

        let third = Tunnel::ask(kind, proxy.at).await;

        assert_eq!(third.err(), Some(None), "{kind:?}");
        let refused = "attache_downstream_connections_refused_total{listener=\"test\"} 1\n";
        shown(&proxy, refused).await;
        shown(&proxy, &open_connections(2)).await;
        assert_eq!(proxy.running.status().connections(), 2, "{kind:?}");
        first.finish().await;
        shown(&proxy, &open_connections(1)).await;
        Tunnel::open(kind, proxy.at).await.echoes("ping").await;
    }
}

#[tokio::test]
async fn a_tunnel_is_one_of_the_connections_of_all_listeners() {
    for kind in [Upgrade, Connect] {
        let origin = kind.echo().await;
        let mut plan = plan(origin.at, |_| {}, Forward::to(0));
        plan.max_connections = Some(1);
        let proxy = start(plan).await;
        let _first = Tunnel::open(kind, proxy.at).await;

        let second = Tunnel::ask(kind, proxy.at).await;

        assert_eq!(second.err(), Some(None), "{kind:?}");
    }
}

#[tokio::test]
async fn a_tunnel_is_a_request_in_flight_until_it_ends() {
    for kind in ALL {
        let origin = kind.echo().await;
        let limited = |listener: &mut ListenerPlan| listener.limits.max_requests = Some(1);
        let proxy = start(plan(origin.at, limited, Forward::to(0))).await;
        let first = Tunnel::open(kind, proxy.at).await;

        let second = Tunnel::ask(kind, proxy.at).await;

        assert_eq!(second.err(), Some(Some(503)), "{kind:?}");
        first.finish().await;
        let room = async {
            loop {
                if let Ok(mut third) = Tunnel::ask(kind, proxy.at).await {
                    return third.echoes("ping").await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, room).await.expect("room");
    }
}

#[tokio::test]
async fn a_tunnel_is_a_request_of_its_endpoint_until_it_ends() {
    for kind in [Upgrade, Connect] {
        let origin = kind.echo().await;
        let proxy = start(plan(origin.at, |_| {}, Forward::to(0))).await;
        let status = proxy.running.status();
        let active = || status.clusters()[0].cluster.endpoints[0].active_requests;
        let mut tunnel = Tunnel::open(kind, proxy.at).await;
        tunnel.echoes("ping").await;

        assert_eq!(active(), 1, "{kind:?}");

        tunnel.finish().await;
        let none = async {
            while active() != 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, none).await.expect("none");
    }
}

#[tokio::test]
async fn a_drain_and_a_handover_wait_for_tunnels() {
    for kind in ALL {
        for handed_over in [false, true] {
            let origin = kind.echo().await;
            let proxy = start(plan(origin.at, |_| {}, Forward::to(0))).await;
            let mut tunnel = Tunnel::open(kind, proxy.at).await;
            let mut idle = Raw::connect(proxy.at).await;
            shown(&proxy, &open_connections(2)).await;

            let stopping = match handed_over {
                false => tokio::spawn(proxy.running.shutdown()),
                true => tokio::spawn(proxy.running.hand_over()),
            };

            // What has no request has ended by then.
            assert_eq!(idle.rest().await, "");
            tunnel.echoes("ping").await;
            assert!(!stopping.is_finished(), "{kind:?}");
            tunnel.finish().await;
            let stopped = tokio::time::timeout(PATIENCE, stopping).await;
            stopped.expect("the end of the last tunnel").unwrap();
        }
    }
}

/// A plan that logs to `file`.
fn logged(origin: SocketAddr, file: &Path, forward: Forward) -> Plan {
    let log = AccessLogPlan::new(Sink::File(file.to_owned()));
    plan(origin, |listener| listener.access_logs = vec![log], forward)
}

/// The only line of a log, once it is there.
async fn line(file: &Path) -> Value {
    let read = async {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if text.ends_with('\n') {
                return serde_json::from_str(&text).unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("a line")
}

#[tokio::test]
async fn a_tunnel_is_logged_when_it_has_ended_with_all_that_went_through() {
    for kind in ALL {
        let origin = kind.echo().await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        let proxy = start(logged(origin.at, &file, Forward::to(0))).await;
        let mut tunnel = Tunnel::open(kind, proxy.at).await;
        tunnel.echoes("ping").await;
        let open = std::time::Instant::now();
        tunnel.echoes("more").await;
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "", "{kind:?}");
        let open = open.elapsed();

        tunnel.finish().await;

        let line = line(&file).await;
        let status = if kind.switches() { 101 } else { 200 };
        assert_eq!(line["status"], status, "{kind:?}: {line}");
        assert_eq!(line["bytes_in"], 8, "{kind:?}: {line}");
        assert_eq!(line["bytes_out"], 8, "{kind:?}: {line}");
        assert_eq!(line["flags"], "", "{kind:?}: {line}");
        assert_eq!(line["details"], "via_upstream", "{kind:?}: {line}");
        assert_eq!(line["upstream"], origin.at.to_string(), "{kind:?}: {line}");
        let duration = line["duration_ms"].as_f64().unwrap();
        assert!(duration >= open.as_secs_f64() * 1000.0, "{kind:?}: {line}");
        assert!(line["upstream_ms"].as_f64().unwrap() < duration, "{line}");
    }
}

#[tokio::test]
async fn a_tunnel_that_outlasts_the_drain_is_cut_and_logged() {
    for kind in ALL {
        let origin = kind.echo().await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        let mut plan = logged(origin.at, &file, Forward::to(0));
        plan.drain_timeout = Duration::from_millis(100);
        let proxy = start(plan).await;
        let mut tunnel = Tunnel::open(kind, proxy.at).await;
        tunnel.echoes("ping").await;

        let stopped = tokio::time::timeout(PATIENCE, proxy.running.shutdown()).await;

        stopped.expect("a bounded drain");
        tunnel.ended().await;
        let text = std::fs::read_to_string(&file).unwrap();
        let line: Value = serde_json::from_str(&text).expect("a line before the process ends");
        assert_eq!(line["bytes_in"], 4, "{kind:?}: {line}");
        assert_eq!(line["flags"], "DC", "{kind:?}: {line}");
    }
}

#[tokio::test]
async fn a_tunnel_whose_listener_was_removed_is_cut_when_the_drain_is_over() {
    for kind in ALL {
        let origin = kind.echo().await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        let proxy = start(logged(origin.at, &file, Forward::to(0))).await;
        let mut tunnel = Tunnel::open(kind, proxy.at).await;
        tunnel.echoes("ping").await;
        let mut other = plan(origin.at, |_| {}, Forward::to(0));
        other.listeners = vec![Arc::new(ListenerPlan::new("other", any_port()))];
        other.drain_timeout = Duration::from_millis(100);

        proxy.running.reload(other).await.unwrap();

        tunnel.ended().await;
        let line = line(&file).await;
        assert_eq!(line["bytes_in"], 4, "{kind:?}: {line}");
        assert_eq!(line["flags"], "DC", "{kind:?}: {line}");
    }
}

#[tokio::test]
async fn the_line_of_a_tunnel_says_who_broke_it_off() {
    for kind in [Upgrade, Connect] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("client");
        let echo = kind.echo().await;
        let proxy = start(logged(echo.at, &file, Forward::to(0))).await;
        let mut tunnel = Tunnel::open(kind, proxy.at).await;
        tunnel.echoes("ping").await;
        tunnel.reset();
        let of_client = line(&file).await;
        assert_eq!(of_client["flags"], "DC", "{kind:?}: {of_client}");

        let file = folder.path().join("upstream");
        let breaking = origin(move |_, mut stream| async move {
            if kind.switches() {
                read_head(&mut stream).await.unwrap();
                stream.write_all(SWITCH.as_bytes()).await.unwrap();
            }
            let _ = stream.read(&mut [0; 9]).await;
            stream.set_zero_linger().unwrap();
        })
        .await;
        let proxy = start(logged(breaking.at, &file, Forward::to(0))).await;
        let mut tunnel = Tunnel::open(kind, proxy.at).await;
        if let Tunnel::Http1(client) = &mut tunnel {
            client.send("ping").await;
        }
        tunnel.ended().await;
        let of_upstream = line(&file).await;
        assert_eq!(of_upstream["flags"], "UC", "{kind:?}: {of_upstream}");
    }
}

#[tokio::test]
async fn a_tunnel_ends_with_its_times_and_its_line_says_with_which() {
    let mut silent = Forward::to(0);
    silent.idle_timeout = Some(Duration::from_millis(100));
    for kind in ALL {
        let origin = kind.echo().await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("silent");
        let proxy = start(logged(origin.at, &file, silent.clone())).await;
        let mut tunnel = Tunnel::open(kind, proxy.at).await;
        tunnel.ended().await;
        let of_silence = line(&file).await;
        assert_eq!(of_silence["flags"], "SI", "{kind:?}: {of_silence}");
        assert_eq!(of_silence["details"], "stream_idle_timeout", "{kind:?}");

        let file = folder.path().join("long");
        let mut plan = plan(
            origin.at,
            |listener| {
                listener.access_logs = vec![AccessLogPlan::new(Sink::File(file.clone()))];
                listener.max_stream_duration = Some(Duration::from_millis(100));
            },
            Forward::to(0),
        );
        plan.drain_timeout = Duration::ZERO;
        let proxy = start(plan).await;
        let mut tunnel = Tunnel::open(kind, proxy.at).await;
        tunnel.ended().await;
        let of_length = line(&file).await;
        assert_eq!(of_length["details"], "max_duration_timeout", "{kind:?}");
    }
}

#[tokio::test]
async fn neither_the_timeout_of_its_route_nor_the_age_of_its_connection_ends_a_tunnel() {
    let short = Duration::from_millis(100);
    for kind in ALL {
        let origin = kind.echo().await;
        let aging = |listener: &mut ListenerPlan| {
            listener.limits.max_connection_duration = Some(short);
        };
        let forward = Forward::to(0).with_timeout(Some(short));
        let proxy = start(plan(origin.at, aging, forward)).await;
        let mut tunnel = Tunnel::open(kind, proxy.at).await;

        // A younger connection, which ends of its age.
        let mut younger = Raw::connect(proxy.at).await;
        younger.get("/").await;
        assert_eq!(younger.rest().await, "");

        tunnel.echoes("ping").await;
        tunnel.finish().await;
    }
}

#[tokio::test]
async fn a_request_to_upgrade_may_have_a_body_which_comes_before_the_tunnel() {
    let origin = origin(|_, mut stream| async move {
        let head = read_head(&mut stream).await.unwrap();
        assert_eq!(header(&head, "content-length"), Some("5"));
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"hello");
        stream.write_all(SWITCH.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let proxy = start(logged(origin.at, &file, Forward::to(0))).await;
    let mut client = Raw::connect(proxy.at).await;
    let head = "POST /exec HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                content-length: 5\r\n\r\nhello";
    client.send(head).await;
    assert_eq!(status(&client.head().await), 101);
    let mut tunnel = Tunnel::Http1(client);
    tunnel.echoes("ping").await;
    tunnel.finish().await;
    let line = line(&file).await;
    assert_eq!(line["bytes_in"], 9);
    assert_eq!(line["bytes_out"], 4);
}

/// An origin for a tunnel, which does `then` with it.
async fn switching<F>(kind: Kind, then: impl Fn(TcpStream) -> F + Clone + Send + 'static) -> Origin
where
    F: Future<Output = ()> + Send,
{
    origin(move |_, mut stream| {
        let then = then.clone();
        async move {
            if kind.switches() {
                let _ = read_head(&mut stream).await;
                stream.write_all(SWITCH.as_bytes()).await.unwrap();
            }
            then(stream).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_tunnel_whose_upstream_has_ended_its_half_goes_on_and_counts() {
    for kind in [Upgrade, Connect] {
        let (told, mut rest) = tokio::sync::mpsc::unbounded_channel();
        let origin = switching(kind, move |mut stream| {
            let told = told.clone();
            async move {
                stream.shutdown().await.unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                told.send(text).unwrap();
            }
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        let proxy = start(logged(origin.at, &file, Forward::to(0))).await;
        let mut tunnel = Tunnel::open(kind, proxy.at).await;
        assert!(tunnel.ended().await, "{kind:?}");
        assert!(
            proxy.metrics.render().contains(&open_connections(1)),
            "{kind:?}"
        );
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "", "{kind:?}");

        let Tunnel::Http1(client) = &mut tunnel else {
            unreachable!("both are of HTTP/1.1")
        };
        client.send("late").await;
        client.0.shutdown().await.unwrap();

        let received = tokio::time::timeout(PATIENCE, rest.recv()).await;
        assert_eq!(
            received.expect("an end").as_deref(),
            Some("late"),
            "{kind:?}"
        );
        assert_eq!(line(&file).await["bytes_in"], 4, "{kind:?}");
        shown(&proxy, &open_connections(0)).await;
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_ends_its_tunnel() {
    for kind in [Upgrade, Connect] {
        let origin = switching(kind, |mut stream| async move {
            while stream.write_all(&[b'x'; 64 << 10]).await.is_ok() {}
        })
        .await;
        let impatient = |listener: &mut ListenerPlan| {
            listener.limits.write_timeout = Duration::from_millis(300);
        };
        let proxy = start(plan(origin.at, impatient, Forward::to(0))).await;

        let _tunnel = Tunnel::open(kind, proxy.at).await;

        shown(&proxy, &open_connections(0)).await;
    }
}
