//! Actions, as written: Envoy's `RateLimit.Action`.

use attache_filter::{
    matcher::{CidrRange, HeaderMatcher, QueryParameterMatcher},
    metadata::MetadataKey,
};
use attache_service::{
    config::{Empty, Located},
    config_enum, config_oneof, config_struct,
};

use super::Extension;

config_oneof! {
    /// Envoy's `RateLimit.Action`.
    pub enum Action {
        /// `source_cluster`: the cluster that this proxy belongs to.
        SourceCluster(Empty) = "source_cluster",
        /// `destination_cluster`: the cluster of the route.
        DestinationCluster(Empty) = "destination_cluster",
        /// A header's value.
        RequestHeaders(RequestHeaders) = "request_headers",
        /// A query parameter's value.
        QueryParameters(QueryParameters) = "query_parameters",
        /// `remote_address`: the client's address.
        RemoteAddress(Empty) = "remote_address",
        /// `masked_remote_address`: the client's network.
        MaskedRemoteAddress(MaskedRemoteAddress) = "masked_remote_address",
        /// Always the same.
        GenericKey(GenericKey) = "generic_key",
        /// Always the same, when the headers match.
        HeaderValueMatch(HeaderValueMatch) = "header_value_match",
        /// Always the same, when the query parameters match.
        QueryParameterValueMatch(QueryParameterValueMatch) = "query_parameter_value_match",
        /// A text of the metadata of the request, its route or its cluster.
        Metadata(MetaData) = "metadata",
        /// A text with facts of the request in it, when the client's address matches.
        RemoteAddressMatch(RemoteAddressMatch) = "remote_address_match",
        /// The value of an expression, or an input of matchers.
        Extension(Extension) = "extension",
    }
    elsewhere {
        "dynamic_metadata" => "Envoy refuses it too, as deprecated: write `metadata`",
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.RequestHeaders`.
    pub struct RequestHeaders {
        /// The header; pseudo-headers such as `:path` are allowed. Of several the first counts.
        pub header_name: Located<String>,
        /// Key of the entry.
        pub descriptor_key: Located<String>,
        /// When the header is absent, leave out the entry instead of the descriptor. Default false.
        pub skip_if_absent: Option<bool>,
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.QueryParameters`.
    pub struct QueryParameters {
        /// The parameter. Of several the first counts.
        pub query_parameter_name: Located<String>,
        /// Key of the entry.
        pub descriptor_key: Located<String>,
        /// When the parameter is absent, leave out the entry instead of the descriptor. Default
        /// false.
        pub skip_if_absent: Option<bool>,
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.MaskedRemoteAddress`.
    pub struct MaskedRemoteAddress {
        /// Bits of an IPv4 network, at most 32. Default 32.
        pub v4_prefix_mask_len: Option<Located<u8>>,
        /// Bits of an IPv6 network, at most 128. Default 128.
        pub v6_prefix_mask_len: Option<Located<u8>>,
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.GenericKey`.
    pub struct GenericKey {
        /// Value of the entry.
        pub descriptor_value: Located<String>,
        /// Key of the entry. Default `generic_key`.
        pub descriptor_key: Option<String>,
        /// Accepted for configurations written for Envoy, where it stands in for an empty value.
        /// With Envoy's defaults, values are literal, and so never empty.
        pub default_value: Option<String>,
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.HeaderValueMatch`.
    pub struct HeaderValueMatch {
        /// Value of the entry.
        pub descriptor_value: Located<String>,
        /// Key of the entry. Default `header_match`.
        pub descriptor_key: Option<String>,
        /// Make the entry when all headers match (true) or when not all do (false). Default true.
        pub expect_match: Option<bool>,
        /// At least one.
        pub headers: Located<Vec<HeaderMatcher>>,
        /// Accepted for configurations written for Envoy, where it stands in for an empty value.
        /// With Envoy's defaults, values are literal, and so never empty.
        pub default_value: Option<String>,
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.QueryParameterValueMatch`.
    pub struct QueryParameterValueMatch {
        /// Value of the entry.
        pub descriptor_value: Located<String>,
        /// Key of the entry. Default `query_match`.
        pub descriptor_key: Option<String>,
        /// Make the entry when all parameters match (true) or when not all do (false). Default
        /// true.
        pub expect_match: Option<bool>,
        /// At least one.
        pub query_parameters: Located<Vec<QueryParameterMatcher>>,
        /// Accepted for configurations written for Envoy, where it stands in for an empty value.
        /// With Envoy's defaults, values are literal, and so never empty.
        pub default_value: Option<String>,
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.MetaData`.
    pub struct MetaData {
        /// Key of the entry.
        pub descriptor_key: Located<String>,
        /// Where the value is. What is no text counts as absent.
        pub metadata_key: MetadataKey,
        /// The value when there is none, or an empty one.
        pub default_value: Option<String>,
        /// Whose metadata. Default `DYNAMIC`.
        pub source: Option<MetadataSource>,
        /// When there is no value, leave out the entry instead of the descriptor. Default false.
        pub skip_if_absent: Option<bool>,
    }
}

config_enum! {
    /// Envoy's `RateLimit.Action.MetaData.Source`.
    #[derive(Default)]
    pub enum MetadataSource {
        /// The request's: what filters have left.
        #[default]
        Dynamic = "DYNAMIC",
        /// The route's.
        RouteEntry = "ROUTE_ENTRY",
        /// That of the cluster of the route.
        ClusterEntry = "CLUSTER_ENTRY",
        /// That of the endpoint's locality. Endpoints have none here, so it is always absent.
        ClusterLocalityEntry = "CLUSTER_LOCALITY_ENTRY",
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.RemoteAddressMatch`.
    pub struct RemoteAddressMatch {
        /// Value of the entry; may contain the formatters of [`attache_filter::format`].
        pub descriptor_value: Located<String>,
        /// Key of the entry. Default `remote_address_match`.
        pub descriptor_key: Option<String>,
        /// The value when the format gives an empty one. Without, the descriptor is left out then.
        pub default_value: Option<String>,
        /// Which addresses of clients match.
        pub address_matcher: AddressMatcher,
    }
}

config_struct! {
    /// Envoy's `type.matcher.v3.AddressMatcher`.
    pub struct AddressMatcher {
        /// An address in one of these networks matches.
        pub ranges: Vec<CidrRange>,
        /// Turn the result round. Default false.
        pub invert_match: Option<bool>,
    }
}
