//! Calls over HTTP/2 and HTTP/1.1, with nothing of ours between.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::h1::{Framing, Reader, write_head};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How a call ended that has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    /// gRPC's code.
    pub(super) code: i64,
    /// Its message, decoded.
    pub(super) message: String,
}

/// One gRPC call with one answer; the outer error is none of gRPC's.
pub(super) async fn call(
    address: SocketAddr,
    path: &str,
    message: &[u8],
) -> Result<Result<Bytes, Failed>, String> {
    let called = tokio::time::timeout(PATIENCE, unary(address, path, message));
    match called.await {
        Ok(called) => called.map_err(|error| format!("{address}{path}: {error}")),
        Err(_) => Err(format!("{address}{path}: no answer in {PATIENCE:?}")),
    }
}

async fn unary(
    address: SocketAddr,
    path: &str,
    message: &[u8],
) -> Result<Result<Bytes, Failed>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let mut sender = sender.ready().await?;
    let request = http::Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut stream) = sender.send_request(request, false)?;
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len())?);
    frame.put_slice(message);
    stream.send_data(frame.freeze(), true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut data = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        data.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    driver.abort();
    let field = |name: &str| {
        let value = trailers.get(name).or_else(|| head.headers.get(name))?;
        Some(value.to_str().unwrap_or_default().to_owned())
    };
    let code: i64 = field("grpc-status").ok_or("no grpc-status")?.parse()?;
    Ok(match code {
        0 => Ok(data.freeze().slice(5..)),
        code => Err(Failed {
            code,
            message: unescape(&field("grpc-message").unwrap_or_default()),
        }),
    })
}

/// gRPC writes messages percent-encoded.
fn unescape(message: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = message.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = || {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            u8::from_str_radix(digits, 16).ok()
        };
        let (byte, length) = match (*first == b'%').then(escaped).flatten() {
            Some(decoded) => (decoded, 3),
            None => (*first, 1),
        };
        bytes.push(byte);
        rest = &rest[length..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer over HTTP/1.1.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) body: String,
}

/// One exchange over HTTP/1.1; nothing where nobody answers.
pub(super) async fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> Option<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let headers = vec![
            ("host".to_owned(), b"ratelimit".to_vec()),
            ("content-length".to_owned(), body.len().to_string().into()),
            ("connection".to_owned(), b"close".to_vec()),
        ];
        let mut message = write_head(&format!("{method} {path} HTTP/1.1"), &headers);
        message.extend_from_slice(body.as_bytes());
        stream.write_all(&message).await.ok()?;
        let mut reader = Reader::new(stream);
        let head = reader.head().await?;
        let status = head.line.split(' ').nth(1)?.parse().ok()?;
        let content_type = head.get("content-type").unwrap_or_default();
        let content_type = String::from_utf8_lossy(content_type).into_owned();
        let mut body = Vec::new();
        let framing = head.framing(Framing::ToClose);
        reader
            .body(framing, |data| body.extend_from_slice(data))
            .await?;
        Some(Answer {
            status,
            content_type,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    };
    tokio::time::timeout(PATIENCE, exchange).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_decoded() {
        assert_eq!(unescape("100%25 of %22a%22 %"), "100% of \"a\" %");
    }
}
