//! The decision log.

use std::{path::PathBuf, time::Duration};

use attache_service::{
    config::{Empty, Located, Size},
    config_oneof, config_struct,
    fetch::Remote,
};

config_struct! {
    /// A log of the decisions: one JSON object for each. What carries credentials is masked.
    pub struct DecisionLog {
        /// The share of allowed requests to log, from 0 to 1. What is denied, fails or is given up
        /// by the caller is always logged. Default 1.
        pub sample: Option<Located<f64>>,
        /// Request headers to show; `*` for all.
        pub headers: Vec<String>,
        /// Query parameters to show; `*` for all.
        pub query: Vec<String>,
        /// Claims of the identity to show, by their top-level names; `*` for all.
        pub claims: Vec<String>,
        /// What not to show even so.
        pub mask: Option<Mask>,
        /// Tell each step that led to the decision, and what it looked at. Default false.
        pub explain: Option<bool>,
        /// What may wait to be written, in memory. Beyond it records are lost; how many, the next
        /// ones say. Default 8 MiB, at least 64 KiB.
        pub buffer: Option<Located<Size>>,
    }
    oneof {
        /// Where it goes.
        pub output: LogOutput,
    }
}

config_struct! {
    /// Names of what is shown without its value.
    pub struct Mask {
        /// Request headers.
        pub headers: Vec<String>,
        /// Query parameters.
        pub query: Vec<String>,
        /// Claims of the identity; `sub` masks the subject too.
        pub claims: Vec<String>,
    }
}

config_oneof! {
    /// Where a decision log goes.
    pub enum LogOutput {
        /// The standard output, one line a decision.
        Stdout(Empty) = "stdout",
        /// A file, one line a decision.
        File(LogFile) = "file",
        /// An HTTP service, in batches: JSON arrays.
        Http(LogService) = "http",
    }
}

config_struct! {
    /// A log file. It may also be moved away by others; then it is made anew.
    pub struct LogFile {
        /// Where it is.
        pub path: Located<PathBuf>,
        /// Size beyond which it is renamed to `<path>.1`, the older ones to `<path>.2` and so on.
        /// Default 100 MiB; 0 never does.
        pub max_size: Option<Size>,
        /// How many older ones stay. Default 5.
        pub keep: Option<u32>,
    }
}

config_struct! {
    /// A service that takes batches of decisions as JSON arrays, by `POST`. What it does not take
    /// for the moment (no answer, 408, 429, 5xx) is sent again.
    pub struct LogService {
        /// The service.
        pub service: Located<Remote>,
        /// Compress what is sent. Default false.
        pub gzip: Option<bool>,
        /// Largest batch, before compression. Default 512 KiB.
        pub batch: Option<Size>,
        /// How long a decision waits for others. Default 1 s, at most 1 min.
        pub interval: Option<Located<Duration>>,
    }
}

config_struct! {
    /// What the proxy learns of a decision, as dynamic metadata in the namespace
    /// `envoy.filters.http.ext_authz`.
    pub struct DecisionMetadata {
        /// The id that the decision log has, as `decision_id`. Default false.
        pub id: Option<bool>,
        /// The steps that led to the decision, as the list `explain`, at most this large. Default:
        /// they are not told.
        pub explain: Option<Size>,
    }
}
