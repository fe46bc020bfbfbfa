//! From the reference's dotted names to names and labels of Prometheus, by rules in the language of
//! the statsd exporter that the reference embeds.
//!
//! ```yaml
//! mappings:
//! - match: "ratelimit.service.rate_limit.*.*.over_limit"   # `*` stands for one part
//!   name: "ratelimit_service_rate_limit_over_limit"
//!   labels: { domain: "$1", key1: "$2" }
//! - match: "ratelimit_server.*.response_time"
//!   name: "ratelimit_service_response_time_seconds"
//!   timer_type: histogram
//!   scale: 0.001
//!   labels: { grpc_method: "$1" }
//! - { match: ".", match_type: regex, action: drop, name: dropped }
//! ```
//!
//! Mappings with `*` come before those with regular expressions, else the first that matches has
//! it. What no mapping matches keeps its name, with `_` for what Prometheus does not take.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use attache_service::{
    config::{Document, Errors, Located},
    config_enum, config_struct,
};
use regex::Regex;

use super::{Sample, SampleValue};

/// The mapper of the reference, in our words.
const DEFAULT: &str = include_str!("default_mapper.yaml");
/// Names whose mapping is remembered, so that a page does not match all patterns again. Beyond
/// that all are forgotten.
const REMEMBERED: usize = 1 << 16;
/// Prometheus' own, in seconds.
const BUCKETS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

config_struct! {
    /// A mapper's file.
    struct File {
        /// The mappings.
        mappings: Vec<RawMapping>,
        /// What mappings have that do not say otherwise.
        defaults: Option<Defaults>,
    }
}

config_struct! {
    /// What mappings have that do not say otherwise.
    struct Defaults {
        /// How names are matched. Default `glob`.
        match_type: Option<MatchType>,
        /// How times are shown. Only `histogram`.
        observer_type: Option<TimerType>,
        /// An older name of `observer_type`.
        timer_type: Option<TimerType>,
        /// Upper bounds of a histogram.
        buckets: Vec<f64>,
        /// The same.
        histogram_options: Option<HistogramOptions>,
    }
    elsewhere {
        "ttl" => "statistics are bounded by their number, not by their age",
        "glob_disable_ordering" => "mappings are tried in their order",
    }
}

config_struct! {
    /// One mapping.
    struct RawMapping {
        /// Which names.
        r#match: Located<String> as "match",
        /// How they are matched. Default `glob`.
        match_type: Option<MatchType>,
        /// Only statistics of this kind.
        match_metric_type: Option<MetricType>,
        /// What they are called; `$1` stands for the first `*` or group.
        name: Option<Located<String>>,
        /// Labels, in whose values `$1` stands for the same.
        labels: BTreeMap<String, String>,
        /// What becomes of them. Default `map`.
        action: Option<Action>,
        /// How times are shown. Only `histogram`.
        observer_type: Option<TimerType>,
        /// An older name of `observer_type`.
        timer_type: Option<TimerType>,
        /// Upper bounds of a histogram.
        buckets: Vec<f64>,
        /// The same.
        histogram_options: Option<HistogramOptions>,
        /// What values are multiplied with. Default 1.
        scale: Option<f64>,
        /// The help text.
        help: Option<String>,
    }
    elsewhere {
        "ttl" => "statistics are bounded by their number, not by their age",
        "quantiles" => "times are shown as histograms",
        "summary_options" => "times are shown as histograms",
        "honor_labels" => "statistics have no labels of their own",
    }
}

config_struct! {
    /// How a histogram looks.
    struct HistogramOptions {
        /// Upper bounds.
        buckets: Vec<f64>,
    }
    elsewhere {
        "native_histogram_bucket_factor" => "histograms have fixed buckets",
        "native_histogram_max_buckets" => "histograms have fixed buckets",
    }
}

config_enum! {
    /// How names are matched.
    enum MatchType {
        /// `*` stands for one part between dots.
        Glob = "glob",
        /// A regular expression, which may match anywhere.
        Regex = "regex",
    }
}

config_enum! {
    /// How times are shown.
    enum TimerType {
        /// By buckets.
        Histogram = "histogram",
    }
}

config_enum! {
    /// What becomes of statistics.
    enum Action {
        /// They are shown.
        Map = "map",
        /// They are not.
        Drop = "drop",
    }
}

config_enum! {
    /// A kind of statistic.
    enum MetricType {
        /// Counts.
        Counter = "counter",
        /// What stands at some value.
        Gauge = "gauge",
        /// Times.
        Observer = "observer",
        /// The same.
        Timer = "timer",
    }
}

/// Gives statistics their names and labels.
#[derive(Debug)]
pub struct Mapper {
    globs: Vec<Mapping>,
    regexes: Vec<Mapping>,
    known: HashMap<String, Option<Mapped>>,
}

#[derive(Debug)]
struct Mapping {
    pattern: Pattern,
    only: Option<MetricType>,
    /// `None` drops.
    name: Option<String>,
    labels: Vec<(String, String)>,
    buckets: Vec<f64>,
    scale: f64,
    help: Option<String>,
}

#[derive(Debug)]
enum Pattern {
    /// Parts between dots; `None` is `*`.
    Glob(Vec<Option<String>>),
    Regex(Regex),
}

/// What a statistic is called.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapped {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// What its values are multiplied with.
    pub scale: f64,
    /// Upper bounds of its histogram, rising.
    pub buckets: Vec<f64>,
    /// Its help text.
    pub help: String,
}

impl Mapper {
    /// The reference's own mapper. Response times are in seconds, or in milliseconds.
    ///
    /// # Errors
    /// None, as the tests show.
    pub fn of_the_reference(milliseconds: bool) -> Result<Self, Errors> {
        let text = match milliseconds {
            false => DEFAULT.to_owned(),
            true => DEFAULT.replace("  scale: 0.001\n", ""),
        };
        Self::parse("default_mapper.yaml", &text)
    }

    /// Reads a mapper's file.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Errors> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&name, &text),
            Err(error) => {
                let mut errors = Errors::new();
                errors.push_file(name, format!("cannot be read: {error}"));
                Err(errors)
            }
        }
    }

    /// Reads a mapper's text; `name` stands for it in messages.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<Self, Errors> {
        // `${1}` is a group here, not a variable of the environment.
        let document = Document::parse_with(name, text, &|name| Some(format!("${{{name}}}")))?;
        let (file, mut errors) = document.decode_partly::<File>();
        let mut mapper = Self {
            globs: Vec::new(),
            regexes: Vec::new(),
            known: HashMap::new(),
        };
        if let Some(file) = file {
            let defaults = file.defaults;
            for raw in file.mappings {
                if let Some(mapping) = Mapping::plan(raw, defaults.as_ref(), &mut errors) {
                    match mapping.pattern {
                        Pattern::Glob(_) => mapper.globs.push(mapping),
                        Pattern::Regex(_) => mapper.regexes.push(mapping),
                    }
                }
            }
        }
        errors.into_result(Some(mapper))
    }

    /// What a statistic is called; `None` when it is dropped.
    pub fn map(&mut self, sample: &Sample) -> Option<Mapped> {
        if let Some(known) = self.known.get(&sample.name) {
            return known.clone();
        }
        let mapped = self.find(sample);
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(sample.name.clone(), mapped.clone());
        mapped
    }

    fn find(&self, sample: &Sample) -> Option<Mapped> {
        let kind = match sample.value {
            SampleValue::Counter(_) => MetricType::Counter,
            SampleValue::Gauge(_) => MetricType::Gauge,
            SampleValue::Timer(_) => MetricType::Observer,
        };
        for mapping in self.globs.iter().chain(&self.regexes) {
            if !mapping.takes(kind) {
                continue;
            }
            let Some(groups) = mapping.pattern.groups(&sample.name) else {
                continue;
            };
            let name = mapping.name.as_ref()?;
            let labels = mapping.labels.iter();
            return Some(Mapped {
                name: valid_name(&fill(name, &groups)),
                labels: labels
                    .map(|(key, value)| (key.clone(), fill(value, &groups)))
                    .collect(),
                scale: mapping.scale,
                buckets: mapping.buckets.clone(),
                help: mapping.help.clone().unwrap_or_else(|| AUTOMATIC.to_owned()),
            });
        }
        Some(Mapped {
            name: valid_name(&sample.name),
            labels: Vec::new(),
            scale: 1.0,
            buckets: BUCKETS.to_vec(),
            help: AUTOMATIC.to_owned(),
        })
    }
}

/// The help text that the reference shows.
const AUTOMATIC: &str = "Metric autogenerated by statsd_exporter.";

impl Mapping {
    fn plan(raw: RawMapping, defaults: Option<&Defaults>, errors: &mut Errors) -> Option<Self> {
        let match_type = raw
            .match_type
            .or_else(|| defaults.and_then(|defaults| defaults.match_type))
            .unwrap_or(MatchType::Glob);
        let pattern = match match_type {
            MatchType::Glob => Pattern::glob(&raw.r#match, errors)?,
            MatchType::Regex => match Regex::new(&raw.r#match.value) {
                Ok(regex) => Pattern::Regex(regex),
                Err(error) => {
                    errors.push(&raw.r#match, format!("not a regular expression: {error}"));
                    return None;
                }
            },
        };
        let name = match (raw.action, raw.name) {
            (Some(Action::Drop), _) => None,
            (_, Some(name)) => Some(name.value),
            (_, None) => {
                errors.push(&raw.r#match, "a mapping needs a `name`");
                return None;
            }
        };
        let given = |own: Vec<f64>, options: Option<HistogramOptions>| {
            let more = options.map(|options| options.buckets);
            [own, more.unwrap_or_default()]
                .into_iter()
                .find(|buckets| !buckets.is_empty())
        };
        let mut buckets = given(raw.buckets, raw.histogram_options)
            .or_else(|| {
                let defaults = defaults?.clone();
                given(defaults.buckets, defaults.histogram_options)
            })
            .unwrap_or_else(|| BUCKETS.to_vec());
        buckets.retain(|bound| bound.is_finite());
        buckets.sort_by(f64::total_cmp);
        Some(Self {
            pattern,
            only: raw.match_metric_type,
            name,
            labels: raw.labels.into_iter().collect(),
            buckets,
            scale: raw.scale.unwrap_or(1.0),
            help: raw.help,
        })
    }

    fn takes(&self, kind: MetricType) -> bool {
        match self.only {
            None => true,
            Some(MetricType::Timer) => kind == MetricType::Observer,
            Some(only) => only == kind,
        }
    }
}

impl Pattern {
    fn glob(text: &Located<String>, errors: &mut Errors) -> Option<Self> {
        let parts = text.value.split('.');
        let parts: Vec<_> = parts
            .map(|part| (part != "*").then(|| part.to_owned()))
            .collect();
        if parts.iter().flatten().any(|part| part.contains('*')) {
            errors.push(text, "`*` stands for a whole part between dots");
            return None;
        }
        Some(Self::Glob(parts))
    }

    /// The whole name and what the `*` or groups stand for, if it matches.
    fn groups<'n>(&self, name: &'n str) -> Option<Vec<&'n str>> {
        match self {
            Self::Glob(parts) => {
                let mut groups = vec![name];
                let mut names = name.split('.');
                for part in parts {
                    let found = names.next()?;
                    match part {
                        None => groups.push(found),
                        Some(part) if part == found => {}
                        Some(_) => return None,
                    }
                }
                names.next().is_none().then_some(groups)
            }
            Self::Regex(regex) => {
                let found = regex.captures(name)?;
                let groups = found.iter();
                Some(
                    groups
                        .map(|group| group.map_or("", |group| group.as_str()))
                        .collect(),
                )
            }
        }
    }
}

/// Puts groups in the places of `$1` and `${1}`; what there is no group for becomes empty.
fn fill(template: &str, groups: &[&str]) -> String {
    let mut parts = template.split('$');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (number, rest) = match part.strip_prefix('{').and_then(|part| part.split_once('}')) {
            Some(braced) => braced,
            None => {
                let digits = part.bytes().take_while(u8::is_ascii_digit).count();
                part.split_at_checked(digits).unwrap_or(("", part))
            }
        };
        match number.parse::<usize>() {
            Ok(number) => text.push_str(groups.get(number).copied().unwrap_or_default()),
            Err(_) => text.push('$'),
        }
        text.push_str(rest);
    }
    text
}

/// `_` for every character that names of Prometheus cannot have.
fn valid_name(name: &str) -> String {
    let mut valid = String::with_capacity(name.len());
    if name.starts_with(|first: char| first.is_ascii_digit()) {
        valid.push('_');
    }
    valid.extend(name.chars().map(|c| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | ':' => c,
        _ => '_',
    }));
    valid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(name: &str) -> Sample {
        Sample {
            name: name.to_owned(),
            value: SampleValue::Counter(1),
        }
    }

    fn shown(mapper: &mut Mapper, name: &str) -> Option<String> {
        let mapped = mapper.map(&counter(name))?;
        let labels = mapped.labels.iter();
        let labels: Vec<_> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        Some(format!("{}{{{}}}", mapped.name, labels.join(",")))
    }

    #[test]
    fn names_and_labels_are_those_of_the_reference() {
        let mut mapper = Mapper::of_the_reference(false).unwrap();
        for (name, expected) in [
            (
                "ratelimit.service.rate_limit.foo.k1_v1.over_limit",
                "ratelimit_service_rate_limit_over_limit{domain=foo,key1=k1_v1}",
            ),
            (
                "ratelimit.service.rate_limit.foo.k4.k5.k6.over_limit",
                "ratelimit_service_rate_limit_over_limit{domain=foo,key1=k4,key2=k5}",
            ),
            (
                "ratelimit.service.rate_limit.foo.k4.k5.shadow_mode",
                "ratelimit_service_rate_limit_shadow_mode{domain=foo,key1=k4,key2=k5}",
            ),
            (
                "ratelimit.service.rate_limit.foo.k4.k5.over_limit_with_local_cache",
                "ratelimit_service_rate_limit_foo_k4_k5_over_limit_with_local_cache{}",
            ),
            (
                "ratelimit.service.call.should_rate_limit.service_error",
                "ratelimit_service_should_rate_limit_error{err_type=service_error}",
            ),
            (
                "ratelimit_server.ShouldRateLimit.total_requests",
                "ratelimit_service_total_requests{grpc_method=ShouldRateLimit}",
            ),
            (
                "ratelimit.service.config_load_success",
                "ratelimit_service_config_load_success{}",
            ),
            (
                "ratelimit.service.rate_limit.nope.domain_not_found",
                "ratelimit_service_rate_limit_nope_domain_not_found{}",
            ),
        ] {
            assert_eq!(shown(&mut mapper, name).as_deref(), Some(expected));
        }
    }

    #[test]
    fn response_times_are_seconds_unless_asked_otherwise() {
        let sample = Sample {
            name: "ratelimit_server.ShouldRateLimit.response_time".to_owned(),
            value: SampleValue::Timer(vec![(1, 1)]),
        };
        for (milliseconds, scale) in [(false, 0.001), (true, 1.0)] {
            let mut mapper = Mapper::of_the_reference(milliseconds).unwrap();
            let mapped = mapper.map(&sample).unwrap();
            assert_eq!(mapped.name, "ratelimit_service_response_time_seconds");
            assert_eq!(mapped.scale, scale);
            assert_eq!(mapped.buckets, BUCKETS);
        }
    }

    #[test]
    fn the_rest_can_be_dropped_and_globs_come_first() {
        let text = r#"
mappings:
- { match: ".", match_type: regex, action: drop, name: dropped }
- { match: "a.*.c", name: "n_${1}", labels: { x: "$1-$0" }, timer_type: histogram }
- { match: "a.*.c", name: "second", match_metric_type: gauge }
- { match: "b.c", name: "gauges", match_metric_type: gauge }
"#;
        let mut mapper = Mapper::parse("mapper.yaml", text).unwrap();
        assert_eq!(
            shown(&mut mapper, "a.b.c").as_deref(),
            Some("n_b{x=b-a.b.c}")
        );
        assert_eq!(shown(&mut mapper, "a.b.d"), None);
        assert_eq!(shown(&mut mapper, "b.c"), None);
    }

    #[test]
    fn mistakes_are_told_with_their_places() {
        let text = r#"
mappings:
- { match: "a.b*", name: x }
- { match: "(", match_type: regex, name: x }
- { match: "a" }
- { match: "a", name: x, timer_type: summary }
- { match: "a", name: x, ttl: 1m }
"#;
        let errors = Mapper::parse("mapper.yaml", text).unwrap_err();
        let lines: Vec<_> = errors.iter().filter_map(|error| error.line()).collect();
        assert_eq!(lines.len(), 5, "{errors}");
        for line in 3..=7 {
            assert!(lines.contains(&line), "{errors}");
        }
    }

    #[test]
    fn names_become_valid() {
        assert_eq!(valid_name("a.b-c:d é9"), "a_b_c:d__9");
        assert_eq!(valid_name("9a"), "_9a");
    }
}
