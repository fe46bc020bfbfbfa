//! A route table, as written: at the top of the file, under a name, or on a listener.

use attache_filter::header_option::HeaderValueOption;
use attache_service::{
    config::{Located, Size},
    config_oneof, config_struct,
};

use super::{RequestMirrorPolicy, Route, VirtualHost};
use crate::config::Config;

config_struct! {
    /// A route table (Envoy's `RouteConfiguration`).
    #[derive(Default)]
    pub struct RouteConfiguration {
        /// Name for those who read it.
        pub name: Option<String>,
        /// Routes for every host; the first that matches is taken.
        pub routes: Vec<Route>,
        /// Routes for some hosts.
        pub virtual_hosts: Vec<VirtualHost>,
        /// Headers added to all requests for upstreams.
        pub request_headers_to_add: Vec<HeaderValueOption>,
        /// Headers taken from all requests for upstreams.
        pub request_headers_to_remove: Vec<Located<String>>,
        /// Headers added to all responses of routes.
        pub response_headers_to_add: Vec<HeaderValueOption>,
        /// Headers taken from all responses of routes.
        pub response_headers_to_remove: Vec<Located<String>>,
        /// Make header changes of the table first, then those of virtual hosts, then those of
        /// routes, so that the last word is the route's. Default false: the other way round.
        pub most_specific_header_mutations_wins: Option<bool>,
        /// Bytes that the body of a `direct_response` may have. Default 4 KiB.
        pub max_direct_response_body_size_bytes: Option<Size>,
        /// Copies of requests, where neither the route nor its virtual host says anything.
        pub request_mirror_policies: Vec<RequestMirrorPolicy>,
        /// Refuse routes to clusters that there are not; else they are answered as
        /// `cluster_not_found_response_code` says. Default true, and false for tables of a control
        /// plane.
        pub validate_clusters: Option<bool>,
        /// Ports of hosts never count here.
        pub ignore_port_in_host_matching: Option<bool>,
    }
    elsewhere {
        "vhds" => "virtual hosts come with their table",
        "internal_only_headers" => "internal headers are stripped at the edge",
        "cluster_specifier_plugins" => "write `cluster_header` or `weighted_clusters` in the routes",
        "ignore_path_parameters_in_path_matching" => "path parameters are part of the path",
        "typed_per_filter_config" => "write it in the virtual hosts or the routes",
        "metadata" => "write it in the routes",
    }
}

config_oneof! {
    /// The routes of one listener.
    pub enum RouteSpecifier {
        /// Its own ones.
        RouteConfig(Box<RouteConfiguration>) = "route_config",
        /// Those under this name in `route_configs`, or else with the control plane.
        RouteConfigName(Located<String>) = "route_config_name",
    }
}

/// What a table says, wherever it stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'c> {
    pub(crate) routes: &'c [Route],
    pub(crate) virtual_hosts: &'c [VirtualHost],
    pub(crate) request_headers_to_add: &'c Vec<HeaderValueOption>,
    pub(crate) request_headers_to_remove: &'c Vec<Located<String>>,
    pub(crate) response_headers_to_add: &'c Vec<HeaderValueOption>,
    pub(crate) response_headers_to_remove: &'c Vec<Located<String>>,
    pub(crate) most_specific_header_mutations_wins: Option<bool>,
    pub(crate) max_direct_response_body_size_bytes: Option<Size>,
    pub(crate) request_mirror_policies: &'c Vec<RequestMirrorPolicy>,
    pub(crate) validate_clusters: bool,
}

/// Each of these types has the fields of a table, by their names.
macro_rules! tables {
    ($($raw:ty),+) => {
        $(impl<'c> From<&'c $raw> for Table<'c> {
            fn from(raw: &'c $raw) -> Self {
                Self {
                    routes: &raw.routes,
                    virtual_hosts: &raw.virtual_hosts,
                    request_headers_to_add: &raw.request_headers_to_add,
                    request_headers_to_remove: &raw.request_headers_to_remove,
                    response_headers_to_add: &raw.response_headers_to_add,
                    response_headers_to_remove: &raw.response_headers_to_remove,
                    most_specific_header_mutations_wins: raw.most_specific_header_mutations_wins,
                    max_direct_response_body_size_bytes: raw.max_direct_response_body_size_bytes,
                    request_mirror_policies: &raw.request_mirror_policies,
                    validate_clusters: raw.validate_clusters != Some(false),
                }
            }
        })+
    };
}

// The top of the file is the table of listeners without one of their own.
tables!(RouteConfiguration, Config);

#[cfg(test)]
mod tests {
    use attache_service::config::Document;

    use super::*;

    #[test]
    fn a_table_says_the_same_at_the_top_of_the_file_and_under_a_name() {
        let text = "
routes: [{ match: { prefix: /a }, route: { cluster: one } }]
virtual_hosts: [{ name: h, domains: [h.test], routes: [{ match: { prefix: / }, route: { cluster: two } }] }]
request_headers_to_add: [{ header: { key: x-a, value: '1' } }]
request_headers_to_remove: [x-b]
response_headers_to_add: [{ header: { key: x-c, value: '2' } }]
response_headers_to_remove: [x-d]
most_specific_header_mutations_wins: true
max_direct_response_body_size_bytes: 9
request_mirror_policies: [{ cluster: three }]
validate_clusters: false
";
        let document = Document::parse("routes.yaml", text).unwrap();
        let (top, errors) = document.decode_partly::<Config>();
        let (named, more) = document.decode_partly::<RouteConfiguration>();
        let (top, named) = (
            errors.into_result(top).unwrap(),
            more.into_result(named).unwrap(),
        );
        let (top, named) = (Table::from(&top), Table::from(&named));
        assert_eq!(format!("{top:?}"), format!("{named:?}"));
        assert_eq!((top.routes.len(), top.virtual_hosts.len()), (1, 1));
        assert_eq!(
            top.max_direct_response_body_size_bytes.map(Size::as_usize),
            Some(9)
        );
        assert!(!top.validate_clusters);
    }
}
