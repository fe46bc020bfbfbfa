//! The state machine alone: events in, what follows out.

mod duplex;
mod local;
mod modes;
mod observe;
mod partial;
mod property;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attache_filter::{RequestContext, reply::ReplyForm};
use attache_proto::ext_proc::{
    BodyMutation, BodyResponse, CommonResponse, HeadersResponse, ProcessingRequest,
    ProcessingResponse, StreamedBodyResponse, TrailersResponse, body_mutation::Mutation,
    common_response::ResponseStatus, processing_request::Request, processing_response::Response,
};
use attache_service::Metrics;
use bytes::Bytes;
use http::HeaderMap;
use prost::Message as _;

use super::{Exchange, Head, Outcome, Terms};
use crate::client::{
    Side,
    extras::Extras,
    mode::{BodyMode, Modes},
    plan::Filter,
    stats::Stats,
};
use Side::{Request as Req, Response as Resp};

struct Bench {
    exchange: Exchange,
    now: Instant,
}

fn bench(change: impl FnOnce(&mut Filter)) -> Bench {
    let mut filter = Filter::new("f", "c");
    change(&mut filter);
    let terms = Terms {
        modes: filter.modes,
        buffer_limit: filter.buffer_limit,
        failure_mode_allow: filter.failure_mode_allow,
        idle_timeout: Some(filter.idle_timeout),
        filter: Arc::new(filter),
        stats: Arc::new(Stats::new(&Metrics::default(), &"f".into(), "f")),
        extras: Extras::default(),
        span: None,
    };
    let context = Arc::new(RequestContext::new(Arc::default(), http::Version::HTTP_11));
    let form = ReplyForm {
        grpc: false,
        head: false,
    };
    let now = Instant::now();
    Bench {
        exchange: Exchange::new(terms, context, form, now),
        now,
    }
}

fn common(mutation: Option<Mutation>) -> CommonResponse {
    CommonResponse {
        body_mutation: mutation.map(|mutation| BodyMutation {
            mutation: Some(mutation),
        }),
        ..CommonResponse::default()
    }
}

/// CONTINUE_AND_REPLACE of the request, with a body or without.
fn replace_reply(body: Option<&'static str>) -> Response {
    Response::RequestHeaders(HeadersResponse {
        response: Some(CommonResponse {
            status: ResponseStatus::ContinueAndReplace.into(),
            ..common(body.map(|body| Mutation::Body(body.into())))
        }),
    })
}

/// A piece of a body in full duplex.
fn piece(side: Side, body: &str, end_of_stream: bool) -> Response {
    let response = Some(common(Some(Mutation::StreamedResponse(
        StreamedBodyResponse {
            body: Bytes::copy_from_slice(body.as_bytes()),
            end_of_stream,
            ..StreamedBodyResponse::default()
        },
    ))));
    match side {
        Req => Response::RequestBody(BodyResponse { response }),
        Resp => Response::ResponseBody(BodyResponse { response }),
    }
}

fn streaming(filter: &mut Filter) {
    filter.modes.request_body = BodyMode::Streamed;
}

impl Bench {
    fn head(&mut self, side: Side, end: bool) -> &mut Self {
        let head = match side {
            Req => {
                let request = http::Request::builder().header("content-length", "3");
                Head::Request(request.body(()).unwrap().into_parts().0)
            }
            Resp => Head::Response(http::Response::new(()).into_parts().0),
        };
        self.exchange.headers(side, head, end, self.now);
        self
    }

    fn data(&mut self, side: Side, data: &'static str, end: bool) -> &mut Self {
        self.exchange.data(side, data.into(), end, self.now);
        self
    }

    fn trailers(&mut self, side: Side) -> &mut Self {
        let mut trailers = HeaderMap::new();
        trailers.insert("t", "1".parse().unwrap());
        self.exchange.trailers(side, trailers, self.now);
        self
    }

    fn reply(&mut self, response: Response) -> &mut Self {
        let message = ProcessingResponse {
            response: Some(response),
            ..ProcessingResponse::default()
        };
        self.exchange.reply(message, self.now);
        self
    }

    /// What became of the exchange: its details, `reset`, or nothing yet.
    fn outcome(&mut self) -> Option<String> {
        Some(match self.exchange.take_outcome()? {
            Outcome::Reply(reply) => format!("{} {}", reply.status.as_u16(), reply.details),
            Outcome::Refuse(reply) => format!("refused {}", reply.details),
            Outcome::Local(head) => format!("local {}", head.status.as_u16()),
            Outcome::Reset => "reset".to_owned(),
        })
    }

    /// What went to the processor since the last look.
    fn sent(&mut self) -> Vec<String> {
        let wire = self.exchange.outbox().concat();
        let mut rest = &wire[..];
        let mut sent = Vec::new();
        while let Some((header, tail)) = rest.split_first_chunk::<5>() {
            let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
            let (message, tail) = tail.split_at(length);
            rest = tail;
            let message = ProcessingRequest::decode(message).unwrap();
            sent.push(match message.request.unwrap() {
                Request::RequestHeaders(_) => "headers".to_owned(),
                Request::ResponseHeaders(_) => "HEADERS".to_owned(),
                Request::RequestBody(b) | Request::ResponseBody(b) => {
                    let eos = if b.end_of_stream { "." } else { "" };
                    format!("{}{eos}", String::from_utf8_lossy(&b.body))
                }
                Request::RequestTrailers(_) => "trailers".to_owned(),
                Request::ResponseTrailers(_) => "TRAILERS".to_owned(),
            });
        }
        sent
    }

    /// What went on in a direction since the last look: `>` is the head, `.` the end.
    fn onward(&mut self, side: Side) -> String {
        let mut text = String::new();
        if self.exchange.take_head(side).is_some() {
            text.push('>');
        }
        while let Some(frame) = self.exchange.next_frame(side) {
            match frame.into_data() {
                Ok(data) => text.push_str(&String::from_utf8_lossy(&data)),
                Err(_) => text.push('T'),
            }
        }
        if self.exchange.has_ended(side) {
            text.push('.');
        }
        text
    }
}

fn headers_reply() -> Response {
    Response::RequestHeaders(HeadersResponse::default())
}

fn body_reply() -> Response {
    Response::RequestBody(BodyResponse::default())
}

fn new_body(body: &'static str) -> Response {
    Response::RequestBody(BodyResponse {
        response: Some(CommonResponse {
            body_mutation: Some(BodyMutation {
                mutation: Some(Mutation::Body(Bytes::from_static(body.as_bytes()))),
            }),
            ..CommonResponse::default()
        }),
    })
}

/// Ten thousand exchanges may be open at once, and each is moved as it begins.
#[test]
fn an_exchange_is_small() {
    let size = std::mem::size_of::<Exchange>();
    assert!(size <= 1400, "{size}");
}

#[test]
fn a_head_waits_for_its_answer_and_so_does_what_follows() {
    let mut bench = bench(|_| {});
    bench.head(Req, false);
    assert_eq!(bench.sent(), ["headers"]);
    assert_eq!(bench.onward(Req), "");
    assert!(!bench.exchange.wants_data(Req));

    bench.reply(headers_reply());
    assert_eq!(bench.onward(Req), ">");
    assert!(bench.exchange.is_untouched(Req));
    assert!(!bench.exchange.is_closed());
}

#[test]
fn pieces_are_sent_without_waiting_and_go_on_in_order() {
    let mut bench = bench(streaming);
    bench.head(Req, false).reply(headers_reply());
    bench
        .data(Req, "aa", false)
        .data(Req, "", false)
        .data(Req, "bb", false)
        .data(Req, "", true);
    assert_eq!(bench.sent(), ["headers", "aa", "bb", "."]);
    assert_eq!(bench.onward(Req), ">");

    bench.reply(new_body("AA"));
    assert_eq!(bench.onward(Req), "AA");
    bench.reply(body_reply());
    assert_eq!(bench.onward(Req), "bb");
    bench.reply(new_body("!"));
    assert_eq!(bench.onward(Req), "!.");
}

#[test]
fn data_that_came_before_the_headers_answer_is_one_piece() {
    let mut bench = bench(streaming);
    bench
        .head(Req, false)
        .data(Req, "aa", false)
        .data(Req, "bb", false);
    bench.reply(headers_reply());
    assert_eq!(bench.sent(), ["headers", "aabb"]);
    assert_eq!(bench.onward(Req), ">");
}

#[test]
fn a_body_that_came_before_the_headers_answer_is_sent_whole_and_holds_the_head() {
    let mut bench = bench(streaming);
    bench
        .head(Req, false)
        .data(Req, "aa", false)
        .data(Req, "bb", true);
    bench.reply(headers_reply());
    assert_eq!(bench.sent(), ["headers", "aabb."]);
    assert_eq!(bench.onward(Req), "");
    bench.reply(body_reply());
    assert_eq!(bench.onward(Req), ">aabb.");
}

#[test]
fn trailers_wait_for_the_pieces_before_them() {
    let mut bench = bench(|f| {
        streaming(f);
        f.modes.request_trailers = true;
    });
    bench
        .head(Req, false)
        .reply(headers_reply())
        .data(Req, "aa", false)
        .trailers(Req);
    assert_eq!(bench.sent(), ["headers", "aa"]);
    bench.reply(body_reply());
    assert_eq!(bench.sent(), ["trailers"]);
    assert_eq!(bench.onward(Req), ">aa");
    bench.reply(Response::RequestTrailers(TrailersResponse::default()));
    assert_eq!(bench.onward(Req), "T.");
}

#[test]
fn without_waiting_pieces_are_sent_before_the_headers_are_answered() {
    let mut bench = bench(|f| {
        streaming(f);
        f.send_body_without_waiting_for_header_response = true;
    });
    bench
        .head(Req, false)
        .data(Req, "aa", false)
        .data(Req, "bb", true);
    assert_eq!(bench.sent(), ["headers", "aa", "bb", "."]);
    bench.reply(headers_reply());
    assert_eq!(bench.onward(Req), ">");
    bench
        .reply(body_reply())
        .reply(body_reply())
        .reply(body_reply());
    assert_eq!(bench.onward(Req), "aabb.");
}

#[test]
fn replies_out_of_order_fail() {
    type Play = fn(&mut Bench);
    let plays: [(&str, Play); 5] = [
        ("body before headers", |b| {
            b.reply(body_reply());
        }),
        ("headers twice", |b| {
            b.reply(headers_reply()).reply(headers_reply());
        }),
        ("body twice", |b| {
            b.reply(headers_reply())
                .data(Req, "aa", false)
                .reply(body_reply())
                .reply(body_reply());
        }),
        ("trailers unasked", |b| {
            b.reply(Response::RequestTrailers(TrailersResponse::default()));
        }),
        ("the other direction", |b| {
            b.reply(Response::ResponseHeaders(HeadersResponse::default()));
        }),
    ];
    for (name, play) in plays {
        let mut bench = bench(streaming);
        bench.head(Req, false);
        play(&mut bench);
        assert!(
            matches!(bench.exchange.take_outcome(), Some(Outcome::Reply(_))),
            "{name}"
        );
        assert!(bench.exchange.is_closed(), "{name}");
    }
}

#[test]
fn the_directions_interleave() {
    let mut bench = bench(|f| {
        streaming(f);
        f.modes.response_body = BodyMode::Streamed;
    });
    bench
        .head(Req, false)
        .reply(headers_reply())
        .data(Req, "aa", false);
    bench
        .head(Resp, false)
        .reply(Response::ResponseHeaders(HeadersResponse::default()));
    bench.data(Resp, "xx", true).data(Req, "bb", true);
    assert_eq!(
        bench.sent(),
        ["headers", "aa", "HEADERS", "xx", ".", "bb", "."]
    );
    for _ in 0..2 {
        bench.reply(Response::ResponseBody(BodyResponse::default()));
    }
    assert_eq!(
        (bench.onward(Req).as_str(), bench.onward(Resp).as_str()),
        (">", ">xx.")
    );
    bench
        .reply(body_reply())
        .reply(body_reply())
        .reply(body_reply());
    assert_eq!(bench.onward(Req), "aabb.");
    assert!(bench.exchange.is_closed());
}

#[test]
fn reading_pauses_while_too_much_is_unanswered() {
    let mut bench = bench(|f| {
        streaming(f);
        f.buffer_limit = 4;
    });
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aaaaa", false);
    assert!(!bench.exchange.wants_data(Req));
    bench.reply(body_reply());
    assert!(bench.exchange.wants_data(Req));
}

#[test]
fn a_clean_close_flushes_what_is_unanswered() {
    let mut bench = bench(streaming);
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aa", false).data(Req, "bb", false);
    bench.exchange.closed(bench.now);
    assert_eq!(bench.onward(Req), ">aabb");
    bench.data(Req, "cc", true);
    assert_eq!(bench.onward(Req), "cc.");
    assert_eq!(bench.sent(), ["headers", "aa", "bb"]);
}

#[test]
fn the_stream_is_closed_as_soon_as_nothing_more_is_to_be_said() {
    let only_request = |f: &mut Filter| f.modes.response_headers = false;
    let mut bench = bench(only_request);
    bench.head(Req, false);
    assert!(!bench.exchange.is_closed());
    bench.reply(headers_reply());
    assert!(bench.exchange.is_closed());
    bench.head(Resp, false);
    assert_eq!(bench.onward(Resp), ">");
    assert_eq!(bench.sent(), ["headers"]);
}

#[test]
fn each_message_has_its_own_time() {
    let mut bench = bench(streaming);
    let timeout = Duration::from_millis(200);
    let start = bench.now;
    bench.head(Req, false);
    assert_eq!(bench.exchange.deadline(), Some(start + timeout));
    bench.reply(headers_reply());
    assert_eq!(bench.exchange.deadline(), None);
    bench.data(Req, "aa", false);
    bench.now += timeout / 2;
    bench.data(Req, "bb", false);
    assert_eq!(bench.exchange.deadline(), Some(bench.now + timeout));
    // One of two is answered: Envoy stops its timer here, and may wait for ever.
    bench.now += timeout / 2;
    bench.reply(body_reply());
    assert_eq!(bench.exchange.deadline(), Some(bench.now + timeout));
    bench.exchange.tick(bench.now + timeout);
    assert!(matches!(
        bench.exchange.take_outcome(),
        Some(Outcome::Reply(_))
    ));
}

#[test]
fn a_failure_after_the_response_began_is_a_reset() {
    let mut bench = bench(|f| f.modes.response_body = BodyMode::Streamed);
    bench.head(Req, true).reply(headers_reply());
    bench
        .head(Resp, false)
        .reply(Response::ResponseHeaders(HeadersResponse::default()));
    assert_eq!(bench.onward(Resp), ">");
    bench
        .exchange
        .failed(&tonic::Status::internal("x"), bench.now);
    assert!(matches!(
        bench.exchange.take_outcome(),
        Some(Outcome::Reset)
    ));
    assert!(bench.exchange.is_broken(Resp));
}

#[test]
fn the_end_of_a_body_is_shown_as_the_protocol_tells_it() {
    for (version, sent) in [
        (http::Version::HTTP_11, &["headers", "aa", "."][..]),
        (http::Version::HTTP_2, &["headers", "aa."]),
    ] {
        let mut bench = bench(streaming);
        let request = http::Request::builder().version(version).body(());
        let head = Head::Request(request.unwrap().into_parts().0);
        bench.exchange.headers(Req, head, false, bench.now);
        bench.reply(headers_reply()).data(Req, "aa", true);
        assert_eq!(bench.sent(), sent, "{version:?}");
    }
}
