//! From the tree of a file to its rules.

use std::{num::NonZeroU32, sync::Arc};

use attache_service::config::{Errors, Node};

use super::{
    rules::{Allowance, Limit, Rules},
    yaml,
};
use crate::limiter::Unit;

/// Flags of a descriptor that the language has and this version has not.
const LATER: [&str; 5] = [
    "shadow_mode",
    "quota_mode",
    "detailed_metric",
    "value_to_metric",
    "share_threshold",
];

/// Adds the rules of one file. After an error the rules are not to be used.
pub(super) fn add_file(root: &Node, rules: &mut Rules, errors: &mut Errors) {
    if !(root.as_map().is_some() || root.is_null()) {
        yaml::mismatch(root, "map[interface {}]interface {}", errors);
        return;
    }
    yaml::check(root, errors);
    let Some(domain) = yaml::text(root.get("domain"), errors) else {
        return;
    };
    let at = root.get("domain").unwrap_or(root);
    if domain.is_empty() {
        errors.push(at, "config file cannot have empty domain");
        return;
    }
    if !rules.add_domain(domain) {
        errors.push(at, format!("duplicate domain '{domain}' in config file"));
        return;
    }
    let mut loader = Loader {
        domain: Arc::from(domain),
        way: Vec::new(),
        rules,
        errors,
    };
    loader.descriptors(root);
}

struct Loader<'a> {
    domain: Arc<str>,
    /// The composite names from the domain to the present list.
    way: Vec<String>,
    rules: &'a mut Rules,
    errors: &'a mut Errors,
}

impl Loader<'_> {
    /// The `descriptors` of the domain or of a descriptor.
    fn descriptors(&mut self, parent: &Node) {
        let list = parent.get("descriptors");
        for node in yaml::list(list, "[]config.YamlDescriptor", self.errors) {
            // Items that are no maps are already refused.
            if node.as_map().is_some() {
                self.descriptor(node);
            }
        }
    }

    fn descriptor(&mut self, node: &Node) {
        let key = yaml::text(node.get("key"), self.errors);
        let value = yaml::text(node.get("value"), self.errors);
        let (Some(key), Some(value)) = (key, value) else {
            return;
        };
        if key.is_empty() {
            self.errors.push(node, "descriptor has empty key");
            return;
        }
        let composite = if value.is_empty() {
            key.to_owned()
        } else {
            format!("{key}_{value}")
        };
        self.refuse_later(node, &composite);
        let allowance = self.rate_limit(node.get("rate_limit"));

        self.way.push(composite);
        if !self
            .rules
            .add_descriptor(&self.domain, &self.way, allowance)
        {
            let path = format!("{}.{}", self.domain, self.way.join("."));
            let text = format!("duplicate descriptor composite key '{path}'");
            self.errors.push(node, text);
        }
        self.descriptors(node);
        self.way.pop();
    }

    fn rate_limit(&mut self, node: Option<&Node>) -> Option<Allowance> {
        let node = node.filter(|node| !node.is_null())?;
        if node.as_map().is_none() {
            yaml::mismatch(node, "config.YamlRateLimit", self.errors);
            return None;
        }
        let requests_per_unit = yaml::number(node.get("requests_per_unit"), self.errors);
        let unit_text = yaml::text(node.get("unit"), self.errors)?;
        let name = yaml::text(node.get("name"), self.errors)?;
        self.replaces(node, name);

        let unit = Unit::parse(unit_text);
        let at = node.get("unit").unwrap_or(node);
        if yaml::boolean(node.get("unlimited"), self.errors) {
            if unit.is_some() {
                self.errors
                    .push(at, "should not specify rate limit unit when unlimited");
            }
            return Some(Allowance::Unlimited);
        }
        let Some(unit) = unit else {
            self.errors
                .push(at, format!("invalid rate limit unit '{unit_text}'"));
            return None;
        };
        Some(Allowance::Limited(Limit {
            requests_per_unit,
            unit,
            unit_multiplier: NonZeroU32::MIN,
            name: name.into(),
        }))
    }

    fn replaces(&mut self, limit: &Node, own: &str) {
        let Some(node) = limit.get("replaces") else {
            return;
        };
        let items = yaml::list(Some(node), "[]config.yamlReplaces", self.errors);
        for item in items.iter().filter(|item| item.as_map().is_some()) {
            match yaml::text(item.get("name"), self.errors) {
                Some("") => self
                    .errors
                    .push(item, "should not have an empty replaces entry"),
                Some(name) if name == own => self
                    .errors
                    .push(item, "replaces should not contain name of same descriptor"),
                _ => {}
            }
        }
        if !items.is_empty() {
            self.later(node, "replaces");
        }
    }

    /// Refuses what the language has and this version has not; what is switched off is fine.
    fn refuse_later(&mut self, node: &Node, composite: &str) {
        for flag in LATER {
            let Some(value) = node.get(flag) else {
                continue;
            };
            if !yaml::boolean(Some(value), self.errors) {
                continue;
            }
            if flag == "share_threshold" && !composite.contains('*') {
                let text = format!(
                    "share_threshold can only be used with wildcard values (containing '*'), but found key '{composite}'"
                );
                self.errors.push(value, text);
            }
            self.later(value, flag);
        }
        if let Some(metadata) = node.get("metadata").filter(|value| !value.is_null()) {
            self.later(metadata, "metadata");
        }
    }

    fn later(&mut self, node: &Node, key: &str) {
        self.errors
            .push(node, format!("`{key}` is known, but not supported yet"));
    }
}
