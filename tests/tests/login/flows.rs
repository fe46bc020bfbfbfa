//! What happens between browser, proxy, auth service and provider, request by request.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::{
    http::{Message, parameter},
    jar::{Jar, parts},
    provider::{Behaviour, Client},
    stage::{Settings, Stage},
};

/// Where browsers find a proxy.
fn at(proxy: SocketAddr, path: &str) -> String {
    format!("http://{proxy}{path}")
}

const SITE: &str = "127.0.0.1";

fn title(page: &Message) -> &str {
    let after = page.body.split("<title>").nth(1).unwrap_or_default();
    after.split("</title>").next().unwrap_or_default()
}

#[tokio::test]
async fn a_visitor_signs_in_once_and_comes_back_to_the_page() {
    let stage = Stage::with(Settings {
        login: "userinfo: true,",
        ..Settings::default()
    })
    .await;
    for (proxy, address) in &stage.proxies {
        let mut jar = Jar::default();
        let page = at(*address, "/orders?id=1&x=%2f");
        let (url, answer) = jar.log_in(&page, "ada").await;

        assert_eq!(
            (url.as_str(), answer.status()),
            (page.as_str(), 200),
            "{proxy}"
        );
        assert_eq!(title(&answer), "/orders?id=1&x=%2f", "{proxy}");
        for header in [
            "x-user: ada\n",
            "x-email: ada@example.com\n",
            "x-groups: staff\n",
        ] {
            assert!(answer.body.contains(header), "{proxy}: {}", answer.body);
        }
        assert_eq!(jar.names(SITE), ["attache_session"], "{proxy}");

        // The next page needs no provider, and the upstream sees no session.
        let asked = stage.provider.seen(|seen| seen.codes);
        jar.change(SITE, |_, value| Some(format!("{value}; theme=dark")));
        let again = jar.visit(&at(*address, "/next")).await;
        assert_eq!((again.status(), title(&again)), (200, "/next"), "{proxy}");
        assert!(
            again.body.contains("cookie: theme=dark\n"),
            "{proxy}: {}",
            again.body
        );
        assert!(
            !again.body.contains("attache_session"),
            "{proxy}: {}",
            again.body
        );
        assert_eq!(stage.provider.seen(|seen| seen.codes), asked, "{proxy}");
    }
    assert_eq!(
        stage.provider.seen(|seen| seen.refused.clone()),
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn clients_prove_themselves_as_the_provider_wants_it() {
    for client in [Client::Post, Client::Public] {
        let stage = Stage::with(Settings {
            client: Some(client),
            login: if client == Client::Public {
                ""
            } else {
                "scopes: [a, openid],"
            },
            ..Settings::default()
        })
        .await;
        let (_, address) = stage.proxies[0];
        let (_, answer) = Jar::default().log_in(&at(address, "/"), "ada").await;
        assert_eq!(answer.status(), 200, "{client:?}");
    }
}

#[tokio::test]
async fn only_somebody_who_looks_at_pages_is_sent_to_the_provider() {
    let stage = Stage::new().await;
    for (proxy, address) in &stage.proxies {
        let mut jar = Jar::default();
        let html = ("accept", "text/html");
        for (method, headers, expected) in [
            ("GET", &[html][..], 302),
            ("HEAD", &[html], 302),
            ("GET", &[html, ("sec-fetch-mode", "navigate")], 302),
            ("GET", &[html, ("sec-fetch-mode", "cors")], 401),
            ("GET", &[("accept", "application/json")], 401),
            ("GET", &[("accept", "*/*")], 401),
            ("GET", &[], 401),
            ("GET", &[html, ("x-requested-with", "XMLHttpRequest")], 401),
            ("POST", &[html, ("sec-fetch-mode", "navigate")], 401),
            ("PUT", &[html], 401),
        ] {
            let answer = jar
                .send(method, &at(*address, "/deep/form"), headers, "")
                .await;
            let case = format!("{proxy}: {method} {headers:?}");
            assert_eq!(answer.status(), expected, "{case}");
            assert_eq!(
                answer.header("www-authenticate").is_some(),
                expected == 401,
                "{case}"
            );
            assert_eq!(
                answer.header("set-cookie").is_some(),
                expected == 302,
                "{case}"
            );
        }
        // What is open to everybody, or closed to everybody, is no reason to sign in.
        assert_eq!(
            jar.visit(&at(*address, "/public")).await.status(),
            200,
            "{proxy}"
        );
        assert_eq!(
            jar.visit(&at(*address, "/closed")).await.status(),
            403,
            "{proxy}"
        );
    }
}

#[tokio::test]
async fn the_way_back_leads_nowhere_but_to_the_host() {
    let stage = Stage::new().await;
    for (proxy, address) in &stage.proxies {
        for (path, expected) in [
            ("/\\evil.example", None),
            (
                "/?next=https://evil.example/",
                Some("/?next=https://evil.example/"),
            ),
            ("/.evil.example", Some("/.evil.example")),
            ("/@evil.example", Some("/@evil.example")),
        ] {
            let mut jar = Jar::default();
            let first = jar.visit(&at(*address, path)).await;
            let Some(expected) = expected else {
                // Read in different ways by different readers, so it is not read at all.
                assert_eq!(first.status(), 400, "{proxy}: {path}");
                continue;
            };
            let callback = jar.log_in_only(&at(*address, path), "ada").await;
            let back = jar.visit(&callback).await;
            assert_eq!(back.status(), 302, "{proxy}: {path}");
            assert_eq!(
                back.header("location"),
                Some(at(*address, expected).as_str()),
                "{proxy}"
            );
        }
        assert_ne!(
            Jar::default()
                .visit(&at(*address, "//evil.example/"))
                .await
                .status(),
            302
        );
    }
}

#[tokio::test]
async fn an_answer_of_the_provider_is_taken_once_and_by_the_browser_that_asked() {
    let stage = Stage::new().await;
    for (proxy, address) in &stage.proxies {
        let mut jar = Jar::default();
        let callback = jar.log_in_only(&at(*address, "/"), "ada").await;
        let state = parameter(&callback, "state").unwrap();

        // Somebody else's browser: they must not end up in this user's session.
        let mut other = Jar::default();
        let foreign = other.visit(&callback).await;
        assert_eq!(
            (foreign.status(), other.names(SITE).len()),
            (400, 0),
            "{proxy}"
        );
        // Another state, none, and two of them.
        for wrong in [
            callback.replace(&state, &format!("{}x", &state[..42])),
            callback.replace("state=", "stat="),
            format!("{callback}&state=x"),
            at(*address, "/oauth2/callback"),
        ] {
            let answer = jar.visit(&wrong).await;
            assert_eq!(answer.status(), 400, "{proxy}: {wrong}");
            assert_eq!(answer.header("set-cookie"), None, "{proxy}: {wrong}");
        }
        let posted = jar.send("POST", &callback, &[], "").await;
        assert_eq!(posted.status(), 405, "{proxy}");

        let kept = jar.clone();
        assert_eq!(jar.visit(&callback).await.status(), 302, "{proxy}");
        // Again, as somebody who read the browser's history, or a back button, would.
        let again = jar.visit(&callback).await;
        assert_eq!(again.status(), 400, "{proxy}");
        // And by somebody who kept the cookie of the sign-in: the code is used up.
        let replayed = kept.clone().visit(&callback).await;
        assert_eq!(replayed.status(), 403, "{proxy}");
        assert!(
            replayed.body.contains("invalid_grant"),
            "{proxy}: {}",
            replayed.body
        );
        assert!(
            !replayed
                .headers
                .iter()
                .any(|(_, v)| v.starts_with("attache_session="))
        );
    }
}

#[tokio::test]
async fn what_does_not_hold_makes_no_session() {
    let stage = Stage::with(Settings {
        login: "userinfo: true,",
        ..Settings::default()
    })
    .await;
    type Change = Box<dyn Fn(&mut Behaviour)>;
    let claims =
        |claims: Value| -> Change { Box::new(move |behaviour| behaviour.claims = claims.clone()) };
    let cases: Vec<(&str, Change)> = vec![
        ("nonce", claims(json!({ "nonce": "another" }))),
        ("no nonce", claims(json!({ "nonce": null }))),
        ("audience", claims(json!({ "aud": "other" }))),
        ("audiences", claims(json!({ "aud": ["shop", "other"] }))),
        ("party", claims(json!({ "azp": "other" }))),
        ("issuer", claims(json!({ "iss": "http://evil.example" }))),
        ("expired", claims(json!({ "exp": 1000 }))),
        ("no expiry", claims(json!({ "exp": null }))),
        ("not yet", claims(json!({ "nbf": 9_999_999_999_u64 }))),
        ("no user", claims(json!({ "sub": null }))),
        ("access token", claims(json!({ "at_hash": "AAAA" }))),
        ("key", Box::new(|behaviour| behaviour.strange_key = true)),
        (
            "no ID token",
            Box::new(|behaviour| behaviour.no_id_token = true),
        ),
        (
            "user info",
            Box::new(|behaviour| behaviour.other_user = Some("eve".into())),
        ),
        (
            "provider",
            Box::new(|behaviour| behaviour.named = Some("http://evil.example".into())),
        ),
    ];
    let (proxy, address) = stage.proxies[0];
    for (case, change) in cases {
        stage.provider.behave(change);
        let mut jar = Jar::default();
        let (_, answer) = jar.log_in(&at(address, "/"), "ada").await;
        assert_eq!(answer.status(), 403, "{proxy}: {case}");
        assert_eq!(jar.names(SITE), [""; 0], "{proxy}: {case}");
        stage
            .provider
            .behave(|behaviour| *behaviour = Behaviour::default());
    }
    let (_, answer) = Jar::default().log_in(&at(address, "/"), "ada").await;
    assert_eq!(answer.status(), 200);
    let text = stage.metrics.render();
    assert!(
        text.contains(r#"attache_auth_sign_ins_total{source="people",result="refused"} 15"#),
        "{text}"
    );
}

#[tokio::test]
async fn errors_of_the_provider_are_told_without_a_way_to_loop() {
    let stage = Stage::new().await;
    for (proxy, address) in &stage.proxies {
        stage
            .provider
            .behave(|behaviour| behaviour.error = Some("access_denied".into()));
        let mut jar = Jar::default();
        let (url, answer) = jar.follow(&at(*address, "/")).await;
        assert!(url.contains("/oauth2/callback"), "{proxy}: {url}");
        assert_eq!(answer.status(), 403, "{proxy}");
        assert_eq!(
            answer.body, "You are not signed in: access_denied.\n",
            "{proxy}"
        );

        stage.provider.behave(|behaviour| {
            behaviour.error = None;
            behaviour.down = true;
        });
        let (_, answer) = jar.log_in(&at(*address, "/"), "ada").await;
        assert_eq!(answer.status(), 503, "{proxy}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{proxy}");
        stage.provider.behave(|behaviour| behaviour.down = false);
        let (_, answer) = jar.follow(&at(*address, "/")).await;
        assert_eq!(answer.status(), 200, "{proxy}");
    }
}

#[tokio::test]
async fn several_tabs_sign_in_at_once() {
    let stage = Stage::new().await;
    for (proxy, address) in &stage.proxies {
        let mut jar = Jar::default();
        let one = jar.log_in_only(&at(*address, "/one"), "ada").await;
        // The provider knows the user by now.
        let first = jar.visit(&at(*address, "/two")).await;
        let second = jar.visit(first.header("location").unwrap()).await;
        let two = second.header("location").unwrap().to_owned();
        assert_eq!(jar.names(SITE).len(), 2, "{proxy}");

        let (url, answer) = jar.follow(&two).await;
        assert_eq!(
            (parts(&url).2.as_str(), answer.status()),
            ("/two", 200),
            "{proxy}"
        );
        let (url, answer) = jar.follow(&one).await;
        assert_eq!(
            (parts(&url).2.as_str(), answer.status()),
            ("/one", 200),
            "{proxy}"
        );
        assert_eq!(jar.names(SITE), ["attache_session"], "{proxy}");
    }
}

#[tokio::test]
async fn a_session_is_refreshed_once_for_all_requests_that_come_at_once() {
    let stage = Stage::with(Settings {
        login: "forward_access_token: true,",
        ..Settings::default()
    })
    .await;
    stage.provider.behave(|behaviour| behaviour.expires_in = 0);
    for (proxy, address) in &stage.proxies {
        let mut jar = Jar::default();
        let callback = jar.log_in_only(&at(*address, "/"), "ada").await;
        assert_eq!(jar.visit(&callback).await.status(), 302, "{proxy}");
        let before = jar.cookies(SITE);
        let refreshes = stage.provider.seen(|seen| seen.refreshes);

        let mut requests = tokio::task::JoinSet::new();
        for number in 0..8 {
            let (mut tab, url) = (jar.clone(), at(*address, &format!("/{number}")));
            requests.spawn(async move {
                // Not a page: what a script asks for is refreshed too.
                let answer = tab
                    .send("GET", &url, &[("authorization", "mine")], "")
                    .await;
                (tab, answer)
            });
        }
        let mut token = None;
        for (tab, answer) in requests.join_all().await {
            assert_eq!(answer.status(), 200, "{proxy}");
            assert_ne!(
                tab.cookies(SITE),
                before,
                "{proxy}: the new session is not kept"
            );
            let line = answer
                .body
                .lines()
                .find(|line| line.contains("authorization: "));
            let line = line.map(str::to_owned);
            assert!(
                line.as_ref()
                    .is_some_and(|line| line.contains("Bearer access-")),
                "{proxy}"
            );
            assert_eq!(*token.get_or_insert(line.clone()), line, "{proxy}");
            jar = tab;
        }
        assert_eq!(
            stage.provider.seen(|seen| seen.refreshes),
            refreshes + 1,
            "{proxy}"
        );
        // Fresh by now.
        let quiet = jar.visit(&at(*address, "/")).await;
        assert_eq!(
            (quiet.status(), quiet.header("set-cookie")),
            (200, None),
            "{proxy}"
        );
        assert_eq!(
            stage.provider.seen(|seen| seen.refreshes),
            refreshes + 1,
            "{proxy}"
        );
    }
}

#[tokio::test]
async fn a_session_that_the_provider_ended_is_over() {
    let stage = Stage::new().await;
    stage.provider.behave(|behaviour| {
        behaviour.expires_in = 0;
        behaviour.revoked = true;
    });
    for (proxy, address) in &stage.proxies {
        let mut jar = Jar::default();
        let callback = jar.log_in_only(&at(*address, "/"), "ada").await;
        jar.visit(&callback).await;
        let mut script = jar.clone();
        let answer = script.send("GET", &at(*address, "/data"), &[], "").await;
        assert_eq!(
            (answer.status(), script.names(SITE).len()),
            (401, 0),
            "{proxy}"
        );
        let answer = jar.visit(&at(*address, "/")).await;
        assert_eq!(answer.status(), 302, "{proxy}");
        assert!(
            answer.header("location").unwrap().contains("/authorize?"),
            "{proxy}"
        );
    }
}

#[tokio::test]
async fn a_provider_that_is_down_ends_no_session_but_nobody_passes_on_a_stale_one() {
    let stage = Stage::new().await;
    stage.provider.behave(|behaviour| behaviour.expires_in = 0);
    for (proxy, address) in &stage.proxies {
        let mut jar = Jar::default();
        let callback = jar.log_in_only(&at(*address, "/"), "ada").await;
        jar.visit(&callback).await;
        stage.provider.behave(|behaviour| behaviour.down = true);
        let answer = jar.visit(&at(*address, "/")).await;
        // The check fails, which is no denial: with `failure_mode_allow` it would pass.
        assert_eq!(
            (answer.status(), jar.names(SITE).len()),
            (503, 1),
            "{proxy}"
        );
        stage.provider.behave(|behaviour| behaviour.down = false);
    }
}

#[tokio::test]
async fn signing_out_ends_the_session_here_and_at_the_provider() {
    let stage = Stage::with(Settings {
        login: "after_logout: /public/bye,",
        ..Settings::default()
    })
    .await;
    for (proxy, address) in &stage.proxies {
        let mut jar = Jar::default();
        jar.log_in(&at(*address, "/"), "ada").await;
        let mut copy = jar.clone();
        let (url, answer) = jar.follow(&at(*address, "/oauth2/logout")).await;
        assert_eq!(
            (url, answer.status()),
            (at(*address, "/public/bye"), 200),
            "{proxy}"
        );
        assert_eq!(jar.names(SITE), [""; 0], "{proxy}");
        assert_eq!(jar.names("localhost"), [""; 0], "{proxy}");

        // A copy of the cookie does not bring it back.
        let answer = copy.send("GET", &at(*address, "/"), &[], "").await;
        assert_eq!(
            (answer.status(), copy.names(SITE).len()),
            (401, 0),
            "{proxy}"
        );
    }
    let proxies = stage.proxies.len();
    assert_eq!(stage.provider.seen(|seen| seen.logouts), proxies);
}

#[tokio::test]
async fn sessions_of_rotated_keys_hold_until_the_key_is_gone() {
    const NEW: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=\n";
    let stage = Stage::new().await;
    let (_, address) = stage.proxies[0];
    let mut jar = Jar::default();
    jar.log_in(&at(address, "/"), "ada").await;
    let old = std::fs::read_to_string(stage.keys_file()).unwrap();
    stage.write_keys(&format!("{NEW}{old}"));
    assert_eq!(jar.visit(&at(address, "/")).await.status(), 200);
    stage.write_keys(NEW);
    let script = jar.clone().send("GET", &at(address, "/"), &[], "").await;
    assert_eq!(script.status(), 401);
    assert_eq!(jar.visit(&at(address, "/")).await.status(), 302);
}

#[tokio::test]
async fn sessions_that_were_tampered_with_are_none() {
    let stage = Stage::new().await;
    let (_, address) = stage.proxies[0];
    let mut jar = Jar::default();
    jar.log_in(&at(address, "/"), "ada").await;
    for change in [
        |value: &str| value.replacen("1.", "2.", 1),
        |value: &str| format!("{value}AAAA"),
        |value: &str| value[..value.len() - 4].to_owned(),
        |_: &str| "1.".to_owned(),
        |_: &str| "1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned(),
    ] {
        let mut tampered = jar.clone();
        tampered.change(SITE, |_, value| Some(change(value)));
        let answer = tampered.send("GET", &at(address, "/"), &[], "").await;
        assert_eq!(answer.status(), 401, "{}", tampered.cookies(SITE));
    }
    assert_eq!(jar.visit(&at(address, "/")).await.status(), 200);
}

#[tokio::test]
async fn long_sessions_are_kept_in_several_cookies() {
    let stage = Stage::new().await;
    let long: Vec<String> = (0..300).map(|n| format!("group-{n:05}")).collect();
    stage
        .provider
        .behave(|behaviour| behaviour.claims = json!({ "groups": long }));
    for (proxy, address) in &stage.proxies {
        let mut jar = Jar::default();
        let (_, answer) = jar.log_in(&at(*address, "/"), "ada").await;
        assert_eq!(answer.status(), 200, "{proxy}");
        assert!(jar.names(SITE).len() > 1, "{proxy}: {:?}", jar.names(SITE));
        assert!(answer.body.contains("group-00299"), "{proxy}");
        assert!(!answer.body.contains("attache_session"), "{proxy}");
        jar.visit(&at(*address, "/oauth2/logout")).await;
        assert_eq!(jar.names(SITE), [""; 0], "{proxy}");
    }
    // More than any cookies hold.
    let longer: Vec<String> = (0..3000).map(|n| format!("group-{n:05}")).collect();
    stage
        .provider
        .behave(|behaviour| behaviour.claims = json!({ "groups": longer }));
    let (_, answer) = Jar::default()
        .log_in(&at(stage.proxies[0].1, "/"), "ada")
        .await;
    assert_eq!(answer.status(), 403);
}

#[tokio::test]
async fn sessions_end_when_they_are_old_or_not_used() {
    let stage = Stage::with(Settings {
        session: "lifetime: 3s, idle_timeout: 2s",
        ..Settings::default()
    })
    .await;
    let (_, address) = stage.proxies[0];
    let mut jar = Jar::default();
    jar.log_in(&at(address, "/"), "ada").await;
    let asleep = jar.clone();
    // In use it goes on beyond two seconds, and not beyond three.
    let began = std::time::Instant::now();
    let mut ended = None;
    let mut asleep_ended = None;
    while ended.is_none() {
        assert!(began.elapsed().as_secs() < 20);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let status = async |jar: &mut Jar| {
            let answer = jar.send("GET", &at(address, "/"), &[], "").await;
            answer.status()
        };
        if status(&mut asleep.clone()).await == 401 {
            asleep_ended.get_or_insert(began.elapsed());
        }
        if status(&mut jar).await == 401 {
            ended = Some(began.elapsed());
        }
    }
    let (ended, asleep_ended) = (ended.unwrap(), asleep_ended.unwrap());
    assert!(asleep_ended < ended, "{asleep_ended:?} {ended:?}");
}
