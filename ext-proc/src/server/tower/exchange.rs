//! Runs a stack of middleware over a session.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ::tower::{BoxError, Service, ServiceExt};
use http::{Method, Request, Response, StatusCode, response};
use http_body::Body as HttpBody;
use tokio::sync::oneshot;
use tonic::Status;

use super::{
    ClearRouteCache,
    answer::Answer,
    body::{Body, Output},
    fault::Fault,
    half::{Half, Shown},
    head::{self, HeadError},
    next::{Forwarded, Way},
};
use crate::server::{
    Immediate,
    guard::panic_message,
    runner::{OnFailure, Settings},
    session::{BodyMode, Direction, HeadersPhase, HeadersReply, Phase, Session},
};

/// Runs one exchange.
pub(super) async fn run<S, B>(
    mut session: Session,
    service: S,
    settings: Arc<Settings>,
) -> Result<(), Status>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: HttpBody + Send + 'static,
    B::Error: Into<BoxError>,
{
    let Some(phase) = session.next().await else {
        return Ok(());
    };
    let phase = match phase {
        Phase::Headers(phase) if phase.direction == Direction::Request => phase,
        _ => {
            let fault = Fault::NoHead(Direction::Request);
            return failed(fault, &session, &settings, false);
        }
    };
    let (half, body) = half(&session, phase, &settings);
    let mut request = match head::request(&half.headers, body) {
        Ok(request) => request,
        // What a server of HTTP would answer.
        Err(HeadError::Invalid(_)) => {
            session.respond(Immediate::new(400));
            return Ok(());
        }
        Err(error) => return failed(error.into(), &session, &settings, false),
    };
    let (way, sent_on) = Way::new();
    request.extensions_mut().insert(way);
    let mut exchange = Exchange {
        is_head: request.method() == Method::HEAD,
        session,
        settings,
        request: half,
        response: None,
        sent_on: Some(sent_on),
        respond: None,
        answer: None,
        abandoned: false,
        held: None,
        draining: false,
    };
    let mut call = pin!(Some(service.oneshot(request)));
    let result = exchange.run(call.as_mut()).await;
    result.or_else(|fault| exchange.failed(fault))
}

fn half(session: &Session, phase: HeadersPhase, settings: &Settings) -> (Half, Body) {
    let direction = phase.direction;
    let shown = Shown {
        mode: match session.body_mode(direction) {
            // What is only observed is not told how it is shown: pieces may come or not.
            BodyMode::None if session.is_observed() => BodyMode::Streamed,
            mode => mode,
        },
        impatient: session.sends_body_early() || session.is_observed(),
        limit: settings.max_body,
    };
    let sink = match phase.end_of_stream {
        true => None,
        false => session.body(direction),
    };
    Half::new(phase, shown, sink)
}

struct Exchange {
    session: Session,
    settings: Arc<Settings>,
    is_head: bool,
    request: Half,
    response: Option<Half>,
    /// What the middleware gives to the next service.
    sent_on: Option<oneshot::Receiver<Box<Forwarded>>>,
    /// What the next service gives to the middleware.
    respond: Option<oneshot::Sender<Response<Body>>>,
    /// What the middleware answers without the next service.
    answer: Option<Answer>,
    /// A response came that no middleware waits for: it passes.
    abandoned: bool,
    /// The reply to its head, while another answer is on its way.
    held: Option<HeadersReply>,
    /// The server is ending.
    draining: bool,
}

impl Exchange {
    async fn run<C, B, E>(&mut self, mut call: Pin<&mut Option<C>>) -> Result<(), Fault>
    where
        C: Future<Output = Result<Response<B>, E>>,
        E: Into<BoxError>,
        B: HttpBody + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut drained = pin!(Some(self.session.drained()));
        let mut waited = Waited::default();
        loop {
            let limit = waited.next_limit(&self.settings);
            let step = poll_fn(|cx| {
                let step = match catch_unwind(AssertUnwindSafe(|| self.step(call.as_mut(), cx))) {
                    Ok(step) => step,
                    Err(panic) => Poll::Ready(Err(Fault::Panicked(panic_message(&*panic)))),
                };
                if step.is_pending()
                    && let Some(drain) = drained.as_mut().as_pin_mut()
                    && drain.poll(cx).is_ready()
                {
                    drained.set(None);
                    self.draining = true;
                }
                if step.is_pending() && self.draining && self.may_close() {
                    return Poll::Ready(Ok(Step::Over));
                }
                step
            });
            match tokio::time::timeout(limit, step).await {
                Ok(step) => match step? {
                    Step::Phase(phase) => self.phase(phase)?,
                    Step::Over => return Ok(()),
                },
                // The proxy, or what is behind it, takes its time.
                Err(_) if !self.owes() && self.has_room() => {}
                Err(_) => match waited.more(&self.settings) {
                    Some(time) => {
                        self.more_time(time);
                        continue;
                    }
                    None => return Err(Fault::TimedOut(self.settings.handler_timeout)),
                },
            }
            waited = Waited::default();
        }
    }

    fn more_time(&self, time: Duration) {
        self.request.more_time(time);
        if let Some(response) = &self.response {
            response.more_time(time);
        }
    }

    /// Whether a clean end now lets everything pass, and loses nothing.
    fn may_close(&self) -> bool {
        self.answer.is_none()
            && self.request.is_settled()
            && self.response.as_ref().is_none_or(Half::is_settled)
    }
}

/// How long was waited for a middleware, since the proxy showed something last.
#[derive(Default)]
struct Waited {
    asked_for_more: bool,
}

impl Waited {
    fn next_limit(&self, settings: &Settings) -> Duration {
        let whole = settings.handler_timeout;
        match settings.keep_alive() {
            Some((after, _)) if after >= whole => whole,
            Some((after, _)) if self.asked_for_more => whole - after,
            Some((after, _)) => after,
            None => whole,
        }
    }

    /// The time to ask the proxy for, once.
    fn more(&mut self, settings: &Settings) -> Option<Duration> {
        let (after, more) = settings.keep_alive()?;
        let first = !std::mem::replace(&mut self.asked_for_more, true);
        (first && after < settings.handler_timeout).then_some(more)
    }
}

/// What a step of the exchange leads to.
enum Step {
    Phase(Phase),
    Over,
}

impl Exchange {
    /// Lets everything go on as far as it can, until the proxy shows more.
    fn step<C, B, E>(
        &mut self,
        mut call: Pin<&mut Option<C>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Step, Fault>>
    where
        C: Future<Output = Result<Response<B>, E>>,
        E: Into<BoxError>,
        B: HttpBody + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.request.attend();
        if let Some(response) = &self.response {
            response.attend();
        }
        if let Some(running) = call.as_mut().as_pin_mut()
            && let Poll::Ready(result) = running.poll(cx)
        {
            call.set(None);
            let response = result.map_err(|error| Fault::Service(error.into()))?;
            let (head, body) = response.into_parts();
            self.answered(head, Output::new(body))?;
        }
        if let Some(sent_on) = &mut self.sent_on
            && let Poll::Ready(sent_on) = Pin::new(sent_on).poll(cx)
        {
            self.sent_on = None;
            // Else the stack is gone, and with it the way on.
            if let Ok(sent_on) = sent_on {
                self.send_on(*sent_on)?;
            }
        }
        if let Some(answer) = &mut self.answer
            && let Poll::Ready(sent) = answer.poll(&mut self.request, &self.session, cx)
        {
            return Poll::Ready(sent.map(|()| Step::Over));
        }
        self.request.drive(cx)?;
        if let Some(response) = &mut self.response {
            response.drive(cx)?;
        }
        if self.has_room() {
            match self.session.poll_next(cx) {
                Poll::Ready(Some(phase)) => return Poll::Ready(Ok(Step::Phase(phase))),
                Poll::Ready(None) => return Poll::Ready(Ok(Step::Over)),
                Poll::Pending => {}
            }
        }
        self.request.notify(cx.waker());
        if let Some(response) = &self.response {
            response.notify(cx.waker());
        }
        Poll::Pending
    }

    fn has_room(&self) -> bool {
        self.request.has_room() && self.response.as_ref().is_none_or(Half::has_room)
    }

    /// Whether the proxy waits for us.
    fn owes(&self) -> bool {
        self.answer.is_some()
            || self.request.owes()
            || self.response.as_ref().is_some_and(Half::owes)
    }

    /// The middleware calls what comes next.
    fn send_on(&mut self, sent_on: Forwarded) -> Result<(), Fault> {
        let Forwarded {
            head,
            body,
            respond,
        } = sent_on;
        head::note_request(&mut self.request.headers, &head)?;
        self.request.clear_route_cache = head.extensions.get::<ClearRouteCache>().is_some();
        self.request.decided(body);
        self.respond = Some(respond);
        Ok(())
    }

    /// The middleware answers: with what came of the next service, or by itself.
    fn answered(&mut self, head: response::Parts, body: Output) -> Result<(), Fault> {
        match &mut self.response {
            Some(response) => {
                head::note_response(&mut response.headers, &head)?;
                response.bare |= bodiless(head.status);
                response.decided(body);
            }
            None => {
                let answer = Answer::new(head, body, self.is_head, self.settings.max_body);
                self.answer = Some(answer);
            }
        }
        Ok(())
    }

    /// The proxy shows more.
    fn phase(&mut self, phase: Phase) -> Result<(), Fault> {
        match phase {
            Phase::Headers(phase) if phase.direction == Direction::Response => {
                self.response_headers(phase)
            }
            Phase::Headers(phase) => {
                phase.reply.pass();
                Ok(())
            }
            Phase::Body(phase) => {
                match self.half(phase.direction)? {
                    Some(half) => half.piece(phase),
                    None => phase.reply.pass(),
                }
                Ok(())
            }
            Phase::Trailers(phase) => {
                match self.half(phase.direction)? {
                    Some(half) => half.trailers(phase),
                    None => phase.reply.pass(),
                }
                Ok(())
            }
        }
    }

    /// A direction of which the body goes on; none when it passes.
    fn half(&mut self, direction: Direction) -> Result<Option<&mut Half>, Fault> {
        match (direction, &mut self.response) {
            (Direction::Request, _) => Ok(Some(&mut self.request)),
            (Direction::Response, Some(response)) => Ok(Some(response)),
            (Direction::Response, None) if self.abandoned => Ok(None),
            (Direction::Response, None) => Err(Fault::NoHead(direction)),
        }
    }

    fn response_headers(&mut self, phase: HeadersPhase) -> Result<(), Fault> {
        let respond = match self.respond.take() {
            // The middleware's own answer is on its way, and is to arrive first.
            _ if self.answer.is_some() => {
                self.abandoned = true;
                self.held = Some(phase.reply);
                return Ok(());
            }
            // What comes next was not asked: the proxy, or a filter of it, answered by itself.
            None => {
                self.abandoned = true;
                phase.reply.pass();
                return Ok(());
            }
            Some(respond) => respond,
        };
        let (mut half, body) = half(&self.session, phase, &self.settings);
        let response = head::response(&half.headers, body)?;
        half.bare = self.is_head || bodiless(response.status());
        self.response = Some(half);
        // A middleware that does not wait for it gives something else instead.
        let _ = respond.send(response);
        Ok(())
    }
}

/// Whether a response with this status has no body, whatever is said.
fn bodiless(status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

impl Exchange {
    /// A fault, in the way the server is set to.
    fn failed(&self, fault: Fault) -> Result<(), Status> {
        let changed = self.request.changed
            || self
                .response
                .as_ref()
                .is_some_and(|response| response.changed);
        failed(fault, &self.session, &self.settings, changed)
    }
}

fn failed(
    fault: Fault,
    session: &Session,
    settings: &Settings,
    changed: bool,
) -> Result<(), Status> {
    tracing::error!(%fault, "the processor failed");
    match settings.on_failure {
        OnFailure::Pass if !changed => Ok(()),
        OnFailure::Report | OnFailure::Pass => {
            // The fault stays in our log: the proxy may show a status to callers.
            session.fail(Status::internal("the processor failed"));
            Ok(())
        }
        OnFailure::Respond(status) => {
            session.respond(Immediate::new(status).details("processor_failed"));
            Ok(())
        }
    }
}
