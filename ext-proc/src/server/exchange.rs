//! Runs a processor over a session.

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::Duration,
};

use attache_proto::ext_proc_filter::processing_mode::BodySendMode;
use http::{HeaderValue, header};
use tonic::Status;

use super::{
    body::{Body, BodyError, Extent, Gathered},
    head::{RequestHead, ResponseHead, Trailers, will_have_length},
    headers::Changes,
    immediate::Immediate,
    processor::{Processor, Result, Stop},
    session::{BodyPhase, Direction, HeadersPhase, Phase, Session, TrailersPhase},
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
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) on_failure: OnFailure,
    pub(super) deadline: Duration,
    pub(super) max_body: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            on_failure: OnFailure::default(),
            deadline: Duration::from_secs(10),
            max_body: 4 << 20,
        }
    }
}

/// What is known of one direction between its phases.
#[derive(Default)]
struct Flow {
    /// The head that goes on has a `content-length`.
    has_length: bool,
    gathered: Gathered,
}

/// How a phase leaves the exchange.
enum Next {
    Go,
    End(std::result::Result<(), Status>),
}

pub(super) async fn run<P: Processor>(
    mut session: Session,
    mut processor: P,
    settings: Settings,
) -> std::result::Result<(), Status> {
    let mut request = Flow::default();
    let mut response = Flow::default();
    while let Some(phase) = session.next().await {
        let direction = match &phase {
            Phase::Headers(phase) => phase.direction,
            Phase::Body(phase) => phase.direction,
            Phase::Trailers(phase) => phase.direction,
        };
        let flow = match direction {
            Direction::Request => &mut request,
            Direction::Response => &mut response,
        };
        let next = match phase {
            Phase::Headers(phase) => headers(&mut processor, phase, flow, settings).await,
            Phase::Body(phase) => {
                let mode = session.body_mode(direction);
                body(&mut processor, phase, flow, mode, settings).await
            }
            Phase::Trailers(phase) => trailers(&mut processor, phase, flow, settings).await,
        };
        if let Next::End(result) = next {
            return result;
        }
    }
    Ok(())
}

/// Gives the reply that an unsuccessful handler leads to.
macro_rules! stopped {
    ($reply:expr, $stop:expr, $settings:expr) => {
        match judge($stop, $settings) {
            Judgement::Respond(immediate) => {
                $reply.respond(*immediate);
                Next::End(Ok(()))
            }
            Judgement::End(result) => {
                $reply.withhold();
                Next::End(result)
            }
        }
    };
}

async fn headers<P: Processor>(
    processor: &mut P,
    phase: HeadersPhase,
    flow: &mut Flow,
    settings: Settings,
) -> Next {
    let declares = |fields: &[_]| will_have_length(fields, &Changes::default());
    let had_length = declares(&phase.headers);
    let (result, mut headers, clear_route_cache, new_body) = match phase.direction {
        Direction::Request => {
            let mut head = RequestHead::new(phase.headers, phase.end_of_stream);
            let result = guard(processor.request_headers(&mut head), settings).await;
            (result, head.headers, head.clear_route_cache, head.new_body)
        }
        Direction::Response => {
            let mut head = ResponseHead::new(phase.headers, phase.end_of_stream);
            let result = guard(processor.response_headers(&mut head), settings).await;
            (result, head.headers, false, head.new_body)
        }
    };
    if let Err(stop) = result {
        return stopped!(phase.reply, stop, settings);
    }
    let changes = headers.take_changes();
    flow.has_length = if changes.touches(&header::CONTENT_LENGTH) {
        changes.value(&header::CONTENT_LENGTH).is_some()
    } else {
        had_length
    };
    let replied = match new_body {
        Some(body) => phase.reply.replace_body(changes, clear_route_cache, body),
        None => phase.reply.change(changes, clear_route_cache),
    };
    after(replied, settings)
}

async fn body<P: Processor>(
    processor: &mut P,
    phase: BodyPhase,
    flow: &mut Flow,
    mode: BodySendMode,
    settings: Settings,
) -> Next {
    let whole = mode == BodySendMode::Buffered;
    let extent = match mode {
        _ if phase.end_of_stream || whole => Extent::Last,
        BodySendMode::BufferedPartial => Extent::Beginning,
        _ => Extent::Piece,
    };
    let length = phase.data.len();
    let mut body = Body::new(phase.data, extent, &mut flow.gathered, settings.max_body);
    let result = match phase.direction {
        Direction::Request => guard(processor.request_body(&mut body), settings).await,
        Direction::Response => guard(processor.response_body(&mut body), settings).await,
    };
    if let Err(stop) = result {
        return stopped!(phase.reply, stop, settings);
    }
    let Some(data) = body.into_output() else {
        phase.reply.pass();
        return Next::Go;
    };
    let mut changes = Changes::default();
    if whole && flow.has_length && data.len() != length {
        changes.replace(header::CONTENT_LENGTH, Some(HeaderValue::from(data.len())));
    }
    after(phase.reply.replace(data, changes), settings)
}

async fn trailers<P: Processor>(
    processor: &mut P,
    phase: TrailersPhase,
    flow: &mut Flow,
    settings: Settings,
) -> Next {
    if !flow.gathered.bytes.is_empty() {
        return stopped!(phase.reply, BodyError::Trailers.into(), settings);
    }
    let mut trailers = Trailers::new(phase.trailers);
    let result = match phase.direction {
        Direction::Request => guard(processor.request_trailers(&mut trailers), settings).await,
        Direction::Response => guard(processor.response_trailers(&mut trailers), settings).await,
    };
    match result {
        Err(stop) => stopped!(phase.reply, stop, settings),
        Ok(()) => after(
            phase.reply.change(trailers.headers.take_changes()),
            settings,
        ),
    }
}

/// A reply was refused before it was sent: the handler is at fault.
fn after<E>(replied: std::result::Result<(), E>, settings: Settings) -> Next
where
    E: std::error::Error + Send + Sync + 'static,
{
    match replied {
        Ok(()) => Next::Go,
        Err(error) => match judge(error.into(), settings) {
            // The message has passed already: only ending the stream is left.
            Judgement::Respond(_) => Next::End(Err(Status::internal("the processor failed"))),
            Judgement::End(result) => Next::End(result),
        },
    }
}

enum Judgement {
    Respond(Box<Immediate>),
    /// The stream ends; OK lets everything pass.
    End(std::result::Result<(), Status>),
}

fn judge(stop: Stop, settings: Settings) -> Judgement {
    match stop {
        Stop::Respond(immediate) => Judgement::Respond(immediate),
        Stop::Failed(error) => {
            tracing::error!(%error, "the processor failed");
            match settings.on_failure {
                // The error stays in our log: the proxy may show a status to callers.
                OnFailure::Report => Judgement::End(Err(Status::internal("the processor failed"))),
                OnFailure::Pass => Judgement::End(Ok(())),
                OnFailure::Respond(status) => {
                    let answer = Immediate::new(status).details("processor_failed");
                    Judgement::Respond(Box::new(answer))
                }
            }
        }
    }
}

/// A handler that did not come back.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the handler panicked: {0}")]
    Panicked(String),
    #[error("the handler took longer than {0:?}")]
    TimedOut(Duration),
}

/// Runs a handler: a panic or running out of time is a failure like any other.
async fn guard(handler: impl Future<Output = Result> + Send, settings: Settings) -> Result {
    let mut handler = pin!(handler);
    let caught = std::future::poll_fn(|cx| {
        match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => Poll::Ready(Err(Lost::Panicked(panic_message(&*panic)).into())),
        }
    });
    match tokio::time::timeout(settings.deadline, caught).await {
        Ok(result) => result,
        Err(_) => Err(Lost::TimedOut(settings.deadline).into()),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.map(str::to_owned)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
