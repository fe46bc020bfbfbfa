//! Header mutations.

use super::*;

#[test]
fn header_mutations_must_be_valid() {
    let reply = |common| asked(Off).answered(Req, common);
    use HeaderAppendAction::{AddIfAbsent, OverwriteIfExists, OverwriteIfExistsOrAdd};
    let many = options(
        (0..101)
            .map(|i| HeaderValueOption {
                header: Some(raw_value(&format!("x-{i}"), "1")),
                ..HeaderValueOption::default()
            })
            .collect(),
    );
    rows(vec![
        ("value", reply(value_only("")), &[Code::OnlyValue]),
        ("both values", reply(value_only("w")), &[Code::BothValues]),
        (
            "absent, there",
            reply(action("x-here", AddIfAbsent, None)),
            &[Code::AppendActionWrong],
        ),
        (
            "absent, absent",
            reply(action("x-new", AddIfAbsent, None)),
            &[Code::AppendAction],
        ),
        (
            "exists, absent",
            reply(action("x-new", OverwriteIfExists, None)),
            &[Code::AppendActionWrong],
        ),
        (
            "exists, there",
            reply(action("x-here", OverwriteIfExists, None)),
            &[Code::AppendAction],
        ),
        (
            "overwrite and append",
            reply(action("x-here", OverwriteIfExistsOrAdd, Some(true))),
            &[Code::AppendActionWrong],
        ),
        ("name", reply(set("x v", "1")), &[Code::InvalidName]),
        ("removed name", reply(remove("x v")), &[Code::InvalidName]),
        (
            "value with newline",
            reply(set("x-a", "a\nb")),
            &[Code::InvalidValue],
        ),
        ("no name", reply(set("", "1")), &[Code::EmptyName]),
        (
            "no header",
            reply(options(vec![HeaderValueOption::default()])),
            &[Code::NoHeader],
        ),
        ("host", reply(set("host", "h")), &[Code::RefusedByDefault]),
        (
            ":method",
            reply(set(":method", "PUT")),
            &[Code::RefusedByDefault],
        ),
        (
            ":method when replacing",
            reply(replacing(both(set(":method", "PUT"), plain("x")))),
            &[],
        ),
        (
            "x-envoy",
            reply(set("X-Envoy-A", "1")),
            &[Code::RefusedByDefault],
        ),
        (
            "append to :path",
            reply(append(":path", "/x")),
            &[Code::NeverAllowed],
        ),
        (
            "remove :path",
            reply(remove(":path")),
            &[Code::NeverAllowed],
        ),
        ("remove host", reply(remove("Host")), &[Code::NeverAllowed]),
        (
            "status",
            begun(Off)
                .headers(Res, &[])
                .answered(Res, set(":status", "99")),
            &[Code::NeverAllowed],
        ),
        ("path", reply(set(":path", "p")), &[Code::BadPath]),
        (
            "101 headers",
            reply(many),
            &[Code::TooManyOperations, Code::TooLarge],
        ),
        (
            "60 KiB",
            reply(set("x-a", &"x".repeat(61 << 10))),
            &[Code::TooLarge],
        ),
        (
            "transfer-encoding",
            reply(set("transfer-encoding", "chunked")),
            &[Code::TransferEncoding],
        ),
        (
            "connection",
            reply(set("connection", "close")),
            &[Code::ConnectionHeader],
        ),
        (
            "route",
            reply(CommonResponse {
                clear_route_cache: true,
                ..pass()
            }),
            &[Code::ClearRouteCache],
        ),
        (
            "route of a response",
            begun(Off).headers(Res, &[]).answered(
                Res,
                CommonResponse {
                    clear_route_cache: true,
                    ..set("x-a", "1")
                },
            ),
            &[Code::ClearRouteCache],
        ),
        (
            "trailers",
            reply(CommonResponse {
                trailers: Some(map(&[("x", "1")])),
                ..pass()
            }),
            &[Code::CommonTrailers],
        ),
        (
            "late in STREAMED",
            begun(Streamed)
                .body(Req, "a", true)
                .body_answered(Req, set("x-a", "1")),
            &[Code::LateHeaders],
        ),
        (
            "length in STREAMED, all at once",
            begun(Streamed)
                .body(Req, "a", true)
                .body_answered(Req, set("content-length", "1")),
            &[],
        ),
        (
            "late without headers",
            Script::new(Buffered)
                .body(Req, "a", true)
                .body_answered(Req, set("x-a", "1")),
            &[Code::LateHeaders],
        ),
        (
            "late in full duplex",
            begun(Duplex)
                .body(Req, "a", true)
                .body_answered(Req, both(set("x-a", "1"), part("a", true))),
            &[Code::LateHeaders],
        ),
    ]);
}
