//! Which traces are recorded.

use super::context::TraceId;

/// Which traces are recorded, by OpenTelemetry's `OTEL_TRACES_SAMPLER`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Of calls whose caller says whether their trace is recorded, the caller's word counts.
    pub follows_parent: bool,
    /// The share of the other traces, from 0 to 1. It depends on the trace's id alone, so that
    /// services with the same share record the same traces.
    pub ratio: f64,
}

impl Default for Sampler {
    /// `parentbased_always_on`.
    fn default() -> Self {
        Self {
            follows_parent: true,
            ratio: 1.0,
        }
    }
}

impl Sampler {
    /// The sampler of this name (`always_on`, `always_off`, `traceidratio`, or one of these after
    /// `parentbased_`), with the argument of `traceidratio`: 1 when there is none.
    ///
    /// `None` when there is no such sampler or the argument is no share.
    pub fn named(name: &str, argument: Option<&str>) -> Option<Self> {
        let (follows_parent, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => match argument {
                None => 1.0,
                Some(argument) => argument
                    .trim()
                    .parse()
                    .ok()
                    .filter(|ratio| (0.0..=1.0).contains(ratio))?,
            },
            _ => return None,
        };
        Some(Self {
            follows_parent,
            ratio,
        })
    }

    /// Whether a trace is recorded. `parent` is what the caller says of it.
    pub(super) fn records(&self, trace: TraceId, parent: Option<bool>) -> bool {
        match parent {
            Some(sampled) if self.follows_parent => sampled,
            _ if self.ratio >= 1.0 => true,
            // The lower half of an id, less one bit, as other implementations have it.
            _ => (((trace.0 as u64) >> 1) as f64) < self.ratio * (1u64 << 63) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_word_counts_where_it_is_asked_for() {
        let trace = TraceId(7);
        let parent = [Some(true), Some(false), None];
        let records = |name| {
            let sampler = Sampler::named(name, None).unwrap();
            parent.map(|parent| sampler.records(trace, parent))
        };
        assert_eq!(records("always_on"), [true, true, true]);
        assert_eq!(records("always_off"), [false, false, false]);
        assert_eq!(records("parentbased_always_on"), [true, false, true]);
        assert_eq!(records("parentbased_always_off"), [true, false, false]);
    }

    #[test]
    fn a_share_of_the_traces_is_told_by_their_ids() {
        let quarter = Sampler::named("traceidratio", Some("0.25")).unwrap();
        let recorded = (0..100u128)
            .map(|part| TraceId(part * (u128::from(u64::MAX) / 100)))
            .filter(|trace| quarter.records(*trace, None))
            .count();
        assert_eq!(recorded, 25);
        assert!(!quarter.records(TraceId(u128::from(u64::MAX)), Some(true)));
    }

    #[test]
    fn what_is_no_sampler_is_none() {
        for (name, argument) in [
            ("sometimes", None),
            ("traceidratio", Some("2")),
            ("traceidratio", Some("NaN")),
            ("parentbased_", None),
        ] {
            assert_eq!(Sampler::named(name, argument), None, "{name} {argument:?}");
        }
    }
}
