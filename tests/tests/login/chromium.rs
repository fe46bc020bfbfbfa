//! The same in a real browser, over HTTPS: whether it keeps, sends and hides the cookies.

use std::net::SocketAddr;

use attache_tests::browser::{Browser, Programs};

use crate::{
    provider::Provider,
    stage::{Settings, Stage},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_sign_in_with_a_browser() {
    let Some(programs) = Programs::find() else {
        assert!(
            std::env::var("ATTACHE_REQUIRE_ALL").as_deref() != Ok("1"),
            "Chromium and its driver are missing"
        );
        println!("skipped: signing in with a real browser (run cargo xtask test)");
        return;
    };
    let stage = Stage::with(Settings {
        login: "userinfo: true, after_logout: /public/bye,",
        tls: true,
        ..Settings::default()
    })
    .await;
    for (proxy, address) in &stage.proxies {
        let (programs, provider, address) = (programs.clone(), stage.provider.clone(), *address);
        println!("through {proxy}");
        let test = move || {
            let browser = Browser::start(&programs).unwrap();
            let person = Person {
                browser,
                address,
                provider,
            };
            person.signs_in_once();
            person.stays_signed_in_when_tokens_end();
            person.signs_out();
            person.signs_in_from_two_tabs();
        };
        tokio::task::spawn_blocking(test).await.unwrap();
    }
}

/// Somebody at a browser.
struct Person {
    browser: Browser,
    address: SocketAddr,
    provider: Provider,
}

impl Person {
    fn at(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    fn logs_in(&self) {
        self.browser.wait_for("Provider");
        self.browser.write("#user", "ada");
        self.browser.click("#go");
    }

    fn logins(&self) -> usize {
        self.provider.seen(|seen| seen.logins)
    }

    fn signs_in_once(&self) {
        let browser = &self.browser;
        browser.visit(&self.at("/orders?id=1"));
        self.logs_in();
        browser.wait_for("/orders?id=1");
        assert_eq!(browser.url(), self.at("/orders?id=1"));
        let page = browser.text();
        for header in ["x-user: ada", "x-email: ada@example.com"] {
            assert!(page.contains(header), "{page}");
        }
        assert!(!page.contains("attache_session"), "{page}");

        let cookies = browser.cookies();
        let names: Vec<_> = cookies
            .iter()
            .map(|cookie| cookie["name"].as_str())
            .collect();
        assert_eq!(names, [Some("__Host-attache_session")]);
        for (attribute, expected) in [
            ("secure", "true"),
            ("httpOnly", "true"),
            ("sameSite", "\"Lax\""),
            ("path", "\"/\""),
        ] {
            assert_eq!(cookies[0][attribute].to_string(), expected, "{attribute}");
        }
        assert_eq!(browser.script("return document.cookie"), "");

        let logins = self.logins();
        browser.visit(&self.at("/next"));
        browser.wait_for("/next");
        browser.reload();
        browser.wait_for("/next");
        assert!(browser.text().contains("x-user: ada"));
        assert_eq!(self.logins(), logins);
    }

    fn stays_signed_in_when_tokens_end(&self) {
        let browser = &self.browser;
        // A session whose access token ends at once.
        self.provider.behave(|behaviour| behaviour.expires_in = 0);
        browser.visit(&self.at("/oauth2/logout"));
        browser.wait_for("/public/bye");
        let refreshes = || self.provider.seen(|seen| seen.refreshes);
        let before = refreshes();
        browser.visit(&self.at("/fresh"));
        self.logs_in();
        browser.wait_for("/fresh");
        assert_eq!(refreshes(), before + 1);
        let all = "return Promise.all([1, 2, 3].map(n => fetch('/data/' + n)))\
                   .then(all => all.map(one => one.status).join())";
        assert_eq!(browser.script(all), "200,200,200");
        assert_eq!(refreshes(), before + 1);
        self.provider
            .behave(|behaviour| behaviour.expires_in = 3600);
    }

    fn signs_out(&self) {
        let browser = &self.browser;
        browser.visit(&self.at("/oauth2/logout"));
        browser.wait_for("/public/bye");
        assert_eq!(browser.cookies().len(), 0);
        // A script gets no login page.
        let fetch = "return fetch('/data').then(answer => answer.status)";
        assert_eq!(browser.script(fetch), 401);
        let form = "return fetch('/data', { method: 'POST', body: 'a=b' }).then(a => a.status)";
        assert_eq!(browser.script(form), 401);
    }

    fn signs_in_from_two_tabs(&self) {
        let browser = &self.browser;
        browser.visit(&self.at("/one"));
        browser.wait_for("Provider");
        let first = browser.tab();
        let second = browser.open_tab();
        browser.visit(&self.at("/two"));
        self.logs_in();
        browser.wait_for("/two");
        browser.switch(&first);
        self.logs_in();
        browser.wait_for("/one");
        browser.switch(&second);
        browser.reload();
        browser.wait_for("/two");
        let names: Vec<_> = browser
            .cookies()
            .iter()
            .map(|cookie| cookie["name"].clone())
            .collect();
        assert_eq!(names, ["__Host-attache_session"]);
    }
}
