//! The ambiguous requests, and how to make more of them.

use std::net::SocketAddr;

use attache_tests::frames::{self, Http2, Outcome, frame};
use rand::{Rng, rngs::SmallRng, seq::IndexedRandom};

use crate::raw;

/// Pipelined behind every case.
pub(crate) const CANARY: &str = "GET /canary HTTP/1.1\r\nhost: canary\r\nconnection: close\r\n\r\n";

/// What hides in bodies.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nhost: hidden\r\n\r\n";

/// One ambiguous request.
pub(crate) struct Case {
    pub(crate) name: String,
    kind: Kind,
}

enum Kind {
    Http1(Vec<u8>),
    Http2 {
        fields: Vec<(String, String)>,
        body: Option<String>,
        trailers: Vec<(String, String)>,
    },
}

impl Case {
    /// The bytes of HTTP/1.1.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Http1(bytes) => Some(bytes),
            Kind::Http2 { .. } => None,
        }
    }

    /// Sends it, with another request behind it; what comes back, as HTTP/1.1 says it.
    pub(crate) async fn send(&self, to: SocketAddr) -> String {
        match &self.kind {
            Kind::Http1(bytes) => {
                let mut bytes = bytes.clone();
                bytes.extend(CANARY.as_bytes());
                raw(to, &bytes).await
            }
            Kind::Http2 {
                fields,
                body,
                trailers,
            } => {
                let as_str = |fields: &[(String, String)]| -> Vec<u8> {
                    let fields = fields.iter().map(|(n, v)| (n.as_str(), v.as_str()));
                    frames::block(&fields.collect::<Vec<_>>())
                };
                let mut client = Http2::connect(to).await;
                let ends = |last: bool| if last { frames::END_STREAM } else { 0 };
                let no_trailers = trailers.is_empty();
                let head = ends(body.is_none() && no_trailers) | frames::END_HEADERS;
                let mut bytes = frame(frames::HEADERS, head, 1, &as_str(fields));
                if let Some(body) = body {
                    bytes.extend(frame(frames::DATA, ends(no_trailers), 1, body.as_bytes()));
                }
                if !no_trailers {
                    let flags = frames::END_STREAM | frames::END_HEADERS;
                    bytes.extend(frame(frames::HEADERS, flags, 1, &as_str(trailers)));
                }
                client.send(&bytes).await;
                let outcome = client.outcome(1).await;
                match outcome {
                    Outcome::Answered(status) => {
                        format!("HTTP/1.1 {} of HTTP/2", status.unwrap_or(499))
                    }
                    other => format!("{other:?}"),
                }
            }
        }
    }
}

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    let mut all = Vec::new();
    lengths(&mut all);
    heads(&mut all);
    targets(&mut all);
    chunked(&mut all);
    upgrades(&mut all);
    http2(&mut all);
    all
}

fn http1(all: &mut Vec<Case>, name: &str, text: String) {
    all.push(Case {
        name: name.escape_debug().to_string(),
        kind: Kind::Http1(text.into_bytes()),
    });
}

/// What says how long a body is: each with a body that is one thing by its length, and another by
/// its chunks.
fn lengths(all: &mut Vec<Case>) {
    let length = HIDDEN.len() + 5;
    for lines in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\nContent-Length: 5"),
        format!("Content-Length: 5\r\nContent-Length: {length}"),
        format!("Content-Length: {length}, {length}"),
        format!("Content-Length: 5, {length}"),
        format!("Content-Length: +{length}"),
        format!("Content-Length: 0{length}"),
        format!("Content-Length: 0x{length:x}"),
        format!("Content-Length: {length} "),
        format!("Content-Length: {length}\t"),
        format!("Content-Length: {length}\x0b"),
        format!("Content-Length:{length}"),
        format!("Content-Length : {length}"),
        format!("Content-Length\t: {length}"),
        format!("Content_Length: {length}"),
        format!("Content-Length: \r\n {length}"),
        format!("Content-Length: 0\r\n\r {length}"),
        format!("Content-Length: {length}\r\nTransfer-Encoding: identity"),
        format!("Content-Length: {length}\r\nTransfer-Encoding:"),
        format!("Content-Length: {length}\r\nTransfer-Encoding: xchunked"),
        format!("Content-Length: {length}\r\nTransfer_Encoding: chunked"),
        format!("Content-Length: {length}\r\nTransfer-Encoding : chunked"),
        format!("Content-Length: {length}\r\n Transfer-Encoding: chunked"),
        format!("Content-Length: {length}\r\nX: y\rTransfer-Encoding: chunked"),
        format!("Content-Length: {length}\r\nX: y\nTransfer-Encoding: chunked"),
        format!("X: y\nContent-Length: {length}"),
        format!("X: y\rContent-Length: {length}"),
        "Content-Length:".to_owned(),
        "Content-Length: -1".to_owned(),
        "Content-Length: 99999999999999999999".to_owned(),
        "Content-Length: 18446744073709551621".to_owned(),
    ]
    .into_iter()
    .chain(
        [
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: Chunked",
            "Transfer-Encoding:chunked",
            "Transfer-Encoding:  chunked  ",
            "Transfer-Encoding:\tchunked",
            "Transfer-Encoding: \x0bchunked",
            "Transfer-Encoding: \x0cchunked",
            "Transfer-Encoding: chunked\x00",
            "Transfer-Encoding:\u{a0}chunked",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked,",
            "Transfer-Encoding: ,chunked",
            "Transfer-Encoding: identity, chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: cow",
            "Transfer-Encoding: 'chunked'",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding: chunked; q=1",
            "Transfer-Encoding: chunked;",
            "Transfer-Encoding: chunk",
            "Transfer-Encoding: x chunked",
            "Transfer-Encoding:\r\n chunked",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding\x0b: chunked",
            "Transfer-\r\n Encoding: chunked",
            "TRANSFER-ENCODING: CHUNKED",
            "X: y\r\n\r\nTransfer-Encoding: chunked",
            "X: y\nTransfer-Encoding: chunked",
            "Connection: transfer-encoding\r\nTransfer-Encoding: chunked",
            "TE: chunked",
        ]
        .into_iter()
        .map(str::to_owned),
    ) {
        let text = format!("POST /case HTTP/1.1\r\nhost: case\r\n{lines}\r\n\r\n0\r\n\r\n{HIDDEN}");
        http1(all, &lines, text);
    }
    for (name, line) in [
        ("connection names the length", "Connection: content-length"),
        ("connection names the host", "Connection: host"),
    ] {
        let length = HIDDEN.len();
        let text = format!(
            "POST /case HTTP/1.1\r\nhost: case\r\n{line}\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"
        );
        http1(all, name, text);
    }
    let length = HIDDEN.len();
    for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
        http1(
            all,
            &format!("{method} with a body"),
            format!(
                "{method} /case HTTP/1.1\r\nhost: case\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"
            ),
        );
    }
    for (name, text) in [
        (
            "HTTP/1.0 with chunks",
            format!(
                "POST /case HTTP/1.0\r\nhost: case\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"
            ),
        ),
        (
            "HTTP/1.0 that stays, with chunks",
            format!(
                "POST /case HTTP/1.0\r\nhost: case\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"
            ),
        ),
        (
            "HTTP/1.0 without a length",
            format!("POST /case HTTP/1.0\r\nhost: case\r\n\r\n{HIDDEN}"),
        ),
        (
            "a length that promises more",
            format!("POST /case HTTP/1.1\r\nhost: case\r\nContent-Length: 5000\r\n\r\n{HIDDEN}"),
        ),
        (
            "expect that is not waited for",
            format!(
                "POST /case HTTP/1.1\r\nhost: case\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"
            ),
        ),
        (
            "expect with chunks",
            format!(
                "POST /case HTTP/1.1\r\nhost: case\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n"
            ),
        ),
        (
            "an expectation that nobody knows",
            format!(
                "POST /case HTTP/1.1\r\nhost: case\r\nExpect: x 100-continue\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"
            ),
        ),
    ] {
        http1(all, name, text);
    }
}

/// Lines of heads.
fn heads(all: &mut Vec<Case>) {
    for lines in [
        "host: case\r\nhost: other",
        "host: case\r\n host: other",
        "host: case, other",
        "host : case",
        "x: y",
        "host: case\r\nx\x00y: z",
        "host: case\r\nx y: z",
        "host: case\r\n: z",
        "host: case\r\nx",
        "host: case\r\nx(y): z",
        "host: case\r\nx: a\x00b",
        "host: case\r\nx: a\rb",
        "host: case\r\nx: a\r\n b",
        "host: case\r\nx: \x7f",
        "host: case\r\n\u{e9}: z",
        "host: case\r\nx: \u{e9}",
        "host: case\r\nx_y: z",
        "host: case\r\nx: y\r\n\r",
        "host: case\r\nx-request-id: mine",
        "host: case\r\nX-Request-Id: mine\r\nx-request-id: mine",
        "host: case\r\nX_Request_Id: mine",
        "host: case\r\nconnection: x-request-id, x-forwarded-for",
        "host: case@other",
        "host: case:80:80",
        "host: [case",
        "host: ",
    ] {
        http1(all, lines, format!("GET /case HTTP/1.1\r\n{lines}\r\n\r\n"));
    }
    for text in [
        "GET /case HTTP/1.1\nhost: case\r\n\r\n",
        "GET /case HTTP/1.1\r\nhost: case\n\r\n",
        "GET /case HTTP/1.1\r\nhost: case\r\n\n",
        "GET /case HTTP/1.1\nhost: case\n\n",
        "GET /case HTTP/1.1\rhost: case\r\r",
        "\r\n\r\nGET /case HTTP/1.1\r\nhost: case\r\n\r\n",
        "\nGET /case HTTP/1.1\r\nhost: case\r\n\r\n",
        " GET /case HTTP/1.1\r\nhost: case\r\n\r\n",
        "GET /case HTTP/1.1\r\n host: case\r\n\r\n",
        "GET /case HTTP/1.1\r\n\r\nhost: case\r\n\r\n",
    ] {
        http1(all, text, text.to_owned());
    }
}

/// Request lines.
fn targets(all: &mut Vec<Case>) {
    for line in [
        "GET http://other/case HTTP/1.1",
        "GET https://other/case HTTP/1.1",
        "GET ftp://other/case HTTP/1.1",
        "GET http://u@other/case HTTP/1.1",
        "GET http:/case HTTP/1.1",
        "GET //other/case HTTP/1.1",
        "GET case HTTP/1.1",
        "GET other:80 HTTP/1.1",
        "GET * HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "CONNECT other:80 HTTP/1.1",
        "CONNECT /case HTTP/1.1",
        "GET /case HTTP/1.0",
        "GET /case HTTP/1.2",
        "GET /case HTTP/2.0",
        "GET /case HTTP/0.9",
        "GET /case http/1.1",
        "GET /case",
        "GET  /case HTTP/1.1",
        "GET /case  HTTP/1.1",
        "GET /case HTTP/1.1 ",
        "GET\t/case HTTP/1.1",
        "GET /ca se HTTP/1.1",
        "GET /case#x HTTP/1.1",
        "GET /case\x00 HTTP/1.1",
        "GET /case\u{e9} HTTP/1.1",
        "GET /case%0d%0aHost:%20x HTTP/1.1",
        "GET /case?a\r\nb HTTP/1.1",
        "get /case HTTP/1.1",
        "G\x00T /case HTTP/1.1",
        "PRI * HTTP/2.0",
        "TRACE /case HTTP/1.1",
        "X-Y /case HTTP/1.1",
    ] {
        http1(all, line, format!("{line}\r\nhost: case\r\n\r\n"));
    }
}

/// Chunks, with another request behind what some parser takes for their end.
fn chunked(all: &mut Vec<Case>) {
    for body in [
        "5\r\nhello\r\n0\r\n\r\n",
        "5;x=y\r\nhello\r\n0\r\n\r\n",
        "5 ;x=y\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\t\r\nhello\r\n0\r\n\r\n",
        "5;\r\nhello\r\n0\r\n\r\n",
        "5;x=\"a;\\\"b\"\r\nhello\r\n0\r\n\r\n",
        "5;x\n\r\nhello\r\n0\r\n\r\n",
        "5;x\rX\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "05\r\nhello\r\n0\r\n\r\n",
        "0000000000000000000000005\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5_\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n00\r\n\r\n",
        "5\r\nhello\r\n0;x=y\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: y\r\n\r\n",
        "5\r\nhello\r\n0\r\nhost: other\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: y\n\r\n",
        "5\r\nhello\r\n0\r\nx y: z\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: y\r\n z\r\n\r\n",
        "5\r\nhello\r\n0\r\nGET /hidden HTTP/1.1\r\nhost: hidden\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello\r\n0\r\n",
        "5\r\nhello\r\n0\r\nX",
        "5\r\nhello\r\n",
        "5\r\nhel",
        "2;\nxx\r\n45\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nhost: hidden\r\ncontent-length: 5\r\n\r\n\r\n0\r\n\r\n",
    ] {
        http1(
            all,
            body,
            format!(
                "POST /case HTTP/1.1\r\nhost: case\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n{body}"
            ),
        );
    }
}

fn upgrades(all: &mut Vec<Case>) {
    for (lines, body) in [
        ("connection: upgrade\r\nupgrade: websocket", ""),
        ("connection: upgrade\r\nupgrade: WebSocket", ""),
        ("connection: upgrade\r\nupgrade: h2c", ""),
        ("connection: upgrade\r\nupgrade: h2c, websocket", ""),
        ("connection: upgrade\r\nupgrade: websocket, h2c", ""),
        (
            "connection: upgrade\r\nupgrade: h2c\r\nupgrade: websocket",
            "",
        ),
        ("connection: upgrade\r\nupgrade: other", ""),
        ("connection: close\r\nupgrade: websocket", ""),
        ("upgrade: websocket", ""),
        (
            "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 5",
            "hello",
        ),
        (
            "connection: upgrade\r\nupgrade: websocket\r\ntransfer-encoding: chunked",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 5\r\ntransfer-encoding: chunked",
            "0\r\n\r\n",
        ),
    ] {
        http1(
            all,
            lines,
            format!("GET /case HTTP/1.1\r\nhost: case\r\n{lines}\r\n\r\n{body}{HIDDEN}"),
        );
    }
    for text in [
        "GET /case HTTP/1.1\r\nhost: case\r\nupgrade: x\r\n\r\nPOST /second HTTP/1.1\r\nhost: case\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /case HTTP/1.1\r\nhost: case\r\ntransfer-encoding: chunked\r\n\r\n00000000000000000000003\r\nabc\r\n0\r\n\r\nPOST /second HTTP/1.1\r\nhost: case\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        http1(all, text, text.to_owned());
    }
}

/// What HTTP/2 can say and HTTP/1.1 must not be told.
fn http2(all: &mut Vec<Case>) {
    let length = HIDDEN.len().to_string();
    let split = format!("y\r\n\r\n{HIDDEN}");
    let path = format!("/case HTTP/1.1\r\nhost: case\r\n\r\n{HIDDEN}");
    let with = |method: &str, path: &str, more: &[(&str, &str)]| -> Vec<(String, String)> {
        let mut fields = vec![
            (":method".to_owned(), method.to_owned()),
            (":scheme".to_owned(), "http".to_owned()),
            (":path".to_owned(), path.to_owned()),
            (":authority".to_owned(), "case".to_owned()),
        ];
        fields.extend(more.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
        fields
    };
    let hidden = || Some(HIDDEN.to_owned());
    let mut cases = vec![
        (
            "an ordinary body",
            with("POST", "/case", &[]),
            hidden(),
            vec![],
        ),
        (
            "its length",
            with("POST", "/case", &[("content-length", &length)]),
            hidden(),
            vec![],
        ),
        (
            "a shorter length",
            with("POST", "/case", &[("content-length", "0")]),
            hidden(),
            vec![],
        ),
        (
            "a longer length",
            with("POST", "/case", &[("content-length", "500")]),
            hidden(),
            vec![],
        ),
        (
            "two lengths",
            with(
                "POST",
                "/case",
                &[("content-length", &length), ("content-length", "0")],
            ),
            hidden(),
            vec![],
        ),
        (
            "no number",
            with("POST", "/case", &[("content-length", "+5")]),
            hidden(),
            vec![],
        ),
        (
            "a length for nothing",
            with("GET", "/case", &[("content-length", "5")]),
            None,
            vec![],
        ),
        (
            "chunks",
            with("POST", "/case", &[("transfer-encoding", "chunked")]),
            Some(format!("0\r\n\r\n{HIDDEN}")),
            vec![],
        ),
        (
            "Chunks",
            with("POST", "/case", &[("Transfer-Encoding", "chunked")]),
            Some(format!("0\r\n\r\n{HIDDEN}")),
            vec![],
        ),
        (
            "chunks behind a space",
            with("POST", "/case", &[("transfer-encoding ", "chunked")]),
            Some(format!("0\r\n\r\n{HIDDEN}")),
            vec![],
        ),
        (
            "connection",
            with("GET", "/case", &[("connection", "close")]),
            None,
            vec![],
        ),
        (
            "upgrade",
            with("GET", "/case", &[("upgrade", "websocket")]),
            hidden(),
            vec![],
        ),
        (
            "te",
            with("GET", "/case", &[("te", "trailers, chunked")]),
            None,
            vec![],
        ),
        (
            "lines in a value",
            with("GET", "/case", &[("x", &split)]),
            None,
            vec![],
        ),
        (
            "a line feed in a value",
            with("GET", "/case", &[("x", "y\nz: a")]),
            None,
            vec![],
        ),
        (
            "a zero in a value",
            with("GET", "/case", &[("x", "y\0z")]),
            None,
            vec![],
        ),
        (
            "lines in a name",
            with("GET", "/case", &[("x: y\r\nz", "a")]),
            None,
            vec![],
        ),
        (
            "a colon in a name",
            with("GET", "/case", &[("x:y", "a")]),
            None,
            vec![],
        ),
        ("lines in the path", with("GET", &path, &[]), None, vec![]),
        (
            "a blank in the path",
            with("GET", "/case HTTP/1.1", &[]),
            None,
            vec![],
        ),
        (
            "a fragment in the path",
            with("GET", "/case#/../x", &[]),
            None,
            vec![],
        ),
        (
            "lines in the method",
            with("GET /hidden HTTP/1.1\r\nhost: x\r\n\r\nGET", "/case", &[]),
            None,
            vec![],
        ),
        (
            "a blank in the method",
            with("GET /hidden", "/case", &[]),
            None,
            vec![],
        ),
        (
            "another host",
            with("GET", "/case", &[("host", "other")]),
            None,
            vec![],
        ),
        (
            "the host again",
            with("GET", "/case", &[("host", "case")]),
            None,
            vec![],
        ),
        (
            "an id",
            with("GET", "/case", &[("x-request-id", "mine")]),
            None,
            vec![],
        ),
        (
            "trailers",
            with("POST", "/case", &[("trailer", "x")]),
            hidden(),
            vec![("x".to_owned(), "y".to_owned())],
        ),
        (
            "trailers that frame",
            with("POST", "/case", &[("trailer", "content-length, host")]),
            hidden(),
            vec![
                ("content-length".to_owned(), "0".to_owned()),
                ("host".to_owned(), "other".to_owned()),
            ],
        ),
        (
            "trailers with lines",
            with("POST", "/case", &[("trailer", "x")]),
            hidden(),
            vec![("x".to_owned(), split.clone())],
        ),
        (
            "trailers with a pseudo-header",
            with("POST", "/case", &[]),
            hidden(),
            vec![(":path".to_owned(), "/x".to_owned())],
        ),
    ];
    let mut lines_in_host = with("GET", "/case", &[]);
    lines_in_host[3].1 = format!("case\r\n\r\n{HIDDEN}");
    cases.push(("lines in the authority", lines_in_host, None, vec![]));
    let mut scheme = with("GET", "/case", &[]);
    scheme[1].1 = "http://x/ HTTP/1.1\r\nx: y".to_owned();
    cases.push(("lines in the scheme", scheme, None, vec![]));
    for (name, fields, body, trailers) in cases {
        all.push(Case {
            name: format!("HTTP/2: {name}"),
            kind: Kind::Http2 {
                fields,
                body,
                trailers,
            },
        });
    }
}

/// Requests that are not ambiguous, to be made so.
pub(crate) const PLAIN: [&str; 5] = [
    "GET /case?x=y HTTP/1.1\r\nhost: case\r\naccept: */*\r\nx-long-name: some value\r\n\r\n",
    "POST /case HTTP/1.1\r\nhost: case\r\nContent-Length: 38\r\nx: y\r\n\r\nGET /hidden HTTP/1.1\r\nhost: hidden\r\n\r\n",
    "POST /case HTTP/1.1\r\nhost: case\r\nTransfer-Encoding: chunked\r\nx: y\r\n\r\n26\r\nGET /hidden HTTP/1.1\r\nhost: hidden\r\n\r\n\r\n0\r\n\r\n",
    "PUT /case HTTP/1.1\r\nhost: case\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n5;x=y\r\nhello\r\n0\r\nx: y\r\n\r\n",
    "GET /one HTTP/1.1\r\nhost: case\r\n\r\nPOST /two HTTP/1.1\r\nhost: case\r\nContent-Length: 5\r\n\r\nhello",
];

/// What parsers trip over.
const ODD: [&str; 30] = [
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    "\x0b",
    ":",
    ";",
    ",",
    "\r\n ",
    "\r\n\r\n",
    "0",
    "0\r\n\r\n",
    "5\r\nhello\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding:chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Connection: close\r\n",
    "Connection: upgrade\r\nUpgrade: websocket\r\n",
    "Upgrade: h2c\r\n",
    "Expect: 100-continue\r\n",
    "host: other\r\n",
    "x-request-id: mine\r\n",
    " HTTP/1.0",
    "http://other",
    "GET /hidden HTTP/1.1\r\nhost: hidden\r\n\r\n",
    "\u{e9}",
];

/// Changes a request here and there.
pub(crate) fn mutate(random: &mut SmallRng, bytes: &mut Vec<u8>) {
    for _ in 0..random.random_range(1..4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..6) {
            0 => bytes[at] = random.random(),
            1 => {
                let end = (at + random.random_range(1..8)).min(bytes.len());
                bytes.drain(at..end);
            }
            2 => {
                let end = (at + random.random_range(1..40)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                // Mostly where a line begins, as most of these are lines.
                let line = bytes[at..].windows(2).position(|two| two == b"\r\n");
                let at = match line {
                    Some(line) if random.random_bool(0.6) => at + line + 2,
                    _ => at,
                };
                let piece = ODD.choose(random).unwrap().bytes();
                bytes.splice(at..at, piece);
            }
        }
    }
}
