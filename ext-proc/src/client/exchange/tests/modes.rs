//! Mode overrides.

use attache_proto::ext_proc_filter::{
    ProcessingMode,
    processing_mode::{BodySendMode as Body, HeaderSendMode as Send},
};

use super::*;

fn allowing(change: impl FnOnce(&mut Filter)) -> Bench {
    bench(|f| {
        f.allow_mode_override = true;
        change(f);
    })
}

fn wish(request: Body, response: Body) -> ProcessingMode {
    ProcessingMode {
        request_body_mode: request.into(),
        response_body_mode: response.into(),
        ..ProcessingMode::default()
    }
}

impl Bench {
    fn wish(&mut self, response: Option<Response>, mode: ProcessingMode) -> &mut Self {
        let message = ProcessingResponse {
            response,
            mode_override: Some(mode),
            ..ProcessingResponse::default()
        };
        self.exchange.reply(message, self.now);
        self
    }

    fn length(&self, side: Side) -> bool {
        let head = self.exchange.peek(side).head.as_ref().unwrap();
        head.as_head().headers().contains_key("content-length")
    }
}

#[test]
fn the_answer_to_the_headers_changes_both_directions() {
    let mut bench = allowing(|_| {});
    bench.head(Req, false);
    bench.wish(Some(headers_reply()), wish(Body::Buffered, Body::Streamed));
    bench.data(Req, "aaa", true);
    assert_eq!(bench.sent(), ["headers", "aaa."]);
    assert!(bench.length(Req), "a buffered body keeps its length");
    bench.reply(body_reply());
    assert_eq!(bench.onward(Req), ">aaa.");
    bench.head(Resp, false);
    bench.reply(Response::ResponseHeaders(HeadersResponse::default()));
    bench.data(Resp, "xx", false);
    assert_eq!(bench.sent(), ["HEADERS", "xx"]);
}

#[test]
fn the_bodies_are_always_those_of_the_wish() {
    let mut bench = allowing(|f| f.modes.request_body = BodyMode::Buffered);
    bench.head(Req, false);
    let headers_only = ProcessingMode {
        response_header_mode: Send::Skip.into(),
        ..ProcessingMode::default()
    };
    bench.wish(Some(headers_reply()), headers_only);
    bench.data(Req, "aaa", true);
    assert_eq!(bench.onward(Req), ">aaa.");
    bench.head(Resp, true);
    assert_eq!(bench.sent(), ["headers"]);
    assert_eq!(bench.onward(Resp), ">.");
}

#[test]
fn a_body_that_may_change_loses_its_length() {
    for mode in [
        Body::Streamed,
        Body::BufferedPartial,
        Body::FullDuplexStreamed,
    ] {
        let mut bench = allowing(|_| {});
        bench.head(Req, false);
        bench.wish(Some(headers_reply()), wish(mode, Body::None));
        assert!(!bench.length(Req), "{mode:?}");
    }
}

#[test]
fn wishes_that_do_not_count_are_ignored() {
    type Change = fn(&mut Filter);
    let cases: [(&str, Change); 4] = [
        ("not allowed", |f| f.allow_mode_override = false),
        ("not in the list", |f| {
            let explicit = ProcessingMode {
                response_header_mode: Send::Send.into(),
                ..wish(Body::Buffered, Body::None)
            };
            f.allowed_override_modes = vec![explicit, wish(Body::Streamed, Body::None)];
        }),
        ("without waiting", |f| {
            f.send_body_without_waiting_for_header_response = true;
        }),
        ("full duplex", |f| {
            f.modes.response_body = BodyMode::FullDuplexStreamed;
        }),
    ];
    for (name, change) in cases {
        let mut bench = allowing(change);
        bench.head(Req, false);
        bench.wish(Some(headers_reply()), wish(Body::Buffered, Body::None));
        bench.data(Req, "aaa", true);
        assert_eq!(bench.sent(), ["headers"], "{name}");
        assert_eq!(bench.outcome(), None, "{name}");
    }
}

#[test]
fn a_route_in_full_duplex_cannot_be_changed() {
    let mut bench = allowing(|_| {});
    bench.exchange.terms.modes.request_body = BodyMode::FullDuplexStreamed;
    bench.head(Req, false);
    bench.wish(Some(headers_reply()), wish(Body::Buffered, Body::None));
    bench.data(Req, "aaa", true);
    assert_eq!(bench.sent(), ["headers"]);
}

#[test]
fn listed_modes_are_allowed_whatever_they_say_of_request_headers() {
    let mut bench = allowing(|f| {
        f.allowed_override_modes = vec![ProcessingMode {
            request_header_mode: Send::Skip.into(),
            ..wish(Body::Buffered, Body::None)
        }];
    });
    bench.head(Req, false);
    bench.wish(Some(headers_reply()), wish(Body::Buffered, Body::None));
    bench.data(Req, "aaa", true);
    assert_eq!(bench.sent(), ["headers", "aaa."]);
}

#[test]
fn a_wish_with_the_answer_to_a_body_is_ignored() {
    let mut bench = allowing(streaming);
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aa", false);
    bench.wish(Some(body_reply()), wish(Body::None, Body::Buffered));
    bench.data(Req, "bb", false);
    assert_eq!(bench.sent(), ["headers", "aa", "bb"]);
}

#[test]
fn the_answer_to_response_headers_leaves_a_request_body_on_its_way_alone() {
    let mut bench = allowing(streaming);
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aa", false);
    bench.head(Resp, false);
    let answer = Response::ResponseHeaders(HeadersResponse::default());
    bench.wish(Some(answer), wish(Body::None, Body::Buffered));
    bench.data(Req, "bb", false).data(Resp, "xx", true);
    assert_eq!(bench.sent(), ["headers", "aa", "HEADERS", "bb", "xx."]);
    bench.reply(body_reply()).reply(body_reply());
    assert_eq!(bench.onward(Req), ">aabb");
}

fn ahead() -> ProcessingMode {
    ProcessingMode {
        request_trailer_mode: Send::Send.into(),
        ..wish(Body::FullDuplexStreamed, Body::None)
    }
}

#[test]
fn full_duplex_can_be_asked_for_before_the_headers_are_answered() {
    let mut bench = allowing(streaming);
    bench.head(Req, false).data(Req, "aa", false);
    bench.wish(None, ahead());
    bench.data(Req, "bb", true);
    assert_eq!(bench.sent(), ["headers", "aa", "bb", "."]);
    assert_eq!(bench.onward(Req), "");
    bench.reply(headers_reply());
    bench.reply(piece(Req, "AABB", true));
    assert_eq!(bench.onward(Req), ">AABB.");
}

#[test]
fn any_other_wish_on_its_own_fails() {
    let no_trailers = wish(Body::FullDuplexStreamed, Body::None);
    let buffered = ProcessingMode {
        request_body_mode: Body::Buffered.into(),
        ..ahead()
    };
    for (mode, allowed) in [(no_trailers, true), (buffered, true), (ahead(), false)] {
        let mut bench = bench(|f| f.allow_mode_override = allowed);
        bench.head(Req, false);
        bench.wish(None, mode);
        assert_eq!(bench.outcome().as_deref(), Some("500 unhandled_message"));
    }
    let mut bench = allowing(|_| {});
    bench.head(Req, false).reply(headers_reply());
    bench.wish(None, ahead());
    assert_eq!(bench.outcome().as_deref(), Some("500 unhandled_message"));
}
