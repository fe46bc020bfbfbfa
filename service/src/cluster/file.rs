//! Endpoints as they are written: in the configuration, and in a file of their own.

use std::{path::Path, sync::Arc};

use super::Described;
use crate::{
    Address,
    channel::Target,
    config::{ConfigValue, Document, Errors, Located, Node, Schemas, json},
    config_enum, config_struct,
};

config_struct! {
    /// An endpoint with more than its address.
    pub struct EndpointConfig {
        /// `host:port` or `unix:/path`.
        pub address: Located<Address>,
        /// Its share of the requests, relative to the others. Default 1.
        pub weight: Option<Located<u32>>,
        /// Its name for TLS and for health checks. Default: the host of its address.
        pub hostname: Option<String>,
        /// Whether it is to be used. Default: yes.
        pub health_status: Option<HealthStatus>,
    }
    elsewhere {
        "metadata" => "endpoints have no metadata",
        "priority" => "there are no priorities",
    }
}

config_enum! {
    /// What is known of an endpoint's health (Envoy's `HealthStatus`).
    pub enum HealthStatus {
        /// Nothing.
        Unknown = "UNKNOWN",
        /// It is to be used.
        Healthy = "HEALTHY",
        /// It is not to be used.
        Unhealthy = "UNHEALTHY",
        /// It is about to leave: not to be used.
        Draining = "DRAINING",
        /// It did not answer: not to be used.
        Timeout = "TIMEOUT",
        /// It is to be used.
        Degraded = "DEGRADED",
    }
}

/// An [`EndpointConfig`] that may be written as its address alone.
#[derive(Clone, Debug, PartialEq)]
pub struct WrittenEndpoint(pub EndpointConfig);

impl WrittenEndpoint {
    /// The endpoint; mistakes are reported at their places.
    pub fn plan(&self, errors: &mut Errors) -> Described {
        let raw = &self.0;
        if matches!(raw.address.value, Address::Tcp { port: 0, .. }) {
            errors.push(&raw.address, "an endpoint needs a port");
        }
        if let Some(weight) = raw.weight.as_ref().filter(|weight| weight.value == 0) {
            errors.push(weight, "a weight is at least 1");
        }
        Described {
            weight: raw.weight.as_ref().map_or(1, |weight| weight.value),
            hostname: raw.hostname.as_deref().map(Arc::from),
            withdrawn: raw.health_status.is_some_and(HealthStatus::withdraws),
            ..Described::new(Target::Address(raw.address.value.clone()))
        }
    }
}

impl HealthStatus {
    fn withdraws(self) -> bool {
        match self {
            Self::Unknown | Self::Healthy | Self::Degraded => false,
            Self::Unhealthy | Self::Draining | Self::Timeout => true,
        }
    }
}

impl ConfigValue for WrittenEndpoint {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        if node.as_map().is_some() {
            return EndpointConfig::decode(node, errors).map(Self);
        }
        Some(Self(EndpointConfig {
            address: Located::decode(node, errors)?,
            weight: None,
            hostname: None,
            health_status: None,
        }))
    }

    fn encode(&self) -> Option<json::Value> {
        self.0.encode()
    }

    fn schema(schemas: &mut Schemas) -> json::Value {
        let endpoint = EndpointConfig::schema(schemas);
        let address = Address::schema(schemas);
        json::json!({ "anyOf": [address, endpoint] })
    }
}

config_struct! {
    /// Envoy's `DiscoveryResponse`, as it stands in the file of an `eds_config`.
    struct Discovery {
        version_info: Option<String>,
        resources: Vec<LoadAssignment>,
    }
}

config_struct! {
    /// Envoy's `ClusterLoadAssignment`.
    struct LoadAssignment {
        cluster_name: Option<String>,
        endpoints: Vec<LocalityEndpoints>,
    }
    envoy_type = "envoy.config.endpoint.v3.ClusterLoadAssignment";
    elsewhere {
        "named_endpoints" => "write the endpoints out",
        "policy" => "not supported",
    }
}

config_struct! {
    /// Envoy's `LocalityLbEndpoints`.
    struct LocalityEndpoints {
        /// Not looked at, as in Envoy unless it balances by zone.
        locality: Option<Node>,
        lb_endpoints: Vec<LbEndpoint>,
        /// Not looked at, as in Envoy unless it balances by zone.
        load_balancing_weight: Option<u32>,
        priority: Option<Located<u32>>,
    }
}

config_struct! {
    /// Envoy's `LbEndpoint`.
    struct LbEndpoint {
        endpoint: EnvoyEndpoint,
        health_status: Option<HealthStatus>,
        load_balancing_weight: Option<Located<u32>>,
    }
    elsewhere {
        "metadata" => "endpoints have no metadata",
    }
}

config_struct! {
    /// Envoy's `Endpoint`.
    struct EnvoyEndpoint {
        address: EnvoyAddress,
        hostname: Option<String>,
    }
    elsewhere {
        "health_check_config" => "endpoints are checked at their own address",
        "additional_addresses" => "write them as endpoints",
    }
}

config_struct! {
    /// Envoy's `Address`.
    struct EnvoyAddress {
        socket_address: Option<SocketAddress>,
        pipe: Option<Pipe>,
    }
}

config_struct! {
    /// Envoy's `SocketAddress`.
    struct SocketAddress {
        address: Located<String>,
        port_value: u16,
    }
}

config_struct! {
    /// Envoy's `Pipe`.
    struct Pipe {
        path: Located<String>,
    }
}

/// Reads a file of endpoints: a list as `endpoints` of a cluster is written, or what Envoy reads
/// for `eds_config`.
pub(super) fn load(path: &Path) -> Result<Vec<Described>, Errors> {
    read(&Document::load(path)?)
}

fn read(document: &Document) -> Result<Vec<Described>, Errors> {
    let root = document.root();
    let mut errors = document.errors();
    let written = if root.as_seq().is_some() {
        Vec::<WrittenEndpoint>::decode(root, &mut errors)
    } else if root.get("resources").is_some() {
        let discovery = Discovery::decode(root, &mut errors);
        discovery.map(|discovery| written(&discovery.resources, &mut errors))
    } else {
        let assignment = LoadAssignment::decode(root, &mut errors);
        assignment.map(|assignment| written(&[assignment], &mut errors))
    };
    let described: Option<Vec<Described>> =
        written.map(|all| all.iter().map(|one| one.plan(&mut errors)).collect());
    if described.as_ref().is_some_and(Vec::is_empty) {
        errors.push(root, "there are no endpoints");
    }
    errors.into_result(described)
}

fn written(assignments: &[LoadAssignment], errors: &mut Errors) -> Vec<WrittenEndpoint> {
    let mut written = Vec::new();
    for locality in assignments.iter().flat_map(|one| &one.endpoints) {
        if let Some(priority) = locality.priority.as_ref().filter(|one| one.value > 0) {
            errors.push(priority, "there are no priorities");
        }
        for raw in &locality.lb_endpoints {
            let at = &raw.endpoint.address;
            let address = match (&at.socket_address, &at.pipe) {
                (Some(socket), None) => {
                    let host = &socket.address.value;
                    let text = match host.contains(':') {
                        true => format!("[{host}]:{}", socket.port_value),
                        false => format!("{host}:{}", socket.port_value),
                    };
                    (text, &socket.address.span)
                }
                (None, Some(pipe)) => (format!("unix:{}", pipe.path.value), &pipe.path.span),
                _ => {
                    errors.push_unlocated("an endpoint needs `socket_address` or `pipe`");
                    continue;
                }
            };
            let (text, span) = address;
            match text.parse::<Address>() {
                Ok(value) => written.push(WrittenEndpoint(EndpointConfig {
                    address: Located {
                        value,
                        span: span.clone(),
                    },
                    weight: raw.load_balancing_weight.clone(),
                    hostname: raw
                        .endpoint
                        .hostname
                        .clone()
                        .filter(|name| !name.is_empty()),
                    health_status: raw.health_status,
                })),
                Err(error) => errors.push(span, error.to_string()),
            }
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<(String, u32, bool)>, String> {
        let document = Document::parse("endpoints.yaml", text).map_err(|e| e.to_string())?;
        let described = read(&document).map_err(|errors| errors.to_string())?;
        let each = described
            .into_iter()
            .map(|one| (one.target.to_string(), one.weight, one.withdrawn));
        Ok(each.collect())
    }

    #[test]
    fn a_list_of_addresses_and_of_more() {
        let text = "- 10.0.0.1:80\n- { address: 'unix:/run/a.sock', weight: 3 }\n- { address: 'a.test:81', health_status: DRAINING }\n";
        let wanted = [
            ("10.0.0.1:80".to_owned(), 1, false),
            ("unix:/run/a.sock".to_owned(), 3, false),
            ("a.test:81".to_owned(), 1, true),
        ];
        assert_eq!(parsed(text).unwrap(), wanted);
    }

    #[test]
    fn what_envoy_reads_for_an_eds_config() {
        let text = r#"{
          "version_info": "7",
          "resources": [{
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": "web",
            "endpoints": [{
              "locality": { "region": "r" },
              "lb_endpoints": [
                { "endpoint": { "address": { "socket_address": { "address": "10.0.0.1", "port_value": 80 } } },
                  "load_balancing_weight": 2 },
                { "endpoint": { "address": { "pipe": { "path": "/run/a.sock" } } }, "health_status": "UNHEALTHY" }
              ]
            }]
          }]
        }"#;
        let wanted = [
            ("10.0.0.1:80".to_owned(), 2, false),
            ("unix:/run/a.sock".to_owned(), 1, true),
        ];
        assert_eq!(parsed(text).unwrap(), wanted);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (text, part) in [
            ("- 10.0.0.1\n", "endpoints.yaml:1:3"),
            ("- { address: 'a:80', weight: 0 }\n", "at least 1"),
            ("- 10.0.0.1:0\n", "needs a port"),
            ("[]\n", "no endpoints"),
            (
                "endpoints: [{ priority: 1, lb_endpoints: [] }]\n",
                "priorities",
            ),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
