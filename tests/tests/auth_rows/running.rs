//! The service as it runs: many tenants, other files, figures.

use std::fs;

use attache_tests::proxies::{ask, send};

use crate::stage::{Settings, Stage, eventually, upstream};

#[tokio::test]
async fn a_good_file_takes_over_and_a_mistake_changes_nothing() {
    let auth = |path: &str| {
        format!(
            "
identity: [{{ name: anyone, anonymous: {{}} }}]
rules: [{{ action: allow, identity: [anyone], paths: [{{ exact: {path} }}] }}]
"
        )
    };
    let stage = Stage::new(&auth("/first")).await;
    let service = stage.service.clone();
    let watching = tokio::spawn(async move { service.watch().await });
    let file = stage.folder.path().join("auth.yaml");
    let counted = |result: &str| {
        stage.counted(&format!(
            "attache_auth_reloads_total{{result=\"{result}\"}}"
        ))
    };
    for (proxy, address) in stage.proxies() {
        let path = format!("/{proxy}");
        eventually("the next file is in use", async || {
            // The watch may not have begun.
            let next = stage.folder.path().join("next.yaml");
            fs::write(&next, auth(&path)).unwrap();
            fs::rename(&next, &file).unwrap();
            ask(*address, "GET", &path, &[]).await.status == 200
        })
        .await;
        assert_eq!(
            ask(*address, "GET", "/first", &[]).await.status,
            401,
            "{proxy}"
        );

        let refused = counted("error");
        fs::write(&file, "rules: [{ action: alow }]\n").unwrap();
        eventually("the mistake is noticed", async || {
            counted("error") > refused
        })
        .await;
        assert_eq!(
            ask(*address, "GET", &path, &[]).await.status,
            200,
            "{proxy}"
        );
    }
    watching.abort();
}

const TENANTS: &str = "
identity:
- name: keys
  api_key:
    keys:
    # printf %s demo-key | sha256sum
    - { id: ada, hash: 'sha256:c48a01f49fd0f2cc404bc3cbbc80e91457a3d41bb429a695243de4c61794155c' }
- { name: anyone, anonymous: {} }
pipelines:
- name: acme
  context: { tenant: [acme] }
  rules: [{ action: allow, identity: [keys] }]
  upstream_headers: { x-tenant: { value: acme } }
- name: shops
  hosts: ['*.shop.test']
  rules: [{ action: allow, identity: [anyone] }]
  upstream_headers: { x-tenant: { value: shops } }
rules: [{ action: deny }]
denied: { status: 404 }
";
const ROUTES: &str = "
- match: { prefix: /acme }
  route: { cluster: web }
  typed_per_filter_config: { policy: { check_settings: { context_extensions: { tenant: acme } } } }
- { match: { prefix: / }, route: { cluster: web } }
";

#[tokio::test]
async fn tenants_are_told_apart_by_host_and_by_route() {
    let settings = Settings {
        routes: ROUTES,
        ..Settings::default()
    };
    let stage = Stage::with(TENANTS, settings).await;
    for (proxy, address) in stage.proxies() {
        for (host, path, key, status, tenant) in [
            (
                "attache.test",
                "/acme/a",
                Some("demo-key"),
                200,
                &["acme"][..],
            ),
            ("attache.test", "/acme/a", None, 401, &[]),
            ("a.shop.test", "/acme/a", None, 401, &[]),
            ("a.shop.test", "/", None, 200, &["shops"]),
            ("A.Shop.Test:8080", "/", None, 200, &["shops"]),
            ("shop.test", "/", None, 404, &[]),
            ("attache.test", "/", Some("demo-key"), 404, &[]),
        ] {
            let mut headers = vec![("host", host), ("x-tenant", "acme")];
            headers.extend(key.map(|key| ("x-api-key", key)));
            let line = format!("GET {path} HTTP/1.1");
            let answer = send(*address, &line, &headers, b"").await;
            let case = format!("{host}{path} {key:?} through {proxy}");
            assert_eq!(answer.status, status, "{case}");
            assert_eq!(upstream(&answer, "x-tenant"), tenant, "{case}");
        }
    }
}

#[tokio::test]
async fn decisions_are_counted_by_pipeline_source_and_outcome() {
    let settings = Settings {
        routes: ROUTES,
        ..Settings::default()
    };
    let stage = Stage::with(TENANTS, settings).await;
    let series = [
        "attache_auth_decisions_total{pipeline=\"acme\",source=\"keys\",decision=\"allow\"}",
        "attache_auth_decisions_total{pipeline=\"acme\",source=\"none\",decision=\"deny\"}",
        "attache_auth_credentials_refused_total{source=\"keys\",reason=\"unknown_key\"}",
        "attache_auth_decisions_total{pipeline=\"default\",source=\"anyone\",decision=\"deny\"}",
    ];
    for (proxy, address) in stage.proxies() {
        let before = series.map(|series| stage.counted(series));
        for (path, key, status) in [
            ("/acme", "demo-key", 200),
            ("/acme", "demo-key", 200),
            ("/acme", "wrong", 401),
        ] {
            let answer = ask(*address, "GET", path, &[("x-api-key", key)]).await;
            assert_eq!(answer.status, status, "{proxy}");
        }
        assert_eq!(ask(*address, "GET", "/", &[]).await.status, 404, "{proxy}");
        let mut counted = series.map(|series| stage.counted(series));
        for (count, before) in counted.iter_mut().zip(before) {
            *count -= before;
        }
        assert_eq!(counted, [2, 1, 1, 1], "{proxy}");
    }
}
