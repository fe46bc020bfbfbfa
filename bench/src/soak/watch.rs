//! What the proxy's process holds: memory, files, threads. Sampled each second, and judged at the
//! end.

use std::time::Duration;

use anyhow::Context;

use crate::cpu::Process;

/// How far memory may be from its middle after the warm-up, in bytes: the medians of its tenths, as
/// in single seconds what waits for a service that was killed takes memory too.
pub(crate) const FLAT: u64 = 2 << 20;
/// How many more files may be open after the warm-up than at most within it: connections that are
/// drained while new ones are made already.
const MORE_FILES: u64 = 64;

/// The same for threads: those that read files end when there was nothing to do for a while.
const MORE_THREADS: u64 = 4;

/// One sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Resident bytes.
    pub(crate) resident: u64,
    /// Open files.
    pub(crate) files: u64,
    /// Threads.
    pub(crate) threads: u64,
}

impl Sample {
    /// What a process holds at this moment.
    pub(crate) fn of(process: Process) -> anyhow::Result<Sample> {
        let folder = format!("/proc/{}", process.0);
        let path = format!("{folder}/status");
        let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            let number: Option<u64> = number.and_then(|number| number.parse().ok());
            number.with_context(|| format!("{path}: no {name}"))
        };
        Ok(Sample {
            resident: field("VmRSS:")? * 1024,
            files: std::fs::read_dir(format!("{folder}/fd"))?.count() as u64,
            threads: field("Threads:")?,
        })
    }
}

/// All samples, and how many of them are warm-up.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    samples: Vec<Sample>,
    warm: Option<usize>,
}

impl Watch {
    /// Samples each second until this is dropped. `warm` says when the warm-up is over.
    pub(crate) async fn run(
        &mut self,
        process: Process,
        warm: impl Fn() -> bool,
        mut tell: impl FnMut(usize, Sample),
    ) -> anyhow::Result<()> {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            let sample = Sample::of(process)?;
            self.samples.push(sample);
            if self.warm.is_none() && warm() {
                self.warm = Some(self.samples.len());
            }
            tell(self.samples.len(), sample);
        }
    }

    /// Prints what was seen, and says what of it is too much.
    pub(crate) fn judge(&self) -> Vec<String> {
        let Some(warm) = self.warm else {
            return vec!["the run was over before its warm-up".to_owned()];
        };
        let (before, after) = self.samples.split_at(warm.min(self.samples.len()));
        let mut resident: Vec<u64> = after.iter().map(|sample| sample.resident).collect();
        resident.sort_unstable();
        let (Some(least), Some(most)) = (resident.first(), resident.last()) else {
            return vec!["nothing was sampled after the warm-up".to_owned()];
        };
        println!("\nafter a warm-up of {warm} s");
        println!("{:<24} {:>12}", "resident, least", mebibytes(*least));
        println!("{:<24} {:>12}", "resident, most", mebibytes(*most));
        let medians: Vec<u64> = tenths(after).filter_map(median).collect();
        for (tenth, median) in medians.iter().enumerate() {
            let title = format!("  median of tenth {}", tenth + 1);
            println!("{title:<24} {:>12}", mebibytes(*median));
        }
        let most_of = |part: &[Sample], what: fn(&Sample) -> u64| part.iter().map(what).max();
        let mut faults = Vec::new();
        let (least, most) = (medians.iter().min(), medians.iter().max());
        if let (Some(least), Some(most)) = (least, most)
            && most - least.midpoint(*most) > FLAT
        {
            faults.push(format!(
                "memory is not flat: {} to {}",
                mebibytes(*least),
                mebibytes(*most)
            ));
        }
        for (title, what, more) in [
            (
                "files",
                (|sample| sample.files) as fn(&Sample) -> u64,
                MORE_FILES,
            ),
            ("threads", |sample| sample.threads, MORE_THREADS),
        ] {
            let (first, later) = (most_of(before, what), most_of(after, what));
            let (first, later) = (first.unwrap_or_default(), later.unwrap_or_default());
            println!("{:<24} {first:>12}", format!("{title}, most in warm-up"));
            println!("{:<24} {later:>12}", format!("{title}, most later"));
            if later > first + more {
                faults.push(format!("{later} {title}, {first} in the warm-up"));
            }
        }
        faults
    }
}

fn tenths(samples: &[Sample]) -> impl Iterator<Item = &[Sample]> {
    samples.chunks(samples.len().div_ceil(10).max(1))
}

/// The median of what was resident.
fn median(samples: &[Sample]) -> Option<u64> {
    let mut resident: Vec<u64> = samples.iter().map(|sample| sample.resident).collect();
    resident.sort_unstable();
    resident.get(resident.len() / 2).copied()
}

/// Bytes as people read them.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(resident: impl IntoIterator<Item = u64>, files: u64) -> Watch {
        let sample = |resident| Sample {
            resident,
            files: 10,
            threads: 5,
        };
        let mut samples: Vec<Sample> = resident.into_iter().map(sample).collect();
        if let Some(last) = samples.last_mut() {
            last.files = files;
        }
        Watch {
            samples,
            warm: Some(1),
        }
    }

    #[test]
    fn memory_is_flat_within_two_mebibytes_of_its_middle() {
        let mib = 1 << 20;
        assert!(
            watch([9 * mib, 20 * mib, 24 * mib, 21 * mib], 10)
                .judge()
                .is_empty()
        );
        let faults = watch([9 * mib, 20 * mib, 24 * mib + 2, 21 * mib], 10).judge();
        assert!(faults.first().unwrap().contains("not flat"), "{faults:?}");
    }

    #[test]
    fn memory_of_single_seconds_is_no_growth_and_of_many_is() {
        let mib = 1 << 20;
        let grown = |seconds| {
            let resident = (0..100).map(move |at| if at < seconds { 30 * mib } else { 20 * mib });
            watch([9 * mib].into_iter().chain(resident), 10).judge()
        };
        assert!(grown(4).is_empty());
        let faults = grown(10);
        assert!(faults.first().unwrap().contains("not flat"), "{faults:?}");
    }

    #[test]
    fn files_that_are_left_open_are_a_fault() {
        assert!(watch([1, 1, 1], 10 + MORE_FILES).judge().is_empty());
        let faults = watch([1, 1, 1], 11 + MORE_FILES).judge();
        assert!(faults.first().unwrap().contains("files"), "{faults:?}");
    }

    #[test]
    fn this_process_can_be_sampled() {
        let sample = Sample::of(Process::own()).unwrap();
        assert!(sample.resident > 0 && sample.files > 0 && sample.threads > 0);
    }
}
