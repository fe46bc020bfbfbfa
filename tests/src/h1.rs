//! HTTP/1.1 byte for byte: nothing is corrected, nothing is hidden.

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::board::Headers;

/// The head of a message.
#[derive(Debug)]
pub struct Head {
    /// Request line or status line.
    pub line: String,
    /// Headers as received.
    pub headers: Headers,
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many bytes.
    Length(usize),
    /// Chunks, then trailers.
    Chunked,
    /// All until the connection closes.
    ToClose,
}

/// How a body ended: its trailers, or nothing where it was cut off.
pub type End = Option<Headers>;

/// Reads messages from one side of a connection.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    held: Vec<u8>,
}

impl Head {
    /// The first value of a header.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let mut found = self
            .headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_slice())
    }

    /// The body's framing; `other` where the headers say nothing.
    pub fn framing(&self, other: Framing) -> Framing {
        let chunked = self
            .get("transfer-encoding")
            .is_some_and(|v| v.ends_with(b"chunked"));
        let length = self
            .get("content-length")
            .and_then(|v| std::str::from_utf8(v).ok());
        match length.and_then(|text| text.trim().parse().ok()) {
            _ if chunked => Framing::Chunked,
            Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
            None => other,
        }
    }
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads from `from`.
    pub fn new(from: R) -> Self {
        Self {
            from,
            held: Vec::new(),
        }
    }

    /// Waits for more bytes; false at the end.
    async fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.from.read(&mut buffer).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.held.extend_from_slice(&buffer[..count]);
                true
            }
        }
    }

    async fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.held.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.held.drain(..=end).collect();
                line.pop();
                line.pop_if(|b| *b == b'\r');
                return Some(line);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn headers(&mut self) -> Option<Headers> {
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Some(headers);
            }
            let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
            let name = String::from_utf8_lossy(&line[..colon]).into_owned();
            let value = line.get(colon + 1..).unwrap_or_default();
            headers.push((name, value.trim_ascii().to_vec()));
        }
    }

    /// The next head, or nothing where the connection ends first.
    pub async fn head(&mut self) -> Option<Head> {
        let line = self.line().await?;
        let headers = self.headers().await?;
        Some(Head {
            line: String::from_utf8_lossy(&line).into_owned(),
            headers,
        })
    }

    /// Reads a body, handing on its bytes as they come.
    pub async fn body(&mut self, framing: Framing, mut on: impl FnMut(&[u8])) -> End {
        match framing {
            Framing::None => Some(Vec::new()),
            Framing::Length(length) => self.exactly(length, &mut on).await.then(Vec::new),
            Framing::ToClose => loop {
                on(&std::mem::take(&mut self.held));
                if !self.fill().await {
                    return Some(Vec::new());
                }
            },
            Framing::Chunked => loop {
                let line = self.line().await?;
                let size = String::from_utf8_lossy(&line).trim().to_owned();
                let size = usize::from_str_radix(&size, 16).ok()?;
                if size == 0 {
                    return self.headers().await;
                }
                if !self.exactly(size, &mut on).await {
                    return None;
                }
                self.line().await?;
            },
        }
    }

    async fn exactly(&mut self, mut left: usize, on: &mut impl FnMut(&[u8])) -> bool {
        loop {
            let now = left.min(self.held.len());
            if now > 0 {
                on(&self.held.drain(..now).collect::<Vec<u8>>());
                left -= now;
            }
            if left == 0 {
                return true;
            }
            if !self.fill().await {
                return false;
            }
        }
    }

    /// Waits until the other side closes.
    pub async fn closed(&mut self) {
        while self.fill().await {}
    }
}

/// A head as bytes, from its first line and its headers.
pub fn write_head(line: &str, headers: &Headers) -> Vec<u8> {
    let mut bytes = format!("{line}\r\n").into_bytes();
    for (name, value) in headers {
        write_header(&mut bytes, name, value);
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// One chunk as bytes; nothing for no bytes, as that would be the last chunk.
pub fn write_chunk(data: &[u8]) -> Vec<u8> {
    if data.is_empty() {
        return Vec::new();
    }
    let mut bytes = format!("{:x}\r\n", data.len()).into_bytes();
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// The last chunk with the trailers.
pub fn write_end(trailers: &Headers) -> Vec<u8> {
    let mut bytes = b"0\r\n".to_vec();
    for (name, value) in trailers {
        write_header(&mut bytes, name, value);
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

fn write_header(bytes: &mut Vec<u8>, name: &str, value: &[u8]) {
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(b": ");
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(b"\r\n");
}
