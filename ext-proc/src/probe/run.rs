//! Plays cases against a processor over the network.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use attache_proto::ext_proc::ProcessingResponse;
use attache_service::{
    Channel, GrpcStream, Method,
    channel::encode_message,
    probe::{self, NotServed},
};
use bytes::Bytes;
use http::HeaderMap;
use prost::Message;
use tokio::time::{Instant, timeout};
use tonic::{Code as GrpcCode, Status};

use super::{
    case::{Case, Content, cases},
    check::{Checker, Setup},
    code::Code,
    event::{Event, Phase, Timed},
    player::{Action, Player},
    report::{CaseReport, Report},
};

pub(super) const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
const SERVICE: &str = "envoy.service.ext_proc.v3.ExternalProcessor";
/// How long a processor may take to end a stream that the proxy has half-closed: after a second
/// Envoy resets it.
const END_GRACE: Duration = Duration::from_secs(1);

/// What to play, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the played filter is configured to.
    pub setup: Setup,
    /// What requests and responses are made of.
    pub content: Content,
    /// The cases. Default: all of [`cases`].
    pub cases: Vec<Case>,
    /// How long to wait for a processor that does nothing. Default 2 s; not less than the
    /// message timeout.
    pub hang_timeout: Duration,
    /// Metadata of each stream (`initial_metadata`).
    pub metadata: HeaderMap,
}

impl Plan {
    /// All cases with this content, and defaults.
    pub fn new(content: Content) -> Self {
        Self {
            setup: Setup::default(),
            cases: cases(&content),
            content,
            hang_timeout: Duration::from_secs(2),
            metadata: HeaderMap::new(),
        }
    }
}

/// Plays every case of the plan, one after the other, each on a stream of its own. `done` is
/// told of each.
///
/// # Errors
/// When there is no connection, or no processor behind it.
pub async fn run(
    channel: &Channel,
    plan: &Plan,
    mut done: impl FnMut(&CaseReport),
) -> Result<Report, NotServed> {
    let server = probe::server(channel, SERVICE, &plan.metadata, plan.hang_timeout).await?;
    let mut report = Report {
        server,
        cases: Vec::new(),
    };
    for case in &plan.cases {
        let mut played = play(channel, plan, case).await;
        if let Some(why) = played.unimplemented.take() {
            return Err(NotServed::Unimplemented(SERVICE, why));
        }
        if case.leaves && !is_alive(channel, plan).await {
            let did = "It did not answer the exchange after one that was reset.";
            let at = played.report.duration;
            played
                .report
                .findings
                .push(Code::DeadAfterReset.at(at, Phase::Stream, did));
        }
        done(&played.report);
        report.cases.push(played.report);
    }
    Ok(report)
}

/// Whether a simple exchange is answered.
async fn is_alive(channel: &Channel, plan: &Plan) -> bool {
    let Some(case) = cases(&plan.content).into_iter().next() else {
        return true;
    };
    let played = play(channel, plan, &case).await;
    let dead = [Code::ErrorStatus, Code::NoReply, Code::NotReading];
    !played
        .report
        .findings
        .iter()
        .any(|finding| dead.contains(&finding.code))
}

struct Played {
    report: CaseReport,
    /// The method is not there.
    unimplemented: Option<String>,
}

/// What the processor did while the proxy looked.
enum Seen {
    Message(Bytes),
    Ended(GrpcCode, String),
}

impl Seen {
    fn of(message: Option<Result<Bytes, Status>>) -> Self {
        match message {
            Some(Ok(message)) => Self::Message(message),
            Some(Err(status)) => Self::Ended(status.code(), status.message().to_owned()),
            None => Self::Ended(GrpcCode::Ok, String::new()),
        }
    }
}

/// An exchange while it is played.
struct Exchange {
    stream: GrpcStream,
    checker: Checker,
    opened: Instant,
    sent: usize,
    received: usize,
    ended: Option<(GrpcCode, String)>,
}

impl Exchange {
    fn note(&mut self, event: Event) {
        let at = self.opened.elapsed();
        self.checker.event(&Timed { at, event });
    }

    fn see(&mut self, seen: Seen) {
        match seen {
            Seen::Message(bytes) => {
                self.received += 1;
                self.note(match ProcessingResponse::decode(bytes) {
                    Ok(message) => Event::Received(Box::new(message)),
                    Err(error) => Event::Undecodable(error.to_string()),
                });
            }
            Seen::Ended(code, message) => {
                self.ended = Some((code, message.clone()));
                self.note(Event::Ended(code, message));
            }
        }
    }

    /// Takes in what is there already.
    async fn catch_up(&mut self) {
        while self.ended.is_none() {
            let poll = poll_fn(|cx| Poll::Ready(self.stream.poll_message(cx))).await;
            match poll {
                Poll::Ready(message) => self.see(Seen::of(message)),
                Poll::Pending => return,
            }
        }
    }

    /// Waits until there is room for a message, taking in what comes meanwhile. Gives false when
    /// something came, so that the next step is thought over.
    async fn room(&mut self, patience: Duration) -> bool {
        let ready = |stream: &mut GrpcStream, cx: &mut Context<'_>| {
            if let Poll::Ready(message) = stream.poll_message(cx) {
                return Poll::Ready(Some(Seen::of(message)));
            }
            stream.poll_capacity(cx).map(|()| None)
        };
        match timeout(patience, poll_fn(|cx| ready(&mut self.stream, cx))).await {
            Ok(None) => true,
            Ok(Some(seen)) => {
                self.see(seen);
                false
            }
            Err(_) => {
                self.note(Event::Stuck);
                self.ended = Some((GrpcCode::Ok, String::new()));
                false
            }
        }
    }

    /// Waits for the processor to do something; false when it did not.
    async fn wait(&mut self, patience: Duration) -> bool {
        let message = timeout(patience, poll_fn(|cx| self.stream.poll_message(cx))).await;
        match message {
            Ok(message) => {
                self.see(Seen::of(message));
                true
            }
            Err(_) => {
                self.note(Event::GaveUp);
                false
            }
        }
    }
}

async fn play(channel: &Channel, plan: &Plan, case: &Case) -> Played {
    let method = Method::new(PROCESS);
    let mut exchange = Exchange {
        stream: channel.stream(&method, plan.metadata.clone()),
        checker: Checker::new(plan.setup.clone()),
        opened: Instant::now(),
        sent: 0,
        received: 0,
        ended: None,
    };
    let patience = plan.hang_timeout.max(plan.setup.message_timeout);
    let mut player = Player::new(case);
    let mut next = None;
    while exchange.ended.is_none() {
        exchange.catch_up().await;
        if exchange.ended.is_some() {
            break;
        }
        let action = match next.take() {
            Some(action) if !exchange.checker.is_over() => action,
            _ => player.next(&exchange.checker),
        };
        match action {
            Action::Send(message) => {
                if !exchange.room(patience).await {
                    next = Some(Action::Send(message));
                    continue;
                }
                exchange.sent += 1;
                exchange.stream.send(encode_message(&*message));
                exchange.note(Event::Sent(message));
            }
            Action::Wait => {
                if !exchange.wait(patience).await {
                    break;
                }
            }
            Action::Finish => {
                exchange.stream.finish();
                exchange.note(Event::HalfClosed);
                while exchange.ended.is_none() && exchange.wait(END_GRACE).await {}
                break;
            }
            Action::Leave => {
                exchange.note(Event::Left);
                break;
            }
        }
    }
    let unimplemented = match exchange.ended {
        Some((GrpcCode::Unimplemented, why)) if exchange.received == 0 => Some(why),
        _ => None,
    };
    Played {
        report: CaseReport {
            name: case.name,
            about: case.about,
            sent: exchange.sent,
            received: exchange.received,
            duration: exchange.opened.elapsed(),
            latencies: exchange.checker.latencies().to_vec(),
            findings: exchange.checker.into_findings(),
        },
        unimplemented,
    }
}
