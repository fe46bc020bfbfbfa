//! BUFFERED_PARTIAL.

use super::*;

fn partial(limit: usize) -> Bench {
    bench(|f| {
        f.modes.request_body = BodyMode::BufferedPartial;
        f.modes.request_trailers = true;
        f.buffer_limit = limit;
    })
}

#[test]
fn a_body_within_the_limit_is_shown_whole_and_holds_the_head() {
    let mut bench = partial(8);
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aaa", false).data(Req, "bbb", true);
    assert_eq!(bench.sent(), ["headers", "aaabbb."]);
    assert_eq!(bench.onward(Req), "");
    bench.reply(new_body("other length"));
    assert_eq!(bench.onward(Req), ">other length.");
}

#[test]
fn beyond_the_limit_the_rest_passes_unseen() {
    let mut bench = partial(4);
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aaa", false).data(Req, "bbb", false);
    assert_eq!(bench.sent(), ["headers", "aaabbb"]);
    bench.data(Req, "ccc", false);
    assert_eq!(bench.onward(Req), "");
    bench.reply(new_body("A"));
    assert_eq!(bench.onward(Req), ">Accc");
    bench.data(Req, "ddd", false).trailers(Req);
    assert_eq!(bench.sent(), ["trailers"]);
    assert_eq!(bench.onward(Req), "ddd");
    bench.reply(Response::RequestTrailers(TrailersResponse::default()));
    assert_eq!(bench.onward(Req), "T.");
}

#[test]
fn reading_pauses_while_the_start_is_unanswered_and_more_than_the_limit_follows() {
    let mut bench = partial(4);
    bench.head(Req, false);
    bench.data(Req, "aaaa", false);
    assert!(!bench.exchange.wants_data(Req), "headers are unanswered");
    bench.reply(headers_reply());
    assert!(bench.exchange.wants_data(Req));
    bench.data(Req, "bbbb", false);
    assert!(bench.exchange.wants_data(Req));
    bench.data(Req, "cccc", false);
    assert!(!bench.exchange.wants_data(Req), "the start is unanswered");
}

#[test]
fn a_clean_close_passes_the_start_and_the_rest_in_order() {
    let mut bench = partial(4);
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aaabbb", false).data(Req, "ccc", false);
    bench.exchange.closed(bench.now);
    assert_eq!(bench.onward(Req), ">aaabbbccc");
    bench.data(Req, "ddd", true);
    assert_eq!(bench.onward(Req), "ddd.");
}

#[test]
fn trailers_that_end_the_start_follow_its_answer() {
    let mut bench = partial(100);
    bench.head(Req, false).reply(headers_reply());
    bench.data(Req, "aaa", false).trailers(Req);
    assert_eq!(bench.sent(), ["headers", "aaa"]);
    bench.reply(body_reply());
    assert_eq!(bench.sent(), ["trailers"]);
    bench.reply(Response::RequestTrailers(TrailersResponse::default()));
    assert_eq!(bench.onward(Req), ">aaaT.");
}
