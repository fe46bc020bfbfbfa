//! What the language has beyond the reference's. A file without it means the same to both.

use std::num::NonZeroU32;

use attache_service::config::{Entry, Errors, Located, Node, fields::decode_name};

use super::tree::{AlgorithmName, Defaults, Extension};
use crate::{
    limiter::UtcOffset,
    store::{Charging, Outage, Rejected, Sharing},
};

/// What stands beside `domain`.
pub(super) const OF_DOMAIN: [&str; 2] = ["charging", "defaults"];

/// What stands in a `rate_limit`.
pub(super) const OF_LIMIT: [&str; 7] = [
    "unit_multiplier",
    "algorithm",
    "burst",
    "time_zone",
    "rejected",
    "sharing",
    "on_store_outage",
];

/// What stands in `defaults`.
const OF_DEFAULTS: [&str; 4] = ["time_zone", "rejected", "sharing", "on_store_outage"];

/// Whether the reference does not know the key, but we do.
pub(super) fn is_key(name: &str) -> bool {
    OF_DOMAIN.contains(&name) || OF_LIMIT.contains(&name)
}

/// Refuses those keys that stand where they mean nothing. The reference's own are passed over in
/// such places, as it does.
pub(super) fn check_place(node: &Node, here: &[&str], errors: &mut Errors) {
    for Entry { key, .. } in node.as_map().unwrap_or_default() {
        let name = &*key.name;
        if !is_key(name) || here.contains(&name) {
            continue;
        }
        let place = if OF_DOMAIN.contains(&name) {
            "beside `domain`"
        } else if OF_DEFAULTS.contains(&name) {
            "in a `rate_limit`, or in `defaults` beside `domain`"
        } else {
            "in a `rate_limit`"
        };
        errors.push(key, format!("`{name}` can only stand {place}"));
    }
}

pub(super) fn charging(root: &Node, errors: &mut Errors) -> Option<Located<Charging>> {
    let names = [
        ("each", Charging::Each),
        ("all_or_nothing", Charging::AllOrNothing),
    ];
    choice(root.get("charging"), &names, errors)
}

pub(super) fn defaults(node: Option<&Node>, errors: &mut Errors) -> Option<Located<Defaults>> {
    let node = node.filter(|node| !node.is_null())?;
    let Some(entries) = node.as_map() else {
        errors.expected(node, "a map");
        return None;
    };
    for Entry { key, .. } in entries {
        if !OF_DEFAULTS.contains(&&*key.name) {
            let text = format!("`{}` cannot stand in `defaults`", key.name);
            errors.push(key, text);
        }
    }
    let defaults = Defaults {
        time_zone: time_zone(node, errors).map(Located::into_inner),
        rejected: rejected(node, errors).map(Located::into_inner),
        sharing: sharing(node, errors).map(Located::into_inner),
        on_store_outage: on_store_outage(node, errors).map(Located::into_inner),
    };
    Some(located(node, defaults))
}

pub(super) fn of_limit(node: &Node, errors: &mut Errors) -> Extension {
    let algorithms = [
        ("fixed_window", AlgorithmName::FixedWindow),
        ("calendar_window", AlgorithmName::CalendarWindow),
        ("sliding_window", AlgorithmName::SlidingWindow),
        ("token_bucket", AlgorithmName::TokenBucket),
    ];
    Extension {
        unit_multiplier: positive(node.get("unit_multiplier"), errors),
        algorithm: choice(node.get("algorithm"), &algorithms, errors),
        burst: positive(node.get("burst"), errors),
        time_zone: time_zone(node, errors),
        rejected: rejected(node, errors),
        sharing: sharing(node, errors),
        on_store_outage: on_store_outage(node, errors),
    }
}

fn rejected(parent: &Node, errors: &mut Errors) -> Option<Located<Rejected>> {
    let names = [("counted", Rejected::Counted), ("free", Rejected::Free)];
    choice(parent.get("rejected"), &names, errors)
}

fn sharing(parent: &Node, errors: &mut Errors) -> Option<Located<Sharing>> {
    let names = [("exact", Sharing::Exact), ("leased", Sharing::Leased)];
    choice(parent.get("sharing"), &names, errors)
}

fn on_store_outage(parent: &Node, errors: &mut Errors) -> Option<Located<Outage>> {
    let names = [
        ("fail", Outage::Fail),
        ("open", Outage::Open),
        ("closed", Outage::Closed),
        ("local_share", Outage::LocalShare),
    ];
    choice(parent.get("on_store_outage"), &names, errors)
}

fn time_zone(parent: &Node, errors: &mut Errors) -> Option<Located<UtcOffset>> {
    let node = present(parent.get("time_zone"))?;
    let offset = node.text().and_then(UtcOffset::parse);
    if offset.is_none() {
        errors.expected(node, "`UTC` or an offset from it like `+02:00`");
    }
    Some(located(node, offset?))
}

fn positive(node: Option<&Node>, errors: &mut Errors) -> Option<Located<NonZeroU32>> {
    let node = present(node)?;
    let number = node.text().and_then(|text| text.parse().ok());
    if number.is_none() {
        errors.expected(node, "a whole number from 1 to 4294967295");
    }
    Some(located(node, number?))
}

fn choice<T: Copy>(
    node: Option<&Node>,
    names: &[(&'static str, T)],
    errors: &mut Errors,
) -> Option<Located<T>> {
    let node = present(node)?;
    let value = decode_name(node, errors, names, &[])?;
    Some(located(node, value))
}

fn present(node: Option<&Node>) -> Option<&Node> {
    node.filter(|node| !node.is_null())
}

fn located<T>(node: &Node, value: T) -> Located<T> {
    Located {
        value,
        span: node.span.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use crate::{
        config::{Algorithm, Allowance, Limit, Merge, Policy, Rules, tree},
        limiter::{Unit, UtcOffset},
        store::{Charging, Outage, Rejected, Sharing},
    };

    fn parse(root: &str, limit: &str) -> Result<Rules, Vec<String>> {
        let text =
            format!("domain: d\n{root}\ndescriptors:\n- key: a\n  rate_limit: {{ {limit} }}\n");
        Rules::parse("limits.yaml", &text).map_err(|errors| {
            let messages = errors.iter().map(|error| error.message().to_owned());
            messages.collect()
        })
    }

    fn limit(root: &str, limit: &str) -> Limit {
        let rules = parse(root, limit).unwrap_or_else(|errors| panic!("{errors:?}"));
        match rules.iter().next().unwrap().1.allowance {
            Allowance::Limited(limit) => limit,
            Allowance::Unlimited => panic!("unlimited"),
        }
    }

    #[test]
    fn a_limit_says_how_hits_are_counted() {
        let plain = Limit::new(6, Unit::Day);
        let table = [
            ("", plain),
            ("algorithm: fixed_window", plain),
            (
                "unit_multiplier: 5",
                Limit {
                    unit_multiplier: NonZeroU32::new(5).unwrap(),
                    ..plain
                },
            ),
            (
                "algorithm: sliding_window",
                Limit {
                    algorithm: Algorithm::SlidingWindow,
                    ..plain
                },
            ),
            (
                "algorithm: calendar_window",
                Limit {
                    algorithm: Algorithm::CalendarWindow(UtcOffset::UTC),
                    ..plain
                },
            ),
            (
                "algorithm: calendar_window, time_zone: +02:00",
                Limit {
                    algorithm: Algorithm::CalendarWindow(UtcOffset::parse("+02:00").unwrap()),
                    ..plain
                },
            ),
            (
                "algorithm: token_bucket, burst: 9",
                Limit {
                    algorithm: Algorithm::TokenBucket { burst: 9 },
                    policy: Policy {
                        rejected: Rejected::Free,
                        ..Policy::default()
                    },
                    ..plain
                },
            ),
            (
                "algorithm: token_bucket, rejected: counted",
                Limit {
                    algorithm: Algorithm::TokenBucket { burst: 6 },
                    ..plain
                },
            ),
            (
                "rejected: free, sharing: leased, on_store_outage: local_share",
                Limit {
                    policy: Policy {
                        rejected: Rejected::Free,
                        sharing: Sharing::Leased,
                        on_store_outage: Outage::LocalShare,
                    },
                    ..plain
                },
            ),
        ];
        for (fields, expected) in table {
            let fields = format!("unit: day, requests_per_unit: 6, {fields}");
            assert_eq!(limit("", &fields), expected, "{fields}");
        }
    }

    #[test]
    fn a_domain_says_what_holds_for_limits_that_say_nothing() {
        let root = "charging: all_or_nothing
defaults: { time_zone: '-03:30', on_store_outage: closed }";
        let rules = parse(root, "unit: day").unwrap();
        assert_eq!(
            rules.domain("d").unwrap().charging(),
            Charging::AllOrNothing
        );
        let policy = rules.domain("d").unwrap().policy();
        assert_eq!(policy.on_store_outage, Outage::Closed);
        assert_eq!(policy.rejected, Rejected::Free);
        assert_eq!(limit(root, "unit: day").policy, policy);
        let own = limit(root, "unit: day, algorithm: calendar_window");
        let offset = UtcOffset::parse("-03:30").unwrap();
        let each = "defaults: { rejected: free }";
        assert_eq!(limit(each, "unit: day").policy.rejected, Rejected::Free);
        let counted = limit(each, "unit: day, rejected: counted");
        assert_eq!(counted.policy.rejected, Rejected::Counted);
        assert_eq!(own.algorithm, Algorithm::CalendarWindow(offset));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let all = "charging: all_or_nothing";
        let table = [
            (
                "",
                "unit: day, unit_multiplier: 0",
                "expected a whole number from 1 to 4294967295",
            ),
            (
                "",
                "unit: year, unit_multiplier: 101",
                "no window can be longer than 100 years",
            ),
            (
                "",
                "unit: day, algorithm: leaky",
                "unknown value `leaky` for `algorithm`",
            ),
            (
                "",
                "unit: day, burst: 3",
                "`burst` needs `algorithm: token_bucket`",
            ),
            (
                "",
                "unit: day, time_zone: UTC",
                "`time_zone` needs `algorithm: calendar_window`",
            ),
            (
                "",
                "unit: day, algorithm: calendar_window, time_zone: Europe/Berlin",
                "expected `UTC` or an offset from it like `+02:00`",
            ),
            (
                "",
                "unit: hour, algorithm: calendar_window",
                "a window of the calendar is a day, a week, a month or a year",
            ),
            (
                "",
                "unit: day, algorithm: calendar_window, unit_multiplier: 2",
                "`unit_multiplier` cannot be used with `algorithm: calendar_window`",
            ),
            (
                "",
                "unit: day, algorithm: token_bucket",
                "a token bucket needs `requests_per_unit`, or it never fills",
            ),
            (
                "",
                "unit: day, algorithm: sliding_window, sharing: leased",
                "`sharing: leased` needs",
            ),
            (
                all,
                "unit: day, sharing: leased",
                "`sharing: leased` cannot be used in a domain",
            ),
            (
                "charging: all_or_nothing\ndefaults: { sharing: leased }",
                "unit: day",
                "`sharing: leased` cannot be used in a domain",
            ),
            (
                "",
                "unlimited: true, rejected: free",
                "`rejected` means nothing when unlimited",
            ),
            (
                "charging: some",
                "unit: day",
                "unknown value `some` for `charging`",
            ),
            (
                "defaults: { unit: day }",
                "unit: day",
                "`unit` cannot stand in `defaults`",
            ),
            (
                "defaults: yes",
                "unit: day",
                "expected a map for `defaults`",
            ),
            (
                "rejected: free",
                "unit: day",
                "`rejected` can only stand in a `rate_limit`, or in `defaults` beside `domain`",
            ),
            (
                "",
                "unit: day, charging: each",
                "`charging` can only stand beside `domain`",
            ),
        ];
        for (root, limit, expected) in table {
            let errors = parse(root, limit).unwrap_err();
            assert!(
                errors.iter().any(|error| error.starts_with(expected)),
                "{root} {limit}\n{errors:?}"
            );
        }
        let text = format!("domain: d\n{all}\ndescriptors:\n- {{ key: a, quota_mode: true }}");
        let errors = Rules::parse("limits.yaml", &text).unwrap_err();
        assert!(errors.to_string().contains("`quota_mode` cannot be used"));
        let text = "domain: d\ndescriptors:\n- { key: a, burst: 3 }";
        let errors = Rules::parse("limits.yaml", text).unwrap_err();
        assert!(
            errors
                .to_string()
                .contains("`burst` can only stand in a `rate_limit`")
        );
    }

    #[test]
    fn merged_files_cannot_disagree_about_their_domain() {
        let domain = |charging: Option<Charging>| tree::Domain {
            domain: "d".to_owned(),
            charging: charging.map(super::Located::nowhere),
            ..tree::Domain::default()
        };
        let load = |second| {
            let first = Some(Charging::AllOrNothing);
            Rules::compile([domain(first), domain(second)], Merge::Domains)
        };
        let charging = |rules: Rules| rules.domain("d").unwrap().charging();
        assert_eq!(charging(load(None).unwrap()), Charging::AllOrNothing);
        assert!(load(Some(Charging::AllOrNothing)).is_ok());
        let errors = load(Some(Charging::Each)).unwrap_err();
        assert!(
            errors.to_string().contains("another `charging`"),
            "{errors}"
        );
    }
}
