//! Prometheus metrics: handles are resolved when a filter or service is built, so the request
//! path only adds to an atomic.

mod latency;
mod process;
mod readings;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{MetricType, family::Family, histogram::Histogram as RawHistogram},
    registry::Registry,
};

use latency::Latencies;
pub use latency::Latency;
pub use readings::PutReading;
use readings::Readings;

/// A counter handle.
pub type Counter = prometheus_client::metrics::counter::Counter;
/// A gauge handle.
pub type Gauge = prometheus_client::metrics::gauge::Gauge;
/// A histogram handle; observations are in seconds.
pub type Histogram = RawHistogram;

type Labels = Vec<(String, String)>;
type HistogramFamily = Family<Labels, Histogram, fn() -> Histogram>;

/// All metrics of the process. Cheap to clone; a handle for the same name and labels is the
/// same metric, so rebuilding a filter after a reload goes on counting.
#[derive(Clone, Default)]
pub struct Metrics {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    registry: Registry,
    families: HashMap<String, Kind>,
    describes_process: bool,
    readings: HashMap<String, Readings>,
    latencies: HashMap<String, Latencies>,
}

#[derive(Clone)]
enum Kind {
    Counter(Family<Labels, Counter>),
    Gauge(Family<Labels, Gauge>),
    Histogram(HistogramFamily),
}

impl Metrics {
    /// The counter `name` with these labels; the `_total` suffix is added on export.
    pub fn counter(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Counter {
        let kind = self.family(name, help, || Kind::Counter(Family::default()));
        match kind {
            Kind::Counter(family) => family.get_or_create(&owned(labels)).clone(),
            // A name used with two kinds is a programming error; count apart rather than panic.
            Kind::Gauge(_) | Kind::Histogram(_) => Counter::default(),
        }
    }

    /// The gauge `name` with these labels.
    pub fn gauge(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Gauge {
        match self.family(name, help, || Kind::Gauge(Family::default())) {
            Kind::Gauge(family) => family.get_or_create(&owned(labels)).clone(),
            Kind::Counter(_) | Kind::Histogram(_) => Gauge::default(),
        }
    }

    /// The latency histogram `name` with these labels, with buckets from 100 µs to 10 s.
    pub fn histogram(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Histogram {
        let family = || {
            Kind::Histogram(Family::new_with_constructor(
                latency_histogram as fn() -> Histogram,
            ))
        };
        match self.family(name, help, family) {
            Kind::Histogram(family) => family.get_or_create(&owned(labels)).clone(),
            Kind::Counter(_) | Kind::Gauge(_) => latency_histogram(),
        }
    }

    /// A place of its own in the latency histogram `name` with these labels, for one thread. All
    /// that were given out are added up at each scrape; the buckets reach from 100 µs to 10 s.
    pub fn latency(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Latency {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(latencies) = inner.latencies.get(name) {
            return latencies.handle(owned(labels));
        }
        let latencies = Latencies::new(name, help.trim_end_matches('.'));
        inner
            .registry
            .register_collector(Box::new(latencies.clone()));
        inner.latencies.insert(name.to_owned(), latencies.clone());
        latencies.handle(owned(labels))
    }

    /// The counter `name`, whose values are kept elsewhere: `read` is called at each scrape and puts
    /// every one with its labels. Values of the same labels, also by several such functions, are
    /// added up. A function that returns false is not called again.
    pub fn read_counter(
        &self,
        name: &str,
        help: &str,
        read: impl Fn(&mut PutReading<'_>) -> bool + Send + Sync + 'static,
    ) {
        self.read(name, help, MetricType::Counter, read);
    }

    /// The gauge `name`, whose values are kept elsewhere; as [`Metrics::read_counter`].
    pub fn read_gauge(
        &self,
        name: &str,
        help: &str,
        read: impl Fn(&mut PutReading<'_>) -> bool + Send + Sync + 'static,
    ) {
        self.read(name, help, MetricType::Gauge, read);
    }

    fn read(
        &self,
        name: &str,
        help: &str,
        kind: MetricType,
        read: impl Fn(&mut PutReading<'_>) -> bool + Send + Sync + 'static,
    ) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(readings) = inner.readings.get(name) {
            readings.add(read);
            return;
        }
        let readings = Readings::new(name, help.trim_end_matches('.'), kind);
        readings.add(read);
        inner
            .registry
            .register_collector(Box::new(readings.clone()));
        inner.readings.insert(name.to_owned(), readings);
    }

    /// Adds processor time, memory, open files and start time of this process (`process_*`).
    pub fn describe_process(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut inner.describes_process, true) {
            let process = process::Process::now();
            inner.registry.register_collector(Box::new(process));
        }
    }

    /// Everything in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &inner.registry);
        text
    }

    fn family(&self, name: &str, help: &str, make: impl FnOnce() -> Kind) -> Kind {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kind) = inner.families.get(name) {
            return kind.clone();
        }
        let kind = make();
        // The library ends the help text with a full stop of its own.
        let help = help.trim_end_matches('.');
        match &kind {
            Kind::Counter(family) => inner.registry.register(name, help, family.clone()),
            Kind::Gauge(family) => inner.registry.register(name, help, family.clone()),
            Kind::Histogram(family) => inner.registry.register(name, help, family.clone()),
        }
        inner.families.insert(name.to_owned(), kind.clone());
        kind
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

fn owned(labels: &[(&str, &str)]) -> Labels {
    labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn latency_histogram() -> Histogram {
    Histogram::new([
        0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
        2.5, 5.0, 10.0,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_are_kept_elsewhere_are_read_and_added_up() {
        let metrics = Metrics::default();
        metrics.read_counter("seen", "Seen.", |put| {
            put(&[("rule", "a")], 1);
            put(&[("rule", "b")], 2);
            true
        });
        metrics.read_counter("seen", "Seen.", |put| {
            put(&[("rule", "a")], 3);
            false
        });
        let text = metrics.render();
        assert!(text.contains("# TYPE seen counter"), "{text}");
        assert!(text.contains("seen_total{rule=\"a\"} 4"), "{text}");
        assert!(text.contains("seen_total{rule=\"b\"} 2"), "{text}");
        let text = metrics.render();
        assert!(text.contains("seen_total{rule=\"a\"} 1"), "{text}");
    }

    #[test]
    fn the_same_name_and_labels_are_the_same_counter() {
        let metrics = Metrics::default();
        metrics
            .counter("requests", "Requests seen.", &[("filter", "a")])
            .inc();
        metrics
            .counter("requests", "Requests seen.", &[("filter", "a")])
            .inc();
        assert!(
            metrics.render().contains("requests_total{filter=\"a\"} 2"),
            "{}",
            metrics.render()
        );
    }
}
