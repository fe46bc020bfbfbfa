//! What `attache export envoy` writes, Envoy loads and `attache import envoy` reads: every
//! configuration of a scenario survives the way there and back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, path::Path, process::Command};

use attache_proxy::{
    export,
    import::{self, Effect, Imported, Unprotected},
};
use attache_tests::{envoy, ours, run::Sockets, scenario::Scenario};
use serde_json::{Value, json};

#[test]
fn every_scenario_survives_the_way_to_envoys_language_and_back() {
    let mut tried = 0;
    let mut problems = Vec::new();
    for scenario in Scenario::load_all().unwrap() {
        let clusters = Sockets::bind(&scenario).unwrap().clusters(&scenario);
        // What our proxy refuses has no export.
        let Ok((config, _)) = ours::read(&ours::config(&scenario, &clusters).unwrap()) else {
            continue;
        };
        tried += 1;
        let there = export::envoy(&config, &BTreeMap::new()).unwrap();
        if let Err(problem) = back(&there) {
            problems.push(format!("{}: {problem}", scenario.title()));
        }
    }
    assert!(tried > 100, "only {tried} scenarios could be exported");
    assert!(
        problems.is_empty(),
        "{} of {tried}:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

/// Imports a bootstrap and exports the result: it has to be the same, with nothing lost.
fn back(there: &Value) -> Result<(), String> {
    let document = import::read("envoy.json", there.to_string()).map_err(|e| e.to_string())?;
    let imported = import::bootstrap(&document, Unprotected::LeftOut).map_err(|e| e.to_string())?;
    if let Some(lost) = imported
        .dropped
        .iter()
        .find(|d| d.effect != Effect::Nothing)
    {
        return Err(format!("lost {}: {}", lost.path, lost.why));
    }
    let text = import::to_yaml(&imported.config);
    let (config, _) = ours::read(&text).map_err(|e| format!("{e}\n{text}"))?;
    let again = export::envoy(&config, &BTreeMap::new()).map_err(|e| e.to_string())?;
    match first_difference("", there, &again) {
        Some(at) => Err(format!("differs at {at}")),
        None => Ok(()),
    }
}

fn first_difference(path: &str, one: &Value, other: &Value) -> Option<String> {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.keys()
                .chain(other.keys())
                .find_map(|key| match (one.get(key), other.get(key)) {
                    (Some(a), Some(b)) => first_difference(&format!("{path}.{key}"), a, b),
                    (a, b) => Some(format!("{path}.{key}: {a:?} and {b:?}")),
                })
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => one
            .iter()
            .zip(other)
            .enumerate()
            .find_map(|(nth, (a, b))| first_difference(&format!("{path}[{nth}]"), a, b)),
        _ => (one != other).then(|| format!("{path}: {one} and {other}")),
    }
}

/// Has Envoy look at a bootstrap, where it is installed.
fn envoy_takes(bootstrap: &Value, folder: &Path) {
    let Some(program) = envoy::program() else {
        println!("skipped: Envoy (run cargo xtask test)");
        return;
    };
    let file = folder.join("bootstrap.json");
    std::fs::write(&file, bootstrap.to_string()).unwrap();
    let said = Command::new(program)
        .args(["--mode", "validate", "--disable-hot-restart"])
        .args(["--log-level", "error", "--config-path"])
        .arg(&file)
        .current_dir(folder)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{error}\n{bootstrap:#}");
}

fn imported(bootstrap: &Value) -> Imported {
    let document = import::read("envoy.json", bootstrap.to_string()).unwrap();
    import::bootstrap(&document, Unprotected::LeftOut).unwrap()
}

/// What was left out that has an effect.
fn lost(imported: &Imported) -> Vec<String> {
    let lost = imported.dropped.iter();
    let lost = lost.filter(|one| one.effect != Effect::Nothing);
    lost.map(|one| format!("{}: {}", one.path, one.why))
        .collect()
}

const ENDPOINTS: &str = r#"{
  "version_info": "1",
  "resources": [{
    "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
    "cluster_name": "filed",
    "endpoints": [{ "lb_endpoints": [{ "endpoint": {
      "address": { "socket_address": { "address": "127.0.0.1", "port_value": 3000 } }
    } }] }]
  }]
}"#;

/// A cluster of this type with one endpoint, that has a name.
fn named(name: &str, kind: &str, host: &str) -> Value {
    json!({
        "name": name, "type": kind, "lb_policy": "ROUND_ROBIN",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{
            "endpoint": { "address": { "socket_address": { "address": host, "port_value": 8080 } } },
        }] }] },
    })
}

/// A listener of Envoy's, with its traces and logs.
fn listener(more: &Value) -> Value {
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "server_header_transformation": "PASS_THROUGH",
        "route_config": { "virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "strict" } }],
        }] },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        manager[field] = value.clone();
    }
    json!({
        "name": "edge",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
        }] }],
    })
}

fn traces(cluster: &str) -> Value {
    json!({
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                "grpc_service": { "envoy_grpc": { "cluster_name": cluster }, "timeout": "0.25s" },
                "service_name": "front",
            },
        },
        "random_sampling": { "value": 12.5 },
        "spawn_upstream_span": true,
    })
}

#[test]
fn a_bootstrap_with_names_files_traces_and_logs_is_imported_whole() {
    let folder = tempfile::tempdir().unwrap();
    let endpoints = folder.path().join("endpoints.json");
    std::fs::write(&endpoints, ENDPOINTS).unwrap();
    let log = folder.path().join("access.log");
    let mut collector = named("collector", "STRICT_DNS", "collector.test");
    collector["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    });
    let mut strict = named("strict", "STRICT_DNS", "web.test");
    strict["dns_refresh_rate"] = json!("7s");
    strict["dns_lookup_family"] = json!("V4_ONLY");
    let bootstrap = json!({
        "node": { "id": "edge-1", "cluster": "edge" },
        "static_resources": {
            "listeners": [listener(&json!({
                "codec_type": "HTTP1",
                "tracing": traces("collector"),
                "access_log": [
                    {
                        "name": "file",
                        "filter": { "status_code_filter": { "comparison": {
                            "op": "GE", "value": { "default_value": 500, "runtime_key": "log" },
                        } } },
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                            "path": log, "log_format": { "json_format": { "status": "%RESPONSE_CODE%" } },
                        },
                    },
                    {
                        "name": "errors",
                        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog" },
                    },
                ],
            }))],
            "clusters": [
                strict,
                named("logical", "LOGICAL_DNS", "api.test"),
                {
                    "name": "filed", "type": "EDS",
                    "eds_cluster_config": { "eds_config": {
                        "resource_api_version": "V3", "path_config_source": { "path": endpoints },
                    } },
                },
                collector,
            ],
        },
    });
    envoy_takes(&bootstrap, folder.path());

    let imported = imported(&bootstrap);

    assert_eq!(lost(&imported), Vec::<String>::new());
    let text = import::to_yaml(&imported.config);
    let ours = &imported.config;
    let clusters = &ours["clusters"];
    let family = |nth: usize| &clusters[nth]["dns_lookup_family"];
    assert_eq!(
        clusters[0]["endpoints"],
        json!([{ "address": "web.test:8080" }]),
        "{text}"
    );
    assert_eq!(
        (&clusters[0]["dns_refresh_rate"], family(0)),
        (&json!("7s"), &json!("V4_ONLY"))
    );
    assert_eq!(
        (&clusters[1]["dns_type"], family(1)),
        (&json!("LOGICAL_DNS"), &json!("AUTO"))
    );
    assert_eq!(clusters[2]["endpoints_file"], json!(endpoints));
    assert_eq!(
        ours["tracing"],
        json!({ "cluster": "collector", "service_name": "front", "random_sampling": 12.5 })
    );
    assert_eq!(ours["listeners"][0]["codec_type"], "HTTP1");
    let logs = ours["listeners"][0]["access_log"].as_array().unwrap();
    assert_eq!(
        (logs.len(), &logs[1]["output"]),
        (2, &json!("stderr")),
        "{text}"
    );

    // It runs, and what Envoy gets of it is the same again.
    let (config, _) = ours::read(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let there = export::envoy(&config, &BTreeMap::new()).unwrap();
    envoy_takes(&there, folder.path());
    back(&there).unwrap();
}

#[test]
fn traces_that_listeners_do_not_share_are_named_as_left_out() {
    let bootstrap = |mut listeners: Vec<Value>| {
        let mut strict = named("strict", "STRICT_DNS", "web.test");
        strict["http2_protocol_options"] = json!({});
        for (nth, listener) in listeners.iter_mut().enumerate() {
            listener["name"] = json!(format!("edge-{nth}"));
        }
        json!({ "static_resources": { "listeners": listeners, "clusters": [strict] } })
    };
    let traced = listener(&json!({ "tracing": traces("strict") }));
    let zipkin = json!({ "provider": { "name": "envoy.tracers.zipkin", "typed_config": {
        "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
        "collector_cluster": "strict", "collector_endpoint": "/api/v2/spans",
    } } });
    for (listeners, expected) in [
        (vec![traced.clone(), traced.clone()], None),
        (
            vec![
                traced.clone(),
                listener(&json!({ "tracing": traces("other") })),
            ],
            Some("those of the first one count"),
        ),
        (
            vec![traced, listener(&json!({}))],
            Some("those without any have these too"),
        ),
        (
            vec![listener(&json!({ "tracing": zipkin }))],
            Some("spans go to OpenTelemetry only"),
        ),
        (
            vec![listener(&json!({ "tracing": {} }))],
            Some("it does not say where to"),
        ),
    ] {
        let lost = lost(&imported(&bootstrap(listeners)));
        assert_eq!(lost.len(), usize::from(expected.is_some()), "{lost:#?}");
        for (lost, expected) in lost.iter().zip(expected) {
            assert!(lost.contains(expected), "{lost}");
        }
    }
}

#[test]
fn a_source_of_resources_that_is_neither_a_file_nor_the_control_plane_is_named() {
    let elsewhere = json!({ "api_config_source": { "api_type": "GRPC" } });
    let bootstrap = json!({ "static_resources": {
        "listeners": [listener(&json!({ "route_config": null, "rds": {
            "route_config_name": "routes",
            "config_source": { "path_config_source": { "path": "/etc/routes.yaml" } },
        } }))],
        "clusters": [{
            "name": "streamed", "type": "EDS", "eds_cluster_config": { "eds_config": elsewhere },
        }],
    } });

    let lost = lost(&imported(&bootstrap));

    for expected in [
        "rds.config_source.path_config_source",
        "eds_config.api_config_source",
        // Without a control plane there is nothing to ask.
        "the whole listener is left out",
        "the whole cluster is left out",
    ] {
        assert!(lost.iter().any(|one| one.contains(expected)), "{lost:#?}");
    }
    assert_eq!(lost.len(), 4, "{lost:#?}");
}

#[test]
fn envoy_loads_what_is_exported_of_names_files_traces_and_logs() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(file("endpoints.json"), ENDPOINTS).unwrap();
    let config = |tracing: &str| {
        format!(
            "
listeners:
- name: edge
  address: 127.0.0.1:0
  access_log:
  - {{ path: {log}, sample: {{ rate: 0.1 }}, always: [errors, 'slow>1s'] }}
  - {{ text_format: \"%REQUESTED_SERVER_NAME% %UPSTREAM_HOST% %POLICY_CALLS%\\n\" }}
  - {{ output: stderr, format: envoy }}
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: strict }} }}]
tracing: {{ {tracing}, random_sampling: 10 }}
clusters:
- {{ name: strict, dns: 'web.test:8080', dns_refresh_rate: 10s }}
- {{ name: logical, dns: 'api.test:8080', dns_type: LOGICAL_DNS, dns_lookup_family: ALL }}
- {{ name: several, endpoints: ['one.test:80', {{ address: 'two.test:80', weight: 2 }}] }}
- {{ name: filed, endpoints_file: {endpoints} }}
- {{ name: collector, dns: 'collector.test:4317', http2: {{}} }}
",
            log = file("access.log"),
            endpoints = file("endpoints.json"),
        )
    };
    for tracing in [
        "cluster: collector",
        "endpoint: 'http://collector.test:4317'",
        "endpoint: 'https://collector.test:4317'",
        "endpoint: 'unix:/run/collector.sock'",
    ] {
        let text = config(tracing);
        let (config, _) = ours::read(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let there = export::envoy(&config, &BTreeMap::new()).unwrap();

        envoy_takes(&there, folder.path());

        if tracing.starts_with("cluster") {
            back(&there).unwrap();
        }
    }
}
