//! Names and passwords.

use std::{fs, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::request::Builder;

use super::{Fixture, Reload, errors_with, get};
use crate::testing::Outcome;

// Of "secret" and of "password".
const ADA: &str = "ada:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";
const BOB: &str =
    "bob:$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";

const CONFIG: &str = "
identity:
- name: staff
  basic: { htpasswd_file: users, realm: 'the \"back\" office' }
rules:
- { action: allow }
upstream_headers: { x-user: { claim: sub } }
";

fn fixture() -> Fixture {
    Fixture::with_files(CONFIG, &[("users", &format!("# staff\n{ADA}\n\n{BOB}\n"))])
}

fn basic(pair: &str) -> Builder {
    let credential = STANDARD.encode(pair);
    get("/").header("authorization", format!("Basic {credential}"))
}

#[tokio::test]
async fn passwords_hashed_with_bcrypt_and_argon2_are_known() {
    let fixture = fixture();
    for (pair, user) in [("ada:secret", "ada"), ("bob:password", "bob")] {
        let allowed = fixture.allowed(basic(pair)).await;
        assert_eq!(allowed.request.headers()["x-user"], user);
        assert!(!allowed.request.headers().contains_key("authorization"));
    }
    let lower = get("/").header("authorization", "basic YWRhOnNlY3JldA==");
    assert_eq!(fixture.status(lower).await, 200);
    for wrong in [
        basic("ada:Secret"),
        basic("ada:"),
        basic("ada:password"),
        basic("Ada:secret"),
        basic("eve:secret"),
        basic(":secret"),
        basic("ada"),
        get("/").header("authorization", "Basic ada:secret"),
        get("/").header("authorization", "Basic"),
        get("/").header("authorization", "Bearer YWRhOnNlY3JldA=="),
        get("/"),
    ] {
        let shown = format!("{wrong:?}");
        let Outcome::Denied(response) = fixture.check(wrong).await else {
            panic!("{shown}")
        };
        assert_eq!(response.status(), 401, "{shown}");
        assert_eq!(
            response.headers()["www-authenticate"],
            r#"Basic realm="the \"back\" office", charset="UTF-8""#
        );
    }
}

#[tokio::test]
async fn right_pairs_are_remembered_until_the_file_changes() {
    let fixture = fixture();
    let count = |result: &str| {
        let line =
            format!(r#"attache_auth_password_cache_total{{source="staff",result="{result}"}} "#);
        let text = fixture.metrics.render();
        let (_, rest) = text.split_once(&line).unwrap();
        rest.lines().next().unwrap().parse::<u32>().unwrap()
    };
    for _ in 0..3 {
        assert_eq!(fixture.status(basic("ada:secret")).await, 200);
        assert_eq!(fixture.status(basic("ada:wrong")).await, 401);
    }
    assert_eq!((count("hit"), count("miss")), (2, 4));

    fs::write(fixture.directory.path().join("users"), BOB).unwrap();
    assert_eq!(fixture.service.reload().unwrap(), Reload::Done);

    assert_eq!(fixture.status(basic("ada:secret")).await, 401);
}

#[tokio::test]
async fn a_crowd_with_the_same_pair_hashes_once_and_a_crowd_of_guesses_cannot_be_told() {
    let fixture = Arc::new(fixture());
    let crowd = |pair: fn(usize) -> String| {
        let checks: Vec<_> = (0..200)
            .map(|nth| {
                let fixture = fixture.clone();
                tokio::spawn(async move { fixture.check(basic(&pair(nth))).await })
            })
            .collect();
        async move {
            let mut allowed = 0;
            let mut failed = 0;
            for check in checks {
                match check.await.unwrap() {
                    Outcome::Allowed(_) => allowed += 1,
                    Outcome::Denied(_) => {}
                    Outcome::Failed(_) => failed += 1,
                }
            }
            (allowed, failed)
        }
    };
    assert_eq!(crowd(|_| "ada:secret".to_owned()).await, (200, 0));
    let (allowed, failed) = crowd(|nth| format!("ada:guess{nth}")).await;
    assert_eq!(allowed, 0);
    // 4 hash and 64 wait; how many of the rest come later is up to the machine.
    assert!(failed > 0, "all 200 were hashed");
}

#[test]
fn weak_hashes_and_other_mistakes_are_told_by_line_and_without_what_stands_there() {
    let users = format!("{ADA}\neve:$apr1$salt$hunter2\nhunter2\n{ADA}\n:x\nmallory:hunter2\n");
    let text = errors_with(CONFIG, &[("users", &users)]);
    for expected in [
        "`users`: line 2: hashes of MD5 are too easy to guess from",
        "`users`: line 3: expected `<name>:<hash>`",
        "`users`: line 4: this name is there twice",
        "`users`: line 5: expected `<name>:<hash>`",
        "`users`: line 6: neither a hash of bcrypt",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
    let realm = CONFIG.replace("back", "b\\nack");
    let realm = realm
        .replace('\'', "")
        .replace("the \"", "\"the ")
        .replace("\" office", " office\"");
    let text = errors_with(&realm, &[("users", ADA)]);
    assert!(text.contains("visible ASCII"), "{text}");
}
