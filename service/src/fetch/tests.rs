use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use http::HeaderName;
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::{
    config::{self, Errors},
    tls::{ServerTls, tests::Authority},
};

/// A server of one document, and the requests it got.
struct Server {
    origin: String,
    seen: Arc<Mutex<Vec<Request<()>>>>,
}

impl Server {
    async fn start(tls: Option<ServerTls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let (tls, log) = (tls.clone(), log.clone());
                tokio::spawn(async move {
                    let service = service_fn(|request: Request<Incoming>| {
                        let answer = answer(&request);
                        log.lock().unwrap().push(request.map(|_| ()));
                        async { Ok::<_, std::io::Error>(answer) }
                    });
                    let http = http1::Builder::new();
                    match tls {
                        None => http.serve_connection(TokioIo::new(io), service).await.ok(),
                        Some(tls) => match tls.accept(io).await {
                            Ok(io) => http.serve_connection(TokioIo::new(io), service).await.ok(),
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self {
            origin: format!("{scheme}://127.0.0.1:{port}"),
            seen,
        }
    }

    fn seen(&self, name: HeaderName) -> Vec<Option<String>> {
        let seen = self.seen.lock().unwrap();
        let values = seen.iter().map(|request| request.headers().get(&name));
        values
            .map(|value| value.map(|value| value.to_str().unwrap().to_owned()))
            .collect()
    }
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let known = request.headers().get(header::IF_NONE_MATCH);
    let answer = Response::builder()
        .header(header::ETAG, "\"1\"")
        .header(header::CACHE_CONTROL, "public, max-age=60");
    let (status, body) = match (request.uri().path(), known) {
        ("/moved", _) => (302, "elsewhere"),
        ("/large", _) => (200, "0123456789abcdef"),
        (_, Some(_)) => (304, ""),
        _ => (200, "document"),
    };
    let answer = answer.status(status).header(header::LOCATION, "/");
    answer.body(Full::from(body)).unwrap()
}

fn plan(folder: &Path, text: &str) -> Result<Fetcher, Errors> {
    let file = folder.join("a.yaml");
    let document = config::Document::parse(file.to_str().unwrap(), text)?;
    let (remote, mut errors) = document.decode_partly::<Remote>();
    let fetcher = remote.and_then(|remote| remote.plan(HttpService::MAX_SIZE, &mut errors));
    errors.into_result(fetcher)
}

fn fetcher(text: &str) -> Fetcher {
    plan(Path::new("/"), text).unwrap_or_else(|errors| panic!("{errors}"))
}

async fn fails(fetcher: &Fetcher) -> String {
    let fetched = fetcher.fetch(&Validators::default()).await;
    fetched.unwrap_err().to_string()
}

#[tokio::test]
async fn a_known_document_is_asked_for_only_if_it_has_changed() {
    let server = Server::start(None).await;
    let fetcher = fetcher(&server.origin);

    let Fetched::Document(document) = fetcher.fetch(&Validators::default()).await.unwrap() else {
        panic!("nothing was known")
    };
    let again = fetcher.fetch(&document.validators).await.unwrap();

    assert_eq!(document.body, "document");
    assert_eq!(document.fresh_for, Some(Duration::from_secs(60)));
    assert!(matches!(again, Fetched::Same { fresh_for } if fresh_for == document.fresh_for));
    assert_eq!(
        server.seen(header::IF_NONE_MATCH),
        [None, Some("\"1\"".to_owned())]
    );
}

#[tokio::test]
async fn headers_come_from_the_settings_and_from_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), "Bearer s3cret\n").unwrap();
    let server = Server::start(None).await;
    let text = format!(
        "{{ url: {}, headers: {{ authorization: {{ file: token }}, x-a: {{ value: b }} }} }}",
        server.origin
    );

    let fetcher = plan(folder.path(), &text).unwrap();
    fetcher.fetch(&Validators::default()).await.unwrap();

    let token = Some("Bearer s3cret".to_owned());
    assert_eq!(server.seen(header::AUTHORIZATION), [token]);
    assert_eq!(
        server.seen(HeaderName::from_static("x-a")),
        [Some("b".to_owned())]
    );
    assert_eq!(fetcher.files(), [folder.path().join("token")]);
    assert!(!format!("{fetcher:?}").contains("s3cret"));
}

#[tokio::test]
async fn redirects_and_large_answers_are_errors() {
    let server = Server::start(None).await;

    let moved = fails(&fetcher(&format!("{}/moved", server.origin))).await;
    let large = fails(&fetcher(&format!(
        "{{ url: '{}/large?secret=1', max_size: 15 }}",
        server.origin
    )))
    .await;

    assert!(moved.ends_with("/moved answered 302 Found"), "{moved}");
    assert!(large.contains("longer than 15 bytes"), "{large}");
    assert!(!large.contains("secret"), "{large}");
}

#[tokio::test]
async fn an_answer_that_drips_is_waited_for_no_longer_than_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.unwrap();
        let _ = io.read(&mut [0; 1000]).await;
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
        io.write_all(head).await.unwrap();
        while io.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });

    let error = fails(&fetcher(&format!(
        "{{ url: 'http://127.0.0.1:{port}', timeout: 0.2s }}"
    )))
    .await;

    assert!(error.contains("within 200ms"), "{error}");
}

#[tokio::test]
async fn servers_are_verified_by_the_authorities_given() {
    let authority = Authority::new();
    let ip = rcgen::SanType::IpAddress([127, 0, 0, 1].into());
    authority.issue("server", vec![ip]);
    let mut files = authority.server("server", false);
    files.alpn = vec!["http/1.1".to_owned()];
    let tls = ServerTls::load(files).unwrap();
    let server = Server::start(Some(tls)).await;
    let stranger = Authority::new();
    let url = &server.origin;
    let text = format!("{{ url: '{url}', ca: ca.pem }}");

    let known = plan(authority.directory.path(), &text).unwrap();
    let unknown = plan(stranger.directory.path(), &text).unwrap();

    assert!(known.fetch(&Validators::default()).await.is_ok());
    let error = fails(&unknown).await;
    assert!(error.contains("invalid peer certificate"), "{error}");
    assert!(known.beside("http://127.0.0.1/").is_err());
}

#[tokio::test]
async fn headers_go_along_to_the_same_origin_only() {
    let (server, other) = (Server::start(None).await, Server::start(None).await);
    let text = format!(
        "{{ url: {}, headers: {{ authorization: {{ value: a }} }} }}",
        server.origin
    );
    let fetcher = fetcher(&text);

    for origin in [&server.origin, &other.origin] {
        let beside = fetcher.beside(&format!("{origin}/keys")).unwrap();
        beside.fetch(&Validators::default()).await.unwrap();
    }

    assert_eq!(server.seen(header::AUTHORIZATION), [Some("a".to_owned())]);
    assert_eq!(other.seen(header::AUTHORIZATION), [None]);
    let seen = server.seen.lock().unwrap();
    assert_eq!(seen.first().unwrap().uri().path(), "/keys");
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (text, said) in [
        ("ftp://a/", "1:1: `ftp://a/`: expected `http://`"),
        ("/keys", "expected `http://`"),
        (
            "https://user:pw@a/",
            "user and password belong in `headers`",
        ),
        ("https://a/#b", "has no `#`"),
        ("'http://a b/'", "not a URL"),
        ("{ url: 'https://a', ca: none.pem }", "1:25: cannot read"),
        (
            "{ url: 'http://a', timeout: 0s }",
            "1:29: expected more than 0 s",
        ),
        (
            "{ url: 'http://a', headers: { a b: { value: c } } }",
            "not a header name",
        ),
        (
            "{ url: 'http://a', headers: { a: { value: \"c\\nd\" } } }",
            "not a value",
        ),
        ("{ urll: 'http://a' }", "did you mean `url`"),
    ] {
        let errors = plan(Path::new("/"), text).unwrap_err().to_string();
        assert!(errors.contains(said), "{text}: {errors}");
    }
}

#[test]
fn freshness_is_what_cache_control_leaves_of_it() {
    for (control, age, seconds) in [
        (vec!["max-age=60"], "", Some(60)),
        (vec!["public", "Max-Age=\"60\""], "10", Some(50)),
        (vec!["max-age=60"], "90", Some(0)),
        (vec!["max-age=60, no-cache"], "", Some(0)),
        (vec!["no-store"], "", Some(0)),
        (vec!["private"], "", None),
        (vec!["max-age=soon"], "", None),
        (vec![], "5", None),
    ] {
        let mut headers = HeaderMap::new();
        for line in &control {
            headers.append(header::CACHE_CONTROL, line.parse().unwrap());
        }
        headers.insert(header::AGE, age.parse().unwrap());
        let fresh = fresh_for(&headers).map(|fresh| fresh.as_secs());
        assert_eq!(fresh, seconds, "{control:?} {age}");
    }
}
