//! What a run came to, for people and for programs.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    time::Duration,
};

use serde_json::{Value, json};

use attache_service::probe::{Latency, ServerFacts, counted, millis};

use super::{
    code::{Code, Finding, Severity},
    event::Phase,
};

/// What came of one case.
#[derive(Debug, Clone)]
pub struct CaseReport {
    /// Name of the case.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Messages sent to the processor.
    pub sent: usize,
    /// Messages received from it.
    pub received: usize,
    /// From the opening of the stream to its end.
    pub duration: Duration,
    /// How long each reply took.
    pub latencies: Vec<(Phase, Duration)>,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl CaseReport {
    /// How bad the worst finding is.
    pub fn worst(&self) -> Option<Severity> {
        self.findings
            .iter()
            .map(|finding| finding.code.severity())
            .min()
    }

    /// In one word: `ok`, or how bad the worst finding is.
    pub fn verdict(&self) -> &'static str {
        match self.worst() {
            None | Some(Severity::Note) => "ok",
            Some(severity) => severity.name(),
        }
    }
}

/// What a run came to. Its `Display` is a text for people.
#[derive(Debug, Clone)]
pub struct Report {
    /// What the server says of itself.
    pub server: ServerFacts,
    /// The cases, as they were played.
    pub cases: Vec<CaseReport>,
}

impl Report {
    /// Findings of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        let findings = self.cases.iter().flat_map(|case| &case.findings);
        findings
            .filter(|finding| finding.code.severity() == severity)
            .count()
    }

    /// Whether there is no violation and no hang; with `strict`, no warning either.
    pub fn passes(&self, strict: bool) -> bool {
        let least = if strict {
            Severity::Warning
        } else {
            Severity::Violation
        };
        self.cases
            .iter()
            .filter_map(CaseReport::worst)
            .all(|worst| worst > least)
    }

    /// How long replies took, by kind of message.
    pub fn latencies(&self) -> BTreeMap<Phase, Latency> {
        let mut all: BTreeMap<Phase, Vec<Duration>> = BTreeMap::new();
        for (phase, took) in self.cases.iter().flat_map(|case| &case.latencies) {
            all.entry(*phase).or_default().push(*took);
        }
        all.into_iter()
            .filter_map(|(phase, times)| Some((phase, Latency::of(times)?)))
            .collect()
    }

    /// The whole report, for programs. Times are in milliseconds.
    pub fn json(&self) -> Value {
        let cases: Vec<_> = self.cases.iter().map(case_json).collect();
        let latencies: serde_json::Map<_, _> = self
            .latencies()
            .into_iter()
            .map(|(phase, latency)| (phase.name().to_owned(), latency.json()))
            .collect();
        json!({
            "health": self.server.health.name(),
            "reflection": self.server.reflection,
            "hangs": self.count(Severity::Hang),
            "violations": self.count(Severity::Violation),
            "warnings": self.count(Severity::Warning),
            "notes": self.count(Severity::Note),
            "cases": cases,
            "latencies": latencies,
        })
    }

    /// Findings of one kind in the order of their severity, with the cases they came up in.
    fn grouped(&self) -> BTreeMap<(Severity, Code), Vec<(&'static str, &Finding)>> {
        let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for case in &self.cases {
            for finding in &case.findings {
                let key = (finding.code.severity(), finding.code);
                groups.entry(key).or_default().push((case.name, finding));
            }
        }
        groups
    }
}

fn case_json(case: &CaseReport) -> Value {
    let findings: Vec<_> = case
        .findings
        .iter()
        .map(|finding| {
            json!({
                "severity": finding.code.severity().name(),
                "code": finding.code.name(),
                "phase": finding.phase.name(),
                "at_ms": millis(finding.at),
                "did": finding.did,
                "effect": finding.code.effect(),
                "fix": finding.code.fix(),
            })
        })
        .collect();
    json!({
        "name": case.name,
        "about": case.about,
        "verdict": case.verdict(),
        "sent": case.sent,
        "received": case.received,
        "duration_ms": millis(case.duration),
        "findings": findings,
    })
}

impl fmt::Display for CaseReport {
    /// One line of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages = format!("{} / {}", self.sent, self.received);
        let (name, verdict) = (self.name, self.verdict());
        let time = format!("{:.1} ms", millis(self.duration));
        write!(
            f,
            "{name:<26} {messages:>9} {time:>11}  {verdict:<9}  {}",
            self.about
        )
    }
}

impl fmt::Display for Report {
    /// Everything but the cases: what was found, how long replies took, and the outcome.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((severity, code), findings) in self.grouped() {
            writeln!(f, "{} {code}", severity.name().to_uppercase())?;
            let mut shown: Vec<(&str, String)> = Vec::new();
            for (case, finding) in &findings {
                let known = shown.iter_mut().find(|(did, _)| *did == finding.did);
                match known {
                    Some((_, cases)) if cases.ends_with(case) => {}
                    Some((_, cases)) => write!(cases, ", {case}")?,
                    None => shown.push((&finding.did, (*case).to_owned())),
                }
            }
            const SHOWN: usize = 5;
            for (did, cases) in shown.iter().take(SHOWN) {
                writeln!(f, "  {did} [{cases}]")?;
            }
            if let Some(more) = shown.len().checked_sub(SHOWN).filter(|more| *more > 0) {
                writeln!(f, "  … and {more} more of this kind.")?;
            }
            writeln!(f, "  {}\n  Fix: {}\n", code.effect(), code.fix())?;
        }
        writeln!(
            f,
            "{:<20} {:>7} {:>10} {:>10} {:>10}",
            "replies to", "count", "min", "median", "max"
        )?;
        for (phase, latency) in self.latencies() {
            let ms = |time| format!("{:.2} ms", millis(time));
            writeln!(
                f,
                "{:<20} {:>7} {:>10} {:>10} {:>10}",
                phase.name(),
                latency.count,
                ms(latency.min),
                ms(latency.median),
                ms(latency.max)
            )?;
        }
        writeln!(f, "\n{}", self.server)?;
        write!(
            f,
            "{}: {}, {}, {}, {}",
            counted(self.cases.len(), "case"),
            counted(self.count(Severity::Hang), "hang"),
            counted(self.count(Severity::Violation), "violation"),
            counted(self.count(Severity::Warning), "warning"),
            counted(self.count(Severity::Note), "note"),
        )
    }
}
