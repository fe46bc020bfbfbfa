//! `filters`, as written: Envoy's own blocks.

use attache_ext_authz::client::ExtAuthzConfig;
use attache_ext_proc::client::config::ExternalProcessor;
use attache_ratelimit::client::RateLimit;
use attache_service::{
    config::{
        ConfigValue, Errors, Node, Schemas,
        envoy::{message_of, unwrap_typed_config},
        json,
    },
    config_oneof,
};

config_oneof! {
    /// A policy: which filter it is, with Envoy's settings for it.
    pub enum Policy {
        /// Count the request and refuse it over a limit (Envoy's `RateLimit`).
        Ratelimit(Box<RateLimit>) = "ratelimit",
        /// Ask whether the request may pass (Envoy's `ExtAuthz`).
        ExtAuthz(Box<ExtAuthzConfig>) = "ext_authz",
        /// Let a processor see and change request and response (Envoy's `ExternalProcessor`).
        ExtProc(Box<ExternalProcessor>) = "ext_proc",
    }
}

/// A [`Policy`] under its short name, or in Envoy's `typed_config` wrapper.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterConfig(pub Policy);

impl Policy {
    /// The settings in Envoy's JSON, with `@type`.
    pub(crate) fn encode_typed(&self) -> Option<json::Value> {
        match self {
            Self::Ratelimit(config) => config.encode_typed(),
            Self::ExtAuthz(config) => config.encode_typed(),
            Self::ExtProc(config) => config.encode_typed(),
        }
    }
}

impl ConfigValue for FilterConfig {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        if node.get("typed_config").is_none() && node.get("@type").is_none() {
            return Policy::decode(node, errors).map(Self);
        }
        let config = unwrap_typed_config(node, errors)?.config;
        let message = message_of(config);
        let is = |envoy_type: Option<&str>| message.is_some() && message == envoy_type;
        if is(RateLimit::envoy_type()) {
            Box::decode(config, errors).map(Policy::Ratelimit).map(Self)
        } else if is(ExtAuthzConfig::envoy_type()) {
            Box::decode(config, errors).map(Policy::ExtAuthz).map(Self)
        } else if is(ExternalProcessor::envoy_type()) {
            Box::decode(config, errors).map(Policy::ExtProc).map(Self)
        } else {
            let supported = "the filters here are `ratelimit`, `ext_authz` and `ext_proc`";
            errors.push(
                config.get("@type").unwrap_or(config),
                match message {
                    Some(message) => format!("`{message}` is not supported: {supported}"),
                    None => format!("`typed_config` needs an `@type`; {supported}"),
                },
            );
            None
        }
    }

    fn encode(&self) -> Option<json::Value> {
        self.0.encode()
    }

    fn schema(schemas: &mut Schemas) -> json::Value {
        Policy::schema(schemas)
    }
}
