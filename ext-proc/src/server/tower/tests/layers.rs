//! Layers of `tower-http` and an axum router, as they are.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{Router, routing};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tower::ServiceBuilder;
use tower_http::{
    compression::CompressionLayer,
    cors::{Any, CorsLayer},
    request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer},
    set_header::SetResponseHeaderLayer,
};

use super::{BodyMode, SHOWN, get, gunzipped, modes, post, proxy};
use crate::testing::Proxy;

const TEXT: &str = "all work and no play makes Jack a dull boy; ";

fn compressing() -> Proxy {
    proxy(|next| {
        ServiceBuilder::new()
            .layer(CompressionLayer::new())
            .service(next)
    })
}

fn asking_for_gzip() -> Request<bytes::Bytes> {
    let mut request = get("/text");
    let gzip = HeaderValue::from_static("gzip");
    request.headers_mut().insert("accept-encoding", gzip);
    request
}

#[tokio::test]
async fn compression_works_in_every_mode_that_shows_the_body() {
    for mode in SHOWN {
        let proxy = compressing()
            .filter(modes(BodyMode::None, mode))
            .upstream(Response::new(TEXT.repeat(100)));

        let exchange = proxy.send(asking_for_gzip()).await;

        let (head, body) = exchange.response.into_parts();
        assert_eq!(head.status, 200, "{mode:?}");
        assert_eq!(head.headers["content-encoding"], "gzip", "{mode:?}");
        assert_eq!(head.headers["vary"], "accept-encoding", "{mode:?}");
        assert_eq!(gunzipped(&body), TEXT.repeat(100), "{mode:?}");
        assert!(body.len() < 1000, "{mode:?}");
        if let Some(length) = head.headers.get("content-length") {
            assert_eq!(*length, body.len().to_string(), "{mode:?}");
        }
    }
}

#[tokio::test]
async fn pieces_are_compressed_to_one_whole() {
    for mode in SHOWN {
        let pieces: Vec<_> = (0..50).map(|n| format!("{n}: {TEXT}")).collect();
        let whole = pieces.concat();
        let proxy = compressing()
            .filter(modes(BodyMode::None, mode))
            .upstream_pieces(Response::new(()), pieces);

        let exchange = proxy.send(asking_for_gzip()).await;

        assert!(exchange.broken.is_none(), "{mode:?}: {:?}", exchange.broken);
        assert_eq!(gunzipped(exchange.response.body()), whole, "{mode:?}");
    }
}

#[tokio::test]
async fn what_compression_leaves_alone_passes_in_every_mode() {
    for mode in SHOWN.into_iter().chain([BodyMode::None]) {
        let proxy = compressing()
            .filter(modes(BodyMode::None, mode))
            .upstream(Response::new(TEXT.repeat(100)));

        let exchange = proxy.send(get("/")).await;

        assert_eq!(exchange.response.body(), &TEXT.repeat(100), "{mode:?}");
        let headers = exchange.response.headers();
        assert!(!headers.contains_key("content-encoding"), "{mode:?}");
    }
}

#[tokio::test]
async fn compression_of_a_hidden_body_fails_instead_of_lying() {
    let proxy = compressing().upstream(Response::new(TEXT.repeat(100)));

    let exchange = proxy.send(asking_for_gzip()).await;

    assert_eq!(exchange.response.status(), 500);
    assert!(!exchange.response.headers().contains_key("content-encoding"));
}

#[tokio::test]
async fn the_head_of_a_compressible_body_stays_a_head() {
    let proxy = compressing()
        .filter(modes(BodyMode::None, BodyMode::Buffered))
        .upstream_pieces(
            Response::builder()
                .header("content-length", "4500")
                .body(())
                .unwrap(),
            [""; 0],
        );
    let mut request = asking_for_gzip();
    *request.method_mut() = Method::HEAD;

    let exchange = proxy.send(request).await;

    assert_eq!(exchange.response.status(), 200);
    assert_eq!(exchange.response.headers()["content-length"], "4500");
}

#[tokio::test]
async fn cors_answers_preflights_and_marks_the_rest() {
    let proxy = proxy(|next| {
        let cors = CorsLayer::new()
            .allow_origin(Any)
            .allow_methods([Method::PUT]);
        ServiceBuilder::new().layer(cors).service(next)
    })
    .upstream(Response::new("body"));
    let preflight = Request::options("/")
        .header("origin", "https://example.com")
        .header("access-control-request-method", "PUT");

    let preflight = proxy.send(preflight.body("".into()).unwrap()).await;
    let simple = Request::get("/").header("origin", "https://example.com");
    let simple = proxy.send(simple.body("".into()).unwrap()).await;

    assert!(preflight.upstream.is_none());
    let headers = preflight.response.headers();
    assert_eq!(preflight.response.status(), 200);
    assert_eq!(headers["access-control-allow-methods"], "PUT");
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert_eq!(simple.response.body(), "body");
    assert_eq!(
        simple.response.headers()["access-control-allow-origin"],
        "*"
    );
}

#[derive(Clone, Default)]
struct Count(Arc<AtomicU64>);

impl MakeRequestId for Count {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        Some(RequestId::new(
            self.0.fetch_add(1, Ordering::Relaxed).into(),
        ))
    }
}

#[tokio::test]
async fn request_ids_are_set_on_the_way_in_and_told_on_the_way_out() {
    let id = HeaderName::from_static("x-tower-id");
    let proxy = proxy(|next| {
        ServiceBuilder::new()
            .layer(SetRequestIdLayer::new(id.clone(), Count::default()))
            .layer(PropagateRequestIdLayer::new(id.clone()))
            .service(next)
    });

    for expected in ["0", "1"] {
        let exchange = proxy.send(get("/")).await;

        assert_eq!(exchange.forwarded().headers()[&id], expected);
        assert_eq!(exchange.response.headers()[&id], expected);
    }
}

#[tokio::test]
async fn a_router_answers_its_paths_and_leaves_the_others() {
    for request_mode in SHOWN.into_iter().chain([BodyMode::None]) {
        let proxy = proxy(|next| {
            Router::new()
                .route("/hello/{name}", routing::get(hello))
                .fallback_service(next)
                .layer(SetResponseHeaderLayer::overriding(
                    HeaderName::from_static("x-router"),
                    HeaderValue::from_static("axum"),
                ))
        })
        .filter(modes(request_mode, BodyMode::None))
        .upstream(Response::new("upstream"));

        let mine = proxy.send(get("/hello/you")).await;
        let theirs = proxy.send(post("posted")).await;

        assert!(mine.upstream.is_none());
        assert_eq!(mine.response.body(), "hello you");
        assert_eq!(mine.response.headers()["x-router"], "axum");
        assert_eq!(theirs.forwarded().body(), "posted", "{request_mode:?}");
        assert_eq!(theirs.response.status(), StatusCode::OK);
        assert_eq!(theirs.response.body(), "upstream");
        assert_eq!(theirs.response.headers()["x-router"], "axum");
    }
}

async fn hello(axum::extract::Path(name): axum::extract::Path<String>) -> String {
    format!("hello {name}")
}
