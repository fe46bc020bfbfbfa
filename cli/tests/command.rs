//! The command as its user sees it: texts, exit codes, the demonstration.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use attache_service::config::Document;
use support::{
    Process, attache, folder, outcome, path,
    peers::{envoy_program, skip},
    schema, workspace,
};

const SIMPLE: &str = "
listeners:
- { name: edge, address: ADDRESS }
routes:
- match: { prefix: / }
  direct_response: { status: 200, body: { inline_string: hello } }
";

/// The error that stands at this place: `FILE:LINE:COL: MESSAGE`, the line, the marks under it.
fn marked<'e>(errors: &'e str, place: &str) -> (&'e str, String) {
    let mut lines = errors
        .lines()
        .skip_while(|line| !line.contains(&format!(":{place}: ")));
    let message = lines.next().unwrap_or_else(|| panic!("{place}: {errors}"));
    let (_bar, source, marks) = (lines.next(), lines.next().unwrap(), lines.next().unwrap());
    let from = marks.find('^').unwrap();
    let shown: String = source
        .chars()
        .skip(marks.chars().take_while(|mark| *mark != '^').count())
        .take(marks[from..].len())
        .collect();
    (message, shown)
}

#[test]
fn every_mistake_is_printed_with_its_place() {
    let files = folder(&[(
        "edge.yaml",
        "listeners:
- { name: edge, address: 127.0.0.1:0, filters: [auth, lmits], colour: blue }
filters:
  auth:
    ext_authz: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: nobody } } }
routes:
- match: { prefix: / }
  route: { cluster: web }
clusters:
- { name: web, endpoints: [\"127.0.0.1:3000\"], connect_timeout: 5 }
admin: 0.0.0.0:9901
",
    )]);
    let file = path(&files, "edge.yaml");
    for command in ["check", "run"] {
        let ended = outcome(&[command, &file]);
        let errors = ended.stderr();
        assert_eq!(ended.code(), 2, "{errors}");
        assert_eq!(errors.matches(&file).count(), 5, "{errors}");
        for (place, says, shown) in [
            ("2:55", "lmits", "lmits"),
            ("2:63", "unknown field `colour`", "colour"),
            ("5:89", "no cluster `nobody`", "nobody"),
            ("10:64", "needs a unit: `5s`", "5"),
            ("11:8", "open to the network", "0.0.0.0:9901"),
        ] {
            let (message, text) = marked(&errors, place);
            assert!(message.contains(says), "{message}");
            assert_eq!(text, shown, "{errors}");
        }
    }
}

#[test]
fn one_line_says_what_cannot_be_used() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let files = folder(&[
        ("taken.yaml", &SIMPLE.replace("ADDRESS", &taken)),
        ("taken-admin.yaml", &{
            SIMPLE.replace("ADDRESS", "127.0.0.1:0") + "admin: " + &taken
        }),
        ("not.pem", "no certificate"),
    ]);
    let missing = path(&files, "missing.yaml");
    let no_pem = path(&files, "not.pem");
    let auth = ["ext-authz", "--config", "examples/demo/auth.yaml"];
    let limits = ["ratelimit", "--config", "examples/demo/limits"];
    let cases: [(&[&str], &[&str], i32, &str); 14] = [
        (&["run", &path(&files, "taken.yaml")], &[], 1, &taken),
        (&["run", &path(&files, "taken-admin.yaml")], &[], 1, &taken),
        (&auth, &["--listen", &taken], 1, &taken),
        (&limits, &["--listen", &taken], 1, &taken),
        (
            &auth,
            &["--listen", "127.0.0.1:0", "--admin", "0.0.0.0:0"],
            1,
            "0.0.0.0:0",
        ),
        (
            &auth,
            &["--tls-cert", &missing, "--tls-key", &missing],
            1,
            &missing,
        ),
        (
            &auth,
            &["--tls-cert", &no_pem, "--tls-key", &no_pem],
            1,
            &no_pem,
        ),
        (&limits, &["--store", "elsewhere"], 2, "elsewhere"),
        (&["run", &missing], &[], 2, &missing),
        (&["check", &missing], &[], 2, &missing),
        (&["ext-authz", "--config", &missing], &[], 2, &missing),
        (&["ratelimit", "--config", &missing], &[], 2, &missing),
        (&["export", "envoy", &missing], &[], 2, &missing),
        (
            &["export", "envoy", "examples/demo/attache.yaml"],
            &[],
            2,
            "--embedded limits=",
        ),
    ];
    for (command, more, code, names) in cases {
        let args = [command, more].concat();
        let ended = outcome(&args);
        let said = ended.stderr();
        let errors = said.lines().filter(|line| !line.contains(" INFO "));
        assert_eq!(errors.count(), 1, "{args:?}: {said}");
        assert!(said.contains(names), "{args:?}: {said}");
        assert_eq!(ended.code(), code, "{args:?}: {said}");
    }
}

#[test]
fn what_is_no_configuration_is_said_in_one_error() {
    let ended = outcome(&["check", "examples/demo/jwks.json"]);
    assert_eq!(ended.code(), 2);
    assert_eq!(ended.stderr().matches("jwks.json:").count(), 1);
    assert!(ended.stderr().contains("`listeners`"), "{}", ended.stderr());
}

/// The configurations under a folder: every YAML file, and the folders of rate limit files.
fn configurations(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(configurations(&path));
            if path.ends_with("limits") {
                found.push(path);
            }
        } else if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_examples_are_valid() {
    let paths = configurations(&workspace().join("examples"));
    assert!(paths.len() >= 8, "{paths:?}");
    let mut args = vec!["check"];
    args.extend(paths.iter().map(|path| path.to_str().unwrap()));
    let ended = outcome(&args);
    assert_eq!(ended.code(), 0, "{}", ended.stderr());
    assert_eq!(ended.stdout().matches(": valid ").count(), paths.len());
}

#[test]
fn envoy_accepts_the_exported_examples() {
    let envoy = envoy_program();
    let (limits, auth) = ("limits=unix:/run/limits.sock", "auth=127.0.0.1:9001");
    // What Envoy has no word for is named.
    let examples: [(&str, &[&str], &[&str]); 3] = [
        ("demo", &[limits, auth, "rewrite=localhost:50051"], &[]),
        (
            "edge",
            &[limits, auth],
            &["listeners[0].limits.max_connections (PROTECTION LOST)"],
        ),
        ("xds", &[], &["xds.cache (behaves otherwise)"]),
    ];
    for (example, embedded, left_out) in examples {
        let file = format!("examples/{example}/attache.yaml");
        let mut args = vec!["export", "envoy", &file];
        args.extend(embedded.iter().flat_map(|one| ["--embedded", one]));
        let ended = outcome(&args);
        let said = ended.stderr();
        assert_eq!(ended.code(), i32::from(!left_out.is_empty()), "{said}");
        assert_eq!(said.lines().count(), left_out.len(), "{said}");
        for one in left_out {
            assert!(said.contains(one), "{said}");
        }
        let Some(envoy) = &envoy else { continue };
        let files = folder(&[("envoy.json", &ended.stdout())]);
        assert_valid(envoy, &files.path().join("envoy.json"));
    }
}

#[test]
fn envoy_accepts_the_example_of_the_rate_limit_service() {
    if let Some(envoy) = envoy_program() {
        assert_valid(&envoy, &workspace().join("examples/ratelimit/envoy.json"));
    }
}

fn assert_valid(envoy: &Path, bootstrap: &Path) {
    let validated = Command::new(envoy)
        .args(["--mode", "validate", "--config-path"])
        .arg(bootstrap)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&validated.stderr);
    assert!(
        validated.status.success(),
        "{}: {said}",
        bootstrap.display()
    );
}

#[test]
fn schemas_are_json_of_the_fields() {
    for (kind, field) in [("proxy", "listeners"), ("ext-authz", "identity")] {
        let ended = outcome(&["schema", kind]);
        let schema: serde_json::Value = serde_json::from_str(&ended.stdout()).unwrap();
        assert!(schema.to_string().contains(&format!("\"{field}\"")));
    }
}

/// A file as a tree; variables stay as they are written.
fn tree(text: &str) -> serde_json::Value {
    let written = |name: &str| Some(format!("$${{{name}}}"));
    let document = Document::parse_with("f.yaml", text, &written).unwrap();
    document.root().to_json()
}

fn printed_schema(kind: &str) -> serde_json::Value {
    serde_json::from_str(&outcome(&["schema", kind]).stdout()).unwrap()
}

#[test]
fn every_example_is_what_its_schema_describes() {
    let (proxy, auth) = (printed_schema("proxy"), printed_schema("ext-authz"));
    for (schema, file) in [
        (&proxy, "demo/attache.yaml"),
        (&proxy, "edge/attache.yaml"),
        (&proxy, "processors/attache.yaml"),
        (&proxy, "xds/attache.yaml"),
        (&auth, "demo/auth.yaml"),
        (&auth, "edge/auth.yaml"),
    ] {
        let text = std::fs::read_to_string(workspace().join("examples").join(file)).unwrap();

        let mistakes = schema::mistakes(schema, &tree(&text));

        assert!(mistakes.is_empty(), "{file}: {mistakes:#?}");
    }
}

#[test]
fn a_filter_may_stand_in_each_of_its_forms_for_the_schema_as_for_the_check() {
    const TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
    const SETTINGS: &str =
        "transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: web } }";
    let schema = printed_schema("proxy");
    for (filter, fits) in [
        (format!("{{ ext_authz: {{ {SETTINGS} }} }}"), true),
        (
            format!("{{ disabled: true, ext_authz: {{ {SETTINGS} }} }}"),
            true,
        ),
        (format!("{{ '@type': {TYPE}, {SETTINGS} }}"), true),
        (
            format!("{{ typed_config: {{ '@type': {TYPE}, {SETTINGS} }} }}"),
            true,
        ),
        (
            format!(
                "{{ name: a, disabled: true, typed_config: {{ '@type': {TYPE}, {SETTINGS} }} }}"
            ),
            true,
        ),
        (
            format!("{{ name: a, typed_config: {{ {SETTINGS} }} }}"),
            false,
        ),
        (
            format!("{{ name: a, typed_config: {{ '@type': {TYPE}x, {SETTINGS} }} }}"),
            false,
        ),
        (
            format!("{{ '@type': {TYPE}, {SETTINGS}, colour: blue }}"),
            false,
        ),
        (format!("{{ name: a, ext_authz: {{ {SETTINGS} }} }}"), false),
    ] {
        let text = format!(
            "{SIMPLE}filters:\n  a: {filter}\nclusters: [{{ name: web, http2: {{}}, endpoints: ['127.0.0.1:1'] }}]\n"
        )
        .replace("ADDRESS", "127.0.0.1:0");
        let files = folder(&[("edge.yaml", &text)]);

        let mistakes = schema::mistakes(&schema, &tree(&text));
        let checked = outcome(&["check", &path(&files, "edge.yaml")]);

        assert_eq!(mistakes.is_empty(), fits, "{filter}: {mistakes:#?}");
        assert_eq!(checked.code() == 0, fits, "{filter}: {}", checked.stderr());
    }
}

#[test]
fn a_file_that_an_embedded_service_lacks_is_said_where_it_is_named() {
    let files = folder(&[
        (
            "edge.yaml",
            &format!(
                "{SIMPLE}clusters:
- {{ name: auth, embedded: {{ ext_authz: no.yaml }} }}
- {{ name: limits, embedded: {{ ratelimit: none/ }} }}
- {{ name: keys, embedded: {{ ext_authz: auth.yaml }} }}
"
            )
            .replace("ADDRESS", "127.0.0.1:0"),
        ),
        ("auth.yaml", "identity: [{ name: a, colour: blue }]\n"),
    ]);

    let ended = outcome(&["check", &path(&files, "edge.yaml")]);

    assert_eq!(ended.code(), 2);
    let said = ended.stderr();
    for (place, part) in [
        ("8:40", "no.yaml: cannot be read"),
        ("9:42", "none/: cannot be read"),
    ] {
        let (message, _) = marked(&said, place);
        assert!(message.contains(part), "{message}");
    }
    assert!(
        said.contains("auth.yaml:1:23: unknown field `colour`"),
        "{said}"
    );
}

#[test]
fn what_envoy_has_and_this_proxy_has_not_is_refused_with_the_reason() {
    for (field, reason) in [
        ("protocols: [h3]", "there is no HTTP/3 here"),
        ("http3_protocol_options: {}", "there is no HTTP/3 here"),
        (
            "scheme_header_transformation: {}",
            "what the client's connection says",
        ),
    ] {
        let text = SIMPLE.replace("ADDRESS", &format!("127.0.0.1:0, {field}"));
        let files = folder(&[("edge.yaml", &text)]);

        let ended = outcome(&["check", &path(&files, "edge.yaml")]);

        let said = ended.stderr();
        assert!(said.contains("is not supported: "), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn a_check_can_explain_what_the_failure_of_each_policy_means() {
    let ended = outcome(&["check", "--explain", "examples/edge/attache.yaml"]);

    assert_eq!(ended.code(), 0, "{}", ended.stderr());
    let page = std::fs::read_to_string(workspace().join("docs/src/configuration.md")).unwrap();
    assert!(page.contains(&ended.stdout()), "{}", ended.stdout());
}

#[test]
fn help_says_what_matters() {
    let texts: [(&[&str], &[&str]); 10] = [
        (
            &[],
            &[
                "demonstration",
                "127.0.0.1:8080",
                "Exit codes",
                "ATTACHE_LOG",
            ],
        ),
        (
            &["run"],
            &[
                "<FILE>",
                "SIGHUP",
                "SIGTERM",
                "--workers",
                "--drain-seconds",
            ],
        ),
        (
            &["check"],
            &["every mistake", "<PATHS>", "Exits 2", "folder", "--explain"],
        ),
        (
            &["ext-authz"],
            &[
                "--config",
                "--listen",
                "127.0.0.1:9001",
                "unix:/path",
                "--tls-cert",
                "--client-ca",
                "/metrics",
                "SIGHUP",
            ],
        ),
        (
            &["ratelimit"],
            &[
                "--config",
                "--listen",
                "127.0.0.1:8081",
                "redis://",
                "memory",
                "--tls-key",
                "SIGHUP",
            ],
        ),
        (
            &["ratelimit", "check"],
            &["--merge-domain-configs", "Exit codes", "one configuration"],
        ),
        (
            &["ratelimit", "explain"],
            &["--config", "wildcard", "envoyproxy/ratelimit", "--json"],
        ),
        (
            &["ratelimit", "load"],
            &[
                "--rate",
                "--concurrency",
                "--spread",
                "KEY=FROM..TO",
                "--once",
                "Ctrl-C",
                "Exit codes",
            ],
        ),
        (
            &["export", "envoy"],
            &["bootstrap", "--embedded", "CLUSTER=ADDRESS"],
        ),
        (&["schema"], &["proxy", "ext-authz", "JSON Schema"]),
    ];
    for (command, phrases) in texts {
        let ended = outcome(&[command, &["--help"]].concat());
        assert_eq!(ended.code(), 0);
        for phrase in phrases {
            assert!(ended.stdout().contains(phrase), "{command:?}: {phrase}");
        }
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for args in [
        &["check", "examples/demo/attache.yaml"][..],
        &["schema", "proxy"],
    ] {
        let mut child = attache(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{args:?}: {said}");
        assert_eq!(said, "", "{args:?}");
    }
}

#[test]
fn a_full_disk_is_a_failure() {
    let full = std::fs::File::options().write(true).open("/dev/full");
    let Ok(full) = full else {
        return skip("there is no /dev/full");
    };
    let ended = attache(&["schema", "proxy"]).stdout(full).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("cannot write"), "{said}");
}

/// What a request that the demonstration prints answers, by what its title promises.
fn promised(title: &str) -> &'static [&'static str] {
    match title {
        title if title.contains("429") => &["200 200 200 200 200 429 429"],
        title if title.contains("401") => &["HTTP/1.1 401"],
        title if title.contains("403") => &["HTTP/1.1 403", "admins only"],
        title if title.contains("x-user") => &[
            "HTTP/1.1 200",
            "\"x-user\": \"ada\"",
            "\"x-attache\": \"was here\"",
        ],
        title if title.contains("rewritten") => &["(hidden by attache)", "\"user\": \"ada\""],
        title if title.contains("web token") => &["HTTP/1.1 200", "\"x-user\": \"grace\""],
        other => panic!("nothing is known of: {other}"),
    }
}

#[test]
fn the_demonstration_keeps_its_promises() {
    for address in ["127.0.0.1:8080", "127.0.0.1:9901"] {
        if TcpListener::bind(address).is_err() {
            return println!("skipped: {address} is taken");
        }
    }
    if Command::new("curl").arg("--version").output().is_err() {
        return skip("there is no curl");
    }
    let mut demo = Process::attache(&[]);
    demo.wait_for("Ctrl-C", 1);
    let text = demo.text();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let mut tried = 0;
    for pair in lines.windows(2) {
        let [title, command] = pair else { continue };
        if !title.starts_with(|first: char| first.is_ascii_digit()) {
            continue;
        }
        let answer = Command::new("sh").args(["-c", command]).output().unwrap();
        let answer = String::from_utf8_lossy(&answer.stdout);
        for promise in promised(title) {
            assert!(answer.contains(promise), "{title}\n{command}\n{answer}");
        }
        assert!(!answer.contains("hunter2"), "{answer}");
        tried += 1;
    }
    assert_eq!(tried, 6, "{text}");

    let shown = lines.iter().find(|line| line.starts_with("configuration"));
    let shown = shown
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap();
    assert!(std::path::Path::new(shown).join("attache.yaml").exists());
    demo.signal("INT");
    assert_eq!(demo.ended().code(), Some(0));
    assert!(
        !std::path::Path::new(shown).exists(),
        "{shown} is left behind"
    );
}

#[test]
fn a_probe_asks_whether_the_process_is_ready_and_lives() {
    let folder = folder(&[]);
    let socket = format!("unix:{}", path(&folder, "admin.sock"));
    let config = SIMPLE.replace("ADDRESS", "127.0.0.1:0") + "admin: " + &socket;
    std::fs::write(folder.path().join("edge.yaml"), config).unwrap();
    let ask = |more: &[&str]| outcome(&[&["ready", "--admin", &socket], more].concat());

    let absent = ask(&[]);
    assert_eq!(absent.code(), 1);
    assert!(absent.stderr().contains(&socket), "{}", absent.stderr());

    let process = Process::attache(&["run", &path(&folder, "edge.yaml")]);
    process.wait_for("admin page", 1);
    for (more, says) in [(&[][..], "ready\n"), (&["--alive"], "alive\n")] {
        let asked = ask(more);
        assert_eq!((asked.code(), asked.stdout().as_str()), (0, says));
    }
}
