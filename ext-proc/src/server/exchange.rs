//! What is known of an exchange beside its messages.

use std::collections::BTreeMap;

use attache_filter::json;
use attache_proto::core;
use attache_service::trace::Trace;
use http::HeaderMap;
use prost_types::{Any, Struct};
use serde::{Serialize, de::DeserializeOwned};

/// What a proxy tells beside the messages, and what it is told: the metadata of the gRPC call,
/// attributes, dynamic metadata.
#[derive(Debug, Default)]
pub struct Exchange(Option<Box<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    call: HeaderMap,
    attributes: Struct,
    metadata: core::Metadata,
    outgoing: Outgoing,
    observed: bool,
}

/// Dynamic metadata on its way to the proxy, which takes the namespaces that its
/// `metadata_options.receiving_namespaces` name.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Outgoing {
    pub(super) untyped: Struct,
    pub(super) typed: BTreeMap<String, Any>,
}

/// A value that dynamic metadata cannot hold.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// It has no JSON form.
    #[error("metadata `{namespace}`: {source}")]
    Json {
        /// The namespace.
        namespace: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Proxies ignore a namespace that is no object.
    #[error("metadata `{0}` is not an object")]
    NotAnObject(String),
}

impl Exchange {
    pub(super) fn of_call(call: HeaderMap) -> Self {
        let inner = Inner {
            call,
            ..Inner::default()
        };
        Self(Some(Box::new(inner)))
    }

    /// The metadata of the gRPC call: the filter's `initial_metadata`, trace headers. Where a
    /// proxy puts `x-request-id` and the like.
    pub fn call(&self) -> Option<&HeaderMap> {
        Some(&self.0.as_ref()?.call)
    }

    /// The trace that the exchange belongs to, if the proxy says so.
    pub fn trace(&self) -> Option<Trace<'_>> {
        Trace::of_call(self.call()?)
    }

    /// An attribute, such as `request.id` or `source.address`, of those that the filter sends
    /// (`request_attributes`, `response_attributes`); `None` when it is not there or of another
    /// type.
    pub fn attribute<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let value = self.0.as_ref()?.attributes.fields.get(name)?;
        serde_json::from_value(json::value(value)).ok()
    }

    /// All attributes, as JSON.
    pub fn attributes(&self) -> serde_json::Value {
        self.0.as_ref().map_or_else(
            || json::object(&Struct::default()),
            |inner| json::object(&inner.attributes),
        )
    }

    /// The request's dynamic metadata of a namespace that the filter forwards
    /// (`forwarding_namespaces.untyped`), as it was with the last message; `None` when it is not
    /// there or of another type.
    pub fn metadata<T: DeserializeOwned>(&self, namespace: &str) -> Option<T> {
        let metadata = &self.0.as_ref()?.metadata.filter_metadata;
        serde_json::from_value(json::object(metadata.get(namespace)?)).ok()
    }

    /// Typed metadata of a namespace that the filter forwards (`forwarding_namespaces.typed`).
    pub fn typed_metadata(&self, namespace: &str) -> Option<&Any> {
        let metadata = &self.0.as_ref()?.metadata;
        metadata.typed_filter_metadata.get(namespace)
    }

    /// Sets dynamic metadata of the request, an object, with the reply to this part. A proxy
    /// takes it if the filter receives the namespace (`receiving_namespaces.untyped`).
    ///
    /// # Errors
    /// When `value` is no JSON object.
    pub fn set_metadata<T: Serialize + ?Sized>(
        &mut self,
        namespace: &str,
        value: &T,
    ) -> Result<(), MetadataError> {
        self.outgoing().set(namespace, value)
    }

    /// Sets typed metadata of the request, with the reply to this part
    /// (`receiving_namespaces.typed`).
    pub fn set_typed_metadata(&mut self, namespace: impl Into<String>, value: Any) {
        self.outgoing().set_typed(namespace, value);
    }

    /// Whether the proxy only lets observe (`observability_mode`): nothing that is changed has an
    /// effect.
    pub fn is_observed(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.observed)
    }

    fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.0.get_or_insert_default().outgoing
    }

    pub(super) fn take_outgoing(&mut self) -> Option<Outgoing> {
        let inner = self.0.as_mut()?;
        (!inner.outgoing.is_empty()).then(|| std::mem::take(&mut inner.outgoing))
    }

    pub(super) fn learn(
        &mut self,
        attributes: Vec<Struct>,
        metadata: Option<core::Metadata>,
        observed: bool,
    ) {
        if attributes.is_empty() && metadata.is_none() && !observed {
            return;
        }
        let inner = self.0.get_or_insert_default();
        for more in attributes {
            inner.attributes.fields.extend(more.fields);
        }
        if let Some(metadata) = metadata {
            inner.metadata = metadata;
        }
        inner.observed |= observed;
    }
}

impl Outgoing {
    /// Sets the metadata of a namespace: an object.
    ///
    /// # Errors
    /// When `value` is no JSON object.
    pub fn set<T: Serialize + ?Sized>(
        &mut self,
        namespace: &str,
        value: &T,
    ) -> Result<(), MetadataError> {
        let value = serde_json::to_value(value).map_err(|source| MetadataError::Json {
            namespace: namespace.to_owned(),
            source,
        })?;
        if !value.is_object() {
            return Err(MetadataError::NotAnObject(namespace.to_owned()));
        }
        self.untyped
            .fields
            .insert(namespace.to_owned(), json::to_value(value));
        Ok(())
    }

    /// Sets the typed metadata of a namespace.
    pub fn set_typed(&mut self, namespace: impl Into<String>, value: Any) {
        self.typed.insert(namespace.into(), value);
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.untyped.fields.is_empty() && self.typed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use prost_types::value::Kind;
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_goes_out_and_comes_back_as_it_was() {
        let value = json!({"a": [1, "x", null, true, 0.5], "b": {"c": {}}});
        let mut exchange = Exchange::default();
        exchange.set_metadata("ns", &value).unwrap();
        assert!(matches!(
            exchange.set_metadata("ns", &1),
            Err(MetadataError::NotAnObject(_))
        ));

        let outgoing = exchange.take_outgoing().unwrap();
        assert!(exchange.take_outgoing().is_none());
        let Some(Kind::StructValue(inner)) = outgoing.untyped.fields["ns"].kind.clone() else {
            panic!();
        };
        let metadata = core::Metadata {
            filter_metadata: [("ns".to_owned(), inner)].into(),
            ..core::Metadata::default()
        };
        exchange.learn(Vec::new(), Some(metadata), false);
        assert_eq!(exchange.metadata::<serde_json::Value>("ns"), Some(value));
        assert_eq!(exchange.metadata::<serde_json::Value>("other"), None);
    }

    #[test]
    fn attributes_are_read_as_the_type_that_is_wanted() {
        let fields = [
            ("request.size".to_owned(), json::to_value(json!(5))),
            ("request.id".to_owned(), json::to_value(json!("r"))),
        ];
        let mut exchange = Exchange::default();
        exchange.learn(
            vec![Struct {
                fields: fields.into(),
            }],
            None,
            false,
        );

        assert_eq!(exchange.attribute::<u64>("request.size"), Some(5));
        assert_eq!(
            exchange.attribute::<String>("request.id").as_deref(),
            Some("r")
        );
        assert_eq!(exchange.attribute::<u64>("request.id"), None);
        assert_eq!(
            exchange.attributes(),
            json!({"request.id": "r", "request.size": 5})
        );
    }
}
