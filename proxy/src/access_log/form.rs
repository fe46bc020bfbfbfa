//! How a line looks.

use attache_filter::format::{Exchange, Format, log::policy_calls};
use attache_filter::{RequestContext, context::ResponseFlag, metadata::struct_to_json};
use attache_service::time::rfc3339;
use serde_json::{Value, json};

use super::line::{Line, Subject};

/// Envoy's default line.
const ENVOY: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% \
    %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// How lines look.
#[derive(Debug, Clone)]
pub enum Form {
    /// A JSON object with everything that is known.
    Everything,
    /// Text.
    Text {
        /// The text, its end of line included.
        format: Format,
        /// What is absent is nothing, not `-`.
        omit_empty: bool,
    },
    /// JSON with these fields.
    Json {
        /// An object.
        fields: Field,
        /// What is absent is left out.
        omit_empty: bool,
    },
}

/// A value in a JSON line.
#[derive(Debug, Clone)]
pub enum Field {
    /// The same in every line.
    Fixed(Value),
    /// Filled in.
    Format(Format),
    /// An object, its fields in this order.
    Object(Vec<(String, Field)>),
    /// A list.
    List(Vec<Field>),
}

impl Form {
    /// Envoy's default line of text.
    ///
    /// # Errors
    /// None: its formatters are known.
    pub fn envoy() -> Result<Self, String> {
        let format = Format::parse_log(ENVOY)?;
        let omit_empty = false;
        Ok(Self::Text { format, omit_empty })
    }

    /// Whether this is so of one of its formats.
    pub(super) fn any(&self, holds: fn(&Format) -> bool) -> bool {
        match self {
            Self::Everything => false,
            Self::Text { format, .. } => holds(format),
            Self::Json { fields, .. } => fields.any(holds),
        }
    }

    pub(super) fn write(&self, line: &Line, to: &mut Vec<u8>) {
        match self {
            Self::Everything => {
                // Writing to memory cannot fail.
                let _ = serde_json::to_writer(&mut *to, &everything(line));
                to.push(b'\n');
            }
            Self::Text { format, omit_empty } => {
                format.write_line(&line.exchange(), *omit_empty, to);
            }
            Self::Json { fields, omit_empty } => {
                let value = fields.json(&line.exchange(), *omit_empty);
                let _ = serde_json::to_writer(&mut *to, &value);
                to.push(b'\n');
            }
        }
    }
}

impl Field {
    fn any(&self, holds: fn(&Format) -> bool) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::Format(format) => holds(format),
            Self::Object(fields) => fields.iter().any(|(_, field)| field.any(holds)),
            Self::List(fields) => fields.iter().any(|field| field.any(holds)),
        }
    }

    fn json(&self, exchange: &Exchange<'_>, omit_empty: bool) -> Value {
        match self {
            Self::Fixed(value) => value.clone(),
            Self::Format(format) => format.json(exchange, omit_empty),
            Self::Object(fields) => {
                let fields = fields.iter().map(|(name, field)| {
                    let value = field.json(exchange, omit_empty);
                    (name.clone(), value)
                });
                Value::Object(
                    fields
                        .filter(|(_, value)| !omit_empty || !value.is_null())
                        .collect(),
                )
            }
            Self::List(fields) => {
                let fields = fields.iter().map(|field| field.json(exchange, omit_empty));
                Value::Array(fields.collect())
            }
        }
    }
}

fn everything(line: &Line) -> Value {
    let context = &line.context;
    let flags = context.flags().into_iter();
    let flags: Vec<&str> = flags.map(ResponseFlag::short).collect();
    if matches!(line.subject, Subject::Connection) {
        return connection(line, &flags);
    }
    let arrived = line.arrived();
    let route = context.route();
    let states = context.filter_state();
    let states = states
        .iter()
        .map(|(name, state)| (name.to_string(), struct_to_json(state)));
    let answered = line.answered.as_ref();
    let attempts = context.attempts();
    let waited = attempts.last().and_then(|attempt| attempt.waited);
    let mut value = json!({
        "time": begun(context),
        "method": arrived.map(|head| head.method.as_str()),
        "path": arrived.map(|head| head.uri.path_and_query().map_or("", |path| path.as_str())),
        "host": arrived.map(|head| attache_filter::head::authority(head).unwrap_or_default()),
        "protocol": format!("{:?}", context.protocol),
        "status": line.status_number(),
        "flags": flags.join(","),
        "details": context.details(),
        "bytes_in": line.bytes_received,
        "bytes_out": line.bytes_sent,
        "duration_ms": line.finished.duration.as_micros() as f64 / 1000.0,
        "client": context.client_ip.map(|ip| ip.to_string()),
        "route": route.as_ref().map(|route| route.name.as_str()).filter(|name| !name.is_empty()),
        "cluster": route.as_ref().and_then(|route| route.cluster.as_deref()),
        "upstream": match answered {
            Some(answered) => Some(answered.endpoint.as_str()),
            None => attempts.last().map(|attempt| attempt.endpoint.as_str()),
        },
        "upstream_ms": answered.map(|answered| answered.after.as_micros() as f64 / 1000.0),
        "connect_ms": waited.map(|waited| waited.as_micros() as f64 / 1000.0),
        "request_id": line.request_id().map(String::from_utf8_lossy),
        "policies": policy_calls(&line.exchange()),
        "filter_state": Value::Object(states.collect()),
    });
    if let Some(failure) = attempts
        .last()
        .and_then(|attempt| attempt.failure.as_deref())
    {
        value["upstream_failure"] = failure.into();
    }
    if let Some(trace) = &context.trace {
        value["trace_id"] = trace.trace.to_string().into();
    }
    value
}

/// What is known of a connection that was passed on as it is.
fn connection(line: &Line, flags: &[&str]) -> Value {
    let context = &line.context;
    let attempts = context.attempts();
    let tls = context.connection.tls.as_ref();
    json!({
        "time": begun(context),
        "flags": flags.join(","),
        "details": context.details(),
        "bytes_in": line.bytes_received,
        "bytes_out": line.bytes_sent,
        "duration_ms": line.finished.duration.as_micros() as f64 / 1000.0,
        "client": context.client_ip.map(|ip| ip.to_string()),
        "server_name": tls.and_then(|tls| tls.sni.as_deref()),
        "cluster": context.route().as_ref().and_then(|route| route.cluster.as_deref()),
        "upstream": attempts.last().map(|attempt| attempt.endpoint.as_str()),
        "attempts": attempts.len(),
    })
}

fn begun(context: &RequestContext) -> String {
    rfc3339(context.start_time())
}
