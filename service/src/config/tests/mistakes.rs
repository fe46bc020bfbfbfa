//! What is said about mistakes, and where.

use super::*;

#[test]
fn null_unsets_and_nothing_is_an_error() {
    let filter = decode("timeout: null\nfailure_mode_allow: ~\ntags:\nactions:\n");
    assert_eq!(filter, decode(""));
    assert_eq!(
        error("match:\n"),
        "2:1: expected a map (`{}` for one with nothing set) for `match`, found nothing"
    );
    assert_eq!(
        error("timeout:\nport: 1\n"),
        "2:1: expected a duration such as `0.25s`, `250ms`, `5m` or `1h` for `timeout`, found nothing"
    );
    assert_eq!(
        errors("service: null\n"),
        ["1:10: expected a map (`{}` for one with nothing set) for `service`, found `null`"]
    );
}

#[test]
fn types_are_checked() {
    for (line, expected) in [
        (
            "failure_mode_allow: yes",
            "2:21: expected `true` or `false` for `failure_mode_allow`, found `yes`",
        ),
        (
            "failure_mode_allow: 'true'",
            "2:21: expected `true` or `false` for `failure_mode_allow`, found the text `true`",
        ),
        (
            "port: 70000",
            "2:7: expected a whole number from 0 to 65535 for `port`, found `70000`",
        ),
        (
            "port: -1",
            "2:7: expected a whole number from 0 to 65535 for `port`, found `-1`",
        ),
        (
            "port: 0080",
            "2:7: invalid value `0080` for `port`: leading zeros are ambiguous (octal or decimal)",
        ),
        (
            "port: 1.5",
            "2:7: expected a whole number from 0 to 65535 for `port`, found `1.5`",
        ),
        (
            "port: [1]",
            "2:7: expected a whole number from 0 to 65535 for `port`, found a list",
        ),
        (
            "ratio: .nan",
            "2:8: expected a number for `ratio`, found `.nan`",
        ),
        (
            "timeout: 5",
            "2:10: invalid value `5` for `timeout`: a duration needs a unit: `5s`",
        ),
        (
            "timeout: -5s",
            "2:10: invalid value `-5s` for `timeout`: a duration cannot be negative",
        ),
        (
            "timeout: soon",
            "2:10: expected a duration such as `0.25s`, `250ms`, `5m` or `1h` for `timeout`, found `soon`",
        ),
        (
            "limit: 64K",
            "2:8: expected a size such as `4096`, `64KiB` or `1MiB` for `limit`, found `64K`",
        ),
        ("type: {}", "2:7: expected text for `type`, found a map"),
        ("tags: [a]", "2:7: expected a map for `tags`, found a list"),
        (
            "tags: {a: x}",
            "2:11: expected a whole number from 0 to 4294967295 for `a`, found `x`",
        ),
        (
            "actions: {}",
            "2:10: expected a list for `actions`, found a map",
        ),
        (
            "actions: [x]",
            "2:11: expected a map for `actions[0]`, found `x`",
        ),
        (
            "file: ''",
            "2:7: expected a path for `file`, found empty text",
        ),
        (
            "header: 'a b'",
            "2:9: expected a header name for `header`, found `a b`: invalid HTTP header name",
        ),
        (
            "mode: SENDD",
            "2:7: unknown value `SENDD` for `mode`; did you mean `SEND`?",
        ),
        (
            "mode: x",
            "2:7: unknown value `x` for `mode`; expected one of `DEFAULT`, `SEND`, `SKIP`",
        ),
        (
            "mode: GRPC",
            "2:7: `GRPC` for `mode` is not supported: it was never implemented",
        ),
        (
            "mode: []",
            "2:7: expected one of `DEFAULT`, `SEND`, `SKIP` for `mode`, found a list",
        ),
    ] {
        assert_eq!(error(line), expected);
    }
    assert_eq!(decode("port: '80'").port.unwrap().value, 80);
    assert_eq!(decode("port: 80.0").port.unwrap().value, 80);
}

#[test]
fn fields_get_one_of_three_answers() {
    for (line, expected) in [
        (
            "async_mode: true",
            "2:1: `async_mode` is not supported: Envoy never implemented it",
        ),
        (
            "timeuot: 1s",
            "2:1: unknown field `timeuot`; did you mean `timeout`?",
        ),
        (
            "failureModeAllow: true",
            "2:1: unknown field `failureModeAllow`; did you mean `failure_mode_allow`?",
        ),
        ("something: 1", "2:1: unknown field `something`"),
        (
            "match: {prefix: /, zzz: 1}",
            "2:20: unknown field `zzz` in `match`; expected one of `case_sensitive`, `prefix`, `path`, `parts`, `generic_key`, `remote_address`, `not`",
        ),
        (
            "match: {prefx: /}",
            "2:9: unknown field `prefx` in `match`; did you mean `prefix`?",
        ),
        (
            "match: {connect_matcher: {}}",
            "2:9: `connect_matcher` in `match` is not supported: CONNECT is not proxied",
        ),
        (
            "actions: [{dynamic_metadata: {}}]",
            "2:12: `dynamic_metadata` in `actions[0]` is not supported: use `metadata`",
        ),
        (
            "actions: [{generic_kye: {}}]",
            "2:12: unknown field `generic_kye` in `actions[0]`; did you mean `generic_key`?",
        ),
        (
            "match: {prefix: /, \"@type\": x}",
            "2:20: no `@type` can stand in `match`: this is not an Envoy message",
        ),
        (
            "'@type': type.googleapis.com/example.v3.Other",
            "2:10: expected `type.googleapis.com/example.v3.Filter` for `@type`, found `type.googleapis.com/example.v3.Other`",
        ),
    ] {
        assert_eq!(error(line), expected);
    }
}

#[test]
fn groups_take_one_field() {
    assert_eq!(
        error("match:\n  prefix: /\n  case_sensitive: true\n  path: /x\n"),
        "5:3: `path` and `prefix` (line 3) exclude each other in `match`; keep one"
    );
    assert_eq!(
        error("match: {case_sensitive: true}"),
        "2:1: missing one of `prefix`, `path`, `parts` in `match`"
    );
    assert_eq!(
        error("actions:\n- remote_address: {}\n  not: {remote_address: {}}\n"),
        "4:3: `not` and `remote_address` (line 3) exclude each other in `actions[0]`; keep one"
    );
    assert_eq!(
        error("actions:\n- {}\n"),
        "3:3: missing one of `generic_key`, `remote_address`, `not` in `actions[0]`"
    );
    // `null` unsets a field of a group, too.
    let filter = decode("match: {prefix: null, path: /x}");
    assert_eq!(
        filter.r#match.map(|found| found.path),
        Some(PathMatch::Exact("/x".into()))
    );
}

#[test]
fn missing_fields_are_located_at_the_key() {
    assert_eq!(
        errors("timeout: 1s\nservice: {}\n"),
        ["2:1: missing field `cluster_name` in `service`"]
    );
    assert_eq!(errors("timeout: 1s\n"), ["1:1: missing field `service`"]);
    assert_eq!(errors(""), ["1:1: expected a map, found nothing"]);
    assert_eq!(errors("[]"), ["1:1: expected a map, found a list"]);
}

#[test]
fn all_errors_are_reported_at_once_and_in_order() {
    let text = "\
service: {cluster: a}
timeout: soon
timeout: 1s
match:
  prefx: /
port: ${UNSET}
actions:
- generic_key: {cluster_name: a}
- generic_key: {cluster_name: [b]}
  async: true
";
    let report = document(text).decode::<Filter>().unwrap_err().to_string();
    let expected = "\
f.yaml:1:1: missing field `cluster_name` in `service`
  |
1 | service: {cluster: a}
  | ^^^^^^^
f.yaml:1:11: unknown field `cluster` in `service`; expected `cluster_name`
  |
1 | service: {cluster: a}
  |           ^^^^^^^
f.yaml:2:10: expected a duration such as `0.25s`, `250ms`, `5m` or `1h` for `timeout`, found `soon`
  |
2 | timeout: soon
  |          ^^^^
f.yaml:3:1: duplicate key `timeout`, already on line 2
  |
3 | timeout: 1s
  | ^^^^^^^
f.yaml:5:3: unknown field `prefx` in `match`; did you mean `prefix`?
  |
5 |   prefx: /
  |   ^^^^^
f.yaml:6:7: the environment variable `UNSET` is not set, and has no default (`${UNSET:-default}`)
  |
6 | port: ${UNSET}
  |       ^^^^^^^^
f.yaml:9:31: expected text for `cluster_name`, found a list
  |
9 | - generic_key: {cluster_name: [b]}
  |                               ^^^
f.yaml:10:3: unknown field `async` in `actions[1]`; expected one of `generic_key`, `remote_address`, `not`
   |
10 |   async: true
   |   ^^^^^";
    assert_eq!(report, expected);
}

#[test]
fn plans_add_to_the_same_errors() {
    let text = format!("{LEAST}port: 0\nmatch: {{prefix: /}}\nmode: X\n");
    let document = document(&text);
    let (filter, mut errors) = document.decode_partly::<Filter>();
    // A wrong word where nothing need stand counts as nothing, so that plans see the rest.
    assert_eq!(filter.map(|filter| filter.mode), Some(None));
    assert_eq!(errors.len(), 1);
    let port = document.root().get("port").unwrap();
    errors.push(port, "ports begin at 1");
    errors.push(port, "ports begin at 1");
    errors.push_file("other.yaml", "cannot be read");
    errors.push_unlocated("nothing to do");
    let lines: Vec<String> = errors.iter().map(|error| error.to_string()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0], "nothing to do");
    assert_eq!(
        lines[1],
        "f.yaml:2:7: ports begin at 1\n  |\n2 | port: 0\n  |       ^"
    );
    assert_eq!(lines[3], "other.yaml: cannot be read");

    let mut more = Errors::new();
    more.append(errors);
    assert_eq!(more.len(), 4);
    assert!(more.clone().into_result(Some(1)).is_err());
    assert_eq!(Errors::new().into_result(Some(1)), Ok(1));
    assert_eq!(Errors::new().into_result::<u8>(None).unwrap_err().len(), 1);
}

#[test]
fn an_unknown_field_does_not_cost_the_value() {
    let (filter, errors) = document(&format!("{LEAST}zzz: 1\n")).decode_partly::<Filter>();
    assert!(filter.is_some());
    assert_eq!(errors.len(), 1);
}

#[test]
fn long_lines_are_cut_around_the_place() {
    let text = format!(
        "{{service: {{cluster_name: {}}}, port: x, type: {}}}",
        "a".repeat(300),
        "b".repeat(300)
    );
    let report = document(&text).decode::<Filter>().unwrap_err().to_string();
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[2].chars().count(), 4 + 1 + 100 + 1);
    let caret = lines[3].chars().position(|c| c == '^').unwrap();
    assert_eq!(lines[2].chars().nth(caret), Some('x'));
}

#[test]
fn there_is_an_end_to_errors() {
    let text = format!(
        "{LEAST}tags:\n{}",
        (0..1500)
            .map(|i| format!("  k{i}: x\n"))
            .collect::<String>()
    );
    let errors = document(&text).decode::<Filter>().unwrap_err();
    assert_eq!(errors.len(), 1500);
    assert_eq!(errors.iter().count(), 1000);
    assert!(errors.to_string().ends_with("\nand 500 more errors"));
}
