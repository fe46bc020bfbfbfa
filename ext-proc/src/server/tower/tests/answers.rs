//! Answers that middleware gives in the upstream's place.

use std::{convert::Infallible, time::Duration};

use axum::body::Body as AxumBody;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::{BodyMode, SHOWN, get, modes, post, proxy};
use crate::server::tower::Body;

#[tokio::test]
async fn an_answer_without_the_next_service_goes_to_the_caller() {
    let proxy = proxy(|_| {
        service_fn(async |_: Request<Body>| {
            let answer = Response::builder()
                .status(StatusCode::FORBIDDEN)
                .header("content-type", "text/html")
                .header("set-cookie", "a=1")
                .header("set-cookie", "b=2")
                .body(AxumBody::from("<b>no</b>"));
            Ok::<_, Infallible>(answer.unwrap())
        })
    });

    let exchange = proxy.send(get("/")).await;

    assert!(exchange.upstream.is_none());
    let (head, body) = exchange.response.into_parts();
    assert_eq!(head.status, 403);
    assert_eq!(head.headers["content-type"], "text/html");
    let cookies: Vec<_> = head.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    assert_eq!(body, "<b>no</b>");
}

#[tokio::test]
async fn an_answer_made_of_the_request_waits_for_it() {
    for mode in [BodyMode::Buffered, BodyMode::FullDuplexStreamed] {
        let proxy = proxy(|_| {
            service_fn(async |request: Request<Body>| {
                let body = request.into_body().collect().await?.to_bytes();
                Ok::<_, tower::BoxError>(Response::new(AxumBody::from(body)))
            })
        })
        .filter(modes(mode, BodyMode::None));

        let exchange = proxy
            .send_pieces(Request::new(()), ["in", " ", "pieces"])
            .await;

        assert!(exchange.upstream.is_none(), "{mode:?}");
        assert_eq!(exchange.response.body(), "in pieces", "{mode:?}");
    }
}

#[tokio::test]
async fn a_long_answer_is_streamed_or_gathered_as_the_modes_allow() {
    for mode in SHOWN.into_iter().chain([BodyMode::None]) {
        let proxy = proxy(|_| {
            service_fn(async |_: Request<Body>| {
                let pieces = (0..30)
                    .map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; 10_000]))));
                let body = StreamBody::new(futures_util::stream::iter(pieces));
                Ok::<_, Infallible>(Response::new(body))
            })
        })
        .filter(modes(mode, BodyMode::None));

        let exchange = proxy.send(post("posted")).await;

        assert!(exchange.broken.is_none(), "{mode:?}");
        assert_eq!(exchange.response.status(), 200, "{mode:?}");
        assert_eq!(exchange.response.body().len(), 300_000, "{mode:?}");
    }
}

#[tokio::test]
async fn an_answer_that_takes_its_time_is_sent_as_it_comes() {
    let proxy = proxy(|_| {
        service_fn(async |_: Request<Body>| {
            let pieces = futures_util::stream::unfold(0, async |n| {
                tokio::task::yield_now().await;
                let frame = Frame::data(Bytes::from(format!("{n};")));
                (n < 3).then_some((Ok::<_, Infallible>(frame), n + 1))
            });
            Ok::<_, Infallible>(Response::new(AxumBody::new(StreamBody::new(Box::pin(
                pieces,
            )))))
        })
    });

    let exchange = proxy.send(get("/")).await;

    assert_eq!(exchange.response.body(), "0;1;2;");
    assert!(!exchange.response.headers().contains_key("content-length"));
}

#[tokio::test(start_paused = true)]
async fn a_middleware_that_stops_waiting_answers_in_the_upstreams_place() {
    // Longer than the upstream of the harness ever takes: it is asked and never answers.
    let proxy = proxy(|next| {
        ServiceBuilder::new().service(service_fn(move |request: Request<Body>| async move {
            let next = next.oneshot(request);
            let answer = tokio::time::timeout(Duration::ZERO, next).await;
            Ok::<_, Infallible>(match answer {
                Ok(Ok(response)) => response.map(AxumBody::new),
                Err(_) => {
                    let mut late = Response::new(AxumBody::from("late"));
                    *late.status_mut() = StatusCode::GATEWAY_TIMEOUT;
                    late
                }
            })
        }))
    });

    let exchange = proxy.send(get("/")).await;

    assert_eq!(exchange.response.status(), 504);
    assert_eq!(exchange.response.body(), "late");
}

#[tokio::test]
async fn a_second_call_of_the_next_service_is_refused() {
    let proxy = proxy(|next| {
        service_fn(move |request: Request<Body>| async move {
            let extensions = request.extensions().clone();
            let Ok(first) = next.oneshot(request).await;
            let mut again = Request::new(AxumBody::empty());
            *again.extensions_mut() = extensions;
            let Ok(second) = next.oneshot(again).await;
            let Ok(stranger) = next.oneshot(Request::new(AxumBody::empty())).await;
            assert_eq!(
                (first.status().as_u16(), second.status().as_u16()),
                (200, 500)
            );
            assert_eq!(stranger.status(), 500);
            Ok::<_, Infallible>(first)
        })
    });

    let exchange = proxy.send(get("/")).await;

    assert_eq!(exchange.response.status(), 200);
}
