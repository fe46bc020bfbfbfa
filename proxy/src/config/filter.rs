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
    config_oneof, config_struct,
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
        /// Pass gRPC-Web calls of browsers on as gRPC (Envoy's `GrpcWeb`).
        GrpcWeb(GrpcWeb) = "grpc_web",
    }
}

config_struct! {
    /// Envoy's `extensions.filters.http.grpc_web.v3.GrpcWeb`: it has no settings.
    pub struct GrpcWeb {}
    envoy_type = "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";
}

/// A [`Policy`] under its short name, or in Envoy's `typed_config` wrapper.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterConfig {
    /// The policy and its settings.
    pub policy: Policy,
    /// Off, but for routes that have settings for it (Envoy's `HttpFilter.disabled`). Default
    /// false.
    pub disabled: bool,
}

config_struct! {
    /// A filter.
    struct Filter {
        /// Off, but for routes that have settings for it. Default false.
        disabled: Option<bool>,
    }
    oneof {
        /// Which filter it is, with its settings.
        policy: Policy,
    }
}

impl Policy {
    /// The settings in Envoy's JSON, with `@type`.
    pub(crate) fn encode_typed(&self) -> Option<json::Value> {
        match self {
            Self::Ratelimit(config) => config.encode_typed(),
            Self::ExtAuthz(config) => config.encode_typed(),
            Self::ExtProc(config) => config.encode_typed(),
            Self::GrpcWeb(config) => config.encode_typed(),
        }
    }
}

impl FilterConfig {
    /// Envoy's own form: `typed_config`, or a block with `@type`.
    fn decode_typed(node: &Node, errors: &mut Errors) -> Option<Self> {
        let typed = unwrap_typed_config(node, errors)?;
        let config = typed.config;
        let message = message_of(config);
        let is = |envoy_type: Option<&str>| message.is_some() && message == envoy_type;
        let policy = if is(RateLimit::envoy_type()) {
            Box::decode(config, errors).map(Policy::Ratelimit)
        } else if is(ExtAuthzConfig::envoy_type()) {
            Box::decode(config, errors).map(Policy::ExtAuthz)
        } else if is(ExternalProcessor::envoy_type()) {
            Box::decode(config, errors).map(Policy::ExtProc)
        } else if is(GrpcWeb::envoy_type()) {
            GrpcWeb::decode(config, errors).map(Policy::GrpcWeb)
        } else {
            let supported =
                "the filters here are `ratelimit`, `ext_authz`, `ext_proc` and `grpc_web`";
            errors.push(
                config.get("@type").unwrap_or(config),
                match message {
                    Some(message) => format!("`{message}` is not supported: {supported}"),
                    None => format!("`typed_config` needs an `@type`; {supported}"),
                },
            );
            None
        };
        Some(Self {
            policy: policy?,
            disabled: typed.disabled,
        })
    }
}

impl ConfigValue for FilterConfig {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        if node.get("typed_config").is_some() || node.get("@type").is_some() {
            return Self::decode_typed(node, errors);
        }
        let filter = Filter::decode(node, errors)?;
        Some(Self {
            policy: filter.policy,
            disabled: filter.disabled.unwrap_or(false),
        })
    }

    fn encode(&self) -> Option<json::Value> {
        let filter = Filter {
            disabled: Some(self.disabled).filter(|disabled| *disabled),
            policy: self.policy.clone(),
        };
        filter.encode()
    }

    fn schema(schemas: &mut Schemas) -> json::Value {
        schemas.define::<Self>("FilterConfig", |schemas| {
            // In Envoy's form it is the type that says which filter it is.
            let mut typed = Vec::new();
            for mut schema in [
                RateLimit::schema(schemas),
                ExtAuthzConfig::schema(schemas),
                ExternalProcessor::schema(schemas),
                GrpcWeb::schema(schemas),
            ] {
                schema["required"] = json::json!(["@type"]);
                typed.push(schema);
            }
            let wrapper = json::json!({
                "description": "Envoy's `HttpFilter`.",
                "type": "object",
                "properties": {
                    "name": Option::<String>::schema(schemas),
                    "disabled": Option::<bool>::schema(schemas),
                    "typed_config": { "anyOf": typed.clone() },
                },
                "required": ["typed_config"],
                "additionalProperties": false,
            });
            let mut forms = vec![Filter::schema(schemas), wrapper];
            forms.append(&mut typed);
            json::json!({
                "description": "A filter by its short name, or in Envoy's `typed_config` wrapper.",
                "anyOf": forms,
            })
        })
    }
}
