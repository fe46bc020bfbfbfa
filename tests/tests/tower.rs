//! Layers of `tower-http` and an axum router, unchanged, as a processor of real Envoy and of our
//! proxy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    io::Read as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use attache_ext_proc::server::{Server, tower::Next};
use attache_service::Shutdown;
use attache_tests::{
    envoy::{self, Envoy},
    envoy_config,
    h1::{Framing, Head, Reader, write_head},
    ours::{self, RunningProxy},
};
use axum::{Router, extract::Path, routing::get};
use http::{HeaderName, Method, Request};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};
use tower::ServiceBuilder;
use tower_http::{
    compression::CompressionLayer,
    cors::{Any, CorsLayer},
    request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer},
};

const ID: HeaderName = HeaderName::from_static("x-tower-id");
const ORIGIN: (&str, &str) = ("origin", "https://example.com");
const GZIP: (&str, &str) = ("accept-encoding", "gzip");

#[derive(Clone, Default)]
struct Count(Arc<AtomicU64>);

impl MakeRequestId for Count {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        Some(RequestId::new(
            self.0.fetch_add(1, Ordering::Relaxed).into(),
        ))
    }
}

/// All layers and the router, in this process.
async fn processor() -> String {
    let server = Server::tower(|next: Next| {
        let router = Router::new()
            .route("/hello/{name}", get(hello))
            .fallback_service(next);
        let cors = CorsLayer::new()
            .allow_origin(Any)
            .allow_methods([Method::PUT]);
        ServiceBuilder::new()
            .layer(SetRequestIdLayer::new(ID, Count::default()))
            .layer(PropagateRequestIdLayer::new(ID))
            .layer(cors)
            .layer(CompressionLayer::new())
            .service(router)
    });
    let host = server.into_host().workers(1);
    let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = bound.address().to_string();
    tokio::spawn(bound.serve(Shutdown::new()));
    address
}

async fn hello(Path(name): Path<String>) -> String {
    format!("hello {name}; ").repeat(100)
}

/// What the origin answers behind the head and the body of the request.
const TEXT: &str = "all work and no play makes Jack a dull boy\n";

/// An origin that answers with the request and a long text, in chunks.
async fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (from, mut to) = stream.split();
                let mut from = Reader::new(from);
                while let Some(head) = from.head().await {
                    let mut body = Vec::new();
                    for (name, value) in &head.headers {
                        body.extend_from_slice(format!("{name}: ").as_bytes());
                        body.extend_from_slice(value);
                        body.push(b'\n');
                    }
                    let framing = head.framing(Framing::None);
                    from.body(framing, |data| body.extend_from_slice(data))
                        .await;
                    let chunked = ("transfer-encoding".to_owned(), b"chunked".to_vec());
                    let mut answer = write_head("HTTP/1.1 200 OK", &vec![chunked]);
                    for piece in [&body, TEXT.repeat(2000).as_bytes()] {
                        answer.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                        answer.extend_from_slice(piece);
                        answer.extend_from_slice(b"\r\n");
                    }
                    answer.extend_from_slice(b"0\r\n\r\n");
                    if to.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// The modes in which the layers run: how the request's body is shown, how the response's.
const MODES: [(&str, &str); 5] = [
    ("NONE", "BUFFERED"),
    ("NONE", "STREAMED"),
    ("NONE", "FULL_DUPLEX_STREAMED"),
    ("STREAMED", "STREAMED"),
    ("FULL_DUPLEX_STREAMED", "FULL_DUPLEX_STREAMED"),
];

fn config(request: &str, response: &str, origin: SocketAddr, processor: &str) -> String {
    let trailers = |mode| match mode {
        "FULL_DUPLEX_STREAMED" => "SEND",
        _ => "SKIP",
    };
    let (request_trailers, response_trailers) = (trailers(request), trailers(response));
    format!(
        "
listeners: [{{ name: edge, address: '127.0.0.1:0', filters: [layers] }}]
filters:
  layers:
    ext_proc:
      grpc_service: {{ envoy_grpc: {{ cluster_name: processor }} }}
      message_timeout: 10s
      processing_mode:
        request_body_mode: {request}
        request_trailer_mode: {request_trailers}
        response_body_mode: {response}
        response_trailer_mode: {response_trailers}
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters:
- {{ name: web, endpoints: ['{origin}'], connect_timeout: 5s }}
- {{ name: processor, endpoints: ['{processor}'], http2: {{}}, connect_timeout: 5s }}
workers: 1
"
    )
}

struct Answer {
    status: u16,
    head: Head,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let value = self.head.get(name)?;
        Some(std::str::from_utf8(value).unwrap())
    }

    /// The body as it was before it was compressed.
    fn text(&self) -> String {
        let mut text = String::new();
        match self.header("content-encoding") {
            Some("gzip") => {
                let mut decoder = flate2::read::GzDecoder::new(&*self.body);
                decoder.read_to_string(&mut text).unwrap();
            }
            other => {
                assert_eq!(other, None);
                text = String::from_utf8(self.body.clone()).unwrap();
            }
        }
        text
    }
}

async fn ask(
    proxy: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut all = vec![("host".to_owned(), b"attache.test".to_vec())];
    for (name, value) in headers {
        all.push(((*name).to_owned(), value.as_bytes().to_vec()));
    }
    if !body.is_empty() {
        let length = body.len().to_string().into_bytes();
        all.push(("content-length".to_owned(), length));
    }
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let mut request = write_head(&format!("{method} {path} HTTP/1.1"), &all);
    request.extend_from_slice(body.as_bytes());
    stream.write_all(&request).await.unwrap();
    let mut reader = Reader::new(stream);
    let head = reader.head().await.unwrap();
    let mut body = Vec::new();
    let framing = match method {
        "HEAD" => Framing::None,
        _ => head.framing(Framing::ToClose),
    };
    let end = reader
        .body(framing, |data| body.extend_from_slice(data))
        .await;
    assert!(end.is_some(), "{method} {path}: the body broke off");
    Answer {
        status: head.line.split(' ').nth(1).unwrap().parse().unwrap(),
        head,
        body,
    }
}

/// Our proxy, and Envoy where there is one, in all modes.
async fn proxies() -> (Vec<(String, SocketAddr)>, Vec<RunningProxy>, Option<Envoy>) {
    let (origin, processor) = (origin().await, processor().await);
    let (mut addresses, mut running, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    for (nth, (request, response)) in MODES.into_iter().enumerate() {
        let config = config(request, response, origin, &processor);
        let (read, _) = ours::read(&config).unwrap();
        parts.push(envoy_config::exported(nth, &read).unwrap());
        let ours = ours::start_ours(&config).await.unwrap();
        addresses.push((format!("ours, {request}, {response}"), ours.address));
        running.push(ours);
    }
    let Some(program) = envoy::program() else {
        println!("skipped: tower layers behind Envoy (run cargo xtask test)");
        return (addresses, running, None);
    };
    let envoy = Envoy::start(&program, &parts).await.unwrap();
    for (nth, (request, response)) in MODES.into_iter().enumerate() {
        let name = format!("Envoy, {request}, {response}");
        addresses.push((name, envoy.address(nth).unwrap()));
    }
    (addresses, running, Some(envoy))
}

#[tokio::test]
async fn layers_and_a_router_run_unchanged() {
    let (addresses, _running, _envoy) = proxies().await;
    for (proxy, address) in addresses {
        compression_request_ids_and_cors(&proxy, address).await;
        the_router_answers(&proxy, address).await;
        preflights_are_answered(&proxy, address).await;
    }
}

async fn compression_request_ids_and_cors(proxy: &str, address: SocketAddr) {
    for (method, body) in [("GET", ""), ("POST", "posted")] {
        let answer = ask(address, method, "/", &[GZIP, ORIGIN], body).await;

        assert_eq!(answer.status, 200, "{proxy}");
        assert_eq!(answer.header("content-encoding"), Some("gzip"), "{proxy}");
        assert!(answer.body.len() < 10_000, "{proxy}");
        let text = answer.text();
        assert!(
            text.ends_with(&format!("{body}{}", TEXT.repeat(2000))),
            "{proxy}"
        );
        let id = answer.header("x-tower-id").unwrap();
        assert!(
            text.contains(&format!("x-tower-id: {id}\n")),
            "{proxy}: {id}"
        );
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some("*"),
            "{proxy}"
        );
    }
    let plain = ask(address, "GET", "/", &[], "").await;
    assert_eq!(plain.header("content-encoding"), None, "{proxy}");
    assert!(plain.text().ends_with(&TEXT.repeat(2000)), "{proxy}");
}

async fn the_router_answers(proxy: &str, address: SocketAddr) {
    let answer = ask(address, "GET", "/hello/you", &[GZIP], "").await;

    assert_eq!(answer.status, 200, "{proxy}");
    assert_eq!(answer.text(), "hello you; ".repeat(100), "{proxy}");
    assert!(answer.header("x-tower-id").is_some(), "{proxy}");
    let wrong = ask(address, "POST", "/hello/you", &[], "posted").await;
    assert_eq!(wrong.status, 405, "{proxy}");
    assert_eq!(wrong.header("allow"), Some("GET,HEAD"), "{proxy}");
}

async fn preflights_are_answered(proxy: &str, address: SocketAddr) {
    let asks = ("access-control-request-method", "PUT");
    let answer = ask(address, "OPTIONS", "/", &[ORIGIN, asks], "").await;

    assert_eq!(answer.status, 200, "{proxy}");
    let allowed = answer.header("access-control-allow-methods");
    assert_eq!(allowed, Some("PUT"), "{proxy}");
    assert!(answer.body.is_empty(), "{proxy}");
}
