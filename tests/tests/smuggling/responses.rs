//! Responses of an origin that two parsers could read differently, through our proxy and through
//! real Envoy.

use std::net::SocketAddr;

use attache_tests::{
    envoy::{self, Envoy},
    envoy_config, ours,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{PATIENCE, config, statuses};

/// What is wrong, the response, and the status that the client gets.
const CASES: [(&str, &str, &str); 11] = [
    (
        "nothing: chunks",
        "200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "200",
    ),
    (
        "nothing: a length",
        "200 OK\r\ncontent-length: 3\r\n\r\nabc",
        "200",
    ),
    ("nothing: until the end", "200 OK\r\n\r\nabc", "200"),
    (
        "a length and chunks",
        "200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "502",
    ),
    (
        "no length and chunks",
        "200 OK\r\ncontent-length: 0\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "502",
    ),
    (
        "chunks and a length",
        "200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "502",
    ),
    (
        "two codings",
        "200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "502",
    ),
    (
        "an unknown coding",
        "200 OK\r\ntransfer-encoding: xchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "502",
    ),
    (
        "two lengths",
        "200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "502",
    ),
    (
        "chunks of nothing",
        "204 No Content\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "502",
    ),
    (
        "a length of nothing",
        "204 No Content\r\ncontent-length: 3\r\n\r\nabc",
        "502",
    ),
];

/// An origin that answers `/N` with the response of case N, and ends the connection.
async fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    if !matches!(stream.read_buf(&mut request).await, Ok(1..)) {
                        return;
                    }
                }
                let request = String::from_utf8_lossy(&request);
                let case = request.split([' ', '/']).nth(2).unwrap();
                let (_, response, _) = CASES[case.parse::<usize>().unwrap()];
                let response = format!("HTTP/1.1 {response}");
                let _ = stream.write_all(response.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    at
}

async fn answer(to: SocketAddr, case: usize) -> String {
    let request = format!("GET /{case} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("an answer").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_response_that_does_not_say_where_it_ends_is_a_502() {
    let config = config(origin().await);
    let ours = ours::start_ours(&config).await.unwrap();
    for (case, (name, _, status)) in CASES.iter().enumerate() {
        let answer = answer(ours.address, case).await;
        assert_eq!(statuses(&answer), [*status], "{name}: {answer}");
    }

    let Some(program) = envoy::program() else {
        assert!(std::env::var_os("ATTACHE_REQUIRE_ALL").is_none());
        println!("skipped: responses, compared with Envoy (run cargo xtask test)");
        return;
    };
    let (read, _) = ours::read(&config).unwrap();
    let part = envoy_config::exported(0, &read).unwrap();
    let envoy = Envoy::start(&program, &[part]).await.unwrap();
    for (case, (name, _, status)) in CASES.iter().enumerate() {
        let answer = answer(envoy.address(0).unwrap(), case).await;
        assert_eq!(statuses(&answer), [*status], "Envoy, {name}: {answer}");
    }
}
