//! Streamed immediate responses.

use attache_proto::{
    core::{HeaderMap as WireMap, HeaderValue},
    ext_proc::{
        HttpHeaders, StreamedImmediateResponse, streamed_immediate_response::Response as Part,
    },
};

use super::*;

fn head(headers: &[(&str, &'static str)], end_of_stream: bool) -> Response {
    part(Part::HeadersResponse(HttpHeaders {
        headers: Some(map(headers)),
        end_of_stream,
        ..HttpHeaders::default()
    }))
}

fn map(headers: &[(&str, &'static str)]) -> WireMap {
    let entry = |(key, value): &(&str, &'static str)| HeaderValue {
        key: (*key).to_owned(),
        raw_value: Bytes::from_static(value.as_bytes()),
        ..HeaderValue::default()
    };
    WireMap {
        headers: headers.iter().map(entry).collect(),
    }
}

fn body(text: &'static str, end_of_stream: bool) -> Response {
    part(Part::BodyResponse(StreamedBodyResponse {
        body: text.into(),
        end_of_stream,
        ..StreamedBodyResponse::default()
    }))
}

fn part(part: Part) -> Response {
    Response::StreamedImmediateResponse(StreamedImmediateResponse {
        response: Some(part),
    })
}

const OK: &[(&str, &str)] = &[(":status", "200")];

#[test]
fn a_response_comes_piece_by_piece() {
    let mut bench = bench(|_| {});
    bench.head(Req, false);
    bench.reply(head(&[(":status", "201"), ("x-a", "1")], false));
    let Some(Outcome::Local(parts)) = bench.exchange.take_outcome() else {
        panic!("no response");
    };
    assert_eq!(
        (parts.status.as_u16(), &parts.headers["x-a"]),
        (201, &"1".parse().unwrap())
    );
    bench.reply(body("aa", false)).reply(body("bb", false));
    assert_eq!(bench.onward(Resp), "aabb");
    assert!(!bench.exchange.is_closed());
    bench.reply(body("", true));
    assert_eq!(bench.onward(Resp), ".");
    assert!(bench.exchange.is_closed());
    assert_eq!(bench.onward(Req), "", "the request goes nowhere");
}

#[test]
fn headers_of_a_streamed_response_may_repeat() {
    let mut bench = bench(|_| {});
    let headers = [(":status", "200"), ("set-cookie", "a"), ("set-cookie", "b")];
    bench.head(Req, true).reply(head(&headers, true));
    let Some(Outcome::Local(parts)) = bench.exchange.take_outcome() else {
        panic!("no response");
    };
    assert_eq!(parts.headers.get_all("set-cookie").iter().count(), 2);
}

#[test]
fn trailers_or_the_head_itself_end_a_response() {
    let mut with_trailers = bench(|_| {});
    with_trailers.head(Req, true).reply(head(OK, false));
    with_trailers.reply(part(Part::TrailersResponse(map(&[("t", "1")]))));
    assert_eq!(with_trailers.onward(Resp), "T.");
    let mut empty = bench(|_| {});
    empty.head(Req, true).reply(head(OK, true));
    assert_eq!(empty.onward(Resp), ".");
    assert!(empty.exchange.is_closed());
}

#[test]
fn a_response_that_does_not_fit_fails() {
    type Play = fn(&mut Bench);
    let plays: [(&str, Play, &str); 5] = [
        (
            "no status",
            |b| {
                b.reply(head(&[("x-a", "1")], false));
            },
            "502 filter_removed",
        ),
        (
            "bad status",
            |b| {
                b.reply(head(&[(":status", "abc")], false));
            },
            "500 header_mutation_set",
        ),
        (
            "bad value",
            |b| {
                b.reply(head(&[(":status", "200"), ("x", "a\nb")], false));
            },
            "500 header_mutation_set",
        ),
        (
            "body first",
            |b| {
                b.reply(body("aa", false));
            },
            "500 local_response_body_received",
        ),
        (
            "late",
            |b| {
                b.reply(headers_reply()).reply(head(OK, false));
            },
            "500 spurious",
        ),
    ];
    for (name, play, expected) in plays {
        let mut bench = bench(|_| {});
        bench.head(Req, false);
        play(&mut bench);
        let outcome = bench.outcome().unwrap_or_default();
        assert!(outcome.starts_with(expected), "{name}: {outcome}");
    }
    let mut buffered = bench(|f| f.modes.request_body = BodyMode::Buffered);
    buffered.head(Req, true).reply(head(OK, false));
    let outcome = buffered.outcome().unwrap_or_default();
    assert!(outcome.contains("streaming local response"), "{outcome}");
}

#[test]
fn a_response_that_stops_breaks_off() {
    let mut closed = bench(|f| f.failure_mode_allow = true);
    closed.head(Req, true).reply(head(OK, false));
    closed.exchange.take_outcome();
    closed.exchange.closed(closed.now);
    assert_eq!(closed.outcome().as_deref(), Some("reset"));
    assert!(closed.exchange.is_broken(Resp));

    let mut silent = bench(|f| f.failure_mode_allow = true);
    silent.head(Req, true).reply(head(OK, false));
    silent.exchange.take_outcome();
    let idle = silent.exchange.terms.filter.idle_timeout;
    assert_eq!(silent.exchange.deadline(), Some(silent.now + idle));
    silent.exchange.tick(silent.now + idle);
    assert_eq!(silent.outcome().as_deref(), Some("reset"));
    assert!(silent.exchange.is_broken(Resp));
}

#[test]
fn a_length_that_is_announced_must_hold() {
    let announced = [(":status", "200"), ("content-length", "4")];
    for (pieces, whole) in [
        (&["aa", "bb"][..], true),
        (&["aa"], false),
        (&["aaa", "bb"], false),
    ] {
        let mut bench = bench(|_| {});
        bench.head(Req, true).reply(head(&announced, false));
        bench.exchange.take_outcome();
        for piece in pieces {
            bench.reply(body(piece, false));
        }
        bench.reply(body("", true));
        assert_eq!(bench.outcome().is_none(), whole, "{pieces:?}");
    }
}

#[test]
fn a_request_in_full_duplex_is_still_shown() {
    let mut bench = bench(|f| {
        f.modes.request_body = BodyMode::FullDuplexStreamed;
        f.modes.request_trailers = true;
    });
    bench.head(Req, false).reply(head(OK, false));
    assert!(bench.exchange.shows_only());
    bench.data(Req, "aa", false);
    assert_eq!(bench.sent(), ["headers", "aa"]);
    bench.data(Req, "", true);
    assert_eq!(bench.sent(), ["."]);
    assert!(!bench.exchange.shows_only());
    bench.reply(body("", true));
    assert_eq!(bench.onward(Resp), ".");
}

#[test]
fn answers_are_not_read_while_too_much_waits() {
    let mut bench = bench(|f| f.buffer_limit = 4);
    bench.head(Req, true).reply(head(OK, false));
    bench.reply(body("aaaaa", false));
    assert!(bench.exchange.is_full());
}
