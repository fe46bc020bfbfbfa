//! What is allowed.

use std::collections::BTreeMap;

use attache_service::{
    config::{ConfigValue, Errors, Located, Node, Schemas, json},
    config_enum, config_oneof, config_struct,
};

use super::Reply;

config_enum! {
    /// What a rule decides.
    pub enum Action {
        /// Let the request pass.
        Allow = "allow",
        /// Do not.
        Deny = "deny",
        /// Ask a policy.
        Ask = "ask",
    }
}

config_struct! {
    /// A rule. All that is given must match; what is a list, with one of its items.
    pub struct Rule {
        /// Its name in logs.
        pub name: Option<String>,
        /// What it decides.
        pub action: Located<Action>,
        /// Methods.
        pub methods: Vec<String>,
        /// Paths, decoded and without the query.
        pub paths: Vec<Located<PathMatch>>,
        /// Host names without port: `example.com`, or `*.example.com` for names below it.
        pub hosts: Vec<String>,
        /// Identity sources by name. Default: for `allow` all but the anonymous ones, for `deny`
        /// and `ask` everybody.
        pub identity: Vec<Located<String>>,
        /// Claims of the identity and what they are or, for lists, contain. Dots lead into maps.
        pub claims: BTreeMap<String, Wanted>,
        /// Addresses or networks (`10.0.0.0/8`) of the proxy's peer.
        pub sources: Vec<Located<String>>,
        /// A condition in CEL, the Common Expression Language, over `request`, `source`,
        /// `identity` and `context`. Where it cannot be evaluated, as when it asks for a header
        /// that is not there, an `allow` rule does not match, a `deny` rule does, and an `ask`
        /// rule denies.
        pub when: Option<Located<String>>,
        /// For `ask`: the policy. Default: the only one.
        pub policy: Option<Located<String>>,
        /// For `deny`: the answer, instead of the general one.
        pub response: Option<Located<Reply>>,
    }
}

config_oneof! {
    /// How a path is compared.
    pub enum PathMatch {
        /// All of it.
        Exact(String) = "exact",
        /// Whole segments at its beginning: `/admin` is the beginning of `/admin/x`, not of
        /// `/administration`.
        Prefix(String) = "prefix",
        /// A regular expression that all of it matches.
        Regex(String) = "regex",
    }
}

/// One text or a list of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted(pub Vec<String>);

impl ConfigValue for Wanted {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        match node.as_seq() {
            Some(items) => {
                let texts = items.iter().map(|item| String::decode(item, errors));
                texts.collect::<Option<_>>().map(Self)
            }
            None => String::decode(node, errors).map(|text| Self(vec![text])),
        }
    }

    fn encode(&self) -> Option<json::Value> {
        Some(self.0.clone().into())
    }

    fn schema(_schemas: &mut Schemas) -> json::Value {
        json::json!({
            "type": ["string", "number", "boolean", "array"],
            "items": { "type": ["string", "number", "boolean"] },
        })
    }
}
