//! Conditions and policies decide; what they cannot decide is never allowed.

use super::*;

const USERS: &str = "identity:
- name: users
  jwt: { issuer: https://issuer, audiences: [shop], jwks_file: jwks.json }
";

/// A configuration that asks one policy about everybody.
fn asking(module: &str) -> String {
    let lines = module.lines().map(|line| format!("      {line}\n"));
    let lines: String = lines.collect();
    format!(
        "
identity:
- name: anyone
  anonymous: {{}}
policies:
- name: main
  rego:
    inline: |
      package envoy.authz
{lines}"
    )
}

fn refused(config: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    write_keys(&directory, &[]);
    let path = directory.path().join("auth.yaml");
    fs::write(&path, config).unwrap();
    let errors = AuthService::load(&path, &Metrics::default()).unwrap_err();
    errors.to_string()
}

async fn failed(fixture: &Fixture, request: Builder) -> bool {
    matches!(fixture.check(request).await, Outcome::Failed(_))
}

#[tokio::test]
async fn a_policy_decides_on_request_and_caller() {
    let signer = Signer::new("k1");
    let fixture = Fixture::with_keys(
        &asking(
            r#"default allow := false
allow if input.attributes.request.http.path == "/open"
allow if {
    input.parsed_path = ["users", name]
    name == input.identity.claims.sub
    input.identity.source == "users"
}
allow if "yes" in input.parsed_query.let
allow if input.attributes.request.http.headers["x-in"] == "please"
allow if input.attributes.request.http.headers["X-In"]"#,
        )
        .replace("identity:\n", USERS),
        &[signer.jwk()],
    );
    let token = signer.sign(&claims(json!({})));
    let with_token = |path: &str| get(path).header("authorization", format!("Bearer {token}"));
    for (request, expected) in [
        (get("/open"), 200),
        (get("/closed"), 403),
        (with_token("/users/alice"), 200),
        (with_token("/users/%61lice"), 200),
        (with_token("/users/bob"), 403),
        (get("/users/alice"), 403),
        (get("/x?let=no&let=y%65s"), 200),
        (get("/x").header("x-in", "please"), 200),
        (get("/x").header("x-in", "now"), 403),
    ] {
        let uri = request.uri_ref().unwrap().clone();
        assert_eq!(fixture.status(request).await, expected, "{uri}");
    }
}

#[tokio::test]
async fn a_policy_says_what_goes_along_with_an_allowed_request() {
    let fixture = Fixture::new(&format!(
        "{}upstream_headers: {{ x-static: {{ value: ours }} }}\n",
        asking(
            r#"allow := {
    "allowed": true,
    "headers": {"x-user": "alice", "x-roles": ["a", "b"], "x-static": "theirs"},
    "request_headers_to_remove": ["x-secret"],
    "response_headers_to_add": {"x-answer": ["1", "2"]},
    "query_parameters_to_set": {"q": "a b"},
    "query_parameters_to_remove": ["debug"],
    "dynamic_metadata": {"who": {"name": "alice"}},
}"#
        )
    ));
    let request = get("/x?debug=1&q=0")
        .header("x-user", "root")
        .header("x-secret", "1");
    let allowed = fixture.allowed(request).await;
    let headers = allowed.request.headers();
    assert_eq!(headers["x-user"], "alice");
    assert_eq!(headers["x-roles"], "a,b");
    // What the configuration says stands above what policies say.
    assert_eq!(headers["x-static"], "ours");
    assert!(!headers.contains_key("x-secret"));
    assert_eq!(allowed.request.uri().query(), Some("q=a%20b"));
    assert!(
        allowed
            .metadata
            .as_ref()
            .unwrap()
            .fields
            .contains_key("who")
    );
    let response = allowed.response(http::Response::new(()));
    let answers: Vec<_> = response.headers().get_all("x-answer").iter().collect();
    assert_eq!(answers, ["1", "2"]);
}

#[tokio::test]
async fn a_policy_says_how_a_request_is_denied() {
    let fixture = Fixture::new(&format!(
        "{}denied: {{ status: 404, body: nothing here }}\n",
        asking(
            r#"default allow := false
allow := {
    "allowed": false,
    "http_status": 302,
    "headers": {"location": "/login", "set-cookie": ["a=1", "b=2"]},
    "body": "log in",
} if input.parsed_path[0] == "login"
allow := {"allowed": false} if input.parsed_path[0] == "plain""#
        )
    ));
    let Outcome::Denied(response) = fixture.check(get("/login")).await else {
        panic!()
    };
    assert_eq!(response.status(), 302);
    assert_eq!(response.headers()["location"], "/login");
    assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
    assert_eq!(response.body(), "log in");
    for path in ["/plain", "/other"] {
        let Outcome::Denied(response) = fixture.check(get(path)).await else {
            panic!()
        };
        assert_eq!(
            (response.status().as_u16(), &response.body()[..]),
            (404, &b"nothing here"[..])
        );
    }
}

#[tokio::test]
async fn what_a_policy_cannot_decide_is_an_error_and_never_allowed() {
    let fixture = Fixture::new(&asking(
        r#"allow := input.parsed_query.answer[0] == "true" if input.parsed_path[0] == "boolean"
allow := "true" if input.parsed_path[0] == "text"
allow := 1 if input.parsed_path[0] == "number"
allow := {"allowed": "true"} if input.parsed_path[0] == "wrong"
allow := {"allowed": true, "headers": {"x": 1}} if input.parsed_path[0] == "header"
allow := {"allowed": true, "headers": {"x": "a\r\nb: c"}} if input.parsed_path[0] == "split"
allow := {"allowed": true, "headers": {"content-length": "1"}} if input.parsed_path[0] == "framing"
allow := true if input.parsed_path[0] == "conflict"
allow := false if input.parsed_path[0] == "conflict"
allow := true if { input.parsed_path[0] == "types"; input.parsed_path[0] + 1 == 2 }"#,
    ));
    assert_eq!(fixture.status(get("/boolean?answer=true")).await, 200);
    assert_eq!(fixture.status(get("/undefined")).await, 403);
    for path in [
        "/text",
        "/number",
        "/wrong",
        "/header",
        "/split",
        "/framing",
        "/conflict",
        "/types",
    ] {
        assert!(failed(&fixture, get(path)).await, "{path}");
    }
    let text = fixture.metrics.render();
    assert!(
        text.contains(r#"attache_auth_policy_failures_total{policy="main"} 6"#),
        "{text}"
    );
}

#[tokio::test]
async fn a_policy_that_thinks_too_long_is_stopped() {
    let config = asking(
        "allow if count([1 | some x in numbers.range(1, 3000); some y in numbers.range(1, 3000); x == y]) > 0",
    )
    .replace("- name: main\n", "- name: main\n  time_limit: 20ms\n");
    let fixture = Fixture::new(&config);
    let begun = std::time::Instant::now();
    assert!(failed(&fixture, get("/")).await);
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn letters_beyond_ascii_change_nothing_in_how_a_policy_is_read() {
    for letters in ["a", "é", "日本", "😀"] {
        let fixture = Fixture::new(&asking(&format!(
            r#"# {letters}
allow if {{ "{letters}" != "-"; not startswith(input.attributes.request.http.headers["x-a"], "b") }}"#
        )));
        assert_eq!(fixture.status(get("/")).await, 403, "{letters}");
        let with = |value: &str| get("/").header("x-a", value);
        assert_eq!(fixture.status(with("bc")).await, 403, "{letters}");
        assert_eq!(fixture.status(with("c")).await, 200, "{letters}");
    }
}

#[tokio::test]
async fn no_number_of_a_request_costs_more_than_its_text() {
    // One of a billion digits would take the engine minutes and gigabytes.
    let body = "input.attributes.request.http.body";
    let disguised = r#"{"$serde_json::private::Number":"1e1000000000"}"#;
    for (policy, sent) in [
        ("is_number(input.parsed_body)".to_owned(), disguised),
        (format!("is_number(json.unmarshal({body}))"), disguised),
        (format!("not json.is_valid({body})"), disguised),
        (format!("to_number({body})"), disguised),
        (format!("to_number({body})"), "1e1000000000"),
        (format!("numbers.range(1, to_number({body}))"), "100001"),
        (format!("numbers.range(1, to_number({body}))"), "4e18"),
        (format!("bits.lsh(1, to_number({body}))"), "4000000000"),
    ] {
        let fixture = Fixture::new(&asking(&format!("allow if {policy}")));
        let request = Request::post("http://h/").header("content-type", "application/json");
        let outcome = Harness::new(fixture.service.clone())
            .check(request.body(sent).unwrap())
            .await;
        let allowed = matches!(outcome, Outcome::Allowed(_));
        assert!(!allowed, "{policy}: {outcome:?}");
    }
    // Functions that read numbers by themselves are not there.
    for function in ["units.parse", "units.parse_bytes", "yaml.unmarshal"] {
        let config = asking(&format!("allow if {function}({body})"));
        assert!(refused(&config).contains("is not available"), "{function}");
    }
}

#[tokio::test]
async fn bodies_are_parsed_by_their_type() {
    let fixture = Fixture::new(&asking(
        r#"allow if input.parsed_body.user == "alice"
allow if input.parsed_body.user == ["alice"]
allow if { input.parsed_body == null; input.truncated_body == false; input.parsed_path[0] == "none" }"#,
    ));
    let post = async |path: &str, kind: &str, body: &'static str| {
        let request = Request::post(format!("http://h{path}")).header("content-type", kind);
        Harness::new(fixture.service.clone())
            .check(request.body(body).unwrap())
            .await
    };
    let status = |outcome: Outcome| outcome.status().map_or(200, |status| status.as_u16());
    let json = "application/json";
    assert_eq!(status(post("/", json, r#"{"user":"alice"}"#).await), 200);
    assert_eq!(
        status(
            post(
                "/",
                "Application/JSON; charset=utf-8",
                r#"{"user":"alice"}"#
            )
            .await
        ),
        200
    );
    assert_eq!(status(post("/", json, r#"{"user":"bob"}"#).await), 403);
    let form = "application/x-www-form-urlencoded";
    assert_eq!(status(post("/", form, "user=al%69ce").await), 200);
    assert_eq!(status(post("/none", "text/plain", "user=alice").await), 200);
    assert!(matches!(post("/none", json, "{").await, Outcome::Failed(_)));
}

#[test]
fn what_the_engine_cannot_do_is_refused_when_it_is_loaded() {
    let config = asking(
        r#"allow if {
    http.send({"method": "get", "url": "http://example.com"}).status_code == 200
    [_, payload, _] := io.jwt.decode(input.token)
    crypto.sha256(payload) == "x"
}"#,
    );
    let errors = refused(&config);
    for expected in [
        "inline:4:",
        "`http.send` is not available",
        "`io.jwt.decode` is not available: tokens are verified by `identity`",
        "the function `crypto.sha256` is not available",
    ] {
        assert!(errors.contains(expected), "{errors}");
    }
    for (module, expected) in [
        ("allow if {", "inline:"),
        ("allowed := true", "not a valid rule path"),
        ("allow if f(1)", "the function `f` is not available"),
        ("allow if x > 1", "use of undefined variable `x`"),
    ] {
        let errors = refused(&asking(module));
        assert!(errors.contains(expected), "{module}: {errors}");
    }
}

#[tokio::test]
async fn policies_come_from_files_and_folders_and_see_data() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("policy/lib");
    fs::create_dir_all(&folder).unwrap();
    fs::write(
        folder.join("roles.rego"),
        "package lib.roles\nmay(role, method) if method in data.permissions[role]\n",
    )
    .unwrap();
    fs::write(
        folder.join("roles_test.rego"),
        "package lib.roles\ntest_x if http.send({})\n",
    )
    .unwrap();
    fs::write(
        directory.path().join("policy/main.rego"),
        "package shop\nimport data.lib.roles\nallow if roles.may(\"guest\", input.attributes.request.http.method)\n",
    )
    .unwrap();
    let data = directory.path().join("permissions.yaml");
    fs::write(&data, "permissions: { guest: [GET] }\n").unwrap();
    let path = directory.path().join("auth.yaml");
    let config = "
identity: [{ name: anyone, anonymous: {} }]
policies:
- name: shop
  rego: { files: [policy], data: [permissions.yaml], query: data.shop.allow }
";
    fs::write(&path, config).unwrap();
    let service = AuthService::load(&path, &Metrics::default()).unwrap();
    let status = async |method: &str| {
        let request = get("/").method(method).body("").unwrap();
        let outcome = Harness::new(service.clone()).check(request).await;
        outcome.status().map_or(200, |status| status.as_u16())
    };
    assert_eq!((status("GET").await, status("PUT").await), (200, 403));

    fs::write(&data, "permissions: { guest: [PUT] }\n").unwrap();
    assert!(service.reload().is_ok());
    assert_eq!((status("GET").await, status("PUT").await), (403, 200));

    fs::write(&data, "[]\n").unwrap();
    assert!(
        service
            .reload()
            .unwrap_err()
            .to_string()
            .contains("the data is no object")
    );
    assert_eq!((status("GET").await, status("PUT").await), (403, 200));
}

#[tokio::test]
async fn rules_hand_some_decisions_to_policies() {
    let fixture = Fixture::new(
        r#"
identity: [{ name: anyone, anonymous: {} }]
policies:
- name: even
  rego: { inline: "package envoy.authz\nallow if to_number(input.parsed_path[1]) % 2 == 0" }
- name: never
  rego: { inline: "package p\ndefault allow := false", query: data.p.allow }
rules:
- { action: deny, paths: [{ exact: /n/4 }], response: { status: 410 } }
- { action: ask, policy: even, paths: [{ prefix: /n }] }
- { action: ask, policy: never, paths: [{ prefix: /never }], when: 'request.method == "GET"' }
- { action: allow, identity: [anyone], paths: [{ prefix: /never }] }
"#,
    );
    let mut statuses = Vec::new();
    for path in ["/n/2", "/n/3", "/n/4", "/never", "/other"] {
        statuses.push(fixture.status(get(path)).await);
    }
    assert_eq!(statuses, [200, 403, 410, 403, 401]);
    assert_eq!(fixture.status(get("/never").method("PUT")).await, 200);
}

#[tokio::test]
async fn a_condition_that_cannot_be_evaluated_never_lets_a_request_pass() {
    let fixture = Fixture::new(
        r#"
identity: [{ name: anyone, anonymous: {} }]
policies:
- { name: always, rego: { inline: "package envoy.authz\nallow := true" } }
rules:
- { action: deny, paths: [{ prefix: /deny }], when: 'request.headers["x-bad"] == "yes"' }
- { action: ask, paths: [{ prefix: /ask }], when: 'request.headers["x-bad"] == "no"' }
- { action: allow, identity: [anyone], paths: [{ prefix: /allow }], when: 'request.headers["x-bad"] != "yes"' }
- { action: allow, identity: [anyone], paths: [{ prefix: /deny }, { prefix: /ask }] }
"#,
    );
    for (path, without, no, yes) in [
        ("/deny", 403, 200, 403),
        ("/ask", 403, 200, 200),
        ("/allow", 401, 200, 401),
    ] {
        assert_eq!(fixture.status(get(path)).await, without, "{path}");
        assert_eq!(
            fixture.status(get(path).header("x-bad", "no")).await,
            no,
            "{path}"
        );
        assert_eq!(
            fixture.status(get(path).header("x-bad", "yes")).await,
            yes,
            "{path}"
        );
    }
}

#[test]
fn mistakes_in_rules_and_conditions_are_shown_with_their_place() {
    let errors = refused(
        "
identity: [{ name: anyone, anonymous: {} }]
policies:
- { name: one, rego: { inline: \"package envoy.authz\\nallow := true\" } }
- { name: two, rego: { inline: \"package envoy.authz\\nallow := true\" } }
rules:
- { action: allow, when: 'request.verb == \"GET\"' }
- { action: ask }
- { action: ask, policy: tow }
- { action: deny, policy: one }
",
    );
    for expected in [
        "auth.yaml:7:26: `request` has no `verb`",
        "auth.yaml:8:13: which policy is asked?",
        "auth.yaml:9:26: there is no policy `tow`; did you mean `two`?",
        "auth.yaml:10:27: only `ask` rules have a policy",
    ] {
        assert!(errors.contains(expected), "{errors}");
    }
}

#[tokio::test]
async fn a_candidate_is_compared_and_never_obeyed() {
    let config = asking("default allow := false\nallow if input.parsed_path[0] == \"open\"").replace(
        "- name: main\n",
        "- name: main\n  candidate: { rego: { inline: \"package envoy.authz\\nallow if input.attributes.request.http.method == \\\"GET\\\"\\nallow if { input.parsed_path[0] == \\\"bad\\\"; 1 + input.parsed_path[0] == 1 }\" } }\n",
    );
    let fixture = Fixture::new(&config);
    assert_eq!(fixture.status(get("/open")).await, 200);
    assert_eq!(fixture.status(get("/closed")).await, 403);
    assert_eq!(fixture.status(get("/open").method("PUT")).await, 200);
    assert_eq!(fixture.status(get("/bad").method("PUT")).await, 403);
    let counted = |result: &str, count: u32| {
        let line = format!(
            r#"attache_auth_candidate_decisions_total{{policy="main",result="{result}"}} {count}"#
        );
        fixture.metrics.render().contains(&line)
    };
    web::eventually(|| counted("same", 1) && counted("different", 2) && counted("failed", 1)).await;
}

#[tokio::test]
async fn decisions_of_policies_are_kept_by_what_the_policies_read() {
    let fixture = Fixture::new(&format!(
        "{}decision_cache: {{}}\n",
        asking("allow if input.attributes.request.http.method == \"GET\"")
    ));
    for noise in 0..3 {
        let request = get(&format!("/{noise}")).header("x-noise", noise.to_string());
        assert_eq!(fixture.status(request).await, 200);
    }
    let text = fixture.metrics.render();
    let line = r#"attache_auth_decision_cache_total{pipeline="default",result="hit"} 2"#;
    assert!(text.contains(line), "{text}");
}
