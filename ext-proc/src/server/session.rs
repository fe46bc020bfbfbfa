//! The typed wire: one value per message of the proxy, and replies that cannot be wrong.
//!
//! Each [`Phase`] owns the handle of its reply, and the handle is used up by replying: a second
//! reply, or one of another phase, cannot be written. A handle that is dropped lets the message
//! pass as it is, so no exchange waits for an answer that nobody gives.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use attache_proto::{
    core,
    ext_proc::{
        BodyMutation, BodyResponse, CommonResponse, HeadersResponse, HttpBody, HttpHeaders,
        ProcessingRequest, ProcessingResponse, ProtocolConfiguration, StreamedBodyResponse,
        TrailersResponse, body_mutation::Mutation, common_response::ResponseStatus,
        processing_request::Request, processing_response::Response,
    },
    ext_proc_filter::processing_mode::BodySendMode,
};
use bytes::Bytes;
use futures_util::StreamExt;
use tonic::Streaming;

use super::{
    headers::{Changes, TooManyChanges},
    immediate::Immediate,
};

/// The direction of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the caller to the upstream.
    Request,
    /// From the upstream to the caller.
    Response,
}

/// One HTTP exchange, as a proxy shows it: a stream of phases.
pub struct Session {
    incoming: Streaming<ProcessingRequest>,
    outbox: Outbox,
    modes: [BodySendMode; 2],
    muted: bool,
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
    /// The headers and pseudo-headers, values in `raw_value`.
    pub headers: Vec<core::HeaderValue>,
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
    /// Neither data nor trailers follow.
    pub end_of_stream: bool,
    /// To be replied.
    pub reply: BodyReply,
}

/// Trailers that wait for their reply.
#[derive(Debug)]
pub struct TrailersPhase {
    /// Whose trailers.
    pub direction: Direction,
    /// The trailers, values in `raw_value`.
    pub trailers: Vec<core::HeaderValue>,
    /// To be replied.
    pub reply: TrailersReply,
}

impl Session {
    pub(super) fn new(incoming: Streaming<ProcessingRequest>, outbox: Outbox) -> Self {
        Self {
            incoming,
            outbox,
            modes: [BodySendMode::None; 2],
            muted: false,
        }
    }

    /// How the proxy sends the body of a direction; known with the first phase.
    pub fn body_mode(&self, direction: Direction) -> BodySendMode {
        match direction {
            Direction::Request => self.modes[0],
            Direction::Response => self.modes[1],
        }
    }

    /// The next phase; `None` when the exchange is over.
    ///
    /// Proxies end exchanges in many ways: half-close, cancellation, reset. All are normal.
    pub async fn next(&mut self) -> Option<Phase> {
        loop {
            if self.outbox.is_closed() {
                return None;
            }
            let message = match self.incoming.next().await? {
                Ok(message) => message,
                Err(status) => {
                    tracing::debug!(%status, "the proxy ended the exchange");
                    return None;
                }
            };
            if let Some(config) = &message.protocol_config {
                self.configure(config);
            }
            self.muted |= message.observability_mode;
            let handle = |direction, kind| Handle {
                outbox: (!self.muted).then(|| self.outbox.clone()),
                direction,
                kind,
                echo: None,
            };
            let headers = |direction, headers: HttpHeaders| {
                Phase::Headers(HeadersPhase {
                    direction,
                    headers: headers.headers.unwrap_or_default().headers,
                    end_of_stream: headers.end_of_stream,
                    reply: HeadersReply(handle(direction, Kind::Headers)),
                })
            };
            let body = |direction, body: HttpBody| {
                let mut handle = handle(direction, Kind::Body);
                if self.body_mode(direction) == BodySendMode::FullDuplexStreamed {
                    handle.echo = Some((body.body.clone(), body.end_of_stream));
                }
                Phase::Body(BodyPhase {
                    direction,
                    data: body.body,
                    end_of_stream: body.end_of_stream,
                    reply: BodyReply(handle),
                })
            };
            let trailers = |direction, trailers: Option<core::HeaderMap>| {
                Phase::Trailers(TrailersPhase {
                    direction,
                    trailers: trailers.unwrap_or_default().headers,
                    reply: TrailersReply(handle(direction, Kind::Trailers)),
                })
            };
            return Some(match message.request {
                Some(Request::RequestHeaders(h)) => headers(Direction::Request, h),
                Some(Request::ResponseHeaders(h)) => headers(Direction::Response, h),
                Some(Request::RequestBody(b)) => body(Direction::Request, b),
                Some(Request::ResponseBody(b)) => body(Direction::Response, b),
                Some(Request::RequestTrailers(t)) => trailers(Direction::Request, t.trailers),
                Some(Request::ResponseTrailers(t)) => trailers(Direction::Response, t.trailers),
                // A kind of message that is newer than this code wants no reply we know of.
                None => continue,
            });
        }
    }

    fn configure(&mut self, config: &ProtocolConfiguration) {
        let mode = |mode| BodySendMode::try_from(mode).unwrap_or(BodySendMode::None);
        self.modes = [
            mode(config.request_body_mode),
            mode(config.response_body_mode),
        ];
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("modes", &self.modes)
            .finish_non_exhaustive()
    }
}

/// What is to be sent to the proxy.
#[derive(Clone, Default)]
pub(super) struct Outbox(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    messages: VecDeque<ProcessingResponse>,
    /// Nothing may follow: the last message ended the exchange.
    closed: bool,
}

impl Outbox {
    pub(super) fn pop(&self) -> Option<ProcessingResponse> {
        self.queue().messages.pop_front()
    }

    fn push(&self, message: ProcessingResponse, last: bool) {
        let mut queue = self.queue();
        if !queue.closed {
            queue.messages.push_back(message);
            queue.closed = last;
        }
    }

    fn is_closed(&self) -> bool {
        self.queue().closed
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Headers,
    Body,
    Trailers,
}

/// One reply that is owed; `outbox` is taken by giving it.
struct Handle {
    outbox: Option<Outbox>,
    direction: Direction,
    kind: Kind,
    /// In full duplex the proxy keeps no copy: what shall pass is sent back.
    echo: Option<(Bytes, bool)>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of the {:?}", self.kind, self.direction)
    }
}

impl Handle {
    fn send(&mut self, mut common: CommonResponse) {
        let Some(outbox) = self.outbox.take() else {
            return;
        };
        if let Some((echo, end_of_stream)) = self.echo.take() {
            let body = match common.body_mutation.and_then(|body| body.mutation) {
                Some(Mutation::Body(body)) => body,
                Some(_) => Bytes::new(),
                None => echo,
            };
            if body.is_empty() && !end_of_stream {
                return;
            }
            let streamed = StreamedBodyResponse {
                body,
                end_of_stream,
                ..StreamedBodyResponse::default()
            };
            common = CommonResponse {
                body_mutation: Some(BodyMutation {
                    mutation: Some(Mutation::StreamedResponse(streamed)),
                }),
                ..CommonResponse::default()
            };
        }
        let header_mutation = || common.header_mutation.clone();
        let response = match (self.kind, self.direction) {
            (Kind::Trailers, direction) => {
                let header_mutation = header_mutation();
                let response = TrailersResponse { header_mutation };
                match direction {
                    Direction::Request => Response::RequestTrailers(response),
                    Direction::Response => Response::ResponseTrailers(response),
                }
            }
            (kind, direction) => {
                // The wire's default is "continue": nothing to say is nothing to send.
                let response = (common != CommonResponse::default()).then_some(common);
                match (kind, direction) {
                    (Kind::Headers, Direction::Request) => {
                        Response::RequestHeaders(HeadersResponse { response })
                    }
                    (Kind::Headers, Direction::Response) => {
                        Response::ResponseHeaders(HeadersResponse { response })
                    }
                    (_, Direction::Request) => Response::RequestBody(BodyResponse { response }),
                    (_, Direction::Response) => Response::ResponseBody(BodyResponse { response }),
                }
            }
        };
        outbox.push(message(response), false);
    }

    fn respond(&mut self, immediate: Immediate) {
        if let Some(outbox) = self.outbox.take() {
            let response = Response::ImmediateResponse(immediate.into_message());
            outbox.push(message(response), true);
        }
    }

    fn more_time(&self, timeout: Duration) {
        if let Some(outbox) = &self.outbox {
            let timeout = prost_types::Duration::try_from(timeout).ok();
            outbox.push(
                ProcessingResponse {
                    override_message_timeout: timeout,
                    ..ProcessingResponse::default()
                },
                false,
            );
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.send(CommonResponse::default());
    }
}

fn message(response: Response) -> ProcessingResponse {
    ProcessingResponse {
        response: Some(response),
        ..ProcessingResponse::default()
    }
}

macro_rules! common_replies {
    ($($reply:ident),*) => {$(
        impl $reply {
            /// Lets the message pass as it is; so does dropping the handle.
            pub fn pass(self) {}

            /// Answers the caller instead; ends the exchange.
            pub fn respond(mut self, immediate: Immediate) {
                self.0.respond(immediate);
            }

            /// Asks for more time for this reply, before it is given. The proxy grants it once,
            /// up to its `max_message_timeout`.
            pub fn more_time(&self, timeout: Duration) {
                self.0.more_time(timeout);
            }

            /// Gives no reply at all: for a session that is about to end with an error.
            pub(super) fn withhold(mut self) {
                self.0.outbox = None;
            }
        }
    )*};
}

common_replies!(HeadersReply, BodyReply, TrailersReply);

/// The reply to a head.
#[derive(Debug)]
pub struct HeadersReply(Handle);

impl HeadersReply {
    /// Changes headers; `clear_route_cache` has the proxy pick the route again (requests only).
    ///
    /// # Errors
    /// When there are more changes than Envoy accepts; the message then passes as it is.
    pub fn change(
        mut self,
        changes: Changes,
        clear_route_cache: bool,
    ) -> Result<(), TooManyChanges> {
        let mut header_mutation = changes.into_mutation()?;
        if clear_route_cache {
            // Envoy ignores the wish in a reply without a mutation.
            header_mutation.get_or_insert_default();
        }
        self.0.send(CommonResponse {
            header_mutation,
            clear_route_cache,
            ..CommonResponse::default()
        });
        Ok(())
    }

    /// Changes headers and replaces the body, of which nothing more is shown.
    ///
    /// # Errors
    /// When there are more changes than Envoy accepts; the message then passes as it is.
    pub fn replace_body(
        mut self,
        changes: Changes,
        clear_route_cache: bool,
        body: Bytes,
    ) -> Result<(), TooManyChanges> {
        let mut header_mutation = changes.into_mutation()?;
        if clear_route_cache {
            header_mutation.get_or_insert_default();
        }
        self.0.send(CommonResponse {
            status: ResponseStatus::ContinueAndReplace as i32,
            header_mutation,
            body_mutation: Some(body_mutation(body)),
            clear_route_cache,
            ..CommonResponse::default()
        });
        Ok(())
    }
}

/// The reply to a piece of a body.
#[derive(Debug)]
pub struct BodyReply(Handle);

impl BodyReply {
    /// Puts `data` in place of the piece. `changes` of headers count only in BUFFERED mode.
    ///
    /// # Errors
    /// When there are more changes than Envoy accepts; the piece then passes as it is.
    pub fn replace(mut self, data: Bytes, changes: Changes) -> Result<(), TooManyChanges> {
        let header_mutation = changes.into_mutation()?;
        self.0.send(CommonResponse {
            header_mutation,
            body_mutation: Some(body_mutation(data)),
            ..CommonResponse::default()
        });
        Ok(())
    }
}

fn body_mutation(data: Bytes) -> BodyMutation {
    let mutation = if data.is_empty() {
        Mutation::ClearBody(true)
    } else {
        Mutation::Body(data)
    };
    BodyMutation {
        mutation: Some(mutation),
    }
}

/// The reply to trailers.
#[derive(Debug)]
pub struct TrailersReply(Handle);

impl TrailersReply {
    /// Changes trailers.
    ///
    /// # Errors
    /// When there are more changes than Envoy accepts; the trailers then pass as they are.
    pub fn change(mut self, changes: Changes) -> Result<(), TooManyChanges> {
        let header_mutation = changes.into_mutation()?;
        self.0.send(CommonResponse {
            header_mutation,
            ..CommonResponse::default()
        });
        Ok(())
    }
}
