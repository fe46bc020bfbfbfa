//! The typed wire: one value per message of the proxy, and replies that cannot be wrong.
//!
//! Each [`Phase`] owns the handle of its reply, and the handle is used up by replying: a second
//! reply, or one of another phase, cannot be written. A handle that is dropped lets the message
//! pass as it is, so no exchange waits for an answer that nobody gives. Replies may be given in
//! any order, and from any task: they are sent in the order in which they are owed.
//!
//! In FULL_DUPLEX_STREAMED mode pieces of a body can be answered one by one, as in STREAMED mode;
//! or the output of the body is taken with [`Session::body`], and then the pieces owe nothing.
//!
//! ```
//! use attache_ext_proc::server::{Server, session::Phase};
//!
//! let server = Server::sessions(async |mut session| {
//!     while let Some(phase) = session.next().await {
//!         match phase {
//!             Phase::Headers(mut head) => {
//!                 if head.headers.insert("x-seen", "yes").is_ok()
//!                     && let Ok(changes) = head.headers.take_changes()
//!                 {
//!                     head.reply.change(changes, false);
//!                 }
//!             }
//!             // What is not answered passes.
//!             Phase::Body(_) | Phase::Trailers(_) => {}
//!         }
//!     }
//!     Ok(())
//! });
//! ```

mod decode;
mod encode;
mod modes;
mod outbox;
mod reply;
mod sink;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use attache_service::channel::Deframer;
use bytes::Bytes;
use http::HeaderMap;
use http_body::Body as _;
use tonic::Status;

pub(super) use decode::Fieldset;
pub use modes::{BodyMode, Modes, ModesRefused};
pub(super) use outbox::Outbox;
pub use reply::{BodyReply, HeadersReply, ReplyError, TrailersReply};
pub use sink::{BodySink, ImmediateStream, Over};

use super::{
    drain::Drain, exchange::Exchange, headers::Headers, immediate::Immediate, rules::ProxySettings,
};
use decode::{Incoming, Payload};
use encode::Kind;
use outbox::Shown;
use reply::Handle;

/// Largest message accepted from a proxy: room for the largest body it may buffer.
const MAX_MESSAGE: usize = 64 << 20;

/// The direction of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the caller to the upstream.
    Request,
    /// From the upstream to the caller.
    Response,
}

/// What the proxy shows next.
#[derive(Debug)]
pub enum Phase {
    /// The head of a message.
    Headers(HeadersPhase),
    /// A piece of a body, or all of it.
    Body(BodyPhase),
    /// The trailers of a message.
    Trailers(TrailersPhase),
}

/// A message head that waits for its reply.
#[derive(Debug)]
pub struct HeadersPhase {
    /// Whose head.
    pub direction: Direction,
    /// The headers and pseudo-headers; changes are recorded for the reply.
    pub headers: Headers,
    /// Neither body nor trailers follow.
    pub end_of_stream: bool,
    /// To be replied.
    pub reply: HeadersReply,
}

/// A piece of a body that waits for its reply.
#[derive(Debug)]
pub struct BodyPhase {
    /// Whose body.
    pub direction: Direction,
    /// The bytes.
    pub data: Bytes,
    /// Neither data nor trailers follow. A body that ends with trailers has no such piece.
    pub end_of_stream: bool,
    /// To be replied.
    pub reply: BodyReply,
}

/// Trailers that wait for their reply.
#[derive(Debug)]
pub struct TrailersPhase {
    /// Whose trailers.
    pub direction: Direction,
    /// The trailers; changes are recorded for the reply.
    pub trailers: Headers,
    /// To be replied.
    pub reply: TrailersReply,
}

/// One HTTP exchange, as a proxy shows it: a stream of phases.
pub struct Session {
    incoming: tonic::body::Body,
    deframer: Deframer,
    outbox: Outbox,
    exchange: Exchange,
    settings: Arc<ProxySettings>,
    drain: Option<Drain>,
    observed: bool,
    without_waiting: bool,
}

impl Session {
    pub(super) fn new(
        call: HeaderMap,
        incoming: tonic::body::Body,
        outbox: Outbox,
        settings: Arc<ProxySettings>,
        drain: Option<Drain>,
    ) -> Self {
        Self {
            incoming,
            deframer: Deframer::default(),
            outbox,
            exchange: Exchange::of_call(call),
            settings,
            drain,
            observed: false,
            without_waiting: false,
        }
    }

    /// How the proxy sends the body of a direction; known with the first phase.
    pub fn body_mode(&self, direction: Direction) -> BodyMode {
        self.outbox.lock().mode(direction)
    }

    /// Takes the output of a body in FULL_DUPLEX_STREAMED mode. `None` in other modes, when it was
    /// taken already, and when the proxy only lets observe.
    ///
    /// From now on the pieces of that body owe no reply: see [`BodyReply::is_owed`].
    pub fn body(&self, direction: Direction) -> Option<BodySink> {
        let taken = !self.observed && self.outbox.lock().take_stream(direction);
        taken.then(|| BodySink::new(self.outbox.clone(), direction))
    }

    /// What is known of the exchange beside its messages, as of the last phase.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// [`Session::exchange`], to be lent to handlers.
    pub(super) fn exchange_mut(&mut self) -> &mut Exchange {
        &mut self.exchange
    }

    /// What was said of the proxy's filter ([`Server::assume`](super::Server::assume)).
    pub fn settings(&self) -> &ProxySettings {
        &self.settings
    }

    /// Answers the caller, whatever is owed; ends the exchange. A proxy takes that at any time,
    /// also while it waits for the upstream.
    pub fn respond(&self, immediate: Immediate) {
        if !self.observed {
            let response = immediate.into_message();
            let mut queue = self.outbox.lock();
            queue.send_last(|buffer| encode::immediate(response, None, buffer));
        }
    }

    /// Ends the exchange with an error; what is owed is not answered any more.
    pub fn fail(&self, status: Status) {
        self.outbox.fail(status);
    }

    /// Whether pieces of a body come before its head is answered
    /// (`send_body_without_waiting_for_header_response`).
    pub fn sends_body_early(&self) -> bool {
        self.without_waiting
    }

    /// Whether the proxy only lets observe: replies are not sent.
    pub fn is_observed(&self) -> bool {
        self.observed
    }

    /// Resolves when the server is ending and has waited long enough for exchanges to end by
    /// themselves: those that wait for the proxy shall end cleanly, so that traffic passes.
    pub fn drained(&self) -> impl Future<Output = ()> + Send + 'static {
        let drain = self.drain.clone();
        async move {
            match drain {
                Some(drain) => drain.closed().await,
                None => std::future::pending().await,
            }
        }
    }

    /// The next phase; `None` when the exchange is over.
    ///
    /// Proxies end exchanges in many ways: half-close, cancellation, reset. All are normal.
    ///
    /// While much waits to be sent, nothing more is read.
    pub async fn next(&mut self) -> Option<Phase> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Session::next`], for code that polls.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Phase>> {
        loop {
            ready!(self.outbox.poll_room(cx));
            if self.outbox.lock().is_closed() {
                return Poll::Ready(None);
            }
            match self.deframer.next(MAX_MESSAGE) {
                Ok(Some(message)) => match Incoming::decode(&message) {
                    Ok(incoming) => {
                        if let Some(phase) = self.phase(incoming) {
                            return Poll::Ready(Some(phase));
                        }
                    }
                    Err(error) => {
                        self.outbox.fail(Status::internal(error.to_string()));
                        return Poll::Ready(None);
                    }
                },
                Ok(None) => match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            self.deframer.push(data);
                        }
                    }
                    Some(Err(status)) => {
                        tracing::debug!(%status, "the proxy ended the exchange");
                        self.outbox.gone();
                        return Poll::Ready(None);
                    }
                    None => {
                        self.outbox.gone();
                        return Poll::Ready(None);
                    }
                },
                Err(status) => {
                    self.outbox.fail(status);
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn phase(&mut self, incoming: Incoming) -> Option<Phase> {
        self.observed |= incoming.observed;
        let (attributes, metadata) = (incoming.attributes, incoming.metadata);
        self.exchange.learn(attributes, metadata, self.observed);
        let mut queue = self.outbox.lock();
        if let Some(config) = &incoming.protocol_config {
            self.without_waiting = config.send_body_without_waiting_for_header_response;
            let mode = BodyMode::from_wire;
            queue.set_modes(
                mode(config.request_body_mode),
                mode(config.response_body_mode),
            );
        }
        // A kind of message that is newer than this code wants no reply that we know of.
        let (direction, payload) = incoming.payload?;
        let mode = queue.mode(direction);
        let (kind, over) = match &payload {
            Payload::Headers(_, over) => (Kind::Headers, *over),
            Payload::Body(_, over) => (Kind::Body, *over),
            Payload::Trailers(_) => (Kind::Trailers, true),
        };
        let handle = if self.observed {
            Handle::free(direction, kind, mode, true)
        } else {
            match queue.shown(direction, kind, over) {
                Shown::Owed(number) => {
                    Handle::owed(self.outbox.clone(), direction, kind, mode, number)
                }
                Shown::Free => Handle::free(direction, kind, mode, false),
                Shown::Silent => return None,
                Shown::Bodiless => {
                    drop(queue);
                    let status =
                        Status::internal("the processor pushed a body for a message without one");
                    self.outbox.fail(status);
                    return None;
                }
            }
        };
        let listens = || [Direction::Request, Direction::Response].map(|way| queue.mode(way));
        let rules = self.settings.rules();
        Some(match payload {
            Payload::Headers(headers, end_of_stream) => Phase::Headers(HeadersPhase {
                direction,
                headers: Headers::new(headers, rules),
                end_of_stream,
                reply: HeadersReply(handle, self.overrides(listens())),
            }),
            Payload::Body(data, end_of_stream) => Phase::Body(BodyPhase {
                direction,
                reply: BodyReply(match mode {
                    BodyMode::FullDuplexStreamed if handle.is_owed() => {
                        handle.echo(data.clone(), end_of_stream)
                    }
                    _ => handle,
                }),
                data,
                end_of_stream,
            }),
            Payload::Trailers(trailers) => Phase::Trailers(TrailersPhase {
                direction,
                trailers: Headers::new(trailers, rules),
                reply: TrailersReply(handle),
            }),
        })
    }

    /// Why the proxy would ignore an override of the modes.
    fn overrides(&self, modes: [BodyMode; 2]) -> Option<ModesRefused> {
        if self.observed {
            Some(ModesRefused::Observing)
        } else if !self.settings.allow_mode_override {
            Some(ModesRefused::NotAllowed)
        } else if modes.contains(&BodyMode::FullDuplexStreamed) {
            Some(ModesRefused::FullDuplex)
        } else if self.without_waiting {
            Some(ModesRefused::WithoutWaiting)
        } else {
            None
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let modes = [Direction::Request, Direction::Response].map(|way| self.body_mode(way));
        f.debug_struct("Session")
            .field("modes", &modes)
            .finish_non_exhaustive()
    }
}
