//! Requests that two parsers could read differently, sent to our proxy and to real Envoy; what
//! ours then sends to the origin is read by three parsers: ours of this test, nginx and Envoy.
//!
//! Every request that any of them sees must be one that our proxy has seen: it has the
//! `x-request-id` that the proxy gives to each request, which clients cannot. And all must see the
//! same ones. So nothing goes through behind the policies' back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;
mod emitted;
mod origin;
mod parsers;
mod responses;

use std::{net::SocketAddr, time::Duration};

use attache_tests::{
    PATIENCE,
    envoy::{self, Envoy},
    envoy_config, ours,
};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use cases::Case;
use emitted::{Emitted, Request};
use origin::Recorder;
use parsers::Parsers;

/// Nothing more comes back for a request that is not answered.
const QUIET: Duration = Duration::from_millis(250);

fn config(origin: SocketAddr) -> String {
    format!(
        "
listeners: [{{ name: edge, address: '127.0.0.1:0' }}]
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web, timeout: 2s }} }}]
clusters: [{{ name: web, endpoints: ['{origin}'], connect_timeout: 5s }}]
workers: 1
"
    )
}

/// Our proxy in front of an origin that records.
struct Ours {
    proxy: ours::RunningProxy,
    origin: Recorder,
}

impl Ours {
    async fn start() -> Self {
        let origin = Recorder::start().await;
        let proxy = ours::start_ours(&config(origin.at)).await.unwrap();
        Self { proxy, origin }
    }

    /// What comes back to the client, and what reached the origin on each connection.
    async fn run(&self, case: &Case) -> (String, Vec<Vec<u8>>) {
        let answer = case.send(self.proxy.address).await;
        (answer, self.origin.take().await)
    }
}

/// Sends bytes and reads what comes back until the end, or until nothing more comes.
async fn raw(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    while let Ok(Ok(1..)) = tokio::time::timeout(QUIET, stream.read_buf(&mut answer)).await {}
    String::from_utf8_lossy(&answer).into_owned()
}

/// The statuses of the responses in an answer.
fn statuses(answer: &str) -> Vec<&str> {
    let heads = answer.split("HTTP/1.1 ").skip(1);
    heads.filter_map(|head| head.get(..3)).collect()
}

/// What is wrong with what our proxy sent to the origin.
async fn faults(streams: &[Vec<u8>], parsers: &Parsers) -> Vec<String> {
    let mut faults = Vec::new();
    for bytes in streams {
        let text = || String::from_utf8_lossy(bytes).into_owned();
        let emitted = Emitted::parse(bytes);
        if let Some(fault) = &emitted.fault {
            faults.push(format!("{fault}: {:?}", text()));
        }
        for request in &emitted.requests {
            if request.ids != 1 || request.id.len() != 36 {
                faults.push(format!(
                    "{request:?} was not seen by the proxy: {:?}",
                    text()
                ));
            }
        }
        for (parser, seen) in parsers.read(bytes).await {
            let mut known = emitted.requests.iter();
            for request in &seen {
                let same = |other: &Request| other.is_as(request);
                if !known.any(same) {
                    let all = &emitted.requests;
                    faults.push(format!(
                        "{parser} sees {request:?}, not one of {all:?}: {:?}",
                        text()
                    ));
                }
            }
            let whole = emitted.requests.iter().filter(|r| r.complete).count();
            if seen.len() < whole && !seen.is_empty() && !emitted.may_be_untold() {
                faults.push(format!("{parser} sees only {seen:?}: {:?}", text()));
            }
        }
    }
    faults
}

#[tokio::test]
async fn no_parser_behind_the_proxy_sees_a_request_that_the_proxy_did_not() {
    let Some(parsers) = Parsers::start().await else {
        return;
    };
    let ours = Ours::start().await;
    let mut wrong = Vec::new();
    for case in cases::all() {
        let (answer, streams) = ours.run(&case).await;
        for fault in faults(&streams, &parsers).await {
            wrong.push(format!("{}: {fault}\n  answered {answer:?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What ours takes and Envoy does not, and why that is safe.
const WIDER: &[(&str, &str)] = &[
    (
        "connection names the host",
        "what others rely on stays, whatever `connection` names",
    ),
    (
        "host: case\\r\\nconnection: x-request-id, x-forwarded-for",
        "what others rely on stays, whatever `connection` names",
    ),
    (
        "GET https://other/case HTTP/1.1",
        "the scheme is that of the connection, whatever the target says",
    ),
    ("get /case HTTP/1.1", "any token is a method"),
    ("X-Y /case HTTP/1.1", "any token is a method"),
    (
        "connection: upgrade\\r\\nupgrade: h2c, websocket",
        "an upgrade may be ignored (RFC 9110 §7.8): what follows is read as requests",
    ),
    (
        "connection: upgrade\\r\\nupgrade: h2c\\r\\nupgrade: websocket",
        "it is ignored, and the connection closed behind it",
    ),
    (
        "connection: upgrade\\r\\nupgrade: websocket\\r\\ncontent-length: 5",
        "the body is the request's, and the connection closed behind it",
    ),
    (
        "HTTP/2: a fragment in the path",
        "the HTTP library cuts it off before anybody has seen it",
    ),
    ("HTTP/2: trailers that frame", "such trailers are dropped"),
    (
        "HTTP/2: trailers with a pseudo-header",
        "the HTTP library drops pseudo-headers of trailers",
    ),
];

#[tokio::test]
async fn what_envoy_refuses_ours_refuses_too() {
    let Some(program) = envoy::program() else {
        assert!(std::env::var_os("ATTACHE_REQUIRE_ALL").is_none());
        println!("skipped: smuggling, compared with Envoy (run cargo xtask test)");
        return;
    };
    let ours = Ours::start().await;
    let origin = Recorder::start().await;
    let (read, _) = ours::read(&config(origin.at)).unwrap();
    let part = envoy_config::exported(0, &read).unwrap();
    let envoy = Envoy::start(&program, &[part]).await.unwrap();
    let at = envoy.address(0).unwrap();
    let mut wrong = Vec::new();
    let mut table = String::new();
    for case in cases::all() {
        let (answer, _) = ours.run(&case).await;
        let theirs = case.send(at).await;
        origin.take().await;
        let (our_statuses, their_statuses) = (statuses(&answer), statuses(&theirs));
        table.push_str(&format!(
            "{:70} ours {our_statuses:?} Envoy {their_statuses:?}\n",
            case.name
        ));
        let takes = |statuses: &[&str]| statuses.first() == Some(&"200");
        let excused = WIDER.iter().any(|(name, _)| *name == case.name);
        if takes(&our_statuses) && !takes(&their_statuses) && !excused {
            wrong.push(format!(
                "{}: ours {our_statuses:?}, Envoy {their_statuses:?}",
                case.name
            ));
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let all = cases::all();
    for (name, _) in WIDER {
        assert!(all.iter().any(|case| case.name == *name), "{name}");
    }
}

#[tokio::test]
async fn no_mutation_of_a_request_is_seen_by_a_parser_and_not_by_the_proxy() {
    let Some(parsers) = Parsers::start().await else {
        return;
    };
    let ours = Ours::start().await;
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let only = number("ATTACHE_FUZZ_SEED");
    let time = Duration::from_secs(number("ATTACHE_FUZZ_SECONDS").unwrap_or(5));
    let start = std::time::Instant::now();
    let all = cases::all();
    let all: Vec<_> = all.iter().filter_map(Case::bytes).collect();
    let mut seeds = SmallRng::from_os_rng();
    let (mut count, mut reached) = (0, 0);
    while start.elapsed() < time {
        let seed = only.unwrap_or_else(|| seeds.random());
        let mut random = SmallRng::seed_from_u64(seed);
        let mut bytes = match random.random_bool(0.5) {
            true => all.choose(&mut random).unwrap().to_vec(),
            false => cases::PLAIN
                .choose(&mut random)
                .unwrap()
                .as_bytes()
                .to_vec(),
        };
        cases::mutate(&mut random, &mut bytes);
        bytes.extend(cases::CANARY.as_bytes());
        let answer = raw(ours.proxy.address, &bytes).await;
        let streams = ours.origin.take().await;
        reached += usize::from(!streams.is_empty());
        let faults = faults(&streams, &parsers).await;
        assert!(
            faults.is_empty(),
            "ATTACHE_FUZZ_SEED={seed}\n{}\nsent {:?}\nanswered {answer:?}",
            faults.join("\n"),
            String::from_utf8_lossy(&bytes)
        );
        count += 1;
        if only.is_some() {
            break;
        }
    }
    println!("{count} mutations, {reached} of them reached the origin");
    assert!(count > 0);
}
