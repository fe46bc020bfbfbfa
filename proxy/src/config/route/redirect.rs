//! `redirect`: the answer that sends a client elsewhere.

use attache_filter::substitution::RegexMatchAndSubstitute;
use attache_service::{config::Located, config_enum, config_oneof, config_struct};

config_struct! {
    /// A redirect. What is not written stays as it was asked for.
    pub struct Redirect {
        /// The new host.
        pub host_redirect: Option<String>,
        /// The new port.
        pub port_redirect: Option<u16>,
        /// The status. Default `MOVED_PERMANENTLY`.
        pub response_code: Option<RedirectCode>,
        /// Leave the query out. Default false.
        pub strip_query: Option<bool>,
    }
    oneof {
        /// The new scheme.
        pub scheme: Option<SchemeChange>,
        /// The new path.
        pub path: Option<PathRedirect>,
    }
}

config_oneof! {
    /// The new scheme of a redirect.
    pub enum SchemeChange {
        /// `https`.
        HttpsRedirect(bool) = "https_redirect",
        /// This one.
        SchemeRedirect(String) = "scheme_redirect",
    }
}

config_oneof! {
    /// The new path of a redirect.
    pub enum PathRedirect {
        /// This one; it may carry a query.
        PathRedirect(String) = "path_redirect",
        /// Replaces the part of the path that matched.
        PrefixRewrite(String) = "prefix_rewrite",
        /// Replaces what a regular expression matches in the path; the query stays.
        RegexRewrite(RegexMatchAndSubstitute) = "regex_rewrite",
        /// This one, with Envoy's formatters in it; the query stays.
        PathRewrite(Located<String>) = "path_rewrite",
    }
}

config_enum! {
    /// The status of a redirect.
    pub enum RedirectCode {
        /// 301.
        MovedPermanently = "MOVED_PERMANENTLY",
        /// 302.
        Found = "FOUND",
        /// 303.
        SeeOther = "SEE_OTHER",
        /// 307.
        TemporaryRedirect = "TEMPORARY_REDIRECT",
        /// 308.
        PermanentRedirect = "PERMANENT_REDIRECT",
    }
}
