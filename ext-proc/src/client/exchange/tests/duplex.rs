//! FULL_DUPLEX_STREAMED.

use super::*;

fn duplex() -> Bench {
    bench(full_duplex)
}

fn full_duplex(f: &mut Filter) {
    f.modes.request_body = BodyMode::FullDuplexStreamed;
    f.modes.request_trailers = true;
}

fn trailers_reply() -> Response {
    Response::RequestTrailers(TrailersResponse::default())
}

#[test]
fn pieces_are_shown_at_once_and_what_comes_back_goes_on() {
    let mut bench = duplex();
    bench.head(Req, false).data(Req, "aa", false);
    assert_eq!(bench.sent(), ["headers", "aa"]);
    bench.reply(headers_reply());
    assert_eq!(bench.onward(Req), ">");
    bench.data(Req, "bb", true);
    assert_eq!(bench.sent(), ["bb", "."]);
    bench.reply(piece(Req, "one", false));
    bench.reply(piece(Req, "", false));
    assert_eq!(bench.onward(Req), "one");
    bench.reply(piece(Req, "two", true));
    assert_eq!(bench.onward(Req), "two.");
    assert_eq!(bench.outcome(), None);
}

#[test]
fn only_silence_is_bounded() {
    let mut bench = duplex();
    let idle = bench.exchange.terms.filter.idle_timeout;
    bench.head(Req, false);
    assert_eq!(bench.exchange.deadline(), Some(bench.now + idle));
    bench.now += idle / 2;
    bench.reply(headers_reply());
    assert_eq!(bench.exchange.deadline(), None, "no body was shown yet");
    bench.data(Req, "aa", false);
    assert_eq!(bench.exchange.deadline(), Some(bench.now + idle));
    bench.now += idle / 2;
    bench.reply(piece(Req, "aa", false));
    bench.data(Req, "", true);
    assert_eq!(bench.exchange.deadline(), Some(bench.now + idle));
    bench.now += idle;
    bench.exchange.tick(bench.now);
    let outcome = bench.outcome();
    assert_eq!(
        outcome.as_deref(),
        Some("504 ext_proc_error_per-message_timeout_exceeded")
    );
    assert_eq!(bench.exchange.terms.stats.message_timeouts.get(), 1);
}

#[test]
fn trailers_are_shown_at_once_and_end_the_message_when_answered() {
    let mut bench = duplex();
    bench.head(Req, false).data(Req, "aa", false).trailers(Req);
    assert_eq!(bench.sent(), ["headers", "aa", "trailers"]);
    bench.reply(headers_reply());
    bench.reply(piece(Req, "aa", false));
    assert_eq!(bench.onward(Req), ">aa");
    bench.reply(trailers_reply());
    assert_eq!(bench.onward(Req), "T.");
    assert_eq!(bench.outcome(), None);
}

#[test]
fn an_end_of_the_body_ends_a_message_whose_trailers_were_shown() {
    let mut bench = duplex();
    bench.head(Req, false).data(Req, "aa", false).trailers(Req);
    bench.reply(headers_reply());
    bench.reply(piece(Req, "aa", true));
    assert_eq!(bench.onward(Req), ">aaT.");
    // A late answer to the trailers changes nothing.
    bench.reply(trailers_reply());
    assert_eq!(bench.outcome(), None);
}

#[test]
fn an_answer_to_trailers_that_do_not_exist_ends_nothing() {
    let mut bench = duplex();
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aa", true).reply(trailers_reply());
    assert_eq!(bench.onward(Req), ">");
    bench.reply(piece(Req, "aa", true));
    assert_eq!(bench.onward(Req), "aa.");
}

#[test]
fn trailers_that_are_not_to_be_shown_end_the_body_all_the_same() {
    let mut bench = bench(|f| f.modes.request_body = BodyMode::FullDuplexStreamed);
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aa", false).trailers(Req);
    assert_eq!(bench.sent(), ["headers", "aa", "."]);
    bench.reply(piece(Req, "aa", true));
    assert_eq!(bench.onward(Req), ">aaT.");
}

#[test]
fn the_processor_ends_a_body_early() {
    let mut bench = duplex();
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aa", false).reply(piece(Req, "A", true));
    assert_eq!(bench.onward(Req), ">A.");
    bench.sent();
    bench.data(Req, "bb", false).trailers(Req);
    assert!(bench.sent().is_empty());
    assert_eq!(bench.onward(Req), ".");
}

#[test]
fn replies_out_of_order_or_of_the_wrong_kind_fail() {
    type Play = fn(&mut Bench);
    let plays: [(&str, Play); 7] = [
        ("body before headers", |b| {
            b.data(Req, "aa", false).reply(piece(Req, "aa", false));
        }),
        ("body before any was shown", |b| {
            b.reply(headers_reply()).reply(piece(Req, "aa", false));
        }),
        ("headers twice", |b| {
            b.reply(headers_reply()).reply(headers_reply());
        }),
        ("body after its end", |b| {
            b.reply(headers_reply()).data(Req, "aa", true);
            b.reply(piece(Req, "", true)).reply(piece(Req, "", true));
        }),
        ("a new body", |b| {
            b.reply(headers_reply()).data(Req, "aa", false);
            b.reply(new_body("bb"));
        }),
        ("no body", |b| {
            b.reply(headers_reply()).data(Req, "aa", false);
            b.reply(body_reply());
        }),
        ("trailers before headers", |b| {
            b.trailers(Req).reply(trailers_reply());
        }),
    ];
    for (name, play) in plays {
        let mut bench = duplex();
        bench.head(Req, false);
        play(&mut bench);
        let outcome = bench.outcome().unwrap_or_default();
        assert!(
            outcome.starts_with("500 spurious_message"),
            "{name}: {outcome}"
        );
    }
}

#[test]
fn a_clean_close_never_loses_what_was_shown() {
    let mut bench = duplex();
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aa", false).data(Req, "bb", false);
    bench.reply(piece(Req, "aa", false));
    bench.exchange.closed(bench.now);
    let outcome = bench.outcome();
    assert_eq!(
        outcome.as_deref(),
        Some("500 ext_proc_stream_closed_within_a_body")
    );
}

#[test]
fn a_clean_close_lets_pass_what_comes_after_everything_came_back() {
    let mut bench = duplex();
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aa", false).reply(piece(Req, "AA", false));
    bench.exchange.closed(bench.now);
    bench.data(Req, "bb", true);
    assert_eq!(bench.onward(Req), ">AAbb.");
    assert_eq!(bench.outcome(), None);
}

#[test]
fn failures_are_let_through_only_before_any_body_was_shown() {
    let status = tonic::Status::internal("x");
    for (shown, passes) in [(false, true), (true, false)] {
        let mut bench = bench(|f| {
            full_duplex(f);
            f.failure_mode_allow = true;
        });
        bench.head(Req, false);
        if shown {
            bench.data(Req, "aa", false);
        }
        bench.exchange.failed(&status, bench.now);
        assert_eq!(bench.outcome().is_none(), passes);
    }
}

#[test]
fn a_new_body_in_place_of_one_that_was_shown() {
    let mut bench = duplex();
    bench.head(Req, false).data(Req, "aa", false);
    bench.reply(replace_reply(Some("NEW")));
    assert_eq!(bench.onward(Req), ">NEW");
    bench.data(Req, "bb", true);
    assert_eq!(bench.onward(Req), ".");
}

#[test]
fn a_body_that_was_shown_cannot_be_kept() {
    let mut bench = duplex();
    bench.head(Req, false).data(Req, "aa", false);
    bench.reply(replace_reply(None));
    let outcome = bench.outcome();
    assert_eq!(
        outcome.as_deref(),
        Some("500 ext_proc_body_in_full_duplex_is_lost")
    );
}

#[test]
fn reading_pauses_while_too_much_waits_to_go_on_and_then_answers_do_too() {
    let mut bench = bench(|f| {
        full_duplex(f);
        f.buffer_limit = 4;
    });
    bench.head(Req, false).reply(headers_reply());
    bench
        .data(Req, "a", false)
        .reply(piece(Req, "aaaaa", false));
    assert!(!bench.exchange.wants_data(Req));
    assert!(!bench.exchange.is_full());
    for _ in 0..13 {
        bench.reply(piece(Req, "aaaaa", false));
    }
    assert!(bench.exchange.is_full());
    bench.onward(Req);
    assert!(bench.exchange.wants_data(Req) && !bench.exchange.is_full());
}

#[test]
fn what_nobody_reads_is_not_kept() {
    let mut bench = duplex();
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aa", false).reply(piece(Req, "aa", false));
    bench.exchange.unread(Req);
    bench.reply(piece(Req, "more", false));
    assert_eq!(bench.exchange.request.out_bytes, 0);
    assert_eq!(bench.exchange.deadline(), None, "the response goes on");
    assert_eq!(bench.outcome(), None);
}

#[test]
fn hidden_headers_go_on_at_once() {
    let mut bench = bench(|f| {
        full_duplex(f);
        f.modes.request_headers = false;
    });
    bench.head(Req, false);
    assert_eq!(bench.onward(Req), ">");
    bench.data(Req, "aa", true);
    assert_eq!(bench.sent(), ["aa", "."]);
    bench.reply(piece(Req, "aa", true));
    assert_eq!(bench.onward(Req), "aa.");
}
