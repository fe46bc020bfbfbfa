//! A part of the endpoint that a program answers itself: pages for browsers, and streams.

use std::{convert::Infallible, fmt, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;

use crate::http_server::Reply;

/// What such a part answers; its body may come bit by bit.
pub type PartReply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Paths of the endpoint, and what answers there. Cheap to clone.
///
/// The endpoint refuses requests for hosts that are not this machine, as everywhere. Methods,
/// origins and headers for browsers are the part's own concern.
#[derive(Clone)]
pub struct Part {
    /// The first stands in the endpoint's list.
    paths: &'static [&'static str],
    about: &'static str,
    respond: Responder,
}

type Responder =
    Arc<dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = PartReply> + Send>> + Send + Sync>;

impl Part {
    /// A part at `paths`, of which the first is the one for people.
    pub fn new<F, A>(paths: &'static [&'static str], respond: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
        A: Future<Output = PartReply> + Send + 'static,
    {
        Self {
            paths,
            about: "",
            respond: Arc::new(move |request| Box::pin(respond(request))),
        }
    }

    /// Says in a few words what it is for, for the list.
    #[must_use]
    pub fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.paths.contains(&path)
    }

    /// The path for people, and what it is for.
    pub(super) fn entrance(&self) -> Option<(&'static str, &'static str)> {
        Some((self.paths.first().copied()?, self.about))
    }

    pub(super) async fn respond(&self, request: Request<Incoming>) -> PartReply {
        (self.respond)(request).await
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

/// A whole answer.
pub fn whole(reply: Reply) -> PartReply {
    reply.map(BodyExt::boxed_unsync)
}

/// The body of an answer that comes bit by bit.
pub fn stream(
    pieces: impl futures_util::Stream<Item = Bytes> + Send + 'static,
) -> impl Body<Data = Bytes, Error = Infallible> + Send {
    use futures_util::StreamExt as _;
    StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece))))
}

#[cfg(test)]
mod tests {
    use futures_util::stream as streams;
    use http::StatusCode;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::{
        Metrics, Shutdown,
        admin::{Admin, Readiness},
        http_server::{TEXT, reply},
    };

    async fn ask(address: &str, path: &str, host: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_part_answers_its_paths_to_hosts_of_this_machine_whole_or_bit_by_bit() {
        let part = Part::new(&["/part", "/part/stream"], async |request| {
            let answer = reply(StatusCode::OK, TEXT, "whole");
            match request.uri().path() {
                "/part" => whole(answer),
                _ => {
                    let pieces = ["one ", "two"].map(|piece| Bytes::from_static(piece.as_bytes()));
                    answer.map(|_| stream(streams::iter(pieces)).boxed_unsync())
                }
            }
        });
        let admin = Admin::new(Readiness::default(), Metrics::default());
        let bound = admin.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let bound = bound.part(part);
        let address = bound.address().to_string();
        let serving = tokio::spawn(bound.serve(Shutdown::new()));
        for (path, host, part) in [
            ("/part", "localhost", "\r\n\r\nwhole"),
            ("/part/stream", "localhost", "one "),
            ("/part/other", "localhost", "404"),
            ("/part", "evil.example", "403"),
            ("/", "localhost", "/part"),
            ("/healthz", "localhost", "alive"),
        ] {
            let answer = ask(&address, path, host).await;
            assert!(answer.contains(part), "{host}{path}: {answer}");
        }
        serving.abort();
    }
}
