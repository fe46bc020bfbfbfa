//! What the endpoint says to who asks for the page and its stream.

use std::net::SocketAddr;

use attache_tests::h1::{Framing, Reader, write_head};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::stage::Stage;

/// An answer: its status, its head in lower case, and its body where it ends.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

async fn ask(to: SocketAddr, line: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut all = vec![("host".to_owned(), to.to_string().into_bytes())];
    let more = headers.iter();
    all.extend(more.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())));
    all.push((
        "content-length".to_owned(),
        body.len().to_string().into_bytes(),
    ));
    let mut stream = TcpStream::connect(to).await.unwrap();
    let mut sent = write_head(&format!("{line} HTTP/1.1"), &all);
    sent.extend_from_slice(body.as_bytes());
    stream.write_all(&sent).await.unwrap();
    let (from, _to) = stream.split();
    let mut from = Reader::new(from);
    let head = from.head().await.unwrap();
    let mut text = String::new();
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value);
        text.push_str(&format!("{}: {value}\n", name.to_lowercase()));
    }
    let framing = head.framing(Framing::None);
    let mut bytes = Vec::new();
    if framing != Framing::Chunked {
        from.body(framing, |piece| bytes.extend_from_slice(piece))
            .await;
    }
    Answer {
        status: head.line.split(' ').nth(1).unwrap().parse().unwrap(),
        head: text,
        body: String::from_utf8(bytes).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browsers_are_told_what_they_may_do() {
    let stage = Stage::start().await;
    for (path, kind) in [
        ("/requests", "text/html; charset=utf-8"),
        ("/requests/live.css", "text/css; charset=utf-8"),
        ("/requests/live.js", "text/javascript; charset=utf-8"),
        ("/requests/stream", "text/event-stream"),
    ] {
        let answer = ask(stage.admin, &format!("GET {path}"), &[], "").await;
        assert_eq!(answer.status, 200, "{path}");
        for header in [
            &*format!("content-type: {kind}\n"),
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff\n",
            "cache-control: no-store\n",
        ] {
            assert!(answer.head.contains(header), "{path}: {}", answer.head);
        }
        // No address but of this endpoint stands in the files.
        assert!(
            !answer.body.contains("http://") && !answer.body.contains("https://"),
            "{path}"
        );
    }
    let list = ask(stage.admin, "GET /", &[], "").await;
    assert!(list.body.contains("\n/requests ") && !list.body.contains("/requests/"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_sites_can_neither_watch_nor_tap() {
    let stage = Stage::start().await;
    let json = ("content-type", "application/json");
    let own = format!("http://{}", stage.admin);
    for (line, headers, body, status) in [
        (
            "GET /requests/stream",
            &[("sec-fetch-site", "cross-site")][..],
            "",
            403,
        ),
        (
            "GET /requests/stream",
            &[("sec-fetch-site", "same-site")],
            "",
            403,
        ),
        ("GET /requests/stream", &[("host", "evil.example")], "", 403),
        (
            "POST /requests/tap",
            &[json, ("origin", "http://evil.example")],
            "{}",
            403,
        ),
        (
            "POST /requests/tap",
            &[json, ("sec-fetch-site", "cross-site")],
            "{}",
            403,
        ),
        ("DELETE /requests/tap?id=1", &[("origin", "null")], "", 403),
        ("POST /requests/tap", &[("origin", &*own)], "{}", 415),
        ("POST /requests/tap", &[json, ("origin", &*own)], "{]", 400),
        ("POST /requests/tap", &[json], "{\"seconds\":0}", 400),
        ("POST /requests/tap", &[json], "{}", 409),
        ("DELETE /requests/tap?id=1", &[], "", 404),
        ("GET /requests/tap", &[], "", 405),
        ("POST /requests", &[], "", 405),
        ("DELETE /requests/stream", &[], "", 405),
    ] {
        let answer = match headers.first() {
            Some(("host", host)) => {
                let mut stream = TcpStream::connect(stage.admin).await.unwrap();
                let sent = format!("{line} HTTP/1.1\r\nhost: {host}\r\n\r\n");
                stream.write_all(sent.as_bytes()).await.unwrap();
                let (from, _to) = stream.split();
                let head = Reader::new(from).head().await.unwrap();
                head.line.split(' ').nth(1).unwrap().parse().unwrap()
            }
            _ => ask(stage.admin, line, headers, body).await.status,
        };
        assert_eq!(answer, status, "{line} {headers:?}");
    }
    assert_eq!(stage.metric("attache_live_watchers"), 0);
}
