//! Middleware that fails, or wants what the proxy does not show.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tower::{BoxError, ServiceExt, service_fn};

use super::{BodyMode, get, modes, post, proxy};
use crate::{
    client::Filter,
    server::{OnFailure, Server, tower::Body},
    testing::{Exchange, Proxy},
};

fn failing() -> Server {
    Server::tower(|_| {
        service_fn(async |_: Request<Body>| Err::<Response<Body>, BoxError>("broken".into()))
    })
}

#[tokio::test]
async fn a_failing_middleware_means_what_the_server_is_set_to() {
    for (on_failure, status, forwarded) in [
        (OnFailure::Report, 500, false),
        (OnFailure::Respond(503), 503, false),
        (OnFailure::Pass, 200, true),
    ] {
        let proxy = Proxy::of(failing().on_failure(on_failure));

        let exchange = proxy.send(get("/")).await;

        assert_eq!(exchange.response.status(), status, "{on_failure:?}");
        assert_eq!(exchange.upstream.is_some(), forwarded, "{on_failure:?}");
    }
}

#[tokio::test]
async fn a_panic_is_a_failure() {
    let proxy = proxy(|_| {
        service_fn(async |request: Request<Body>| {
            assert_eq!(request.uri().path(), "/never");
            Ok::<_, Infallible>(Response::new(request.into_body()))
        })
    });

    assert_eq!(proxy.send(get("/")).await.response.status(), 500);
}

#[tokio::test(start_paused = true)]
async fn a_middleware_that_never_decides_is_a_failure() {
    let server = Server::tower(|_| {
        service_fn(async |_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>().await
        })
    });
    let server = server
        .handler_timeout(Duration::from_secs(1))
        .on_failure(OnFailure::Respond(503));
    let proxy = Proxy::of(server).filter(|filter| filter.message_timeout = Duration::from_secs(60));

    assert_eq!(proxy.send(get("/")).await.response.status(), 503);
}

/// Reads the request before it goes on.
async fn read_first(filter: impl FnOnce(&mut Filter)) -> Exchange {
    let proxy = proxy(|next| {
        service_fn(move |request: Request<Body>| async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let request = Request::from_parts(head, axum::body::Body::from(body));
            let Ok(response) = next.oneshot(request).await;
            Ok::<_, BoxError>(response)
        })
    });
    proxy.filter(filter).send(post("posted")).await
}

#[tokio::test]
async fn a_body_that_cannot_be_had_is_no_hang() {
    for mode in [BodyMode::None, BodyMode::Streamed] {
        let exchange = read_first(modes(mode, BodyMode::None)).await;

        assert_eq!(exchange.response.status(), 500, "{mode:?}");
        assert!(exchange.upstream.is_none(), "{mode:?}");
    }
}

fn shouting_back(mode: BodyMode) -> Proxy {
    proxy(|next| {
        service_fn(move |request: Request<Body>| async move {
            let Ok(response) = next.oneshot(request).await;
            let shout = |data: Bytes| Bytes::from(data.to_ascii_uppercase());
            Ok::<_, Infallible>(
                response.map(|body| body.map_frame(move |frame| frame.map_data(shout))),
            )
        })
    })
    .filter(modes(BodyMode::None, mode))
}

#[tokio::test]
async fn a_body_larger_than_the_proxys_buffer_is_changed_whole_or_not_at_all() {
    let proxy = shouting_back(BodyMode::BufferedPartial)
        .filter(|filter| filter.buffer_limit = 64)
        .upstream_pieces(Response::new(()), ["a".repeat(50), "b".repeat(50)]);

    let exchange = proxy.send(get("/")).await;

    assert_eq!(exchange.response.status(), 500, "{exchange:?}");
}

#[tokio::test]
async fn a_changed_body_that_is_hidden_does_not_go_on_unchanged() {
    let proxy = shouting_back(BodyMode::None).upstream(Response::new("upstream"));

    assert_eq!(proxy.send(get("/")).await.response.status(), 500);
}
