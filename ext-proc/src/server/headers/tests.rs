use attache_proto::ext_proc::HeaderMutation;
use prost::Message as _;

use super::*;

fn mutation(headers: &mut Headers) -> HeaderMutation {
    let changes = headers.take_changes().unwrap();
    let mut buffer = bytes::BytesMut::new();
    changes.encode(&mut buffer);
    assert_eq!(buffer.len(), changes.encoded_len());
    HeaderMutation::decode(buffer).unwrap()
}

fn entries(headers: &mut Headers) -> (Vec<(String, String, bool)>, Vec<String>) {
    let mutation = mutation(headers);
    let set = mutation.set_headers.into_iter().map(|option| {
        let header = option.header.unwrap();
        assert_eq!(header.value, "");
        let value = String::from_utf8(header.raw_value.to_vec()).unwrap();
        (header.key, value, option.append.unwrap_or(false))
    });
    (set.collect(), mutation.remove_headers)
}

fn entry(key: &str, value: &str, append: bool) -> (String, String, bool) {
    (key.to_owned(), value.to_owned(), append)
}

#[test]
fn the_last_change_of_a_name_counts() {
    let mut headers = Headers::from_iter([("x-a", "0"), ("x-b", "0")]);
    headers.insert("X-A", "1").unwrap();
    headers.remove("x-a").unwrap();
    headers.remove("x-b").unwrap();
    headers.append("x-b", "1").unwrap();
    headers.append("x-b", "2").unwrap();
    headers.append("x-c", "3").unwrap();

    assert!(!headers.contains_key("x-a"));
    assert_eq!(
        headers.get_all("x-b").iter().collect::<Vec<_>>(),
        ["1", "2"]
    );
    let (set, removed) = entries(&mut headers);
    let expected = [
        entry("x-b", "1", false),
        entry("x-b", "2", true),
        entry("x-c", "3", true),
    ];
    assert_eq!(set, expected);
    assert_eq!(removed, ["x-a"]);
}

#[test]
fn conditional_changes_look_at_what_was_received() {
    let mut headers = Headers::from_iter([("x-a", "0")]);
    headers.insert_if_absent("x-a", "1").unwrap();
    headers.insert_if_absent("x-b", "1").unwrap();
    headers.replace("x-a", "2").unwrap();
    headers.replace("x-c", "2").unwrap();
    let (set, _) = entries(&mut headers);
    assert_eq!(set, [entry("x-b", "1", false), entry("x-a", "2", false)]);
}

#[test]
fn json_is_known_by_its_content_type() {
    for (kind, is_json) in [
        ("application/json", true),
        ("Application/JSON; charset=utf-8", true),
        ("application/problem+json", true),
        ("application/jsonp", false),
        ("text/plain", false),
    ] {
        assert_eq!(
            Headers::from_iter([("content-type", kind)]).is_json(),
            is_json,
            "{kind}"
        );
    }
    assert!(!Headers::default().is_json());
}

#[test]
fn what_envoy_would_refuse_is_refused_at_once() {
    let mut headers = Headers::default();
    assert_eq!(
        headers.insert("x v", "1"),
        Err(HeaderError::Name("x v".into()))
    );
    assert_eq!(headers.insert("", "1"), Err(HeaderError::Name("".into())));
    assert_eq!(
        headers.insert("x-a", "a\nb"),
        Err(HeaderError::Value("x-a".into()))
    );
    assert_eq!(
        headers.append("Transfer-Encoding", "chunked"),
        Err(HeaderError::TransferEncoding)
    );
    assert_eq!(
        headers.insert("content-length", "1"),
        Err(HeaderError::ContentLength)
    );
    assert_eq!(headers.remove("host"), Err(HeaderError::Host));
    for (name, unless) in [
        ("host", "allow_all_routing"),
        ("x-envoy-retry-on", "allow_envoy"),
    ] {
        let name = name.to_owned();
        let refused = Err(HeaderError::Refused {
            name: name.clone(),
            unless,
        });
        assert_eq!(headers.insert(name.as_str(), "1"), refused);
    }
    assert_eq!(headers.take_changes().unwrap().encoded_len(), 0);
}

#[test]
fn what_the_proxy_allows_is_not_refused() {
    let rules = Rules {
        allow_all_routing: true,
        allow_envoy: true,
        ..Rules::default()
    };
    let mut headers = Headers::new(Fieldset::default(), rules);
    headers.insert("host", "h").unwrap();
    headers.insert("x-envoy-retry-on", "5xx").unwrap();
    headers
        .set_pseudo(":method", HeaderValue::from_static("PUT"))
        .unwrap();
    assert_eq!(mutation(&mut headers).set_headers.len(), 3);
}

#[test]
fn numbers_and_sizes_are_checked_before_they_are_sent() {
    let received = || Headers::from_iter([("x-big", "0123456789")]);

    let mut headers = received();
    for n in 0..101 {
        headers.insert(format!("x-{n}").as_str(), "1").unwrap();
    }
    assert_eq!(
        headers.take_changes().unwrap_err(),
        HeaderError::TooManyChanges {
            changes: 101,
            limit: 100
        }
    );

    let mut headers = received();
    for n in 0..100 {
        headers.insert(format!("x-{n}").as_str(), "1").unwrap();
    }
    assert_eq!(
        headers.take_changes().unwrap_err(),
        HeaderError::TooManyHeaders {
            count: 101,
            limit: 100
        }
    );

    // The bound is met exactly: what is replaced does not count.
    let limit = (60 << 10) - "x-big".len();
    for (length, fits) in [(limit, true), (limit + 1, false)] {
        let mut headers = received();
        headers.insert("x-big", "v".repeat(length)).unwrap();
        assert_eq!(headers.take_changes().is_ok(), fits, "{length}");
    }
}

#[test]
fn assigning_a_map_changes_what_differs() {
    let mut headers = Headers::from_iter([
        (":path", "/"),
        ("x-same", "1"),
        ("x-two", "1"),
        ("x-gone", "1"),
        ("content-length", "5"),
    ]);
    let mut wanted = HeaderMap::new();
    wanted.insert("x-same", HeaderValue::from_static("1"));
    wanted.append("x-two", HeaderValue::from_static("1"));
    wanted.append("x-two", HeaderValue::from_static("2"));
    wanted.insert("content-length", HeaderValue::from_static("9"));
    headers.assign(&wanted).unwrap();

    let (set, removed) = entries(&mut headers);
    assert_eq!(set, [entry("x-two", "1", false), entry("x-two", "2", true)]);
    assert_eq!(removed, ["x-gone"]);
}

proptest::proptest! {
    /// What the author sees is what the client ends up with.
    #[test]
    fn the_view_is_what_envoy_makes_of_the_mutation(
        operations in proptest::collection::vec((0u8..3, 0usize..3, "[a-z]{1,3}"), 0..12),
    ) {
        let received = [("x-a", "0"), ("x-b", "0"), ("x-b", "1")];
        let mut headers = Headers::from_iter(received);
        for (operation, name, value) in &operations {
            let name = ["x-a", "x-b", "x-c"][*name];
            match operation {
                0 => headers.insert(name, value.as_str()).unwrap(),
                1 => headers.append(name, value.as_str()).unwrap(),
                _ => headers.remove(name).unwrap(),
            }
        }
        let view = headers.clone();
        let mutation = mutation(&mut headers);

        let mut applied = Headers::from_iter(received).clone();
        for name in &mutation.remove_headers {
            applied.remove(name);
        }
        for option in &mutation.set_headers {
            let header = option.header.as_ref().unwrap();
            let name = HeaderName::from_bytes(header.key.as_bytes()).unwrap();
            let value = HeaderValue::from_bytes(&header.raw_value).unwrap();
            if option.append == Some(true) {
                applied.append(name, value);
            } else {
                applied.insert(name, value);
            }
        }
        for name in ["x-a", "x-b", "x-c"] {
            let of = |map: &HeaderMap| map.get_all(name).iter().cloned().collect::<Vec<_>>();
            assert_eq!(of(&view), of(&applied), "{operations:?}");
        }
    }
}
