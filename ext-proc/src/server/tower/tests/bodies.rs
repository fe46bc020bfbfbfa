//! Bodies through middleware, in every mode.

use std::convert::Infallible;

use axum::body::Body as AxumBody;
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_http::map_request_body::MapRequestBodyLayer;

use super::{BodyMode, SHOWN, get, modes, post, proxy};
use crate::{
    server::tower::{Body, ClearRouteCache},
    testing::Proxy,
};

/// Upper case, piece by piece.
fn shouting() -> Proxy {
    let shout = |body: Body| {
        body.map_frame(|frame| frame.map_data(|data| Bytes::from(data.to_ascii_uppercase())))
    };
    proxy(|next| {
        ServiceBuilder::new()
            .layer(MapRequestBodyLayer::new(shout))
            .map_response(move |response: Response<Body>| response.map(shout))
            .service(next)
    })
}

#[tokio::test]
async fn bodies_are_changed_in_both_directions_in_every_mode() {
    for mode in SHOWN {
        let proxy = shouting()
            .filter(modes(mode, mode))
            .upstream_pieces(Response::new(()), ["up", "stream"]);

        let whole = proxy.send(post("posted")).await;
        let pieces = proxy
            .send_pieces(Request::new(()), ["in", " ", "pieces"])
            .await;

        assert_eq!(whole.forwarded().body(), "POSTED", "{mode:?}");
        assert_eq!(whole.response.body(), "UPSTREAM", "{mode:?}");
        assert_eq!(pieces.forwarded().body(), "IN PIECES", "{mode:?}");
    }
}

/// Reads all of the request before it goes on, with its length in a header.
fn measuring() -> Proxy {
    proxy(|next| {
        service_fn(move |request: Request<Body>| async move {
            let (mut head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            head.headers.insert("x-length", body.len().into());
            let body = Full::new(Bytes::from(body.to_ascii_uppercase()));
            let Ok(response) = next.oneshot(Request::from_parts(head, body)).await;
            Ok::<_, tower::BoxError>(response)
        })
    })
}

#[tokio::test]
async fn a_request_can_be_read_before_it_goes_on() {
    for mode in [
        BodyMode::Buffered,
        BodyMode::BufferedPartial,
        BodyMode::FullDuplexStreamed,
    ] {
        let proxy = measuring().filter(modes(mode, BodyMode::None));

        let whole = proxy.send(post("posted")).await;
        let pieces = proxy
            .send_pieces(Request::new(()), ["in", " ", "pieces"])
            .await;
        let none = proxy.send(get("/")).await;

        assert_eq!(whole.forwarded().body(), "POSTED", "{mode:?}");
        assert_eq!(whole.forwarded().headers()["x-length"], "6", "{mode:?}");
        assert_eq!(pieces.forwarded().body(), "IN PIECES", "{mode:?}");
        assert_eq!(pieces.forwarded().headers()["x-length"], "9", "{mode:?}");
        assert_eq!(none.forwarded().headers()["x-length"], "0", "{mode:?}");
    }
}

#[tokio::test]
async fn a_streamed_request_can_be_read_first_when_the_proxy_does_not_wait() {
    let proxy = measuring()
        .filter(modes(BodyMode::Streamed, BodyMode::None))
        .filter(|filter| filter.send_body_without_waiting_for_header_response = true);

    let exchange = proxy
        .send_pieces(Request::new(()), ["in", " ", "pieces"])
        .await;

    assert_eq!(exchange.forwarded().headers()["x-length"], "9");
    assert_eq!(exchange.forwarded().body(), "IN PIECES");
}

#[tokio::test]
async fn a_response_can_be_read_before_its_head_goes_on() {
    for mode in [
        BodyMode::Buffered,
        BodyMode::BufferedPartial,
        BodyMode::FullDuplexStreamed,
    ] {
        let proxy = proxy(|next| {
            service_fn(move |request: Request<Body>| async move {
                let Ok(response) = next.oneshot(request).await;
                let (mut head, body) = response.into_parts();
                let body = body.collect().await?.to_bytes();
                head.headers.insert("x-length", body.len().into());
                head.status = http::StatusCode::ACCEPTED;
                Ok::<_, tower::BoxError>(Response::from_parts(head, Full::new(body)))
            })
        })
        .filter(modes(BodyMode::None, mode))
        .upstream(Response::new("upstream"));

        let exchange = proxy.send(get("/")).await;

        assert_eq!(exchange.response.headers()["x-length"], "8", "{mode:?}");
        assert_eq!(exchange.response.status(), 202, "{mode:?}");
        assert_eq!(exchange.response.body(), "upstream", "{mode:?}");
    }
}

#[tokio::test]
async fn bodies_can_be_replaced_in_every_mode() {
    for mode in SHOWN.into_iter().chain([BodyMode::None]) {
        let proxy = proxy(|next| {
            service_fn(move |request: Request<Body>| async move {
                let request = request.map(|_| AxumBody::from("another request"));
                let Ok(response) = next.oneshot(request).await;
                Ok::<_, Infallible>(response.map(|_| AxumBody::from("another response")))
            })
        })
        .filter(modes(mode, mode))
        .upstream(Response::new("upstream"));

        let whole = proxy.send(post("posted")).await;
        let pieces = proxy
            .send_pieces(Request::new(()), ["in", " ", "pieces"])
            .await;
        let bodiless = proxy.send(get("/")).await;

        for exchange in [whole, pieces, bodiless] {
            assert_eq!(exchange.forwarded().body(), "another request", "{mode:?}");
            assert_eq!(exchange.response.body(), "another response", "{mode:?}");
            let headers = exchange.response.headers();
            assert!(
                headers
                    .get("content-length")
                    .is_none_or(|length| length == "16")
            );
        }
    }
}

#[tokio::test]
async fn wrapped_bodies_that_change_nothing_pass_unseen() {
    let proxy = proxy(|next| {
        service_fn(move |request: Request<Body>| async move {
            let Ok(response) = next.oneshot(request.map(AxumBody::new)).await;
            Ok::<_, Infallible>(response.map(AxumBody::new))
        })
    })
    .upstream(Response::new("upstream"));

    let exchange = proxy.send(post("posted")).await;

    assert_eq!(exchange.forwarded().body(), "posted");
    assert_eq!(exchange.forwarded().headers()["content-length"], "6");
    assert_eq!(exchange.response.body(), "upstream");
    assert_eq!(exchange.response.headers()["content-length"], "8");
}

#[tokio::test]
async fn heads_are_what_the_middleware_makes_of_them() {
    let proxy = proxy(|next| {
        service_fn(move |mut request: Request<Body>| async move {
            assert_eq!(request.uri().path(), "/old");
            *request.uri_mut() = "/new?q=1".parse().unwrap();
            request.extensions_mut().insert(ClearRouteCache);
            let headers = request.headers_mut();
            headers.remove("x-gone");
            headers.append("x-more", HeaderValue::from_static("2"));
            headers.insert("x-other", HeaderValue::from_static("new"));
            let Ok(mut response) = next.oneshot(request).await;
            *response.status_mut() = http::StatusCode::IM_A_TEAPOT;
            Ok::<_, Infallible>(response)
        })
    })
    .upstream(Response::new("upstream"));
    let request = Request::get("/old")
        .header("x-gone", "1")
        .header("x-more", "1")
        .header("x-other", "old")
        .body("".into())
        .unwrap();

    let exchange = proxy.send(request).await;

    let forwarded = exchange.forwarded();
    assert_eq!(forwarded.uri().path_and_query().unwrap(), "/new?q=1");
    assert!(!forwarded.headers().contains_key("x-gone"));
    let more: Vec<_> = forwarded.headers().get_all("x-more").iter().collect();
    assert_eq!(more, ["1", "2"]);
    assert_eq!(forwarded.headers()["x-other"], "new");
    assert_eq!(exchange.response.status(), 418);
    assert_eq!(exchange.response.body(), "upstream");
}

/// Runs the test body to its end within the deadline that every exchange has.
async fn in_time<T>(exchange: impl Future<Output = T>) -> T {
    let deadline = std::time::Duration::from_secs(20);
    tokio::time::timeout(deadline, exchange).await.unwrap()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// What goes on is the transform of the whole, however the body comes.
    #[test]
    fn every_chunking_gives_the_same_body(
        request in proptest::collection::vec("[a-z]{0,9}", 0..6),
        response in proptest::collection::vec("[a-z]{0,9}", 0..6),
        request_mode in 0usize..4,
        response_mode in 0usize..4,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let proxy = shouting()
                .filter(modes(SHOWN[request_mode], SHOWN[response_mode]))
                .upstream_pieces(Response::new(()), response.clone());
            let exchange = in_time(proxy.send_pieces(Request::new(()), request.clone())).await;
            assert!(exchange.broken.is_none());
            assert_eq!(*exchange.forwarded().body(), request.concat().to_ascii_uppercase());
            assert_eq!(*exchange.response.body(), response.concat().to_ascii_uppercase());
        });
    }
}
