//! Tests: what takes the place of something that cannot be carried over.

use super::*;

/// A bootstrap with one listener and these routes, or virtual hosts.
fn with_table(table: &Json) -> Json {
    let chains = json!([chain(json!([manager(&json!({ "route_config": table }))]))]);
    bootstrap_of(json!([listener("web", chains)]))
}

#[test]
fn a_route_whose_match_the_proxy_cannot_take_refuses_all_that_could_be_its_own() {
    // RE2 has the quotes `\Q` and `\E`.
    let regex = json!({ "regex": "/\\Qa.b\\E/.*" });
    let header = json!({ "name": "x-a", "string_match": { "safe_regex": regex } });
    let api = json!({ "name": "x-b", "string_match": { "exact": "c" } });
    for (wanted, left) in [
        (json!({ "safe_regex": regex }), json!({ "prefix": "/" })),
        (
            json!({ "safe_regex": regex, "headers": [api] }),
            json!({ "prefix": "/", "headers": [api] }),
        ),
        (
            json!({ "prefix": "/admin", "headers": [header] }),
            json!({ "prefix": "/admin" }),
        ),
    ] {
        let first = json!({ "match": { "path": "/first" }, "route": { "cluster": "web" } });
        let mut hosts = json!([host(&["*"])]);
        hosts[0]["routes"] = json!([
            first,
            { "match": wanted, "direct_response": { "status": 403 } },
            { "match": { "prefix": "/" }, "route": { "cluster": "web" } },
        ]);

        let imported = holds(&with_table(&json!({ "virtual_hosts": hosts })));

        let routes = &imported.config["virtual_hosts"][0]["routes"];
        assert_eq!(routes.as_array().unwrap().len(), 3, "{routes:#}");
        assert_eq!(routes[0]["match"], first["match"]);
        assert_eq!(routes[1]["match"], left);
        assert_eq!(routes[1]["direct_response"]["status"], 500);
        assert_eq!(said(&imported, Effect::Protection), [""; 0]);
        let said = said(&imported, Effect::Behaviour);
        assert!(
            said.len() == 1 && said[0].contains("answers with 500"),
            "{said:#?}"
        );
    }
}

#[test]
fn a_listener_with_a_domain_that_the_proxy_cannot_take_is_left_out_unless_it_is_asked_for() {
    let table = json!({ "virtual_hosts": [host(&["b.test", "a.*.test"]), host(&["*"])] });
    let own = json!({ "virtual_hosts": [host(&["*"])] });
    let with = |name: &str, table: &Json| {
        listener(
            name,
            json!([chain(json!([manager(&json!({ "route_config": table }))]))]),
        )
    };
    let tcp = || listener("tcp", json!([chain(json!([tcp_proxy()]))]));
    for (listeners, kept) in [
        (json!([with("web", &table), tcp()]), vec!["tcp"]),
        (json!([with("web", &table), with("own", &own)]), vec!["own"]),
    ] {
        let bootstrap = bootstrap_of(listeners);

        let imported = holds(&bootstrap);

        assert_eq!(names(&imported), kept);
        let lost = said(&imported, Effect::Protection);
        assert!(lost.len() == 1 && lost[0].contains("a.*.test"), "{lost:#?}");
        let unprotected = imported_as(&bootstrap, Unprotected::Kept);
        assert_eq!(names(&unprotected).len(), 2);
        assert!(!unprotected.config.to_string().contains("a.*.test"));
    }
}

#[test]
fn a_connect_that_cannot_be_served_is_refused_and_nothing_else() {
    let upgrade = json!([{ "upgrade_type": "CONNECT" }]);
    let mut hosts = json!([host(&["*"])]);
    hosts[0]["routes"] = json!([
        { "match": { "connect_matcher": {} }, "route": { "cluster": "web", "upgrade_configs": upgrade } },
        { "match": { "prefix": "/" }, "route": { "cluster": "web" } },
    ]);

    let imported = holds(&with_table(&json!({ "virtual_hosts": hosts })));

    let routes = &imported.config["virtual_hosts"][0]["routes"];
    assert_eq!(routes.as_array().unwrap().len(), 1, "{routes:#}");
    assert_eq!(routes[0]["match"], json!({ "prefix": "/" }));
    assert_eq!(routes[0]["route"]["cluster"], "web");
    assert_eq!(names(&imported), ["web"]);
    assert_eq!(said(&imported, Effect::Protection), [""; 0]);
    let said = said(&imported, Effect::Behaviour);
    assert!(
        said.len() == 2 && said[1].contains("`connect_matcher` needs"),
        "{said:#?}"
    );
    assert!(said[1].contains("the route is left out"), "{said:#?}");
}

#[test]
fn a_route_of_which_a_condition_is_unknown_leaves_nothing_to_those_behind_it() {
    let unknown = json!([{}]);
    let api = json!({ "name": "x-b", "string_match": { "exact": "c" } });
    let mut open = json!({ "match": { "prefix": "/" }, "route": { "weighted_clusters": {
        "clusters": [{ "name": "web", "weight": 1 }],
    } } });
    open["route"]["weighted_clusters"]["clusters"][0]["typed_per_filter_config"] =
        json!({ "auth": { "disabled": true } });
    let all = "the routes behind it serve nothing";
    for (written, left, result) in [
        (
            json!({ "prefix": "/odd", "filter_state": unknown }),
            json!({ "prefix": "/odd" }),
            "requests that it takes without this",
        ),
        (
            json!({ "prefix": "/odd", "headers": [api], "filter_state": unknown, "case_sensitive": false }),
            json!({ "prefix": "/odd", "headers": [api], "case_sensitive": false }),
            "requests that it takes without this",
        ),
        (
            json!({ "path_match_policy": {}, "headers": [api] }),
            json!({ "prefix": "/", "headers": [api] }),
            "requests that it takes without this",
        ),
        (
            json!({ "path_match_policy": {} }),
            json!({ "prefix": "/" }),
            all,
        ),
        (
            json!({ "prefix": "/", "filter_state": unknown }),
            json!({ "prefix": "/" }),
            all,
        ),
        (json!({}), json!({ "prefix": "/" }), all),
        (Json::Null, json!({ "prefix": "/" }), all),
    ] {
        let odd = json!({
            "match": written,
            "route": { "cluster": "web" },
            "request_headers_to_remove": ["x-user"],
        });
        let mut table = json!({ "virtual_hosts": [host(&["*"])] });
        table["virtual_hosts"][0]["routes"] = json!([odd, open]);
        let mut auth = ext_authz();
        auth["name"] = "auth".into();
        let more = json!({ "route_config": table, "http_filters": [auth] });
        let chains = json!([chain(json!([manager(&more)]))]);

        let imported = holds(&bootstrap_of(json!([listener("web", chains)])));

        let routes = &imported.config["virtual_hosts"][0]["routes"];
        assert_eq!(routes.as_array().unwrap().len(), 2, "{routes:#}");
        assert_eq!(routes[0]["match"], left);
        assert_eq!(routes[0]["direct_response"]["status"], 500);
        assert_eq!(said(&imported, Effect::Protection), [""; 0]);
        let said = said(&imported, Effect::Behaviour);
        assert!(said.iter().any(|one| one.contains(result)), "{said:#?}");
    }
}

#[test]
fn headers_that_the_proxy_cannot_write_are_lost_protections_where_all_are_left_out() {
    let mut table = json!({ "virtual_hosts": [host(&["*"])] });
    table["request_headers_to_add"] = json!([
        {
            "header": { "key": "x-user", "value": "" },
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            "keep_empty_value": true,
        },
        { "header": { "key": "x-odd", "value": "%NO_SUCH_OPERATOR%" } },
    ]);
    let bootstrap = with_table(&table);

    let imported = holds(&bootstrap);

    assert_eq!(names(&imported), [""; 0]);
    let lost = said(&imported, Effect::Protection);
    assert!(
        lost.len() == 1 && lost[0].contains("request_headers_to_add"),
        "{lost:#?}"
    );
    let unprotected = imported_as(&bootstrap, Unprotected::Kept);
    assert_eq!(names(&unprotected), ["web"]);
}

#[test]
fn what_the_proxy_refuses_is_placed_in_its_own_listener() {
    let with = |name: &str, domains: &[&str]| {
        let mut hosts = json!([host(domains)]);
        hosts[0]["name"] = "same".into();
        let table = json!({ "virtual_hosts": hosts });
        let chains = json!([chain(json!([manager(&json!({ "route_config": table }))]))]);
        listener(name, chains)
    };
    for nameless in [false, true] {
        let mut listeners = json!([with("first", &["*"]), with("second", &["a.*.test"])]);
        if nameless {
            for listener in listeners.as_array_mut().unwrap() {
                listener.as_object_mut().unwrap().remove("name");
            }
        }

        let imported = imported(&bootstrap_of(listeners));

        let lost = said(&imported, Effect::Protection);
        assert!(
            lost.len() == 1 && lost[0].starts_with("static_resources.listeners[1].filter_chains"),
            "{lost:#?}"
        );
    }
}

#[test]
fn a_guard_of_the_process_that_the_proxy_refuses_is_a_lost_protection() {
    let mut bootstrap = with_table(&json!({ "virtual_hosts": [host(&["*"])] }));
    bootstrap["overload_manager"] = json!({
        "refresh_interval": "0s",
        "resource_monitors": [{ "name": "heap", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
            "max_heap_size_bytes": 1_000_000_000,
        } }],
        "actions": [{ "name": "envoy.overload_actions.stop_accepting_requests",
            "triggers": [{ "name": "heap", "threshold": { "value": 0.95 } }] }],
    });

    let imported = holds(&bootstrap);

    assert!(imported.config["overload"].is_null());
    assert_eq!(names(&imported), ["web"]);
    let lost = said(&imported, Effect::Protection);
    assert!(lost.iter().any(|one| one.contains("overload")), "{lost:#?}");
}

#[test]
fn a_route_that_cannot_be_told_refuses_instead_of_leaving_its_requests_to_others() {
    let routes = json!([
        { "match": { "prefix": "/admin" }, "route": { "cluster": "gone" } },
        { "match": { "prefix": "/inner" } },
        { "match": { "prefix": "/" }, "route": { "cluster": "web" } },
    ]);
    let mut table = json!({ "virtual_hosts": [host(&["*"])] });
    table["virtual_hosts"][0]["routes"] = routes;
    let bootstrap = bootstrap_of(json!([listener(
        "web",
        json!([chain(json!([manager(&json!({ "route_config": table }))]))])
    )]));

    let imported = holds(&bootstrap);

    let routes = imported.config["virtual_hosts"][0]["routes"]
        .as_array()
        .unwrap();
    assert_eq!(routes.len(), 3, "{routes:#?}");
    for (nth, path) in ["/admin", "/inner"].iter().enumerate() {
        assert_eq!(routes[nth]["match"]["prefix"], *path);
        assert_eq!(routes[nth]["direct_response"]["status"], 500, "{routes:#?}");
    }
    let behaviour = said(&imported, Effect::Behaviour);
    assert_eq!(behaviour.len(), 2, "{behaviour:#?}");
    assert!(
        behaviour
            .iter()
            .any(|one| one.contains("routes[1]: missing")),
        "{behaviour:#?}"
    );
}

#[test]
fn where_envoy_has_no_bound_there_is_ours_and_that_is_said() {
    let mut web = cluster("web");
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    web["typed_extension_protocol_options"][options]["common_http_protocol_options"] =
        json!({ "idle_timeout": "0s" });
    let more = json!({
        "request_headers_timeout": "0s",
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": { "idle_timeout": "0s", "max_requests_per_connection": 0 },
    });
    let chains = json!([chain(json!([manager(&more)]))]);
    let mut bootstrap = bootstrap_of(json!([listener("web", chains)]));
    bootstrap["static_resources"]["clusters"] = json!([web]);

    let imported = holds(&bootstrap);

    assert_eq!(names(&imported), ["web"]);
    assert!(!imported.config.to_string().contains("0s\""));
    let bounds = |effect: Effect| {
        let mut said = said(&imported, effect);
        said.retain(|one| one.contains("there is always a bound on"));
        said
    };
    let behaviour = bounds(Effect::Behaviour);
    assert!(
        behaviour.len() == 1 && behaviour[0].contains("stream_idle_timeout"),
        "{behaviour:#?}"
    );
    let nothing = bounds(Effect::Nothing);
    assert_eq!(nothing.len(), 3, "{nothing:#?}");
}

#[test]
fn a_control_plane_may_send_what_no_request_is_treated_otherwise_by() {
    let mut web = cluster("web");
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    web["typed_extension_protocol_options"][options]["common_http_protocol_options"] =
        json!({ "idle_timeout": "0s" });
    web["http2_protocol_options"] = json!({
        "max_concurrent_streams": 1_073_741_824,
        "hpack_table_size": 4096,
        "max_outbound_frames": 10_000,
    });
    let more = json!({
        "request_headers_timeout": "0s",
        "common_http_protocol_options": { "idle_timeout": "0s" },
    });
    let chains = json!([chain(json!([manager(&more)]))]);
    let document = |resource: Json| read("resource.json", resource.to_string()).unwrap();

    let cluster = crate::import::cluster(&document(web)).unwrap();
    let listener = crate::import::listener(&document(listener("web", chains))).unwrap();

    for dropped in cluster.dropped.iter().chain(&listener.dropped) {
        assert_eq!(dropped.effect, Effect::Nothing, "{dropped}");
    }
}

#[test]
fn each_endpoint_and_option_that_is_left_out_is_said_with_its_place() {
    let mut web = cluster("web");
    web["load_assignment"]["endpoints"][0]["lb_endpoints"] = json!([
        { "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 3000 } } } },
        { "endpoint_name": "named" },
        { "endpoint": {} },
        { "endpoint": { "address": {} } },
        { "endpoint": { "address": { "pipe": {} } } },
    ]);
    web["http2_protocol_options"] = json!({ "connection_keepalive": {} });
    let mut bootstrap = with_table(&json!({ "virtual_hosts": [host(&["*"])] }));
    bootstrap["static_resources"]["clusters"] = json!([web]);
    bootstrap["layered_runtime"] = json!({ "layers": [{
        "name": "static",
        "static_layer": { "overload": { "global_downstream_max_connections": 7, "other": 1 } },
    }] });

    let imported = holds(&bootstrap);

    assert_eq!(
        imported.config["clusters"][0]["endpoints"],
        json!([{ "address": "127.0.0.1:3000" }])
    );
    assert_eq!(imported.config["max_active_downstream_connections"], 7);
    let behaviour = said(&imported, Effect::Behaviour);
    for nth in 1..5 {
        let place = format!("lb_endpoints[{nth}]");
        let at = behaviour.iter().filter(|one| one.contains(&place));
        assert_eq!(at.count(), 1, "{place}: {behaviour:#?}");
    }
    assert!(
        behaviour
            .iter()
            .any(|one| one.contains("clusters[0].http2_protocol_options.connection_keepalive")),
        "{behaviour:#?}"
    );
    let nothing = said(&imported, Effect::Nothing);
    assert!(
        nothing
            .iter()
            .any(|one| one.contains("static_layer.overload.other")),
        "{nothing:#?}"
    );
}
