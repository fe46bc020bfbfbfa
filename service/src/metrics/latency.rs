//! Latency histograms that no two threads write to: each holder of a handle has cells of its
//! own, which are added up at each scrape.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::Labels;

/// Upper bounds of the buckets; what took longer than the last one goes to one more.
const BOUNDS: [Duration; 16] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// A place to put durations, see [`super::Metrics::latency`]. Meant for one thread: clones write
/// to the same cells.
#[derive(Debug, Clone, Default)]
pub struct Latency(Arc<Cells>);

#[derive(Debug, Default)]
struct Cells {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Latency {
    /// Counts something that took this long.
    pub fn observe(&self, took: Duration) {
        let cells = &*self.0;
        let bucket = BOUNDS.partition_point(|bound| *bound < took);
        if let Some(bucket) = cells.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        cells.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

/// The counts of some cells together.
#[derive(Debug, Default, Clone)]
struct Sum {
    buckets: [u64; BOUNDS.len() + 1],
    nanoseconds: u128,
}

impl Sum {
    fn add(&mut self, cells: &Cells) {
        for (sum, cell) in self.buckets.iter_mut().zip(&cells.buckets) {
            *sum = sum.saturating_add(cell.load(Ordering::Relaxed));
        }
        let nanoseconds = cells.nanoseconds.load(Ordering::Relaxed);
        self.nanoseconds = self.nanoseconds.saturating_add(nanoseconds.into());
    }
}

/// What was observed under the same labels.
#[derive(Debug, Default)]
struct Series {
    /// Of handles that are gone.
    ended: Sum,
    held: Vec<Arc<Cells>>,
}

impl Series {
    fn retire(&mut self) {
        let ended = &mut self.ended;
        self.held.retain(|cells| {
            let held = Arc::strong_count(cells) > 1;
            if !held {
                ended.add(cells);
            }
            held
        });
    }
}

/// The histograms of one name.
#[derive(Clone)]
pub(super) struct Latencies {
    name: String,
    help: String,
    series: Arc<Mutex<BTreeMap<Labels, Series>>>,
}

impl Latencies {
    pub(super) fn new(name: &str, help: &str) -> Self {
        Self {
            name: name.to_owned(),
            help: help.to_owned(),
            series: Arc::default(),
        }
    }

    /// A handle of its own for these labels.
    pub(super) fn handle(&self, labels: Labels) -> Latency {
        let latency = Latency::default();
        let mut all = self.series();
        let series = all.entry(labels).or_default();
        // Handles come and go with reloads.
        series.retire();
        series.held.push(latency.0.clone());
        latency
    }

    fn series(&self) -> MutexGuard<'_, BTreeMap<Labels, Series>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latencies")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Collector for Latencies {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut family =
            encoder.encode_descriptor(&self.name, &self.help, None, MetricType::Histogram)?;
        for (labels, series) in &mut *self.series() {
            series.retire();
            let mut sum = series.ended.clone();
            series.held.iter().for_each(|cells| sum.add(cells));
            let bounds = BOUNDS.iter().map(Duration::as_secs_f64);
            let bounds = bounds.chain(std::iter::once(f64::INFINITY));
            let buckets: Vec<(f64, u64)> = bounds.zip(sum.buckets).collect();
            let seconds = sum.nanoseconds as f64 / 1e9;
            let count = sum.buckets.iter().sum();
            family
                .encode_family(labels)?
                .encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metrics;

    fn handle(metrics: &Metrics) -> Latency {
        metrics.latency("took_seconds", "Took.", &[("filter", "a")])
    }

    #[test]
    fn handles_of_the_same_labels_are_added_up_also_when_they_are_gone() {
        let metrics = Metrics::default();
        let (one, other) = (handle(&metrics), handle(&metrics));
        one.observe(Duration::from_micros(100));
        other.observe(Duration::from_micros(101));
        other.observe(Duration::from_secs(20));
        drop(other);
        for _ in 0..2 {
            let text = metrics.render();
            for line in [
                "# TYPE took_seconds histogram",
                "took_seconds_bucket{le=\"0.0001\",filter=\"a\"} 1",
                "took_seconds_bucket{le=\"0.00025\",filter=\"a\"} 2",
                "took_seconds_bucket{le=\"10.0\",filter=\"a\"} 2",
                "took_seconds_bucket{le=\"+Inf\",filter=\"a\"} 3",
                "took_seconds_count{filter=\"a\"} 3",
                "took_seconds_sum{filter=\"a\"} 20.000201",
            ] {
                assert!(text.contains(line), "{line} in {text}");
            }
        }
    }
}
