//! The exchanges that are played.

mod maker;

use attache_proto::ext_proc_filter::{
    ProcessingMode,
    processing_mode::{BodySendMode, HeaderSendMode},
};
use bytes::Bytes;

use maker::{Maker, mode, with_trailers};

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
