//! What the control plane says comes into force, and stays there.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache_proxy::{Proxy, Running, xds::ControlPlane as Follower};
use attache_service::Metrics;
use attache_tests::control_plane::ControlPlane;
use serde_json::{Value, json};

use crate::world::{
    Either, Ours, PATIENCE, PROTOCOLS, ask, both, cluster, endpoints, file, listener, origin,
    program, read, routes, world,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_proxies_do_what_the_same_control_plane_says() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        server.set("1", &world(one)).await;
        let proxies = both(&server.address, protocol, "").await;
        for proxy in &proxies {
            proxy.until("edge", "200 one").await;
        }

        // Other endpoints.
        server.set("2", &world(two)).await;
        for proxy in &proxies {
            proxy.until("edge", "200 two").await;
        }

        // Another route, to another cluster.
        let mut more = world(one);
        more[3] = routes("routes", "more");
        more.extend([cluster("more"), endpoints("more", two)]);
        server.set("3", &more).await;
        for proxy in &proxies {
            proxy.until("edge", "200 two").await;
        }

        // A cluster that there is not.
        let mut lost = world(one);
        lost[3] = routes("routes", "nowhere");
        server.set("4", &lost).await;
        for proxy in &proxies {
            proxy.until("edge", "503 ").await;
        }

        // A second listener with its own routes beside the first.
        let mut second = world(one);
        second.extend([
            listener("inner", "inside", &json!({})),
            routes("inside", "more"),
            cluster("more"),
            endpoints("more", two),
        ]);
        server.set("5", &second).await;
        for proxy in &proxies {
            proxy.until("inner", "200 two").await;
            proxy.until("edge", "200 one").await;
        }

        // And none.
        server.set("6", &world(one)).await;
        for proxy in &proxies {
            let gone = async {
                while proxy.listener("inner").await.is_some() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let gone = tokio::time::timeout(PATIENCE, gone).await;
            assert!(gone.is_ok(), "{}: the listener stays", proxy.name());
            proxy.until("edge", "200 one").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_supported_is_refused_with_its_field_and_the_old_stays() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        server.set("1", &world(one)).await;
        let mut proxy = Either::Ours(Ours::start(&file(&server.address, protocol, "")).await);
        proxy.until("edge", "200 one").await;

        let mut other = world(two);
        other[2] = listener("edge", "routes", &json!({ "via": "1.1 somebody" }));
        server.set("2", &other).await;

        let Either::Ours(ours) = &mut proxy else {
            unreachable!()
        };
        let reason = ours.refused("Listener").await;
        assert!(reason.contains("edge: "), "{reason}");
        assert!(
            reason.contains("filter_chains[0].filters[0].typed_config.via"),
            "{reason}"
        );
        let told = server.until(|event| !event.error.is_empty()).await;
        assert!(told.error.contains("typed_config.via"), "{}", told.error);
        // What is right of it is in force.
        proxy.until("edge", "200 two").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_lose_no_request() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        server.set("0", &world(one)).await;
        let proxy = Either::Ours(Ours::start(&file(&server.address, protocol, "")).await);
        proxy.until("edge", "200 one").await;
        let at = proxy.listener("edge").await.unwrap();
        let (stop, asked) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let asking = tokio::spawn({
            let (stop, asked) = (stop.clone(), asked.clone());
            async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = ask(at).await;
                    let expected = ["200 one", "200 two"];
                    let expected = answer.as_deref().is_some_and(|is| expected.contains(&is));
                    assert!(expected, "{answer:?}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            }
        });

        // Each time another cluster takes the place of the one before.
        for (version, at) in [(1, two), (2, one), (3, two), (4, one)] {
            let name = format!("web-{version}");
            let world = [
                cluster(&name),
                endpoints(&name, at),
                listener("edge", "routes", &json!({})),
                routes("routes", &name),
            ];
            server.set(&version.to_string(), &world).await;
            proxy
                .until("edge", if at == one { "200 one" } else { "200 two" })
                .await;
        }

        stop.store(true, Ordering::Relaxed);
        asking.await.unwrap();
        assert!(asked.load(Ordering::Relaxed) > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_control_plane_the_last_good_configuration_goes_on_also_after_a_restart() {
    let Some(program) = program() else { return };
    let one = origin("one").await;
    for protocol in PROTOCOLS {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("xds.json");
        let more = format!(
            ", initial_fetch_timeout: 500ms, cache: '{}'",
            cache.display()
        );
        let mut server = ControlPlane::start(&program).await;
        server.set("1", &world(one)).await;
        let text = file(&server.address, protocol, &more);
        let proxy = Either::Ours(Ours::start(&text).await);
        proxy.until("edge", "200 one").await;
        wait_for(&cache, "RouteConfiguration").await;

        drop(server);
        proxy.until("edge", "200 one").await;
        drop(proxy);
        let proxy = Either::Ours(Ours::start(&text).await);

        proxy.until("edge", "200 one").await;
    }
}

/// Waits until the file holds a resource of this type.
async fn wait_for(file: &Path, kind: &str) {
    let done = async {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let saved: Value = serde_json::from_str(&text).unwrap_or_default();
            let types = saved["resources"].as_object();
            let mut types = types.into_iter().flatten();
            if types.any(|(name, list)| name.ends_with(kind) && list != &json!([])) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, done)
        .await
        .expect("saved in time");
}

/// Does what the control plane says until the proxy has this listener.
async fn follow_until(follower: &mut Follower, running: &Running, listener: &str) -> SocketAddr {
    loop {
        let plan = running.plan();
        let nth = plan.listeners.iter().position(|one| &*one.name == listener);
        if let Some(nth) = nth {
            return running.addresses()[nth].to_string().parse().unwrap();
        }
        let event = tokio::time::timeout(PATIENCE, follower.next()).await;
        follower.take(event.expect("in time"), running).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_keeps_what_the_control_plane_said() {
    let Some(program) = program() else { return };
    let one = origin("one").await;
    let mut server = ControlPlane::start(&program).await;
    server.set("1", &world(one)).await;
    let text = file(&server.address, "GRPC", "");
    let (config, plan, document) = read(&text);
    let metrics = Metrics::default();
    let running = Proxy::start(plan, metrics.clone()).await.unwrap();
    let mut follower = Follower::new(config, document, &running.plan(), &metrics).unwrap();
    let edge = follow_until(&mut follower, &running, "edge").await;

    let more = format!(
        "{text}listeners:\n- name: probes\n  address: 127.0.0.1:0\n  route_config: {{ routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 203 }} }}] }}\n"
    );
    let (config, plan, document) = read(&more);
    follower
        .rebase(config, document, &plan, &running)
        .await
        .unwrap();

    let probes = follow_until(&mut follower, &running, "probes").await;
    assert_eq!(ask(probes).await.as_deref(), Some("203 "));
    assert_eq!(ask(edge).await.as_deref(), Some("200 one"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_may_name_routes_and_endpoints_of_the_control_plane() {
    let Some(program) = program() else { return };
    let one = origin("one").await;
    for protocol in PROTOCOLS {
        let mut server = ControlPlane::start(&program).await;
        server
            .set("1", &[endpoints("web", one), routes("inside", "web")])
            .await;
        let text = file(&server.address, protocol, ", resources: []");
        let text = text.replace("clusters: [", "clusters: [{ name: web, eds: {} }, ");
        let text = format!(
            "{text}listeners: [{{ name: inner, address: '127.0.0.1:0', route_config_name: inside }}]\n"
        );

        let proxy = Either::Ours(Ours::start(&text).await);

        proxy.until("inner", "200 one").await;
    }
}

/// Settings of a listener that logs there.
fn logs_to(path: &Path) -> Value {
    json!({ "access_log": [{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path.display().to_string(),
        },
    }] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_opened_is_refused_with_its_field_and_open_ones_go_on() {
    let Some(program) = program() else { return };
    let (one, two) = (origin("one").await, origin("two").await);
    for protocol in PROTOCOLS {
        let folder = tempfile::tempdir().unwrap();
        let (logs, moved) = (folder.path().join("logs"), folder.path().join("moved"));
        std::fs::create_dir(&logs).unwrap();
        let mut server = ControlPlane::start(&program).await;
        let mut resources = world(one);
        resources[2] = listener("edge", "routes", &logs_to(&logs.join("edge")));
        server.set("1", &resources).await;
        let mut proxy = Either::Ours(Ours::start(&file(&server.address, protocol, "")).await);
        proxy.until("edge", "200 one").await;

        // From here on nothing can be opened there.
        std::fs::rename(&logs, &moved).unwrap();
        let inner = logs.join("inner");
        resources[1] = endpoints("web", two);
        resources[3] = routes("routes", "more");
        resources.extend([
            cluster("more"),
            endpoints("more", two),
            listener("inner", "routes", &logs_to(&inner)),
        ]);
        server.set("2", &resources).await;

        let reason = proxy.ours().refused("Listener").await;
        let field =
            "inner: filter_chains[0].filters[0].typed_config.access_log[0].typed_config.path: ";
        assert!(reason.starts_with(field), "{reason}");
        assert!(reason.contains(&inner.display().to_string()), "{reason}");
        assert!(!reason.contains("edge: "), "{reason}");
        let told = server.until(|event| !event.error.is_empty()).await;
        assert!(told.error.contains(field), "{}", told.error);
        proxy.until("edge", "200 two").await;
        let lines = std::fs::read_to_string(moved.join("edge")).unwrap_or_default();
        assert!(!lines.is_empty());

        // And when it can be, it is.
        std::fs::create_dir(&logs).unwrap();
        proxy.until("inner", "200 two").await;
        proxy.ours().accepted("Listener").await;
    }
}
