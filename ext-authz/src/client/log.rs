//! What the access log says of a check: the counterpart of Envoy's filter state.

use attache_filter::{
    RequestContext,
    calls::{CallEnd, CallResult, Changes},
    changes::Snapshot,
};
use http::{HeaderMap, Request, StatusCode, request};
use prost_types::{ListValue, Struct, Value, value::Kind};

use super::{answer::Verdict, ask::Asked, layer::Decision, plan::Filter, stats::Stats};

/// What a filter in shadow mode would have done (Envoy's `ShadowDecision`).
#[derive(Debug, Clone, Copy)]
pub(crate) enum ShadowDecision<'d> {
    Ok,
    Denied(StatusCode, &'d HeaderMap),
    Error(StatusCode),
}

/// Notes a check that is over.
pub(crate) fn check(filter: &Filter, asked: &Asked, context: &RequestContext, stats: &Stats) {
    let status = asked.answer.as_ref().err().map_or(0, |e| e.grpc_status());
    let logging = &filter.logging;
    if logging.fixed.is_none() && !logging.figures {
        return;
    }
    let mut state = logging.fixed.clone().unwrap_or_default();
    if logging.figures {
        let figures = [
            ("latency_us", asked.latency.as_micros() as f64),
            ("bytesSent", asked.sent as f64),
            ("bytesReceived", asked.received as f64),
            ("grpc_status", f64::from(status)),
        ];
        let figures = figures.map(|(name, figure)| (name.to_owned(), number(figure)));
        state.fields.extend(figures);
    }
    if !context.set_filter_state(&filter.name, state) {
        stats.filter_state_name_collision.inc();
    }
}

/// What a check came to, before it is acted on; see [`Outcome::end`].
pub(crate) struct Outcome {
    verdict: Said,
    end: CallEnd,
    before: Option<Snapshot>,
}

/// What the service said.
enum Said {
    Allow,
    Deny,
    Invalid,
    Failed { in_time: bool },
}

impl Outcome {
    /// Of a check about the request with this head.
    pub(crate) fn of(asked: &Asked, head: &request::Parts, context: &RequestContext) -> Self {
        let verdict = match &asked.answer {
            Ok(answer) => match answer.verdict {
                Verdict::Allow(_) => Said::Allow,
                Verdict::Deny(_) => Said::Deny,
                Verdict::Error(_) => Said::Failed { in_time: true },
                Verdict::Invalid(_) => Said::Invalid,
            },
            Err(error) => Said::Failed {
                in_time: !error.is_timeout(),
            },
        };
        Self {
            verdict,
            end: CallEnd {
                result: CallResult::Continued,
                status: asked.answer.as_ref().err().map_or(0, |e| e.grpc_status()),
                latency: asked.latency,
                sent_bytes: asked.sent as u64,
                received_bytes: asked.received as u64,
                changes: None,
            },
            before: context.records_changes().then(|| Snapshot::of(head)),
        }
    }

    /// How the call ended, where this was decided about the request, and the decision.
    pub(crate) fn end(self, mut decision: Decision) -> (CallEnd, Decision) {
        let mut changes = None;
        if let Some(before) = &self.before
            && let Decision::Pass(request, of_response) = decision
        {
            let (parts, body) = request.into_parts();
            changes = Changes::of_request(before.changes_to(&Snapshot::of(&parts)));
            decision = Decision::Pass(Request::from_parts(parts, body), of_response);
        }
        let passed = matches!(decision, Decision::Pass(..));
        let end = CallEnd {
            result: match self.verdict {
                Said::Allow | Said::Deny if passed => CallResult::Continued,
                Said::Deny => CallResult::Answered,
                Said::Allow | Said::Invalid => CallResult::FailedClosed,
                Said::Failed { in_time } => CallResult::failure(!in_time, passed),
            },
            changes,
            ..self.end
        };
        (end, decision)
    }
}

/// Notes the decision of a filter in shadow mode.
pub(crate) fn shadow(
    filter: &Filter,
    decision: ShadowDecision<'_>,
    context: &RequestContext,
    stats: &Stats,
) {
    let Some(name) = &filter.shadow else { return };
    let (result, status) = match decision {
        ShadowDecision::Ok => ("OK", StatusCode::OK),
        ShadowDecision::Denied(status, _) => ("DENIED", status),
        ShadowDecision::Error(status) => ("ERROR", status),
    };
    let mut state = Struct::default();
    let mut put = |name: &str, value| state.fields.insert(name.to_owned(), value);
    put("check_result", text(result));
    put("status_code", number(f64::from(status.as_u16())));
    if let ShadowDecision::Denied(_, headers) = decision
        && !headers.is_empty()
    {
        let headers = headers.iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            let fields = [("key", text(name.as_str())), ("value", text(&value))];
            Value {
                kind: Some(Kind::StructValue(Struct {
                    fields: fields.map(|(name, value)| (name.to_owned(), value)).into(),
                })),
            }
        });
        let values = headers.collect();
        let kind = Some(Kind::ListValue(ListValue { values }));
        put("response_headers", Value { kind });
    }
    if !context.set_filter_state(name, state) {
        stats.filter_state_name_collision.inc();
    }
}

fn number(value: f64) -> Value {
    Value {
        kind: Some(Kind::NumberValue(value)),
    }
}

fn text(value: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(value.to_owned())),
    }
}
