//! What a run came to, for people and for programs.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    time::Duration,
};

use attache_service::probe::{Latency, ServerFacts, Severity, counted, millis};
use serde_json::{Value, json};

use super::{
    code::{Code, Finding},
    judge::Answered,
};

/// What came of one case.
#[derive(Debug, Clone)]
pub struct CaseReport {
    /// Name of the case.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// What Envoy makes of the answer.
    pub answered: Answered,
    /// How long the case took.
    pub duration: Duration,
    /// How long each answer took.
    pub latencies: Vec<Duration>,
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

    /// How many requests were allowed; what is said of allowed requests only was tried with none,
    /// when there are none.
    pub fn allowed(&self) -> usize {
        self.answered(|answered| answered == Answered::Allowed)
    }

    fn answered(&self, is: impl Fn(Answered) -> bool) -> usize {
        self.cases.iter().filter(|case| is(case.answered)).count()
    }

    /// How long answers to single checks took; `None` when there were none.
    pub fn latency(&self) -> Option<Latency> {
        self.latency_of(|case| case.latencies.len() == 1)
    }

    /// How long answers to many checks at once took; `None` when there were none.
    pub fn latency_at_once(&self) -> Option<Latency> {
        self.latency_of(|case| case.latencies.len() > 1)
    }

    fn latency_of(&self, which: impl Fn(&CaseReport) -> bool) -> Option<Latency> {
        let cases = self.cases.iter().filter(|case| which(case));
        Latency::of(cases.flat_map(|case| &case.latencies).copied().collect())
    }

    /// The whole report, for programs. Times are in milliseconds.
    pub fn json(&self) -> Value {
        let cases: Vec<_> = self.cases.iter().map(case_json).collect();
        json!({
            "health": self.server.health.name(),
            "reflection": self.server.reflection,
            "allowed": self.allowed(),
            "hangs": self.count(Severity::Hang),
            "violations": self.count(Severity::Violation),
            "warnings": self.count(Severity::Warning),
            "notes": self.count(Severity::Note),
            "cases": cases,
            "latency": self.latency().map(|latency| latency.json()),
            "latency_at_once": self.latency_at_once().map(|latency| latency.json()),
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
                "did": finding.did,
                "effect": finding.code.effect(),
                "fix": finding.code.fix(),
            })
        })
        .collect();
    json!({
        "name": case.name,
        "about": case.about,
        "answer": case.answered.to_string(),
        "verdict": case.verdict(),
        "duration_ms": millis(case.duration),
        "findings": findings,
    })
}

impl fmt::Display for CaseReport {
    /// One line of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, answered, verdict) = (self.name, self.answered.to_string(), self.verdict());
        let time = format!("{:.1} ms", millis(self.duration));
        write!(
            f,
            "{name:<20} {answered:<12} {time:>11}  {verdict:<9}  {}",
            self.about
        )
    }
}

impl fmt::Display for Report {
    /// Everything but the cases: what was found, how long answers took, and the outcome.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((severity, code), findings) in self.grouped() {
            writeln!(f, "{} {code}", severity.name().to_uppercase())?;
            let mut shown: Vec<(&str, String)> = Vec::new();
            for (case, finding) in &findings {
                match shown.iter_mut().find(|(did, _)| *did == finding.did) {
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
        let latencies = [
            ("answers, one by one", self.latency()),
            ("answers, all at once", self.latency_at_once()),
        ];
        for (what, latency) in latencies {
            let Some(latency) = latency else {
                continue;
            };
            writeln!(
                f,
                "{:>4} {what}: min {:.2} ms, median {:.2} ms, max {:.2} ms",
                latency.count,
                millis(latency.min),
                millis(latency.median),
                millis(latency.max)
            )?;
        }
        if self.allowed() == 0 {
            writeln!(
                f,
                "No request was allowed, so nothing is known of allowing answers: \
                 --header and --path help."
            )?;
        }
        writeln!(f, "{}", self.server)?;
        write!(
            f,
            "{} ({} allowed, {} denied): {}, {}, {}, {}",
            counted(self.cases.len(), "case"),
            self.allowed(),
            self.answered(|answered| matches!(answered, Answered::Denied(_))),
            counted(self.count(Severity::Hang), "hang"),
            counted(self.count(Severity::Violation), "violation"),
            counted(self.count(Severity::Warning), "warning"),
            counted(self.count(Severity::Note), "note"),
        )
    }
}
