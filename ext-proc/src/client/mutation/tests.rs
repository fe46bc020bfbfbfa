use attache_proto::core;
use attache_service::config::{Document, Errors};
use http::{HeaderMap, Request, Response};

use super::*;

fn rules(text: &str) -> MutationRules {
    let raw = Document::parse("r.yaml", text).unwrap().decode().unwrap();
    let mut errors = Errors::new();
    let rules = MutationRules::plan(&raw, &mut errors);
    assert!(errors.is_empty());
    rules
}

fn option(key: &str, value: &[u8], append: Option<bool>) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(core::HeaderValue {
            key: key.to_owned(),
            raw_value: value.to_vec().into(),
            ..core::HeaderValue::default()
        }),
        append,
        ..HeaderValueOption::default()
    }
}

fn sets(options: Vec<HeaderValueOption>) -> HeaderMutation {
    HeaderMutation {
        set_headers: options,
        ..HeaderMutation::default()
    }
}

fn removes(names: &[&str]) -> HeaderMutation {
    HeaderMutation {
        remove_headers: names.iter().map(|name| (*name).to_owned()).collect(),
        ..HeaderMutation::default()
    }
}

/// The outcome and the number of rejected entries.
fn apply_to(
    head: &mut dyn MessageHead,
    mutation: &HeaderMutation,
    rules: &MutationRules,
) -> (Result<(), MutationError>, u64) {
    let mut rejected = 0;
    let result = apply(mutation, head, Target::Message, rules, &mut rejected);
    (result, rejected)
}

fn request() -> http::request::Parts {
    let request = Request::builder()
        .uri("/p")
        .header("host", "h")
        .header("x-h", "old");
    request
        .header("content-type", "a")
        .body(())
        .unwrap()
        .into_parts()
        .0
}

fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.get_all(name).iter().map(text).collect()
}

#[test]
fn a_set_replaces_and_an_append_adds() {
    for (options, name, expected) in [
        (vec![option("x-h", b"new", None)], "x-h", vec!["new"]),
        (vec![option("X-H", b"new", Some(false))], "x-h", vec!["new"]),
        (
            vec![option("x-h", b"new", Some(true))],
            "x-h",
            vec!["old", "new"],
        ),
        (
            vec![option("x-d", b"1", None), option("x-d", b"2", None)],
            "x-d",
            vec!["2"],
        ),
        (
            vec![
                option("x-d", b"1", Some(true)),
                option("x-d", b"2", Some(true)),
            ],
            "x-d",
            vec!["1", "2"],
        ),
        (vec![option("x-e", b"", None)], "x-e", vec![""]),
        (
            vec![option("content-type", b"b", Some(true))],
            "content-type",
            vec!["a,b"],
        ),
    ] {
        let mut head = request();
        let result = apply_to(&mut head, &sets(options.clone()), &MutationRules::default());
        assert_eq!(result, (Ok(()), 0));
        assert_eq!(values(&head.headers, name), expected, "{options:?}");
    }
}

#[test]
fn only_raw_value_and_append_count() {
    let mut only_value = option("x-v", b"", None);
    only_value.header.as_mut().unwrap().value = "val".to_owned();
    let mut both = option("x-b", b"raw", None);
    both.header.as_mut().unwrap().value = "val".to_owned();
    let mut absent = option("x-h", b"new", None);
    absent.append_action = core::header_value_option::HeaderAppendAction::AddIfAbsent as i32;
    let headerless = HeaderValueOption::default();

    let mut head = request();
    let mutation = sets(vec![only_value, both, absent, headerless]);
    assert_eq!(
        apply_to(&mut head, &mutation, &MutationRules::default()),
        (Ok(()), 0)
    );
    assert_eq!(values(&head.headers, "x-v"), [""]);
    assert_eq!(values(&head.headers, "x-b"), ["raw"]);
    assert_eq!(values(&head.headers, "x-h"), ["new"]);
}

#[test]
fn removals_come_first() {
    let mut head = request();
    let mut mutation = sets(vec![option("x-h", b"new", Some(true))]);
    mutation.remove_headers = vec!["x-h".to_owned()];
    assert_eq!(
        apply_to(&mut head, &mutation, &MutationRules::default()),
        (Ok(()), 0)
    );
    assert_eq!(values(&head.headers, "x-h"), ["new"]);
}

#[test]
fn routing_headers_follow_the_rules() {
    let everything = "{ allow_all_routing: true, allow_envoy: true }";
    let mutation = sets(vec![
        option(":authority", b"a2", None),
        option(":method", b"PUT", None),
        option("x-envoy-foo", b"1", None),
    ]);
    let mut head = request();
    assert_eq!(
        apply_to(&mut head, &mutation, &rules(everything)),
        (Ok(()), 0)
    );
    assert_eq!(
        (head.method.as_str(), &head.headers["host"]),
        ("PUT", &HeaderValue::from_static("a2"))
    );
    assert!(head.headers.contains_key("x-envoy-foo"));

    let mut head = request();
    assert_eq!(
        apply_to(&mut head, &mutation, &MutationRules::default()),
        (Ok(()), 3)
    );
    assert_eq!(
        (head.method.as_str(), &head.headers["host"]),
        ("GET", &HeaderValue::from_static("h"))
    );

    let mutation = removes(&["host", ":path", ":method", "x-h"]);
    assert_eq!(
        apply_to(&mut head, &mutation, &rules(everything)),
        (Ok(()), 3)
    );
    assert!(head.headers.contains_key("host") && !head.headers.contains_key("x-h"));
}

#[test]
fn the_scheme_and_the_status_must_make_sense() {
    let routing = rules("allow_all_routing: true");
    let mutation = sets(vec![option(":scheme", b"ftp", None)]);
    assert_eq!(apply_to(&mut request(), &mutation, &routing), (Ok(()), 1));
    for (status, applied) in [("418", true), ("abc", false), ("99", false), ("150", false)] {
        let mut head = Response::new(()).into_parts().0;
        let mutation = sets(vec![option(":status", status.as_bytes(), None)]);
        let rejected = u64::from(!applied);
        assert_eq!(
            apply_to(&mut head, &mutation, &routing),
            (Ok(()), rejected),
            "{status}"
        );
        assert_eq!(head.status == 418, applied);
    }
}

#[test]
fn what_fails_the_message() {
    let strict = rules("disallow_is_error: true");
    let lenient = MutationRules::default();
    let many = |count| {
        (0..count)
            .map(|n| option(&format!("x-{n}"), b"1", None))
            .collect()
    };
    let large = (0..5)
        .map(|n| option(&format!("x-{n}"), &[b'a'; 15 << 10], None))
        .collect();
    for (mutation, rules, error) in [
        (
            sets(vec![option("x-a", b"a\nb", None)]),
            &lenient,
            MutationError::InvalidSet,
        ),
        (
            sets(vec![option("x v", b"1", None)]),
            &lenient,
            MutationError::InvalidSet,
        ),
        (
            sets(vec![option("", b"1", None)]),
            &lenient,
            MutationError::InvalidSet,
        ),
        (removes(&["x v"]), &lenient, MutationError::InvalidRemove),
        (
            sets(vec![option(":method", b"PUT", None)]),
            &strict,
            MutationError::SetFailed,
        ),
        (removes(&[":path"]), &strict, MutationError::RemoveFailed),
        (sets(many(101)), &lenient, MutationError::TooManyOperations),
        (sets(many(99)), &lenient, MutationError::ResultTooLarge),
        (sets(large), &lenient, MutationError::ResultTooLarge),
    ] {
        let (result, rejected) = apply_to(&mut request(), &mutation, rules);
        assert_eq!(result, Err(error));
        assert_eq!(rejected, 1);
    }
}

#[test]
fn bytes_above_ascii_pass() {
    let mut head = request();
    let mutation = sets(vec![option("x-b", &[0xff, 0xfe], None)]);
    assert_eq!(
        apply_to(&mut head, &mutation, &MutationRules::default()),
        (Ok(()), 0)
    );
    assert_eq!(head.headers["x-b"].as_bytes(), [0xff, 0xfe]);
}

proptest::proptest! {
    #[test]
    fn any_mutation_leaves_a_message_that_can_be_sent(
        options in proptest::collection::vec(
            ("[:a-zA-Z \\-]{0,8}", proptest::collection::vec(0u8..=255, 0..6), proptest::option::of(proptest::bool::ANY)),
            0..6,
        ),
        names in proptest::collection::vec("[:a-zA-Z \\-]{0,8}", 0..4),
        strict in proptest::bool::ANY,
    ) {
        let rules = rules(&format!("{{ allow_all_routing: true, disallow_is_error: {strict} }}"));
        let options = options.iter().map(|(k, v, append)| option(k, v, *append)).collect();
        let mut mutation = sets(options);
        mutation.remove_headers = names;
        let mut head = request();
        let _ = apply_to(&mut head, &mutation, &rules);
        assert!(head.headers.contains_key("host"));
        assert!(!head.headers.contains_key("transfer-encoding"));
        head.for_each(&mut |name, value| {
            assert!(!name.is_empty() && !name.contains(' '));
            assert!(!value.contains(&b'\n') && !value.contains(&b'\r') && !value.contains(&0));
        });
    }
}
