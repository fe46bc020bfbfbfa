//! What is sent piece by piece: the output of a body in full duplex, and a streamed answer.

use std::future::poll_fn;

use attache_proto::{
    core,
    ext_proc::{HttpHeaders, StreamedBodyResponse, streamed_immediate_response::Response},
};
use bytes::Bytes;
use http::HeaderMap;
use tonic::Status;

use super::{
    Direction,
    encode::{self, Content, Kind},
    outbox::{Outbox, Queue},
    reply::{CHUNK, chunks},
};
use crate::server::immediate::Immediate;

/// Nothing more can be sent: the message or the exchange is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message is over: nothing more can be sent")]
pub struct Over;

/// The output of a body in FULL_DUPLEX_STREAMED mode: bytes in any number and size, at any time.
///
/// Bytes that are pushed before the head is answered, or before the first piece has come, wait
/// until a proxy accepts them. The reply to trailers waits until the body is finished.
///
/// A body that is begun and dropped unfinished ends the exchange with an error: half of a body is
/// never taken for all of it.
#[derive(Debug)]
pub struct BodySink {
    outbox: Option<Outbox>,
    direction: Direction,
}

impl BodySink {
    pub(super) fn new(outbox: Outbox, direction: Direction) -> Self {
        Self {
            outbox: Some(outbox),
            direction,
        }
    }

    /// Adds bytes; they leave in messages of at most 64 KiB.
    ///
    /// This does not wait: a body of any length is pushed with [`BodySink::ready`] before each.
    ///
    /// # Errors
    /// When the message is over, or has no body.
    pub fn push(&mut self, data: impl Into<Bytes>) -> Result<(), Over> {
        let outbox = self.outbox.as_ref().ok_or(Over)?;
        push(&mut outbox.lock(), self.direction, data.into(), false)
    }

    /// Waits until little of what was pushed waits to be sent.
    pub async fn ready(&self) {
        if let Some(outbox) = &self.outbox {
            poll_fn(|cx| outbox.poll_room(cx)).await;
        }
    }

    /// Ends the body; what the caller or the upstream has not sent of it yet is dropped.
    pub fn finish(self) {
        self.finish_with(Bytes::new());
    }

    /// Adds the last bytes, and ends the body with them.
    pub fn finish_with(mut self, data: impl Into<Bytes>) {
        if let Some(outbox) = self.outbox.take() {
            let mut queue = outbox.lock();
            let end_of_stream = queue.ends_with_body(self.direction);
            // A message that is over already has no end to be told.
            let _ = push(&mut queue, self.direction, data.into(), end_of_stream);
            queue.finish(self.direction);
        }
    }
}

fn push(
    queue: &mut Queue,
    direction: Direction,
    data: Bytes,
    end_of_stream: bool,
) -> Result<(), Over> {
    let mut pushed = true;
    chunks(data, end_of_stream, false, |body| {
        let mut content = Some(Content {
            body,
            ..Content::default()
        });
        pushed &= queue.push(direction, |buffer| {
            let content = content.take().unwrap_or_default();
            encode::reply(Kind::Body, direction, content, None, buffer)
        });
    });
    if pushed { Ok(()) } else { Err(Over) }
}

impl Drop for BodySink {
    fn drop(&mut self) {
        if let Some(outbox) = self.outbox.take() {
            let given_up = outbox.lock().give_up(self.direction);
            if !given_up {
                outbox.fail(Status::internal("the processor gave up a body"));
            }
        }
    }
}

/// An answer to the caller that is sent piece by piece, instead of the upstream's.
///
/// An answer that is dropped unfinished ends the exchange with an error.
#[derive(Debug)]
pub struct ImmediateStream {
    outbox: Option<Outbox>,
}

impl ImmediateStream {
    pub(super) fn begin(outbox: Outbox, head: Immediate) -> Self {
        let (headers, body) = head.into_streamed();
        let headers = Response::HeadersResponse(HttpHeaders {
            headers: Some(headers),
            ..HttpHeaders::default()
        });
        {
            let mut queue = outbox.lock();
            queue.begin_answer();
            queue.send(|buffer| {
                encode::streamed_immediate(headers, buffer);
                None
            });
        }
        let mut stream = Self {
            outbox: Some(outbox),
        };
        // What the head already had of a body goes first; it cannot be over yet.
        let _ = stream.push(body);
        stream
    }

    /// Adds bytes to the body; they leave in messages of at most 64 KiB.
    ///
    /// # Errors
    /// When the exchange is over.
    pub fn push(&mut self, data: impl Into<Bytes>) -> Result<(), Over> {
        let outbox = self.outbox.as_ref().ok_or(Over)?;
        let mut data = data.into();
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(CHUNK));
            send(outbox, body(piece, false))?;
        }
        Ok(())
    }

    /// Waits until little of what was pushed waits to be sent.
    pub async fn ready(&self) {
        if let Some(outbox) = &self.outbox {
            poll_fn(|cx| outbox.poll_room(cx)).await;
        }
    }

    /// Ends the answer.
    pub fn finish(mut self) {
        if let Some(outbox) = self.outbox.take() {
            let _ = send(&outbox, body(Bytes::new(), true));
            outbox.lock().end_answer();
        }
    }

    /// Ends the answer with trailers.
    pub fn finish_with(mut self, trailers: &HeaderMap) {
        if let Some(outbox) = self.outbox.take() {
            let header =
                |(name, value): (&http::HeaderName, &http::HeaderValue)| core::HeaderValue {
                    key: name.as_str().to_owned(),
                    raw_value: Bytes::copy_from_slice(value.as_bytes()),
                    ..core::HeaderValue::default()
                };
            let trailers = core::HeaderMap {
                headers: trailers.iter().map(header).collect(),
            };
            let _ = send(&outbox, Response::TrailersResponse(trailers));
            outbox.lock().end_answer();
        }
    }
}

fn body(body: Bytes, end_of_stream: bool) -> Response {
    Response::BodyResponse(StreamedBodyResponse {
        body,
        end_of_stream,
        ..StreamedBodyResponse::default()
    })
}

fn send(outbox: &Outbox, part: Response) -> Result<(), Over> {
    let mut queue = outbox.lock();
    if queue.is_closed() {
        return Err(Over);
    }
    queue.send(|buffer| {
        encode::streamed_immediate(part, buffer);
        None
    });
    Ok(())
}

impl Drop for ImmediateStream {
    fn drop(&mut self) {
        if let Some(outbox) = self.outbox.take() {
            outbox.fail(Status::internal("the processor gave up its answer"));
        }
    }
}
