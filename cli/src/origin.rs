//! The demonstration's origin: it answers with what it was asked.

use std::{convert::Infallible, io, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

/// Largest body the origin reads, in bytes.
const BODY_LIMIT: usize = 1 << 20;

/// Starts the origin on a free port of 127.0.0.1; it serves until the runtime ends.
pub(crate) async fn start() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
            tokio::spawn(
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service_fn(answer)),
            );
        }
    });
    Ok(address)
}

/// Shows method, path, headers and body of the request, as the origin saw them.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let mut headers = Map::new();
    for name in parts.headers.keys() {
        let values: Vec<_> = parts
            .headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        headers.insert(name.to_string(), values.join(", ").into());
    }
    let mut seen = json!({
        "method": parts.method.as_str(),
        "path": parts.uri.to_string(),
        "headers": headers,
    });
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => {
            let body = body.to_bytes();
            if !body.is_empty() {
                seen["body"] = serde_json::from_slice(&body)
                    .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&body)));
            }
        }
        Err(error) => seen["body_error"] = error.to_string().into(),
    }
    let mut text =
        serde_json::to_vec_pretty(&json!({ "the origin saw": seen })).unwrap_or_default();
    text.push(b'\n');
    let mut response = Response::new(Full::from(text));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    Ok(response)
}
