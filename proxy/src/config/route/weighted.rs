//! `weighted_clusters`: one of several clusters for each request.

use std::collections::BTreeMap;

use attache_filter::header_option::HeaderValueOption;
use attache_service::{
    config::{Located, Node},
    config_oneof, config_struct,
};

config_struct! {
    /// Several clusters, each with its share of the requests (Envoy's
    /// `config.route.v3.WeightedCluster`). Which one a request goes to does not change when its
    /// route is picked again.
    pub struct WeightedClusters {
        /// The clusters. Their weights together are more than 0.
        pub clusters: Located<Vec<ClusterWeight>>,
        /// A request header with a number that decides, modulo all weights, instead of a random
        /// one. Without the header, or where it holds no number, it is random.
        pub header_name: Option<Located<String>>,
    }
    elsewhere {
        "total_weight" => "is deprecated in Envoy: the total is the sum of the weights",
        "runtime_key_prefix" => "there is no runtime layer: change the weights and reload",
        "use_hash_policy" => "write `header_name`",
    }
}

config_struct! {
    /// One cluster with its share (Envoy's `WeightedCluster.ClusterWeight`).
    pub struct ClusterWeight {
        /// Its share, out of the sum of all.
        pub weight: u32,
        /// Headers added to requests, before those of the route.
        pub request_headers_to_add: Vec<HeaderValueOption>,
        /// Headers taken from requests.
        pub request_headers_to_remove: Vec<Located<String>>,
        /// Headers added to responses.
        pub response_headers_to_add: Vec<HeaderValueOption>,
        /// Headers taken from responses.
        pub response_headers_to_remove: Vec<Located<String>>,
        /// Settings of filters for these requests, before those of the route.
        pub typed_per_filter_config: BTreeMap<String, Node>,
        /// Replaces the host, where the route does not.
        pub host_rewrite_literal: Option<Located<String>>,
    }
    oneof {
        /// The cluster.
        pub target: WeightTarget,
    }
    elsewhere {
        "metadata_match" => "endpoints have no metadata",
    }
}

config_oneof! {
    /// How a cluster with a weight is named.
    pub enum WeightTarget {
        /// This one.
        Name(Located<String>) = "name",
        /// The one that a request header names.
        ClusterHeader(Located<String>) = "cluster_header",
    }
}
