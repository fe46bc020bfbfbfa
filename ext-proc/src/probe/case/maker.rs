//! What the cases are made of.

use attache_proto::ext_proc_filter::{
    ProcessingMode,
    processing_mode::{BodySendMode, HeaderSendMode},
};
use bytes::Bytes;

use super::{Case, Content, Wire};

const LARGE_PIECE: usize = 64 << 10;

/// Cases from the content.
pub(super) struct Maker<'c> {
    pub(super) content: &'c Content,
}

impl Maker<'_> {
    /// POST and its answer, bodies in three pieces, in this mode.
    pub(super) fn case(&self, name: &'static str, about: &'static str, body: BodySendMode) -> Case {
        let change = match body {
            // What Envoy asks for.
            BodySendMode::FullDuplexStreamed => with_trailers,
            _ => |_: &mut ProcessingMode| {},
        };
        Case {
            name,
            about,
            mode: mode(body, change),
            observability: false,
            without_waiting: false,
            request: self.request(),
            response: self.response(),
            burst: body == BodySendMode::FullDuplexStreamed,
            partial: usize::MAX,
            early_response: false,
            leaves: false,
        }
    }

    pub(super) fn get(&self, name: &'static str, about: &'static str) -> Case {
        Case {
            request: Wire {
                headers: self.request_headers("GET", None),
                ..Wire::default()
            },
            ..self.case(name, about, BodySendMode::None)
        }
    }

    pub(super) fn head(&self) -> Case {
        let response = self.response();
        Case {
            mode: mode(BodySendMode::Buffered, |_| {}),
            request: Wire {
                headers: self.request_headers("HEAD", None),
                ..Wire::default()
            },
            response: Wire {
                body: None,
                ..response
            },
            ..self.case("head", "HEAD: a length without a body", BodySendMode::None)
        }
    }

    pub(super) fn empty_body(&self) -> Case {
        Case {
            request: Wire {
                headers: self.request_headers(&self.content.method, Some(0)),
                ..Wire::default()
            },
            response: Wire {
                headers: self.response_headers("204", None),
                ..Wire::default()
            },
            ..self.case(
                "empty-body",
                "content-length 0 and a 204",
                BodySendMode::Buffered,
            )
        }
    }

    pub(super) fn odd_headers(&self) -> Case {
        let mut case = self.get(
            "odd-headers",
            "repeated names, bytes that are not UTF-8, empty and long values",
        );
        let odd = [
            line("x-probe-twice", "a"),
            line("x-probe-twice", "b"),
            line("x-probe-bytes", Bytes::from_static(b"\xff\xfe")),
            line("x-probe-empty", ""),
            line("x-probe-long", "x".repeat(8 << 10)),
        ];
        case.request.headers.extend(odd.clone());
        case.response.headers.extend(odd);
        case.response
            .headers
            .push(line("set-cookie", "a=1; Path=/"));
        case.response.headers.push(line("set-cookie", "b=2"));
        case
    }

    pub(super) fn upgrade(&self) -> Case {
        let mut case = self.case(
            "upgrade",
            "a WebSocket, whose bytes are endless bodies",
            BodySendMode::Streamed,
        );
        let mut headers = self.request_headers("GET", None);
        headers.extend([line("connection", "upgrade"), line("upgrade", "websocket")]);
        case.request.headers = headers;
        case.response.headers = vec![
            line(":status", "101"),
            line("connection", "upgrade"),
            line("upgrade", "websocket"),
        ];
        let frames =
            |bytes: &[&'static [u8]]| bytes.iter().map(|b| Bytes::from_static(b)).collect();
        case.request.body = Some(frames(&[b"\x81\x05hello", b"\x89\x00"]));
        case.response.body = Some(frames(&[b"\x81\x05world", b"\x8a\x00"]));
        case.early_response = true;
        case
    }

    pub(super) fn grpc(&self, name: &'static str, about: &'static str, body: BodySendMode) -> Case {
        let mut case = self.case(name, about, body);
        case.mode = mode(body, with_trailers);
        let mut headers = self.pseudo(&self.content.method);
        headers.extend([
            line("content-type", "application/grpc"),
            line("te", "trailers"),
            line("user-agent", "attache-probe"),
        ]);
        let message = |bytes: &'static [u8]| Some(vec![Bytes::from_static(bytes)]);
        case.request = Wire {
            headers,
            body: message(b"\0\0\0\0\x07\x0a\x05hello"),
            ..Wire::default()
        };
        case.response = Wire {
            headers: vec![
                line(":status", "200"),
                line("content-type", "application/grpc"),
            ],
            body: message(b"\0\0\0\0\x07\x0a\x05world"),
            trailers: vec![line("grpc-status", "0"), line("grpc-message", "")],
            ..Wire::default()
        };
        case
    }

    pub(super) fn with_trailers(
        &self,
        name: &'static str,
        about: &'static str,
        body: BodySendMode,
    ) -> Case {
        let mut case = self.case(name, about, body);
        case.mode = mode(body, with_trailers);
        for (wire, value) in [
            (&mut case.request, "request"),
            (&mut case.response, "response"),
        ] {
            wire.headers.retain(|line| line.0 != "content-length");
            wire.headers.push(line("trailer", "x-probe-trailer"));
            wire.trailers = vec![line("x-probe-trailer", value)];
        }
        case
    }

    pub(super) fn body_only(
        &self,
        name: &'static str,
        about: &'static str,
        body: BodySendMode,
    ) -> Case {
        let mut case = self.case(name, about, body);
        case.mode.set_request_header_mode(HeaderSendMode::Skip);
        case.mode.set_response_header_mode(HeaderSendMode::Skip);
        case
    }

    /// Large JSON texts, so that processors for JSON can be tried as well.
    pub(super) fn large(
        &self,
        name: &'static str,
        about: &'static str,
        body: BodySendMode,
        pieces: usize,
    ) -> Case {
        let mut case = self.case(name, about, body);
        let (open, close) = (r#"{"large":""#, r#""}"#);
        let length = pieces * LARGE_PIECE;
        let text = Bytes::from(format!(
            "{open}{}{close}",
            "0123456789abcdef"
                .repeat(length / 16)
                .split_at(length - open.len() - close.len())
                .0
        ));
        case.request.headers = self.request_headers(&self.content.method, Some(length));
        case.response.headers = self.response_headers("200", Some(length));
        let cut: Vec<_> = (0..pieces)
            .map(|i| text.slice(i * LARGE_PIECE..(i + 1) * LARGE_PIECE))
            .collect();
        case.request.body = Some(cut.clone());
        case.response.body = Some(cut);
        case.burst = true;
        case
    }

    pub(super) fn hidden(&self, wire: Wire) -> Wire {
        Wire {
            headers: Vec::new(),
            ..wire
        }
    }

    pub(super) fn at_once(&self, wire: Wire) -> Wire {
        let whole = wire.body.map(|pieces| vec![Bytes::from(pieces.concat())]);
        Wire {
            body: whole,
            end_with_last: true,
            ..wire
        }
    }

    pub(super) fn request(&self) -> Wire {
        let body = &self.content.body;
        Wire {
            headers: self.request_headers(&self.content.method, Some(body.len())),
            body: cut(body),
            ..Wire::default()
        }
    }

    pub(super) fn response(&self) -> Wire {
        let body = &self.content.response_body;
        Wire {
            headers: self.response_headers("200", Some(body.len())),
            body: cut(body),
            ..Wire::default()
        }
    }

    pub(super) fn pseudo(&self, method: &str) -> Vec<(String, Bytes)> {
        vec![
            line(":authority", self.content.authority.clone()),
            line(":path", self.content.path.clone()),
            line(":method", method.to_owned()),
            line(":scheme", "http"),
        ]
    }

    pub(super) fn request_headers(
        &self,
        method: &str,
        length: Option<usize>,
    ) -> Vec<(String, Bytes)> {
        let mut headers = self.pseudo(method);
        let mut common = vec![
            line("user-agent", "attache-probe"),
            line("accept", "*/*"),
            line("x-forwarded-proto", "http"),
            line("x-request-id", "00000000-0000-4000-8000-000000000000"),
        ];
        if let Some(length) = length {
            common.push(line("content-type", "application/json"));
            common.push(line("content-length", length.to_string()));
        }
        headers.extend(with(common, &self.content.headers));
        headers
    }

    pub(super) fn response_headers(
        &self,
        status: &str,
        length: Option<usize>,
    ) -> Vec<(String, Bytes)> {
        let mut headers = vec![line(":status", status.to_owned())];
        let mut common = Vec::new();
        if let Some(length) = length {
            common.push(line("content-type", "application/json"));
            common.push(line("content-length", length.to_string()));
        }
        common.push(line("x-envoy-upstream-service-time", "1"));
        headers.extend(with(common, &self.content.response_headers));
        headers
    }
}

/// Defaults, as far as they are not given, then what is given.
fn with(mut defaults: Vec<(String, Bytes)>, given: &[(String, Bytes)]) -> Vec<(String, Bytes)> {
    defaults.retain(|(name, _)| !given.iter().any(|(other, _)| other == name));
    // The length is that of the body in hand.
    defaults.extend(
        given
            .iter()
            .filter(|(name, _)| name != "content-length")
            .cloned(),
    );
    defaults
}

/// In three pieces, none of them empty.
fn cut(body: &Bytes) -> Option<Vec<Bytes>> {
    let third = body.len().div_ceil(3).max(1);
    let starts = (0..body.len()).step_by(third);
    let pieces: Vec<_> = starts
        .map(|start| body.slice(start..(start + third).min(body.len())))
        .collect();
    (!pieces.is_empty()).then_some(pieces)
}

pub(super) fn with_trailers(mode: &mut ProcessingMode) {
    mode.set_request_trailer_mode(HeaderSendMode::Send);
    mode.set_response_trailer_mode(HeaderSendMode::Send);
}

pub(super) fn mode(body: BodySendMode, change: impl FnOnce(&mut ProcessingMode)) -> ProcessingMode {
    let mut mode = ProcessingMode::default();
    mode.set_request_body_mode(body);
    mode.set_response_body_mode(body);
    change(&mut mode);
    mode
}

fn line(name: &str, value: impl Into<Bytes>) -> (String, Bytes) {
    (name.to_owned(), value.into())
}
