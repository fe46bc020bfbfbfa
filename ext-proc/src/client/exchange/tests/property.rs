//! What holds for every sequence of events.

use attache_proto::{
    core::{HeaderMap as WireMap, HeaderValue},
    ext_proc::{
        HttpHeaders, ImmediateResponse, StreamedImmediateResponse,
        streamed_immediate_response::Response as Local,
    },
    ext_proc_filter::ProcessingMode,
};
use proptest::prelude::*;

use super::*;

const MODES: [BodyMode; 6] = [
    BodyMode::None,
    BodyMode::Streamed,
    BodyMode::Buffered,
    BodyMode::BufferedPartial,
    BodyMode::FullDuplexStreamed,
    BodyMode::Grpc,
];

/// A step of a conversation in which both sides behave.
#[derive(Debug, Clone)]
enum Step {
    Data(&'static str),
    Answer,
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::prelude::*;
    prop_oneof![
        proptest::sample::select(vec!["", "a", "bcd", "efghij"]).prop_map(Step::Data),
        Just(Step::Answer),
    ]
}

proptest::proptest! {
    /// Whatever the mode and the order of events, what goes on is what came, once.
    #[test]
    fn nothing_is_lost_doubled_or_reordered(
        steps in proptest::collection::vec(step(), 0..24),
        mode in proptest::sample::select(MODES.to_vec()),
        limit in proptest::sample::select(vec![4usize, 1 << 20]),
        headers in proptest::bool::ANY,
        with_trailers in proptest::bool::ANY,
        send_trailers in proptest::bool::ANY,
        cut in proptest::option::of(0usize..24),
    ) {
        let mut bench = bench(|f| {
            // A larger body than may be buffered is refused, which is another test's matter.
            f.buffer_limit = if mode == BodyMode::Buffered { 1 << 20 } else { limit };
            f.modes = Modes {
                request_headers: headers,
                request_body: mode,
                request_trailers: send_trailers,
                ..Modes::default()
            };
        });
        let mut came = String::new();
        let mut went = String::new();
        bench.head(Req, false);
        let mut owed = bench.sent();
        for (n, step) in steps.iter().enumerate() {
            if cut == Some(n) {
                let lent = bench.exchange.request.has_lent();
                bench.exchange.closed(bench.now);
                owed.clear();
                if lent {
                    // What was shown is gone, and that is said.
                    let outcome = bench.outcome();
                    proptest::prop_assert!(outcome.unwrap().contains("closed_within_a_body"));
                    return Ok(());
                }
            }
            match step {
                Step::Data(data) if bench.exchange.wants_data(Req) => {
                    came.push_str(data);
                    bench.data(Req, data, false);
                }
                Step::Answer if !owed.is_empty() => answer(&mut bench, &mut owed),
                Step::Data(_) | Step::Answer => {}
            }
            owed.extend(bench.sent());
            went.push_str(&bench.onward(Req));
        }
        while !bench.exchange.wants_data(Req) {
            went.push_str(&bench.onward(Req));
            if bench.exchange.wants_data(Req) {
                break;
            }
            answer(&mut bench, &mut owed);
            owed.extend(bench.sent());
        }
        if with_trailers {
            bench.trailers(Req);
            came.push('T');
        } else {
            bench.data(Req, "", true);
        }
        owed.extend(bench.sent());
        while !owed.is_empty() {
            answer(&mut bench, &mut owed);
            owed.extend(bench.sent());
        }
        went.push_str(&bench.onward(Req));
        let expected = format!(">{came}.");
        assert_eq!(went.replace(">", ""), expected.replace(">", ""));
        assert_eq!(went.matches('>').count(), 1);
        assert!(went.starts_with('>'));
        assert!(bench.exchange.take_outcome().is_none());
    }
}

/// Answers the oldest message.
fn answer(bench: &mut Bench, owed: &mut Vec<String>) {
    let message = owed.remove(0);
    bench.reply(match message.as_str() {
        "headers" => headers_reply(),
        "trailers" => Response::RequestTrailers(TrailersResponse::default()),
        text if bench.exchange.request.is_duplex() => {
            let end = text.ends_with('.');
            piece(Req, text.trim_end_matches('.'), end)
        }
        _ => body_reply(),
    });
}

/// Anything that may happen, legal or not.
#[derive(Debug, Clone)]
enum Event {
    Data(Side, &'static str, bool),
    Trailers(Side),
    Reply(Box<ProcessingResponse>),
    Closed,
    Failed,
    Wait(u64),
    Unread,
    Take(Side),
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Req), Just(Resp)]
}

fn body_mutation() -> impl Strategy<Value = Option<Mutation>> {
    prop_oneof![
        Just(None),
        Just(Some(Mutation::Body(Bytes::from_static(b"new")))),
        proptest::bool::ANY.prop_map(|clear| Some(Mutation::ClearBody(clear))),
        proptest::bool::ANY.prop_map(|end| Some(Mutation::StreamedResponse(
            StreamedBodyResponse {
                body: Bytes::from_static(b"piece"),
                end_of_stream: end,
                ..StreamedBodyResponse::default()
            }
        ))),
    ]
}

fn reply() -> impl Strategy<Value = ProcessingResponse> {
    let response = (side(), 0..7u8, body_mutation(), 0..6u8, proptest::bool::ANY).prop_map(
        |(side, kind, mutation, odd, end)| {
            let mut common = common(mutation);
            if odd == 0 {
                common.status = ResponseStatus::ContinueAndReplace.into();
            }
            let response = Some(common);
            let headers = || WireMap {
                headers: vec![HeaderValue {
                    key: ":status".to_owned(),
                    raw_value: Bytes::from_static(b"200"),
                    ..HeaderValue::default()
                }],
            };
            Some(match (kind, side) {
                (0 | 1, Req) => Response::RequestHeaders(HeadersResponse { response }),
                (0 | 1, Resp) => Response::ResponseHeaders(HeadersResponse { response }),
                (2 | 3, Req) => Response::RequestBody(BodyResponse { response }),
                (2 | 3, Resp) => Response::ResponseBody(BodyResponse { response }),
                (4, Req) => Response::RequestTrailers(TrailersResponse::default()),
                (4, Resp) => Response::ResponseTrailers(TrailersResponse::default()),
                (5, _) => {
                    let part = match odd {
                        0..3 => Local::HeadersResponse(HttpHeaders {
                            headers: Some(headers()),
                            end_of_stream: end,
                            ..HttpHeaders::default()
                        }),
                        3 => Local::TrailersResponse(WireMap::default()),
                        _ => Local::BodyResponse(StreamedBodyResponse {
                            body: Bytes::from_static(b"local"),
                            end_of_stream: end,
                            ..StreamedBodyResponse::default()
                        }),
                    };
                    Response::StreamedImmediateResponse(StreamedImmediateResponse {
                        response: Some(part),
                    })
                }
                _ if odd > 0 => return None,
                _ => Response::ImmediateResponse(ImmediateResponse::default()),
            })
        },
    );
    (response, 0..8u8, [0..3i32, 0..6, 0..6, 0..3, 0..3]).prop_map(|(response, odd, modes)| {
        let [headers, request, response_body, trailers, response_trailers] = modes;
        ProcessingResponse {
            response,
            override_message_timeout: (odd == 0).then_some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            mode_override: (odd > 5).then_some(ProcessingMode {
                request_header_mode: 0,
                response_header_mode: headers,
                request_body_mode: request,
                response_body_mode: response_body,
                request_trailer_mode: trailers,
                response_trailer_mode: response_trailers,
            }),
            ..ProcessingResponse::default()
        }
    })
}

fn event() -> impl Strategy<Value = Event> {
    let data = proptest::sample::select(vec!["", "a", "bcd", "efghij"]);
    prop_oneof![
        6 => (side(), data, proptest::bool::weighted(0.2)).prop_map(|(s, d, e)| Event::Data(s, d, e)),
        1 => side().prop_map(Event::Trailers),
        10 => reply().prop_map(|reply| Event::Reply(Box::new(reply))),
        1 => Just(Event::Closed),
        1 => Just(Event::Failed),
        1 => (0..400u64).prop_map(Event::Wait),
        1 => Just(Event::Unread),
        4 => side().prop_map(Event::Take),
    ]
}

fn filter() -> impl Strategy<Value = Filter> {
    let mode = || proptest::sample::select(MODES.to_vec());
    (
        mode(),
        mode(),
        proptest::array::uniform9(proptest::bool::ANY),
    )
        .prop_map(|(request, response, flags)| {
            let [a, b, c, d, allow, without, overrides, observes, length] = flags;
            let mut filter = Filter::new("f", "c");
            filter.modes = Modes {
                request_headers: a,
                response_headers: b,
                request_body: request,
                response_body: response,
                request_trailers: c,
                response_trailers: d,
            };
            filter.failure_mode_allow = allow;
            filter.send_body_without_waiting_for_header_response = without;
            filter.allow_mode_override = overrides;
            filter.observability_mode = observes && length;
            filter.allow_content_length_header = length;
            filter.buffer_limit = 12;
            filter.max_message_timeout = Duration::from_secs(2);
            filter
        })
}

/// The traffic around an exchange: only what can happen on a connection does.
struct Traffic {
    bench: Bench,
    responded: bool,
}

impl Traffic {
    fn play(&mut self, event: Event) {
        let Self { bench, responded } = self;
        match event {
            Event::Data(Resp, ..) | Event::Trailers(Resp) | Event::Take(Resp) if !*responded => {}
            Event::Data(side, data, end) if bench.exchange.wants_data(side) => {
                bench.data(side, data, end);
            }
            Event::Trailers(side) if bench.exchange.wants_data(side) => {
                bench.trailers(side);
            }
            Event::Data(..) | Event::Trailers(_) => {}
            Event::Reply(reply) if !bench.exchange.is_closed() => {
                bench.exchange.reply(*reply, bench.now);
            }
            Event::Reply(_) => {}
            Event::Closed => bench.exchange.closed(bench.now),
            Event::Failed => bench
                .exchange
                .failed(&tonic::Status::internal("x"), bench.now),
            Event::Wait(millis) => {
                bench.now += Duration::from_millis(millis);
                bench.exchange.tick(bench.now);
            }
            // Who has not got the head does not leave its body.
            Event::Unread if *responded => bench.exchange.unread(Req),
            Event::Unread => {}
            Event::Take(side) => self.take(side),
        }
    }

    fn take(&mut self, side: Side) {
        let went = self.bench.onward(side);
        if side == Req && went.starts_with('>') {
            self.bench.head(Resp, false);
            self.responded = true;
        }
    }

    /// Both ends do what they can and time goes by: everything comes to its end.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.take(Req);
            if self.responded {
                self.take(Resp);
            }
            let exchange = &self.bench.exchange;
            if exchange.has_outcome() {
                return;
            } else if exchange.wants_data(Req) {
                self.bench.data(Req, "", true);
            } else if self.responded && exchange.wants_data(Resp) {
                self.bench.data(Resp, "", true);
            } else if let Some(deadline) = exchange.deadline() {
                self.bench.now = deadline;
                self.bench.exchange.tick(deadline);
            } else {
                return;
            }
        }
        panic!("there is always something left to do");
    }
}

proptest::proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// No sequence of events, legal or not, panics, or leaves anybody waiting for ever.
    #[test]
    fn everything_ends(filter in filter(), events in proptest::collection::vec(event(), 0..24)) {
        let mut bench = bench(|f| *f = filter);
        bench.head(Req, false);
        let mut traffic = Traffic { bench, responded: false };
        let mut local = false;
        for event in events {
            traffic.play(event);
            match traffic.bench.exchange.take_outcome() {
                // What is left is the response of the processor's own.
                Some(Outcome::Local(_)) => local = true,
                Some(_) => return Ok(()),
                None => {}
            }
        }
        traffic.responded |= local;
        traffic.settle();
        let exchange = &mut traffic.bench.exchange;
        if exchange.take_outcome().is_some() {
            return Ok(());
        }
        let left = exchange.request.unread;
        prop_assert!(left || exchange.has_ended(Req) || exchange.is_broken(Req));
        prop_assert!(exchange.has_ended(Resp) || exchange.is_broken(Resp));
        prop_assert!(left || exchange.is_done() || exchange.observes());
    }
}
