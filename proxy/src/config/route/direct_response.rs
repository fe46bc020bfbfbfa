//! `direct_response`, and texts of answers.

use std::path::PathBuf;

use attache_filter::grpc_service::StatusCode;
use attache_service::{
    config::{Located, json},
    config_oneof, config_struct,
};

config_struct! {
    /// A fixed answer.
    pub struct DirectResponse {
        /// Its status.
        pub status: StatusCode,
        /// Its body, up to `max_direct_response_body_size_bytes`.
        pub body: Option<DataSource>,
        /// What the body is put into; `%LOCAL_REPLY_BODY%` stands for it there.
        pub body_format: Option<BodyFormat>,
    }
}

config_struct! {
    /// A text of the configuration (Envoy's `config.core.v3.DataSource`).
    pub struct DataSource {}
    oneof {
        /// Where it is.
        pub source: Source,
    }
}

config_oneof! {
    /// Where a text is.
    pub enum Source {
        /// Here.
        InlineString(Located<String>) = "inline_string",
        /// Here, in base64.
        InlineBytes(Located<String>) = "inline_bytes",
        /// In a file, read with the configuration.
        Filename(Located<PathBuf>) = "filename",
    }
    elsewhere {
        "environment_variable" => "write `inline_string: ${NAME}`",
        "watched_directory" => "the file is read with the configuration",
    }
}

config_struct! {
    /// What bodies of answers are put into (Envoy's `config.core.v3.SubstitutionFormatString`).
    pub struct BodyFormat {
        /// Leave out what has no value; otherwise it is `-`, or `null` in JSON. Default false.
        pub omit_empty_values: Option<bool>,
        /// Default `text/plain`, for JSON `application/json`.
        pub content_type: Option<Located<String>>,
    }
    oneof {
        /// The text with Envoy's formatters in it.
        pub format: SubstitutionFormat,
    }
    elsewhere {
        "formatters" => "formatter extensions are not supported",
        "json_format_options" => "properties are always sorted",
    }
}

config_oneof! {
    /// A text with Envoy's formatters, `%LOCAL_REPLY_BODY%` among them.
    pub enum SubstitutionFormat {
        /// As written (deprecated in Envoy).
        TextFormat(Located<String>) = "text_format",
        /// From a source.
        TextFormatSource(DataSource) = "text_format_source",
        /// JSON whose texts are formatters.
        JsonFormat(Located<json::Value>) = "json_format",
    }
}
