//! Requests that are sent again, and redirects that are followed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

mod support;

use attache_proxy::{Config, Plan, config::NothingEmbedded};
use attache_service::config::Document;
use support::{OK, Origin, PATIENCE, Raw, Tested, header, origin, read_head, start, status};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

/// A proxy whose only route has these settings.
async fn proxy(origin: &Origin, settings: &str) -> Tested {
    proxy_with("per_connection_buffer_limit_bytes: 8", origin, settings).await
}

/// The same with these settings of the listener.
async fn proxy_with(listener: &str, origin: &Origin, settings: &str) -> Tested {
    let text = format!(
        "listeners: [{{ name: test, address: '127.0.0.1:0', {listener} }}]
routes:
- match: {{ prefix: / }}
  route: {{ cluster: web, {settings} }}
clusters: [{{ name: web, endpoints: ['{}'] }}]
workers: 1",
        origin.at
    );
    let document = Document::parse("proxy.yaml", &text).unwrap();
    let (_, plan): (Config, Plan) = Config::read(&document, &NothingEmbedded).unwrap();
    start(plan).await
}

/// An origin that answers its requests in turn, each on a connection of its own; an empty answer
/// ends the connection. Shows the heads and bodies that it got.
async fn answering(answers: &'static [&'static str]) -> (Origin, mpsc::UnboundedReceiver<String>) {
    let (seen, requests) = mpsc::unbounded_channel();
    let origin = origin(move |number, mut stream| {
        let seen = seen.clone();
        async move {
            let mut head = read_head(&mut stream).await.unwrap();
            let length = header(&head, "content-length").map_or(0, |l| l.parse().unwrap());
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            head.push_str(&String::from_utf8(body).unwrap());
            seen.send(head).unwrap();
            let answer = answers.get(number).copied().unwrap_or(OK);
            let answer = answer.replacen("\r\n", "\r\nconnection: close\r\n", 1);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    (origin, requests)
}

const POLICY: &str =
    "retry_policy: { retry_on: '5xx', num_retries: 2, retry_back_off: { base_interval: 1ms } }";

#[tokio::test]
async fn a_request_is_sent_again_with_its_body_until_an_answer_is_kept() {
    let (origin, mut seen) = answering(&[UNAVAILABLE, ""]).await;
    let proxy = proxy(&origin, POLICY).await;
    let mut client = Raw::connect(proxy.at).await;

    client
        .send("POST /x HTTP/1.1\r\nhost: test\r\ncontent-length: 8\r\n\r\n12345678")
        .await;
    let (head, body) = client.response().await;

    assert_eq!((status(&head), body.as_str()), (200, "ok"));
    for _ in 0..3 {
        let request = seen.recv().await.unwrap();
        assert!(request.ends_with("\r\n\r\n12345678"), "{request}");
    }
    assert!(seen.try_recv().is_err());
    assert!(
        proxy
            .metrics
            .render()
            .contains("attache_upstream_retries_total{cluster=\"web\"} 2")
    );
}

#[tokio::test]
async fn the_last_answer_counts_when_the_attempts_are_used_up() {
    let (origin, mut seen) = answering(&[UNAVAILABLE; 4]).await;
    let proxy = proxy(&origin, POLICY).await;

    let (head, _) = Raw::connect(proxy.at).await.get("/").await;

    assert_eq!(status(&head), 503);
    for _ in 0..3 {
        seen.recv().await.unwrap();
    }
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn a_body_over_the_buffer_limit_is_sent_once() {
    let (origin, mut seen) = answering(&[UNAVAILABLE]).await;
    let proxy = proxy(&origin, POLICY).await;
    let mut client = Raw::connect(proxy.at).await;

    client
        .send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\n123456789")
        .await;

    assert_eq!(status(&client.response().await.0), 503);
    seen.recv().await.unwrap();
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn other_answers_are_not_asked_for_again() {
    let (origin, mut seen) =
        answering(&["HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"]).await;
    let proxy = proxy(&origin, POLICY).await;
    let (head, _) = Raw::connect(proxy.at).await.get("/").await;
    assert_eq!(status(&head), 404);
    seen.recv().await.unwrap();
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn redirects_are_followed_as_often_as_allowed() {
    const TO: &str =
        "HTTP/1.1 302 Found\r\nlocation: http://other.test/two?x=1\r\ncontent-length: 0\r\n\r\n";
    let (origin, mut seen) = answering(&[TO, TO]).await;
    let proxy = proxy(&origin, "internal_redirect_policy: {}").await;

    let (head, _) = Raw::connect(proxy.at).await.get("/one").await;

    // The second one is the client's.
    assert_eq!(status(&head), 302);
    seen.recv().await.unwrap();
    let second = seen.recv().await.unwrap();
    assert!(second.starts_with("GET /two?x=1 HTTP/1.1\r\n"), "{second}");
    assert_eq!(header(&second, "host"), Some("other.test"));
    assert_eq!(
        header(&second, "x-envoy-original-url"),
        Some("http://test/one")
    );
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn redirects_to_another_scheme_are_the_clients() {
    const TO: &str =
        "HTTP/1.1 302 Found\r\nlocation: https://test/two\r\ncontent-length: 0\r\n\r\n";
    let (origin, mut seen) = answering(&[TO]).await;
    let proxy = proxy(&origin, "internal_redirect_policy: {}").await;
    let (head, _) = Raw::connect(proxy.at).await.get("/one").await;
    assert_eq!(status(&head), 302);
    seen.recv().await.unwrap();
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn a_request_to_upgrade_is_sent_once() {
    const TO: &str = "HTTP/1.1 302 Found\r\nlocation: http://test/two\r\ncontent-length: 0\r\n\r\n";
    for (answers, expected) in [(&[UNAVAILABLE], 503), (&[TO], 302)] {
        let (origin, mut seen) = answering(answers).await;
        let settings = format!("{POLICY}, internal_redirect_policy: {{}}");
        let proxy = proxy(&origin, &settings).await;
        let mut client = Raw::connect(proxy.at).await;

        client
            .send(
                "GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            )
            .await;

        assert_eq!(status(&client.response().await.0), expected);
        seen.recv().await.unwrap();
        assert!(seen.try_recv().is_err(), "sent again after {expected}");
    }
}

#[tokio::test]
async fn a_request_that_is_redirected_has_one_line_in_the_access_log() {
    const TO: &str = "HTTP/1.1 302 Found\r\nlocation: http://test/two\r\ncontent-length: 0\r\n\r\n";
    let (origin, _seen) = answering(&[TO]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let listener = format!("access_log: {{ path: '{}' }}", file.display());
    let proxy = proxy_with(&listener, &origin, "internal_redirect_policy: {}").await;

    let (head, _) = Raw::connect(proxy.at).await.get("/one").await;
    assert_eq!(status(&head), 200);
    Raw::connect(proxy.at).await.get("/after").await;

    let lines = tokio::time::timeout(PATIENCE, async {
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if text.contains("/after") && text.ends_with('\n') {
                return text;
            }
            tokio::task::yield_now().await;
        }
    });
    let lines = lines.await.expect("the line of the later request");
    let lines: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(
        (&lines[0]["path"], &lines[0]["status"]),
        (&"/one".into(), &200.into())
    );
}
