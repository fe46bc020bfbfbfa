//! The names of attributes, as Envoy's `cel` documentation lists them.

/// The objects that attributes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    Request,
    Response,
    Source,
    Destination,
    Connection,
    Upstream,
    Xds,
    Metadata,
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attribute {
    RequestPath,
    RequestUrlPath,
    RequestHost,
    RequestScheme,
    RequestMethod,
    RequestHeaders,
    RequestReferer,
    RequestUserAgent,
    RequestTime,
    RequestId,
    RequestProtocol,
    RequestQuery,
    RequestSize,
    RequestTotalSize,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    ResponseGrpcStatus,
    ResponseHeaders,
    ResponseTrailers,
    ResponseSize,
    ResponseTotalSize,
    SourceAddress,
    SourcePort,
    DestinationAddress,
    DestinationPort,
    ConnectionMtls,
    ConnectionServerName,
    ConnectionTlsVersion,
    PeerCertificate(Detail),
    PeerFingerprint,
    LocalCertificate(Detail),
    UpstreamAddress,
    UpstreamPort,
    UpstreamAttempts,
    ClusterName,
    RouteName,
    ListenerDirection,
    FilterMetadata,
    /// Known only when a request is over, when nobody asks any more: absent, as with Envoy.
    Late,
}

/// What is told of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    Subject,
    /// The first URI among the subject alternative names.
    Uri,
    /// The first DNS name there.
    DnsName,
}

/// What is known of a name.
enum Known {
    Here(Attribute),
    /// Envoy has it; this is why we do not.
    Elsewhere(&'static str),
}

const CERTIFICATES: &str = "certificates of upstream connections are not noted here";

impl Root {
    const ALL: [(&'static str, Self); 8] = [
        ("request", Self::Request),
        ("response", Self::Response),
        ("source", Self::Source),
        ("destination", Self::Destination),
        ("connection", Self::Connection),
        ("upstream", Self::Upstream),
        ("xds", Self::Xds),
        ("metadata", Self::Metadata),
    ];

    pub(super) fn of(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, root)| *root)
    }

    fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, root)| *root == self);
        found.map_or("", |(name, _)| name)
    }

    /// The attribute `field` of the object, or why there is none.
    pub(super) fn attribute(self, field: &str) -> Result<Attribute, String> {
        let found = self.fields().iter().find(|(name, _)| *name == field);
        let name = self.name();
        match found {
            Some((_, Known::Here(attribute))) => Ok(*attribute),
            Some((_, Known::Elsewhere(reason))) => Err(format!("`{name}.{field}`: {reason}")),
            None => Err(format!("there is no attribute `{name}.{field}`")),
        }
    }

    /// The attributes of the object.
    fn fields(self) -> &'static [(&'static str, Known)] {
        use Attribute as A;
        use Known::{Elsewhere, Here};
        match self {
            Self::Request => &[
                ("path", Here(A::RequestPath)),
                ("url_path", Here(A::RequestUrlPath)),
                ("host", Here(A::RequestHost)),
                ("scheme", Here(A::RequestScheme)),
                ("method", Here(A::RequestMethod)),
                ("headers", Here(A::RequestHeaders)),
                ("referer", Here(A::RequestReferer)),
                ("useragent", Here(A::RequestUserAgent)),
                ("time", Here(A::RequestTime)),
                ("id", Here(A::RequestId)),
                ("protocol", Here(A::RequestProtocol)),
                ("query", Here(A::RequestQuery)),
                ("size", Here(A::RequestSize)),
                ("total_size", Here(A::RequestTotalSize)),
                ("duration", Here(A::Late)),
            ],
            Self::Response => &[
                ("code", Here(A::ResponseCode)),
                ("code_details", Here(A::ResponseCodeDetails)),
                ("flags", Here(A::ResponseFlags)),
                ("grpc_status", Here(A::ResponseGrpcStatus)),
                ("headers", Here(A::ResponseHeaders)),
                ("trailers", Here(A::ResponseTrailers)),
                ("size", Here(A::ResponseSize)),
                ("total_size", Here(A::ResponseTotalSize)),
                ("backend_latency", Here(A::Late)),
            ],
            Self::Source => &[
                ("address", Here(A::SourceAddress)),
                ("port", Here(A::SourcePort)),
            ],
            Self::Destination => &[
                ("address", Here(A::DestinationAddress)),
                ("port", Here(A::DestinationPort)),
            ],
            Self::Connection => &[
                ("mtls", Here(A::ConnectionMtls)),
                ("requested_server_name", Here(A::ConnectionServerName)),
                ("termination_details", Here(A::Late)),
                ("transport_failure_reason", Here(A::Late)),
                ("id", Elsewhere("connections have no numbers here")),
                ("tls_version", Here(A::ConnectionTlsVersion)),
                (
                    "subject_local_certificate",
                    Here(A::LocalCertificate(Detail::Subject)),
                ),
                (
                    "subject_peer_certificate",
                    Here(A::PeerCertificate(Detail::Subject)),
                ),
                (
                    "dns_san_local_certificate",
                    Here(A::LocalCertificate(Detail::DnsName)),
                ),
                (
                    "dns_san_peer_certificate",
                    Here(A::PeerCertificate(Detail::DnsName)),
                ),
                (
                    "uri_san_local_certificate",
                    Here(A::LocalCertificate(Detail::Uri)),
                ),
                (
                    "uri_san_peer_certificate",
                    Here(A::PeerCertificate(Detail::Uri)),
                ),
                ("sha256_peer_certificate_digest", Here(A::PeerFingerprint)),
            ],
            Self::Upstream => &[
                ("address", Here(A::UpstreamAddress)),
                ("port", Here(A::UpstreamPort)),
                ("request_attempt_count", Here(A::UpstreamAttempts)),
                (
                    "local_address",
                    Elsewhere("our side of upstream connections is not noted"),
                ),
                (
                    "transport_failure_reason",
                    Elsewhere("failures of upstream connections are in the log only"),
                ),
                (
                    "cx_pool_ready_duration",
                    Elsewhere("the wait for an upstream connection is not measured"),
                ),
                ("locality", Elsewhere("endpoints have no localities here")),
                ("num_endpoints", Elsewhere("endpoints are not counted here")),
                ("tls_version", Elsewhere(CERTIFICATES)),
                ("subject_local_certificate", Elsewhere(CERTIFICATES)),
                ("subject_peer_certificate", Elsewhere(CERTIFICATES)),
                ("dns_san_local_certificate", Elsewhere(CERTIFICATES)),
                ("dns_san_peer_certificate", Elsewhere(CERTIFICATES)),
                ("uri_san_local_certificate", Elsewhere(CERTIFICATES)),
                ("uri_san_peer_certificate", Elsewhere(CERTIFICATES)),
                ("sha256_peer_certificate_digest", Elsewhere(CERTIFICATES)),
            ],
            Self::Xds => &[
                ("cluster_name", Here(A::ClusterName)),
                ("route_name", Here(A::RouteName)),
                ("listener_direction", Here(A::ListenerDirection)),
                ("node", Elsewhere("there is no xDS node here")),
                (
                    "cluster_metadata",
                    Elsewhere("clusters have no metadata here"),
                ),
                ("route_metadata", Elsewhere("routes have no metadata here")),
                (
                    "listener_metadata",
                    Elsewhere("listeners have no metadata here"),
                ),
                (
                    "upstream_host_metadata",
                    Elsewhere("endpoints have no metadata here"),
                ),
                (
                    "filter_chain_name",
                    Elsewhere("listeners have no filter chains here"),
                ),
                (
                    "virtual_host_name",
                    Elsewhere("the virtual host is not noted here"),
                ),
                (
                    "virtual_host_metadata",
                    Elsewhere("virtual hosts have no metadata here"),
                ),
            ],
            Self::Metadata => &[
                ("filter_metadata", Here(A::FilterMetadata)),
                (
                    "typed_filter_metadata",
                    Elsewhere("typed metadata is not read by expressions here"),
                ),
            ],
        }
    }
}

/// Objects that Envoy has and we do not, with the reason.
fn elsewhere(root: &str) -> Option<&'static str> {
    match root {
        "filter_state" | "upstream_filter_state" => Some("there is no filter state here"),
        "node"
        | "cluster_name"
        | "cluster_metadata"
        | "listener_direction"
        | "listener_metadata"
        | "route_name"
        | "route_metadata"
        | "upstream_host_metadata"
        | "plugin_name"
        | "plugin_root_id"
        | "plugin_vm_id" => Some("is for Wasm extensions only"),
        _ => None,
    }
}

/// The object of this name, or why there is none.
pub(super) fn root(name: &str) -> Result<Root, String> {
    Root::of(name).ok_or_else(|| match elsewhere(name) {
        Some(reason) => format!("`{name}`: {reason}"),
        None => {
            let names: Vec<&str> = Root::ALL.iter().map(|(name, _)| *name).collect();
            format!(
                "there is no attribute `{name}`; attributes begin with {}",
                names.join(", ")
            )
        }
    })
}
