//! Tests: whatever a bootstrap has, its import can be used, and opens no door.

mod left_out;

use std::path::Path;

use attache_service::config::{
    Document,
    json::{Value as Json, json},
};

use super::*;
use crate::{Config, config::NothingEmbedded};

fn imported(bootstrap: &Json) -> Imported {
    imported_as(bootstrap, Unprotected::LeftOut)
}

fn imported_as(bootstrap: &Json, unprotected: Unprotected) -> Imported {
    let document = read("envoy.json", bootstrap.to_string()).unwrap();
    super::bootstrap(&document, unprotected).unwrap()
}

fn typed(kind: &str, mut config: Json) -> Json {
    config["@type"] = format!("type.googleapis.com/{kind}").into();
    json!({ "name": kind, "typed_config": config })
}

const NETWORK: &str = "envoy.extensions.filters.network";
const HTTP: &str = "envoy.extensions.filters.http";

fn tcp_proxy() -> Json {
    let config = json!({ "stat_prefix": "t", "cluster": "web" });
    typed(&format!("{NETWORK}.tcp_proxy.v3.TcpProxy"), config)
}

fn manager(more: &Json) -> Json {
    let mut config = json!({
        "stat_prefix": "in",
        "server_header_transformation": "PASS_THROUGH",
        "route_config": { "name": "r", "ignore_port_in_host_matching": true, "virtual_hosts": [host(&["*"])] },
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        config[field] = value.clone();
    }
    let kind = format!("{NETWORK}.http_connection_manager.v3.HttpConnectionManager");
    typed(&kind, config)
}

fn host(domains: &[&str]) -> Json {
    json!({
        "name": domains[0], "domains": domains,
        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "web" } }],
    })
}

fn http_filter(kind: &str) -> Json {
    typed(&format!("{HTTP}.{kind}"), json!({}))
}

fn ext_authz() -> Json {
    let service = json!({ "envoy_grpc": { "cluster_name": "web" }, "timeout": "0.25s" });
    let config = json!({ "transport_api_version": "V3", "grpc_service": service });
    typed(&format!("{HTTP}.ext_authz.v3.ExtAuthz"), config)
}

fn listener(name: &str, chains: Json) -> Json {
    let port = 8000 + name.bytes().map(u16::from).sum::<u16>();
    json!({
        "name": name,
        "address": { "socket_address": { "address": "0.0.0.0", "port_value": port } },
        "filter_chains": chains,
    })
}

fn chain(filters: Json) -> Json {
    json!({ "filters": filters })
}

fn cluster(name: &str) -> Json {
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": {
            "address": { "socket_address": { "address": "127.0.0.1", "port_value": 3000 } },
        } }] }] },
    })
}

fn bootstrap_of(listeners: Json) -> Json {
    json!({ "static_resources": { "listeners": listeners, "clusters": [cluster("web")] } })
}

/// A TLS socket with certificates for these names.
fn tls(folder: &Path, names: &[&str], more: &Json) -> Json {
    let certificates = names.iter().map(|name| {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec![(*name).to_owned()]).unwrap();
        let file = |end: &str, text: String| {
            let path = folder.join(format!("{name}.{end}"));
            std::fs::write(&path, text).unwrap();
            json!({ "filename": path })
        };
        json!({
            "certificate_chain": file("crt", cert.pem()),
            "private_key": file("key", signing_key.serialize_pem()),
        })
    });
    let mut common = json!({ "tls_certificates": certificates.collect::<Vec<_>>() });
    for (field, value) in more.as_object().into_iter().flatten() {
        common[field] = value.clone();
    }
    let kind = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    typed(kind, json!({ "common_tls_context": common }))
}

fn names(imported: &Imported) -> Vec<&str> {
    let listeners = imported.config["listeners"].as_array().unwrap().iter();
    listeners.map(|one| one["name"].as_str().unwrap()).collect()
}

fn said(imported: &Imported, effect: Effect) -> Vec<String> {
    let some = imported.dropped.iter().filter(|one| one.effect == effect);
    some.map(|one| format!("{}: {}", one.path, one.why))
        .collect()
}

/// The result can be used, everything that was left out has a place, and each listener that
/// serves HTTP did so before.
fn holds(bootstrap: &Json) -> Imported {
    let imported = imported(bootstrap);
    for unprotected in [Unprotected::LeftOut, Unprotected::Kept] {
        let one = imported_as(bootstrap, unprotected);
        for dropped in &one.dropped {
            assert!(!dropped.path.is_empty(), "{dropped}\n{bootstrap:#}");
        }
        let listeners = one.config["listeners"].as_array().unwrap();
        for listener in listeners.iter().filter(|listener| serves_http(listener)) {
            assert!(served_http(bootstrap, &listener["name"]), "{listener:#}");
        }
        let text = to_yaml(&one.config);
        let document = Document::parse("imported.yaml", text.clone()).unwrap();
        match Config::read(&document, &NothingEmbedded) {
            Ok(_) => {}
            Err(errors) if listeners.is_empty() => {
                assert!(
                    errors.to_string().contains("at least one listener"),
                    "{errors}"
                );
            }
            Err(errors) => panic!("{errors}\n{text}"),
        }
    }
    imported
}

fn serves_http(listener: &Json) -> bool {
    let opens = listener["tls_passthrough"].is_null() || !listener["tls"].is_null();
    listener["tcp"].is_null() && opens
}

fn served_http(bootstrap: &Json, name: &Json) -> bool {
    let listeners = bootstrap["static_resources"]["listeners"]
        .as_array()
        .unwrap();
    let listener = listeners.iter().find(|one| one["name"] == *name).unwrap();
    listener.to_string().contains("HttpConnectionManager")
}

#[test]
fn a_port_that_does_not_serve_http_never_becomes_one_that_does() {
    let web = listener(
        "web",
        json!([chain(json!([manager(
            &json!({ "http_filters": [ext_authz()] })
        )]))]),
    );
    let rbac = typed(
        &format!("{NETWORK}.rbac.v3.RBAC"),
        json!({ "stat_prefix": "r" }),
    );
    let redis = typed(&format!("{NETWORK}.redis_proxy.v3.RedisProxy"), json!({}));
    let tap = typed(
        "envoy.extensions.transport_sockets.starttls.v3.StartTlsConfig",
        json!({}),
    );
    let named =
        json!({ "filter_chain_match": { "server_names": ["a.test"] }, "filters": [tcp_proxy()] });
    for (chains, lost) in [
        (json!([chain(json!([rbac, tcp_proxy()]))]), true),
        (json!([chain(json!([redis]))]), true),
        (json!([chain(json!([]))]), false),
        (json!([]), false),
        (
            json!([named, { "transport_socket": tls(Path::new("/tmp"), &[], &json!({})), "filters": [redis] }]),
            true,
        ),
        (
            json!([{ "transport_socket": tap, "filters": [tcp_proxy()] }]),
            true,
        ),
    ] {
        let bootstrap = bootstrap_of(json!([web, listener("open", chains)]));

        let imported = holds(&bootstrap);

        assert_eq!(names(&imported), ["web"], "{bootstrap:#}");
        let protection = said(&imported, Effect::Protection);
        assert_eq!(
            !protection.is_empty(),
            lost,
            "{protection:#?}\n{bootstrap:#}"
        );
        let all = said(&imported, Effect::Behaviour);
        let gone = |one: &String| one.contains("the whole listener is left out");
        assert_eq!(all.iter().filter(|one| gone(one)).count(), 1, "{all:#?}");
    }
}

#[test]
fn a_listener_without_what_protected_it_is_left_out_unless_it_is_asked_for() {
    for filter in [
        "rbac.v3.RBAC",
        "jwt_authn.v3.JwtAuthentication",
        "unheard_of.v3.Filter",
    ] {
        let more = json!({ "http_filters": [http_filter(filter)] });
        let bootstrap = bootstrap_of(json!([listener(
            "web",
            json!([chain(json!([manager(&more)]))])
        )]));

        let imported = holds(&bootstrap);

        assert_eq!(names(&imported), [""; 0]);
        let lost = said(&imported, Effect::Protection);
        assert!(
            lost.len() == 1 && lost[0].contains("http_filters[0]"),
            "{lost:#?}"
        );
        assert_eq!(names(&imported_as(&bootstrap, Unprotected::Kept)), ["web"]);
    }
    let more = json!({ "http_filters": [http_filter("compressor.v3.Compressor")] });
    let harmless = bootstrap_of(json!([listener(
        "web",
        json!([chain(json!([manager(&more)]))])
    )]));
    assert_eq!(names(&holds(&harmless)), ["web"]);
}

#[test]
fn tls_that_cannot_be_read_is_not_plain_text() {
    let socket = typed(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({ "common_tls_context": { "tls_certificate_sds_secret_configs": [{ "name": "c" }] } }),
    );
    let chains = json!([{ "transport_socket": socket, "filters": [manager(&json!({}))] }]);
    let bootstrap = bootstrap_of(json!([listener("web", chains)]));

    assert_eq!(names(&holds(&bootstrap)), [""; 0]);
    assert_eq!(names(&imported_as(&bootstrap, Unprotected::Kept)), [""; 0]);
}

#[test]
fn a_listener_whose_routes_are_not_known_does_not_get_those_of_another() {
    let web = listener("web", json!([chain(json!([manager(&json!({}))]))]));
    let scoped = manager(&json!({ "route_config": null, "scoped_routes": { "name": "s" } }));
    let discovered = manager(
        &json!({ "route_config": null, "rds": { "route_config_name": "r", "config_source": { "ads": {} } } }),
    );
    for other in [scoped, discovered] {
        let other = listener("other", json!([chain(json!([other]))]));

        let imported = holds(&bootstrap_of(json!([web, other])));

        assert_eq!(names(&imported), ["web"]);
    }
}

#[test]
fn what_a_mesh_configures_is_carried_over_as_far_as_there_is_something_for_it() {
    let unbounded = json!({ "max_connections": u32::MAX });
    let high = json!({ "priority": "HIGH", "max_connections": 7 });
    let mut web = cluster("web");
    web["circuit_breakers"] = json!({ "thresholds": [unbounded, high] });
    let passed = json!({
        "name": "anywhere", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
        "original_dst_lb_config": { "use_http_header": true },
    });
    let socket = json!({ "name": "PassthroughCluster", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED" });
    let mut secure = cluster("secure");
    secure["transport_socket_matches"] = json!([{ "name": "tls", "match": {} }]);
    let stats = json!({ "name": "istio.stats", "typed_config": { "@type": "type.googleapis.com/stats.PluginConfig" } });
    let table = json!({ "name": "80", "virtual_hosts": [
        host(&["a.example.com", "a.example.com:8443", "[::1]", "[::1]:80"]),
        host(&["*"]),
    ] });
    let web_listener = listener(
        "web",
        json!([chain(json!([manager(&json!({
            "http_filters": [stats, ext_authz()],
            "route_config": table,
            "stream_idle_timeout": "90s",
        }))]))]),
    );
    let mut inbound = listener("virtualInbound", json!([chain(json!([tcp_proxy()]))]));
    inbound["listener_filters"] = json!([typed(
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        json!({})
    )]);
    let mut bootstrap = bootstrap_of(json!([
        web_listener,
        inbound,
        listener("tcp", json!([chain(json!([stats, tcp_proxy()]))])),
    ]));
    bootstrap["static_resources"]["clusters"] = json!([web, passed, socket, secure]);
    bootstrap["layered_runtime"] = json!({ "layers": [{
        "name": "static",
        "static_layer": { "overload.global_downstream_max_connections": 50000, "envoy.reloadable_features.x": true },
    }] });

    let imported = holds(&bootstrap);

    let config = &imported.config;
    assert_eq!(names(&imported), ["web", "tcp"]);
    assert_eq!(config["max_active_downstream_connections"], 50000);
    assert_eq!(
        config["virtual_hosts"][0]["domains"],
        json!(["a.example.com", "[::1]"])
    );
    let limits = &config["listeners"][0]["limits"];
    assert_eq!(
        (&limits["body_timeout"], &limits["write_timeout"]),
        (&json!("90s"), &json!("90s"))
    );
    let clusters: Vec<_> = config["clusters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["name"])
        .collect();
    assert_eq!(clusters, ["web", "anywhere"]);
    let thresholds = &config["clusters"][0]["circuit_breakers"]["thresholds"];
    assert_eq!(thresholds.as_array().unwrap().len(), 1, "{thresholds}");
    assert_eq!(
        config["clusters"][1]["original_dst"]["http_header_name"],
        "x-envoy-original-dst-host"
    );
    let all = said(&imported, Effect::Nothing);
    assert_eq!(
        all.iter()
            .filter(|one| one.contains("ports of hosts never count"))
            .count(),
        1,
        "{all:#?}"
    );
    let behaviour = said(&imported, Effect::Behaviour);
    assert!(
        behaviour
            .iter()
            .any(|one| one.contains("thresholds[1].priority")),
        "{behaviour:#?}"
    );
}

#[test]
fn what_a_gateway_configures_is_carried_over_as_far_as_there_is_something_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let params = json!({ "tls_params": {
        "tls_maximum_protocol_version": "TLSv1_3",
        "cipher_suites": ["[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]", "AES128-SHA"],
        "ecdh_curves": ["X25519", "P-256"],
    } });
    let log = json!([
        typed(
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            json!({
                "path": "/dev/stdout",
                "log_format": { "json_format": { "status": "%RESPONSE_CODE%", "odd": "%UNHEARD_OF%" } },
            })
        ),
        typed(
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            json!({
                "path": "/dev/stdout",
                "log_format": { "text_format_source": { "inline_string": "%UNHEARD_OF%\n" } },
            })
        )
    ]);
    let by_name = |name: &str| {
        json!({
            "filter_chain_match": { "server_names": [name], "transport_protocol": "tls" },
            "transport_socket": tls(folder.path(), &[name], &params),
            "filters": [manager(&json!({ "access_log": log, "stat_prefix": name }))],
        })
    };
    let mut bootstrap = bootstrap_of(json!([listener(
        "https",
        json!([by_name("a.test"), by_name("b.test")])
    )]));
    bootstrap["overload_manager"] = json!({
        "refresh_interval": "0.5s",
        "resource_monitors": [
            typed("envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                json!({ "max_active_downstream_connections": 100 })),
            { "name": "heap", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                "max_heap_size_bytes": 1_000_000_000,
            } },
        ],
        "actions": [
            { "name": "envoy.overload_actions.shrink_heap", "triggers": [{ "name": "heap", "threshold": { "value": 0.9 } }] },
            { "name": "envoy.overload_actions.stop_accepting_requests", "triggers": [{ "name": "heap", "threshold": { "value": 0.95 } }] },
        ],
    });

    let imported = holds(&bootstrap);

    let config = &imported.config;
    assert_eq!(config["max_active_downstream_connections"], 100);
    assert_eq!(config["overload"]["max_memory"], 950_000_000);
    let tls = &config["listeners"][0]["tls"];
    assert_eq!(tls["certificates"].as_array().unwrap().len(), 1, "{tls:#}");
    assert_eq!(
        tls["cipher_suites"],
        json!([
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-ECDSA-CHACHA20-POLY1305"
        ])
    );
    assert_eq!(tls["ecdh_curves"], json!(["X25519", "P-256"]));
    let logs = &config["listeners"][0]["access_log"];
    assert_eq!(
        logs[0]["json_format"],
        json!({ "status": "%RESPONSE_CODE%" })
    );
    assert_eq!(logs[1]["format"], "envoy");
    let behaviour = said(&imported, Effect::Behaviour);
    for expected in [
        "json_format.odd",
        "inline_string",
        "filter_chain_match.server_names",
        "cipher_suites[1]",
    ] {
        assert_eq!(
            behaviour
                .iter()
                .filter(|one| one.contains(expected))
                .count(),
            1,
            "{expected}: {behaviour:#?}"
        );
    }
}

#[test]
fn chains_that_differ_in_more_than_certificates_are_not_put_together() {
    let folder = tempfile::tempdir().unwrap();
    let by_name = |name: &str, filters: Json| {
        json!({
            "filter_chain_match": { "server_names": [name] },
            "transport_socket": tls(folder.path(), &[name], &json!({})),
            "filters": [manager(&json!({ "http_filters": filters }))],
        })
    };
    let chains = json!([
        by_name("a.test", json!([])),
        by_name("b.test", json!([ext_authz()]))
    ]);

    let imported = holds(&bootstrap_of(json!([listener("https", chains)])));

    assert_eq!(names(&imported), [""; 0]);
}

#[test]
fn what_envoy_does_not_upgrade_is_not_upgraded() {
    let upgrades = |more: Json| {
        let chains = json!([chain(json!([manager(&more)]))]);
        let imported = holds(&bootstrap_of(json!([listener("web", chains)])));
        imported.config["listeners"][0]["upgrades"].clone()
    };

    assert_eq!(upgrades(json!({})), json!([]));
    let websocket = json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] });
    assert_eq!(upgrades(websocket), json!(["websocket"]));
}

#[test]
fn a_listener_that_envoy_does_not_bind_is_left_out() {
    let web = json!([chain(json!([manager(&json!({}))]))]);
    let mut unbound = listener("unbound", web.clone());
    unbound["bind_to_port"] = false.into();
    let internal = json!({ "name": "internal", "internal_listener": {}, "filter_chains": web });
    for other in [unbound, internal] {
        let bound = listener("web", web.clone());

        let imported = holds(&bootstrap_of(json!([bound, other])));

        assert_eq!(names(&imported), ["web"]);
        let said = said(&imported, Effect::Behaviour);
        assert!(
            said.iter().any(|one| one.contains("listeners[1]")),
            "{said:#?}"
        );
    }
}

#[test]
fn what_protects_a_whole_table_leaves_its_listener_out() {
    for (field, value) in [
        ("typed_per_filter_config", json!({ "auth": {} })),
        ("internal_only_headers", json!(["x-user"])),
    ] {
        let mut table = json!({ "virtual_hosts": [host(&["*"])] });
        table[field] = value;
        let more = json!({ "route_config": table });
        let chains = json!([chain(json!([manager(&more)]))]);

        let imported = holds(&bootstrap_of(json!([listener("web", chains)])));

        assert_eq!(names(&imported), [""; 0], "{field}");
    }
}

#[test]
fn certificates_that_are_asked_for_have_an_authority() {
    let folder = tempfile::tempdir().unwrap();
    for context in [json!({}), json!({ "trusted_ca": {} })] {
        let mut socket = tls(
            folder.path(),
            &["a.test"],
            &json!({ "validation_context": context }),
        );
        socket["typed_config"]["require_client_certificate"] = true.into();
        let chains = json!([{ "transport_socket": socket, "filters": [manager(&json!({}))] }]);

        let imported = holds(&bootstrap_of(json!([listener("web", chains)])));

        assert_eq!(names(&imported), [""; 0]);
        let lost = said(&imported, Effect::Protection);
        assert!(
            lost.iter().any(|one| one.contains("authority")),
            "{lost:#?}"
        );
    }
}

#[test]
fn a_cluster_whose_authority_cannot_be_read_does_not_trust_others_instead() {
    for context in [
        json!({ "validation_context": { "trusted_ca": { "inline_string": "x" } } }),
        json!({ "validation_context_sds_secret_config": { "name": "ca" } }),
    ] {
        let kind = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
        let mut pinned = cluster("web");
        pinned["transport_socket"] = typed(kind, json!({ "common_tls_context": context }));
        let chains = json!([chain(json!([manager(&json!({}))]))]);
        let mut bootstrap = bootstrap_of(json!([listener("web", chains)]));
        bootstrap["static_resources"]["clusters"] = json!([pinned]);

        let imported = holds(&bootstrap);

        assert_eq!(imported.config["clusters"], json!([]), "{context}");
        let routes = &imported.config["virtual_hosts"][0]["routes"];
        assert_eq!(routes[0]["direct_response"]["status"], 500, "{routes}");
    }
}
