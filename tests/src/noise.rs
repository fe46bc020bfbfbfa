//! What is not compared, each with its reason. Everything else is.

use std::net::{IpAddr, UdpSocket};

use serde_json::{Value, json};

/// Headers that differ from run to run, or that name the proxy itself.
const HEADERS: [(&str, &str); 7] = [
    ("date", "the time of the response"),
    ("server", "the proxy's own name"),
    ("x-envoy-upstream-service-time", "a measured time"),
    ("x-request-id", "a random id"),
    (
        "x-forwarded-proto",
        "added by Envoy's connection manager, says only http",
    ),
    (
        "x-envoy-expected-rq-timeout-ms",
        "the route's timeout, added by Envoy's router",
    ),
    (
        "x-envoy-attempt-count",
        "added by Envoy's router on request only",
    ),
];

/// Metadata of a policy call that belongs to the transport.
const CALL_METADATA: [(&str, &str); 12] = [
    ("te", "required by gRPC"),
    ("content-type", "required by gRPC"),
    ("user-agent", "names the gRPC library"),
    (
        "grpc-timeout",
        "the configured timeout minus what has passed",
    ),
    (
        "grpc-accept-encoding",
        "names what the gRPC library can decode",
    ),
    ("x-envoy-internal", "always true on Envoy's own calls"),
    ("x-forwarded-for", "the proxy's own address"),
    ("x-envoy-expected-rq-timeout-ms", "the configured timeout"),
    ("x-request-id", "a random id"),
    ("traceparent", "a random id"),
    ("content-length", "framing of one hop, in the HTTP flavour"),
    (
        "transfer-encoding",
        "framing of one hop, in the HTTP flavour",
    ),
];

/// Headers of a check over plain HTTP that belong to the hop.
const CHECK_HEADERS: [(&str, &str); 2] = [
    ("x-envoy-internal", "always true on Envoy's own calls"),
    ("x-envoy-upstream-service-time", "a measured time"),
];

/// Whether a header of a check over plain HTTP is left out of observations.
pub fn is_check_header(name: &str) -> bool {
    CHECK_HEADERS
        .iter()
        .any(|(noise, _)| name.eq_ignore_ascii_case(noise))
}

/// Figures of a check in the access log, as Envoy names them.
pub const FIGURES: [&str; 3] = ["latency_us", "bytesSent", "bytesReceived"];

/// Whether a header is left out of observations.
pub fn is_header(name: &str) -> bool {
    HEADERS.iter().any(|(noise, _)| *noise == name)
}

/// Whether metadata of a policy call is left out of observations.
pub fn is_call_metadata(name: &str) -> bool {
    CALL_METADATA.iter().any(|(noise, _)| *noise == name)
}

/// Takes the noise out of an observation. `prefix` stands before the names of
/// this scenario's clusters where many scenarios share one process.
pub fn clean(value: &mut Value, prefix: &str) {
    match value {
        Value::String(text) if !prefix.is_empty() && text.contains(prefix) => {
            *text = text.replace(prefix, "");
        }
        Value::Array(items) => {
            items.retain(|item| !is_noise_pair(item));
            if let [Value::String(name), value] = items.as_mut_slice() {
                settle_forwarded(name, value);
            }
            items.iter_mut().for_each(|item| clean(item, prefix));
            sort_pairs(items);
        }
        Value::Object(fields) => {
            fields.retain(|name, value| !(is_header(name) && value.is_string()));
            for (name, value) in fields.iter_mut() {
                clean(value, prefix);
                settle(name, value);
                settle_forwarded(name, value);
                if name == "response_headers" {
                    hide_framing(value);
                }
            }
        }
        _ => {}
    }
}

/// Fields that differ from run to run, but whose form is worth a look.
fn settle(name: &str, value: &mut Value) {
    let digits = |value: &Value| {
        let text = value.as_str().unwrap_or_default();
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
    };
    match name {
        "port_value" if value.is_u64() => *value = json!("<port>"),
        "ext_authz_duration" if value.is_number() => *value = json!("<time>"),
        name if FIGURES.contains(&name) && (value.is_number() || digits(value)) => {
            *value = json!("<figure>");
        }
        // The proxy's number of the request.
        "id" if digits(value) => *value = json!("<number>"),
        _ => {}
    }
}

/// For a client on the loopback interface Envoy writes the machine's own
/// address into `x-forwarded-for`; our proxy writes what it sees.
fn settle_forwarded(name: &str, value: &mut Value) {
    let Some(text) = value.as_str().filter(|_| name == "x-forwarded-for") else {
        return;
    };
    let (before, last) = match text.rsplit_once(", ") {
        Some((before, last)) => (format!("{before}, "), last),
        None => (String::new(), text),
    };
    if let Ok(address) = last.parse::<IpAddr>() {
        // Only an address of this machine can be bound.
        if UdpSocket::bind((address, 0)).is_ok() {
            *value = json!(format!("{before}127.0.0.1"));
        }
    }
}

/// How one hop marks the end of a body is none of a policy's business; Envoy
/// shows it nevertheless.
fn hide_framing(message: &mut Value) {
    if let Some(headers) = message.get_mut("headers").and_then(Value::as_array_mut) {
        headers.retain(|pair| pair_name(pair) != Some("transfer-encoding"));
    }
}

fn is_noise_pair(item: &Value) -> bool {
    pair_name(item).is_some_and(is_header)
}

fn pair_name(item: &Value) -> Option<&str> {
    match item.as_array()?.as_slice() {
        [name, _] => name.as_str(),
        _ => None,
    }
}

/// Header lists in messages are sorted like those of the origin and the
/// client; see [`crate::board::show_headers`].
fn sort_pairs(items: &mut [Value]) {
    if items.iter().all(|item| pair_name(item).is_some()) {
        items.sort_by(|a, b| pair_name(a).cmp(&pair_name(b)));
    }
}
