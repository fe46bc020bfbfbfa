//! What a scripted service answers.
//!
//! A script has one list for each kind of message (`request_headers`,
//! `request_body`, … for External Processing, `check`, `should_rate_limit`).
//! The n-th message of a kind takes the n-th action; one action need not be
//! in a list. Messages beyond the list are answered with the plain
//! "go on" of their kind. An action is `continue`, `silent`, `close`, `echo`
//! (the body comes back as full duplex wants it; at the end of a list it holds
//! for all that follow), or
//!
//! | field | what is done |
//! |---|---|
//! | `await` | wait for something to be seen first |
//! | `delay` | wait so many seconds |
//! | `common` | reply with this `CommonResponse` (or trailers mutation) |
//! | `reply` | reply with this message |
//! | `answer` | answer a check over plain HTTP with this `{status, headers, body}` |
//! | `stream` | send this `StreamedBodyResponse` in the message's direction |
//! | `garbage` | send these bytes as a message |
//! | `end` | end the call with this `{code, message}` |
//! | `reset` | reset the stream |
//!
//! done in this order, or a list of such steps.
//!
//! `reads: n` beside the kinds makes the service read no further than its n-th
//! message until the client found that the proxy takes no more from it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::board::Condition;
use crate::text;

/// The lists of a script by kind.
#[derive(Debug, Clone, Default)]
pub struct Script {
    kinds: BTreeMap<String, Vec<Value>>,
    /// The number of messages of a call that the service reads.
    pub reads: Option<usize>,
}

/// The answer to a check over plain HTTP; 200 and empty if nothing is said.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpAnswer {
    /// 200 if absent.
    pub status: Option<u16>,
    /// Headers, without the framing.
    pub headers: Vec<Value>,
    /// Empty if absent.
    pub body: Value,
}

/// One thing to do.
#[derive(Debug, Clone)]
pub enum Step {
    /// Wait until this was seen.
    Await(Condition),
    /// Wait for so long.
    Delay(Duration),
    /// Send the message's body back as it is.
    Echo,
    /// Send this message.
    Reply(Value),
    /// Answer a check over plain HTTP.
    Answer(HttpAnswer),
    /// Send these bytes as a message.
    Garbage(Vec<u8>),
    /// End the call with a status.
    End(u32, String),
    /// Reset the stream.
    Reset,
}

const KINDS: [&str; 8] = [
    "request_headers",
    "request_body",
    "request_trailers",
    "response_headers",
    "response_body",
    "response_trailers",
    "check",
    "should_rate_limit",
];

impl Script {
    /// Reads a script; every action is checked.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let object = value
            .as_object()
            .ok_or_else(|| format!("not a script: {value}"))?;
        let mut kinds = BTreeMap::new();
        let mut reads = None;
        for (kind, actions) in object {
            if kind == "reads" {
                reads = actions.as_u64().map(|n| n as usize);
                continue;
            }
            if !KINDS.contains(&kind.as_str()) {
                return Err(format!("no kind of message: {kind}"));
            }
            let actions = match actions {
                Value::Array(actions) => actions.clone(),
                one => vec![one.clone()],
            };
            for action in &actions {
                steps(kind, action)?;
            }
            kinds.insert(kind.clone(), actions);
        }
        Ok(Self { kinds, reads })
    }

    /// The steps for the n-th message (from 0) of a kind.
    pub fn steps(&self, kind: &str, nth: usize) -> Vec<Step> {
        let actions = self.kinds.get(kind).map_or(&[][..], Vec::as_slice);
        let plain = json!("continue");
        let rest = actions.last().filter(|last| *last == "echo");
        let action = actions.get(nth).or(rest).unwrap_or(&plain);
        steps(kind, action).unwrap_or_default()
    }
}

fn steps(kind: &str, action: &Value) -> Result<Vec<Step>, String> {
    match action {
        Value::String(word) => match word.as_str() {
            "continue" => Ok(vec![Step::Reply(go_on(kind))]),
            "silent" => Ok(Vec::new()),
            "close" => Ok(vec![Step::End(0, String::new())]),
            "echo" => Ok(vec![Step::Echo]),
            _ => Err(format!("no action: {word}")),
        },
        Value::Array(list) => {
            let mut all = Vec::new();
            for one in list {
                all.extend(steps(kind, one)?);
            }
            Ok(all)
        }
        Value::Object(fields) => {
            let mut all = Vec::new();
            let known = [
                "await", "delay", "common", "reply", "answer", "stream", "garbage", "end", "reset",
            ];
            if let Some(other) = fields.keys().find(|key| !known.contains(&key.as_str())) {
                return Err(format!("no step: {other}"));
            }
            for key in known {
                if let Some(value) = fields.get(key) {
                    all.push(step(kind, key, value)?);
                }
            }
            Ok(all)
        }
        _ => Err(format!("no action: {action}")),
    }
}

fn step(kind: &str, key: &str, value: &Value) -> Result<Step, String> {
    Ok(match key {
        "await" => Step::Await(serde_json::from_value(value.clone()).map_err(|e| e.to_string())?),
        "delay" => Step::Delay(Duration::from_secs_f64(
            value.as_f64().ok_or("not seconds")?,
        )),
        "common" => Step::Reply(common(kind, value)),
        "reply" => Step::Reply(value.clone()),
        "answer" => Step::Answer(serde_json::from_value(value.clone()).map_err(|e| e.to_string())?),
        "stream" => Step::Reply(streamed(kind, value)),
        "garbage" => Step::Garbage(text::to_bytes(value)?),
        "end" => {
            let code = value
                .get("code")
                .and_then(Value::as_u64)
                .ok_or("end without code")?;
            let message = value
                .get("message")
                .and_then(Value::as_str)
                .unwrap_or_default();
            Step::End(code as u32, message.to_owned())
        }
        _ => Step::Reset,
    })
}

fn go_on(kind: &str) -> Value {
    match kind {
        "check" => json!({}),
        "should_rate_limit" => json!({ "overall_code": "OK" }),
        _ => json!({ kind: {} }),
    }
}

/// The answer to a piece of a body in full duplex mode.
pub fn streamed(kind: &str, piece: &Value) -> Value {
    let direction = kind.split('_').next().unwrap_or_default();
    let response = json!({ "body_mutation": { "streamed_response": piece } });
    json!({ format!("{direction}_body"): { "response": response } })
}

fn common(kind: &str, value: &Value) -> Value {
    if kind.ends_with("_trailers") {
        json!({ kind: value })
    } else {
        json!({ kind: { "response": value } })
    }
}
