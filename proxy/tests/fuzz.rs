//! What comes from outside, random: bytes of HTTP/1.1 and HTTP/2 clients, paths, headers of the
//! PROXY protocol, configurations. Nothing panics, nothing hangs, nothing grows without bound.
//!
//! `cargo xtask fuzz` runs them for minutes, an ordinary test run for seconds. A failure names the
//! seed of its case; `ATTACHE_FUZZ_SEED` runs that case alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may panic"
)]

mod support;

use std::time::{Duration, Instant};

use attache_proxy::{
    config::{Config, NothingEmbedded},
    proxy_protocol::{self, Malformed, Parsed},
};
use attache_service::config::Document;
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use support::{
    OK, PATIENCE, Tested, echo_origin,
    frames::{self, frame, request},
    plan_to, start,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc::UnboundedReceiver,
};

/// How much the process may grow after its first cases, which fill pools and caches.
const GROWTH: u64 = 96 << 20;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs cases until the time is over.
async fn run(name: &str, mut case: impl AsyncFnMut(&mut SmallRng)) {
    let only = number("ATTACHE_FUZZ_SEED");
    let time = Duration::from_secs(number("ATTACHE_FUZZ_SECONDS").unwrap_or(3));
    let start = Instant::now();
    let mut settled = None;
    let mut cases = 0_u64;
    let mut seeds = SmallRng::from_os_rng();
    while start.elapsed() < time {
        let seed = only.unwrap_or_else(|| seeds.random());
        let told = Told(name, seed);
        let mut random = SmallRng::seed_from_u64(seed);
        let done = tokio::time::timeout(3 * PATIENCE, case(&mut random)).await;
        assert!(done.is_ok(), "a hang");
        std::mem::forget(told);
        cases += 1;
        if only.is_some() {
            return;
        }
        if settled.is_none() && start.elapsed() > time / 4 {
            settled = resident();
        }
    }
    let growth = match (settled, resident()) {
        (Some(before), Some(after)) => after.saturating_sub(before),
        _ => 0,
    };
    println!("{name}: {cases} cases, memory grew by {} KiB", growth >> 10);
    assert!(cases > 0, "not one case in {time:?}");
    assert!(growth < GROWTH, "memory grew by {growth} bytes");
}

/// Tells the seed of a case when it is dropped: only where the case fails.
struct Told<'n>(&'n str, u64);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        eprintln!("{}: failed with ATTACHE_FUZZ_SEED={}", self.0, self.1);
    }
}

fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Changes bytes here and there: flips, removes, repeats, puts in what parsers trip over.
fn mutate(random: &mut SmallRng, bytes: &mut Vec<u8>, odd: &[&[u8]]) {
    for _ in 0..random.random_range(0..6) {
        if bytes.is_empty() {
            return;
        }
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..5) {
            0 => bytes[at] = random.random(),
            1 => {
                let end = (at + random.random_range(1..20)).min(bytes.len());
                bytes.drain(at..end);
            }
            2 => {
                let end = (at + random.random_range(1..60)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let piece = odd.choose(random).copied().unwrap_or_default();
                bytes.splice(at..at, piece.iter().copied());
            }
        }
    }
}

const ODD: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"\r\n ",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"content-length: 3\r\n",
    b"transfer-encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"connection: upgrade\r\nupgrade: websocket\r\n",
    b"expect: 100-continue\r\n",
    b"host: b\r\n",
    b"HTTP/1.0",
    b"http://x",
    b"%2e%2e/",
    b"#",
    b"ffffffffffffffff",
    b"\xff\xfe",
];

const REQUESTS: [&str; 7] = [
    "GET /a/../b?c=d HTTP/1.1\r\nhost: a\r\naccept: */*\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nt: u\r\n\r\n",
    "GET http://a.example:80/x HTTP/1.1\r\nhost: a\r\nconnection: x-y, close\r\nx-y: z\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "HEAD / HTTP/1.0\r\nhost: [::1]:80\r\ncookie: a=b\r\n\r\n",
];

/// Sends bytes in random pieces, and waits for the end of what comes back.
async fn converse(random: &mut SmallRng, proxy: &Tested, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(proxy.at).await.unwrap();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(random.random_range(1..=rest.len()));
        rest = more;
        if stream.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let all = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(all.is_ok(), "the connection does not end: {bytes:?}");
    answer
}

/// A proxy whose origin answers everything, and the heads that the origin got.
async fn proxy() -> (Tested, support::Origin, UnboundedReceiver<String>) {
    let (origin, heads) = echo_origin(OK).await;
    (start(plan_to(origin.at)).await, origin, heads)
}

#[tokio::test]
async fn a_proxy_survives_any_http1_client() {
    let (proxy, _origin, mut heads) = proxy().await;
    run("HTTP/1.1 client", async |random| {
        let mut bytes = Vec::new();
        for _ in 0..random.random_range(1..4) {
            let mut request = REQUESTS.choose(random).unwrap().as_bytes().to_vec();
            mutate(random, &mut request, &ODD);
            bytes.extend(request);
        }
        converse(random, &proxy, &bytes).await;
        while let Ok(head) = heads.try_recv() {
            // The origin may take a body for a head, or for the beginning of the next, as it reads
            // none; heads are well-formed.
            let Some((line, rest)) = head.split_once("\r\n") else {
                continue;
            };
            let begins = |line: &str| line.ends_with(" HTTP/1.1");
            let lines = rest.trim_end().lines();
            if !begins(line) || lines.clone().any(begins) {
                continue;
            }
            let names: Vec<_> = lines.filter_map(|line| line.split_once(':')).collect();
            let count = |name: &str| {
                let mut all = names.iter().map(|(name, _)| name.to_ascii_lowercase());
                all.by_ref().filter(|found| found == name).count()
            };
            assert_eq!(count("host"), 1, "{head}");
            let lengths = count("content-length") + count("transfer-encoding");
            assert!(lengths <= 1, "{head}");
            // A query is nobody's path.
            let path = line.split('?').next().unwrap_or_default();
            assert!(!path.contains("/../"), "{head}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_proxy_survives_any_http2_client() {
    let (proxy, _origin, mut heads) = proxy().await;
    run("HTTP/2 client", async |random| {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(frames::SETTINGS, 0, 0, &[]));
        for _ in 0..random.random_range(1..12) {
            let stream = random.random_range(0..8);
            let kind = random.random_range(0..11);
            let flags = random.random();
            let payload = match kind {
                frames::HEADERS if random.random_bool(0.8) => {
                    let more = [("content-length", "3"), ("te", "trailers"), ("x", "y")];
                    let count = random.random_range(0..=more.len());
                    frames::block(&request("POST", "/a/../b", &more[..count]))
                }
                _ => {
                    let mut payload = vec![0; random.random_range(0..40)];
                    random.fill(payload.as_mut_slice());
                    payload
                }
            };
            let (flags, stream) = match kind {
                frames::HEADERS if random.random_bool(0.8) => (frames::END_HEADERS, stream | 1),
                _ => (flags, stream),
            };
            bytes.extend(frame(kind, flags, stream, &payload));
        }
        if random.random_bool(0.3) {
            let after = bytes.split_off(24);
            let mut after = after;
            mutate(random, &mut after, &ODD);
            bytes.extend(after);
        }
        converse(random, &proxy, &bytes).await;
        while heads.try_recv().is_ok() {}
    })
    .await;
}

#[tokio::test]
async fn no_path_leaves_its_root() {
    let (proxy, _origin, mut heads) = proxy().await;
    const PIECES: [&str; 20] = [
        "/", ".", "..", "%2e", "%2E", "%2f", "%5c", "\\", ";", "a", "%61", "%", "%25", "%00", "?",
        "%c0%ae", "//", "%u002e", "=", "%2",
    ];
    run("paths", async |random| {
        let mut bytes = Vec::new();
        for _ in 0..20 {
            let count = random.random_range(0..12);
            let path: String = (0..count)
                .map(|_| *PIECES.choose(random).unwrap())
                .collect();
            bytes.extend(format!("GET /{path} HTTP/1.1\r\nhost: a\r\n\r\n").bytes());
        }
        converse(random, &proxy, &bytes).await;
        while let Ok(head) = heads.try_recv() {
            let target = head.split(' ').nth(1).unwrap();
            let path = target.split('?').next().unwrap();
            for segment in path.split('/') {
                let name = segment.split(';').next().unwrap();
                assert!(name != "." && name != "..", "{target}");
                let lower = name.to_ascii_lowercase();
                assert!(!lower.contains("%2e"), "{target}");
            }
            assert!(!path.contains('\\') && !path.contains("%00"), "{target}");
        }
    })
    .await;
}

const PROXY_HEADERS: [&[u8]; 6] = [
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\nGET / HTTP/1.1\r\n",
    b"PROXY TCP6 ::1 2001:db8::1 1000 80\r\n",
    b"PROXY UNKNOWN\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x03\xe8\0\x50",
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x27\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\x01\0\x02\x04\0\0",
];

/// What a parser says of `bytes`, as far as a longer beginning of the same must not change it.
fn said(bytes: &[u8]) -> Option<Result<Parsed, Malformed>> {
    match proxy_protocol::parse(bytes) {
        Ok(Parsed::Incomplete) => None,
        other => Some(other),
    }
}

#[tokio::test]
async fn what_a_proxy_header_says_does_not_depend_on_how_it_arrives() {
    run("PROXY protocol", async |random| {
        for _ in 0..100 {
            let mut bytes = PROXY_HEADERS.choose(random).unwrap().to_vec();
            mutate(random, &mut bytes, &ODD);
            let whole = said(&bytes);
            for end in 0..=bytes.len() {
                if let Some(early) = said(&bytes[..end]) {
                    assert_eq!(Some(early), whole, "{end} of {bytes:?}");
                }
            }
            if let Some(Ok(Parsed::Found { length, .. })) = whole {
                assert!(length <= 16 + 65_535, "{bytes:?}");
            }
        }
    })
    .await;
}

const CONFIGURATION: &str = r#"
listeners:
- name: edge
  address: 127.0.0.1:0
  filters: [auth, rewrite]
  limits: { max_connections: 100, max_headers: 50, max_header_bytes: 16KiB, header_timeout: 5s }
  access_log: { format: json, sample: 0.01, always: [errors, "slow>1s"] }
filters:
  auth:
    ext_authz: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: web }, timeout: 0.25s } }
  rewrite:
    ext_proc:
      grpc_service: { envoy_grpc: { cluster_name: web } }
      processing_mode: { request_body_mode: STREAMED }
routes:
- match: { prefix: /, headers: [{ name: x, string_match: { safe_regex: { regex: "a+b" } } }] }
  route: { cluster: web, timeout: 30s, retry_policy: { retry_on: 5xx, num_retries: 2 } }
clusters:
- { name: web, endpoints: ["127.0.0.1:3000"], http2: {} }
overload: { max_memory: 512MiB }
"#;

const ODD_YAML: [&[u8]; 22] = [
    b"\n",
    b"  ",
    b"\t",
    b"- ",
    b": ",
    b"{",
    b"}",
    b"[[[[[[[[",
    b"&a ",
    b"*a",
    b"<<: *a\n",
    b"!!binary ",
    b"\"",
    b"'",
    b"|\n",
    b"${X:-y}",
    b"99999999999999999999",
    b"-1",
    b"1e400",
    b".nan",
    b"\xff",
    b"(a*)*",
];

#[tokio::test]
async fn any_configuration_is_a_plan_or_mistakes() {
    run("configurations", async |random| {
        let mut text = CONFIGURATION.as_bytes().to_vec();
        mutate(random, &mut text, &ODD_YAML);
        let text = String::from_utf8_lossy(&text).into_owned();
        let began = Instant::now();
        if let Ok(document) = Document::parse("proxy.yaml", &text)
            && let Err(errors) = Config::read(&document, &NothingEmbedded)
        {
            assert!(errors.iter().next().is_some(), "{text}");
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{text}");
    })
    .await;
}

#[test]
fn deep_configurations_are_mistakes() {
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        let text = format!(
            "listeners: {}{}",
            open.repeat(100_000),
            close.repeat(100_000)
        );
        let read = Document::parse("proxy.yaml", &text)
            .map(|document| Config::read(&document, &NothingEmbedded).is_err());
        assert!(read.unwrap_or(true));
    }
    // Each line doubles what it stands for.
    let mut bomb = "a0: &a0 [x, x]\n".to_owned();
    for nth in 1..40 {
        let before = nth - 1;
        bomb.push_str(&format!("a{nth}: &a{nth} [*a{before}, *a{before}]\n"));
    }
    assert!(
        Document::parse("proxy.yaml", &bomb)
            .map(|document| Config::read(&document, &NothingEmbedded).is_err())
            .unwrap_or(true)
    );
}
