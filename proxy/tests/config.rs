//! From a configuration file to a running proxy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

mod support;

use std::{collections::BTreeMap, time::Duration};

use attache_filter::context::IdleTimeout;
use attache_proxy::{
    Plan,
    config::{Config, NothingEmbedded},
    export,
    route::Rule,
};
use attache_service::config::{Document, Errors};
use support::{OK, Raw, echo_origin, header, start, status};

fn read(text: &str) -> Result<(Config, Plan), Errors> {
    Config::read(
        &Document::parse("proxy.yaml", text).unwrap(),
        &NothingEmbedded,
    )
}

/// The message of the one mistake in `text`, with its line and column.
fn mistakes(text: &str) -> Vec<(u32, u32, String)> {
    let errors = read(text).expect_err("a mistake");
    errors
        .iter()
        .map(|error| {
            (
                error.line().unwrap_or(0),
                error.column().unwrap_or(0),
                error.message().to_owned(),
            )
        })
        .collect()
}

const WHOLE: &str = r#"
listeners:
- name: edge
  address: 127.0.0.1:0
  filters: [limits, auth, rewrite]
  limits: { max_connections: 100, max_headers: 50, max_header_bytes: 16KiB, header_timeout: 5s }
  access_log: { format: json, sample: 0.01, always: [errors, "slow>1s"] }
filters:
  limits:
    ratelimit:
      domain: edge
      rate_limit_service: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: limits } } }
      rate_limits: [{ actions: [{ remote_address: {} }] }]
  auth:
    ext_authz: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: auth }, timeout: 0.25s } }
  rewrite:
    ext_proc:
      grpc_service: { envoy_grpc: { cluster_name: rewrite } }
      message_timeout: 0.5s
      processing_mode: { request_body_mode: STREAMED, response_header_mode: SEND }
routes:
- match: { prefix: /healthz }
  direct_response: { status: 200, body: { inline_string: ok } }
- match: { prefix: /old, headers: [{ name: ":method", string_match: { exact: GET } }] }
  redirect: { path_redirect: /new, response_code: FOUND }
- match: { safe_regex: { regex: "/v[0-9]+/.*" } }
  route: { cluster: web, prefix_rewrite: null, host_rewrite_literal: internal.example }
- match: { prefix: / }
  route: { cluster: web, timeout: 30s, idle_timeout: 60s }
  typed_per_filter_config: { rewrite: { overrides: { processing_mode: { request_body_mode: NONE } } } }
clusters:
- { name: web, endpoints: ["127.0.0.1:3000", "127.0.0.1:3001"], connect_timeout: 1s }
- { name: rewrite, endpoints: ["unix:/run/rewrite.sock"], http2: {} }
- { name: limits, endpoints: ["127.0.0.1:8081"], http2: {} }
- { name: auth, endpoints: ["127.0.0.1:8082"], http2: {} }
admin: 127.0.0.1:9901
"#;

#[test]
fn a_whole_configuration_is_planned() {
    let (_, plan) = read(WHOLE).unwrap_or_else(|errors| panic!("{errors}"));
    let listener = &plan.listeners[0];
    assert_eq!(listener.limits.max_headers, 50);
    assert_eq!(listener.limits.max_header_bytes, 16 << 10);
    assert_eq!(
        listener
            .filters
            .iter()
            .map(|name| &**name)
            .collect::<Vec<_>>(),
        ["limits", "auth", "rewrite"]
    );
    let silence: Vec<_> = plan.routes.hosts()[0]
        .routes
        .iter()
        .filter_map(|rule| match rule {
            Rule::One(entry) => Some(entry.route.idle_timeout),
            Rule::Split(_) => None,
        })
        .collect();
    let minute = IdleTimeout::After(Duration::from_secs(60));
    let inherited = IdleTimeout::Inherited;
    assert_eq!(silence, [inherited, inherited, inherited, minute]);
    let mut called: Vec<_> = plan.filters.clusters().collect();
    called.sort();
    assert_eq!(called, ["auth", "limits", "rewrite"]);
}

#[test]
fn every_mistake_is_reported_at_its_place() {
    let text = "\
listeners:
- name: edge
  address: 127.0.0.1
  filters: [atuh]
filters:
  auth:
    ext_authz: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: nowhere } } }
routes:
- match: { prefix: / }
  route: { cluster: wbe, timeot: 3s }
- match: { prefix: /x }
  route: { cluster: web, retry_policy: { retry_priority: {} } }
clusters:
- { name: web, endpoints: [\"127.0.0.1:80\"], connect_timeout: 5 }
";
    let mistakes = mistakes(text);
    for (line, part) in [
        (3, "address"),
        (10, "timeout"),
        (12, "no priorities"),
        (14, "unit"),
    ] {
        assert!(
            mistakes
                .iter()
                .any(|(at, column, message)| *at == line && *column > 0 && message.contains(part)),
            "line {line}: {part}: {mistakes:?}"
        );
    }
}

#[test]
fn names_that_do_not_exist_are_reported_with_the_nearest() {
    let text = "\
listeners:
- name: edge
  address: 127.0.0.1:0
  filters: [atuh]
filters:
  auth:
    ext_authz: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: nowhere } } }
routes:
- match: { prefix: / }
  route: { cluster: wbe }
  typed_per_filter_config: { aut: {} }
- match: { safe_regex: { regex: \"(\" } }
  route: { cluster: web }
clusters:
- { name: web, endpoints: [\"127.0.0.1:80\"] }
";
    let mistakes = mistakes(text);
    for (line, part) in [
        (4, "auth"),
        (7, "nowhere"),
        (10, "web"),
        (11, "auth"),
        (12, "regex"),
    ] {
        assert!(
            mistakes
                .iter()
                .any(|(at, _, message)| *at == line && message.contains(part)),
            "line {line}: {part}: {mistakes:?}"
        );
    }
    assert_eq!(mistakes.len(), 5, "{mistakes:?}");
}

#[tokio::test]
async fn a_configuration_runs_as_it_says() {
    let (origin, mut heads) = echo_origin(OK).await;
    let text = format!(
        r#"
listeners:
- {{ name: edge, address: "127.0.0.1:0" }}
virtual_hosts:
- name: api
  domains: ["*.api.test"]
  routes:
  - match: {{ prefix: /v1/ }}
    route: {{ cluster: web, prefix_rewrite: /, host_rewrite_literal: inside.test, timeout: 3s }}
routes:
- match: {{ path: /post, headers: [{{ name: ":method", string_match: {{ exact: POST }} }}] }}
  direct_response: {{ status: 201, body: {{ inline_string: made }} }}
- match: {{ path_separated_prefix: /old }}
  redirect: {{ https_redirect: true, prefix_rewrite: /new }}
clusters:
- {{ name: web, endpoints: ["{}"] }}
workers: 1
"#,
        origin.at
    );
    let (_, plan) = read(&text).unwrap_or_else(|errors| panic!("{errors}"));
    let proxy = start(plan).await;
    let mut client = Raw::connect(proxy.at).await;

    client
        .send("GET /v1/x?y HTTP/1.1\r\nhost: a.api.test:80\r\n\r\n")
        .await;
    assert_eq!(client.response().await.1, "ok");
    let seen = heads.recv().await.unwrap();
    assert!(seen.starts_with("GET /x?y "), "{seen}");
    assert_eq!(header(&seen, "host"), Some("inside.test"));
    assert_eq!(header(&seen, "x-envoy-original-path"), Some("/v1/x?y"));
    assert_eq!(
        header(&seen, "x-envoy-original-host"),
        Some("a.api.test:80")
    );
    assert_eq!(
        header(&seen, "x-envoy-expected-rq-timeout-ms"),
        Some("3000")
    );

    client
        .send("POST /post HTTP/1.1\r\nhost: b\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.response().await.1, "made");
    let (head, _) = client.get("/post").await;
    assert_eq!(status(&head), 404);
    let (head, _) = client.get("/old/x").await;
    assert_eq!(header(&head, "location"), Some("https://test/new/x"));
}

#[test]
fn the_export_names_every_listener_filter_route_and_cluster() {
    let (config, _) = read(WHOLE).unwrap_or_else(|errors| panic!("{errors}"));
    let envoy = export::envoy(&config, &BTreeMap::new()).unwrap();
    let manager = &envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    let filters: Vec<_> = manager["http_filters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|filter| filter["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        filters,
        ["limits", "auth", "rewrite", "envoy.filters.http.router"]
    );
    let clusters = &envoy["static_resources"]["clusters"];
    assert_eq!(clusters.as_array().unwrap().len(), 4);
}

#[test]
fn rate_limits_of_routes_and_hosts_are_checked_where_they_stand() {
    let text = r#"
listeners: [{ name: edge, address: "127.0.0.1:0", filters: [] }]
virtual_hosts:
- name: all
  domains: ["*"]
  rate_limits:
  - { stage: 11, actions: [{ remote_address: {} }] }
  routes:
  - match: { prefix: / }
    route:
      cluster: web
      rate_limits:
      - { hits_addend: { number: 1 }, actions: [{ generic_key: { descriptor_value: "" } }] }
clusters: [{ name: web, endpoints: ["127.0.0.1:1"] }]
"#;
    let mistakes = mistakes(text);
    let found = |line: u32, part: &str| {
        let mut mistakes = mistakes.iter();
        mistakes.any(|(at, _, message)| *at == line && message.contains(part))
    };
    assert!(found(7, "from 0 to 10"), "{mistakes:?}");
    assert!(found(13, "Envoy does nothing with it here"), "{mistakes:?}");
    assert!(found(13, "must not be empty"), "{mistakes:?}");
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
}

fn route(route: &str) -> String {
    format!(
        "listeners: [{{ name: edge, address: \"127.0.0.1:0\" }}]\n\
         clusters: [{{ name: web, endpoints: [\"127.0.0.1:1\"] }}]\n\
         routes:\n- match: {{ prefix: / }}\n  {route}\n"
    )
}

#[test]
fn what_routes_must_not_change_is_refused() {
    for name in [
        "Host",
        ":path",
        "content-length",
        "Transfer-Encoding",
        "connection",
        "upgrade",
    ] {
        for change in [
            format!("request_headers_to_add: [{{ header: {{ key: \"{name}\", value: a }} }}]"),
            format!("response_headers_to_remove: [\"{name}\"]"),
        ] {
            let text = route(&format!("route: {{ cluster: web }}\n  {change}"));
            let mistakes = mistakes(&text);
            let [(6, _, message)] = mistakes.as_slice() else {
                unreachable!("{change}: {mistakes:?}");
            };
            assert!(message.contains("is not changed by routes"), "{message}");
        }
    }
}

#[test]
fn mistakes_of_routes_are_reported() {
    for (text, part) in [
        (
            "route: { weighted_clusters: { clusters: [{ name: web, weight: 0 }] } }",
            "the weights together",
        ),
        (
            "route: { weighted_clusters: { clusters: [{ name: wbe, weight: 1 }] } }",
            "`web`",
        ),
        (
            "route: { cluster: web, request_mirror_policies: [{ cluster: wbe }] }",
            "`web`",
        ),
        (
            "route: { cluster: web, prefix_rewrite: /a, regex_rewrite: { pattern: { regex: a } } }",
            "not several",
        ),
        (
            "route: { cluster: web, regex_rewrite: { pattern: { regex: a }, substitution: '\\1' } }",
            "no such group",
        ),
        (
            "route: { cluster: web, host_rewrite: '%NOTHING%' }",
            "is not known here",
        ),
        (
            "direct_response: { status: 200, body: { inline_bytes: '%' } }",
            "is not base64",
        ),
        (
            "direct_response: { status: 200, body: { filename: /nowhere/at/all } }",
            "/nowhere/at/all",
        ),
        (
            "route: { cluster: web }\n  request_headers_to_add: [{ header: { key: a }, append: true, append_action: ADD_IF_ABSENT }]",
            "not both",
        ),
    ] {
        let mistakes = mistakes(&route(text));
        assert!(
            matches!(mistakes.as_slice(), [(_, _, message)] if message.contains(part)),
            "{text}: {mistakes:?}"
        );
    }
    let long = "a".repeat(4097);
    let text = route(&format!(
        "direct_response: {{ status: 200, body: {{ inline_string: {long} }} }}"
    ));
    let mistakes = mistakes(&text);
    assert!(matches!(mistakes.as_slice(), [(_, _, message)] if message.contains("4096")));
}

#[test]
fn hosts_with_ports_are_refused_as_ports_are_ignored() {
    let text = "listeners: [{ name: edge, address: \"127.0.0.1:0\" }]\n\
        virtual_hosts:\n- name: a\n  domains: [\"a.test:80\"]\n  routes: []\n";
    let mistakes = mistakes(text);
    assert!(matches!(mistakes.as_slice(), [(4, _, message)] if message.contains("are ignored")));
}
