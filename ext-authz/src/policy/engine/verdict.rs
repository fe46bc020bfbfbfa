//! What policies answer: OPA-Envoy's contract.
//!
//! An answer is a boolean, or an object with `allowed` and what else the proxy shall do. What is
//! of another type than the contract has it makes the answer an error, never an allow.

use serde_json::{Map, Value};

use crate::{
    policy::{facts::Facts, response::Reply},
    server::{Allow, Decision, Deny},
};

/// What a policy decided.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::policy) enum Verdict {
    Allow(Box<Changes>),
    Deny(Box<Denial>),
}

/// What goes along with an allowed request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::policy) struct Changes {
    /// For the upstream; each name with one value or more.
    headers: Vec<(String, Vec<String>)>,
    remove: Vec<String>,
    /// For the client.
    response_headers: Vec<(String, Vec<String>)>,
    query_set: Vec<(String, String)>,
    query_remove: Vec<String>,
    metadata: Option<prost_types::Struct>,
}

/// What a client is told that is denied.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::policy) struct Denial {
    status: Option<u16>,
    headers: Vec<(String, Vec<String>)>,
    body: Option<String>,
    metadata: Option<prost_types::Struct>,
}

impl Verdict {
    pub(in crate::policy) fn allow() -> Self {
        Self::Allow(Box::default())
    }

    pub(in crate::policy) fn deny() -> Self {
        Self::Deny(Box::default())
    }

    /// Reads a policy's answer.
    ///
    /// # Errors
    /// When it is not what the contract wants.
    pub(super) fn new(answer: Value) -> Result<Self, String> {
        let mut fields = match answer {
            Value::Bool(true) => return Ok(Self::allow()),
            Value::Bool(false) => return Ok(Self::deny()),
            Value::Object(fields) => Fields(fields),
            other => {
                let found = kind(&other);
                return Err(format!(
                    "the policy's answer is {found}, no boolean or object"
                ));
            }
        };
        let allowed = match fields.0.remove("allowed") {
            Some(Value::Bool(allowed)) => allowed,
            Some(other) => return Err(wrong("allowed", "a boolean", &other)),
            None => return Err("the policy's answer has no `allowed`".to_owned()),
        };
        // All of it has the right type, or none of it counts.
        let headers = fields.headers("headers")?;
        let response_headers = fields.headers("response_headers_to_add")?;
        let remove = fields.names("request_headers_to_remove")?;
        let query_remove = fields.names("query_parameters_to_remove")?;
        let query_set = fields.parameters("query_parameters_to_set")?;
        let body = fields.text("body")?;
        let status = fields.status()?;
        let metadata = fields.metadata()?;
        Ok(if allowed {
            Self::Allow(Box::new(Changes {
                headers,
                remove,
                response_headers,
                query_set,
                query_remove,
                metadata,
            }))
        } else {
            Self::Deny(Box::new(Denial {
                status,
                headers,
                body,
                metadata,
            }))
        })
    }
}

impl Changes {
    /// What the policy wants, as the beginning of a decision.
    pub(in crate::policy) fn allow(self) -> Allow {
        let mut decision = Decision::allow();
        for (name, values) in self.headers {
            let mut values = values.into_iter();
            if let Some(first) = values.next() {
                decision = decision.set(&name, first);
            }
            for value in values {
                decision = decision.join(&name, value);
            }
        }
        for name in self.remove {
            decision = decision.remove(name);
        }
        for (name, values) in self.response_headers {
            for value in values {
                decision = decision.response_add(&name, value);
            }
        }
        for (name, value) in &self.query_set {
            decision = decision.query_set(name, value);
        }
        for name in self.query_remove {
            decision = decision.query_remove(name);
        }
        match self.metadata {
            Some(fields) => decision.metadata(fields),
            None => decision,
        }
    }
}

impl Denial {
    /// The denial. Where the policy says nothing at all, `otherwise` answers; where it gives no
    /// status, its status.
    pub(in crate::policy) fn deny(
        self,
        otherwise: &Reply,
        facts: &Facts<'_>,
        reason: &str,
    ) -> Deny {
        if self == Self::default() {
            return otherwise.decision(facts, reason);
        }
        let named = self.headers.iter();
        let located = || {
            named
                .clone()
                .any(|(name, _)| name.eq_ignore_ascii_case("location"))
        };
        let decision = match self.status {
            Some(status) => Decision::deny(status),
            None if located() => Decision::deny(otherwise.status),
            None => otherwise.begin(facts),
        };
        let mut decision = decision.reason(reason);
        for (name, values) in self.headers {
            for value in values {
                decision = decision.header(&name, value);
            }
        }
        if let Some(body) = self.body {
            decision = decision.body(body);
        }
        if let Some(fields) = self.metadata {
            decision = decision.metadata(fields);
        }
        decision
    }
}

/// The fields of an answer. What the contract does not know is the policy's own affair.
struct Fields(Map<String, Value>);

impl Fields {
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    fn status(&mut self) -> Result<Option<u16>, String> {
        let name = "http_status";
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        // Numbers that were calculated may come as `403.0`.
        let whole = value.as_f64().filter(|number| number.fract() == 0.0);
        match whole.map(|number| number as i64) {
            Some(status @ 200..=599) => Ok(u16::try_from(status).ok()),
            _ => Err(wrong(name, "a number from 200 to 599", &value)),
        }
    }

    /// An object of headers or a list of such objects; a header has one value or a list of them.
    fn headers(&mut self, name: &str) -> Result<Vec<(String, Vec<String>)>, String> {
        let what = "an object of strings or lists of strings";
        let objects = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(object) => vec![object],
        };
        let mut headers = Vec::new();
        for object in objects {
            let Value::Object(fields) = object else {
                return Err(wrong(name, what, &object));
            };
            for (header, value) in fields {
                let values = strings(value).map_err(|other| wrong(name, what, &other))?;
                headers.push((header, values));
            }
        }
        Ok(headers)
    }

    fn names(&mut self, name: &str) -> Result<Vec<String>, String> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(list @ Value::Array(_)) => {
                strings(list).map_err(|other| wrong(name, "a list of strings", &other))
            }
            Some(other) => Err(wrong(name, "a list of strings", &other)),
        }
    }

    /// Query parameters. Envoy lets the last value win, so several of one name are refused.
    fn parameters(&mut self, name: &str) -> Result<Vec<(String, String)>, String> {
        let headers = self.headers(name)?.into_iter();
        headers
            .map(
                |(parameter, values)| match <[String; 1]>::try_from(values) {
                    Ok([value]) => Ok((parameter, value)),
                    Err(_) => Err(format!(
                        "`{name}` gives `{parameter}` more or less than one value"
                    )),
                },
            )
            .collect()
    }

    fn metadata(&mut self) -> Result<Option<prost_types::Struct>, String> {
        match self.take("dynamic_metadata") {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(to_struct(fields))),
            Some(other) => Err(wrong("dynamic_metadata", "an object", &other)),
        }
    }
}

/// A string or a list of strings; the error is what it is instead.
fn strings(value: Value) -> Result<Vec<String>, Value> {
    match value {
        Value::String(text) => Ok(vec![text]),
        Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                other => Err(other),
            })
            .collect(),
        other => Err(other),
    }
}

fn wrong(name: &str, wanted: &str, found: &Value) -> String {
    let found = kind(found);
    format!("`{name}` of the policy's answer is {found}, not {wanted}")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn to_struct(fields: Map<String, Value>) -> prost_types::Struct {
    let fields = fields.into_iter();
    prost_types::Struct {
        fields: fields
            .map(|(name, value)| (name, to_proto(value)))
            .collect(),
    }
}

fn to_proto(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Value::String(value) => Kind::StringValue(value),
        Value::Array(items) => Kind::ListValue(prost_types::ListValue {
            values: items.into_iter().map(to_proto).collect(),
        }),
        Value::Object(fields) => Kind::StructValue(to_struct(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn booleans_decide() {
        assert_eq!(Verdict::new(json!(true)), Ok(Verdict::allow()));
        assert_eq!(Verdict::new(json!(false)), Ok(Verdict::deny()));
        assert_eq!(
            Verdict::new(json!({ "allowed": true, "reason": 7 })),
            Ok(Verdict::allow())
        );
        assert_eq!(
            Verdict::new(json!({ "allowed": false })),
            Ok(Verdict::deny())
        );
    }

    #[test]
    fn an_answer_of_the_wrong_type_is_no_answer() {
        let with = |name: &str, value: Value| {
            let mut answer = json!({ "allowed": true });
            answer[name] = value;
            answer
        };
        for (answer, expected) in [
            (json!("true"), "is a string, no boolean or object"),
            (json!(1), "is a number, no boolean or object"),
            (json!(null), "is null, no boolean or object"),
            (json!([true]), "is a list, no boolean or object"),
            (json!({}), "has no `allowed`"),
            (json!({ "allow": true }), "has no `allowed`"),
            (
                json!({ "allowed": "true" }),
                "`allowed` of the policy's answer is a string",
            ),
            (with("headers", json!("x")), "`headers`"),
            (with("headers", json!({ "x": 1 })), "`headers`"),
            (with("headers", json!({ "x": ["a", 1] })), "`headers`"),
            (
                with("response_headers_to_add", json!({ "x": null })),
                "`response_headers_to_add`",
            ),
            (
                with("request_headers_to_remove", json!("x")),
                "`request_headers_to_remove`",
            ),
            (
                with("request_headers_to_remove", json!([1])),
                "`request_headers_to_remove`",
            ),
            (
                with("query_parameters_to_set", json!({ "a": ["1", "2"] })),
                "more or less than one",
            ),
            (
                with("query_parameters_to_remove", json!({})),
                "`query_parameters_to_remove`",
            ),
            (with("body", json!({})), "`body`"),
            (with("http_status", json!("403")), "`http_status`"),
            (with("http_status", json!(403.5)), "`http_status`"),
            (with("http_status", json!(99)), "`http_status`"),
            (with("http_status", json!(1e300)), "`http_status`"),
            (with("dynamic_metadata", json!([])), "`dynamic_metadata`"),
        ] {
            let error = Verdict::new(answer.clone()).unwrap_err();
            assert!(error.contains(expected), "{answer}: {error}");
        }
    }
}
