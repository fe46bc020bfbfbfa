//! Policies from bundles: whole, signed and kept, or not at all.

use std::{io::Write as _, path::PathBuf, process::Command};

use flate2::{Compression, write::GzEncoder};

use super::{
    web::{Reply, Web, eventually},
    *,
};

fn pack(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // The library would not write all of them.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        archive.append(&header, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

fn allowing(path: &str) -> String {
    format!("package envoy.authz\nallow if input.parsed_path[0] == \"{path}\"\n")
}

/// A service whose policy is the bundle in a file.
fn service(packed: &[u8], settings: &str, files: &[(&str, &str)]) -> Result<AuthService, String> {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("bundle.tar.gz"), packed).unwrap();
    for (name, content) in files {
        fs::write(directory.path().join(name), content).unwrap();
    }
    let config = format!(
        "
identity: [{{ name: anyone, anonymous: {{}} }}]
policies:
- {{ name: main, rego: {{ bundle: {{ file: bundle.tar.gz{settings} }} }} }}
"
    );
    let path = directory.path().join("auth.yaml");
    fs::write(&path, config).unwrap();
    AuthService::load(&path, &Metrics::default()).map_err(|errors| errors.to_string())
}

async fn status(service: &AuthService, path: &str) -> u16 {
    let outcome = Harness::new(service.clone())
        .check(get(path).body("").unwrap())
        .await;
    outcome.status().map_or(200, |status| status.as_u16())
}

#[tokio::test]
async fn a_bundle_has_modules_and_data() {
    let packed = pack(&[
        (
            "./.manifest",
            r#"{"revision":"7","roots":["envoy/authz","shop"]}"#,
        ),
        (
            "/envoy/authz/policy.rego",
            "package envoy.authz\nallow if input.parsed_path[0] in data.shop.open\n",
        ),
        ("shop/data.json", r#"{"open":["a"]}"#),
        ("README.md", "not a policy"),
    ]);
    let service = service(&packed, "", &[]).unwrap();
    assert_eq!(status(&service, "/a").await, 200);
    assert_eq!(status(&service, "/b").await, 403);
}

#[test]
fn a_bundle_that_is_not_what_it_should_be_is_refused() {
    let policy = allowing("a");
    let large = "x".repeat(100_000);
    for (packed, settings, expected) in [
        (b"not a bundle".to_vec(), "", "the bundle is broken"),
        (
            pack(&[("p.rego", &policy)])[..40].to_vec(),
            "",
            "the bundle is broken",
        ),
        (pack(&[("a/../p.rego", &policy)]), "", "has a file"),
        (pack(&[("p.rego", "package x {")]), "", "p.rego:1:"),
        (
            pack(&[("p.rego", &policy), (".manifest", "{")]),
            "",
            ".manifest",
        ),
        (
            pack(&[("p.rego", &policy), (".manifest", r#"{"roots":["other"]}"#)]),
            "",
            "`p.rego` is outside the bundle's roots",
        ),
        (
            pack(&[
                ("p.rego", &policy),
                ("data.json", r#"{"a":1}"#),
                (".manifest", r#"{"roots":["envoy"]}"#),
            ]),
            "",
            "`data.json` has `a`, which is outside",
        ),
        (
            pack(&[("p.rego", &policy), (".manifest", r#"{"rego_version":0}"#)]),
            "",
            "version 0 of Rego",
        ),
        // Small when packed, and larger than ten times as much when unpacked.
        (
            pack(&[("p.rego", &policy), ("x", &large)]),
            ", max_size: 1KiB",
            "has more than",
        ),
        (
            pack(&[("p.rego", &policy)]),
            ", max_size: 16",
            "is larger than 16 bytes",
        ),
        (
            pack(&[("p.rego", &policy), ("p.rego", &policy)]),
            "",
            "twice",
        ),
    ] {
        let errors = service(&packed, settings, &[]).unwrap_err();
        assert!(errors.contains(expected), "{expected}: {errors}");
    }
}

/// The program that makes real bundles; without it there is nothing to test.
fn opa() -> Option<PathBuf> {
    let program = std::env::var_os("ATTACHE_OPA").map(PathBuf::from);
    assert!(
        program.is_some() || std::env::var("ATTACHE_REQUIRE_ALL").as_deref() != Ok("1"),
        "ATTACHE_OPA is not set"
    );
    program
}

/// The files of a bundle.
type Contents = Vec<(String, String)>;

/// A bundle as `opa build` makes it.
fn build(opa: &PathBuf, arguments: &[&str], files: &[(&str, &str)]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("bundle");
    for (name, content) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let output = Command::new(opa)
        .current_dir(directory.path())
        .args(["build", "--bundle", "bundle", "--output", "out.tar.gz"])
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    fs::read(directory.path().join("out.tar.gz")).unwrap()
}

#[tokio::test]
async fn bundles_that_opa_has_signed_are_trusted_and_others_are_not() {
    let Some(opa) = opa() else { return };
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let keys = tempfile::tempdir().unwrap();
    let private = keys.path().join("private.pem");
    fs::write(&private, pair.serialize_pem()).unwrap();
    let private = private.display().to_string();
    let policy = allowing("a");
    let files = [
        ("envoy/authz/policy.rego", policy.as_str()),
        (
            "shop/data.json",
            "{\"z\": 1.50, \"a\": [true, null, \"<&>\\u2028é\", 1e3], \"m\": {\"y\": {}, \"x\": []}}",
        ),
        ("other/data.yaml", "b: [1, two]\na: {}\n"),
    ];
    let es256 = build(
        &opa,
        &["--signing-alg", "ES256", "--signing-key", &private],
        &files,
    );
    let hs256 = build(
        &opa,
        &["--signing-alg", "HS256", "--signing-key", "secret"],
        &files,
    );
    let unsigned = build(&opa, &[], &files);
    let (public, stranger) = (
        pair.public_key_pem(),
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .unwrap()
            .public_key_pem(),
    );
    let signature = |algorithm: &str, file: &str| {
        format!(", signature: {{ keys: [{{ algorithm: {algorithm}, key_file: {file} }}] }}")
    };
    let files = [
        ("public.pem", public.as_str()),
        ("stranger.pem", &stranger),
        ("secret", "secret\n"),
        ("wrong", "other"),
    ];
    for (packed, algorithm, file, expected) in [
        (&es256, "ES256", "public.pem", None),
        (&hs256, "HS256", "secret", None),
        (
            &es256,
            "ES256",
            "stranger.pem",
            Some("is not signed by any of the keys"),
        ),
        (
            &hs256,
            "HS256",
            "wrong",
            Some("is not signed by any of the keys"),
        ),
        // A public key is no secret.
        (
            &hs256,
            "ES256",
            "public.pem",
            Some("is not signed by any of the keys"),
        ),
        (
            &es256,
            "HS256",
            "public.pem",
            Some("is not signed by any of the keys"),
        ),
        (
            &unsigned,
            "ES256",
            "public.pem",
            Some("the bundle is not signed"),
        ),
    ] {
        let loaded = service(packed, &signature(algorithm, file), &files);
        match (loaded, expected) {
            (Ok(service), None) => assert_eq!(status(&service, "/a").await, 200),
            (Err(errors), Some(expected)) => assert!(errors.contains(expected), "{errors}"),
            (loaded, expected) => panic!("{algorithm} {file}: {loaded:?} {expected:?}"),
        }
    }

    // The signature of one bundle with the files of another.
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&hs256[..]));
    let mut contents = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut content = String::new();
        std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
        contents.push((path, content));
    }
    let settings = signature("HS256", "secret");
    let tampered = |change: &dyn Fn(&mut Contents)| {
        let mut contents = contents.clone();
        change(&mut contents);
        let files: Vec<_> = contents
            .iter()
            .map(|(a, b)| (a.trim_start_matches('/'), b.as_str()))
            .collect();
        service(&pack(&files), &settings, &files_of()).map(drop)
    };
    fn files_of() -> [(&'static str, &'static str); 1] {
        [("secret", "secret")]
    }
    assert_eq!(tampered(&|_| {}), Ok(()));
    let changed = tampered(&|files| {
        let file = files.iter_mut().find(|(name, _)| name.ends_with(".rego"));
        file.unwrap().1.push_str("\nallow := true\n");
    });
    assert!(changed.unwrap_err().contains("is not what was signed"));
    let added = tampered(&|files| files.push(("x.rego".to_owned(), "package x\n".to_owned())));
    assert!(
        added
            .unwrap_err()
            .contains("`x.rego` of the bundle is not signed")
    );
    let removed = tampered(&|files| files.retain(|(name, _)| !name.ends_with("data.json")));
    assert!(
        removed
            .unwrap_err()
            .contains("is signed and not in the bundle")
    );
}

#[tokio::test]
async fn a_bundle_is_fetched_kept_fresh_and_never_replaced_by_a_broken_one() {
    let web = Web::start().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("auth.yaml");
    let config = format!(
        "
identity: [{{ name: anyone, anonymous: {{}} }}]
policies:
- name: main
  rego: {{ bundle: {{ url: '{}/bundle', refresh: 100ms }} }}
",
        web.origin
    );
    fs::write(&path, config).unwrap();
    let service = AuthService::load(&path, &Metrics::default()).unwrap();
    assert_eq!(service.waits_for(), ["policy `main`"]);
    let outcome = Harness::new(service.clone())
        .check(get("/a").body("").unwrap())
        .await;
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");

    let tagged = |tag: &'static str, packed: Vec<u8>| {
        move |seen: &web::Seen| {
            let condition = format!("if-none-match: {tag}");
            if seen.head.to_ascii_lowercase().contains(&condition) {
                return Reply::status(304);
            }
            Reply::Bytes(vec![("etag", tag.to_owned())], packed.clone())
        }
    };
    web.answers(tagged("\"1\"", pack(&[("p.rego", &allowing("a"))])));
    service.ready().await;
    assert_eq!(
        (status(&service, "/a").await, status(&service, "/b").await),
        (200, 403)
    );
    let not_modified = |from: usize| {
        let seen = web.seen();
        seen.iter().skip(from).any(|seen| {
            seen.head
                .to_ascii_lowercase()
                .contains("if-none-match: \"1\"")
        })
    };
    eventually(|| not_modified(0)).await;

    // Whatever comes then, the last good one decides.
    let before = web.seen().len();
    web.answers(|_| Reply::ok("not a bundle"));
    eventually(|| web.seen().len() > before + 1).await;
    let before = web.seen().len();
    web.answers(|_| {
        Reply::Bytes(
            Vec::new(),
            pack(&[("p.rego", "package envoy.authz\nallow if http.send({})")]),
        )
    });
    eventually(|| web.seen().len() > before + 1).await;
    assert_eq!(
        (status(&service, "/a").await, status(&service, "/b").await),
        (200, 403)
    );

    web.answers(tagged("\"2\"", pack(&[("p.rego", &allowing("b"))])));
    let replaced = async {
        while status(&service, "/b").await != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), replaced)
        .await
        .unwrap();
    assert_eq!(status(&service, "/a").await, 403);
    std::io::stderr().flush().unwrap();
}

#[cfg(feature = "opa-wasm")]
mod wasm {
    use super::*;

    fn loaded(packed: &[u8], entrypoint: &str) -> Result<AuthService, String> {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("bundle.tar.gz"), packed).unwrap();
        let config = format!(
            "
identity: [{{ name: anyone, anonymous: {{}} }}]
policies:
- {{ name: main, time_limit: 50ms, wasm: {{ bundle: {{ file: bundle.tar.gz }}, entrypoint: {entrypoint} }} }}
"
        );
        let path = directory.path().join("auth.yaml");
        fs::write(&path, config).unwrap();
        AuthService::load(&path, &Metrics::default()).map_err(|errors| errors.to_string())
    }

    #[tokio::test]
    async fn what_opa_has_compiled_decides() {
        let Some(opa) = opa() else { return };
        let policy = "package envoy.authz
allow if input.parsed_path[0] in data.shop.open
allow := {\"allowed\": false, \"http_status\": 410} if input.parsed_path[0] == \"gone\"
allow if { input.parsed_path[0] == \"slow\"; count([1 | some x in numbers.range(1, 5000); some y in numbers.range(1, 5000); x == y]) > 0 }
allow := \"yes\" if input.parsed_path[0] == \"text\"
";
        let packed = build(
            &opa,
            &["--target", "wasm", "--entrypoint", "envoy/authz/allow"],
            &[
                ("policy.rego", policy),
                ("shop/data.json", r#"{"open":["a"]}"#),
            ],
        );
        let service = loaded(&packed, "envoy/authz/allow").unwrap();
        for (path, expected) in [("/a", 200), ("/b", 403), ("/gone", 410), ("/a", 200)] {
            assert_eq!(status(&service, path).await, expected, "{path}");
        }
        for path in ["/slow", "/text"] {
            let outcome = Harness::new(service.clone())
                .check(get(path).body("").unwrap())
                .await;
            assert!(matches!(outcome, Outcome::Failed(_)), "{path}: {outcome:?}");
        }
        assert_eq!(status(&service, "/a").await, 200);

        let errors = loaded(&packed, "envoy/authz/other").unwrap_err();
        assert!(
            errors.contains("there is no entrypoint `envoy/authz/other`"),
            "{errors}"
        );
    }

    #[test]
    fn modules_that_want_more_of_their_host_are_refused_by_name() {
        let Some(opa) = opa() else { return };
        let policy = "package envoy.authz
allow if http.send({\"method\": \"get\", \"url\": \"http://example.com\"}).status_code == 200
allow if sprintf(\"%s\", [input.x]) == \"a\"
";
        let packed = build(
            &opa,
            &["--target", "wasm", "--entrypoint", "envoy/authz/allow"],
            &[("policy.rego", policy)],
        );
        let errors = loaded(&packed, "envoy/authz/allow").unwrap_err();
        assert!(
            errors.contains("functions that are not available: `http.send`, `sprintf`"),
            "{errors}"
        );
    }
}
