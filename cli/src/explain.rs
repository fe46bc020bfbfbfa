//! `attache check --explain`: what each filter of each listener does when its service fails.

use std::{collections::BTreeSet, fmt::Write as _};

use attache_ext_authz::client::plan::DEFAULT_TIMEOUT;
use attache_filter::on_failure::{AskedBy, OnFailure};
use attache_proxy::{Plan, filters::Policy};
use attache_service::config::{Node, Value, format_duration};

const COLUMNS: usize = 10;

const HEAD: [&str; COLUMNS] = [
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
    let mut filters = Filters::default();
    let embedded = embedded(root);
    let planned = plan.listeners.iter().map(|listener| {
        let names = listener.filters.iter().map(|name| &**name);
        (&*listener.name, names.collect::<Vec<&str>>())
    });
    let waiting = waiting(plan, root);
    for (listener, names) in planned.chain(waiting.iter().cloned()) {
        for name in names {
            let Some(policy) = plan.filters.get(name) else {
                continue;
            };
            rows.push(row(listener, name, &**policy, &embedded));
            if !filters.known.insert(name) {
                continue;
            }
            if policy.is_off() {
                filters.off.insert(name);
                notes.push(format!(
                    "`{name}`: off, except on routes that have settings for it"
                ));
            }
            let told = policy.on_failure().map(|told| told.notes);
            let told = told.into_iter().flatten();
            notes.extend(told.map(|note| format!("`{name}`: {note}")));
        }
    }
    let mut text = match filters.known.is_empty() {
        true => "no listener of this file has filters\n".to_owned(),
        false => {
            routes(root, &filters, &mut notes);
            table(&rows)
        }
    };
    notes.extend(waiting.iter().map(|(listener, _)| {
        format!(
            "listener `{listener}`: its routes come from the control plane, and may change this"
        )
    }));
    for note in notes {
        text.push_str(&note);
        text.push('\n');
    }
    text
}

/// The filters that some listener has.
#[derive(Default)]
struct Filters<'p> {
    known: BTreeSet<&'p str>,
    /// Those that are off, except on routes that have settings for them.
    off: BTreeSet<&'p str>,
}

/// The listeners that wait for their routes, each with its filters: they are in no plan yet.
fn waiting<'n>(plan: &Plan, root: &'n Node) -> Vec<(&'n str, Vec<&'n str>)> {
    let listeners = root.get("listeners").and_then(Node::as_seq);
    let listeners = listeners.unwrap_or_default().iter();
    let waits = listeners.filter_map(|listener| {
        let name = listener.get("name").and_then(Node::text)?;
        let is_planned = plan.listeners.iter().any(|planned| &*planned.name == name);
        let filters = listener.get("filters").and_then(Node::as_seq);
        let filters = filters.unwrap_or_default().iter().filter_map(Node::text);
        (!is_planned).then(|| (name, filters.collect()))
    });
    waits.collect()
}

/// The clusters that are services in the proxy's own process.
fn embedded(root: &Node) -> BTreeSet<&str> {
    let clusters = root.get("clusters").and_then(Node::as_seq);
    let clusters = clusters.unwrap_or_default().iter();
    clusters
        .filter(|cluster| cluster.get("embedded").is_some_and(|one| !one.is_null()))
        .filter_map(|cluster| cluster.get("name").and_then(Node::text))
        .collect()
}

fn row(
    listener: &str,
    name: &str,
    policy: &dyn Policy,
    embedded: &BTreeSet<&str>,
) -> [String; COLUMNS] {
    let Some(told) = policy.on_failure() else {
        let mut row = ["-"; COLUMNS];
        let [of, filter, .., mode] = &mut row;
        (*of, *filter, *mode) = (listener, name, "cannot fail");
        return row.map(str::to_owned);
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
    let way = match asked_by {
        _ if embedded.contains(&*cluster) => "embedded",
        AskedBy::Grpc => "gRPC",
        AskedBy::Http => "HTTP",
    };
    [
        listener.to_owned(),
        name.to_owned(),
        kind.to_owned(),
        format!("{cluster} ({way})"),
        timeout.map_or_else(|| "none".to_owned(), format_duration),
        not_reached.to_string(),
        too_late.to_string(),
        wrong_answer.to_string(),
        impossible_change.map_or_else(|| "-".to_owned(), |outcome| outcome.to_string()),
        mode,
    ]
}

fn table(rows: &[[String; COLUMNS]]) -> String {
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
fn routes(node: &Node, filters: &Filters<'_>, notes: &mut Vec<String>) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                let settings = entry
                    .value
                    .as_map()
                    .filter(|_| &*entry.key.name == "typed_per_filter_config");
                for setting in settings.unwrap_or_default() {
                    let name = &*setting.key.name;
                    let is_off = filters.off.contains(name);
                    if filters.known.contains(name)
                        && let Some(change) = change(&setting.value, is_off)
                    {
                        notes.push(format!("{}: `{name}` {change} here", setting.key.span));
                    }
                }
                routes(&entry.value, filters, notes);
            }
        }
        Value::Seq(items) => {
            for item in items {
                routes(item, filters, notes);
            }
        }
        _ => {}
    }
}

/// What settings change of a filter, which may be off without them.
fn change(settings: &Node, is_off: bool) -> Option<String> {
    let at = |way: &[&str]| {
        let node = way.iter().try_fold(settings, |node, name| node.get(name));
        node.and_then(Node::text)
    };
    if at(&["disabled"]) == Some("true") {
        return Some("is off".to_owned());
    }
    let mut changes = Vec::new();
    if is_off {
        changes.push("is on".to_owned());
    }
    match at(&["overrides", "failure_mode_allow"]) {
        Some("true") => changes.push("is fail-open".to_owned()),
        Some(_) => changes.push("is fail-closed".to_owned()),
        None => {}
    }
    for mode in ["request_body_mode", "response_body_mode"] {
        if at(&["overrides", "processing_mode", mode]) == Some("FULL_DUPLEX_STREAMED") {
            let what = mode.trim_end_matches("_body_mode");
            changes.push(format!("has no message timeout for a {what}"));
        }
    }
    changes.extend(other_service(&at));
    (!changes.is_empty()).then(|| changes.join(", and "))
}

/// Which other service is asked.
fn other_service<'n>(at: &dyn Fn(&[&str]) -> Option<&'n str>) -> Option<String> {
    const GRPC: [&str; 2] = ["envoy_grpc", "cluster_name"];
    let of = |block: &str, service: &str, way: &[&str]| at(&[&[block, service][..], way].concat());
    if let Some(cluster) = of("overrides", "grpc_service", &GRPC) {
        return Some(format!("asks `{cluster}`"));
    }
    let grpc = of("check_settings", "grpc_service", &GRPC);
    let grpc = grpc.map(|cluster| (cluster, of("check_settings", "grpc_service", &["timeout"])));
    let http = || {
        let uri = |field| of("check_settings", "http_service", &["server_uri", field]);
        Some((uri("cluster")?, uri("timeout")))
    };
    let (cluster, timeout) = grpc.or_else(http)?;
    let timeout = timeout.map_or_else(|| format_duration(DEFAULT_TIMEOUT), str::to_owned);
    Some(format!("asks `{cluster}` with a timeout of {timeout}"))
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
  rewrite: { ext_proc: { grpc_service: { envoy_grpc: { cluster_name: policy } }, status_on_error: { code: 502 }, processing_mode: { response_body_mode: FULL_DUPLEX_STREAMED, response_trailer_mode: SEND } } }
  watch: { ext_proc: { grpc_service: { envoy_grpc: { cluster_name: policy } }, observability_mode: true } }
routes:
- match: { prefix: /open }
  route: { cluster: web }
  typed_per_filter_config: { rewrite: { overrides: { failure_mode_allow: true } }, auth: { disabled: true } }
- match: { prefix: / }
  route: { cluster: web }
  typed_per_filter_config:
    rewrite: { overrides: { processing_mode: { response_header_mode: SKIP } } }
    shadow: { check_settings: { context_extensions: { a: b } } }
- match: { prefix: /other }
  route: { cluster: web }
  typed_per_filter_config:
    auth: { check_settings: { grpc_service: { envoy_grpc: { cluster_name: near } } } }
    shadow: { check_settings: { http_service: { server_uri: { uri: "http://b", cluster: web, timeout: 3s } } } }
    rewrite: { overrides: { grpc_service: { envoy_grpc: { cluster_name: near } }, processing_mode: { request_body_mode: FULL_DUPLEX_STREAMED, request_trailer_mode: SEND } } }
clusters:
- { name: policy, http2: {}, endpoints: ["127.0.0.1:2"] }
- { name: near, http2: {}, endpoints: ["127.0.0.1:4"] }
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
            "edge|auth|ext_authz|policy (gRPC)|0.25s|403|403|403|503|fail-closed",
            "edge|web|-|-|-|-|-|-|-|cannot fail",
            "edge|rewrite|ext_proc|policy (gRPC)|0.2s|502|504|502|502|fail-closed",
            "inner|some|ratelimit|policy (gRPC)|none|503 for 5 in 100|503 for 5 in 100|503 for 5 in 100|-|partly",
            "inner|watch|ext_proc|policy (gRPC)|none|500|passes|500|-|partly",
            "inner|shadow|ext_authz|web (HTTP)|1s|passes|passes|passes|500|fail-open",
            "`auth`: an answer that says it is an error may bring a status of its own",
            "`auth`: a change of the reply to the client that cannot be made, and more headers than the limits allow, are answered with 500",
            "`rewrite`: a processor that ends its stream without an error is done: the rest passes",
            "`rewrite`: a full-duplex direction has no message timeout: silence of the route's `idle_timeout`, 300s by default, ends it",
            "`rewrite`: a stream that ends while it holds pieces of a full-duplex body is a failure that no failure mode lets pass",
            "`watch`: it only looks on: nothing waits for its answers, and what they say is ignored; a broken stream or message counts as not reached",
            "`shadow`: off, except on routes that have settings for it",
            "`shadow`: an answer with a status from 500 to 599 counts as not reached",
            "`shadow`: an answer with a status that no client can be given is answered with 500, in any failure mode",
            "`shadow`: it is in shadow mode: denied requests pass too",
            "edge.yaml:22:30: `rewrite` is fail-open here",
            "edge.yaml:22:84: `auth` is off here",
            "edge.yaml:27:5: `shadow` is on here",
            "edge.yaml:31:5: `auth` asks `near` with a timeout of 0.2s here",
            "edge.yaml:32:5: `shadow` is on, and asks `web` with a timeout of 3s here",
            "edge.yaml:33:5: `rewrite` has no message timeout for a request, and asks `near` here",
        ];
        assert_eq!(lines.collect::<Vec<_>>(), expected, "{said}");
    }

    // A service in the same process needs a runtime.
    #[tokio::test]
    async fn listeners_whose_routes_are_still_to_come_are_told_about_too() {
        let text = r#"
listeners:
- { name: edge, address: "127.0.0.1:0", filters: [rewrite], route_config_name: web }
- { name: plain, address: "127.0.0.1:1", route_config_name: web }
filters:
  rewrite: { ext_proc: { grpc_service: { envoy_grpc: { cluster_name: demo } } } }
xds: { cluster: control }
clusters:
- { name: demo, embedded: { ext_proc: demo } }
- { name: control, http2: {}, endpoints: ["127.0.0.1:2"] }
"#;
        let document = Document::parse("edge.yaml", text).unwrap();
        let (_, plan) = Config::read(&document, &OnTrial).unwrap();

        let said = filters(&plan, document.root());

        let row = said.lines().nth(1).unwrap();
        assert!(row.starts_with("edge "), "{said}");
        assert!(row.contains("demo (embedded)"), "{said}");
        for name in ["edge", "plain"] {
            let note = format!("listener `{name}`: its routes come from the control plane");
            assert!(said.contains(&note), "{said}");
        }
    }

    #[test]
    fn without_filters_there_is_nothing_that_fails() {
        let text = "listeners: [{ name: a, address: '127.0.0.1:0' }]\n\
            routes: [{ match: { prefix: / }, direct_response: { status: 200 } }]\n";
        let document = Document::parse("edge.yaml", text).unwrap();
        let (_, plan) = Config::read(&document, &OnTrial).unwrap();

        assert_eq!(
            filters(&plan, document.root()),
            "no listener of this file has filters\n"
        );
    }
}
