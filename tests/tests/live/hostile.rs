//! Requests that are made to hurt who looks at them.

use serde_json::json;

use crate::stage::Person;

/// Where a script of a request would leave its mark.
const UNHURT: &str = "window.hurt === undefined && document.scripts.length === 1 \
                      && document.querySelectorAll('img, iframe, object, svg, style').length === 0 \
                      && document.documentElement.scrollWidth <= innerWidth";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_do_no_harm() {
    Person::acts("hostile requests", |person| {
        let browser = &person.browser;
        browser.devtools(
            "Page.addScriptToEvaluateOnNewDocument",
            &json!({ "source": "window.alert = () => { window.hurt = 'alert' }; \
                addEventListener('securitypolicyviolation', e => { window.violated = e.violatedDirective })" }),
        );
        person.opens_the_page();
        let long = "W".repeat(40_000);
        let headers: &[(&str, &[u8])] = &[
            ("x-script", b"<script>alert(1)</script><svg onload=alert(1)>"),
            ("x-style", b"</style><style>*{display:none}</style>"),
            ("x-bidi", "user\u{202e}gnp.exe\u{2066}\u{200b}\u{feff}".as_bytes()),
            ("x-bytes", b"a\xff\xfe\x80b"),
            ("x-json", b"\"}],\"x\":[{\\u0022"),
            ("x-lines", b"\xe2\x80\xa8data: {}\xe2\x80\xa9\xc2\x85"),
            ("x-long", long.as_bytes()),
            ("x-proto", b"__proto__ constructor"),
        ];
        let path = "/{\"onload=alert(3)//'}?a='x'";
        assert_eq!(person.sends(&format!("GET {path}"), headers, ""), 200);
        let status = person.sends("GET /hostile", headers, "");
        assert_eq!(status, 200);
        person.sees(&["/hostile", path]);
        let shown = person.opens("/hostile");
        browser.until(UNHURT);
        for part in [
            "x-script\t<script>alert(1)</script><svg onload=alert(1)>",
            "x-style\t</style><style>*{display:none}</style>",
            "x-bidi\tuser\\u{202e}gnp.exe\\u{2066}\\u{200b}\\u{feff}",
            "x-bytes\ta\\xff\\xfe\\x80b",
            "x-json\t\"}],\"x\":[{\\u0022",
            "x-lines\t\\u{2028}data: {}\\u{2029}\\u{85}",
            "… cut, 39.1 KiB",
            "x-evil: <img src=x onerror=alert(2)>",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(!shown.contains(&"W".repeat(1100)));
        person.takes_a_picture("hostile");

        // In full, and with a body that is hostile too.
        browser.click("#close");
        browser.click("#tap-open");
        browser.click("#tap [type=submit]");
        browser.until("document.querySelector('#taps').children.length === 1");
        let body = "</pre><script>alert(4)</script>\u{202e}\u{0}<style>";
        person.sends("POST /hostile", headers, body);
        browser.until("document.querySelectorAll('.row.tapped').length === 1");
        browser.click(".row.tapped");
        let shown = person.detail();
        assert!(shown.contains(&long));
        browser.until(UNHURT);
        let body = "</pre><script>alert(5)</script>\u{202e}<style>";
        browser.click("#tap [type=submit]");
        browser.until("document.querySelector('#taps').children.length === 1");
        person.sends("POST /hostile", headers, body);
        browser.until("document.querySelectorAll('.row.tapped').length === 2");
        browser.click(".row.tapped");
        let shown = person.detail();
        assert!(shown.contains("</pre><script>alert(5)</script>\\u{202e}<style>"), "{shown}");
        browser.until(UNHURT);
        assert_eq!(browser.script("return window.violated ?? ''"), "");

        // Filters show names of requests too.
        browser.write("#f-text", "</script>");
        browser.until("document.querySelectorAll('.row').length === 4");
        browser.until(UNHURT);
    })
    .await;
}
