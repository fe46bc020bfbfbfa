//! Access logs in Envoy's language.
//!
//! What Envoy lacks is left out: `%POLICY_CALLS%`, and shares that go by traces, which go by
//! request ids there.

use attache_service::config::{ConfigValue, envoy::type_url, json, parse_duration};
use json::{Value, json};

use super::resolved;
use crate::config::{AccessLog, AccessLogFormat, AccessLogOutput, AccessLogs, Sample};

/// Envoy wants a name for everything that a runtime layer could change.
const RUNTIME_KEY: &str = "access_log";
const POLICY_CALLS: &str = "%POLICY_CALLS%";

pub(super) fn export(logs: &AccessLogs) -> Value {
    logs.0.iter().map(|log| one(&log.value)).collect()
}

fn one(log: &AccessLog) -> Value {
    let (name, kind) = match (&log.path, log.output.as_ref().map(|output| output.value)) {
        (Some(_), _) => ("file", "file.v3.FileAccessLog"),
        (None, Some(AccessLogOutput::Stderr)) => ("stderr", "stream.v3.StderrAccessLog"),
        (None, _) => ("stdout", "stream.v3.StdoutAccessLog"),
    };
    let mut config = json!({
        "@type": type_url(&format!("envoy.extensions.access_loggers.{kind}")),
    });
    if let Some(path) = &log.path {
        config["path"] = json!(resolved(path));
    }
    if let Some(format) = format(log) {
        config["log_format"] = format;
    }
    let mut json = json!({
        "name": format!("envoy.access_loggers.{name}"),
        "typed_config": config,
    });
    if let Some(filter) = filter(log) {
        json["filter"] = filter;
    }
    json
}

fn format(log: &AccessLog) -> Option<Value> {
    let omit = log.omit_empty_values;
    let mut format = if let Some(text) = &log.text_format {
        let text = text.value.replace(POLICY_CALLS, "-");
        json!({ "text_format_source": { "inline_string": text } })
    } else if let Some(fields) = &log.json_format {
        json!({ "json_format": without_calls(fields.to_json()) })
    } else if log.format.as_ref().map(|format| format.value) == Some(AccessLogFormat::Envoy) {
        return None;
    } else {
        json!({ "json_format": {
            "time": "%START_TIME%",
            "method": "%REQ(:METHOD)%",
            "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
            "host": "%REQ(:AUTHORITY)%",
            "protocol": "%PROTOCOL%",
            "status": "%RESPONSE_CODE%",
            "flags": "%RESPONSE_FLAGS%",
            "details": "%RESPONSE_CODE_DETAILS%",
            "bytes_in": "%BYTES_RECEIVED%",
            "bytes_out": "%BYTES_SENT%",
            "duration_ms": "%DURATION%",
            "connect_ms": "%UPSTREAM_CONNECTION_POOL_READY_DURATION%",
            "upstream": "%UPSTREAM_HOST%",
            "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
            "route": "%ROUTE_NAME%",
            "cluster": "%UPSTREAM_CLUSTER%",
            "request_id": "%REQ(X-REQUEST-ID)%",
        }})
    };
    if let Some(omit) = omit {
        format["omit_empty_values"] = omit.into();
    }
    Some(format)
}

fn without_calls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields
                .into_iter()
                .filter(|(_, value)| *value != POLICY_CALLS);
            Value::Object(
                fields
                    .map(|(name, value)| (name, without_calls(value)))
                    .collect(),
            )
        }
        Value::Array(items) => items.into_iter().map(without_calls).collect(),
        Value::String(text) => text.replace(POLICY_CALLS, "-").into(),
        other => other,
    }
}

fn filter(log: &AccessLog) -> Option<Value> {
    let own = log.filter.as_ref().and_then(ConfigValue::encode);
    let own = own.map(with_keys);
    let share = log.sample.as_ref().filter(|sample| sample.rate < 1.0);
    let share = share.map(|sample| among(share_of(&sample.value), log));
    match (own, share) {
        (Some(own), Some(share)) => Some(json!({ "and_filter": { "filters": [own, share] } })),
        (own, share) => own.or(share),
    }
}

fn share_of(sample: &Sample) -> Value {
    let millionths = (sample.rate.clamp(0.0, 1.0) * 1e6).round();
    json!({ "runtime_filter": {
        "runtime_key": RUNTIME_KEY,
        "percent_sampled": { "numerator": millionths as u32, "denominator": "MILLION" },
    }})
}

/// The share, and what is logged in any case.
fn among(share: Value, log: &AccessLog) -> Value {
    let figure = |kind: &str, op: &str, figure: u32| {
        let value = json!({ "default_value": figure, "runtime_key": RUNTIME_KEY });
        json!({ kind: { "comparison": { "op": op, "value": value } } })
    };
    let mut any = vec![share];
    for condition in &log.always {
        match condition.strip_prefix("slow>").and_then(parse_duration) {
            Some(slow) => {
                let millis = u32::try_from(slow.as_millis()).unwrap_or(u32::MAX);
                any.push(figure("duration_filter", "GE", millis));
            }
            None => {
                any.push(figure("status_code_filter", "GE", 500));
                any.push(figure("status_code_filter", "EQ", 0));
            }
        }
    }
    match <[Value; 1]>::try_from(any) {
        Ok([share]) => share,
        Err(any) => json!({ "or_filter": { "filters": any } }),
    }
}

/// Gives a name to everything that a runtime layer could change.
fn with_keys(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let named =
                fields.contains_key("default_value") || fields.contains_key("percent_sampled");
            let mut fields: json::Map<_, _> = fields
                .into_iter()
                .map(|(name, value)| (name, with_keys(value)))
                .collect();
            if named {
                fields
                    .entry("runtime_key")
                    .or_insert_with(|| RUNTIME_KEY.into());
            }
            Value::Object(fields)
        }
        Value::Array(items) => items.into_iter().map(with_keys).collect(),
        other => other,
    }
}
