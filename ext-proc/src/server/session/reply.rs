//! The replies that a proxy waits for.

use std::{fmt, time::Duration};

use attache_proto::ext_proc::ProcessingResponse;
use bytes::Bytes;
use http::header;

use super::{
    BodyMode, Direction, Modes, ModesRefused,
    encode::{self, BodyChange, Content, Extra, Kind},
    outbox::Outbox,
    sink::ImmediateStream,
};
use crate::server::{changes::Changes, exchange::Outgoing, immediate::Immediate};

/// Largest piece of a body in one reply. Envoy's processors are asked to stay below 64 KiB; the
/// kernel sends less than that at once, and this much with all that stands before it. A few bytes
/// more would leave on their own, as dear as all the others.
pub(super) const CHUNK: usize = 62 << 10;

/// A reply that cannot be given: what it was to is as if unanswered, and then passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Nothing is owed: the body is in full duplex and its output was taken, or the caller gets
    /// an answer already.
    #[error("no reply is owed for this piece: its body's output was taken")]
    NothingOwed,
    /// The head has gone on, so its headers cannot change any more.
    #[error("headers cannot change with a piece of a body in {0:?} mode: the head has gone on")]
    HeadIsGone(BodyMode),
}

/// Whether a reply is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    Yes(u32),
    /// Not for this part.
    No,
    /// Not in this exchange: the proxy only lets observe.
    Muted,
}

/// One reply that is owed; `outbox` is taken by giving it.
pub(super) struct Handle {
    outbox: Option<Outbox>,
    direction: Direction,
    kind: Kind,
    mode: BodyMode,
    owed: Owed,
    /// In full duplex the proxy keeps no copy: what shall pass is sent back.
    echo: Option<Box<(Bytes, bool)>>,
    extra: Option<Box<Extra>>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of the {:?}", self.kind, self.direction)
    }
}

impl Handle {
    pub(super) fn owed(
        outbox: Outbox,
        direction: Direction,
        kind: Kind,
        mode: BodyMode,
        number: u32,
    ) -> Self {
        Self {
            outbox: Some(outbox),
            direction,
            kind,
            mode,
            owed: Owed::Yes(number),
            echo: None,
            extra: None,
        }
    }

    pub(super) fn free(direction: Direction, kind: Kind, mode: BodyMode, muted: bool) -> Self {
        Self {
            outbox: None,
            direction,
            kind,
            mode,
            owed: if muted { Owed::Muted } else { Owed::No },
            echo: None,
            extra: None,
        }
    }

    pub(super) fn is_owed(&self) -> bool {
        matches!(self.owed, Owed::Yes(_))
    }

    pub(super) fn echo(mut self, data: Bytes, end_of_stream: bool) -> Self {
        self.echo = Some(Box::new((data, end_of_stream)));
        self
    }

    /// What a muted proxy ignores is no mistake.
    fn is_possible(&self) -> Result<(), ReplyError> {
        match self.owed {
            Owed::Yes(_) | Owed::Muted => Ok(()),
            Owed::No => Err(ReplyError::NothingOwed),
        }
    }

    fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    fn send(&mut self, mut content: Content) {
        let (Some(outbox), Owed::Yes(number)) = (self.outbox.take(), self.owed) else {
            return;
        };
        let (kind, direction) = (self.kind, self.direction);
        let mut extra = self.extra.take();
        let modes = extra.as_ref().and_then(|extra| extra.modes);
        if let Some(modes) = modes
            && mode_of(modes, direction).hides_length()
        {
            // A proxy that forgets it would announce a length that no longer holds.
            content.changes.replace(header::CONTENT_LENGTH, None);
        }
        let silence = content.replace;
        let mut queue = outbox.lock();
        if let Some(echo) = self.echo.take() {
            let (data, end_of_stream) = *echo;
            let data = match content.body {
                BodyChange::Replace(data) => data,
                _ => data,
            };
            queue.reply(direction, number, |out| {
                chunks(data, end_of_stream, extra.is_some(), |body| {
                    let content = Content {
                        body,
                        ..Content::default()
                    };
                    let extra = extra.take();
                    out.put(|buffer| encode::reply(kind, direction, content, extra, buffer));
                });
            });
        } else {
            queue.reply(direction, number, |out| {
                out.put(|buffer| encode::reply(kind, direction, content, extra, buffer));
            });
        }
        if let Some(modes) = modes {
            queue.override_modes(modes);
        }
        if silence {
            queue.silence(direction);
        }
    }

    fn respond(&mut self, immediate: Immediate) {
        if let Some(outbox) = self.outbox.take() {
            let extra = self.extra.take().map(|mut extra| {
                extra.modes = None;
                extra
            });
            let mut queue = outbox.lock();
            queue.send_last(|buffer| encode::immediate(immediate.into_message(), extra, buffer));
        }
    }

    fn more_time(&self, timeout: Duration) {
        if let Some(outbox) = &self.outbox
            && self.mode != BodyMode::FullDuplexStreamed
        {
            let message = ProcessingResponse {
                override_message_timeout: prost_types::Duration::try_from(timeout).ok(),
                ..ProcessingResponse::default()
            };
            outbox.lock().send(|buffer| {
                encode::message(&message, buffer);
                None
            });
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.send(Content::default());
    }
}

pub(super) fn mode_of(modes: Modes, direction: Direction) -> BodyMode {
    match direction {
        Direction::Request => modes.request_body,
        Direction::Response => modes.response_body,
    }
}

/// Cuts the output of a body in full duplex. Nothing at all is said of nothing, unless it ends
/// the body or has to carry something else.
pub(super) fn chunks(
    mut data: Bytes,
    end_of_stream: bool,
    needed: bool,
    mut put: impl FnMut(BodyChange),
) {
    if data.is_empty() && !end_of_stream && !needed {
        return;
    }
    while data.len() > CHUNK {
        put(BodyChange::Streamed(data.split_to(CHUNK), false));
    }
    put(BodyChange::Streamed(data, end_of_stream));
}

macro_rules! common_replies {
    ($($reply:ident),*) => {$(
        impl $reply {
            /// Lets the part pass as it is; so does dropping the handle.
            pub fn pass(self) {}

            /// Answers the caller instead; ends the exchange.
            pub fn respond(mut self, immediate: Immediate) {
                self.0.respond(immediate);
            }

            /// Asks for more time for this reply, before it is given. The proxy grants it once,
            /// up to its `max_message_timeout`, and not in full duplex, where it never waits.
            pub fn more_time(&self, timeout: Duration) {
                self.0.more_time(timeout);
            }

            /// Adds dynamic metadata, which goes to the proxy with this reply.
            pub fn add_metadata(&mut self, metadata: Outgoing) {
                if let Some(Outgoing { untyped, typed }) = (!metadata.is_empty()).then_some(metadata) {
                    let extra = self.0.extra();
                    if !untyped.fields.is_empty() {
                        let known = extra.dynamic_metadata.get_or_insert_default();
                        known.fields.extend(untyped.fields);
                    }
                    extra.typed_metadata.extend(typed);
                }
            }

            /// Whether a reply is owed at all: not for the pieces of a body in full duplex whose
            /// output was taken, and never where a proxy only lets observe.
            pub fn is_owed(&self) -> bool {
                self.0.is_owed()
            }

            /// Gives no reply at all: for a session that is about to end.
            pub(in crate::server) fn withhold(mut self) {
                self.0.outbox = None;
            }
        }
    )*};
}

common_replies!(HeadersReply, BodyReply, TrailersReply);

/// The reply to a head.
#[derive(Debug)]
pub struct HeadersReply(pub(super) Handle, pub(super) Option<ModesRefused>);

impl HeadersReply {
    /// Changes headers; `clear_route_cache` has the proxy pick the route again (requests only).
    pub fn change(mut self, changes: Changes, clear_route_cache: bool) {
        self.0.send(Content {
            changes,
            clear_route_cache: clear_route_cache && self.0.direction == Direction::Request,
            ..Content::default()
        });
    }

    /// Changes headers and replaces the body, of which nothing more is shown, nor the trailers.
    pub fn replace_body(mut self, changes: Changes, clear_route_cache: bool, body: Bytes) {
        self.0.send(Content {
            changes,
            body: BodyChange::Replace(body),
            replace: true,
            clear_route_cache: clear_route_cache && self.0.direction == Direction::Request,
        });
    }

    /// Changes what is shown from now on, with this reply. The `content-length` of a body that
    /// becomes streamed is removed with it.
    ///
    /// # Errors
    /// When the proxy would ignore the wish.
    pub fn override_modes(&mut self, modes: Modes) -> Result<(), ModesRefused> {
        if let Some(refused) = self.1 {
            return Err(refused);
        }
        self.0.extra().modes = Some(modes);
        Ok(())
    }

    pub(in crate::server) fn overrides(&self) -> Option<ModesRefused> {
        self.1
    }

    /// Asks for the body of the request, in full duplex and with its trailers, before its head is
    /// answered. The response's parts are shown as `response` says.
    ///
    /// # Errors
    /// When the proxy would refuse the wish.
    pub fn send_body_first(&mut self, response: Modes) -> Result<(), ModesRefused> {
        if self.0.direction != Direction::Request {
            return Err(ModesRefused::NotARequest);
        }
        if let Some(refused) = self.1 {
            return Err(refused);
        }
        let Some(outbox) = &self.0.outbox else {
            return Err(ModesRefused::Observing);
        };
        let modes = Modes {
            request_body: BodyMode::FullDuplexStreamed,
            ..response
        };
        let message = ProcessingResponse {
            mode_override: Some(modes.to_wire()),
            ..ProcessingResponse::default()
        };
        let mut queue = outbox.lock();
        queue.send(|buffer| {
            encode::message(&message, buffer);
            None
        });
        queue.override_modes(modes);
        drop(queue);
        self.0.mode = BodyMode::FullDuplexStreamed;
        self.1 = Some(ModesRefused::FullDuplex);
        Ok(())
    }

    /// Whether [`HeadersReply::stream`] is possible: for the head of a request, when the body of
    /// the request is in NONE or FULL_DUPLEX_STREAMED mode.
    pub fn can_stream(&self) -> bool {
        let streams = |mode| matches!(mode, BodyMode::None | BodyMode::FullDuplexStreamed);
        let outbox = self.0.outbox.as_ref();
        self.0.direction == Direction::Request
            && outbox.is_some_and(|outbox| streams(outbox.lock().mode(Direction::Request)))
    }

    /// Answers the caller instead, with a body of any length: the status and the headers of
    /// `head`, and what is pushed.
    ///
    /// # Errors
    /// Gives both back when a proxy in these modes would refuse it: see
    /// [`HeadersReply::can_stream`].
    #[expect(clippy::result_large_err, reason = "both are the caller's")]
    pub fn stream(mut self, head: Immediate) -> Result<ImmediateStream, (Self, Immediate)> {
        if !self.can_stream() {
            return Err((self, head));
        }
        match self.0.outbox.take() {
            Some(outbox) => Ok(ImmediateStream::begin(outbox, head)),
            None => Err((self, head)),
        }
    }
}

/// The reply to a piece of a body.
#[derive(Debug)]
pub struct BodyReply(pub(super) Handle);

impl BodyReply {
    /// Puts `data` in place of the piece.
    ///
    /// # Errors
    /// When no reply is owed.
    pub fn replace(self, data: Bytes) -> Result<(), ReplyError> {
        self.replace_with(data, Changes::default())
    }

    /// Puts `data` in place of the piece and changes headers, while the proxy holds the head: in
    /// BUFFERED and BUFFERED_PARTIAL mode.
    ///
    /// # Errors
    /// When no reply is owed, or the head has gone on.
    pub fn replace_with(mut self, data: Bytes, changes: Changes) -> Result<(), ReplyError> {
        self.0.is_possible()?;
        if !changes.is_empty() && !self.0.mode.holds_head() {
            return Err(ReplyError::HeadIsGone(self.0.mode));
        }
        self.replace_anyway(data, changes);
        Ok(())
    }

    /// As [`BodyReply::replace_with`], with changes that count only if the head is still there.
    pub(in crate::server) fn replace_anyway(&mut self, data: Bytes, changes: Changes) {
        self.0.send(Content {
            changes,
            body: BodyChange::Replace(data),
            ..Content::default()
        });
    }

    /// As [`BodyReply::replace_with`] or, without data, [`BodyReply::change`]; the proxy picks the
    /// route again.
    pub(in crate::server) fn reroute(mut self, data: Option<Bytes>, changes: Changes) {
        self.0.send(Content {
            changes,
            body: data.map_or(BodyChange::Keep, BodyChange::Replace),
            clear_route_cache: self.0.direction == Direction::Request,
            ..Content::default()
        });
    }

    /// Changes headers only, while the proxy holds the head.
    ///
    /// # Errors
    /// As [`BodyReply::replace_with`].
    pub fn change(mut self, changes: Changes) -> Result<(), ReplyError> {
        self.0.is_possible()?;
        if !self.0.mode.holds_head() {
            return Err(ReplyError::HeadIsGone(self.0.mode));
        }
        self.0.send(Content {
            changes,
            ..Content::default()
        });
        Ok(())
    }
}

/// The reply to trailers.
#[derive(Debug)]
pub struct TrailersReply(pub(super) Handle);

impl TrailersReply {
    /// Changes trailers.
    pub fn change(mut self, changes: Changes) {
        self.0.send(Content {
            changes,
            ..Content::default()
        });
    }
}
