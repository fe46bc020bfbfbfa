//! The process itself, under the names that Prometheus dashboards expect.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Ticks a second in `/proc/*/stat`; Linux shows programs this value whatever its own clock.
const TICKS: f64 = 100.0;

/// Read from `/proc` at each scrape; where there is no such thing, only the start time is told.
#[derive(Debug)]
pub(super) struct Process {
    started: f64,
}

impl Process {
    pub(super) fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            started: since_epoch.map_or(0.0, |time| time.as_secs_f64()),
        }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut put =
            |name: &str, help: &str, metric: &dyn EncodeInto| metric.put(&mut encoder, name, help);
        put(
            "process_start_time_seconds",
            "When the process began, in seconds since 1970.",
            &ConstGauge::new(self.started),
        )?;
        if let Some(seconds) = cpu_seconds() {
            put(
                "process_cpu_seconds",
                "Processor time used, in user and system mode.",
                &ConstCounter::new(seconds),
            )?;
        }
        if let Some(bytes) = resident_bytes() {
            put(
                "process_resident_memory_bytes",
                "Memory in use.",
                &ConstGauge::new(bytes),
            )?;
        }
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            put(
                "process_open_fds",
                "Open files and sockets.",
                &ConstGauge::new(entries.count() as f64),
            )?;
        }
        Ok(())
    }
}

/// A metric of any kind behind one reference.
trait EncodeInto {
    fn put(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
    ) -> Result<(), fmt::Error>;
}

impl<M: EncodeMetric> EncodeInto for M {
    fn put(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
    ) -> Result<(), fmt::Error> {
        let metric = encoder.encode_descriptor(name, help, None, self.metric_type())?;
        self.encode(metric)
    }
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS)
}

fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn the_process_is_described() {
        let metrics = Metrics::default();
        metrics.describe_process();
        metrics.describe_process();
        let text = metrics.render();
        for name in [
            "process_start_time_seconds ",
            "process_cpu_seconds_total ",
            "process_resident_memory_bytes ",
            "process_open_fds ",
        ] {
            let lines = text.lines().filter(|line| line.starts_with(name));
            assert_eq!(lines.count(), 1, "{name}: {text}");
        }
    }

    #[test]
    fn work_shows_as_processor_time() {
        let before = cpu_seconds().unwrap();
        let mut sum = 0u64;
        while cpu_seconds().unwrap() < before + 0.02 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(resident_bytes().unwrap() > 1e6);
    }
}
