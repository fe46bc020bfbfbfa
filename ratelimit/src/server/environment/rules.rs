//! Where the rules come from: `CONFIG_TYPE`, `RUNTIME_*`, `MERGE_DOMAIN_CONFIG`.

use std::{path::PathBuf, time::Duration};

use attache_service::Address;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    super::{
        runtime_directory::RuntimeDirectory,
        xds::{NodeIdentity, Retry, XdsSettings},
    },
    variables::Variables,
};

/// Where the rules come from.
#[derive(Debug, Clone)]
pub enum RulesFrom {
    /// Files.
    Files(RuntimeDirectory),
    /// A control plane.
    Xds(Box<XdsSettings>),
}

impl RulesFrom {
    pub(super) fn read(variables: &mut Variables<'_>) -> Self {
        let kinds = [("FILE", false), ("GRPC_XDS_SOTW", true)];
        match variables.choice("CONFIG_TYPE", &kinds, false) {
            true => match xds(variables) {
                Some(settings) => Self::Xds(Box::new(settings)),
                // Some variable has been refused.
                None => Self::Xds(Box::new(XdsSettings::new(nowhere()))),
            },
            false => Self::Files(RuntimeDirectory {
                root: PathBuf::from(variables.text("RUNTIME_ROOT", "/srv/runtime_data/current")),
                subdirectory: variables.text("RUNTIME_SUBDIRECTORY", ""),
                app_directory: variables.text("RUNTIME_APPDIRECTORY", "config"),
                ignore_dot_files: variables.flag("RUNTIME_IGNOREDOTFILES", false),
                watch_root: variables.flag("RUNTIME_WATCH_ROOT", true),
            }),
        }
    }
}

fn nowhere() -> Address {
    Address::Tcp {
        host: "localhost".to_owned(),
        port: 0,
    }
}

fn xds(variables: &mut Variables<'_>) -> Option<XdsSettings> {
    let server = "CONFIG_GRPC_XDS_SERVER_URL";
    let Ok(address) = variables.text(server, "localhost:18000").parse::<Address>() else {
        variables.refuse(server, "expected `host:port`");
        return None;
    };
    let retry = "CONFIG_GRPC_XDS_SERVER_CONNECT_RETRY_INTERVAL";
    let mut backoff = |name: &str, default| {
        let name = format!("XDS_CLIENT_BACKOFF_{name}");
        variables.duration(&name, Duration::from_secs(default))
    };
    let (initial, max) = (backoff("INITIAL_INTERVAL", 10), backoff("MAX_INTERVAL", 60));
    let random = variables.share("XDS_CLIENT_BACKOFF_RANDOM_FACTOR", 0.5);
    let jitter = variables.flag("XDS_CLIENT_BACKOFF_JITTER", true);
    let mut settings = XdsSettings::new(address);
    settings.retry = Retry {
        unreachable: variables.duration(retry, Duration::from_secs(3)),
        initial,
        max,
        random: if jitter { random } else { 0.0 },
    };
    settings.node = NodeIdentity {
        id: variables.text("CONFIG_GRPC_XDS_NODE_ID", "default"),
        metadata: node_metadata(variables),
    };
    settings.headers = headers(variables);
    let size = "XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES";
    if variables.filled(size).is_some() {
        settings.max_message_size = variables.number(size, settings.max_message_size);
    }
    match variables.flag("CONFIG_GRPC_XDS_SERVER_USE_TLS", false) {
        false => Some(settings),
        true => tls(variables, settings),
    }
}

fn tls(variables: &mut Variables<'_>, settings: XdsSettings) -> Option<XdsSettings> {
    let file = |name: &str| variables.filled(name).map(PathBuf::from);
    let identity =
        file("CONFIG_GRPC_XDS_CLIENT_TLS_CERT").zip(file("CONFIG_GRPC_XDS_CLIENT_TLS_KEY"));
    let ca = file("CONFIG_GRPC_XDS_SERVER_TLS_CACERT");
    let name = variables.filled("CONFIG_GRPC_XDS_SERVER_TLS_SAN");
    match settings.with_tls(ca, identity, name) {
        Ok(settings) => Some(settings),
        Err(error) => {
            variables.refuse("CONFIG_GRPC_XDS_SERVER_USE_TLS", error.to_string());
            None
        }
    }
}

/// Pairs `key=value`, or `key:value`, between commas.
fn node_metadata(variables: &mut Variables<'_>) -> std::collections::BTreeMap<String, String> {
    let name = "CONFIG_GRPC_XDS_NODE_METADATA";
    let mut metadata = std::collections::BTreeMap::new();
    for item in variables.list(name) {
        match item.split_once('=').or_else(|| item.split_once(':')) {
            Some((key, value)) => {
                metadata.insert(key.trim().to_owned(), value.trim().to_owned());
            }
            None => variables.refuse(name, "not pairs `key=value` between commas"),
        }
    }
    metadata
}

fn headers(variables: &mut Variables<'_>) -> HeaderMap {
    let name = "CONFIG_GRPC_XDS_CLIENT_ADDITIONAL_HEADERS";
    let mut headers = HeaderMap::new();
    for (key, value) in variables.pairs(name) {
        let header = HeaderName::try_from(key.to_ascii_lowercase());
        match (header, HeaderValue::try_from(value)) {
            (Ok(header), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.append(header, value);
            }
            _ => variables.refuse_hidden(name, "not names and values of headers"),
        }
    }
    headers
}
