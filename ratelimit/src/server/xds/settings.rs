//! Which control plane, who we are, and how persistent.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use attache_service::{
    Address,
    tls::{ALPN_H2, ClientFiles, ClientTls, TlsError},
};
use http::{HeaderMap, uri::Authority};

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
    /// Pauses between attempts.
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
            retry: Retry::default(),
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
    pub(super) fn authority(&self) -> Option<Authority> {
        match &self.server_name {
            Some(name) => name.parse().ok(),
            None => self.server.to_string().parse().ok(),
        }
    }
}
