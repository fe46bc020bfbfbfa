//! Paths that a proxy, this service and an application could read in different ways.

use attache_proto::auth::{
    AttributeContext, CheckRequest, attribute_context, attribute_context::HttpRequest,
};

use super::Fixture;
use crate::server::CheckRequestView;

const CONFIG: &str = "
identity: [{ name: anyone, anonymous: {} }]
rules:
- { action: deny, paths: [{ prefix: /admin }] }
- { action: allow, identity: [anyone] }
";

/// The path as it stands in the message: no client library mends it on the way.
fn view(path: &str) -> CheckRequestView {
    let http = HttpRequest {
        method: "GET".to_owned(),
        path: path.to_owned(),
        host: "shop.example.com".to_owned(),
        scheme: "http".to_owned(),
        ..HttpRequest::default()
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            request: Some(attribute_context::Request {
                http: Some(http),
                ..attribute_context::Request::default()
            }),
            ..AttributeContext::default()
        }),
    }
    .into()
}

#[tokio::test]
async fn no_spelling_of_a_denied_path_is_allowed() {
    let lenient = format!(
        "{CONFIG}paths: {{ merge_slashes: true, resolve_dots: true, \
         allow_encoded_slash: true, allow_semicolon: true }}\n"
    );
    for (readings, config) in [("strict", CONFIG), ("lenient", &lenient)] {
        let fixture = Fixture::new(config);
        for path in [
            "/admin",
            "/admin/",
            "/admin/users",
            "/admin?x=1",
            "/admin#x",
            "/public#/../admin",
            "/public?a=1#/../../admin",
            "/public/..%2fadmin",
            "/public%2f..%2fadmin",
            "/public/.%2e%2Fadmin",
            "/public/%2e%2F..;x/admin",
            "/admin?/../../public",
            "/%61dmin",
            "/%61%64%6D%69%6E",
            "//admin",
            "///admin",
            "/./admin",
            "/public/../admin",
            "/public/%2e%2e/admin",
            "/public/.%2e/admin",
            "/public/%2E./admin",
            "/public//../admin",
            "/public/..;/admin",
            "/public/..;x=y/admin",
            "/public/.;/../admin",
            "/public/..%3b/admin",
            "/admin%00",
            "/admin%00.html",
            "/%00admin",
            "/admin%0a",
            "/admin%09",
            "\\admin",
            "/\\admin",
            "/public\\..\\admin",
            "/public/..%5cadmin",
            "/%2561dmin",
            "/%25%36%31dmin",
            "/public/%252e%252e/admin",
            // Overlong UTF-8 of `/` and `.`, and halves of characters.
            "/public/..%c0%afadmin",
            "/public/%c0%ae%c0%ae/admin",
            "/public/%e0%80%af..%e0%80%afadmin",
            "/%61%c0dmin",
            "/admin%ff",
            "/%",
            "/%6",
            "/%6xadmin",
            // Absolute-form and authority-form.
            "http://shop.example.com/admin",
            "https://other.example.com/admin",
            "shop.example.com:80",
            "admin",
            "?/admin",
            "",
        ] {
            let decision = fixture.service.decide(&view(path)).await;
            let allowed = decision.is_ok_and(|decision| decision.is_allow());
            assert!(!allowed, "{readings}: {path}");
        }
        for path in [
            "/public",
            "/",
            "/administrators",
            "/a?next=/admin",
            "/a%20b",
        ] {
            let decision = fixture.service.decide(&view(path)).await.unwrap();
            assert!(decision.is_allow(), "{readings}: {path}");
        }
    }
}

#[tokio::test]
async fn what_stays_encoded_separates_nothing_for_rules() {
    // An application that decodes `%2F` before it routes must not be told to allow it: see the
    // documentation of `allow_encoded_slash`.
    let fixture = Fixture::new(CONFIG);
    for path in [
        "/%2fadmin",
        "/public%2f..%2fadmin",
        "/admin%2fusers",
        "/a%2Fb",
    ] {
        let decision = fixture.service.decide(&view(path)).await.unwrap();
        assert!(!decision.is_allow(), "{path}");
    }
}

#[tokio::test]
async fn case_is_as_the_rule_has_it() {
    // Paths have case (RFC 3986 §6.2.2.1). Where an application ignores it, rules that allow
    // what they list, instead of denying it, are not fooled.
    let config = "
identity: [{ name: anyone, anonymous: {} }]
rules:
- { action: allow, identity: [anyone], paths: [{ prefix: /public }] }
";
    let fixture = Fixture::new(config);
    for (path, expected) in [
        ("/public", true),
        ("/PUBLIC", false),
        ("/Admin", false),
        ("/ADMIN", false),
    ] {
        let decision = fixture.service.decide(&view(path)).await.unwrap();
        assert_eq!(decision.is_allow(), expected, "{path}");
    }
}
