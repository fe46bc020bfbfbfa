//! Rules as discovery (xDS) carries them.

use std::{fmt::Write as _, sync::Arc};

use attache_proto::ratelimit_config::{
    RateLimitConfig, RateLimitDescriptor, RateLimitPolicy, RateLimitUnit,
};
use attache_service::config::{Errors, Located, Source, Span};

use super::{
    Merge,
    rules::Rules,
    tree::{Descriptor, Domain, Extension, RateLimit},
};

impl Rules {
    /// Makes rules of resources, in their order: all checks of files but those of YAML. Errors
    /// name the resource, and show the descriptor as a line of the resource written out.
    ///
    /// # Errors
    /// All faults of all resources: one bad resource refuses them all.
    pub fn from_resources(resources: &[RateLimitConfig], merge: Merge) -> Result<Self, Errors> {
        Self::compile(resources.iter().map(domain), merge)
    }
}

fn domain(resource: &RateLimitConfig) -> Domain {
    let mut text = format!("domain: {}\n", resource.domain.escape_debug());
    write_descriptors(&resource.descriptors, 0, &mut text);
    let mut lines = Lines {
        source: Arc::new(Source::new(&*resource.name, text)),
        next: 1,
    };
    Domain {
        at: lines.next(),
        domain: resource.domain.clone(),
        // Resources have no fields beyond the reference's.
        charging: None,
        defaults: None,
        descriptors: lines.descriptors(&resource.descriptors),
    }
}

/// One line for each descriptor, those below it behind it.
fn write_descriptors(descriptors: &[RateLimitDescriptor], depth: usize, text: &mut String) {
    for descriptor in descriptors {
        let RateLimitDescriptor { key, value, .. } = descriptor;
        let indent = "  ".repeat(depth);
        // Writing to a String cannot fail.
        let _ = write!(text, "{indent}- key: {}", key.escape_debug());
        if !value.is_empty() {
            let _ = write!(text, ", value: {}", value.escape_debug());
        }
        if let Some(limit) = &descriptor.rate_limit {
            let (unit, requests) = (unit(limit), limit.requests_per_unit);
            let _ = write!(text, ", {requests} per {unit}");
        }
        text.push('\n');
        write_descriptors(&descriptor.descriptors, depth + 1, text);
    }
}

/// The name of a policy's unit, or the number of one that does not exist.
fn unit(limit: &RateLimitPolicy) -> String {
    match RateLimitUnit::try_from(limit.unit) {
        Ok(unit) => unit.as_str_name().to_owned(),
        Err(_) => limit.unit.to_string(),
    }
}

/// The lines of a resource written out, taken one by one.
struct Lines {
    source: Arc<Source>,
    next: u32,
}

impl Lines {
    fn next(&mut self) -> Span {
        let line = self.next;
        self.next = line.saturating_add(1);
        Span::of_line(&self.source, line)
    }

    fn descriptors(&mut self, descriptors: &[RateLimitDescriptor]) -> Vec<Descriptor> {
        descriptors
            .iter()
            .map(|from| self.descriptor(from))
            .collect()
    }

    fn descriptor(&mut self, from: &RateLimitDescriptor) -> Descriptor {
        let at = self.next();
        Descriptor {
            key: from.key.clone(),
            value: from.value.clone(),
            rate_limit: from.rate_limit.as_ref().map(|from| rate_limit(from, &at)),
            shadow_mode: from.shadow_mode,
            quota_mode: from.quota_mode,
            detailed_metric: from.detailed_metric,
            // Files have these, resources have not.
            value_to_metric: false,
            share_threshold: false,
            metadata: from.metadata.clone().map(Arc::new),
            descriptors: self.descriptors(&from.descriptors),
            at,
        }
    }
}

fn rate_limit(from: &RateLimitPolicy, at: &Span) -> RateLimit {
    let located = |value: String| Located {
        value,
        span: at.clone(),
    };
    RateLimit {
        at: at.clone(),
        unit: located(unit(from)),
        requests_per_unit: from.requests_per_unit,
        unlimited: from.unlimited,
        name: from.name.clone(),
        replaces: from
            .replaces
            .iter()
            .map(|replaced| located(replaced.name.clone()))
            .collect(),
        extension: Extension::default(),
    }
}

#[cfg(test)]
mod tests {
    use attache_proto::ratelimit_config::RateLimitReplace;

    use super::*;

    fn limit(unit: RateLimitUnit, requests_per_unit: u32) -> RateLimitPolicy {
        RateLimitPolicy {
            unit: unit.into(),
            requests_per_unit,
            ..RateLimitPolicy::default()
        }
    }

    fn rule(key: &str, value: &str, rate_limit: RateLimitPolicy) -> RateLimitDescriptor {
        RateLimitDescriptor {
            key: key.to_owned(),
            value: value.to_owned(),
            rate_limit: Some(rate_limit),
            ..RateLimitDescriptor::default()
        }
    }

    fn resource(name: &str, domain: &str, rules: Vec<RateLimitDescriptor>) -> RateLimitConfig {
        RateLimitConfig {
            name: name.to_owned(),
            domain: domain.to_owned(),
            descriptors: rules,
        }
    }

    fn messages(resources: &[RateLimitConfig]) -> Vec<String> {
        let errors = Rules::from_resources(resources, Merge::Refuse).unwrap_err();
        errors
            .iter()
            .map(|error| format!("{}: {}", error.file().unwrap(), error.message()))
            .collect()
    }

    #[test]
    fn a_resource_has_the_rules_of_the_file_with_the_same_content() {
        let mut parent = rule("route", "checkout", limit(RateLimitUnit::Hour, 7));
        parent.shadow_mode = true;
        parent.descriptors = vec![rule("user", "", limit(RateLimitUnit::Week, 5))];
        let free = RateLimitPolicy {
            unlimited: true,
            name: "free".to_owned(),
            replaces: vec![RateLimitReplace {
                name: "other".to_owned(),
            }],
            ..RateLimitPolicy::default()
        };
        let wild = rule("user", "internal-*", free);
        let resources = [resource("r", "shop", vec![parent, wild])];

        let rules = Rules::from_resources(&resources, Merge::Refuse).unwrap();

        let file = "
domain: shop
descriptors:
- key: route
  value: checkout
  shadow_mode: true
  rate_limit: { unit: hour, requests_per_unit: 7 }
  descriptors:
  - key: user
    rate_limit: { unit: week, requests_per_unit: 5 }
- key: user
  value: internal-*
  rate_limit: { unlimited: true, name: free, replaces: [{ name: other }] }
";
        let expected = Rules::parse("shop.yaml", file).unwrap();
        let all =
            |rules: &Rules| -> Vec<_> { rules.iter().map(|(_, rule)| rule.clone()).collect() };
        assert_eq!(all(&rules), all(&expected));
    }

    #[test]
    fn bad_resources_are_refused_with_the_texts_of_the_reference() {
        let minute = || limit(RateLimitUnit::Minute, 1);
        let of = |rate_limit: RateLimitPolicy| vec![rule("k", "v", rate_limit)];
        let replacing = |name: &str| RateLimitPolicy {
            name: "own".to_owned(),
            replaces: vec![RateLimitReplace {
                name: name.to_owned(),
            }],
            ..minute()
        };
        let table = [
            (
                resource("r", "", vec![]),
                "config file cannot have empty domain",
            ),
            (
                resource("r", "d", vec![rule("", "v", minute())]),
                "descriptor has empty key",
            ),
            (
                resource(
                    "r",
                    "d",
                    vec![rule("a", "b_c", minute()), rule("a_b", "c", minute())],
                ),
                "duplicate descriptor composite key 'd.a_b_c'",
            ),
            (
                resource("r", "d", of(RateLimitPolicy::default())),
                "invalid rate limit unit 'UNKNOWN'",
            ),
            (
                resource(
                    "r",
                    "d",
                    of(RateLimitPolicy {
                        unit: 9,
                        ..minute()
                    }),
                ),
                "invalid rate limit unit '9'",
            ),
            (
                resource(
                    "r",
                    "d",
                    of(RateLimitPolicy {
                        unlimited: true,
                        ..minute()
                    }),
                ),
                "should not specify rate limit unit when unlimited",
            ),
            (
                resource("r", "d", of(replacing(""))),
                "should not have an empty replaces entry",
            ),
            (
                resource("r", "d", of(replacing("own"))),
                "replaces should not contain name of same descriptor",
            ),
        ];
        for (resource, text) in table {
            assert_eq!(messages(&[resource]), [format!("r: {text}")]);
        }
    }

    #[test]
    fn one_domain_in_two_resources_needs_merging() {
        let rules = |key: &str| vec![rule(key, "", limit(RateLimitUnit::Minute, 1))];
        let resources = [
            resource("one", "shop", rules("a")),
            resource("two", "shop", rules("b")),
        ];
        assert_eq!(
            messages(&resources),
            ["two: duplicate domain 'shop' in config file"]
        );
        let merged = Rules::from_resources(&resources, Merge::Domains).unwrap();
        assert_eq!(merged.iter().count(), 2);
    }

    #[test]
    fn nothing_at_all_is_valid() {
        let rules = Rules::from_resources(&[], Merge::Refuse).unwrap();
        assert_eq!(rules.iter().count(), 0);
    }

    #[test]
    fn faults_come_in_the_order_of_the_descriptors_and_show_them() {
        let rules = vec![
            rule("z", "", RateLimitPolicy::default()),
            rule("", "y", limit(RateLimitUnit::Day, 1)),
        ];
        let resources = [resource("r", "d\n", rules)];
        let errors = Rules::from_resources(&resources, Merge::Refuse).unwrap_err();
        assert_eq!(
            errors.to_string(),
            "\
r:2:1: invalid rate limit unit 'UNKNOWN'
  |
2 | - key: z, 0 per UNKNOWN
  | ^^^^^^^^^^^^^^^^^^^^^^^
r:3:1: descriptor has empty key
  |
3 | - key: , value: y, 1 per DAY
  | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^"
        );
    }
}
