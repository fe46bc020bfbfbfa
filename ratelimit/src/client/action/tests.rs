use std::{net::SocketAddr, sync::Arc};

use attache_filter::{ConnectionInfo, attributes::Facts, metadata::RouteMetadata};
use attache_service::config::Document;
use http::Request;

use super::*;

fn action(text: &str) -> Action {
    let document = Document::parse("action.yaml", text).unwrap();
    let raw: raw::Action = document.decode().unwrap_or_else(|e| panic!("{e}"));
    let mut errors = Errors::new();
    let action = Action::plan(&raw, &mut errors);
    assert!(errors.is_empty(), "{errors}");
    action.unwrap()
}

fn faults(text: &str) -> String {
    let document = Document::parse("action.yaml", text).unwrap();
    match document.decode_partly::<raw::Action>() {
        (Some(raw), mut errors) => {
            Action::plan(&raw, &mut errors);
            errors.to_string()
        }
        (None, errors) => errors.to_string(),
    }
}

fn context(peer: &str) -> RequestContext {
    let connection = ConnectionInfo {
        peer: peer.parse::<SocketAddr>().ok(),
        ..ConnectionInfo::default()
    };
    RequestContext::new(Arc::new(connection), http::Version::HTTP_11)
}

/// A route with metadata.
fn route() -> Route {
    let text = "filter_metadata: { ns: { user: ann, empty: '', number: 7, deep: { in: side } } }";
    let document = Document::parse("metadata.yaml", text).unwrap();
    Route {
        metadata: RouteMetadata::plan(&document.decode().unwrap()),
        ..Route::default()
    }
}

/// `key=value`, `skip` or `drop`.
fn outcome(text: &str, peer: &str, cluster: Option<&str>) -> String {
    let (head, ()) = Request::builder()
        .method("POST")
        .uri("http://example.com/path?a=1&b=x%20y&a=2&flag")
        .header("x-user", "alice")
        .header("x-user", "bob")
        .header("x-latin", http::HeaderValue::from_bytes(b"\xe9").unwrap())
        .header("x-empty", "")
        .body(())
        .unwrap()
        .into_parts();
    let context = context(peer);
    let route = Route {
        cluster: cluster.map(Into::into),
        ..route()
    };
    context.merge_metadata("ns", route.metadata.untyped["ns"].clone());
    let facts = Facts {
        context: &context,
        request: Some(&head),
        response: None,
    };
    let subject = Subject {
        head: &head,
        context: &context,
        exchange: facts.into(),
        route: Some(&route),
        source_cluster: "front",
    };
    match action(text).apply(&subject) {
        Outcome::Entry(entry) => format!("{}={}", entry.key, entry.value),
        Outcome::Skip => "skip".to_owned(),
        Outcome::Drop => "drop".to_owned(),
    }
}

#[test]
fn actions_make_entries_as_envoy_does() {
    let table = [
        ("generic_key: { descriptor_value: v }", "generic_key=v"),
        (
            "generic_key: { descriptor_value: v, descriptor_key: k }",
            "k=v",
        ),
        (
            "request_headers: { header_name: X-User, descriptor_key: user }",
            "user=alice",
        ),
        (
            "request_headers: { header_name: x-empty, descriptor_key: e }",
            "e=",
        ),
        (
            "request_headers: { header_name: x-latin, descriptor_key: l }",
            "l=\u{fffd}",
        ),
        (
            "request_headers: { header_name: ':path', descriptor_key: p }",
            "p=/path?a=1&b=x%20y&a=2&flag",
        ),
        (
            "request_headers: { header_name: ':authority', descriptor_key: h }",
            "h=example.com",
        ),
        (
            "request_headers: { header_name: x-no, descriptor_key: k }",
            "drop",
        ),
        (
            "request_headers: { header_name: x-no, descriptor_key: k, skip_if_absent: true }",
            "skip",
        ),
        (
            "query_parameters: { query_parameter_name: a, descriptor_key: q }",
            "q=1",
        ),
        (
            "query_parameters: { query_parameter_name: b, descriptor_key: q }",
            "q=x y",
        ),
        (
            "query_parameters: { query_parameter_name: flag, descriptor_key: q }",
            "q=",
        ),
        (
            "query_parameters: { query_parameter_name: c, descriptor_key: q }",
            "drop",
        ),
        (
            "query_parameters: { query_parameter_name: c, descriptor_key: q, skip_if_absent: true }",
            "skip",
        ),
        ("remote_address: {}", "remote_address=192.168.1.9"),
        (
            "masked_remote_address: {}",
            "masked_remote_address=192.168.1.9/32",
        ),
        (
            "masked_remote_address: { v4_prefix_mask_len: 24 }",
            "masked_remote_address=192.168.1.0/24",
        ),
        (
            "masked_remote_address: { v4_prefix_mask_len: 0 }",
            "masked_remote_address=0.0.0.0/0",
        ),
        ("destination_cluster: {}", "destination_cluster=web"),
        (
            "header_value_match: { descriptor_value: post, headers: [{ name: ':method', string_match: { exact: POST } }] }",
            "header_match=post",
        ),
        (
            "header_value_match: { descriptor_value: v, descriptor_key: k, expect_match: false, headers: [{ name: x-no }] }",
            "k=v",
        ),
        (
            "header_value_match: { descriptor_value: v, headers: [{ name: x-user }, { name: x-no }] }",
            "drop",
        ),
        (
            "query_parameter_value_match: { descriptor_value: v, query_parameters: [{ name: a, string_match: { exact: '1' } }, { name: flag }] }",
            "query_match=v",
        ),
        (
            "query_parameter_value_match: { descriptor_value: v, query_parameters: [{ name: c, present_match: false }] }",
            "query_match=v",
        ),
        (
            "query_parameter_value_match: { descriptor_value: v, query_parameters: [{ name: a, string_match: { exact: '2' } }] }",
            "drop",
        ),
        ("source_cluster: {}", "source_cluster=front"),
        (
            "metadata: { descriptor_key: k, metadata_key: { key: ns, path: [{ key: user }] } }",
            "k=ann",
        ),
        (
            "metadata: { descriptor_key: k, source: ROUTE_ENTRY, metadata_key: { key: ns, path: [{ key: deep }, { key: in }] } }",
            "k=side",
        ),
        (
            "metadata: { descriptor_key: k, metadata_key: { key: ns, path: [{ key: number }] } }",
            "drop",
        ),
        (
            "metadata: { descriptor_key: k, skip_if_absent: true, metadata_key: { key: ns, path: [{ key: empty }] } }",
            "skip",
        ),
        (
            "metadata: { descriptor_key: k, default_value: d, skip_if_absent: true, metadata_key: { key: none, path: [{ key: user }] } }",
            "k=d",
        ),
        (
            "metadata: { descriptor_key: k, source: CLUSTER_LOCALITY_ENTRY, metadata_key: { key: ns, path: [{ key: user }] } }",
            "drop",
        ),
        (
            "remote_address_match: { descriptor_value: '<%REQ(x-user)%>', address_matcher: { ranges: [{ address_prefix: 192.168.0.0, prefix_len: 16 }] } }",
            "remote_address_match=<alice>",
        ),
        (
            "remote_address_match: { descriptor_value: v, address_matcher: { ranges: [{ address_prefix: 10.0.0.0, prefix_len: 8 }] } }",
            "drop",
        ),
        (
            "remote_address_match: { descriptor_value: v, descriptor_key: k, address_matcher: { invert_match: true, ranges: [{ address_prefix: 10.0.0.0, prefix_len: 8 }] } }",
            "k=v",
        ),
        (
            "remote_address_match: { descriptor_value: '%REQ(x-no)%', address_matcher: { invert_match: true } }",
            "drop",
        ),
        (
            "remote_address_match: { descriptor_value: '%REQ(x-no)%', default_value: d, address_matcher: { invert_match: true } }",
            "remote_address_match=d",
        ),
        (
            "extension: { name: e, typed_config: { '@type': type.googleapis.com/envoy.extensions.rate_limit_descriptors.expr.v3.Descriptor, descriptor_key: k, text: \"request.method == 'POST'\" } }",
            "k=true",
        ),
        (
            "extension: { name: e, typed_config: { '@type': type.googleapis.com/envoy.extensions.rate_limit_descriptors.expr.v3.Descriptor, descriptor_key: k, text: response.code } }",
            "drop",
        ),
        (
            "extension: { name: e, typed_config: { '@type': type.googleapis.com/envoy.extensions.rate_limit_descriptors.expr.v3.Descriptor, descriptor_key: k, text: response.code, skip_if_error: true } }",
            "skip",
        ),
        (
            "extension: { name: e, typed_config: { '@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-user } }",
            "e=alice,bob",
        ),
        (
            "extension: { name: e, typed_config: { '@type': type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-empty } }",
            "skip",
        ),
        (
            "extension: { name: e, typed_config: { '@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.ServerNameInput } }",
            "drop",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(
            outcome(text, "192.168.1.9:1", Some("web")),
            expected,
            "{text}"
        );
    }
}

#[test]
fn addresses_of_version_six_have_a_mask_of_their_own() {
    let masked = "masked_remote_address: { v4_prefix_mask_len: 8, v6_prefix_mask_len: 64 }";
    let peer = "[2001:db8::1:2:3:4]:1";
    assert_eq!(
        outcome(masked, peer, None),
        "masked_remote_address=2001:db8::/64"
    );
    assert_eq!(
        outcome("remote_address: {}", peer, None),
        "remote_address=2001:db8::1:2:3:4"
    );
    assert_eq!(
        outcome("remote_address: {}", "[::ffff:10.0.0.1]:1", None),
        "remote_address=10.0.0.1"
    );
}

#[test]
fn without_address_or_cluster_there_is_no_descriptor() {
    for text in [
        "remote_address: {}",
        "masked_remote_address: {}",
        "destination_cluster: {}",
    ] {
        assert_eq!(outcome(text, "unix", None), "drop", "{text}");
    }
}

#[test]
fn faults_are_named() {
    for (text, expected) in [
        (
            "generic_key: { descriptor_value: '' }",
            "`descriptor_value` must not be empty",
        ),
        (
            "request_headers: { header_name: 'a b', descriptor_key: k }",
            "`a b` is not a valid header name",
        ),
        (
            "masked_remote_address: { v4_prefix_mask_len: 33 }",
            "at most 32 bits",
        ),
        (
            "header_value_match: { descriptor_value: v, headers: [] }",
            "at least one matcher",
        ),
        ("dynamic_metadata: {}", "write `metadata`"),
        (
            "metadata: { descriptor_key: k, metadata_key: { key: ns, path: [] } }",
            "`path` needs at least one",
        ),
        (
            "remote_address_match: { descriptor_value: '%NOPE%', address_matcher: {} }",
            "`%NOPE%` is not known here",
        ),
        (
            "extension: { name: e, typed_config: { '@type': type.googleapis.com/envoy.extensions.rate_limit_descriptors.expr.v3.Descriptor, descriptor_key: k, text: request.pth } }",
            "no attribute `request.pth`",
        ),
        (
            "extension: { name: e, typed_config: { '@type': type.googleapis.com/google.protobuf.Empty } }",
            "makes no entries here",
        ),
        (
            "extension: { name: e, typed_config: { '@type': type.googleapis.com/envoy.extensions.rate_limit_descriptors.jwt_claim.v3.Descriptor } }",
            "nobody has verified",
        ),
        ("generic_keys: {}", "generic_key"),
    ] {
        let faults = faults(text);
        assert!(faults.contains(expected), "{text}: {faults}");
    }
}
