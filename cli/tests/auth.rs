//! `attache ext-authz check` and `explain`: an auth service's configuration, looked at.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use support::{folder, outcome, path};

const CONFIG: &str = "
identity:
- name: keys
  api_key:
    keys:
    # demo-key
    - { id: ada, hash: \"sha256:c48a01f49fd0f2cc404bc3cbbc80e91457a3d41bb429a695243de4c61794155c\" }
- { name: anyone, anonymous: {} }
pipelines:
- { name: tenants, context: { tenant: [acme] }, rules: [{ name: closed, action: deny }] }
rules:
- { name: health, action: allow, paths: [{ exact: /healthz }], identity: [anyone] }
- { name: known-callers, action: allow, methods: [POST] }
upstream_headers: { x-user: { claim: sub } }
decision_log: { file: { path: decisions.log } }
";

#[test]
fn check_says_what_a_configuration_is_made_of_and_writes_nothing() {
    let files = folder(&[
        ("auth.yaml", CONFIG),
        ("wrong.yaml", "identity: []\nrulez: []\n"),
    ]);
    let good = outcome(&["ext-authz", "check", &path(&files, "auth.yaml")]);
    assert_eq!(good.code(), 0, "{}", good.stderr());
    for expected in [
        "auth.yaml: valid\n",
        "pipelines: tenants, default\n",
        "identity sources: keys, anyone\n",
    ] {
        assert!(good.stdout().contains(expected), "{}", good.stdout());
    }
    assert!(!files.path().join("decisions.log").exists());
    let wrong = outcome(&["ext-authz", "check", &path(&files, "wrong.yaml")]);
    assert_eq!(wrong.code(), 2);
    let said = wrong.stderr();
    assert!(said.contains("did you mean `rules`?"), "{said}");
}

#[test]
fn explain_says_what_is_decided_and_why() {
    let files = folder(&[("auth.yaml", CONFIG), ("key", "demo-key\n")]);
    let config = path(&files, "auth.yaml");
    let key = format!("x-api-key: @{}", path(&files, "key"));
    let explain = |more: &[&str]| {
        let args = [&["ext-authz", "explain", "--config", &config], more].concat();
        let ended = outcome(&args);
        assert_eq!(ended.code(), 0, "{args:?}: {}", ended.stderr());
        ended.stdout()
    };
    let url = "http://shop.test/x";
    let allowed = explain(&["--url", url, "--method", "POST", "--header", &key]);
    for expected in [
        "ALLOW\n",
        "identity `keys`: known",
        "rule `known-callers`: allowed",
        "set request header x-user: ada",
    ] {
        assert!(allowed.contains(expected), "{expected}\n{allowed}");
    }
    assert!(!allowed.contains("demo-key"), "{allowed}");
    assert!(explain(&["--url", "http://shop.test/healthz"]).starts_with("ALLOW\n"));
    assert!(explain(&["--url", url]).starts_with("DENY with 401"));
    assert!(explain(&["--context", "tenant=acme"]).starts_with("DENY with 403 (closed)"));
    let json = explain(&["--context", "tenant=acme", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["outcome"], &json["pipeline"]),
        (&"deny".into(), &"tenants".into())
    );
    assert!(!files.path().join("decisions.log").exists());
}

#[test]
fn what_cannot_be_looked_at_is_said() {
    let files = folder(&[("auth.yaml", CONFIG)]);
    let config = path(&files, "auth.yaml");
    let with = |more: [&str; 2]| {
        let args = ["explain", "--config", &config];
        args.into_iter().chain(more).map(str::to_owned).collect()
    };
    let cases: [(Vec<String>, &str); 5] = [
        (vec!["explain".to_owned()], "--config"),
        (with(["--context", "x"]), "key=value"),
        (with(["--client-cert-pem", &config]), "--client-cert-pem"),
        (with(["--header", "a: @/none/such"]), "/none/such"),
        (Vec::new(), "--config"),
    ];
    for (args, expected) in cases {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ended = outcome(&[&["ext-authz"], args.as_slice()].concat());
        assert_eq!(ended.code(), 2, "{args:?}");
        assert!(ended.stderr().contains(expected), "{}", ended.stderr());
    }
}
