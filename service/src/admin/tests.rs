use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

/// Sends one request and returns the whole answer.
async fn ask(address: &Address, request: &str) -> String {
    ask_host(address, request, "localhost").await
}

async fn ask_host(address: &Address, request: &str, host: &str) -> String {
    let mut stream = TcpStream::connect(address.to_string()).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn start(admin: Admin) -> (Address, Shutdown, tokio::task::JoinHandle<()>) {
    let bound = admin.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (address, shutdown) = (bound.address().clone(), Shutdown::new());
    let serving = tokio::spawn(bound.serve(shutdown.clone()));
    (address, shutdown, serving)
}

#[tokio::test]
async fn every_page_answers_and_the_rest_does_not() {
    let readiness = Readiness::default();
    let keys = readiness.condition("keys", "not fetched yet");
    let metrics = Metrics::default();
    metrics.counter("seen", "Seen.", &[]).inc();
    let admin = Admin::new(readiness, metrics).config(|| ConfigDump {
        content_type: "application/json",
        text: "{\"a\":\"<b>\"}".to_owned(),
    });
    let (address, shutdown, serving) = start(admin).await;

    for (request, status, part) in [
        ("GET /", "200", "/metrics "),
        ("GET /", "200", "\n/config "),
        ("GET /", "200", "\nPOST /log-level "),
        ("GET /live", "200", "alive"),
        ("GET /ready", "503", "keys: not fetched yet"),
        ("GET /stats/prometheus", "200", "seen_total"),
        ("POST /live", "405", "allow: GET, HEAD"),
        ("DELETE /log-level", "405", "allow: GET, HEAD, POST"),
        ("GET /healthz", "200", "alive"),
        ("GET /healthz?verbose", "200", "alive"),
        ("GET /readyz", "503", "keys: not fetched yet"),
        ("GET /metrics", "200", "seen_total"),
        ("GET /config", "200", "{\"a\":\"<b>\"}"),
        ("GET /config", "200", "application/json"),
        ("GET /config", "200", "nosniff"),
        ("GET /%3Cscript%3E", "404", "not found"),
        ("POST /healthz", "405", "allow: GET, HEAD"),
    ] {
        let answer = ask(&address, request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(part),
            "{request}: {answer}"
        );
        assert!(!answer.contains("script"), "{answer}");
    }
    let head = ask(&address, "HEAD /healthz").await;
    assert!(
        head.contains("content-length: 6") && !head.contains("alive"),
        "{head}"
    );
    keys.hold();
    assert!(
        ask(&address, "GET /readyz")
            .await
            .starts_with("HTTP/1.1 200")
    );

    shutdown.trigger();
    serving.await.unwrap();
    assert!(TcpStream::connect(address.to_string()).await.is_err());
}

#[tokio::test]
async fn without_a_configuration_there_is_no_such_page() {
    let (address, ..) = start(Admin::new(Readiness::default(), Metrics::default())).await;
    assert!(
        ask(&address, "GET /config")
            .await
            .starts_with("HTTP/1.1 404")
    );
    assert!(!ask(&address, "GET /").await.contains("/config"));
}

#[tokio::test]
async fn the_network_is_refused_unless_allowed() {
    let admin = Admin::new(Readiness::default(), Metrics::default());
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "admin.internal:0"] {
        let refused = admin
            .clone()
            .bind(&address.parse().unwrap())
            .await
            .err()
            .unwrap();
        assert!(refused.to_string().contains(address), "{refused}");
    }
    let allowed = admin
        .allow_network(true)
        .bind(&"0.0.0.0:0".parse().unwrap())
        .await;
    assert!(allowed.is_ok());
}

#[tokio::test]
async fn a_program_adds_pages_with_parameters() {
    let pages = [
        Page::new(PageMethod::Get, "/things", async |query: Query| {
            PageAnswer::json(format!("{:?}", query.get("key")))
        })
        .about("some things"),
        Page::new(PageMethod::Delete, "/things", async |_| {
            PageAnswer::failure(http::StatusCode::CONFLICT, "not today")
        }),
        Page::new(PageMethod::Delete, "/more", async |_| {
            PageAnswer::json("{}".to_owned())
        }),
    ];
    let admin = Admin::new(Readiness::default(), Metrics::default()).pages(pages);
    let (address, ..) = start(admin).await;
    for (request, status, part) in [
        (
            "GET /",
            "200",
            "\n/things                  some things\nDELETE /things\nDELETE /more\n",
        ),
        ("GET /things?key=a%26b", "200", "Some(\"a&b\")"),
        ("DELETE /things", "409", "not today"),
        ("GET /more", "405", "allow: DELETE"),
        ("DELETE /healthz", "405", "allow: GET, HEAD"),
    ] {
        let answer = ask(&address, request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(part),
            "{request}: {answer}"
        );
    }
}

#[tokio::test]
async fn pages_of_other_sites_change_nothing() {
    let changes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let pages = [PageMethod::Post, PageMethod::Delete].map(|method| {
        let changes = changes.clone();
        Page::new(method, "/things", move |_| {
            changes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            std::future::ready(PageAnswer::json("{}".to_owned()))
        })
    });
    let admin = Admin::new(Readiness::default(), Metrics::default()).pages(pages);
    let (address, _shutdown, _serving) = start(admin).await;
    let own = format!("{address}\r\norigin: http://{address}\r\nsec-fetch-site: same-origin");
    for (from, status, so_far) in [
        (&format!("{address}"), "200", 1),
        (&own, "200", 2),
        (
            &format!("{address}\r\norigin: https://evil.example"),
            "403",
            2,
        ),
        (&format!("{address}\r\norigin: null"), "403", 2),
        (
            &format!("{address}\r\norigin: http://localhost:1"),
            "403",
            2,
        ),
        (
            &format!("{address}\r\nsec-fetch-site: cross-site"),
            "403",
            2,
        ),
        (&format!("{address}\r\nsec-fetch-site: same-site"), "403", 2),
        (&"evil.example".to_owned(), "403", 2),
    ] {
        for method in ["POST", "DELETE"] {
            let answer = ask_host(&address, &format!("{method} /things"), from).await;
            let wanted = format!("HTTP/1.1 {status}");
            assert!(answer.starts_with(&wanted), "{method} {from}: {answer}");
        }
        let changed = changes.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(changed, 2 * so_far, "{from}");
    }
}

#[tokio::test]
async fn names_that_lead_here_from_elsewhere_are_refused() {
    let admin = Admin::new(Readiness::default(), Metrics::default());
    let (address, shutdown, serving) = start(admin).await;
    for (host, status) in [
        ("localhost", "200"),
        ("LOCALHOST:9901", "200"),
        ("127.0.0.1:9901", "200"),
        ("127.1.2.3", "200"),
        ("[::1]:9901", "200"),
        ("", "200"),
        ("evil.example", "403"),
        ("localhost.evil.example", "403"),
        ("127.0.0.1.evil.example", "403"),
        ("10.0.0.1", "403"),
        ("[::2]", "403"),
        ("user@localhost:x", "403"),
    ] {
        let answer = ask_host(&address, "GET /healthz", host).await;
        let wanted = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&wanted), "{host}: {answer}");
    }
    shutdown.trigger();
    serving.await.unwrap();
}

#[tokio::test]
async fn an_endpoint_that_is_open_to_the_network_has_any_name() {
    let admin = Admin::new(Readiness::default(), Metrics::default()).allow_network(true);
    let (address, _shutdown, _serving) = start(admin).await;
    let answer = ask_host(&address, "GET /healthz", "pod.example").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn answers_are_never_taken_for_html() {
    let metrics = Metrics::default();
    let name = "<script>alert(1)</script>";
    metrics.counter("seen", "Seen.", &[("name", name)]).inc();
    let admin = Admin::new(Readiness::default(), metrics);
    let (address, _shutdown, _serving) = start(admin).await;
    for path in ["/", "/healthz", "/readyz", "/metrics", "/none"] {
        let answer = ask(&address, &format!("GET {path}")).await;
        let head = answer.split("\r\n\r\n").next().unwrap();
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        assert!(!head.contains("html"), "{head}");
    }
}
