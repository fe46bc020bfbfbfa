//! An origin that is told to end and then answers what it was asked, as a good one does.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::visit::{API_PATH, ECHO_PATH};
use crate::{row, serve};

/// How long connections have to end.
const DRAIN: Duration = Duration::from_secs(10);
/// Where health checks look.
pub(crate) const HEALTH_PATH: &str = "/healthz";

/// Serves until SIGTERM, or until standard input ends.
pub(crate) async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = serve::listen(address).await?;
    let answers = Answers {
        small: row::small_body().into(),
        large: row::large_body().into(),
    };
    let (stop, stopping) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut parent = pin!(serve::parent_gone());
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("cannot accept")?;
                stream.set_nodelay(true)?;
                connections.spawn(connection(stream, answers.clone(), stopping.clone()));
            }
            Some(_) = connections.join_next() => {}
            _ = terminate.recv() => break,
            () = &mut parent => return Ok(()),
        }
    }
    drop(listener);
    drop(stop);
    let ended = async { while connections.join_next().await.is_some() {} };
    tokio::time::timeout(DRAIN, ended)
        .await
        .context("connections that do not end")
}

#[derive(Clone)]
struct Answers {
    small: Bytes,
    large: Bytes,
}

async fn connection(stream: TcpStream, answers: Answers, mut stopping: watch::Receiver<()>) {
    let service = service_fn(|request| {
        let answers = answers.clone();
        async move { Ok::<_, Infallible>(answer(request, &answers).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // What breaks here the proxy sees too, and the client through it.
    tokio::select! {
        _ = connection.as_mut() => {}
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn answer(request: Request<Incoming>, answers: &Answers) -> Response<Full<Bytes>> {
    let has = |name: &str| request.headers().contains_key(name);
    let saw = row::saw(has(row::AUTH_HEADER), has(row::PROC_REQUEST_HEADER));
    let (status, body) = match request.uri().path() {
        HEALTH_PATH => (StatusCode::OK, Bytes::new()),
        row::SMALL_PATH | API_PATH => (StatusCode::OK, answers.small.clone()),
        row::LARGE_PATH => (StatusCode::OK, answers.large.clone()),
        ECHO_PATH => match request.into_body().collect().await {
            Ok(body) => (StatusCode::OK, body.to_bytes()),
            Err(_) => (StatusCode::BAD_REQUEST, Bytes::new()),
        },
        _ => (StatusCode::NOT_FOUND, Bytes::new()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let json = http::HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    let saw = http::HeaderValue::from_static(saw);
    headers.insert(http::HeaderName::from_static(row::SAW_HEADER), saw);
    response
}
