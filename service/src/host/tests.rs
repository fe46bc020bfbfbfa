use std::time::Instant;

use futures_util::{StreamExt, future::join_all};
use http::HeaderMap;
use prost::Message;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
};

use super::*;
use crate::{
    Channel, Method,
    channel::{Target, encode_message},
    testing::{ask, bidi, channel, host},
};

struct Running {
    address: Address,
    shutdown: Shutdown,
    serving: JoinHandle<Result<(), HostError>>,
}

async fn start(host: Host) -> Running {
    let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (address, shutdown) = (bound.address().clone(), Shutdown::new());
    let serving = tokio::spawn(bound.serve(shutdown.clone()));
    Running {
        address,
        shutdown,
        serving,
    }
}

impl Running {
    fn channel(&self) -> Channel {
        channel(Target::Address(self.address.clone()))
    }

    /// Ends when the host has stopped accepting.
    async fn refuses_connections(&self) {
        while tokio::net::TcpStream::connect(self.address.to_string())
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
    }
}

async fn check(channel: &Channel, service: &str) -> Result<ServingStatus, Code> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = channel
        .unary_framed(
            &Method::new("/grpc.health.v1.Health/Check"),
            encode_message(&request),
            HeaderMap::new(),
            None,
        )
        .await
        .map_err(|status| status.code())?;
    Ok(HealthCheckResponse::decode(answer).unwrap().status())
}

const LIMITS: &str = "envoy.service.ratelimit.v3.RateLimitService";

#[tokio::test]
async fn health_is_reported_for_the_host_and_for_each_service() {
    let host = host();
    let health = host.health();
    let running = start(host).await;
    let channel = running.channel();

    assert_eq!(check(&channel, "").await, Ok(ServingStatus::Serving));
    assert_eq!(check(&channel, LIMITS).await, Ok(ServingStatus::Serving));
    assert_eq!(check(&channel, "no.Such").await, Err(Code::NotFound));
    health.set(LIMITS, false);
    assert_eq!(check(&channel, LIMITS).await, Ok(ServingStatus::NotServing));
    assert_eq!(check(&channel, "").await, Ok(ServingStatus::NotServing));
    running.shutdown.trigger();
}

#[tokio::test]
async fn reflection_lists_the_services_and_knows_their_files() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, ServerReflectionResponse,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let running = start(host()).await;
    let channel = running.channel();
    // The messages of v1 and v1alpha are the same on the wire.
    for version in [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        let mut stream = channel.stream(&Method::new(version), HeaderMap::new());
        let mut ask = async |request| {
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(request),
            };
            stream.send(encode_message(&request));
            let answer = std::future::poll_fn(|cx| stream.poll_message(cx)).await;
            ServerReflectionResponse::decode(answer.unwrap().unwrap())
                .unwrap()
                .message_response
                .unwrap()
        };

        let MessageResponse::ListServicesResponse(list) =
            ask(MessageRequest::ListServices(String::new())).await
        else {
            panic!("not a list");
        };
        let names: Vec<_> = list
            .service
            .into_iter()
            .map(|service| service.name)
            .collect();
        assert!(names.contains(&LIMITS.to_owned()), "{names:?}");
        assert!(
            names.contains(&"grpc.health.v1.Health".to_owned()),
            "{names:?}"
        );
        assert!(
            !names.iter().any(|name| name.contains("Authorization")),
            "{names:?}"
        );
        let file = ask(MessageRequest::FileContainingSymbol(LIMITS.to_owned())).await;
        assert!(
            matches!(file, MessageResponse::FileDescriptorResponse(_)),
            "{file:?}"
        );
    }
    running.shutdown.trigger();
}

#[tokio::test]
async fn few_connections_are_spread_evenly_over_the_workers() {
    let running = start(host().workers(2)).await;
    let channels: Vec<_> = (0..6).map(|_| running.channel()).collect();
    let answers = join_all(
        channels
            .iter()
            .map(|channel| ask(channel, "thread", 0, None)),
    )
    .await;
    let on_first = answers
        .into_iter()
        .filter(|answer| answer.as_ref().unwrap() == "host-0")
        .count();
    assert_eq!(on_first, 3);

    // A worker that has lost its connections gets the next ones.
    let freed: Vec<_> = {
        let mut kept = Vec::new();
        for channel in channels {
            if ask(&channel, "thread", 0, None).await.unwrap() == "host-1" {
                kept.push(channel);
            }
        }
        kept
    };
    // What was not kept is closed by now, or soon.
    let next_on_first = async {
        loop {
            let channel = running.channel();
            if ask(&channel, "thread", 0, None).await.unwrap() == "host-0" {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), next_on_first)
        .await
        .unwrap();
    drop(freed);
    running.shutdown.trigger();
}

#[tokio::test]
async fn a_drain_refuses_the_new_and_finishes_the_old() {
    let host = host().workers(2);
    let health = host.health();
    let running = start(host).await;
    let channel = running.channel();
    let mut stream = channel.stream(&bidi(), HeaderMap::new());
    let mut exchange = async || {
        stream.send(encode_message(&()));
        std::future::poll_fn(|cx| stream.poll_message(cx)).await
    };
    assert!(exchange().await.unwrap().is_ok());

    running.shutdown.trigger();
    running.refuses_connections().await;

    assert!(!health.is_serving());
    assert!(!running.serving.is_finished(), "a call is still open");
    assert!(exchange().await.unwrap().is_ok(), "the open call goes on");
    let new = ask(&channel, "x", 0, None).await;
    // Sent again on a new connection, which nobody accepts.
    assert_eq!(new.unwrap_err().code(), Code::Unavailable);
    drop(stream);
    let ended = tokio::time::timeout(Duration::from_secs(5), running.serving).await;
    ended.expect("ends with its last call").unwrap().unwrap();
}

#[tokio::test]
async fn a_drain_is_cut_off_at_its_bound_or_by_a_second_signal() {
    for second_signal in [false, true] {
        let bound = match second_signal {
            true => Duration::from_secs(60),
            false => Duration::from_millis(50),
        };
        let running = start(host().drain_timeout(bound)).await;
        let channel = running.channel();
        ask(&channel, "x", 0, None).await.unwrap();
        let hanging = tokio::spawn(async move { ask(&channel, "hang", 0, None).await });
        // The same connection serves both, in order.
        let mut watch = running.channel().stream(
            &Method::new("/grpc.health.v1.Health/Watch"),
            HeaderMap::new(),
        );
        watch.send(encode_message(&HealthCheckRequest::default()));
        watch.finish();
        assert!(
            std::future::poll_fn(|cx| watch.poll_message(cx))
                .await
                .is_some()
        );
        let begun = Instant::now();

        running.shutdown.trigger();
        running.refuses_connections().await;
        if second_signal {
            running.shutdown.trigger_immediate();
        }

        running.serving.await.unwrap().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5));
        let status = hanging.await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
    }
}

#[tokio::test]
async fn a_health_watch_does_not_hold_up_the_drain() {
    let running = start(host()).await;
    let channel = running.channel();
    let mut watch = channel.stream(
        &Method::new("/grpc.health.v1.Health/Watch"),
        HeaderMap::new(),
    );
    watch.send(encode_message(&HealthCheckRequest::default()));
    watch.finish();
    let mut next = async || {
        let message = std::future::poll_fn(|cx| watch.poll_message(cx)).await?;
        Some(
            HealthCheckResponse::decode(message.unwrap())
                .unwrap()
                .status(),
        )
    };
    assert_eq!(next().await, Some(ServingStatus::Serving));

    running.shutdown.trigger();

    assert_eq!(next().await, Some(ServingStatus::NotServing));
    assert_eq!(next().await, None);
    let ended = tokio::time::timeout(Duration::from_secs(5), running.serving).await;
    ended.expect("nothing to wait for").unwrap().unwrap();
}

#[tokio::test]
async fn a_silent_connection_does_not_hold_up_the_drain() {
    let running = start(host().drain_timeout(Duration::from_secs(60))).await;
    let _silent = tokio::net::TcpStream::connect(running.address.to_string())
        .await
        .unwrap();
    ask(&running.channel(), "x", 0, None).await.unwrap();
    running.shutdown.trigger();
    let ended = tokio::time::timeout(Duration::from_secs(5), running.serving).await;
    ended.expect("nothing to wait for").unwrap().unwrap();
}

#[tokio::test]
async fn connections_over_the_cap_are_closed() {
    let metrics = Metrics::default();
    let running = start(host().max_connections(2).metrics(&metrics)).await;
    let (first, second) = (running.channel(), running.channel());
    ask(&first, "x", 0, None).await.unwrap();
    ask(&second, "x", 0, None).await.unwrap();

    let refused = ask(&running.channel(), "x", 0, None).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let text = metrics.render();
    assert!(
        text.contains("attache_host_connections{address=\"127.0.0.1:0\"} 2"),
        "{text}"
    );
    let refusals = "attache_host_connections_refused_total{address=\"127.0.0.1:0\"}";
    assert!(
        text.contains(refusals) && !text.contains(&format!("{refusals} 0")),
        "{text}"
    );

    drop(first);
    let admitted = async {
        while ask(&running.channel(), "x", 0, None).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), admitted)
        .await
        .unwrap();
    running.shutdown.trigger();
}

#[tokio::test]
async fn a_handler_that_panics_fails_its_own_call_only() {
    let running = start(host()).await;
    let channel = running.channel();
    let mut stream = channel.stream(&bidi(), HeaderMap::new());
    stream.send(encode_message(&()));
    assert!(
        std::future::poll_fn(|cx| stream.poll_message(cx))
            .await
            .unwrap()
            .is_ok()
    );

    let status = ask(&channel, "panic", 0, None).await.unwrap_err();

    assert_eq!(status.code(), Code::Unavailable);
    stream.send(encode_message(&()));
    assert!(
        std::future::poll_fn(|cx| stream.poll_message(cx))
            .await
            .unwrap()
            .is_ok()
    );
    running.shutdown.trigger();
}

#[tokio::test]
async fn dropping_the_serve_future_stops_the_host() {
    let running = start(host()).await;
    let channel = running.channel();
    ask(&channel, "x", 0, None).await.unwrap();
    let mut stream = channel.stream(&bidi(), HeaderMap::new());
    stream.send(encode_message(&()));
    assert!(
        std::future::poll_fn(|cx| stream.poll_message(cx))
            .await
            .unwrap()
            .is_ok()
    );

    running.serving.abort();

    let end = std::future::poll_fn(|cx| stream.poll_message(cx)).await;
    assert_eq!(end.unwrap().unwrap_err().code(), Code::Unavailable);
    running.refuses_connections().await;
}

#[tokio::test]
async fn malformed_descriptors_are_an_error_before_anything_listens() {
    let host = host().descriptors(b"\xff\xff");
    let Err(error) = host.bind(&"127.0.0.1:0".parse().unwrap()).await else {
        panic!("bound");
    };
    assert!(matches!(error, HostError::Descriptors(_)), "{error}");
}

#[tokio::test]
async fn an_embedded_host_serves_every_connection_it_is_asked_for() {
    let connector = host().embedded();
    let channels: Vec<_> = (0..3)
        .map(|_| channel(Target::Embedded(connector.clone())))
        .collect();
    let answers = futures_util::stream::iter(&channels).then(|channel| ask(channel, "x", 0, None));
    assert_eq!(
        answers
            .map(|answer| answer.unwrap())
            .collect::<Vec<_>>()
            .await,
        ["x"; 3]
    );
    assert_eq!(
        check(&channels[0], LIMITS).await,
        Ok(ServingStatus::Serving)
    );
}

#[tokio::test]
async fn an_old_connection_ends_with_its_calls_when_their_grace_is_over() {
    let age = ConnectionAge {
        max: Duration::from_millis(50),
        grace: Duration::from_millis(50),
    };
    let running = start(host().connection_age(age)).await;
    let channel = running.channel();
    let mut watch = channel.stream(
        &Method::new("/grpc.health.v1.Health/Watch"),
        HeaderMap::new(),
    );
    watch.send(encode_message(&HealthCheckRequest::default()));
    watch.finish();
    let mut next = async || std::future::poll_fn(|cx| watch.poll_message(cx)).await;
    assert!(next().await.unwrap().is_ok());
    let cut = tokio::time::timeout(Duration::from_secs(5), next()).await;
    assert!(cut.expect("cut off").unwrap().is_err());
    // The host goes on for those who connect anew.
    assert_eq!(check(&channel, "").await, Ok(ServingStatus::Serving));
}

#[tokio::test]
async fn a_port_is_shared_only_with_those_who_share_it() {
    let first = host().shared_port(true);
    let first = first.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = first.address();
    assert!(host().shared_port(true).bind(address).await.is_ok());
    assert!(host().bind(address).await.is_err());
}
