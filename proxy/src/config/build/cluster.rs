//! Clusters.

use std::path::PathBuf;

use attache_service::{
    Address, channel,
    config::{Errors, Located},
};

use super::Builder;
use crate::{
    config::{Cluster, Embedded, EmbeddedService, Target},
    plan::{ClusterPlan, Endpoint, Protocol},
};

impl Builder<'_> {
    pub(super) fn cluster(&self, raw: &Cluster, errors: &mut Errors) -> Option<ClusterPlan> {
        let mut plan = ClusterPlan::new(raw.name.as_str(), []);
        if let Some(timeout) = raw.connect_timeout {
            plan.connect_timeout = timeout;
        }
        if let Some(timeout) = raw.idle_timeout {
            plan.idle_timeout = timeout;
        }
        plan.protocol = if raw.http2.is_some() {
            Protocol::Http2
        } else {
            Protocol::Http1
        };
        plan.targets = match &raw.target.value {
            Target::Endpoints(addresses) => {
                if addresses.is_empty() {
                    errors.push(&raw.target, "`endpoints` needs at least one address");
                }
                for address in addresses {
                    if matches!(address.value, Address::Tcp { port: 0, .. }) {
                        errors.push(address, "an endpoint needs a port");
                    }
                }
                let endpoint =
                    |a: &Located<Address>| Endpoint(channel::Target::Address(a.value.clone()));
                addresses.iter().map(endpoint).collect()
            }
            Target::Embedded(service) => {
                plan.protocol = Protocol::Http2;
                if let Some(tls) = &raw.tls {
                    errors.push(tls, "an embedded service is reached without TLS");
                }
                let service = self.embedded_service(service);
                let connector = self.embedded.connect(&raw.name, &service, errors)?;
                vec![Endpoint(channel::Target::Embedded(connector))]
            }
        };
        if let Some(tls) = &raw.tls {
            let alpn: &[&str] = match plan.protocol {
                Protocol::Http1 => &["http/1.1"],
                Protocol::Http2 => &["h2"],
            };
            plan.tls = Some(tls.value.plan(alpn, tls, errors)?);
        }
        Some(plan)
    }

    fn embedded_service(&self, raw: &Embedded) -> EmbeddedService {
        let resolve = |path: &Located<PathBuf>| Located {
            value: self.document.resolve(&path.value),
            span: path.span.clone(),
        };
        match raw {
            Embedded::ExtAuthz(path) => EmbeddedService::ExtAuthz(resolve(path)),
            Embedded::Ratelimit(path) => EmbeddedService::Ratelimit(resolve(path)),
            Embedded::ExtProc(name) => EmbeddedService::ExtProc(name.clone()),
        }
    }
}
