use std::time::Duration;

use attache_service::Address;

use super::*;
use crate::{
    server::sink::SinkSettings,
    store::{
        redis::{Auth, Topology},
        shared::Backend,
    },
};

fn read(variables: &[(&str, &str)]) -> Result<Environment, EnvironmentErrors> {
    Environment::read(&|name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

#[test]
fn without_variables_everything_is_as_in_the_reference() {
    let environment = read(&[]).unwrap();
    let listen = &environment.listen;
    assert_eq!(listen.http, address("0.0.0.0:8080"));
    assert_eq!(listen.grpc, address("0.0.0.0:8081"));
    assert_eq!(listen.debug, address("0.0.0.0:6070"));
    assert_eq!(listen.age.max, Duration::from_secs(24 * 3600));
    assert_eq!(listen.age.grace, Duration::from_secs(3600));
    assert!(listen.tls.is_none());
    assert_eq!(environment.log.level, "warn");
    assert!(!environment.log.json);
    let RulesFrom::Files(directory) = &environment.rules else {
        panic!("{:?}", environment.rules);
    };
    assert_eq!(
        directory.root,
        std::path::Path::new("/srv/runtime_data/current")
    );
    assert_eq!(directory.app_directory, "config");
    assert!(directory.watch_root && !directory.ignore_dot_files);
    let counting = &environment.counting;
    assert!((counting.near_limit_ratio - 0.8).abs() < f32::EPSILON);
    assert_eq!(counting.expiry_jitter, Duration::from_secs(300));
    assert_eq!(counting.local_cache_bytes, 0);
    assert_eq!(environment.answers, Answers::default());
    let StoreSettings::Shared(store) = &environment.store else {
        panic!("{:?}", environment.store);
    };
    let Backend::Redis(redis) = &store.backend else {
        panic!("{:?}", store.backend);
    };
    let socket = address("unix:/var/run/nutcracker/ratelimit.sock");
    assert_eq!(redis.topology, Topology::Single(socket));
    assert_eq!(redis.expiry_jitter, Duration::from_secs(300));
    assert!(redis.per_second.is_none());
    let SinkSettings::Statsd(collector) = &environment.statistics.sink else {
        panic!("{:?}", environment.statistics.sink);
    };
    assert_eq!(*collector, address("localhost:8125"));
    assert!(environment.tracing.is_none());
    assert!(environment.notes.is_empty());
}

#[test]
fn the_variables_of_envoy_gateway_are_taken() {
    let environment = read(&[
        ("RUNTIME_ROOT", "/data"),
        ("RUNTIME_SUBDIRECTORY", "ratelimit"),
        ("RUNTIME_IGNOREDOTFILES", "true"),
        ("RUNTIME_WATCH_ROOT", "false"),
        ("LOG_LEVEL", "info"),
        ("USE_STATSD", "false"),
        ("USE_PROMETHEUS", "true"),
        ("PROMETHEUS_ADDR", ":19001"),
        ("PROMETHEUS_MAPPER_YAML", "/etc/statsd-exporter/conf.yaml"),
        ("CONFIG_TYPE", "GRPC_XDS_SOTW"),
        ("CONFIG_GRPC_XDS_SERVER_URL", "envoy-gateway:18001"),
        ("CONFIG_GRPC_XDS_NODE_ID", "envoy-ratelimit"),
        ("GRPC_SERVER_TLS_CA_CERT", "/certs/ca.crt"),
        ("FORCE_START_WITHOUT_INITIAL_CONFIG", "true"),
        ("REDIS_SOCKET_TYPE", "tcp"),
        ("REDIS_URL", "redis.redis.svc:6379"),
        ("TRACING_ENABLED", "true"),
        ("TRACING_EXPORTER_PROTOCOL", "grpc"),
        ("TRACING_SAMPLING_RATE", "0.6"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
    ]);
    let environment = environment.unwrap();
    assert!(environment.start_without_rules);
    let RulesFrom::Xds(xds) = &environment.rules else {
        panic!("{:?}", environment.rules);
    };
    assert_eq!(xds.server, address("envoy-gateway:18001"));
    assert_eq!(xds.node.id, "envoy-ratelimit");
    let SinkSettings::Prometheus(prometheus) = &environment.statistics.sink else {
        panic!("{:?}", environment.statistics.sink);
    };
    assert_eq!(prometheus.address, address("0.0.0.0:19001"));
    assert_eq!(prometheus.path, "/metrics");
    assert!(prometheus.mapper.is_some());
    let tracing = environment.tracing.unwrap();
    assert!((tracing.ratio - 0.6).abs() < f64::EPSILON);
    let settings = tracing.settings(&|name| {
        (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "http://collector:4317".to_owned())
    });
    assert!(settings.unwrap().is_some());
}

#[test]
fn all_mistakes_are_told_at_once_with_name_and_value() {
    let errors = read(&[
        ("GRPC_PORT", "high"),
        ("LOG_LEVEL", "loud"),
        ("NEAR_LIMIT_RATIO", "1.5"),
        ("SHADOW_MODE", "yes"),
        ("REDIS_SOCKET_TYPE", "tcp"),
        ("REDIS_URL", "redis://me:secret@nowhere"),
        ("USE_PROMETHEUS", "true"),
        ("GRPC_SERVER_USE_TLS", "true"),
        ("LIMIT_RESET_HEADER", "no header"),
        ("STATS_FLUSH_INTERVAL", "10"),
    ]);
    let text = errors.unwrap_err().to_string();
    for part in [
        "GRPC_PORT=high: ",
        "LOG_LEVEL=loud: none of `panic`",
        "NEAR_LIMIT_RATIO=1.5: not a number from 0 to 1",
        "SHADOW_MODE=yes: not `true` or `false`",
        "REDIS_URL=(not shown): expected `host:port`",
        "USE_PROMETHEUS=true: statistics go to one place only",
        "GRPC_SERVER_TLS_CERT=: needed",
        "GRPC_SERVER_TLS_KEY=: needed",
        "LIMIT_RESET_HEADER=no header: not the name of a header",
        "STATS_FLUSH_INTERVAL=10: not a duration",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn redis_comes_in_three_shapes_and_twice() {
    let redis = |variables: &[(&str, &str)]| {
        let StoreSettings::Shared(store) = read(variables).unwrap().store else {
            panic!("not shared");
        };
        match store.backend {
            Backend::Redis(redis) => redis,
            Backend::Memcached(_) => panic!("not Redis"),
        }
    };
    let single = redis(&[
        ("REDIS_SOCKET_TYPE", "tcp"),
        ("REDIS_URL", ":6379"),
        ("REDIS_AUTH", "me:pw"),
        ("CACHE_KEY_PREFIX", "p:"),
        ("REDIS_TIMEOUT", "20ms"),
    ]);
    assert_eq!(single.topology, Topology::Single(address("localhost:6379")));
    assert_eq!(single.auth, Some(Auth::parse("me:pw")));
    assert_eq!(single.key_prefix, "p:");
    assert_eq!(single.timeout, Duration::from_millis(20));

    let sentinel = redis(&[
        ("REDIS_TYPE", "SENTINEL"),
        ("REDIS_URL", "main,redis://u:p@a:1,b:2"),
        ("REDIS_SENTINEL_AUTH", "pw"),
        ("REDIS_PERSECOND", "true"),
        ("REDIS_PERSECOND_TYPE", "cluster"),
        ("REDIS_PERSECOND_URL", "c:3,d:4"),
    ]);
    let expected = Topology::Sentinel {
        master: "main".to_owned(),
        sentinels: vec![address("a:1"), address("b:2")],
        auth: Some(Auth::parse("pw")),
    };
    assert_eq!(sentinel.topology, expected);
    // However long connecting may take, a decision does not wait that long.
    assert_eq!(sentinel.connect_timeout, Duration::from_secs(10));
    assert_eq!(sentinel.timeout, Duration::from_millis(100));
    let cluster = Topology::Cluster(vec![address("c:3"), address("d:4")]);
    assert_eq!(sentinel.per_second.unwrap().topology, cluster);

    let errors = read(&[("REDIS_TYPE", "sentinel"), ("REDIS_URL", "main")]).unwrap_err();
    assert!(
        errors
            .to_string()
            .contains("the master's name and sentinels")
    );
}

#[test]
fn how_long_an_operation_may_take_can_be_said() {
    let store = |variables: &[(&str, &str)]| match read(variables).unwrap().store {
        StoreSettings::Shared(store) => store.backend,
        other => panic!("{other:?}"),
    };
    let Backend::Redis(redis) = store(&[
        ("REDIS_TIMEOUT", "20ms"),
        ("REDIS_OPERATION_TIMEOUT", "2s"),
        ("REDIS_PERSECOND", "true"),
    ]) else {
        panic!("not Redis");
    };
    assert_eq!(redis.timeout, Duration::from_secs(2));
    assert_eq!(redis.connect_timeout, Duration::from_millis(20));
    let per_second = redis.per_second.unwrap();
    assert_eq!(per_second.timeout, Duration::from_millis(100));

    let memcached = |timeout| {
        let variables = [
            ("BACKEND_TYPE", "memcache"),
            ("MEMCACHE_HOST_PORT", "a"),
            ("MEMCACHE_OPERATION_TIMEOUT", timeout),
        ];
        match store(&variables) {
            Backend::Memcached(settings) => settings.timeout,
            Backend::Redis(_) => panic!("not memcached"),
        }
    };
    assert_eq!(memcached("7ms"), Duration::from_millis(7));
    assert_eq!(memcached(""), Duration::from_millis(100));

    let errors = read(&[
        ("REDIS_OPERATION_TIMEOUT", "0"),
        ("REDIS_PERSECOND", "true"),
        ("REDIS_PERSECOND_OPERATION_TIMEOUT", "soon"),
    ]);
    let text = errors.unwrap_err().to_string();
    for part in [
        "REDIS_OPERATION_TIMEOUT=0: must be longer than nothing",
        "REDIS_PERSECOND_OPERATION_TIMEOUT=soon: not a duration",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn memcached_and_memory_are_other_backends() {
    let memory = read(&[("BACKEND_TYPE", "memory")]).unwrap();
    assert!(matches!(memory.store, StoreSettings::Memory { .. }));
    let memcached = read(&[
        ("BACKEND_TYPE", "memcache"),
        ("MEMCACHE_HOST_PORT", "a,b:1"),
    ]);
    let StoreSettings::Shared(store) = memcached.unwrap().store else {
        panic!("not shared");
    };
    let Backend::Memcached(settings) = store.backend else {
        panic!("not memcached");
    };
    assert_eq!(settings.servers, [address("a:11211"), address("b:1")]);
    let errors = read(&[("BACKEND_TYPE", "memcache")]).unwrap_err();
    assert!(errors.to_string().contains("MEMCACHE_HOST_PORT"));
}

#[test]
fn what_has_no_effect_is_noted_once() {
    let environment = read(&[
        ("REDIS_POOL_SIZE", "10"),
        ("REDIS_PIPELINE_WINDOW", "150us"),
        ("TRACING_ENABLED", "true"),
    ])
    .unwrap();
    let names: Vec<_> = environment.notes.iter().map(|note| note.name).collect();
    assert_eq!(
        names,
        [
            "REDIS_POOL_SIZE",
            "REDIS_PIPELINE_WINDOW",
            "TRACING_ENABLED"
        ]
    );
}

#[test]
fn mogrifiers_are_read_one_by_one() {
    let environment = read(&[
        ("USE_STATSD", "false"),
        ("USE_DOG_STATSD", "true"),
        ("USE_DOG_STATSD_MOGRIFIERS", "hits,Other"),
        ("DOG_STATSD_MOGRIFIER_HITS_PATTERN", "^a(.*)$"),
        ("DOG_STATSD_MOGRIFIER_HITS_NAME", "b$1"),
        ("DOG_STATSD_MOGRIFIER_HITS_TAGS", "t:$1"),
        ("DOG_STATSD_MOGRIFIER_OTHER_PATTERN", "x"),
        ("DOG_STATSD_MOGRIFIER_OTHER_NAME", "y"),
        ("EXTRA_TAGS", "z:1,b:2"),
    ])
    .unwrap();
    let SinkSettings::DogStatsd { mogrifiers, .. } = &environment.statistics.sink else {
        panic!("{:?}", environment.statistics.sink);
    };
    assert_eq!(mogrifiers.len(), 2);
    let tags: Vec<_> = environment.statistics.extra_tags.iter().collect();
    assert_eq!(tags[0].0, "b");
    let errors = read(&[
        ("USE_STATSD", "false"),
        ("USE_DOG_STATSD", "true"),
        ("USE_DOG_STATSD_MOGRIFIERS", "A"),
        ("DOG_STATSD_MOGRIFIER_A_PATTERN", "("),
    ])
    .unwrap_err()
    .to_string();
    assert!(
        errors.contains("DOG_STATSD_MOGRIFIER_A_PATTERN=(: not a regular"),
        "{errors}"
    );
    assert!(errors.contains("DOG_STATSD_MOGRIFIER_A_NAME"), "{errors}");
}

#[test]
fn only_the_references_own_variables_mean_it() {
    let meant = |name: &str| Environment::is_meant(&|known| (known == name).then(String::new));
    assert!(meant("REDIS_URL") && meant("RUNTIME_ROOT"));
    assert!(!meant("HOST") && !meant("PORT") && !meant("LOG_LEVEL"));
}
