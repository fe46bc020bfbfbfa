//! What hostile clients and origins try, and what becomes of it.
//!
//! | probe | test |
//! |---|---|
//! | `content-length` and `transfer-encoding` together; differing lengths; unknown codings | [`framing_that_two_parsers_could_read_differently_is_refused`] |
//! | the same after a request that was served | [`what_follows_a_refused_request_is_not_served`] |
//! | codings of HTTP/1.0 (CVE-2026-2835) | [`framing_that_two_parsers_could_read_differently_is_refused`] |
//! | space before the colon, folded lines, bare line feeds, bytes that are none of HTTP's | [`heads_that_two_parsers_could_read_differently_are_refused`] |
//! | two hosts, no host, hosts that are none, `host` beside an absolute target | [`hosts_are_one_and_well_formed`], [`an_absolute_target_is_the_host`] |
//! | `/a/../b//c/%2e%2e/d`, path parameters (CVE-2026-73511, -73551), `%00`, `\`, overlong UTF-8 | [`paths_are_normal_before_routing`] |
//! | `connection: x-secret`, `te`, `proxy-connection`, `keep-alive` | `http1.rs`, `hop_by_hop_headers_stop_here` |
//! | `x-envoy-*` of clients | [`internal_headers_of_clients_are_removed`] |
//! | too many headers, too large ones; cookies and `host` count (CVE-2026-47774, -73550) | [`cookies_and_hosts_count_as_headers`], [`compressed_headers_count_in_full`], `http1.rs`, `too_large_heads_get_431` |
//! | the first of these behind a request whose `upgrade` is ignored | [`an_upgrade_that_is_none_hides_nothing_behind_it`] |
//! | chunk sizes, chunk extensions, ends of chunks | [`chunks_that_two_parsers_could_read_differently_are_refused`], [`chunk_extensions_are_bounded`] |
//! | trailers: how many, and which | [`trailers_are_bounded`], [`trailers_never_become_headers`] |
//! | upgrades: bytes before the 101 (CVE-2026-73548, -2833) | [`nothing_behind_an_upgrade_is_forwarded_before_it_is_granted`], `http1.rs`, `a_refused_upgrade_closes_the_connection_and_passes_nothing_on` |
//! | `CONNECT` without a path (CVE-2026-73547) | [`connect_is_refused_in_any_form`]; asked about: `ext_authz` scenarios, row `connect` |
//! | pseudo-headers | [`pseudo_headers_are_checked`]; `tests/h2spec.rs` |
//! | connection-specific fields and bytes below HTTP/2 | [`fields_that_would_break_http1_are_refused_in_http2`] |
//! | `content-length` that is not the body's, in HTTP/2 | [`a_length_that_does_not_hold_reaches_nobody_as_a_whole_request`] |
//! | trailers without END_STREAM (CVE-2026-73513) | [`trailers_that_do_not_end_the_stream_are_an_error`], [`trailers_of_an_origin_that_do_not_end_the_stream_are_an_error`] |
//! | Rapid Reset, MadeYouReset | [`a_client_that_gives_up_all_it_begins_is_dropped`], [`a_client_that_gives_up_some_requests_is_not`], [`a_client_that_makes_us_reset_is_dropped`] |
//! | CONTINUATION, SETTINGS, PING, PRIORITY, empty DATA | [`endless_header_blocks_end_the_connection`], [`floods_of_frames_take_no_memory`], [`empty_data_frames_end_the_connection`] |
//! | windows that overflow or never open | [`windows_that_overflow_are_an_error`], [`an_http2_client_that_stops_reading_is_dropped`] |
//! | slow preface, slow head, slow body, slow reader | [`a_slow_preface_is_cut_off`], `http1.rs`, `a_slow_head_is_cut_off`, [`a_header_block_of_http2_that_does_not_end_is_cut_off`], [`a_body_that_a_policy_waits_for_may_not_stop`], [`a_client_that_never_reads_is_dropped`] |
//! | a connection kept by PING alone, or by not answering a GOAWAY | [`pings_do_not_keep_a_connection`], [`a_client_that_ignores_a_goaway_is_dropped`] |
//! | a client that leaves within its body | [`a_client_that_leaves_within_its_body_leaves_nothing_behind`] |
//! | too many requests, too many on one connection, too old a connection | [`requests_in_flight_are_bounded_and_others_shed_early`], [`a_connection_has_only_so_many_requests`], [`a_connection_has_only_so_long`] |
//! | memory | [`without_memory_requests_are_refused_and_then_taken_again`] |
//! | several unexpected messages of a processor (CVE-2026-47207) | `ext-proc/tests/fuzz`, `a_proxy_survives_any_processor` |
//! | deep JSON and YAML (CVE-2026-48042) | `fuzz`, `deep_configurations_are_mistakes` |
//! | HTML in names (CVE-2026-73546) | `service`, admin, `answers_are_never_taken_for_html` |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may panic"
)]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache_proxy::{
    access_log::{AccessLogPlan, Sink},
    config::{Config, NothingEmbedded},
    plan::{Codec, Limits, OverloadPlan},
    route::Forward,
};
use attache_service::config::Document;
use serde_json::Value;
use support::{
    OK, Origin, PATIENCE, Raw, Tested, echo_origin, eventually,
    frames::{self, Http2, Outcome, frame, request},
    header, http2, metric, once, origin, plan_to, plan_with, read_head, resident, start, status,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc::UnboundedReceiver,
};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const ENHANCE_YOUR_CALM: u32 = 11;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// A proxy with these limits in front of an origin that shows what it gets.
async fn limited(limits: impl FnOnce(&mut Limits)) -> (Tested, Origin, UnboundedReceiver<String>) {
    let (origin, heads) = echo_origin(OK).await;
    let plan = plan_with(
        origin.at,
        |listener| limits(&mut listener.limits),
        |_| {},
        Forward::to(0),
    );
    (start(plan).await, origin, heads)
}

async fn proxy() -> (Tested, Origin, UnboundedReceiver<String>) {
    limited(|_| {}).await
}

/// What comes back, until the connection ends or nothing more comes.
async fn probe(at: SocketAddr, request: &str) -> String {
    let mut client = Raw::connect(at).await;
    client.send(request).await;
    let mut answer = Vec::new();
    let wait = Duration::from_millis(500);
    while let Ok(Ok(1..)) = tokio::time::timeout(wait, client.0.read_buf(&mut answer)).await {}
    String::from_utf8_lossy(&answer).into_owned()
}

/// Every request gets 400, alone, and reaches nobody.
async fn all_are_refused(requests: &[(&str, String)]) {
    let (proxy, _origin, mut heads) = proxy().await;
    let mut wrong = Vec::new();
    for (what, request) in requests {
        // Whoever takes the request takes this one as well, and ends.
        let request =
            format!("{request}GET /next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let answer = probe(proxy.at, &request).await;
        if !answer.starts_with("HTTP/1.1 400 ") || answer.matches("HTTP/1.1").count() != 1 {
            wrong.push(format!("{what}: {answer:?}"));
        }
    }
    while let Ok(head) = heads.try_recv() {
        wrong.push(format!("reached the origin: {head:?}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn framing_that_two_parsers_could_read_differently_is_refused() {
    let head = |lines: &str| format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n0\r\n\r\n");
    let old = |lines: &str| format!("POST / HTTP/1.0\r\nhost: a\r\n{lines}\r\n\r\n0\r\n\r\n");
    let mut requests = Vec::new();
    for lines in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "content-length: 5\r\ntransfer-encoding: identity",
        "content-length: 5\r\ntransfer-encoding:",
        "content-length: 0\r\ntransfer-encoding: chunked",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5, 5",
        "content-length: 5,6",
        "content-length: +5",
        "content-length: -5",
        "content-length: 0x5",
        "content-length: 5 5",
        "content-length: 5;",
        "content-length: 5.0",
        "content-length: \"5\"",
        "content-length:",
        "content-length: ",
        "content-length: a",
        "content-length: 99999999999999999999999",
        "content-length: 18446744073709551616",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: chunked,",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked;q=1",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: identity\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: identity",
        "transfer-encoding: cow",
        "transfer-encoding:",
        "transfer-encoding: \x0bchunked",
        "transfer-encoding: chunked\x0b",
        "transfer-encoding:\r\n chunked",
        "transfer-encoding : chunked",
        "transfer-encoding\t: chunked",
        "transfer-encoding\x00: chunked",
        " transfer-encoding: chunked",
        "x: y\r\n transfer-encoding: chunked",
        "x: y\rtransfer-encoding: chunked",
        "x: y\ntransfer-encoding: chunked",
        "content-length: 5\r\n\ttransfer-encoding: chunked",
    ] {
        requests.push((lines, head(lines)));
    }
    for lines in [
        "transfer-encoding: chunked",
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: identity",
    ] {
        requests.push((lines, old(lines)));
    }
    all_are_refused(&requests).await;
}

#[tokio::test]
async fn framing_that_is_only_written_unusually_is_understood() {
    for lines in [
        "Transfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n",
        "transfer-encoding:chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: \t chunked \t \r\n\r\n0\r\n\r\n",
        "content-length:0005\r\n\r\n12345",
        "CONTENT-LENGTH: \t5 \r\n\r\n12345",
    ] {
        let (proxy, _origin, mut heads) = proxy().await;
        let request = format!(
            "POST /first HTTP/1.1\r\nhost: a\r\n{lines}GET /second HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        );
        let answer = once(proxy.at, &request).await;
        // The origin answers before the body, so the first may be the last.
        assert_eq!(status(&answer), 200, "{lines:?}: {answer}");
        let first = heads.recv().await.unwrap();
        assert!(first.starts_with("POST /first "), "{lines:?}: {first}");
        let lengths = ["content-length", "transfer-encoding"]
            .iter()
            .filter(|name| header(&first, name).is_some())
            .count();
        assert_eq!(lengths, 1, "{lines:?}: {first}");
    }
}

#[tokio::test]
async fn what_follows_a_refused_request_is_not_served() {
    let (proxy, _origin, mut heads) = proxy().await;
    let answer = once(
        proxy.at,
        "GET /good HTTP/1.1\r\nhost: a\r\n\r\n\
         POST /bad HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n\
         GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
    )
    .await;
    let statuses: Vec<_> = answer.match_indices("HTTP/1.1 ").collect();
    assert!(statuses.len() <= 2, "{answer}");
    assert!(!answer.contains("smuggled"));
    while let Ok(head) = heads.try_recv() {
        assert!(head.starts_with("GET /good "), "{head}");
    }
}

#[tokio::test]
async fn heads_that_two_parsers_could_read_differently_are_refused() {
    let line = |line: &str| format!("{line}\r\nhost: a\r\n\r\n");
    let with = |header: &str| format!("GET / HTTP/1.1\r\nhost: a\r\n{header}\r\n\r\n");
    let mut requests = Vec::new();
    for text in [
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET\t/ HTTP/1.1",
        "GET /\tHTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1\r",
        "GET / http/1.1",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / HTTP/0.9",
        "GET / HTTP/01.1",
        "GET / HTTP/1.1.1",
        "GET / XTTP/1.1",
        "GET /",
        "GET",
        "/ HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /#f HTTP/1.1",
        "GET /\x00 HTTP/1.1",
        "GET /\x7f HTTP/1.1",
        "GET /\x01 HTTP/1.1",
        "G\x00T / HTTP/1.1",
        "GE(T / HTTP/1.1",
        "GET a HTTP/1.1",
        "GET ../a HTTP/1.1",
        "GET ?a HTTP/1.1",
        "GET \\a HTTP/1.1",
        "GET * HTTP/1.1",
        "GET http:///a HTTP/1.1",
        "GET http://u:p@a/ HTTP/1.1",
        "GET ftp://a/ HTTP/1.1",
        "GET a:80 HTTP/1.1",
    ] {
        requests.push((text, line(text)));
    }
    for text in [
        "x : y",
        "x\t: y",
        ": y",
        "x",
        "x y: z",
        "x\x00: y",
        "x\x0b: y",
        "x(: y",
        "x\"y: z",
        "x@y: z",
        "\u{e9}: y",
        "x: a\x00b",
        "x: a\rb",
        "x: a\nb",
        "x: a\x01b",
        "x: a\x7fb",
        "x: y\r\n z",
        "x: y\r\n\tz",
        "x: y\n z",
        "x: y\r\n\r z: a",
        "\r",
    ] {
        requests.push((text, with(text)));
    }
    requests.push((
        "a folded first line",
        "GET / HTTP/1.1\r\n host: a\r\n\r\n".to_owned(),
    ));
    requests.push((
        "a line feed alone at the end",
        "GET / HTTP/1.1\r\nhost: a\r\n\n".to_owned(),
    ));
    requests.push(("TLS", "\x16\x03\x01\x02\x00\x01\r\n\r\n".to_owned()));
    all_are_refused(&requests).await;
}

#[tokio::test]
async fn hosts_are_one_and_well_formed() {
    let with = |lines: &str| format!("GET / HTTP/1.1\r\n{lines}\r\n");
    let mut requests = Vec::new();
    for lines in [
        "",
        "host: a\r\nhost: b\r\n",
        "host: a\r\nhost: a\r\n",
        "Host: a\r\nhOST: b\r\n",
        "host: a, b\r\n",
        "host: a b\r\n",
        "host: a/b\r\n",
        "host: http://a\r\n",
        "host: a?b\r\n",
        "host: a#b\r\n",
        "host: u@a\r\n",
        "host: a\\b\r\n",
        "host: a\"\r\n",
        "host: <a>\r\n",
        "host: a:b\r\n",
        "host: a:99999\r\n",
        "host: a:1:2\r\n",
        "host: [::1\r\n",
        "host: a\u{e9}\r\n",
    ] {
        requests.push((lines, with(lines)));
    }
    all_are_refused(&requests).await;
}

#[tokio::test]
async fn an_absolute_target_is_the_host() {
    let (proxy, _origin, mut heads) = proxy().await;
    let mut client = Raw::connect(proxy.at).await;
    client
        .send("GET http://real.example/x/../y HTTP/1.1\r\nhost: other.example\r\n\r\n")
        .await;
    assert_eq!(status(&client.response().await.0), 200);
    let seen = heads.recv().await.unwrap();
    assert!(seen.starts_with("GET /y HTTP/1.1\r\n"), "{seen}");
    assert_eq!(header(&seen, "host"), Some("real.example"));
    assert!(!seen.contains("other.example"), "{seen}");
}

#[tokio::test]
async fn asterisk_is_a_target_of_options_alone() {
    let (proxy, _origin, mut heads) = proxy().await;
    let mut client = Raw::connect(proxy.at).await;
    client.send("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let answer = status(&client.response().await.0);
    // No route matches it; it is no path.
    assert!(matches!(answer, 200 | 404), "{answer}");
    while let Ok(head) = heads.try_recv() {
        assert!(head.starts_with("OPTIONS * "), "{head}");
    }
}

#[tokio::test]
async fn paths_are_normal_before_routing() {
    let (proxy, _origin, mut heads) = proxy().await;
    let mut wrong = Vec::new();
    for (given, wanted) in [
        ("/a/../b//c/%2e%2e/d?q=/../", Some("/b//d?q=/../")),
        ("/public/%2E%2E/admin", Some("/admin")),
        ("/public/.%2e/admin", Some("/admin")),
        ("/public/..;/admin", Some("/admin")),
        ("/public/..;x=1/admin", Some("/admin")),
        ("/public/.;/../admin", Some("/admin")),
        ("/public/%2e%2e;/admin", Some("/admin")),
        ("/public\\..\\admin", Some("/admin")),
        ("/public/..\\admin", Some("/admin")),
        ("/%61dmin", Some("/admin")),
        ("/%41DMIN", Some("/ADMIN")),
        ("/./admin", Some("/admin")),
        ("/../../admin", Some("/admin")),
        ("/admin/.", Some("/admin/")),
        ("/admin/x/..", Some("/admin/")),
        ("/admin;x=y", Some("/admin;x=y")),
        // Escapes of what is not unreserved stay as they are, in either case.
        ("/a%2fb%2Fc", Some("/a%2fb%2Fc")),
        ("/a%5cb", Some("/a%5cb")),
        ("/a%252fb", Some("/a%252fb")),
        ("/a%3bb", Some("/a%3bb")),
        // Overlong forms of `.` and `/` are bytes that mean nothing.
        ("/%c0%ae%c0%ae/admin", Some("/%c0%ae%c0%ae/admin")),
        ("/a%c0%afb", Some("/a%c0%afb")),
        ("/%e0%80%ae/x", Some("/%e0%80%ae/x")),
        ("/%00", None),
        ("/admin%00.png", None),
        ("/%%32%65%%32%65/admin", None),
        ("/%2%65", None),
        ("http://h/public/../admin", Some("/admin")),
    ] {
        let request = format!("GET {given} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let answer = once(proxy.at, &request).await;
        let seen = heads.try_recv().ok();
        let target = seen.as_ref().map(|head| head.split(' ').nth(1).unwrap());
        let refused = status(&answer) == 400;
        if target != wanted || refused != wanted.is_none() {
            wrong.push(format!("{given}: {target:?}, {}", status(&answer)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn internal_headers_of_clients_are_removed() {
    let (proxy, _origin, mut heads) = proxy().await;
    let internal = [
        "x-envoy-original-path: /admin",
        "X-Envoy-Internal: true",
        "x-envoy-upstream-rq-timeout-ms: 1",
        "x-envoy-max-retries: 99",
        "x-envoy-retry-on: 5xx",
        "x-envoy-decorator-operation: x",
        "x-envoy-auth-partial-body: true",
        "x-envoy-original-host: evil",
        "x-forwarded-client-cert: Subject=admin",
        "x-forwarded-proto: https",
        "x-request-id: mine",
    ];
    let mut client = Raw::connect(proxy.at).await;
    client
        .send(&format!(
            "GET / HTTP/1.1\r\nhost: a\r\n{}\r\n\r\n",
            internal.join("\r\n")
        ))
        .await;
    assert_eq!(status(&client.response().await.0), 200);
    let seen = heads.recv().await.unwrap();
    for line in internal {
        let (name, value) = line.split_once(": ").unwrap();
        assert_ne!(header(&seen, name), Some(value), "{seen}");
    }

    let mut client = Http2::connect(proxy.at).await;
    let fields = request(
        "GET",
        "/",
        &[("x-envoy-internal", "true"), ("x-envoy-max-retries", "9")],
    );
    client.head(1, &fields, true).await;
    assert_eq!(client.outcome(1).await, Outcome::Answered(Some(200)));
    let seen = heads.recv().await.unwrap();
    assert_eq!(header(&seen, "x-envoy-internal"), None);
    assert_eq!(header(&seen, "x-envoy-max-retries"), None);
}

#[tokio::test]
async fn connection_cannot_name_what_others_rely_on() {
    let (proxy, _origin, mut heads) = proxy().await;
    let mut client = Raw::connect(proxy.at).await;
    client
        .send(
            "GET / HTTP/1.1\r\nhost: a\r\nauthorization: x\r\n\
             connection: host, x-forwarded-for, x-forwarded-proto, x-request-id, authorization, content-length\r\n\r\n",
        )
        .await;
    assert_eq!(status(&client.response().await.0), 200);
    let seen = heads.recv().await.unwrap();
    for kept in [
        "host",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-request-id",
        "authorization",
    ] {
        assert!(header(&seen, kept).is_some(), "{kept}: {seen}");
    }
}

#[tokio::test]
async fn cookies_and_hosts_count_as_headers() {
    let (proxy, _origin, mut heads) = proxy().await;
    let cookies = vec![("cookie", "a=b"); 101];
    let large = "y".repeat(70_000);
    let mut client = Http2::connect(proxy.at).await;
    client.head(1, &request("GET", "/", &cookies), true).await;
    let answered = client.outcome(1).await;
    assert_eq!(answered, Outcome::Answered(None), "431 is no common status");
    for (stream, field) in [(3, "cookie"), (5, "host"), (7, "x")] {
        // A frame is at most 16 KiB.
        let block = frames::block(&request("GET", "/", &[(field, &large)]));
        let mut bytes = Vec::new();
        let count = block.chunks(16 << 10).count();
        for (nth, piece) in block.chunks(16 << 10).enumerate() {
            let kind = if nth == 0 {
                frames::HEADERS
            } else {
                frames::CONTINUATION
            };
            let mut flags = if nth == 0 { frames::END_STREAM } else { 0 };
            if nth + 1 == count {
                flags |= frames::END_HEADERS;
            }
            bytes.extend(frame(kind, flags, stream, piece));
        }
        client.send(&bytes).await;
        assert_eq!(client.outcome(stream).await, Outcome::Answered(None));
    }
    assert!(heads.try_recv().is_err());
    assert!(client.is_alive(9).await);
    let many = format!(
        "GET / HTTP/1.1\r\nhost: a\r\n{}\r\n",
        "cookie: a=b\r\n".repeat(101)
    );
    assert_eq!(status(&once(proxy.at, &many).await), 431);
}

#[tokio::test]
async fn compressed_headers_count_in_full() {
    let (proxy, _origin, mut heads) = proxy().await;
    let mut client = Http2::connect(proxy.at).await;
    // A field of 4 KB goes into the table; each byte that follows stands for it.
    let mut block = frames::block(&request("GET", "/", &[]));
    block.push(0x40);
    let value = "y".repeat(3900);
    block.extend(&frames::block(&[("x", &value)])[1..]);
    block.extend(std::iter::repeat_n(0x80 | 62, 12_000));
    let flags = frames::END_HEADERS | frames::END_STREAM;
    client.send(&frame(frames::HEADERS, flags, 1, &block)).await;
    assert_eq!(client.end().await, Some(ENHANCE_YOUR_CALM));
    assert!(heads.try_recv().is_err());
    let mut other = Http2::connect(proxy.at).await;
    assert!(other.is_alive(1).await);
}

#[tokio::test]
async fn chunks_that_two_parsers_could_read_differently_are_refused() {
    let mut wrong = Vec::new();
    for body in [
        "0x3\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "g\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\rabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3;x\ny\r\nabc\r\n0\r\n\r\n",
        "3;x\r y\r\nabc\r\n0\r\n\r\n",
        "3;x=\"\n\"\r\nabc\r\n0\r\n\r\n",
        "3 3\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFF0\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nx y: z\r\n\r\n",
        "3\r\nabc\r\n0\r\nx: y\n\r\n",
        "3\r\nabc\r\n0\r\nx: y\r\n z\r\n\r\n",
        "3\r\nabc\r\n0\r\nx\r\n\r\n",
        "3\r\nabc\r\n0\r\n: x\r\n\r\n",
        "3\r\nabc\r\n0\r\nx : y\r\n\r\n",
        "3\r\nabc\r\n0\r\n\n",
        "3\r\nabc\r\n0\n\n",
    ] {
        // An origin that reads the whole request and tells whether it was complete.
        let (told, mut complete) = tokio::sync::mpsc::unbounded_channel();
        let origin = origin(move |_, mut stream| {
            let told = told.clone();
            async move {
                if read_head(&mut stream).await.is_none() {
                    return;
                }
                let mut body = Vec::new();
                let whole = loop {
                    match stream.read_u8().await {
                        Ok(byte) => body.push(byte),
                        Err(_) => break false,
                    }
                    if body.ends_with(b"0\r\n\r\n") {
                        break true;
                    }
                };
                let _ = told.send((whole, String::from_utf8_lossy(&body).into_owned()));
                let _ = stream.write_all(OK.as_bytes()).await;
            }
        })
        .await;
        let proxy = start(plan_to(origin.at)).await;
        let request = format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        let answer = probe(proxy.at, &request).await;
        let (whole, seen) = complete.try_recv().unwrap_or_default();
        if answer.contains(" 200 ") || whole {
            wrong.push(format!("{body:?}: {seen:?} {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn chunk_extensions_are_bounded() {
    let origin = draining_origin().await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    let chunk = format!("1;{}\r\nx\r\n", "e".repeat(4000));
    let mut sent = 0;
    while client.0.write_all(chunk.as_bytes()).await.is_ok() {
        sent += chunk.len();
        assert!(sent < 64 << 20, "extensions without end are taken");
    }
}

/// An origin that reads what comes and answers a request once it is complete.
async fn draining_origin() -> Origin {
    origin(|_, mut stream| async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            if buffer[..count].ends_with(b"0\r\n\r\n") {
                let _ = stream.write_all(OK.as_bytes()).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn trailers_are_bounded() {
    let origin = draining_origin().await;
    let proxy = start(plan_to(origin.at)).await;
    for line in [
        "x: y\r\n".to_owned(),
        format!("x: {}\r\n", "y".repeat(1000)),
    ] {
        let mut client = Raw::connect(proxy.at).await;
        client
            .send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n")
            .await;
        let mut sent = 0;
        while client.0.write_all(line.as_bytes()).await.is_ok() {
            sent += line.len();
            assert!(sent < 64 << 20, "trailers without end are taken");
        }
    }
}

/// An HTTP/2 origin that tells the trailers that it gets.
async fn trailers_origin() -> (Origin, UnboundedReceiver<http::HeaderMap>) {
    let (seen, trailers) = tokio::sync::mpsc::unbounded_channel();
    let origin = origin(move |_, stream| {
        let seen = seen.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let seen = seen.clone();
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        let _ = body.flow_control().release_capacity(data.len());
                    }
                    if let Ok(trailers) = body.trailers().await {
                        let _ = seen.send(trailers.unwrap_or_default());
                    }
                    let _ = respond.send_response(http::Response::new(()), true);
                });
            }
        }
    })
    .await;
    (origin, trailers)
}

#[tokio::test]
async fn trailers_never_become_headers() {
    let (origin, mut trailers) = trailers_origin().await;
    let proxy = start(plan_with(origin.at, |_| {}, http2, Forward::to(0))).await;
    let fields = [
        ("content-length", "5"),
        ("host", "evil"),
        ("authorization", "evil"),
        ("cookie", "evil"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-envoy-internal", "true"),
        ("x-checksum", "7"),
    ];
    let mut client = Http2::connect(proxy.at).await;
    client.head(1, &request("POST", "/", &[]), false).await;
    let flags = frames::END_STREAM | frames::END_HEADERS;
    let block = frames::block(&fields);
    client.send(&frame(frames::HEADERS, flags, 1, &block)).await;
    assert_eq!(client.outcome(1).await, Outcome::Answered(Some(200)));
    let seen = trailers.recv().await.unwrap();
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["x-checksum"]);

    let mut client = Raw::connect(proxy.at).await;
    let lines: String = fields
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    client
        .send(&format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\ntransfer-encoding: chunked\r\n{lines}\r\n"
        ))
        .await;
    assert_eq!(status(&client.head().await), 200);
    let seen = trailers.recv().await.unwrap();
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["x-checksum"]);
}

#[tokio::test]
async fn an_upgrade_that_is_none_hides_nothing_behind_it() {
    let (proxy, _origin, mut heads) = proxy().await;
    for upgrade in [
        "upgrade: x",
        "connection: close-not\r\nupgrade: websocket",
        "connection: upgrade\r\nupgrade: h2c\r\nupgrade: websocket",
    ] {
        let answer = probe(
            proxy.at,
            &format!(
                "GET /ws HTTP/1.1\r\nhost: a\r\n{upgrade}\r\n\r\n\
                 POST /smuggled HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        )
        .await;
        assert_eq!(answer.matches(" 200 ").count(), 1, "{upgrade}: {answer}");
        while let Ok(head) = heads.try_recv() {
            assert!(head.starts_with("GET /ws "), "{upgrade}: {head}");
        }
    }
}

#[tokio::test]
async fn nothing_behind_an_upgrade_is_forwarded_before_it_is_granted() {
    let (seen, mut bytes) = tokio::sync::mpsc::unbounded_channel();
    let origin = origin(move |_, mut stream| {
        let seen = seen.clone();
        async move {
            let mut all = Vec::new();
            let mut buffer = [0; 4096];
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                all.extend_from_slice(&buffer[..count]);
                let _ = seen.send(String::from_utf8_lossy(&all).into_owned());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let answer = once(
        proxy.at,
        "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\
         GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
    )
    .await;
    assert_eq!(status(&answer), 200);
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    let mut all = String::new();
    while let Ok(more) = bytes.try_recv() {
        all = more;
    }
    assert_eq!(all.matches("HTTP/1.1").count(), 1, "{all}");
}

#[tokio::test]
async fn connect_is_refused_in_any_form() {
    let (proxy, _origin, mut heads) = proxy().await;
    for target in ["a:1", "a", "/", "*", "http://a/", "http://a:1"] {
        let answer = once(
            proxy.at,
            &format!(
                "CONNECT {target} HTTP/1.1\r\nhost: a:1\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n"
            ),
        )
        .await;
        assert!(matches!(status(&answer), 400 | 403), "{target}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{target}: {answer}");
    }
    let mut client = Http2::connect(proxy.at).await;
    let mut stream = 1;
    for fields in [
        vec![(":method", "CONNECT"), (":authority", "a:1")],
        vec![(":method", "CONNECT")],
        request("CONNECT", "/", &[]),
        request("CONNECT", "/", &[(":protocol", "websocket")]),
    ] {
        client.head(stream, &fields, false).await;
        let outcome = client.outcome(stream).await;
        assert!(
            !matches!(outcome, Outcome::Answered(Some(200)) | Outcome::Ended(_)),
            "{fields:?}: {outcome:?}"
        );
        stream += 2;
    }
    assert!(client.is_alive(stream).await);
    let alive = heads.try_recv().unwrap();
    assert!(alive.starts_with("GET /alive "), "{alive}");
    assert!(heads.try_recv().is_err());
}

/// Every head ends its stream with an error or 400, reaches nobody, and the connection goes on.
async fn all_fail_in_http2(heads_of_requests: Vec<Vec<(&str, &str)>>) {
    let (proxy, _origin, mut heads) = proxy().await;
    let mut wrong = Vec::new();
    for fields in heads_of_requests {
        let mut client = Http2::connect(proxy.at).await;
        client.head(1, &fields, true).await;
        let outcome = client.outcome(1).await;
        let failed = matches!(
            outcome,
            Outcome::Reset(PROTOCOL_ERROR)
                | Outcome::Answered(Some(400))
                | Outcome::Ended(Some(PROTOCOL_ERROR))
        );
        if !failed {
            wrong.push(format!("{fields:?}: {outcome:?}"));
        }
        if let Ok(head) = heads.try_recv() {
            wrong.push(format!("{fields:?}: reached the origin: {head:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn pseudo_headers_are_checked() {
    let (method, scheme, path, authority) = (
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "a"),
    );
    all_fail_in_http2(vec![
        vec![method, scheme, authority],
        vec![method, path, authority],
        vec![scheme, path, authority],
        vec![method, scheme, path],
        vec![method, scheme, (":path", ""), authority],
        vec![method, scheme, (":path", "a"), authority],
        vec![method, scheme, (":path", "*"), authority],
        vec![method, scheme, (":path", "/a b"), authority],
        vec![method, scheme, (":path", "/a\r\nx: y"), authority],
        vec![method, scheme, (":path", "http://a/"), authority],
        vec![method, scheme, path, path, authority],
        vec![method, method, scheme, path, authority],
        vec![method, scheme, path, authority, (":authority", "b")],
        vec![method, scheme, path, authority, (":status", "200")],
        vec![method, scheme, path, authority, (":unknown", "x")],
        vec![method, scheme, path, ("x", "y"), authority],
        vec![method, scheme, path, (":authority", "u@a")],
        vec![method, scheme, path, (":authority", "a b")],
        vec![method, scheme, path, (":authority", "a/b")],
        vec![method, scheme, path, (":authority", "")],
        vec![method, scheme, path, authority, ("host", "b")],
        vec![
            method,
            scheme,
            path,
            authority,
            ("host", "a"),
            ("host", "b"),
        ],
        vec![(":method", "G T"), scheme, path, authority],
        vec![(":method", ""), scheme, path, authority],
        vec![
            (":method", "GET / HTTP/1.1\r\nx: y"),
            scheme,
            path,
            authority,
        ],
        vec![method, (":scheme", "h ttp"), path, authority],
    ])
    .await;
}

#[tokio::test]
async fn fields_that_would_break_http1_are_refused_in_http2() {
    let with = |name, value| request("GET", "/", &[(name, value)]);
    all_fail_in_http2(vec![
        with("transfer-encoding", "chunked"),
        with("connection", "close"),
        with("keep-alive", "1"),
        with("proxy-connection", "close"),
        with("upgrade", "websocket"),
        with("te", "gzip"),
        with("content-length", "5"),
        with("content-length", "a"),
        with("content-length", "+0"),
        request(
            "GET",
            "/",
            &[("content-length", "0"), ("content-length", "1")],
        ),
        with("X-Upper", "y"),
        with("x y", "z"),
        with("x:y", "z"),
        with("", "z"),
        with("x\r\ny", "z"),
        with("x", "y\r\nz: a"),
        with("x", "y\nz"),
        with("x", "y\rz"),
        with("x", "y\0z"),
    ])
    .await;
}

#[tokio::test]
async fn a_length_that_does_not_hold_reaches_nobody_as_a_whole_request() {
    let (told, mut bodies) = tokio::sync::mpsc::unbounded_channel();
    let origin = origin(move |_, mut stream| {
        let told = told.clone();
        async move {
            while let Some(head) = read_head(&mut stream).await {
                let length: usize = header(&head, "content-length").unwrap().parse().unwrap();
                let mut body = vec![0; length];
                if stream.read_exact(&mut body).await.is_err() {
                    return;
                }
                let _ = told.send(body);
                let _ = stream.write_all(OK.as_bytes()).await;
            }
        }
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    for data in ["1234", "123456", ""] {
        let mut client = Http2::connect(proxy.at).await;
        let fields = request("POST", "/", &[("content-length", "5")]);
        client.head(1, &fields, false).await;
        client
            .send(&frame(frames::DATA, frames::END_STREAM, 1, data.as_bytes()))
            .await;
        let outcome = client.outcome(1).await;
        assert!(
            !matches!(outcome, Outcome::Answered(Some(200))),
            "{data}: {outcome:?}"
        );
    }
    assert!(
        bodies.try_recv().is_err(),
        "a whole body reached the origin"
    );
}

#[tokio::test]
async fn trailers_that_do_not_end_the_stream_are_an_error() {
    let (origin, mut trailers) = trailers_origin().await;
    let proxy = start(plan_with(origin.at, |_| {}, http2, Forward::to(0))).await;
    let mut client = Http2::connect(proxy.at).await;
    client.head(1, &request("POST", "/", &[]), false).await;
    client.head(1, &[("x-checksum", "7")], false).await;
    let outcome = client.outcome(1).await;
    assert!(
        matches!(
            outcome,
            Outcome::Reset(PROTOCOL_ERROR) | Outcome::Ended(Some(PROTOCOL_ERROR))
        ),
        "{outcome:?}"
    );
    assert!(trailers.try_recv().is_err());
    let mut other = Http2::connect(proxy.at).await;
    assert!(other.is_alive(1).await);
}

#[tokio::test]
async fn trailers_of_an_origin_that_do_not_end_the_stream_are_an_error() {
    let origin = origin(|_, mut stream| async move {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        let mut answer = frame(frames::SETTINGS, 0, 0, &[]);
        answer.extend(frame(frames::SETTINGS, frames::ACK, 0, &[]));
        stream.write_all(&answer).await.unwrap();
        let mut head = [0; 9];
        loop {
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            stream.read_exact(&mut payload).await.unwrap();
            if head[3] == frames::HEADERS {
                break;
            }
        }
        // 200, some data, and trailers that go on.
        let mut answer = frame(frames::HEADERS, frames::END_HEADERS, 1, &[0x88]);
        answer.extend(frame(frames::DATA, 0, 1, b"data"));
        let trailers = frames::block(&[("x", "y")]);
        answer.extend(frame(frames::HEADERS, frames::END_HEADERS, 1, &trailers));
        stream.write_all(&answer).await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = start(plan_with(origin.at, |_| {}, http2, Forward::to(0))).await;
    let answer = once(proxy.at, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
}

/// An origin that never answers, and counts who asks.
async fn silent_origin() -> (Origin, Arc<AtomicUsize>) {
    let asked = Arc::<AtomicUsize>::default();
    let count = asked.clone();
    let origin = origin(move |_, mut stream| {
        let count = count.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    })
    .await;
    (origin, asked)
}

#[tokio::test]
async fn a_client_that_gives_up_all_it_begins_is_dropped() {
    let (origin, asked) = silent_origin().await;
    let plan = plan_with(
        origin.at,
        |listener| listener.limits.max_resets = 50,
        |_| {},
        Forward::to(0),
    );
    let proxy = start(plan).await;
    let mut client = Http2::connect(proxy.at).await;
    let block = frames::block(&request("GET", "/", &[]));
    let flags = frames::END_HEADERS | frames::END_STREAM;
    let mut dropped = false;
    for stream in (1..100_000).step_by(2) {
        let mut bytes = frame(frames::HEADERS, flags, stream, &block);
        bytes.extend(frame(frames::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        if !client.send(&bytes).await {
            dropped = true;
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(dropped, "resets without end are taken");
    assert!(asked.load(Ordering::Relaxed) < 5000);
    let mut other = Http2::connect(proxy.at).await;
    other.head(1, &request("GET", "/", &[]), true).await;
    eventually("others are served", || {
        metric(&proxy, "attache_downstream_connections{") == 1
    })
    .await;
}

#[tokio::test]
async fn a_client_that_gives_up_some_requests_is_not() {
    let (proxy, _origin, _heads) = limited(|limits| limits.max_resets = 5).await;
    let mut client = Http2::connect(proxy.at).await;
    let mut stream = 1;
    for _ in 0..30 {
        // Two are answered for one that is given up.
        for _ in 0..2 {
            assert!(client.is_alive(stream).await);
            stream += 2;
        }
        client.head(stream, &request("POST", "/", &[]), false).await;
        let reset = frame(frames::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
        client.send(&reset).await;
        stream += 2;
    }
    assert!(client.is_alive(stream).await);
}

#[tokio::test]
async fn a_client_that_makes_us_reset_is_dropped() {
    let (proxy, _origin, _heads) = proxy().await;
    let mut client = Http2::connect(proxy.at).await;
    let block = frames::block(&request("POST", "/", &[]));
    let mut sent = 0;
    for stream in (1..20_000).step_by(2) {
        // A window update of nothing is an error of the stream.
        let mut bytes = frame(frames::HEADERS, frames::END_HEADERS, stream, &block);
        bytes.extend(frame(frames::WINDOW_UPDATE, 0, stream, &[0; 4]));
        if !client.send(&bytes).await {
            break;
        }
        sent = stream;
        tokio::task::yield_now().await;
    }
    assert!(sent < 19_000, "resets without end are made");
    let mut other = Http2::connect(proxy.at).await;
    assert!(other.is_alive(1).await);
}

#[tokio::test]
async fn endless_header_blocks_end_the_connection() {
    let (proxy, _origin, mut heads) = proxy().await;
    for piece in [Vec::new(), frames::block(&[("x", "y")])] {
        let mut client = Http2::connect(proxy.at).await;
        let block = frames::block(&request("GET", "/", &[]));
        client
            .send(&frame(frames::HEADERS, frames::END_STREAM, 1, &block))
            .await;
        let more = frame(frames::CONTINUATION, 0, 1, &piece);
        let mut sent = 0;
        while client.send(&more).await {
            sent += 1;
            assert!(sent < 200_000, "headers without end are taken");
        }
    }
    assert!(heads.try_recv().is_err());
    let mut other = Http2::connect(proxy.at).await;
    assert!(other.is_alive(1).await);
}

#[tokio::test]
async fn floods_of_frames_take_no_memory() {
    let (proxy, _origin, _heads) = proxy().await;
    for flood in [
        frame(frames::SETTINGS, 0, 0, &[]),
        frame(frames::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]),
        frame(frames::PING, 0, 0, &[7; 8]),
        frame(frames::PRIORITY, 0, 1, &[0, 0, 0, 0, 0]),
        frame(frames::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        frame(frames::RST_STREAM, 0, 1, &8_u32.to_be_bytes()),
        frame(99, 0, 0, &[0; 64]),
    ] {
        let before = resident();
        let mut client = Http2::connect(proxy.at).await;
        // So that there is a stream that frames may be about.
        assert!(client.is_alive(1).await);
        let flood = flood.repeat(512);
        let send = async {
            for _ in 0..200 {
                // Who reads none of the answers is not read from for long.
                if !client.send(&flood).await {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), send).await;
        let growth = resident().saturating_sub(before);
        assert!(growth < 32 << 20, "{growth} bytes");
        let mut other = Http2::connect(proxy.at).await;
        assert!(other.is_alive(1).await);
    }
}

#[tokio::test]
async fn empty_data_frames_end_the_connection() {
    let (origin, _asked) = silent_origin().await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Http2::connect(proxy.at).await;
    client.head(1, &request("POST", "/", &[]), false).await;
    let empty = frame(frames::DATA, 0, 1, &[]).repeat(100);
    let mut sent = 0;
    while client.send(&empty).await {
        sent += 100;
        assert!(sent < 2_000_000, "empty frames without end are taken");
    }
    assert_eq!(
        client.end().await.unwrap_or(ENHANCE_YOUR_CALM),
        ENHANCE_YOUR_CALM
    );
}

/// The lines that a listener logs of one client, which `sends` until its connection ends.
async fn logged_of<F: Future<Output = ()>>(
    sends: impl FnOnce(Http2, Arc<AtomicUsize>) -> F,
) -> Vec<Value> {
    let (origin, asked) = silent_origin().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let log = AccessLogPlan::new(Sink::File(file.clone()));
    let plan = plan_with(
        origin.at,
        |listener| listener.access_logs = vec![log],
        |_| {},
        Forward::to(0),
    );
    let proxy = start(plan).await;

    sends(Http2::connect(proxy.at).await, asked).await;

    let stopped = tokio::time::timeout(PATIENCE, proxy.running.shutdown()).await;
    stopped.expect("the end of the connection");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

#[tokio::test]
async fn the_log_says_which_flood_has_ended_a_connection() {
    let block = frames::block(&request("GET", "/", &[]));
    let resets = logged_of(async |mut client, _| {
        let flags = frames::END_HEADERS | frames::END_STREAM;
        let mut bytes = Vec::new();
        for stream in (1..80).step_by(2) {
            bytes.extend(frame(frames::HEADERS, flags, stream, &block));
            bytes.extend(frame(frames::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        client.send(&bytes).await;
        assert_eq!(client.end().await, Some(ENHANCE_YOUR_CALM));
    })
    .await;
    let headers = logged_of(async |mut client, _| {
        client
            .send(&frame(frames::HEADERS, frames::END_STREAM, 1, &block))
            .await;
        let more = frame(frames::CONTINUATION, 0, 1, &frames::block(&[("x", "y")]));
        while client.send(&more).await {}
    })
    .await;
    let empty = frame(frames::DATA, 0, 1, &[]).repeat(2000);
    let pieces = logged_of(async |mut client, _| {
        let head = frames::block(&request("POST", "/", &[]));
        let mut bytes = frame(frames::HEADERS, frames::END_HEADERS, 1, &head);
        bytes.extend(&empty);
        while client.send(&bytes).await {
            bytes.clone_from(&empty);
        }
    })
    .await;
    let late_pieces = logged_of(async |mut client, asked| {
        client.head(1, &request("POST", "/", &[]), false).await;
        eventually("it is served", || asked.load(Ordering::Relaxed) == 1).await;
        while client.send(&empty).await {}
    })
    .await;

    assert_eq!(resets.len(), 40, "{resets:?}");
    for line in resets {
        assert_eq!(line["details"], "too_many_premature_resets", "{line}");
        assert_eq!(line["status"], 0, "{line}");
    }
    assert_eq!(headers.len(), 1, "{headers:?}");
    assert_eq!(headers[0]["details"], "http2.header_list_size_too_large");
    assert_eq!(pieces.len(), 1, "{pieces:?}");
    assert_eq!(pieces[0]["details"], "http2.inbound_empty_frames_flood");
    // Its request was one, and there was no other.
    assert_eq!(late_pieces.len(), 1, "{late_pieces:?}");
    assert_eq!(late_pieces[0]["method"], "POST", "{late_pieces:?}");
}

#[tokio::test]
async fn windows_that_overflow_are_an_error() {
    let (proxy, _origin, _heads) = proxy().await;
    let mut client = Http2::connect(proxy.at).await;
    let most = 0x7fff_ffff_u32.to_be_bytes();
    client
        .send(&frame(frames::WINDOW_UPDATE, 0, 0, &most))
        .await;
    assert_eq!(client.end().await, Some(FLOW_CONTROL_ERROR));
    let mut client = Http2::connect(proxy.at).await;
    client
        .send(&frame(
            frames::SETTINGS,
            0,
            0,
            &[0, 4, 0xff, 0xff, 0xff, 0xff],
        ))
        .await;
    // RFC 9113 §6.5.2 has another code for it.
    assert_eq!(client.end().await, Some(PROTOCOL_ERROR));
}

/// An origin whose answer has no end.
async fn endless_origin() -> Origin {
    origin(|_, mut stream| async move {
        if read_head(&mut stream).await.is_none() {
            return;
        }
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let chunk = format!("{:x}\r\n{}\r\n", 16 << 10, "y".repeat(16 << 10));
        let _ = stream.write_all(head.as_bytes()).await;
        while stream.write_all(chunk.as_bytes()).await.is_ok() {}
    })
    .await
}

#[tokio::test]
async fn a_client_that_never_reads_is_dropped() {
    let origin = endless_origin().await;
    let plan = plan_with(
        origin.at,
        |listener| listener.limits.write_timeout = Duration::from_millis(300),
        |_| {},
        Forward::to(0),
    );
    let proxy = start(plan).await;
    let before = resident();
    let mut client = Raw::connect(proxy.at).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually("the client is dropped", || {
        metric(&proxy, "attache_downstream_connections_broken_total") == 1
    })
    .await;
    assert_eq!(metric(&proxy, "attache_downstream_connections{"), 0);
    assert!(resident().saturating_sub(before) < 32 << 20);
}

#[tokio::test]
async fn an_http2_client_that_stops_reading_is_dropped() {
    let origin = endless_origin().await;
    let plan = plan_with(
        origin.at,
        |listener| listener.limits.write_timeout = Duration::from_millis(300),
        |_| {},
        Forward::to(0),
    );
    let proxy = start(plan).await;
    let before = resident();
    // Its windows are closed from the start, or never opened again.
    for window in [0, 65_535] {
        let mut client = Http2::with_settings(proxy.at, &[(INITIAL_WINDOW_SIZE, window)]).await;
        for stream in (1..200).step_by(2) {
            client.head(stream, &request("GET", "/", &[]), true).await;
        }
        client.end().await;
    }
    eventually("both are dropped", || {
        metric(&proxy, "attache_downstream_connections_broken_total") == 2
    })
    .await;
    let growth = resident().saturating_sub(before);
    assert!(growth < 128 << 20, "{growth} bytes for 200 streams");
}

#[tokio::test]
async fn a_slow_preface_is_cut_off() {
    let (proxy, _origin, _heads) =
        limited(|limits| limits.header_timeout = Duration::from_millis(200)).await;
    for begun in ["P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
        let mut client = Raw::connect(proxy.at).await;
        client.send(begun).await;
        assert_eq!(client.rest().await, "", "{begun}");
    }
}

#[tokio::test]
async fn a_header_block_of_http2_that_does_not_end_is_cut_off() {
    let (proxy, _origin, _heads) =
        limited(|limits| limits.header_timeout = Duration::from_millis(300)).await;
    let block = frames::block(&frames::request("GET", "/", &[]));
    let whole = frame(
        frames::HEADERS,
        frames::END_HEADERS | frames::END_STREAM,
        3,
        &block,
    );
    let begun = frame(frames::HEADERS, frames::END_STREAM, 3, &block);
    for (beginning, trickle) in [
        // Within the frame, after it, and with frames that add nothing.
        (&whole[..20], None),
        (&begun, None),
        (&begun, Some(frame(frames::CONTINUATION, 0, 3, &[]))),
    ] {
        let mut client = Http2::connect(proxy.at).await;
        assert!(client.is_alive(1).await);
        client.send(beginning).await;
        let Http2 { read, mut write } = client;
        let trickling = tokio::spawn(async move {
            while let Some(frame) = &trickle {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if write.write_all(frame).await.is_err() {
                    break;
                }
            }
            write
        });
        let mut read = read;
        let mut all = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, read.read_to_end(&mut all)).await;
        assert!(ended.is_ok(), "{} bytes were kept", beginning.len());
        trickling.abort();
    }
}

#[tokio::test]
async fn a_body_that_a_policy_waits_for_may_not_stop() {
    let (origin, mut heads) = echo_origin(OK).await;
    let text = format!(
        "
listeners:
- {{ name: edge, address: '127.0.0.1:0', filters: [auth], limits: {{ body_timeout: 200ms }} }}
filters:
  auth:
    ext_authz:
      transport_api_version: V3
      with_request_body: {{ max_request_bytes: 1000 }}
      grpc_service: {{ envoy_grpc: {{ cluster_name: auth }} }}
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters:
- {{ name: web, endpoints: ['{}'] }}
- {{ name: auth, endpoints: ['127.0.0.1:1'], http2: {{}} }}
",
        origin.at
    );
    let document = Document::parse("proxy.yaml", &text).unwrap();
    let (_, plan) = Config::read(&document, &NothingEmbedded).unwrap();
    let proxy = start(plan).await;
    let answer = once(
        proxy.at,
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc",
    )
    .await;
    assert!(answer.is_empty() || status(&answer) >= 400, "{answer}");
    assert!(heads.try_recv().is_err());
    eventually("nothing is left", || {
        metric(&proxy, "attache_downstream_connections{") == 0
    })
    .await;
}

#[tokio::test]
async fn pings_do_not_keep_a_connection() {
    let (proxy, _origin, _heads) = limited(|limits| {
        limits.idle_timeout = Duration::from_millis(300);
        limits.header_timeout = Duration::from_millis(300);
    })
    .await;
    let mut client = Http2::connect(proxy.at).await;
    assert!(client.is_alive(1).await);
    let ping = frame(frames::PING, 0, 0, &[7; 8]);
    let Http2 {
        mut read,
        mut write,
    } = client;
    let pinging = tokio::spawn(async move {
        while write.write_all(&ping).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut all = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, read.read_to_end(&mut all)).await;
    assert!(ended.is_ok(), "the connection is kept");
    pinging.abort();
}

#[tokio::test]
async fn a_client_that_ignores_a_goaway_is_dropped() {
    let (proxy, _origin, _heads) = limited(|limits| {
        limits.max_requests_per_connection = Some(1);
        limits.header_timeout = Duration::from_millis(300);
    })
    .await;
    let mut client = Http2::connect(proxy.at).await;
    assert!(client.is_alive(1).await);
    // It does not answer the PING that comes with it.
    client.end().await;
    eventually("nothing is left", || {
        metric(&proxy, "attache_downstream_connections{") == 0
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_within_its_body_leaves_nothing_behind() {
    let (gone, mut was_gone) = tokio::sync::mpsc::unbounded_channel();
    let origin = origin(move |_, mut stream| {
        let gone = gone.clone();
        async move {
            read_head(&mut stream).await;
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            let _ = gone.send(all);
        }
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    for lines in [
        "content-length: 10\r\n\r\nabc",
        "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let mut client = Raw::connect(proxy.at).await;
        client
            .send(&format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}"))
            .await;
        eventually("the request is there", || {
            metric(&proxy, "attache_downstream_connections{") == 1
        })
        .await;
        drop(client);
        let seen = tokio::time::timeout(PATIENCE, was_gone.recv()).await;
        let seen = seen.expect("the origin is told").unwrap();
        assert!(!seen.ends_with(b"0\r\n\r\n"), "{seen:?}");
        eventually("nothing is left", || {
            metric(&proxy, "attache_downstream_connections{") == 0
        })
        .await;
    }
}

#[tokio::test]
async fn requests_in_flight_are_bounded_and_others_shed_early() {
    let (origin, asked) = silent_origin().await;
    let plan = plan_with(
        origin.at,
        |listener| listener.limits.max_requests = Some(2),
        |_| {},
        Forward::to(0),
    );
    let proxy = start(plan).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut client = Raw::connect(proxy.at).await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        waiting.push(client);
    }
    eventually("two are in flight", || asked.load(Ordering::Relaxed) == 2).await;

    let mut third = Raw::connect(proxy.at).await;
    for _ in 0..2 {
        let (head, body) = third.get("/").await;
        assert_eq!(status(&head), 503);
        assert_eq!(header(&head, "x-envoy-local-overloaded"), Some("true"));
        assert_eq!(body, "the proxy is overloaded");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert_eq!(
        metric(&proxy, "attache_downstream_requests_overloaded_total"),
        2
    );

    waiting.pop();
    eventually("a place is free", || {
        metric(&proxy, "attache_downstream_connections{") == 2
    })
    .await;
    third.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually("it is taken", || asked.load(Ordering::Relaxed) == 3).await;
}

#[tokio::test]
async fn a_connection_has_only_so_many_requests() {
    let (proxy, _origin, _heads) = limited(|limits| {
        limits.max_requests_per_connection = Some(2);
        limits.header_timeout = Duration::from_millis(300);
    })
    .await;
    let mut client = Raw::connect(proxy.at).await;
    let (head, _) = client.get("/").await;
    assert_eq!(header(&head, "connection"), None);
    let (head, _) = client.get("/").await;
    assert_eq!(status(&head), 200);
    assert_eq!(header(&head, "connection"), Some("close"));
    assert_eq!(client.rest().await, "");

    let mut client = Http2::connect(proxy.at).await;
    assert!(client.is_alive(1).await);
    client.head(3, &request("GET", "/", &[]), true).await;
    assert_eq!(client.end().await, Some(0), "a GOAWAY without an error");
}

#[tokio::test]
async fn a_connection_has_only_so_long() {
    let (proxy, _origin, _heads) = limited(|limits| {
        limits.max_connection_duration = Some(Duration::from_millis(300));
        limits.header_timeout = Duration::from_millis(300);
    })
    .await;
    let mut client = Raw::connect(proxy.at).await;
    client.get("/").await;
    assert_eq!(client.rest().await, "");
    let mut client = Http2::connect(proxy.at).await;
    assert!(client.is_alive(1).await);
    assert_eq!(client.end().await, Some(0));
}

#[tokio::test]
async fn without_memory_requests_are_refused_and_then_taken_again() {
    let (origin, mut heads) = echo_origin(OK).await;
    let mut plan = plan_to(origin.at);
    plan.overload = Some(OverloadPlan {
        refresh_interval: Duration::from_millis(10),
        ..OverloadPlan::new(1)
    });
    let proxy = start(plan).await;
    eventually("it is seen", || {
        metric(&proxy, "attache_overload_active") == 1
    })
    .await;
    let mut client = Raw::connect(proxy.at).await;
    let (head, _) = client.get("/").await;
    assert_eq!(status(&head), 503);
    assert_eq!(header(&head, "x-envoy-local-overloaded"), Some("true"));
    assert!(heads.try_recv().is_err());

    let mut plan = plan_to(origin.at);
    plan.overload = Some(OverloadPlan::new(u64::MAX));
    proxy.running.reload(plan).await.unwrap();

    assert_eq!(status(&client.get("/").await.0), 200);
    eventually("it is told", || {
        metric(&proxy, "attache_overload_active") == 0
    })
    .await;
}

#[tokio::test]
async fn a_listener_may_speak_one_version_of_http() {
    let (origin, mut heads) = echo_origin(OK).await;
    let with = |codec| plan_with(origin.at, |l| l.codec = codec, |_| {}, Forward::to(0));
    let only_2 = start(with(Codec::Http2)).await;
    assert_eq!(
        once(only_2.at, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await,
        ""
    );
    assert!(heads.try_recv().is_err());
    assert!(Http2::connect(only_2.at).await.is_alive(1).await);
    let only_1 = start(with(Codec::Http1)).await;
    assert_eq!(
        once(only_1.at, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await,
        ""
    );
    assert_eq!(Raw::connect(only_1.at).await.get("/").await.1, "ok");
}
