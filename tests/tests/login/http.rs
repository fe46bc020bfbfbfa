//! As much of HTTP as a provider, a web page and the driver of a browser need.

use std::{future::Future, net::SocketAddr, sync::Arc};

use attache_tests::h1::{Framing, Head, Reader, write_head};
use percent_encoding::percent_decode_str;
use tokio::{
    io::{AsyncRead, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// A request as a handler sees it, or an answer as a client does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    /// The request line, or the status line.
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Message {
    /// An answer with a page.
    pub(crate) fn page(status: u16, body: impl Into<String>) -> Self {
        Self {
            line: format!("HTTP/1.1 {status} OK"),
            headers: vec![("content-type".into(), "text/html; charset=utf-8".into())],
            body: body.into(),
        }
    }

    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self {
            headers: vec![("content-type".into(), "application/json".into())],
            ..Self::page(status, body.to_string())
        }
    }

    pub(crate) fn redirect(url: &str) -> Self {
        Self::page(302, "").with("location", url)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn status(&self) -> u16 {
        self.word(1).parse().unwrap()
    }

    pub(crate) fn method(&self) -> &str {
        self.word(0)
    }

    pub(crate) fn target(&self) -> &str {
        self.word(1)
    }

    fn word(&self, nth: usize) -> &str {
        self.line.split(' ').nth(nth).unwrap_or_default()
    }

    pub(crate) fn path(&self) -> &str {
        self.target().split('?').next().unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        let (_, value) = all.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let mine = self
            .headers
            .iter()
            .filter(move |(key, _)| key.eq_ignore_ascii_case(name));
        mine.map(|(_, value)| value.as_str())
    }

    /// A parameter of the query.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        parameter(self.target().split_once('?')?.1, name)
    }

    /// A field of the form.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        parameter(&self.body, name)
    }

    pub(crate) fn cookie(&self, name: &str) -> Option<&str> {
        let cookies = self.header("cookie")?.split("; ");
        cookies
            .filter_map(|cookie| cookie.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, v)| v)
    }
}

/// A parameter of a query or form, decoded.
pub(crate) fn parameter(text: &str, name: &str) -> Option<String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.into_iter().find(|(key, _)| *key == name)?;
    let spaced = value.replace('+', " ");
    Some(
        percent_decode_str(&spaced)
            .decode_utf8()
            .unwrap()
            .into_owned(),
    )
}

/// Serves `answer` on this port of the loopback address, for ever.
pub(crate) async fn serve<F>(answer: impl Fn(Message) -> F + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = Message> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let (from, mut to) = stream.split();
                let mut from = Reader::new(from);
                while let Some(request) = read(&mut from, Framing::None).await {
                    let bytes = written(&answer(request).await);
                    if to.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Sends a request over a connection of its own.
pub(crate) async fn ask(address: SocketAddr, request: &Message) -> Message {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&written(request)).await.unwrap();
    let mut reader = Reader::new(stream);
    if request.method() == "HEAD" {
        // A length, and no body.
        return message(reader.head().await.unwrap(), Vec::new());
    }
    read(&mut reader, Framing::ToClose).await.unwrap()
}

async fn read(from: &mut Reader<impl AsyncRead + Unpin>, other: Framing) -> Option<Message> {
    let head = from.head().await?;
    let mut body = Vec::new();
    let framing = head.framing(other);
    from.body(framing, |data| body.extend_from_slice(data))
        .await?;
    Some(message(head, body))
}

fn message(head: Head, body: Vec<u8>) -> Message {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let headers = head.headers.into_iter();
    Message {
        line: head.line,
        headers: headers.map(|(name, value)| (name, text(value))).collect(),
        body: text(body),
    }
}

fn written(message: &Message) -> Vec<u8> {
    let mut headers: Vec<_> = message
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), value.clone().into_bytes()))
        .collect();
    headers.push((
        "content-length".to_owned(),
        message.body.len().to_string().into_bytes(),
    ));
    let mut bytes = write_head(&message.line, &headers);
    bytes.extend_from_slice(message.body.as_bytes());
    bytes
}
