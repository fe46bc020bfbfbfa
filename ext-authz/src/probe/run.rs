//! Makes checks over the network.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use attache_proto::auth::CheckResponse;
use attache_service::{
    Channel, Method,
    probe::{self, NotServed},
};
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue};
use prost::Message as _;
use tokio::time::{Instant, timeout};
use tonic::{Code as GrpcCode, Status};

use super::{
    case::{Case, Content, Kin, cases},
    code::{Code, Finding},
    judge::{Answered, judge},
    report::{CaseReport, Report},
};
use crate::server::SERVICE_NAME;

/// Turns that the connection gets to send a check before its client goes away.
const TURNS: usize = 8;
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// What to ask, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The cases. Default: all of [`cases`].
    pub cases: Vec<Case>,
    /// `timeout` of the filter's `grpc_service`, which is the deadline of each call. Default
    /// 200 ms.
    pub timeout: Duration,
    /// How long to wait for an answer that is late. Default 2 s; not less than the timeout.
    pub hang_timeout: Duration,
    /// Metadata of each call (`initial_metadata`).
    pub metadata: HeaderMap,
}

impl Plan {
    /// All cases with this content, and defaults.
    pub fn new(content: &Content) -> Self {
        Self {
            cases: cases(content),
            timeout: Duration::from_millis(200),
            hang_timeout: Duration::from_secs(2),
            metadata: HeaderMap::new(),
        }
    }
}

/// Makes every check of the plan, one case after the other. `done` is told of each.
///
/// # Errors
/// When there is no connection, or no auth service behind it.
pub async fn run(
    channel: &Channel,
    plan: &Plan,
    mut done: impl FnMut(&CaseReport),
) -> Result<Report, NotServed> {
    let server = probe::server(channel, SERVICE_NAME, &plan.metadata, plan.hang_timeout).await?;
    let mut report = Report {
        server,
        cases: Vec::new(),
    };
    let mut plain = None;
    for case in &plan.cases {
        let mut played = match case.leaves {
            true => leave(channel, plan, case).await,
            false => play(channel, plan, case).await?,
        };
        match (case.kin, plain) {
            (Kin::Other, None) => plain = Some(played.answered),
            (kin, Some(plain)) => played
                .findings
                .extend(compared(kin, plain, played.answered)),
            (Kin::Same | Kin::Spelling, None) => {}
        }
        done(&played);
        report.cases.push(played);
    }
    Ok(report)
}

/// What is odd about a decision beside that on the plain request.
fn compared(kin: Kin, plain: Answered, answered: Answered) -> Option<Finding> {
    let decided = |answered| {
        matches!(
            answered,
            Answered::Allowed | Answered::Denied(_) | Answered::Error(_)
        )
    };
    if !decided(plain) || !decided(answered) {
        return None;
    }
    let did = format!("The plain request was {plain}, this one {answered}.");
    match kin {
        Kin::Same if plain != answered => Some(Code::Encoding.because(did)),
        Kin::Spelling if plain != Answered::Allowed && answered == Answered::Allowed => {
            Some(Code::Spelling.because(did))
        }
        Kin::Same | Kin::Spelling | Kin::Other => None,
    }
}

async fn play(channel: &Channel, plan: &Plan, case: &Case) -> Result<CaseReport, NotServed> {
    let message = case.request.encode_to_vec();
    let begun = Instant::now();
    let asked = (0..case.times).map(|_| ask(channel, plan, &message));
    let answers = join_all(asked).await;
    let mut report = CaseReport {
        name: case.name,
        about: case.about,
        answered: Answered::Nothing,
        duration: begun.elapsed(),
        latencies: Vec::new(),
        findings: Vec::new(),
    };
    for (answer, took) in answers {
        let (answered, findings) = match answer {
            None => {
                let did = format!("It did not answer within {:?}.", plan.patience());
                (Answered::Nothing, vec![Code::NoAnswer.because(did)])
            }
            Some(Err(status)) if status.code() == GrpcCode::Unimplemented => {
                let why = status.message().to_owned();
                return Err(NotServed::Unimplemented(SERVICE_NAME, why));
            }
            Some(Err(status)) => (Answered::Failed(status.code()), vec![failed(&status)]),
            Some(Ok(bytes)) => match CheckResponse::decode(bytes) {
                Err(error) => {
                    let did = format!("It sent what is no CheckResponse: {error}.");
                    (Answered::Nothing, vec![Code::NotReadable.because(did)])
                }
                Ok(response) => {
                    report.latencies.push(took);
                    judge(&case.request, &response)
                }
            },
        };
        report.answered = answered;
        for finding in findings {
            if !report.findings.contains(&finding) {
                report.findings.push(finding);
            }
        }
        if took > plan.timeout && answered != Answered::Nothing {
            let late = Code::LateAnswer;
            if !report.findings.iter().any(|finding| finding.code == late) {
                let did = format!("It answered after more than {:?}.", plan.timeout);
                report.findings.push(late.because(did));
            }
        }
    }
    Ok(report)
}

impl Plan {
    fn patience(&self) -> Duration {
        self.hang_timeout.max(self.timeout)
    }

    /// Metadata of a call, with the deadline that Envoy would send, though the probe waits longer.
    fn call(&self) -> HeaderMap {
        let mut metadata = self.metadata.clone();
        let micros = self.timeout.as_micros().min(99_999_999);
        if let Ok(value) = HeaderValue::try_from(format!("{micros}u")) {
            metadata.insert("grpc-timeout", value);
        }
        metadata
    }
}

/// The answer and how long it took; `None` when there was none.
async fn ask(
    channel: &Channel,
    plan: &Plan,
    message: &[u8],
) -> (Option<Result<bytes::Bytes, Status>>, Duration) {
    let method = Method::new(CHECK);
    let begun = Instant::now();
    let answer = channel.unary(&method, message, plan.call(), None);
    let answer = timeout(plan.patience(), answer).await.ok();
    (answer, begun.elapsed())
}

fn failed(status: &Status) -> Finding {
    let did = format!(
        "The call failed: {:?}, `{}`.",
        status.code(),
        status.message()
    );
    match status.code() {
        GrpcCode::PermissionDenied | GrpcCode::Unauthenticated => Code::RpcDenial.because(did),
        _ => Code::RpcError.because(did),
    }
}

/// Goes away as soon as the check is sent, and sees whether the next one is answered.
async fn leave(channel: &Channel, plan: &Plan, case: &Case) -> CaseReport {
    let message = case.request.encode_to_vec();
    let begun = Instant::now();
    {
        let mut asked = pin!(ask(channel, plan, &message));
        for _ in 0..TURNS {
            let answered = poll_fn(|cx| Poll::Ready(asked.as_mut().poll(cx).is_ready())).await;
            if answered {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let (answer, _) = ask(channel, plan, &message).await;
    let findings = match answer {
        Some(Ok(_)) => Vec::new(),
        // It is alive, whatever else is wrong with it.
        Some(Err(status)) if status.code() != GrpcCode::Unavailable => vec![failed(&status)],
        Some(Err(_)) | None => {
            let did = "It did not answer the check after one that was cancelled.";
            vec![Code::DeadAfterCancel.because(did)]
        }
    };
    CaseReport {
        name: case.name,
        about: case.about,
        answered: Answered::Nothing,
        duration: begun.elapsed(),
        latencies: Vec::new(),
        findings,
    }
}
