//! The channel against real hosts, scripted HTTP/2 servers and misbehaving peers.

mod guards;
mod peers;
mod recovery;
mod transports;

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tonic::Code;

use super::*;
use crate::testing::{ask, bidi, channel, host, unary};
use peers::h2_server;

async fn next(stream: &mut GrpcStream) -> Option<Result<Bytes, Status>> {
    poll_fn(|cx| stream.poll_message(cx)).await
}

fn embedded() -> Channel {
    channel(Target::Embedded(host().embedded()))
}

/// A channel to a server that answers every call in the same way.
fn answering<F>(answer: F) -> Channel
where
    F: Fn(&mut h2::server::SendResponse<Bytes>) + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    channel(Target::Embedded(h2_server(move |_, mut connection| {
        let answer = answer.clone();
        Box::pin(async move {
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                answer(&mut respond);
            }
        })
    })))
}

fn head(status: StatusCode, headers: &[(&'static str, &'static str)]) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    for (name, value) in headers {
        response
            .headers_mut()
            .insert(*name, HeaderValue::from_static(value));
    }
    response
}

fn trailers(status: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    trailers
}

const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc")];

#[tokio::test]
async fn the_status_of_the_service_is_the_result() {
    let channel = embedded();
    assert_eq!(ask(&channel, "hello", 0, None).await.unwrap(), "hello");
    let status = ask(&channel, "error", 0, None).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "not you")
    );
    let missing = channel
        .unary(&Method::new("/no.Such/Method"), b"", HeaderMap::new(), None)
        .await;
    assert_eq!(missing.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_deadline() {
    let channel = embedded();
    let begun = tokio::time::Instant::now();
    let status = ask(&channel, "hang", 0, Some(Duration::from_millis(200)))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(
        begun.elapsed() < Duration::from_millis(210),
        "{:?}",
        begun.elapsed()
    );
    assert!(status.message().contains("`policy`"), "{status}");
}

#[tokio::test]
async fn odd_answers_become_statuses() {
    let message = frame_message(b"x");
    let cases: Vec<(&str, Code, Channel)> = vec![
        (
            "HTTP 503",
            Code::Unavailable,
            answering(|respond| {
                let _ = respond.send_response(head(StatusCode::SERVICE_UNAVAILABLE, &[]), true);
            }),
        ),
        (
            "HTTP 404 with a status of its own",
            Code::NotFound,
            answering(|respond| {
                let _ = respond
                    .send_response(head(StatusCode::NOT_FOUND, &[("grpc-status", "5")]), true);
            }),
        ),
        (
            "OK, says gRPC; 502, says HTTP",
            Code::Unavailable,
            answering(|respond| {
                let _ = respond
                    .send_response(head(StatusCode::BAD_GATEWAY, &[("grpc-status", "0")]), true);
            }),
        ),
        (
            "a web page",
            Code::Unknown,
            answering(|respond| {
                let _ = respond
                    .send_response(head(StatusCode::OK, &[("content-type", "text/html")]), true);
            }),
        ),
        (
            "OK and nothing else",
            Code::Internal,
            answering(|respond| {
                let _ = respond.send_response(head(StatusCode::OK, &[("grpc-status", "0")]), true);
            }),
        ),
        (
            "no status",
            Code::Unknown,
            answering(|respond| {
                let mut body = respond
                    .send_response(head(StatusCode::OK, GRPC), false)
                    .unwrap();
                let _ = body.send_data(frame_message(b"x"), true);
            }),
        ),
        (
            "two messages",
            Code::Internal,
            answering(|respond| {
                let mut body = respond
                    .send_response(head(StatusCode::OK, GRPC), false)
                    .unwrap();
                let _ = body.send_data(
                    [frame_message(b"x"), frame_message(b"y")].concat().into(),
                    false,
                );
                let _ = body.send_trailers(trailers("0"));
            }),
        ),
        (
            "a message and then an error",
            Code::Aborted,
            answering(|respond| {
                let mut body = respond
                    .send_response(head(StatusCode::OK, GRPC), false)
                    .unwrap();
                let _ = body.send_data(frame_message(b"x"), false);
                let _ = body.send_trailers(trailers("10"));
            }),
        ),
        (
            "half a message",
            Code::Internal,
            answering(move |respond| {
                let mut body = respond
                    .send_response(head(StatusCode::OK, GRPC), false)
                    .unwrap();
                let _ = body.send_data(message.slice(..3), false);
                let _ = body.send_trailers(trailers("0"));
            }),
        ),
        (
            "a compressed message",
            Code::Internal,
            answering(|respond| {
                let mut body = respond
                    .send_response(head(StatusCode::OK, GRPC), false)
                    .unwrap();
                let _ = body.send_data(Bytes::from_static(&[1, 0, 0, 0, 1, 0]), false);
                let _ = body.send_trailers(trailers("0"));
            }),
        ),
        (
            "a message over the limit",
            Code::ResourceExhausted,
            answering(|respond| {
                let mut body = respond
                    .send_response(head(StatusCode::OK, GRPC), false)
                    .unwrap();
                let _ = body.send_data(Bytes::from_static(&[0, 0x7f, 0, 0, 0]), true);
            }),
        ),
        (
            "a reset",
            Code::Unavailable,
            answering(|respond| respond.send_reset(h2::Reason::INTERNAL_ERROR)),
        ),
    ];
    for (name, code, channel) in cases {
        let status = channel
            .unary(&unary(), b"", HeaderMap::new(), None)
            .await
            .unwrap_err();
        assert_eq!(status.code(), code, "{name}: {status:?}");
    }
}

#[tokio::test]
async fn the_request_is_a_grpc_request_with_the_metadata() {
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let connector = h2_server(move |_, mut connection| {
        let sender = sender.clone();
        Box::pin(async move {
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let _ = sender.send(request.into_parts().0);
                let _ = respond.send_response(head(StatusCode::OK, &[("grpc-status", "0")]), true);
            }
        })
    });
    let channel = channel(Target::Embedded(connector));
    let mut metadata = HeaderMap::new();
    metadata.insert("x-tenant", HeaderValue::from_static("a"));
    let elsewhere = unary().authority("elsewhere.test:80".parse().unwrap());

    let _ = channel
        .unary(&unary(), b"", metadata, Some(Duration::from_millis(1500)))
        .await;
    let _ = channel.unary(&elsewhere, b"", HeaderMap::new(), None).await;

    let request = seen.recv().await.unwrap();
    assert_eq!(request.method, http::Method::POST);
    assert_eq!(
        request.uri,
        "http://policy/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
    );
    let header = |name| request.headers.get(name).map(HeaderValue::as_bytes);
    assert_eq!(header("te"), Some(&b"trailers"[..]));
    assert_eq!(header("content-type"), Some(&b"application/grpc"[..]));
    assert_eq!(header("x-tenant"), Some(&b"a"[..]));
    assert_eq!(header("grpc-timeout"), Some(&b"1500000u"[..]));
    let request = seen.recv().await.unwrap();
    assert_eq!(request.uri.authority().unwrap(), "elsewhere.test:80");
    assert!(!request.headers.contains_key("grpc-timeout"));
}

#[tokio::test]
async fn forbidden_metadata_fails_its_own_call_only() {
    let channel = embedded();
    let mut metadata = HeaderMap::new();
    metadata.insert("connection", HeaderValue::from_static("close"));
    let mut open = channel.stream(&bidi(), HeaderMap::new());
    open.send(frame_message(b""));
    assert!(next(&mut open).await.unwrap().is_ok());

    let status = channel
        .unary(&unary(), b"", metadata, None)
        .await
        .unwrap_err();

    assert_eq!(status.code(), Code::Internal);
    open.send(frame_message(b""));
    assert!(next(&mut open).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_stream_answers_message_by_message_and_ends_cleanly() {
    let channel = embedded();
    let mut stream = channel.stream(&bidi(), HeaderMap::new());
    for _ in 0..3 {
        stream.send(frame_message(b""));
        assert!(next(&mut stream).await.unwrap().is_ok());
    }
    stream.finish();
    assert!(next(&mut stream).await.is_none());
    assert!(next(&mut stream).await.is_none(), "the end stays the end");
    assert_eq!(stream.bytes_sent(), 15);
    assert_eq!(stream.bytes_received(), 15);
}

#[tokio::test]
async fn an_error_is_never_taken_for_a_clean_end() {
    let channel = answering(|respond| respond.send_reset(h2::Reason::CANCEL));
    let mut stream = channel.stream(&bidi(), HeaderMap::new());
    for _ in 0..3 {
        let status = next(&mut stream).await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
    }
    // The failure to open shows in `poll_capacity` first, and still in `poll_message`.
    let nowhere = Channel::new(ChannelSettings::new("none", vec![]));
    let mut stream = nowhere.stream(&bidi(), HeaderMap::new());
    poll_fn(|cx| stream.poll_capacity(cx)).await;
    let status = next(&mut stream).await.unwrap().unwrap_err();
    assert!(
        status.message().contains("`none` has no endpoint"),
        "{status}"
    );
}

#[tokio::test]
async fn a_service_that_does_not_read_holds_the_writer_back() {
    let connector = h2_server(|_, mut connection| {
        Box::pin(async move {
            // The body is held, not read, so its window stays closed.
            let mut held = Vec::new();
            while let Some(Ok(call)) = connection.accept().await {
                held.push(call);
            }
        })
    });
    let channel = channel(Target::Embedded(connector));
    let mut stream = channel.stream(&bidi(), HeaderMap::new());
    let mut sent = 0;
    loop {
        // Lets the connection's tasks run until nothing moves any more.
        let room = tokio::time::timeout(
            Duration::from_millis(100),
            poll_fn(|cx| stream.poll_capacity(cx)),
        );
        if room.await.is_err() {
            break;
        }
        stream.send(frame_message(&[0; 10_000]));
        sent += 1;
        assert!(sent < 100, "nobody held the writer back");
    }
    assert!(
        sent >= 6,
        "the default window of 65 535 bytes was used: {sent}"
    );
}

#[tokio::test]
async fn dropping_a_call_cancels_it() {
    let (sender, mut reset) = tokio::sync::mpsc::unbounded_channel();
    let connector = h2_server(move |_, mut connection| {
        let sender = sender.clone();
        Box::pin(async move {
            let Some(Ok((_request, mut respond))) = connection.accept().await else {
                return;
            };
            let cancelled = poll_fn(|cx| respond.poll_reset(cx));
            tokio::select! {
                reason = cancelled => { let _ = sender.send(reason.unwrap()); }
                _ = connection.accept() => {}
            }
        })
    });
    let channel = channel(Target::Embedded(connector));
    let mut stream = channel.stream(&bidi(), HeaderMap::new());
    stream.send(frame_message(b"x"));
    let polled = tokio::time::timeout(Duration::from_millis(50), next(&mut stream)).await;
    assert!(polled.is_err());

    drop(stream);

    assert_eq!(reset.recv().await, Some(h2::Reason::CANCEL));
}

#[tokio::test]
async fn calls_beyond_the_peers_limit_wait_for_their_turn() {
    let connector: EmbeddedConnector = Arc::new(|| {
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(1);
            let mut connection = builder.handshake::<_, Bytes>(far).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut body = respond
                    .send_response(head(StatusCode::OK, GRPC), false)
                    .unwrap();
                body.send_data(frame_message(b"x"), false).unwrap();
                body.send_trailers(trailers("0")).unwrap();
            }
        });
        near
    });
    let channel = channel(Target::Embedded(connector));
    let method = unary();
    let calls = (0..20).map(|_| channel.unary(&method, b"", HeaderMap::new(), None));
    for answer in join_all(calls).await {
        assert_eq!(answer.unwrap(), "x");
    }
}

#[tokio::test]
async fn nothing_waits_for_a_runtime_in_a_dropped_call() {
    let stream = embedded().stream(&bidi(), HeaderMap::new());
    assert_eq!(stream.bytes_sent(), 0);
    std::thread::spawn(move || drop(stream)).join().unwrap();
}

#[test]
fn the_timeout_header_has_at_most_eight_digits() {
    for (timeout, text) in [
        (Duration::ZERO, "0u"),
        (Duration::from_millis(250), "250000u"),
        (Duration::from_micros(99_999_999), "99999999u"),
        (Duration::from_secs(100), "100000m"),
        (Duration::from_secs(100_000), "100000S"),
        (Duration::MAX, "99999999S"),
    ] {
        assert_eq!(grpc_timeout(timeout), text);
    }
}
