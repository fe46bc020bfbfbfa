//! What a response of the auth service means. Pure.
//!
//! Exactly 200 allows; a status from 500 to 599 is a failure of the service; everything else is
//! the denial that the client gets.

use attache_filter::matcher::{ListStringMatcher, TextMatchers};
use attache_service::config::{Errors, Located};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use prost_types::{Struct, Value, value::Kind};

use super::config::AuthorizationResponse;
use crate::client::answer::{
    Answer, Effects, FieldName, Invalid, Reading, Reply, ResponseVerb, Verdict, final_status,
    is_for_client, is_framing,
};

/// Names the headers that an allowed request loses.
const HEADERS_TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// Which headers of answers count; see [`AuthorizationResponse`].
#[derive(Debug, Clone, Default)]
pub struct Answers {
    upstream: TextMatchers,
    upstream_append: TextMatchers,
    /// All when absent.
    client: Option<TextMatchers>,
    client_on_success: TextMatchers,
    metadata: TextMatchers,
}

impl Answers {
    pub(super) fn plan(raw: Option<&AuthorizationResponse>, errors: &mut Errors) -> Self {
        let Some(raw) = raw else {
            return Self::default();
        };
        let mut list = |raw: &Option<Located<ListStringMatcher>>| {
            raw.as_ref().map(|raw| TextMatchers::plan(raw, errors))
        };
        Self {
            upstream: list(&raw.allowed_upstream_headers).unwrap_or_default(),
            upstream_append: list(&raw.allowed_upstream_headers_to_append).unwrap_or_default(),
            client: list(&raw.allowed_client_headers),
            client_on_success: list(&raw.allowed_client_headers_on_success).unwrap_or_default(),
            metadata: list(&raw.dynamic_metadata_from_headers).unwrap_or_default(),
        }
    }

    /// Reads a response.
    pub fn read(&self, response: Response<Bytes>, reading: Reading) -> Answer {
        let (mut parts, body) = response.into_parts();
        if parts.status.is_server_error() {
            return Answer {
                verdict: Verdict::Error(None),
                metadata: None,
            };
        }
        let remove = parts.headers.get_all(&HEADERS_TO_REMOVE).iter();
        let remove = remove.filter_map(|names| names.to_str().ok());
        let remove: Vec<String> = remove
            .flat_map(|names| names.split(',').map(str::trim))
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        parts.headers.remove(&HEADERS_TO_REMOVE);
        let metadata = self.metadata(&parts.headers);
        let verdict = match parts.status {
            StatusCode::OK => Verdict::Allow(self.effects(&parts.headers, remove)),
            status => match final_status(status.as_u16().into()) {
                Some(status) => {
                    let reply = Reply {
                        status,
                        headers: self.for_client(&parts.headers),
                        body,
                    };
                    Verdict::Deny(reply.within(reading.max_denied_body))
                }
                None => Verdict::Invalid(Invalid::Answer),
            },
        };
        Answer { verdict, metadata }
    }

    fn effects(&self, headers: &HeaderMap, remove: Vec<String>) -> Effects {
        let mut effects = Effects {
            remove,
            ..Effects::default()
        };
        for (name, value) in headers {
            let to = [
                self.upstream.matches(name.as_str()),
                self.upstream_append.matches(name.as_str()),
                self.client_on_success.matches(name.as_str()),
            ];
            if to.contains(&true) && is_framing(name) {
                effects.omitted += 1;
                continue;
            }
            let [set, add, respond] = to;
            if set {
                effects.set.push((field(name), value.clone()));
            }
            if add && name != header::HOST {
                effects.add.push((name.clone(), value.clone()));
            }
            if respond {
                let change = (ResponseVerb::Add, name.clone(), value.clone());
                effects.response.push(change);
            }
        }
        effects
    }

    fn for_client(&self, headers: &HeaderMap) -> HeaderMap {
        let always = [header::LOCATION, header::WWW_AUTHENTICATE];
        let goes = |name: &HeaderName| match &self.client {
            None => name != header::HOST,
            Some(list) => always.contains(name) || list.matches(name.as_str()),
        };
        let kept = headers
            .iter()
            .filter(|(name, _)| is_for_client(name) && goes(name));
        kept.map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn metadata(&self, headers: &HeaderMap) -> Option<Struct> {
        let listed = headers
            .iter()
            .filter(|(name, _)| self.metadata.matches(name.as_str()));
        let fields: std::collections::BTreeMap<String, Value> = listed
            .map(|(name, value)| (name.to_string(), text_value(value)))
            .collect();
        (!fields.is_empty()).then_some(Struct { fields })
    }
}

/// Like any other setting of `host`: of the authority.
fn field(name: &HeaderName) -> FieldName {
    if name == header::HOST {
        FieldName::Pseudo("host".to_owned())
    } else {
        FieldName::Header(name.clone())
    }
}

fn text_value(value: &HeaderValue) -> Value {
    let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
    Value {
        kind: Some(Kind::StringValue(text)),
    }
}

#[cfg(test)]
mod tests {
    use attache_service::config::Document;

    use super::*;
    use crate::client::answer::tests::FAITHFUL;

    fn answers(text: &str) -> Answers {
        let raw = Document::parse("a.yaml", text).unwrap().decode();
        let raw: AuthorizationResponse = raw.unwrap_or_else(|errors| panic!("{errors}"));
        Answers::plan(Some(&raw), &mut Errors::new())
    }

    fn response(status: u16) -> Response<Bytes> {
        let response = Response::builder()
            .status(status)
            .header("x-u", "1")
            .header("x-u", "2")
            .header("x-ap", "1")
            .header("x-s", "1")
            .header("x-m", "meta")
            .header("set-cookie", "a=1")
            .header("location", "/login")
            .header("content-type", "text/html")
            .header("content-length", "4")
            .header("server", "auth")
            .header(HEADERS_TO_REMOVE, "authorization, x-gone,");
        response.body(Bytes::from_static(b"body")).unwrap()
    }

    fn read(answers: &Answers, status: u16) -> Answer {
        answers.read(response(status), FAITHFUL)
    }

    #[test]
    fn only_200_allows_and_the_services_own_failures_are_none_of_the_clients() {
        for status in [201, 202, 204, 302, 400, 404, 429, 499] {
            let Verdict::Deny(reply) = read(&Answers::default(), status).verdict else {
                panic!("{status}")
            };
            assert_eq!(reply.status, status);
            let body: &[u8] = if status == 204 { b"" } else { b"body" };
            assert_eq!(reply.body, body);
        }
        for status in [500, 503, 599] {
            let verdict = read(&Answers::default(), status).verdict;
            assert_eq!(verdict, Verdict::Error(None), "{status}");
        }
        // A client would go on waiting after the first, and cannot know the others.
        for status in [101, 600, 999] {
            let verdict = read(&Answers::default(), status).verdict;
            assert_eq!(verdict, Verdict::Invalid(Invalid::Answer), "{status}");
        }
    }

    #[test]
    fn listed_headers_of_an_allowing_answer_go_where_they_are_listed() {
        let answers = answers(
            "
allowed_upstream_headers: { patterns: [{ exact: x-u }, { exact: content-length }] }
allowed_upstream_headers_to_append: { patterns: [{ exact: x-ap }] }
allowed_client_headers_on_success: { patterns: [{ exact: x-s }] }
dynamic_metadata_from_headers: { patterns: [{ exact: x-m }] }
",
        );
        let answer = read(&answers, 200);
        let fields = answer.metadata.unwrap().fields;
        assert_eq!(fields["x-m"].kind, Some(Kind::StringValue("meta".into())));
        let Verdict::Allow(effects) = answer.verdict else {
            panic!()
        };
        let set: Vec<_> = effects.set.iter().map(|(n, v)| (n.as_str(), v)).collect();
        assert_eq!(
            set,
            [
                ("x-u", &"1".parse().unwrap()),
                ("x-u", &"2".parse().unwrap())
            ]
        );
        assert_eq!(effects.add[0].0, "x-ap");
        assert_eq!(effects.response[0].1, "x-s");
        assert_eq!(effects.remove, ["authorization", "x-gone"]);
        assert_eq!(effects.omitted, 1);
        // Nothing goes anywhere by default, but what is to be removed is.
        let Verdict::Allow(effects) = read(&Answers::default(), 200).verdict else {
            panic!()
        };
        assert!(effects.set.is_empty() && effects.add.is_empty() && effects.response.is_empty());
        assert_eq!(effects.remove.len(), 2);
    }

    #[test]
    fn a_denied_client_gets_all_headers_or_those_that_are_listed() {
        let names = |answers: &Answers| {
            let Verdict::Deny(reply) = read(answers, 401).verdict else {
                panic!()
            };
            let mut names: Vec<_> = reply.headers.keys().map(ToString::to_string).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(
            names(&Answers::default()),
            [
                "content-type",
                "location",
                "set-cookie",
                "x-ap",
                "x-m",
                "x-s",
                "x-u"
            ]
        );
        let listed = answers("allowed_client_headers: { patterns: [{ exact: x-s }] }");
        assert_eq!(names(&listed), ["location", "x-s"]);
    }
}
