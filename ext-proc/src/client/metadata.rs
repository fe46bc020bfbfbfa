//! Dynamic metadata: what a processor is told of it, and what it adds.

use attache_filter::RequestContext;
use attache_proto::{core::Metadata, ext_proc::ProcessingResponse};
use bytes::Bytes;
use prost::Message as _;
use prost_types::{Struct, value::Kind};

use super::{config, exchange::Terms};

/// Which namespaces of dynamic metadata go to the processor, and which come from it
/// (`metadata_options`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MetadataRules {
    /// Namespaces that the processor is shown.
    pub forward: Namespaces,
    /// Namespaces that the processor may set.
    pub receive: Namespaces,
}

/// Namespaces of dynamic metadata by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespaces {
    /// Those that hold structs.
    pub untyped: Vec<String>,
    /// Those that hold messages of a type.
    pub typed: Vec<String>,
}

impl Namespaces {
    fn plan(raw: &config::MetadataNamespaces) -> Self {
        Self {
            untyped: raw.untyped.clone(),
            typed: raw.typed.clone(),
        }
    }

    fn is_empty(&self) -> bool {
        self.untyped.is_empty() && self.typed.is_empty()
    }
}

impl MetadataRules {
    /// These rules with what a block of settings says instead: each list it has replaces ours.
    pub(super) fn replaced_by(&self, raw: &config::MetadataOptions) -> Self {
        let list = |raw: &Option<config::MetadataNamespaces>, ours: &Namespaces| {
            raw.as_ref().map_or_else(|| ours.clone(), Namespaces::plan)
        };
        Self {
            forward: list(&raw.forwarding_namespaces, &self.forward),
            receive: list(&raw.receiving_namespaces, &self.receive),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.forward.is_empty() && self.receive.is_empty()
    }
}

/// The encoded `Metadata` that goes with a message; no bytes when there is none.
pub(super) fn forward(terms: &Terms, context: &RequestContext) -> Bytes {
    let rules = terms.extras.metadata.as_deref();
    let Some(namespaces) = rules
        .map(|rules| &rules.forward)
        .filter(|namespaces| !namespaces.is_empty())
    else {
        return Bytes::new();
    };
    let mut metadata = Metadata::default();
    for name in &namespaces.untyped {
        if let Some(fields) = context.metadata(name) {
            metadata.filter_metadata.insert(name.clone(), fields);
        }
    }
    for name in &namespaces.typed {
        if let Some(value) = context.typed_metadata(name) {
            metadata.typed_filter_metadata.insert(name.clone(), value);
        }
    }
    metadata.encode_to_vec().into()
}

/// Takes in what a reply says of dynamic metadata. What is of no namespace that the processor
/// may set is left out; what is no struct makes its namespace, and nothing in it, as in Envoy.
pub(super) fn receive(terms: &Terms, context: &RequestContext, reply: &ProcessingResponse) {
    let Some(rules) = terms.extras.metadata.as_deref() else {
        return;
    };
    if let Some(namespaces) = &reply.dynamic_metadata {
        for (name, value) in &namespaces.fields {
            if rules.receive.untyped.contains(name) {
                let fields = match &value.kind {
                    Some(Kind::StructValue(fields)) => fields.clone(),
                    _ => Struct::default(),
                };
                context.merge_metadata(name, fields);
            }
        }
    }
    for (name, value) in &reply.typed_dynamic_metadata {
        if rules.receive.typed.contains(name) {
            context.set_typed_metadata(name, value.clone());
        }
    }
}
