//! A control plane (xDS) that asks its clients who they are.

use std::pin::Pin;

use attache_proto::{
    discovery::{
        DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
    ratelimit_config::RateLimitConfig,
};
use attache_service::{
    Address, Host, Shutdown,
    tls::{ServerFiles, ServerTls, TlsVersion},
};
use prost::Message as _;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming, service::Routes};

use super::{PATIENCE, grpc::Certificates};

/// What the rate limit service asks for.
pub const RULES: &str = "type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig";

/// One stream as the control plane has it.
pub struct Conversation {
    requests: Streaming<DiscoveryRequest>,
    responses: mpsc::UnboundedSender<Result<DiscoveryResponse, Status>>,
}

impl Conversation {
    /// What is said next.
    pub async fn request(&mut self) -> DiscoveryRequest {
        let message = within(self.requests.message()).await;
        message.unwrap().expect("the stream goes on")
    }

    /// Sends all there is in this version, and gives what is said to it.
    pub async fn answer(&mut self, version: &str, rules: &[RateLimitConfig]) -> DiscoveryRequest {
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
        self.responses.send(Ok(response)).unwrap();
        let said = self.request().await;
        assert_eq!(said.response_nonce, format!("nonce-{version}"));
        said
    }
}

#[derive(Clone)]
struct Streams(mpsc::UnboundedSender<Conversation>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Streams {
    type StreamAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::unbounded_channel();
        let conversation = Conversation {
            requests: request.into_inner(),
            responses,
        };
        self.0.send(conversation).unwrap();
        let outgoing = UnboundedReceiverStream::new(outgoing);
        Ok(Response::new(Box::pin(outgoing)))
    }
}

/// A control plane, for as long as this value lives.
pub struct ControlPlane {
    pub address: Address,
    conversations: mpsc::UnboundedReceiver<Conversation>,
    shutdown: Shutdown,
    serving: JoinHandle<()>,
}

impl ControlPlane {
    /// Starts it there with mutual TLS.
    pub async fn start(certificates: &Certificates, at: &Address) -> Self {
        let tls = ServerTls::load(ServerFiles {
            certificate: certificates.file("server.pem").into(),
            private_key: certificates.file("server.key").into(),
            client_ca: Some(certificates.file("ca.pem").into()),
            client_name: None,
            min_version: TlsVersion::default(),
            alpn: vec!["h2".to_owned()],
        });
        let (streams, conversations) = mpsc::unbounded_channel();
        let service = AggregatedDiscoveryServiceServer::new(Streams(streams));
        let host = Host::new(Routes::new(service)).tls(tls.unwrap());
        let bound = host.bind(at).await.unwrap();
        let address = bound.address().clone();
        let shutdown = Shutdown::new();
        let serving = bound.serve(shutdown.clone());
        Self {
            address,
            conversations,
            shutdown,
            serving: tokio::spawn(async move { serving.await.unwrap() }),
        }
    }

    /// The next stream that somebody opens.
    pub async fn stream(&mut self) -> Conversation {
        within(self.conversations.recv()).await.unwrap()
    }

    /// Ends it, with all its connections.
    pub async fn stop(self) {
        self.shutdown.trigger_immediate();
        drop(self.conversations);
        within(self.serving).await.unwrap();
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("in time")
}
