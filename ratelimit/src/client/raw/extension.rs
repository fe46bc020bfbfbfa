//! The extensions that make entries, as written.

use attache_service::{
    config::{ConfigValue, Errors, Located, Node, Schemas, envoy::message_of, json},
    config_struct,
};

config_struct! {
    /// Envoy's `config.core.v3.TypedExtensionConfig` of an action.
    pub struct Extension {
        /// Key of the entry of a matcher's input.
        pub name: Located<String>,
        /// Which extension, by its `@type`, with its settings.
        pub typed_config: Producer,
    }
}

/// What makes the value of an entry.
#[derive(Debug, Clone, PartialEq)]
pub enum Producer {
    /// The value of an expression.
    Expr(Expr),
    /// A header; several are joined with commas.
    Header(HeaderInput),
    /// A query parameter.
    QueryParameter(QueryParameterInput),
    /// The client's address.
    SourceIp(SourceIpInput),
    /// The client's port.
    SourcePort(SourcePortInput),
    /// The address of who is connected, be it a proxy.
    DirectSourceIp(DirectSourceIpInput),
    /// Our address.
    DestinationIp(DestinationIpInput),
    /// Our port.
    DestinationPort(DestinationPortInput),
    /// The server name that the client asked for.
    ServerName(ServerNameInput),
}

config_struct! {
    /// Envoy's `extensions.rate_limit_descriptors.expr.v3.Descriptor`.
    pub struct Expr {
        /// Key of the entry.
        pub descriptor_key: Located<String>,
        /// The expression, in CEL; see [`attache_filter::attributes`].
        pub text: Located<String>,
        /// When it has no value, leave out the entry instead of the descriptor. Default false.
        pub skip_if_error: Option<bool>,
    }
    envoy_type = "envoy.extensions.rate_limit_descriptors.expr.v3.Descriptor";
    elsewhere {
        "parsed" => "write the expression as `text`",
    }
}

config_struct! {
    /// Envoy's `type.matcher.v3.HttpRequestHeaderMatchInput`.
    pub struct HeaderInput {
        /// The header; pseudo-headers such as `:path` are allowed.
        pub header_name: Located<String>,
    }
    envoy_type = "envoy.type.matcher.v3.HttpRequestHeaderMatchInput";
}

config_struct! {
    /// Envoy's `type.matcher.v3.HttpRequestQueryParamMatchInput`.
    pub struct QueryParameterInput {
        /// The parameter. Of several the first counts.
        pub query_param: Located<String>,
    }
    envoy_type = "envoy.type.matcher.v3.HttpRequestQueryParamMatchInput";
}

config_struct! {
    /// Envoy's `SourceIPInput`.
    pub struct SourceIpInput {}
    envoy_type = "envoy.extensions.matching.common_inputs.network.v3.SourceIPInput";
}

config_struct! {
    /// Envoy's `SourcePortInput`.
    pub struct SourcePortInput {}
    envoy_type = "envoy.extensions.matching.common_inputs.network.v3.SourcePortInput";
}

config_struct! {
    /// Envoy's `DirectSourceIPInput`.
    pub struct DirectSourceIpInput {}
    envoy_type = "envoy.extensions.matching.common_inputs.network.v3.DirectSourceIPInput";
}

config_struct! {
    /// Envoy's `DestinationIPInput`.
    pub struct DestinationIpInput {}
    envoy_type = "envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput";
}

config_struct! {
    /// Envoy's `DestinationPortInput`.
    pub struct DestinationPortInput {}
    envoy_type = "envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput";
}

config_struct! {
    /// Envoy's `ServerNameInput`.
    pub struct ServerNameInput {}
    envoy_type = "envoy.extensions.matching.common_inputs.network.v3.ServerNameInput";
}

/// One row for each kind of [`Producer`]: its name here and its type.
macro_rules! producers {
    ($visit:ident) => {
        $visit! {
            Expr: Expr,
            Header: HeaderInput,
            QueryParameter: QueryParameterInput,
            SourceIp: SourceIpInput,
            SourcePort: SourcePortInput,
            DirectSourceIp: DirectSourceIpInput,
            DestinationIp: DestinationIpInput,
            DestinationPort: DestinationPortInput,
            ServerName: ServerNameInput,
        }
    };
}

/// Extensions that Envoy has and we do not, with the reason.
const ELSEWHERE: [(&str, &str); 5] = [
    (
        "envoy.extensions.rate_limit_descriptors.jwt_claim.v3.Descriptor",
        "claims that nobody has verified are no ground for a limit: let `ext_authz` or a processor put the claim into metadata, and use `metadata`",
    ),
    (
        "envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput",
        "it never has a value here, in Envoy neither: use `response.code` in an expression",
    ),
    (
        "envoy.type.matcher.v3.HttpResponseStatusCodeClassMatchInput",
        "it never has a value here, in Envoy neither: use `response.code` in an expression",
    ),
    (
        "envoy.type.matcher.v3.HttpResponseHeaderMatchInput",
        "it never has a value here, in Envoy neither",
    ),
    (
        "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput",
        "use the action `metadata`",
    ),
];

impl ConfigValue for Producer {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        let message = message_of(node);
        macro_rules! decode {
            ($($kind:ident: $type:ty,)*) => {
                $(if message.is_some() && message == <$type>::envoy_type() {
                    return <$type>::decode(node, errors).map(Self::$kind);
                })*
            };
        }
        producers!(decode);
        let mut known = Vec::new();
        macro_rules! names {
            ($($kind:ident: $type:ty,)*) => { $(known.extend(<$type>::envoy_type());)* };
        }
        producers!(names);
        let at = node.get("@type").unwrap_or(node);
        let elsewhere = ELSEWHERE.iter().find(|(name, _)| message == Some(name));
        errors.push(
            at,
            match (message, elsewhere) {
                (Some(message), Some((_, reason))) => {
                    format!("`{message}` is not supported: {reason}")
                }
                (Some(message), None) => {
                    format!(
                        "`{message}` makes no entries here; there are {}",
                        known.join(", ")
                    )
                }
                (None, _) => format!("an `@type` is needed: one of {}", known.join(", ")),
            },
        );
        None
    }

    fn encode(&self) -> Option<json::Value> {
        macro_rules! encode {
            ($($kind:ident: $type:ty,)*) => {
                match self { $(Self::$kind(config) => config.encode_typed(),)* }
            };
        }
        producers!(encode)
    }

    fn schema(schemas: &mut Schemas) -> json::Value {
        let mut any = Vec::new();
        macro_rules! schemas {
            ($($kind:ident: $type:ty,)*) => { $(any.push(<$type>::schema(schemas));)* };
        }
        producers!(schemas);
        json::json!({ "anyOf": any })
    }
}
