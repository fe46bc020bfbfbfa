//! From a tree of rules to rules that can be looked up.

use std::{num::NonZeroU32, sync::Arc};

use attache_service::config::{Errors, Located, Spanned};

use super::{
    level::{Level, Node},
    limit::{Algorithm, LONGEST, Limit, Policy},
    metric_path,
    rules::{self, Allowance, Rule, RuleId, Rules},
    tree::{AlgorithmName, Defaults, Descriptor, Domain, Extension, RateLimit},
};
use crate::{
    limiter::Unit,
    store::{Charging, Rejected, Sharing},
};

/// What happens when two files or resources have the same domain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Merge {
    /// The second is refused.
    #[default]
    Refuse,
    /// Its descriptors are added behind those of the first. Those of one name are refused all the
    /// same.
    Domains,
}

impl Rules {
    /// Adds the rules of one file or resource. After an error the rules are not to be used.
    pub(super) fn add(&mut self, domain: Domain, merge: Merge, errors: &mut Errors) {
        if domain.domain.is_empty() {
            errors.push(&domain.at, "config file cannot have empty domain");
            return;
        }
        let name: Arc<str> = domain.domain.into();
        if merge == Merge::Refuse && self.has_domain(&name) {
            let text = format!("duplicate domain '{name}' in config file");
            errors.push(&domain.at, text);
            return;
        }
        let Self {
            domains,
            rules,
            split_seconds,
        } = self;
        let merged = !domains.insert(&name, rules::Domain::default());
        let Some(target) = domains.get_mut(&name) else {
            return;
        };
        if let Some(charging) = domain.charging {
            if merged && charging.value != target.charging {
                let text = format!("the domain '{name}' has another `charging` in another file");
                errors.push(&charging, text);
            }
            target.charging = charging.value;
        }
        if let Some(defaults) = domain.defaults {
            if merged && defaults.value != target.defaults {
                let text = format!("the domain '{name}' has other `defaults` in another file");
                errors.push(&defaults, text);
            }
            let leased = defaults.value.sharing == Some(Sharing::Leased);
            if leased && target.charging == Charging::AllOrNothing {
                errors.push(&defaults, LEASED_ALL_OR_NOTHING);
            }
            let counted = defaults.value.rejected == Some(Rejected::Counted);
            if counted && target.charging == Charging::AllOrNothing {
                errors.push(&defaults, COUNTED_ALL_OR_NOTHING);
            }
            target.defaults = defaults.value;
        }
        let mut compiler = Compiler {
            domain: name,
            charging: target.charging,
            defaults: target.defaults,
            way: Vec::new(),
            rules,
            split_seconds,
            replaces: false,
            errors,
        };
        compiler.descriptors(domain.descriptors, &mut target.root);
        target.replaces |= compiler.replaces;
    }
}

const LEASED_ALL_OR_NOTHING: &str = "`sharing: leased` cannot be used in a domain with `charging: all_or_nothing`: only the store sees all counters at once";

const COUNTED_ALL_OR_NOTHING: &str = "`rejected: counted` cannot be used in a domain with `charging: all_or_nothing`: nothing of a rejected request is counted";

struct Compiler<'a> {
    domain: Arc<str>,
    charging: Charging,
    defaults: Defaults,
    /// The names of the descriptors down to the present list.
    way: Vec<String>,
    rules: &'a mut Vec<Rule>,
    /// Some of them are counted by parts of seconds.
    split_seconds: &'a mut bool,
    /// Some of the rules replace others.
    replaces: bool,
    errors: &'a mut Errors,
}

impl Compiler<'_> {
    fn descriptors(&mut self, descriptors: Vec<Descriptor>, level: &mut Level) {
        for descriptor in descriptors {
            if descriptor.key.is_empty() {
                self.errors.push(&descriptor.at, "descriptor has empty key");
                continue;
            }
            self.descriptor(descriptor, level);
        }
    }

    fn descriptor(&mut self, mut descriptor: Descriptor, level: &mut Level) {
        let name = if descriptor.value.is_empty() {
            descriptor.key.clone()
        } else {
            format!("{}_{}", descriptor.key, descriptor.value)
        };
        if descriptor.share_threshold && !name.contains('*') {
            let text = format!(
                "share_threshold can only be used with wildcard values (containing '*'), but found key '{name}'"
            );
            self.errors.push(&descriptor.at, text);
        }
        if descriptor.quota_mode && self.charging == Charging::AllOrNothing {
            let text = "`quota_mode` cannot be used in a domain with `charging: all_or_nothing`: a quota that is used up refuses nothing by itself";
            self.errors.push(&descriptor.at, text);
        }
        self.way.push(name.clone());
        let path = self.way.join(".");
        let full_path = format!("{}.{path}", self.domain);
        let rate_limit = descriptor.rate_limit.take();
        let rule = rate_limit.and_then(|limit| {
            let allowance = self.allowance(&limit)?;
            *self.split_seconds |= allowance.splits_seconds();
            let replaces = limit.replaces.into_iter();
            self.rules.push(Rule {
                domain: self.domain.clone(),
                metric_path: metric_path::sanitised(&full_path).into(),
                path,
                allowance,
                name: limit.name.into(),
                replaces: replaces.map(|name| name.value.into()).collect(),
                shadow_mode: descriptor.shadow_mode,
                quota_mode: descriptor.quota_mode,
                detailed_metric: descriptor.detailed_metric,
                metadata: descriptor.metadata.take(),
            });
            Some(RuleId(self.rules.len() - 1))
        });
        let mut node = Node::new(rule, descriptor.value_to_metric, descriptor.share_threshold);
        self.descriptors(descriptor.descriptors, node.children_mut());
        if !level.insert(&name, node) {
            let text = format!("duplicate descriptor composite key '{full_path}'");
            self.errors.push(&descriptor.at, text);
        }
        self.way.pop();
    }

    fn allowance(&mut self, limit: &RateLimit) -> Option<Allowance> {
        self.replaces |= !limit.replaces.is_empty();
        for replaced in &limit.replaces {
            if replaced.value.is_empty() {
                let text = "should not have an empty replaces entry";
                self.errors.push(replaced, text);
            } else if replaced.value == limit.name {
                let text = "replaces should not contain name of same descriptor";
                self.errors.push(replaced, text);
            }
        }
        match (limit.unlimited, Unit::parse(&limit.unit.value)) {
            (true, None) => {
                self.refuse_extension_of_unlimited(&limit.extension);
                Some(Allowance::Unlimited)
            }
            (true, Some(_)) => {
                let text = "should not specify rate limit unit when unlimited";
                self.errors.push(&limit.unit, text);
                None
            }
            (false, Some(unit)) => Some(Allowance::Limited(self.limit(limit, unit))),
            (false, None) => {
                let text = format!("invalid rate limit unit '{}'", limit.unit.value);
                self.errors.push(&limit.unit, text);
                None
            }
        }
    }

    fn limit(&mut self, limit: &RateLimit, unit: Unit) -> Limit {
        let algorithm = self.algorithm(limit, unit);
        let made = Limit {
            algorithm,
            policy: self.policy(&limit.extension, algorithm),
            unit_multiplier: match &limit.extension.unit_multiplier {
                Some(multiplier) => multiplier.value,
                None => NonZeroU32::MIN,
            },
            ..Limit::new(limit.requests_per_unit, unit)
        };
        if let Some(multiplier) = &limit.extension.unit_multiplier
            && unit.window_seconds(multiplier.value) > LONGEST
        {
            let text = "no window can be longer than 100 years";
            self.errors.push(multiplier, text);
        }
        made
    }

    fn algorithm(&mut self, limit: &RateLimit, unit: Unit) -> Algorithm {
        let Extension {
            algorithm,
            burst,
            time_zone,
            unit_multiplier,
            ..
        } = &limit.extension;
        let name = algorithm.as_ref();
        let name = name.map_or(AlgorithmName::FixedWindow, |name| name.value);
        if let Some(burst) = burst
            && name != AlgorithmName::TokenBucket
        {
            let text = "`burst` needs `algorithm: token_bucket`";
            self.errors.push(burst, text);
        }
        if let Some(time_zone) = time_zone
            && name != AlgorithmName::CalendarWindow
        {
            let text = "`time_zone` needs `algorithm: calendar_window`";
            self.errors.push(time_zone, text);
        }
        match name {
            AlgorithmName::FixedWindow => Algorithm::FixedWindow,
            AlgorithmName::SlidingWindow => Algorithm::SlidingWindow,
            AlgorithmName::CalendarWindow => {
                if matches!(unit, Unit::Second | Unit::Minute | Unit::Hour) {
                    let text = "a window of the calendar is a day, a week, a month or a year";
                    self.errors.push(&limit.unit, text);
                }
                if let Some(multiplier) = unit_multiplier {
                    let text = "`unit_multiplier` cannot be used with `algorithm: calendar_window`";
                    self.errors.push(multiplier, text);
                }
                let own = time_zone.as_ref().map(|time_zone| time_zone.value);
                Algorithm::CalendarWindow(own.or(self.defaults.time_zone).unwrap_or_default())
            }
            AlgorithmName::TokenBucket => {
                if limit.requests_per_unit == 0 {
                    let text = "a token bucket needs `requests_per_unit`, or it never fills";
                    self.errors.push(&limit.at, text);
                }
                let burst = burst.as_ref().map(|burst| burst.value.get());
                Algorithm::TokenBucket {
                    burst: burst.unwrap_or(limit.requests_per_unit),
                }
            }
        }
    }

    fn policy(&mut self, extension: &Extension, algorithm: Algorithm) -> Policy {
        let Defaults {
            rejected,
            sharing,
            on_store_outage,
            ..
        } = self.defaults;
        let windows = match algorithm {
            Algorithm::FixedWindow | Algorithm::CalendarWindow(_) => true,
            Algorithm::SlidingWindow | Algorithm::TokenBucket { .. } => false,
        };
        if let Some(own) = &extension.sharing
            && own.value == Sharing::Leased
            && !windows
        {
            let text = "`sharing: leased` needs `algorithm: fixed_window` or `calendar_window`: a lease ends with its window";
            self.errors.push(own, text);
        }
        if let Some(own) = &extension.sharing
            && own.value == Sharing::Leased
            && self.charging == Charging::AllOrNothing
        {
            self.errors.push(own, LEASED_ALL_OR_NOTHING);
        }
        if let Some(own) = &extension.rejected
            && own.value == Rejected::Counted
            && self.charging == Charging::AllOrNothing
        {
            self.errors.push(own, COUNTED_ALL_OR_NOTHING);
        }
        // A bucket that counted what it rejects would get into debt.
        let free = self.charging == Charging::AllOrNothing
            || matches!(algorithm, Algorithm::TokenBucket { .. });
        let rejected = if free {
            Rejected::Free
        } else {
            rejected.unwrap_or_default()
        };
        Policy {
            rejected: value_or(extension.rejected.as_ref(), rejected),
            sharing: value_or(
                extension.sharing.as_ref(),
                sharing.filter(|_| windows).unwrap_or_default(),
            ),
            on_store_outage: value_or(
                extension.on_store_outage.as_ref(),
                on_store_outage.unwrap_or_default(),
            ),
        }
    }

    fn refuse_extension_of_unlimited(&mut self, extension: &Extension) {
        let Extension {
            unit_multiplier,
            algorithm,
            burst,
            time_zone,
            rejected,
            sharing,
            on_store_outage,
        } = extension;
        let places = [
            (
                "unit_multiplier",
                unit_multiplier.as_ref().map(Spanned::span),
            ),
            ("algorithm", algorithm.as_ref().map(Spanned::span)),
            ("burst", burst.as_ref().map(Spanned::span)),
            ("time_zone", time_zone.as_ref().map(Spanned::span)),
            ("rejected", rejected.as_ref().map(Spanned::span)),
            ("sharing", sharing.as_ref().map(Spanned::span)),
            (
                "on_store_outage",
                on_store_outage.as_ref().map(Spanned::span),
            ),
        ];
        for (name, span) in places {
            if let Some(span) = span {
                let text = format!("`{name}` means nothing when unlimited");
                self.errors.push(span, text);
            }
        }
    }
}

fn value_or<T: Copy>(own: Option<&Located<T>>, default: T) -> T {
    own.map_or(default, |own| own.value)
}
