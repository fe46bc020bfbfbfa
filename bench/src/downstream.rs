//! Connections of the load to a proxy, of every protocol: one request at a time on one of
//! HTTP/1.1, any number on one of HTTP/2. Each answer is checked.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::certificates::{Certificates, NAME};
use crate::protocol::Protocol;
use crate::response::{Answer, Expected};
use crate::window::STALLED;

/// Room for an answer with its large body.
pub(crate) const BUFFER: usize = 128 * 1024;
/// Windows that never make a proxy wait.
const WINDOW: u32 = 4 << 20;

/// A typical request of a browser: its headers beside the host.
const HEADERS: [(&str, &str); 7] = [
    (
        "user-agent",
        "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    ),
    ("accept", "application/json, text/plain, */*"),
    ("accept-language", "en-GB,en;q=0.8,de;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    (
        "authorization",
        "Bearer c2VjcmV0LXRva2VuLW9mLXRoZS1iZW5jaG1hcmstMDEyMzQ1Njc4OWFiY2RlZg",
    ),
    (
        "cookie",
        "session=6f1c2a9e4b7d4c0f8e3a; theme=dark; consent=1",
    ),
    ("x-tenant", "acme"),
];

/// How to connect to a proxy.
#[derive(Clone)]
pub(crate) struct Downstream {
    protocol: Protocol,
    tls: Option<TlsConnector>,
}

/// A stream of bytes, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// One connection.
pub(crate) struct Connection(Kind);

enum Kind {
    Http1(Box<dyn Stream>),
    Http2(SendRequest<Bytes>),
}

/// A request in the forms that connections need, and its answer.
pub(crate) struct Asked {
    http1: String,
    http2: Request<()>,
    expected: Expected,
}

impl Asked {
    /// The request for a path.
    pub(crate) fn new(path: &str, expected: Expected, protocol: Protocol) -> anyhow::Result<Asked> {
        let mut http1 = format!("GET {path} HTTP/1.1\r\nhost: {NAME}\r\n");
        let scheme = match protocol {
            Protocol::Http1 | Protocol::Http2 => "http",
            Protocol::Tls1 | Protocol::Tls2 => "https",
        };
        let mut http2 = Request::get(format!("{scheme}://{NAME}{path}"));
        for (name, value) in HEADERS {
            http1.push_str(&format!("{name}: {value}\r\n"));
            http2 = http2.header(name, value);
        }
        http1.push_str("\r\n");
        Ok(Asked {
            http1,
            http2: http2.body(()).context("a bad request")?,
            expected,
        })
    }
}

impl Downstream {
    /// Without TLS.
    pub(crate) fn plain(protocol: Protocol) -> Downstream {
        Downstream {
            protocol,
            tls: None,
        }
    }

    /// With TLS where the protocol has it.
    pub(crate) fn new(protocol: Protocol, tls: &Certificates) -> anyhow::Result<Downstream> {
        let connector = protocol.alpn().map(|alpn| tls.connector(alpn));
        Ok(Downstream {
            protocol,
            tls: connector.transpose()?,
        })
    }

    /// What it speaks.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Connects, from `source` if there is one.
    pub(crate) async fn connect(
        &self,
        target: SocketAddr,
        source: Option<SocketAddr>,
    ) -> anyhow::Result<Connection> {
        let stream = match source {
            None => TcpStream::connect(target).await,
            Some(source) => {
                let socket = TcpSocket::new_v4()?;
                socket.bind(source)?;
                socket.connect(target).await
            }
        };
        let stream = stream.with_context(|| format!("cannot connect to {target}"))?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let stream = tls.connect(ServerName::try_from(NAME)?, stream).await;
                Box::new(stream.context("TLS failed")?)
            }
        };
        if !self.protocol.shares() {
            return Ok(Connection(Kind::Http1(stream)));
        }
        let (client, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(stream)
            .await
            .context("no HTTP/2")?;
        // Its failure shows in every request on it.
        tokio::spawn(connection);
        Ok(Connection(Kind::Http2(client)))
    }

    /// Asks once on a connection of its own; for finding out whether a proxy is ready.
    pub(crate) async fn probe(&self, target: SocketAddr, asked: &Asked) -> anyhow::Result<()> {
        let mut connection = self.connect(target, None).await?;
        let mut buffer = vec![0; BUFFER];
        tokio::time::timeout(STALLED, connection.ask(&mut buffer, asked))
            .await
            .context("no answer")?
    }
}

impl Connection {
    /// Another handle of the same connection, where requests may share it.
    pub(crate) fn share(&self) -> Option<Connection> {
        match &self.0 {
            Kind::Http1(_) => None,
            Kind::Http2(client) => Some(Connection(Kind::Http2(client.clone()))),
        }
    }

    /// Sends a request and checks its answer. `buffer` is room to read into.
    pub(crate) async fn ask(&mut self, buffer: &mut [u8], asked: &Asked) -> anyhow::Result<()> {
        match &mut self.0 {
            Kind::Http1(stream) => {
                let sent = stream.write_all(asked.http1.as_bytes()).await;
                sent.context("cannot send")?;
                stream.flush().await.context("cannot send")?;
                read(stream, buffer, &asked.expected).await
            }
            Kind::Http2(client) => exchange(client, asked).await,
        }
    }
}

/// Reads one answer of HTTP/1.1.
async fn read(
    stream: &mut Box<dyn Stream>,
    buffer: &mut [u8],
    expected: &Expected,
) -> anyhow::Result<()> {
    let mut answer = Answer::new(expected);
    let mut filled = 0;
    while !answer.done() {
        let Some(free) = buffer.get_mut(filled..).filter(|free| !free.is_empty()) else {
            bail!("a head of more than {filled} bytes");
        };
        match stream.read(free).await.context("cannot read")? {
            0 => bail!("the connection was closed in the middle of an answer"),
            read => filled += read,
        }
        // Only the head of an answer is ever left over for the next read.
        let used = answer.take(buffer.get(..filled).unwrap_or_default())?;
        if used == filled {
            filled = 0;
        }
    }
    Ok(())
}

/// Makes one exchange of HTTP/2.
async fn exchange(client: &mut SendRequest<Bytes>, asked: &Asked) -> anyhow::Result<()> {
    let expected = &asked.expected;
    // One that was cloned for this exchange: being ready holds a place in the connection.
    let mut client = client
        .clone()
        .ready()
        .await
        .context("the connection is gone")?;
    let (response, _) = client.send_request(asked.http2.clone(), true)?;
    let (head, mut body) = response.await.context("no response")?.into_parts();
    ensure!(
        head.status.as_u16() == expected.status,
        "status {}",
        head.status
    );
    for (name, value) in &expected.headers {
        let found = head.headers.get(*name);
        ensure!(
            found.is_some_and(|found| found == value),
            "expected `{name}: {value}`, got {found:?}"
        );
    }
    let mut rest = expected.body.as_slice();
    while let Some(piece) = body.data().await {
        let piece = piece.context("the body broke off")?;
        body.flow_control().release_capacity(piece.len())?;
        rest = rest.strip_prefix(piece.as_ref()).context("a wrong body")?;
    }
    ensure!(
        rest.is_empty(),
        "{} bytes of the body are missing",
        rest.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Row;

    #[test]
    fn the_request_is_well_formed() {
        let row = Row::Plain;
        let asked = Asked::new("/small", row.expected(), Protocol::Http1).unwrap();
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Request::new(&mut headers);
        let whole = parsed.parse(asked.http1.as_bytes()).unwrap();
        assert!(whole.is_complete());
        assert_eq!(parsed.headers.len(), 8);
    }
}
