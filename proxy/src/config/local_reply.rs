//! `local_reply_config` of a listener: what the proxy's own answers look like.

use attache_filter::header_option::HeaderValueOption;
use attache_service::{config::Located, config_oneof, config_struct};

use super::{BodyFormat, ComparisonHolder, DataSource, HeaderFilter, ResponseFlagFilter};

config_struct! {
    /// What answers look like that are made here, not by an upstream: denials of policies among
    /// them (Envoy's `LocalReplyConfig`).
    pub struct LocalReplyConfig {
        /// Changes to some answers; the first that matches counts.
        pub mappers: Vec<ResponseMapper>,
        /// What the bodies of answers are put into. Default: they stay as they are.
        pub body_format: Option<BodyFormat>,
    }
}

config_struct! {
    /// Changes to some answers (Envoy's `ResponseMapper`).
    pub struct ResponseMapper {
        /// Which answers.
        pub filter: ReplyFilter,
        /// The new status.
        pub status_code: Option<Located<u16>>,
        /// The new body.
        pub body: Option<DataSource>,
        /// What the body is put into, instead of `body_format`.
        pub body_format_override: Option<BodyFormat>,
        /// Headers that are added.
        pub headers_to_add: Vec<HeaderValueOption>,
    }
}

config_struct! {
    /// A condition on an answer (Envoy's `AccessLogFilter`).
    pub struct ReplyFilter {}
    oneof {
        /// The condition.
        pub condition: ReplyCondition,
    }
}

config_oneof! {
    /// A condition on an answer.
    pub enum ReplyCondition {
        /// On its status.
        StatusCodeFilter(ComparisonHolder) = "status_code_filter",
        /// On what went wrong.
        ResponseFlagFilter(ResponseFlagFilter) = "response_flag_filter",
        /// On a header of the request.
        HeaderFilter(HeaderFilter) = "header_filter",
        /// All of these.
        AndFilter(ReplyFilters) = "and_filter",
        /// One of these.
        OrFilter(ReplyFilters) = "or_filter",
    }
    elsewhere {
        "duration_filter" => "what the proxy answers itself is told apart by status, headers and flags",
        "runtime_filter" => "there is no runtime layer",
        "traceable_filter" => "what the proxy answers itself is told apart by status, headers and flags",
        "not_health_check_filter" => "what the proxy answers itself is told apart by status, headers and flags",
        "grpc_status_filter" => "write `status_code_filter`",
        "metadata_filter" => "what the proxy answers itself is told apart by status, headers and flags",
        "log_type_filter" => "what the proxy answers itself is told apart by status, headers and flags",
        "extension_filter" => "extensions of Envoy are not loaded",
    }
}

config_struct! {
    /// Several conditions.
    pub struct ReplyFilters {
        /// The conditions.
        pub filters: Vec<ReplyFilter>,
    }
}
