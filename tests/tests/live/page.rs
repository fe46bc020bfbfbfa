//! What people see and do.

use serde_json::json;

use crate::stage::Person;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_watch_requests() {
    Person::acts("watching requests", |person| {
        shows_each_request_with_what_policies_changed(person);
        shows_who_answered(person);
        filters_by_route_status_filter_and_text(person);
        pauses_and_goes_on(person);
        is_used_with_keys(person);
        shows_requests_on_their_way(person);
        taps_one_request_in_full(person);
        is_readable_on_a_phone_and_in_the_dark(person);
        loads_nothing_from_elsewhere(person);
    })
    .await;
}

fn shows_each_request_with_what_policies_changed(person: &Person) {
    person.opens_the_page();
    let headers: &[(&str, &[u8])] = &[
        ("x-limit", b"ada"),
        ("x-tenant", b"blue"),
        ("x-internal", b"yes"),
        ("authorization", b"Bearer of-the-client"),
        ("cookie", b"a=1"),
        ("x-pin", b"4711"),
    ];
    assert_eq!(person.sends("GET /old", headers, ""), 200);
    person.sees(&["/old"]);
    let bars = person.browser.script(
        "return [...document.querySelectorAll('.row .bar > :not(.whole)')].map(e => e.className).sort().join()",
    );
    assert_eq!(bars, "body,ext_authz,ext_proc,ext_proc,ratelimit,upstream");

    let shown = person.opens("/old");
    let parts = [
        // What the client sent, without secrets.
        (
            "CLIENT SENT",
            &["x-tenant\tblue", "x-internal\tyes", ":path\t/old"][..],
        ),
        // What each policy changed.
        (
            "CHANGED ON THE WAY IN",
            &[
                "the proxy let it in",
                "door ext_authz check",
                "x-internal: yes",
                "x-user: ada",
                "marks ext_proc request_headers",
                ":path: /old → /new",
                "x-tenant: green",
                "x-marked: in",
            ],
        ),
        // What went on.
        (
            "UPSTREAM GOT",
            &[
                ":path\t/new",
                "x-user\tada",
                "x-tenant\tblue",
                "x-tenant\tgreen",
            ],
        ),
        (
            "UPSTREAM ANSWERED",
            &[":status\t200", "x-origin-secret\tbetween us"],
        ),
        (
            "CHANGED ON THE WAY OUT",
            &[
                "marks ext_proc response_headers",
                "x-origin-secret: between us",
                "x-marked: out",
                "x-checked: yes",
            ],
        ),
        (
            "CLIENT GOT",
            &[":status\t200", "x-marked\tout", "x-checked\tyes"],
        ),
    ];
    let mut rest = &*shown;
    for (heading, lines) in parts {
        let begin = rest
            .find(heading)
            .unwrap_or_else(|| panic!("no {heading}: {shown}"));
        rest = &rest[begin + heading.len()..];
        for line in lines {
            assert!(rest.contains(line), "{heading}: no {line:?}: {rest}");
        }
    }
    for secret in ["of-the-client", "of-the-origin", "a=1", "4711"] {
        assert!(!shown.contains(secret), "{secret}: {shown}");
    }
    assert!(
        shown.contains("authorization\tmasked, 20 bytes #"),
        "{shown}"
    );
    assert!(shown.contains("set-cookie\tmasked, 21 bytes #"), "{shown}");
    for phase in [
        "limits should_rate_limit",
        "door check",
        "marks request_headers",
        "marks response_headers",
        "upstream 127.0.0.1:",
    ] {
        assert!(shown.contains(phase), "{phase}: {shown}");
    }
    for fact in [
        "Route\nmain → web",
        "Details\nvia_upstream",
        "HTTP/1.1",
        "response began after",
    ] {
        assert!(shown.contains(fact), "{fact}: {shown}");
    }
    person.takes_a_picture("detail");
}

fn shows_who_answered(person: &Person) {
    let stop = "document.querySelector('.row .bar .stop')";
    assert_eq!(person.sends("GET /denied", &[], ""), 403);
    person.sees(&["/denied", "/old"]);
    person.browser.until(stop);
    let shown = person.opens("/denied");
    for part in [
        "403 UAEX",
        "UAEX UnauthorizedExternalService",
        "ext_authz_denied",
        "door ext_authz check, answered",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains("UPSTREAM GOT"), "{shown}");
    assert!(
        shown.contains("CLIENT GOT – made by the proxy or a policy"),
        "{shown}"
    );
    person.browser.click("#close");
}

fn filters_by_route_status_filter_and_text(person: &Person) {
    person.browser.click("#clear");
    let busy: &[(&str, &[u8])] = &[("x-limit", b"busy")];
    for (line, headers, status) in [
        ("GET /healthz", &[][..], 200),
        ("GET /one?q=Ada", &[], 200),
        ("GET /broken", &[], 500),
        ("GET /denied", &[], 403),
        ("GET /first", busy, 200),
        ("GET /second", busy, 429),
    ] {
        assert_eq!(person.sends(line, headers, ""), status, "{line}");
    }
    let all = [
        "/second",
        "/first",
        "/denied",
        "/broken",
        "/one?q=Ada",
        "/healthz",
    ];
    person.sees(&all);
    person.takes_a_picture("list");
    for (list, value, paths) in [
        ("#f-route", "health", &["/healthz"][..]),
        ("#f-status", "5", &["/broken"]),
        ("#f-status", "4", &["/second", "/denied"]),
        ("#f-status", "policy", &["/second", "/denied"]),
        ("#f-status", "flag", &["/second", "/denied"]),
        ("#f-filter", "limits", &["/second", "/first"]),
    ] {
        person.selects(list, value);
        person.sees(paths);
        person.selects(list, "");
        person.sees(&all);
    }
    person.browser.write("#f-text", "ada one");
    person.sees(&["/one?q=Ada"]);
    assert!(person.browser.text().contains("1 of 6"));
    person.browser.script("const e = document.querySelector('#f-text'); e.value = ''; e.dispatchEvent(new Event('input'))");
    person.sees(&all);
}

fn pauses_and_goes_on(person: &Person) {
    person.browser.click("#clear");
    person.browser.click("#pause");
    person.sends("GET /while-paused", &[], "");
    person
        .browser
        .until("document.querySelector('#state').textContent === 'paused, 1 waiting'");
    person.sees(&[]);
    person.browser.click("#pause");
    person.sees(&["/while-paused"]);
}

fn is_used_with_keys(person: &Person) {
    person.browser.click("#clear");
    for path in ["/a", "/b", "/c"] {
        person.sends(&format!("GET {path}"), &[], "");
    }
    person.sees(&["/c", "/b", "/a"]);
    let down = '\u{e015}';
    let (enter, escape) = ('\u{e007}', '\u{e00c}');
    person
        .browser
        .write("#rows", &format!("{down}{down}{enter}"));
    person
        .browser
        .until("document.querySelector('#detail h2').textContent.endsWith('/b')");
    person.browser.write("#detail", &escape.to_string());
    person
        .browser
        .until("document.querySelector('#detail').hidden && document.activeElement.id === 'rows'");
    person.browser.write("#rows", "p");
    person
        .browser
        .until("document.querySelector('#state').dataset.state === 'paused'");
    person.browser.write("#rows", "p/");
    person
        .browser
        .until("document.activeElement.id === 'f-text'");
}

fn shows_requests_on_their_way(person: &Person) {
    person.browser.click("#clear");
    let slow = person.begins("GET /slow");
    person
        .browser
        .until("document.querySelector('.row.running .status')?.textContent === 'on its way'");
    drop(slow);
    person.sees(&["/slow"]);
    person
        .browser
        .until("document.querySelector('.row .status').textContent.includes('DC')");
}

fn taps_one_request_in_full(person: &Person) {
    let browser = &person.browser;
    browser.click("#clear");
    browser.click("#tap-open");
    browser.write("#tap [name=path]", "/login");
    browser.write("#tap [name=method]", "post");
    browser.write("#tap [name=route]", "main");
    browser.click("#tap [type=submit]");
    browser
        .until("document.querySelector('#taps').textContent.includes('path /login, route main')");
    person.takes_a_picture("tap");

    let body = "{\"user\":\"ada\",\"password\":\"hunter2\"}";
    let long = "v".repeat(20_000);
    person.sends("GET /login", &[], "");
    person.sends("POST /login", &[("x-long", long.as_bytes())], body);
    browser.until("document.querySelectorAll('.row.tapped').length === 1");
    browser.until("document.querySelector('#taps').children.length === 0");
    person.sees(&["/login", "/login"]);
    browser.click(".row.tapped");
    let shown = person.detail();
    for part in [
        "REQUEST BODY, FROM THE CLIENT – 35 B\n{\"user\":\"ada\",\"password\":\"hunter2\"}",
        "REQUEST BODY, TO THE UPSTREAM – 33 B\n{\"user\":\"ada\",\"password\":\"*****\"}",
        "RESPONSE BODY, FROM THE UPSTREAM – 22 B\nhello from the origin",
        "RESPONSE BODY, TO THE CLIENT – 22 B\nhello from the origin",
        &long,
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    person.takes_a_picture("tapped");
    browser.click("#close");

    // Without conditions it is the next request; bytes that are no text are shown as such.
    browser.script("document.querySelector('#tap').reset()");
    browser.click("#tap [type=submit]");
    browser.until("document.querySelector('#taps').textContent.includes('the next request')");
    person.sends("GET /binary", &[], "");
    browser.until("document.querySelectorAll('.row.tapped').length === 2");
    let shown = person.opens("/binary");
    assert!(shown.contains("00 01 02 62 69 6e 61 72 79"), "{shown}");
    assert!(shown.contains("···binary"), "{shown}");
    browser.click("#close");

    // Who waits for nothing any more says so.
    browser.write("#tap [name=value]", "x");
    browser.click("#tap [type=submit]");
    browser.until(
        "document.querySelector('#tap-said').textContent === '`value` is looked for in a `header`'",
    );
    browser.write("#tap [name=header]", "x-never");
    browser.click("#tap [type=submit]");
    browser.until("document.querySelector('#taps').children.length === 1");
    browser.click("#taps button");
    browser.until("document.querySelector('#taps').children.length === 0");
    browser.click("#tap-open");
}

fn is_readable_on_a_phone_and_in_the_dark(person: &Person) {
    let browser = &person.browser;
    let background = "getComputedStyle(document.body).backgroundColor";
    let prefer = |scheme: &str| {
        let feature = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        browser.devtools(
            "Emulation.setEmulatedMedia",
            &json!({ "features": feature }),
        );
    };
    prefer("light");
    browser.until(&format!("{background} === 'rgb(255, 255, 255)'"));
    prefer("dark");
    browser.until(&format!("{background} === 'rgb(18, 21, 28)'"));
    person.takes_a_picture("dark");
    let phone = json!({ "width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": true });
    browser.devtools("Emulation.setDeviceMetricsOverride", &phone);
    let fits = "document.documentElement.scrollWidth <= 390 && innerWidth === 390";
    browser.until(fits);
    person.takes_a_picture("phone");
    browser.click(".row.tapped");
    browser.until(&format!(
        "document.querySelector('#detail').getBoundingClientRect().width === 390 && {fits}"
    ));
    person.takes_a_picture("phone-detail");
    browser.click("#close");
    browser.devtools("Emulation.clearDeviceMetricsOverride", &json!({}));
    prefer("light");
}

fn loads_nothing_from_elsewhere(person: &Person) {
    let elsewhere = person.browser.script(
        "return performance.getEntriesByType('resource').map(e => e.name)\
         .filter(name => !name.startsWith(location.origin + '/') && !name.startsWith('data:'))",
    );
    assert_eq!(elsewhere, json!([]));
    assert_eq!(person.browser.cookies().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_is_not_told_and_nothing_is_noted() {
    Person::acts("leaving the live page", |person| {
        let gauge = || person.stage().metric("attache_live_watchers");
        let until = |count| {
            let start = std::time::Instant::now();
            while gauge() != count {
                assert!(start.elapsed().as_secs() < 20, "{} watch", gauge());
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        };
        person.sends("GET /before", &[], "");
        person.opens_the_page();
        until(1);
        person.sends("GET /seen", &[], "");
        person.sees(&["/seen"]);

        // A page that is loaded again misses nothing.
        person.browser.reload();
        person.sees(&["/seen"]);

        person.browser.visit("about:blank");
        until(0);
        let start = std::time::Instant::now();
        while person.stage().running.live().is_watched() {
            assert!(start.elapsed().as_secs() < 20, "still watched");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        person.sends("GET /unseen", &[], "");
        person.opens_the_page();
        person.sends("GET /again", &[], "");
        person.sees(&["/again"]);
    })
    .await;
}
