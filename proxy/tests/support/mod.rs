//! A proxy in this process, origins that say exactly what a test wants, and raw clients.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    missing_docs,
    reason = "each test binary uses its part of this"
)]

pub mod frames;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use attache_proxy::{
    Plan, Proxy, Running,
    plan::{ClusterPlan, ListenerPlan, Protocol},
    route::{Action, Forward, PathMatch, RouteEntry, RouteMatch, RouteTable},
};
use attache_service::{Address, Metrics};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Far longer than anything a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn any_port() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

pub fn address(socket: SocketAddr) -> Address {
    socket.to_string().parse().unwrap()
}

pub fn entry(path: &str, forward: Forward) -> RouteEntry {
    RouteEntry {
        changes: None,
        matches: RouteMatch::path(PathMatch::Prefix(path.to_owned())),
        action: Action::Forward(forward),
        route: Arc::default(),
    }
}

/// A plan with one listener that sends everything to one cluster.
pub fn plan_to(origin: SocketAddr) -> Plan {
    plan_with(origin, |_| {}, |_| {}, Forward::to(0))
}

pub fn plan_with(
    origin: SocketAddr,
    listener: impl FnOnce(&mut ListenerPlan),
    cluster: impl FnOnce(&mut ClusterPlan),
    forward: Forward,
) -> Plan {
    let mut listener_plan = ListenerPlan::new("test", any_port());
    listener(&mut listener_plan);
    let mut cluster_plan = ClusterPlan::new("origin", [address(origin)]);
    cluster(&mut cluster_plan);
    Plan::new(
        vec![listener_plan],
        RouteTable::of(vec![entry("/", forward)]),
        vec![cluster_plan],
    )
}

pub fn http2(cluster: &mut ClusterPlan) {
    cluster.protocol = Protocol::Http2;
}

/// A proxy, and where it listens.
pub struct Tested {
    pub running: Running,
    pub at: SocketAddr,
    pub metrics: Metrics,
}

pub async fn start(plan: Plan) -> Tested {
    let metrics = Metrics::default();
    let running = Proxy::start(plan, metrics.clone()).await.unwrap();
    let at = running.addresses()[0].to_string().parse().unwrap();
    Tested {
        running,
        at,
        metrics,
    }
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect(what);
}

/// Waits until the metrics contain this.
pub async fn shown(proxy: &Tested, line: &str) {
    let shown = async {
        while !proxy.metrics.render().contains(line) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let shown = tokio::time::timeout(PATIENCE, shown).await;
    assert!(shown.is_ok(), "{line}\n{}", proxy.metrics.render());
}

/// The value of a metric; 0 where there is none.
pub fn metric(proxy: &Tested, name: &str) -> i64 {
    let text = proxy.metrics.render();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<i64>().ok())
        .sum()
}

/// Resident memory of this process, in bytes.
pub fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() << 10
}

/// An origin that serves each connection with `serve(number, stream)`.
pub struct Origin {
    pub at: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn origin<F, Fut>(serve: F) -> Origin
where
    F: Fn(usize, TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut number = 0;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(number, stream));
            number += 1;
        }
    });
    Origin { at, task }
}

/// An origin that answers every request head with `response`, and shows the heads it got.
pub async fn echo_origin(
    response: &'static str,
) -> (Origin, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (seen, heads) = tokio::sync::mpsc::unbounded_channel();
    let origin = origin(move |_, mut stream| {
        let seen = seen.clone();
        async move {
            while let Some(head) = read_head(&mut stream).await {
                let _ = seen.send(head);
                if stream.write_all(response.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, heads)
}

pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Reads up to and with the empty line; `None` at the end of the stream.
pub async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return None,
        }
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// A client that writes and reads raw bytes.
pub struct Raw(pub TcpStream);

impl Raw {
    pub async fn connect(at: SocketAddr) -> Self {
        Self(TcpStream::connect(at).await.unwrap())
    }

    pub async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// The head of the next response.
    pub async fn head(&mut self) -> String {
        tokio::time::timeout(PATIENCE, read_head(&mut self.0))
            .await
            .expect("a response")
            .expect("a response before the end of the connection")
    }

    /// As many bytes as this.
    pub async fn take(&mut self, count: usize) -> String {
        let mut bytes = vec![0; count];
        tokio::time::timeout(PATIENCE, self.0.read_exact(&mut bytes))
            .await
            .expect("bytes in time")
            .expect("bytes before the end of the connection");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Everything until the connection ends.
    pub async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut bytes))
            .await
            .expect("the connection ends")
            .ok();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// One request without a body, and its response read by `content-length`.
    pub async fn get(&mut self, path: &str) -> (String, String) {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n"))
            .await;
        self.response().await
    }

    pub async fn response(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = header(&head, "content-length")
            .and_then(|value| value.parse().ok())
            .unwrap_or(0);
        let body = self.take(length).await;
        (head, body)
    }
}

/// The value of a header in a head.
pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

pub fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// One request on its own connection, with everything that came back.
pub async fn once(at: SocketAddr, request: &str) -> String {
    let mut client = Raw::connect(at).await;
    client.send(request).await;
    client.rest().await
}
