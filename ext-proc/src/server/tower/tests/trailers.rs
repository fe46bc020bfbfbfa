//! Bodies that end with trailers, there and back.

use std::{convert::Infallible, sync::Arc};

use attache_filter::{Body as Plain, BoxError, Channels};
use attache_service::{Channel, ChannelSettings, Metrics, channel::Target};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Collected, StreamBody};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_http::compression::CompressionLayer;

use super::{BodyMode, SHOWN, gunzipped};
use crate::{
    client::{ExtProcLayer, Filter, Modes},
    server::{Server, tower::Body},
};

/// A body of two pieces and a trailer.
fn body() -> Plain {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-end", HeaderValue::from_static("came"));
    let frames = [
        Frame::data(Bytes::from("some ")),
        Frame::data(Bytes::from("text")),
        Frame::trailers(trailers),
    ];
    let frames = frames.map(Ok::<_, Infallible>);
    Plain::new(StreamBody::new(futures_util::stream::iter(frames)))
}

/// What comes back of the body through a proxy with these modes, from an upstream that gives
/// back what it gets.
async fn through(
    server: Server,
    request: BodyMode,
    response: BodyMode,
) -> Result<(HeaderMap, Collected<Bytes>), BoxError> {
    let embedded = Target::Embedded(server.into_host().embedded());
    let channel = Channel::new(ChannelSettings::new("processor", vec![embedded]));
    let channels: Channels = [channel].into_iter().collect();
    let mut filter = Filter::new("trailers", "processor");
    filter.message_timeout = std::time::Duration::from_secs(20);
    filter.modes = Modes {
        request_body: request,
        response_body: response,
        request_trailers: true,
        response_trailers: true,
        ..Modes::default()
    };
    let layer = ExtProcLayer::new(Arc::new(filter), &channels, &Metrics::default());
    let upstream = service_fn(async |request: Request<Plain>| {
        Ok::<_, Infallible>(Response::new(request.into_body()))
    });
    let mut request = Request::post("/").body(body())?;
    let gzip = HeaderValue::from_static("gzip");
    request.headers_mut().insert("accept-encoding", gzip);
    let Ok(answer) = layer.layer(upstream).oneshot(request).await;
    let (head, body) = answer.into_parts();
    assert_eq!(head.status, 200);
    Ok((head.headers, body.collect().await?))
}

/// Upper case, and a trailer more.
fn shouting() -> Server {
    fn shout(body: Body) -> impl http_body::Body<Data = Bytes, Error = BoxError> {
        let shout = |frame: Frame<Bytes>| match frame.into_data() {
            Ok(data) => Frame::data(Bytes::from(data.to_ascii_uppercase())),
            Err(frame) => {
                let mut trailers = frame.into_trailers().unwrap_or_default();
                trailers.append("x-seen", HeaderValue::from_static("yes"));
                Frame::trailers(trailers)
            }
        };
        body.map_frame(shout).map_err(Into::into)
    }
    Server::tower(|next| {
        service_fn(move |request: Request<Body>| async move {
            let Ok(response) = next.oneshot(request.map(shout)).await;
            Ok::<_, Infallible>(response.map(shout))
        })
    })
}

#[tokio::test]
async fn trailers_of_streamed_bodies_are_frames_of_them() {
    for mode in [BodyMode::Streamed, BodyMode::FullDuplexStreamed] {
        let (_, collected) = through(shouting(), mode, mode).await.unwrap();

        let trailers = collected.trailers().unwrap();
        assert_eq!(trailers["x-end"], "came", "{mode:?}");
        let seen: Vec<_> = trailers.get_all("x-seen").iter().collect();
        assert_eq!(seen, ["yes", "yes"], "{mode:?}");
        assert_eq!(collected.to_bytes(), "SOME TEXT", "{mode:?}");
    }
}

#[tokio::test]
async fn trailers_of_buffered_bodies_pass() {
    let (_, collected) = through(shouting(), BodyMode::Buffered, BodyMode::Buffered)
        .await
        .unwrap();

    assert_eq!(collected.trailers().unwrap().len(), 1);
    assert_eq!(collected.to_bytes(), "SOME TEXT");
}

fn compressing() -> Server {
    let all = tower_http::compression::predicate::SizeAbove::new(0);
    Server::tower(move |next| {
        ServiceBuilder::new()
            .layer(CompressionLayer::new().compress_when(all))
            .service(next)
    })
}

#[tokio::test]
async fn what_comes_after_the_last_piece_is_sent_or_the_body_breaks_off() {
    // In BUFFERED_PARTIAL mode a body with trailers cannot be told from the beginning of one.
    let modes = SHOWN
        .into_iter()
        .filter(|mode| *mode != BodyMode::BufferedPartial);
    for mode in modes {
        let answer = through(compressing(), BodyMode::None, mode).await;

        match (mode, answer) {
            (BodyMode::Streamed, broken) => assert!(broken.is_err()),
            (_, Ok((headers, collected))) => {
                assert_eq!(headers["content-encoding"], "gzip", "{mode:?}");
                assert_eq!(collected.trailers().unwrap()["x-end"], "came", "{mode:?}");
                assert_eq!(gunzipped(&collected.to_bytes()), "some text", "{mode:?}");
            }
            (_, Err(error)) => panic!("{mode:?}: {error}"),
        }
    }
}
