//! An HTTP/2 client that writes any frames it likes.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::PATIENCE;

/// What a client sends first (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame as it was read.
#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status of a HEADERS frame that begins with one of the statuses of HPACK's static table.
    pub fn status(&self) -> Option<u16> {
        let statuses = [200, 204, 206, 304, 400, 404, 500];
        let index = self.payload.first()?.checked_sub(0x88)?;
        statuses.get(usize::from(index)).copied()
    }
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block: every field is literal, and no table is touched.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            length(&mut bytes, text.len());
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// An integer of HPACK with a prefix of seven bits.
fn length(bytes: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        return bytes.push(value as u8);
    }
    bytes.push(127);
    value -= 127;
    while value >= 128 {
        bytes.push((value % 128) as u8 | 128);
        value /= 128;
    }
    bytes.push(value as u8);
}

/// The fields of a request.
pub fn request<'f>(
    method: &'f str,
    path: &'f str,
    more: &[(&'f str, &'f str)],
) -> Vec<(&'f str, &'f str)> {
    let mut fields = vec![
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
    ];
    fields.extend(more);
    fields
}

/// A connection after both sides' settings.
pub struct Http2 {
    pub read: OwnedReadHalf,
    pub write: OwnedWriteHalf,
}

impl Http2 {
    pub async fn connect(at: SocketAddr) -> Self {
        Self::with_settings(at, &[]).await
    }

    /// With settings of our own: pairs of an identifier and a value.
    pub async fn with_settings(at: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let (read, write) = TcpStream::connect(at).await.unwrap().into_split();
        let mut client = Self { read, write };
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &payload));
        bytes.extend(frame(SETTINGS, ACK, 0, &[]));
        client.send(&bytes).await;
        let first = client.frame().await.expect("settings");
        assert_eq!(first.kind, SETTINGS);
        client
    }

    /// Sends bytes; what the other side no longer takes is lost.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        self.write.write_all(bytes).await.is_ok()
    }

    /// Sends the head of a request, whole.
    pub async fn head(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) {
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        self.send(&frame(HEADERS, flags, stream, &block(fields)))
            .await;
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn frame(&mut self) -> Option<Frame> {
        let read = async {
            let mut head = [0; 9];
            self.read.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.read.read_exact(&mut payload).await.ok()?;
            Some(Frame {
                kind: head[3],
                flags: head[4],
                stream: u32::from_be_bytes([head[5] & 127, head[6], head[7], head[8]]),
                payload,
            })
        };
        tokio::time::timeout(PATIENCE, read)
            .await
            .expect("a frame or the end of the connection")
    }

    /// Waits for what becomes of a stream: the head of its response, a reset, or the end of the
    /// connection, said or unsaid.
    pub async fn outcome(&mut self, stream: u32) -> Outcome {
        while let Some(frame) = self.frame().await {
            match frame.kind {
                HEADERS if frame.stream == stream => {
                    return Outcome::Answered(frame.status());
                }
                RST_STREAM if frame.stream == stream => return Outcome::Reset(frame.code()),
                GOAWAY => return Outcome::Ended(Some(frame.code())),
                _ => {}
            }
        }
        Outcome::Ended(None)
    }

    /// Waits for the end of the connection; with the error code that it is said with, if it is.
    pub async fn end(mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.frame().await {
            if frame.kind == GOAWAY {
                code = Some(frame.code());
            }
        }
        code
    }

    /// Whether a request is still served on this connection.
    pub async fn is_alive(&mut self, stream: u32) -> bool {
        self.head(stream, &request("GET", "/alive", &[]), true)
            .await;
        self.outcome(stream).await == Outcome::Answered(Some(200))
    }
}

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response began; its status where it is a common one.
    Answered(Option<u16>),
    /// RST_STREAM with this code.
    Reset(u32),
    /// The connection ended, with this code in a GOAWAY.
    Ended(Option<u32>),
}
