//! Domains of virtual hosts: the port of a host never counts here.

use std::collections::BTreeSet;

use attache_service::config::{Node, Value};

use super::{
    dropped::{Effect, Findings},
    output,
};

/// Says once for all virtual hosts of a table that the ports of their domains are left out.
pub(super) fn say(hosts: &[Node], found: &mut Findings) {
    let of = |host: &Node| {
        host.get("domains")
            .and_then(Node::as_seq)
            .unwrap_or_default()
            .to_vec()
    };
    let all: Vec<_> = hosts.iter().flat_map(of).collect();
    let has_port = |domain: &&Node| domain.text().is_some_and(|text| bare(text).is_some());
    // Beside the same domain without a port, it says nothing more.
    let alone = |domain: &&Node| {
        let text = domain.text().and_then(bare).unwrap_or_default();
        all.iter().all(|other| other.text() != Some(text))
    };
    let mut with_port = all.iter().filter(has_port);
    let Some(first) = with_port.clone().next() else {
        return;
    };
    match with_port.find(alone) {
        Some(alone) => found.push(
            alone,
            Effect::Behaviour,
            "the ports of hosts never count here: domains are left without theirs",
        ),
        None => found.push(
            first,
            Effect::Nothing,
            "the ports of hosts never count here, and the domains stand there without them too",
        ),
    }
}

/// The domains of one host without ports, each once; those that were `seen` in another host are
/// that one's.
pub(super) fn without_ports(
    domains: &Node,
    seen: &mut BTreeSet<String>,
    found: &mut Findings,
) -> Node {
    let mut own = BTreeSet::new();
    let mut left = domains.clone();
    if let Value::Seq(domains) = &mut left.value {
        domains.retain_mut(|domain| {
            let Some(text) = domain.text() else {
                return true;
            };
            let name = bare(text).unwrap_or(text).to_owned();
            let lower = name.to_ascii_lowercase();
            if seen.contains(&lower) {
                let why = format!("another virtual host has `{name}` already");
                found.push(domain, Effect::Protection, why);
                return false;
            }
            *domain = output::text_at(name, &domain.span);
            own.insert(lower)
        });
    }
    seen.extend(own);
    left
}

/// A domain without its port, where it has one.
fn bare(domain: &str) -> Option<&str> {
    let (name, port) = domain.rsplit_once(':')?;
    let is_port = port == "*" || !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    // The end of an address of IPv6 is not a port.
    let is_whole = !name.contains(':') || name.ends_with(']');
    (is_port && is_whole && !name.is_empty()).then_some(name)
}
