//! Where the service listens: `HOST`, `PORT`, `GRPC_*`, `DEBUG_*`.

use std::{path::PathBuf, time::Duration};

use attache_service::{
    Address,
    host::ConnectionAge,
    tls::{ServerFiles, TlsVersion},
};

use super::variables::Variables;

/// Where the service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// `/healthcheck` and `/json`. Default `0.0.0.0:8080`.
    pub http: Address,
    /// gRPC. Default `0.0.0.0:8081`.
    pub grpc: Address,
    /// Debug pages. Default `0.0.0.0:6070`.
    pub debug: Address,
    /// How old gRPC connections may grow. Default 24 h, and 1 h of grace.
    pub age: ConnectionAge,
    /// TLS of gRPC.
    pub tls: Option<ServerFiles>,
}

impl Listen {
    pub(super) fn read(variables: &mut Variables<'_>) -> Self {
        let grpc = tcp(variables, "GRPC_HOST", "GRPC_PORT", 8081);
        Self {
            http: tcp(variables, "HOST", "PORT", 8080),
            debug: tcp(variables, "DEBUG_HOST", "DEBUG_PORT", 6070),
            grpc: match variables.filled("GRPC_UDS") {
                Some(path) => Address::Unix(PathBuf::from(path)),
                None => grpc,
            },
            age: ConnectionAge {
                max: variables.duration("GRPC_MAX_CONNECTION_AGE", Duration::from_secs(86_400)),
                grace: variables
                    .duration("GRPC_MAX_CONNECTION_AGE_GRACE", Duration::from_secs(3600)),
            },
            tls: tls(variables),
        }
    }
}

fn tcp(variables: &mut Variables<'_>, host: &str, port: &str, default: u16) -> Address {
    let port = variables.number(port, default);
    let text = variables.text(host, "0.0.0.0");
    // Go takes no host at all for all addresses.
    let bare = match text.as_str() {
        "" => "0.0.0.0",
        text => text.trim_start_matches('[').trim_end_matches(']'),
    };
    let written = match bare.contains(':') {
        true => format!("[{bare}]:{port}"),
        false => format!("{bare}:{port}"),
    };
    written.parse().unwrap_or_else(|_| {
        variables.refuse(host, "not a host");
        Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port,
        }
    })
}

fn tls(variables: &mut Variables<'_>) -> Option<ServerFiles> {
    if !variables.flag("GRPC_SERVER_USE_TLS", false) {
        return None;
    }
    let mut file = |name: &str| {
        variables.filled(name).map(PathBuf::from).or_else(|| {
            variables.refuse(name, "needed, since GRPC_SERVER_USE_TLS is set");
            None
        })
    };
    let certificate = file("GRPC_SERVER_TLS_CERT");
    let private_key = file("GRPC_SERVER_TLS_KEY");
    let client_ca = variables
        .filled("GRPC_CLIENT_TLS_CACERT")
        .map(PathBuf::from);
    let client_name = variables.filled("GRPC_CLIENT_TLS_SAN");
    if client_name.is_some() && client_ca.is_none() {
        variables.refuse(
            "GRPC_CLIENT_TLS_SAN",
            "of no use without GRPC_CLIENT_TLS_CACERT: no client would be asked who it is",
        );
    }
    Some(ServerFiles {
        certificate: certificate?,
        private_key: private_key?,
        client_ca,
        client_name,
        min_version: TlsVersion::default(),
        alpn: vec!["h2".to_owned()],
    })
}
