//! The conformance tests of HTTP/2 (h2spec), run against a listener of ours: cleartext with prior
//! knowledge, and over TLS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use attache_tests::{ours, proxies, tls};

/// What `ATTACHE_H2SPEC` names, else what the workspace has.
fn program() -> Option<PathBuf> {
    let installed = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/tools/h2spec");
    let program = std::env::var_os("ATTACHE_H2SPEC").map_or_else(installed, PathBuf::from);
    program.is_file().then_some(program)
}

/// Runs all its tests against a listener with these settings.
async fn conforms(listener: &str, options: &[&str]) {
    let Some(program) = program() else {
        assert!(
            std::env::var_os("ATTACHE_REQUIRE_ALL").is_none(),
            "h2spec is not installed"
        );
        println!("skipped: h2spec (run cargo xtask test)");
        return;
    };
    let config = format!(
        "
listeners: [{{ name: edge, address: '127.0.0.1:0'{listener} }}]
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters: [{{ name: web, endpoints: ['{}'], connect_timeout: 5s }}]
workers: 1
",
        proxies::origin().await
    );
    let proxy = ours::start_ours(&config).await.unwrap();

    let mut run = Command::new(program);
    run.args(["--host", "127.0.0.1", "--port"])
        .arg(proxy.address.port().to_string())
        .args(options)
        .stdin(Stdio::null());
    let run = tokio::task::spawn_blocking(move || run.output());
    let run = run.await.unwrap().unwrap();

    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    let summary = said.lines().rfind(|line| line.contains(" passed, "));
    let summary = summary.unwrap_or_default();
    println!("{summary}");
    assert!(
        summary.ends_with(" 0 failed") && !summary.starts_with("0 tests"),
        "{said}"
    );
    assert!(run.status.success(), "{said}");
}

#[tokio::test]
async fn http2_by_prior_knowledge_conforms_to_h2spec() {
    // Where both versions are spoken, what is not HTTP/2's first bytes is answered as HTTP/1.1.
    conforms(", codec_type: HTTP2", &[]).await;
}

#[tokio::test]
async fn http2_over_tls_conforms_to_h2spec() {
    let folder = tls::folder().unwrap();
    let folder = folder.display();
    let listener =
        format!(", tls: {{ certificate: {folder}/server.pem, private_key: {folder}/server.key }}");
    conforms(&listener, &["--tls", "--insecure"]).await;
}
