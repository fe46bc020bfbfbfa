//! What a test has shown.

use std::{fmt, time::Duration};

use attache_service::probe::millis;
use serde_json::{Value, json};

use super::{
    histogram::Histogram,
    load::Pace,
    tally::{Counts, Figures, Second},
};
use crate::{Failure, output};

/// What stands over the lines of seconds.
pub(crate) const HEAD: &str =
    "    sent       OK     OVER   failed        p50        p99        max  (ms)\n";

/// The widest bar of the histogram, in characters.
const WIDEST: u64 = 40;

/// Of which latencies are told.
const PERCENTS: [(f64, &str); 4] = [(50.0, "p50"), (90.0, "p90"), (99.0, "p99"), (99.9, "p99.9")];

/// What a test has shown.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) pace: Pace,
    /// From the first request to the last answer.
    pub(crate) lasted: Duration,
    /// Requests that were due and not sent.
    pub(crate) unsent: u64,
    pub(crate) figures: Figures,
}

impl Report {
    /// Whether all requests were sent and answered.
    pub(crate) fn is_answered(&self) -> bool {
        self.unsent == 0 && self.figures.counts.failed == 0
    }

    pub(crate) fn print(&self, as_json: bool) -> Result<(), Failure> {
        match as_json {
            true => output(&format!("{:#}\n", self.json())),
            false => output(&format!("\n{self}")),
        }
    }

    fn per_second(&self, count: u64) -> f64 {
        let seconds = self.lasted.as_secs_f64();
        match seconds > 0.0 {
            true => (count as f64 / seconds * 10.0).round() / 10.0,
            false => 0.0,
        }
    }

    fn json(&self) -> Value {
        let Figures {
            counts,
            latency,
            late,
            failures,
            seconds,
            ..
        } = &self.figures;
        let failures: Vec<_> = failures
            .iter()
            .map(|(code, failures)| {
                json!({
                    "code": code,
                    "count": failures.count,
                    "first_message": failures.message,
                })
            })
            .collect();
        let octaves: Vec<_> = latency
            .octaves()
            .into_iter()
            .map(|(up_to, count)| json!({ "up_to_ms": millis(up_to), "count": count }))
            .collect();
        let seconds: Vec<_> = seconds
            .iter()
            .map(|second| {
                let mut counts = counts_json(second.counts);
                counts["p50_ms"] = millis(second.p50).into();
                counts["p99_ms"] = millis(second.p99).into();
                counts["max_ms"] = millis(second.max).into();
                counts
            })
            .collect();
        let (pace, late) = match self.pace {
            Pace::Rate(rate) => (json!({ "rate": rate }), percentiles(late)),
            Pace::Callers(callers) => (json!({ "concurrency": callers }), Value::Null),
        };
        let mut report = counts_json(*counts);
        report["pace"] = pace;
        report["lasted_s"] = (millis(self.lasted) / 1e3).into();
        report["sent_per_second"] = self.per_second(counts.sent).into();
        report["unsent"] = self.unsent.into();
        report["failures"] = failures.into();
        report["latency_ms"] = percentiles(latency);
        report["sent_late_ms"] = late;
        report["histogram"] = octaves.into();
        report["seconds"] = seconds.into();
        report
    }
}

fn counts_json(counts: Counts) -> Value {
    json!({
        "sent": counts.sent,
        "ok": counts.ok,
        "over_limit": counts.over_limit,
        "failed": counts.failed,
    })
}

fn percentiles(histogram: &Histogram) -> Value {
    let mut percentiles = json!({ "max": millis(histogram.max()) });
    for (percent, name) in PERCENTS {
        percentiles[name] = millis(histogram.percentile(percent)).into();
    }
    percentiles
}

impl fmt::Display for Second {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            sent,
            ok,
            over_limit,
            failed,
        } = self.counts;
        let [p50, p99, max] = [self.p50, self.p99, self.max].map(millis);
        write!(
            f,
            "{sent:>8} {ok:>8} {over_limit:>8} {failed:>8} {p50:>10.3} {p99:>10.3} {max:>10.3}"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = &self.figures;
        let counts = figures.counts;
        let seconds = self.lasted.as_secs_f64();
        writeln!(f, "{:.1} s at {}", seconds, self.pace)?;
        for (what, count) in [
            ("sent", counts.sent),
            ("OK", counts.ok),
            ("OVER_LIMIT", counts.over_limit),
            ("failed", counts.failed),
        ] {
            let rate = self.per_second(count);
            writeln!(f, "  {what:<12} {count:>10} {rate:>12.1}/s")?;
        }
        for (code, failures) in &figures.failures {
            let message = &failures.message;
            writeln!(f, "    {:>8} {code}: first `{message}`", failures.count)?;
        }
        if self.unsent > 0 {
            writeln!(
                f,
                "  {} requests were due and not sent: too many waited for their answers, or this \
                 machine is too slow",
                self.unsent
            )?;
        }
        let since = match self.pace {
            Pace::Rate(_) => "from when requests were due",
            Pace::Callers(_) => "from when requests were sent",
        };
        writeln!(f, "latency in ms, {since}")?;
        line(f, &figures.latency)?;
        let octaves = figures.latency.octaves();
        let most = octaves.iter().map(|(_, count)| *count).max();
        for (up_to, count) in octaves {
            let width = count
                .saturating_mul(WIDEST)
                .div_ceil(most.unwrap_or(1).max(1));
            let bar = "#".repeat(usize::try_from(width).unwrap_or_default());
            let row = format!("  <= {:>10.3} {count:>10} {bar}", millis(up_to));
            writeln!(f, "{}", row.trim_end())?;
        }
        if let Pace::Rate(_) = self.pace {
            writeln!(f, "requests left late by, in ms")?;
            line(f, &figures.late)?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, histogram: &Histogram) -> fmt::Result {
    write!(f, " ")?;
    for (percent, name) in PERCENTS {
        let latency = millis(histogram.percentile(percent));
        write!(f, " {name} {latency:.3} ")?;
    }
    writeln!(f, " max {:.3}", millis(histogram.max()))
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate(rate) => write!(f, "{rate} requests per second"),
            Self::Callers(1) => write!(f, "the pace of 1 caller"),
            Self::Callers(callers) => write!(f, "the pace of {callers} callers"),
        }
    }
}
