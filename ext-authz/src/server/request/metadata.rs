//! What the proxy and its operators tell beside the request.

use attache_filter::json;
use attache_proto::core::Metadata;
use attache_service::trace::{Span, Trace};
use http::HeaderMap;
use prost_types::{Any, Struct};
use serde::de::DeserializeOwned;

use super::CheckRequestView;

impl CheckRequestView {
    /// A value from the route's `context_extensions`.
    pub fn context_extension(&self, key: &str) -> Option<&str> {
        self.attributes
            .context_extensions
            .get(key)
            .map(String::as_str)
    }

    /// Dynamic metadata of a namespace (`metadata_context_namespaces`).
    pub fn metadata(&self, namespace: &str) -> Option<&Struct> {
        untyped(self.attributes.metadata_context.as_ref(), namespace)
    }

    /// The same as a type of yours; `None` when it is not there or of another type.
    pub fn metadata_as<T: DeserializeOwned>(&self, namespace: &str) -> Option<T> {
        read(self.metadata(namespace)?)
    }

    /// Typed dynamic metadata of a namespace (`typed_metadata_context_namespaces`).
    pub fn typed_metadata(&self, namespace: &str) -> Option<&Any> {
        typed(self.attributes.metadata_context.as_ref(), namespace)
    }

    /// The route's metadata of a namespace (`route_metadata_context_namespaces`).
    pub fn route_metadata(&self, namespace: &str) -> Option<&Struct> {
        untyped(self.attributes.route_metadata_context.as_ref(), namespace)
    }

    /// The same as a type of yours; `None` when it is not there or of another type.
    pub fn route_metadata_as<T: DeserializeOwned>(&self, namespace: &str) -> Option<T> {
        read(self.route_metadata(namespace)?)
    }

    /// Typed metadata of the route (`route_typed_metadata_context_namespaces`).
    pub fn typed_route_metadata(&self, namespace: &str) -> Option<&Any> {
        typed(self.attributes.route_metadata_context.as_ref(), namespace)
    }

    /// The metadata of the gRPC call: the filter's `initial_metadata`, trace headers.
    pub fn call(&self) -> &HeaderMap {
        &self.call
    }

    /// The trace that the request belongs to, if the proxy says so.
    pub fn trace(&self) -> Option<Trace<'_>> {
        Trace::of_call(&self.call)
    }

    /// The span of this check, to say more about it or to make children of it. It is nothing
    /// unless traces are sent and this one is recorded.
    pub fn span(&self) -> &Span {
        &self.span
    }

    pub(in crate::server) fn with_span(mut self, span: Span) -> Self {
        self.span = span;
        self
    }
}

fn untyped<'a>(metadata: Option<&'a Metadata>, namespace: &str) -> Option<&'a Struct> {
    metadata?.filter_metadata.get(namespace)
}

fn typed<'a>(metadata: Option<&'a Metadata>, namespace: &str) -> Option<&'a Any> {
    metadata?.typed_filter_metadata.get(namespace)
}

fn read<T: DeserializeOwned>(fields: &Struct) -> Option<T> {
    serde_json::from_value(json::object(fields)).ok()
}
