//! Rules from a control plane: discovery (xDS), state of the world, over one aggregated stream.
//!
//! - [`settings`]: which server, who we are, and how persistent.
//! - `subscription`: what is said on a stream, without the stream.
//! - [`status`]: what operators see.
//! - [`retry`]: the pauses between attempts.
//!
//! The client subscribes to all resources of
//! `type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig`, as the reference service
//! does. Each response replaces everything that was there before; none at all is a valid state.
//! A response that is refused is answered with the reason, and what was accepted before stays in
//! force, also while the server is away.

pub mod retry;
pub mod settings;
pub mod status;
mod subscription;

use std::{
    future::poll_fn,
    task::{Poll, ready},
};

use attache_proto::{discovery::DiscoveryResponse, ratelimit_config::RateLimitConfig};
use attache_service::{
    Channel, ChannelSettings, GrpcStream, Method, Metrics,
    admin::Condition,
    channel::{OutageLog, Target, encode_message},
    config::Errors,
};
use bytes::Bytes;
use prost::Message as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tonic::Status;

use retry::Pauses;
pub use retry::Retry;
pub use settings::{NodeIdentity, XdsSettings};
use status::Reporter;
pub use status::XdsStatus;
use subscription::{Answer, Subscription};

const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

/// Keeps a subscription to the rules of one control plane.
#[derive(Debug)]
pub struct XdsClient {
    settings: XdsSettings,
    subscription: Subscription,
    reporter: Reporter,
}

/// How far a stream came before it was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    /// No stream: the server could not be reached or refused the call.
    Nothing,
    /// A stream without any response.
    Stream,
    /// At least one response.
    Responses,
}

impl XdsClient {
    /// A client that does nothing until [`XdsClient::run`].
    ///
    /// Counted are, in `metrics`: `attache_ratelimit_xds_connected` (1 while there is a stream),
    /// `attache_ratelimit_xds_responses` by `result` (`accepted`, `refused`, `ignored`) and
    /// `attache_ratelimit_xds_streams_lost`.
    pub fn new(settings: XdsSettings, metrics: &Metrics) -> Self {
        Self {
            subscription: Subscription::new(&settings.node),
            reporter: Reporter::new(&settings.server, metrics),
            settings,
        }
    }

    /// Says by `condition` whether there are rules: it fails until the first response is
    /// accepted, and holds from then on.
    #[must_use]
    pub fn readiness(mut self, condition: Condition) -> Self {
        self.reporter.ready_by(condition);
        self
    }

    /// What operators see; changes can be waited for.
    pub fn status(&self) -> watch::Receiver<XdsStatus> {
        self.reporter.subscribe()
    }

    /// Follows the control plane, and never returns; dropped, it ends the subscription.
    ///
    /// `apply` gets all resources of a response. What it refuses is answered with its errors,
    /// each as `<name of the resource>: <message>`.
    pub async fn run(mut self, mut apply: impl FnMut(&[RateLimitConfig]) -> Result<(), Errors>) {
        let tls = self.settings.tls.clone();
        let certificates = async {
            match &tls {
                Some(tls) => tls.follow_files().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = certificates => {}
            () = self.subscribe(&mut apply) => {}
        }
    }

    async fn subscribe(
        &mut self,
        apply: &mut impl FnMut(&[RateLimitConfig]) -> Result<(), Errors>,
    ) {
        let mut pauses = Pauses::new(self.settings.retry);
        loop {
            let (reached, end) = self.follow_stream(apply).await;
            let pause = pauses.after(reached);
            self.reporter.lost(reached, &end, pause);
            tokio::time::sleep(pause).await;
        }
    }

    /// One stream on a connection of its own, until it ends.
    async fn follow_stream(
        &mut self,
        apply: &mut impl FnMut(&[RateLimitConfig]) -> Result<(), Errors>,
    ) -> (Reached, Status) {
        let channel = Channel::new(self.channel_settings());
        let mut method = Method::new(METHOD);
        if let Some(authority) = self.settings.authority() {
            method = method.authority(authority);
        }
        let mut stream = channel.stream(&method, self.settings.headers.clone());
        stream.send(encode_message(&self.subscription.begin()));
        let mut first = match opened(&mut stream).await {
            Ok(first) => first,
            Err(end) => return (Reached::Nothing, end),
        };
        self.reporter.connected();
        let mut reached = Reached::Stream;
        let mut later = None;
        loop {
            let message = match first.take() {
                Some(message) => Ok(message),
                None => next(&mut stream, &mut later).await,
            };
            let message = match message {
                Ok(message) => message,
                Err(end) => return (reached, end),
            };
            let response = match DiscoveryResponse::decode(message) {
                Ok(response) => response,
                Err(error) => {
                    let text = format!("the response cannot be read: {error}");
                    return (reached, Status::internal(text));
                }
            };
            reached = Reached::Responses;
            let answer = self.subscription.take(&response, apply);
            self.reporter.answered(&response, &answer);
            match answer {
                Answer::Ignored => {}
                Answer::Accepted { request, .. } => {
                    later = None;
                    stream.send(encode_message(&request));
                }
                Answer::Refused { request, pause, .. } => {
                    later = Some((Instant::now() + pause, encode_message(&request)));
                }
            }
        }
    }

    fn channel_settings(&self) -> ChannelSettings {
        let server = &self.settings.server;
        let mut settings = ChannelSettings::new("xds", vec![Target::Address(server.clone())]);
        settings.tls = self.settings.tls.clone();
        settings.connect_timeout = self.settings.connect_timeout;
        settings.max_message_size = self.settings.max_message_size;
        settings.outage_log = OutageLog::Caller;
        settings
    }
}

/// Waits until the subscription is on its way; the first message may be there already.
async fn opened(stream: &mut GrpcStream) -> Result<Option<Bytes>, Status> {
    poll_fn(|cx| stream.poll_capacity(cx)).await;
    // Without a connection the stream has ended by now.
    poll_fn(|cx| {
        Poll::Ready(match stream.poll_message(cx) {
            Poll::Pending => Ok(None),
            Poll::Ready(Some(first)) => first.map(Some),
            Poll::Ready(None) => Err(ended()),
        })
    })
    .await
}

/// The next message. What is to be sent later is sent meanwhile, when its time has come.
async fn next(
    stream: &mut GrpcStream,
    later: &mut Option<(Instant, Bytes)>,
) -> Result<Bytes, Status> {
    if let Some((at, _)) = later {
        tokio::select! {
            message = received(stream) => return message,
            () = sleep_until(*at) => {}
        }
    }
    if let Some((_, message)) = later.take() {
        stream.send(message);
    }
    received(stream).await
}

async fn received(stream: &mut GrpcStream) -> Result<Bytes, Status> {
    poll_fn(|cx| {
        let message = ready!(stream.poll_message(cx));
        Poll::Ready(message.unwrap_or_else(|| Err(ended())))
    })
    .await
}

fn ended() -> Status {
    Status::ok("the server has ended the stream")
}
