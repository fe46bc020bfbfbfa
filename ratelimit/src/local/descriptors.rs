//! Descriptors by the actions that the proxy's filter takes.

use std::sync::Arc;

use attache_filter::{RequestContext, Route, attributes::Facts};
use attache_proto::common_ratelimit::{RateLimitDescriptor, rate_limit_descriptor as wire};
use attache_service::config::{Document, Errors};
use http::request::Parts;

use super::Describe;
use crate::client::{
    action::Subject,
    policy::{self, Policy},
    raw,
};

/// Descriptors by the actions of Envoy's `rate_limits`.
///
/// Actions that look at the client's address need to know it: put an
/// `Arc<`[`RequestContext`]`>` with the connection into the request's extensions, as the proxy
/// does. The same goes for routes, clusters and metadata, which other stacks mostly do not have.
///
/// ```
/// use attache_ratelimit::local::Descriptors;
///
/// let by_user = Descriptors::parse("limits.yaml", "
/// - actions: [{ request_headers: { header_name: x-user, descriptor_key: user } }]
/// ")?;
/// # Ok::<(), attache_service::config::Errors>(())
/// ```
#[derive(Debug, Clone)]
pub struct Descriptors(Vec<Arc<Policy>>);

impl Descriptors {
    /// Reads a list of policies, in YAML or JSON; `name` stands in messages.
    ///
    /// # Errors
    /// Every mistake in it, with its place.
    pub fn parse(name: &str, text: &str) -> Result<Self, Errors> {
        let document = Document::parse(name, text)?;
        let (raw, mut errors) = document.decode_partly::<Vec<raw::Policy>>();
        let planned = raw.and_then(|raw| policy::plan_all(&raw, &mut errors));
        let planned = errors.into_result(planned)?;
        if planned.iter().any(|policy| policy.is_at_end()) {
            let mut errors = Errors::new();
            errors.push(
                document.root(),
                "`apply_on_stream_done` is not supported here: requests are counted before they go on",
            );
            return errors.into_result(None);
        }
        Ok(Self(planned))
    }
}

impl Describe for Descriptors {
    fn descriptors(&self, head: &Parts, context: &RequestContext) -> Vec<RateLimitDescriptor> {
        let route = context.route();
        let facts = Facts {
            context,
            request: Some(head),
            response: None,
        };
        let subject = Subject {
            head,
            context,
            exchange: facts.into(),
            route: route.as_deref() as Option<&Route>,
            source_cluster: "",
        };
        let mut entries = Vec::new();
        let mut descriptors = Vec::with_capacity(self.0.len());
        for policy in &self.0 {
            entries.clear();
            let Some(terms) = policy.descriptor(&subject, &subject.exchange, &mut entries) else {
                continue;
            };
            let entries = entries.drain(..).map(|entry| wire::Entry {
                key: entry.key.to_owned(),
                value: entry.value.into_owned(),
            });
            descriptors.push(RateLimitDescriptor {
                entries: entries.collect(),
                limit: terms.limit.map(|limit| wire::RateLimitOverride {
                    requests_per_unit: limit.requests_per_unit,
                    unit: limit.unit,
                    ..wire::RateLimitOverride::default()
                }),
                hits_addend: terms.hits.map(|hits| hits.number),
                is_negative_hits: terms.hits.is_some_and(|hits| hits.negative),
            });
        }
        descriptors
    }
}
