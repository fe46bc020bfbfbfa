//! One gRPC call: a stream of messages each way.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::HeaderMap;
use tokio::sync::futures::OwnedNotified;
use tonic::Status;

use super::{
    Channel, Head, Picked,
    endpoint::Endpoint,
    frame::{Deframer, Pieces},
    link::Link,
    status,
};
use crate::cluster::{
    InFlight,
    breakers::{Permit, Resource},
    outlier::Outcome,
};

/// How often a call that the service has certainly not seen is sent again.
const MAX_RESENDS: u8 = 2;

/// A bidirectional gRPC call, driven by polling; dropping it cancels the call.
///
/// A call that the service has certainly not processed (it was on its way when the service said
/// GOAWAY, or was answered with `REFUSED_STREAM`) is sent again on another connection, as long
/// as it holds no more than one message.
pub struct GrpcStream {
    channel: Channel,
    outgoing: Outgoing,
    incoming: Incoming,
    /// The connection that the call is on.
    link: Option<Arc<Link>>,
    /// The endpoint that the call is counted at; while it is sent again, the one that refused it.
    in_flight: Option<InFlight<Endpoint>>,
    /// Its room within the cluster's limits, first as one that waits for a connection.
    permit: Option<Permit>,
    /// What to send again if the service has not seen it; gone once the call cannot be resent.
    resend: Option<Resend>,
    resends: u8,
    bytes_sent: u64,
    bytes_received: u64,
}

// A box would be one more allocation for each call.
#[allow(clippy::large_enum_variant)]
enum Outgoing {
    /// Not on the wire yet: what was sent waits here.
    Opening {
        call: Resend,
        more: Vec<Bytes>,
        wait: Option<Pin<Box<OwnedNotified>>>,
    },
    Open(SendStream<Bytes>),
    Finished,
}

/// A call with at most one message.
struct Resend {
    head: Head,
    message: Option<Bytes>,
    finished: bool,
}

enum Incoming {
    /// The call is not on the wire yet.
    Opening,
    Head(ResponseFuture),
    Body {
        body: RecvStream,
        deframer: Deframer,
        ended: bool,
    },
    Ended(Result<(), Status>),
}

impl GrpcStream {
    pub(super) fn open(channel: Channel, head: Head) -> Self {
        Self {
            channel,
            outgoing: Outgoing::Opening {
                call: Resend {
                    head,
                    message: None,
                    finished: false,
                },
                more: Vec::new(),
                wait: None,
            },
            incoming: Incoming::Opening,
            link: None,
            in_flight: None,
            permit: None,
            resend: None,
            resends: 0,
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    /// Sends one framed message (see [`super::encode_message`]).
    ///
    /// Nothing blocks: look at [`GrpcStream::poll_capacity`] to hold back large bodies. After
    /// [`GrpcStream::finish`] or the end of the call the message is dropped; the failure shows
    /// in [`GrpcStream::poll_message`].
    pub fn send(&mut self, message: Bytes) {
        self.bytes_sent += message.len() as u64;
        match &mut self.outgoing {
            Outgoing::Opening { call, more, .. } => match (&call.message, call.finished) {
                (_, true) => {}
                (None, false) => call.message = Some(message),
                (Some(_), false) => more.push(message),
            },
            Outgoing::Open(stream) => {
                match &mut self.resend {
                    Some(call) if call.message.is_none() => call.message = Some(message.clone()),
                    resend => *resend = None,
                }
                if stream.send_data(message, false).is_err() {
                    self.outgoing = Outgoing::Finished;
                }
            }
            Outgoing::Finished => {}
        }
    }

    /// Half-closes: no further message will be sent.
    pub fn finish(&mut self) {
        match &mut self.outgoing {
            Outgoing::Opening { call, .. } => call.finished = true,
            Outgoing::Open(stream) => {
                if let Some(call) = &mut self.resend {
                    call.finished = true;
                }
                // Fails only when the call has ended, which shows on the other side.
                let _ = stream.send_data(Bytes::new(), true);
                self.outgoing = Outgoing::Finished;
            }
            Outgoing::Finished => {}
        }
    }

    /// Ready when the peer's flow-control window has room for more than what was sent.
    ///
    /// Also ready when the call has ended, so that nobody waits for a dead call.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Outgoing::Opening { .. } = self.outgoing
            && let Err(status) = ready!(self.poll_opened(cx))
        {
            self.end(Err(status));
        }
        let Outgoing::Open(stream) = &mut self.outgoing else {
            return Poll::Ready(());
        };
        stream.reserve_capacity(1);
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => {
                    self.outgoing = Outgoing::Finished;
                    break;
                }
            }
        }
        Poll::Ready(())
    }

    /// Bytes handed to this call so far, frame headers included.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    /// Bytes received so far, frame headers included.
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    /// The next message; `None` when the service ended the call with status OK.
    ///
    /// The end stays what it was, `None` or the same error, however often it is polled. An
    /// `Unavailable` with a text of ours means that the call could not be made or was broken
    /// off; see the module's table for the rest.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        let message = ready!(self.poll_pieces(cx));
        Poll::Ready(message.map(|message| message.map(Pieces::into_bytes)))
    }

    /// [`GrpcStream::poll_message`], with the message as it arrived: a large body behind a small
    /// prefix stays uncopied.
    pub fn poll_pieces(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Pieces, Status>>> {
        let end = match ready!(self.poll_incoming(cx)) {
            Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
            Ok(None) => Ok(()),
            Err(status) => Err(status),
        };
        self.end(end.clone());
        Poll::Ready(end.err().map(Err))
    }

    /// One message, then status OK: the answer of a unary call.
    pub(super) async fn unary(&mut self) -> Result<Bytes, Status> {
        let mut answer = None;
        std::future::poll_fn(|cx| {
            loop {
                let message = match ready!(self.poll_message(cx)) {
                    Some(Ok(message)) => message,
                    Some(Err(status)) => return Poll::Ready(Err(status)),
                    None => return Poll::Ready(answer.take().ok_or_else(status::no_answer)),
                };
                if answer.replace(message).is_some() {
                    return Poll::Ready(Err(status::second_answer()));
                }
            }
        })
        .await
    }

    /// Lets go of the connection; the end is remembered.
    fn end(&mut self, end: Result<(), Status>) {
        self.outgoing = Outgoing::Finished;
        self.incoming = Incoming::Ended(end);
        self.resend = None;
        self.link = None;
        self.in_flight = None;
        self.permit = None;
    }

    /// The caller gives up, as there was no answer in time.
    pub(super) fn timed_out(&self) {
        if let (Incoming::Head(_), Some(at)) = (&self.incoming, &self.in_flight) {
            self.channel.failed(&at.endpoint, Outcome::TimedOut);
        }
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Pieces>, Status>> {
        loop {
            match &mut self.incoming {
                Incoming::Opening => ready!(self.poll_opened(cx))?,
                Incoming::Head(response) => {
                    let response = match ready!(Pin::new(response).poll(cx)) {
                        Ok(response) => response,
                        Err(error) if self.send_again(&error) => continue,
                        Err(error) => {
                            self.failed();
                            return Poll::Ready(Err(self.broken(&error)));
                        }
                    };
                    self.resend = None;
                    let (head, body) = response.into_parts();
                    if let Some(at) = &self.in_flight {
                        self.channel.answered(&at.endpoint, &head);
                    }
                    if let Some(end) = status::of_head(&head) {
                        return Poll::Ready(end.map(|()| None));
                    }
                    self.incoming = Incoming::Body {
                        body,
                        deframer: Deframer::default(),
                        ended: false,
                    };
                }
                Incoming::Body {
                    body,
                    deframer,
                    ended,
                } => {
                    let max = self.channel.inner.settings.max_message_size;
                    if let Some(message) = deframer.next_pieces(max)? {
                        if let Some(in_flight) = &mut self.in_flight {
                            in_flight.answered();
                        }
                        return Poll::Ready(Ok(Some(message)));
                    }
                    if *ended {
                        let trailers = ready!(body.poll_trailers(cx));
                        let trailers = match trailers {
                            Ok(trailers) => trailers,
                            Err(error) => return Poll::Ready(Err(self.broken(&error))),
                        };
                        return Poll::Ready(match deframer.is_empty() {
                            true => status::of_trailers(trailers.as_ref()).map(|()| None),
                            false => Err(Status::internal("the call ended within a message")),
                        });
                    }
                    match ready!(body.poll_data(cx)) {
                        Some(Err(error)) => return Poll::Ready(Err(self.broken(&error))),
                        Some(Ok(data)) => {
                            // Fails only on more than was received.
                            let _ = body.flow_control().release_capacity(data.len());
                            self.bytes_received += data.len() as u64;
                            deframer.push(data);
                        }
                        None => *ended = true,
                    }
                }
                Incoming::Ended(end) => return Poll::Ready(end.clone().map(|()| None)),
            }
        }
    }

    fn failed(&mut self) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.failed();
        }
    }

    /// The connection or the stream ended.
    fn broken(&self, error: &h2::Error) -> Status {
        if let Some(at) = &self.in_flight {
            self.channel.failed(&at.endpoint, Outcome::Broken);
        }
        status::broken(error)
    }

    /// Back to the start, if the service has certainly not processed the call.
    fn send_again(&mut self, error: &h2::Error) -> bool {
        let unseen = error.is_remote()
            && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
        if !unseen || self.resends >= MAX_RESENDS {
            return false;
        }
        let Some(call) = self.resend.take() else {
            return false;
        };
        self.resends += 1;
        self.link = None;
        self.incoming = Incoming::Opening;
        self.outgoing = Outgoing::Opening {
            call,
            more: Vec::new(),
            wait: None,
        };
        true
    }

    /// Puts the call on the wire as soon as a connection stands.
    fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        loop {
            let Outgoing::Opening { call, more, wait } = &mut self.outgoing else {
                return Poll::Ready(Ok(()));
            };
            if let Some(changed) = wait {
                ready!(changed.as_mut().poll(cx));
                *wait = None;
            }
            let refused = self.in_flight.as_ref().map(InFlight::local);
            let mut picked = self.channel.pick(refused);
            if matches!(picked, Picked::Wait) {
                // Listen first, then look again: a change in between is not missed.
                let changed = self.channel.inner.changed.clone().notified_owned();
                picked = self.channel.pick(refused);
                if matches!(picked, Picked::Wait) {
                    if self.permit.is_none() {
                        self.permit = self.channel.admit(Resource::PendingRequests)?;
                    }
                    *wait = Some(Box::pin(changed));
                    continue;
                }
            }
            let (endpoint, link) = match picked {
                Picked::Ready(endpoint, link) => (endpoint, link),
                Picked::Wait => continue,
                Picked::Failed(why) => return Poll::Ready(Err(status::unreachable(&why))),
                Picked::NoEndpoint => {
                    let name = self.channel.name();
                    let why = format!("cluster `{name}` has no endpoint");
                    return Poll::Ready(Err(status::unreachable(&why)));
                }
            };
            self.permit = None;
            self.permit = self.channel.admit(Resource::Requests)?;
            match begin(&self.channel, &link, call, more) {
                Ok((response, stream)) => {
                    self.link = Some(link);
                    self.in_flight = Some(InFlight::new(endpoint));
                    let opened = match stream {
                        Some(stream) => Outgoing::Open(stream),
                        None => Outgoing::Finished,
                    };
                    let resendable = more.is_empty();
                    if let Outgoing::Opening { call, .. } =
                        std::mem::replace(&mut self.outgoing, opened)
                    {
                        self.resend = resendable.then_some(call);
                    }
                    self.incoming = Incoming::Head(response);
                    return Poll::Ready(Ok(()));
                }
                Err(Begin::TryAnother) => endpoint.own.retire(&link),
                Err(Begin::Invalid(status)) => return Poll::Ready(Err(status)),
            }
        }
    }
}

impl Drop for GrpcStream {
    fn drop(&mut self) {
        if let (Incoming::Head(_), Some(link)) = (&self.incoming, &self.link) {
            link.suspect();
            self.failed();
        }
    }
}

/// Why a call could not be put on a connection. Nothing was sent.
enum Begin {
    /// The connection is closing.
    TryAnother,
    /// No connection would take this call.
    Invalid(Status),
}

fn begin(
    channel: &Channel,
    link: &Link,
    call: &Resend,
    more: &[Bytes],
) -> Result<(ResponseFuture, Option<SendStream<Bytes>>), Begin> {
    let only_head = call.finished && call.message.is_none();
    let (response, mut stream) = link
        .send()
        .send_request(channel.request(&call.head), only_head)
        .map_err(|error| match has_connection_headers(&call.head.metadata) {
            true => Begin::Invalid(status::invalid_metadata(&error)),
            // Closing, broken, or out of stream ids.
            false => Begin::TryAnother,
        })?;
    let mut left = more.len() + usize::from(call.message.is_some());
    for message in call.message.iter().chain(more) {
        left -= 1;
        // Fails only when the connection dies meanwhile, which shows on the other side.
        let _ = stream.send_data(message.clone(), call.finished && left == 0);
    }
    Ok((response, (!call.finished).then_some(stream)))
}

/// Whether the metadata has what HTTP/2 forbids (RFC 9113 section 8.2.2).
fn has_connection_headers(metadata: &HeaderMap) -> bool {
    const FORBIDDEN: [&str; 5] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
    ];
    FORBIDDEN.iter().any(|name| metadata.contains_key(*name))
}
