use std::collections::BTreeMap;

use attache_service::config::{Document, json::json};
use proptest::prelude::*;

use super::*;
use crate::{Config, config::NothingEmbedded, export};

fn exported(name: &str, text: &str) -> Json {
    let document = Document::parse(name, text).unwrap();
    let (config, _) =
        Config::read(&document, &NothingEmbedded).unwrap_or_else(|e| panic!("{e}\n{text}"));
    export::envoy(&config, &BTreeMap::new()).unwrap()
}

fn imported(bootstrap: &str) -> Imported {
    bootstrap_of(&read("envoy.yaml", bootstrap).unwrap())
}

fn bootstrap_of(document: &Document) -> Imported {
    super::bootstrap(document, Unprotected::LeftOut).unwrap()
}

/// What was dropped with an effect.
fn lost(imported: &Imported) -> Vec<String> {
    let lost = imported
        .dropped
        .iter()
        .filter(|d| d.effect != Effect::Nothing);
    lost.map(|d| format!("{}:{} {} {}", d.at.line(), d.at.column(), d.path, d.why))
        .collect()
}

const EVERYTHING: &str = r#"
admin: 127.0.0.1:9901
node: { cluster: edge }
listeners:
- name: edge
  address: 127.0.0.1:8080
  filters: [limits, auth, rewrite]
  limits: { max_headers: 50, max_header_bytes: 32KiB, header_timeout: 5s, idle_timeout: 60s, max_concurrent_streams: 7 }
  use_remote_address: false
  xff_num_trusted_hops: 2
  merge_slashes: true
  path_with_escaped_slashes_action: REJECT_REQUEST
  upgrades: [websocket, h2c]
filters:
  limits:
    ratelimit:
      domain: edge
      rate_limit_service: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: policy } } }
      rate_limits: [{ actions: [{ remote_address: {} }] }]
  auth:
    ext_authz: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: policy }, timeout: 0.25s } }
  rewrite:
    ext_proc: { grpc_service: { envoy_grpc: { cluster_name: policy } }, processing_mode: { request_body_mode: STREAMED } }
virtual_hosts:
- name: one
  domains: ["one.test", "*.one.test"]
  routes:
  - match: { path: /healthz }
    direct_response: { status: 200, body: { inline_string: ok } }
  - match: { prefix: /, headers: [{ name: x-a, string_match: { exact: b } }] }
    route: { cluster: web, timeout: 30s, prefix_rewrite: /b/, retry_policy: { retry_on: connect-failure, num_retries: 2 } }
    typed_per_filter_config: { rewrite: { disabled: true } }
routes:
- match: { prefix: / }
  redirect: { https_redirect: true }
clusters:
- { name: web, endpoints: ["127.0.0.1:3000", "[::1]:3000"], idle_timeout: 10s }
- { name: policy, endpoints: ["unix:/run/policy.sock"], http2: {}, connect_timeout: 250ms }
"#;

#[test]
fn what_was_exported_comes_back_and_is_exported_the_same() {
    let before = exported("attache.yaml", EVERYTHING);

    let imported = imported(&before.to_string());

    assert_eq!(lost(&imported), Vec::<String>::new());
    let after = exported("imported.yaml", &to_yaml(&imported.config));
    assert_eq!(
        json_pretty(&after),
        json_pretty(&before),
        "{}",
        to_yaml(&imported.config)
    );
}

const PASSED_ON: &str = r#"
listeners:
- name: names
  address: 127.0.0.1:8443
  proxy_protocol: { from: ["10.0.0.0/8", "::1"], disallowed_versions: [V1], allow_requests_without_proxy_protocol: true }
  tls_passthrough:
  - { server_names: [db.example.com, "*.db.example.com"], cluster: db, idle_timeout: 2h }
  - { server_names: [other.example.com], cluster: db, max_connect_attempts: 3 }
  tcp: { cluster: db }
  limits: { header_timeout: 5s }
  access_log: { path: /dev/null }
- name: alone
  address: 127.0.0.1:8444
  tls_passthrough: [{ server_names: [db.example.com], cluster: db }]
  access_log: { path: /dev/null }
- name: web
  address: 127.0.0.1:8445
  tls_passthrough: [{ server_names: [db.example.com], cluster: db }]
  tls: { certificate: CERTIFICATE, private_key: KEY }
  limits: { header_timeout: 5s }
clusters:
- { name: db, endpoints: ["127.0.0.1:5432"] }
"#;

/// What becomes of a text on the way there and back, with files for `CERTIFICATE` and `KEY`.
fn there_and_back(text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["web.example.com".to_owned()]).unwrap();
    let mut text = text.to_owned();
    for (name, pem) in [
        ("CERTIFICATE", cert.pem()),
        ("KEY", signing_key.serialize_pem()),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        text = text.replace(name, &path.display().to_string());
    }
    let before = exported("attache.yaml", &text);

    let imported = imported(&before.to_string());

    assert_eq!(lost(&imported), Vec::<String>::new());
    let after = exported("imported.yaml", &to_yaml(&imported.config));
    assert_eq!(json_pretty(&after), json_pretty(&before));
}

#[test]
fn connections_that_are_passed_on_come_back_too() {
    there_and_back(PASSED_ON);
}

#[test]
fn so_does_all_that_a_listener_says_of_tls() {
    there_and_back(
        "
listeners:
- name: web
  address: 127.0.0.1:8443
  tls:
    certificate: CERTIFICATE
    private_key: KEY
    certificates: [{ certificate: CERTIFICATE, private_key: KEY }]
    client_ca: CERTIFICATE
    require_client_certificate: false
    min_version: TLSv1_2
    max_version: TLSv1_2
    cipher_suites: [ECDHE-ECDSA-AES128-GCM-SHA256]
    ecdh_curves: [P-256]
    disable_stateless_session_resumption: true
clusters:
- { name: db, endpoints: ['127.0.0.1:5432'] }
",
    );
}

/// A chain that passes connections on, with more fields.
fn passes_on(more: &str) -> String {
    let proxy = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    format!(
        "{{ {more} filters: [{{ name: tcp, typed_config: {{ \"@type\": {proxy}, cluster: db }} }}] }}"
    )
}

#[test]
fn chains_that_cannot_be_told_apart_here_are_lost_protections() {
    let manager = "{ filters: [{ name: http, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, server_header_transformation: PASS_THROUGH } }] }";
    let all = passes_on("");
    let named = passes_on("filter_chain_match: { server_names: [a.test] },");
    let from = passes_on(
        "filter_chain_match: { direct_source_prefix_ranges: [{ address_prefix: 10.0.0.0, prefix_len: 8 }] },",
    );
    let raw = passes_on("filter_chain_match: { transport_protocol: raw_buffer },");
    for (chains, expected) in [
        (vec![&*all, &*all], "[1] a listener has one chain here"),
        (
            vec![&*from],
            "[0].filter_chain_match.direct_source_prefix_ranges this chain",
        ),
        (
            vec![&*raw],
            "[0].filter_chain_match.transport_protocol this chain of a listener takes every",
        ),
        (
            vec![&*named, manager],
            "[1] beside connections that are passed on unopened, HTTP is served over TLS only",
        ),
        (vec![&*named, &*all], ""),
    ] {
        let chains = chains.join(", ");
        let text = format!(
            "static_resources: {{ listeners: [{{ name: l, address: {{ socket_address: {{ address: 127.0.0.1, port_value: 1 }} }}, filter_chains: [{chains}] }}], clusters: [{{ name: db, load_assignment: {{ endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ pipe: {{ path: /db }} }} }} }}] }}] }} }}] }}"
        );
        let lost = lost(&imported(&text));

        let expected = format!("static_resources.listeners[0].filter_chains{expected}");
        match expected.ends_with("chains") {
            true => assert_eq!(lost, Vec::<String>::new()),
            false => assert!(lost.iter().any(|one| one.contains(&expected)), "{lost:#?}"),
        }
    }
}

fn json_pretty(value: &Json) -> String {
    attache_service::config::json::to_string_pretty(value).unwrap()
}

const HEAD: &str = r#"
static_resources:
  listeners:
  - name: l
    address: { socketAddress: { address: 127.0.0.1, portValue: 8080 } }
    filterChains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typedConfig:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          statPrefix: in
"#;

#[test]
fn names_may_be_in_camel_case_but_those_of_filters_stay() {
    let text = format!(
        "{HEAD}          httpFilters:
          - name: myFilter
            typedConfig: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz, grpcService: {{ envoyGrpc: {{ clusterName: a }} }}, transportApiVersion: V3 }}
          routeConfig:
            virtualHosts:
            - name: all
              domains: ['*']
              routes:
              - match: {{ prefix: / }}
                route: {{ cluster: a }}
                typedPerFilterConfig: {{ myFilter: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute, disabled: true }} }}
  clusters:
  - name: a
    connectTimeout: 1s
    http2ProtocolOptions: {{}}
    loadAssignment: {{ clusterName: a, endpoints: [{{ lbEndpoints: [{{ endpoint: {{ address: {{ socketAddress: {{ address: 127.0.0.1, portValue: 1 }} }} }} }}] }}] }}
"
    );

    let imported = imported(&text);

    assert_eq!(lost(&imported), Vec::<String>::new());
    assert!(imported.config["filters"]["myFilter"]["ext_authz"].is_object());
    let route = &imported.config["virtual_hosts"][0]["routes"][0];
    assert!(route["typed_per_filter_config"]["myFilter"].is_object());
    exported("imported.yaml", &to_yaml(&imported.config));
}

#[test]
fn a_policy_that_is_not_known_is_named_as_a_lost_protection_with_its_place() {
    let text = format!(
        "{HEAD}          http_filters:
          - name: jwt
            typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication }}
          route_config: {{ virtual_hosts: [] }}
"
    );

    let imported = imported(&text);

    let protection: Vec<_> = imported
        .dropped
        .iter()
        .filter(|d| d.effect == Effect::Protection)
        .collect();
    let said = protection
        .iter()
        .find(|d| d.why.contains("`jwt` is left out"));
    let path =
        "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.http_filters[0]";
    assert!(
        said.is_some_and(|d| d.path.starts_with(path) && d.at.line() == 13),
        "{protection:#?}"
    );
}

#[test]
fn a_route_whose_match_is_not_known_refuses_all_that_could_be_its_own() {
    let text = format!(
        "{HEAD}          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              routes:
              - match: {{ prefix: /a, filter_state: [{{}}] }}
                direct_response: {{ status: 200 }}
              - match: {{ prefix: /b }}
                direct_response: {{ status: 201 }}
"
    );

    let document = read("envoy.yaml", text).unwrap();
    let imported = super::bootstrap(&document, Unprotected::Kept).unwrap();

    let routes = imported.config["virtual_hosts"][0]["routes"]
        .as_array()
        .unwrap();
    assert_eq!(routes.len(), 2, "{routes:?}");
    assert_eq!(routes[0]["match"], json!({ "prefix": "/a" }));
    assert_eq!(routes[0]["direct_response"]["status"], 500);
    let lost = lost(&imported);
    assert!(
        lost.iter().any(|one| one.contains("answers with 500")),
        "{lost:#?}"
    );
}

#[test]
fn what_has_no_counterpart_is_listed_once_with_the_way_to_it() {
    let text = "static_resources:\n  clusters:\n  - name: a\n    type: ORIGINAL_SOMETHING\n  secrets: []\nhds_config: {}\n";

    let imported = imported(text);

    let paths: Vec<_> = imported.dropped.iter().map(|d| d.path.as_str()).collect();
    assert!(
        paths.contains(&"static_resources.clusters[0].type"),
        "{paths:?}"
    );
    assert!(paths.contains(&"static_resources.secrets"), "{paths:?}");
    assert!(paths.contains(&"hds_config"), "{paths:?}");
}

#[test]
fn without_a_word_envoys_defaults_are_written_out() {
    let text = format!("{HEAD}          route_config: {{ virtual_hosts: [] }}\n");

    let listener = &imported(&text).config["listeners"][0];

    assert_eq!(listener["use_remote_address"], false);
    assert_eq!(listener["normalize_path"], false);
    assert_eq!(listener["limits"]["max_header_bytes"], 60 << 10);
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i32>().prop_map(Json::from),
        "[a-zA-Z0-9:_/\\-]{0,12}".prop_map(Json::from),
        Just(Json::from(
            "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
        )),
        Just(Json::from(
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        )),
    ];
    let key = prop_oneof![
        Just("static_resources"),
        Just("listeners"),
        Just("clusters"),
        Just("filter_chains"),
        Just("filter_chain_match"),
        Just("server_names"),
        Just("direct_source_prefix_ranges"),
        Just("listener_filters"),
        Just("filters"),
        Just("typed_config"),
        Just("@type"),
        Just("route_config"),
        Just("virtual_hosts"),
        Just("routes"),
        Just("match"),
        Just("address"),
        Just("socket_address"),
        Just("name"),
        Just("load_assignment"),
        Just("endpoints"),
        Just("http_filters"),
        Just("transport_socket"),
        Just("admin"),
        Just("node"),
        Just("x"),
    ];
    leaf.prop_recursive(8, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_tree_makes_it_panic_and_yaml_reads_back_as_it_was(json in any_json()) {
        let document = read("any.json", json.to_string()).unwrap();
        let imported = super::bootstrap(&document, Unprotected::LeftOut).unwrap();
        let _ = (super::listener(&document), super::cluster(&document), super::route_configuration(&document), super::cluster_load_assignment(&document));
        let yaml = to_yaml(&json);
        prop_assert_eq!(read("any.yaml", yaml.clone()).unwrap().root().to_json(), json, "{}", yaml);
        prop_assert!(read("out.yaml", to_yaml(&imported.config)).is_ok());
    }
}
