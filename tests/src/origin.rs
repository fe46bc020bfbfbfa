//! The origin: notes each request and answers by the scenario.

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::board::{Board, SeenRequest};
use crate::client::{from_map, to_map};
use crate::h1::{self, Framing, Reader};
use crate::scenario::Outgoing;

/// The body of an answer that the scenario leaves open.
pub const BODY: &str = "upstream-body";

/// An origin behind one cluster.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The cluster's name.
    pub cluster: &'static str,
    /// What it answers.
    pub answer: Outgoing,
    /// Where it notes what it sees.
    pub board: Board,
}

impl Origin {
    /// An origin; an answer that says nothing of a body gets one.
    pub fn new(cluster: &'static str, answer: &Outgoing, board: &Board) -> Self {
        let mut answer = answer.clone();
        if answer.body.is_none() && answer.chunks.is_none() && answer.steps.is_none() {
            answer.body = Some(BODY.into());
        }
        Self {
            cluster,
            answer,
            board: board.clone(),
        }
    }

    /// Serves until it is dropped.
    pub async fn serve(self, listener: TcpListener) {
        while let Ok((connection, _)) = listener.accept().await {
            let _ = connection.set_nodelay(true);
            let origin = self.clone();
            if self.answer.is_h2() {
                tokio::spawn(origin.connection_h2(connection));
            } else {
                tokio::spawn(origin.connection_h1(connection));
            }
        }
    }

    fn arrived(&self, request: SeenRequest) -> usize {
        self.board.note(|seen| {
            seen.origin_busy += 1;
            seen.origin.push(request);
            seen.origin.len() - 1
        })
    }

    fn data(&self, at: usize, data: &[u8]) {
        self.board
            .note(|seen| seen.origin[at].body.extend_from_slice(data));
    }

    async fn connection_h1(self, stream: TcpStream) {
        let (from, mut to) = stream.into_split();
        let mut reader = Reader::new(from);
        if self.answer.tcp {
            let at = self.arrived(SeenRequest {
                cluster: self.cluster,
                ..SeenRequest::default()
            });
            tokio::join!(
                self.read_h1(&mut reader, Framing::ToClose, at),
                self.answer_h1(&mut to, false)
            );
            self.board.note(|seen| seen.origin_busy -= 1);
            return;
        }
        while let Some(head) = reader.head().await {
            let mut words = head.line.split(' ');
            let at = self.arrived(SeenRequest {
                cluster: self.cluster,
                method: words.next().unwrap_or_default().to_owned(),
                path: words.next().unwrap_or_default().to_owned(),
                headers: head.headers.clone(),
                ..SeenRequest::default()
            });
            let bodiless = head.line.starts_with("HEAD ");
            let framing = match self.answer.raw {
                true => Framing::ToClose,
                false => head.framing(Framing::None),
            };
            let alive = if self.answer.early || self.answer.raw {
                let (alive, ()) = tokio::join!(
                    self.read_h1(&mut reader, framing, at),
                    self.answer_h1(&mut to, bodiless)
                );
                alive
            } else {
                let alive = self.read_h1(&mut reader, framing, at).await;
                if alive {
                    tokio::select! {
                        () = self.answer_h1(&mut to, bodiless) => {}
                        () = reader.closed() => {}
                    }
                }
                alive
            };
            self.board.note(|seen| seen.origin_busy -= 1);
            if !alive || self.answer.close {
                return;
            }
        }
    }

    async fn read_h1(
        &self,
        reader: &mut Reader<OwnedReadHalf>,
        framing: Framing,
        at: usize,
    ) -> bool {
        let end = reader.body(framing, |data| self.data(at, data)).await;
        let complete = end.is_some();
        self.board.note(|seen| {
            seen.origin[at].complete = complete;
            seen.origin[at].trailers = end.unwrap_or_default();
        });
        complete
    }

    async fn answer_h1(&self, to: &mut OwnedWriteHalf, bodiless: bool) {
        if self.answer.silent {
            return std::future::pending().await;
        }
        if let Some(condition) = &self.answer.wait {
            self.board.wait(condition).await;
        }
        let payload = self.answer.payload().unwrap();
        let status = self.answer.status.unwrap_or(200);
        let mut bytes = match self.answer.tcp {
            true => Vec::new(),
            false => self
                .answer
                .interim
                .iter()
                .fold(Vec::new(), |mut bytes, interim| {
                    let line = format!("HTTP/1.1 {interim} Interim");
                    bytes.extend(h1::write_head(&line, &Vec::new()));
                    bytes
                }),
        };
        if !self.answer.tcp {
            let line = format!("HTTP/1.1 {status} Answer");
            bytes.extend(h1::write_head(&line, &payload.headers));
        }
        if bodiless {
            let _ = to.write_all(&bytes).await;
            return;
        }
        for piece in &payload.steps {
            if payload.stepwise {
                let _ = to.write_all(&std::mem::take(&mut bytes)).await;
            }
            if let Some(condition) = &piece.wait {
                self.board.wait(condition).await;
            }
            if piece.abort {
                let _ = to.shutdown().await;
                return;
            }
            bytes.extend(if payload.chunked {
                h1::write_chunk(&piece.data)
            } else {
                piece.data.clone()
            });
        }
        if payload.chunked {
            bytes.extend_from_slice(&h1::write_end(&payload.trailers));
        }
        let _ = to.write_all(&bytes).await;
        if self.answer.close {
            let _ = to.shutdown().await;
        }
    }

    async fn connection_h2(self, stream: TcpStream) {
        let Ok(mut connection) = h2::server::handshake(stream).await else {
            return;
        };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let origin = self.clone();
            tokio::spawn(async move {
                let (head, mut body) = request.into_parts();
                let mut headers = from_map(&head.headers);
                if let Some(authority) = head.uri.authority() {
                    headers.push(("host".to_owned(), authority.as_str().into()));
                }
                let at = origin.arrived(SeenRequest {
                    cluster: origin.cluster,
                    method: head.method.to_string(),
                    path: head
                        .uri
                        .path_and_query()
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                    headers,
                    ..SeenRequest::default()
                });
                let mut complete = true;
                while let Some(data) = body.data().await {
                    let Ok(data) = data else {
                        complete = false;
                        break;
                    };
                    let _ = body.flow_control().release_capacity(data.len());
                    origin.data(at, &data);
                }
                let trailers = body.trailers().await.ok().flatten();
                origin.board.note(|seen| {
                    seen.origin[at].complete = complete;
                    seen.origin[at].trailers = trailers.as_ref().map(from_map).unwrap_or_default();
                });
                if complete {
                    origin.answer_h2(&mut respond).await;
                }
                origin.board.note(|seen| seen.origin_busy -= 1);
            });
        }
    }

    async fn answer_h2(&self, respond: &mut h2::server::SendResponse<Bytes>) {
        let payload = self.answer.payload().unwrap();
        let status = self.answer.status.unwrap_or(200);
        let mut head = http::Response::builder().status(status).body(()).unwrap();
        *head.headers_mut() = to_map(&payload.headers);
        let Ok(mut send) = respond.send_response(head, false) else {
            return;
        };
        for piece in &payload.steps {
            if let Some(condition) = &piece.wait {
                self.board.wait(condition).await;
            }
            let _ = send.send_data(Bytes::copy_from_slice(&piece.data), false);
        }
        if payload.trailers.is_empty() {
            let _ = send.send_data(Bytes::new(), true);
        } else {
            let _ = send.send_trailers(to_map(&payload.trailers));
        }
    }
}
