//! Servers that do what real ones rarely do.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use crate::channel::EmbeddedConnector;

type Connection = h2::server::Connection<DuplexStream, Bytes>;

/// Serves each connection with `serve`, which gets its number from 0.
pub(super) fn h2_server<F>(serve: F) -> EmbeddedConnector
where
    F: Fn(usize, Connection) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync + 'static,
{
    let serve = Arc::new(serve);
    connector(move |number, io| {
        let serve = serve.clone();
        async move {
            if let Ok(connection) = h2::server::handshake(io).await {
                serve(number, connection).await;
            }
        }
    })
}

/// What a [`raw_server`] does with a call.
#[derive(Clone, Copy)]
pub(super) enum Raw {
    /// GOAWAY: this call was not looked at.
    GoAwayUnseen,
    /// `REFUSED_STREAM`.
    Refuse,
    /// Answers with the message `x`.
    Answer,
    /// The same, when the request has ended or, too late, when it was cancelled.
    AnswerLate,
}

/// A server of hand-made frames; `act` says what to do with a call by its connection's number.
/// Returns the number of calls seen, too.
pub(super) fn raw_server(act: fn(usize) -> Raw) -> (EmbeddedConnector, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let connector = connector(move |number, io| {
        let count = count.clone();
        async move {
            // Ends when the client closes.
            let _ = raw_connection(io, act(number), &count).await;
        }
    });
    (connector, calls)
}

async fn raw_connection(
    mut io: DuplexStream,
    act: Raw,
    calls: &AtomicUsize,
) -> std::io::Result<()> {
    io.read_exact(&mut [0; 24]).await?;
    io.write_all(&frame(4, 0, 0, &[])).await?;
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        io.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes(stream);
        let message = [
            frame(1, 4, stream, b"\x88\x0f\x10\x10application/grpc"),
            frame(0, 0, stream, b"\0\0\0\0\x01x"),
            frame(1, 5, stream, b"\0\x0bgrpc-status\x010"),
        ];
        let answer = match (kind, flags) {
            // SETTINGS and PING, not yet acknowledged.
            (4, 0) => frame(4, 1, 0, &[]),
            (6, 0) => frame(6, 1, 0, &payload),
            // HEADERS: a call.
            (1, _) => {
                calls.fetch_add(1, Ordering::Relaxed);
                match act {
                    Raw::GoAwayUnseen => frame(7, 0, 0, &[0; 8]),
                    Raw::Refuse => frame(3, 0, stream, &[0, 0, 0, 7]),
                    Raw::Answer => message.concat(),
                    Raw::AnswerLate => continue,
                }
            }
            // The end of a request, or RST_STREAM.
            (0, 1) | (3, _) if matches!(act, Raw::AnswerLate) => message.concat(),
            _ => continue,
        };
        io.write_all(&answer).await?;
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Runs `serve` for each connection.
pub(super) fn connector<F, T>(serve: F) -> EmbeddedConnector
where
    F: Fn(usize, DuplexStream) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let connections = AtomicUsize::new(0);
    Arc::new(move || {
        let (near, far) = duplex(1 << 16);
        tokio::spawn(serve(connections.fetch_add(1, Ordering::Relaxed), far));
        near
    })
}
