//! One direction of an exchange: what the proxy shows goes into a middleware's body, what the
//! middleware gives becomes the replies.

use std::{
    collections::VecDeque,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};

use super::{
    body::{self, Body, Feed, Output, Verdict},
    fault::Fault,
    head,
};
use crate::server::{
    headers::Headers,
    session::{
        BodyMode, BodyPhase, BodyReply, BodySink, Direction, HeadersPhase, HeadersReply,
        TrailersPhase, TrailersReply,
    },
};

/// A direction, from its head on.
pub(super) struct Half {
    direction: Direction,
    mode: BodyMode,
    limit: usize,
    /// Pieces come although the head is not answered.
    impatient: bool,
    /// The message can have no body, whatever a middleware gives.
    pub(super) bare: bool,
    /// As received, and what a middleware changed.
    pub(super) headers: Headers,
    pub(super) clear_route_cache: bool,
    reply: Option<HeadersReply>,
    /// The head was let go before a middleware decided on it: its changes go with the body.
    late: bool,
    /// Something was changed already that the proxy cannot take back.
    pub(super) changed: bool,
    no_body: bool,
    /// The `content-length` received.
    length: Option<u64>,
    sink: Option<BodySink>,
    feed: Feed,
    /// All that the proxy shows is in the feed.
    fed: bool,
    output: Option<Output>,
    done: bool,
    ready: Ready,
    trailers_out: Option<HeaderMap>,
    owed: VecDeque<Piece>,
    trailers: Option<(Headers, TrailersReply)>,
}

/// A piece of the body that waits for its reply.
struct Piece {
    data: Bytes,
    last: bool,
    reply: BodyReply,
}

/// How a direction is shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    pub(super) mode: BodyMode,
    pub(super) impatient: bool,
    pub(super) limit: usize,
}

impl Half {
    /// A direction whose head is there, and the body for the middleware. `sink` takes what goes
    /// on of a body in full duplex.
    pub(super) fn new(phase: HeadersPhase, shown: Shown, sink: Option<BodySink>) -> (Self, Body) {
        let HeadersPhase {
            direction,
            headers,
            end_of_stream,
            reply,
        } = phase;
        let length = head::length(&headers);
        let (feed, body) = match shown.mode {
            _ if end_of_stream => body::empty(),
            BodyMode::None => body::hidden(direction, length),
            _ => body::open(length),
        };
        let half = Self {
            direction,
            mode: shown.mode,
            limit: shown.limit,
            impatient: shown.impatient,
            bare: false,
            headers,
            clear_route_cache: false,
            reply: Some(reply),
            late: false,
            changed: false,
            no_body: end_of_stream,
            length,
            sink,
            feed,
            fed: end_of_stream,
            output: None,
            done: false,
            ready: Ready::default(),
            trailers_out: None,
            owed: VecDeque::new(),
            trailers: None,
        };
        (half, body)
    }

    /// A middleware has decided on the head, whose changes are in `headers`, and gives this body.
    pub(super) fn decided(&mut self, output: Output) {
        self.output = Some(output);
    }

    /// A piece of the body.
    pub(super) fn piece(&mut self, phase: BodyPhase) {
        if self.fed || self.is_hidden() {
            return phase.reply.pass();
        }
        // What nobody is going to read need not wait.
        if !self.done {
            self.feed.data(phase.data.clone());
        }
        let last = phase.end_of_stream || self.mode == BodyMode::Buffered;
        if last {
            self.feed.end();
            self.fed = true;
        }
        // In full duplex what goes on is pushed.
        if self.mode != BodyMode::FullDuplexStreamed {
            self.owed.push_back(Piece {
                data: phase.data,
                last,
                reply: phase.reply,
            });
        }
    }

    /// The trailers. What has its end already lets them pass.
    pub(super) fn trailers(&mut self, phase: TrailersPhase) {
        if self.fed || self.is_hidden() {
            return phase.reply.pass();
        }
        self.feed.trailers(HeaderMap::clone(&phase.trailers));
        self.fed = true;
        self.trailers = Some((phase.trailers, phase.reply));
    }

    /// Gives the reply to the head away, if it is owed and as wanted.
    pub(super) fn take_reply_if(
        &mut self,
        wanted: impl FnOnce(&HeadersReply) -> bool,
    ) -> Option<HeadersReply> {
        self.reply.take_if(|reply| wanted(reply))
    }

    /// Goes on as far as it can.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        if self.output.is_none() {
            return self.await_decision();
        }
        if self.mode == BodyMode::FullDuplexStreamed && !self.no_body {
            self.settle_head()?;
            self.stream(cx)?;
            return self.settle_trailers();
        }
        loop {
            self.pull(cx)?;
            let was_full = self.is_full();
            if self.settle_head()? {
                self.settle_pieces()?;
                self.settle_trailers()?;
            }
            if !was_full || self.is_full() {
                return Ok(());
            }
        }
    }

    /// Before it is driven: what the middleware reads from here on needs no waking.
    pub(super) fn attend(&self) {
        self.feed.attend();
    }

    /// After it was driven: a middleware that reads elsewhere wakes the exchange.
    pub(super) fn notify(&self, waker: &Waker) {
        if !self.fed {
            self.feed.notify(waker);
        }
    }

    /// Whether more of the proxy's messages may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.feed.held() <= self.limit
    }

    /// Asks for more time for the reply that has been owed longest.
    pub(super) fn more_time(&self, time: Duration) {
        if let Some(reply) = &self.reply {
            reply.more_time(time);
        } else if let Some(piece) = self.owed.front() {
            piece.reply.more_time(time);
        } else if let Some((_, reply)) = &self.trailers {
            reply.more_time(time);
        }
    }

    /// Whether the message has gone on to its end, as far as the proxy shows it.
    pub(super) fn is_settled(&self) -> bool {
        !self.owes() && self.sink.is_none() && (self.fed || self.is_hidden())
    }

    /// Whether the proxy waits for a reply.
    pub(super) fn owes(&self) -> bool {
        self.reply.is_some() || !self.owed.is_empty() || self.trailers.is_some()
    }

    fn is_hidden(&self) -> bool {
        matches!(self.mode, BodyMode::None)
    }

    fn is_full(&self) -> bool {
        self.ready.length > self.limit
    }

    /// A middleware that wants the body first gets it, if the proxy gives it.
    fn await_decision(&mut self) -> Result<(), Fault> {
        if self.reply.is_none() || !self.feed.is_wanted() {
            return Ok(());
        }
        match self.mode {
            BodyMode::Buffered | BodyMode::BufferedPartial => {
                self.late = true;
                self.reply = None;
                Ok(())
            }
            BodyMode::Streamed if !self.impatient => Err(Fault::Standstill(self.direction)),
            _ => Ok(()),
        }
    }

    /// Takes what the middleware gives, as much as is held of it.
    fn pull(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        if self.is_untouched() {
            return Ok(());
        }
        while !self.done && self.ready.length <= self.limit {
            match self.poll_data(cx)? {
                Poll::Pending => break,
                Poll::Ready(data) => self.ready.push(data),
            }
        }
        Ok(())
    }

    /// The next data that the middleware gives; with the end there is none.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Result<Poll<Bytes>, Fault> {
        let Some(output) = &mut self.output else {
            return Ok(Poll::Pending);
        };
        let poll = match self.mode {
            BodyMode::None => self.feed.probing(|| output.poll_frame(cx)),
            _ => output.poll_frame(cx),
        };
        let frame = match poll {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(None) => {
                self.done = true;
                return Ok(Poll::Ready(Bytes::new()));
            }
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(source))) => {
                let direction = self.direction;
                return Err(Fault::Body { direction, source });
            }
        };
        Ok(Poll::Ready(match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                self.trailers_out = frame.into_trailers().ok();
                Bytes::new()
            }
        }))
    }

    /// Passes on what the middleware gives, as fast as the proxy takes it.
    fn stream(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        while !self.done {
            if let Some(sink) = &self.sink
                && pin!(sink.ready()).poll(cx).is_pending()
            {
                return Ok(());
            }
            let Poll::Ready(data) = self.poll_data(cx)? else {
                return Ok(());
            };
            if let Some(sink) = &mut self.sink {
                // Nobody wants it any more when the exchange is over.
                let _ = sink.push(data);
            }
        }
        // Ending the message early would cost the caller its connection.
        if self.fed
            && let Some(sink) = self.sink.take()
        {
            sink.finish();
        }
        Ok(())
    }

    /// Whether a body that is not shown goes on in person.
    fn is_untouched(&self) -> bool {
        self.is_hidden() && matches!(&self.output, Some(Output::Own(body)) if self.feed.is_of(body))
    }

    /// Replies to the head as soon as that can be done; true when it is.
    fn settle_head(&mut self) -> Result<bool, Fault> {
        if self.reply.is_none() {
            return Ok(true);
        }
        let mut new_body = None;
        if (self.is_hidden() || self.no_body) && !self.is_untouched() {
            if !self.done {
                return self.all_at_once().map(|()| false);
            }
            let data = self.ready.take();
            let verdict = match self.no_body {
                true if data.is_empty() => Verdict::Untouched,
                true => Verdict::Replaced,
                false => self.feed.verdict(&data),
            };
            match verdict {
                Verdict::Changed => return Err(Fault::Hidden(self.direction)),
                Verdict::Replaced if !self.bare => new_body = Some(data),
                Verdict::Replaced | Verdict::Untouched => {}
            }
        } else if self.mode.hides_length() {
            self.drop_wrong_length();
        }
        let changes = self.headers.take_changes()?;
        self.changed |= !changes.is_empty();
        let Some(reply) = self.reply.take() else {
            return Ok(true);
        };
        match new_body {
            Some(data) => reply.replace_body(changes, self.clear_route_cache, data),
            None => reply.change(changes, self.clear_route_cache),
        }
        Ok(true)
    }

    /// A length that may not be that of what goes on is worse than none. Most proxies remove it
    /// by themselves; those with `allow_content_length_header` do not.
    fn drop_wrong_length(&mut self) {
        let size = self.output.as_ref().and_then(Output::exact_size);
        if self.headers.had_length() && size != self.length {
            self.headers.remove_length();
        }
    }

    /// What is not complete is waited for, within the bound.
    fn all_at_once(&self) -> Result<(), Fault> {
        if self.is_full() {
            return Err(Fault::TooLarge(self.limit));
        }
        Ok(())
    }

    fn settle_pieces(&mut self) -> Result<(), Fault> {
        while let Some(piece) = self.owed.front() {
            if piece.last {
                if !self.done {
                    return self.all_at_once();
                }
            } else if !(self.done
                || self.is_full()
                || self.feed.is_starved()
                || self.owed.len() > 1)
            {
                return Ok(());
            }
            self.settle_piece()?;
        }
        Ok(())
    }

    /// Replies to the piece that is due. It stays owed until the reply is known: a reply that is
    /// dropped lets the piece pass.
    fn settle_piece(&mut self) -> Result<(), Fault> {
        let data = self.ready.take();
        let Some(piece) = self.owed.front() else {
            return Ok(());
        };
        let same = data == piece.data;
        if self.mode == BodyMode::BufferedPartial && !piece.last {
            // The rest follows unseen.
            if !same || self.done {
                return Err(Fault::Partial(self.direction));
            }
            self.fed = true;
        }
        let mut changes = self.headers.take_changes()?;
        let holds_head = matches!(self.mode, BodyMode::Buffered | BodyMode::BufferedPartial);
        if holds_head && !same && self.headers.had_length() {
            changes.replace(header::CONTENT_LENGTH, Some(data.len().into()));
        }
        let Some(Piece { reply, .. }) = self.owed.pop_front() else {
            return Ok(());
        };
        self.changed |= !same || !changes.is_empty();
        if self.late && self.clear_route_cache {
            reply.reroute((!same).then_some(data), changes);
        } else if !same {
            reply.replace_with(data, changes)?;
        } else if !changes.is_empty() {
            reply.change(changes)?;
        }
        Ok(())
    }

    fn settle_trailers(&mut self) -> Result<(), Fault> {
        let Some((headers, _)) = &mut self.trailers else {
            return Ok(());
        };
        if !self.ready.pieces.is_empty() || self.late && !self.headers.take_changes()?.is_empty() {
            return Err(Fault::Trailers(self.direction));
        }
        if !self.done {
            return Ok(());
        }
        headers.assign(&self.trailers_out.take().unwrap_or_default())?;
        let changes = headers.take_changes()?;
        if let Some((_, reply)) = self.trailers.take() {
            reply.change(changes);
        }
        Ok(())
    }
}

/// What a middleware gave that is not sent yet.
#[derive(Default)]
pub(super) struct Ready {
    pieces: Vec<Bytes>,
    length: usize,
}

impl Ready {
    pub(super) fn push(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.length += data.len();
            self.pieces.push(data);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// All of it, in one piece.
    pub(super) fn take(&mut self) -> Bytes {
        let length = std::mem::take(&mut self.length);
        if self.pieces.len() == 1 {
            return self.pieces.pop().unwrap_or_default();
        }
        let mut all = BytesMut::with_capacity(length);
        for piece in self.pieces.drain(..) {
            all.extend_from_slice(&piece);
        }
        all.freeze()
    }
}
