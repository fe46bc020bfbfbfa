//! What an allowing answer does to the request and to the response. Pure.

use attache_filter::{
    MessageHead,
    mutation::{MutationRules, Operation, Verdict},
};
use http::{HeaderMap, HeaderName, HeaderValue, header, header::Entry, request, response};

use super::{
    answer::{Effects, FieldName, Invalid, ResponseVerb},
    query,
};

/// Bounds on a request's headers after changes, pseudo-headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderLimits {
    /// Most header lines. Envoy's default is 100.
    pub count: usize,
    /// Most bytes of names and values. Envoy's default is 60 KiB.
    pub bytes: usize,
}

impl Default for HeaderLimits {
    fn default() -> Self {
        Self {
            count: 100,
            bytes: 60 << 10,
        }
    }
}

/// Changes a request: sets, adds, appends, removals, query sets, query removals; then the limits.
///
/// # Errors
/// When a change cannot be carried out; the head is then of no further use.
pub fn request(
    head: &mut request::Parts,
    effects: &mut Effects,
    rules: Option<&MutationRules>,
    limits: HeaderLimits,
) -> Result<(), Invalid> {
    if !effects.touches_request() {
        return Ok(());
    }
    for (name, value) in effects.set.drain(..) {
        if permitted(rules, Operation::Set, name.as_str())? {
            set(head, name, value)?;
        }
    }
    for (name, value) in effects.add.drain(..) {
        if permitted(rules, Operation::Append, name.as_str())? {
            let added = head.headers.try_append(name, value);
            added.map_err(|_| Invalid::RequestLimits)?;
        }
    }
    for (name, value) in effects.append.drain(..) {
        if permitted(rules, Operation::Append, name.as_str())? {
            append(head, &name, &value)?;
        }
    }
    for name in effects.remove.drain(..) {
        // Also names that no header can have; those are not there to be removed.
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            permitted(rules, Operation::Remove, &name.to_ascii_lowercase())?;
            continue;
        }
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes())
            && permitted(rules, Operation::Remove, name.as_str())?
        {
            head.headers.remove(name);
        }
    }
    if effects.touches_query()
        && let Some(path) = head.pseudo(":path")
    {
        let path = query::edit(&path, &effects.query_set, &effects.query_remove);
        set_path(head, path.as_bytes())?;
    }
    within(head, limits)
}

/// What the rules say; without rules everything may be changed.
fn permitted(
    rules: Option<&MutationRules>,
    operation: Operation,
    name: &str,
) -> Result<bool, Invalid> {
    match rules.map_or(Verdict::Allow, |rules| rules.check(operation, name)) {
        Verdict::Allow => Ok(true),
        Verdict::Ignore => Ok(false),
        Verdict::Fail => Err(Invalid::Answer),
    }
}

fn set(head: &mut request::Parts, name: FieldName, value: HeaderValue) -> Result<(), Invalid> {
    match name {
        FieldName::Pseudo(name) => set_pseudo(head, &name, value.as_bytes()),
        FieldName::Header(name) => head
            .headers
            .try_insert(name, value)
            .map(|_| ())
            .map_err(|_| Invalid::RequestLimits),
    }
}

/// Joins to the first line; a header that is not there stays away.
fn append(head: &mut request::Parts, name: &FieldName, value: &HeaderValue) -> Result<(), Invalid> {
    match name {
        FieldName::Pseudo(name) => {
            let Some(existing) = head.pseudo(name) else {
                return Ok(());
            };
            let joined = [existing.as_bytes(), b",", value.as_bytes()].concat();
            set_pseudo(head, name, &joined)
        }
        FieldName::Header(name) => {
            let Some(existing) = head.headers.get_mut(name) else {
                return Ok(());
            };
            let separator: &[u8] = if name == header::COOKIE { b"; " } else { b"," };
            let joined = [existing.as_bytes(), separator, value.as_bytes()].concat();
            *existing = HeaderValue::from_bytes(&joined).map_err(|_| Invalid::Request)?;
            Ok(())
        }
    }
}

fn set_pseudo(head: &mut request::Parts, name: &str, value: &[u8]) -> Result<(), Invalid> {
    match name {
        ":path" => set_path(head, value),
        _ => head.set_pseudo(name, value).map_err(|_| Invalid::Request),
    }
}

fn set_path(head: &mut request::Parts, path: &[u8]) -> Result<(), Invalid> {
    // Anything else would run into the authority when the URI is put together, and what follows
    // a `#` would silently vanish.
    if !matches!(path, [b'/', ..] | b"*") || path.contains(&b'#') {
        return Err(Invalid::Request);
    }
    head.set_pseudo(":path", path).map_err(|_| Invalid::Request)
}

fn within(head: &request::Parts, limits: HeaderLimits) -> Result<(), Invalid> {
    let (mut count, mut bytes) = (0, 0);
    head.for_each(&mut |name, value| {
        count += 1;
        bytes += name.len() + value.len();
    });
    if count > limits.count || bytes > limits.bytes {
        return Err(Invalid::RequestLimits);
    }
    Ok(())
}

/// What became of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseOutcome {
    /// All is applied.
    Done,
    /// Some headers could not be added.
    Omitted,
    /// There are too many headers and `enforce_response_header_limits` is set.
    OverLimit,
}

/// Changes a response: adds, overwrites, adds where absent, overwrites where present.
pub fn response(
    head: &mut response::Parts,
    changes: Vec<(ResponseVerb, HeaderName, HeaderValue)>,
    limit: Option<usize>,
) -> ResponseOutcome {
    let mut outcome = ResponseOutcome::Done;
    for (verb, name, value) in changes {
        if !change(&mut head.headers, verb, name, value) {
            outcome = ResponseOutcome::Omitted;
        }
    }
    match limit {
        // `:status` counts.
        Some(limit) if head.headers.len() >= limit => ResponseOutcome::OverLimit,
        _ => outcome,
    }
}

/// `false` when the map is full.
fn change(
    headers: &mut HeaderMap,
    verb: ResponseVerb,
    name: HeaderName,
    value: HeaderValue,
) -> bool {
    match verb {
        ResponseVerb::Add => headers.try_append(name, value).is_ok(),
        ResponseVerb::Set => headers.try_insert(name, value).is_ok(),
        ResponseVerb::AddIfAbsent => match headers.try_entry(name) {
            Ok(Entry::Vacant(entry)) => entry.try_insert(value).is_ok(),
            Ok(Entry::Occupied(_)) => true,
            Err(_) => false,
        },
        ResponseVerb::ReplaceIfPresent => {
            if let Entry::Occupied(mut entry) = match headers.try_entry(name) {
                Ok(entry) => entry,
                Err(_) => return false,
            } {
                entry.insert(value);
            }
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use proptest::prelude::*;

    use super::*;
    use crate::client::answer::{
        Verdict, check_response,
        tests::{FAITHFUL, hv, option},
    };
    use attache_filter::mutation::HeaderMutationRules;
    use attache_proto::{
        auth::{CheckResponse, OkHttpResponse, check_response::HttpResponse},
        core::{HeaderValueOption, QueryParameter},
    };
    use attache_service::config::Errors;

    fn effects(ok: OkHttpResponse) -> Effects {
        let answer = CheckResponse {
            http_response: Some(HttpResponse::OkResponse(ok)),
            ..CheckResponse::default()
        };
        match check_response::read(answer, FAITHFUL).verdict {
            Verdict::Allow(effects) => effects,
            other => panic!("{other:?}"),
        }
    }

    fn client_head() -> request::Parts {
        let request = Request::builder()
            .uri("http://h/p?z=1&a=1")
            .header("x-e", "old1")
            .header("x-e", "old2")
            .header("cookie", "a=1")
            .header("authorization", "secret")
            .header("x-envoy-foo", "client");
        request.body(()).unwrap().into_parts().0
    }

    fn with_rules(
        head: &mut request::Parts,
        ok: OkHttpResponse,
        rules: Option<&MutationRules>,
    ) -> Result<(), Invalid> {
        super::request(head, &mut effects(ok), rules, HeaderLimits::default())
    }

    fn applied(headers: Vec<HeaderValueOption>, remove: &[&str]) -> request::Parts {
        let mut head = client_head();
        let ok = OkHttpResponse {
            headers,
            headers_to_remove: remove.iter().map(|name| (*name).to_owned()).collect(),
            ..OkHttpResponse::default()
        };
        with_rules(&mut head, ok, None).unwrap();
        head
    }

    fn lines<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
        headers
            .get_all(name)
            .iter()
            .map(|v| v.to_str().unwrap())
            .collect()
    }

    #[test]
    fn request_headers_are_set_joined_and_removed_as_envoy_does() {
        let append = |key, value| option(key, value, Some(true), 0);
        for (headers, remove, name, expected) in [
            (vec![hv("x-e", "new")], &[][..], "x-e", &["new"][..]),
            (vec![hv("X-N", "new")], &[], "x-n", &["new"]),
            (vec![hv("x-e", "")], &[], "x-e", &[""]),
            (
                vec![append("x-e", "new")],
                &[],
                "x-e",
                &["old1,new", "old2"],
            ),
            (vec![append("x-n", "new")], &[], "x-n", &[]),
            (vec![append("cookie", "z=1")], &[], "cookie", &["a=1; z=1"]),
            (vec![hv("x-a", "1"), hv("x-a", "2")], &[], "x-a", &["2"]),
            (
                vec![
                    hv("a", "1"),
                    append("a", "2"),
                    hv("a", "3"),
                    append("a", "4"),
                ],
                &[],
                "a",
                &["3,2,4"],
            ),
            (vec![hv("x-e", "new")], &["X-E"], "x-e", &[]),
            (vec![], &["X-E", "nope", "x b"], "x-e", &[]),
        ] {
            let head = applied(headers.clone(), remove);
            assert_eq!(
                lines(&head.headers, name),
                expected,
                "{headers:?} {remove:?}"
            );
        }
    }

    #[test]
    fn lines_of_their_own_come_after_what_is_set_and_the_rules_hold_for_them() {
        let add = |name: &'static str, value: &'static str| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        let mut head = client_head();
        let mut changes = effects(OkHttpResponse {
            headers: vec![hv("x-a", "set")],
            ..OkHttpResponse::default()
        });
        changes.add = vec![
            add("x-e", "new"),
            add("x-a", "added"),
            add("x-envoy-foo", "no"),
        ];
        let raw = HeaderMutationRules {
            allow_all_routing: None,
            allow_envoy: None,
            disallow_system: None,
            disallow_all: None,
            allow_expression: None,
            disallow_expression: None,
            disallow_is_error: None,
        };
        let rules = MutationRules::plan(&raw, &mut Errors::new());
        let limits = HeaderLimits::default();
        super::request(&mut head, &mut changes, Some(&rules), limits).unwrap();
        assert_eq!(lines(&head.headers, "x-e"), ["old1", "old2", "new"]);
        assert_eq!(lines(&head.headers, "x-a"), ["set", "added"]);
        assert_eq!(lines(&head.headers, "x-envoy-foo"), ["client"]);
    }

    #[test]
    fn pseudo_headers_and_host_can_be_set_but_not_removed() {
        let head = applied(
            vec![
                hv(":path", "/new?x"),
                hv(":method", "PUT"),
                hv("Host", "other"),
                hv(":scheme", "https"),
            ],
            &["host", ":path", ":method"],
        );
        let shown = |name| head.pseudo(name).map(|value| value.into_owned());
        assert_eq!(shown(":path").as_deref(), Some("/new?x"));
        assert_eq!(shown(":method").as_deref(), Some("PUT"));
        assert_eq!(shown(":authority").as_deref(), Some("other"));
        assert_eq!(shown(":scheme").as_deref(), Some("https"));
        let head = applied(vec![option(":path", "/x", Some(true), 0)], &[]);
        assert_eq!(head.pseudo(":path").as_deref(), Some("/p?z=1&a=1,/x"));
    }

    #[test]
    fn pseudo_headers_that_could_not_be_sent_are_refused() {
        for (name, value) in [
            (":path", ".evil.com/"),
            (":path", "/a#b"),
            (":path", "/a b"),
            (":path", ""),
            (":method", "GET / HTTP/1.1"),
            (":scheme", "ftp"),
            (":authority", "a/b"),
            (":status", "200"),
            (":made-up", "1"),
        ] {
            let ok = OkHttpResponse {
                headers: vec![hv(name, value)],
                ..OkHttpResponse::default()
            };
            let result = with_rules(&mut client_head(), ok, None);
            assert_eq!(result, Err(Invalid::Request), "{name}: {value}");
        }
    }

    #[test]
    fn rules_limit_what_may_be_changed() {
        let mut raw = HeaderMutationRules {
            allow_all_routing: None,
            allow_envoy: None,
            disallow_system: None,
            disallow_all: None,
            allow_expression: None,
            disallow_expression: None,
            disallow_is_error: None,
        };
        let ok = || OkHttpResponse {
            headers: vec![
                hv("host", "evil"),
                hv(":authority", "evil"),
                hv(":method", "PUT"),
                hv("x-envoy-foo", "evil"),
                hv(":path", "/new"),
                option(":path", "/x", Some(true), 0),
                hv("x-ok", "1"),
            ],
            headers_to_remove: vec!["x-envoy-foo".into(), "host".into()],
            ..OkHttpResponse::default()
        };
        let rules = MutationRules::plan(&raw, &mut Errors::new());
        let mut head = client_head();
        with_rules(&mut head, ok(), Some(&rules)).unwrap();
        assert_eq!(head.pseudo(":authority").as_deref(), Some("h"));
        assert_eq!(head.method, "GET");
        assert_eq!(head.pseudo(":path").as_deref(), Some("/new"));
        assert_eq!(lines(&head.headers, "x-envoy-foo"), ["client"]);
        assert_eq!(lines(&head.headers, "x-ok"), ["1"]);

        raw.disallow_is_error = Some(true);
        let rules = MutationRules::plan(&raw, &mut Errors::new());
        for (headers, remove) in [
            (vec![hv("host", "evil")], ""),
            (vec![hv("x-envoy-foo", "evil")], ""),
            (vec![], "host"),
            (vec![], ":path"),
            (vec![], "x-envoy-foo"),
        ] {
            let ok = OkHttpResponse {
                headers,
                headers_to_remove: vec![remove.to_owned()],
                ..OkHttpResponse::default()
            };
            let result = with_rules(&mut client_head(), ok, Some(&rules));
            assert_eq!(result, Err(Invalid::Answer));
        }
    }

    #[test]
    fn query_edits_follow_the_new_path_and_spare_connect() {
        let ok = || OkHttpResponse {
            headers: vec![hv(":path", "/n?b=2&a=0")],
            query_parameters_to_set: vec![QueryParameter {
                key: "a".into(),
                value: "new".into(),
            }],
            query_parameters_to_remove: vec!["b".into()],
            ..OkHttpResponse::default()
        };
        let mut head = client_head();
        with_rules(&mut head, ok(), None).unwrap();
        assert_eq!(head.pseudo(":path").as_deref(), Some("/n?a=new"));

        let mut connect = Request::connect("h:443").body(()).unwrap().into_parts().0;
        let mut only_query = ok();
        only_query.headers.clear();
        with_rules(&mut connect, only_query, None).unwrap();
        assert_eq!(connect.uri, "h:443");
    }

    #[test]
    fn too_many_or_too_large_headers_are_an_error() {
        let many = (0..120).map(|i| hv(&format!("x-{i}"), "1")).collect();
        let large = (0..5)
            .map(|i| hv(&format!("x-{i}"), &"v".repeat(16_000)))
            .collect();
        // More than a header map can hold.
        let enormous = (0..40_000).map(|i| hv(&format!("x-{i}"), "1")).collect();
        for headers in [many, large, enormous] {
            let ok = OkHttpResponse {
                headers,
                ..OkHttpResponse::default()
            };
            let result = with_rules(&mut client_head(), ok, None);
            assert_eq!(result, Err(Invalid::RequestLimits));
        }
    }

    fn respond(
        changes: Vec<HeaderValueOption>,
        limit: Option<usize>,
    ) -> (HeaderMap, ResponseOutcome) {
        let response = Response::builder().header("x-r", "u1").header("x-r", "u2");
        let mut head = response.body(()).unwrap().into_parts().0;
        let effects = effects(OkHttpResponse {
            response_headers_to_add: changes,
            ..OkHttpResponse::default()
        });
        let outcome = super::response(&mut head, effects.response, limit);
        (head.headers, outcome)
    }

    #[test]
    fn response_headers_are_added_and_replaced() {
        for (change, name, expected) in [
            (hv("x-r", "new"), "x-r", &["u1", "u2", "new"][..]),
            (
                option("x-r", "new", Some(true), 2),
                "x-r",
                &["u1", "u2", "new"],
            ),
            (option("x-r", "new", Some(false), 0), "x-r", &["new"]),
            (option("x-r", "new", None, 2), "x-r", &["new"]),
            (option("x-r", "new", None, 1), "x-r", &["u1", "u2"]),
            (option("x-r", "new", None, 3), "x-r", &["new"]),
            (option("x-n", "new", None, 1), "x-n", &["new"]),
            (option("x-n", "new", None, 3), "x-n", &[]),
        ] {
            let (headers, outcome) = respond(vec![change.clone()], None);
            assert_eq!(lines(&headers, name), expected, "{change:?}");
            assert_eq!(outcome, ResponseOutcome::Done);
        }
    }

    #[test]
    fn response_header_limits_count_only_when_enforced() {
        let many = |count| {
            (0..count)
                .map(|i| hv(&format!("x-{i}"), "1"))
                .collect::<Vec<_>>()
        };
        assert_eq!(respond(many(120), None).0.len(), 122);
        assert_eq!(respond(many(120), Some(100)).1, ResponseOutcome::OverLimit);
        assert_eq!(respond(many(90), Some(100)).1, ResponseOutcome::Done);
        assert_eq!(respond(many(40_000), None).1, ResponseOutcome::Omitted);
    }

    proptest! {
        #[test]
        fn any_answer_leaves_a_request_that_can_be_written(
            headers in proptest::collection::vec(
                (
                    prop_oneof!["[a-zA-Z:-]{0,12}", Just(":path".to_owned()), Just("host".to_owned()), any::<String>()],
                    any::<String>(),
                    proptest::option::of(any::<bool>()),
                    -1..5_i32,
                ),
                0..10,
            ),
            remove in proptest::collection::vec(any::<String>(), 0..4),
            query in proptest::collection::vec((any::<String>(), any::<String>()), 0..4),
        ) {
            let ok = OkHttpResponse {
                headers: headers.iter().map(|(k, v, a, n)| option(k, v, *a, *n)).collect(),
                headers_to_remove: remove,
                query_parameters_to_set: query
                    .into_iter()
                    .map(|(key, value)| QueryParameter { key, value })
                    .collect(),
                ..OkHttpResponse::default()
            };
            let answer = CheckResponse {
                http_response: Some(HttpResponse::OkResponse(ok)),
                ..CheckResponse::default()
            };
            if let Verdict::Allow(mut effects) = check_response::read(answer, FAITHFUL).verdict {
                let mut head = client_head();
                if super::request(&mut head, &mut effects, None, HeaderLimits::default()).is_ok() {
                    let path = head.pseudo(":path").unwrap().into_owned();
                    prop_assert!(path.starts_with('/') || path == "*", "{}", path);
                    prop_assert!(!path.bytes().any(|b| b <= b' ' || b == 0x7f || b == b'#'));
                    for (name, value) in &head.headers {
                        prop_assert!(!crate::client::answer::is_framing(name));
                        prop_assert!(!value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
                    }
                }
            }
        }
    }
}
