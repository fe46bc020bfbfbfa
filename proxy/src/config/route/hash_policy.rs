//! `hash_policy`: what a request's endpoint is chosen by.

use std::time::Duration;

use attache_service::{config::Located, config_oneof, config_struct};

config_struct! {
    /// What a request's endpoint is chosen by, where its cluster has `lb_policy: RING_HASH` or
    /// `MAGLEV` (Envoy's `RouteAction.HashPolicy`). All that are there count together.
    pub struct HashPolicy {
        /// Where this one is there, those behind it do not count. Default false.
        pub terminal: Option<bool>,
    }
    oneof {
        /// What it is.
        pub by: HashBy,
    }
}

config_oneof! {
    /// What is hashed.
    pub enum HashBy {
        /// A header.
        Header(HashHeader) = "header",
        /// A cookie.
        Cookie(HashCookie) = "cookie",
        /// The client's address.
        ConnectionProperties(ConnectionProperties) = "connection_properties",
        /// A parameter of the query.
        QueryParameter(HashQueryParameter) = "query_parameter",
    }
    elsewhere {
        "filter_state" => "there is no filter state here",
    }
}

config_struct! {
    /// A header to be hashed.
    pub struct HashHeader {
        /// Its name.
        pub header_name: Located<String>,
    }
    elsewhere {
        "regex_rewrite" => "the whole value is hashed",
    }
}

config_struct! {
    /// A cookie to be hashed.
    pub struct HashCookie {
        /// Its name.
        pub name: Located<String>,
        /// Given, a client without the cookie is sent one that lasts so long; 0s is as long as
        /// the browser is open.
        pub ttl: Option<Duration>,
        /// The path of the cookie that is sent.
        pub path: Option<Located<String>>,
    }
    elsewhere {
        "attributes" => "a cookie has `name`, `ttl` and `path`",
    }
}

config_struct! {
    /// What is hashed of the connection.
    pub struct ConnectionProperties {
        /// The client's address, as trusted hops tell it.
        pub source_ip: bool = false,
    }
}

config_struct! {
    /// A parameter of the query to be hashed.
    pub struct HashQueryParameter {
        /// Its name.
        pub name: String,
    }
}
