//! A control plane (xDS), in both variants of the protocol; it says what a test says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc
)]

use std::pin::Pin;
use std::time::Duration;

use attache_proto::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
    ratelimit_config::RateLimitConfig,
};
use attache_service::{Address, Host, Shutdown, tls::ServerTls};
use prost::Message as _;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap, service::Routes};

/// What rate limit services ask for.
pub const RULES: &str = "type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig";

/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// One stream as the control plane has it.
#[derive(Debug)]
pub struct Conversation<Q = DiscoveryRequest, A = DiscoveryResponse> {
    /// The headers with which it was opened.
    pub headers: MetadataMap,
    requests: Streaming<Q>,
    responses: mpsc::UnboundedSender<Result<A, Status>>,
}

/// One stream of changes.
pub type DeltaConversation = Conversation<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;

impl<Q, A> Conversation<Q, A> {
    /// What is said next.
    pub async fn request(&mut self) -> Q {
        within(self.said()).await.expect("the stream goes on")
    }

    /// What is said next, whenever that is; nothing at the end of the stream.
    pub async fn said(&mut self) -> Option<Q> {
        self.requests.message().await.ok().flatten()
    }

    /// Sends this.
    pub fn send(&self, response: A) {
        self.responses.send(Ok(response)).unwrap();
    }

    /// Ends the stream with this status.
    pub fn fail(&self, status: Status) {
        self.responses.send(Err(status)).unwrap();
    }
}

impl Conversation {
    /// Sends all there is in this version.
    pub fn respond(&self, version: &str, rules: &[RateLimitConfig]) {
        let resources = rules.iter().map(|resource| prost_types::Any {
            type_url: RULES.to_owned(),
            value: resource.encode_to_vec(),
        });
        let response = DiscoveryResponse {
            version_info: version.to_owned(),
            nonce: format!("nonce-{version}"),
            type_url: RULES.to_owned(),
            resources: resources.collect(),
            ..DiscoveryResponse::default()
        };
        self.send(response);
    }

    /// Sends all there is in this version, and gives what is said to it.
    pub async fn answer(&mut self, version: &str, rules: &[RateLimitConfig]) -> DiscoveryRequest {
        self.respond(version, rules);
        let said = self.request().await;
        assert_eq!(said.response_nonce, format!("nonce-{version}"));
        said
    }
}

#[derive(Clone)]
struct Streams {
    states: mpsc::UnboundedSender<Conversation>,
    changes: mpsc::UnboundedSender<DeltaConversation>,
}

type Outgoing<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// Hands over a stream to whoever says what is said on it.
fn converse<Q, A: Send + 'static>(
    request: Request<Streaming<Q>>,
    conversations: &mpsc::UnboundedSender<Conversation<Q, A>>,
) -> Result<Response<Outgoing<A>>, Status> {
    let (responses, outgoing) = mpsc::unbounded_channel();
    let (headers, _, requests) = request.into_parts();
    let conversation = Conversation {
        headers,
        requests,
        responses,
    };
    let sent = conversations.send(conversation);
    sent.map_err(|_| Status::unavailable("closed"))?;
    let outgoing = UnboundedReceiverStream::new(outgoing);
    Ok(Response::new(Box::pin(outgoing)))
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Streams {
    type StreamAggregatedResourcesStream = Outgoing<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Outgoing<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        converse(request, &self.states)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        converse(request, &self.changes)
    }
}

/// A control plane, for as long as this value lives.
#[derive(Debug)]
pub struct ControlPlane {
    /// Where it listens.
    pub address: Address,
    states: mpsc::UnboundedReceiver<Conversation>,
    changes: mpsc::UnboundedReceiver<DeltaConversation>,
    shutdown: Shutdown,
    serving: JoinHandle<()>,
}

impl ControlPlane {
    /// Starts it at a port of the system's choice.
    pub async fn start(tls: Option<ServerTls>) -> Self {
        Self::start_at(tls, &"127.0.0.1:0".parse().unwrap()).await
    }

    /// Starts it there.
    pub async fn start_at(tls: Option<ServerTls>, at: &Address) -> Self {
        let (to_states, states) = mpsc::unbounded_channel();
        let (to_changes, changes) = mpsc::unbounded_channel();
        let service = AggregatedDiscoveryServiceServer::new(Streams {
            states: to_states,
            changes: to_changes,
        });
        let mut host = Host::new(Routes::new(service));
        if let Some(tls) = tls {
            host = host.tls(tls);
        }
        let bound = host.bind(at).await.unwrap();
        let address = bound.address().clone();
        let shutdown = Shutdown::new();
        let serving = bound.serve(shutdown.clone());
        Self {
            address,
            states,
            changes,
            shutdown,
            serving: tokio::spawn(async move { serving.await.unwrap() }),
        }
    }

    /// The next stream that somebody opens.
    pub async fn stream(&mut self) -> Conversation {
        within(self.opened()).await
    }

    /// The next stream that somebody opens, whenever that is.
    pub async fn opened(&mut self) -> Conversation {
        self.states.recv().await.unwrap()
    }

    /// The next stream of changes that somebody opens.
    pub async fn delta_stream(&mut self) -> DeltaConversation {
        within(self.changes.recv()).await.unwrap()
    }

    /// Ends it, with all its connections, and waits until it is gone.
    pub async fn stop(mut self) {
        self.shutdown.trigger_immediate();
        within(&mut self.serving).await.unwrap();
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.shutdown.trigger_immediate();
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("in time")
}
