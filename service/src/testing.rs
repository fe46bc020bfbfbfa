//! A small gRPC service for the tests of the channel and the host.

use std::{pin::Pin, time::Duration};

use attache_proto::{
    ext_proc::{
        ProcessingRequest, ProcessingResponse,
        external_processor_server::{ExternalProcessor, ExternalProcessorServer},
    },
    ratelimit::{
        RateLimitRequest, RateLimitResponse,
        rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
    },
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use prost::Message;
use tonic::{Request, Response, Status, Streaming, async_trait, service::Routes};

use crate::{Channel, ChannelSettings, Host, Method, channel::Target};

/// Answers by the request's `domain`: see [`RateLimitService::should_rate_limit`] below. As an
/// external processor it answers each message with an empty one.
#[derive(Clone)]
pub(crate) struct Scripted;

#[async_trait]
impl RateLimitService for Scripted {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let message = request.get_ref();
        let body = match message.domain.as_str() {
            "error" => return Err(Status::permission_denied("not you")),
            "panic" => panic!("as asked for"),
            "hang" => std::future::pending().await,
            "thread" => Bytes::from(std::thread::current().name().unwrap_or_default().to_owned()),
            // As many bytes as it is asked for.
            "large" => Bytes::from(vec![7; message.hits_addend as usize]),
            "slow" => {
                tokio::time::sleep(Duration::from_millis(message.hits_addend.into())).await;
                Bytes::from_static(b"at last")
            }
            other => Bytes::from(other.to_owned()),
        };
        Ok(Response::new(RateLimitResponse {
            raw_body: body,
            ..RateLimitResponse::default()
        }))
    }
}

#[async_trait]
impl ExternalProcessor for Scripted {
    type ProcessStream =
        Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send + 'static>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let answers = request
            .into_inner()
            .map(|message| message.map(|_| ProcessingResponse::default()));
        Ok(Response::new(Box::pin(answers)))
    }
}

pub(crate) fn host() -> Host {
    Host::new(Routes::default())
        .service(RateLimitServiceServer::new(Scripted).max_decoding_message_size(16 << 20))
        .service(ExternalProcessorServer::new(Scripted))
}

pub(crate) fn unary() -> Method {
    Method::new("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit")
}

pub(crate) fn bidi() -> Method {
    Method::new("/envoy.service.ext_proc.v3.ExternalProcessor/Process")
}

pub(crate) fn channel(target: Target) -> Channel {
    Channel::new(ChannelSettings::new("policy", vec![target]))
}

/// Asks the scripted service and returns the answer's body.
pub(crate) async fn ask(
    channel: &Channel,
    domain: &str,
    number: u32,
    timeout: Option<Duration>,
) -> Result<Bytes, Status> {
    let request = RateLimitRequest {
        domain: domain.to_owned(),
        hits_addend: number,
        ..RateLimitRequest::default()
    };
    let answer = channel
        .unary(
            &unary(),
            &request.encode_to_vec(),
            http::HeaderMap::new(),
            timeout,
        )
        .await?;
    let answer = RateLimitResponse::decode(answer)
        .map_err(|error| Status::internal(format!("undecodable: {error}")))?;
    Ok(answer.raw_body)
}
