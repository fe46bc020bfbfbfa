//! Pages that a Prometheus fetches, in its text format 0.0.4.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use attache_service::{
    Address, Shutdown,
    http_server::{HttpLimits, TEXT, reply, serve},
    listen::Listener,
};
use http::{Method, StatusCode};

use super::{
    super::statistics::StatisticsSource,
    Sample, SampleValue, SinkError,
    mapper::{Mapped, Mapper},
};

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where Prometheus fetches statistics, and what they are called there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrometheusSettings {
    /// Where it comes to. Default `0.0.0.0:9090`.
    pub address: Address,
    /// The page. Default `/metrics`.
    pub path: String,
    /// The mapper's file; the reference's own mapper when absent.
    pub mapper: Option<PathBuf>,
    /// With the reference's own mapper: response times in milliseconds. Default false: seconds.
    pub response_time_in_milliseconds: bool,
}

/// A page that can be come to.
pub(super) struct Page {
    listener: Listener,
    path: String,
    tags: Vec<(String, String)>,
    mapper: Mapper,
}

impl Page {
    pub(super) async fn bind(
        settings: &PrometheusSettings,
        tags: Vec<(String, String)>,
    ) -> Result<Self, SinkError> {
        let mapper = match &settings.mapper {
            Some(path) => Mapper::load(path)?,
            None => Mapper::of_the_reference(settings.response_time_in_milliseconds)?,
        };
        Ok(Self {
            listener: Listener::bind(&settings.address).await?,
            path: settings.path.clone(),
            tags,
            mapper,
        })
    }

    pub(super) fn address(&self) -> &Address {
        self.listener.address()
    }

    /// Serves until dropped.
    pub(super) async fn serve(self, source: StatisticsSource) {
        tracing::info!(
            "Starting prometheus sink on {}{}",
            self.address(),
            self.path
        );
        let path: Arc<str> = self.path.into();
        let render = Arc::new(Mutex::new((self.mapper, self.tags)));
        let respond = move |request: http::Request<_>| {
            let (path, render, source) = (path.clone(), render.clone(), source.clone());
            async move {
                if request.uri().path() != &*path {
                    return reply(StatusCode::NOT_FOUND, TEXT, "404 page not found\n");
                }
                if !matches!(*request.method(), Method::GET | Method::HEAD) {
                    return reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
                }
                let samples = source.totals();
                let mut render = render.lock().unwrap_or_else(PoisonError::into_inner);
                let (mapper, tags) = &mut *render;
                reply(StatusCode::OK, TEXT_FORMAT, page(&samples, mapper, tags))
            }
        };
        serve(
            self.listener,
            HttpLimits::default(),
            respond,
            Shutdown::new(),
        )
        .await;
    }
}

/// All series of one name.
struct Family {
    help: String,
    buckets: Vec<f64>,
    series: BTreeMap<Vec<(String, String)>, Shown>,
}

#[derive(Debug, Clone)]
enum Shown {
    Counter(f64),
    Gauge(f64),
    Histogram {
        /// By bucket, and beyond all of them.
        counts: Vec<u64>,
        sum: f64,
    },
}

fn page(samples: &[Sample], mapper: &mut Mapper, tags: &[(String, String)]) -> String {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for sample in samples {
        let Some(mapped) = mapper.map(sample) else {
            continue;
        };
        let mut labels = mapped.labels.clone();
        labels.extend(tags.iter().map(|(key, value)| (label(key), value.clone())));
        labels.sort();
        labels.dedup_by(|a, b| a.0 == b.0);
        let family = families
            .entry(mapped.name.clone())
            .or_insert_with(|| Family {
                help: mapped.help.clone(),
                buckets: mapped.buckets.clone(),
                series: BTreeMap::new(),
            });
        let shown = Shown::of(&sample.value, &mapped, &family.buckets);
        match family.series.get_mut(&labels) {
            Some(known) => known.add(&shown),
            None => {
                family.series.insert(labels, shown);
            }
        }
    }
    let mut text = String::new();
    for (name, family) in &families {
        family.write(name, &mut text);
    }
    text
}

impl Shown {
    #[allow(clippy::cast_precision_loss)]
    fn of(value: &SampleValue, mapped: &Mapped, buckets: &[f64]) -> Self {
        match value {
            SampleValue::Counter(value) => Self::Counter(*value as f64 * mapped.scale),
            SampleValue::Gauge(value) => Self::Gauge(*value as f64 * mapped.scale),
            SampleValue::Timer(times) => {
                let mut counts = vec![0; buckets.len() + 1];
                let mut sum = 0.0;
                for (milliseconds, count) in times {
                    let value = *milliseconds as f64 * mapped.scale;
                    let bucket = buckets.partition_point(|bound| *bound < value);
                    if let Some(all) = counts.get_mut(bucket) {
                        *all += count;
                    }
                    sum += value * (*count as f64);
                }
                Self::Histogram { counts, sum }
            }
        }
    }

    /// Two statistics of the same name and labels are one, as in the reference; of two kinds, the
    /// first stays.
    fn add(&mut self, other: &Self) {
        match (self, other) {
            (Self::Counter(value), Self::Counter(more)) => *value += more,
            (Self::Gauge(value), Self::Gauge(more)) => *value = *more,
            (
                Self::Histogram { counts, sum },
                Self::Histogram {
                    counts: more,
                    sum: total,
                },
            ) => {
                for (count, more) in counts.iter_mut().zip(more) {
                    *count += more;
                }
                *sum += total;
            }
            _ => {}
        }
    }
}

impl Family {
    fn write(&self, name: &str, text: &mut String) {
        let kind = match self.series.values().next() {
            None => return,
            Some(Shown::Counter(_)) => "counter",
            Some(Shown::Gauge(_)) => "gauge",
            Some(Shown::Histogram { .. }) => "histogram",
        };
        let help = self.help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, shown) in &self.series {
            let _ = match shown {
                Shown::Counter(value) | Shown::Gauge(value) => {
                    writeln!(text, "{name}{} {value}", braces(labels, None))
                }
                Shown::Histogram { counts, sum } => {
                    let mut sum_so_far = 0;
                    let bounds = self.buckets.iter().map(ToString::to_string);
                    for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(counts) {
                        sum_so_far += count;
                        let labels = braces(labels, Some(&bound));
                        let _ = writeln!(text, "{name}_bucket{labels} {sum_so_far}");
                    }
                    let labels = braces(labels, None);
                    writeln!(
                        text,
                        "{name}_sum{labels} {sum}\n{name}_count{labels} {sum_so_far}"
                    )
                }
            };
        }
    }
}

fn braces(labels: &[(String, String)], bound: Option<&str>) -> String {
    let mut parts: Vec<_> = labels
        .iter()
        .map(|(key, value)| {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            format!("{key}=\"{value}\"")
        })
        .collect();
    parts.extend(bound.map(|bound| format!("le=\"{bound}\"")));
    match parts.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", parts.join(",")),
    }
}

/// `_` for what names of labels cannot have.
fn label(key: &str) -> String {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
    key.chars()
        .map(|c| if valid(c) { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, value: SampleValue) -> Sample {
        Sample {
            name: name.to_owned(),
            value,
        }
    }

    #[test]
    fn a_page_is_in_the_format_of_prometheus() {
        let mut mapper = Mapper::of_the_reference(false).unwrap();
        let hits = "ratelimit.service.rate_limit.foo.a\"b.c.d.total_hits";
        let same = "ratelimit.service.rate_limit.foo.a\"b.c.e.total_hits";
        let samples = [
            sample(hits, SampleValue::Counter(3)),
            sample(same, SampleValue::Counter(4)),
            sample("ratelimit.redis_pool.cx_active", SampleValue::Gauge(2)),
            sample(
                "ratelimit_server.ShouldRateLimit.response_time",
                SampleValue::Timer(vec![(0, 2), (5, 1), (6, 1), (20_000, 1)]),
            ),
        ];
        let tags = [("a-b".to_owned(), "c".to_owned())];
        let text = page(&samples, &mut mapper, &tags);
        for line in [
            "# HELP ratelimit_service_rate_limit_total_hits Metric autogenerated by statsd_exporter.",
            "# TYPE ratelimit_service_rate_limit_total_hits counter",
            r#"ratelimit_service_rate_limit_total_hits{a_b="c",domain="foo",key1="a\"b",key2="c"} 7"#,
            "# TYPE ratelimit_redis_pool_cx_active gauge",
            r#"ratelimit_redis_pool_cx_active{a_b="c"} 2"#,
            "# TYPE ratelimit_service_response_time_seconds histogram",
            r#"ratelimit_service_response_time_seconds_bucket{a_b="c",grpc_method="ShouldRateLimit",le="0.005"} 3"#,
            r#"ratelimit_service_response_time_seconds_bucket{a_b="c",grpc_method="ShouldRateLimit",le="0.01"} 4"#,
            r#"ratelimit_service_response_time_seconds_bucket{a_b="c",grpc_method="ShouldRateLimit",le="10"} 4"#,
            r#"ratelimit_service_response_time_seconds_bucket{a_b="c",grpc_method="ShouldRateLimit",le="+Inf"} 5"#,
            r#"ratelimit_service_response_time_seconds_count{a_b="c",grpc_method="ShouldRateLimit"} 5"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
