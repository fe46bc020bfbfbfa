//! An HTTP service that the auth service asks.

use std::sync::{Arc, Mutex};

use attache_tests::h1::{Framing, Reader, write_head};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};

/// A request: its line, and its body.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap()
    }
}

/// An answer: status, headers, body.
pub(crate) type Told = (u16, Vec<(&'static str, String)>, Vec<u8>);

/// 200 with this body.
pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Told {
    (200, Vec::new(), body.into())
}

/// 404.
pub(crate) fn nothing() -> Told {
    (404, Vec::new(), Vec::new())
}

type Script = Box<dyn Fn(&Asked) -> Told + Send>;

/// The service; it goes with the test's runtime.
#[derive(Clone)]
pub(crate) struct Web {
    pub(crate) origin: String,
    script: Arc<Mutex<Script>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Web {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = Self {
            origin: format!("http://{}", listener.local_addr().unwrap()),
            script: Arc::new(Mutex::new(Box::new(|_| nothing()))),
            asked: Arc::default(),
        };
        let serving = web.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        web
    }

    pub(crate) fn answers(&self, script: impl Fn(&Asked) -> Told + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    /// What it was asked whose path begins so.
    pub(crate) fn asked(&self, prefix: &str) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap();
        let fitting = asked.iter().filter(|one| one.path().starts_with(prefix));
        fitting.cloned().collect()
    }

    async fn serve(self, mut stream: TcpStream) {
        let (from, mut to) = stream.split();
        let mut from = Reader::new(from);
        while let Some(head) = from.head().await {
            let mut body = Vec::new();
            let framing = head.framing(Framing::None);
            let read = from.body(framing, |data| body.extend_from_slice(data));
            if read.await.is_none() {
                return;
            }
            let body = String::from_utf8_lossy(&body).into_owned();
            let line = head.line;
            let asked = Asked { line, body };
            let (status, headers, body) = (self.script.lock().unwrap())(&asked);
            self.asked.lock().unwrap().push(asked);
            let length = ("content-length", body.len().to_string());
            let headers = headers.into_iter().chain([length]);
            let headers = headers.map(|(name, value)| (name.to_owned(), value.into_bytes()));
            let mut answer = write_head(&format!("HTTP/1.1 {status} -"), &headers.collect());
            answer.extend_from_slice(&body);
            if to.write_all(&answer).await.is_err() {
                return;
            }
        }
    }
}
