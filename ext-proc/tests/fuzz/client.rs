//! Our client layer, before a processor that says anything.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use attache_ext_proc::client::{BodyMode, ExtProcLayer, Filter, RouteCacheAction};
use attache_filter::{Body, BoxError, Channels};
use attache_proto::ext_proc::ProcessingRequest;
use attache_service::{
    Channel, ChannelSettings, Metrics,
    channel::{Deframer, Target, encode_message, frame_message},
    host::Host,
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use prost::Message as _;
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use tonic::{Status, server::NamedService, service::Routes};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::random::{self, chance};

/// Largest message that the processor reads.
const MOST: usize = 8 << 20;

pub(crate) async fn case(random: &mut SmallRng) {
    let filter = filter(random);
    let duplex = [&filter.modes.request_body, &filter.modes.response_body]
        .map(|mode| *mode == BodyMode::FullDuplexStreamed);
    let manners = Manners {
        seed: random.random(),
        duplex: duplex[0] || duplex[1],
        good: *[50, 90, 97].choose(random).unwrap(),
    };
    let host = Host::new(Routes::new(Processor(manners)));
    let target = Target::Embedded(host.embedded());
    let channel = Channel::new(ChannelSettings::new("processor", vec![target]));
    let channels: Channels = [channel].into_iter().collect();
    let layer = ExtProcLayer::new(Arc::new(filter), &channels, &Metrics::default());
    let seed = random.random();
    let upstream = service_fn(move |request: Request<Body>| async move {
        let random = &mut SmallRng::seed_from_u64(seed);
        if chance(random, 80) {
            // A request that breaks off is answered all the same.
            let _ = request.into_body().collect().await;
        }
        let (body, length) = body(random);
        let mut response = Response::new(body);
        if let Some(length) = length {
            let name = header::CONTENT_LENGTH;
            response.headers_mut().insert(name, length.into());
        }
        Ok::<_, Infallible>(response)
    });
    let (body, length) = body(random);
    let mut request = Request::post("/").body(body).unwrap();
    if let Some(length) = length {
        let name = header::CONTENT_LENGTH;
        request.headers_mut().insert(name, length.into());
    }
    if chance(random, 10) {
        let kind = HeaderValue::from_static("application/grpc");
        request.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    let leaves = chance(random, 10).then(|| Duration::from_millis(random.random_range(0..50)));
    let exchange = async {
        let Ok(response) = layer.layer(upstream).oneshot(request).await;
        // A body that breaks off is an answer too.
        let _ = response.into_body().collect().await;
    };
    match leaves {
        None => exchange.await,
        // The caller may leave at any time.
        Some(after) => drop(tokio::time::timeout(after, exchange).await),
    }
}

fn filter(random: &mut SmallRng) -> Filter {
    let mut filter = Filter::new("fuzz", "processor");
    let modes = [
        BodyMode::None,
        BodyMode::Streamed,
        BodyMode::Buffered,
        BodyMode::BufferedPartial,
        BodyMode::FullDuplexStreamed,
        BodyMode::Grpc,
    ];
    filter.modes.request_headers = chance(random, 85);
    filter.modes.response_headers = chance(random, 85);
    filter.modes.request_body = *modes.choose(random).unwrap();
    filter.modes.response_body = *modes.choose(random).unwrap();
    filter.modes.request_trailers = random.random();
    filter.modes.response_trailers = random.random();
    filter.failure_mode_allow = random.random();
    filter.allow_mode_override = random.random();
    filter.observability_mode = chance(random, 10);
    filter.disable_immediate_response = chance(random, 20);
    filter.allow_content_length_header = chance(random, 20);
    filter.send_body_without_waiting_for_header_response = chance(random, 20);
    filter.max_message_timeout = Duration::from_secs(random.random_range(0..4));
    filter.buffer_limit = *[64, 10_000, 1 << 20].choose(random).unwrap();
    filter.route_cache_action = *[
        RouteCacheAction::Default,
        RouteCacheAction::Clear,
        RouteCacheAction::Retain,
    ]
    .choose(random)
    .unwrap();
    filter
}

/// A body with its length, where it is known beforehand.
fn body(random: &mut SmallRng) -> (Body, Option<usize>) {
    let pieces: Vec<Bytes> = (0..random.random_range(0..6))
        .map(|_| random::bytes(random))
        .collect();
    let length = pieces.iter().map(Bytes::len).sum();
    let mut frames: Vec<Result<Frame<Bytes>, BoxError>> = pieces
        .into_iter()
        .map(|piece| Ok(Frame::data(piece)))
        .collect();
    if chance(random, 20) {
        frames.push(Ok(Frame::trailers(HeaderMap::new())));
    } else if chance(random, 5) {
        frames.push(Err("broken off".into()));
    } else if length == 0 {
        return (Body::empty(), None);
    } else if chance(random, 50) {
        return (
            Body::new(StreamBody::new(stream::iter(frames))),
            Some(length),
        );
    }
    (Body::new(StreamBody::new(stream::iter(frames))), None)
}

/// How a processor behaves.
#[derive(Clone)]
struct Manners {
    seed: u64,
    duplex: bool,
    /// Percent of the replies that fit.
    good: u32,
}

/// A processor that often does what it should.
#[derive(Clone)]
struct Processor(Manners);

impl NamedService for Processor {
    const NAME: &'static str = "envoy.service.ext_proc.v3.ExternalProcessor";
}

impl Service<Request<tonic::body::Body>> for Processor {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let replies = Replies {
            random: SmallRng::seed_from_u64(self.0.seed),
            manners: self.0.clone(),
            incoming: request.into_body(),
            deframer: Deframer::default(),
            queue: Vec::new(),
            ended: false,
        };
        let mut response = Response::new(tonic::body::Body::new(replies));
        let kind = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        ready(Ok(response))
    }
}

struct Replies {
    random: SmallRng,
    manners: Manners,
    incoming: tonic::body::Body,
    deframer: Deframer,
    queue: Vec<Bytes>,
    ended: bool,
}

impl Replies {
    fn answer(&mut self, message: &ProcessingRequest) {
        let random = &mut self.random;
        if chance(random, self.manners.good) {
            let reply = random::fitting(random, message, self.manners.duplex);
            self.queue.extend(reply.map(|reply| encode_message(&reply)));
            return;
        }
        match random.random_range(0..10) {
            // No answer at all.
            0 | 1 => {}
            2 => {
                let garbage: Vec<u8> = (0..random.random_range(0..40))
                    .map(|_| random.random())
                    .collect();
                self.queue.push(frame_message(&garbage));
            }
            // No frame either.
            3 => self.queue.push(Bytes::from_static(b"\x07nonsense")),
            _ => {
                for _ in 0..random.random_range(1..4) {
                    let reply = random::reply(random);
                    self.queue.push(encode_message(&reply));
                }
            }
        }
    }

    fn end(&mut self, status: &Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.ended = true;
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers).unwrap();
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

impl http_body::Body for Replies {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        loop {
            if !this.queue.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(this.queue.remove(0)))));
            }
            if !chance(&mut this.random, this.manners.good) && chance(&mut this.random, 5) {
                return match this.random.random_range(0..3) {
                    0 => this.end(&Status::internal("gave up")),
                    1 => this.end(&Status::ok("")),
                    _ => {
                        this.ended = true;
                        Poll::Ready(Some(Err(Status::aborted("reset"))))
                    }
                };
            }
            while let Ok(Some(message)) = this.deframer.next(MOST) {
                let message = ProcessingRequest::decode(message).expect("ours can be read");
                this.answer(&message);
            }
            if !this.queue.is_empty() {
                continue;
            }
            match Pin::new(&mut this.incoming).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        this.deframer.push(data);
                    }
                }
                Poll::Ready(None | Some(Err(_))) => return this.end(&Status::ok("")),
            }
        }
    }
}
