//! A processor that only looks on.

use super::*;

fn observed() -> Bench {
    bench(|f| {
        f.observability_mode = true;
        f.modes.request_body = BodyMode::Streamed;
        f.modes.response_body = BodyMode::Buffered;
        f.modes.request_trailers = true;
        f.buffer_limit = 1000;
    })
}

#[test]
fn everything_is_shown_and_nothing_waits() {
    let mut bench = observed();
    bench.head(Req, false);
    bench.data(Req, "aa", false).trailers(Req);
    assert_eq!(bench.onward(Req), ">aaT.");
    bench.head(Resp, false).data(Resp, "xx", true);
    assert_eq!(bench.onward(Resp), ">xx.");
    assert_eq!(bench.sent(), ["headers", "aa", "trailers", "HEADERS"]);
    assert_eq!(bench.exchange.deadline(), None);
}

#[test]
fn answers_are_ignored_and_lengths_kept() {
    let mut bench = observed();
    bench.head(Req, false);
    bench.reply(Response::ImmediateResponse(Default::default()));
    bench.reply(body_reply());
    assert_eq!(bench.outcome(), None);
    let head = bench.exchange.take_head(Req).unwrap();
    assert!(head.as_head().headers().contains_key("content-length"));
}

#[test]
fn a_failure_counts_and_a_clean_close_does_not() {
    let status = tonic::Status::internal("x");
    let mut failed = observed();
    failed.head(Req, false);
    failed.exchange.failed(&status, failed.now);
    assert!(
        failed
            .outcome()
            .unwrap()
            .starts_with("500 ext_proc_error_gRPC_error_13")
    );
    let mut closed = observed();
    closed.head(Req, false);
    closed.exchange.closed(closed.now);
    closed.sent();
    closed.data(Req, "aa", true);
    assert_eq!(closed.onward(Req), ">aa.");
    assert!(closed.sent().is_empty());
}

#[test]
fn what_a_slow_processor_cannot_take_is_left_out_and_counted() {
    let mut bench = observed();
    bench.head(Req, false);
    for _ in 0..100 {
        bench.data(Req, "twenty bytes of data", false);
    }
    bench.data(Req, "", true);
    assert!(bench.exchange.outbox().bytes() < 1100);
    let dropped = bench.exchange.terms.stats.observability_msgs_dropped.get();
    assert!(dropped > 10, "{dropped}");
    assert_eq!(bench.onward(Req).len(), 2 + 100 * 20);
}
