//! Sign-ins as configured. What browsers see of them is in the workspace's end-to-end tests.

use std::fs;

use super::{AuthService, Metrics, errors_of};

#[test]
fn mistakes_of_a_sign_in_are_told_with_their_place() {
    let text = errors_of(
        "
identity:
- name: people
  oidc_login:
    issuer: login.example.com
    client_id: ''
    client_authentication: client_secret_post
    callback_path: /a//b
    logout_path: logout
    after_logout: https://elsewhere.example/
    authorization_parameters: { state: x }
    session: { keys_file: none.keys, cookie: __Host-a, lifetime: 0s, idle_timeout: 0.5s }
- name: others
  oidc_login:
    issuer: https://login.example.com
    client_id: a
    callback_path: /same
    logout_path: /same
    session: { keys_file: empty.json, cookie: 'a b' }
rules: [{ action: allow }]
",
    );
    for expected in [
        "auth.yaml:5:13: `login.example.com/.well-known/openid-configuration`: not a URL",
        "auth.yaml:6:16: a client has an identifier",
        "auth.yaml:7:28: there is no `client_secret` to show to the provider",
        "auth.yaml:8:20: expected a path of plain segments",
        "auth.yaml:9:18: expected a path of plain segments",
        "auth.yaml:10:19: expected a path of plain segments",
        "auth.yaml:11:40: `state` is set by the sign-in itself",
        "auth.yaml:12:27: cannot read",
        "auth.yaml:12:46: `__Host-` is put before it where browsers take it",
        "auth.yaml:12:66: expected a second at least",
        "auth.yaml:12:84: expected a second at least, or 0",
        "auth.yaml:18:18: `callback_path` and `logout_path` must differ",
        "auth.yaml:19:27: `empty.json`: line 1 is no key",
        "auth.yaml:19:47: expected 1 to 64 letters, digits",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
    // Neither what is in a file of keys.
    assert!(!text.contains("c2VjcmV0"), "{text}");
}

#[test]
fn the_example_of_the_book_loads() {
    let book = include_str!("../../../../docs/src/login.md");
    let example = book
        .split("```yaml\n# auth.yaml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file
    };
    write("client.secret", "secret");
    write(
        "session.keys",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    );
    let file = write("auth.yaml", example);
    let service = AuthService::load(&file, &Metrics::default());
    let service = service.unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(service.waits_for().len(), 1);
}
