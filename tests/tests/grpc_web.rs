//! Real clients of gRPC-Web, through our proxy and through real Envoy, at a service of tonic.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    process::Command,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use attache_service::{Host, Shutdown};
use attache_tests::{processors::built, proxies::Proxies};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    metadata::{MetadataMap, MetadataValue},
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
};
use tonic_prost::ProstCodec;

/// How long the clients may take.
const PATIENCE: Duration = Duration::from_secs(60);

type Answering<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// Echoes and counts. Messages are `google.protobuf.StringValue`.
#[derive(Clone, Default)]
struct Echo {
    go_on: Arc<Notify>,
}

fn failure(code: Code, message: &str) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("x-why", MetadataValue::from_static("because"));
    Status::with_metadata(code, message, metadata)
}

impl UnaryService<String> for Echo {
    type Response = String;
    type Future = Answering<String>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let go_on = self.go_on.clone();
        Box::pin(async move {
            let token = request.metadata().get("x-token").cloned();
            let said = request.into_inner();
            let answer = match &*said {
                "fail" => return Err(failure(Code::InvalidArgument, "no such word: 100% ünder")),
                "unknown" => return Err(Status::unimplemented("")),
                "token" => token.unwrap().to_str().unwrap().to_owned(),
                "go on" => {
                    go_on.notify_one();
                    said
                }
                _ => said,
            };
            let mut response = Response::new(answer);
            let metadata = response.metadata_mut();
            metadata.insert("x-served", MetadataValue::from_static("yes"));
            Ok(response)
        })
    }
}

impl ServerStreamingService<String> for Echo {
    type Response = String;
    type ResponseStream = ReceiverStream<Result<String, Status>>;
    type Future = Answering<Self::ResponseStream>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let go_on = self.go_on.clone();
        Box::pin(async move {
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(async move {
                let send = async |message: Result<&str, Status>| {
                    sender.send(message.map(str::to_owned)).await.unwrap();
                };
                send(Ok("1")).await;
                match request.get_ref().as_str() {
                    "3" => {
                        send(Ok("2")).await;
                        send(Ok("3")).await;
                    }
                    "2!" => {
                        send(Ok("2")).await;
                        send(Err(failure(Code::DataLoss, "stopped"))).await;
                    }
                    _ => {
                        go_on.notified().await;
                        send(Ok("2")).await;
                    }
                }
            });
            Ok(Response::new(ReceiverStream::new(receiver)))
        })
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "attache.test.Echo";
}

impl tower::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(match request.uri().path() {
                "/attache.test.Echo/Say" => grpc.unary(echo, request).await,
                "/attache.test.Echo/Count" => grpc.server_streaming(echo, request).await,
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

/// The clients; nothing where they are not built, or not from these sources.
fn clients() -> Option<PathBuf> {
    let build = built("tests/grpc-web", "target/grpc-web")?;
    Some(build.join("main.js"))
}

async fn seen_through(program: PathBuf, proxy: SocketAddr) -> Value {
    let ran = tokio::task::spawn_blocking(move || {
        let mut node = Command::new("node");
        node.arg(program).arg(format!("http://{proxy}"));
        node.output().unwrap()
    });
    let ran = tokio::time::timeout(PATIENCE, ran).await.unwrap().unwrap();
    let complaint = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{complaint}");
    serde_json::from_slice(&ran.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_grpc_web_call_a_service_of_grpc() {
    let Some(program) = clients() else {
        println!("skipped: clients of gRPC-Web (run cargo xtask processors)");
        return;
    };
    let host = Host::new(tonic::service::Routes::default()).service(Echo::default());
    let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = bound.address().to_string();
    tokio::spawn(bound.serve(Shutdown::new()));
    let config = format!(
        "
listeners: [{{ name: edge, address: '127.0.0.1:0', filters: [web] }}]
filters: {{ web: {{ grpc_web: {{}} }} }}
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: echo, timeout: 30s }} }}]
clusters: [{{ name: echo, endpoints: ['{address}'], http2: {{}}, connect_timeout: 5s }}]
workers: 1
"
    );
    let proxies = Proxies::run(&config, |_| ()).await;

    let failed = json!({ "code": 3, "error": "no such word: 100% ünder", "why": "because" });
    let unary = json!({
        "hello": { "message": "hello", "served": "yes" },
        "token": { "message": "t1", "served": "yes" },
        "fail": failed,
        "large": true,
        "unknown": 12,
    });
    let streams = json!({
        "three": { "messages": ["1", "2", "3"] },
        "broken": { "messages": ["1", "2"], "code": 15, "error": "stopped", "why": "because" },
    });
    let live = json!({ "live": { "messages": ["1", "2"] } });
    let expected = json!({
        "grpc-web, text": all(&[&unary, &streams]),
        "grpc-web, binary": unary,
        "connect, HTTP/1.1": all(&[&unary, &streams, &live]),
        "connect, HTTP/2": all(&[&unary, &streams, &live]),
    });
    for (proxy, address) in &proxies.addresses {
        let seen = seen_through(program.clone(), *address).await;
        assert_eq!(seen, expected, "{proxy}\n{seen:#}");
    }
}

/// All parts as one object.
fn all(parts: &[&Value]) -> Value {
    let fields = parts.iter().filter_map(|part| part.as_object());
    Value::Object(fields.flat_map(Clone::clone).collect())
}
