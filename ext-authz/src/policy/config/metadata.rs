//! What is looked up about a request.

use std::time::Duration;

use attache_service::{
    config::{Located, Size},
    config_enum, config_struct,
    fetch::Remote,
};

config_struct! {
    /// A document about the request or its caller, fetched from an HTTP service. Conditions and
    /// expressions see it as `metadata.<name>`, Rego as `input.metadata.<name>`.
    pub struct MetadataSource {
        /// Its name.
        pub name: Located<String>,
        /// The service; it answers with JSON.
        pub http: Remote,
        /// Path and query, instead of those of the URL. Expressions (CEL) in braces are filled
        /// in, percent-encoded: `/users/{identity.claims.sub}`. A brace is written twice.
        pub path: Option<Located<String>>,
        /// A condition (CEL): without it, it is fetched for each request. Without a document,
        /// there is no `metadata.<name>`.
        pub when: Option<Located<String>>,
        /// How long a document is used for requests that ask for the same. Default 60 s; 0
        /// fetches each time.
        pub ttl: Option<Located<Duration>>,
        /// Documents to keep. Default 10000.
        pub cache_size: Option<Located<u32>>,
        /// Largest document. Default 64 KiB.
        pub max_size: Option<Size>,
        /// What a failure means. Default: there is no decision.
        pub on_failure: Option<MetadataFailure>,
    }
}

config_enum! {
    /// What it means when a document cannot be fetched. Answer 404 is no failure: it says that
    /// there is none.
    pub enum MetadataFailure {
        /// There is no decision: the proxy's failure mode says what happens.
        Fail = "fail",
        /// It goes on without the document.
        Absent = "absent",
    }
}
