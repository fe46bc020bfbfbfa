//! A downstream connection of HTTP/1.1, which gives back what it holds while nobody uses it.
//!
//! hyper keeps its buffers and room for the state of a request as long as a connection stands.
//! One without requests is put to rest: hyper's part is dropped and only the socket is kept. The
//! next bytes begin anew with it.
//!
//! hyper answers a head that it refuses and ends the connection with an error;
//! [`Http1::unserved`] says what was wrong.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use attache_filter::BoxError;
use bytes::Bytes;
use hyper::{body::Incoming, server::conn::http1, service::HttpService};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{plan::Limits, socket::Socket, unserved::Cause};

/// Most bytes that wake a connection at rest.
const FIRST: usize = 1024;

const LATE: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// A connection, at work or at rest.
pub(crate) struct Http1<IO, S: HttpService<Incoming>> {
    builder: http1::Builder,
    state: State<IO, S>,
}

enum State<IO, S: HttpService<Incoming>> {
    Working(Box<http1::UpgradeableConnection<TokioIo<Socket<IO>>, S>>),
    Resting {
        io: Socket<IO>,
        service: S,
    },
    /// It was closed by either side while it rested.
    Closing(Socket<IO>),
    Ended,
}

impl<IO, S> Http1<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming>,
    S::Error: Into<BoxError>,
    S::ResBody: http_body::Body + 'static,
    <S::ResBody as http_body::Body>::Error: Into<BoxError>,
{
    /// A connection that waits for its first request.
    pub(crate) fn new(builder: http1::Builder, io: Socket<IO>, service: S) -> Self {
        let state = Self::working(&builder, io, service);
        Self { builder, state }
    }

    fn working(builder: &http1::Builder, io: Socket<IO>, service: S) -> State<IO, S> {
        let connection = builder.serve_connection(TokioIo::new(io), service);
        State::Working(Box::new(connection.with_upgrades()))
    }

    /// Gives back all but the socket. Only for a connection without a request, of which all has
    /// been written and no head has begun to arrive.
    pub(crate) fn rest(&mut self) {
        self.state = match mem::replace(&mut self.state, State::Ended) {
            State::Working(connection) => match connection.into_parts() {
                // What was read and not used can only be blank lines between requests.
                Some(parts) => {
                    let mut io = parts.io.into_inner();
                    io.rest();
                    State::Resting {
                        io,
                        service: parts.service,
                    }
                }
                None => State::Ended,
            },
            other => other,
        };
    }

    /// Closes it as soon as it has no request.
    pub(crate) fn close(&mut self) {
        self.state = match mem::replace(&mut self.state, State::Ended) {
            State::Working(mut connection) => {
                Pin::new(connection.as_mut()).graceful_shutdown();
                State::Working(connection)
            }
            State::Resting { io, .. } => State::Closing(io),
            other => other,
        };
    }

    /// Why the last head was refused with `error`, where it was.
    pub(crate) fn unserved(&mut self, error: &hyper::Error, limits: &Limits) -> Option<Cause> {
        if !error.is_parse() {
            return None;
        }
        if error.is_parse_version_h2() {
            return Some(Cause::OtherVersion);
        }
        let connection = match mem::replace(&mut self.state, State::Ended) {
            State::Working(connection) => connection.into_parts(),
            _ => None,
        };
        let Some(parts) = connection else {
            return Some(Cause::Malformed);
        };
        if error.is_parse_too_large() {
            return Some(too_large(&parts.read_buf, limits));
        }
        let fault = parts.io.inner().refused();
        Some(fault.map_or(Cause::Malformed, Cause::from))
    }

    /// Answers a head that did not end in time, as far as the client takes that at once, and ends.
    /// Whether it took it.
    pub(crate) fn answer_late(&mut self, cx: &mut Context<'_>) -> bool {
        let State::Working(connection) = mem::replace(&mut self.state, State::Ended) else {
            return false;
        };
        let Some(parts) = connection.into_parts() else {
            return false;
        };
        let mut io = parts.io.into_inner();
        let mut io = Pin::new(&mut io);
        let wrote = io.as_mut().poll_write(cx, LATE);
        let whole = matches!(wrote, Poll::Ready(Ok(count)) if count == LATE.len())
            && matches!(io.as_mut().poll_flush(cx), Poll::Ready(Ok(())));
        let _ = io.poll_shutdown(cx);
        whole
    }

    /// Waits for bytes; what becomes of the connection with them.
    fn wake(
        builder: &http1::Builder,
        mut io: Socket<IO>,
        service: S,
        cx: &mut Context<'_>,
    ) -> State<IO, S> {
        if io.has_ahead() {
            return Self::working(builder, io, service);
        }
        let mut first = [0; FIRST];
        let mut first = ReadBuf::new(&mut first);
        let read = Pin::new(&mut io).poll_beginning(cx, &mut first);
        match read {
            Poll::Pending => State::Resting { io, service },
            Poll::Ready(Ok(())) if !first.filled().is_empty() => {
                io.put_back(Bytes::copy_from_slice(first.filled()));
                Self::working(builder, io, service)
            }
            Poll::Ready(Ok(())) => State::Closing(io),
            // Nothing was on its way that could have been lost.
            Poll::Ready(Err(_)) => State::Ended,
        }
    }
}

/// What of a head was too large: hyper says it of all.
fn too_large(read: &[u8], limits: &Limits) -> Cause {
    let end = read.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let head = end.and_then(|end| read.get(..end + 2)).unwrap_or(read);
    let headers = head.iter().filter(|byte| **byte == b'\n').skip(1).count();
    match end {
        _ if headers > limits.max_headers => Cause::TooManyHeaders,
        Some(end) if end + 4 <= limits.max_header_bytes => Cause::TargetTooLong,
        _ => Cause::HeadTooLarge,
    }
}

impl<IO, S> Future for Http1<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming> + Unpin,
    S::Error: Into<BoxError>,
    S::ResBody: http_body::Body + 'static,
    <S::ResBody as http_body::Body>::Error: Into<BoxError>,
{
    type Output = Result<(), hyper::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if matches!(this.state, State::Resting { .. })
            && let State::Resting { io, service } = mem::replace(&mut this.state, State::Ended)
        {
            this.state = Self::wake(&this.builder, io, service, cx);
        }
        match &mut this.state {
            State::Working(connection) => Pin::new(connection.as_mut()).poll(cx),
            State::Resting { .. } => Poll::Pending,
            // It is closed one way or another.
            State::Closing(io) => Pin::new(io).poll_shutdown(cx).map(|_| Ok(())),
            State::Ended => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Arc};

    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    fn connection() -> (
        DuplexStream,
        Http1<
            DuplexStream,
            impl HttpService<Incoming, ResBody = Full<Bytes>, Error = Infallible> + Unpin,
        >,
    ) {
        connection_with(http1::Builder::new())
    }

    fn connection_with(
        builder: http1::Builder,
    ) -> (
        DuplexStream,
        Http1<
            DuplexStream,
            impl HttpService<Incoming, ResBody = Full<Bytes>, Error = Infallible> + Unpin,
        >,
    ) {
        let (client, server) = duplex(4096);
        let service = service_fn(|_: Request<Incoming>| {
            std::future::ready(Ok(Response::new(Full::from("hello"))))
        });
        let io = Socket::http1(server, Bytes::new(), Arc::default());
        (client, Http1::new(builder, io, service))
    }

    async fn ask<C>(client: &mut DuplexStream, connection: &mut C)
    where
        C: Future<Output = Result<(), hyper::Error>> + Unpin,
    {
        let asked = async {
            client.write_all(REQUEST).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"hello") {
                client.read_buf(&mut answer).await.unwrap();
            }
            assert!(answer.starts_with(b"HTTP/1.1 200"));
        };
        tokio::select! {
            () = asked => {}
            ended = connection => panic!("ended: {ended:?}"),
        }
    }

    #[tokio::test]
    async fn a_connection_that_rested_answers_again_and_again() {
        let (mut client, mut connection) = connection();
        for _ in 0..3 {
            ask(&mut client, &mut connection).await;
            connection.rest();
            assert!(matches!(connection.state, State::Resting { .. }));
        }
    }

    #[tokio::test]
    async fn what_is_refused_has_a_cause() {
        let limits = Limits {
            max_header_bytes: 100_000,
            max_headers: 3,
            ..Limits::default()
        };
        let head = |more: String| format!("GET / HTTP/1.1\r\nhost: a\r\n{more}\r\n\r\n");
        for (text, cause) in [
            ("\x16\x03\x01\r\n\r\n".to_owned(), Cause::Malformed),
            ("GET / HTTP/3.0\r\n\r\n".to_owned(), Cause::Malformed),
            (
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
                Cause::OtherVersion,
            ),
            (head("a b: c".to_owned()), Cause::Malformed),
            ("GET / HTTP/1.1\n".to_owned(), Cause::Malformed),
            (
                head("content-length: 1\r\ncontent-length: 1".to_owned()),
                Cause::Malformed,
            ),
            (
                head("content-length: 1\r\ntransfer-encoding: chunked".to_owned()),
                Cause::BothLengths,
            ),
            (
                head("transfer-encoding: gzip".to_owned()),
                Cause::UnknownCoding,
            ),
            ("GET /#a HTTP/1.1\r\n\r\n".to_owned(), Cause::Fragment),
            (
                head("a: b\r\nc: d\r\ne: f".to_owned()),
                Cause::TooManyHeaders,
            ),
            (
                head(format!("a: {}", "b".repeat(110_000))),
                Cause::HeadTooLarge,
            ),
            (
                format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(70_000)),
                Cause::TargetTooLong,
            ),
        ] {
            let mut builder = http1::Builder::new();
            builder
                .max_header_size(limits.max_header_bytes)
                .max_headers(limits.max_headers);
            let (mut client, mut connection) = connection_with(builder);
            let send = async {
                let _ = client.write_all(text.as_bytes()).await;
                std::future::pending::<Infallible>().await
            };
            let ended = tokio::select! {
                ended = &mut connection => ended,
                never = send => match never {},
            };
            let error = ended.expect_err(&text);
            assert_eq!(connection.unserved(&error, &limits), Some(cause), "{text}");
        }
    }

    #[tokio::test]
    async fn a_late_head_is_answered_once() {
        let (mut client, mut connection) = connection();
        client.write_all(b"GET / HT").await.unwrap();
        let told = std::future::poll_fn(|cx| {
            assert!(Pin::new(&mut connection).poll(cx).is_pending());
            Poll::Ready((connection.answer_late(cx), connection.answer_late(cx)))
        });
        assert_eq!(told.await, (true, false));
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, LATE);
    }

    #[tokio::test]
    async fn one_at_rest_is_closed_at_once_by_either_side() {
        let (mut client, mut connection) = connection();
        ask(&mut client, &mut connection).await;
        connection.rest();
        connection.close();
        (&mut connection).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);

        let (client, mut connection) = self::connection();
        connection.rest();
        drop(client);
        connection.await.unwrap();
    }
}
