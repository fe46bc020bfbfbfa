//! A processor that only looks on, and does not even do that.

use std::{convert::Infallible, sync::Arc};

use attache_filter::{Body, Channels};
use attache_service::{Channel, ChannelSettings, Metrics, channel::Target};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};

use super::support::*;
use crate::{
    client::{BodyMode, ExtProcLayer, Filter},
    server::Server,
};

#[tokio::test]
async fn for_a_processor_that_looks_on_and_reads_nothing_no_more_is_kept_than_the_limit() {
    let blind = Server::sessions(|_session| std::future::pending()).into_host();
    let settings = ChannelSettings::new("processor", vec![Target::Embedded(blind.embedded())]);
    let channels: Channels = [Channel::new(settings)].into_iter().collect();
    let mut filter = Filter::new("f", "processor");
    filter.observability_mode = true;
    filter.modes.response_body = BodyMode::Streamed;
    filter.buffer_limit = 64 << 10;
    let metrics = Metrics::default();
    let upstream = service_fn(|_: Request<Body>| async {
        let piece = || Ok(Frame::data(Bytes::from_static(&[b'x'; 16 << 10])));
        let body = chunked((0..1000).map(|_| piece()).collect());
        Ok::<_, Infallible>(Response::new(body))
    });
    let layer = ExtProcLayer::new(Arc::new(filter), &channels, &metrics);

    let response = layer.layer(upstream).oneshot(get()).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();

    assert_eq!(body.len(), 1000 * (16 << 10));
    let metrics = metrics.render();
    let name = "attache_ext_proc_observability_msgs_dropped_total{filter=\"f\"} ";
    let dropped = metrics.lines().find_map(|line| line.strip_prefix(name));
    let dropped: u32 = dropped.unwrap().parse().unwrap();
    // All but what the windows of the connection and the limit take.
    assert!(dropped > 900, "{dropped} of 1000");
}
