//! Requests that no service sees, as they are refused by the codec, broken off or too slow: what
//! our proxy and real Envoy say of each in the access log.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use attache_tests::{
    PATIENCE,
    envoy::{self, Envoy},
    envoy_config,
    frames::{self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, block, frame},
    ours,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

fn config(log: &Path) -> String {
    format!(
        "
listeners:
- name: edge
  address: '127.0.0.1:0'
  limits: {{ header_timeout: 0.5s }}
  access_log:
    path: '{}'
    text_format: \"%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% \\
      %RESPONSE_CODE_DETAILS%\\n\"
routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 200 }} }}]
workers: 1
",
        log.display()
    )
}

/// What is sent.
struct Probe {
    name: &'static str,
    bytes: Vec<u8>,
    /// The client sends its FIN behind it.
    ends: bool,
    /// The lines of both.
    expected: Expected,
}

enum Expected {
    /// The same.
    Both(&'static str),
    /// Those of ours, and of Envoy.
    Differ(&'static str, &'static str),
}

impl Probe {
    fn ours(&self) -> &'static str {
        match self.expected {
            Expected::Both(ours) | Expected::Differ(ours, _) => ours,
        }
    }

    fn envoys(&self) -> &'static str {
        match self.expected {
            Expected::Both(envoys) | Expected::Differ(_, envoys) => envoys,
        }
    }

    fn requests(&self) -> usize {
        self.ours().split(" | ").count()
    }

    /// Sends it and waits for the answer to what is wrong with it, or for the end.
    async fn send(&self, to: SocketAddr) {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let _ = stream.write_all(&self.bytes).await;
        if self.ends {
            let _ = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        let answered = async {
            while let Ok(1..) = stream.read_buf(&mut answer).await {
                if answers(&answer) >= self.requests() {
                    return;
                }
            }
        };
        let answered = tokio::time::timeout(PATIENCE, answered).await;
        assert!(answered.is_ok(), "{}: no answer", self.name);
    }
}

/// How many requests are answered, or refused without an answer.
fn answers(answer: &[u8]) -> usize {
    if answer.starts_with(b"HTTP/1") {
        let ends = answer.windows(4).filter(|bytes| bytes == b"\r\n\r\n");
        return ends.count();
    }
    let mut rest = answer;
    let mut answers = 0;
    while let Some((head, more)) = rest.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let Some((_, more)) = more.split_at_checked(length.try_into().unwrap()) else {
            break;
        };
        answers += match head[3] {
            HEADERS if head[4] & END_STREAM != 0 => 1,
            frames::RST_STREAM | frames::GOAWAY => 1,
            _ => 0,
        };
        rest = more;
    }
    answers
}

/// Sends each probe, and behind it a request that marks its place in the log; the lines of each,
/// sorted.
async fn lines(probes: &[Probe], to: SocketAddr, log: &Path) -> Vec<String> {
    for (nth, probe) in probes.iter().enumerate() {
        probe.send(to).await;
        let mark = format!("GET /mark/{nth} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(mark.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while answers(&answer) == 0 {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
        }
    }
    let last = format!("/mark/{} ", probes.len() - 1);
    let read = async {
        loop {
            let text = fs::read_to_string(log).unwrap_or_default();
            if text.contains(&last) && text.ends_with('\n') {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let text = tokio::time::timeout(PATIENCE, read).await.expect("the log");
    let mut all = Vec::new();
    let mut of_probe = Vec::new();
    for line in text.lines() {
        if line.contains(" /mark/") {
            of_probe.sort_unstable();
            all.push(of_probe.join(" | "));
            of_probe.clear();
        } else {
            of_probe.push(line);
        }
    }
    all
}

fn compare(who: &str, probes: &[Probe], lines: &[String], expected: fn(&Probe) -> &'static str) {
    assert_eq!(lines.len(), probes.len());
    let mut wrong = String::new();
    for (probe, line) in probes.iter().zip(lines) {
        let expected = expected(probe);
        if line != expected {
            wrong.push_str(&format!(
                "{}: {who} says {line:?}, not {expected:?}\n",
                probe.name
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn http1(name: &'static str, bytes: impl Into<Vec<u8>>, expected: Expected) -> Probe {
    Probe {
        name,
        bytes: bytes.into(),
        ends: false,
        expected,
    }
}

/// A request with these lines in its head.
fn with(name: &'static str, lines: &str, expected: Expected) -> Probe {
    let text = format!("POST /p HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n0\r\n\r\n");
    http1(name, text, expected)
}

fn http2(name: &'static str, frames: &[Vec<u8>], expected: Expected) -> Probe {
    let settings = frame(frames::SETTINGS, 0, 0, &[]);
    let bytes = [PREFACE.to_vec(), settings, frames.concat()].concat();
    Probe {
        name,
        bytes,
        ends: false,
        expected,
    }
}

/// A request of HTTP/2 with these fields behind those of each.
fn fields(more: &[(&str, &str)]) -> Vec<u8> {
    block(&frames::request("GET", "/p", more))
}

fn ends(probe: Probe) -> Probe {
    Probe {
        ends: true,
        ..probe
    }
}

fn probes() -> Vec<Probe> {
    use Expected::{Both, Differ};
    let whole = END_HEADERS | END_STREAM;
    let malformed = || Both("- - HTTP/1.1 400 DPE http1.codec_error");
    let many: String = (0..150).map(|n| format!("x{n}: y\r\n")).collect();
    let large = "a".repeat(70_000);
    vec![
        with(
            "two kinds of length",
            "content-length: 5\r\ntransfer-encoding: chunked",
            Both("- - HTTP/1.1 400 DPE http1.content_length_and_chunked_not_allowed"),
        ),
        with(
            "a length twice",
            "content-length: 5\r\ncontent-length: 5",
            malformed(),
        ),
        with("a list of lengths", "content-length: 5, 5", malformed()),
        with("no number", "content-length: +5", malformed()),
        with(
            "an unknown coding",
            "transfer-encoding: gzip",
            Differ(
                "- - HTTP/1.1 400 DPE http1.invalid_transfer_encoding",
                "- - HTTP/1.1 501 DPE http1.invalid_transfer_encoding",
            ),
        ),
        with(
            "a coding twice",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            Differ(
                "- - HTTP/1.1 400 DPE http1.invalid_transfer_encoding",
                "- - HTTP/1.1 501 DPE http1.invalid_transfer_encoding",
            ),
        ),
        with("a blank in a name", "x y: z", malformed()),
        with("a blank behind a name", "x : z", malformed()),
        with("no colon", "xyz", malformed()),
        with(
            "NUL in a value",
            "x: a\0b",
            Differ(
                "- - HTTP/1.1 400 DPE http1.codec_error",
                "- - HTTP/1.1 400 DPE http1.invalid_characters",
            ),
        ),
        with(
            "a folded line",
            "content-length: 5\r\nx: y\r\n z",
            Differ(
                "- - HTTP/1.1 400 DPE http1.codec_error",
                "POST /p HTTP/1.1 200 - direct_response",
            ),
        ),
        with(
            "a bare line feed",
            "content-length: 5\r\nx: y\nz: a",
            Differ(
                "- - HTTP/1.1 400 DPE http1.codec_error",
                "POST /p HTTP/1.1 200 - direct_response",
            ),
        ),
        with(
            "a bare carriage return",
            "content-length: 5\r\nx: y\rz",
            Differ(
                "- - HTTP/1.1 400 DPE http1.codec_error",
                "POST /p HTTP/1.1 200 - direct_response",
            ),
        ),
        with(
            "too many headers",
            many.trim_end(),
            Both("- - HTTP/1.1 431 DPE http1.too_many_headers"),
        ),
        with(
            "a head that is too large",
            &format!("x: {large}"),
            Both("- - HTTP/1.1 431 DPE http1.headers_too_large"),
        ),
        http1(
            "a target that is too long",
            format!("GET /{large} HTTP/1.1\r\nhost: a\r\n\r\n"),
            Both("- - HTTP/1.1 431 DPE http1.headers_too_large"),
        ),
        http1("no HTTP", "hello there\r\n\r\n", malformed()),
        http1(
            "TLS",
            b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03aaaaaaaaaaaaaaaa",
            malformed(),
        ),
        http1(
            "a blank in the target",
            "GET /p q HTTP/1.1\r\nhost: a\r\n\r\n",
            malformed(),
        ),
        http1(
            "a control character in the target",
            "GET /p\x01 HTTP/1.1\r\nhost: a\r\n\r\n",
            Differ(
                "- - HTTP/1.1 400 DPE http1.codec_error",
                "- - HTTP/1.1 400 DPE http1.invalid_characters",
            ),
        ),
        http1(
            "a fragment",
            "GET /p#q HTTP/1.1\r\nhost: a\r\n\r\n",
            Differ(
                "- - HTTP/1.1 400 DPE path_normalization_failed",
                "GET /p#q HTTP/1.1 400 - path_normalization_failed",
            ),
        ),
        http1(
            "no host",
            "GET /p HTTP/1.1\r\n\r\n",
            Differ(
                "GET /p HTTP/1.1 400 DPE missing_host_header",
                "GET /p HTTP/1.1 400 - missing_host_header",
            ),
        ),
        http1(
            "half of the preface of HTTP/2",
            "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            Differ("- - HTTP/1.1 400 DPE http1.codec_error", ""),
        ),
        http1(
            "another version",
            "GET /p HTTP/1.2\r\nhost: a\r\n\r\n",
            Differ(
                "- - HTTP/1.1 400 DPE http1.codec_error",
                "GET /p HTTP/1.0 200 - direct_response",
            ),
        ),
        http1(
            "behind a good one",
            "GET /p HTTP/1.1\r\nhost: a\r\n\r\n\
             POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            Both(
                "- - HTTP/1.1 400 DPE http1.content_length_and_chunked_not_allowed | \
                 GET /p HTTP/1.1 200 - direct_response",
            ),
        ),
        http1(
            "half a head",
            "GET /p HTTP/1.1\r\nhost: a",
            Both("- - HTTP/1.1 408 - request_header_timeout"),
        ),
        http1(
            "half a request line",
            "GET /p HT",
            Both("- - HTTP/1.1 408 - request_header_timeout"),
        ),
        ends(http1(
            "half a head, and gone",
            "GET /p HTTP/1.1\r\nhost: a",
            Both("- - HTTP/1.1 0 DC downstream_remote_disconnect"),
        )),
        ends(http1(
            "one byte, and gone",
            "G",
            Both("- - HTTP/1.1 0 DC downstream_remote_disconnect"),
        )),
        ends(http1("nothing, and gone", "", Both(""))),
        http2(
            "HTTP/2: a name that is none",
            &[frame(HEADERS, whole, 1, &fields(&[("x y", "z")]))],
            Differ(
                "- - HTTP/2 0 DPE http2.codec_error",
                "- - HTTP/2 0 DPE http2.invalid.header.field",
            ),
        ),
        http2(
            "HTTP/2: a header of the connection",
            &[frame(
                HEADERS,
                whole,
                1,
                &fields(&[("connection", "close")]),
            )],
            Differ(
                "- - HTTP/2 0 DPE http2.violation.of.messaging.rule",
                "- - HTTP/2 0 DPE http2.invalid.header.field",
            ),
        ),
        http2(
            "HTTP/2: no path",
            &[frame(
                HEADERS,
                whole,
                1,
                &block(&[(":method", "GET"), (":scheme", "http"), (":authority", "a")]),
            )],
            Both("- - HTTP/2 0 DPE http2.violation.of.messaging.rule"),
        ),
        http2(
            "HTTP/2: a length that is not kept",
            &[frame(
                HEADERS,
                whole,
                1,
                &fields(&[("content-length", "5")]),
            )],
            Both("- - HTTP/2 0 DPE http2.violation.of.messaging.rule"),
        ),
        http2(
            "HTTP/2: headers that are too large",
            &headers_of(20),
            Differ(
                "- - HTTP/2 431 DPE http2.header_list_size_too_large",
                "- - HTTP/2 0 DR http2.header_list_size_too_large",
            ),
        ),
        http2(
            "HTTP/2: headers that are far too large",
            &headers_of(60),
            Differ(
                "- - HTTP/2 0 DPE http2.header_list_size_too_large",
                "- - HTTP/2 0 DR http2.header_list_size_too_large",
            ),
        ),
        http2(
            "HTTP/2: a block that is none",
            &[frame(HEADERS, whole, 1, b"\xff\xff\x0f")],
            Differ(
                "- - HTTP/2 0 DPE http2.codec_error",
                "- - HTTP/2 0 DPE codec_error:The_user_callback_function_failed",
            ),
        ),
        http2(
            "HTTP/2: another frame within a block",
            &[
                frame(HEADERS, END_STREAM, 1, &fields(&[])),
                frame(DATA, END_STREAM, 1, &[]),
            ],
            Differ(
                "- - HTTP/2 0 DPE http2.codec_error",
                "- - HTTP/2 0 DPE codec_error:The_user_callback_function_failed",
            ),
        ),
        http2(
            "HTTP/2: behind a good one",
            &[
                frame(HEADERS, whole, 1, &fields(&[])),
                frame(HEADERS, whole, 3, &fields(&[("connection", "close")])),
            ],
            Differ(
                "- - HTTP/2 0 DPE http2.violation.of.messaging.rule | \
                 GET /p HTTP/2 200 - direct_response",
                "- - HTTP/2 0 DPE http2.invalid.header.field | \
                 GET /p HTTP/2 200 DPE codec_error:The_user_callback_function_failed",
            ),
        ),
        http2(
            "HTTP/2: half a block",
            &[frame(HEADERS, END_STREAM, 1, &fields(&[]))],
            Differ(
                "- - HTTP/2 0 - request_header_timeout",
                "- - HTTP/2 408 - request_header_timeout",
            ),
        ),
        ends(http2(
            "HTTP/2: half a block, and gone",
            &[frame(HEADERS, END_STREAM, 1, &fields(&[]))],
            Both("- - HTTP/2 0 DC downstream_remote_disconnect"),
        )),
        ends(http2("HTTP/2: nothing, and gone", &[], Both(""))),
    ]
}

/// Frames of a request with so many headers of 4,000 bytes.
fn headers_of(count: usize) -> Vec<Vec<u8>> {
    let value = "a".repeat(4000);
    let names: Vec<String> = (0..count).map(|n| format!("x{n}")).collect();
    let more: Vec<_> = names.iter().map(|n| (n.as_str(), value.as_str())).collect();
    let block = fields(&more);
    let mut pieces = block.chunks(16_000).peekable();
    let mut frames = Vec::new();
    while let Some(piece) = pieces.next() {
        let (kind, mut flags) = match frames.is_empty() {
            true => (HEADERS, END_STREAM),
            false => (CONTINUATION, 0),
        };
        if pieces.peek().is_none() {
            flags |= END_HEADERS;
        }
        frames.push(frame(kind, flags, 1, piece));
    }
    frames
}

#[tokio::test]
async fn each_has_a_line_in_the_access_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let ours = ours::start_ours(&config(&log)).await.unwrap();
    let probes = probes();
    let lines = lines(&probes, ours.address, &log).await;
    compare("ours", &probes, &lines, Probe::ours);
}

#[tokio::test]
async fn envoy_says_the_same_where_it_refuses_the_same() {
    let Some(program) = envoy::program() else {
        assert!(std::env::var_os("ATTACHE_REQUIRE_ALL").is_none());
        println!("skipped: requests that no service sees, with Envoy (run cargo xtask test)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let (read, _) = ours::read(&config(&log)).unwrap();
    let part = envoy_config::exported(0, &read).unwrap();
    let envoy = Envoy::start(&program, &[part]).await.unwrap();
    let probes = probes();
    let lines = lines(&probes, envoy.address(0).unwrap(), &log).await;
    compare("Envoy", &probes, &lines, Probe::envoys);
}
