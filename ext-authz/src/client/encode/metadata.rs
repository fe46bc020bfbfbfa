//! Dynamic metadata and metadata of the route, by the namespaces that are to be shown.

use attache_filter::RequestContext;
use prost::Message;

use super::wire::{message, text};

/// Namespaces of metadata to show.
#[derive(Debug, Clone, Copy, Default)]
pub struct Namespaces<'a> {
    /// `metadata_context_namespaces`.
    pub dynamic: &'a [String],
    /// `typed_metadata_context_namespaces`.
    pub dynamic_typed: &'a [String],
    /// `route_metadata_context_namespaces`.
    pub route: &'a [String],
    /// `route_typed_metadata_context_namespaces`.
    pub route_typed: &'a [String],
}

/// `metadata_context`: there, though it may be empty.
pub(super) fn dynamic(out: &mut Vec<u8>, context: &RequestContext, shown: Namespaces<'_>) {
    message(out, 11, |out| {
        for namespace in shown.dynamic {
            context.with_metadata(namespace, |fields| entry(out, 1, namespace, fields));
        }
        for namespace in shown.dynamic_typed {
            entry(
                out,
                2,
                namespace,
                context.typed_metadata(namespace).as_ref(),
            );
        }
    });
}

/// `route_metadata_context`: there, though it may be empty.
pub(super) fn of_route(out: &mut Vec<u8>, context: &RequestContext, shown: Namespaces<'_>) {
    message(out, 13, |out| {
        if shown.route.is_empty() && shown.route_typed.is_empty() {
            return;
        }
        let Some(route) = context.route() else { return };
        for namespace in shown.route {
            entry(out, 1, namespace, route.metadata.untyped.get(namespace));
        }
        for namespace in shown.route_typed {
            entry(out, 2, namespace, route.metadata.typed.get(namespace));
        }
    });
}

fn entry(out: &mut Vec<u8>, tag: u32, namespace: &str, value: Option<&impl Message>) {
    let Some(value) = value else { return };
    message(out, tag, |out| {
        text(out, 1, namespace.as_bytes());
        message(out, 2, |out| value.encode_raw(out));
    });
}
