//! Runs a processor over a session.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, header};
use tonic::Status;

use super::{
    body::{Body, BodyError, Carry, Extent},
    changes::Changes,
    exchange::Exchange,
    guard::{Reply, guard},
    head::{RequestHead, ResponseHead, Trailers},
    immediate::Immediate,
    metrics::{Part, PartMetrics},
    processor::{Processor, Stop},
    rules::ProxySettings,
    session::{
        BodyMode, BodyPhase, BodyReply, BodySink, Direction, HeadersPhase, Phase, Session,
        TrailersPhase,
    },
};

/// What becomes of an exchange whose handler fails: by an error, a panic, or out of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// The stream ends with a gRPC error: the proxy decides (`failure_mode_allow`).
    #[default]
    Report,
    /// The exchange goes on unprocessed.
    Pass,
    /// The caller gets an empty answer with this HTTP status.
    Respond(u16),
}

/// How exchanges are run.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) on_failure: OnFailure,
    pub(super) handler_timeout: Duration,
    pub(super) max_body: usize,
    pub(super) proxy: ProxySettings,
    pub(super) metrics: Option<Arc<PartMetrics>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            on_failure: OnFailure::default(),
            handler_timeout: Duration::from_secs(10),
            max_body: 4 << 20,
            proxy: ProxySettings::default(),
            metrics: None,
        }
    }
}

impl Settings {
    /// When a handler that is not done asks for more time, and for how much.
    pub(super) fn keep_alive(&self) -> Option<(Duration, Duration)> {
        let more = self.proxy.max_message_timeout;
        (!more.is_zero()).then_some((self.proxy.message_timeout / 2, more))
    }
}

/// What is known of one direction between its phases.
#[derive(Default)]
struct Flow {
    /// The head that goes on has a `content-length`.
    has_length: bool,
    announces_trailers: bool,
    /// Something of the message was seen, and the end of it.
    begun: bool,
    /// A piece of the body was seen.
    has_body: bool,
    over: bool,
    /// The output of a body in full duplex.
    sink: Option<BodySink>,
    carry: Carry,
}

/// How an exchange goes on after a phase.
enum Next {
    Go,
    End(std::result::Result<(), Status>),
}

pub(super) async fn run<P: Processor>(
    session: Session,
    processor: P,
    settings: Arc<Settings>,
) -> std::result::Result<(), Status> {
    let mut drained = pin!(session.drained());
    let mut draining = false;
    let mut exchange = Runner {
        session,
        processor,
        settings,
        flows: [Flow::default(), Flow::default()],
        passing: false,
    };
    loop {
        if draining && exchange.may_close() {
            return Ok(());
        }
        let phase = poll_fn(|cx| match exchange.session.poll_next(cx) {
            Poll::Ready(phase) => Poll::Ready(Some(phase)),
            Poll::Pending if draining => Poll::Pending,
            Poll::Pending => drained.as_mut().poll(cx).map(|()| None),
        });
        match phase.await {
            None => draining = true,
            Some(None) => {
                exchange.ended();
                return Ok(());
            }
            Some(Some(phase)) => {
                if let Next::End(result) = exchange.phase(phase).await {
                    return result;
                }
            }
        }
    }
}

struct Runner<P> {
    session: Session,
    processor: P,
    settings: Arc<Settings>,
    flows: [Flow; 2],
    /// The processor failed and is not asked any more; everything goes on as it comes.
    passing: bool,
}

impl<P: Processor> Runner<P> {
    fn flow(&mut self, direction: Direction) -> &mut Flow {
        let [request, response] = &mut self.flows;
        match direction {
            Direction::Request => request,
            Direction::Response => response,
        }
    }

    async fn phase(&mut self, phase: Phase) -> Next {
        match phase {
            Phase::Headers(phase) => {
                self.begin(phase.direction, phase.end_of_stream);
                if self.passing {
                    return Next::Go;
                }
                self.headers(phase).await
            }
            Phase::Body(phase) => {
                self.begin(phase.direction, false);
                self.body(phase).await
            }
            Phase::Trailers(phase) => {
                self.begin(phase.direction, false);
                self.trailers(phase).await
            }
        }
    }

    fn begin(&mut self, direction: Direction, over: bool) {
        let full_duplex = self.session.body_mode(direction) == BodyMode::FullDuplexStreamed;
        let has_sink = self.flow(direction).sink.is_some();
        let sink = (full_duplex && !has_sink && !over)
            .then(|| self.session.body(direction))
            .flatten();
        let flow = self.flow(direction);
        flow.begun = true;
        flow.over |= over;
        if sink.is_some() {
            flow.sink = sink;
        }
    }

    /// Whether a clean end now lets everything pass, and loses nothing.
    fn may_close(&self) -> bool {
        [Direction::Request, Direction::Response]
            .into_iter()
            .zip(&self.flows)
            .all(|(direction, flow)| {
                let full_duplex = self.session.body_mode(direction) == BodyMode::FullDuplexStreamed;
                flow.over || !(flow.has_body || full_duplex && flow.begun)
            })
    }

    /// The proxy has ended the exchange.
    fn ended(&self) {
        for flow in &self.flows {
            if !flow.over && !flow.carry.is_empty() && !self.session.is_observed() {
                let error = BodyError::Trailers;
                tracing::error!(%error, "the end of a body was lost");
                if let Some(metrics) = &self.settings.metrics {
                    metrics.cut_bodies.inc();
                }
            }
        }
    }

    /// Gives the reply that an unsuccessful handler leads to. `pass` passes on what came.
    fn stopped<R: Reply>(&mut self, reply: R, stop: Stop, pass: impl FnOnce(&mut Self, R)) -> Next {
        match stop {
            Stop::Respond(immediate) => {
                reply.respond(*immediate);
                Next::End(Ok(()))
            }
            Stop::Failed(error) => {
                tracing::error!(%error, "the processor failed");
                match self.settings.on_failure {
                    OnFailure::Report => {
                        reply.withhold();
                        // The error stays in our log: the proxy may show a status to callers.
                        Next::End(Err(Status::internal("the processor failed")))
                    }
                    OnFailure::Respond(status) => {
                        reply.respond(Immediate::new(status).details("processor_failed"));
                        Next::End(Ok(()))
                    }
                    OnFailure::Pass => {
                        pass(self, reply);
                        self.passing = true;
                        if self.may_close() {
                            return Next::End(Ok(()));
                        }
                        Next::Go
                    }
                }
            }
        }
    }

    fn lend_exchange(&mut self) -> Exchange {
        std::mem::take(self.session.exchange_mut())
    }

    async fn headers(&mut self, phase: HeadersPhase) -> Next {
        let HeadersPhase {
            direction,
            mut headers,
            end_of_stream,
            mut reply,
        } = phase;
        let had_length = headers.had_length();
        let mode = self.session.body_mode(direction);
        if had_length
            && !end_of_stream
            && self.settings.proxy.allow_content_length_header
            && mode.hides_length()
        {
            headers.remove_length();
        }
        let announces_trailers = !end_of_stream && headers.announces_trailers();
        let exchange = self.lend_exchange();
        let (result, clear_route_cache, mut given) = match direction {
            Direction::Request => {
                let mut head =
                    RequestHead::new(headers, end_of_stream, exchange, reply.overrides());
                let handler = self.processor.request_headers(&mut head);
                let result = guard(Part::RequestHeaders, handler, &reply, &self.settings).await;
                (result, head.clear_route_cache, head.given())
            }
            Direction::Response => {
                let mut head =
                    ResponseHead::new(headers, end_of_stream, exchange, reply.overrides());
                let handler = self.processor.response_headers(&mut head);
                let result = guard(Part::ResponseHeaders, handler, &reply, &self.settings).await;
                (result, false, head.given())
            }
        };
        if let Some(metadata) = given.exchange.take_outgoing() {
            reply.add_metadata(metadata);
        }
        *self.session.exchange_mut() = given.exchange;
        let changes = result.and_then(|()| {
            if let Some(modes) = given.modes {
                reply.override_modes(modes)?;
            }
            Ok(given.headers.take_changes()?)
        });
        let changes = match changes {
            Ok(changes) => changes,
            Err(stop) => return self.stopped(reply, stop, |_, reply| reply.pass()),
        };
        let flow = self.flow(direction);
        flow.announces_trailers = announces_trailers;
        flow.has_length = had_length && !changes.removes(&header::CONTENT_LENGTH);
        match given.new_body {
            Some(body) => {
                // The proxy sends the new body itself, and shows nothing of the old.
                flow.over = true;
                flow.sink = None;
                reply.replace_body(changes, clear_route_cache, body);
            }
            None => reply.change(changes, clear_route_cache),
        }
        Next::Go
    }

    async fn body(&mut self, phase: BodyPhase) -> Next {
        let BodyPhase {
            direction,
            data,
            end_of_stream,
            reply,
        } = phase;
        let mode = self.session.body_mode(direction);
        let flow = self.flow(direction);
        let extent = match mode {
            _ if end_of_stream => Extent::Last,
            BodyMode::Buffered => Extent::Last,
            BodyMode::BufferedPartial => Extent::Beginning,
            _ => Extent::Piece,
        };
        let again = flow.over && mode == BodyMode::Buffered;
        let only = !std::mem::replace(&mut flow.has_body, true) && extent == Extent::Last;
        flow.over |= extent != Extent::Piece;
        if self.passing {
            self.output(direction, None, data, end_of_stream, only, reply);
            return Next::Go;
        }
        if again {
            let stop = BodyError::NotBuffered.into();
            return self.stopped(reply, stop, |_, reply| reply.pass());
        }
        let (output, data) = match self.handle_body(direction, data, extent, &reply).await {
            Ok(outcome) => outcome,
            Err((stop, came)) => {
                return self.stopped(reply, stop, |this, reply| {
                    this.output(
                        direction,
                        Some(came.clone()),
                        came,
                        end_of_stream,
                        only,
                        reply,
                    );
                });
            }
        };
        self.output(direction, output, data, end_of_stream, only, reply);
        Next::Go
    }

    /// Asks the processor about a piece: what goes on instead, if that differs, and what came.
    async fn handle_body(
        &mut self,
        direction: Direction,
        data: Bytes,
        extent: Extent,
        reply: &impl Reply,
    ) -> std::result::Result<(Option<Bytes>, Bytes), (Stop, Bytes)> {
        let exchange = self.lend_exchange();
        let streamed = self.session.body_mode(direction) == BodyMode::Streamed;
        let [request, response] = &mut self.flows;
        let (part, flow) = match direction {
            Direction::Request => (Part::RequestBody, request),
            Direction::Response => (Part::ResponseBody, response),
        };
        let limit = self.settings.max_body;
        let cut = streamed && flow.announces_trailers;
        let mut body = Body::new(data.clone(), extent, &mut flow.carry, limit, exchange)
            .announcing_trailers(cut);
        let result = match direction {
            Direction::Request => {
                let handler = self.processor.request_body(&mut body);
                guard(part, handler, reply, &self.settings).await
            }
            Direction::Response => {
                let handler = self.processor.response_body(&mut body);
                guard(part, handler, reply, &self.settings).await
            }
        };
        let result = result.and_then(|()| Ok(body.check()?));
        let (exchange, outcome) = match result {
            Ok(()) => {
                let (exchange, output) = body.into_output();
                (exchange, Ok((output, data)))
            }
            Err(stop) => {
                let (exchange, came) = body.into_input();
                (exchange, Err((stop, came)))
            }
        };
        *self.session.exchange_mut() = exchange;
        outcome
    }

    /// Sends what goes on of a piece.
    fn output(
        &mut self,
        direction: Direction,
        output: Option<Bytes>,
        came: Bytes,
        end_of_stream: bool,
        only: bool,
        mut reply: BodyReply,
    ) {
        if let Some(metadata) = self.session.exchange_mut().take_outgoing() {
            reply.add_metadata(metadata);
        }
        let holds_head = self.session.body_mode(direction).holds_head();
        let flow = self.flow(direction);
        if let Some(mut sink) = flow.sink.take() {
            let data = output.unwrap_or(came);
            if end_of_stream {
                sink.finish_with(data);
            } else {
                // The exchange may be over by now; then nobody waits for it.
                let _ = sink.push(data);
                flow.sink = Some(sink);
            }
            return;
        }
        let Some(data) = output else {
            reply.pass();
            return;
        };
        let mut changes = Changes::default();
        if only && holds_head && flow.has_length && data.len() != came.len() {
            changes.replace(header::CONTENT_LENGTH, Some(HeaderValue::from(data.len())));
        }
        reply.replace_anyway(data, changes);
    }

    async fn trailers(&mut self, phase: TrailersPhase) -> Next {
        let TrailersPhase {
            direction,
            trailers,
            mut reply,
        } = phase;
        let flow = self.flow(direction);
        let ends_body = flow.has_body && !flow.over && flow.sink.is_some();
        flow.over = true;
        if ends_body && !self.passing {
            match self
                .handle_body(direction, Bytes::new(), Extent::Last, &reply)
                .await
            {
                Ok((output, _)) => {
                    if let (Some(output), Some(sink)) = (output, &mut self.flow(direction).sink) {
                        let _ = sink.push(output);
                    }
                }
                Err((stop, came)) => {
                    return self.stopped(reply, stop, |this, reply| {
                        if let Some(mut sink) = this.flow(direction).sink.take() {
                            let _ = sink.push(came);
                            sink.finish();
                        }
                        reply.pass();
                    });
                }
            }
        }
        if let Some(sink) = self.flow(direction).sink.take() {
            sink.finish();
        }
        if self.passing {
            return Next::Go;
        }
        if !self.flow(direction).carry.is_empty() && !self.session.is_observed() {
            let stop = BodyError::Trailers.into();
            return self.stopped(reply, stop, |_, reply| reply.pass());
        }
        let mut trailers = Trailers::new(trailers, self.lend_exchange());
        let result = match direction {
            Direction::Request => {
                let handler = self.processor.request_trailers(&mut trailers);
                guard(Part::RequestTrailers, handler, &reply, &self.settings).await
            }
            Direction::Response => {
                let handler = self.processor.response_trailers(&mut trailers);
                guard(Part::ResponseTrailers, handler, &reply, &self.settings).await
            }
        };
        let Trailers {
            mut headers,
            mut exchange,
        } = trailers;
        if let Some(metadata) = exchange.take_outgoing() {
            reply.add_metadata(metadata);
        }
        *self.session.exchange_mut() = exchange;
        match result.and_then(|()| Ok(headers.take_changes()?)) {
            Ok(changes) => {
                reply.change(changes);
                Next::Go
            }
            Err(stop) => self.stopped(reply, stop, |_, reply| reply.pass()),
        }
    }
}
