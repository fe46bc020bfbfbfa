//! The load: connections that each send one ready-made request at a time and
//! check the answer.
//!
//! One thread, no HTTP library: what it costs must not show beside what a
//! proxy costs. `bench/README.md` has the comparison with a known tool.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cpu::Process;
use crate::response::{Answer, Expected};
use crate::samples::Samples;
use crate::window::{Clients, Gate, Measured, STALLED, Window};

/// Room for an answer with its large body.
const BUFFER: usize = 128 * 1024;

/// How to load a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Where it listens.
    pub(crate) target: SocketAddr,
    /// How many connections to keep busy.
    pub(crate) connections: u32,
    /// How long, and how many requests at most.
    pub(crate) window: Window,
}

impl Load {
    /// Runs the load for `path` and watches the CPU of `processes` meanwhile.
    pub(crate) async fn run(
        &self,
        path: &str,
        expected: Expected,
        processes: &[Process],
    ) -> anyhow::Result<Measured> {
        let gate = self.window.gate();
        let expected = Arc::new(expected);
        let request: Arc<[u8]> = request(path).into_bytes().into();
        let mut clients = Clients::new();
        for _ in 0..self.connections {
            let stream = TcpStream::connect(self.target)
                .await
                .with_context(|| format!("cannot connect to {}", self.target))?;
            stream.set_nodelay(true)?;
            let (gate, expected, request) = (gate.clone(), expected.clone(), request.clone());
            clients.spawn(async move { connection(stream, &request, &expected, &gate).await });
        }
        self.window.measure(clients, &gate, processes).await
    }
}

/// Asks while the gate is open; gives the latencies of what was counted.
async fn connection(
    mut stream: TcpStream,
    request: &[u8],
    expected: &Expected,
    gate: &Gate,
) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    let mut buffer = vec![0; BUFFER];
    let mut start = Instant::now();
    while gate.open() {
        stream.write_all(request).await.context("cannot send")?;
        answer(&mut stream, &mut buffer, expected).await?;
        let now = Instant::now();
        if gate.counts() {
            samples.add(now - start);
        }
        start = now;
    }
    Ok(samples)
}

/// Reads one answer.
async fn answer(
    stream: &mut TcpStream,
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

/// A typical request of a browser, with its eight headers.
fn request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\n\
         host: shop.example.com\r\n\
         user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
         accept: application/json, text/plain, */*\r\n\
         accept-language: en-GB,en;q=0.8,de;q=0.5\r\n\
         accept-encoding: gzip, deflate, br, zstd\r\n\
         authorization: Bearer c2VjcmV0LXRva2VuLW9mLXRoZS1iZW5jaG1hcmstMDEyMzQ1Njc4OWFiY2RlZg\r\n\
         cookie: session=6f1c2a9e4b7d4c0f8e3a; theme=dark; consent=1\r\n\
         x-tenant: acme\r\n\r\n"
    )
}

/// Asks once; for finding out whether a server is ready.
pub(crate) async fn probe(
    target: SocketAddr,
    path: &str,
    expected: &Expected,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(target)
        .await
        .with_context(|| format!("cannot connect to {target}"))?;
    stream.write_all(request(path).as_bytes()).await?;
    let mut buffer = vec![0; BUFFER];
    tokio::time::timeout(STALLED, answer(&mut stream, &mut buffer, expected))
        .await
        .context("no answer")?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::row::Row;

    /// Loads an origin without a proxy, expecting the answers of `row`.
    async fn load(row: Row) -> anyhow::Result<Measured> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let target = listener.local_addr()?;
        tokio::spawn(crate::origin::accept(listener, Duration::ZERO));
        let window = Window {
            warm_up: Duration::ZERO,
            seconds: STALLED,
            most: 100,
        };
        let load = Load {
            target,
            connections: 4,
            window,
        };
        load.run(row.path(), row.expected(), &[]).await
    }

    #[tokio::test]
    async fn right_answers_are_counted() {
        let measured = load(Row::Plain).await.unwrap();
        // A few may have come before counting began.
        assert!((1..=100).contains(&measured.requests), "{measured:?}");
    }

    #[tokio::test]
    async fn answers_that_no_policy_touched_fail_the_row() {
        let failed = load(Row::ExtAuthz).await.unwrap_err().to_string();
        assert!(failed.contains("expected `x-origin-saw: auth`"), "{failed}");
        let failed = load(Row::ExtProcBody).await.unwrap_err().to_string();
        assert!(failed.contains("expected `x-origin-saw: proc`"), "{failed}");
    }

    #[test]
    fn the_request_is_well_formed() {
        let request = request("/small");
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Request::new(&mut headers);
        assert!(parsed.parse(request.as_bytes()).unwrap().is_complete());
        assert_eq!(parsed.headers.len(), 8);
    }
}
