//! Decisions that are kept, logged and explained.

use std::{fs, time::Duration};

use attache_tests::proxies::ask;
use serde_json::{Value, json};

use crate::stage::{Stage, upstream, witnessed};

const KEYS: &str = "
identity:
- name: keys
  # printf %s demo-key | sha256sum
  api_key:
    from: [{ header: x-api-key }, { query: key }]
    keys: [{ id: ada, hash: 'sha256:c48a01f49fd0f2cc404bc3cbbc80e91457a3d41bb429a695243de4c61794155c', claims: { email: ada@shop.test, team: red } }]
rules:
- { name: closed, action: deny, paths: [{ prefix: /closed }] }
- { name: known, action: allow }
upstream_headers: { x-user: { claim: sub } }
";
const KEY: [(&str, &str); 1] = [("x-api-key", "demo-key")];

#[tokio::test]
async fn a_decision_serves_requests_alike_in_what_it_looked_at() {
    let more = "decision_cache: { ttl: 1h, negative_ttl: 1h }";
    let stage = Stage::new(&format!("{KEYS}{more}")).await;
    let looked_up = |result| {
        let labels = format!("{{pipeline=\"default\",result=\"{result}\"}}");
        stage.counted(&format!("attache_auth_decision_cache_total{labels}"))
    };
    for (proxy, address) in stage.proxies() {
        let (hits, misses) = (looked_up("hit"), looked_up("miss"));
        let path = format!("/{proxy}");
        for noise in ["1", "2", "3"] {
            let headers = [KEY[0], ("x-noise", noise)];
            let answer = ask(*address, "GET", &path, &headers).await;
            assert_eq!(answer.status, 200, "{proxy}");
            assert_eq!(upstream(&answer, "x-user"), ["ada"], "{proxy}");
            assert_eq!(upstream(&answer, "x-noise"), [noise], "{proxy}");
        }
        // The rules look at the path, and the source at the key.
        let other = format!("/closed/{proxy}");
        assert_eq!(
            ask(*address, "GET", &other, &KEY).await.status,
            403,
            "{proxy}"
        );
        let wrong = [("x-api-key", *proxy)];
        assert_eq!(
            ask(*address, "GET", &path, &wrong).await.status,
            401,
            "{proxy}"
        );
        let counted = (looked_up("hit") - hits, looked_up("miss") - misses);
        assert_eq!(counted, (2, 3), "{proxy}");
    }
}

#[tokio::test]
async fn the_log_tells_of_each_decision_and_no_secrets() {
    let stage = Stage::new(&format!(
        "{KEYS}
decision_log:
  file: {{ path: decisions.log }}
  headers: ['*']
  query: ['*']
  claims: [email, team]
  mask: {{ claims: [email], headers: [x-private] }}
decision_metadata: {{ id: true }}
"
    ))
    .await;
    let log = stage.folder.path().join("decisions.log");
    let mut logged = 0;
    for (proxy, address) in stage.proxies() {
        let headers = [
            KEY[0],
            ("x-private", "hushed"),
            ("cookie", "session=hushed"),
            ("authorization", "Bearer hushed"),
            ("user-agent", "curl"),
        ];
        let allowed = ask(*address, "GET", "/a?page=2&token=hushed", &headers).await;
        assert_eq!(allowed.status, 200, "{proxy}");
        let denied = ask(*address, "GET", "/closed?key=demo-key", &[]).await;
        assert_eq!(denied.status, 403, "{proxy}");
        let unknown = ask(*address, "GET", "/?key=hushed", &[]).await;
        assert_eq!(unknown.status, 401, "{proxy}");

        stage.service.flush(Duration::from_secs(10)).await;
        let text = fs::read_to_string(&log).unwrap();
        for secret in ["hushed", "demo-key", "ada@shop.test"] {
            assert!(!text.contains(secret), "{secret} through {proxy}: {text}");
        }
        let records: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .skip(logged)
            .collect();
        logged += records.len();
        let [first, second, third] = &records[..] else {
            panic!("{proxy}: {text}");
        };
        assert_eq!(
            witnessed(&allowed)["decision_id"],
            first["decision_id"],
            "{proxy}"
        );
        for (place, expected) in [
            ("/decision", json!("allow")),
            ("/source", json!("keys")),
            ("/subject", json!("ada")),
            ("/rule", json!("known")),
            ("/claims", json!({ "email": "(masked)", "team": "red" })),
            ("/request/method", json!("GET")),
            ("/request/host", json!("attache.test")),
            ("/request/path", json!("/a")),
            ("/request/source", json!("127.0.0.1")),
            (
                "/request/query",
                json!({ "page": ["2"], "token": ["(masked)"] }),
            ),
            ("/request/headers/user-agent", json!("curl")),
            ("/request/headers/x-private", json!("(masked)")),
            ("/request/headers/cookie", json!("(masked)")),
        ] {
            let found = first.pointer(place).unwrap_or(&Value::Null);
            // The source's port differs.
            let same = match (found.as_str(), expected.as_str()) {
                (Some(found), Some(address)) if place == "/request/source" => {
                    found.starts_with(address)
                }
                _ => *found == expected,
            };
            assert!(same, "{place} through {proxy}: {found}");
        }
        assert_eq!(second["rule"], "closed", "{proxy}");
        assert_eq!(second["status"], 403, "{proxy}");
        assert_eq!(third["reason"], "no identity", "{proxy}");
    }
}

#[tokio::test]
async fn the_proxy_learns_why_a_request_was_let_in() {
    let more = "decision_metadata: { id: true, explain: 4KiB }";
    let stage = Stage::new(&format!("{KEYS}{more}")).await;
    for (proxy, address) in stage.proxies() {
        let answer = ask(*address, "GET", "/", &KEY).await;
        assert_eq!(answer.status, 200, "{proxy}");
        let shown = witnessed(&answer);
        let steps = shown["explain"].as_array().unwrap();
        for expected in ["identity `keys`: known", "rule `known`: allowed"] {
            assert!(
                steps.contains(&expected.into()),
                "{expected} through {proxy}: {shown}"
            );
        }
        assert!(!shown.to_string().contains("demo-key"), "{proxy}: {shown}");
        let id = shown["decision_id"].as_str().unwrap();
        assert_eq!(id.len(), 36, "{proxy}");
    }
}
