//! Counters and gauges whose values are kept elsewhere and read at each scrape.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// Takes one value with its labels.
pub type PutReading<'a> = dyn FnMut(&[(&str, &str)], u64) + 'a;

type Read = Box<dyn Fn(&mut PutReading<'_>) -> bool + Send + Sync>;

/// One metric, read by any number of functions.
#[derive(Clone)]
pub(super) struct Readings {
    name: String,
    help: String,
    kind: MetricType,
    read: Arc<Mutex<Vec<Read>>>,
}

impl Readings {
    pub(super) fn new(name: &str, help: &str, kind: MetricType) -> Self {
        Self {
            name: name.to_owned(),
            help: help.to_owned(),
            kind,
            read: Arc::default(),
        }
    }

    pub(super) fn add(&self, read: impl Fn(&mut PutReading<'_>) -> bool + Send + Sync + 'static) {
        let mut all = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Box::new(read));
    }
}

impl fmt::Debug for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readings")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut sums: BTreeMap<Vec<(String, String)>, u64> = BTreeMap::new();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.retain(|read| {
            read(&mut |labels, value| {
                let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
                let sum = sums.entry(labels.iter().map(owned).collect()).or_default();
                *sum = sum.saturating_add(value);
            })
        });
        let mut family = encoder.encode_descriptor(&self.name, &self.help, None, self.kind)?;
        for (labels, value) in &sums {
            let encoder = family.encode_family(labels)?;
            match self.kind {
                MetricType::Gauge => {
                    let value = i64::try_from(*value).unwrap_or(i64::MAX);
                    ConstGauge::new(value).encode(encoder)?;
                }
                _ => ConstCounter::new(*value).encode(encoder)?,
            }
        }
        Ok(())
    }
}
