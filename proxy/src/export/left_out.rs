//! What a configuration says that Envoy has no word for.

use std::{collections::BTreeSet, time::Duration};

use attache_service::config::{Document, Node, Spanned, parse_duration};

use crate::{
    import::{Dropped, Effect, Findings},
    plan::Limits,
};

const POLICY_CALLS: &str = "%POLICY_CALLS%";

/// Fields of the whole file.
const FILE: [(&[&str], Effect, &str); 8] = [
    (
        &["workers"],
        Effect::Nothing,
        "it is `--concurrency` of Envoy's command line",
    ),
    (&["live_page"], Effect::Nothing, "Envoy has no live page"),
    (
        &["drain"],
        Effect::Behaviour,
        "it is `--drain-time-s` and `--parent-shutdown-time-s` of Envoy's command line",
    ),
    (
        &["overload", "max_memory_share"],
        Effect::Protection,
        "Envoy has it from the cgroup by a monitor of its own: write `max_memory`",
    ),
    (
        &["overload", "resume"],
        Effect::Behaviour,
        "Envoy takes requests again below the threshold from which it refuses them",
    ),
    (
        &["overload", "max_memory"],
        Effect::Nothing,
        "Envoy looks at its heap, not at resident memory",
    ),
    (
        &["xds", "cache"],
        Effect::Behaviour,
        "Envoy keeps nothing over a restart",
    ),
    (
        &["xds", "initial_metadata"],
        Effect::Behaviour,
        "these may be secrets: add them to `grpc_services`",
    ),
];

/// Fields of a listener.
const LISTENER: [(&[&str], Effect, &str); 3] = [
    (
        &["limits", "max_connections"],
        Effect::Protection,
        "Envoy has it among its runtime keys: `envoy.resource_limits.listener.NAME.connection_limit`",
    ),
    (
        &["limits", "max_requests"],
        Effect::Protection,
        "Envoy bounds requests in flight by cluster, with circuit breakers",
    ),
    (
        &["limits", "max_resets"],
        Effect::Behaviour,
        "Envoy bounds resets by runtime keys, with another count",
    ),
];

/// Fields of a cluster.
const CLUSTER: [(&[&str], Effect, &str); 2] = [
    (
        &["peak_ewma_lb_config"],
        Effect::Nothing,
        "Envoy has no peak EWMA",
    ),
    (
        &["original_dst", "max_endpoints"],
        Effect::Behaviour,
        "Envoy keeps as many endpoints as are asked for",
    ),
];

/// What the bootstrap that [`envoy`](super::envoy) makes of a configuration does not say, or says
/// otherwise, by place. `document` is the configuration's.
pub fn left_out(document: &Document) -> Vec<Dropped> {
    let root = document.root();
    let mut found = Findings::default();
    fields(root, &FILE, &mut found);
    for listener in list(root, "listeners") {
        fields(listener, &LISTENER, &mut found);
        silence(listener, &mut found);
        if let Some(logs) = listener.get("access_log") {
            let logs = logs.as_seq().unwrap_or(std::slice::from_ref(logs));
            logs.iter().for_each(|log| access_log(log, &mut found));
        }
    }
    for cluster in list(root, "clusters") {
        fields(cluster, &CLUSTER, &mut found);
        self::cluster(cluster, &mut found);
    }
    found.sorted(root)
}

fn list<'n>(node: &'n Node, name: &str) -> &'n [Node] {
    node.get(name).and_then(Node::as_seq).unwrap_or_default()
}

fn fields(node: &Node, known: &[(&[&str], Effect, &str)], found: &mut Findings) {
    for (path, effect, why) in known {
        let Some((last, way)) = path.split_last() else {
            continue;
        };
        let inner = way.iter().try_fold(node, |node, name| node.get(name));
        let entry = inner.and_then(|node| node.entry(last));
        if let Some(entry) = entry.filter(|entry| !entry.value.is_null()) {
            found.push(&entry.key, *effect, *why);
        }
    }
}

/// There are two bounds on silence here, and one in Envoy.
fn silence(listener: &Node, found: &mut Findings) {
    let limits = listener.get("limits");
    let of = |name: &str| limits.and_then(|limits| limits.entry(name));
    let defaults = Limits::default();
    let length = |name: &str, default: Duration| {
        let text = of(name).and_then(|entry| entry.value.text());
        text.and_then(parse_duration).unwrap_or(default)
    };
    let body = length("body_timeout", defaults.body_timeout);
    let write = length("write_timeout", defaults.write_timeout);
    let shorter = if body < write {
        "body_timeout"
    } else {
        "write_timeout"
    };
    let written = of(shorter).or(of("body_timeout")).or(of("write_timeout"));
    if let Some(entry) = written.filter(|_| body != write) {
        let why = "Envoy has one bound for both, `stream_idle_timeout`: the longer one counts";
        found.push(&entry.key, Effect::Behaviour, why);
    }
}

fn access_log(log: &Node, found: &mut Findings) {
    if let Some(by) = log.get("sample").and_then(|sample| sample.get("by"))
        && by.text() == Some("trace_id")
    {
        found.push(by, Effect::Behaviour, "shares go by request ids in Envoy");
    }
    let mut written = false;
    for name in ["text_format", "json_format"] {
        let Some(entry) = log.entry(name).filter(|entry| !entry.value.is_null()) else {
            continue;
        };
        written = true;
        if entry.value.to_json().to_string().contains(POLICY_CALLS) {
            let why = "Envoy does not know what its calls to policies took";
            found.push(&entry.key, Effect::Behaviour, why);
        }
    }
    let is_text = log.get("format").and_then(Node::text) == Some("envoy");
    if !written && !is_text {
        let why = "the lines say nothing of calls to policies there";
        found.push(log, Effect::Nothing, why);
    }
}

fn cluster(cluster: &Node, found: &mut Findings) {
    let policy = cluster.get("lb_policy");
    match policy.and_then(|policy| Some((policy, policy.text()?))) {
        Some((at, "PEAK_EWMA")) => found.push(
            at,
            Effect::Behaviour,
            "Envoy has no peak EWMA: endpoints are chosen by `LEAST_REQUEST`",
        ),
        Some((at, "RING_HASH" | "MAGLEV")) => found.push(
            at,
            Effect::Nothing,
            "the same keys find other endpoints in Envoy than here",
        ),
        _ => {}
    }
    if let Some(allowed) = cluster
        .get("original_dst")
        .and_then(|to| to.entry("allowed"))
    {
        let nets: BTreeSet<_> = allowed
            .value
            .as_seq()
            .unwrap_or_default()
            .iter()
            .filter_map(Node::text)
            .collect();
        let (effect, why) = match ["0.0.0.0/0", "::/0"].iter().all(|net| nets.contains(net)) {
            true => (Effect::Nothing, "any address is allowed there too"),
            false => (
                Effect::Protection,
                "Envoy goes to whatever address is named: only let those name one who may choose",
            ),
        };
        found.push(&allowed.key, effect, why);
    }
    names(cluster, found);
}

/// Without `sni` each endpoint is asked for its own name here, and all for that of the first there.
fn names(cluster: &Node, found: &mut Findings) {
    let Some(tls) = cluster
        .entry("tls")
        .filter(|tls| tls.value.get("sni").is_none())
    else {
        return;
    };
    let host = |endpoint: &Node| {
        let named = endpoint.get("hostname").and_then(Node::text);
        let address = endpoint.get("address").unwrap_or(endpoint).text();
        let host = address
            .and_then(|text| text.rsplit_once(':'))
            .map(|(host, _)| host);
        named.or(host).map(str::to_owned)
    };
    let hosts: BTreeSet<_> = list(cluster, "endpoints").iter().filter_map(host).collect();
    if hosts.len() > 1 {
        let why = "Envoy asks all endpoints for the name of the first one: write `sni`";
        found.push(tls.key.span(), Effect::Behaviour, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Vec<(Effect, String)> {
        let document = Document::parse("attache.yaml", text).unwrap();
        let all = left_out(&document).into_iter();
        all.filter(|one| one.effect != Effect::Nothing)
            .map(|one| (one.effect, one.path))
            .collect()
    }

    #[test]
    fn what_envoy_has_no_word_for_is_listed_with_its_place_and_what_that_means() {
        use Effect::{Behaviour, Protection};
        for (text, effect, path) in [
            (
                "clusters: [{ name: a, original_dst: { http_header_name: to, allowed: [10.0.0.0/8] } }]",
                Protection,
                "clusters[0].original_dst.allowed",
            ),
            (
                "clusters: [{ name: a, lb_policy: PEAK_EWMA }]",
                Behaviour,
                "clusters[0].lb_policy",
            ),
            (
                "clusters: [{ name: a, tls: {}, endpoints: [\"a.test:1\", { address: \"b.test:1\" }] }]",
                Behaviour,
                "clusters[0].tls",
            ),
            (
                "listeners: [{ limits: { max_requests: 1 } }]",
                Protection,
                "listeners[0].limits.max_requests",
            ),
            (
                "listeners: [{ limits: { max_connections: 1 } }]",
                Protection,
                "listeners[0].limits.max_connections",
            ),
            (
                "listeners: [{ limits: { max_resets: 1 } }]",
                Behaviour,
                "listeners[0].limits.max_resets",
            ),
            (
                "listeners: [{ limits: { body_timeout: 1s } }]",
                Behaviour,
                "listeners[0].limits.body_timeout",
            ),
            (
                "listeners: [{ limits: { body_timeout: 9s, write_timeout: 8s } }]",
                Behaviour,
                "listeners[0].limits.write_timeout",
            ),
            (
                "listeners: [{ access_log: { sample: { rate: 0.5, by: trace_id } } }]",
                Behaviour,
                "listeners[0].access_log.sample.by",
            ),
            (
                "listeners: [{ access_log: [{ json_format: { calls: \"%POLICY_CALLS%\" } }] }]",
                Behaviour,
                "listeners[0].access_log[0].json_format",
            ),
            (
                "overload: { max_memory_share: 0.5 }",
                Protection,
                "overload.max_memory_share",
            ),
            (
                "overload: { max_memory: 1GiB, resume: 0.5 }",
                Behaviour,
                "overload.resume",
            ),
            ("xds: { cluster: a, cache: f }", Behaviour, "xds.cache"),
            ("drain: { min: 5s }", Behaviour, "drain"),
        ] {
            let said = said(text);
            assert_eq!(said, [(effect, path.to_owned())], "{text}");
        }
    }

    #[test]
    fn what_envoy_says_in_its_own_words_is_not_listed() {
        let text = "
listeners: [{ limits: { body_timeout: 9s, write_timeout: 9s, max_headers: 5 }, access_log: { format: envoy, sample: 0.5 } }]
clusters: [{ name: a, lb_policy: RANDOM, original_dst: { http_header_name: to, allowed: [0.0.0.0/0, \"::/0\"] } }, { name: b, tls: { sni: c }, endpoints: [\"a.test:1\", \"b.test:1\"] }]
overload: { max_memory: 1GiB }
";
        assert_eq!(said(text), []);
    }
}
