//! `attache ratelimit check`, `explain` and `load`: tools around a rate limit service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::net::TcpListener;

use serde_json::Value;
use support::{Ended, Process, attache, folder, free_port, grpc::Certificates, outcome, path};

const SHOP: &str = "
domain: shop
descriptors:
- key: user
  rate_limit: { name: per-user, unit: year, requests_per_unit: 3 }
- key: free
  rate_limit: { unlimited: true }
- key: tried
  shadow_mode: true
  rate_limit: { unit: day, requests_per_unit: 1 }
";

fn check(args: &[&str]) -> Ended {
    outcome(&[&["ratelimit", "check"], args].concat())
}

#[test]
fn check_counts_limits_and_says_that_all_is_well() {
    let files = folder(&[("a.yaml", SHOP), ("b.yaml", "domain: empty")]);
    let ended = check(&[files.path().to_str().unwrap()]);
    assert_eq!(ended.code(), 0, "{}", ended.stderr());
    assert_eq!(
        ended.stdout(),
        "empty: 0 limits\nshop: 3 limits (1 unlimited, 1 in shadow mode)\n\
         all rate limit configs ok\n"
    );
}

#[test]
fn check_finds_all_mistakes_of_all_files_and_exits_as_the_reference_does() {
    let files = folder(&[
        (
            "a/one.yaml",
            "domain: one\ndescriptors:\n- key: a\n  rate_limit: { unit: foo }\n",
        ),
        ("a/two.yaml", "domain: two\nratelimit: 1\n"),
        ("b.yaml", "descriptors:\n- key: a\n"),
    ]);
    let missing = path(&files, "missing");
    let ended = check(&[&path(&files, "a"), &path(&files, "b.yaml"), &missing]);
    assert_eq!((ended.code(), ended.stdout()), (1, String::new()));
    let said = ended.stderr();
    for expected in [
        "one.yaml:4:23: invalid rate limit unit 'foo'",
        "two.yaml:2:1: config error, unknown key 'ratelimit'",
        "b.yaml:1:1: config file cannot have empty domain",
        &format!("{missing}: cannot be read"),
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    assert_eq!(check(&[]).code(), 2);
}

#[test]
fn check_takes_all_paths_for_one_configuration() {
    let files = folder(&[
        ("a.yaml", SHOP),
        ("b.yaml", "domain: shop\ndescriptors:\n- key: more\n"),
    ]);
    let (a, b) = (path(&files, "a.yaml"), path(&files, "b.yaml"));
    let refused = check(&[&a, &b]);
    assert_eq!(refused.code(), 1);
    let said = refused.stderr();
    assert!(
        said.contains("duplicate domain 'shop' in config file"),
        "{said}"
    );
    let merged = check(&["--merge-domain-configs", &a, &b]);
    assert_eq!(merged.code(), 0, "{}", merged.stderr());
}

#[test]
fn explain_says_which_rule_applies_and_why() {
    let files = folder(&[("shop.yaml", SHOP)]);
    let config = path(&files, "shop.yaml");
    let explain = |more: &[&str]| {
        let args = ["ratelimit", "explain", "--config", &config];
        let ended = outcome(&[&args, more].concat());
        assert_eq!(ended.code(), 0, "{}", ended.stderr());
        ended.stdout()
    };
    let said = explain(&["shop", "user=ada", "usr=ada"]);
    for expected in [
        "Descriptor 1: user=ada\n",
        "matches the key `user`",
        "3 per year",
        "key in the store: shop_user_ada_",
        "name: per-user",
        "Descriptor 2: usr=ada\n",
        "matches nothing; similar: `user`",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    let told = explain(&["shop", "user=ada", "free", "usr=ada", "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    let outcomes: Vec<_> = told["descriptors"].as_array().unwrap().iter().collect();
    let outcomes: Vec<_> = outcomes.iter().map(|told| &told["outcome"]).collect();
    assert_eq!(outcomes, ["limit", "unlimited", "no_match"]);
    assert_eq!(told["descriptors"][0]["rule"]["limit"]["unit"], "year");
    assert!(explain(&["shops", "user=ada"]).contains("similar: `shop`"));
}

#[test]
fn what_cannot_be_explained_is_said() {
    let files = folder(&[("bad.yaml", "domain: shop\nratelimit: 1\n")]);
    let config = path(&files, "bad.yaml");
    let cases: [(&[&str], &str); 4] = [
        (
            &["--config", &config, "shop", "a=b"],
            "unknown key 'ratelimit'",
        ),
        (&["--config", "/none/such", "shop", "a=b"], "/none/such"),
        (&["--config", &config, "shop"], "ENTRIES"),
        (&["--config", &config, "shop", "=b"], "expected `key=value`"),
    ];
    for (args, expected) in cases {
        let ended = outcome(&[&["ratelimit", "explain"], args].concat());
        assert_eq!(ended.code(), 2, "{args:?}");
        assert!(ended.stderr().contains(expected), "{}", ended.stderr());
    }
}

#[test]
fn variables_of_the_service_do_not_keep_the_commands_around_it_from_running() {
    let mut command = attache(&["ratelimit", "check", "examples/demo/limits"]);
    command.env("ATTACHE_STORE", "memory");
    command.env("RUNTIME_ROOT", "/none/such");
    assert!(command.output().unwrap().status.success());
}

/// A service with these rules, and where it is.
fn service(rules: &str) -> (tempfile::TempDir, Process, String) {
    let files = folder(&[("shop.yaml", rules)]);
    let config = path(&files, "shop.yaml");
    let process = Process::attache(&["ratelimit", "--config", &config, "--listen", "127.0.0.1:0"]);
    let address = process.address();
    (files, process, address)
}

fn load(address: &str, args: &[&str]) -> Ended {
    let to = [
        "ratelimit",
        "load",
        "--address",
        address,
        "--domain",
        "shop",
    ];
    outcome(&[&to, args].concat())
}

fn report(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout()).unwrap_or_else(|_| panic!("{}", ended.stdout()))
}

#[test]
fn load_at_a_rate_sends_what_is_due_and_counts_every_answer() {
    let (_files, _service, address) = service(SHOP);
    let pace = ["--rate", "200", "--duration", "500ms", "--json"];
    let user = ["--descriptor", "user=ada"];
    let ended = load(&address, &[&pace[..], &user].concat());
    assert_eq!(ended.code(), 0, "{}{}", ended.stdout(), ended.stderr());
    let report = report(&ended);
    for (figure, expected) in [
        ("sent", 100),
        ("ok", 3),
        ("over_limit", 97),
        ("failed", 0),
        ("unsent", 0),
    ] {
        assert_eq!(report[figure], expected, "{figure}: {report:#}");
    }
    assert_eq!(report["pace"]["rate"], 200);
    let counted = |list: &str, count: &str| -> u64 {
        let list = report[list].as_array().unwrap();
        list.iter().map(|item| item[count].as_u64().unwrap()).sum()
    };
    assert_eq!(counted("histogram", "count"), 100);
    assert_eq!(counted("seconds", "sent"), 100);
    let latency = |name: &str| report["latency_ms"][name].as_f64().unwrap();
    assert!(latency("p50") > 0.0 && latency("p50") <= latency("p99.9"));
    assert!(latency("p99.9") <= latency("max"));
}

#[test]
fn load_by_callers_spreads_keys_and_prints_a_histogram() {
    let (_files, _service, address) = service(SHOP);
    let ended = load(
        &address,
        &[
            "--concurrency",
            "4",
            "--connections",
            "2",
            "--duration",
            "300ms",
            "--descriptor",
            "user",
            "--descriptor",
            "free=x",
            "--spread",
            "user=1..1000000000",
        ],
    );
    let said = ended.stdout();
    assert_eq!(ended.code(), 0, "{said}{}", ended.stderr());
    for expected in [
        "p99.9",
        "<=",
        "####",
        "at the pace of 4 callers",
        "from when requests were sent",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    let count = |name: &str| -> u64 {
        let line = said
            .lines()
            .find(|line| line.trim_start().starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number.unwrap().parse().unwrap()
    };
    // Each request has a key of its own, so none is over.
    assert!(count("OK") > 4, "{said}");
    assert_eq!((count("OVER_LIMIT"), count("failed")), (0, 0), "{said}");
}

#[test]
fn load_prints_what_there_is_when_it_is_interrupted() {
    let (_files, _service, address) = service(SHOP);
    let args = [
        "ratelimit",
        "load",
        "--address",
        &address,
        "--domain",
        "shop",
    ];
    let more = [
        "--descriptor",
        "user=ada",
        "--rate",
        "50",
        "--duration",
        "10m",
    ];
    let mut process = Process::attache(&[&args[..], &more].concat());
    process.wait_for("(ms)", 1);
    process.signal("INT");
    assert_eq!(process.ended().code(), Some(0), "{}", process.text());
    process.wait_for("OVER_LIMIT", 1);
    process.wait_for("p99.9", 1);
}

#[test]
fn load_says_what_failed_and_exits_1() {
    let (_files, _service, address) = service(SHOP);
    let ended = outcome(&[
        "ratelimit",
        "load",
        "--address",
        &address,
        "--domain",
        "",
        "--descriptor",
        "user=ada",
        "--rate",
        "100",
        "--duration",
        "50ms",
    ]);
    assert_eq!(ended.code(), 1, "{}", ended.stderr());
    let said = ended.stdout();
    let failure = "5 UNKNOWN: first `rate limit domain must not be empty`";
    assert!(said.contains(failure), "{said}");
}

#[test]
fn a_service_that_is_stuck_cannot_hide_it() {
    let (_files, service, address) = service(SHOP);
    service.signal("STOP");
    let pace = ["--rate", "100", "--duration", "500ms", "--timeout", "200ms"];
    let user = ["--descriptor", "user=ada", "--json"];
    let ended = load(&address, &[&pace[..], &user].concat());
    service.signal("CONT");
    assert_eq!(ended.code(), 1, "{}", ended.stderr());
    let report = report(&ended);
    for (figure, expected) in [("sent", 50), ("failed", 50), ("unsent", 0)] {
        assert_eq!(report[figure], expected, "{figure}: {report:#}");
    }
    assert_eq!(report["failures"][0]["code"], "DEADLINE_EXCEEDED");
    let p50 = report["latency_ms"]["p50"].as_f64().unwrap();
    assert!(p50 >= 200.0, "{report:#}");
}

#[test]
fn once_prints_the_answer() {
    let (_files, _service, address) = service(SHOP);
    let once = |more: &[&str]| {
        let ended = load(&address, &[&["--once"], more].concat());
        assert_eq!(ended.code(), 0, "{}", ended.stderr());
        ended.stdout()
    };
    let said = once(&[
        "--descriptor",
        "user=a",
        "--descriptor",
        "free=x",
        "--descriptor",
        "no",
    ]);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], "OK");
    let first = "  user=a: OK, limit 3 per YEAR (`per-user`), remaining 2, resets in ";
    assert!(lines[1].starts_with(first), "{said}");
    assert_eq!(lines[2], "  free=x: OK, remaining 4294967295");
    assert_eq!(lines[3], "  no=: OK, remaining 0");

    let answer = once(&["--descriptor", "user=a", "--hits", "5", "--json"]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["overall_code"], "OVER_LIMIT");
    let status = &answer["statuses"][0];
    assert_eq!(status["current_limit"]["requests_per_unit"], 3);
    assert_eq!(status["descriptor"], "user=a");
}

#[test]
fn once_speaks_tls() {
    let files = folder(&[("shop.yaml", SHOP)]);
    let config = path(&files, "shop.yaml");
    let certificates = Certificates::new();
    let file = |name| certificates.file(name);
    let (certificate, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let service = ["ratelimit", "--config", &config, "--listen", "127.0.0.1:0"];
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    let service = Process::attache(&[&service[..], &tls].concat());
    let address = service.address();
    let once = ["--once", "--descriptor", "user=ada", "--ca", &ca];
    let known = load(
        &address,
        &[&once[..], &["--server-name", "localhost"]].concat(),
    );
    assert_eq!(known.code(), 0, "{}", known.stderr());
    let other = load(&address, &[&once[..], &["--server-name", "other"]].concat());
    assert_eq!(other.code(), 2, "{}", other.stderr());
    assert!(other.stderr().contains(&address), "{}", other.stderr());
}

#[test]
fn what_cannot_be_asked_is_said() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let user = ["--descriptor", "user=ada"];
    let cases: [(&[&str], &str); 6] = [
        (&[], &nobody),
        (&["--once"], &nobody),
        (
            &["--spread", "usr=1..2"],
            "no descriptor has an entry with the key `usr`",
        ),
        (&["--spread", "user=1-2"], "expected `key=1..100000`"),
        (
            &["--rate", "1", "--concurrency", "1"],
            "cannot be used with",
        ),
        (&["--duration", "0s"], "--duration"),
    ];
    for (more, expected) in cases {
        let ended = load(&nobody, &[&user, more].concat());
        assert_eq!(ended.code(), 2, "{more:?}: {}", ended.stderr());
        assert!(
            ended.stderr().contains(expected),
            "{more:?}: {}",
            ended.stderr()
        );
    }
    // Somebody is there who does not speak gRPC.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let ended = load(
        &address,
        &[&user[..], &["--once", "--timeout", "100ms"]].concat(),
    );
    assert_ne!(ended.code(), 0);
}
