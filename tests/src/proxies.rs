//! Both proxies with the same configuration, in front of one service and of an origin that tells
//! what it got.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    envoy::{self, Envoy},
    envoy_config,
    h1::{Framing, Head, Reader, write_head},
    ours::{self, RunningProxy},
};

/// Both proxies in front of the same service, each with the same configuration.
#[derive(Debug)]
pub struct Proxies {
    /// Where each listens, by name.
    pub addresses: Vec<(&'static str, SocketAddr)>,
    _ours: RunningProxy,
    _envoy: Option<Envoy>,
}

impl Proxies {
    /// Starts both with this filter, which asks the service at `service`, and with more settings
    /// of the listener.
    pub async fn start(filter: &str, listener: &str, service: &str) -> Self {
        let config = format!(
            "
listeners: [{{ name: edge, address: '127.0.0.1:0', filters: [policy]{listener} }}]
filters: {{ policy: {filter} }}
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters:
- {{ name: web, endpoints: ['{}'], connect_timeout: 5s }}
- {{ name: service, endpoints: ['{service}'], http2: {{}}, connect_timeout: 5s }}
workers: 1
",
            origin().await
        );
        Self::run(&config, |_| ()).await
    }

    /// Starts both with this configuration of our proxy. `only_envoy` adds to Envoy's what ours
    /// has no setting for.
    pub async fn run(config: &str, only_envoy: impl FnOnce(&mut Value)) -> Self {
        let (read, _) = ours::read(config).unwrap();
        let ours = ours::start_ours(config).await.unwrap();
        let mut addresses = vec![("ours", ours.address)];
        let mut envoy = None;
        match envoy::program() {
            None => println!("skipped: services called by Envoy (run cargo xtask test)"),
            Some(program) => {
                let mut part = envoy_config::exported(0, &read).unwrap();
                only_envoy(&mut part);
                let running = Envoy::start(&program, &[part]).await.unwrap();
                addresses.push(("Envoy", running.address(0).unwrap()));
                envoy = Some(running);
            }
        }
        Self {
            addresses,
            _ours: ours,
            _envoy: envoy,
        }
    }
}

/// An origin that answers with the head of the request, a line each.
pub async fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (from, mut to) = stream.split();
                let mut from = Reader::new(from);
                while let Some(head) = from.head().await {
                    let framing = head.framing(Framing::None);
                    if from.body(framing, |_| ()).await.is_none() {
                        return;
                    }
                    let mut body = format!("{}\n", head.line).into_bytes();
                    for (name, value) in &head.headers {
                        body.extend_from_slice(format!("{name}: ").as_bytes());
                        body.extend_from_slice(value);
                        body.push(b'\n');
                    }
                    let length = body.len().to_string().into_bytes();
                    let headers = vec![("content-length".to_owned(), length)];
                    let mut answer = write_head("HTTP/1.1 200 OK", &headers);
                    answer.extend_from_slice(&body);
                    if to.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// An answer to a client.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body: of the origin, the head of the request that it got.
    pub body: String,
    head: Head,
}

impl Answer {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .get(name)
            .map(|value| std::str::from_utf8(value).unwrap())
    }
}

/// Asks with this method, path and headers, and with a `host`.
pub async fn ask(proxy: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut all = vec![("host", "attache.test")];
    all.extend(headers);
    send(proxy, &format!("{method} {path} HTTP/1.1"), &all, b"").await
}

/// Sends exactly this.
pub async fn send(proxy: SocketAddr, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let headers = headers.iter();
    let headers = headers
        .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
        .collect();
    let mut sent = write_head(line, &headers);
    sent.extend_from_slice(body);
    exchange(TcpStream::connect(proxy).await.unwrap(), &sent).await
}

/// Sends these bytes and reads one answer.
pub async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, sent: &[u8]) -> Answer {
    stream.write_all(sent).await.unwrap();
    let mut reader = Reader::new(stream);
    let head = reader.head().await.unwrap();
    let mut body = Vec::new();
    let framing = head.framing(Framing::ToClose);
    reader
        .body(framing, |data| body.extend_from_slice(data))
        .await
        .unwrap();
    Answer {
        status: head.line.split(' ').nth(1).unwrap().parse().unwrap(),
        head,
        body: String::from_utf8_lossy(&body).into_owned(),
    }
}
