//! HTTP/1.1 on both sides.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

mod support;

use std::time::Duration;

use attache_proxy::route::Forward;
use support::{
    OK, Raw, echo_origin, header, once, origin, plan_to, plan_with, read_head, start, status,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn requests_reach_the_origin_and_answers_come_back() {
    let (origin, mut heads) = echo_origin(OK).await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;

    let (head, body) = client.get("/x?y=1").await;

    assert_eq!(status(&head), 200);
    assert_eq!(body, "ok");
    assert!(header(&head, "x-envoy-upstream-service-time").is_some());
    assert!(header(&head, "date").is_some());
    let seen = heads.recv().await.unwrap();
    assert!(seen.starts_with("GET /x?y=1 HTTP/1.1\r\n"), "{seen}");
    assert_eq!(header(&seen, "host"), Some("test"));
    assert_eq!(header(&seen, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(header(&seen, "x-forwarded-proto"), Some("http"));
    assert_eq!(
        header(&seen, "x-envoy-expected-rq-timeout-ms"),
        Some("15000")
    );
    assert_eq!(header(&seen, "x-request-id").map(str::len), Some(36));
    proxy.running.shutdown().await;
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let origin = origin(|number, mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            let text = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
            stream.write_all(text.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.1, "0");
    }
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced_without_an_error() {
    let origin = origin(|number, mut stream| async move {
        read_head(&mut stream).await;
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
        stream.write_all(text.as_bytes()).await.unwrap();
        // Says keep-alive, closes all the same.
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;
    for expected in ["0", "1", "2"] {
        assert_eq!(client.get("/").await.1, expected);
    }
}

#[tokio::test]
async fn hop_by_hop_headers_stop_here() {
    let (origin, mut heads) = echo_origin(
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: 9\r\n\r\nok",
    )
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;
    client
        .send("GET / HTTP/1.1\r\nhost: a\r\nconnection: x-secret\r\nx-secret: 1\r\nte: gzip, trailers\r\nproxy-connection: x\r\nkeep-alive: 5\r\n\r\n")
        .await;
    let (head, _) = client.response().await;
    let seen = heads.recv().await.unwrap();
    for gone in ["x-secret", "connection", "proxy-connection", "keep-alive"] {
        assert_eq!(header(&seen, gone), None, "{gone}: {seen}");
    }
    assert_eq!(header(&seen, "te"), Some("trailers"));
    for gone in ["x-hop", "connection", "keep-alive"] {
        assert_eq!(header(&head, gone), None, "{gone}: {head}");
    }
}

#[tokio::test]
async fn doubtful_requests_get_400_and_the_connection_is_closed() {
    let (origin, mut heads) = echo_origin(OK).await;
    let proxy = start(plan_to(origin.at)).await;
    for (what, request) in [
        ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("bad host", "GET / HTTP/1.1\r\nhost: a b\r\n\r\n"),
        ("fragment", "GET /#x HTTP/1.1\r\nhost: a\r\n\r\n"),
        (
            "both lengths",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG",
        ),
        (
            "both lengths the other way",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\nG",
        ),
        (
            "differing lengths",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ncontent-length: 5\r\n\r\n123456",
        ),
        (
            "unknown coding",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        ("space before colon", "GET / HTTP/1.1\r\nhost : a\r\n\r\n"),
        (
            "folded line",
            "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n z\r\n\r\n",
        ),
        ("bare line feed", "GET / HTTP/1.1\nhost: a\r\n\r\n"),
        (
            "bare line feed in a header",
            "GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n",
        ),
        ("no request at all", "\x16\x03\x01 hello\r\n\r\n"),
        ("escaped zero", "GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n"),
    ] {
        let answer = once(proxy.at, request).await;
        assert_eq!(status(&answer), 400, "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{what}: {answer}");
    }
    assert!(heads.try_recv().is_err(), "nothing reached the origin");
}

#[tokio::test]
async fn what_follows_a_refused_request_is_not_served() {
    let (origin, mut heads) = echo_origin(OK).await;
    let proxy = start(plan_to(origin.at)).await;
    let answer = once(
        proxy.at,
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
    )
    .await;
    assert_eq!(status(&answer), 400);
    assert!(heads.try_recv().is_err());
}

#[tokio::test]
async fn too_large_heads_get_431() {
    let (origin, _heads) = echo_origin(OK).await;
    let proxy = start(plan_with(
        origin.at,
        |listener| listener.limits.max_header_bytes = 8192,
        |_| {},
        Forward::to(0),
    ))
    .await;
    let big = format!(
        "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
        "y".repeat(9000)
    );
    assert_eq!(status(&once(proxy.at, &big).await), 431);
    let many = format!(
        "GET / HTTP/1.1\r\nhost: a\r\n{}\r\n",
        "x: y\r\n".repeat(101)
    );
    assert_eq!(status(&once(proxy.at, &many).await), 431);
}

#[tokio::test]
async fn a_head_that_arrives_at_once_is_not_larger_either() {
    let (origin, _heads) = echo_origin(OK).await;
    let proxy = start(plan_with(
        origin.at,
        |listener| listener.limits.max_header_bytes = 8192,
        |_| {},
        Forward::to(0),
    ))
    .await;
    let mut client = Raw::connect(proxy.at).await;
    // After so many bytes, more than 8192 are read at once.
    let many = "GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2000);
    client.send(&many).await;
    for _ in 0..2000 {
        assert_eq!(status(&client.head().await), 200);
        client.take(2).await;
    }
    let big = format!(
        "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
        "y".repeat(9000)
    );

    client.send(&big).await;

    assert_eq!(status(&client.head().await), 431);
}

#[tokio::test]
async fn paths_are_normal_before_they_are_routed_and_forwarded() {
    let (origin, mut heads) = echo_origin(OK).await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;
    client.get("/a/../b//c/%2e%2e/d?q=/../").await;
    let seen = heads.recv().await.unwrap();
    assert!(seen.starts_with("GET /b//d?q=/../ HTTP/1.1"), "{seen}");
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_504() {
    let origin = origin(|_, mut stream| async move {
        read_head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let forward = Forward::to(0).with_timeout(Some(Duration::from_millis(50)));
    let proxy = start(plan_with(origin.at, |_| {}, |_| {}, forward)).await;
    let (head, _) = Raw::connect(proxy.at).await.get("/").await;
    assert_eq!(status(&head), 504);
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_is_503() {
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let proxy = start(plan_to(closed)).await;
    let (head, _) = Raw::connect(proxy.at).await.get("/").await;
    assert_eq!(status(&head), 503);
}

#[tokio::test]
async fn an_upstream_that_hangs_up_is_503() {
    let origin = origin(|_, mut stream| async move {
        read_head(&mut stream).await;
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let (head, _) = Raw::connect(proxy.at).await.get("/").await;
    assert_eq!(status(&head), 503);
}

#[tokio::test]
async fn a_response_that_breaks_off_does_not_look_complete() {
    let origin = origin(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .await
            .unwrap();
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let answer = once(proxy.at, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(status(&answer), 200);
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn the_timeout_covers_the_response_body() {
    let origin = origin(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")
            .await
            .unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let forward = Forward::to(0).with_timeout(Some(Duration::from_millis(100)));
    let proxy = start(plan_with(origin.at, |_| {}, |_| {}, forward)).await;
    let answer = once(proxy.at, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(answer.ends_with("abc"), "{answer}");
}

#[tokio::test]
async fn the_timeout_does_not_run_while_the_request_is_sent() {
    let (origin, _heads) = echo_origin(OK).await;
    let forward = Forward::to(0).with_timeout(Some(Duration::from_millis(100)));
    let origin = {
        drop(origin);
        support::origin(|_, mut stream| async move {
            read_head(&mut stream).await;
            let mut body = [0; 3];
            stream.read_exact(&mut body).await.unwrap();
            stream.write_all(OK.as_bytes()).await.unwrap();
        })
        .await
    };
    let proxy = start(plan_with(origin.at, |_| {}, |_| {}, forward)).await;
    let mut client = Raw::connect(proxy.at).await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\na")
        .await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    client.send("bc").await;
    assert_eq!(status(&client.response().await.0), 200);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_upstream_exchange() {
    let (gone, was_gone) = tokio::sync::oneshot::channel();
    let gone = std::sync::Mutex::new(Some(gone));
    let gone = std::sync::Arc::new(gone);
    let origin = origin(move |_, mut stream| {
        let gone = gone.clone();
        async move {
            read_head(&mut stream).await;
            // The proxy closes its side.
            assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
            let sender = gone.lock().unwrap().take();
            if let Some(sender) = sender {
                sender.send(()).unwrap();
            }
        }
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(client);
    tokio::time::timeout(support::PATIENCE, was_gone)
        .await
        .expect("the origin notices")
        .unwrap();
}

#[tokio::test]
async fn large_bodies_stream_both_ways_under_back_pressure() {
    const SIZE: usize = 32 << 20;
    let origin = origin(|_, mut stream| async move {
        read_head(&mut stream).await;
        let (mut read, mut write) = stream.split();
        let mut left = SIZE;
        write
            .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let count = read.read(&mut buffer).await.unwrap();
            assert_ne!(count, 0);
            write.write_all(&buffer[..count]).await.unwrap();
            left -= count;
        }
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;
    client
        .send(&format!(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {SIZE}\r\n\r\n"
        ))
        .await;
    let (mut read, mut write) = client.0.split();
    let upload = async {
        let chunk: Vec<u8> = (0..64 << 10).map(|i| (i % 251) as u8).collect();
        for _ in 0..SIZE / chunk.len() {
            write.write_all(&chunk).await.unwrap();
        }
    };
    let download = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(read.read_u8().await.unwrap());
        }
        // A slow start: everything in between has to wait.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut body = vec![0; SIZE];
        read.read_exact(&mut body).await.unwrap();
        assert!(
            body.iter()
                .enumerate()
                .all(|(i, b)| *b == (i % (64 << 10) % 251) as u8)
        );
    };
    tokio::join!(upload, download);
}

#[tokio::test]
async fn websockets_pass_through() {
    let origin = origin(|_, mut stream| async move {
        let head = read_head(&mut stream).await.unwrap();
        assert_eq!(header(&head, "upgrade"), Some("websocket"));
        assert_eq!(header(&head, "connection"), Some("upgrade"));
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello")
            .await
            .unwrap();
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).await.unwrap();
        stream.write_all(&buffer).await.unwrap();
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;
    client
        .send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n")
        .await;
    let head = client.head().await;
    assert_eq!(status(&head), 101);
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    assert_eq!(client.take(5).await, "hello");
    client.send("a\nb\n").await;
    assert_eq!(client.take(4).await, "a\nb\n");
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn a_refused_upgrade_closes_the_connection_and_passes_nothing_on() {
    let (origin, mut heads) =
        echo_origin("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let proxy = start(plan_to(origin.at)).await;
    let answer = once(
        proxy.at,
        "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
    )
    .await;
    assert_eq!(status(&answer), 400);
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(heads.recv().await.unwrap().starts_with("GET /ws "));
    assert!(heads.try_recv().is_err());
}

#[tokio::test]
async fn connect_is_refused() {
    let (origin, _heads) = echo_origin(OK).await;
    let proxy = start(plan_to(origin.at)).await;
    let answer = once(proxy.at, "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n").await;
    assert_eq!(status(&answer), 403);
}

#[tokio::test]
async fn expect_100_continue_is_answered_here() {
    let origin = origin(|_, mut stream| async move {
        let head = read_head(&mut stream).await.unwrap();
        assert_eq!(header(&head, "expect"), None);
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(OK.as_bytes()).await.unwrap();
    })
    .await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        .await;
    assert_eq!(status(&client.head().await), 100);
    client.send("hi").await;
    assert_eq!(status(&client.response().await.0), 200);
}

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let (origin, _heads) = echo_origin(OK).await;
    let proxy = start(plan_with(
        origin.at,
        |listener| listener.limits.header_timeout = Duration::from_millis(100),
        |_| {},
        Forward::to(0),
    ))
    .await;
    assert_eq!(status(&once(proxy.at, "GET / HT").await), 408);
    assert_eq!(once(proxy.at, "").await, "");
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let (origin, _heads) = echo_origin(OK).await;
    let proxy = start(plan_with(
        origin.at,
        |listener| listener.limits.idle_timeout = Duration::from_millis(100),
        |_| {},
        Forward::to(0),
    ))
    .await;
    let mut client = Raw::connect(proxy.at).await;
    client.get("/").await;
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn answers_to_head_keep_their_length_and_have_no_body() {
    let (origin, _heads) = echo_origin("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;
    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let head = client.head().await;
        assert_eq!(status(&head), 200);
        assert_eq!(header(&head, "content-length"), Some("5"));
    }
}

#[tokio::test]
async fn http_1_0_clients_get_a_body_that_ends_with_the_connection() {
    let (origin, mut heads) =
        echo_origin("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .await;
    let proxy = start(plan_to(origin.at)).await;
    let answer = once(proxy.at, "GET / HTTP/1.0\r\nhost: a\r\n\r\n").await;
    assert_eq!(status(&answer), 200);
    assert_eq!(header(&answer, "transfer-encoding"), None);
    assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
    let seen = heads.recv().await.unwrap();
    assert!(seen.starts_with("GET / HTTP/1.1\r\n"), "{seen}");
    assert_eq!(header(&seen, "host"), Some("a"));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (origin, mut heads) = echo_origin(OK).await;
    let proxy = start(plan_to(origin.at)).await;
    let answer = once(
        proxy.at,
        "POST /1 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(answer.matches("200 OK").count(), 2, "{answer}");
    let first = heads.recv().await.unwrap();
    assert!(first.starts_with("POST /1 "), "{first}");
}

#[tokio::test]
async fn origins_can_be_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("origin.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(buffer[..count].starts_with(b"GET / HTTP/1.1"));
        stream.write_all(OK.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    });
    let mut plan = plan_to("127.0.0.1:1".parse().unwrap());
    let address = format!("unix:{}", path.display()).parse().unwrap();
    plan.clusters = vec![std::sync::Arc::new(attache_proxy::plan::ClusterPlan::new(
        "unix",
        [address],
    ))];
    let proxy = start(plan).await;
    assert_eq!(Raw::connect(proxy.at).await.get("/").await.1, "ok");
    task.abort();
}

#[tokio::test]
async fn an_upstream_that_does_not_speak_http_is_502() {
    let (origin, _heads) = echo_origin("garbage\r\n\r\n").await;
    let proxy = start(plan_to(origin.at)).await;
    let (head, _) = Raw::connect(proxy.at).await.get("/").await;
    assert_eq!(status(&head), 502);
}

#[tokio::test]
async fn a_post_without_content_says_so_upstream() {
    let (origin, mut heads) = echo_origin(OK).await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = Raw::connect(proxy.at).await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.response().await;
    let seen = heads.recv().await.unwrap();
    assert_eq!(header(&seen, "content-length"), Some("0"));
    client.get("/").await;
    let seen = heads.recv().await.unwrap();
    assert_eq!(header(&seen, "content-length"), None);
}
