//! Sends a recorded exchange to a processor and compares its answers with the recorded ones.

use std::{collections::BTreeMap, future::poll_fn, time::Duration};

use attache_proto::ext_proc::{
    BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, ProcessingResponse,
    body_mutation::Mutation, processing_response::Response,
};
use attache_service::{Channel, GrpcStream, Method, channel::encode_message};
use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;
use serde_json::Value;
use tokio::time::timeout;
use tonic::Code;

use super::{event::Event, event::Phase, recording::Recorded, run::PROCESS};
use crate::json;

/// How much of two unequal values is shown.
const SHOWN: usize = 60;

/// A place at which the answers are not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The part that the answer is about.
    pub phase: Phase,
    /// The place in the answer, such as `[0].response.status`.
    pub path: String,
    /// What was recorded; `None` if nothing was there.
    pub recorded: Option<String>,
    /// What came now; `None` if nothing did.
    pub now: Option<String>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(
            f,
            "{}{}: recorded {}, now {}",
            self.phase,
            self.path,
            shown(&self.recorded),
            shown(&self.now)
        )
    }
}

/// The processor cannot be reached.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

/// What came of an exchange.
#[derive(Debug, Default)]
struct Answers {
    responses: Vec<ProcessingResponse>,
    end: Option<(Code, String)>,
    /// Replies that are not pieces of a stream, and so come one for one.
    counted: usize,
}

impl Answers {
    fn take(&mut self, response: ProcessingResponse) {
        self.counted += usize::from(!is_streamed(&response));
        self.responses.push(response);
    }

    /// Whether nothing of these answers is missing in `self`.
    fn covers(&self, other: &Self) -> bool {
        self.counted >= other.counted
            && streams(&other.responses).iter().all(|(phase, recorded)| {
                let now = streams(&self.responses);
                now.get(phase)
                    .is_some_and(|now| now.1 >= recorded.1 && now.0.len() >= recorded.0.len())
            })
    }
}

/// Plays the proxy's side of an exchange: messages are sent in their order, each after the
/// answers that were there before it. Gives what differs.
///
/// `patience` bounds the wait for an answer.
///
/// # Errors
/// When there is no connection.
pub async fn replay(
    channel: &Channel,
    recorded: &Recorded,
    patience: Duration,
) -> Result<Vec<Difference>, Unreachable> {
    let mut stream = channel.stream(&Method::new(PROCESS), metadata(recorded));
    let mut now = Answers::default();
    let mut then = Answers::default();
    let mut closed_first = false;
    for timed in &recorded.events {
        match &timed.event {
            Event::Received(response) => then.take((**response).clone()),
            Event::Ended(code, message) => {
                then.end = Some((*code, message.clone()));
            }
            Event::Sent(message) => {
                wait(&mut stream, &mut now, patience, |now| {
                    now.counted >= then.counted
                })
                .await;
                if now.end.is_some() {
                    break;
                }
                stream.send(encode_message(&**message));
            }
            Event::HalfClosed => {
                wait(&mut stream, &mut now, patience, |now| now.covers(&then)).await;
                closed_first = true;
                stream.finish();
            }
            Event::Left => {
                closed_first = true;
                wait(&mut stream, &mut now, patience, |now| now.covers(&then)).await;
            }
            Event::Undecodable(_) | Event::GaveUp | Event::Stuck => {}
        }
    }
    let ends = then.end.is_some() && !closed_first;
    wait(&mut stream, &mut now, patience, |now| {
        now.covers(&then) && !ends
    })
    .await;
    if let Some((Code::Unavailable, why)) = &now.end
        && now.responses.is_empty()
        && !then.responses.is_empty()
    {
        return Err(Unreachable(why.clone()));
    }
    let mut differences = compare(&then.responses, &now.responses);
    // How a processor ends a stream that the proxy has closed is no answer.
    if !closed_first && then.end.as_ref().map(|end| end.0) != now.end.as_ref().map(|end| end.0) {
        let shown =
            |end: &Option<(Code, String)>| end.as_ref().map(|(code, _)| format!("{code:?}"));
        differences.push(Difference {
            phase: Phase::Stream,
            path: ".status".to_owned(),
            recorded: shown(&then.end),
            now: shown(&now.end),
        });
    }
    Ok(differences)
}

fn metadata(recorded: &Recorded) -> HeaderMap {
    let lines = recorded.metadata.iter().filter_map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(value).ok()?))
    });
    lines.collect()
}

/// Takes in answers until `enough`, the end of the stream, or the end of patience.
async fn wait(
    stream: &mut GrpcStream,
    answers: &mut Answers,
    patience: Duration,
    enough: impl Fn(&Answers) -> bool,
) {
    while answers.end.is_none() && !enough(answers) {
        match timeout(patience, poll_fn(|cx| stream.poll_message(cx))).await {
            Ok(Some(Ok(bytes))) => match ProcessingResponse::decode(bytes) {
                Ok(response) => answers.take(response),
                Err(error) => answers.end = Some((Code::Internal, error.to_string())),
            },
            Ok(Some(Err(status))) => {
                answers.end = Some((status.code(), status.message().to_owned()));
            }
            Ok(None) => answers.end = Some((Code::Ok, String::new())),
            Err(_) => return,
        }
    }
}

// ---- comparison

/// What differs between two series of answers, by what they mean.
pub fn compare(recorded: &[ProcessingResponse], now: &[ProcessingResponse]) -> Vec<Difference> {
    let mut differences = Vec::new();
    let (then, now) = (by_phase(recorded), by_phase(now));
    let phases: std::collections::BTreeSet<_> = then.keys().chain(now.keys()).collect();
    for phase in phases {
        let list = |map: &BTreeMap<Phase, Vec<Value>>| {
            Value::Array(map.get(phase).cloned().unwrap_or_default())
        };
        diff(
            *phase,
            String::new(),
            &list(&then),
            &list(&now),
            &mut differences,
        );
    }
    differences
}

/// The answers to each part, in their order, pieces of a stream put together.
fn by_phase(responses: &[ProcessingResponse]) -> BTreeMap<Phase, Vec<Value>> {
    let mut phases: BTreeMap<Phase, Vec<Value>> = BTreeMap::new();
    for response in responses.iter().filter(|response| !is_streamed(response)) {
        let value = meaning(response.clone());
        phases
            .entry(Phase::of_response(response))
            .or_default()
            .push(value);
    }
    for (phase, (body, end_of_stream)) in streams(responses) {
        let body = String::from_utf8_lossy(&body).into_owned();
        let value = serde_json::json!({ "streamed_body": body, "end_of_stream": end_of_stream });
        phases.entry(phase).or_default().push(value);
    }
    phases
}

fn is_streamed(response: &ProcessingResponse) -> bool {
    common(response)
        .and_then(|common| common.body_mutation.as_ref())
        .is_some_and(|body| matches!(body.mutation, Some(Mutation::StreamedResponse(_))))
}

fn common(response: &ProcessingResponse) -> Option<&CommonResponse> {
    match &response.response {
        Some(Response::RequestBody(body) | Response::ResponseBody(body)) => body.response.as_ref(),
        _ => None,
    }
}

/// The bodies that were streamed back, and whether they were ended.
fn streams(responses: &[ProcessingResponse]) -> BTreeMap<Phase, (BytesMut, bool)> {
    let mut bodies: BTreeMap<Phase, (BytesMut, bool)> = BTreeMap::new();
    for response in responses {
        let mutation = common(response).and_then(|common| common.body_mutation.as_ref());
        if let Some(Mutation::StreamedResponse(part)) = mutation.and_then(|m| m.mutation.as_ref()) {
            let (body, ended) = bodies.entry(Phase::of_response(response)).or_default();
            body.extend_from_slice(&part.body);
            *ended |= part.end_of_stream;
        }
    }
    bodies
}

/// An answer as JSON, without differences that mean nothing.
fn meaning(mut response: ProcessingResponse) -> Value {
    match &mut response.response {
        Some(
            Response::RequestHeaders(HeadersResponse { response })
            | Response::ResponseHeaders(HeadersResponse { response }),
        )
        | Some(
            Response::RequestBody(BodyResponse { response })
            | Response::ResponseBody(BodyResponse { response }),
        ) => {
            let common = response.get_or_insert_default();
            plain_mutation(&mut common.header_mutation, common.clear_route_cache);
        }
        Some(Response::RequestTrailers(reply) | Response::ResponseTrailers(reply)) => {
            plain_mutation(&mut reply.header_mutation, false);
        }
        Some(Response::ImmediateResponse(answer)) => plain_mutation(&mut answer.headers, false),
        Some(Response::StreamedImmediateResponse(_)) | None => {}
    }
    match json::encode_response(&response) {
        Ok(text) => serde_json::from_str(&text).unwrap_or_default(),
        Err(error) => Value::String(error.to_string()),
    }
}

/// Nothing to change is as good as no mutation, unless its being there has a meaning.
fn plain_mutation(mutation: &mut Option<HeaderMutation>, meant: bool) {
    if let Some(changes) = mutation {
        for option in &mut changes.set_headers {
            option.append = option.append.filter(|append| *append);
            if let Some(header) = &mut option.header {
                header.key.make_ascii_lowercase();
            }
        }
    }
    if !meant && *mutation == Some(HeaderMutation::default()) {
        *mutation = None;
    }
}

fn diff(phase: Phase, path: String, then: &Value, now: &Value, found: &mut Vec<Difference>) {
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => {
            let keys: std::collections::BTreeSet<_> = then.keys().chain(now.keys()).collect();
            for key in keys {
                let path = format!("{path}.{key}");
                let pair = (then.get(key), now.get(key));
                one_or_both(phase, path, pair, found);
            }
        }
        (Value::Array(then), Value::Array(now)) => {
            for index in 0..then.len().max(now.len()) {
                let path = format!("{path}[{index}]");
                one_or_both(phase, path, (then.get(index), now.get(index)), found);
            }
        }
        (then, now) if then != now => {
            one_or_both_differ(phase, path, (Some(then), Some(now)), found)
        }
        _ => {}
    }
}

fn one_or_both(
    phase: Phase,
    path: String,
    pair: (Option<&Value>, Option<&Value>),
    found: &mut Vec<Difference>,
) {
    match pair {
        (Some(then), Some(now)) => diff(phase, path, then, now, found),
        pair => one_or_both_differ(phase, path, pair, found),
    }
}

fn one_or_both_differ(
    phase: Phase,
    path: String,
    (then, now): (Option<&Value>, Option<&Value>),
    found: &mut Vec<Difference>,
) {
    found.push(Difference {
        phase,
        path,
        recorded: then.map(shown),
        now: now.map(shown),
    });
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        None => text,
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}
