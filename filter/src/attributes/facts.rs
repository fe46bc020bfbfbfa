//! Where the values of attributes come from.

use std::{borrow::Cow, net::SocketAddr, time::SystemTime};

use chrono::TimeDelta;
use http::{HeaderMap, Version, header, request, response};

use attache_service::tls::{Certificate, fingerprint};

use super::vocabulary::{Attribute, Detail};
use crate::{MessageHead, RequestContext, context::ResponseFlag, head};

/// What attributes are read from. What is absent makes its attributes absent.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Connection, route, metadata.
    pub context: &'a RequestContext,
    /// The request head as it is now.
    pub request: Option<&'a request::Parts>,
    /// The response head as it is now.
    pub response: Option<&'a response::Parts>,
}

/// The value of an attribute or expression.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    /// CEL's `null`.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number that is never negative.
    Uint(u64),
    /// A number.
    Double(f64),
    /// Text.
    Text(Cow<'a, str>),
    /// Bytes.
    Bytes(Cow<'a, [u8]>),
    /// A length of time.
    Duration(TimeDelta),
    /// A point in time.
    Time(SystemTime),
    /// The headers of a message, by name.
    Headers(Fields<'a>),
    /// Dynamic metadata, by namespace.
    Metadata(&'a RequestContext),
    /// A map or an object with attributes of its own.
    Map,
    /// A list.
    List,
    /// The type of a value.
    Type,
}

/// The fields of a head, pseudo-headers included.
#[derive(Clone, Copy)]
pub struct Fields<'a>(Source<'a>);

#[derive(Clone, Copy)]
enum Source<'a> {
    Request(&'a request::Parts),
    Response(&'a response::Parts),
    None,
}

impl std::fmt::Debug for Fields<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("headers")
    }
}

impl<'a> Fields<'a> {
    /// Those of a request.
    pub fn of(request: &'a request::Parts) -> Self {
        Self(Source::Request(request))
    }

    fn headers(self) -> Option<&'a HeaderMap> {
        match self.0 {
            Source::Request(parts) => Some(&parts.headers),
            Source::Response(parts) => Some(&parts.headers),
            Source::None => None,
        }
    }

    fn head(self) -> Option<&'a dyn MessageHead> {
        match self.0 {
            Source::Request(parts) => Some(parts),
            Source::Response(parts) => Some(parts),
            Source::None => None,
        }
    }

    /// The value of a header, several joined with commas. Bytes that are no text are replaced.
    pub fn get(self, name: &str) -> Option<Cow<'a, str>> {
        if name.starts_with(':') || name == "host" {
            return self.head()?.pseudo(name);
        }
        let mut values = self.headers()?.get_all(name).iter();
        let first = String::from_utf8_lossy(values.next()?.as_bytes());
        let Some(second) = values.next() else {
            return Some(first);
        };
        let mut joined = first.into_owned();
        for value in std::iter::once(second).chain(values) {
            joined.push(',');
            joined.push_str(&String::from_utf8_lossy(value.as_bytes()));
        }
        Some(Cow::Owned(joined))
    }

    /// How many fields there are.
    pub fn len(self) -> usize {
        let mut count = 0;
        if let Some(head) = self.head() {
            head.for_each(&mut |_, _| count += 1);
        }
        count
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Bytes of all names and values.
    fn bytes(self) -> u64 {
        let mut bytes = 0;
        if let Some(head) = self.head() {
            head.for_each(&mut |name, value| bytes += (name.len() + value.len()) as u64);
        }
        bytes
    }
}

impl<'a> Facts<'a> {
    /// The headers of the request.
    pub(super) fn request_headers(&self) -> Fields<'a> {
        Fields(self.request.map_or(Source::None, Source::Request))
    }

    /// The headers of the response.
    pub(super) fn response_headers(&self) -> Fields<'a> {
        Fields(self.response.map_or(Source::None, Source::Response))
    }

    pub(super) fn value(&self, attribute: Attribute) -> Option<Value<'a>> {
        use Attribute as A;
        let text = |text: &'a str| Value::Text(Cow::Borrowed(text));
        let request = self.request_headers();
        let response = self.response_headers();
        let context = self.context;
        Some(match attribute {
            A::RequestPath => Value::Text(self.request?.pseudo(":path")?),
            A::RequestUrlPath => text(self.request?.uri.path()),
            A::RequestQuery => text(self.request?.uri.query().unwrap_or_default()),
            A::RequestHost => text(head::authority(self.request?)?),
            A::RequestScheme => Value::Text(self.request?.pseudo(":scheme")?),
            A::RequestMethod => text(self.request?.method.as_str()),
            A::RequestHeaders => Value::Headers(request),
            A::RequestReferer => Value::Text(request.get("referer")?),
            A::RequestUserAgent => Value::Text(request.get("user-agent")?),
            A::RequestId => Value::Text(request.get("x-request-id")?),
            A::RequestTime => Value::Time(context.start_time()),
            A::RequestProtocol => text(protocol(context.protocol)?),
            A::RequestSize => Value::Int(self.content_length()),
            A::RequestTotalSize => Value::Int(i64::try_from(request.bytes()).unwrap_or(i64::MAX)),
            A::ResponseCode => Value::Int(self.response?.status.as_u16().into()),
            A::ResponseCodeDetails => {
                self.response?;
                Value::Text(context.details()?)
            }
            A::ResponseFlags => Value::Int(flags(&context.flags())),
            A::ResponseGrpcStatus => Value::Int(grpc_status(self.response?)),
            A::ResponseHeaders => Value::Headers(response),
            A::ResponseTrailers => Value::Headers(Fields(Source::None)),
            A::ResponseSize => Value::Int(0),
            A::ResponseTotalSize => Value::Int(i64::try_from(response.bytes()).unwrap_or(i64::MAX)),
            A::SourceAddress => Value::Text(self.source()?.to_string().into()),
            A::SourcePort => Value::Int(self.source()?.port().into()),
            A::DestinationAddress => Value::Text(context.connection.local?.to_string().into()),
            A::DestinationPort => Value::Int(context.connection.local?.port().into()),
            A::ConnectionMtls => {
                let tls = context.connection.tls.as_ref();
                Value::Bool(tls.is_some_and(|tls| tls.peer_certificate.is_some()))
            }
            A::ConnectionServerName => {
                let tls = context.connection.tls.as_ref();
                text(tls.and_then(|tls| tls.sni.as_deref()).unwrap_or_default())
            }
            A::ConnectionTlsVersion => text(context.connection.tls.as_ref()?.version?),
            A::PeerCertificate(detail) => {
                let tls = context.connection.tls.as_ref()?;
                text(told(tls.peer.as_deref(), detail)?)
            }
            A::LocalCertificate(detail) => {
                let tls = context.connection.tls.as_ref()?;
                text(told(tls.local.as_deref(), detail)?)
            }
            A::PeerFingerprint => {
                let tls = context.connection.tls.as_ref()?;
                Value::Text(fingerprint(tls.peer_certificate.as_deref()?).into())
            }
            A::UpstreamAddress => Value::Text(context.upstream()?.to_string().into()),
            A::UpstreamPort => Value::Int(context.upstream()?.port().into()),
            A::UpstreamAttempts => Value::Int(context.upstream().is_some().into()),
            A::ClusterName => {
                let route = context.route()?;
                Value::Text(route.cluster.as_deref()?.to_owned().into())
            }
            A::RouteName => Value::Text(context.route()?.name.clone().into()),
            A::ListenerDirection => Value::Int(0),
            A::FilterMetadata => Value::Metadata(context),
            A::Late => return None,
        })
    }

    /// What `content-length` says of the request.
    fn content_length(&self) -> i64 {
        let headers = self.request.map(|request| &request.headers);
        let length = headers.and_then(|headers| headers.get(header::CONTENT_LENGTH));
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        length.unwrap_or_default()
    }

    /// The client's address; without its port when proxies further outside told it.
    pub(crate) fn source(&self) -> Option<SocketAddr> {
        let peer = self.context.connection.peer;
        match self.context.client_ip {
            Some(ip) if peer.is_none_or(|peer| peer.ip() != ip) => Some(SocketAddr::new(ip, 0)),
            _ => peer,
        }
    }
}

/// What a certificate says. Of none, the subject is empty, as in Envoy.
fn told(certificate: Option<&Certificate>, detail: Detail) -> Option<&str> {
    match detail {
        Detail::Subject => Some(certificate.map_or("", |certificate| &certificate.subject)),
        Detail::Uri => certificate?.uris().next(),
        Detail::DnsName => certificate?.dns_names().next(),
    }
}

/// The name of a protocol. Nothing speaks HTTP/0.9, which has no word for it: so stands for none.
pub(crate) fn protocol(version: Version) -> Option<&'static str> {
    Some(match version {
        Version::HTTP_09 => return None,
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    })
}

/// Envoy's numbers of response flags.
fn flags(flags: &[ResponseFlag]) -> i64 {
    let bit = |flag: &ResponseFlag| match flag {
        ResponseFlag::NoHealthyUpstream => 1,
        ResponseFlag::UpstreamRequestTimeout => 2,
        ResponseFlag::UpstreamRemoteReset => 4,
        ResponseFlag::UpstreamConnectionFailure => 5,
        ResponseFlag::UpstreamConnectionTermination => 6,
        ResponseFlag::UpstreamOverflow => 7,
        ResponseFlag::NoRouteFound => 8,
        ResponseFlag::NoClusterFound => 24,
        ResponseFlag::RateLimited => 11,
        ResponseFlag::UnauthorizedExternalService => 12,
        ResponseFlag::RateLimitServiceError => 13,
        ResponseFlag::DownstreamConnectionTermination => 14,
        ResponseFlag::UpstreamRetryLimitExceeded => 15,
        ResponseFlag::StreamIdleTimeout => 16,
        ResponseFlag::DownstreamProtocolError => 18,
        ResponseFlag::UpstreamMaxStreamDurationReached => 19,
        ResponseFlag::DurationTimeout => 22,
        ResponseFlag::Overload => 25,
    };
    flags.iter().fold(0, |sum, flag| sum | 1 << bit(flag))
}

/// The gRPC status of a response: its header, else what the HTTP status stands for.
fn grpc_status(response: &response::Parts) -> i64 {
    let header = response.headers.get("grpc-status");
    let header = header.and_then(|status| status.to_str().ok()?.parse().ok());
    header.unwrap_or(match response.status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    })
}
