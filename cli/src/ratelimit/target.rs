//! The service that is asked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache_proto::ratelimit::RateLimitResponse;
use attache_service::{
    Channel, ChannelSettings,
    channel::{self, Method, TransportFailure},
};
use bytes::Bytes;
use http::HeaderMap;
use prost::Message as _;
use tonic::Status;

use crate::{
    Failure,
    args::ratelimit::LoadArgs,
    probe::{client_tls, metadata},
};

/// A service, reached over a few connections in turn.
#[derive(Clone)]
pub(crate) struct Target {
    inner: Arc<Inner>,
}

struct Inner {
    channels: Vec<Channel>,
    next: AtomicUsize,
    method: Method,
    metadata: HeaderMap,
    timeout: Duration,
}

impl Target {
    pub(crate) fn of(args: &LoadArgs) -> Result<Self, Failure> {
        let targets = vec![channel::Target::Address(args.address.clone())];
        let mut settings = ChannelSettings::new(args.address.to_string(), targets);
        settings.tls = client_tls(&args.tls)?;
        let channels = (0..args.connections).map(|_| Channel::new(settings.clone()));
        Ok(Self {
            inner: Arc::new(Inner {
                channels: channels.collect(),
                next: AtomicUsize::new(0),
                method: Method::new("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"),
                metadata: metadata(&args.metadata)?,
                timeout: args.timeout,
            }),
        })
    }

    /// Connects, so that no request has to wait for it.
    pub(crate) async fn connect(&self) -> Result<(), Failure> {
        // A call that counts nothing. Whatever the answer, there is somebody.
        let health = Method::new("/grpc.health.v1.Health/Check");
        for channel in &self.inner.channels {
            let metadata = self.inner.metadata.clone();
            let asked = channel
                .unary(&health, &[], metadata, Some(self.inner.timeout))
                .await;
            if let Err(status) = asked
                && TransportFailure::of(&status) == Some(TransportFailure::Unreachable)
            {
                return Err(Failure::NotReached(status.message().to_owned()));
            }
        }
        Ok(())
    }

    /// Asks with a message that has its gRPC frame.
    pub(crate) async fn ask(&self, message: Bytes) -> Result<RateLimitResponse, Status> {
        let inner = &*self.inner;
        let turn = inner.next.fetch_add(1, Ordering::Relaxed);
        let at = turn.checked_rem(inner.channels.len()).unwrap_or_default();
        let Some(channel) = inner.channels.get(at) else {
            return Err(Status::unavailable("there is no connection"));
        };
        let metadata = inner.metadata.clone();
        let answer = channel
            .unary_framed(&inner.method, message, metadata, Some(inner.timeout))
            .await?;
        RateLimitResponse::decode(answer)
            .map_err(|error| Status::internal(format!("the answer is not valid: {error}")))
    }
}
