//! `request_mirror_policies`: copies of requests to other clusters.

use attache_filter::{fraction::RuntimeFractionalPercent, header_option::HeaderValueOption};
use attache_service::{config::Located, config_oneof, config_struct};

config_struct! {
    /// Copies of requests (Envoy's `RouteAction.RequestMirrorPolicy`). What the copy is answered
    /// is dropped, and nothing that happens to it touches the request.
    pub struct RequestMirrorPolicy {
        /// The cluster that gets the copies.
        pub cluster: Located<String>,
        /// Share of the requests that is copied. Default all.
        pub runtime_fraction: Option<RuntimeFractionalPercent>,
        /// Leave the host as it is. Default false: `-shadow` is added to its name.
        pub disable_shadow_host_suffix_append: Option<bool>,
        /// Changes to the headers of the copies, in this order.
        pub request_headers_mutations: Vec<HeaderMutation>,
        /// The host of the copies, without `-shadow`.
        pub host_rewrite_literal: Option<Located<String>>,
    }
    elsewhere {
        "cluster_header" => "name a `cluster`",
        "trace_sampled" => "copies are not traced",
    }
}

config_struct! {
    /// Envoy's `config.common.mutation_rules.v3.HeaderMutation`.
    pub struct HeaderMutation {}
    oneof {
        /// What is done.
        pub action: HeaderAction,
    }
}

config_oneof! {
    /// A change to headers.
    pub enum HeaderAction {
        /// A header is taken out.
        Remove(Located<String>) = "remove",
        /// A header is added.
        Append(HeaderValueOption) = "append",
    }
    elsewhere {
        "remove_on_match" => "write `remove`",
    }
}
