//! A downstream connection of HTTP/1.1, which gives back what it holds while nobody uses it.
//!
//! hyper keeps its buffers and room for the state of a request as long as a connection stands.
//! One without requests is put to rest: hyper's part is dropped and only the socket is kept. The
//! next bytes begin anew with it.

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

use crate::socket::Socket;

/// Most bytes that wake a connection at rest.
const FIRST: usize = 1024;

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
        let (client, server) = duplex(4096);
        let service = service_fn(|_: Request<Incoming>| {
            std::future::ready(Ok(Response::new(Full::from("hello"))))
        });
        let io = Socket::http1(server, Bytes::new(), Arc::default());
        (client, Http1::new(http1::Builder::new(), io, service))
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
