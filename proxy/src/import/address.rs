//! Envoy's `Address` as our text: `host:port` or `unix:/path`.

use attache_service::config::Node;

use super::{
    block::Block,
    dropped::{Effect, Findings},
};

/// Reads an address; `None` after it was dropped.
pub(super) fn text(node: &Node, found: &mut Findings) -> Option<String> {
    let mut address = Block::open(node, found)?;
    let text = if let Some(mut socket) = address.block("socket_address", found) {
        socket.drop(
            "resolver_name",
            Effect::Behaviour,
            "names are looked up by the system",
            found,
        );
        if let Some(protocol) = socket.text("protocol")
            && protocol != "TCP"
        {
            found.push(node, Effect::Behaviour, "only TCP is carried");
            return None;
        }
        let host = socket.text("address");
        let port = socket.text("port_value");
        socket.finish(Effect::Behaviour, found);
        match (host, port) {
            (Some(host), Some(port)) if host.contains(':') => Some(format!("[{host}]:{port}")),
            (Some(host), Some(port)) => Some(format!("{host}:{port}")),
            _ => {
                found.push(
                    node,
                    Effect::Behaviour,
                    "an address needs a host and a port",
                );
                None
            }
        }
    } else if let Some(mut pipe) = address.block("pipe", found) {
        let path = pipe.text("path").map(|path| format!("unix:{path}"));
        pipe.finish(Effect::Behaviour, found);
        path
    } else {
        None
    };
    address.finish(Effect::Behaviour, found);
    text
}
