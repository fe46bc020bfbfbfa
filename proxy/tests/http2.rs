//! HTTP/2 on either side, gRPC with trailers, TLS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

mod support;

use std::{net::SocketAddr, path::Path, time::Duration};

use attache_proxy::route::Forward;
use attache_service::tls::{ALPN_HTTP, ServerFiles, ServerTls, TlsVersion};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use support::{
    OK, PATIENCE, Raw, Tested, echo_origin, header, http2, origin, plan_to, plan_with, start,
    status,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// An HTTP/2 client connection, driven in the background.
async fn h2_client<IO>(io: IO) -> h2::client::SendRequest<Bytes>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (send, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

async fn h2_to(at: SocketAddr) -> h2::client::SendRequest<Bytes> {
    h2_client(TcpStream::connect(at).await.unwrap()).await
}

async fn read(mut body: h2::RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    (bytes, body.trailers().await.unwrap())
}

/// An HTTP/2 origin: echoes the request body, then says `grpc-status` in trailers.
async fn grpc_origin() -> (
    support::Origin,
    tokio::sync::mpsc::UnboundedReceiver<http::request::Parts>,
) {
    let (seen, heads) = tokio::sync::mpsc::unbounded_channel();
    let origin = origin(move |_, stream| {
        let seen = seen.clone();
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let (parts, mut body) = request.into_parts();
                let _ = seen.send(parts);
                tokio::spawn(async move {
                    let head = Response::builder()
                        .header("content-type", "application/grpc")
                        .body(())
                        .unwrap();
                    let mut send = respond.send_response(head, false).unwrap();
                    while let Some(Ok(data)) = body.data().await {
                        let _ = body.flow_control().release_capacity(data.len());
                        send.send_data(data, false).unwrap();
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    let got = body.trailers().await.ok().flatten().unwrap_or_default();
                    if let Some(value) = got.get("x-checksum") {
                        trailers.insert("x-checksum", value.clone());
                    }
                    send.send_trailers(trailers).unwrap();
                });
            }
        }
    })
    .await;
    (origin, heads)
}

fn post(authority: &str) -> Request<()> {
    Request::post(format!("http://{authority}/pkg.Service/Method"))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

#[tokio::test]
async fn http2_by_prior_knowledge_reaches_an_http1_origin_with_a_host() {
    let (origin, mut heads) = echo_origin(OK).await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = h2_to(proxy.at).await;

    let request = Request::get("http://site.example/x?y").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let response = response.await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(read(response.into_body()).await.0, b"ok");
    let seen = heads.recv().await.unwrap();
    assert!(seen.starts_with("GET /x?y HTTP/1.1\r\n"), "{seen}");
    assert_eq!(header(&seen, "host"), Some("site.example"));
}

#[tokio::test]
async fn grpc_streams_both_ways_with_trailers_both_ways() {
    let (origin, mut heads) = grpc_origin().await;
    let proxy = start(plan_with(origin.at, |_| {}, http2, Forward::to(0))).await;
    let mut client = h2_to(proxy.at).await;

    let (response, mut send) = client.send_request(post("grpc.example"), false).unwrap();
    send.send_data(Bytes::from_static(b"first"), false).unwrap();
    // The answer begins before the request has ended: nothing is buffered.
    let response = tokio::time::timeout(PATIENCE, response)
        .await
        .unwrap()
        .unwrap();
    let mut body = response.into_body();
    let first = tokio::time::timeout(PATIENCE, body.data()).await.unwrap();
    assert_eq!(first.unwrap().unwrap(), "first");
    send.send_data(Bytes::from_static(b"second"), false)
        .unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", "7".parse().unwrap());
    send.send_trailers(trailers).unwrap();
    let (rest, trailers) = read(body).await;

    assert_eq!(rest, b"second");
    let trailers = trailers.expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers["x-checksum"], "7");
    let seen = heads.recv().await.unwrap();
    assert_eq!(seen.uri.authority().unwrap(), "grpc.example");
    assert_eq!(seen.headers["te"], "trailers");
}

#[tokio::test]
async fn grpc_callers_get_local_replies_as_grpc() {
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let proxy = start(plan_with(closed, |_| {}, http2, Forward::to(0))).await;
    let mut client = h2_to(proxy.at).await;
    let (response, _) = client.send_request(post("a"), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "14");
}

#[tokio::test]
async fn http1_clients_reach_http2_origins_over_one_connection() {
    let (origin, mut heads) = grpc_origin().await;
    let proxy = start(plan_with(origin.at, |_| {}, http2, Forward::to(0))).await;
    for _ in 0..3 {
        let mut client = Raw::connect(proxy.at).await;
        client
            .send("POST /p HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi")
            .await;
        let answer = client.rest().await;
        assert_eq!(status(&answer), 200);
        assert!(answer.contains("\r\nhi\r\n"), "{answer}");
        let seen = heads.recv().await.unwrap();
        assert_eq!(seen.uri.authority().unwrap(), "a.example");
        assert_eq!(seen.uri.path(), "/p");
        assert!(!seen.headers.contains_key("connection"));
    }
}

#[tokio::test]
async fn a_reset_stream_cancels_the_upstream_stream_only() {
    let (cancelled, mut was_cancelled) = tokio::sync::mpsc::unbounded_channel();
    let origin = origin(move |_, stream| {
        let cancelled = cancelled.clone();
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let cancelled = cancelled.clone();
                tokio::spawn(async move {
                    let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                    let _ = cancelled.send(reason.is_ok());
                });
            }
        }
    })
    .await;
    let proxy = start(plan_with(origin.at, |_| {}, http2, Forward::to(0))).await;
    let mut client = h2_to(proxy.at).await;
    let (response, mut send) = client.send_request(post("a"), false).unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(100), response).await;
    assert!(waiting.is_err(), "the origin does not answer");
    send.send_reset(h2::Reason::CANCEL);
    let reset = tokio::time::timeout(PATIENCE, was_cancelled.recv()).await;
    assert!(reset.expect("in time").expect("a reset"));
}

fn certificate(folder: &Path) -> (ServerTls, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, private_key) = (folder.join("tls.crt"), folder.join("tls.key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&private_key, made.signing_key.serialize_pem()).unwrap();
    let tls = ServerTls::load(ServerFiles {
        certificate,
        private_key,
        client_ca: None,
        client_name: None,
        min_version: TlsVersion::default(),
        alpn: ALPN_HTTP.iter().map(|name| (*name).to_owned()).collect(),
    })
    .unwrap();
    (tls, made.cert.der().to_vec())
}

async fn tls_client(
    at: SocketAddr,
    trusted: &[u8],
    alpn: &[&str],
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.to_vec().into()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
        .connect(
            "localhost".try_into().unwrap(),
            TcpStream::connect(at).await.unwrap(),
        )
        .await
        .unwrap()
}

async fn tls_proxy(folder: &Path, origin: SocketAddr) -> (Tested, Vec<u8>) {
    let (tls, trusted) = certificate(folder);
    let plan = plan_with(origin, |l| l.tls = Some(tls), |_| {}, Forward::to(0));
    (start(plan).await, trusted)
}

#[tokio::test]
async fn tls_clients_get_the_protocol_they_negotiate() {
    let (origin, mut heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let (proxy, trusted) = tls_proxy(folder.path(), origin.at).await;

    let h2 = tls_client(proxy.at, &trusted, &["h2", "http/1.1"]).await;
    assert_eq!(h2.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut client = h2_client(h2).await;
    let request = Request::get("https://localhost/").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    let seen = heads.recv().await.unwrap();
    assert_eq!(header(&seen, "x-forwarded-proto"), Some("https"));

    let mut h1 = tls_client(proxy.at, &trusted, &["http/1.1"]).await;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    h1.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    let _ = h1.read_to_string(&mut answer).await;
    assert_eq!(status(&answer), 200);
}

#[tokio::test]
async fn plain_text_on_a_tls_listener_is_not_served() {
    let (origin, mut heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let (proxy, _) = tls_proxy(folder.path(), origin.at).await;
    let answer = support::once(proxy.at, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(!answer.contains("200"), "{answer}");
    assert!(heads.try_recv().is_err());
}

#[tokio::test]
async fn the_number_of_headers_is_bounded_in_http2_too() {
    let (origin, mut heads) = echo_origin(OK).await;
    let proxy = start(plan_to(origin.at)).await;
    let mut client = h2_to(proxy.at).await;
    let mut request = Request::get("http://a/").body(()).unwrap();
    for _ in 0..101 {
        request
            .headers_mut()
            .append("cookie", "a=b".parse().unwrap());
    }
    let (response, _) = client.send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 431);
    let request = Request::get("http://a/").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    assert_eq!(
        response.await.unwrap().status(),
        200,
        "the connection goes on"
    );
    assert!(heads.try_recv().is_ok() && heads.try_recv().is_err());
}

/// An authority, and a key with a certificate of it that names a URI.
struct Issued {
    authority: String,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

fn issue(uri: &str) -> Issued {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let leaf_key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(Vec::new()).unwrap();
    leaf.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
    Issued {
        authority: authority.pem(),
        certificate: leaf.der().to_vec(),
        key: leaf_key.serialize_der(),
    }
}

#[tokio::test]
async fn mutual_tls_lets_only_certified_clients_in() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (origin, mut heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let client = issue("spiffe://test/client");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, &client.authority).unwrap();
    let (_, trusted) = certificate(folder.path());
    let tls = ServerTls::load(ServerFiles {
        certificate: folder.path().join("tls.crt"),
        private_key: folder.path().join("tls.key"),
        client_ca: Some(ca),
        client_name: None,
        min_version: TlsVersion::default(),
        alpn: vec!["http/1.1".to_owned()],
    })
    .unwrap();
    let plan = plan_with(origin.at, |l| l.tls = Some(tls), |_| {}, Forward::to(0));
    let proxy = start(plan).await;

    let ask = async |identity: Option<&Issued>| -> String {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(trusted.clone().into()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(issued) => builder
                .with_client_auth_cert(
                    vec![issued.certificate.clone().into()],
                    issued.key.clone().try_into().unwrap(),
                )
                .unwrap(),
        };
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let io = TcpStream::connect(proxy.at).await.unwrap();
        let Ok(mut io) = connector.connect("localhost".try_into().unwrap(), io).await else {
            return String::new();
        };
        let request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let mut answer = Vec::new();
        if io.write_all(request).await.is_ok() {
            let _ = io.read_to_end(&mut answer).await;
        }
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert_eq!(ask(None).await, "");
    assert_eq!(ask(Some(&issue("spiffe://other/client"))).await, "");
    assert!(heads.try_recv().is_err());
    assert_eq!(status(&ask(Some(&client)).await), 200);
}
