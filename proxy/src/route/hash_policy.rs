//! `hash_policy`: requests with the same hash go to the same endpoint.

use std::time::Duration;

use attache_filter::RequestContext;
use attache_service::{cluster::hash, config::Errors};
use http::{HeaderName, HeaderValue, header, request::Parts};

use super::Forward;
use crate::config::{HashBy as Raw, HashPolicy as RawPolicy};

/// A part of a request that is hashed.
#[derive(Debug, Clone)]
pub struct HashPolicy {
    by: HashBy,
    /// Where it is there, those behind it do not count.
    terminal: bool,
}

#[derive(Debug, Clone)]
enum HashBy {
    Header(HeaderName),
    Cookie { name: String, given: Option<Given> },
    SourceIp,
    QueryParameter(String),
}

/// A cookie for clients that have none.
#[derive(Debug, Clone)]
struct Given {
    ttl: Duration,
    path: Option<String>,
}

/// What a request hashes to.
#[derive(Debug, Default)]
pub(crate) struct Hashed {
    /// The hash, where there is something to hash.
    pub(crate) key: Option<u64>,
    /// The cookie that the client gets, so that it hashes to the same from now on.
    pub(crate) cookie: Option<Box<HeaderValue>>,
}

impl HashPolicy {
    /// Checks a policy; `None` where it says nothing, or after an error was added.
    pub(crate) fn plan(raw: &RawPolicy, errors: &mut Errors) -> Option<Self> {
        let by = match &raw.by {
            Raw::Header(header) => {
                let name = &header.header_name;
                let parsed = HeaderName::try_from(name.as_str());
                let wrong = |_| errors.push(name, format!("`{}` is not a header name", name.value));
                HashBy::Header(parsed.map_err(wrong).ok()?)
            }
            Raw::Cookie(cookie) => {
                let name = &cookie.name;
                let token = |b: u8| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&b);
                if name.is_empty() || !name.bytes().all(token) {
                    errors.push(name, format!("`{}` is not a name of a cookie", name.value));
                }
                if let Some(path) = &cookie.path
                    && !path.bytes().all(|b| (b' '..0x7f).contains(&b) && b != b';')
                {
                    errors.push(path, format!("`{}` is not a path", path.value));
                }
                HashBy::Cookie {
                    name: name.value.clone(),
                    given: cookie.ttl.map(|ttl| Given {
                        ttl,
                        path: cookie.path.as_ref().map(|path| path.value.clone()),
                    }),
                }
            }
            Raw::ConnectionProperties(properties) if !properties.source_ip => return None,
            Raw::ConnectionProperties(_) => HashBy::SourceIp,
            Raw::QueryParameter(parameter) => HashBy::QueryParameter(parameter.name.clone()),
        };
        Some(Self {
            by,
            terminal: raw.terminal.unwrap_or(false),
        })
    }

    fn hash(&self, parts: &Parts, context: &RequestContext, hashed: &mut Hashed) -> Option<u64> {
        match &self.by {
            HashBy::Header(name) => {
                let values = parts.headers.get_all(name).iter();
                let each = values.map(|value| hash(value.as_bytes()));
                each.reduce(|one, next| one.rotate_left(1) ^ next)
            }
            HashBy::Cookie { name, given } => match cookie(parts, name) {
                Some(value) => Some(hash(value.as_bytes())),
                None => given.as_ref().map(|given| {
                    let value = format!("{:016x}", rand::random::<u64>());
                    hashed.cookie = given.cookie(name, &value).map(Box::new);
                    hash(value.as_bytes())
                }),
            },
            HashBy::SourceIp => context.client_ip.map(|ip| hash(ip.to_string().as_bytes())),
            HashBy::QueryParameter(name) => {
                let mut pairs = parts.uri.query()?.split('&');
                let value = pairs.find_map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (key == name).then_some(value)
                });
                value.map(|value| hash(value.as_bytes()))
            }
        }
    }
}

impl Given {
    fn cookie(&self, name: &str, value: &str) -> Option<HeaderValue> {
        let mut cookie = format!("{name}=\"{value}\"");
        if !self.ttl.is_zero() {
            cookie.push_str(&format!("; Max-Age={}", self.ttl.as_secs()));
        }
        if let Some(path) = self.path.as_ref().filter(|path| !path.is_empty()) {
            cookie.push_str(&format!("; Path={path}"));
        }
        cookie.push_str("; HttpOnly");
        HeaderValue::try_from(cookie).ok()
    }
}

/// The value of the first cookie `name`, without quotes.
fn cookie<'p>(parts: &'p Parts, name: &str) -> Option<&'p str> {
    let headers = parts.headers.get_all(header::COOKIE).iter();
    let mut pairs = headers
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'));
    pairs.find_map(|pair| {
        let (key, value) = pair.trim_start().split_once('=')?;
        let value = value.trim_end();
        let bare = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
        (key == name).then_some(bare.unwrap_or(value))
    })
}

impl Forward {
    /// What a request hashes to.
    pub(crate) fn hashed(&self, parts: &Parts, context: &RequestContext) -> Hashed {
        let mut hashed = Hashed::default();
        for policy in &self.hash_policy {
            let one = policy.hash(parts, context, &mut hashed);
            hashed.key = match (hashed.key, one) {
                (Some(before), Some(one)) => Some(before.rotate_left(1) ^ one),
                (before, one) => before.or(one),
            };
            if policy.terminal && hashed.key.is_some() {
                break;
            }
        }
        hashed
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Arc};

    use attache_service::config::Document;

    use super::*;

    fn forward(text: &str) -> Forward {
        let document = Document::parse("policies.yaml", text).unwrap();
        let raw: Vec<RawPolicy> = document.decode().unwrap();
        let mut errors = Errors::new();
        let mut forward = Forward::to(0);
        forward.hash_policy = raw
            .iter()
            .filter_map(|raw| HashPolicy::plan(raw, &mut errors))
            .collect();
        assert!(errors.is_empty(), "{errors}");
        forward
    }

    fn key(forward: &Forward, request: http::request::Builder, ip: &str) -> Hashed {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut context = RequestContext::new(Arc::default(), http::Version::HTTP_11);
        context.client_ip = Some(ip.parse::<IpAddr>().unwrap());
        forward.hashed(&parts, &context)
    }

    fn get(uri: &str) -> http::request::Builder {
        http::Request::get(uri)
    }

    #[test]
    fn each_part_of_a_request_can_be_hashed() {
        for (policy, same, other) in [
            (
                "[{ header: { header_name: x-user } }]",
                get("/a").header("x-user", "u"),
                get("/a").header("x-user", "v"),
            ),
            (
                "[{ query_parameter: { name: id } }]",
                get("/a?x=1&id=7"),
                get("/a?id=8"),
            ),
            (
                "[{ cookie: { name: sid } }]",
                get("/").header("cookie", "a=1; sid=\"7\""),
                get("/").header("cookie", "sid=8"),
            ),
        ] {
            let forward = forward(policy);
            let one = key(&forward, same, "10.0.0.1").key;
            let two = key(&forward, other, "10.0.0.1").key;
            assert!(one.is_some() && two.is_some(), "{policy}");
            assert_ne!(one, two, "{policy}");
            assert_eq!(key(&forward, get("/"), "10.0.0.1").key, None, "{policy}");
        }
        let by_ip = forward("[{ connection_properties: { source_ip: true } }]");
        let one = key(&by_ip, get("/"), "10.0.0.1").key;
        assert_eq!(one, key(&by_ip, get("/b"), "10.0.0.1").key);
        assert_ne!(one, key(&by_ip, get("/"), "10.0.0.2").key);
        let off = forward("[{ connection_properties: { source_ip: false } }]");
        assert_eq!(key(&off, get("/"), "10.0.0.1").key, None);
    }

    #[test]
    fn a_terminal_policy_ends_the_list_where_it_is_there() {
        let policies = "[{ header: { header_name: x-user }, terminal: true }, { connection_properties: { source_ip: true } }]";
        let forward = forward(policies);
        let user = |ip| key(&forward, get("/").header("x-user", "u"), ip).key;
        assert_eq!(user("10.0.0.1"), user("10.0.0.2"));
        let nobody = |ip| key(&forward, get("/"), ip).key;
        assert_ne!(nobody("10.0.0.1"), nobody("10.0.0.2"));
    }

    #[test]
    fn a_client_without_the_cookie_is_given_one_that_hashes_alike() {
        let forward = forward("[{ cookie: { name: sid, ttl: 60s, path: /app } }]");
        let first = key(&forward, get("/"), "10.0.0.1");
        let set = first.cookie.unwrap();
        let set = set.to_str().unwrap();
        let (pair, attributes) = set.split_once("; ").unwrap();
        assert_eq!(attributes, "Max-Age=60; Path=/app; HttpOnly");
        let next = key(&forward, get("/").header("cookie", pair), "10.0.0.1");
        assert_eq!(next.key, first.key);
        assert!(next.cookie.is_none());
    }
}
