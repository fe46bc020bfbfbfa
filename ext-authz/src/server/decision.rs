//! Decisions: said in verbs, sent in the form that Envoy honours.

use attache_proto::{
    auth::{CheckResponse, DeniedHttpResponse, OkHttpResponse, check_response::HttpResponse},
    core::{
        HeaderValue, HeaderValueOption, QueryParameter, header_value_option::HeaderAppendAction,
    },
    rpc, types,
};
use http::{HeaderName, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tonic::Code;

use super::request::CheckRequestView;

/// Whether a request may pass. Made by [`Decision::allow`] or [`Decision::deny`]; there is no
/// default, so none is made by accident.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision(Kind);

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Allow(Allow),
    Deny(Deny),
}

impl Decision {
    /// Let the request pass.
    pub fn allow() -> Allow {
        Allow::default()
    }

    /// Answer the client with this HTTP status, 200 to 599.
    pub fn deny(status: u16) -> Deny {
        Deny {
            status,
            headers: Vec::new(),
            body: String::new(),
            reason: String::new(),
            metadata: None,
        }
    }

    /// Whether the request may pass.
    pub fn is_allow(&self) -> bool {
        matches!(self.0, Kind::Allow(_))
    }

    /// The message to send, or why it cannot be sent.
    ///
    /// # Errors
    /// When a name, value or status would be lost or mangled on the way.
    pub fn into_response(self, request: &CheckRequestView) -> Result<CheckResponse, DecisionError> {
        match self.0 {
            Kind::Allow(allow) => allow.into_response(request),
            Kind::Deny(deny) => deny.into_response(),
        }
    }
}

impl From<Allow> for Decision {
    fn from(allow: Allow) -> Self {
        Self(Kind::Allow(allow))
    }
}

impl From<Deny> for Decision {
    fn from(deny: Deny) -> Self {
        Self(Kind::Deny(deny))
    }
}

/// What of a decision cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecisionError {
    /// Not a header name.
    #[error("`{0}` is not a header name")]
    Name(String),
    /// A line break or other byte that a header value cannot have.
    #[error("the value of `{0}` has characters that a header cannot have")]
    Value(String),
    /// The proxy sets this header itself, or ignores it here.
    #[error("`{0}` cannot be changed here")]
    Reserved(String),
    /// Not a status that a client could be answered with.
    #[error("{0} is not an HTTP status from 200 to 599")]
    Status(u16),
    /// A status whose responses have no body.
    #[error("a response with status {0} has no body")]
    Body(u16),
    /// Envoy answers 500 when a request has more headers than its limit, by default 100.
    #[error("{0} headers are more than the 100 that Envoy accepts by default")]
    TooMany(usize),
}

/// Envoy's default limit on the headers of a message.
const MAX_HEADERS: usize = 100;

/// Everything but what RFC 3986 leaves unreserved.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A request that may pass, and what to change on the way.
///
/// Request headers: Envoy carries out every `set` before every `join`, and removes last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Allow {
    set: Vec<(String, String)>,
    join: Vec<(String, String)>,
    remove: Vec<String>,
    response: Vec<(HeaderAppendAction, String, String)>,
    query_set: Vec<(String, String)>,
    query_remove: Vec<String>,
    metadata: Option<prost_types::Struct>,
}

impl Allow {
    /// Sets a request header: all lines the client sent are replaced by this one. Also
    /// `:path`, `:method`, `:authority` and `:scheme`.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.set.push((name.into(), value.into()));
        self
    }

    /// Adds a value to a request header: joined with a comma (`cookie`: `"; "`) to its first
    /// line, or set when the request has none.
    ///
    /// A header that the proxy does not show (`allowed_headers`) counts as absent.
    pub fn join(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.join.push((name.into(), value.into()));
        self
    }

    /// Removes a request header.
    pub fn remove(mut self, name: impl Into<String>) -> Self {
        self.remove.push(name.into());
        self
    }

    /// Adds a line to the response, whatever it has already (`set-cookie`).
    pub fn response_add(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.response(HeaderAppendAction::AppendIfExistsOrAdd, name, value)
    }

    /// Sets a response header: all lines are replaced by this one.
    pub fn response_replace(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.response(HeaderAppendAction::OverwriteIfExistsOrAdd, name, value)
    }

    /// Adds a response header that is not there yet.
    pub fn response_add_if_absent(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.response(HeaderAppendAction::AddIfAbsent, name, value)
    }

    /// Sets a response header that is there already.
    pub fn response_replace_if_present(
        self,
        name: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        self.response(HeaderAppendAction::OverwriteIfExists, name, value)
    }

    fn response(
        mut self,
        action: HeaderAppendAction,
        name: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        self.response.push((action, name.into(), value.into()));
        self
    }

    /// Sets a query parameter, given decoded. The whole query is then written anew, sorted.
    ///
    /// A proxy with `validate_mutations` accepts only values that need no encoding: letters,
    /// digits and `*-._`.
    pub fn query_set(mut self, name: &str, value: &str) -> Self {
        let encoded = |text| utf8_percent_encode(text, QUERY).to_string();
        self.query_set.push((encoded(name), encoded(value)));
        self
    }

    /// Removes a query parameter; compared with the request's as it is encoded there.
    pub fn query_remove(mut self, name: impl Into<String>) -> Self {
        self.query_remove.push(name.into());
        self
    }

    /// Dynamic metadata for later filters and logs, in the namespace
    /// `envoy.filters.http.ext_authz`.
    pub fn metadata(mut self, fields: prost_types::Struct) -> Self {
        self.metadata = Some(fields);
        self
    }

    fn into_response(self, request: &CheckRequestView) -> Result<CheckResponse, DecisionError> {
        let mut headers = Vec::with_capacity(self.set.len() + self.join.len());
        for (name, value) in self.set {
            if !is_routing(&name) {
                ordinary(&name)?;
            }
            headers.push(request_header(name, value, false)?);
        }
        for (name, value) in self.join {
            ordinary(&name)?;
            // Envoy drops what is to be appended to an absent header.
            let there = |option: &HeaderValueOption| {
                let key = option.header.as_ref().map(|header| header.key.as_str());
                key.is_some_and(|key| key.eq_ignore_ascii_case(&name))
            };
            let append = request.has_header(&name) || headers.iter().any(there);
            headers.push(request_header(name, value, append)?);
        }
        for name in &self.remove {
            ordinary(name)?;
        }
        let mut response = Vec::with_capacity(self.response.len());
        for (action, name, value) in self.response {
            ordinary(&name)?;
            let mut option = option(name, value)?;
            option.append_action = action.into();
            response.push(option);
        }
        let most = headers.len().max(response.len());
        if most > MAX_HEADERS {
            return Err(DecisionError::TooMany(most));
        }
        let ok = OkHttpResponse {
            headers,
            headers_to_remove: self.remove,
            response_headers_to_add: response,
            query_parameters_to_set: self
                .query_set
                .into_iter()
                .map(|(key, value)| QueryParameter { key, value })
                .collect(),
            query_parameters_to_remove: self.query_remove,
            dynamic_metadata: None,
        };
        Ok(CheckResponse {
            status: Some(rpc::Status::default()),
            http_response: Some(HttpResponse::OkResponse(ok)),
            dynamic_metadata: self.metadata,
        })
    }
}

/// A request that may not pass, and what the client is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Deny {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
    reason: String,
    metadata: Option<prost_types::Struct>,
}

impl Deny {
    /// Adds a header; repeated names become several lines.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The body, `text/plain` unless a `content-type` is added. gRPC clients get it as the
    /// message of their status.
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }

    /// A reason for the proxy's debug log; clients do not see it.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Dynamic metadata for logs, in the namespace `envoy.filters.http.ext_authz`.
    pub fn metadata(mut self, fields: prost_types::Struct) -> Self {
        self.metadata = Some(fields);
        self
    }

    fn into_response(self) -> Result<CheckResponse, DecisionError> {
        if !(200..600).contains(&self.status) {
            return Err(DecisionError::Status(self.status));
        }
        if matches!(self.status, 204 | 304) && !self.body.is_empty() {
            return Err(DecisionError::Body(self.status));
        }
        if self.headers.len() > MAX_HEADERS {
            return Err(DecisionError::TooMany(self.headers.len()));
        }
        let mut headers = Vec::with_capacity(self.headers.len());
        for (name, value) in self.headers {
            ordinary(&name)?;
            headers.push(option(name, value)?);
        }
        let code = match self.status {
            401 => Code::Unauthenticated,
            429 => Code::ResourceExhausted,
            _ => Code::PermissionDenied,
        };
        Ok(CheckResponse {
            status: Some(rpc::Status {
                code: code as i32,
                message: self.reason,
                details: Vec::new(),
            }),
            http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
                status: Some(types::HttpStatus {
                    code: i32::from(self.status),
                }),
                headers,
                body: self.body,
            })),
            dynamic_metadata: self.metadata,
        })
    }
}

/// Whether a header takes part in routing; these can be set, but not joined.
fn is_routing(name: &str) -> bool {
    matches!(name, ":path" | ":method" | ":authority" | ":scheme")
        || name.eq_ignore_ascii_case("host")
}

fn request_header(
    name: String,
    value: String,
    append: bool,
) -> Result<HeaderValueOption, DecisionError> {
    let mut option = option(name, value)?;
    option.append = Some(append);
    Ok(option)
}

fn option(name: String, value: String) -> Result<HeaderValueOption, DecisionError> {
    if http::HeaderValue::from_bytes(value.as_bytes()).is_err() {
        return Err(DecisionError::Value(name));
    }
    Ok(HeaderValueOption {
        header: Some(HeaderValue {
            key: name,
            value,
            ..HeaderValue::default()
        }),
        ..HeaderValueOption::default()
    })
}

/// An ordinary header, which the proxy lets a service change.
fn ordinary(name: &str) -> Result<(), DecisionError> {
    if name.starts_with(':') {
        return Err(DecisionError::Reserved(name.to_owned()));
    }
    let parsed = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| DecisionError::Name(name.to_owned()))?;
    if crate::client::answer::is_framing(&parsed) || parsed == header::HOST {
        return Err(DecisionError::Reserved(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Harness, Outcome};

    fn client() -> Request<&'static str> {
        Request::get("http://h/p?a=1&b=2")
            .header("x-e", "old")
            .header("cookie", "a=1")
            .body("")
            .unwrap()
    }

    async fn outcome(decision: Decision) -> Outcome {
        Harness::new(decision).check(client()).await
    }

    async fn allowed(decision: Allow) -> crate::testing::Allowed {
        match outcome(decision.into()).await {
            Outcome::Allowed(allowed) => allowed,
            other => panic!("{other:?}"),
        }
    }

    fn lines<'a>(headers: &'a http::HeaderMap, name: &str) -> Vec<&'a str> {
        headers
            .get_all(name)
            .iter()
            .map(|v| v.to_str().unwrap())
            .collect()
    }

    #[tokio::test]
    async fn verbs_do_to_a_request_what_they_say() {
        let allowed = allowed(
            Decision::allow()
                .set("x-e", "new")
                .join("x-n", "1")
                .join("x-n", "2")
                .join("cookie", "b=2")
                .set(":path", "/other?b=2&z")
                .query_set("a", "x&y z")
                .query_remove("b")
                .remove("x-gone"),
        )
        .await;
        let headers = allowed.request.headers();
        assert_eq!(lines(headers, "x-e"), ["new"]);
        assert_eq!(lines(headers, "x-n"), ["1,2"]);
        assert_eq!(lines(headers, "cookie"), ["a=1; b=2"]);
        assert_eq!(
            allowed.request.uri().path_and_query().unwrap(),
            "/other?a=x%26y%20z&z="
        );
    }

    #[tokio::test]
    async fn verbs_do_to_a_response_what_they_say() {
        let allowed = allowed(
            Decision::allow()
                .response_add("x-a", "2")
                .response_replace("x-b", "2")
                .response_add_if_absent("x-c", "2")
                .response_replace_if_present("x-d", "2"),
        )
        .await;
        let upstream = Response::builder()
            .header("x-a", "1")
            .header("x-b", "1")
            .header("x-c", "1")
            .body(())
            .unwrap();
        let response = allowed.response(upstream);
        let headers = response.headers();
        assert_eq!(lines(headers, "x-a"), ["1", "2"]);
        assert_eq!(lines(headers, "x-b"), ["2"]);
        assert_eq!(lines(headers, "x-c"), ["1"]);
        assert_eq!(lines(headers, "x-d"), [""; 0]);
    }

    #[tokio::test]
    async fn a_denial_reaches_the_client_whole() {
        let denial = Decision::deny(401)
            .header("www-authenticate", "Bearer")
            .header("set-cookie", "a=1")
            .header("set-cookie", "b=2")
            .body("who are you?");
        let Outcome::Denied(response) = outcome(denial.into()).await else {
            panic!()
        };
        assert_eq!(response.status(), 401);
        assert_eq!(lines(response.headers(), "set-cookie"), ["a=1", "b=2"]);
        assert_eq!(lines(response.headers(), "www-authenticate"), ["Bearer"]);
        assert_eq!(response.body(), "who are you?");
    }

    #[test]
    fn what_envoy_would_mangle_is_refused() {
        use DecisionError::{Body, Name, Reserved, Status, TooMany, Value};
        let name = || "x-a".to_owned();
        let many = (0..101).fold(Decision::allow(), |d, i| d.set(format!("x-{i}"), "1"));
        let cases: Vec<(Decision, DecisionError)> = vec![
            (Decision::allow().set("x-a", "a\r\nb").into(), Value(name())),
            (Decision::allow().join("x-a", "a\0").into(), Value(name())),
            (Decision::allow().set("x b", "1").into(), Name("x b".into())),
            (Decision::allow().set("", "1").into(), Name(String::new())),
            (
                Decision::allow().set("Content-Length", "1").into(),
                Reserved("Content-Length".into()),
            ),
            (
                Decision::allow().join(":path", "/x").into(),
                Reserved(":path".into()),
            ),
            (
                Decision::allow().set(":status", "1").into(),
                Reserved(":status".into()),
            ),
            (
                Decision::allow().remove("host").into(),
                Reserved("host".into()),
            ),
            (
                Decision::allow().response_replace(":status", "201").into(),
                Reserved(":status".into()),
            ),
            (
                Decision::allow()
                    .response_add("transfer-encoding", "x")
                    .into(),
                Reserved("transfer-encoding".into()),
            ),
            (many.into(), TooMany(101)),
            (Decision::deny(100).into(), Status(100)),
            (Decision::deny(600).into(), Status(600)),
            (Decision::deny(204).body("x").into(), Body(204)),
            (
                Decision::deny(403).header("x-a", "a\nb").into(),
                Value(name()),
            ),
            (
                Decision::deny(403).header("content-length", "1").into(),
                Reserved("content-length".into()),
            ),
        ];
        for (decision, expected) in cases {
            let refused = decision.clone().into_response(&CheckRequestView::default());
            assert_eq!(refused.unwrap_err(), expected, "{decision:?}");
        }
    }

    #[test]
    fn allowing_is_said_with_a_status_and_denying_with_another() {
        let view = CheckRequestView::default();
        let allow = Decision::from(Decision::allow())
            .into_response(&view)
            .unwrap();
        assert_eq!(allow.status.unwrap().code, 0);
        for (status, code) in [(401, 16), (403, 7), (429, 8), (302, 7), (200, 7)] {
            let deny = Decision::from(Decision::deny(status))
                .into_response(&view)
                .unwrap();
            assert_eq!(deny.status.unwrap().code, code);
        }
    }

    proptest! {
        #[test]
        fn what_can_be_sent_is_applied_and_what_cannot_is_refused(
            name in prop_oneof!["[a-zA-Z:][a-z-]{0,10}", any::<String>()],
            value in any::<String>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let decision = Decision::allow().join(name.clone(), value.clone());
            match runtime.block_on(outcome(decision.into())) {
                Outcome::Allowed(allowed) => {
                    let applied = allowed.request.headers().get(&name).unwrap();
                    prop_assert!(applied.as_bytes().ends_with(value.as_bytes()));
                }
                Outcome::Failed(_) => {}
                Outcome::Denied(response) => prop_assert!(false, "{:?}", response),
            }
        }
    }
}
