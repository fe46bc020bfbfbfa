//! An origin that records every byte, and answers each request that is complete.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::emitted::Emitted;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const ANSWER_TO_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";

/// So long must nothing come for it to be all.
const SETTLED: Duration = Duration::from_millis(15);

type Connections = Arc<Mutex<Vec<Vec<u8>>>>;

pub(crate) struct Recorder {
    pub(crate) at: SocketAddr,
    connections: Connections,
}

impl Recorder {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let connections = Connections::default();
        let record = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let nth = {
                    let mut all = record.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                let record = record.clone();
                tokio::spawn(async move {
                    let mut pending = Vec::new();
                    let mut buffer = vec![0; 16 << 10];
                    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                        record.lock().unwrap()[nth].extend_from_slice(&buffer[..count]);
                        pending.extend_from_slice(&buffer[..count]);
                        let emitted = Emitted::parse(&pending);
                        pending.drain(..emitted.rest.min(pending.len()));
                        for request in emitted.requests.iter().filter(|r| r.complete) {
                            let answer = match request.method.as_str() {
                                "HEAD" => ANSWER_TO_HEAD,
                                _ => ANSWER,
                            };
                            if stream.write_all(answer).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self { at, connections }
    }

    /// What has come since the last time, by connection. One that goes on later goes on where it
    /// was: at the start of a request, or in the midst of one that is never complete.
    pub(crate) async fn take(&self) -> Vec<Vec<u8>> {
        let length = || -> usize { self.connections.lock().unwrap().iter().map(Vec::len).sum() };
        let mut before = length();
        loop {
            tokio::time::sleep(SETTLED).await;
            let now = length();
            if now == before {
                break;
            }
            before = now;
        }
        let mut all = self.connections.lock().unwrap();
        let taken = all.iter_mut().map(std::mem::take);
        taken.filter(|bytes| !bytes.is_empty()).collect()
    }
}
