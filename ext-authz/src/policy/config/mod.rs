//! The auth service's settings as they are written.

mod cache;
mod identity;
mod log;
mod login;
mod metadata;
mod policy;
mod response;
mod rule;

use std::collections::BTreeMap;

use attache_service::{config::Located, config_struct};

pub use cache::*;
pub use identity::*;
pub use log::*;
pub use login::*;
pub use metadata::*;
pub use policy::*;
pub use response::*;
pub use rule::*;

config_struct! {
    /// Who is calling, and may they?
    ///
    /// What is said at the top level is the pipeline of all requests that none of `pipelines`
    /// takes.
    pub struct AuthConfig {
        /// Where identities come from, in the order in which they are asked.
        pub identity: Vec<Located<IdentitySource>>,
        /// What is looked up about each request; pipelines name what they need of it.
        pub metadata: Vec<Located<MetadataSource>>,
        /// Policies that rules hand decisions to.
        pub policies: Vec<Located<PolicySource>>,
        /// Pipelines for some of the requests; the first that matches takes a request.
        pub pipelines: Vec<Located<Pipeline>>,
        /// What is allowed; the first rule that matches decides, without one it is denied.
        /// Without any rules, the only policy decides.
        pub rules: Vec<Located<Rule>>,
        /// Headers that the upstream gets. Copies that the client sent are always removed.
        pub upstream_headers: BTreeMap<String, Located<HeaderSource>>,
        /// Headers that the client gets with allowed requests, replacing the upstream's.
        pub client_headers: BTreeMap<String, Located<HeaderSource>>,
        /// What later filters and logs of the proxy get, in the dynamic metadata namespace
        /// `envoy.filters.http.ext_authz`.
        pub dynamic_metadata: BTreeMap<String, Located<ValueSource>>,
        /// A signed token for the upstream. Default: none.
        pub wristband: Option<Located<Wristband>>,
        /// The answer to requests without an identity. Default: 401 with `www-authenticate`.
        pub unauthenticated: Option<Located<Reply>>,
        /// The answer to requests that are denied. Default: 403.
        pub denied: Option<Located<Reply>>,
        /// Keep decisions; for all pipelines that do not say otherwise, each for itself. Default:
        /// each request is decided on.
        pub decision_cache: Option<DecisionCache>,
        /// A log of the decisions. Default: none.
        pub decision_log: Option<DecisionLog>,
        /// What the proxy learns of a decision. Default: nothing.
        pub decision_metadata: Option<DecisionMetadata>,
        /// How ambiguous paths are read. Default: they are refused.
        pub paths: Option<PathRules>,
    }
}

config_struct! {
    /// What happens to some of the requests. All that is given of `hosts`, `paths` and `context`
    /// must match; what is a list, with one of its items.
    pub struct Pipeline {
        /// Its name in metrics and logs.
        pub name: Located<String>,
        /// Host names without port: `example.com`, or `*.example.com` for names below it.
        pub hosts: Vec<String>,
        /// Paths, decoded and without the query.
        pub paths: Vec<Located<PathMatch>>,
        /// `context_extensions` of the route in the proxy, and what they are.
        pub context: BTreeMap<String, Wanted>,
        /// Identity sources by name, in the order in which they are asked. Default: all.
        pub identity: Vec<Located<String>>,
        /// What is looked up, by name. Default: all of it.
        pub metadata: Vec<Located<String>>,
        /// What is allowed; the first rule that matches decides, without one it is denied.
        /// Without any rules, the only policy decides.
        pub rules: Vec<Located<Rule>>,
        /// Headers that the upstream gets. Copies that the client sent are always removed.
        pub upstream_headers: BTreeMap<String, Located<HeaderSource>>,
        /// Headers that the client gets with allowed requests, replacing the upstream's.
        pub client_headers: BTreeMap<String, Located<HeaderSource>>,
        /// What later filters and logs of the proxy get, in the dynamic metadata namespace
        /// `envoy.filters.http.ext_authz`.
        pub dynamic_metadata: BTreeMap<String, Located<ValueSource>>,
        /// The answer to requests without an identity. Default: that of the top level.
        pub unauthenticated: Option<Located<Reply>>,
        /// The answer to requests that are denied. Default: that of the top level.
        pub denied: Option<Located<Reply>>,
        /// Keep decisions. Default: as the top level says.
        pub decision_cache: Option<DecisionCache>,
    }
}

config_struct! {
    /// How ambiguous paths are read. What is false makes such paths an error, 400.
    pub struct PathRules {
        /// Read `//` as `/`. Only when the proxy or the application does so too. Default false.
        pub merge_slashes: Option<bool>,
        /// Follow `.` and `..`. Only when the proxy or the application does so too. Default false.
        pub resolve_dots: Option<bool>,
        /// Take `%2F` for an ordinary character that separates nothing. Default false.
        pub allow_encoded_slash: Option<bool>,
        /// Take `;` for an ordinary character. Default false.
        pub allow_semicolon: Option<bool>,
    }
}
