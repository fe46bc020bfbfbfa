//! `attache check --explain`: what each filter of each listener does when its service fails.

use std::fmt::Write as _;

use attache_filter::on_failure::{AskedBy, OnFailure};
use attache_proxy::{Plan, filters::Policy};
use attache_service::config::{Node, Value, format_duration};

const HEAD: [&str; 10] = [
    "LISTENER",
    "FILTER",
    "KIND",
    "SERVICE",
    "TIMEOUT",
    "NOT REACHED",
    "TOO LATE",
    "WRONG ANSWER",
    "IMPOSSIBLE CHANGE",
    "ON FAILURE",
];

/// One line for each filter of each listener; below, what there is to know beside it. `root` is
/// the file that the plan is of.
pub(crate) fn filters(plan: &Plan, root: &Node) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    let mut notes = Vec::new();
    let mut names = Vec::new();
    for listener in &plan.listeners {
        for name in &listener.filters {
            let Some(policy) = plan.filters.get(name) else {
                continue;
            };
            rows.push(row(&listener.name, name, &**policy));
            if names.contains(name) {
                continue;
            }
            names.push(name.clone());
            if policy.is_off() {
                notes.push(format!(
                    "`{name}`: it is off but on routes with settings for it"
                ));
            }
            let told = policy.on_failure().map(|told| told.notes);
            let told = told.into_iter().flatten();
            notes.extend(told.map(|note| format!("`{name}`: {note}")));
        }
    }
    if names.is_empty() {
        return "no listener has filters\n".to_owned();
    }
    routes(
        root,
        &|name| names.iter().any(|known| **known == *name),
        &mut notes,
    );
    let mut text = table(&rows);
    for note in notes {
        text.push_str(&note);
        text.push('\n');
    }
    text
}

fn row(listener: &str, name: &str, policy: &dyn Policy) -> [String; 10] {
    let Some(told) = policy.on_failure() else {
        let none = || "-".to_owned();
        let (listener, name, mode) = (listener.into(), name.into(), "cannot fail".into());
        return [
            listener,
            name,
            none(),
            none(),
            none(),
            none(),
            none(),
            none(),
            none(),
            mode,
        ];
    };
    let mode = told.mode().to_owned();
    let OnFailure {
        kind,
        cluster,
        asked_by,
        timeout,
        not_reached,
        too_late,
        wrong_answer,
        impossible_change,
        notes: _,
    } = told;
    let protocol = match asked_by {
        AskedBy::Grpc => "gRPC",
        AskedBy::Http => "HTTP",
    };
    [
        listener.to_owned(),
        name.to_owned(),
        kind.to_owned(),
        format!("{cluster} ({protocol})"),
        timeout.map_or_else(|| "none".to_owned(), format_duration),
        not_reached.to_string(),
        too_late.to_string(),
        wrong_answer.to_string(),
        impossible_change.map_or_else(|| "-".to_owned(), |outcome| outcome.to_string()),
        mode,
    ]
}

fn table(rows: &[[String; 10]]) -> String {
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let width = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Where routes and virtual hosts have settings that change what a failure of a filter means.
fn routes(node: &Node, is_used: &dyn Fn(&str) -> bool, notes: &mut Vec<String>) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                let settings = entry
                    .value
                    .as_map()
                    .filter(|_| &*entry.key.name == "typed_per_filter_config");
                for setting in settings.unwrap_or_default() {
                    let name = &*setting.key.name;
                    if is_used(name)
                        && let Some(change) = change(&setting.value)
                    {
                        notes.push(format!("{}: `{name}` {change} here", setting.key.span));
                    }
                }
                routes(&entry.value, is_used, notes);
            }
        }
        Value::Seq(items) => {
            for item in items {
                routes(item, is_used, notes);
            }
        }
        _ => {}
    }
}

fn change(settings: &Node) -> Option<&'static str> {
    let of = |field| {
        let at = ["overrides", "check_settings"];
        at.iter().find_map(|block| settings.get(block)?.get(field))
    };
    let text = |node: Option<&Node>| node.and_then(Node::text).map(str::to_owned);
    if text(settings.get("disabled")).as_deref() == Some("true") {
        return Some("is off");
    }
    let service = of("grpc_service").or(of("http_service")).is_some();
    match (text(of("failure_mode_allow")).as_deref(), service) {
        (Some("true"), false) => Some("is fail-open"),
        (Some("true"), true) => Some("is fail-open, and asks another service"),
        (Some(_), false) => Some("is fail-closed"),
        (Some(_), true) => Some("is fail-closed, and asks another service"),
        (None, true) => Some("asks another service"),
        (None, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use attache_proxy::Config;
    use attache_service::config::Document;

    use super::*;
    use crate::embedded::OnTrial;

    #[test]
    fn each_filter_of_each_listener_has_a_line_that_says_what_its_failure_means() {
        let text = r#"
listeners:
- { name: edge, address: "127.0.0.1:0", filters: [limits, auth, web, rewrite] }
- { name: inner, address: "127.0.0.1:1", filters: [some, watch, shadow] }
filters:
  limits: { ratelimit: { domain: edge, rate_limit_service: { grpc_service: { envoy_grpc: { cluster_name: policy } } } } }
  some:
    ratelimit:
      domain: edge
      timeout: 0s
      failure_mode_deny_percent: { default_value: { numerator: 5 } }
      status_on_error: { code: 503 }
      rate_limit_service: { grpc_service: { envoy_grpc: { cluster_name: policy } } }
  auth: { ext_authz: { grpc_service: { envoy_grpc: { cluster_name: policy }, timeout: 0.25s } } }
  shadow: { disabled: true, ext_authz: { shadow_mode: true, http_service: { server_uri: { uri: "http://a", cluster: web, timeout: 1s } } } }
  web: { grpc_web: {} }
  rewrite: { ext_proc: { grpc_service: { envoy_grpc: { cluster_name: policy } }, status_on_error: { code: 502 } } }
  watch: { ext_proc: { grpc_service: { envoy_grpc: { cluster_name: policy } }, observability_mode: true } }
routes:
- match: { prefix: /open }
  route: { cluster: web }
  typed_per_filter_config: { rewrite: { overrides: { failure_mode_allow: true } }, auth: { disabled: true } }
- match: { prefix: / }
  route: { cluster: web }
  typed_per_filter_config: { rewrite: { overrides: { processing_mode: { response_header_mode: SKIP } } } }
clusters:
- { name: policy, http2: {}, endpoints: ["127.0.0.1:2"] }
- { name: web, endpoints: ["127.0.0.1:3"] }
"#;
        let document = Document::parse("edge.yaml", text).unwrap();
        let (_, plan) = Config::read(&document, &OnTrial).unwrap();

        let said = filters(&plan, document.root());

        let lines = said.lines().map(|line| {
            let words: Vec<_> = line.split("  ").map(str::trim).collect();
            let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
            words.join("|")
        });
        let expected = [
            "LISTENER|FILTER|KIND|SERVICE|TIMEOUT|NOT REACHED|TOO LATE|WRONG ANSWER|IMPOSSIBLE CHANGE|ON FAILURE",
            "edge|limits|ratelimit|policy (gRPC)|0.02s|passes|passes|passes|-|fail-open",
            "edge|auth|ext_authz|policy (gRPC)|0.25s|403|403|403|500|fail-closed",
            "edge|web|-|-|-|-|-|-|-|cannot fail",
            "edge|rewrite|ext_proc|policy (gRPC)|0.2s|502|504|502|502|fail-closed",
            "inner|some|ratelimit|policy (gRPC)|none|503 for 5 in 100|503 for 5 in 100|503 for 5 in 100|-|partly",
            "inner|watch|ext_proc|policy (gRPC)|none|500|passes|passes|-|partly",
            "inner|shadow|ext_authz|web (HTTP)|1s|passes|passes|passes|500|fail-open",
            "`auth`: an answer that says it is an error may bring a status of its own",
            "`rewrite`: a processor that ends its stream without an error has done with it: the rest passes",
            "`watch`: it only looks on: nothing waits for its answers, and none is looked at",
            "`shadow`: it is off but on routes with settings for it",
            "`shadow`: it is in shadow mode: denied requests pass too",
            "edge.yaml:22:30: `rewrite` is fail-open here",
            "edge.yaml:22:84: `auth` is off here",
        ];
        assert_eq!(lines.collect::<Vec<_>>(), expected, "{said}");
    }

    #[test]
    fn without_filters_there_is_nothing_that_fails() {
        let text = "listeners: [{ name: a, address: '127.0.0.1:0' }]\n\
            routes: [{ match: { prefix: / }, direct_response: { status: 200 } }]\n";
        let document = Document::parse("edge.yaml", text).unwrap();
        let (_, plan) = Config::read(&document, &OnTrial).unwrap();

        assert_eq!(filters(&plan, document.root()), "no listener has filters\n");
    }
}
