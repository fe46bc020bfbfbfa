//! Noticing that configuration files have changed.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Changes come in bursts (truncate, write, rename); one is reported when it has been quiet for
/// this long.
const QUIET: Duration = Duration::from_millis(200);
/// The clock of file systems may be behind by so much.
const TICK: Duration = Duration::from_millis(10);
/// A burst that does not end is reported after this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Watches files and directories.
///
/// What is watched is the directory around a file: editors replace files by renaming, and
/// Kubernetes replaces a mounted ConfigMap by swinging the symlink `..data` beside it.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    seen: Vec<Stamp>,
    /// Something happened that was not looked at yet, since a wait was given up.
    pending: bool,
    events: mpsc::Receiver<()>,
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    ///
    /// When a directory does not exist or the system refuses.
    pub fn new<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> notify::Result<Self> {
        let paths: Vec<PathBuf> = paths
            .into_iter()
            .map(|path| path.as_ref().to_path_buf())
            .collect();
        // One place in the queue is enough: a second event adds nothing to the first.
        let (sender, events) = mpsc::channel(1);
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // An error (an overflown queue, say) may hide a change, so it counts as one.
                if event.map_or(true, |event| !event.kind.is_access()) {
                    let _full_is_fine = sender.try_send(());
                }
            })?;
        let mut directories: Vec<&Path> = Vec::new();
        for path in &paths {
            if path.is_dir() {
                directories.push(path);
            }
            directories.push(match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            });
        }
        directories.sort_unstable();
        directories.dedup();
        for directory in directories {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
        }
        Ok(Self {
            seen: stamps(&paths),
            pending: false,
            paths,
            events,
            _watcher: watcher,
        })
    }

    /// Counts as changes also those since `look`: what was read before the watch began may be old
    /// already. Of files that it was not a look at, as their names were only read later, those
    /// count that changed after it.
    #[must_use]
    pub fn since(mut self, look: &Look) -> Self {
        let of_ours = |stamp: &&Stamp| {
            let paths = &mut self.paths.iter();
            paths.any(|path| stamp.name == *path || stamp.name.parent() == Some(path))
        };
        let mut seen: Vec<Stamp> = look.stamps.iter().filter(of_ours).cloned().collect();
        let others = std::mem::take(&mut self.seen).into_iter();
        let others = others.filter(|stamp| !look.stamps.iter().any(|one| one.name == stamp.name));
        seen.extend(others.map(|stamp| match stamp.modified {
            Some(at) if at >= look.time => Stamp {
                modified: None,
                ..stamp
            },
            _ => stamp,
        }));
        seen.sort_unstable();
        self.seen = seen;
        self.pending = true;
        self
    }

    /// Waits until a watched file has changed, appeared or disappeared, and things are quiet.
    ///
    /// Cancel safe: a change that was not returned is returned by the next call.
    pub async fn changed(&mut self) {
        loop {
            if !self.pending && self.events.recv().await.is_none() {
                // The watcher lives as long as we do, so this does not happen.
                std::future::pending::<()>().await;
            }
            self.pending = true;
            let settle = async {
                while let Ok(Some(())) = tokio::time::timeout(QUIET, self.events.recv()).await {}
            };
            let _either_way = tokio::time::timeout(PATIENCE, settle).await;
            self.pending = false;
            // The directory has other files; what counts is whether ours are different.
            let now = stamps(&self.paths);
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }
}

/// What files look like from outside, to be told from what they look like later.
#[derive(Debug, Clone)]
pub struct Look {
    stamps: Vec<Stamp>,
    time: SystemTime,
}

impl Look {
    /// Looks at files; to be done before they are read.
    pub fn at<P: AsRef<Path>>(paths: &[P]) -> Self {
        let now = SystemTime::now();
        Self {
            stamps: stamps(paths),
            time: now.checked_sub(TICK).unwrap_or(now),
        }
    }
}

/// What a file looks like from outside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp {
    name: PathBuf,
    /// Where the name leads.
    real: PathBuf,
    modified: Option<SystemTime>,
    length: u64,
}

fn stamps<P: AsRef<Path>>(paths: &[P]) -> Vec<Stamp> {
    let mut stamps = Vec::new();
    for path in paths {
        let path = path.as_ref();
        stamps.push(stamp(path));
        if let Ok(entries) = std::fs::read_dir(path) {
            stamps.extend(entries.flatten().map(|entry| stamp(&entry.path())));
        }
    }
    stamps.sort_unstable();
    stamps
}

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok();
    Stamp {
        name: path.to_path_buf(),
        real: std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf()),
        modified: metadata.as_ref().and_then(|it| it.modified().ok()),
        length: metadata.map_or(0, |it| it.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    async fn noticed(watch: &mut Watch) -> bool {
        tokio::time::timeout(SOON, watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn a_file_is_written_and_replaced() -> std::io::Result<()> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("a.yaml");
        std::fs::write(&file, "a: 1")?;
        let mut watch = Watch::new([&file]).map_err(std::io::Error::other)?;

        std::fs::write(&file, "a: 12")?;
        assert!(noticed(&mut watch).await);

        let new = directory.path().join("new");
        std::fs::write(&new, "a: 123")?;
        std::fs::rename(&new, &file)?;
        assert!(noticed(&mut watch).await);

        // Other files of the directory are nobody's business.
        std::fs::write(&new, "a: 1")?;
        let quiet = tokio::time::timeout(QUIET * 4, watch.changed()).await;
        assert!(quiet.is_err());
        Ok(())
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_mounted_config_map_is_swapped() -> std::io::Result<()> {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        for version in ["v1", "v2"] {
            std::fs::create_dir(at(version))?;
            std::fs::write(at(version).join("a.yaml"), version)?;
        }
        symlink("v1", at("..data"))?;
        symlink("..data/a.yaml", at("a.yaml"))?;
        let mut watch = Watch::new([at("a.yaml")]).map_err(std::io::Error::other)?;

        symlink("v2", at("..tmp"))?;
        std::fs::rename(at("..tmp"), at("..data"))?;
        assert!(noticed(&mut watch).await);
        Ok(())
    }

    #[tokio::test]
    async fn a_file_appears_in_a_directory() -> std::io::Result<()> {
        let directory = tempfile::tempdir()?;
        let mut watch = Watch::new([directory.path()]).map_err(std::io::Error::other)?;
        std::fs::write(directory.path().join("b.yaml"), "b: 1")?;
        assert!(noticed(&mut watch).await);
        Ok(())
    }

    #[tokio::test]
    async fn a_change_between_the_look_and_the_watch_is_noticed() -> std::io::Result<()> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        for name in ["a.yaml", "named-by-a"] {
            std::fs::write(at(name), "1")?;
            let old = std::fs::File::options().write(true).open(at(name))?;
            old.set_modified(SystemTime::now() - SOON)?;
        }
        let both = [at("a.yaml"), at("named-by-a")];
        for changed in [None, Some("a.yaml"), Some("named-by-a")] {
            let look = Look::at(&[at("a.yaml")]);
            if let Some(name) = changed {
                std::fs::write(at(name), "other")?;
            }

            let watch = Watch::new(&both).map_err(std::io::Error::other)?;
            let mut watch = watch.since(&look);

            let patience = if changed.is_some() { SOON } else { QUIET * 4 };
            let noticed = tokio::time::timeout(patience, watch.changed()).await;
            assert_eq!(noticed.is_ok(), changed.is_some(), "{changed:?}");
        }
        Ok(())
    }
}
