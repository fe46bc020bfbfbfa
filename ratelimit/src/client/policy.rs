//! How descriptors are made of a request, and which policies it is under on its route.

use std::sync::Arc;

use attache_filter::{
    RequestContext,
    format::{Exchange, Formatter},
    metadata::{MetadataPath, find},
};
use attache_service::config::{Errors, Located};
use prost_types::value::Kind;

use super::{
    action::{Action, Entry, Outcome, Subject},
    raw::{self, LimitSource, RateLimitUnit, VhRateLimitsOptions, XRateLimitOption},
    request::{Hits, Limit},
};

/// Most hits that a policy may count a request as.
const MAX_HITS: u64 = 1_000_000_000;

/// The highest stage.
const MAX_STAGE: u32 = 10;

/// A planned [`raw::Policy`] or [`raw::RoutePolicy`].
#[derive(Debug, Clone)]
pub struct Policy {
    actions: Vec<Action>,
    hits: Option<HitsRule>,
    limit: Option<LimitRule>,
    shown: XRateLimitOption,
    at_end: bool,
}

/// How many hits a request is.
#[derive(Debug, Clone)]
enum HitsRule {
    Number(Hits),
    /// What a formatter gives; whether they are given back.
    Format(Formatter, bool),
}

/// The limit that a descriptor brings along.
#[derive(Debug, Clone)]
enum LimitRule {
    Fixed(Limit),
    Metadata(MetadataPath),
}

/// What a policy says of its descriptor, beside the entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// How many hits the request is, if it says so.
    pub hits: Option<Hits>,
    /// The limit, if it brings one along.
    pub limit: Option<Limit>,
}

/// The `rate_limits` of a route or virtual host, by stage.
#[derive(Debug, Clone, Default)]
pub struct StagedPolicies(Vec<(u32, Arc<Policy>)>);

/// The `rate_limits` around a route.
#[derive(Debug, Clone, Default)]
pub struct RouteLimits {
    /// Those of the route.
    pub route: StagedPolicies,
    /// Those of its virtual host.
    pub host: StagedPolicies,
    /// The route wants both (Envoy's deprecated `include_vh_rate_limits`).
    pub include_host: bool,
}

/// What a request is under: the domain to ask for, and the policies.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(super) domain: String,
    /// Those that are asked about before the request goes on.
    pub(super) before: Vec<Arc<Policy>>,
    /// Those that are asked about when the exchange is over.
    pub(super) at_end: Vec<Arc<Policy>>,
}

impl Settings {
    pub(super) fn new(domain: &str, policies: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        let policies = policies.into_iter();
        let (at_end, before) = policies.partition(|policy| policy.at_end);
        Self {
            domain: domain.to_owned(),
            before,
            at_end,
        }
    }
}

impl StagedPolicies {
    /// Checks and compiles policies; faults are reported at their place.
    pub fn plan(raw: &[raw::RoutePolicy], errors: &mut Errors) -> Self {
        let plan = |raw| Policy::plan_staged(raw, errors);
        Self(raw.iter().filter_map(plan).collect())
    }

    fn of_stage(&self, stage: u32) -> impl Iterator<Item = Arc<Policy>> {
        let of_stage = self.0.iter().filter(move |(other, _)| *other == stage);
        of_stage.map(|(_, policy)| policy.clone())
    }
}

impl RouteLimits {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.route.0.is_empty() && self.host.0.is_empty()
    }

    /// Those that count for a filter of `stage`.
    pub(super) fn policies(&self, stage: u32, host: VhRateLimitsOptions) -> Vec<Arc<Policy>> {
        let with_host = self.include_host
            || match host {
                VhRateLimitsOptions::Include => true,
                VhRateLimitsOptions::Ignore => false,
                // Policies of another stage are policies, too.
                VhRateLimitsOptions::Override => self.route.0.is_empty(),
            };
        let mut policies: Vec<_> = self.route.of_stage(stage).collect();
        if with_host {
            policies.extend(self.host.of_stage(stage));
        }
        policies
    }
}

/// Checks a stage.
pub(super) fn stage(raw: Option<&Located<u32>>, errors: &mut Errors) -> u32 {
    if let Some(raw) = raw.filter(|stage| stage.value > MAX_STAGE) {
        errors.push(raw, format!("stages are numbers from 0 to {MAX_STAGE}"));
    }
    raw.map_or(0, |stage| stage.value)
}

/// Checks and compiles policies, and reports the faults of all; `None` only after an error.
pub(crate) fn plan_all(raw: &[raw::Policy], errors: &mut Errors) -> Option<Vec<Arc<Policy>>> {
    let planned: Vec<_> = raw
        .iter()
        .map(|policy| Policy::plan(policy, errors))
        .collect();
    planned
        .into_iter()
        .map(|policy| policy.map(Arc::new))
        .collect()
}

impl Policy {
    /// Checks and compiles a policy; faults are reported at their place.
    pub fn plan(raw: &raw::Policy, errors: &mut Errors) -> Option<Self> {
        let actions = plan_actions(&raw.actions, errors);
        let hits = raw.hits_addend.as_ref();
        let hits = hits.map(|raw| HitsRule::plan(raw, errors));
        let limit = raw.limit.as_ref().map(|raw| LimitRule::plan(raw, errors));
        Some(Self {
            actions: actions?,
            hits: transposed(hits)?,
            limit: transposed(limit)?,
            shown: raw.x_ratelimit_option.unwrap_or_default(),
            at_end: raw.apply_on_stream_done == Some(true),
        })
    }

    fn plan_staged(raw: &raw::RoutePolicy, errors: &mut Errors) -> Option<(u32, Arc<Self>)> {
        let stage = stage(raw.stage.as_ref(), errors);
        let actions = plan_actions(&raw.actions, errors);
        let limit = raw.limit.as_ref().map(|raw| LimitRule::plan(raw, errors));
        let policy = Self {
            actions: actions?,
            hits: None,
            limit: transposed(limit)?,
            shown: raw.x_ratelimit_option.unwrap_or_default(),
            at_end: raw.apply_on_stream_done == Some(true),
        };
        Some((stage, Arc::new(policy)))
    }

    /// Makes the descriptor of a request: its entries into `entries`, which must be empty. `None`
    /// when there is none. `hits` is what formats of hits are filled in from.
    pub fn descriptor<'a>(
        &'a self,
        subject: &Subject<'a>,
        hits: &Exchange<'_>,
        entries: &mut Vec<Entry<'a>>,
    ) -> Option<Terms> {
        for action in &self.actions {
            match action.apply(subject) {
                Outcome::Entry(entry) => entries.push(entry),
                Outcome::Skip => {}
                Outcome::Drop => return None,
            }
        }
        let hits = match &self.hits {
            None => None,
            Some(HitsRule::Number(hits)) => Some(*hits),
            Some(HitsRule::Format(formatter, negative)) => Some(Hits {
                number: whole_hits(formatter.number(hits)?)?,
                negative: *negative,
            }),
        };
        let limit = match &self.limit {
            None => None,
            Some(LimitRule::Fixed(limit)) => Some(*limit),
            Some(LimitRule::Metadata(path)) => limit_in_metadata(path, subject.context),
        };
        Some(Terms { hits, limit })
    }

    /// Whether it is asked about when the exchange is over.
    pub fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// Whether the descriptor's limit shows in `x-ratelimit-*` when the filter says `default`.
    pub(super) fn is_shown(&self, default: bool) -> bool {
        match self.shown {
            XRateLimitOption::Unspecified => default,
            XRateLimitOption::Off => false,
            XRateLimitOption::DraftVersion03 => true,
        }
    }
}

fn plan_actions(raw: &Located<Vec<raw::Action>>, errors: &mut Errors) -> Option<Vec<Action>> {
    if raw.value.is_empty() {
        errors.push(raw, "`actions` needs at least one action");
    }
    let actions = raw.value.iter();
    let actions: Vec<_> = actions.map(|raw| Action::plan(raw, errors)).collect();
    actions.into_iter().collect()
}

/// What is absent is none; what failed fails the whole.
fn transposed<T>(planned: Option<Option<T>>) -> Option<Option<T>> {
    match planned {
        None => Some(None),
        Some(planned) => planned.map(Some),
    }
}

/// Hits that a format gave, without their fraction; `None` for what cannot be counted.
fn whole_hits(hits: f64) -> Option<u64> {
    (0.0..=MAX_HITS as f64)
        .contains(&hits)
        .then_some(hits as u64)
}

fn limit_in_metadata(path: &MetadataPath, context: &RequestContext) -> Option<Limit> {
    context.with_metadata(&path.namespace, |fields| {
        let Some(Kind::StructValue(limit)) = &find(fields?, &path.path)?.kind else {
            return None;
        };
        let field = |name: &str| limit.fields.get(name)?.kind.as_ref();
        match (field("requests_per_unit")?, field("unit")?) {
            (Kind::NumberValue(requests), Kind::StringValue(unit)) => Some(Limit {
                // Out of range is the nearest in range.
                requests_per_unit: *requests as u32,
                unit: RateLimitUnit::parse(unit)?.number(),
            }),
            _ => None,
        }
    })
}

impl HitsRule {
    fn plan(raw: &Located<raw::HitsAddend>, errors: &mut Errors) -> Option<Self> {
        let negative = raw.is_negative_hits == Some(true);
        match (&raw.number, &raw.format) {
            (Some(number), None) => {
                if number.value > MAX_HITS {
                    errors.push(number, format!("at most {MAX_HITS} hits are possible"));
                }
                Some(Self::Number(Hits {
                    number: number.value,
                    negative,
                }))
            }
            (None, Some(format)) => match Formatter::parse(format) {
                Ok(formatter) => Some(Self::Format(formatter, negative)),
                Err(fault) => {
                    errors.push(format, fault);
                    None
                }
            },
            (Some(_), Some(_)) | (None, None) => {
                errors.push(raw, "`hits_addend` needs one of `number` and `format`");
                None
            }
        }
    }
}

impl LimitRule {
    fn plan(raw: &raw::LimitOverride, errors: &mut Errors) -> Option<Self> {
        Some(match &raw.from {
            LimitSource::RateLimit(limit) => Self::Fixed(Limit {
                requests_per_unit: limit.requests_per_unit,
                unit: limit.unit.number(),
            }),
            LimitSource::DynamicMetadata(raw) => {
                Self::Metadata(MetadataPath::plan(&raw.metadata_key, errors)?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use attache_service::config::{ConfigValue, Document};

    use super::*;

    fn decode<T: ConfigValue>(text: &str) -> (Option<T>, Errors) {
        let document = Document::parse("policy.yaml", text).unwrap();
        document.decode_partly()
    }

    fn faults(text: &str) -> String {
        let (raw, mut errors) = decode::<raw::Policy>(text);
        if let Some(raw) = raw {
            Policy::plan(&raw, &mut errors);
        }
        errors.to_string()
    }

    #[test]
    fn faults_are_named() {
        let actions = "actions: [{ remote_address: {} }]";
        for (text, expected) in [
            ("actions: []".to_owned(), "at least one action"),
            (
                format!("{{ stage: 1, {actions} }}"),
                "only in the `rate_limits` of a route",
            ),
            (
                format!("{{ hits_addend: {{}}, {actions} }}"),
                "one of `number` and `format`",
            ),
            (
                format!("{{ hits_addend: {{ number: 1, format: '%BYTES_SENT%' }}, {actions} }}"),
                "one of `number` and `format`",
            ),
            (
                format!("{{ hits_addend: {{ format: '5' }}, {actions} }}"),
                "exactly one formatter",
            ),
            (
                format!("{{ hits_addend: {{ number: 1000000001 }}, {actions} }}"),
                "at most 1000000000 hits",
            ),
            (
                format!(
                    "{{ limit: {{ rate_limit: {{ requests_per_unit: 1, unit: WEEK }} }}, {actions} }}"
                ),
                "know no weeks",
            ),
        ] {
            let faults = faults(&text);
            assert!(faults.contains(expected), "{text}: {faults}");
        }
        let text = format!("{{ hits_addend: {{ number: 1 }}, stage: 11, {actions} }}");
        let (raw, mut errors) = decode::<raw::RoutePolicy>(&text);
        StagedPolicies::plan(raw.as_slice(), &mut errors);
        let faults = errors.to_string();
        assert!(
            faults.contains("Envoy does nothing with it here"),
            "{faults}"
        );
    }

    /// How many policies count for a filter of stage 0.
    fn counted(route: &[u32], host: &[u32], include: bool, option: VhRateLimitsOptions) -> usize {
        let staged = |stages: &[u32]| {
            let text: Vec<_> = stages
                .iter()
                .map(|stage| format!("{{ stage: {stage}, actions: [{{ remote_address: {{}} }}] }}"))
                .collect();
            let (raw, mut errors) =
                decode::<Vec<raw::RoutePolicy>>(&format!("[{}]", text.join(",")));
            let staged = StagedPolicies::plan(&raw.unwrap(), &mut errors);
            assert!(errors.is_empty(), "{errors}");
            staged
        };
        let limits = RouteLimits {
            route: staged(route),
            host: staged(host),
            include_host: include,
        };
        limits.policies(0, option).len()
    }

    #[test]
    fn the_virtual_host_counts_as_the_option_says() {
        use VhRateLimitsOptions::{Ignore, Include, Override};
        for (route, host, include, option, expected) in [
            (&[][..], &[0][..], false, Override, 1),
            (&[0], &[0], false, Override, 1),
            (&[2], &[0], false, Override, 0),
            (&[0], &[0], false, Include, 2),
            (&[], &[0], false, Ignore, 0),
            (&[0], &[0, 0, 1], true, Ignore, 3),
        ] {
            let count = counted(route, host, include, option);
            assert_eq!(count, expected, "{route:?} {host:?} {include} {option:?}");
        }
    }

    #[test]
    fn hits_that_cannot_be_counted_are_none() {
        for (hits, expected) in [
            (0.0, Some(0)),
            (2.9, Some(2)),
            (1e9, Some(1_000_000_000)),
            (1e9 + 1.0, None),
            (-0.5, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(whole_hits(hits), expected, "{hits}");
        }
    }
}
