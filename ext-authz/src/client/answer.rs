//! What a `CheckResponse` means: allowed with effects, denied, or an error. Pure.
//!
//! These are the rules of Envoy 1.40 as observed on the binary, odd as some are. What would
//! break the wire (line breaks in values, impossible status codes, message framing) is refused
//! whether or not `validate_mutations` is set.

use attache_filter::head::header_name;
use attache_proto::{
    auth::{CheckResponse, DeniedHttpResponse, OkHttpResponse, check_response::HttpResponse},
    core::{HeaderValueOption, header_value_option::HeaderAppendAction},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// How answers are read.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// `validate_mutations`: also refuse what Envoy lets through unless told not to.
    pub validate: bool,
    /// `status_on_error`, for error answers without a status of their own.
    pub status_on_error: StatusCode,
    /// `max_denied_response_body_bytes`; 0 is no limit.
    pub max_denied_body: usize,
}

/// A decided check.
#[derive(Debug)]
pub struct Answer {
    /// What to do with the request.
    pub verdict: Verdict,
    /// Dynamic metadata that came with the decision.
    pub metadata: Option<prost_types::Struct>,
}

/// What to do with the request.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// Let it pass, with these changes.
    Allow(Effects),
    /// Answer with this.
    Deny(Reply),
    /// The service reports that it failed, perhaps with the answer to give.
    Error(Option<Reply>),
    /// The answer cannot be carried out.
    Invalid(Invalid),
}

/// Why an answer cannot be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalid {
    /// The answer itself is refused: 500, `ext_authz_invalid`.
    Answer,
    /// The request it makes could not be sent upstream: 503, flag `DPE`.
    Request,
    /// The request it makes is over the header limits: 500, `ext_authz_invalid`.
    RequestLimits,
}

/// An answer to the client.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// HTTP status, 200 to 599.
    pub status: StatusCode,
    /// Headers, framing ones left out.
    pub headers: HeaderMap,
    /// Body; empty for statuses that have none.
    pub body: Bytes,
}

/// The name of a header to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldName {
    /// `:path` and the like; also `host`, which means `:authority`.
    Pseudo(String),
    /// An ordinary header.
    Header(HeaderName),
}

impl FieldName {
    /// The lower-case name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pseudo(name) => name,
            Self::Header(name) => name.as_str(),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            return Some(Self::Pseudo(name.to_ascii_lowercase()));
        }
        header_name(name).map(Self::Header)
    }
}

/// How a response header is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResponseVerb {
    /// Another line.
    Add,
    /// All lines replaced by one, or added.
    Set,
    /// Only where there is none.
    AddIfAbsent,
    /// Only where there is one.
    ReplaceIfPresent,
}

/// What an allowing answer changes, in the order in which it is applied.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Request headers to set.
    pub set: Vec<(FieldName, HeaderValue)>,
    /// Request headers to join to an existing line.
    pub append: Vec<(FieldName, HeaderValue)>,
    /// Request headers to remove, as named by the service.
    pub remove: Vec<String>,
    /// Query parameters to set.
    pub query_set: Vec<(String, String)>,
    /// Query parameters to remove.
    pub query_remove: Vec<String>,
    /// Response headers, sorted by verb as they are applied.
    pub response: Vec<(ResponseVerb, HeaderName, HeaderValue)>,
    /// Entries that were left out since they would break the message's framing.
    pub omitted: usize,
}

impl Effects {
    /// Whether the request's headers or query are touched.
    pub fn touches_request(&self) -> bool {
        !self.set.is_empty()
            || !self.append.is_empty()
            || !self.remove.is_empty()
            || self.touches_query()
    }

    /// Whether the query is touched.
    pub fn touches_query(&self) -> bool {
        !self.query_set.is_empty() || !self.query_remove.is_empty()
    }
}

/// Headers that belong to one hop or frame the message; a policy never sets them.
pub(crate) fn is_framing(name: &HeaderName) -> bool {
    [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
    ]
    .contains(name)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// Reads a decoded answer.
pub fn read(response: CheckResponse, reading: Reading) -> Answer {
    let code = response.status.map_or(0, |status| status.code);
    let mut metadata = response.dynamic_metadata;
    let verdict = match (code, response.http_response) {
        (0, Some(HttpResponse::OkResponse(ok))) => {
            let mut ok = ok;
            if let Some(own) = ok.dynamic_metadata.take() {
                metadata = Some(own);
            }
            match effects(ok, reading.validate) {
                Ok(effects) => Verdict::Allow(effects),
                Err(invalid) => Verdict::Invalid(invalid),
            }
        }
        // A denial or an error that comes with status OK is ignored.
        (0, _) => Verdict::Allow(Effects::default()),
        (_, Some(HttpResponse::DeniedResponse(denied))) => {
            match reply(denied, StatusCode::FORBIDDEN, reading.max_denied_body) {
                Some(reply) => Verdict::Deny(reply),
                None => Verdict::Invalid(Invalid::Answer),
            }
        }
        (_, Some(HttpResponse::ErrorResponse(error))) => Verdict::Error(reply(
            error,
            reading.status_on_error,
            reading.max_denied_body,
        )),
        (_, None | Some(HttpResponse::OkResponse(_))) => Verdict::Deny(Reply {
            status: StatusCode::FORBIDDEN,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }),
    };
    Answer { verdict, metadata }
}

fn effects(ok: OkHttpResponse, validate: bool) -> Result<Effects, Invalid> {
    // What Envoy finds out only when it writes the request upstream.
    let malformed = if validate {
        Invalid::Answer
    } else {
        Invalid::Request
    };
    let mut effects = Effects::default();
    for option in ok.headers {
        // As in Envoy 1.40 only `append` counts here, whatever `append_action` says.
        let append = option.append == Some(true);
        let (name, value) = field(option).ok_or(malformed)?;
        if matches!(&name, FieldName::Header(name) if is_framing(name)) {
            effects.omitted += 1;
        } else if append {
            effects.append.push((name, value));
        } else {
            effects.set.push((name, value));
        }
    }
    effects.remove = ok.headers_to_remove;

    for option in ok.response_headers_to_add {
        let verb = match (
            option.append,
            HeaderAppendAction::try_from(option.append_action),
        ) {
            (Some(true), Ok(_)) => ResponseVerb::Add,
            (Some(false), Ok(_)) => ResponseVerb::Set,
            (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => ResponseVerb::Add,
            (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => ResponseVerb::Set,
            (None, Ok(HeaderAppendAction::AddIfAbsent)) => ResponseVerb::AddIfAbsent,
            (None, Ok(HeaderAppendAction::OverwriteIfExists)) => ResponseVerb::ReplaceIfPresent,
            (_, Err(_)) if validate => return Err(Invalid::Answer),
            (_, Err(_)) => {
                effects.omitted += 1;
                continue;
            }
        };
        match field(option).ok_or(Invalid::Answer)? {
            (FieldName::Header(name), value) if !is_framing(&name) => {
                effects.response.push((verb, name, value));
            }
            _ => effects.omitted += 1,
        }
    }
    effects.response.sort_by_key(|(verb, _, _)| *verb);

    for parameter in ok.query_parameters_to_set {
        if validate && !(is_plain_query(&parameter.key) && is_plain_query(&parameter.value)) {
            return Err(Invalid::Answer);
        }
        effects.query_set.push((parameter.key, parameter.value));
    }
    effects.query_remove = ok.query_parameters_to_remove;
    Ok(effects)
}

/// Name and value; only `value` counts, never `raw_value`.
fn field(option: HeaderValueOption) -> Option<(FieldName, HeaderValue)> {
    let header = option.header.unwrap_or_default();
    let name = FieldName::parse(&header.key)?;
    let value = HeaderValue::from_maybe_shared(Bytes::from(header.value)).ok()?;
    Some((name, value))
}

/// Whether a query key or value needs no encoding. That is what Envoy checks: under validation
/// it refuses even what is properly encoded, since a `%` would have to be encoded again.
fn is_plain_query(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"*-._".contains(&byte))
}

/// The client's answer; `None` when it could not be written.
fn reply(denied: DeniedHttpResponse, default: StatusCode, max_body: usize) -> Option<Reply> {
    let status = match denied.status.map_or(0, |status| status.code) {
        0 => default,
        code => u16::try_from(code)
            .ok()
            .filter(|code| (200..600).contains(code))
            .and_then(|code| StatusCode::from_u16(code).ok())?,
    };
    let mut headers = HeaderMap::new();
    for option in denied.headers {
        let lost = option.append == Some(true);
        match field(option)? {
            (FieldName::Header(name), value)
                if !lost && !is_framing(&name) && name != header::SERVER =>
            {
                headers.try_append(name, value).ok()?;
            }
            _ => {}
        }
    }
    let mut body = Bytes::from(denied.body);
    if max_body > 0 {
        body.truncate(max_body);
    }
    if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        body.clear();
    }
    Some(Reply {
        status,
        headers,
        body,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use attache_proto::{core, rpc, types};

    use super::*;

    pub(crate) const FAITHFUL: Reading = Reading {
        validate: false,
        status_on_error: StatusCode::SERVICE_UNAVAILABLE,
        max_denied_body: 0,
    };
    const VALIDATING: Reading = Reading {
        validate: true,
        ..FAITHFUL
    };

    pub(crate) fn option(
        key: &str,
        value: &str,
        append: Option<bool>,
        action: i32,
    ) -> HeaderValueOption {
        HeaderValueOption {
            header: Some(core::HeaderValue {
                key: key.to_owned(),
                value: value.to_owned(),
                raw_value: Bytes::new(),
            }),
            append,
            append_action: action,
            keep_empty_value: false,
        }
    }

    pub(crate) fn hv(key: &str, value: &str) -> HeaderValueOption {
        option(key, value, None, 0)
    }

    fn response(code: i32, http: Option<HttpResponse>) -> CheckResponse {
        CheckResponse {
            status: Some(rpc::Status {
                code,
                ..rpc::Status::default()
            }),
            http_response: http,
            dynamic_metadata: None,
        }
    }

    fn denied(code: i32, headers: Vec<HeaderValueOption>, body: &str) -> DeniedHttpResponse {
        DeniedHttpResponse {
            status: Some(types::HttpStatus { code }),
            headers,
            body: body.to_owned(),
        }
    }

    fn ok(ok: OkHttpResponse, reading: Reading) -> Verdict {
        read(response(0, Some(HttpResponse::OkResponse(ok))), reading).verdict
    }

    fn deny(code: i32, headers: Vec<HeaderValueOption>, body: &str) -> Verdict {
        let denied = HttpResponse::DeniedResponse(denied(code, headers, body));
        read(response(7, Some(denied)), FAITHFUL).verdict
    }

    fn allowed() -> Verdict {
        Verdict::Allow(Effects::default())
    }

    fn replied(status: u16, body: &str) -> Reply {
        Reply {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    #[test]
    fn the_status_decides_and_what_does_not_fit_it_is_ignored() {
        let denial = || HttpResponse::DeniedResponse(denied(401, vec![], "no"));
        let failure = |code| HttpResponse::ErrorResponse(denied(code, vec![], "oops"));
        let mutation = || {
            HttpResponse::OkResponse(OkHttpResponse {
                headers: vec![hv("x-a", "1")],
                ..OkHttpResponse::default()
            })
        };
        for (answer, expected) in [
            // An empty answer allows.
            (CheckResponse::default(), allowed()),
            (response(0, None), allowed()),
            (response(0, Some(denial())), allowed()),
            (response(0, Some(failure(502))), allowed()),
            (response(7, None), Verdict::Deny(replied(403, ""))),
            (response(14, None), Verdict::Deny(replied(403, ""))),
            (
                response(7, Some(mutation())),
                Verdict::Deny(replied(403, "")),
            ),
            (
                response(16, Some(denial())),
                Verdict::Deny(replied(401, "no")),
            ),
            (
                response(13, Some(failure(502))),
                Verdict::Error(Some(replied(502, "oops"))),
            ),
            (
                response(13, Some(failure(0))),
                Verdict::Error(Some(replied(503, "oops"))),
            ),
            (response(13, Some(failure(99))), Verdict::Error(None)),
        ] {
            assert_eq!(
                read(answer.clone(), FAITHFUL).verdict,
                expected,
                "{answer:?}"
            );
        }
    }

    #[test]
    fn denials_keep_their_headers_but_framing_and_server() {
        let verdict = deny(
            401,
            vec![
                hv("WWW-Authenticate", "Basic"),
                hv("set-cookie", "a=1"),
                hv("set-cookie", "b=2"),
                hv("content-length", "77"),
                hv("transfer-encoding", "chunked"),
                hv("connection", "close"),
                hv("server", "evil"),
                hv(":status", "200"),
                hv("host", "evil"),
                option("x-lost", "1", Some(true), 0),
                option("x-a", "1", Some(false), 3),
                option("x-a", "2", None, 1),
            ],
            "{}",
        );
        let Verdict::Deny(reply) = verdict else {
            panic!("{verdict:?}")
        };
        let mut lines: Vec<_> = reply
            .headers
            .iter()
            .map(|(k, v)| (k.as_str(), v.to_str().unwrap()))
            .collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                ("set-cookie", "a=1"),
                ("set-cookie", "b=2"),
                ("www-authenticate", "Basic"),
                ("x-a", "1"),
                ("x-a", "2"),
            ]
        );
    }

    #[test]
    fn statuses_that_no_client_could_read_are_refused() {
        for code in [99, 100, 199, 600, 700, 999, -1, 70_000] {
            assert_eq!(
                deny(code, vec![], ""),
                Verdict::Invalid(Invalid::Answer),
                "{code}"
            );
        }
        for (code, expected) in [(0, 403), (200, 200), (302, 302), (418, 418), (599, 599)] {
            assert_eq!(deny(code, vec![], ""), Verdict::Deny(replied(expected, "")));
        }
        // These never have a body.
        assert_eq!(deny(204, vec![], "x"), Verdict::Deny(replied(204, "")));
        assert_eq!(deny(304, vec![], "x"), Verdict::Deny(replied(304, "")));
    }

    #[test]
    fn what_would_split_a_message_is_refused_even_without_validation() {
        for bad in [
            hv("x-a", "a\r\nevil: 1"),
            hv("x b", "1"),
            hv("", "1"),
            hv("a\n", "1"),
        ] {
            assert_eq!(
                deny(401, vec![bad.clone()], ""),
                Verdict::Invalid(Invalid::Answer)
            );
            let to_client = OkHttpResponse {
                response_headers_to_add: vec![bad.clone()],
                ..OkHttpResponse::default()
            };
            assert_eq!(ok(to_client, FAITHFUL), Verdict::Invalid(Invalid::Answer));
            let upstream = OkHttpResponse {
                headers: vec![bad.clone()],
                ..OkHttpResponse::default()
            };
            assert_eq!(
                ok(upstream.clone(), FAITHFUL),
                Verdict::Invalid(Invalid::Request)
            );
            assert_eq!(ok(upstream, VALIDATING), Verdict::Invalid(Invalid::Answer));
            let error = HttpResponse::ErrorResponse(denied(502, vec![bad], "x"));
            assert_eq!(
                read(response(13, Some(error)), FAITHFUL).verdict,
                Verdict::Error(None)
            );
        }
    }

    #[test]
    fn framing_headers_are_left_out_of_requests_and_responses() {
        let framing = || {
            vec![
                hv("Content-Length", "0"),
                hv("transfer-encoding", "chunked"),
                hv("connection", "close"),
                hv("upgrade", "x"),
            ]
        };
        let mut response = framing();
        response.push(hv(":status", "201"));
        let verdict = ok(
            OkHttpResponse {
                headers: framing(),
                response_headers_to_add: response,
                ..OkHttpResponse::default()
            },
            FAITHFUL,
        );
        let expected = Effects {
            omitted: 9,
            ..Effects::default()
        };
        assert_eq!(verdict, Verdict::Allow(expected));
    }

    #[test]
    fn only_append_counts_for_request_headers() {
        let options = [
            (None, 0, false),
            (None, 1, false),
            (None, 3, false),
            (None, 9, false),
            (Some(false), 0, false),
            (Some(true), 0, true),
            (Some(true), 2, true),
        ];
        for (append, action, appends) in options {
            let headers = vec![option("X-A", "1", append, action)];
            let verdict = ok(
                OkHttpResponse {
                    headers,
                    ..OkHttpResponse::default()
                },
                FAITHFUL,
            );
            let Verdict::Allow(effects) = verdict else {
                panic!("{verdict:?}")
            };
            assert_eq!(
                (effects.set.len(), effects.append.len()),
                if appends { (0, 1) } else { (1, 0) },
                "{append:?} {action}"
            );
        }
    }

    #[test]
    fn raw_values_are_ignored_and_empty_ones_kept() {
        let raw = HeaderValueOption {
            header: Some(core::HeaderValue {
                key: "x-a".into(),
                value: String::new(),
                raw_value: Bytes::from_static(b"1"),
            }),
            ..HeaderValueOption::default()
        };
        let verdict = ok(
            OkHttpResponse {
                headers: vec![raw],
                ..OkHttpResponse::default()
            },
            FAITHFUL,
        );
        let Verdict::Allow(effects) = verdict else {
            panic!("{verdict:?}")
        };
        assert_eq!(effects.set[0].1, "");
    }

    #[test]
    fn response_headers_follow_append_then_append_action_in_order_of_verbs() {
        let verdict = ok(
            OkHttpResponse {
                response_headers_to_add: vec![
                    option("x-r", "replace", None, 3),
                    option("x-i", "absent", None, 1),
                    option("x-s", "set", None, 2),
                    option("x-f", "set", Some(false), 0),
                    option("x-a", "add", None, 0),
                    option("x-t", "add", Some(true), 2),
                    option("x-u", "dropped", None, 9),
                ],
                ..OkHttpResponse::default()
            },
            FAITHFUL,
        );
        let Verdict::Allow(effects) = verdict else {
            panic!("{verdict:?}")
        };
        let order: Vec<_> = effects
            .response
            .iter()
            .map(|(verb, name, _)| (*verb, name.as_str()))
            .collect();
        assert_eq!(
            order,
            [
                (ResponseVerb::Add, "x-a"),
                (ResponseVerb::Add, "x-t"),
                (ResponseVerb::Set, "x-s"),
                (ResponseVerb::Set, "x-f"),
                (ResponseVerb::AddIfAbsent, "x-i"),
                (ResponseVerb::ReplaceIfPresent, "x-r"),
            ]
        );
        assert_eq!(effects.omitted, 1);
    }

    #[test]
    fn validation_refuses_unknown_actions_and_queries_that_need_encoding() {
        let unknown_response = OkHttpResponse {
            response_headers_to_add: vec![option("x-a", "1", None, 9)],
            ..OkHttpResponse::default()
        };
        let query = |value: &str| OkHttpResponse {
            query_parameters_to_set: vec![core::QueryParameter {
                key: "a".into(),
                value: value.into(),
            }],
            ..OkHttpResponse::default()
        };
        for refused in [
            unknown_response,
            query("e&f"),
            query("c d"),
            query("c%20d"),
            query("a+b"),
            query("~"),
        ] {
            assert_eq!(
                ok(refused.clone(), VALIDATING),
                Verdict::Invalid(Invalid::Answer)
            );
            assert!(matches!(ok(refused, FAITHFUL), Verdict::Allow(_)));
        }
        assert!(matches!(
            ok(query("aZ09*-._"), VALIDATING),
            Verdict::Allow(_)
        ));
        // Request headers have only `append`.
        let ignored = OkHttpResponse {
            headers: vec![option("x-a", "1", None, 9)],
            ..OkHttpResponse::default()
        };
        assert!(matches!(ok(ignored, VALIDATING), Verdict::Allow(_)));
        // A name that no header can have is merely not there.
        let removal = OkHttpResponse {
            headers_to_remove: vec!["x b".into()],
            ..OkHttpResponse::default()
        };
        assert!(matches!(ok(removal, VALIDATING), Verdict::Allow(_)));
    }

    #[test]
    fn bodies_are_cut_and_metadata_of_the_ok_part_wins() {
        let cut = Reading {
            max_denied_body: 4,
            ..FAITHFUL
        };
        let answer = response(
            7,
            Some(HttpResponse::DeniedResponse(denied(403, vec![], "12345"))),
        );
        assert_eq!(
            read(answer, cut).verdict,
            Verdict::Deny(replied(403, "1234"))
        );

        let named = |name: &str| prost_types::Struct {
            fields: [(name.to_owned(), prost_types::Value::default())].into(),
        };
        let answer = CheckResponse {
            dynamic_metadata: Some(named("outer")),
            ..response(
                0,
                Some(HttpResponse::OkResponse(OkHttpResponse {
                    dynamic_metadata: Some(named("inner")),
                    ..OkHttpResponse::default()
                })),
            )
        };
        assert_eq!(read(answer, FAITHFUL).metadata, Some(named("inner")));
    }
}
