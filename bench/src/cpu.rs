//! CPU time of a process, as the kernel accounts it.

use std::time::Duration;

use anyhow::Context;

/// The kernel's unit in `/proc/<pid>/stat`: USER_HZ, 100 on every Linux that
/// we run on.
const TICK: Duration = Duration::from_millis(10);

/// A process whose CPU time can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// This process.
    pub(crate) fn own() -> Process {
        Process(std::process::id())
    }

    /// User and system time that all its threads have used so far.
    pub(crate) fn cpu(self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.0);
        let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        ticks(&stat)
            .map(|ticks| TICK * ticks)
            .with_context(|| format!("{path}: cannot read `{stat}`"))
    }
}

/// The CPU time of each thread of a process, by its number.
pub(crate) fn threads(process: Process) -> anyhow::Result<Vec<(u32, Duration)>> {
    let folder = format!("/proc/{}/task", process.0);
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.clone())? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        let stat = std::fs::read_to_string(path.join("stat"));
        // A thread may end at any time.
        if let (Some(number), Ok(stat)) = (number, stat) {
            let ticks = ticks(&stat).with_context(|| format!("cannot read `{stat}`"))?;
            threads.push((number, TICK * ticks));
        }
    }
    Ok(threads)
}

/// The numbers of the threads whose names begin so.
pub(crate) fn threads_named(process: Process, start: &str) -> anyhow::Result<Vec<u32>> {
    let mut named = Vec::new();
    for (number, _) in threads(process)? {
        let path = format!("/proc/{}/task/{number}/comm", process.0);
        let name = std::fs::read_to_string(&path);
        // A thread may end at any time.
        if name.is_ok_and(|name| name.starts_with(start)) {
            named.push(number);
        }
    }
    Ok(named)
}

/// utime + stime, fields 14 and 15. The second field, the program's name in
/// parentheses, may hold spaces, so counting starts behind it.
fn ticks(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_does_not_shift_the_fields() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 100 0 0 0 42 17 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(59));
        assert_eq!(ticks("nonsense"), None);
    }

    #[test]
    fn our_own_time_can_be_read() {
        assert!(Process::own().cpu().is_ok());
        assert!(!threads(Process::own()).unwrap().is_empty());
    }
}
