//! An HTTP server that says what a test wants.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// Method, path and headers.
    pub(super) head: String,
    pub(super) body: String,
}

impl Seen {
    pub(super) fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }
}

/// What a server does with a request.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    Status(u16, Vec<(&'static str, String)>, String),
    /// 200 with a body that is no text.
    Bytes(Vec<(&'static str, String)>, Vec<u8>),
    /// Promises a body and sends it a byte at a time.
    Drip,
    /// Never answers.
    Hang,
}

impl Reply {
    pub(super) fn ok(body: impl ToString) -> Self {
        Self::Status(200, Vec::new(), body.to_string())
    }

    pub(super) fn status(status: u16) -> Self {
        Self::Status(status, Vec::new(), String::new())
    }
}

type Script = Box<dyn Fn(&Seen) -> Reply + Send>;

/// The server; it goes with the test's runtime.
#[derive(Clone)]
pub(super) struct Web {
    pub(super) origin: String,
    script: Arc<Mutex<Script>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Web {
    /// A server that answers 503 until it is told something else.
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = Self {
            origin: format!("http://{}", listener.local_addr().unwrap()),
            script: Arc::new(Mutex::new(Box::new(|_| Reply::status(503)))),
            seen: Arc::default(),
        };
        let serving = web.clone();
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(io));
            }
        });
        web
    }

    pub(super) fn answers(&self, script: impl Fn(&Seen) -> Reply + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    async fn serve(self, mut io: TcpStream) {
        let Some(seen) = read(&mut io).await else {
            return;
        };
        let reply = (self.script.lock().unwrap())(&seen);
        self.seen.lock().unwrap().push(seen);
        let answer = match reply {
            Reply::Status(status, headers, body) => {
                let lines = headers
                    .iter()
                    .map(|(name, value)| format!("{name}: {value}\r\n"));
                let lines: String = lines.collect();
                let length = body.len();
                format!(
                    "HTTP/1.1 {status} -\r\nconnection: close\r\ncontent-length: {length}\r\n{lines}\r\n{body}"
                )
            }
            Reply::Bytes(headers, body) => {
                let lines = headers
                    .iter()
                    .map(|(name, value)| format!("{name}: {value}\r\n"));
                let lines: String = lines.collect();
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 200 -\r\nconnection: close\r\ncontent-length: {length}\r\n{lines}\r\n"
                );
                let _gone = io.write_all(head.as_bytes()).await;
                let _gone = io.write_all(&body).await;
                return;
            }
            Reply::Drip => {
                let head = "HTTP/1.1 200 -\r\ncontent-length: 1000000\r\n\r\n";
                let _gone = io.write_all(head.as_bytes()).await;
                while io.write_all(b" ").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                return;
            }
            Reply::Hang => std::future::pending().await,
        };
        let _gone = io.write_all(answer.as_bytes()).await;
    }
}

async fn read(io: &mut TcpStream) -> Option<Seen> {
    let mut text = String::new();
    loop {
        let mut piece = [0; 4096];
        let length = io
            .read(&mut piece)
            .await
            .ok()
            .filter(|length| *length > 0)?;
        text.push_str(std::str::from_utf8(&piece[..length]).ok()?);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let wanted = head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(0, |(_, length)| length.parse().unwrap());
        if body.len() >= wanted {
            let (head, body) = (head.to_owned(), body.to_owned());
            return Some(Seen { head, body });
        }
    }
}

/// Waits for something that happens elsewhere.
pub(super) async fn eventually(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    waited.expect("it did not happen");
}
