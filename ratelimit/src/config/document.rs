//! From a YAML document to a tree of rules.

use std::sync::Arc;

use attache_service::config::{Errors, Located, Node};

use super::{
    extension, metadata,
    tree::{Descriptor, Domain, RateLimit},
    yaml,
};

/// Reads one file. `None` when there is nothing that could be a domain; the tree is not whole when
/// there were errors.
pub(super) fn read(root: &Node, errors: &mut Errors) -> Option<Domain> {
    if !(root.as_map().is_some() || root.is_null()) {
        yaml::mismatch(root, "map[interface {}]interface {}", errors);
        return None;
    }
    yaml::check(root, errors);
    extension::check_place(root, &extension::OF_DOMAIN, errors);
    let domain = yaml::text(root.get("domain"), errors)?;
    let at = root.get("domain").unwrap_or(root);
    Some(Domain {
        at: at.span.clone(),
        domain: domain.to_owned(),
        charging: extension::charging(root, errors),
        defaults: extension::defaults(root.get("defaults"), errors),
        descriptors: descriptors(root, errors),
    })
}

/// The `descriptors` of the domain or of a descriptor.
fn descriptors(parent: &Node, errors: &mut Errors) -> Vec<Descriptor> {
    let list = yaml::list(parent.get("descriptors"), "[]config.YamlDescriptor", errors);
    list.iter()
        // Items that are no maps are already refused.
        .filter(|node| node.as_map().is_some())
        .map(|node| descriptor(node, errors))
        .collect()
}

fn descriptor(node: &Node, errors: &mut Errors) -> Descriptor {
    extension::check_place(node, &[], errors);
    let mut flag = |name: &str| yaml::boolean(node.get(name), errors);
    let shadow_mode = flag("shadow_mode");
    let quota_mode = flag("quota_mode");
    let detailed_metric = flag("detailed_metric");
    let value_to_metric = flag("value_to_metric");
    let share_threshold = flag("share_threshold");
    Descriptor {
        at: node.span.clone(),
        key: owned(node.get("key"), errors),
        value: owned(node.get("value"), errors),
        rate_limit: rate_limit(node.get("rate_limit"), errors),
        shadow_mode,
        quota_mode,
        detailed_metric,
        value_to_metric,
        share_threshold,
        metadata: metadata::read(node.get("metadata"), errors).map(Arc::new),
        descriptors: descriptors(node, errors),
    }
}

fn rate_limit(node: Option<&Node>, errors: &mut Errors) -> Option<RateLimit> {
    let node = node.filter(|node| !node.is_null())?;
    if node.as_map().is_none() {
        yaml::mismatch(node, "config.YamlRateLimit", errors);
        return None;
    }
    extension::check_place(node, &extension::OF_LIMIT, errors);
    Some(RateLimit {
        at: node.span.clone(),
        unit: located(node, "unit", errors),
        requests_per_unit: yaml::number(node.get("requests_per_unit"), errors),
        unlimited: yaml::boolean(node.get("unlimited"), errors),
        name: owned(node.get("name"), errors),
        replaces: yaml::list(node.get("replaces"), "[]config.yamlReplaces", errors)
            .iter()
            .filter(|item| item.as_map().is_some())
            .map(|item| located(item, "name", errors))
            .collect(),
        extension: extension::of_limit(node, errors),
    })
}

fn owned(node: Option<&Node>, errors: &mut Errors) -> String {
    yaml::text(node, errors).unwrap_or_default().to_owned()
}

/// A text that errors point at, or at what it is missing from.
fn located(parent: &Node, name: &str, errors: &mut Errors) -> Located<String> {
    let node = parent.get(name);
    Located {
        value: owned(node, errors),
        span: node.unwrap_or(parent).span.clone(),
    }
}
