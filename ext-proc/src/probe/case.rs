//! The exchanges that are played.

use attache_proto::ext_proc_filter::{
    ProcessingMode,
    processing_mode::{BodySendMode, HeaderSendMode},
};
use bytes::Bytes;

/// What the played requests and responses are made of.
#[derive(Debug, Clone)]
pub struct Content {
    /// Method of requests with a body. Default POST; requests without one use GET or HEAD.
    pub method: String,
    /// `:authority` of requests. Default `probe.example`.
    pub authority: String,
    /// `:path` of requests. Default `/probe?case=1`.
    pub path: String,
    /// Further request headers, names in lower case; one given here replaces a default one.
    pub headers: Vec<(String, Bytes)>,
    /// Body of requests. Default: a JSON object.
    pub body: Bytes,
    /// Further response headers, as those of requests.
    pub response_headers: Vec<(String, Bytes)>,
    /// Body of responses. Default: a JSON object.
    pub response_body: Bytes,
}

impl Default for Content {
    fn default() -> Self {
        let body = br#"{"message":"hello, processor","list":[1,2,3],"nested":{"key":"value"}}"#;
        let answer = br#"{"answer":"hello, caller","list":[4,5,6],"nested":{"key":"value"}}"#;
        Self {
            method: "POST".to_owned(),
            authority: "probe.example".to_owned(),
            path: "/probe?case=1".to_owned(),
            headers: Vec::new(),
            body: Bytes::from_static(body),
            response_headers: Vec::new(),
            response_body: Bytes::from_static(answer),
        }
    }
}

/// A message of the played exchange as it is on the wire.
#[derive(Debug, Clone, Default)]
pub(super) struct Wire {
    pub(super) headers: Vec<(String, Bytes)>,
    /// Pieces of the body; `None`: the headers end the message.
    pub(super) body: Option<Vec<Bytes>>,
    /// The last piece and the end of the message arrive together.
    pub(super) end_with_last: bool,
    pub(super) trailers: Vec<(String, Bytes)>,
}

/// One exchange to play.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name, in kebab case.
    pub name: &'static str,
    /// What it is about, in a few words.
    pub about: &'static str,
    /// The filter's `processing_mode`.
    pub mode: ProcessingMode,
    /// `observability_mode`: the processor is told and not asked.
    pub observability: bool,
    /// `send_body_without_waiting_for_header_response`.
    pub without_waiting: bool,
    pub(super) request: Wire,
    pub(super) response: Wire,
    /// Chunks follow each other without a pause.
    pub(super) burst: bool,
    /// How much of a BUFFERED_PARTIAL body is gathered, in pieces.
    pub(super) partial: usize,
    /// The upstream answers after the first piece of the request's body.
    pub(super) early_response: bool,
    /// The caller goes away after the first piece of the request's body.
    pub(super) leaves: bool,
}

impl Case {
    /// Whether a body mode of the case has this name (`STREAMED`, …), in any case of letters.
    pub fn has_mode(&self, name: &str) -> bool {
        [
            self.mode.request_body_mode(),
            self.mode.response_body_mode(),
        ]
        .iter()
        .any(|mode| mode.as_str_name().eq_ignore_ascii_case(name))
    }
}

const LARGE_PIECE: usize = 64 << 10;

/// All cases, the simple ones first.
pub fn cases(content: &Content) -> Vec<Case> {
    use BodySendMode::{Buffered, BufferedPartial, FullDuplexStreamed, Grpc, None, Streamed};
    let maker = Maker { content };
    let plain = || maker.case("", "", None);
    let mut cases = vec![
        maker.get("headers", "GET, headers both ways"),
        Case {
            mode: mode(None, |mode| {
                mode.set_response_header_mode(HeaderSendMode::Skip)
            }),
            ..maker.get("request-headers-only", "GET, the response is not shown")
        },
        Case {
            mode: mode(None, |mode| {
                mode.set_request_header_mode(HeaderSendMode::Skip)
            }),
            ..maker.get("response-headers-only", "GET, the request is not shown")
        },
        maker.head(),
        maker.case("post", "bodies that are not shown", None),
        maker.empty_body(),
        maker.odd_headers(),
        Case {
            request: maker.hidden(maker.request()),
            response: maker.hidden(maker.response()),
            ..maker.case(
                "hidden-headers",
                "forward_rules leave no header at all",
                None,
            )
        },
        maker.case("buffered", "whole bodies", Buffered),
        maker.with_trailers("buffered-trailers", "whole bodies, then trailers", Buffered),
        Case {
            mode: mode(Buffered, |_| {}),
            ..maker.with_trailers(
                "buffered-trailers-unseen",
                "trailers that are not shown",
                Buffered,
            )
        },
        maker.large("buffered-large", "whole bodies of 512 KiB", Buffered, 8),
        maker.body_only(
            "buffered-body-only",
            "whole bodies without their headers",
            Buffered,
        ),
        maker.case(
            "streamed",
            "bodies in pieces, each answered before the next",
            Streamed,
        ),
        Case {
            burst: true,
            ..maker.case(
                "streamed-outstanding",
                "several pieces before the first answer",
                Streamed,
            )
        },
        Case {
            request: maker.at_once(maker.request()),
            response: maker.at_once(maker.response()),
            ..maker.case(
                "streamed-at-once",
                "a body whose only piece is the last",
                Streamed,
            )
        },
        Case {
            burst: true,
            without_waiting: true,
            ..maker.case(
                "streamed-without-waiting",
                "pieces before the headers are answered",
                Streamed,
            )
        },
        maker.with_trailers("streamed-trailers", "pieces, then trailers", Streamed),
        maker.large(
            "streamed-large",
            "bodies of 1 MiB in 16 pieces",
            Streamed,
            16,
        ),
        maker.body_only("streamed-body-only", "pieces without headers", Streamed),
        maker.case("partial", "bodies below the limit", BufferedPartial),
        Case {
            partial: 2,
            ..maker.case(
                "partial-over-limit",
                "the rest of the body passes unseen",
                BufferedPartial,
            )
        },
        maker.case(
            "full-duplex",
            "bodies in both directions at once",
            FullDuplexStreamed,
        ),
        maker.with_trailers(
            "full-duplex-trailers",
            "bodies that end with trailers",
            FullDuplexStreamed,
        ),
        Case {
            mode: mode(FullDuplexStreamed, with_trailers),
            ..maker.get("full-duplex-without-body", "nothing to stream")
        },
        maker.large(
            "full-duplex-large",
            "bodies of 2 MiB in 32 pieces",
            FullDuplexStreamed,
            32,
        ),
        maker.body_only(
            "full-duplex-body-only",
            "streams without headers",
            FullDuplexStreamed,
        ),
        Case {
            early_response: true,
            ..maker.case(
                "early-response",
                "the upstream answers while the request goes on",
                Streamed,
            )
        },
        Case {
            early_response: true,
            ..maker.case(
                "full-duplex-early-response",
                "both directions interleaved",
                FullDuplexStreamed,
            )
        },
        Case {
            leaves: true,
            burst: true,
            ..maker.case(
                "caller-leaves",
                "the caller goes away in the middle of its body",
                Streamed,
            )
        },
        Case {
            leaves: true,
            ..maker.case(
                "full-duplex-caller-leaves",
                "the same in full duplex",
                FullDuplexStreamed,
            )
        },
        maker.upgrade(),
        maker.grpc("grpc-call", "a gRPC call, bodies streamed", Streamed),
        maker.grpc("grpc-mode", "body mode GRPC, which shows no body", Grpc),
        maker.grpc(
            "grpc-full-duplex",
            "a gRPC call in full duplex",
            FullDuplexStreamed,
        ),
    ];
    cases.push(Case {
        name: "observability",
        about: "the processor is told, not asked",
        observability: true,
        burst: true,
        mode: mode(Streamed, with_trailers),
        ..plain()
    });
    cases
}

fn with_trailers(mode: &mut ProcessingMode) {
    mode.set_request_trailer_mode(HeaderSendMode::Send);
    mode.set_response_trailer_mode(HeaderSendMode::Send);
}

fn mode(body: BodySendMode, change: impl FnOnce(&mut ProcessingMode)) -> ProcessingMode {
    let mut mode = ProcessingMode::default();
    mode.set_request_body_mode(body);
    mode.set_response_body_mode(body);
    change(&mut mode);
    mode
}

fn line(name: &str, value: impl Into<Bytes>) -> (String, Bytes) {
    (name.to_owned(), value.into())
}

/// Cases from the content.
struct Maker<'c> {
    content: &'c Content,
}

impl Maker<'_> {
    /// POST and its answer, bodies in three pieces, in this mode.
    fn case(&self, name: &'static str, about: &'static str, body: BodySendMode) -> Case {
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

    fn get(&self, name: &'static str, about: &'static str) -> Case {
        Case {
            request: Wire {
                headers: self.request_headers("GET", None),
                ..Wire::default()
            },
            ..self.case(name, about, BodySendMode::None)
        }
    }

    fn head(&self) -> Case {
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

    fn empty_body(&self) -> Case {
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

    fn odd_headers(&self) -> Case {
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

    fn upgrade(&self) -> Case {
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

    fn grpc(&self, name: &'static str, about: &'static str, body: BodySendMode) -> Case {
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

    fn with_trailers(&self, name: &'static str, about: &'static str, body: BodySendMode) -> Case {
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

    fn body_only(&self, name: &'static str, about: &'static str, body: BodySendMode) -> Case {
        let mut case = self.case(name, about, body);
        case.mode.set_request_header_mode(HeaderSendMode::Skip);
        case.mode.set_response_header_mode(HeaderSendMode::Skip);
        case
    }

    /// Large JSON texts, so that processors for JSON can be tried as well.
    fn large(
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

    fn hidden(&self, wire: Wire) -> Wire {
        Wire {
            headers: Vec::new(),
            ..wire
        }
    }

    fn at_once(&self, wire: Wire) -> Wire {
        let whole = wire.body.map(|pieces| vec![Bytes::from(pieces.concat())]);
        Wire {
            body: whole,
            end_with_last: true,
            ..wire
        }
    }

    fn request(&self) -> Wire {
        let body = &self.content.body;
        Wire {
            headers: self.request_headers(&self.content.method, Some(body.len())),
            body: cut(body),
            ..Wire::default()
        }
    }

    fn response(&self) -> Wire {
        let body = &self.content.response_body;
        Wire {
            headers: self.response_headers("200", Some(body.len())),
            body: cut(body),
            ..Wire::default()
        }
    }

    fn pseudo(&self, method: &str) -> Vec<(String, Bytes)> {
        vec![
            line(":authority", self.content.authority.clone()),
            line(":path", self.content.path.clone()),
            line(":method", method.to_owned()),
            line(":scheme", "http"),
        ]
    }

    fn request_headers(&self, method: &str, length: Option<usize>) -> Vec<(String, Bytes)> {
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

    fn response_headers(&self, status: &str, length: Option<usize>) -> Vec<(String, Bytes)> {
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
