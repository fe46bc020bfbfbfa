//! Documents that are looked up about requests.

use std::time::Duration;

use futures_util::future::join_all;

use super::{
    web::{Reply, Web},
    *,
};

/// Looks up the account that `x-account` names, and lets gold ones in.
fn config(web: &Web, more: &str) -> String {
    format!(
        r#"
identity:
- name: partners
  api_key: {{ keys: [{{ id: acme, hash: "{SECRET}" }}] }}
- {{ name: anyone, anonymous: {{}} }}
metadata:
- name: account
  http: {{ url: '{}/default', timeout: 0.3s }}
  path: '/accounts/{{request.headers["x-account"]}}'
{more}
rules:
- {{ action: allow, identity: [anyone], when: 'metadata.account.tier == "gold"' }}
- {{ action: allow, identity: [anyone], paths: [{{ exact: /without }}], when: '!has(metadata.account)' }}
- {{ action: deny }}
upstream_headers: {{ x-tier: {{ expression: metadata.account.tier }} }}
"#,
        web.origin
    )
}

fn account(name: &str) -> Builder {
    get("/").header("x-account", name)
}

fn gold() -> Reply {
    Reply::ok(json!({ "tier": "gold" }))
}

async fn fails(fixture: &Fixture, request: Builder) -> bool {
    matches!(fixture.check(request).await, Outcome::Failed(_))
}

/// Checks a request over and over until it is answered like this.
async fn until(fixture: &Fixture, request: impl Fn() -> Builder, expected: u16) {
    let answered = async {
        while fixture.status(request()).await != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), answered).await;
    waited.expect("it is not answered so");
}

fn paths(web: &Web) -> Vec<String> {
    let seen = web.seen();
    seen.iter().map(|seen| seen.path().to_owned()).collect()
}

#[tokio::test]
async fn a_document_says_who_may_and_what_the_upstream_is_told() {
    let web = Web::start().await;
    web.answers(|seen| match seen.path() {
        "/accounts/a%20b" => gold(),
        _ => Reply::ok(json!({ "tier": "iron" })),
    });
    let fixture = Fixture::new(&config(&web, ""));
    let allowed = fixture
        .allowed(account("a b").header("x-tier", "fake"))
        .await;
    assert_eq!(allowed.request.headers()["x-tier"], "gold");
    assert_eq!(fixture.status(account("c")).await, 403);
    let first = web.seen().remove(0);
    assert!(first.head.contains("accept: application/json"), "{first:?}");
}

#[tokio::test]
async fn without_a_path_the_url_is_asked_as_it_is() {
    let web = Web::start().await;
    web.answers(|_| gold());
    let config = config(&web, "").replace("/default", "/all?of=it");
    let fixture = Fixture::new(
        &config
            .lines()
            .filter(|line| !line.starts_with("  path:"))
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    );
    assert_eq!(fixture.status(get("/")).await, 200);
    assert_eq!(paths(&web), ["/all?of=it"]);
}

#[tokio::test]
async fn a_document_that_there_is_not_is_no_failure() {
    let web = Web::start().await;
    web.answers(|_| Reply::status(404));
    let fixture = Fixture::new(&config(&web, ""));
    assert_eq!(fixture.status(account("a")).await, 403);
    let without = get("/without").header("x-account", "a");
    let allowed = fixture.allowed(without.header("x-tier", "fake")).await;
    assert!(!allowed.request.headers().contains_key("x-tier"));
    assert_eq!(web.seen().len(), 1);
}

#[tokio::test]
async fn a_failure_fails_the_check_or_leaves_the_document_out() {
    let cases = ["error", "moved", "text", "large", "drip", "hang"];
    for (mode, absent) in [("fail", false), ("absent", true)] {
        let web = Web::start().await;
        web.answers(|seen| match seen.path() {
            "/accounts/error" => Reply::Status(500, vec![], r#"{"tier":"gold"}"#.to_owned()),
            "/accounts/moved" => Reply::Status(302, vec![], r#"{"tier":"gold"}"#.to_owned()),
            "/accounts/text" => Reply::ok("gold"),
            "/accounts/large" => Reply::ok(json!({ "tier": "gold", "more": "x".repeat(1000) })),
            "/accounts/drip" => Reply::Drip,
            _ => Reply::Hang,
        });
        let more = format!("  on_failure: {mode}\n  max_size: 500B");
        let fixture = Fixture::new(&config(&web, &more).replace("0.3s", "0.1s"));
        for case in cases {
            if absent {
                assert_eq!(fixture.status(account(case)).await, 403, "{case}");
                let without = get("/without").header("x-account", case);
                assert_eq!(fixture.status(without).await, 200, "{case}");
            } else {
                assert!(fails(&fixture, account(case)).await, "{case}");
            }
        }
        // Those that ask soon after are answered alike.
        assert_eq!(web.seen().len(), cases.len());
        let text = fixture.metrics.render();
        let decided =
            r#"attache_auth_decisions_total{pipeline="default",source="none",decision="error"} "#;
        let errors = if absent { 0 } else { cases.len() };
        assert!(text.contains(&format!("{decided}{errors}\n")), "{text}");
        let fetched = r#"attache_auth_metadata_total{metadata="account",result="fetched"} 6"#;
        assert!(text.contains(fetched), "{text}");
    }
}

#[tokio::test]
async fn a_document_is_kept_for_its_time() {
    let web = Web::start().await;
    web.answers(|_| gold());
    let fixture = Fixture::new(&config(&web, ""));
    for name in ["a", "a", "b", "a", "b"] {
        assert_eq!(fixture.status(account(name)).await, 200);
    }
    assert_eq!(paths(&web), ["/accounts/a", "/accounts/b"]);
    let text = fixture.metrics.render();
    let kept = r#"attache_auth_metadata_total{metadata="account",result="kept"} 3"#;
    assert!(text.contains(kept), "{text}");

    let short = Fixture::new(&config(&web, "  ttl: 20ms"));
    until(&short, || account("c"), 200).await;
    web.answers(|_| Reply::ok(json!({ "tier": "iron" })));
    until(&short, || account("c"), 403).await;
}

#[tokio::test]
async fn documents_are_fetched_each_time_when_none_are_kept() {
    let web = Web::start().await;
    web.answers(|_| gold());
    let fixture = Fixture::new(&config(&web, "  ttl: 0s"));
    for _ in 0..3 {
        assert_eq!(fixture.status(account("a")).await, 200);
    }
    assert_eq!(web.seen().len(), 3);
}

#[tokio::test]
async fn many_at_once_make_one_request_also_when_it_fails() {
    let web = Web::start().await;
    web.answers(|seen| match seen.path() {
        "/accounts/good" => gold(),
        _ => Reply::Hang,
    });
    let fixture = Fixture::new(&config(&web, ""));
    let good = join_all((0..20).map(|_| fixture.status(account("good")))).await;
    assert_eq!(good, [200; 20]);
    let bad = join_all((0..20).map(|_| fails(&fixture, account("bad")))).await;
    assert_eq!(bad, [true; 20]);
    assert_eq!(paths(&web), ["/accounts/good", "/accounts/bad"]);
}

#[tokio::test]
async fn who_goes_away_leaves_the_others_to_ask() {
    let web = Web::start().await;
    web.answers(|_| Reply::Hang);
    let fixture = Fixture::new(&config(&web, "").replace("0.3s", "20s"));
    {
        let mut checking = Box::pin(fixture.status(account("a")));
        let asked = async {
            while web.seen().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = &mut checking => panic!("answered"),
            () = asked => {}
        }
    }
    web.answers(|_| gold());
    assert_eq!(fixture.status(account("a")).await, 200);
}

#[tokio::test]
async fn only_what_is_wanted_is_fetched() {
    let web = Web::start().await;
    web.answers(|_| gold());
    let fixture = Fixture::new(&format!(
        "
identity: [{{ name: anyone, anonymous: {{}} }}]
metadata:
- {{ name: one, http: '{0}/one', when: 'request.headers[\"x-one\"] == \"please\"' }}
- {{ name: two, http: '{0}/two' }}
- {{ name: three, http: '{0}/three' }}
pipelines:
- name: some
  hosts: [some.example.com]
  metadata: [one, two]
  rules:
  - {{ action: allow, identity: [anyone], when: 'metadata.two.tier == \"gold\" && !has(metadata.three)' }}
rules:
- {{ action: allow, identity: [anyone], when: 'metadata.three.tier == \"gold\"' }}
",
        web.origin
    ));
    let some = || Request::get("http://some.example.com/");
    assert_eq!(fixture.status(some()).await, 200);
    assert_eq!(fixture.status(some().header("x-one", "no")).await, 200);
    assert_eq!(paths(&web), ["/two"]);
    assert_eq!(fixture.status(some().header("x-one", "please")).await, 200);
    assert_eq!(paths(&web), ["/two", "/one"]);
    assert_eq!(fixture.status(get("/")).await, 200);
    assert_eq!(paths(&web), ["/two", "/one", "/three"]);
}

#[tokio::test]
async fn no_value_leads_to_another_path() {
    let web = Web::start().await;
    web.answers(|_| gold());
    let fixture = Fixture::new(&config(&web, ""));
    for name in [
        "..",
        ".",
        "",
        "../admin",
        "a/../../admin",
        r"..\admin",
        "a/.",
    ] {
        assert!(fails(&fixture, account(name)).await, "{name}");
    }
    // Neither is there any without the header.
    assert!(fails(&fixture, get("/")).await);
    assert!(web.seen().is_empty());
    for name in ["a/b", "a?b=c", "a#b", "%2e%2e", "..a"] {
        assert_eq!(fixture.status(account(name)).await, 200, "{name}");
    }
    assert_eq!(
        paths(&web),
        [
            "/accounts/a%2Fb",
            "/accounts/a%3Fb%3Dc",
            "/accounts/a%23b",
            "/accounts/%252e%252e",
            "/accounts/..a",
        ]
    );
}

#[tokio::test]
async fn policies_see_documents() {
    let web = Web::start().await;
    web.answers(|seen| match seen.path() {
        "/accounts/a" => gold(),
        "/accounts/b" => Reply::ok(json!({ "tier": "iron" })),
        _ => Reply::status(404),
    });
    let rules = config(&web, "");
    let (before, _) = rules.split_once("rules:").unwrap();
    for condition in [
        r#"input.metadata.account.tier == "gold""#,
        r#"input.metadata[_].tier == "gold""#,
        r#"count(input.metadata) == 1; input["metadata"].account.tier != "iron""#,
    ] {
        let policy = format!(
            "policies:
- name: main
  rego:
    inline: |
      package envoy.authz
      default allow := false
      allow if {{ {condition} }}
"
        );
        let fixture = Fixture::new(&format!("{before}{policy}"));
        for (name, expected) in [("a", 200), ("b", 403), ("c", 403)] {
            let found = fixture.status(account(name)).await;
            assert_eq!(found, expected, "{condition} {name}");
        }
    }
}

#[tokio::test]
async fn a_decision_is_kept_no_longer_than_what_it_rests_on() {
    let web = Web::start().await;
    web.answers(|_| gold());
    let kept = "decision_cache: {}\n";
    let long = Fixture::new(&format!("{}{kept}", config(&web, "")));
    let brief = Fixture::new(&format!("{}{kept}", config(&web, "  ttl: 20ms")));
    let once = Fixture::new(&format!("{}{kept}", config(&web, "  ttl: 0s")));
    for fixture in [&long, &brief, &once] {
        assert_eq!(fixture.status(account("a")).await, 200);
    }
    web.answers(|_| Reply::ok(json!({ "tier": "iron" })));
    until(&brief, || account("a"), 403).await;
    assert_eq!(once.status(account("a")).await, 403);
    assert_eq!(long.status(account("a")).await, 200);
    let text = long.metrics.render();
    let hit = r#"attache_auth_decision_cache_total{pipeline="default",result="hit"} 1"#;
    assert!(text.contains(hit), "{text}");
}

#[test]
fn mistakes_are_reported_with_their_places() {
    let text = errors_of(
        "
identity: [{ name: anyone, anonymous: {} }]
metadata:
- { name: a, http: 'http://127.0.0.1', path: 'x/{request.nothing}' }
- { name: a, http: 'http://127.0.0.1', when: 'request.path ==' }
- { name: b, http: 'ftp://127.0.0.1', ttl: 25h, cache_size: 0 }
pipelines:
- { name: p, hosts: [h], metadata: [a, c], rules: [{ action: allow }] }
rules: []
",
    );
    for expected in [
        "auth.yaml:4:46: a path starts with a slash",
        "auth.yaml:4:46: `request` has no `nothing`",
        "auth.yaml:5:46: ",
        "auth.yaml:5:11: two metadata are called `a`",
        "auth.yaml:6:20: `ftp://127.0.0.1`",
        "auth.yaml:6:44: expected at most 24 h",
        "auth.yaml:6:61: expected from 1 to 10000000",
        "auth.yaml:8:40: there is no metadata `c`",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
}
