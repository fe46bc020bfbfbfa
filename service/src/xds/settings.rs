//! Which control plane, who we are, and how we speak with it.

use attache_proto::core::{Locality, Node, node::UserAgentVersionType};
use http::{HeaderMap, uri::Authority};
use prost_types::Struct;

use super::Retry;
use crate::channel::ChannelSettings;

/// What a client is started with.
#[derive(Clone)]
pub struct AdsSettings {
    /// The control plane: a channel is made of it for each stream. `max_message_size` is the bound
    /// of one response; a larger one costs the stream.
    pub channel: ChannelSettings,
    /// The `:authority` of the call; the channel's name when absent.
    pub authority: Option<Authority>,
    /// Headers of the call (`initial_metadata` of Envoy's `GrpcService`). They may be secret, so
    /// they are never shown.
    pub headers: HeaderMap,
    /// What is spoken (`api_type` of Envoy's `ApiConfigSource`).
    pub protocol: Protocol,
    /// Who we are.
    pub node: NodeIdentity,
    /// Pauses between attempts.
    pub retry: Retry,
    /// Most resources of one type that may be in force. Default 100,000.
    pub max_resources: usize,
}

impl AdsSettings {
    /// This control plane, with defaults.
    pub fn new(channel: ChannelSettings) -> Self {
        Self {
            channel,
            authority: None,
            headers: HeaderMap::new(),
            protocol: Protocol::default(),
            node: NodeIdentity::default(),
            retry: Retry::default(),
            max_resources: 100_000,
        }
    }
}

/// Which variant of the protocol is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Each response has the state of the world (`GRPC`). The default, as Envoy's.
    #[default]
    StateOfTheWorld,
    /// Each response has what changed (`DELTA_GRPC`).
    Delta,
}

/// Who asks, as `envoy.config.core.v3.Node` says it. The program and its version are added.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeIdentity {
    /// The name that servers tell their clients apart by.
    pub id: String,
    /// The group of such clients that it belongs to.
    pub cluster: String,
    /// Where it runs.
    pub locality: Option<Locality>,
    /// What else the server may want to know.
    pub metadata: Option<Struct>,
}

impl From<NodeIdentity> for Node {
    fn from(identity: NodeIdentity) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self {
            id: identity.id,
            cluster: identity.cluster,
            locality: identity.locality,
            metadata: identity.metadata,
            user_agent_name: "attache".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(version)),
            ..Self::default()
        }
    }
}
