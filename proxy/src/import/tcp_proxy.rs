//! Connections that are passed on: `TcpProxy` there, `tcp` and `tls_passthrough` here.

use attache_service::config::Node;

use super::{
    access_log,
    block::Block,
    dropped::{Effect, Findings},
    output::{self, Output},
};
use crate::config::Tcp;

/// Where connections are passed on to.
#[derive(Default)]
pub(super) struct Converted {
    /// As `tcp` holds it.
    pub(super) to: Output,
    /// The logs of these connections, which are those of the listener here.
    pub(super) logs: Option<Node>,
}

/// Reads a `TcpProxy`.
pub(super) fn convert(node: &Node, found: &mut Findings) -> Converted {
    let mut converted = Converted::default();
    let Some(mut proxy) = Block::open(node, found) else {
        return converted;
    };
    proxy.nothing(&["stat_prefix"], "metrics go by the listener's name", found);
    let logs = proxy.list("access_log");
    if !logs.is_empty() {
        converted.logs = Some(access_log::convert(logs, found));
    }
    for entry in proxy.rest() {
        if output::has_field::<Tcp>(&entry.key.name) {
            converted.to.put(&entry.key.name, entry.value.clone());
        } else {
            let why = format!("`{}` has no counterpart here", entry.key.name);
            found.push(&entry.key, Effect::Behaviour, why);
        }
    }
    converted
}
