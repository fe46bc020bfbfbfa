//! Formatters of the access log, which speaks of exchanges that are over.
//!
//! | formatter | value |
//! |---|---|
//! | `%START_TIME(form)%` | when the request came, UTC; the form is that of `strftime`, with `%3f`, `%6f` and `%9f` for parts of a second and `%s` for seconds since 1970; without a form as `2026-11-22T04:01:11.123Z` |
//! | `%TRAILER(X?Y):Z%` | trailer `X` of the response, else `Y` |
//! | `%RESPONSE_FLAGS_LONG%` | the flags by their long names |
//! | `%REQUEST_DURATION%` | milliseconds until the request had arrived to its end |
//! | `%REQUEST_TX_DURATION%` | milliseconds until it had gone out to the upstream to its end |
//! | `%RESPONSE_DURATION%` | milliseconds until the upstream began to answer |
//! | `%RESPONSE_TX_DURATION%` | milliseconds from there until the response was out to its end |
//! | `%ROUNDTRIP_DURATION%` | milliseconds until the client had acknowledged the response: only HTTP/3 can say |
//! | `%UPSTREAM_CONNECTION_POOL_READY_DURATION%` | milliseconds that the last attempt waited for a connection |
//! | `%COMMON_DURATION(from:to:unit)%` | from one of Envoy's points in time to another; `ms`, `us` or `ns` |
//! | `%UPSTREAM_TRANSPORT_FAILURE_REASON%` | why the last attempt got no connection; blanks are `_` |
//! | `%UPSTREAM_REMOTE_ADDRESS%` | the endpoint; `_WITHOUT_PORT` and `_PORT` too |
//! | `%UPSTREAM_REQUEST_ATTEMPT_COUNT%` | how often the request was sent to an upstream |
//! | `%DOWNSTREAM_REMOTE_PORT%` | the client's port; `_DIRECT_REMOTE_` and `_LOCAL_` too |
//! | `%FILTER_STATE(name:PLAIN)%` | what a filter has left: of `ext_proc` its calls; `TYPED` (JSON) and `FIELD:name` |
//! | `%GRPC_STATUS%` | the status of a gRPC call, as `CAMEL_STRING` or, in brackets, `SNAKE_STRING` or `NUMBER` |
//! | `%GRPC_STATUS_NUMBER%` | the same as a number |
//! | `%TRACE_ID%`, `%SPAN_ID%` | where the request stands in a trace |
//! | `%STREAM_ID%` | the request id |
//! | `%POLICY_CALLS%` | the calls to policy services as JSON; Envoy has none |

mod point;

use std::{sync::Arc, time::Duration};

use chrono::{
    DateTime, Utc,
    format::{Item, StrftimeItems},
};
use http::HeaderMap;
use serde_json::{Value, json};

use super::{Exchange, Header, shown, trailer_value};
use crate::{
    calls::{FilterKind, Phase, PolicyCall},
    context::UpstreamAttempt,
    metadata::struct_to_json,
};
use point::Point;

/// What is known of an exchange once it is over.
#[derive(Debug, Clone, Default)]
pub struct Finished {
    /// How long it took, all in all.
    pub duration: Duration,
    /// The response was written to its end.
    pub complete: bool,
    /// When the request had arrived to its end, since it began; if it did.
    pub received: Option<Duration>,
    /// The trailers of the response.
    pub trailers: Option<Arc<HeaderMap>>,
}

#[derive(Debug, Clone)]
pub(super) enum LogPart {
    StartTime(String),
    Trailer(Header),
    FlagsLong,
    Between { from: Point, to: Point, unit: Unit },
    Waited,
    Acknowledged,
    Failure,
    UpstreamAddress(AddressPart),
    Attempts,
    Port(Peer),
    FilterState { name: String, form: StateForm },
    GrpcStatus(GrpcForm),
    TraceId,
    SpanId,
    StreamId,
    PolicyCalls,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum AddressPart {
    Whole,
    WithoutPort,
    Port,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Peer {
    Client,
    Direct,
    Local,
}

#[derive(Debug, Clone)]
pub(super) enum StateForm {
    Plain,
    Typed,
    Field(String),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum GrpcForm {
    Camel,
    Snake,
    Number,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Unit {
    Milli,
    Micro,
    Nano,
}

const START_TIME: &str = "%Y-%m-%dT%H:%M:%S%.3fZ";

/// Every formatter of the access log, for suggestions.
const NAMES: [&str; 46] = [
    "REQ",
    "RESP",
    "TRAILER",
    "PROTOCOL",
    "START_TIME",
    "DURATION",
    "COMMON_DURATION",
    "REQUEST_DURATION",
    "REQUEST_TX_DURATION",
    "RESPONSE_DURATION",
    "RESPONSE_TX_DURATION",
    "ROUNDTRIP_DURATION",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "UPSTREAM_HOST",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_REMOTE_PORT",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_DIRECT_REMOTE_PORT",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_PORT",
    "REQUESTED_SERVER_NAME",
    "ROUTE_NAME",
    "DYNAMIC_METADATA",
    "FILTER_STATE",
    "CEL",
    "GRPC_STATUS",
    "GRPC_STATUS_NUMBER",
    "TRACE_ID",
    "SPAN_ID",
    "STREAM_ID",
    "POLICY_CALLS",
];

/// What of Envoy's formatters there is not, by a part of their names, and why.
const ELSEWHERE: [(&str, &str); 5] = [
    ("WIRE_BYTES", NOT_BY_REQUEST),
    ("HEADER_BYTES", NOT_BY_REQUEST),
    ("BYTES_RETRANSMITTED", NOT_BY_REQUEST),
    ("PACKETS_RETRANSMITTED", NOT_BY_REQUEST),
    (
        "DOWNSTREAM_HANDSHAKE_DURATION",
        "it counts from the request to the handshake before it; \
         `%COMMON_DURATION(DS_HS_BEG:DS_HS_END)%` is how long that took",
    ),
];

const NOT_BY_REQUEST: &str = "what goes over a connection is not counted request by request; \
    `%BYTES_RECEIVED%` and `%BYTES_SENT%` are the bytes of the bodies";

/// What to say of a command that there is not.
pub(super) fn suggest(command: &str, fault: String) -> String {
    let name = command.split_once('(').map_or(command, |(name, _)| name);
    if NAMES.contains(&name) {
        return fault;
    }
    if let Some((_, reason)) = ELSEWHERE.iter().find(|(of, _)| name.contains(of)) {
        return format!("`%{command}%` is not supported: {reason}");
    }
    match attache_service::config::nearest(name, &NAMES) {
        Some(near) => format!("`%{command}%` is not known here; did you mean `%{near}%`?"),
        None => {
            let names: Vec<_> = NAMES.iter().map(|name| format!("`%{name}%`")).collect();
            format!(
                "`%{command}%` is not known here; there are {}",
                names.join(", ")
            )
        }
    }
}

impl LogPart {
    /// The formatter of the access log that this is; `None` when it is none of these.
    pub(super) fn parse(command: &str) -> Result<Option<Self>, String> {
        let between = |from, to| Self::Between {
            from,
            to,
            unit: Unit::Milli,
        };
        Ok(Some(match command {
            "START_TIME" => Self::StartTime(START_TIME.to_owned()),
            "RESPONSE_FLAGS_LONG" => Self::FlagsLong,
            "UPSTREAM_CONNECTION_POOL_READY_DURATION" => Self::Waited,
            "REQUEST_DURATION" => between(Point::RequestBegun, Point::RequestReceived),
            "REQUEST_TX_DURATION" => between(Point::RequestBegun, Point::Sent),
            "RESPONSE_DURATION" => between(Point::RequestBegun, Point::Answered),
            "RESPONSE_TX_DURATION" => between(Point::Answered, Point::Responded),
            "ROUNDTRIP_DURATION" => Self::Acknowledged,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => Self::Failure,
            "UPSTREAM_REMOTE_ADDRESS" => Self::UpstreamAddress(AddressPart::Whole),
            "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => {
                Self::UpstreamAddress(AddressPart::WithoutPort)
            }
            "UPSTREAM_REMOTE_PORT" => Self::UpstreamAddress(AddressPart::Port),
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Self::Attempts,
            "DOWNSTREAM_REMOTE_PORT" => Self::Port(Peer::Client),
            "DOWNSTREAM_DIRECT_REMOTE_PORT" => Self::Port(Peer::Direct),
            "DOWNSTREAM_LOCAL_PORT" => Self::Port(Peer::Local),
            "GRPC_STATUS" => Self::GrpcStatus(GrpcForm::Camel),
            "GRPC_STATUS_NUMBER" => Self::GrpcStatus(GrpcForm::Number),
            "TRACE_ID" => Self::TraceId,
            "SPAN_ID" => Self::SpanId,
            "STREAM_ID" => Self::StreamId,
            "POLICY_CALLS" => Self::PolicyCalls,
            _ => {
                let unknown = || format!("`%{command}%` is not well formed");
                let Some((name, rest)) = command.split_once('(') else {
                    return Ok(None);
                };
                let Some((argument, after)) = rest.rsplit_once(')') else {
                    return Ok(None);
                };
                match (name, after) {
                    ("TRAILER", max) => Self::Trailer(Header::parse(argument, max, &unknown)?),
                    ("START_TIME", "") => Self::StartTime(time_form(argument)?),
                    ("COMMON_DURATION", "") => Self::common_duration(argument)?,
                    ("FILTER_STATE", "") => Self::filter_state(argument)?,
                    ("GRPC_STATUS", "") => Self::GrpcStatus(match argument {
                        "" | "CAMEL_STRING" => GrpcForm::Camel,
                        "SNAKE_STRING" => GrpcForm::Snake,
                        "NUMBER" => GrpcForm::Number,
                        _ => return Err(unknown()),
                    }),
                    _ => return Ok(None),
                }
            }
        }))
    }

    fn common_duration(argument: &str) -> Result<Self, String> {
        let point = |name: Option<&str>| Point::parse(name.unwrap_or_default());
        let mut parts = argument.split(':');
        let (from, to) = (point(parts.next())?, point(parts.next())?);
        let unit = match (parts.next(), parts.next()) {
            (None | Some("ms"), None) => Unit::Milli,
            (Some("us"), None) => Unit::Micro,
            (Some("ns"), None) => Unit::Nano,
            _ => return Err("the unit of `%COMMON_DURATION%` is `ms`, `us` or `ns`".to_owned()),
        };
        Ok(Self::Between { from, to, unit })
    }

    fn filter_state(argument: &str) -> Result<Self, String> {
        let (name, form) = argument.split_once(':').unwrap_or((argument, "TYPED"));
        let form = match form.split_once(':') {
            None if form == "PLAIN" => StateForm::Plain,
            None if form == "TYPED" => StateForm::Typed,
            Some(("FIELD", field)) => StateForm::Field(field.to_owned()),
            _ => {
                return Err(format!(
                    "`{form}` is not a form of filter state: `PLAIN`, `TYPED` and `FIELD:name` are"
                ));
            }
        };
        let name = name.to_owned();
        Ok(Self::FilterState { name, form })
    }

    pub(super) fn reads_request(&self) -> bool {
        matches!(self, Self::StreamId)
    }

    /// Whether it needs points in time that are kept on demand.
    pub(super) fn reads_times(&self) -> bool {
        matches!(self, Self::Between { from, to, .. } if from.is_kept() || to.is_kept())
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(
            self,
            Self::Between { .. }
                | Self::Waited
                | Self::Acknowledged
                | Self::Attempts
                | Self::Port(_)
                | Self::UpstreamAddress(AddressPart::Port)
                | Self::GrpcStatus(GrpcForm::Number)
        )
    }

    /// The value, where it is more than a text or a number.
    pub(super) fn json(&self, exchange: &Exchange<'_>) -> Option<Value> {
        match self {
            Self::PolicyCalls => Some(policy_calls(exchange)),
            Self::FilterState { name, form } => {
                Some(state(exchange, name, form).unwrap_or(Value::Null))
            }
            _ => None,
        }
    }

    /// Writes the value; false when there is none.
    pub(super) fn write(&self, exchange: &Exchange<'_>, to: &mut Vec<u8>) -> bool {
        if let Self::Trailer(header) = self {
            let trailers = exchange.finished.and_then(|f| f.trailers.as_deref());
            return header.write(trailers, trailer_value, to);
        }
        match self.text(exchange) {
            Some(text) => {
                to.extend_from_slice(text.as_bytes());
                true
            }
            None => false,
        }
    }

    fn text(&self, exchange: &Exchange<'_>) -> Option<String> {
        let facts = &exchange.facts;
        let context = facts.context;
        Some(match self {
            Self::Trailer(_) => return None,
            Self::StartTime(form) => {
                let time: DateTime<Utc> = context.start_time().into();
                time.format(form).to_string()
            }
            Self::FlagsLong => {
                let flags: Vec<_> = context.flags().into_iter().map(|f| f.long()).collect();
                return (!flags.is_empty()).then(|| flags.join(","));
            }
            Self::Between { from, to, unit } => {
                let took = to
                    .of(exchange)?
                    .checked_duration_since(from.of(exchange)?)?;
                match unit {
                    Unit::Milli => took.as_millis(),
                    Unit::Micro => took.as_micros(),
                    Unit::Nano => took.as_nanos(),
                }
                .to_string()
            }
            Self::Acknowledged => return None,
            Self::Failure => last(exchange)?.failure?.replace(' ', "_"),
            Self::Waited => last(exchange)?.waited?.as_millis().to_string(),
            Self::UpstreamAddress(part) => {
                let address = context.upstream()?;
                match part {
                    AddressPart::Whole => shown(address, true),
                    AddressPart::WithoutPort => shown(address, false),
                    AddressPart::Port => address.port().to_string(),
                }
            }
            Self::Attempts => context.attempts().len().to_string(),
            Self::Port(of) => {
                let address = match of {
                    Peer::Client => facts.source(),
                    Peer::Direct => context.connection.peer,
                    Peer::Local => context.connection.local,
                };
                address?.port().to_string()
            }
            Self::FilterState { name, form } => match state(exchange, name, form)? {
                Value::String(text) => text,
                other => other.to_string(),
            },
            Self::GrpcStatus(form) => {
                let code = grpc_status(exchange)?;
                match form {
                    GrpcForm::Number => code.to_string(),
                    GrpcForm::Camel => camel(code),
                    GrpcForm::Snake => snake(code),
                }
            }
            Self::TraceId => context.trace.as_ref()?.trace.to_string(),
            Self::SpanId => context.trace.as_ref()?.span.to_string(),
            Self::StreamId => {
                let id = facts.request?.headers.get("x-request-id")?;
                String::from_utf8_lossy(id.as_bytes()).into_owned()
            }
            Self::PolicyCalls => policy_calls(exchange).to_string(),
        })
    }
}

/// The last attempt.
fn last(exchange: &Exchange<'_>) -> Option<UpstreamAttempt> {
    exchange.facts.context.attempts().pop()
}

fn time_form(form: &str) -> Result<String, String> {
    if form.is_empty() {
        return Ok(START_TIME.to_owned());
    }
    let known = StrftimeItems::new(form).all(|item| !matches!(item, Item::Error));
    match known {
        true => Ok(form.to_owned()),
        false => Err(format!("`{form}` is not the form of a time (`strftime`)")),
    }
}

/// The status of a gRPC call: in the trailers, else in the head.
fn grpc_status(exchange: &Exchange<'_>) -> Option<i32> {
    const NAME: &str = "grpc-status";
    let head = exchange.facts.response.map(|response| &response.headers);
    let trailers = exchange.finished.and_then(|f| f.trailers.as_deref());
    let value = trailers
        .and_then(|trailers| trailers.get(NAME))
        .or_else(|| head?.get(NAME))?;
    value.to_str().ok()?.parse().ok()
}

fn snake(code: i32) -> String {
    match (0..=16).contains(&code) {
        true => attache_service::trace::code_name(tonic::Code::from_i32(code)).to_owned(),
        false => code.to_string(),
    }
}

/// Envoy's form: `PermissionDenied`.
fn camel(code: i32) -> String {
    let words = snake(code);
    if code == 0 || code == 1 {
        // As Envoy has them.
        return if code == 0 { "OK" } else { "Canceled" }.to_owned();
    }
    words
        .split('_')
        .map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            format!("{first}{}", rest.to_ascii_lowercase())
        })
        .collect()
}

/// The calls to policy services of an exchange.
pub fn policy_calls(exchange: &Exchange<'_>) -> Value {
    let calls = exchange.facts.context.calls();
    calls
        .iter()
        .map(|call| {
            json!({
                "filter": &*call.filter,
                "phase": call.phase.name(),
                "result": call.result.name(),
                "count": call.count,
                "started_ms": millis(call.begun),
                "duration_ms": millis(call.latency),
                "max_ms": millis(call.max_latency),
                "bytes_sent": call.sent_bytes,
                "bytes_received": call.received_bytes,
                "grpc_status": call.status,
            })
        })
        .collect()
}

/// Milliseconds with three decimals.
fn millis(duration: Duration) -> f64 {
    // Durations of requests are far below the 2^53 microseconds that f64 holds exactly.
    duration.as_micros() as f64 / 1000.0
}

/// What a filter has left. `ext_proc` leaves its calls.
fn state(exchange: &Exchange<'_>, name: &str, form: &StateForm) -> Option<Value> {
    let context = exchange.facts.context;
    let states = context.filter_state();
    if let Some((_, state)) = states.iter().find(|(known, _)| **known == *name) {
        let state = struct_to_json(state);
        return match form {
            StateForm::Plain | StateForm::Typed => Some(state),
            StateForm::Field(field) => Some(state.get(field)?.clone()),
        };
    }
    let calls: Vec<PolicyCall> = context
        .calls()
        .into_iter()
        .filter(|call| call.kind == FilterKind::ExtProc && *call.filter == *name)
        .collect();
    if calls.is_empty() {
        return None;
    }
    match form {
        StateForm::Plain => Some(plain(&calls).into()),
        StateForm::Typed => Some(figures(&calls)),
        StateForm::Field(field) => Some(figures(&calls).get(field)?.clone()),
    }
}

/// Envoy's short form of the calls of `ext_proc`.
fn plain(calls: &[PolicyCall]) -> String {
    let mut parts = Vec::new();
    let (mut sent, mut received) = (0u64, 0u64);
    for call in calls {
        sent = sent.saturating_add(call.sent_bytes);
        received = received.saturating_add(call.received_bytes);
        let (count, micros, status) = (call.count, call.latency.as_micros(), call.status);
        let one = |key: &str| format!("{key}:{micros}:{status}");
        let many = |key: &str| format!("{key}:{count}:{micros}:{status}");
        parts.push(match call.phase {
            Phase::RequestHeaders => one("rh"),
            Phase::RequestBody => many("rb"),
            Phase::RequestTrailers => one("rt"),
            Phase::ResponseHeaders => one("sh"),
            Phase::ResponseBody => many("sb"),
            Phase::ResponseTrailers => one("st"),
            _ => continue,
        });
    }
    parts.push(format!("bs:{sent}"));
    parts.push(format!("br:{received}"));
    parts.push("os:0".to_owned());
    parts.join(",")
}

/// Envoy's figures of the calls of `ext_proc`, by name.
fn figures(calls: &[PolicyCall]) -> Value {
    let mut figures = serde_json::Map::new();
    let (mut sent, mut received) = (0u64, 0u64);
    for call in calls {
        sent = sent.saturating_add(call.sent_bytes);
        received = received.saturating_add(call.received_bytes);
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let of = match call.phase {
            Phase::RequestHeaders => "request_header",
            Phase::RequestBody => "request_body",
            Phase::RequestTrailers => "request_trailer",
            Phase::ResponseHeaders => "response_header",
            Phase::ResponseBody => "response_body",
            Phase::ResponseTrailers => "response_trailer",
            _ => continue,
        };
        let mut put = |figure: &str, value: Value| {
            figures.insert(format!("{of}_{figure}"), value);
        };
        if of.ends_with("body") {
            put("call_count", call.count.into());
            put("total_latency_us", micros(call.latency).into());
            put("max_latency_us", micros(call.max_latency).into());
            put("last_call_status", call.status.into());
        } else {
            put("latency_us", micros(call.latency).into());
            put("call_status", call.status.into());
        }
    }
    figures.insert("bytes_sent".to_owned(), sent.into());
    figures.insert("bytes_received".to_owned(), received.into());
    Value::Object(figures)
}
