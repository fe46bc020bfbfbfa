//! `access_log` of a listener, as written.

use std::path::PathBuf;

use attache_filter::{fraction::FractionalPercent, matcher::HeaderMatcher};
use attache_service::{
    config::{ConfigValue, Errors, Located, Node, Schemas, Value, json},
    config_enum, config_oneof, config_struct,
};

/// One access log, or a list of them.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLogs(pub Vec<Located<AccessLog>>);

impl ConfigValue for AccessLogs {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        match &node.value {
            Value::Seq(_) => Vec::decode(node, errors).map(Self),
            _ => Located::decode(node, errors).map(|one| Self(vec![one])),
        }
    }

    fn encode(&self) -> Option<json::Value> {
        self.0.encode()
    }

    fn schema(schemas: &mut Schemas) -> json::Value {
        let one = AccessLog::schema(schemas);
        json::json!({ "anyOf": [one.clone(), { "type": "array", "items": one }] })
    }
}

config_enum! {
    /// A whole line that need not be written out.
    pub enum AccessLogFormat {
        /// One JSON object with everything that is known of a request.
        Json = "json",
        /// Envoy's default line of text.
        Envoy = "envoy",
    }
    elsewhere {
        "text" => "`envoy` is Envoy's line of text; write one of your own in `text_format`",
    }
}

config_enum! {
    /// Where lines go that do not go to a file.
    pub enum AccessLogOutput {
        /// Standard output.
        Stdout = "stdout",
        /// Standard error.
        Stderr = "stderr",
    }
}

config_struct! {
    /// One line for each request, or for some of them.
    pub struct AccessLog {
        /// How lines look. Default `json`.
        pub format: Option<Located<AccessLogFormat>>,
        /// A line of text with Envoy's formatters, such as `%REQ(:path)% %RESPONSE_CODE%`. It ends
        /// where it says: write `\n` at its end.
        pub text_format: Option<Located<String>>,
        /// A JSON object whose texts may have Envoy's formatters in them.
        pub json_format: Option<Node>,
        /// Leave out what is absent instead of writing `-` or `null`. Default false.
        pub omit_empty_values: Option<bool>,
        /// The file to append to; standard output when left out.
        pub path: Option<Located<PathBuf>>,
        /// Standard output or standard error. Default `stdout`.
        pub output: Option<Located<AccessLogOutput>>,
        /// Part of the requests to log, 0 to 1. Default 1.
        pub sample: Option<Located<Sample>>,
        /// What to log in any case, whatever `sample` says: `errors`, and `slow>DURATION`.
        pub always: Vec<Located<String>>,
        /// Which requests are considered at all. Default: all.
        pub filter: Option<Located<AccessLogFilter>>,
    }
}

/// A share of the requests: a number, or a number and what it goes by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// From 0 to 1.
    pub rate: f64,
    /// What the choice goes by.
    pub by: SampleBy,
}

config_enum! {
    /// What decides whether a request is among a share of them.
    #[derive(Default)]
    pub enum SampleBy {
        /// Its request id.
        #[default]
        RequestId = "request_id",
        /// Its trace.
        TraceId = "trace_id",
    }
}

config_struct! {
    /// A share of the requests and what it goes by.
    pub struct SampleConfig {
        /// From 0 to 1.
        pub rate: f64,
        /// Requests with the same id are all logged or all not, by every proxy with the same
        /// rate. Default `request_id`.
        pub by: Option<SampleBy>,
    }
}

impl ConfigValue for Sample {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        if let Value::Map(_) = &node.value {
            return SampleConfig::decode(node, errors).map(|raw| Self {
                rate: raw.rate,
                by: raw.by.unwrap_or_default(),
            });
        }
        let by = SampleBy::default();
        f64::decode(node, errors).map(|rate| Self { rate, by })
    }

    fn encode(&self) -> Option<json::Value> {
        Some(json::json!({ "rate": self.rate, "by": self.by.as_str() }))
    }

    fn schema(schemas: &mut Schemas) -> json::Value {
        let (number, config) = (f64::schema(schemas), SampleConfig::schema(schemas));
        json::json!({ "anyOf": [number, config] })
    }
}

config_struct! {
    /// Envoy's `config.accesslog.v3.AccessLogFilter`.
    pub struct AccessLogFilter {}
    oneof {
        /// The one condition.
        pub specifier: FilterSpecifier,
    }
}

config_oneof! {
    /// A condition on requests that are over.
    pub enum FilterSpecifier {
        /// On the status; 0 where there is none.
        StatusCodeFilter(ComparisonHolder) = "status_code_filter",
        /// On the duration in milliseconds.
        DurationFilter(ComparisonHolder) = "duration_filter",
        /// On a header of the request.
        HeaderFilter(HeaderFilter) = "header_filter",
        /// On what went wrong.
        ResponseFlagFilter(ResponseFlagFilter) = "response_flag_filter",
        /// On the status of a gRPC call.
        GrpcStatusFilter(GrpcStatusFilter) = "grpc_status_filter",
        /// A share of the requests.
        RuntimeFilter(RuntimeFilter) = "runtime_filter",
        /// Requests whose trace is recorded.
        TraceableFilter(NoSettings) = "traceable_filter",
        /// All of several conditions.
        AndFilter(FilterList) = "and_filter",
        /// One of several conditions.
        OrFilter(FilterList) = "or_filter",
    }
    elsewhere {
        "not_health_check_filter" => "there is no health check filter; use `header_filter` on `:path`",
        "metadata_filter" => "use `header_filter` or `response_flag_filter`",
        "log_type_filter" => "there is one line for each request, at its end",
        "extension_filter" => "is an extension of Envoy's own process",
    }
}

config_struct! {
    /// Nothing to be set.
    pub struct NoSettings {}
}

config_struct! {
    /// Envoy's `StatusCodeFilter` and `DurationFilter`.
    pub struct ComparisonHolder {
        /// What the figure must be.
        pub comparison: Comparison,
    }
}

config_struct! {
    /// Envoy's `ComparisonFilter`.
    pub struct Comparison {
        /// How to compare. Default `EQ`.
        pub op: Option<ComparisonOp>,
        /// With what.
        pub value: RuntimeUint,
    }
}

config_enum! {
    /// Envoy's `ComparisonFilter.Op`.
    #[derive(Default)]
    pub enum ComparisonOp {
        /// Equal.
        #[default]
        Eq = "EQ",
        /// Greater or equal.
        Ge = "GE",
        /// Less or equal.
        Le = "LE",
        /// Not equal.
        Ne = "NE",
    }
}

config_struct! {
    /// Envoy's `RuntimeUInt32`.
    pub struct RuntimeUint {
        /// The figure. Default 0.
        pub default_value: Option<u32>,
        /// The name that Envoy requires. There is no runtime layer here: the default holds.
        pub runtime_key: Option<String>,
    }
}

config_struct! {
    /// Envoy's `HeaderFilter`.
    pub struct HeaderFilter {
        /// What the request's head must be like.
        pub header: HeaderMatcher,
    }
}

config_struct! {
    /// Envoy's `ResponseFlagFilter`.
    pub struct ResponseFlagFilter {
        /// Short names, of which one must be set; none for any.
        pub flags: Vec<Located<String>>,
    }
}

config_struct! {
    /// Envoy's `GrpcStatusFilter`.
    pub struct GrpcStatusFilter {
        /// Names of codes, such as `UNAVAILABLE`.
        pub statuses: Vec<Located<String>>,
        /// Whether requests with other codes are meant. Default false.
        pub exclude: Option<bool>,
    }
}

config_struct! {
    /// Envoy's `RuntimeFilter`.
    pub struct RuntimeFilter {
        /// The name that Envoy requires. There is no runtime layer here: the percentage holds.
        pub runtime_key: Option<String>,
        /// The share. Default: none.
        pub percent_sampled: Option<FractionalPercent>,
        /// Choose anew for each request, not by its request id. Default false.
        pub use_independent_randomness: Option<bool>,
    }
}

config_struct! {
    /// Envoy's `AndFilter` and `OrFilter`.
    pub struct FilterList {
        /// The conditions.
        pub filters: Vec<Located<AccessLogFilter>>,
    }
}
