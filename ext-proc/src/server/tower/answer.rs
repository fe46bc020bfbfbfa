//! An answer that a middleware gives without the proxy's next.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, header, response};

use super::{
    body::Output,
    fault::Fault,
    half::{Half, Ready},
};
use crate::server::{
    Immediate,
    session::{Direction, ImmediateStream, Session},
};

/// What is sent in one message although it could be streamed.
const SHORT: usize = 64 << 10;

/// An answer whose body is being read.
///
/// What is complete at once and short is one message, which every proxy understands. All else is
/// streamed where the body modes allow that, and gathered where they do not.
pub(super) struct Answer {
    head: Option<response::Parts>,
    body: Output,
    is_head: bool,
    ready: Ready,
    limit: usize,
    stream: Option<ImmediateStream>,
}

/// What comes of the body next.
enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl Answer {
    pub(super) fn new(head: response::Parts, body: Output, is_head: bool, limit: usize) -> Self {
        Self {
            head: Some(head),
            body,
            is_head,
            ready: Ready::default(),
            limit,
            stream: None,
        }
    }

    /// Sends the answer; ready when it is sent.
    pub(super) fn poll(
        &mut self,
        request: &mut Half,
        session: &Session,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        while self.stream.is_none() {
            match self.poll_part(cx)? {
                Poll::Ready(Part::Data(data)) => {
                    self.ready.push(data);
                    if self.ready.len() > SHORT {
                        self.begin(request)?;
                    }
                    if self.stream.is_none() && self.ready.len() > self.limit {
                        return Poll::Ready(Err(Fault::TooLarge(self.limit)));
                    }
                }
                Poll::Ready(Part::Trailers(trailers)) => {
                    self.begin(request)?;
                    if let Some(stream) = self.stream.take() {
                        stream.finish_with(&trailers);
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Ready(Part::End) => {
                    if let Some(answer) = self.immediate()? {
                        session.respond(answer);
                    }
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => {
                    self.begin(request)?;
                    if self.stream.is_none() {
                        return Poll::Pending;
                    }
                }
            }
        }
        self.poll_stream(cx)
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            if let Some(stream) = &self.stream {
                ready!(pin!(stream.ready()).poll(cx));
            }
            let part = ready!(self.poll_part(cx)?);
            let Some(stream) = &mut self.stream else {
                return Poll::Ready(Ok(()));
            };
            match part {
                Part::Data(data) => {
                    if stream.push(data).is_err() {
                        // The exchange is over: nobody waits for the rest.
                        return Poll::Ready(Ok(()));
                    }
                    continue;
                }
                Part::Trailers(trailers) => {
                    if let Some(stream) = self.stream.take() {
                        stream.finish_with(&trailers);
                    }
                }
                Part::End => {
                    if let Some(stream) = self.stream.take() {
                        stream.finish();
                    }
                }
            }
            return Poll::Ready(Ok(()));
        }
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Result<Poll<Part>, Fault> {
        Ok(match self.body.poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Part::End),
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(match frame.into_data() {
                Ok(data) => Part::Data(data),
                Err(frame) => Part::Trailers(frame.into_trailers().unwrap_or_default()),
            }),
            Poll::Ready(Some(Err(source))) => {
                let direction = Direction::Response;
                return Err(Fault::Body { direction, source });
            }
        })
    }

    /// Begins to stream, if the proxy takes that.
    fn begin(&mut self, request: &mut Half) -> Result<(), Fault> {
        // Nothing keeps the body of a streamed answer from one who asked for the head only.
        if self.is_head {
            return Ok(());
        }
        let Some(reply) = request.take_reply_if(|reply| reply.can_stream()) else {
            return Ok(());
        };
        if let Some(answer) = self.immediate()? {
            request.changed = true;
            match reply.stream(answer) {
                Ok(stream) => self.stream = Some(stream),
                Err((reply, answer)) => reply.respond(answer),
            }
        }
        Ok(())
    }

    /// The head, and the body as far as it is there.
    fn immediate(&mut self) -> Result<Option<Immediate>, Fault> {
        let Some(head) = self.head.take() else {
            return Ok(None);
        };
        let mut immediate = Immediate::new(head.status).body(self.ready.take());
        for (name, value) in &head.headers {
            // The proxy frames the message.
            if *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING {
                immediate = immediate.header(name.clone(), value.clone())?;
            }
        }
        Ok(Some(immediate))
    }
}
