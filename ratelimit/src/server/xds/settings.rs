//! Which control plane, who we are, and how persistent.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use attache_service::{
    Address, ChannelSettings,
    channel::{OutageLog, Target},
    tls::{ALPN_H2, ClientFiles, ClientTls, TlsError},
    xds::{self, AdsSettings},
};
use http::{HeaderMap, uri::Authority};
use prost_types::{Struct, Value, value::Kind};

use super::Retry;

/// What an [`XdsClient`](super::XdsClient) is started with.
#[derive(Debug, Clone)]
pub struct XdsSettings {
    /// The control plane (`CONFIG_GRPC_XDS_SERVER_URL`).
    pub server: Address,
    /// TLS to it; plain text when absent. See [`XdsSettings::with_tls`].
    pub tls: Option<ClientTls>,
    /// Name that its certificate has to be for (`CONFIG_GRPC_XDS_SERVER_TLS_SAN`); the host of
    /// `server` when absent.
    pub server_name: Option<String>,
    /// Who we are.
    pub node: NodeIdentity,
    /// Headers of the call (`CONFIG_GRPC_XDS_CLIENT_ADDITIONAL_HEADERS`). They may be secret, so
    /// they are never shown.
    pub headers: HeaderMap,
    /// Bound on connecting, TLS and HTTP/2 included. Default 3 s.
    pub connect_timeout: Duration,
    /// Pauses between attempts: `unreachable` is `CONFIG_GRPC_XDS_SERVER_CONNECT_RETRY_INTERVAL`
    /// (default 3 s), `initial`, `max` and `random` are `XDS_CLIENT_BACKOFF_INITIAL_INTERVAL`
    /// (default 10 s), `XDS_CLIENT_BACKOFF_MAX_INTERVAL` (default 60 s) and
    /// `XDS_CLIENT_BACKOFF_RANDOM_FACTOR` (default 0.5; 0 with `XDS_CLIENT_BACKOFF_JITTER=false`).
    pub retry: Retry,
    /// Largest response, in bytes (`XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES`). Default 16 MiB.
    pub max_message_size: usize,
}

/// Who asks, as `envoy.config.core.v3.Node` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// `id` (`CONFIG_GRPC_XDS_NODE_ID`). Default `default`.
    pub id: String,
    /// `metadata`, all of it text (`CONFIG_GRPC_XDS_NODE_METADATA`). Default none.
    pub metadata: BTreeMap<String, String>,
}

impl Default for NodeIdentity {
    fn default() -> Self {
        Self {
            id: "default".to_owned(),
            metadata: BTreeMap::new(),
        }
    }
}

impl XdsSettings {
    /// Plain text to `server`, with defaults.
    pub fn new(server: Address) -> Self {
        Self {
            server,
            tls: None,
            server_name: None,
            node: NodeIdentity::default(),
            headers: HeaderMap::new(),
            connect_timeout: Duration::from_secs(3),
            retry: Retry {
                unreachable: Duration::from_secs(3),
                initial: Duration::from_secs(10),
                max: Duration::from_secs(60),
                random: 0.5,
            },
            max_message_size: 16 << 20,
        }
    }

    /// Over TLS. `ca` are the authorities of the server (the system's when absent), `identity`
    /// our certificate chain and private key, `server_name` the name that the server's
    /// certificate has to be for (the host of the address when absent). The files are read again
    /// when they change.
    ///
    /// # Errors
    /// A file cannot be read or used; the error names it.
    pub fn with_tls(
        mut self,
        ca: Option<PathBuf>,
        identity: Option<(PathBuf, PathBuf)>,
        server_name: Option<String>,
    ) -> Result<Self, TlsError> {
        self.tls = Some(ClientTls::load(ClientFiles {
            ca,
            identity,
            sni: server_name.clone(),
            alpn: ALPN_H2.iter().map(|name| (*name).to_owned()).collect(),
        })?);
        self.server_name = server_name;
        Ok(self)
    }

    /// The `:authority` of the call.
    fn authority(&self) -> Option<Authority> {
        match &self.server_name {
            Some(name) => name.parse().ok(),
            None => self.server.to_string().parse().ok(),
        }
    }
}

impl From<XdsSettings> for AdsSettings {
    fn from(settings: XdsSettings) -> Self {
        let authority = settings.authority();
        let mut channel = ChannelSettings::new("xds", vec![Target::Address(settings.server)]);
        channel.tls = settings.tls;
        channel.connect_timeout = settings.connect_timeout;
        channel.max_message_size = settings.max_message_size;
        channel.outage_log = OutageLog::Caller;
        Self {
            authority,
            headers: settings.headers,
            node: settings.node.into(),
            retry: settings.retry,
            // Bounded by the size of a response: each has all of them.
            max_resources: usize::MAX,
            ..Self::new(channel)
        }
    }
}

impl From<NodeIdentity> for xds::NodeIdentity {
    fn from(identity: NodeIdentity) -> Self {
        let metadata = identity.metadata.into_iter().map(|(name, value)| {
            let kind = Some(Kind::StringValue(value));
            (name, Value { kind })
        });
        let fields = metadata.collect();
        Self {
            id: identity.id,
            metadata: Some(Struct { fields }),
            ..Self::default()
        }
    }
}
