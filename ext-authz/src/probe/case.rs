//! The checks that are made.

use std::{collections::BTreeMap, time::SystemTime};

use attache_proto::{
    auth::{
        AttributeContext, CheckRequest,
        attribute_context::{HttpRequest, Peer, Request, TlsSession},
    },
    core::{
        Address, HeaderMap, HeaderValue, Metadata, Pipe, SocketAddress, address,
        socket_address::PortSpecifier,
    },
};
use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use prost_types::{Struct, Timestamp, Value, value::Kind};

/// What requests are made of.
#[derive(Debug, Clone)]
pub struct Content {
    /// Method of requests without a body.
    pub method: String,
    /// Host, and port if there is one.
    pub authority: String,
    /// Path and query.
    pub path: String,
    /// More headers.
    pub headers: Vec<(String, String)>,
    /// Body of those that have one.
    pub body: Bytes,
    /// `context_extensions` of the route.
    pub context_extensions: Vec<(String, String)>,
    /// Who the client is by its certificate, in cases with one.
    pub principal: String,
    /// The client's certificate (PEM), in cases with one.
    pub certificate: String,
}

impl Default for Content {
    fn default() -> Self {
        Self {
            method: "GET".to_owned(),
            authority: "probe.example".to_owned(),
            path: "/probe?case=1".to_owned(),
            headers: Vec::new(),
            body: Bytes::from_static(br#"{"probe": true}"#),
            context_extensions: Vec::new(),
            principal: "spiffe://probe.example/client".to_owned(),
            certificate: include_str!("client.pem").to_owned(),
        }
    }
}

/// How a case stands to the plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kin {
    /// It is another request.
    Other,
    /// It is the same request, told in another way: the decision must be the same.
    Same,
    /// It is the same path in another spelling: it must not be allowed where the plain one is not.
    Spelling,
}

/// One check, or some at once.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// What is sent.
    pub request: CheckRequest,
    /// How many are sent at once.
    pub times: usize,
    /// The client goes away before the answer.
    pub leaves: bool,
    pub(super) kin: Kin,
}

/// A request that a case begins with and changes.
struct Draft {
    http: HttpRequest,
    headers: Vec<(String, Bytes)>,
    raw: bool,
    source: Peer,
    destination: Peer,
    tls: Option<TlsSession>,
    metadata: Metadata,
    route_metadata: Metadata,
    extensions: BTreeMap<String, String>,
}

impl Draft {
    fn new(content: &Content) -> Self {
        let http = HttpRequest {
            id: "1234567890123456789".to_owned(),
            method: content.method.clone(),
            path: content.path.clone(),
            host: content.authority.clone(),
            scheme: "http".to_owned(),
            protocol: "HTTP/1.1".to_owned(),
            ..HttpRequest::default()
        };
        let own = |(name, value): &(String, String)| {
            (name.to_ascii_lowercase(), Bytes::from(value.clone()))
        };
        let mut headers: Vec<_> = [
            ("x-forwarded-proto", "http"),
            ("x-request-id", "6f0f6b5c-5a3c-4b8b-9d3e-2f1c6a7d8e9f"),
            ("user-agent", "attache-probe"),
        ]
        .map(|(name, value)| (name.to_owned(), Bytes::from_static(value.as_bytes())))
        .into();
        headers.extend(content.headers.iter().map(own));
        Self {
            http,
            headers,
            raw: false,
            source: peer("192.0.2.7", 40_000),
            destination: peer("192.0.2.1", 80),
            tls: None,
            metadata: Metadata::default(),
            route_metadata: Metadata::default(),
            extensions: content.context_extensions.iter().cloned().collect(),
        }
    }

    fn header(&mut self, name: &str, value: impl Into<Bytes>) {
        self.headers.push((name.to_owned(), value.into()));
    }

    fn path(&mut self, path: &str) {
        path.clone_into(&mut self.http.path);
    }

    fn body(&mut self, content: &Content, body: Bytes, partial: bool) {
        if content.method == "GET" {
            "POST".clone_into(&mut self.http.method);
        }
        let length = if partial { body.len() * 2 } else { body.len() };
        self.header("content-length", length.to_string());
        let mark = if partial { "true" } else { "false" };
        self.header("x-envoy-auth-partial-body", mark);
        self.http.size = i64::try_from(body.len()).unwrap_or(i64::MAX);
        self.http.raw_body = body;
    }

    /// The body as text, as without `pack_as_bytes`.
    fn body_as_text(&mut self) {
        let body = std::mem::take(&mut self.http.raw_body);
        for chunk in body.utf8_chunks() {
            self.http.body.push_str(chunk.valid());
            self.http.body.extend(chunk.invalid().iter().map(|_| '!'));
        }
    }

    /// The whole check, as Envoy sends it.
    fn finish(mut self, http: bool) -> CheckRequest {
        let pseudo = [
            (":authority", &self.http.host),
            (":path", &self.http.path),
            (":method", &self.http.method),
            (":scheme", &self.http.scheme),
        ];
        let mut lines: Vec<(String, Bytes)> = Vec::new();
        for (name, value) in pseudo {
            if !value.is_empty() {
                lines.push((name.to_owned(), Bytes::from(value.clone())));
            }
        }
        lines.append(&mut self.headers);
        if self.raw {
            let line = |(key, raw_value): (String, Bytes)| HeaderValue {
                key,
                raw_value,
                ..HeaderValue::default()
            };
            self.http.header_map = Some(HeaderMap {
                headers: lines.into_iter().map(line).collect(),
            });
        } else {
            for (name, value) in lines {
                let joined = self.http.headers.entry(name).or_default();
                if !joined.is_empty() {
                    joined.push(',');
                }
                for chunk in value.utf8_chunks() {
                    joined.push_str(chunk.valid());
                    joined.extend(chunk.invalid().iter().map(|_| '!'));
                }
            }
        }
        CheckRequest {
            attributes: Some(AttributeContext {
                source: Some(self.source),
                destination: Some(self.destination),
                request: http.then(|| Request {
                    time: Some(Timestamp::from(SystemTime::now())),
                    http: Some(self.http),
                }),
                context_extensions: self.extensions,
                metadata_context: Some(self.metadata),
                tls_session: self.tls,
                route_metadata_context: Some(self.route_metadata),
            }),
        }
    }
}

fn peer(ip: &str, port: u32) -> Peer {
    let socket = SocketAddress {
        address: ip.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..SocketAddress::default()
    };
    at(address::Address::SocketAddress(socket))
}

fn at(address: address::Address) -> Peer {
    Peer {
        address: Some(Address {
            address: Some(address),
        }),
        ..Peer::default()
    }
}

fn metadata(namespace: &str) -> Metadata {
    let value = Value {
        kind: Some(Kind::StringValue("probe".to_owned())),
    };
    Metadata {
        filter_metadata: [(
            namespace.to_owned(),
            Struct {
                fields: [("by".to_owned(), value)].into(),
            },
        )]
        .into(),
        ..Metadata::default()
    }
}

/// All cases of this content.
pub fn cases(content: &Content) -> Vec<Case> {
    use Kin::{Other, Same, Spelling};
    let mut cases = Vec::new();
    let mut add = |name, about, kin, change: &dyn Fn(&mut Draft)| {
        let mut draft = Draft::new(content);
        change(&mut draft);
        cases.push(Case {
            name,
            about,
            request: draft.finish(true),
            times: 1,
            leaves: false,
            kin,
        });
    };
    let binary = Bytes::from_static(b"\xff\xfe\x00\x01probe\xe9");

    add("headers", "a plain request", Other, &|_| {});
    add(
        "raw-headers",
        "the same with encode_raw_headers",
        Same,
        &|d| d.raw = true,
    );
    add("http2", "a plain request over HTTP/2", Other, &|d| {
        "HTTP/2".clone_into(&mut d.http.protocol);
    });
    add(
        "no-headers",
        "allowed_headers lets none through",
        Other,
        &|d| {
            d.headers.clear();
        },
    );
    add(
        "repeated-headers",
        "repeated lines, cookies too",
        Other,
        &|d| {
            for (name, value) in [
                ("x-a", "1"),
                ("x-a", "2"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
            ] {
                d.header(name, value);
            }
        },
    );
    add(
        "raw-repeated-headers",
        "the same with encode_raw_headers",
        Other,
        &|d| {
            d.raw = true;
            for (name, value) in [
                ("x-a", "1"),
                ("x-a", "2"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
            ] {
                d.header(name, value);
            }
        },
    );
    add(
        "binary-header",
        "a value that is not UTF-8, made so",
        Other,
        &|d| {
            d.header("x-binary", Bytes::from_static(b"caf\xe9"));
        },
    );
    add(
        "raw-binary-header",
        "the same with encode_raw_headers",
        Other,
        &|d| {
            d.raw = true;
            d.header("x-binary", Bytes::from_static(b"caf\xe9"));
        },
    );
    add("large-header", "a header of 48 KiB", Other, &|d| {
        d.header("x-large", "a".repeat(48 << 10));
    });
    add("many-headers", "90 headers", Other, &|d| {
        for i in 0..80 {
            d.header(&format!("x-many-{i}"), "1");
        }
    });
    for method in ["HEAD", "OPTIONS", "DELETE", "PROPFIND"] {
        let (name, about) = match method {
            "HEAD" => ("head", "HEAD"),
            "OPTIONS" => ("preflight", "a CORS preflight"),
            "DELETE" => ("delete", "DELETE"),
            _ => ("unusual-method", "PROPFIND"),
        };
        add(name, about, Other, &|d| {
            method.clone_into(&mut d.http.method);
            if method == "OPTIONS" {
                d.header("origin", "https://elsewhere.example");
                d.header("access-control-request-method", "PUT");
            }
        });
    }
    add("no-path-query", "the path `/`", Other, &|d| d.path("/"));
    add("http-1.0", "HTTP/1.0 without a host", Other, &|d| {
        "HTTP/1.0".clone_into(&mut d.http.protocol);
        d.http.host.clear();
    });
    add("connect", "CONNECT: no path at all", Other, &|d| {
        "CONNECT".clone_into(&mut d.http.method);
        d.http.path.clear();
        d.http.scheme.clear();
    });
    add("websocket", "a WebSocket upgrade", Other, &|d| {
        d.header("connection", "Upgrade");
        d.header("upgrade", "websocket");
    });
    add("grpc", "a gRPC client", Other, &|d| {
        "POST".clone_into(&mut d.http.method);
        "HTTP/2".clone_into(&mut d.http.protocol);
        d.header("content-type", "application/grpc");
        d.header("te", "trailers");
    });
    add("body", "a whole body, as text", Other, &|d| {
        d.body(content, content.body.clone(), false);
        d.body_as_text();
    });
    add("raw-body", "a whole body with pack_as_bytes", Other, &|d| {
        d.body(content, content.body.clone(), false);
    });
    add(
        "binary-body",
        "bytes that are not UTF-8, made so",
        Other,
        &|d| {
            d.body(content, binary.clone(), false);
            d.body_as_text();
        },
    );
    add(
        "raw-binary-body",
        "the same with pack_as_bytes",
        Other,
        &|d| {
            d.body(content, binary.clone(), false);
        },
    );
    add("partial-body", "the beginning of a body", Other, &|d| {
        let half = content.body.slice(..content.body.len().div_ceil(2));
        d.body(content, half, true);
        d.body_as_text();
    });
    add("withheld-body", "a body that is not shown", Other, &|d| {
        "POST".clone_into(&mut d.http.method);
        d.header("content-length", content.body.len().to_string());
    });
    add("large-body", "a body of 1 MiB", Other, &|d| {
        d.body(content, Bytes::from(vec![b'a'; 1 << 20]), false);
    });
    let certified = |d: &mut Draft| {
        "https".clone_into(&mut d.http.scheme);
        d.source.principal.clone_from(&content.principal);
        d.source.certificate =
            utf8_percent_encode(&content.certificate, NON_ALPHANUMERIC).to_string();
        "probe.example".clone_into(&mut d.destination.principal);
        d.tls = Some(TlsSession {
            sni: content.authority.clone(),
        });
    };
    add(
        "client-certificate",
        "TLS with a client's certificate",
        Other,
        &certified,
    );
    add(
        "tls-without-name",
        "TLS, neither certificate nor server name",
        Other,
        &|d| {
            "https".clone_into(&mut d.http.scheme);
            d.tls = Some(TlsSession::default());
        },
    );
    add("ipv6", "an IPv6 client", Other, &|d| {
        d.source = peer("2001:db8::7", 40_000)
    });
    add("unix-peer", "a client on a Unix socket", Other, &|d| {
        d.source = at(address::Address::Pipe(Pipe::default()));
    });
    add(
        "context",
        "context extensions, dynamic and route metadata",
        Other,
        &|d| {
            d.extensions.insert("probe".to_owned(), "1".to_owned());
            d.metadata = metadata("probe.request");
            d.route_metadata = metadata("probe.route");
            d.source.service = "probe".to_owned();
            d.destination
                .labels
                .insert("zone".to_owned(), "a".to_owned());
        },
    );
    add(
        "odd-path",
        "a path that is not valid percent-encoding",
        Other,
        &|d| {
            d.path("/%zz%/?a=%&%=&&=\u{fffd}");
        },
    );
    for (name, about, path) in spellings(&content.path) {
        add(name, about, Spelling, &|d| d.path(&path));
    }
    add("long-path", "a path of 8 KiB", Other, &|d| {
        d.path(&format!("/{}", "a".repeat(8 << 10)));
    });

    let tcp = |name, about, change: &dyn Fn(&mut Draft)| {
        let mut draft = Draft::new(content);
        change(&mut draft);
        Case {
            name,
            about,
            request: draft.finish(false),
            times: 1,
            leaves: false,
            kin: Other,
        }
    };
    cases.push(tcp("tcp", "a TCP connection: no request at all", &|_| {}));
    cases.push(tcp(
        "tcp-tls",
        "a TCP connection with TLS and a certificate",
        &|d| {
            certified(d);
            d.destination.service.clone_from(&content.authority);
        },
    ));
    let plain = Case {
        name: "at-once",
        about: "50 checks at once",
        request: Draft::new(content).finish(true),
        times: 50,
        leaves: false,
        kin: Other,
    };
    cases.push(Case {
        name: "cancelled",
        about: "the client goes away before the answer",
        times: 1,
        leaves: true,
        ..plain.clone()
    });
    cases.push(plain);
    cases
}

/// The same path, as clients with other intentions write it.
fn spellings(path_and_query: &str) -> Vec<(&'static str, &'static str, String)> {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (path_and_query, String::new()),
    };
    let Some(rest) = path.strip_prefix('/') else {
        return Vec::new();
    };
    let encoded = match rest.as_bytes().first() {
        Some(first) if first.is_ascii_alphanumeric() => {
            format!("/%{first:02x}{}", rest.get(1..).unwrap_or_default())
        }
        _ => path.to_owned(),
    };
    [
        (
            "path-double-slash",
            "`//` in front of the path",
            format!("//{rest}"),
        ),
        ("path-dot", "`/./` in the path", format!("/./{rest}")),
        (
            "path-dot-dot",
            "`/../` in the path",
            format!("/x/../{rest}"),
        ),
        (
            "path-encoded-dots",
            "`/%2e%2e/` in the path",
            format!("/x/%2e%2e/{rest}"),
        ),
        (
            "path-encoded",
            "a letter of the path percent-encoded",
            encoded,
        ),
        (
            "path-encoded-slash",
            "`%2f` in the path",
            format!("/x%2f..%2f{rest}"),
        ),
        (
            "path-backslash",
            "a backslash in the path",
            format!("/x/..\\{rest}"),
        ),
        ("path-parameter", "`;` in the path", format!("{path};x=1")),
    ]
    .map(|(name, about, path)| (name, about, format!("{path}{query}")))
    .into()
}
